"""The command line as a user calls it, on EfficientNet-B0 itself with tiny images."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import runs
from data import scenes
from helper_functions import TrainSettings
from self_supervised import train as script
from self_supervised.models import build_model
from self_supervised.settings import EXPERIMENTS, ClassifierExperiment
from supervised.dataloader import build_loaders
from supervised.models import SceneClassifier


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Files of a test's own."""
    monkeypatch.setattr(scenes, "STORES", tmp_path / "stores")
    monkeypatch.setattr(script, "files_of", lambda row, profile: runs.files_of(row, profile, root=tmp_path))
    return tmp_path


def call(capsys, *arguments):
    code = script.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def load(folder, name):
    return torch.load(folder / f"models/quick/scenes/{name}.pt", weights_only=True)


def test_a_classifier_trains_its_missing_pretext_first_and_stands_on_its_frozen_features(scene_folder, folders, capsys):
    code, output, error = call(capsys, "perturbation_classifier_tuned_3", "--data", scene_folder, "--device", "cpu")
    assert code == 0, error
    assert output.index("perturbation_tuned: ") < output.index("perturbation_classifier_tuned_3: ")
    assert "initial weights: perturbation_tuned, epoch 2" in output
    pretext, classifier = load(folders, "perturbation_tuned.epoch2"), load(folders, "perturbation_classifier_tuned_3")
    for name, tensor in pretext["model"].items():  # parameters and BatchNorm's buffers, bit for bit
        if name.startswith("features."):
            assert torch.equal(tensor, classifier["model"][name]), name
    result = json.loads((folders / "results/quick/scenes/perturbation_classifier_tuned_3.json").read_text())
    assert result["class_names"] == ["dark", "light", "striped"]
    assert result["initial_weights"]["began_with"] == {"weights": "random"}
    assert len(result["initial_weights"]["sha256"]) == 64

    # another head on another epoch of the same run: the pretext is not trained again
    before = (folders / "models/quick/scenes/perturbation_tuned.pt").stat().st_mtime_ns
    code, output, _ = call(capsys, "perturbation_classifier_tuned_10", "--data", scene_folder, "--device", "cpu")
    assert code == 0
    assert "perturbation_tuned: " not in output
    assert (folders / "models/quick/scenes/perturbation_tuned.pt").stat().st_mtime_ns == before

    # the same again is read back, not trained
    again = script.configure(script.find("perturbation_classifier_tuned_3"), "quick", str(scene_folder))
    assert runs.read_result(again, runs.files_of(again, "quick", root=folders)) == result

    # the precision that is asked for is the classifier's: the pretext is taken as it is
    code, output, _ = call(capsys, "perturbation_classifier_tuned_6", "--data", scene_folder, "--precision", "float32")
    assert code == 0 and "perturbation_tuned: " not in output


@pytest.mark.parametrize("augmentation", ["basic", "advanced"])
def test_frozen_features_are_the_pretexts_bit_for_bit_after_training_and_the_head_has_moved(
    scene_folder, folders, augmentation
):
    """With stochastic depth and BatchNorm, on features computed once and on features computed for every batch."""
    row = ClassifierExperiment(
        "classifier",
        "?",
        data=str(scene_folder),
        image_size=32,
        batch_size=8,
        augmentation=augmentation,
        pretext_run="pretext",
        train=TrainSettings(max_epochs=2, learning_rate=0.01),
    )
    loaders = build_loaders(row, progress=False)
    torch.manual_seed(1)
    untrained, _ = build_model(script.find("rotation_scratch"), loaders, None)
    weights = {name: tensor.clone() for name, tensor in untrained.features.state_dict().items()}
    heads = []

    def build(row, loaders):
        model, source = build_model(row, loaders, lambda name, seed, epoch: (weights, {"weights": f"{name} {epoch}"}))
        heads.append(model.classifier[1].weight.detach().clone())
        return model, source

    files = runs.files_of(row, "quick", root=folders)
    model, result = runs.run_experiment(row, build, lambda row: loaders, files, device="cpu", progress=False)
    assert result["initial_weights"] == {"weights": "pretext best"}
    for name, tensor in model.features.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert not torch.equal(model.classifier[1].weight, heads[0])


