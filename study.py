"""The whole study with one command: every experiment of the tables that has no result, several at a time.

    python train.py --study                        says how long it will take, then trains
    python train.py --study byol simclr --seeds 0 1    these only, with what they need

Each run is a process of its own with a log, logs/study/<profile>/<run>.log, or of other data than 15-Scene
logs/study/<profile>/<data>/<run>.log.  Interrupted, the command continues where it was.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import torch
from tqdm.auto import tqdm

from data.files import CODE, make_folder, root_folder, say_once
from data.layouts import list_splits
from data.prepare import locate
from experiments import EXPERIMENTS, configure, find, prerequisites, with_precision
from run_files import files_of, folder_of_data, read
from self_supervised.dataloader import PRETEXTS
from self_supervised.settings import JointEmbeddingExperiment, PretextExperiment, ProbeExperiment
from supervised.settings import Experiment

GIB_PER_RUN = 7  # BYOL's on 64 pairs of views of 160 pixels, the largest of the study
IMAGES = {"train": 1500, "val": 894, "test": 2091}  # of 15-Scene, for the time where there is no result of the data
BACKWARD = 3  # a training pass costs as much as three forward passes
POLL = 0.5  # seconds


@dataclass(frozen=True)
class Task:
    """One run of an experiment, the files that must be there before it can start, and the runs that make them.

    `named` is False for a run that only another one needs, `again` is True where it replaces files.
    """

    experiment: Experiment
    profile: str
    needs: tuple[Path, ...] = ()
    after: tuple[str, ...] = ()
    named: bool = True
    again: bool = False

    @property
    def name(self) -> str:
        """The file stem of the run."""
        return files_of(self.experiment, self.profile).name

    @property
    def log(self) -> Path:
        """Where the run writes what it prints."""
        folder = root_folder() / "logs" / "study" / self.profile
        return folder_of_data(folder, self.experiment.data) / f"{self.name}.log"


def missing_tasks(
    names: Iterable[str],
    profile: str,
    seeds: Iterable[int],
    overwrite: bool = False,
    every: bool = False,
    precision: str = "auto",
    **changes,
) -> list[Task]:
    """Runs without a result, each after what it starts from, and checkpoints that these need again.

    `changes` are those of `configure`; `precision` is that of the runs that are named.  With `overwrite` every run that
    is named is missing.  Else raises ValueError for a result of other settings or other images, naming the field; with
    `every`, which says that the names are all there are, such runs, and those that need them, are left out and counted
    instead.
    """
    configured = [configure(find(name), profile, seed=seed, **changes) for name in names for seed in seeds]
    asked = [with_precision(experiment, precision) for experiment in configured]
    named = {files_of(experiment, profile).name: experiment for experiment in asked}
    plan = _Plan(profile, named, overwrite, every)
    for experiment in asked:
        plan.add(experiment)
    if plan.refused:
        first = next(iter(plan.refused.values()))
        say_once(f"{len(plan.refused)} run(s) are left out, whose results are of other settings or images: {first}")
    return list(plan.tasks.values())


class _Plan:
    """The tasks that are missing, and results that are of something else, by the names of runs."""

    def __init__(self, profile: str, named: Mapping[str, Experiment], overwrite: bool, every: bool):
        self.profile, self.named, self.overwrite, self.every = profile, named, overwrite, every
        self.tasks: dict[str, Task] = {}
        self.refused: dict[str, ValueError] = {}
        self._seen: dict = {}  # what folders hold, see `run_files.read`

    def add(self, experiment: Experiment, needed: int | str | None = None) -> bool:
        """Plan a run, after what it starts from; whether the run, with the needed epoch, is there or will be."""
        files = files_of(experiment, self.profile)
        if files.name in self.tasks:
            return True
        experiment = self.named.get(files.name, experiment)
        anew = self.overwrite and files.name in self.named
        finished = not anew and self._is_finished(experiment, files.name)
        if files.name in self.refused:
            return False
        if finished and (needed is None or files.saved(needed).exists()):
            return True
        before = prerequisites(experiment, self.profile)
        if not all([self.add(each, epoch) for each, epoch in before]):
            return False
        needs = tuple(files_of(each, self.profile).saved(epoch) for each, epoch in before)
        after = tuple(files_of(each, self.profile).name for each, _ in before)
        again = self.overwrite or finished and files.checkpoint.exists()
        self.tasks[files.name] = Task(experiment, self.profile, needs, after, files.name in self.named, again)
        return True

    def _is_finished(self, experiment: Experiment, name: str) -> bool:
        """Whether a run has its result.  One of something else is refused, or is not the result that is asked for."""
        try:
            return read(experiment, self.profile, self._seen) is not None
        except ValueError as error:
            if not (self.overwrite or self.every):
                raise
            if not self.overwrite:
                self.refused[name] = error
            return False


def forward_passes(experiment: Experiment, images: Mapping[str, int] = IMAGES) -> float:
    """What a run on so many images of each split costs, in forward passes of one image of 224x224 pixels."""
    train, held_out = experiment.train, images["val"] + images["test"]
    pixels = ((experiment.crop_size or experiment.image_size) / 224) ** 2
    views = 2 if experiment.flip_tta else 1
    if isinstance(experiment, JointEmbeddingExperiment):
        size = (experiment.view_size / 224) ** 2
        return train.max_epochs * images["train"] * experiment.views_per_image * (BACKWARD + 1) * size
    if isinstance(experiment, ProbeExperiment) or experiment.features_once:
        return views * pixels * sum(images.values())
    # A pretext shows each image once under each of its labels.
    labels = len(PRETEXTS[experiment.pretext].label_names) if isinstance(experiment, PretextExperiment) else 1
    of_training = images["train"] * (1 if experiment.freeze_features else BACKWARD)
    of_evaluation = held_out * views * (experiment.image_size / 224) ** 2
    return train.max_epochs * labels * (of_training * pixels + of_evaluation)


def expected_seconds(
    tasks: Iterable[Task], results: Iterable[tuple[Experiment, dict]], images: Mapping[str, int] = IMAGES
) -> dict[str, float]:
    """Seconds that each task will take alone, by name, from what finished runs took for a forward pass.

    `results`: finished runs, on machines that are as fast as this one.  Empty if there are none.  `images` of each
    split are those that the tasks are about.
    """
    rates = [result["seconds"] / forward_passes(experiment, result["data"]["images"]) for experiment, result in results]
    if not rates:
        return {}
    return {task.name: statistics.median(rates) * forward_passes(task.experiment, images) for task in tasks}


def runs_at_a_time() -> int:
    """How many runs fit: one per CPU core, or per two cores beside a GPU, and GIB_PER_RUN of memory for each."""
    cores = os.cpu_count() or 1
    if torch.cuda.is_available():
        cores, free = cores // 2, torch.cuda.mem_get_info()[0]
    else:
        free = psutil.virtual_memory().available
    return max(1, min(cores, int(free / 2**30 / GIB_PER_RUN)))


def in_words(seconds: float) -> str:
    """A time as hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"


