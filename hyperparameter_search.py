"""Search the settings of an experiment with Optuna (Akiba et al. 2019), in one process or several.

    python -m hyperparameter_search supervised_1 --sampler tpe --subset 0.1 --workers 2
    python train.py --from-study results/full/searches/supervised_1_tpe_subset0.1_seed0.csv

The trials of a search wait in a queue, an SQLite file.  A worker takes one at a time, so no trial runs twice; start as
many workers on the machine as you like, at any time.  A worker locks the trial it runs.  The system releases the lock
of a killed worker, and another worker runs the trial again with the same parameters.  (Optuna's own heartbeats miss a
worker that is killed before the first one.)  Beside the file lies a table of the finished trials (.csv), which can be
trained from.
"""

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
from filelock import Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from data.files import expanded, locked, read_table, write_atomically, write_table
from data.layouts import name_of_images
from experiments import add_common_options, configure, find, refuse_unused_weights
from helper_functions import OPTIMIZERS, SCHEDULES, TrainSettings, should_stop, train
from loop.batchnorm import fold_batchnorm
from loop.devices import build_accelerator
from run_files import files_of, first_difference, refuse_other_images, settings_of
from runs import advice_on_memory, build_model, build_objective, run_command, trained_part
from self_supervised.dataloader import build_loaders
from self_supervised.settings import JointEmbeddingExperiment, ProbeExperiment
from supervised.settings import CROPS, Experiment

SAMPLERS = ("grid", "random", "tpe", "gp")
EARLIER_LOSSES = {"grid": 0.794, "random": 1.441, "tpe": 0.759}  # Deceuninck 2023, figure 1: one search each
STUDY = "search"  # Optuna's name of the one study in a file
MAX_EPOCHS = 25  # of a trial; the second report's stopping rule may end it earlier
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
POLL_SECONDS = 0.5  # between two looks at the trials of other workers


