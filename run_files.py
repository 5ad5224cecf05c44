"""The files of a run: their names, what they hold, and reading them back only if they are what was asked for.

    models/<profile>/<name>.pt         checkpoint of a finished run: weights at the epoch kept, settings, history
    models/<profile>/<name>.epoch3.pt  weights after an epoch of save_epochs; <name>.last.pt after the last
    models/<profile>/<name>.state.pt   what an unfinished run needs to continue; removed when it has finished
    results/<profile>/<name>.json      settings, metrics, history, predictions: the source of every table and figure

Results on another data set than 15-Scene have a folder of their own below the profile's, so they are never mixed.
Further seeds are <name>.seed1 and so on.  Checkpoints hold plain types only and are loaded with weights_only=True, so a
file from a stranger cannot run code.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from data.files import digest_of_file, digest_of_tensors, expanded, load_plain, root_folder
from data.layouts import fingerprints, name_of_images
from data.prepare import folder_of
from self_supervised.settings import ProbeExperiment
from supervised.settings import Experiment

STUDY_DATA = "15scene"  # the data set whose results stand directly in the profile's folder
FORMAT = 2  # of checkpoints and results
NOT_IDENTITY = ("question", "compared_with", "family", "earlier_accuracy")  # fields that do not change what is trained


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
    name = experiment.name if experiment.seed == 0 else f"{experiment.name}.seed{experiment.seed}"
    folders = (folder_of_data(root_folder() / kind / profile, experiment.data) for kind in ("models", "results"))
    return Files(*folders, name)


def further_seeds(experiment: Experiment, profile: str) -> list[int]:
    """The seeds other than 0 of which an experiment has results, in order."""
    first = files_of(replace(experiment, seed=0), profile)
    names = [path.name for path in first.results.glob(f"{first.name}.seed*.json")]
    numbers = [re.fullmatch(re.escape(first.name) + r"\.seed(\d+)\.json", name) for name in names]
    return sorted(int(number[1]) for number in numbers if number)


def folder_of_data(folder: Path, data: str) -> Path:
    """Where the files of runs on a data set, and what is computed from them, lie below the folder of a profile."""
    return folder if data == STUDY_DATA else folder / name_of_images(data)


def read(experiment: Experiment, profile: str = "full", seen: dict | None = None) -> dict | None:
    """The result of a finished run, or None if there is none.  Raises ValueError if its settings or images differ.

    A setting that was added to the code after the run has its default value in it.  The images are compared with those
    of the folder where it is there: results can also be read without the data.  A dict `seen` keeps what the folders
    hold, so that many reads look at each folder once.
    """
    path = files_of(experiment, profile).result
    if not path.exists():
        return None
    result = load_result(path)
    result["settings"] = with_defaults(result["settings"], experiment)
    asked, saved = settings_of(experiment), dict(result["settings"])
    for settings in (asked, saved):  # the result states which weights file was used; it is not part of the question
        settings["initial_weights"] = "random" if settings["initial_weights"] == "random" else "trained"
    difference = difference_of(experiment, {"settings": asked}, {"settings": saved})
    if difference is not None:
        raise ValueError(f"{path} was made with {difference}; run the experiment again with --overwrite")
    data = result.get("data", {})
    refuse_other_images(path, experiment.data, data, seen)
    if "unlabelled" in data:
        refuse_other_images(path, experiment.unlabelled, data["unlabelled"], seen)
    return result


def load_weights(
    experiment: Experiment,
    profile: str = "full",
    epoch: int | str = "best",
    prefix: str = "",
    data: dict | None = None,
) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights of a run at one epoch (a number, "best" or "last"), and their provenance with a digest.

    `prefix` selects keys and is stripped from them.  `data` describes the images that the next network learns from; the
    run must have been trained on the same ones.
    Raises FileNotFoundError if there is no such run or the epoch was not saved, and ValueError naming the field if the
    file has other settings, or if the run has seen other images or began with other weights.
    """
    files = files_of(experiment, profile)
    path = files.saved(epoch)
    if not path.exists():
        saved = [str(each) for each in ("best", *experiment.save_epochs) if files.saved(each).exists()]
        reason = f"saved epochs of {files.name}: {', '.join(saved)}" if saved else f"train {files.name} first"
        raise FileNotFoundError(f"there is no {path}; {reason}")
    try:
        saved = load_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"{error}; train {experiment.name} again with --overwrite first") from error
    settings = with_defaults(saved["identity"]["settings"], experiment)
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


