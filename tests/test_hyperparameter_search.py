import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

import hyperparameter_search
from hyperparameter_search import (
    SAMPLERS,
    SPACES,
    collect_searches,
    open_study,
    read_study,
    read_table,
    row_of_study,
    settings_row,
    study_of_table,
    trials_table,
    validation_loss,
    with_parameters,
    work,
)
from supervised.settings import BASE, EXPERIMENTS, find

WORKER = Path(__file__).with_name("search_worker.py")
REPORT = SPACES["report"]
TOY = {"settings": {"name": "supervised_1"}}


@pytest.fixture
def storage(tmp_path):
    return str(tmp_path / "new" / "toy.journal")


def start(storage, sampler, log, *more, trials=20):
    return subprocess.Popen(
        [sys.executable, str(WORKER), storage, sampler, str(trials), str(log), *map(str, more)],
        stdout=subprocess.PIPE,
        text=True,
    )


def bowl(trial):
    """Lowest, 0, at a learning rate of 1e-3 and a batch size of 8."""
    return (math.log10(trial.params["learning_rate"]) + 3) ** 2 + (trial.params["batch_size"] / 8 - 1) ** 2


def search(storage, sampler="random", trials=6, seed=0, objective=bowl, **more):
    study = open_study(storage, TOY, REPORT, trials, sampler, seed, **more)
    work(study, storage, objective, REPORT, progress=False)
    return study


def finished(study):
    return [trial for trial in study.trials if trial.state == TrialState.COMPLETE]


# --- many workers ----------------------------------------------------------------------------------------------------


def test_two_workers_share_a_search_without_losing_or_doubling_a_trial(storage, tmp_path):
    log = tmp_path / "log"
    workers = [start(storage, "random", log) for _ in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    study = read_study(storage)
    assert [trial.number for trial in study.trials] == list(range(20))
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert sorted(map(int, log.read_text().split())) == list(range(20))  # each was run once
    assert len({trial.params["learning_rate"] for trial in study.trials}) == 20
    assert not list(Path(f"{storage}.locks").glob("trial*"))


def test_a_killed_workers_trial_is_run_again_and_the_search_still_ends_with_all(storage, tmp_path):
    log = tmp_path / "log"
    worker = start(storage, "random", log, 5)
    assert "hanging\n" in iter(worker.stdout.readline, "")
    worker.kill()
    worker.wait()
    assert start(storage, "random", log).wait(timeout=120) == 0
    study = read_study(storage)
    assert len(finished(study)) == 20
    (killed,) = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert killed.number == 5
    assert [trial.params for trial in finished(study)].count(killed.params) == 1
    assert sorted(map(int, log.read_text().split())) == list(range(21))
    assert not list(Path(f"{storage}.locks").glob("trial*"))  # nor is the killed worker's lock left


def test_a_trial_that_somebody_is_at_is_left_to_them(storage, tmp_path):
    busy = start(storage, "random", tmp_path / "log", 1, trials=3)
    assert "hanging\n" in iter(busy.stdout.readline, "")
    assert start(storage, "random", tmp_path / "log", trials=3).wait(timeout=120) == 0
    states = [trial.state for trial in read_study(storage).trials]
    busy.kill()
    busy.wait()
    assert states == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.COMPLETE]


