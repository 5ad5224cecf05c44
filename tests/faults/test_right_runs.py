"""Trainings, studies and their tables that went wrong without a word: each right value."""

import ast
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import PartialState
from PIL import Image
from torch import nn

import experiments
import hyperparameter_search
import run_files
import runs
import train
from data.files import CODE, say_once
from data.image_cache import Selection, load_splits
from evaluation import pretext_epochs, probes
from evaluation.results import experiments_table, pairs_to_compare, read_profile
from experiments import EXPERIMENTS, configure, find, prerequisites
from helper_functions import TrainSettings
from loop.devices import build_accelerator
from runs import write_result
from self_supervised import dataloader as pretexts
from self_supervised import settings as self_supervised
from self_supervised.settings import ClassifierExperiment, JointEmbeddingExperiment, PretextExperiment, ProbeExperiment
from study import missing_tasks
from supervised import settings as supervised
from supervised.dataloader import Loaders, build_loaders, whole_batch
from supervised.models import SceneClassifier, build_features, load_initial_weights
from supervised.settings import DistilledExperiment, Experiment
from tests.conftest import CLASSES, draw
from tests.evaluation.synthetic_results import seeds, write

# ------------------------------------------------------------------------------------------------------------- results


def test_a_run_on_other_data_does_not_take_the_place_of_one_of_its_name(tmp_path):
    write(tmp_path, seeds("byol_classifier", range(5), range(6), range(7)))
    write(tmp_path / "nature", seeds("byol_classifier", range(90)) | seeds("nature_byol_classifier", range(10)))
    table = experiments_table(read_profile(tmp_path))
    assert table.loc["byol_classifier", "runs"] == 3 and "nature_byol_classifier" in table.index


def test_probes_of_other_images_are_stale_though_the_weights_are_the_same(tmp_path):
    experiment, data = SimpleNamespace(name="a"), {"fingerprint": {"train": "1"}}
    table = pd.DataFrame({"stage": [0], "probe": ["linear"], "test_accuracy": [0.5]})
    for fingerprint, stale in (("1", []), ("2", ["ImageNet"])):
        data["fingerprint"]["train"] = fingerprint
        source = {"weights": "same", "images": probes.digest_of_images(data)}
        cache = probes._Cache(tmp_path, {"ImageNet": source})
        if not stale:
            cache.fill({"ImageNet": experiment}, lambda *_: {"probes": table}, progress=False)
        assert cache.read({"ImageNet": experiment}).stale == stale


# ------------------------------------------------------------------------------------------------------------ training


def test_the_device_is_that_which_is_asked_for_also_for_the_second_training(monkeypatch):
    assert build_accelerator("cpu").device.type == "cpu"
    other = SimpleNamespace(type="meta")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: other)
    forgotten = []
    monkeypatch.setattr("loop.devices.AcceleratorState._reset_state", lambda **kind: forgotten.append(kind))
    build_accelerator("auto")
    assert forgotten == [{"reset_partial_state": True}]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    build_accelerator("auto")
    assert len(forgotten) == 1 and PartialState().device.type == "cpu"


@pytest.mark.parametrize(("processes", "expected"), [(1, 512), (2, 512), (3, 513), (6, 516)])
def test_batches_on_a_gpu_are_divided_evenly_by_any_number_of_processes(monkeypatch, processes, expected):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert whole_batch(512) == expected