@dataclass(frozen=True)
class Space:
    """What a search varies: distributions by the name of a setting, and the values of a grid over some of them."""

    distributions: Mapping[str, BaseDistribution]
    grid: Mapping[str, tuple]

    @property
    def cells(self) -> list[dict]:
        """Every combination of the grid's values."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


_REPORT = Space(  # Deceuninck 2023
    {"learning_rate": FloatDistribution(1e-6, 1e-2, log=True), "batch_size": IntDistribution(4, 16)},
    {"learning_rate": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2), "batch_size": (4, 8, 12, 16)},
)
_WIDE = {
    "optimizer": CategoricalDistribution(OPTIMIZERS),
    "weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
    "schedule": CategoricalDistribution(SCHEDULES),
    "augmentation": CategoricalDistribution(("basic", "crop", "advanced")),
}
_INVERSION = ("learning_rate", "weight_decay")
SPACES = {
    "report": _REPORT,
    "wide": Space({**_REPORT.distributions, **_WIDE}, _REPORT.grid),
    "inversion": Space(  # model inversion, Deceuninck 2023: every other decade, and 0.1, which he reports on
        dict.fromkeys(_INVERSION, FloatDistribution(1e-6, 1e2, log=True)),
        dict.fromkeys(_INVERSION, (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 1e2)),
    ),
}


# ----------------------------------------------------------------------------------------------------- studies in files


@dataclass(frozen=True)
class Search:
    """One search: its file, what it searches and how.  Raises ValueError that names what cannot be searched.

    `subject` (plain types) holds the "settings" that are searched, with their "name", and whatever else must stay the
    same for all trials, such as a fingerprint of the data.  A space of your own is a `Space` put into SPACES by a name.
    """

    file: Path
    subject: Mapping
    space: str = "report"  # one of SPACES
    sampler: str = "tpe"  # one of SAMPLERS
    seed: int = 0  # of the sampler

    def __post_init__(self):
        """Refuse what cannot be searched; the file may be given as a text."""
        object.__setattr__(self, "file", expanded(self.file))
        if self.space not in tuple(SPACES):  # a Space itself cannot be hashed
            raise ValueError(f"space is {self.space!r}; it must be one of {', '.join(SPACES)}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; it must be one of {', '.join(SAMPLERS)}")
        if re.match(r"[\w+.-]{2,}:", str(self.file)) or self.table == self.file:
            raise ValueError(f"storage is {self.file}; it must be a file, not a .csv and not an address")

    @property
    def table(self) -> Path:
        """The file of its table."""
        return self.file.with_suffix(".csv")

    @property
    def identity(self) -> dict:
        """What a study must agree with."""
        identity = {**self.subject, "space": self.space, "sampler": self.sampler, "seed": self.seed}
        return json.loads(json.dumps(identity))

    def lock(self, name: str = "queue", timeout: float = -1):
        """A context that one worker at a time can be in: of the queue, where trials are taken, or of one trial."""
        return locked(self.file.with_name(f"{self.file.name}.{name}.lock"), timeout)


@contextmanager
def _quiet(file: Path) -> Iterator[None]:
    """Silence Optuna's log and its notes on experimental features; name the file in errors of the database."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
        reason = getattr(cause, "orig", cause)
        raise OSError(f"{file} cannot be used as the file of a search ({reason})") from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def open_study(search: Search, trials: int) -> optuna.Study:
    """Open the study of a search, or create it, so that `trials` trials in all are finished, running or queued.

    Trials of a grid are its cells, in an order that depends on the seed.  The parameters of other trials are left to
    the sampler.  Raises ValueError for a subject without the name of its settings, for fewer than 1 trial, for more
    than a grid has cells, and for the file of another search, naming the first field that differs; OSError for a file
    that cannot be used.
    """
    if "name" not in search.subject.get("settings", {}):
        raise ValueError(f"subject is {search.subject}; it must be a dict like {{'settings': {{'name': 'mine'}}}}")
    cells = SPACES[search.space].cells
    if trials < 1:
        raise ValueError(f"trials is {trials}; it must be at least 1")
    if search.sampler == "grid" and trials > len(cells):
        raise ValueError(f"trials is {trials}, but the grid has {len(cells)} cells, and none is run twice")
    with _quiet(search.file), search.lock():
        if not search.file.exists():
            with tempfile.TemporaryDirectory() as folder:  # Optuna would not complete tables that a kill interrupted
                complete = Path(folder) / "search.db"
                _storage_of(complete, new=True)
                write_atomically(search.file, lambda temporary: shutil.copy(complete, temporary))
        try:
            storage = _storage_of(search.file)
        except RuntimeError as error:
            raise ValueError(f"{search.file} is of another version of Optuna; name another file") from error
        others = set(optuna.get_all_study_names(storage)) - {STUDY}
        if others:
            raise ValueError(f"{search.file} holds studies of another program, {', '.join(others)}; name another file")
        study = optuna.create_study(study_name=STUDY, storage=storage, load_if_exists=True)
        if "identity" not in study.user_attrs:
            study.set_user_attr("identity", search.identity)
        difference = first_difference(search.identity, study.user_attrs["identity"])
        if difference is not None:
            raise ValueError(f"{search.file} is a search with {difference}; name another file")
        order = np.random.default_rng(search.seed).permutation(len(cells))
        for number in range(len(study.trials) - len(_retried(study)), trials):
            study.enqueue_trial(cells[order[number]] if search.sampler == "grid" else {})
    return study


def _storage_of(file: Path, new: bool = False) -> RDBStorage:
    address = f"{file.resolve().as_uri()}?mode={'rwc' if new else 'rw'}"  # only a new search may create a file
    connect = functools.partial(sqlite3.connect, address, uri=True, timeout=60, check_same_thread=False)
    return RDBStorage(
        "sqlite://",  # SQLAlchemy's own addresses do not take every path
        engine_kwargs={"creator": connect, "poolclass": NullPool},
        skip_table_creation=not new,  # nothing is written to a file that is not ours
    )


