"""What a run starts from: files of it that were removed, or were made from other images than those that are there."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import experiments
import run_files
import runs
import train
from data.files import say_once
from experiments import EXPERIMENTS, configure, find, prerequisites
from run_files import files_of
from runs import collect
from study import Task, command_of, missing_tasks
from tests.conftest import draw

PRETEXT, CLASSIFIER = "rotation_gentle", "rotation_gentle_classifier"


@pytest.fixture
def flowers(root, scene_folder):
    """A data set of a user's own, which may change."""
    return shutil.copytree(scene_folder, root / "flowers")


def trained(folder, *names, options=()) -> int:
    return train.main([*names, "--data", str(folder), "--profile", "quick", "--device", "cpu", *options])


def files(folder, name):
    return files_of(configure(find(name), "quick", data=str(folder)), "quick")


def add_image(folder):
    """One more image beside the first one, of train where there are splits."""
    scenes = folder / "train" if (folder / "train").exists() else folder
    first = sorted(path for path in scenes.rglob("*") if path.is_file())[0]
    draw("dark", np.random.default_rng(7)).save(first.with_name(f"one_more{first.suffix}"))


def test_a_finished_run_outlives_its_pretext(flowers, capsys):
    assert trained(flowers, CLASSIFIER) == 0
    before = files(flowers, CLASSIFIER).checkpoint.stat().st_mtime_ns
    for path in files(flowers, PRETEXT).models.glob(f"{PRETEXT}.*"):
        path.unlink()
    experiment = configure(find(CLASSIFIER), "quick", data=str(flowers))
    model, result = runs.run(experiment, "quick", progress=False)
    saved = run_files.load_checkpoint(files(flowers, CLASSIFIER).checkpoint)
    assert result == saved["result"] and not model.training
    assert all(torch.equal(value, saved["model"][name]) for name, value in model.state_dict().items())
    assert files(flowers, CLASSIFIER).checkpoint.stat().st_mtime_ns == before
    assert not list(files(flowers, PRETEXT).models.glob(f"{PRETEXT}.*"))
    files(flowers, CLASSIFIER).result.unlink()
    assert trained(flowers, CLASSIFIER) == 0 and files(flowers, CLASSIFIER).result.exists()
    longer = replace(experiment, train=replace(experiment.train, learning_rate=0.5))
    with pytest.raises(ValueError, match="learning_rate"):
        runs.run(longer, "quick", progress=False)
    assert trained(flowers, CLASSIFIER, options=["--overwrite"]) == 0
    assert files(flowers, PRETEXT).checkpoint.exists()


def test_an_epoch_that_was_removed_is_trained_again_where_it_is_needed(flowers):
    assert trained(flowers, CLASSIFIER) == 0
    [(_, epoch)] = prerequisites(configure(find(CLASSIFIER), "quick"), "quick")
    path = files(flowers, PRETEXT).saved(epoch)
    weights = run_files.load_checkpoint(path)["model"]
    path.unlink()
    files(flowers, CLASSIFIER).checkpoint.unlink()
    assert trained(flowers, CLASSIFIER) == 0
    again = run_files.load_checkpoint(path)["model"]
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_overwrite_reaches_a_pretext_of_images_that_have_changed(flowers, capsys):
    assert trained(flowers, CLASSIFIER) == 0
    unchanged = files(flowers, PRETEXT).checkpoint.stat().st_mtime_ns
    assert trained(flowers, CLASSIFIER, options=["--overwrite"]) == 0
    assert files(flowers, PRETEXT).checkpoint.stat().st_mtime_ns == unchanged  # the same run is not trained again
    add_image(flowers)
    assert trained(flowers, CLASSIFIER) == 2
    assert "other images" in capsys.readouterr().err
    experiment = configure(find(CLASSIFIER), "quick", data=str(flowers))
    found = collect([experiment], "quick", train_missing=True, progress=False)  # as the quick report does
    of_pretext = run_files.load_checkpoint(files(flowers, PRETEXT).checkpoint)["identity"]["data"]
    assert found[CLASSIFIER]["data"]["fingerprint"] == of_pretext["fingerprint"]
    assert files(flowers, PRETEXT).checkpoint.stat().st_mtime_ns != unchanged


