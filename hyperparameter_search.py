"""Search the settings of an experiment on Optuna (Akiba et al. 2019), with as many workers as are started.

    python -m hyperparameter_search supervised_1 --sampler tpe --profile full --subset 0.1
    python -m supervised.train --from-study results/full/searches/supervised_1_tpe_subset0.1_seed0.csv --profile full

All trials wait in the storage from the start; a worker takes one, trains it, and writes down its loss, so that workers
share a search without dividing it beforehand, and none runs a trial twice.  A worker that is killed lets go of its
trial's lock; whoever comes next marks that trial as failed and puts the same settings back into the queue.  What a
search has found lies beside its journal as a table (.csv), a row a trial; both can be trained from.
"""

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from helper_functions import (
    OPTIMIZERS,
    SCHEDULES,
    TrainSettings,
    build_accelerator,
    fold_batchnorm,
    should_stop,
    train,
)
from runs import files_of, first_difference, load_features, run_command, settings_of, write_atomically

SAMPLERS = ("grid", "random", "tpe", "gp")
EARLIER_LOSSES = {"grid": 0.794, "random": 1.441, "tpe": 0.759}  # Deceuninck 2023, figure 1: one search each
STUDY = "search"  # its name in a storage, which holds one
MAX_EPOCHS = 25  # of a trial, which ends earlier by the second report's rule
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
HEARTBEAT_SECONDS = 60  # of a trial in a database; one that misses two is taken for killed
UNFINISHED = (TrialState.WAITING, TrialState.RUNNING)