def test_what_a_trial_tries_does_not_depend_on_how_many_workers_there_are(storage, tmp_path):
    workers = [start(storage, "random", tmp_path / "log", trials=6) for _ in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    alone = search(str(tmp_path / "alone.journal"), trials=6)
    assert [trial.params for trial in read_study(storage).trials] == [trial.params for trial in alone.trials]


def test_half_a_line_of_a_killed_writer_is_cut_off(storage):
    search(storage, trials=2)
    whole = Path(storage).read_bytes()
    Path(storage).write_bytes(whole + b'{"op_code": 4, "wor')
    assert len(finished(search(storage, trials=4))) == 4
    assert Path(storage).read_bytes().startswith(whole)


def test_a_database_serves_as_well(tmp_path):
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    assert len(finished(search(storage, trials=3))) == 3
    assert len(finished(search(storage, trials=4))) == 4


# --- samplers --------------------------------------------------------------------------------------------------------


def test_every_cell_of_the_grid_is_run_once_in_an_order_of_the_seed(storage, tmp_path):
    study = search(storage, "grid", trials=20)
    cells = [(trial.params["learning_rate"], trial.params["batch_size"]) for trial in study.trials]
    assert len(set(cells)) == 20
    assert set(cells) == {(10.0**power, size) for power in range(-6, -1) for size in (4, 8, 12, 16)}
    other = search(str(tmp_path / "other.journal"), "grid", trials=20, seed=1)
    assert [trial.params for trial in other.trials] != [trial.params for trial in study.trials]
    assert len(search(storage, "grid", trials=20).trials) == 20  # nothing is left to do


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_parameters_lie_in_the_reports_ranges_and_a_search_can_be_repeated(sampler, storage, tmp_path):
    study = search(storage, sampler, trials=12)
    for trial in study.trials:
        assert 1e-6 <= trial.params["learning_rate"] <= 1e-2
        assert trial.params["batch_size"] in range(4, 17)
    again = search(str(tmp_path / "again.journal"), sampler, trials=12)
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_samplers_that_learn_end_up_nearer_to_the_lowest_point_than_chance(sampler, tmp_path):
    best = {
        name: sum(search(str(tmp_path / f"{name}{seed}"), name, 25, seed).best_value for seed in range(3))
        for name in (sampler, "random")
    }
    assert best[sampler] < best["random"]


def test_more_trials_can_be_asked_for_later(storage):
    assert len(finished(search(storage, trials=3))) == 3
    study = search(storage, trials=5)
    assert [trial.number for trial in finished(study)] == [0, 1, 2, 3, 4]


def test_a_trial_that_is_pruned_counts_as_done(storage):
    def objective(trial):
        if trial.number % 2:
            raise optuna.TrialPruned
        return bowl(trial)

    states = [trial.state for trial in search(storage, trials=4, objective=objective).trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED] * 2


def test_an_error_ends_the_worker_and_its_trial_waits_for_the_next(storage):
    def objective(trial):
        if trial.number == 1:
            raise OSError("disk full")
        return bowl(trial)

    with pytest.raises(OSError, match="disk full"):
        search(storage, trials=3, objective=objective)
    assert len(finished(search(storage, trials=3))) == 3


# --- experiments -----------------------------------------------------------------------------------------------------


def test_parameters_go_where_they_belong():
    row = with_parameters(BASE, {"learning_rate": 0.5, "batch_size": 7, "optimizer": "sgd", "augmentation": "crop"})
    assert (row.train.learning_rate, row.train.optimizer) == (0.5, "sgd")
    assert (row.batch_size, row.augmentation) == (7, "crop")
    assert row.train.schedule == BASE.train.schedule


def run(scene_folder, storage, *more):
    arguments = ["imagenet_classifier", "--profile", "quick", "--data", str(scene_folder), "--storage", storage, *more]
    return hyperparameter_search.main(arguments)


def test_a_real_search_by_two_workers_ends_in_a_row_that_can_be_trained(scene_folder, storage, capfd):
    assert run(scene_folder, storage, "--sampler", "random", "--trials", "4", "--workers", "2", "--subset", "0.5") == 0
    printed = capfd.readouterr().out
    study = read_study(storage)
    assert len(finished(study)) == 4
    assert all(trial.user_attrs["epochs"] <= 8 and math.isfinite(trial.value) for trial in study.trials)
    assert f"best of 4: loss {study.best_value:.4f}" in printed
    assert run(scene_folder, storage, "--sampler", "random", "--trials", "4", "--subset", "0.5", "--write-row") == 0
    pasted = capfd.readouterr().out.split("\n", 1)[1]
    found = row_of_study(storage, find)
    row = eval(pasted, {"replace": replace, "EXPERIMENTS": EXPERIMENTS})
    assert row.name == found.name == "imagenet_classifier_random_subset0.5"
    assert row.batch_size == found.batch_size == study.best_params["batch_size"]
    assert row.train.learning_rate == pytest.approx(found.train.learning_rate, rel=1e-3)
    assert found.subset == 1 and found.train.max_epochs == EXPERIMENTS["imagenet_classifier"].train.max_epochs


def test_two_workers_on_real_trainings_end_with_all_trials_though_one_is_killed(scene_folder, storage):
    command = [sys.executable, "-m", "hyperparameter_search", "imagenet_classifier", "--data", str(scene_folder)]
    command += ["--storage", storage, "--sampler", "random", "--trials", "20", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    killed, other = (
        subprocess.Popen(command, cwd=WORKER.parents[1], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    assert killed.stdout.readline().startswith("trial ")
    killed.kill()  # SIGKILL, while it is at its next trial
    killed.wait()
    assert other.communicate(timeout=240)[0].count("trial ") < 20
    assert run(scene_folder, storage, "--sampler", "random", "--trials", "20") == 0
    study = read_study(storage)
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert len(finished(study)) == len({tuple(trial.params.items()) for trial in finished(study)}) == 20
    assert all(trial.state == TrialState.FAIL for trial in study.trials if trial not in finished(study))
    assert len(study.trials) <= 21


def test_frozen_features_are_computed_once_for_all_trials(scene_folder, storage, small_network):
    from supervised.dataloader import build_loaders
    from supervised.models import build_model
    from supervised.settings import configure

    row = configure(find("imagenet_classifier"), "quick", str(scene_folder))
    loads = []

    def counted(experiment):
        loads.append(experiment)
        return build_loaders(experiment, progress=False)

    search(storage, trials=3, objective=validation_loss(row, build_model, counted, "cpu"))
    assert len(loads) == 1


def test_a_training_that_diverges_is_pruned_and_a_bad_one_is_if_asked(storage, scene_folder, monkeypatch):
    def diverges(*arguments, **more):
        raise FloatingPointError

    from supervised.dataloader import build_loaders
    from supervised.models import build_model
    from supervised.settings import configure

    monkeypatch.setattr(hyperparameter_search, "train", diverges)
    row = configure(find("imagenet_classifier"), "quick", str(scene_folder))
    objective = validation_loss(row, build_model, lambda each: build_loaders(each, progress=False), "cpu")
    study = search(storage, trials=1, objective=objective, pruning=True)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED]
    assert isinstance(study.pruner, optuna.pruners.MedianPruner)


def configured(scene_folder, **changes):
    from supervised.settings import configure

    return replace(configure(find("imagenet_classifier"), "quick", str(scene_folder)), **changes)


def objective_of(row, loads=None):
    from supervised.dataloader import build_loaders
    from supervised.models import build_model

    def counted(experiment):
        if loads is not None:
            loads.append(experiment)
        return build_loaders(experiment, progress=False)

    return validation_loss(row, build_model, counted, "cpu")


def test_a_trial_keeps_the_loss_as_the_second_report_took_it(scene_folder, storage, monkeypatch):
    from helper_functions import History

    losses = {"stopped": [1.0, 0.5, 0.7, 0.6], "not stopped": [1.0, 0.7, 0.8, 0.6]}
    curves = iter(losses.values())
    monkeypatch.setattr(
        hyperparameter_search,
        "train",
        lambda *arguments, **more: History(val_loss=(curve := next(curves)), val_accuracy=[0.5] * len(curve)),
    )
    study = search(storage, trials=2, objective=objective_of(configured(scene_folder)))
    assert [trial.value for trial in study.trials] == [0.5, 0.6]
    assert [trial.user_attrs["report_loss"] for trial in study.trials] == [0.7, 0.6]


def test_features_of_test_images_are_not_computed(scene_folder, storage, monkeypatch):
    from supervised.dataloader import Loaders

    seen = []
    of_features = Loaders.of_features
    monkeypatch.setattr(Loaders, "of_features", lambda self, *more: seen.append(self.test) or of_features(self, *more))
    search(storage, trials=1, objective=objective_of(configured(scene_folder)))
    assert seen == [None]


def test_samplers_of_a_seed_share_their_images_and_seeds_do_not(scene_folder, tmp_path):
    rows = [configured(scene_folder, subset=0.5, seed=seed) for seed in range(2)]
    loads = []
    trials = collect_searches(rows, lambda row: objective_of(row, loads), tmp_path, 2, ("grid", "random"))
    assert [row.seed for row in loads] == [0, 1]  # once a seed, for both samplers
    assert trials.groupby(["sampler", "seed"]).size().to_dict() == {
        (sampler, seed): 2 for sampler in ("grid", "random") for seed in (0, 1)
    }
    read = collect_searches(rows, pytest.fail, tmp_path, 2, ("grid", "random"))  # nothing is left to search
    assert read.equals(trials)
    fewer = collect_searches(rows, pytest.fail, tmp_path, 3, ("grid", "tpe"), search_missing=False)
    assert fewer.equals(trials[trials["sampler"] == "grid"].reset_index(drop=True))
    names = sorted(path.name for path in tmp_path.glob("*.csv"))
    assert names[0] == "imagenet_classifier_grid_subset0.5_seed0.csv"


def test_a_table_tells_all_of_a_search_and_can_be_trained_from_as_its_journal_can(scene_folder, storage):
    arguments = ("--sampler", "random", "--trials", "3", "--subset", "0.5", "--image-size", "48", "--seed", "4")
    assert run(scene_folder, storage, *arguments) == 0
    study, path = read_study(storage), storage.replace(".journal", ".csv")
    table = read_table(path)
    assert table["trial"].tolist() == [0, 1, 2]
    for name, value in {"image_size": 48, "subset": 0.5, "seed": 4, "sampler": "random"}.items():
        assert set(table[name]) == {value}
    assert table["value"].tolist() == [trial.value for trial in study.trials]
    assert table["learning_rate"].tolist() == [trial.params["learning_rate"] for trial in study.trials]
    assert table["seconds"].tolist() == [round(trial.duration.total_seconds(), 1) for trial in study.trials]
    assert table["started"][0] == 0 and table["started"].is_monotonic_increasing
    assert row_of_study(path, find) == row_of_study(storage, find)
    assert row_of_study(path, find).image_size == 224 and row_of_study(path, find).seed == 0


def test_a_table_becomes_a_study_for_optunas_plots(storage):
    def objective(trial):
        if trial.number == 1:
            raise optuna.TrialPruned
        return bowl(trial)

    study = search(storage, trials=4, objective=objective)
    again = study_of_table(trials_table(study), REPORT)
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]
    assert [trial.value for trial in again.trials] == [trial.value for trial in study.trials]
    assert again.trials[1].state == TrialState.PRUNED
    assert again.best_params == study.best_params
    began = [(trial.datetime_start - again.trials[0].datetime_start).total_seconds() for trial in again.trials]
    assert began == trials_table(study)["started"].tolist()


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_a_users_mistake_is_one_sentence_and_exit_code_2(scene_folder, storage, tmp_path, capsys):
    assert run(scene_folder, storage, "--trials", "1", "--sampler", "random") == 0
    mistakes = {
        "is a search with sampler = 'random', but 'tpe' is asked for; name another file": [],
        "is a search with seed = 0, but 1": ["--sampler", "random", "--seed", "1"],
        "is a search with settings.subset = 1.0, but 0.5 is asked for": ["--sampler", "random", "--subset", "0.5"],
        "trials is 0; it must be at least 1": ["--trials", "0"],
        "trials is 21, but the grid has 20 cells": ["--sampler", "grid", "--trials", "21"],
        "subset is 0.0; it must be above 0 and at most 1": ["--subset", "0"],
        "workers is 0": ["--workers", "0", "--sampler", "random"],
        "image_size is 16; efficientnet_b0 needs at least 32 pixels": ["--image-size", "16"],
    }
    before = Path(storage).read_bytes()
    for words, more in mistakes.items():
        capsys.readouterr()
        assert run(scene_folder, storage, *more) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and words in error
    assert Path(storage).read_bytes() == before
    new = str(tmp_path / "new.journal")
    assert run(scene_folder, new, "--subset", "0.01") == 2
    assert "leaves none of the 12 images of class dark" in capsys.readouterr().err
    assert run(scene_folder, storage.replace(".journal", ".csv"), "--trials", "1") == 2
    assert "toy.csv is where the table of a search would be written" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run(scene_folder, storage, "--sampler", "annealing")
    assert ended.value.code == 2
    assert hyperparameter_search.main(["random_classifier", "--data", str(scene_folder), "--storage", storage]) == 2
    words = f"{storage} is a search of imagenet_classifier, but random_classifier is asked for; name another with"
    assert words in capsys.readouterr().err
    assert hyperparameter_search.main(["supervised_9"]) == 2
    assert "there is no experiment 'supervised_9'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["supervised_short_smaller_images", "nature_resnet18_sgd_1e-3", "cifar10_rotation"])
def test_every_row_that_can_be_trained_can_be_searched(name, capsys):
    assert hyperparameter_search.main([name, "--data", "nowhere"]) == 2
    assert "there is no data folder nowhere" in capsys.readouterr().err


def test_a_study_that_is_not_there_or_not_ours_or_empty_is_refused(tmp_path, storage):
    with pytest.raises(FileNotFoundError, match="there is no study file"):
        row_of_study(storage, find)
    foreign = tmp_path / "foreign.journal"
    foreign.write_text("no journal\n")
    with pytest.raises(ValueError, match="foreign.journal is not a study's journal"):
        open_study(str(foreign), TOY, REPORT, 1, "tpe")
    foreign.write_text("")
    with pytest.raises(ValueError, match="holds no search of ours"):
        row_of_study(str(foreign), find)
    table = tmp_path / "foreign.csv"
    with pytest.raises(FileNotFoundError, match="there is no study file"):
        row_of_study(str(table), find)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="foreign.csv is not the table of a search; it has no column experiment"):
        row_of_study(str(table), find)
    open_study(storage, TOY, REPORT, 1, "tpe")
    with pytest.raises(ValueError, match="has no finished trial yet"):
        row_of_study(storage, find)


def test_the_row_to_paste_names_the_search(storage):
    row = settings_row(search(storage, "tpe", trials=3))
    assert row.startswith('replace(\n    EXPERIMENTS["supervised_1"],\n    name="supervised_1_tpe",')
    assert "tpe found in 3 trials" in row