def test_photographs_without_labels_that_have_changed_are_not_ignored(flowers, root, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "EXPERIMENTS", dict(EXPERIMENTS))
    photos = root / "photos"
    shutil.copytree(sorted((flowers / "train").iterdir())[0], photos)
    options = ["--unlabeled", str(photos)]
    assert trained(flowers, "byol_classifier", options=options) == 0
    add_image(photos)
    assert trained(flowers, "byol_classifier", options=options) == 2
    assert "other images" in capsys.readouterr().err
    name = "byol_with_photos"
    before = run_files.load_checkpoint(files(flowers, name).checkpoint)["identity"]["data"]["unlabelled"]
    assert trained(flowers, "byol_classifier", options=[*options, "--overwrite"]) == 0
    after = run_files.load_checkpoint(files(flowers, name).checkpoint)["identity"]["data"]["unlabelled"]
    assert before["fingerprint"] != after["fingerprint"]


def test_a_study_replaces_files_of_other_images_in_any_order_of_the_names_and_what_lacks_an_epoch(flowers):
    assert trained(flowers, CLASSIFIER) == 0
    [(_, epoch)] = prerequisites(configure(find(CLASSIFIER), "quick"), "quick")
    files(flowers, PRETEXT).saved(epoch).unlink()
    result = files(flowers, CLASSIFIER).result
    removed = result.rename(result.with_suffix(".removed"))
    tasks = missing_tasks([CLASSIFIER], "quick", [0], data=str(flowers))
    assert {task.name: task.again for task in tasks} == {PRETEXT: True, CLASSIFIER: False}
    removed.rename(result)
    add_image(flowers)
    for names in ([PRETEXT, CLASSIFIER], [CLASSIFIER, PRETEXT], [CLASSIFIER]):
        tasks = missing_tasks(names, "quick", [0], overwrite=True, data=str(flowers))
        assert [task.name for task in tasks] == [PRETEXT, CLASSIFIER] and all(task.again for task in tasks)
        with pytest.raises(ValueError, match="other images"):
            missing_tasks(names, "quick", [0], data=str(flowers))


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("supervised_1", "random", ["--weights", "random"]),
        ("supervised_1", "w.pth", ["--weights", "w.pth"]),
        ("nature_resnet18_sgd_1e-2", "w.pth", []),  # starts from random weights anyhow
        ("supervised_1", None, []),
    ],
)
def test_a_study_starts_from_the_weights_that_are_asked_for(name, weights, expected):
    task = Task(configure(find(name), "full", weights=weights), "full")
    command = command_of(task, [], weights)
    found = command[command.index("--weights") :][:2] if "--weights" in command else []
    assert found == expected


def test_a_probe_of_older_code_with_other_epochs_is_the_same(flowers):
    name = "imagenet_classifier_probe"
    assert trained(flowers, name) == 0
    result = json.loads(files(flowers, name).result.read_text())
    result["settings"]["train"]["max_epochs"] = 99
    files(flowers, name).result.write_text(json.dumps(result))
    probe = configure(find(name), "quick", data=str(flowers))
    assert run_files.read(probe, "quick")["test_accuracy"] == result["test_accuracy"]


def test_fewer_epochs_are_of_what_is_trained_alone(flowers, capsys):
    probe, pretext = (find(name) for name in ("byol_classifier", "byol"))
    assert configure(probe, "full", max_epochs=5).train == configure(probe, "full").train
    assert configure(pretext, "full", max_epochs=5).train.max_epochs == 5
    say_once.cache_clear()
    assert trained(flowers, CLASSIFIER, PRETEXT, options=["--epochs", "5"]) == 2
    assert f"{CLASSIFIER} needs all 1 epochs of {PRETEXT}" in capsys.readouterr().err
    assert trained(flowers, CLASSIFIER, options=["--epochs", "1"]) == 0
    assert f"--epochs does not change {PRETEXT}\n" in capsys.readouterr().err