@dataclass
class _Queue:
    """Tasks that wait, run, are done and have failed."""

    waiting: list[Task]
    running: dict[subprocess.Popen, Task] = field(default_factory=dict)
    failed: list[Task] = field(default_factory=list)

    def next(self) -> Task | None:
        """The first task whose files are there, and not about to be made again."""
        pending = {task.name for task in (*self.waiting, *self.running.values())}
        for task in self.waiting:
            if not pending.intersection(task.after) and all(path.exists() for path in task.needs):
                self.waiting.remove(task)
                return task
        return None

    def collect(self) -> list[Task]:
        """The tasks whose process has ended since the last call."""
        ended = [process for process in self.running if process.poll() is not None]
        tasks = [self.running.pop(process) for process in ended]
        for process, task in zip(ended, tasks, strict=True):
            if process.returncode != 0:
                self.failed.append(task)
        return tasks


def train_tasks(
    tasks: list[Task], command: Callable[[Task], list[str]], at_a_time: int, seconds: dict[str, float]
) -> list[Task]:
    """Run the command of each task, `at_a_time` side by side, with one progress bar; returns those that failed.

    A task starts when the files that it needs are there.  What could not start because another failed has failed too.
    Interrupted, it ends the processes; each continues later from its last finished epoch.
    """
    queue, started = _Queue(list(tasks)), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_a_time))}
    with tqdm(total=len(tasks), desc="study", unit="run") as bar:
        try:
            while queue.waiting or queue.running:
                while len(queue.running) < at_a_time and (task := queue.next()) is not None:
                    queue.running[_start(command(task), task.log, environment)] = task
                if not queue.running:
                    break
                bar.update(len(queue.collect()))
                names = ", ".join(task.name for task in queue.running.values())
                left = sum(seconds.get(task.name, 0) for task in (*queue.waiting, *queue.running.values()))
                words = f", about {in_words(left / at_a_time)} left" if left else ""
                bar.set_postfix_str(f"{in_words(time.perf_counter() - started)}{words}: {names}")
                time.sleep(POLL)
        finally:
            for process in queue.running:
                process.terminate()
            for process in queue.running:
                process.wait()
    return queue.failed + queue.waiting