def test_few_images_on_two_processes_are_one_even_batch(scene_folder, root, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    say_once.cache_clear()
    experiment = Experiment("e", "?", data=str(scene_folder), image_size=32, batch_size=64, images_per_class=5)
    loaders: Loaders = build_loaders(experiment, progress=False)
    assert loaders.train.batch_size == 14 and len(loaders.train.dataset) == 15
    assert "14 one batch" in capsys.readouterr().err


def test_labels_are_known_without_reading_an_image(scene_folder, root, monkeypatch):
    fields = {"data": str(scene_folder), "image_size": 32, "batch_size": 8}
    for experiment in (Experiment("e", "?", **fields), PretextExperiment("p", "?", pretext="jigsaw_2x2", **fields)):
        for loader in (found := pretexts.build_loaders(experiment, progress=False)).val, found.test:
            read = torch.cat([labels for _, labels in loader])
            with monkeypatch.context() as patch:
                patch.setattr(type(loader.dataset), "__getitems__", lambda *_: pytest.fail("an image was read"))
                assert runs._labels(loader).tolist() == read.tolist()


def test_frozen_features_are_compared_without_flips_too(scene_folder, root, monkeypatch):
    passes, pool = [], SceneClassifier._pool
    monkeypatch.setattr(SceneClassifier, "_pool", lambda *given: passes.append(given) or pool(*given))
    fields = {"data": str(scene_folder), "image_size": 32, "initial_weights": "random", "freeze_features": True}
    fields |= {"flip_tta": True, "select_with_flip": False, "train": TrainSettings(max_epochs=2)}
    model, _ = runs.run(Experiment("frozen", "?", **fields), "quick", device="cpu", progress=False)
    assert len(passes) == 3 + 2 * 2 and model.flip_tta  # train, val, test; then val and test with flips


# ------------------------------------------------------------------------------------------------------------- settings


def test_an_epoch_that_a_pretext_does_not_keep_is_refused_before_it_is_trained(monkeypatch):
    pretext = PretextExperiment("own", "?", pretext="perturbation", save_epochs=(1, 2))
    monkeypatch.setitem(experiments.EXPERIMENTS, "own", pretext)
    prerequisites(ClassifierExperiment("c", "?", pretext_run="own", pretext_epoch=2), "full")
    with pytest.raises(ValueError, match="needs epoch 7 of own, which keeps best, 1, 2"):
        prerequisites(ClassifierExperiment("c", "?", pretext_run="own", pretext_epoch=7), "full")


@pytest.mark.parametrize("field, own", [("network", "resnet18"), ("resize", "imagenet")])
def test_a_classifier_that_does_not_fit_its_pretext_is_refused_before_that_is_trained(field, own, monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "own", PretextExperiment("own", "?", **{field: own, "stages": (4,)}))
    with pytest.raises(ValueError, match=f"c: {field} is .*, but that of own is '{own}'"):
        prerequisites(ClassifierExperiment("c", "?", pretext_run="own", stages=(4,)), "full")


def test_an_epoch_after_the_last_one_is_refused_before_the_pretext_is_trained(monkeypatch):
    short = replace(find("rotation_1"), name="short", train=TrainSettings(max_epochs=6))
    monkeypatch.setitem(experiments.EXPERIMENTS, "short", short)
    assert 10 in short.save_epochs
    with pytest.raises(ValueError, match="c needs epoch 10 of short, which ends after 6"):
        prerequisites(ClassifierExperiment("c", "?", pretext_run="short", pretext_epoch=10), "full")


def test_quick_has_an_epoch_of_a_pretext_that_full_has():
    probe = ProbeExperiment("x", "?", pretext_run="byol", pretext_epoch=4)
    for profile in ("full", "quick"):
        [(_, epoch)] = prerequisites(configure(probe, profile), profile)
    assert epoch == self_supervised.QUICK_PRETEXT_EPOCHS


@pytest.mark.parametrize(
    "kind, fields",
    [
        (Experiment, {"save_epochs": 2}),
        (Experiment, {"save_epochs": (9, "lst")}),
        (Experiment, {"save_epochs": (0,)}),
        (ProbeExperiment, {"head": "shallow"}),
        (ProbeExperiment, {"save_epochs": ("last",)}),
        (ProbeExperiment, {"class_weights": (("coast", 2.0),)}),
        (JointEmbeddingExperiment, {"freeze_features": True}),
        (JointEmbeddingExperiment, {"class_weights": (("coast", 2.0),)}),
    ],
)
def test_a_field_that_would_fail_late_or_be_ignored_is_refused_by_name(kind, fields):
    with pytest.raises(ValueError, match=f"own: {next(iter(fields))} "):
        kind("own", "?", **fields)


def test_a_pretext_that_was_trained_otherwise_is_named_as_what_to_train_again(root, scene_folder, capsys):
    common = ["--data", str(scene_folder), "--profile", "quick", "--device", "cpu"]
    assert train.main(["perturbation_tuned", "--epochs", "2", *common]) == 0
    assert train.main(["perturbation_classifier_tuned_3", *common]) == 2
    assert "train perturbation_tuned again with --overwrite first" in capsys.readouterr().err


def test_every_experiment_of_the_study_needs_epochs_that_are_kept():
    for experiment in EXPERIMENTS.values():
        for profile in ("quick", "full"):
            prerequisites(configure(experiment, profile), profile)


def test_a_study_trains_a_pretext_again_whose_epoch_is_gone(root, monkeypatch):
    name = "rotation_classifier_tuned_10"
    [(pretext, epoch)] = prerequisites(configure(find(name), "full"), "full")
    files = run_files.files_of(pretext, "full")
    files.checkpoint.parent.mkdir(parents=True)
    monkeypatch.setattr("study.read", lambda experiment, *_: {} if experiment.name == pretext.name else None)
    for present in (files.checkpoint, files.saved(epoch)):
        present.touch()
        names = [task.name for task in missing_tasks([name], "full", [0])]
        assert names == ([pretext.name, name] if present == files.checkpoint else [name])


@pytest.mark.parametrize("fields", [{"crop_size": 32, "augmentation": "crop"}, {"class_weights": (("a", 2.0),)}])
def test_a_pretext_refuses_what_it_does_not_use(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        PretextExperiment("p", "?", pretext="rotation", **fields)


def test_smaller_images_of_a_search_have_smaller_crops(root, monkeypatch):
    searched = []
    monkeypatch.setattr(hyperparameter_search, "subject_of", lambda experiment, *_: searched.append(experiment) or {})
    monkeypatch.setattr(hyperparameter_search, "open_study", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hyperparameter_search.main(["supervised_short", "--image-size", "176", "--data", "15scene"])
    own = find("supervised_short")
    assert searched[0].crop_size == round(own.crop_size * 176 / own.image_size) < own.crop_size


def test_a_quick_run_crops_to_its_own_size():
    assert not [each.name for each in EXPERIMENTS.values() if configure(each, "quick").crop_size not in (None, 32)]


@pytest.mark.parametrize("fields", [{}, {"teacher_run": "supervised_short"}, {"teacher_seeds": (0,)}])
def test_a_distilled_network_needs_teachers(fields):
    with pytest.raises(ValueError, match="is empty"):
        prerequisites(DistilledExperiment("d", "?", **fields), "full")


def test_the_settings_of_every_kind_of_experiment_are_completed_with_defaults():
    for experiment in EXPERIMENTS.values():
        assert run_files.with_defaults(run_files.settings_of(experiment), experiment) == run_files.settings_of(
            experiment
        )


def test_a_weights_file_with_one_number_too_many_is_told_in_a_sentence(tmp_path):
    features = build_features("efficientnet_b0").state_dict()
    state = {f"features.{name}": tensor for name, tensor in features.items()} | {"features.8.scale": torch.tensor(1.0)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="1 too many"):
        load_initial_weights(str(tmp_path / "w.pth"))


def test_the_experiment_that_the_page_shows_changes_no_other_comparison(monkeypatch):
    """CONTRIBUTING.md is followed to the letter."""
    text = (CODE / "CONTRIBUTING.md").read_text()
    entry = text.partition("```python\n")[2].partition("```")[0]
    call = ast.parse(entry.strip(), mode="eval").body
    fields = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg != "train"}
    before = {pair.experiment: pair.comparisons for pair in pairs_to_compare()}
    added = replace(supervised.EXPERIMENTS["supervised_2"], **fields)
    monkeypatch.setitem(EXPERIMENTS, added.name, added)
    after = {pair.experiment: pair.comparisons for pair in pairs_to_compare()}
    assert {name: after[name] for name in before} == before
    assert added.earlier_accuracy is None


# ---------------------------------------------------------------------------------------------- images without labels


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("colored", ["scenes", "photos", "neither"])
def test_images_without_labels_are_read_when_they_are_asked_for(alone, colored, scene_folder, root, monkeypatch):
    """They may be more than memory holds."""
    photos = root / "photos" / "train"
    for place, class_name in enumerate(CLASSES):
        (photos / class_name).mkdir(parents=True)
        draw(class_name, np.random.default_rng(place)).save(photos / class_name / "photo.png")
    (root / "photos" / "val").symlink_to(scene_folder / "val")
    for path in [] if colored == "neither" else (root / colored / "train").glob("*/*"):
        Image.new("RGB", (40, 40), (90, 40, 200)).save(path)
    byol = replace(self_supervised.JOINT_EMBEDDINGS["byol"], data=str(scene_folder), image_size=32, view_size=32)
    byol = replace(byol, unlabelled=str(root / "photos"), unlabelled_alone=alone)
    with monkeypatch.context() as patch:
        patch.setattr(Selection, "__array__", lambda *_, **__: pytest.fail("all images were read"))
        images = pretexts.build_loaders(byol, progress=False).train.dataset.images
    train, more = (load_splits(folder, 32, byol.resize, progress=False) for folder in (scene_folder, root / "photos"))
    added = np.asarray(more["train"].images)
    if colored != "neither":
        added = added.repeat(3, axis=1) if colored == "scenes" else np.full((3, 1, 32, 32), 73)  # 0.299 * 90 + ...
    expected = added if alone else np.concatenate([train["train"].images, added])
    assert images.images.shape == expected.shape and np.array_equal(np.asarray(images.images), expected)
    order = np.arange(len(expected))[::-1]
    assert np.array_equal(images[order].numpy(), expected[order])


def test_images_without_labels_that_were_left_out_are_named(scene_folder, root):
    photos = root / "photos"
    photos.mkdir()
    for path in sorted((scene_folder / "train").glob("*/*"))[:20]:
        (photos / f"{path.parent.name}_{path.name}").write_bytes(path.read_bytes())
    (photos / "bad.jpg").write_text("no image")
    byol = replace(self_supervised.JOINT_EMBEDDINGS["byol"], data=str(scene_folder), image_size=32, view_size=32)
    byol = replace(byol, unlabelled=str(photos / "**"), unlabelled_alone=True, views="without_blur")
    loaders = pretexts.build_loaders(byol, skip_bad_images=True, progress=False)
    assert loaders.data["unlabelled"]["skipped"] == ["train/bad.jpg"]
    run_files.refuse_other_images(root / "a.json", byol.unlabelled, loaders.data["unlabelled"])
    sizes = [len(labels) for _, labels in loaders.views_of_val]
    assert len(loaders.train.dataset) == 20 and min(sizes) > 1  # VICReg has no loss of a single image


def test_photos_that_lie_elsewhere_now_are_the_same_and_quick_reads_a_prepared_name_too(
    scene_folder, root, monkeypatch
):
    monkeypatch.setattr(experiments, "EXPERIMENTS", dict(EXPERIMENTS))
    with pytest.raises(ValueError, match="has images of nature already"):
        experiments.with_unlabelled(find("byol_with_nature"), str(scene_folder))
    shutil.copytree(scene_folder, root / "data" / "nature")
    quick = configure(experiments.with_unlabelled(find("byol"), "nature"), "quick", data=str(scene_folder))
    loaders = pretexts.build_loaders(quick, progress=False)
    assert loaders.data["unlabelled"]["name"] == "nature"
    assert len(loaders.train.dataset) > loaders.data["images"]["train"]
    for folder in ("photos", "elsewhere/photos"):
        shutil.copytree(scene_folder, root / folder)
    here, moved = (replace(quick, unlabelled=str(root / folder)) for folder in ("photos", "elsewhere/photos"))
    assert run_files.settings_of(moved) == run_files.settings_of(here)
    assert pretexts.build_loaders(moved, progress=False).data == pretexts.build_loaders(here, progress=False).data
    alone = configure(
        experiments.with_unlabelled(find("byol"), str(root / "photos"), alone=True), "quick", data=str(scene_folder)
    )
    assert alone.unlabelled_alone


# ------------------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize(
    "command", ["supervised_1 --data", "--study supervised_1 --data", "--list --data", "byol --unlabeled"]
)
def test_a_folder_named_like_a_prepared_data_set_is_not_taken_for_it(command, root, scene_folder, capsys):
    own = root / "photos" / "nature"
    shutil.copytree(scene_folder, own)
    assert train.main([*command.split(), str(own)]) == 2
    assert str(own) in (error := capsys.readouterr().err) and "rename the folder" in error
    assert not list((root / "results").rglob("*.json"))


def test_a_result_of_other_settings_is_not_replaced_though_its_checkpoint_is_not_here(
    root, scene_folder, monkeypatch, capsys
):
    """As in a clone, where results are committed and checkpoints are not."""
    command = ["imagenet_classifier", "--data", str(scene_folder), "--profile", "quick", "--device", "cpu"]
    assert train.main([*command, "--epochs", "2"]) == 0
    files = run_files.files_of(configure(find("imagenet_classifier"), "quick", data=str(scene_folder)), "quick")
    files.checkpoint.unlink()
    before = files.result.read_bytes()
    assert train.main([*command, "--epochs", "1"]) == 2
    error = capsys.readouterr().err
    assert str(files.result) in error and "train.max_epochs = 2, but 1" in error and "SCENES_ROOT" in error
    assert files.result.read_bytes() == before
    assert train.main([*command, "--epochs", "2"]) == 0  # the same run again, for its checkpoint
    files.checkpoint.unlink()
    assert train.main([*command, "--epochs", "1", "--overwrite"]) == 0
    assert files.result.read_bytes() != before


def test_a_result_of_a_pretext_that_was_trained_again_may_be_made_again(root, scene_folder, monkeypatch, capsys):
    """Another training of a pretext has other weights; what both began with is the same."""
    command = ["imagenet_classifier", "--data", str(scene_folder), "--profile", "quick", "--device", "cpu"]
    assert train.main([*command, "--epochs", "1"]) == 0
    files = run_files.files_of(configure(find("imagenet_classifier"), "quick", data=str(scene_folder)), "quick")
    files.checkpoint.unlink()
    result = json.loads(files.result.read_text())
    began_with = result["initial_weights"]
    for weights, code in (
        ({"weights": "a pretext", "sha256": "of another training", "began_with": began_with}, 0),
        ({"weights": "a pretext", "sha256": "of another training", "began_with": {"weights": "others"}}, 2),
        ({"weights": "others"}, 2),
    ):
        files.checkpoint.unlink(missing_ok=True)
        write_result(files.result, result | {"initial_weights": weights})
        assert train.main([*command, "--epochs", "1"]) == code
    assert "initial_weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "made_elsewhere, named",
    [
        ({"device": "NVIDIA H200"}, "platform = 'NVIDIA H200, torch"),
        ({"versions": {"torch": "1.0"}}, "platform = 'cpu, torch 1.0'"),
        ({"precision": "bfloat16"}, "precision = 'bfloat16', but 'float32'"),
        ({"cpu_threads": 99}, ""),
    ],
)
def test_a_result_of_another_machine_or_precision_is_not_replaced(made_elsewhere, named, root, scene_folder, capsys):
    """Random weights and settings are the same for everybody; the numbers are not."""
    data = ["--data", str(scene_folder), "--profile", "quick", "--device", "cpu", "--epochs", "1"]
    assert train.main(["imagenet_classifier", *data]) == 0
    files = run_files.files_of(configure(find("imagenet_classifier"), "quick", data=str(scene_folder)), "quick")
    files.checkpoint.unlink()
    write_result(files.result, json.loads(files.result.read_text()) | made_elsewhere)
    before = files.result.read_bytes()
    assert train.main(["imagenet_classifier", *data]) == (2 if named else 0)
    assert named in capsys.readouterr().err
    if named:
        assert files.result.read_bytes() == before and not files.checkpoint.exists()
        assert train.main(["imagenet_classifier", *data, "--overwrite"]) == 0


