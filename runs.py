"""One experiment from its settings to its files: run it, resume it, read back what it left.

    models/<profile>/<name>.pt         checkpoint of a finished run: weights at the epoch kept, settings, history
    models/<profile>/<name>.epoch3.pt  weights after an epoch of save_epochs; <name>.last.pt after the last
    models/<profile>/<name>.state.pt   what an unfinished run needs to continue; removed when it has finished
    results/<profile>/<name>.json      settings, metrics, history, predictions: the source of every table and figure

Results on another data set than 15-Scene have a folder of their own below the profile's, so they are never mixed.
Further seeds are <name>.seed1 and so on.  Writes are atomic.  Checkpoints hold plain types only and are loaded with
weights_only=True, so a file from a stranger cannot run code.
"""

import argparse
import difflib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate.tracking import TensorBoardTracker
from accelerate.utils import is_tensorboard_available
from filelock import Timeout
from torch import nn

from data import files as plain_files
from data.augment import AUGMENTATION_RULES
from data.files import (
    digest_of_file,
    digest_of_tensors,
    expanded,
    load_plain,
    locked,
    root_folder,
    say_once,
    write_atomically,
    write_text,
)
from data.layouts import ALL_BELOW, fingerprints, is_split, list_splits, name_of_images
from data.prepare import folder_of, locate
from helper_functions import (
    DEVICES,
    CrossEntropy,
    Evaluation,
    History,
    TrainSettings,
    build_accelerator,
    evaluate,
    fold_batchnorm,
    keep_freed_memory,
    resolve_precision,
    train,
)
from self_supervised import settings as self_supervised
from self_supervised.dataloader import build_loaders
from self_supervised.joint_embedding import SHOWN_NEIGHBORS, OfViews
from self_supervised.models import build_classifier, build_joint_embedding
from self_supervised.probes import linear_probe, nearest_images, set_head, vote_of_neighbors
from self_supervised.settings import ClassifierExperiment, JointEmbeddingExperiment, ProbeExperiment
from supervised import models as supervised_models
from supervised import settings as supervised
from supervised.models import Distillation, classifier_of, estimate_batchnorm
from supervised.settings import Experiment

EXPERIMENTS = {**supervised.ALL_EXPERIMENTS, **self_supervised.EXPERIMENTS}  # an experiment of your own can be added
PROFILES = ("quick", "full")
STUDY_DATA = "15scene"  # the data set whose results stand directly in the profile's folder
FORMAT = 2  # of checkpoints and results
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "pillow")
DATA_HELP = "a prepared data set, a folder [<split>/]<class>/<image>, or a table of files and labels (.csv)"
NOT_IDENTITY = ("question", "compared_with", "family", "earlier_accuracy")  # fields that do not change what is trained


def find(name: str) -> Experiment:
    """The experiment of this name.  Raises ValueError that lists similar names."""
    if name not in EXPERIMENTS:
        similar = difflib.get_close_matches(name, EXPERIMENTS, n=5, cutoff=0.5)
        words = f"; similar names: {', '.join(similar)}" if similar else ""
        raise ValueError(f"there is no experiment {name!r}{words}; python train.py --list shows all")
    return EXPERIMENTS[name]


def configure(
    experiment: Experiment,
    profile: str,
    *,
    data: str | None = None,
    weights: str | None = None,
    seed: int | None = None,
    max_epochs: int | None = None,
) -> Experiment:
    """The experiment as a profile runs it, on other data or from other weights where they are given.

    Without `weights`, full starts from those of the experiment and quick from random ones: quick needs no download.
    An experiment that asks for random weights keeps them.  Raises ValueError for an unknown profile.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; it must be {' or '.join(PROFILES)}")
    if data is not None and expanded(data).name == ALL_BELOW:
        raise ValueError(f"data is {data}; images without labels can be added to those of a pretext, see --unlabelled")
    if profile == "quick":
        kinds = self_supervised.PretextExperiment, JointEmbeddingExperiment, ClassifierExperiment
        of_pretexts = isinstance(experiment, kinds)
        table = self_supervised if of_pretexts or experiment.name in self_supervised.EXPERIMENTS else supervised
        experiment = table.quick(experiment)
    if experiment.initial_weights != "random":
        own = "random" if profile == "quick" else experiment.initial_weights
        experiment = replace(experiment, initial_weights=weights or own)
    if max_epochs is not None and not isinstance(experiment, ProbeExperiment):  # which is fitted, not trained
        experiment = replace(experiment, train=replace(experiment.train, max_epochs=max_epochs))
    return replace(experiment, data=data or experiment.data, seed=experiment.seed if seed is None else seed)


def with_unlabelled(experiment: Experiment, folder: str, alone: bool = False) -> Experiment:
    """A joint-embedding pretext, or what starts from one, with more images: a new experiment, which is returned.

    `folder` is the name of a prepared data set or a folder with splits, of which the training images are added, or any
    other folder, of which all images are added.  With `alone` they take the place of the training images.  The folder's
    name is in those of the new experiments, which can be found.
    Raises ValueError for an experiment without views, and FileNotFoundError for a folder that is not there.
    """
    root = locate(folder)
    if not root.is_dir():
        raise ValueError(f"--unlabelled is {folder}; it must be a folder of images")
    name = f"{experiment.name}_{'on' if alone else 'with'}_{re.sub(r'[^A-Za-z0-9_-]+', '_', root.name)}"
    if isinstance(experiment, JointEmbeddingExperiment):
        if experiment.unlabelled:
            raise ValueError(f"{experiment.name} has images of {experiment.unlabelled} already; leave out --unlabelled")
        unlabelled = str(root if is_split(root) else root / ALL_BELOW)
        added = replace(experiment, name=name, unlabelled=unlabelled, unlabelled_alone=alone)
        count = len(list_splits(locate(unlabelled))["train"].names)
        place = "take the place of" if alone else "are added to"
        say_once(f"{added.name}: {count:,} images of {root} {place} the training images, without labels")
    elif getattr(experiment, "pretext_run", "") and isinstance(find(experiment.pretext_run), JointEmbeddingExperiment):
        pretext = with_unlabelled(find(experiment.pretext_run), folder, alone)
        added = replace(experiment, name=name, pretext_run=pretext.name)
    else:
        raise ValueError(
            f"{experiment.name} learns from labels, so --unlabelled adds nothing; byol and byol_classifier take it"
        )
    EXPERIMENTS[added.name] = added
    return added


@dataclass(frozen=True)
class Files:
    """The files of one run.  Raises ValueError for a name that is not a plain file stem."""

    models: Path
    results: Path
    name: str

    def __post_init__(self):
        """Refuse a name that could lead out of the folders."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"{self.name!r} cannot name a file; use letters, digits, '_', '-' and '.'")

    @property
    def checkpoint(self) -> Path:
        """Of the finished run."""
        return self.models / f"{self.name}.pt"

    @property
    def state(self) -> Path:
        """Of the unfinished run."""
        return self.models / f"{self.name}.state.pt"

    @property
    def lock(self) -> Path:
        """Held while a process trains the run."""
        return self.models / f".{self.name}.lock"

    @property
    def result(self) -> Path:
        """The source of tables and figures."""
        return self.results / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """The folder that TensorBoard reads."""
        return self.models / "tensorboard" / self.name

    def saved(self, epoch: int | str) -> Path:
        """The weights of one epoch: a number, "last", or "best", which is the checkpoint."""
        if epoch == "best":
            return self.checkpoint
        return self.models / f"{self.name}.{epoch if isinstance(epoch, str) else f'epoch{epoch}'}.pt"