def train_missing(
    names: Iterable[str],
    profile: str,
    seeds: Iterable[int] = (0,),
    *,
    options: Iterable[str] = (),
    at_a_time: int | None = None,
    overwrite: bool = False,
    every: bool = False,
    precision: str = "auto",
    **changes,
) -> list[Task]:
    """Train every run without a result, after saying how long it will take; returns those that failed.

    `options` are those of train.py that are the same for all; `every`, `precision` and `changes` are those of
    `missing_tasks`.  By default so many runs go side by side as fit.
    """
    tasks = missing_tasks(names, profile, seeds, overwrite, every, precision, **changes)
    if not tasks:
        print("every run that is asked for has a result")
        return []
    where = {name: changes.get(name) for name in ("data", "weights")}  # a run of other epochs says as much
    finished = finished_runs(EXPERIMENTS, profile, **where) or finished_runs(EXPERIMENTS, profile)
    seconds, at_a_time = expected_seconds(tasks, finished, images_of(tasks[0])), at_a_time or runs_at_a_time()
    words = f"about {in_words(sum(seconds.values()) / at_a_time)}" if seconds else "no finished run says for how long"
    print(f"{len(tasks)} run(s) without a result, {at_a_time} at a time: {words}", flush=True)
    same = [*options, "--precision", precision, *(["--data", str(changes["data"])] if changes.get("data") else [])]
    epochs = ["--epochs", str(changes["max_epochs"])] if changes.get("max_epochs") else []

    def command(task: Task) -> list[str]:
        # What another run starts from keeps its own epochs: that run would refuse it.
        own = [*(epochs if task.named else []), *(["--overwrite"] * task.again)]
        return command_of(task, [*same, *own], changes.get("weights"))

    return train_tasks(tasks, command, at_a_time, seconds)


def images_of(task: Task) -> dict[str, int]:
    """How many images of each split a task is about; those of 15-Scene where its data are not there."""
    try:
        listed = list_splits(locate(task.experiment.data))
    except (OSError, ValueError):  # the run itself will say it
        return IMAGES
    counts = {split: len(images.names) for split, images in listed.items()}
    held_out = sum(counts.values()) - counts["train"]  # where there is one such split, a part of it becomes val
    return {"train": counts["train"], "val": held_out - counts.get("test", 0), "test": counts.get("test", 0)}


def say_failed(tasks: Iterable[Task]):
    """Say of each run that failed why, by the last line of its log, and of each other that it could not start."""
    tasks = list(tasks)
    names = {task.name for task in tasks}
    for task in tasks:
        before = sorted(names.intersection(task.after))
        lines = task.log.read_text(encoding="utf-8", errors="replace").splitlines() if task.log.is_file() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it could not start")
        words = f"could not start without {', '.join(before)}" if before else f"failed: {last} (its log is {task.log})"
        print(f"{task.name} {words}", file=sys.stderr)


def _start(command: list[str], path: Path, environment: dict[str, str]) -> subprocess.Popen:
    make_folder(path.parent)
    with path.open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def command_of(task: Task, options: Iterable[str], weights: str | None = None) -> list[str]:
    """The command that trains one run; `options` are those of train.py that are the same for all."""
    experiment = task.experiment
    fixed = ["--profile", task.profile, "--seeds", str(experiment.seed)]
    if weights is not None and (weights == "random" or experiment.initial_weights != "random"):
        fixed += ["--weights", weights]
    return [sys.executable, str(CODE / "train.py"), experiment.name, *fixed, *options]


def finished_runs(names: Iterable[str], profile: str, **changes) -> list[tuple[Experiment, dict]]:
    """Experiments and results of seed 0 that were trained on a machine of this kind (CPU, or this GPU)."""
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found, seen = [], {}
    for name in names:
        experiment = configure(find(name), profile, **changes)
        try:
            result = read(experiment, profile, seen)
        except ValueError:  # of other settings
            continue
        if result is not None and result["device"].startswith(here):
            epochs = max(1, len(result["history"]["val_loss"]))
            trained = replace(experiment, train=replace(experiment.train, max_epochs=epochs))
            found.append((trained, result))
    return found
