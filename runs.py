"""One experiment from its settings to its files: build it, train or resume it, write what it leaves.

run_files.py names these files and reads them.  They are written atomically.
"""

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
from data.files import locked, make_folder, write_atomically, write_text
from data.on_device import DeviceDataset
from experiments import check_run, prerequisites, with_precision
from helper_functions import CrossEntropy, Evaluation, History, TrainSettings, evaluate, train
from loop.batchnorm import fold_batchnorm
from loop.devices import build_accelerator, keep_freed_memory, resolve_precision
from loop.steps import resolve_step
from run_files import (
    FORMAT,
    Files,
    difference_of,
    files_of,
    load_checkpoint,
    load_result,
    load_weights,
    origin_of,
    platform_of,
    read,
    settings_of,
)
from self_supervised.dataloader import build_loaders
from self_supervised.joint_embedding import SHOWN_NEIGHBORS, OfViews
from self_supervised.models import build_classifier, build_joint_embedding
from self_supervised.probes import linear_probe, nearest_images, set_head, vote_of_neighbors
from self_supervised.settings import JointEmbeddingExperiment, ProbeExperiment
from supervised import models as supervised_models
from supervised.models import Distillation, classifier_of, estimate_batchnorm
from supervised.settings import Experiment

ADVICE = "SCENES_ROOT=FOLDER trains beside it, and --overwrite replaces it"  # it: a file of something else
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "pillow")


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
    check_run(experiment, profile)
    experiment = with_precision(experiment, precision)
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