def test_a_study_of_everything_leaves_out_results_of_other_images_and_a_named_one_is_refused(root, monkeypatch, capsys):
    def read(experiment, profile, seen):
        if experiment.data == "cifar10":
            raise ValueError("cifar10_x.json was made from other images")
        return None if experiment.name == "supervised_1" else {}

    monkeypatch.setattr("study.read", read)
    say_once.cache_clear()
    names = ["cifar10_scratch", "supervised_1", "cifar10_rotation", "cifar10_rotation_classifier"]
    assert [task.name for task in missing_tasks(names, "full", [0], every=True)] == ["supervised_1"]
    assert "3 run(s) are left out" in (error := capsys.readouterr().err) and "cifar10_x.json" in error
    with pytest.raises(ValueError, match="other images"):
        missing_tasks(names, "full", [0])


def test_a_shown_experiment_is_reproduced_by_the_command_that_is_printed(root, scene_folder, capsys):
    asked = ["--data", str(scene_folder), "--epochs", "3"]
    assert train.main(["--show", "byol", "--profile", "quick", *asked]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.endswith(f"python train.py byol --profile quick --data {scene_folder} --epochs 3")


@pytest.mark.parametrize("option", [["--list"], ["--show", "byol_classifier"]])
def test_a_list_of_experiments_is_about_the_data_that_are_named(option, root, scene_folder, monkeypatch, capsys):
    assert train.main([*option, "--data", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(train, "read", lambda experiment, *_: asked.append(experiment.data))
    assert train.main([*option, "--data", str(scene_folder)]) == 0
    assert set(asked) == {str(scene_folder)}


def test_epochs_are_of_joint_embeddings_that_have_been_trained(root, capsys):
    assert pretext_epochs.main(["rotation_1"]) == 2
    assert "joint-embedding" in capsys.readouterr().err
    assert pretext_epochs.main(["byol_scratch"]) == 2
    assert "train byol_scratch first" in capsys.readouterr().err


def test_the_last_epoch_has_one_line_and_a_table_of_other_weights_is_named(root, monkeypatch, capsys):
    pretext = configure(find("byol_10_epochs"), "full", data="synthetic")
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    loaders = SimpleNamespace(data={}, test=None)
    monkeypatch.setattr(pretext_epochs, "loaders_of_run", lambda *_: loaders)
    monkeypatch.setattr(pretext_epochs, "build_model", lambda *_: (nn.ModuleDict({"features": nn.Sequential()}), {}))
    monkeypatch.setattr(pretext_epochs, "fold_batchnorm", lambda model: model)
    monkeypatch.setattr(pretext_epochs, "stage_features", lambda *_: ([features], np.arange(30) % 3))
    provenance = {"data": {}}
    monkeypatch.setattr(
        pretext_epochs, "load_weights", lambda _, __, epoch="", *___: ({}, {**provenance, "sha256": f"of {epoch}"})
    )
    monkeypatch.setattr(pretext_epochs, "weights_here", lambda *_: "of best")
    checkpoint = run_files.files_of(pretext, "full").checkpoint
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert pretext.save_epochs[-1] == pretext.train.max_epochs == 10
    table = pretext_epochs.collect([pretext], "full", compute=True)["byol_10_epochs"]
    assert table["epoch"].tolist() == [0, 2, 4, 6, 8, 10] and table["weights"].iloc[-1] == "of best"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(pretext_epochs, "weights_here", lambda *_: "of another run")
    assert pretext_epochs.collect([pretext], "full")["byol_10_epochs"].equals(table)
    assert "epochs_byol_10_epochs.csv" in capsys.readouterr().err


def test_a_measure_that_is_not_a_number_leaves_its_column_numbers(tmp_path):
    table = pd.DataFrame({"epoch": [0, 2], "cka": [1.0, np.nan], "weights": ["", "abc"]})
    table.to_csv(tmp_path / "epochs.csv", index=False)
    found = pretext_epochs._read(tmp_path / "epochs.csv")
    assert found["cka"].dtype == float and found["weights"].tolist() == ["", "abc"]