def work(search: Search, study: optuna.Study, objective: Callable, progress: bool = True) -> None:
    """Run trials until all are finished, by this worker or by others, and write the table.

    `objective(trial)` returns the value to minimize, and may raise optuna.TrialPruned.  Any other exception ends this
    worker and puts the trial back into the queue.
    """

    def record(study, trial):
        _write_table(search, study)
        if progress:
            parameters = format_parameters(trial.params)
            value = f"{trial.value:.4f}" if trial.state == TrialState.COMPLETE else "pruned"
            done = len(study.get_trials(deepcopy=False, states=FINISHED))
            print(f"trial {trial.number}: {value} ({parameters}); {done} done", flush=True)

    with _quiet(search.file):
        while _run_next(search, study, objective, record):
            pass
        _write_table(search, study)


def _run_next(search: Search, study: optuna.Study, objective: Callable, record: Callable) -> bool:
    """Run the first trial of the queue, or wait while others run theirs; False if all are finished."""
    space = SPACES[search.space].distributions
    with ExitStack() as trial_lock, ExitStack() as queue_lock:
        queue_lock.enter_context(search.lock())  # SQLite alone would let two workers take the same trial
        _retry_killed(search, study)
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not waiting:
            if not study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                _remove_locks(search)
                return False
            queue_lock.close()
            time.sleep(POLL_SECONDS)  # the worker of a running trial may be killed
            return True
        trial_lock.enter_context(search.lock(f"trial{waiting[0].number}"))
        # Seeded by the trial: its parameters depend on the trials finished before it, not on who runs it.
        study.sampler = build_sampler(search.sampler, search.seed, waiting[0].number)

        def run(trial):
            for name, distribution in space.items():
                _suggest(trial, name, distribution)
            queue_lock.close()  # only now, so that the next trial's sampler knows these parameters
            try:
                value = objective(trial)
            except FloatingPointError as error:
                raise optuna.TrialPruned from error
            if math.isnan(value):  # a failed trial would be queued again, without end
                raise optuna.TrialPruned
            return value

        study.optimize(run, n_trials=1, callbacks=[record])
    return True


def _retry_killed(search: Search, study: optuna.Study):
    """Queue again every trial whose worker was killed or ended by an error.  The queue must be locked."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        with suppress(Timeout), search.lock(f"trial{trial.number}", timeout=0):  # else its worker is alive
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    retried = _retried(study)
    for trial in study.get_trials(states=(TrialState.FAIL,)):
        if trial.number not in retried:
            RetryHeartbeatStaleTrialCallback()(study, trial)


def _remove_locks(search: Search):
    """Remove the lock files of workers that were killed just after their trial had finished."""
    for path in search.file.parent.iterdir():
        if path.name.startswith(f"{search.file.name}.trial"):
            path.unlink(missing_ok=True)


def _retried(study: optuna.Study) -> set[int]:
    """The numbers of the failed trials that were queued again."""
    history = RetryHeartbeatStaleTrialCallback.retry_history
    return {number for trial in study.get_trials(deepcopy=False) for number in history(trial)}


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution):
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    suggest = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    return suggest(name, distribution.low, distribution.high, log=distribution.log)


def build_sampler(name: str, seed: int, trial: int) -> BaseSampler:
    """Optuna's sampler for one trial.  The first ten trials of "tpe" and "gp" are random, Optuna's default."""
    seed = int(np.random.SeedSequence([seed, trial]).generate_state(1)[0])
    if name == "tpe":
        return TPESampler(seed=seed, constant_liar=True)  # running trials count as bad, so others look elsewhere
    if name == "gp":
        return GPSampler(seed=seed)
    return RandomSampler(seed=seed)  # the trials of a grid have their values from the queue


def format_parameters(parameters: Mapping) -> str:
    """Parameters in one line."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in parameters.items()
    )