@dataclass(frozen=True)
class Space:
    """What may vary, by the name of a field of Experiment or TrainSettings, and the values of a grid over it."""

    distributions: Mapping[str, BaseDistribution]
    grid: Mapping[str, tuple]

    @property
    def cells(self) -> list[dict]:
        """Every combination of the grid's values."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


_LEARNING_RATE = FloatDistribution(1e-6, 1e-2, log=True)
LARGEST_BATCH = 16
_BATCH_SIZE = IntDistribution(4, LARGEST_BATCH)
_GRID = {"learning_rate": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2), "batch_size": (4, 8, 12, 16)}
SPACES = {
    "report": Space({"learning_rate": _LEARNING_RATE, "batch_size": _BATCH_SIZE}, _GRID),  # Deceuninck 2023
    "wide": Space(
        {
            "learning_rate": _LEARNING_RATE,
            "batch_size": _BATCH_SIZE,
            "optimizer": CategoricalDistribution(OPTIMIZERS),
            "weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
            "schedule": CategoricalDistribution(SCHEDULES),
            "augmentation": CategoricalDistribution(("basic", "crop", "advanced")),
        },
        _GRID,
    ),
}

_DECADES = FloatDistribution(1e-6, 1e2, log=True)
INVERSION = Space(  # model inversion's, Deceuninck 2023: every other decade, and 0.1, which he reports on
    {"learning_rate": _DECADES, "weight_decay": _DECADES},
    dict.fromkeys(("learning_rate", "weight_decay"), (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 1e2)),
)


def open_study(
    storage: str, identity: dict, space: Space, trials: int, sampler: str, seed: int = 0, pruning: bool = False
) -> optuna.Study:
    """The study in a journal file (or at a database's URL), made if there is none, with so many trials queued in all.

    `identity` (plain types) says what is searched (under "settings", with its "name"), and with what; a study of
    anything else is refused.  Asking for more trials than a study has adds the rest.  Trials of a grid have its cells,
    in an order drawn by seed; others are left to the sampler.
    Raises ValueError for an unknown sampler, fewer than 1 trial, more than a grid has cells, or a storage that holds
    another study, naming the field.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler is {sampler!r}; it must be one of {', '.join(SAMPLERS)}")
    if trials < 1:
        raise ValueError(f"trials is {trials}; it must be at least 1")
    cells = space.cells if sampler == "grid" else None
    if cells is not None and trials > len(cells):
        raise ValueError(f"trials is {trials}, but the grid has {len(cells)} cells, and none is run twice")
    if storage.endswith(".csv"):
        raise ValueError(f"{storage} is where the table of a search would be written; name the journal otherwise")
    _check_journal(storage)
    identity = json.loads(json.dumps({**identity, "sampler": sampler, "seed": seed, "pruning": pruning}))
    with _alone(storage):
        opened = _open_storage(storage)
        pruner = optuna.pruners.MedianPruner() if pruning else optuna.pruners.NopPruner()
        try:
            study = optuna.load_study(study_name=STUDY, storage=opened, pruner=pruner)
        except KeyError:
            study = optuna.create_study(study_name=STUDY, storage=opened, pruner=pruner, direction="minimize")
        found = study.user_attrs.get("identity")
        if found is None:
            study.set_user_attr("identity", identity)
        searched, asked = (each["settings"]["name"] for each in (found or identity, identity))
        if searched != asked:
            raise ValueError(
                f"{storage} is a search of {searched}, but {asked} is asked for; name another with --storage"
            )
        difference = first_difference(identity, found or identity)
        if difference is not None:
            raise ValueError(f"{storage} is a search with {difference}; name another file with --storage")
        queued = sum(trial.state in (*FINISHED, *UNFINISHED) for trial in study.trials)
        order = np.random.default_rng(seed).permutation(len(cells)) if cells is not None else None
        for number in range(queued, trials):
            _queue(study, cells[order[number]] if cells is not None else {})
    return study


def read_study(storage: str) -> optuna.Study:
    """A study that is there already.  Raises FileNotFoundError or ValueError if there is none."""
    if not _is_url(storage) and not Path(storage).is_file():
        raise FileNotFoundError(f"there is no study file {storage}")
    try:
        study = optuna.load_study(study_name=STUDY, storage=_open_storage(storage))
        study.user_attrs["identity"]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{storage} holds no search of ours ({error})") from error
    return study


def work(study: optuna.Study, storage: str, objective: Callable, space: Space, progress: bool = True) -> None:
    """Run trials of a study until none waits.  Start it as often as you like, anywhere that sees the storage.

    `objective(trial)` gives the value to be small, and may raise optuna.TrialPruned.  What it raises otherwise ends
    this worker, and the trial goes back into the queue when the next one starts.
    """
    identity = study.user_attrs["identity"]
    while True:
        with ExitStack() as held:
            with _alone(storage):
                _queue_again_what_was_killed(study, storage)
                waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
                if not waiting:
                    return
                # Seeded by the trial: what it draws depends on the trials finished before it, not on who runs it.
                study.sampler = build_sampler(identity["sampler"], identity["seed"], waiting[0].number)
                trial = study.ask(dict(space.distributions))
                held.enter_context(_marked_as_alive(study, storage, trial))
            if "given" not in trial.user_attrs:  # not from the queue: another machine was faster
                study.tell(trial, state=TrialState.FAIL)
                continue
            try:
                value, state = objective(trial), TrialState.COMPLETE
            except optuna.TrialPruned:
                value, state = None, TrialState.PRUNED
            study.tell(trial, value, state)
        if progress:
            words = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
            done = len(study.get_trials(deepcopy=False, states=FINISHED))
            print(f"trial {trial.number}: {'pruned' if value is None else f'{value:.4f}'} ({words}); {done} done")


def build_sampler(name: str, seed: int, trial: int) -> BaseSampler:
    """Optuna's sampler for one trial.  The first ten trials of "tpe" and "gp" are random, as by Optuna's defaults."""
    seed = int(np.random.SeedSequence([seed, trial]).generate_state(1)[0])
    if name == "tpe":
        return TPESampler(seed=seed, constant_liar=True)  # running trials count as bad ones: others look elsewhere
    if name == "gp":
        return GPSampler(seed=seed)
    return RandomSampler(seed=seed)  # a grid's values are given with its trials


def with_parameters(experiment, parameters: Mapping):
    """The row with these values, by the names of fields of Experiment or of its TrainSettings."""
    names = {field.name for field in fields(TrainSettings)}
    training = {name: value for name, value in parameters.items() if name in names}
    others = {name: value for name, value in parameters.items() if name not in names}
    return replace(experiment, **others, train=replace(experiment.train, **training))


def validation_loss(experiment, build_model: Callable, build_loaders: Callable, device: str = "auto") -> Callable:
    """The objective of an experiment: the lowest val_loss of a training with a trial's parameters (nats an image).

    At most MAX_EPOCHS epochs, ended by the "two_worse" rule.  Images are decoded, and features that are frozen are
    computed, once for all trials.  A training that diverges counts as pruned.  A trial also keeps, as user attributes,
    its epochs, its highest val_accuracy, and what the second report took for its loss: the last one, or, when the rule
    has ended it, the higher of the two that were worse.
    Raises ValueError for a row that learns from teachers.
    """
    if experiment.has_teachers:
        raise ValueError(f"{experiment.name} learns from teachers, and a search trains on labels; search another row")
    experiment = replace(
        experiment,
        train=replace(experiment.train, max_epochs=min(MAX_EPOCHS, experiment.train.max_epochs), stopping="two_worse"),
    )

    @functools.cache
    def loaders_of(row):
        images = build_loaders(row)
        if not row.features_once:
            return images, images
        torch.manual_seed(row.seed)
        model, _ = build_model(row, images)
        at = build_accelerator(device).device
        without_test = replace(images, test=None)  # nothing is chosen by the test images: spare their features
        return images, without_test.of_features(fold_batchnorm(model.to(at)).pooled_features, at)

    def objective(trial):
        row = with_parameters(experiment, trial.params)
        images, batches = loaders_of(replace(row, batch_size=LARGEST_BATCH, train=experiment.train))
        batches = batches.in_batches_of(row.batch_size)
        torch.manual_seed(row.seed)
        model, _ = build_model(row, images)

        def report(training):
            losses = training["history"]["val_loss"]
            trial.report(losses[-1], len(losses))
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            history = train(
                model.classifier if row.features_once else model,
                batches.train,
                batches.val,
                row.train,
                class_weights=images.class_weights,
                device=device,
                save_state=report,
                progress=False,
            )
        except FloatingPointError as error:
            raise optuna.TrialPruned from error
        stopped = should_stop(history.val_loss, row.train)
        trial.set_user_attr("epochs", history.epochs)
        trial.set_user_attr("val_accuracy", max(history.val_accuracy))
        trial.set_user_attr("report_loss", max(history.val_loss[-2:]) if stopped else history.val_loss[-1])
        return min(history.val_loss)

    return objective


def open_search(row, storage: str, sampler: str, trials: int, space: str = "report", pruning: bool = False):
    """The study of an experiment's row, seeded as the row is; `space` names one of SPACES.  Raises as `open_study`."""
    identity = {"settings": settings_of(row), "space": space}
    return open_study(storage, identity, SPACES[space], trials, sampler, row.seed, pruning)


def default_journal(row, sampler: str) -> str:
    """The name of the journal file of a row's search."""
    return f"{_name_of_search(row.name, sampler, row.subset)}_seed{row.seed}.journal"


def collect_searches(
    rows: Iterable,
    objective_of: Callable,
    folder: Path,
    trials: int,
    samplers: Sequence[str] = SAMPLERS,
    search_missing: bool = True,
) -> pd.DataFrame:
    """The trials of every row's search by every sampler (`trials_table`): read where there is a table of so many.

    Others are searched with `objective_of(row)`, which all samplers share, or with `search_missing` off taken as far
    as they are there.  Rows may be one experiment under several seeds.
    """
    tables = []
    for row in rows:
        objective = functools.cache(functools.partial(objective_of, row))
        for sampler in samplers:
            journal = folder / default_journal(row, sampler)
            table = journal.with_suffix(".csv")
            if search_missing and (not table.exists() or len(read_table(str(table))) < trials):
                study = open_search(row, str(journal), sampler, trials)
                work(study, str(journal), objective(), SPACES["report"], progress=False)
                write_table(study, str(journal))
            if table.exists():
                tables.append(read_table(str(table)))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row a finished trial: what was searched and how, the parameters, the value, and what the trial has kept.

    `started` is in seconds after the search's first trial, `seconds` is how long the trial took.
    """
    identity = study.user_attrs["identity"]
    settings = identity["settings"]
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    first = min((trial.datetime_start for trial in trials), default=None)
    return pd.DataFrame(
        [
            {
                "experiment": settings["name"],
                "image_size": settings.get("image_size"),
                "subset": settings.get("subset", 1.0),
                "sampler": identity["sampler"],
                "seed": identity["seed"],
                "trial": trial.number,
                "state": trial.state.name,
                **trial.params,
                "value": trial.value,
                **{name: value for name, value in trial.user_attrs.items() if name != "given"},
                "started": round((trial.datetime_start - first).total_seconds(), 1),
                "seconds": round(trial.duration.total_seconds(), 1),
            }
            for trial in trials
        ]
    )


def write_table(study: optuna.Study, storage: str) -> None:
    """Write the trials beside a journal file, under its name with .csv; a database has no place beside it."""
    if not _is_url(storage):
        table = trials_table(study)
        with _alone(storage):  # several workers may end at once
            write_atomically(Path(storage).with_suffix(".csv"), lambda temporary: table.to_csv(temporary, index=False))


def study_of_table(table: pd.DataFrame, space: Space) -> optuna.Study:
    """The trials of a table as a study in memory, for Optuna's plots and importances; numbered from 0 by its rows."""
    study = optuna.create_study()
    for number, row in enumerate(table.to_dict("records")):
        started = datetime.fromtimestamp(row["started"], UTC).replace(tzinfo=None)
        pruned = pd.isna(row["value"])
        study.add_trial(
            FrozenTrial(
                number=number,
                trial_id=number,
                state=TrialState[row["state"]],
                value=None if pruned else row["value"],
                params={name: row[name] for name in space.distributions},
                distributions=dict(space.distributions),
                datetime_start=started,
                datetime_complete=started + timedelta(seconds=row["seconds"]),
                user_attrs={},
                system_attrs={},
                intermediate_values={},
            )
        )
    return study


def row_of_study(storage: str, find: Callable):
    """The searched experiment with the best trial's parameters, on all of its data; `find(name)` gives its row.

    `storage` may also be the table of a search (.csv).  Raises what `read_study` raises, and ValueError if no trial is
    complete or the row has changed since.
    """
    table = read_table(storage) if storage.endswith(".csv") else trials_table(read_study(storage))
    if table.empty or table["value"].isna().all():
        raise ValueError(f"{storage} has no finished trial yet")
    best = table.loc[[table["value"].idxmin()]].to_dict("records")[0]
    parameters = {name: best[name] for name in SPACES["wide"].distributions if name in best}
    row = with_parameters(find(best["experiment"]), parameters)
    return replace(row, name=_name_of_search(best["experiment"], best["sampler"], best["subset"]))


def rows_asked_for(names: list[str], study: str | None, find: Callable) -> list:
    """The rows that a training script's command line names, and the best trial of a study's file if it names one.

    Raises ValueError if it names none, and what `find(name)` and `row_of_study` raise.
    """
    if not names and not study:
        raise ValueError("name at least one experiment; --list shows them")
    return [*map(find, names), *([row_of_study(study, find)] if study else [])]


def read_table(path: str) -> pd.DataFrame:
    """The trials of a search from its .csv.  Raises FileNotFoundError or ValueError if it is not there or none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no study file {path}")
    table = pd.read_csv(path)
    missing = {"experiment", "sampler", "subset", "value"} - set(table)
    if missing:
        raise ValueError(f"{path} is not the table of a search; it has no column {min(missing)}")
    return table


def settings_row(study: optuna.Study) -> str:
    """The best trial as a row of settings.py, ready to paste."""
    identity = study.user_attrs["identity"]
    base = f'EXPERIMENTS["{identity["settings"]["name"]}"]'
    names = {field.name for field in fields(TrainSettings)}
    best = {
        key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in study.best_params.items()
    }
    training = ", ".join(f"{key}={value!r}" for key, value in best.items() if key in names)
    others = "".join(f"    {key}={value!r},\n" for key, value in best.items() if key not in names)
    settings = identity["settings"]
    name = _name_of_search(settings["name"], identity["sampler"], settings.get("subset", 1.0))
    searched = f"{identity['sampler']} found in {len(study.trials)} trials (loss {study.best_value:.4f})"
    return (
        f"replace(\n    {base},\n"
        f'    name="{name}",\n'
        f'    question="How good is what {searched}?",\n'
        f"{others}    train=replace({base}.train, {training}),\n)"
    )


def _name_of_search(experiment: str, sampler: str, subset: float) -> str:
    """What was found on a subset is not what was found on all images."""
    return f"{experiment}_{sampler}" + (f"_subset{subset:g}" if subset < 1 else "")


class _JournalLock:
    """A lock that the system takes from a killed process; Optuna's own would be waited for half a minute.

    Half a line, which a process killed in the middle of writing has left, is cut off: Optuna could not read past it.
    """

    def __init__(self, journal: Path):
        self._journal, self._lock = journal, FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        with self._journal.open("rb+") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._lock.release()


def _is_url(storage: str) -> bool:
    return "://" in storage


def _check_journal(storage: str):
    """Raise ValueError for a file that is no journal, before anything is written beside it."""
    if _is_url(storage) or not Path(storage).is_file():
        return
    with Path(storage).open() as file:
        try:
            line = file.readline()
            if line.endswith("\n"):  # Optuna would write below a single line that it cannot read
                json.loads(line)
        except ValueError as error:
            raise ValueError(f"{storage} is not a study's journal ({error}); name another with --storage") from error


def _open_storage(storage: str):
    if _is_url(storage):
        return RDBStorage(
            storage,
            heartbeat_interval=HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    try:
        return JournalStorage(JournalFileBackend(storage, lock_obj=_JournalLock(Path(storage))))
    except ValueError as error:
        raise ValueError(f"{storage} is not a study's journal ({error}); name another file with --storage") from error


@contextmanager
def _alone(storage: str):
    """Within the block no other worker on a journal file takes a trial; a database needs no such help."""
    if _is_url(storage):
        yield
    else:
        with FileLock(_lock_folder(storage) / "queue.lock"):
            yield


@contextmanager
def _marked_as_alive(study, storage: str, trial):
    """Within the block others can see that somebody runs the trial: by a lock, or by a database's heartbeat."""
    if _is_url(storage):
        stop = threading.Event()
        records = study._storage  # public methods of RDBStorage; optuna.Study.optimize does the same

        def beat():
            records.record_heartbeat(trial._trial_id)
            while not stop.wait(HEARTBEAT_SECONDS):
                records.record_heartbeat(trial._trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        return
    with _lock_of_trial(storage, trial.number):
        yield


def _queue_again_what_was_killed(study, storage: str):
    """Trials marked as running that nobody runs: they failed, and the same parameters wait again."""
    if _is_url(storage):
        optuna.storages.fail_stale_trials(study)
        return
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        try:
            with _lock_of_trial(storage, trial.number, timeout=0):
                if study.trials[trial.number].state == TrialState.RUNNING:  # else it has just been finished
                    study.tell(trial.number, state=TrialState.FAIL)
                    _queue(study, trial.user_attrs["given"] | trial.params)
        except Timeout:
            continue  # somebody is at it


def _queue(study, parameters: dict):
    """Add a trial of these parameters; what they do not name is left to the sampler."""
    study.enqueue_trial(parameters, user_attrs={"given": parameters})


def _lock_folder(storage: str) -> Path:
    folder = Path(f"{storage}.locks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _lock_of_trial(storage: str, number: int, timeout: float = -1):
    """Within the block nobody else holds the trial.  To ask for a lock makes its file, so whoever gets it removes it.

    Raises Timeout where somebody holds it for longer than the timeout (seconds; -1: waits).
    """
    lock = FileLock(_lock_folder(storage) / f"trial{number}.lock", timeout=timeout)
    with lock:
        yield
        Path(lock.lock_file).unlink(missing_ok=True)


def _short(value):
    return f"{value:.3g}" if isinstance(value, float) else value


def main(arguments=None) -> int:
    """Answer the command line; a user's mistake gets one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m hyperparameter_search", description=__doc__)
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="a row of either task, see the training scripts' --list"
    )
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    parser.add_argument("--trials", type=int, default=20, help="in all, by all workers")
    parser.add_argument("--space", choices=SPACES, default="report", help="wide opens optimizer, schedule and more")
    parser.add_argument("--subset", type=float, default=1.0, help="share of the images of each class of train and val")
    parser.add_argument("--image-size", type=int, help="pixels, if the row's own are too many to search with")
    parser.add_argument("--profile", choices=("quick", "full"), default="quick")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine")
    parser.add_argument("--storage", help="a journal file or a database's URL; default: in results/<profile>/searches/")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn: subset, trainings, sampler")
    parser.add_argument("--pruning", action="store_true", help="end trials worse than the median; not when comparing")
    parser.add_argument("--write-row", action="store_true", help="print the best trial as a row of settings")
    parser.add_argument("--data", help="a prepared data set's name or a folder <split>/<class>/<image>")
    parser.add_argument("--weights", help="imagenet (full), random (quick), or the file of a state dict")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return run_command(lambda: _search(options, sys.argv[1:] if arguments is None else arguments))


def _search(options, arguments) -> int | None:
    from self_supervised import settings as self_supervised
    from supervised import settings as supervised

    room = self_supervised if options.experiment in self_supervised.EXPERIMENTS else supervised
    known = {**supervised.ALL_EXPERIMENTS, **self_supervised.EXPERIMENTS}
    row = supervised.find(options.experiment, known)
    row = room.configure(row, options.profile, options.data, options.weights)
    row = replace(
        row,
        subset=options.subset,
        image_size=row.image_size if options.image_size is None else options.image_size,
        seed=options.seed,
        save_epochs=(),
    )
    if options.workers < 1:
        raise ValueError(f"workers is {options.workers}; there must be at least 1")
    folder = files_of(row, options.profile).results / "searches"
    storage = options.storage or str(folder / default_journal(row, options.sampler))
    objective = _objective_of_row(row, options)
    study = open_search(row, storage, options.sampler, options.trials, options.space, options.pruning)
    if options.workers > 1:
        code = _run_workers(options.workers, arguments)
        if code:
            return code
    else:
        work(study, storage, objective, SPACES[options.space])
    write_table(study, storage)
    best = study.best_trial
    words = ", ".join(f"{key} {_short(value)}" for key, value in best.params.items())
    print(f"best of {len(study.get_trials(states=FINISHED))}: loss {best.value:.4f} with {words}; {storage}")
    if options.write_row:
        print(settings_row(study))


def _objective_of_row(row, options):
    """The objective of a row of either room; raises what is wrong with its data or weights before a study begins."""
    from self_supervised import dataloader, models, settings

    def load_pretext(name, seed, epoch):
        # Of seed 0, whatever the search's: it is what is searched on, not what is drawn.
        pretext = settings.configure(settings.find(name), options.profile, options.data, options.weights)
        return load_features(pretext, files_of(pretext, options.profile), epoch)

    build_model = functools.partial(models.build_model, load_pretext=load_pretext)
    build_loaders = functools.partial(dataloader.build_loaders, progress=False)
    build_model(row, build_loaders(replace(row, batch_size=LARGEST_BATCH)))
    return validation_loss(row, build_model, build_loaders, options.device)


def _run_workers(number: int, arguments) -> int:
    """The same command in so many processes that share the machine's cores; the worst exit code."""
    threads = max(1, (os.cpu_count() or 1) // number)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "hyperparameter_search", *arguments, "--workers", "1"]
    workers = [subprocess.Popen(command, env=environment) for _ in range(number)]
    return max(abs(worker.wait()) for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
