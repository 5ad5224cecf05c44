"""Runs together: the mean of their probabilities, and what single runs say beside it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import experiments
import run_files
import runs
from evaluation import ensemble
from evaluation.ensemble import ensemble_table, probabilities_of_runs
from supervised.settings import Experiment


def test_the_ensemble_has_the_mean_of_the_probabilities_and_not_of_the_votes():
    labels = {"val": np.array([0]), "test": np.array([0, 1, 1, 1])}
    sure = np.array([[0.9, 0.1], [0.45, 0.55], [0.9, 0.1], [0.2, 0.8]])
    unsure = np.array([[0.4, 0.6], [0.4, 0.6], [0.4, 0.6], [0.4, 0.6]])
    runs_of = {"one": sure, "two": unsure, "three": unsure}
    found = ensemble_table({run: {"val": each[:1], "test": each} for run, each in runs_of.items()}, labels)
    assert list(found.index) == ["one", "two", "three", "mean of 3 runs", "ensemble of 3 runs"]
    # means for class 0: 0.567, 0.417, 0.567, 0.333: the first image is right although two of three vote against it
    assert found.test_accuracy.tolist() == pytest.approx([0.75, 0.75, 0.75, 0.75, 0.75])
    assert found.mean_per_class.tolist() == pytest.approx([5 / 6, 0.5, 0.5, (5 / 6 + 1) / 3, 5 / 6])
    assert found.earlier_protocol.tolist() == pytest.approx([0.8, 0.6, 0.6, 2 / 3, 0.8])
    assert found.low.iloc[-1] < 0.75 < found.high.iloc[-1] and np.isnan(found.low.iloc[-2])


@pytest.fixture
def experiment(scene_folder, root, monkeypatch):
    found = Experiment("tiny_frozen", "?", data=str(scene_folder), initial_weights="random", freeze_features=True)
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny_frozen", found)
    return experiments.configure(found, "quick")


def test_the_command_reads_the_runs_and_writes_their_table(experiment, scene_folder, capsys):
    for seed in (0, 1):
        seeded = experiments.configure(experiments.find("tiny_frozen"), "quick", seed=seed)
        _, result = runs.run(seeded, "quick", device="cpu", progress=False)
    command = ["tiny_frozen", "--profile", "quick", "--data", str(scene_folder), "--seeds", "0", "1"]
    assert ensemble.main(command) == 0, capsys.readouterr().err
    table = pd.read_csv(
        run_files.files_of(experiment, "quick").results / "ensemble_tiny_frozen.csv", index_col="network"
    )
    assert len(table) == 4 and not ensemble.is_stale(table, {"tiny_frozen.seed1": result, "other": {}})
    assert ensemble.is_stale(table, {"tiny_frozen.seed1": result | {"test_accuracy": result["test_accuracy"] + 0.01}})
    assert table.test_accuracy["tiny_frozen.seed1"] == pytest.approx(result["test_accuracy"], abs=1e-6)


def test_runs_that_left_out_images_are_read_without_them(experiment, scene_folder):
    (scene_folder / "val/dark/broken.jpg").write_text("no image")
    for seed in (0, 1):
        runs.run(replace(experiment, seed=seed), "quick", device="cpu", skip_bad_images=True, progress=False)
    found, labels = probabilities_of_runs(experiment, "quick", [0, 1])
    assert {len(each["val"]) for each in found.values()} == {len(labels["val"])}


@pytest.mark.parametrize("seeds", [[0], [1, 1], [0, 1, 1]])
def test_an_ensemble_of_one_or_of_the_same_run_is_refused(experiment, seeds):
    with pytest.raises(ValueError, match="at least two"):
        probabilities_of_runs(experiment, "quick", seeds)


def test_a_missing_run_is_named(experiment):
    with pytest.raises(FileNotFoundError, match="tiny_frozen"):
        probabilities_of_runs(experiment, "quick", [0, 1])