def test_batchnorms_statistics_can_be_those_of_the_initial_weights_and_all_else_is_the_pretexts(tmp_path, scene_folder):
    torch.manual_seed(1)
    initial, after = (SceneClassifier(4).state_dict() for _ in range(2))
    for tensors, value in ((initial, 0.25), (after, 0.75)):
        for name in tensors:
            if name.endswith("running_mean"):
                tensors[name].fill_(value)
    torch.save(initial, tmp_path / "initial.pth")
    row = replace(
        script.configure(
            script.find("rotation_gentle_classifier"), "quick", str(scene_folder), str(tmp_path / "initial.pth")
        ),
        image_size=32,
    )
    assert row.batchnorm == "initial"
    features = {name.removeprefix("features."): each for name, each in after.items() if name.startswith("features.")}
    built = {
        kind: build_model(replace(row, batchnorm=kind), SimpleNamespace(class_names="abc"), lambda *_: (features, {}))
        for kind in ("initial", "pretext")
    }
    for kind, value in (("initial", 0.25), ("pretext", 0.75)):
        for name, tensor in built[kind][0].features.state_dict().items():
            if name.endswith("running_mean"):
                assert (tensor == value).all()
            elif name.endswith("weight"):
                assert torch.equal(tensor, features[name])
    assert built["initial"][1] == {"batchnorm": "statistics of the initial weights"} and not built["pretext"][1]
    with pytest.raises(ValueError, match="batchnorm is 'none'; it must be one of pretext, initial"):
        replace(row, batchnorm="none")


def test_a_fine_tuned_row_begins_with_its_pretexts_weights_and_trains_them_on(scene_folder, folders, capsys):
    code, output, error = call(capsys, "cifar10_rotation_finetuned", "--data", scene_folder, "--device", "cpu")
    assert code == 0, error
    assert output.index("cifar10_rotation: ") < output.index("cifar10_rotation_finetuned: ")
    assert "initial weights: cifar10_rotation, epoch best" in output
    row = script.configure(script.find("cifar10_rotation_finetuned"), "quick", str(scene_folder))
    pretext = script.configure(script.find("cifar10_rotation"), "quick", str(scene_folder))
    features, _ = runs.load_features(pretext, runs.files_of(pretext, "quick", root=folders), "best")
    model, _ = build_model(row, SimpleNamespace(class_names="abc"), lambda *_: (features, {}))
    assert all(torch.equal(tensor, features[name]) for name, tensor in model.features.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    trained = load(folders, "cifar10_rotation_finetuned")["model"]
    assert not torch.equal(trained["features.layer1.0.conv1.weight"], features["layer1.0.conv1.weight"])


def test_results_on_cifar10_have_a_folder_of_their_own():
    files = runs.files_of(script.find("cifar10_rotation"), "full")
    assert files.result.relative_to(runs.ROOT).as_posix() == "results/full/cifar10/cifar10_rotation.json"
    assert files.checkpoint.relative_to(runs.ROOT).as_posix() == "models/full/cifar10/cifar10_rotation.pt"


def test_list_shows_every_row_with_its_question(capsys):
    code, output, _ = call(capsys, "--list")
    assert code == 0
    for row in EXPERIMENTS.values():
        assert row.name in output
        assert row.question in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name at least one experiment"),
        (["rotation_9"], "no experiment 'rotation_9'"),
        (["rotation_1", "--data", "nowhere"], "no data folder nowhere"),
        (["rotation_classifier_3", "--weights", "nowhere.pth"], "no weights file nowhere.pth"),
        (["rotation_1", "--epochs", "0"], "max_epochs is 0"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence_and_leaves_no_file(scene_folder, folders, capsys, arguments, sentence):
    if "--data" not in arguments:
        arguments = [*arguments, "--data", scene_folder]
    code, output, error = call(capsys, *arguments)
    assert code == 2
    assert error.splitlines()[-1].startswith("error: ")
    assert sentence in error
    assert output == ""
    assert not list(folders.glob("models/**/*.pt"))