def files_of(experiment: Experiment, profile: str) -> Files:
    """The files of an experiment below `data.files.root_folder()`."""
    below = Path(profile)
    if experiment.data != STUDY_DATA:
        below /= name_of_images(experiment.data)
    name = experiment.name if experiment.seed == 0 else f"{experiment.name}.seed{experiment.seed}"
    return Files(root_folder() / "models" / below, root_folder() / "results" / below, name)


# ------------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Job:
    """Everything that one training needs: built by `run`, or by hand for a network of one's own."""

    experiment: Experiment
    files: Files
    model: nn.Module
    loaders: object  # as supervised.dataloader.Loaders
    objective: nn.Module
    provenance: dict  # initial_weights, and teachers where there are any
    device: str = "auto"
    overwrite: bool = False
    progress: bool = True
    wait: bool = False
    log: bool = False

    @property
    def identity(self) -> dict:
        """What the files of the run must agree with."""
        return {"settings": settings_of(self.experiment), "data": self.loaders.data, **self.provenance}


def run(
    experiment: Experiment,
    profile: str = "full",
    *,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    skip_bad_images: bool = False,
    progress: bool = True,
    wait: bool = False,
    log: bool = False,
) -> tuple[nn.Module, dict]:
    """Train an experiment to its end and write its files, or read back what an earlier call left.

    A missing pretext or teacher is trained first.  An interrupted run continues after its last finished epoch.
    `precision` "auto" is that of the experiment.  With `log` each epoch is also logged for TensorBoard, below
    `Files.log`.  Returns the model at the epoch that `TrainSettings.keep` names, in eval mode, and the result.
    Raises ValueError if the files have other settings, data, teachers or initial weights, naming the field (`overwrite`
    replaces them instead), or if another process trains this run (`wait` waits for it instead); OSError if the files
    cannot be written, before anything is trained; MemoryError if a batch is too large; and what loading data and
    weights raises.
    """
    options = {"device": device, "precision": precision, "skip_bad_images": skip_bad_images}
    options |= {"progress": progress, "wait": wait, "log": log}
    if precision != "auto":
        experiment = replace(experiment, train=replace(experiment.train, precision=precision))
    loaders = build_loaders(experiment, skip_bad_images, progress)
    if not overwrite and _outlives_its_pretext(experiment, profile):
        return _read_alone(experiment, profile, loaders)
    for needed, epoch in prerequisites(experiment, profile):
        again = _must_train(needed, profile, epoch, loaders.data, overwrite)
        if again is not None:
            run(needed, profile, overwrite=again, **options)
    torch.manual_seed(experiment.seed)  # before the head draws its weights
    with advice_on_memory(experiment):
        model, initial_weights = build_model(experiment, loaders, profile)
        objective, teachers = build_objective(experiment, loaders, profile)
        provenance = {"initial_weights": initial_weights, **({"teachers": teachers} if teachers else {})}
        files = files_of(experiment, profile)
        return train_job(
            Job(experiment, files, model, loaders, objective, provenance, device, overwrite, progress, wait, log)
        )