# --------------------------------------------------------------------------------------------------------------- tables


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row per finished trial: what is searched and how, the parameters, the value, and numbers the trial stored.

    A pruned trial has no value.  `started` is in seconds after the search's first trial; `seconds` is a duration.
    """
    identity = study.user_attrs["identity"]
    settings = identity["settings"]
    searched = {"experiment": settings["name"], **{name: settings.get(name) for name in ("data", "image_size")}}
    searched |= {"subset": settings.get("subset", 1.0), "sampler": identity["sampler"], "seed": identity["seed"]}
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    first = min((trial.datetime_start for trial in trials), default=None)
    return pd.DataFrame(
        [
            {
                **searched,
                "trial": trial.number,
                "state": trial.state.name,
                **trial.params,
                "value": trial.value if trial.state == TrialState.COMPLETE else None,
                **{name: value for name, value in sorted(trial.user_attrs.items()) if not isinstance(value, list)},
                "started": round((trial.datetime_start - first).total_seconds(), 1),
                "seconds": round(trial.duration.total_seconds(), 1),
            }
            for trial in trials
        ]
    )


def _write_table(search: Search, study: optuna.Study):
    with search.lock():  # several workers may end at once
        write_table(search.table, trials_table(study))


def read_trials(path: str | Path) -> pd.DataFrame:
    """Read the table of a search.  Raises FileNotFoundError if it is not there and ValueError if it is none."""
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path} of a search")
    try:
        table = read_table(path, dtype={"data": str})
    except ValueError as error:
        raise ValueError(f"{path} is not the table of a search ({error})") from error
    missing = [name for name in ("experiment", "sampler", "subset", "value") if name not in table]
    if missing:
        raise ValueError(f"{path} is not the table of a search: it has no column {', '.join(missing)}")
    return table


def best_of_table(path: str | Path) -> dict:
    """The row of the lowest value in the table of a search.  Raises as `read_trials`, and if no trial is complete."""
    table = read_trials(path)
    if table["value"].isna().all():
        raise ValueError(f"{path} has no complete trial")
    return table.loc[[table["value"].idxmin()]].to_dict("records")[0]


def study_of_table(table: pd.DataFrame) -> optuna.Study:
    """The trials of a table in the report's space as a study in memory, for Optuna's plots; numbered from 0."""
    distributions = dict(SPACES["report"].distributions)
    storage = optuna.storages.InMemoryStorage()
    storage.create_new_study([StudyDirection.MINIMIZE], "table")  # optuna.create_study would write a line to the log
    study = optuna.load_study(study_name="table", storage=storage)
    for row in table.to_dict("records"):
        state = TrialState[row["state"]]
        params, value = {name: row[name] for name in distributions}, row["value"]
        trial = optuna.create_trial(
            state=state, value=None if pd.isna(value) else value, params=params, distributions=distributions
        )
        trial.datetime_start = datetime(1970, 1, 1) + timedelta(seconds=row["started"])
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=row["seconds"])
        study.add_trial(trial)
    return study


# ---------------------------------------------------------------------------------------------- searches of experiments


def with_parameters(experiment: Experiment, parameters: Mapping):
    """The experiment with these values, by the names of fields of Experiment or of its TrainSettings."""
    names = {each.name for each in fields(TrainSettings)}
    training = {name: value for name, value in parameters.items() if name in names}
    others = {name: value for name, value in parameters.items() if name not in names}
    if training.get("optimizer", "sgd") != "sgd":
        training["momentum"] = 0.0  # that of the experiment applies to SGD only
    if others.get("augmentation", experiment.augmentation) not in CROPS:
        others["crop_size"] = None  # that of the experiment applies to a random crop only
    return replace(experiment, **others, train=replace(experiment.train, **training))


def experiment_of_study(path: str | Path, data: str | None = None):
    """The searched experiment with the parameters of the best trial in a table (.csv), on all of its data.

    `data` is the data set that it will learn, if it is not its own.  Raises as `best_of_table`, and ValueError if the
    experiment no longer exists or the search was on another data set; tables of older code do not name it.
    """
    best = best_of_table(path)
    asked, searched = name_of_images(data or find(best["experiment"]).data), best.get("data")
    if isinstance(searched, str) and searched != asked:
        raise ValueError(f"{path} is a search on {searched}, not on {asked}; name its folder with --data")
    parameters = {name: best[name] for name in SPACES["wide"].distributions if name in best}
    experiment = with_parameters(find(best["experiment"]), parameters)
    return replace(experiment, name=_name_of_search(best["experiment"], best["sampler"], best["subset"]))


def _name_of_search(experiment: str, sampler: str, subset: float) -> str:
    return f"{experiment}_{sampler}" + (f"_subset{subset:g}" if subset < 1 else "")


def default_file(experiment, profile: str, sampler: str) -> Path:
    """The file of an experiment's search, in results/<profile>/searches/ (of other data in a folder between)."""
    name = f"{_name_of_search(experiment.name, sampler, experiment.subset)}_seed{experiment.seed}.db"
    return files_of(experiment, profile).results / "searches" / name


