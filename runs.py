"""One experiment from its settings to its files: run it, resume it, read back what it left.

    models/<profile>/<name>.pt         checkpoint of a finished run: weights at the best epoch, settings, history
    models/<profile>/<name>.epoch3.pt  weights after an epoch that the row asks to keep; <name>.last.pt after the last
    models/<profile>/<name>.state.pt   what an unfinished run needs to go on; removed when it has finished
    results/<profile>/<name>.json      settings, metrics, history, predictions: what tables and figures are made of

A data set that is not the row's own gets a folder of its own below the profile's, so results are never mixed.  Every
file is written under a temporary name and renamed.  Checkpoints hold plain types only and are opened with
weights_only=True: a file from a stranger cannot run code.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from helper_functions import History, build_accelerator, fold_batchnorm, load_plain, resolve_precision, train

ROOT = Path(__file__).resolve().parent
FORMAT = 1
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "pillow")
PROSE = ("question", "earlier_accuracy")  # fields of a row that do not change what is trained


@dataclass(frozen=True)
class Files:
    """Where one run's files lie.  Raises ValueError for a name that is not a plain file stem."""

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

    def kept(self, epoch: int | str) -> Path:
        """Of one epoch: a number, "last", or "best", which is the finished run's."""
        if epoch == "best":
            return self.checkpoint
        return self.models / f"{self.name}.{epoch if isinstance(epoch, str) else f'epoch{epoch}'}.pt"

    @property
    def result(self) -> Path:
        """What tables and figures are made of."""
        return self.results / f"{self.name}.json"


def files_of(experiment, profile: str, own_data: str = "15scene", root: Path = ROOT) -> Files:
    """The files of an experiment: further seeds are `<name>.seed1`, another data set than `own_data` has a folder."""
    below = Path(profile) if experiment.data == own_data else Path(profile) / Path(experiment.data).resolve().name
    name = experiment.name if experiment.seed == 0 else f"{experiment.name}.seed{experiment.seed}"
    return Files(root / "models" / below, root / "results" / below, name)


