"""The command line as a user calls it, on EfficientNet-B0 itself with tiny images."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torchvision.models import resnet18

import runs
from data import scenes
from supervised import dataloader
from supervised import train as script
from supervised.dataloader import build_loaders
from supervised.models import build_model
from supervised.settings import EXPERIMENTS, NATURE_EXPERIMENTS


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Files of a test's own."""
    monkeypatch.setattr(scenes, "STORES", tmp_path / "stores")
    monkeypatch.setattr(script, "files_of", lambda row, profile: runs.files_of(row, profile, root=tmp_path))
    return tmp_path


def call(capsys, *arguments):
    code = script.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_a_row_runs_on_a_folder_of_ones_own_and_says_what_it_found(scene_folder, folders, capsys):
    code, output, _ = call(
        capsys, "imagenet_classifier", "--data", scene_folder, "--epochs", 2, "--device", "cpu", "--seeds", 0, 1
    )
    assert code == 0
    for name in ("imagenet_classifier", "imagenet_classifier.seed1"):
        result = json.loads((folders / f"results/quick/scenes/{name}.json").read_text())
        assert f"{name}: test accuracy {result['test_accuracy']:.4f}" in output
        assert result["class_names"] == ["dark", "light", "striped"]
        assert len(result["predictions"]["test"]) == 24
        assert result["settings"]["data"] == "scenes"
    assert "initial weights: random" in output


def test_a_row_that_learns_from_others_has_them_trained_first_and_names_them(scene_folder, folders, capsys):
    arguments = ["distilled", "--data", scene_folder, "--device", "cpu"]
    code, output, error = call(capsys, *arguments)
    assert code == 0, error
    assert output.index("supervised_short: test accuracy") < output.index("distilled: test accuracy")
    result = json.loads((folders / "results/quick/scenes/distilled.json").read_text())
    teacher = runs.load_checkpoint(folders / "models/quick/scenes/supervised_short.pt")["model"]
    assert result["teachers"]["of_seeds"] == [0]
    assert [each["sha256"] for each in result["teachers"]["runs"]] == [runs.digest_of(teacher)]
    (folders / "models/quick/scenes/supervised_short.pt").unlink()
    assert call(capsys, "supervised_short", "--data", scene_folder, "--device", "cpu", "--overwrite")[0] == 0
    again = call(capsys, *arguments)  # the same teacher, trained anew: bit for bit the same
    assert again[0] == 0 and "epoch" in again[1]


def test_a_resnet_is_fine_tuned_from_a_local_file_of_torchvisions_weights(scene_folder, folders, capsys):
    torch.manual_seed(0)
    for class_folder in list(scene_folder.glob("*/*")):  # six classes, enough for a batch
        shutil.copytree(class_folder, class_folder.with_name(f"{class_folder.name}_again"))
    published = resnet18(weights=None).state_dict()  # the very names and shapes, with a classifier of 1,000 classes
    torch.save(published, folders / "resnet18.pth")
    name = "nature_resnet18_imagenet_sgd_1e-3"
    arguments = [name, "--data", scene_folder, "--weights", folders / "resnet18.pth", "--device", "cpu"]
    code, output, error = call(capsys, *arguments)
    assert code == 0, error
    result = json.loads((folders / f"results/quick/scenes/{name}.json").read_text())
    assert result["initial_weights"]["weights"] != "random" and f"{name}: test accuracy" in output
    trained = runs.load_checkpoint(folders / f"models/quick/scenes/{name}.pt")["model"]["features.stem.conv1.weight"]
    change = (trained - published["conv1.weight"]).abs().max()
    assert 0 < change < 0.02  # one step of SGD away from the file; a new draw would differ by 0.1


def test_frozen_features_of_augmented_images_are_computed_anew_and_those_of_val_and_test_once(
    scene_folder, folders, monkeypatch
):
    row = replace(EXPERIMENTS["random_classifier"], name="row", augmentation="crop", data=str(scene_folder))
    row = replace(row, image_size=32, batch_size=12, train=replace(row.train, max_epochs=3))
    augmented, seen = [], []
    plain, dataset = dataloader.augment, dataloader.SceneDataset
    monkeypatch.setattr(dataloader, "augment", lambda *each: (augmented.append(each[2]), plain(*each))[1])
    read = dataset.__getitems__
    monkeypatch.setattr(
        dataset, "__getitems__", lambda self, keys: (seen.extend([len(self)] * len(keys)), read(self, keys))[1]
    )
    files = runs.files_of(row, "full", root=folders)
    _, result = runs.run_experiment(row, build_model, build_loaders, files, device="cpu", progress=False)
    assert len(result["history"]["val_loss"]) == 3
    assert len(augmented) == 4 * 36 and len(set(augmented)) == 4 * 36  # 36 of them to set BatchNorm by
    assert (seen.count(18), seen.count(24)) == (2 * 18, 2 * 24)  # once for the features, once for the labels


def test_list_shows_every_row_with_its_question(capsys):
    code, output, _ = call(capsys, "--list")
    assert code == 0
    for row in {**EXPERIMENTS, **NATURE_EXPERIMENTS}.values():
        assert row.name in output
        assert row.question in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name at least one experiment"),
        (["supervised_9"], "no experiment 'supervised_9'"),
        (["supervised_1", "--data", "nowhere"], "no data folder nowhere"),
        (["supervised_1", "--weights", "nowhere.pth"], "no weights file nowhere.pth"),
        (["supervised_1", "--epochs", "0"], "max_epochs is 0"),
        (["supervised_4"], "supervised_4 weighs class 'coast'"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence_and_leaves_no_file(scene_folder, folders, capsys, arguments, sentence):
    if "--data" not in arguments:
        arguments = [*arguments, "--data", scene_folder]
    code, _, errors = call(capsys, *arguments)
    assert code == 2
    assert sentence in errors
    assert "Traceback" not in errors
    assert not [
        path for path in folders.rglob("*") if path.suffix in (".pt", ".json", ".tmp") and "stores" not in path.parts
    ]