def subject_of(experiment: Experiment, profile: str = "full", skip_bad_images: bool = False) -> dict:
    """What a search of the experiment is about: settings, data, initial weights.  Raises if one cannot be loaded."""
    loaders = build_loaders(experiment, skip_bad_images=skip_bad_images, progress=False)
    _, initial_weights = _build_model(experiment, loaders, profile)
    _, teachers = build_objective(experiment, loaders, profile)
    subject = {"settings": settings_of(experiment), "data": loaders.data, "initial_weights": initial_weights}
    return {**subject, "teachers": teachers}


def _build_model(experiment, loaders, profile):
    torch.manual_seed(experiment.seed)
    # The features of a pretext are those of its first seed: the seed of a search must not change what is searched.
    return build_model(replace(experiment, seed=0), loaders, profile)


def validation_loss(
    experiment: Experiment, profile: str = "full", device: str = "auto", skip_bad_images: bool = False
) -> Callable:
    """The objective of an experiment: the lowest val_loss (nats per image) of a training with a trial's parameters.

    A training has at most MAX_EPOCHS epochs and ends early by the "two_worse" rule; one that diverges is pruned.  All
    trials share the decoded images and the features of a frozen backbone.  Each trial stores its epochs, its highest
    val_accuracy, and `report_loss`, the loss by the second report's definition: the last one, or, if the rule ended the
    training, the higher of the last two.
    """
    max_epochs = min(MAX_EPOCHS, experiment.train.max_epochs)
    experiment = replace(experiment, train=replace(experiment.train, max_epochs=max_epochs, stopping="two_worse"))
    options = {"profile": profile, "device": device, "skip_bad_images": skip_bad_images}
    shared_loaders = functools.cache(functools.partial(_build_loaders, **options))

    def objective(trial):
        variant = with_parameters(experiment, trial.params)
        images, batches = shared_loaders(replace(variant, batch_size=experiment.batch_size, train=experiment.train))
        batches = batches.in_batches_of(variant.batch_size)
        model, _ = _build_model(variant, images, profile)
        model = trained_part(variant, model)
        loss, _ = build_objective(variant, images, profile)
        how = {"objective": loss, "device": device, "progress": False}
        with advice_on_memory(variant):
            history = train(model, batches.train, batches.val, variant.train, **how)
        ended_early = should_stop(history.val_loss, variant.train)
        trial.set_user_attr("epochs", history.epochs)
        trial.set_user_attr("val_accuracy", max(history.val_accuracy))
        trial.set_user_attr("report_loss", max(history.val_loss[-2:]) if ended_early else history.val_loss[-1])
        return min(history.val_loss)

    return objective


def _build_loaders(experiment, profile, device, skip_bad_images):
    """Loaders of images, and the loaders to train with, which are of features where these stay the same."""
    images = build_loaders(experiment, skip_bad_images=skip_bad_images, progress=False)
    if not experiment.features_once:
        return images, images
    model, _ = _build_model(experiment, images, profile)
    at = build_accelerator(device).device
    without_test = replace(images, test=None)  # nothing is chosen on the test images: spare their features
    return images, without_test.of_features(fold_batchnorm(model.to(at)).pooled_features, at)