def settings_of(experiment: Experiment) -> dict:
    """The settings that define a training, as plain types."""
    settings = {name: value for name, value in asdict(experiment).items() if name not in NOT_IDENTITY}
    settings["data"] = name_of_images(settings["data"])
    settings["initial_weights"] = Path(settings["initial_weights"]).name
    if settings.get("unlabelled"):
        settings["unlabelled"] = name_of_images(settings["unlabelled"])
    settings["train"].pop("step")  # the result states it; it does not change what is trained
    return json.loads(json.dumps(settings))  # tuples become lists, as they do in a file


def difference_of(experiment: Experiment, asked: dict, saved: dict, any_precision: bool = True) -> str | None:
    """As `first_difference`, for two dicts that have the settings of a run of this experiment under "settings".

    A setting that was added to the code after the run was saved has its default value.  With `any_precision` a
    precision "auto" that is asked for agrees with that of the saved run.
    """
    settings = with_defaults(saved["settings"], experiment)
    train = dict(asked["settings"]["train"])
    if any_precision and train["precision"] == "auto":
        train["precision"] = settings["train"]["precision"]
    asked = {**asked, "settings": {**asked["settings"], "train": train}}
    return first_difference(asked, {**saved, "settings": settings})


def first_difference(asked: dict, saved: dict, prefix: str = "") -> str | None:
    """The first field in which two nested dicts differ, as "field = saved, asked for asked"; None if they are equal.

    Of fingerprints, which say nothing to a reader, it is told of which images they are.
    """
    for key in sorted(asked.keys() | saved.keys()):
        name, one, other = f"{prefix}{key}", asked.get(key), saved.get(key)
        if key == "fingerprint" and one != other:
            return (
                f"other {_of_splits(one, other)}images than those of {asked.get('name')}, which have changed or are in "
                "another folder of that name"
            )
        if isinstance(one, dict) and isinstance(other, dict):
            difference = first_difference(one, other, f"{name}.")
            if difference is not None:
                return difference
        elif one != other:
            return f"{name} = {_short(other)}, but {_short(one)} is asked for"
    return None


def load_result(path: Path) -> dict:
    """What a file of a result holds.  Raises ValueError if it is not complete and of this format."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not complete ({error}); run the experiment again with --overwrite") from error
    _check_format(path, result)
    return result


def with_defaults(settings: dict, experiment: Experiment) -> dict:
    """Saved settings, with the default of every setting that was added to the code after they were saved.

    A probe is fitted: how many epochs were asked for changes nothing, so they are those of the experiment.
    """
    defaults = settings_of(type(experiment)(name=experiment.name, question=""))
    completed = {**defaults, **settings, "train": {**defaults["train"], **settings.get("train", {})}}
    if isinstance(experiment, ProbeExperiment):
        completed["train"]["max_epochs"] = experiment.train.max_epochs
    return completed


def _refuse_other_weights(path: Path, experiment: Experiment, began_with: Mapping):
    """Raise ValueError if a run began with another file than the one of that name which its experiment names now."""
    file = expanded(experiment.initial_weights)
    if experiment.initial_weights in ("random", "imagenet") or not file.is_file():
        return
    if digest_of_file(file) != origin_of(began_with)["sha256"]:
        raise ValueError(
            f"{path} began with another {file.name} than {file} is now; "
            f"train {experiment.name} again with --overwrite first"
        )


def origin_of(initial_weights: Mapping) -> Mapping:
    """What the weights of a run began with, from its `initial_weights`: those of its pretext where it has one."""
    return initial_weights.get("began_with", initial_weights)


def platform_of(result: Mapping) -> str:
    """Device and torch version of a run."""
    device = re.sub(r" \(.*?\)", "", result["device"])
    return f"{device}, torch {result['versions']['torch']}"


def _check_format(path: Path, saved: dict):
    if saved.get("format") != FORMAT:
        raise ValueError(f"{path} has format {saved.get('format')}; this code reads format {FORMAT}")


def _of_splits(one, other) -> str:
    """The splits in which two fingerprints of images differ, as words before "images"."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return ""
    return "".join(f"{split} " for split in ("train", "val", "test") if one.get(split) != other.get(split))


def _short(value) -> str:
    """A value in a message: a digest or a list of images would fill the screen."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}..."