def _must_train(needed: Experiment, profile: str, epoch: int | str, data: dict, overwrite: bool) -> bool | None:
    """None if the epoch of a run that is needed is there; else whether the files of that run must be replaced.

    Whether an epoch that is there fits is seen where the network is built; only `overwrite` needs to know before.
    Raises what `load_weights` raises for a finished run of other settings or images that lacks the epoch.
    """
    files = files_of(needed, profile)
    if overwrite:
        try:
            load_weights(needed, profile, epoch, data=data)
        except (FileNotFoundError, ValueError):
            return True
        return None
    if files.saved(epoch).exists():
        return None
    if not files.checkpoint.exists():
        return False
    load_weights(needed, profile, data=data)  # the run has finished, and only this epoch was removed
    return True


def _outlives_its_pretext(experiment: Experiment, profile: str) -> bool:
    """Whether a run has finished, but what it started from was removed since."""
    needed = prerequisites(experiment, profile)
    there = all(files_of(each, profile).saved(epoch).exists() for each, epoch in needed)
    return files_of(experiment, profile).checkpoint.exists() and not there


def _read_alone(experiment: Experiment, profile: str, loaders) -> tuple[nn.Module, dict]:
    """Model and result of a finished run without what it started from.  Raises ValueError naming what differs."""
    files = files_of(experiment, profile)
    path = files.checkpoint
    saved = load_checkpoint(path)
    settings = _with_defaults(saved["identity"]["settings"], experiment)
    asked = {"settings": settings_of(experiment), "data": loaders.data}
    _take_precision(asked["settings"], settings)
    difference = first_difference(asked, {"settings": settings, "data": saved["identity"]["data"]})
    if difference is not None:
        raise ValueError(f"{path} was trained with {difference}; --overwrite replaces it")
    model = classifier_of(experiment, len(loaders.class_names))
    model.load_state_dict(saved["model"])
    if not files.result.exists():
        write_result(files.result, saved["result"])
    return model.eval(), saved["result"]


def refuse_unused_weights(experiment: Experiment, weights: str | None):
    """Raise ValueError for weights that were asked for by an option, but that the experiment does not start from."""
    if weights not in (None, "random") and experiment.initial_weights == "random":
        raise ValueError(f"{experiment.name} starts from random weights and cannot use {weights}; leave out --weights")


def prerequisites(experiment: Experiment, profile: str) -> list[tuple[Experiment, int | str]]:
    """The runs that an experiment starts from, each with the epoch it needs: a pretext, or teachers.

    Raises ValueError for an epoch that such a run does not keep, for a pretext of another network, for images that it
    sees by another resize rule, and for a distilled network without teachers.
    """
    if getattr(experiment, "pretext_run", ""):
        name, seeds, epoch = experiment.pretext_run, (experiment.seed,), experiment.pretext_epoch
    elif experiment.has_teachers:
        for field in ("teacher_run", "teacher_seeds"):  # may be empty before: saved settings are completed by defaults
            if not getattr(experiment, field):
                raise ValueError(f"{experiment.name}: {field} is empty; a distilled network needs teachers")
        name, seeds, epoch = experiment.teacher_run, experiment.teacher_seeds, "best"
    else:
        return []
    own = profile == "full" and experiment.initial_weights == "imagenet"  # where nothing was chosen
    same = {"data": experiment.data, "weights": None if own else experiment.initial_weights}
    needed = [configure(find(name), profile, seed=seed, **same) for seed in seeds]
    for each in needed:
        if epoch not in ("best", *each.save_epochs):
            kept = ", ".join(map(str, ("best", *each.save_epochs)))
            raise ValueError(f"{experiment.name} needs epoch {epoch} of {name}, which keeps {kept}; see save_epochs")
        if not isinstance(epoch, str) and epoch > each.train.max_epochs:
            raise ValueError(
                f"{experiment.name} needs epoch {epoch} of {name}, which ends after {each.train.max_epochs}"
            )
        for field in ("resize",) if experiment.has_teachers else ("network", "resize"):
            own, other = getattr(experiment, field), getattr(each, field)
            if own != other:
                raise ValueError(f"{experiment.name}: {field} is {own!r}, but that of {name} is {other!r}")
    return [(each, epoch) for each in needed]


def build_model(experiment: Experiment, loaders, profile: str = "full") -> tuple[nn.Module, dict]:
    """The experiment's network with its initial weights, and the provenance of these weights.

    A classifier has the features of its pretext's run.  The head draws its weights from torch's global generator.
    Raises what `load_weights` and `supervised.models.load_initial_weights` raise.
    """
    if isinstance(experiment, JointEmbeddingExperiment):
        return build_joint_embedding(experiment, loaders)
    if getattr(experiment, "pretext_run", ""):
        [(pretext, epoch)] = prerequisites(experiment, profile)
        features, provenance = load_weights(pretext, profile, epoch, "features.", loaders.data)
        if experiment.batchnorm == "initial":
            provenance["batchnorm"] = "statistics of the initial weights"
        model = build_classifier(experiment, len(loaders.class_names), features)
    else:
        model, provenance = supervised_models.build_model(experiment, loaders)
    if getattr(experiment, "batchnorm", "") == "estimated":
        estimate_batchnorm(model.features, loaders.train)
    return model, provenance


def build_objective(experiment: Experiment, loaders, profile: str = "full") -> tuple[nn.Module, dict]:
    """What the experiment minimizes, and the provenance of its teachers, which is empty without any."""
    if isinstance(experiment, JointEmbeddingExperiment):
        return OfViews(), {}
    smoothing = experiment.train.label_smoothing
    if not experiment.has_teachers:
        return CrossEntropy(loaders.class_weights, smoothing), {}
    networks, runs = [], []
    for teacher, epoch in prerequisites(experiment, profile):
        weights, provenance = load_weights(teacher, profile, epoch, data=loaders.data)
        networks.append(classifier_of(teacher, len(loaders.class_names)))
        networks[-1].load_state_dict(weights)
        runs.append(provenance)
    objective = Distillation(networks, experiment.mixup, smoothing)
    return objective, {"of_seeds": list(experiment.teacher_seeds), "runs": runs}