def run_experiment(
    experiment,
    build_model: Callable,
    build_loaders: Callable,
    files: Files,
    *,
    build_teacher: Callable | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[nn.Module, dict]:
    """Train an experiment to its end and write its files, or read back what an earlier call left.

    `build_loaders(experiment)` gives the loaders and `build_model(experiment, loaders)` the network with the source
    of its initial weights; `build_teacher(experiment, loaders)` the teacher that `helper_functions.train` takes with
    the words for it, or (None, {}) for a row that learns from labels.  An interrupted run goes on after its last whole
    epoch.  Returns the model at its best epoch, in eval mode, and the result.  Raises ValueError if the files are those
    of other settings, data, teachers or initial weights, naming the field (with `overwrite` they are replaced instead),
    or if another process is at this run; OSError if they cannot be written, before anything is trained; MemoryError if
    a batch is too large.
    """
    if experiment.has_teachers and build_teacher is None:
        raise ValueError(f"{experiment.name} learns from teachers, and none are given; run it by supervised.train")
    accelerator = build_accelerator(device)
    loaders = build_loaders(experiment)
    torch.manual_seed(experiment.seed)  # before the head draws its weights
    model, initial_weights = build_model(experiment, loaders)
    with _alone(files, accelerator), _advice_on_memory(experiment):
        teacher, words = (None, {}) if build_teacher is None else build_teacher(experiment, loaders)
        identity = {
            "settings": settings_of(experiment),
            "data": loaders.data,
            "initial_weights": initial_weights,
            **({"teachers": words} if words else {}),
        }
        return _run(experiment, model, teacher, loaders, identity, files, accelerator, device, overwrite, progress)


def _run(experiment, model, teacher, loaders, identity, files, accelerator, device, overwrite, progress):
    if files.checkpoint.exists():
        saved = load_checkpoint(files.checkpoint)
        difference = _difference_of_identity(identity, saved["identity"], experiment)
        if difference is None:
            model.load_state_dict(saved["model"])
            if not files.result.exists():
                _write_result(files.result, saved["result"])
            files.state.unlink(missing_ok=True)  # of a run that was killed after its last file
            return model.eval(), saved["result"]
        if not overwrite:
            raise ValueError(
                f"{files.checkpoint} was trained with {difference}; remove it, or replace it with --overwrite"
            )

    state = None
    if files.state.exists():
        state = load_checkpoint(files.state)
        difference = _difference_of_identity(identity, state["identity"], experiment)
        if difference is not None and not overwrite:
            raise ValueError(f"{files.state}, an unfinished run, has {difference}; remove it to begin anew")
        state = state if difference is None else None

    machine = describe_machine(accelerator.device, experiment.train.precision, state)
    earlier_seconds = 0.0 if state is None else state["seconds"]
    started = time.perf_counter()
    network, batches = model, loaders
    if experiment.freeze_features:  # the images of val and test have the same features in every epoch
        folded = fold_batchnorm(model.to(accelerator.device))
        network = model.classifier if experiment.features_once else model  # which takes images and features
        batches = loaders.of_features(folded.pooled_features, accelerator.device, train=experiment.features_once)
    torch.manual_seed(experiment.seed)  # dropout then draws the same, whether features were computed before or not

    def save_state(training):
        epoch = len(training["history"]["val_loss"])
        if epoch in experiment.save_epochs:
            _keep_epoch(files.kept(epoch), identity, training)
        seconds = earlier_seconds + time.perf_counter() - started
        contents = {"format": FORMAT, "identity": identity, "training": training}
        contents |= {"seconds": seconds, "machine": machine}
        write_atomically(files.state, lambda temporary: torch.save(contents, temporary))

    history = train(
        network,
        batches.train,
        batches.val,
        experiment.train,
        test_loader=batches.test,
        class_weights=loaders.class_weights,
        teacher=teacher,
        device=device,
        state=None if state is None else state["training"],
        save_state=save_state,
        progress=progress,
        title=files.name,
    )
    result = summarise(history, loaders) | {
        "name": files.name,
        "seconds": round(earlier_seconds + time.perf_counter() - started, 1),
        **machine,
        **identity,
    }
    if accelerator.is_main_process:
        checkpoint = {
            "format": FORMAT,
            "identity": identity,
            "class_names": list(loaders.class_names),
            "model": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
            "history": asdict(history),
            "result": result,
        }
        if "last" in experiment.save_epochs:
            _keep_epoch(files.kept("last"), identity, load_checkpoint(files.state)["training"])
        write_atomically(files.checkpoint, lambda temporary: torch.save(checkpoint, temporary))
        _write_result(files.result, result)
        files.state.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return model.eval(), result


@contextmanager
def _alone(files: Files, accelerator) -> Iterator[None]:
    """Within the block no other process trains this run.  Of a run's own processes the main one holds the lock.

    Raises ValueError that names the process that is at it, and OSError for a folder that cannot be written to.
    """
    if not accelerator.is_main_process:
        yield
        return
    for folder in (files.models, files.results):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OSError(f"{folder} cannot be written to ({error.strerror}); training would be for nothing") from error
    lock = FileLock(files.models / f".{files.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        process = Path(lock.lock_file).read_text()
        raise ValueError(f"{files.name} is being trained by process {process}; wait for it or stop it") from error
    try:
        Path(lock.lock_file).write_text(str(os.getpid()))
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def _advice_on_memory(experiment) -> Iterator[None]:
    """Within the block a lack of memory, of the machine or the GPU, becomes a MemoryError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # on a CPU torch raises no error of its own for it
        if isinstance(error, RuntimeError) and not re.search(r"out of memory|can't allocate memory", str(error)):
            raise
        raise MemoryError(
            f"{experiment.name} ran out of memory with batches of {experiment.batch_size} images; halve batch_size in "
            "its row and double gradient_accumulation_steps, which leaves the optimizer's steps as they are"
        ) from error


def load_features(experiment, files: Files, epoch: int | str) -> tuple[dict[str, torch.Tensor], dict]:
    """As `load_weights`, exactly `features.*` and without that prefix: the head is another task's."""
    return load_weights(experiment, files, epoch, "features.")


def load_weights(experiment, files: Files, epoch: int | str, prefix: str = "") -> tuple[dict[str, torch.Tensor], dict]:
    """The weights that a run had at one epoch (a number, "best" or "last"), and the words for them, with a digest.

    With a prefix those whose names begin with it, without it.

    Raises FileNotFoundError if there is no such run or the epoch was not kept, ValueError if the file is that of other
    settings, naming the field.
    """
    path = files.kept(epoch)
    if not path.exists():
        known = [each for each in ("best", *experiment.save_epochs) if files.kept(each).exists()]
        raise FileNotFoundError(
            f"there is no {path}: "
            + (
                f"of the run {files.name} the epochs {', '.join(map(str, known))} are kept, and {epoch} is asked for"
                if known
                else f"the run {files.name} has not been trained here; train it first"
            )
        )
    saved = load_checkpoint(path)
    settings = _with_defaults(saved["identity"]["settings"], experiment)
    asked = settings_of(experiment)
    asked["train"]["precision"] = settings["train"]["precision"]  # the command line's is that of the run that is begun
    difference = first_difference(asked, settings)
    if difference is not None:
        raise ValueError(f"{path} was trained with {difference}; remove it, or replace the run with --overwrite")
    weights = {name.removeprefix(prefix): tensor for name, tensor in saved["model"].items() if name.startswith(prefix)}
    return weights, {
        "weights": f"{files.name}, epoch {epoch}",
        "sha256": digest_of(weights),
        "began_with": saved["identity"]["initial_weights"],
        "data": saved["identity"]["data"],
    }


def digest_of(state_dict: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes of weights on the CPU, in their order."""
    digest = hashlib.sha256()
    for name, tensor in state_dict.items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def collect_results(
    experiments,
    build_model: Callable,
    build_loaders: Callable,
    profile: str,
    *,
    build_teacher: Callable | None = None,
    train_missing: bool = True,
    root: Path = ROOT,
    progress: bool = True,
) -> dict[str, dict]:
    """The results of experiments by name: read where there is one, trained where there is none.

    With `train_missing` off, those that have not been run are left out.  Quick results of other settings are replaced:
    they prove that everything runs and are worth nothing else.
    """
    results = {}
    for experiment in experiments:
        files, overwrite = files_of(experiment, profile, root=root), profile == "quick"
        try:
            result = read_result(experiment, files)
        except ValueError:
            if not overwrite:
                raise
            result = None
        if result is None and train_missing:
            _, result = run_experiment(
                experiment,
                build_model,
                build_loaders,
                files,
                build_teacher=build_teacher,
                overwrite=overwrite,
                progress=progress,
            )
        if result is not None:
            results[files.name] = result
    return results


def run_command(command: Callable[[], int | None]) -> int:
    """Run what a script is asked for and return its exit code; a user's mistake is one sentence, and no traceback.

    0, or what the command returns: done.  2: a mistake, a full disk or too little memory.  130: Ctrl-C, after which the
    same command goes on from the last whole epoch, trial or image.
    """
    try:
        return command() or 0
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what was finished", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def build_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The command line that the training scripts share."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments, see --list")
    parser.add_argument("--from-study", metavar="FILE", help="what a hyperparameter search found best, on all its data")
    parser.add_argument("--list", action="store_true", help="show the experiments and end")
    parser.add_argument("--profile", choices=("quick", "full"), default="quick", help="full is the study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run a seed")
    parser.add_argument("--data", help="a prepared data set's name or a folder <split>/<class>/<image>")
    parser.add_argument("--weights", help="imagenet (full), random (quick), or the file of a state dict")
    parser.add_argument("--epochs", type=int, help="at most so many")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: the row's")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument("--overwrite", action="store_true", help="replace files of other settings")
    return parser


def with_options(experiment, seed: int, options: argparse.Namespace):
    """The row, with what the command line changes in how it is trained."""
    max_epochs = options.epochs if options.epochs is not None else experiment.train.max_epochs
    precision = options.precision if options.precision != "auto" else experiment.train.precision
    training = replace(experiment.train, precision=precision, max_epochs=max_epochs)
    return replace(experiment, seed=seed, train=training)


def report(files: Files, result: dict) -> str:
    """What a finished run has to say, in one line."""
    return (
        f"{files.name}: test accuracy {result['test_accuracy']:.4f} (epoch {result['epoch']}, chosen on val), "
        f"course accuracy {result['earlier_protocol_accuracy']:.4f} (epoch {result['earlier_protocol_epoch']}), "
        f"initial weights: {result['initial_weights']['weights']}; {files.result}"
    )


def read_result(experiment, files: Files) -> dict | None:
    """The result of a finished run, or None if there is none; raises ValueError if its settings are others.

    A setting that was added to the code after the run has its default in it.
    """
    if not files.result.exists():
        return None
    try:
        result = json.loads(files.result.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{files.result} is not whole ({error}); remove it and run the experiment again") from error
    if result.get("format") != FORMAT:
        raise ValueError(f"{files.result} has format {result.get('format')}; this code reads format {FORMAT}")
    result["settings"] = _with_defaults(result["settings"], experiment)
    asked, saved = settings_of(experiment), dict(result["settings"])
    for settings in (asked, saved):  # which file of trained weights it was is told by the result, not asked of it
        settings["initial_weights"] = "random" if settings["initial_weights"] == "random" else "trained"
    if asked["train"]["precision"] == "auto":  # nor is what "auto" was on the machine of the run
        asked["train"]["precision"] = saved["train"]["precision"]
    difference = first_difference(asked, saved)
    if difference is not None:
        raise ValueError(f"{files.result} was made with {difference}; remove it or run the experiment again")
    return result


def load_checkpoint(path: Path) -> dict:
    """What a checkpoint or state file holds, on the CPU.  Raises ValueError if it is not whole, not plain, or newer."""
    try:
        saved = load_plain(path)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be opened as a checkpoint ({type(error).__name__}: truncated, or not ours); remove it"
        ) from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or "identity" not in saved:
        raise ValueError(f"{path} is not a checkpoint of format {FORMAT}; remove it")
    return saved


def settings_of(experiment) -> dict:
    """The experiment as plain types, without its prose."""
    settings = {name: value for name, value in asdict(experiment).items() if name not in PROSE}
    settings["data"] = Path(settings["data"]).resolve().name  # where a folder or file lies differs between machines
    settings["initial_weights"] = Path(settings["initial_weights"]).name
    return json.loads(json.dumps(settings))  # tuples become lists, as they do in a file


def summarise(history: History, loaders) -> dict:
    """The result's numbers in both protocols, from the predictions of each epoch.

    The epoch is chosen on the val images and reported on the test images.  `earlier_protocol_accuracy` is chosen and reported
    on all of them, as the earlier reports did.  Both choose the highest accuracy, of equal ones the lowest loss.
    """
    labels = {split: _labels(getattr(loaders, split)) for split in ("val", "test")}
    predictions = {
        "val": np.array(history.val_predictions),
        "test": np.array(history.test_predictions),
    }
    hits = sum((predictions[split] == labels[split]).sum(axis=1) for split in labels)
    losses = sum(
        np.array(loss) * len(labels[split]) for split, loss in (("val", history.val_loss), ("test", history.test_loss))
    )
    earlier_protocol_epoch = 1 + max(range(history.epochs), key=lambda epoch: (hits[epoch], -losses[epoch]))
    epoch = history.best_epoch
    test_hits = predictions["test"][epoch - 1] == labels["test"]
    return {
        "format": FORMAT,
        "epoch": epoch,
        "train_accuracy": history.train_accuracy[epoch - 1],
        "val_accuracy": history.val_accuracy[epoch - 1],
        "test_accuracy": history.test_accuracy[epoch - 1],
        "earlier_protocol_epoch": earlier_protocol_epoch,
        "earlier_protocol_accuracy": int(hits[earlier_protocol_epoch - 1]) / sum(len(each) for each in labels.values()),
        "class_names": list(loaders.class_names),
        "test_accuracy_by_class": {
            name: float(test_hits[labels["test"] == label].mean()) for label, name in enumerate(loaders.class_names)
        },
        "history": history.columns,
        "labels": {split: labels[split].tolist() for split in labels},
        "predictions": {split: predictions[split][epoch - 1].tolist() for split in labels},
        "earlier_protocol_predictions": {split: predictions[split][earlier_protocol_epoch - 1].tolist() for split in labels},
    }


def describe_machine(device: torch.device, precision: str, state: dict | None = None) -> dict:
    """What could change the numbers besides the settings; of a run that goes on from a state of elsewhere, both."""
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "cpu_threads": torch.get_num_threads(),
        "precision": resolve_precision(precision, device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    earlier = machine if state is None else state.get("machine", machine)  # states of older code do not say
    last = earlier["device"].rpartition(", then ")[2]
    if (last, earlier["precision"]) == (machine["device"], machine["precision"]):
        return {**machine, "device": earlier["device"]}
    epoch = len(state["training"]["history"]["val_loss"])
    before = f"{earlier['device']} in {earlier['precision']}"
    return {**machine, "device": f"{before} to epoch {epoch}, then {machine['device']}"}


def _keep_epoch(path: Path, identity: dict, training: dict):
    contents = {"format": FORMAT, "identity": identity, "model": training["model"]}
    write_atomically(path, lambda temporary: torch.save(contents, temporary))


def _labels(loader) -> np.ndarray:
    return torch.cat([labels for _, labels in loader]).numpy()


def _difference_of_identity(asked: dict, saved: dict, experiment) -> str | None:
    return first_difference(asked, {**saved, "settings": _with_defaults(saved["settings"], experiment)})


def _with_defaults(settings: dict, experiment) -> dict:
    """Saved settings, with the default for every setting that was added to the code after they were saved."""
    defaults = settings_of(type(experiment)(name=experiment.name, question=""))
    return {**defaults, **settings, "train": {**defaults["train"], **settings["train"]}}


def first_difference(asked: dict, saved: dict, prefix: str = "") -> str | None:
    """The first field in which two nested dicts differ, as "field = saved, asked for asked"; None if they are equal."""
    for key in sorted(asked.keys() | saved.keys()):
        name, one, other = f"{prefix}{key}", asked.get(key), saved.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            difference = first_difference(one, other, f"{name}.")
            if difference is not None:
                return difference
        elif one != other:
            return f"{name} = {other!r}, but {one!r} is asked for"
    return None


def _write_result(path: Path, result: dict):
    """JSON with one line a key."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in result.items()]
    write_atomically(path, lambda temporary: temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n"))


def write_atomically(path: Path, write: Callable[[Path], object]):
    """Write under a temporary name and rename: the file is there whole, or as it was before.

    Raises OSError naming the file if it cannot be written, as when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where a disk is full
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({error}); see whether the disk is full or read-only") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
