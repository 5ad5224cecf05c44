import math
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

import hyperparameter_search
from experiments import configure, find
from helper_functions import History
from hyperparameter_search import (
    SAMPLERS,
    SPACES,
    Search,
    build_sampler,
    collect_searches,
    experiment_of_study,
    open_study,
    read_trials,
    study_of_table,
    subject_of,
    validation_loss,
    with_parameters,
    work,
)
from supervised.dataloader import Loaders
from supervised.settings import BASE

CODE = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("search_worker.py")
COMMITTED = sorted((CODE / "results/full/searches").glob("*tuned*.csv"))
TOY = {"settings": {"name": "supervised_1"}, "data": {"fingerprint": {"train": "1", "val": "2"}}}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "new" / "toy.db"


def bowl(trial):
    """Lowest, 0, at a learning rate of 1e-3 and a batch size of 8."""
    return (math.log10(trial.params["learning_rate"]) + 3) ** 2 + (trial.params["batch_size"] / 8 - 1) ** 2


def search(file, sampler="random", trials=4, seed=0, objective=bowl, **more):
    searched = Search(file, TOY, sampler=sampler, seed=seed, **more)
    study = open_study(searched, trials)
    work(searched, study, objective, progress=False)
    return study


def states(study):
    return [trial.state.name for trial in study.trials]


def complete(study):
    return [trial for trial in study.trials if trial.state == TrialState.COMPLETE]


# --- many workers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def start():
    """Start a toy worker; whatever still runs after the test is killed."""
    workers = []

    def start(*arguments):
        command, pipe = [sys.executable, str(WORKER), *map(str, arguments)], subprocess.PIPE
        workers.append(subprocess.Popen(command, cwd=CODE, stdin=pipe, stdout=pipe, text=True))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()


@pytest.mark.slow
def test_two_workers_run_every_trial_once_and_that_of_a_killed_worker_again(file, tmp_path, start):
    log = tmp_path / "log"
    killed, other = workers = start(file, "grid", 20, log, "hang"), start(file, "grid", 20, log, "patient")
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("begin\n")
        worker.stdin.flush()
    lost = int(killed.stdout.readline())
    killed.kill()
    killed.wait()
    assert other.wait(timeout=120) == 0
    table = read_trials(file.with_suffix(".csv"))
    cells = list(zip(table["learning_rate"], table["batch_size"], strict=True))
    assert len(cells) == 20
    assert set(cells) == {(10.0**power, size) for power in range(-6, -1) for size in (4, 8, 12, 16)}
    assert sorted(table["trial"]) == [number for number in range(21) if number != lost]
    assert sorted(map(int, log.read_text().split())) == list(range(21))
    assert sorted(path.name for path in file.parent.iterdir()) == ["toy.csv", "toy.db"]


def test_a_trial_whose_worker_is_alive_is_left_to_it(file):
    searched, found = Search(file, TOY, sampler="random"), []

    def objective(trial):
        other = open_study(searched, 2)  # as another worker does meanwhile
        with searched.lock():
            hyperparameter_search._retry_killed(searched, other)
        found.append(other.trials[trial.number].state)
        return bowl(trial)

    study = search(file, trials=2, objective=objective)
    assert found == [TrialState.RUNNING] * 2
    assert states(study) == ["COMPLETE"] * 2


def test_a_worker_killed_before_it_sets_parameters_loses_no_trial(file):
    lost = open_study(Search(file, TOY, sampler="grid"), 3).ask()  # running, and nobody holds its lock
    study = search(file, "grid", 3)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert study.trials[3].params == study.trials[lost.number].system_attrs["fixed_params"]


def test_parameters_depend_on_the_trial_and_not_on_who_runs_it(file):
    study = search(file)
    for trial in study.trials:
        alone = optuna.create_study(sampler=build_sampler("random", 0, trial.number)).ask()
        rate = SPACES["report"].distributions["learning_rate"]
        assert trial.params["learning_rate"] == alone.suggest_float("learning_rate", rate.low, rate.high, log=True)


def test_an_error_ends_the_worker_and_the_next_one_runs_its_trial(file):
    def objective(trial):
        if trial.number == 1:
            raise OSError("disk full")
        return bowl(trial)

    with pytest.raises(OSError, match="disk full"):
        search(file, trials=3, objective=objective)
    assert len(read_trials(file.with_suffix(".csv"))) == 1  # the table is there already
    study = search(file, trials=3)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[3].params == study.trials[1].params