def train_job(job: Job) -> tuple[nn.Module, dict]:
    """As `run`, for a job whose parts are built."""
    accelerator = build_accelerator(job.device)
    job = replace(job, loaders=job.loaders.on(accelerator.device))
    with _sole_process(job, accelerator):
        finished = _read_finished(job)
        if finished is not None:
            return finished
        state = _read_state(job)
        machine = describe_machine(accelerator.device, job.experiment.train, state)
        clock = _Clock(0.0 if state is None else state["seconds"])
        if isinstance(job.experiment, ProbeExperiment):
            history, result = _fit(job, accelerator)
        else:
            history = _train(job, accelerator, state, machine, clock)
            result = {}
        chosen = None
        if job.experiment.flip_tta and not job.experiment.select_with_flip:
            chosen = _evaluate_chosen(job, accelerator)
        if isinstance(job.experiment, JointEmbeddingExperiment):
            result |= summarize_views(history, job, accelerator)
        else:
            result |= summarize(history, job.loaders, chosen, job.experiment.train.keep)
        result |= {"name": job.files.name, "seconds": round(clock.seconds, 1), **machine, **job.identity}
        if accelerator.is_main_process:
            _write_finished(job, history, result)
        accelerator.wait_for_everyone()
    return job.model.eval(), result


class _Clock:
    """Seconds of training, counted on over interruptions."""

    def __init__(self, earlier_seconds: float):
        self.earlier, self.started = earlier_seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.started


def _read_finished(job: Job) -> tuple[nn.Module, dict] | None:
    """Model and result of a finished run of this identity, or None if it must be trained."""
    if not job.files.checkpoint.exists():
        _refuse_to_replace_result(job)
        return None
    saved = load_checkpoint(job.files.checkpoint)
    difference = _difference_of_identity(job, saved, any_precision=not job.overwrite)
    if difference is None and job.overwrite and _lacks_epochs(job, saved["result"]):
        return None
    if difference is None:
        job.model.load_state_dict(saved["model"])
        if not job.files.result.exists():
            write_result(job.files.result, saved["result"])
        job.files.state.unlink(missing_ok=True)  # of a run that was killed after its last file
        return job.model.eval(), saved["result"]
    if not job.overwrite:
        raise ValueError(f"{job.files.checkpoint} was trained with {difference}; --overwrite replaces it")
    return None


def _lacks_epochs(job: Job, result: dict) -> bool:
    """Whether weights of an epoch that the experiment saves were removed.  Training may have ended before others."""
    epochs = len(result["history"]["train_loss"])
    saved = [epoch for epoch in job.experiment.save_epochs if isinstance(epoch, str) or epoch <= epochs]
    return not all(job.files.saved(epoch).exists() for epoch in saved)


def _refuse_to_replace_result(job: Job):
    """Raise ValueError where a result without a checkpoint, as in a clone, is of something else; `overwrite` may.

    A run from a pretext or from teachers that were trained again is the same if these began with the same weights.
    """
    path = job.files.result
    if job.overwrite or not path.exists():
        return
    result = _load_result(path)
    asked, saved = (
        {
            "settings": each.get("settings", {}),
            "data": each.get("data", {}),
            "initial_weights": _origin(each.get("initial_weights", {})),
        }
        for each in (job.identity, result)
    )
    saved["settings"] = _with_defaults(saved["settings"], job.experiment)
    _take_precision(asked["settings"], saved["settings"])
    difference = first_difference(asked, saved)
    if difference is not None:
        raise ValueError(
            f"{path} was made with {difference}; SCENES_ROOT=FOLDER trains beside it, and --overwrite replaces it"
        )


def _origin(initial_weights: Mapping) -> dict:
    """What the weights behind a run began with: a name and a digest, where it is known."""
    origin = initial_weights.get("began_with", initial_weights)
    return {name: origin[name] for name in ("weights", "sha256") if name in origin}


def _read_state(job: Job) -> dict | None:
    """The state of an unfinished run of this identity, or None if there is none to continue."""
    if not job.files.state.exists():
        return None
    state = load_checkpoint(job.files.state)
    difference = _difference_of_identity(job, state)
    rules = state["machine"].get("augmentation", 1)
    if difference is None and rules != AUGMENTATION_RULES:
        difference = f"augmentation rules {rules}, but {AUGMENTATION_RULES} are those of this code"
    if difference is not None and not job.overwrite:
        raise ValueError(f"{job.files.state}, an unfinished run, has {difference}; --overwrite starts anew")
    return state if difference is None else None