def collect(
    experiments: Iterable[Experiment],
    profile: str,
    *,
    train_missing: bool = False,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> dict[str, dict]:
    """The results of experiments by file stem: read where there are any, trained where `train_missing` is on.

    `skip_bad_images` is that of `run`.  Quick results of other settings are replaced: they prove that everything runs,
    and nothing else.
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
            options = {"overwrite": overwrite, "skip_bad_images": skip_bad_images, "progress": progress}
            _, result = run(experiment, profile, wait=True, **options)
        if result is not None:
            results[files_of(experiment, profile).name] = result
    return results


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
    saved = _load(path, overwrite=False)
    asked = {"settings": settings_of(experiment), "data": loaders.data}
    difference = difference_of(experiment, asked, {name: saved["identity"][name] for name in asked})
    if difference is not None:
        raise ValueError(f"{path} was trained with {difference}; {ADVICE}")
    model = classifier_of(experiment, len(loaders.class_names))
    model.load_state_dict(saved["model"])
    if not files.result.exists():
        write_result(files.result, saved["result"])
    return model.eval(), saved["result"]


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


def trained_part(experiment: Experiment, model: nn.Module) -> nn.Module:
    """What takes the batches of the training: the head alone where features are computed once."""
    return model.classifier if experiment.features_once else model


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
        trained = trained_part(job.experiment, job.model)
        step = resolve_step(job.experiment.train, trained, job.objective, accelerator)
        machine = describe_machine(accelerator.device, job.experiment.train, step, state)
        _refuse_to_replace_result(job, machine)
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
            result |= _summarize_views(history, job, accelerator)
        else:
            result |= summarize(history, job.loaders, chosen, job.experiment.train.keep)
        result |= {"name": job.files.name, "seconds": round(clock.seconds, 1), **machine, **job.identity}
        if accelerator.is_main_process:
            _write_finished(job, history, result)
        accelerator.wait_for_everyone()
    return job.model.eval(), result


def _load(path: Path, overwrite: bool) -> dict | None:
    """What a checkpoint or state holds; None where there is none, or a damaged one that `overwrite` may replace."""
    if not path.exists():
        return None
    try:
        return load_checkpoint(path)
    except ValueError as error:
        if overwrite:
            return None
        raise ValueError(f"{error}; --overwrite starts anew") from error


class _Clock:
    """Seconds of training, counted on over interruptions."""

    def __init__(self, earlier_seconds: float):
        self.earlier, self.started = earlier_seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.started


def _read_finished(job: Job) -> tuple[nn.Module, dict] | None:
    """Model and result of a finished run of this identity, or None if it must be trained."""
    saved = _load(job.files.checkpoint, job.overwrite)
    if saved is None:
        return None
    difference = difference_of(job.experiment, job.identity, saved["identity"], any_precision=not job.overwrite)
    if difference is None and job.overwrite and _lacks_epochs(job, saved["result"]):
        return None
    if difference is None:
        job.model.load_state_dict(saved["model"])
        if not job.files.result.exists():
            write_result(job.files.result, saved["result"])
        job.files.state.unlink(missing_ok=True)  # of a run that was killed after its last file
        return job.model.eval(), saved["result"]
    if not job.overwrite:
        raise ValueError(f"{job.files.checkpoint} was trained with {difference}; {ADVICE}")
    return None


def _lacks_epochs(job: Job, result: dict) -> bool:
    """Whether weights of an epoch that the experiment saves were removed.  Training may have ended before others."""
    epochs = len(result["history"]["train_loss"])
    saved = [epoch for epoch in job.experiment.save_epochs if isinstance(epoch, str) or epoch <= epochs]
    return not all(job.files.saved(epoch).exists() for epoch in saved)


def _refuse_to_replace_result(job: Job, machine: dict):
    """Raise ValueError where a result without a checkpoint, as in a clone, is of something else; `overwrite` may.

    So is one of another platform or precision than those of this run, `machine`.  A run from a pretext or from teachers
    that were trained again is the same if these began with the same weights.
    """
    path = job.files.result
    if job.overwrite or not path.exists():
        return
    result = load_result(path)
    asked, saved = (
        {
            "settings": each.get("settings", {}),
            "data": each.get("data", {}),
            "initial_weights": _origin(each.get("initial_weights", {})),
            "platform": platform_of(each),
            "precision": each["precision"],
        }
        for each in (job.identity | machine, result)
    )
    difference = difference_of(job.experiment, asked, saved)
    if difference is not None:
        raise ValueError(f"{path} was made with {difference}; {ADVICE}")


def _origin(initial_weights: Mapping) -> dict:
    """What tells the weights that a run or its pretext began with: a name and a digest, where it is known."""
    return {name: value for name, value in origin_of(initial_weights).items() if name in ("weights", "sha256")}


def _read_state(job: Job) -> dict | None:
    """The state of an unfinished run of this identity, or None if there is none to continue."""
    state = _load(job.files.state, job.overwrite)
    if state is None:
        return None
    difference = difference_of(job.experiment, job.identity, state["identity"], any_precision=False)
    rules = state["machine"].get("augmentation", 1)
    if difference is None and rules != AUGMENTATION_RULES:
        difference = f"augmentation rules {rules}, but {AUGMENTATION_RULES} are those of this code"
    if difference is not None and not job.overwrite:
        raise ValueError(f"{job.files.state}, an unfinished run, has {difference}; --overwrite starts anew")
    return state if difference is None else None


def _train(job: Job, accelerator, state: dict | None, machine: dict, clock: _Clock) -> History:
    """Train to the end, saving the state after each epoch."""
    experiment, files = job.experiment, job.files
    network, batches = trained_part(experiment, job.model), job.loaders
    if not experiment.select_with_flip:
        job.model.flip_tta = False  # before features are computed
    if experiment.held_out_features_once:
        folded = fold_batchnorm(job.model.to(accelerator.device))
        batches = job.loaders.of_features(folded.pooled_features, accelerator.device, train=experiment.features_once)
    if getattr(experiment, "neighbors", 0):
        job.loaders.train.dataset.neighbors = _neighbors(job, accelerator)
    torch.manual_seed(experiment.seed)  # dropout draws the same, whether features were computed before or not

    logged = _tensorboard(files) if job.log else None

    def save_state(training):
        epoch = len(training["history"]["val_loss"])
        if logged is not None:
            logged.log(_last_of(training["history"]), step=epoch)
        if epoch in experiment.save_epochs:
            _save_epoch(files.saved(epoch), job, training)
        contents = {"format": FORMAT, "identity": job.identity, "training": training}
        contents |= {"seconds": clock.seconds, "machine": machine}
        write_atomically(files.state, lambda temporary: torch.save(contents, temporary))

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


def _last_of(history: dict) -> dict[str, float]:
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
        make_folder(folder)
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


# ----------------------------------------------------------------------------------------------------------- the result


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


def _summarize_views(history: History, job: Job, accelerator) -> dict:
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


def _name_of(device: torch.device) -> str:
    """A GPU's own name, or the kind of device and of machine."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def describe_machine(device: torch.device, settings: TrainSettings, step: str, state: dict | None = None) -> dict:
    """What could change the numbers besides the settings; both machines of a run that continued on another one.

    `step` is what `resolve_step` gives.
    """
    machine = {
        "device": _name_of(device),
        "cpu_threads": torch.get_num_threads(),
        "precision": resolve_precision(settings.precision, device),
        "step": step,
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


def write_result(path: Path, result: dict):
    """Write a result as JSON with one line per key."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in result.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _labels(loader) -> np.ndarray:
    """The labels of a loader's items, in order; only a data set that is none of ours must be read for them."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, DeviceDataset):
        return dataset.labels
    return torch.cat([labels for _, labels in loader]).numpy()


# ------------------------------------------------------------------------------------------------------------ commands


def run_command(command: Callable[[], int | None]) -> int:
    """As `data.files.run_command`, for commands that run networks: sets up the process first."""
    keep_freed_memory()
    return plain_files.run_command(command)