def test_more_trials_can_be_asked_for_later(file):
    assert [trial.number for trial in search(file, "grid", 2).trials] == [0, 1]
    study = search(file, "grid", 4)
    assert [trial.number for trial in complete(study)] == [0, 1, 2, 3]
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 4
    assert len(search(file, "grid", 3).trials) == 4  # nothing is left to do


# --- samplers --------------------------------------------------------------------------------------------------------


def test_the_order_of_the_grid_depends_on_the_seed(tmp_path):
    first, again, other = (
        [trial.params for trial in search(tmp_path / f"{run}.db", "grid", 4, seed).trials]
        for run, seed in enumerate((0, 0, 1))
    )
    assert first == again != other


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_committed_tables_can_be_repeated(sampler, tmp_path):
    """The first trials of a search need no losses: the same parameters come again."""
    committed = read_trials(CODE / f"results/full/searches/imagenet_classifier_tuned_{sampler}_subset0.1_seed0.csv")
    study = search(tmp_path / "again.db", sampler, trials=3)
    for trial, row in zip(study.trials, committed.to_dict("records"), strict=False):
        assert trial.params["learning_rate"] == pytest.approx(row["learning_rate"], rel=1e-12)
        assert trial.params["batch_size"] == row["batch_size"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_samplers_that_learn_end_up_nearer_to_the_lowest_point_than_chance(sampler, tmp_path):
    best = {
        name: sum(search(tmp_path / f"{name}{seed}.db", name, 25, seed).best_value for seed in range(3))
        for name in (sampler, "random")
    }
    assert best[sampler] < best["random"]


def test_the_wide_space_also_varies_what_is_no_number(file):
    study = search(file, "tpe", trials=3, space="wide")
    for trial in study.trials:
        experiment = with_parameters(BASE, trial.params)
        assert experiment.train.optimizer == trial.params["optimizer"]
        assert experiment.augmentation == trial.params["augmentation"] in ("basic", "crop", "advanced")


def test_a_pruned_trial_is_finished_and_has_no_value(file):
    def objective(trial):
        trial.report(1.0, 1)
        if trial.number % 2:
            raise optuna.TrialPruned
        return bowl(trial)

    assert states(search(file, objective=objective)) == ["COMPLETE", "PRUNED"] * 2
    assert read_trials(file.with_suffix(".csv"))["value"].isna().tolist() == [False, True] * 2


def test_nothing_is_said_unless_progress_is_asked_for(file, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(file, trials=2)
    assert capsys.readouterr() == ("", "")


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_table_becomes_a_study_for_optunas_plots(file):
    def objective(trial):
        if trial.number == 1:
            raise optuna.TrialPruned
        return bowl(trial)

    study = search(file, objective=objective)
    table = read_trials(file.with_suffix(".csv"))
    again = study_of_table(table)
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]
    assert [trial.value for trial in again.trials] == [trial.value for trial in study.trials]
    assert again.trials[1].state == TrialState.PRUNED
    assert again.best_params == study.best_params
    began = [(trial.datetime_start - again.trials[0].datetime_start).total_seconds() for trial in again.trials]
    assert began == table["started"].tolist()


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_committed_table_can_be_trained_from(path):
    table = read_trials(path)
    best = table.loc[table["value"].idxmin()]
    experiment = experiment_of_study(path)
    base = find(best["experiment"])
    assert experiment.name == f"{base.name}_{best['sampler']}_subset0.1"
    assert (experiment.batch_size, experiment.train.learning_rate) == (best["batch_size"], best["learning_rate"])
    assert replace(experiment, name=base.name, batch_size=base.batch_size, train=base.train) == base


def test_new_tables_have_the_columns_of_the_committed_ones_and_name_their_data(root, scene_folder):
    trials = collect_searches([configured(scene_folder)], "quick", 1, ("random",))
    assert set(trials.columns) == {*read_trials(COMMITTED[0]).columns, "data"}
    (table,) = root.rglob("searches/*.csv")
    assert experiment_of_study(table, str(scene_folder)).name == "imagenet_classifier_random"
    with pytest.raises(ValueError, match="is a search on scenes, not on 15scene"):
        experiment_of_study(table)


# --- experiments -----------------------------------------------------------------------------------------------------


def configured(scene_folder, **changes):
    return replace(configure(find("imagenet_classifier"), "quick", data=str(scene_folder)), **changes)


@pytest.fixture
def loads(monkeypatch):
    """The experiments whose loaders were built for an objective."""
    seen, build = [], hyperparameter_search._build_loaders
    monkeypatch.setattr(
        hyperparameter_search, "_build_loaders", lambda each, **more: seen.append(each) or build(each, **more)
    )
    return seen


def test_parameters_go_where_they_belong():
    row = with_parameters(BASE, {"learning_rate": 0.5, "batch_size": 7, "optimizer": "sgd", "augmentation": "crop"})
    assert (row.train.learning_rate, row.train.optimizer) == (0.5, "sgd")
    assert (row.batch_size, row.augmentation) == (7, "crop")
    assert row.train.schedule == BASE.train.schedule


def test_frozen_features_are_computed_once_for_all_trials_and_never_of_test_images(
    scene_folder, file, loads, monkeypatch
):
    seen, of_features = [], Loaders.of_features
    monkeypatch.setattr(Loaders, "of_features", lambda self, *more: seen.append(self.test) or of_features(self, *more))
    study = search(file, trials=2, objective=validation_loss(configured(scene_folder), "quick", "cpu"))
    assert len(loads) == 1 and seen == [None]
    assert all(trial.user_attrs["epochs"] <= 8 and math.isfinite(trial.value) for trial in study.trials)


def test_a_training_that_diverges_is_pruned(file, scene_folder, monkeypatch):
    def diverges(model, train_loader, val_loader, settings, **more):
        assert settings.max_epochs == 8  # those of the experiment, which has fewer than MAX_EPOCHS
        raise FloatingPointError

    monkeypatch.setattr(hyperparameter_search, "train", diverges)
    assert states(search(file, trials=1, objective=validation_loss(configured(scene_folder), "quick"))) == ["PRUNED"]


def test_a_trial_stores_the_loss_as_the_second_report_took_it(scene_folder, file, monkeypatch):
    curves = iter(([1.0, 0.5, 0.7, 0.6], [1.0, 0.7, 0.8, 0.6]))  # ended by the rule, and not

    def train(model, train_loader, val_loader, settings, **more):
        assert (settings.max_epochs, settings.stopping) == (25, "two_worse")
        curve = next(curves)
        return History(val_loss=curve, val_accuracy=[0.5] * len(curve))

    monkeypatch.setattr(hyperparameter_search, "train", train)
    experiment = configured(scene_folder)
    experiment = replace(experiment, train=replace(experiment.train, max_epochs=50))
    study = search(file, trials=2, objective=validation_loss(experiment, "quick", "cpu"))
    assert [trial.value for trial in study.trials] == [0.5, 0.6]
    assert [trial.user_attrs["report_loss"] for trial in study.trials] == [0.7, 0.6]


def test_samplers_of_a_seed_share_their_images_and_seeds_do_not(root, scene_folder, loads):
    experiments = [configured(scene_folder, subset=0.5, seed=seed) for seed in range(2)]
    trials = collect_searches(experiments, "quick", 2, ("grid", "random"))
    assert [experiment.seed for experiment in loads] == [0, 1]  # once per seed, for both samplers
    assert trials.groupby(["sampler", "seed"]).size().to_dict() == {
        (sampler, seed): 2 for sampler in ("grid", "random") for seed in (0, 1)
    }
    assert collect_searches(experiments, "quick", 2, ("grid", "random")).equals(trials)
    assert len(loads) == 2  # nothing was left to search
    fewer = collect_searches(experiments, "quick", 3, ("grid", "tpe"), search_missing=False)
    assert fewer.equals(trials[trials["sampler"] == "grid"].reset_index(drop=True))
    tables = sorted(path.name for path in (root / "results/quick/scenes/searches").glob("*.csv"))
    assert tables[0] == "imagenet_classifier_grid_subset0.5_seed0.csv"


def test_a_search_of_images_that_have_changed_is_not_shown(root, scene_folder, loads):
    experiment = configured(scene_folder)
    shown = collect_searches([experiment], "quick", 1, ("random",))
    assert collect_searches([experiment], "quick", 1, ("random",), search_missing=False).equals(shown)
    image = next((scene_folder / "test/dark").iterdir())
    shutil.copy(image.parents[1] / "light" / image.name, image)
    with pytest.raises(ValueError, match="imagenet_classifier_random.*other images"):
        collect_searches([experiment], "quick", 1, ("random",), search_missing=False)


def test_a_study_of_other_data_or_weights_is_refused(scene_folder, file):
    experiment = configured(scene_folder)
    open_study(Search(file, subject_of(experiment, "quick")), 1)
    image = next((scene_folder / "train/dark").iterdir())
    shutil.copy(image.parents[1] / "light" / image.name, image)
    with pytest.raises(ValueError, match="other train .*images"):
        open_study(Search(file, subject_of(experiment, "quick")), 2)


# --- the command -----------------------------------------------------------------------------------------------------


def run(scene_folder, file, *more):
    common = ["--profile", "quick", "--data", str(scene_folder), "--storage", str(file), "--device", "cpu"]
    return hyperparameter_search.main(["imagenet_classifier", *common, *more])


def test_the_command_ends_in_an_experiment_that_can_be_trained(scene_folder, file, capfd):
    arguments = ("--sampler", "random", "--trials", "4", "--subset", "0.5", "--image-size", "48", "--seed", "4")
    assert run(scene_folder, file, *arguments, "--workers", "2") == 0
    table = read_trials(file.with_suffix(".csv"))
    assert sorted(table["trial"]) == [0, 1, 2, 3]
    for name, value in {"image_size": 48, "subset": 0.5, "seed": 4, "sampler": "random"}.items():
        assert set(table[name]) == {value}
    printed = capfd.readouterr().out
    assert f"best: loss {table['value'].min():.4f}" in printed and printed.count("\ntrial ") + 1 >= 4
    found = experiment_of_study(file.with_suffix(".csv"), str(scene_folder))
    assert found.name == "imagenet_classifier_random_subset0.5"
    assert found.batch_size == table.loc[table["value"].idxmin(), "batch_size"]
    assert (found.subset, found.image_size, found.seed) == (1, 224, 0)


def test_a_damaged_image_ends_a_search_unless_it_is_left_out(scene_folder, file, capsys):
    (scene_folder / "train" / "dark" / "image_0001.jpg").write_bytes(b"")
    arguments = ("--sampler", "random", "--trials", "1", "--image-size", "32")
    assert run(scene_folder, file, *arguments) == 2
    assert "image_0001.jpg" in capsys.readouterr().err and not file.with_suffix(".csv").exists()
    assert run(scene_folder, file, *arguments, "--skip-bad-images") == 0
    assert len(read_trials(file.with_suffix(".csv"))) == 1


@pytest.mark.slow
def test_two_workers_on_real_trainings_end_with_all_trials_though_one_is_killed(scene_folder, file):
    command = [sys.executable, "-m", "hyperparameter_search", "imagenet_classifier", "--data", str(scene_folder)]
    command += ["--storage", str(file), "--sampler", "random", "--trials", "20", "--profile", "quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    killed, other = (
        subprocess.Popen(command, cwd=CODE, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    try:
        assert killed.stdout.readline().startswith("trial ")
        killed.kill()  # SIGKILL, while it is at its next trial
        assert "best: loss" in other.communicate(timeout=300)[0]
    finally:
        for worker in (killed, other):
            worker.kill()
            worker.communicate()
    table = read_trials(file.with_suffix(".csv"))
    assert len(table) == len({*zip(table["learning_rate"], table["batch_size"], strict=True)}) == 20
    assert table["trial"].max() <= 20


# --- mistakes --------------------------------------------------------------------------------------------------------


def error_of(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_users_mistake_is_one_sentence_and_exit_code_2(scene_folder, file, tmp_path, capsys):
    assert run(scene_folder, file, "--trials", "1", "--sampler", "random") == 0
    before = file.read_bytes()
    mistakes = {
        "sampler = 'random', but 'tpe' is asked for": [],
        "seed = 0, but 1": ["--sampler", "random", "--seed", "1"],
        "data.images.train = 18, but 9": ["--sampler", "random", "--subset", "0.5"],
        "trials is 0": ["--trials", "0"],
        "trials is 21": ["--sampler", "grid", "--trials", "21"],
        "subset is 0.0": ["--subset", "0"],
        "workers is 0": ["--workers", "0"],
        "image_size is 16": ["--image-size", "16"],
        "class dark": ["--subset", "0.01", "--storage", str(tmp_path / "new.db")],
        "toy.csv": ["--storage", str(file.with_suffix(".csv"))],
        "there is no data folder or table (.csv) nowhere": ["--data", "nowhere"],
    }
    for words, more in mistakes.items():
        capsys.readouterr()
        assert run(scene_folder, file, *more) == 2
        assert words in error_of(capsys)
    assert file.read_bytes() == before
    assert not (tmp_path / "new.db").exists()
    assert hyperparameter_search.main(["supervised_9"]) == 2
    assert "'supervised_9'" in error_of(capsys)
    with pytest.raises(SystemExit) as ended:
        run(scene_folder, file, "--sampler", "annealing")
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "address",
    [
        *("sqlite:///search.db", "sqlite://a.db", "sqlite:a.db", "sqlite:////no/such/a.db", "sqlite:///"),
        *("mysql://u:p@localhost/x", "postgresql+psycopg2://u:p@localhost/x", "redis://localhost", "http://x/a.db"),
        "folder/",
    ],
)
def test_an_address_of_a_database_or_a_folder_is_refused(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises((ValueError, OSError), match="folder|storage is"):
        open_study(Search(Path(address), TOY), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_that_is_not_ours_is_refused_and_left_unchanged(tmp_path):
    text, empty, database = tmp_path / "text.db", tmp_path / "empty.db", tmp_path / "another.db"
    text.write_text("no database " * 200)
    empty.touch()
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE flowers (name TEXT)")
    connection.close()
    for each in (text, empty, database):
        before = each.read_bytes()
        with pytest.raises(OSError, match=each.name):
            open_study(Search(each, TOY), 1)
        assert each.read_bytes() == before


def test_a_study_of_another_program_or_version_is_refused_and_left_unchanged(tmp_path, file):
    theirs = tmp_path / "theirs.db"
    optuna.create_study(study_name="theirs", storage=f"sqlite:///{theirs}")
    search(file, trials=1)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.9'")
    connection.close()
    for each, words in ((theirs, "theirs"), (file, "version")):
        before = each.read_bytes()
        with pytest.raises(ValueError, match=f"{each.name} .*{words}"):
            open_study(Search(each, TOY), 1)
        assert each.read_bytes() == before


def test_a_path_may_hold_any_character(tmp_path):
    file = tmp_path / "a {b} 100%?c#d.db"
    assert len(complete(search(file, trials=1))) == 1
    assert file.exists()


def test_a_table_that_is_not_there_or_none_or_empty_is_refused(tmp_path, file):
    with pytest.raises(FileNotFoundError, match=r"toy\.csv"):
        experiment_of_study(file.with_suffix(".csv"))
    for content in (b"a,b\n1,2\n", b"", b"\xff\xfe\x00", b"SQLite format 3\x00"):
        table = tmp_path / "foreign.csv"
        table.write_bytes(content)
        with pytest.raises(ValueError, match=r"foreign\.csv is not the table of a search"):
            experiment_of_study(table)

    def pruned(trial):
        raise optuna.TrialPruned

    search(file, trials=1, objective=pruned)
    with pytest.raises(ValueError, match="no complete trial"):
        experiment_of_study(file.with_suffix(".csv"))


@pytest.mark.parametrize("sampler", ["annealing", ""])
def test_an_unknown_sampler_is_refused(sampler, file):
    with pytest.raises(ValueError, match=f"must be one of {', '.join(SAMPLERS)}"):
        Search(file, TOY, sampler=sampler)


@pytest.mark.parametrize("name", ["supervised_short_smaller_images", "nature_resnet18_sgd_1e-3", "cifar10_rotation"])
def test_every_experiment_can_be_searched(name, capsys):
    assert hyperparameter_search.main([name, "--data", "nowhere"]) == 2
    assert "there is no data folder or table (.csv) nowhere" in error_of(capsys)


def test_a_file_may_be_a_text_and_a_search_says_what_its_subject_and_space_must_be(file):
    assert Search(str(file), TOY).table == file.with_suffix(".csv")
    for unknown in ("nope", SPACES["report"]):
        with pytest.raises(ValueError, match="must be one of report, wide, inversion"):
            Search(file, TOY, space=unknown)
    with pytest.raises(ValueError, match="it must be a dict like {'settings': {'name': 'mine'}}"):
        open_study(Search(file, {"name": "mine"}), 1)
    assert not file.parent.exists()