def _train(job: Job, accelerator, state: dict | None, machine: dict, clock: _Clock) -> History:
    """Train to the end, saving the state after each epoch."""
    experiment, files = job.experiment, job.files
    network, batches = job.model, job.loaders
    if experiment.held_out_features_once:
        folded = fold_batchnorm(job.model.to(accelerator.device))
        network = job.model.classifier if experiment.features_once else job.model  # takes images or features
        batches = job.loaders.of_features(folded.pooled_features, accelerator.device, train=experiment.features_once)
    if getattr(experiment, "neighbors", 0):
        job.loaders.train.dataset.neighbors = _neighbors(job, accelerator)
    torch.manual_seed(experiment.seed)  # dropout draws the same, whether features were computed before or not

    logged = _tensorboard(files) if job.log else None

    def save_state(training):
        epoch = len(training["history"]["val_loss"])
        if logged is not None:
            logged.log(last_of(training["history"]), step=epoch)
        if epoch in experiment.save_epochs:
            _save_epoch(files.saved(epoch), job, training)
        contents = {"format": FORMAT, "identity": job.identity, "training": training}
        contents |= {"seconds": clock.seconds, "machine": machine}
        write_atomically(files.state, lambda temporary: torch.save(contents, temporary))

    if not experiment.select_with_flip:
        network.flip_tta = False
    return train(
        network,
        batches.train,
        batches.views_of_val or batches.val,
        experiment.train,
        test_loader=None if batches.views_of_val else batches.test,
        objective=job.objective,
        device=job.device,
        state=None if state is None else state["training"],
        save_state=save_state,
        progress=job.progress,
        title=files.name,
    )


def check_tensorboard():
    """Raise ValueError if TensorBoard, an optional extra, is not installed."""
    if not is_tensorboard_available():
        raise ValueError("--log tensorboard needs TensorBoard: pip install tensorboard")


def _tensorboard(files: Files) -> TensorBoardTracker:
    """What logs a run: a run that continues is logged on."""
    check_tensorboard()
    tracker = TensorBoardTracker(files.name, files.log.parent)
    tracker.start()
    return tracker


def last_of(history: dict) -> dict[str, float]:
    """The numbers of the last epoch, those of the splits as loss/train, loss/val: TensorBoard draws these together."""
    found = {}
    for name, column in History(**history).columns.items():
        split, _, what = name.partition("_")
        if column:
            found[f"{what}/{split}" if split in ("train", "val", "test") else name] = column[-1]
    return found


def _evaluate_chosen(job: Job, accelerator) -> dict[str, Evaluation]:
    """Val and test images at the chosen epoch with the flipped copy, by which no epoch was chosen."""
    job.model.flip_tta = True
    network = accelerator.prepare_model(job.model, evaluation_mode=True)
    loaders = {split: accelerator.prepare(getattr(job.loaders, split)) for split in ("val", "test")}
    precision = job.experiment.train.precision
    return {split: evaluate(network, loader, accelerator, precision) for split, loader in loaders.items()}


def _fit(job: Job, accelerator) -> tuple[History, dict]:
    """Fit the head of a `ProbeExperiment`.  The history has one epoch; the strength that was chosen stands beside."""
    features = _features_in_order(job.model.to(accelerator.device), job.loaders, accelerator.device)
    probe = linear_probe(features)
    set_head(job.model.classifier, probe)
    head, history = job.model.cpu().classifier.eval(), History()
    with torch.inference_mode():
        for split, (of_split, labels) in features.items():
            logits, labels = head(torch.from_numpy(of_split)), torch.from_numpy(labels)
            loss = nn.functional.cross_entropy(logits, labels).item()
            accuracy = (logits.argmax(dim=1) == labels).sum().item() / len(labels)
            history.append(**{f"{split}_loss": loss, f"{split}_accuracy": accuracy})
            if split != "train":
                history.append(**{f"{split}_predictions": logits.argmax(dim=1).tolist()})
    return history, {"C": probe.C}


def _neighbors(job: Job, accelerator) -> np.ndarray:
    """Indices (N, k) of the nearest training images by the initial features."""
    train_alone = replace(job.loaders, val=None, test=None)
    features, _ = _features_in_order(job.model.to(accelerator.device), train_alone, accelerator.device)["train"]
    return nearest_images(features, job.experiment.neighbors)


def _features_in_order(model: nn.Module, loaders, device) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pooled features (N, D) and labels (N,) of each split, none augmented."""
    batches = loaders.of_features(fold_batchnorm(model).pooled_features, device)
    splits = {"train": batches.train_in_order, "val": batches.val, "test": batches.test}
    return {
        name: (loader.dataset.features.numpy(), loader.dataset.labels.numpy())
        for name, loader in splits.items()
        if loader is not None
    }


def _write_finished(job: Job, history: History, result: dict):
    files = job.files
    checkpoint = {
        "format": FORMAT,
        "identity": job.identity,
        "class_names": list(job.loaders.class_names),
        "model": {name: tensor.cpu() for name, tensor in job.model.state_dict().items()},
        "history": asdict(history),
        "result": result,
    }
    if "last" in job.experiment.save_epochs:
        _save_epoch(files.saved("last"), job, load_checkpoint(files.state)["training"])
    write_atomically(files.checkpoint, lambda temporary: torch.save(checkpoint, temporary))
    write_result(files.result, result)
    files.state.unlink(missing_ok=True)


def _save_epoch(path: Path, job: Job, training: dict):
    model = training["model"]
    if job.experiment.features_once:  # what is trained is the head alone
        model = {**job.model.state_dict(), **{f"classifier.{name}": tensor for name, tensor in model.items()}}
    contents = {"format": FORMAT, "identity": job.identity, "model": model}
    write_atomically(path, lambda temporary: torch.save(contents, temporary))


@contextmanager
def _sole_process(job: Job, accelerator) -> Iterator[None]:
    """Within the block no other process trains this run.  Of a run's own processes the main one holds the lock.

    Raises ValueError that names the other process, unless the job waits for it, and OSError for a folder that cannot be
    written to.
    """
    files = job.files
    if not accelerator.is_main_process:
        yield
        return
    for folder in (files.models, files.results):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OSError(f"{folder} cannot be written to ({error.strerror}); nothing was trained") from error
    try:
        with locked(files.lock, timeout=-1 if job.wait else 0):
            files.lock.write_text(str(os.getpid()), encoding="utf-8")
            yield
    except Timeout as error:
        try:
            process = f"process {files.lock.read_text(encoding='utf-8')}"
        except FileNotFoundError:  # it has just ended
            process = "another process"
        raise ValueError(f"{files.name} is being trained by {process}; wait for it or stop it") from error


@contextmanager
def advice_on_memory(experiment: Experiment) -> Iterator[None]:
    """Within the block, running out of memory on the CPU or GPU becomes a MemoryError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # on a CPU torch has no error of its own for it
        if isinstance(error, RuntimeError) and not re.search(r"out of memory|can't allocate memory", str(error)):
            raise
        raise MemoryError(
            f"{experiment.name} ran out of memory with batches of {experiment.batch_size} images; halve batch_size and "
            "double gradient_accumulation_steps in its settings, which leaves the optimizer's steps as they are "
            "(but for BatchNorm's statistics, which are of a batch)"
        ) from error