def collect_searches(
    experiments: Iterable, profile: str, trials: int, samplers: Sequence[str] = SAMPLERS, search_missing: bool = True
) -> pd.DataFrame:
    """The tables of every experiment's searches, one by each sampler, below each other.

    Searches with fewer trials are run, or with `search_missing` off taken as far as they are there.  Experiments may
    be one under several seeds; all samplers share the images of an experiment.
    """
    tables = []
    for experiment in experiments:
        subject = functools.cache(functools.partial(subject_of, experiment, profile))
        objective = functools.cache(functools.partial(validation_loss, experiment, profile))
        for sampler in samplers:
            file = default_file(experiment, profile, sampler)
            table = file.with_suffix(".csv")
            if search_missing and (not table.exists() or len(read_trials(table)) < trials):
                search = Search(file, subject(), sampler=sampler, seed=experiment.seed)
                work(search, open_study(search, trials), objective(), progress=False)
            if table.exists():
                if file.exists():  # a table alone, such as a committed one, does not say what images it is about
                    _refuse_other_search(file, experiment)
                tables.append(read_trials(table))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _refuse_other_search(file: Path, experiment: Experiment):
    """Raise ValueError for the file of a search on other images, or of an experiment with other settings."""
    with _quiet(file):
        study = optuna.load_study(study_name=STUDY, storage=_storage_of(file))
    identity = study.user_attrs["identity"]
    refuse_other_images(file, experiment.data, identity["data"])
    difference = first_difference(settings_of(experiment), identity["settings"])
    if difference is not None:
        raise ValueError(f"{file} is a search with {difference}; move it elsewhere to search anew")


# ------------------------------------------------------------------------------------------------------------- commands


def main(arguments=None) -> int:
    """Run the command line; a user's mistake gets one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m hyperparameter_search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="an experiment; python train.py --list shows them")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    parser.add_argument("--trials", type=int, default=20, help="in all, by all workers")
    parser.add_argument("--space", choices=("report", "wide"), default="report", help="wide: also optimizer and others")
    parser.add_argument("--subset", type=float, default=1.0, help="fraction of each class of train and val")
    parser.add_argument("--image-size", type=int, help="pixels, where the experiment's own are too many to search with")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine")
    parser.add_argument("--storage", help="file of the search; default: in results/<profile>/searches/")
    parser.add_argument("--seed", type=int, default=0, help="of subset, trainings and sampler")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _search(options))


def _search(options):
    if options.workers < 1:
        raise ValueError(f"workers is {options.workers}; there must be at least 1")
    experiment = find(options.experiment)
    if isinstance(experiment, (JointEmbeddingExperiment, ProbeExperiment)):
        raise ValueError(
            f"{experiment.name} cannot be searched: there is no loss on val that is lowest for the best one"
        )
    refuse_unused_weights(experiment, options.weights)
    experiment = configure(experiment, options.profile, data=options.data, weights=options.weights, seed=options.seed)
    image_size = experiment.image_size if options.image_size is None else options.image_size
    crop_size = experiment.crop_size and max(32, round(experiment.crop_size * image_size / experiment.image_size))
    changes = {"subset": options.subset, "image_size": image_size, "crop_size": crop_size, "save_epochs": ()}
    experiment = replace(experiment, **changes)
    file = expanded(options.storage or default_file(experiment, options.profile, options.sampler))
    search = Search(file, {}, options.space, options.sampler, options.seed)  # a wrong file is refused first
    search = replace(search, subject=subject_of(experiment, options.profile, options.skip_bad_images))
    open_study(search, options.trials)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_other_worker, args=(search, experiment, options)) for _ in range(1, options.workers)
    ]
    for other in others:
        other.start()
    _work(search, experiment, options)
    for other in others:
        other.join()
    best = best_of_table(search.table)
    names = SPACES[options.space].distributions
    parameters = format_parameters({name: best[name] for name in names})
    print(f"best: loss {best['value']:.4f} with {parameters}; {search.table}")


def _work(search: Search, experiment, options):
    if options.workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.workers))
    objective = validation_loss(experiment, options.profile, options.device, options.skip_bad_images)
    work(search, open_study(search, options.trials), objective)


def _other_worker(*arguments):
    sys.exit(run_command(lambda: _work(*arguments)))


if __name__ == "__main__":
    sys.exit(main())