# ------------------------------------------------------------------------------------------------------------- reading


def read(experiment: Experiment, profile: str = "full", seen: dict | None = None) -> dict | None:
    """The result of a finished run, or None if there is none.  Raises ValueError if its settings or images differ.

    A setting that was added to the code after the run has its default value in it.  The images are compared with those
    of the folder where it is there: results can also be read without the data.  A dict `seen` keeps what the folders
    hold, so that many reads look at each folder once.
    """
    path = files_of(experiment, profile).result
    if not path.exists():
        return None
    result = _load_result(path)
    result["settings"] = _with_defaults(result["settings"], experiment)
    asked, saved = settings_of(experiment), dict(result["settings"])
    for settings in (asked, saved):  # the result states which weights file was used; it is not part of the question
        settings["initial_weights"] = "random" if settings["initial_weights"] == "random" else "trained"
    _take_precision(asked, saved)
    difference = first_difference(asked, saved)
    if difference is not None:
        raise ValueError(f"{path} was made with {difference}; run the experiment again with --overwrite")
    data = result.get("data", {})
    refuse_other_images(path, experiment.data, data, seen)
    if "unlabelled" in data:
        refuse_other_images(path, experiment.unlabelled, data["unlabelled"], seen)
    return result


def _take_precision(asked: dict, saved: dict):
    """Let settings that ask for "auto" have what it meant on the machine of the run: it is not part of the question."""
    if asked["train"]["precision"] == "auto":
        asked["train"]["precision"] = saved["train"]["precision"]


def _load_result(path: Path) -> dict:
    """What a file of a result holds.  Raises ValueError if it is not complete and of this format."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not complete ({error}); run the experiment again with --overwrite") from error
    _check_format(path, result)
    return result


def refuse_other_images(path: Path, name: str, data: dict, seen: dict | None = None):
    """Raise ValueError if the folder of a data set is there and holds other images than those a file was made from.

    `seen` is that of `read`.
    """
    seen = {} if seen is None else seen
    folder, skipped = folder_of(name), tuple(data.get("skipped", ()))
    if (folder, skipped) not in seen:
        try:
            seen[folder, skipped] = fingerprints(folder, skipped)
        except FileNotFoundError:
            seen[folder, skipped] = None
    now = seen[folder, skipped]
    if now is not None and data.get("fingerprint") not in (None, now, now["train"]):
        raise ValueError(
            f"{path} was made from other images than {folder} holds now; "
            "train again with --overwrite, or search again in another file"
        )


def collect(
    experiments: Iterable[Experiment], profile: str, *, train_missing: bool = False, progress: bool = True
) -> dict[str, dict]:
    """The results of experiments by file stem: read where there are any, trained where `train_missing` is on.

    Quick results of other settings are replaced: they prove that everything runs, and nothing else.
    """
    results, seen, overwrite = {}, {}, profile == "quick"
    for experiment in experiments:
        try:
            result = read(experiment, profile, seen)
        except ValueError:
            if not overwrite:
                raise
            result = None
        if result is None and train_missing:
            _, result = run(experiment, profile, overwrite=overwrite, progress=progress, wait=True)
        if result is not None:
            results[files_of(experiment, profile).name] = result
    return results


def load_weights(
    experiment: Experiment,
    profile: str = "full",
    epoch: int | str = "best",
    prefix: str = "",
    data: dict | None = None,
) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights of a run at one epoch (a number, "best" or "last"), and their provenance with a digest.

    `prefix` selects keys and is stripped from them.  `data` describes the images that a network is to learn from that
    starts with these weights.  Raises FileNotFoundError if there is no such run or the epoch was not saved, and
    ValueError naming the field if the file has other settings, or if the run has seen other images or began with other
    weights.
    """
    files = files_of(experiment, profile)
    path = files.saved(epoch)
    if not path.exists():
        saved = [str(each) for each in ("best", *experiment.save_epochs) if files.saved(each).exists()]
        reason = f"saved epochs of {files.name}: {', '.join(saved)}" if saved else f"train {files.name} first"
        raise FileNotFoundError(f"there is no {path}; {reason}")
    saved = load_checkpoint(path)
    settings = _with_defaults(saved["identity"]["settings"], experiment)
    asked = settings_of(experiment)
    asked["train"]["precision"] = settings["train"]["precision"]  # an option of the command, not of the question
    difference = first_difference(asked, settings)
    if difference is not None:
        raise ValueError(f"{path} was trained with {difference}; train {experiment.name} again with --overwrite first")
    if data is not None and data["fingerprint"] != saved["identity"]["data"]["fingerprint"]:
        raise ValueError(
            f"{path} was trained on other images than those of {data['name']} now; "
            f"train {experiment.name} again with --overwrite first"
        )
    if data is not None and getattr(experiment, "unlabelled", ""):
        refuse_other_images(path, experiment.unlabelled, saved["identity"]["data"]["unlabelled"])
    _refuse_other_weights(path, experiment, saved["identity"]["initial_weights"])
    weights = {name.removeprefix(prefix): tensor for name, tensor in saved["model"].items() if name.startswith(prefix)}
    return weights, {
        "weights": f"{files.name}, epoch {epoch}",
        "sha256": digest_of_tensors(weights),
        "began_with": saved["identity"]["initial_weights"],
        "data": saved["identity"]["data"],
    }


def _refuse_other_weights(path: Path, experiment: Experiment, began_with: Mapping):
    """Raise ValueError if a run began with another file than the one of that name which its experiment names now."""
    file = expanded(experiment.initial_weights)
    if experiment.initial_weights in ("random", "imagenet") or not file.is_file():
        return
    if digest_of_file(file) != began_with.get("began_with", began_with)["sha256"]:
        raise ValueError(
            f"{path} began with another {file.name} than {file} is now; "
            f"train {experiment.name} again with --overwrite first"
        )


def load_checkpoint(path: Path) -> dict:
    """A checkpoint or state file, on the CPU.  Raises ValueError if it is not complete, plain, and of this format."""
    try:
        saved = load_plain(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be loaded as a checkpoint ({type(error).__name__})") from error
    if not isinstance(saved, dict) or "format" not in saved or "identity" not in saved:
        raise ValueError(f"{path} is not a checkpoint of this project")
    _check_format(path, saved)
    return saved


def _check_format(path: Path, saved: dict):
    if saved.get("format") != FORMAT:
        raise ValueError(f"{path} has format {saved.get('format')}; this code reads format {FORMAT}")


def settings_of(experiment: Experiment) -> dict:
    """The settings that define a training, as plain types."""
    settings = {name: value for name, value in asdict(experiment).items() if name not in NOT_IDENTITY}
    settings["data"] = name_of_images(settings["data"])
    settings["initial_weights"] = Path(settings["initial_weights"]).name
    if settings.get("unlabelled"):
        settings["unlabelled"] = name_of_images(settings["unlabelled"])
    settings["train"].pop("step")  # the result states it; it does not change what is trained
    return json.loads(json.dumps(settings))  # tuples become lists, as they do in a file


def first_difference(asked: dict, saved: dict, prefix: str = "") -> str | None:
    """The first field in which two nested dicts differ, as "field = saved, asked for asked"; None if they are equal."""
    for key in sorted(asked.keys() | saved.keys()):
        name, one, other = f"{prefix}{key}", asked.get(key), saved.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            difference = first_difference(one, other, f"{name}.")
            if difference is not None:
                return difference
        elif one != other:
            return f"{name} = {_short(other)}, but {_short(one)} is asked for"
    return None


def _short(value) -> str:
    """A value in a message: a digest or a list of images would fill the screen."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}..."


def _difference_of_identity(job: Job, saved: dict, any_precision: bool = False) -> str | None:
    """What a run differs in; with `any_precision` not in that, where "auto" is asked for."""
    settings = _with_defaults(saved["identity"]["settings"], job.experiment)
    asked = {**job.identity, "settings": settings_of(job.experiment)}
    if any_precision:
        _take_precision(asked["settings"], settings)
    return first_difference(asked, {**saved["identity"], "settings": settings})


def _with_defaults(settings: dict, experiment: Experiment) -> dict:
    """Saved settings, with the default of every setting that was added to the code after they were saved.

    A probe is fitted: how many epochs were asked for changes nothing, so they are those of the experiment.
    """
    defaults = settings_of(type(experiment)(name=experiment.name, question=""))
    completed = {**defaults, **settings, "train": {**defaults["train"], **settings.get("train", {})}}
    if isinstance(experiment, ProbeExperiment):
        completed["train"]["max_epochs"] = experiment.train.max_epochs
    return completed


# ---------------------------------------------------------------------------------------------------------- the result


def summarize(history: History, loaders, chosen: dict[str, Evaluation] | None = None, keep: str = "best") -> dict:
    """The result's numbers under both protocols, from the predictions of each epoch.

    `chosen` are evaluations of the selected epoch with flips, where epochs were selected without.
    `keep` is that of TrainSettings: with "last" the epoch is the last, and nothing is chosen.

    The epoch is chosen on val and reported on test.  The earlier protocol, that of the earlier reports, chooses and
    reports on both together, which is optimistic.  Both choose the highest accuracy; ties go to the lowest loss.
    """
    labels = {split: _labels(getattr(loaders, split)) for split in ("val", "test")}
    predictions = {"val": np.array(history.val_predictions), "test": np.array(history.test_predictions)}
    hits = sum((predictions[split] == labels[split]).sum(axis=1) for split in labels)
    losses = sum(
        np.array(loss) * len(labels[split]) for split, loss in (("val", history.val_loss), ("test", history.test_loss))
    )
    earlier_epoch = 1 + max(range(history.epochs), key=lambda epoch: (hits[epoch], -losses[epoch]))
    epoch = history.epochs if keep == "last" else history.best_epoch
    found = {split: predictions[split][epoch - 1] for split in labels}
    if chosen is not None:
        found = {split: chosen[split].predictions.numpy() for split in labels}
    hits_at_epoch = {split: found[split] == labels[split] for split in labels}
    return {
        "format": FORMAT,
        "epoch": epoch,
        "train_accuracy": history.train_accuracy[epoch - 1],
        "val_accuracy": float(hits_at_epoch["val"].mean()),
        "test_accuracy": float(hits_at_epoch["test"].mean()),
        "earlier_protocol_epoch": earlier_epoch,
        "earlier_protocol_accuracy": int(hits[earlier_epoch - 1]) / sum(len(each) for each in labels.values()),
        "class_names": list(loaders.class_names),
        "test_accuracy_by_class": {
            name: float(hits_at_epoch["test"][labels["test"] == label].mean())
            for label, name in enumerate(loaders.class_names)
        },
        "history": history.columns,
        "labels": {split: labels[split].tolist() for split in labels},
        "predictions": {split: found[split].tolist() for split in labels},
        "earlier_protocol_predictions": {split: predictions[split][earlier_epoch - 1].tolist() for split in labels},
    }


def summarize_views(history: History, job: Job, accelerator) -> dict:
    """As `summarize`, for a joint-embedding pretext: the last epoch, and classes by the vote of nearest neighbors.

    The neighbors are training images, by the features of the last epoch; nothing is chosen.
    """
    splits = _features_in_order(job.model, job.loaders, accelerator.device)
    neighbors = min(SHOWN_NEIGHBORS, len(splits["train"][1]))
    found = History(train_loss=history.train_loss[-1:], train_accuracy=[None])
    for split in ("val", "test"):
        features, labels = splits[split]
        predictions = vote_of_neighbors(*splits["train"], features, neighbors)
        accuracy = float((predictions == labels).mean())
        columns = {"loss": history.val_loss[-1], "accuracy": accuracy, "predictions": predictions.tolist()}
        found.append(**{f"{split}_{name}": value for name, value in columns.items()})
    last = {"epoch": history.epochs, "earlier_protocol_epoch": history.epochs, "history": history.columns}
    return {**summarize(found, job.loaders), **last}


def name_of(device: torch.device) -> str:
    """A GPU's own name, or the kind of device and of machine."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def describe_machine(device: torch.device, settings: TrainSettings, state: dict | None = None) -> dict:
    """What could change the numbers besides the settings; both machines of a run that continued on another one."""
    machine = {
        "device": name_of(device),
        "cpu_threads": torch.get_num_threads(),
        "precision": resolve_precision(settings.precision, device),
        "step": settings.step,
        "augmentation": AUGMENTATION_RULES,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    earlier = machine if state is None else state["machine"]
    last, torch_before = earlier["device"].rpartition(", then ")[2], earlier["versions"]["torch"]
    same_torch = torch_before == machine["versions"]["torch"]
    if (last, earlier["precision"]) == (machine["device"], machine["precision"]) and same_torch:
        return {**machine, "device": earlier["device"]}
    epoch = len(state["training"]["history"]["val_loss"])
    with_torch = "" if same_torch else f" with torch {torch_before}"
    before = f"{earlier['device']}{with_torch} in {earlier['precision']}"
    return {**machine, "device": f"{before} to epoch {epoch}, then {machine['device']}"}


def initial_weights_text(initial_weights: Mapping) -> str:
    """What a run began with: a description of the weights, or the run and epoch of a pretext.

    A run that keeps its last epoch has it in the place of the best one, where nothing was selected.
    """
    name, _, epoch = initial_weights["weights"].partition(", epoch ")
    pretext = EXPERIMENTS.get(re.sub(r"\.seed\d+$", "", name))
    keeps_last = epoch == "best" and pretext is not None and pretext.train.keep == "last"
    return f"{name}, last epoch" if keeps_last else initial_weights["weights"]


def write_result(path: Path, result: dict):
    """Write a result as JSON with one line per key."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in result.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _labels(loader) -> np.ndarray:
    return torch.cat([labels for _, labels in loader]).numpy()


# ------------------------------------------------------------------------------------------------------------ commands


def run_command(command: Callable[[], int | None]) -> int:
    """As `data.files.run_command`, for commands that run networks: sets up the process first."""
    keep_freed_memory()
    return plain_files.run_command(command)


def add_data_options(parser: argparse.ArgumentParser):
    """The options that say which runs of experiments a command is about: --profile, --data, --weights."""
    parser.add_argument("--profile", choices=PROFILES, default="full", help="quick: small and short, to try the code")
    parser.add_argument("--data", help=DATA_HELP)
    parser.add_argument("--weights", help="initial weights: imagenet, random, or the file of a state dict")


def add_common_options(parser: argparse.ArgumentParser):
    """The options of every command that trains: those of data and weights, --skip-bad-images and --device."""
    add_data_options(parser)
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="mps is an Apple GPU")


def experiments_of(names: Iterable[str], options: argparse.Namespace) -> dict[str, Experiment]:
    """Experiments by name, as the options of `add_data_options` say.  Raises what `find` and `locate` raise."""
    if options.data is not None:
        locate(options.data)  # a mistyped folder would look like one without results
    return {name: configure(find(name), options.profile, data=options.data, weights=options.weights) for name in names}
