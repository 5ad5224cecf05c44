"""Trained networks, read from files, and images for them: what the commands of this folder begin with."""

import copy
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from data.files import CODE, digest_of_tensors, expanded, root_folder
from data.folders import in_nfc
from data.image_cache import NamedImage, Scenes, decode
from experiments import PROFILES, experiment_of
from loop.batchnorm import fold_batchnorm
from run_files import load_checkpoint
from supervised.dataloader import MEAN, STD, normalize
from supervised.models import SceneClassifier, classifier_of
from supervised.settings import Experiment
from supervised.state_dicts import check_tensor, without_wrappers

CHECKPOINT = ".pt"  # suffix of a run that was trained here
RELEASED = ".safetensors"  # suffix of a released model
PUBLISHED = CODE / "published"  # the folder of released models
LISTED = 8  # runs that a message names
SETTINGS = ("head", "freeze_features", "stages", "image_size", "resize")  # that every finished run was saved with


@dataclass(frozen=True)
class TrainedRun:
    """A network in eval mode, and how its images are prepared."""

    name: str
    model: SceneClassifier
    class_names: tuple[str, ...]
    image_size: int  # pixels, square
    resize: str  # a resize rule of data.image_cache
    weights: str  # digest of the weights: what is computed from a run can name them
    file: Path | None = None  # that it was read from
    data: Mapping = field(default_factory=dict)  # the images it was trained on, as its result describes them

    @property
    def mean(self) -> tuple[float, float, float]:
        """The mean of red, green and blue, 0..1, that normalization subtracts."""
        return MEAN[self.resize]

    @property
    def std(self) -> tuple[float, float, float]:
        """The standard deviation of red, green and blue, 0..1, that normalization divides by."""
        return STD[self.resize]

    @property
    def last_stage(self) -> str:
        """The last stage of `features`, by the name that `layer` takes."""
        return str(len(self.model.features) - 1)

    def label(self, class_name: str) -> int:
        """The number of a class.  Where one class alone is meant, its case, spaces and underscores do not matter.

        Raises ValueError that lists the classes for one that there is not.
        """
        names = [in_nfc(str(class_name))]
        if names[0] not in self.class_names:
            names = [name for name in self.class_names if _loosely(name) == _loosely(names[0])]
        if len(names) != 1:
            raise ValueError(f"{self.name} has no class {class_name}; it has {', '.join(self.class_names)}")
        return self.class_names.index(names[0])

    def read(self, paths: Sequence[Path | NamedImage]) -> tuple[list[np.ndarray], torch.Tensor]:
        """Read images: pixels, uint8 (1 or 3, S, S) each, and normalized images, float32 (N, 3, S, S).

        Raises what `check_images` raises, and ValueError that names an image which cannot be decoded.
        """
        check_images([path for path in paths if not isinstance(path, NamedImage)])
        pixels = [decode(path, self.image_size, self.resize) for path in paths]
        return pixels, self.normalized(pixels)

    def normalized(self, pixels: Sequence[np.ndarray]) -> torch.Tensor:
        """Pixels as `data.image_cache.decode` gives them, as network input (N, 3, S, S)."""
        color = [torch.tensor(each).expand(3, -1, -1) for each in pixels]
        return normalize(torch.stack(color), self.resize)

    def folded(self) -> "TrainedRun":
        """The same run with BatchNorm folded into the convolutions: equal outputs but for rounding, a third faster.

        A convolution's own output then is that of the BatchNorm behind it.
        """
        return replace(self, model=fold_batchnorm(self.model))

    def ready_to_explain(self, layers: Sequence[str]) -> "TrainedRun":
        """The same run without horizontal flips; folded, unless the output of one of its convolutions is asked for."""
        convolutions = any(isinstance(self.layer(name), torch.nn.Conv2d) for name in layers)
        return (self if convolutions else self.folded()).without_flip_tta()

    def without_flip_tta(self) -> "TrainedRun":
        """The same run without horizontal-flip test-time augmentation.

        A heat map or a gradient then belongs to one view of the image, and takes half the time.
        """
        model = copy.copy(self.model)  # shares its modules with the other
        model.flip_tta = False
        return replace(self, model=model)

    def layer(self, name: str | int) -> torch.nn.Module:
        """A module by its name, such as features.8.0; a number is a stage of `features`.  ValueError if not there."""
        name = str(name)
        try:
            return self.model.features[int(name)] if name.isdecimal() else self.model.get_submodule(name)
        except (AttributeError, IndexError) as error:
            raise ValueError(
                f"{self.name} has no layer {name}; name a stage, 0 to {self.last_stage}, "
                "or a module, such as features.8.0"
            ) from error


def _loosely(class_name: str) -> str:
    """A class name as it is compared with what a user wrote: Tall building is tall_building."""
    return re.sub(r"[\s_]", "", class_name).casefold()


def check_images(paths: Sequence[Path]):
    """Raise ValueError that names the first path which is a folder, and FileNotFoundError for one that is not there."""
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name the images in it")
        if not path.is_file():
            raise FileNotFoundError(f"there is no image {path}")


def load_trained(run: str | Path, needs_classes: bool = True) -> TrainedRun:
    """Load a finished run by its name, or by the path of its checkpoint or released file.

    A name is looked up in models/ of the root folder: the full profile before the quick one, and in each the runs that
    were trained here before released ones.  A run on other data than its experiment names is called <data>/<run>.
    Without `needs_classes` it may be a joint-embedding pretext too, whose network ends in its pooled features.
    Raises FileNotFoundError that lists runs of similar names, or those that are there, and ValueError for a name of
    several runs, for a pretext without classes and for a file that is not one of ours.
    """
    path = _find(str(run), root_folder() / "models")
    saved = read_released(path) if path.suffix == RELEASED else load_checkpoint(path)
    experiment, has_classes = _experiment_of(saved, path), "method" not in saved["identity"]["settings"]
    if needs_classes and not has_classes:
        raise ValueError(f"{path} is a pretext without classes; name a classifier on it, such as byol_classifier")
    tensors = _tensors_in(saved, path, "" if has_classes else "features.")
    return TrainedRun(
        name=path.stem,
        model=_build(experiment, len(saved["class_names"]) if has_classes else None, tensors, path),
        class_names=tuple(saved["class_names"]),
        image_size=experiment.image_size,
        resize=experiment.resize,
        weights=digest_of_tensors(tensors),
        file=path,
        data=saved["identity"].get("data", {}),
    )


def refuse_other_training_images(run: TrainedRun, train: Scenes, data: str, option: str):
    """Raise ValueError if these are not the images that a run was trained on, as far as its file tells."""
    if train.class_names != run.class_names:
        raise ValueError(f"{run.name} was not trained on {data}, whose classes are others; see {option}")
    fingerprint = run.data.get("fingerprint", {}).get("train")
    if fingerprint not in (None, train.fingerprint):
        raise ValueError(f"{run.name} was not trained on the images of {data}, but on {run.data['name']}; see {option}")


def read_released(path: Path) -> dict:
    """Read a released file: the keys of its description, and "model", the state dict in float32.

    Raises ValueError for a file that is truncated or is not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            about = dict(json.loads((opened.metadata() or {})["about"]))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a released model, or is truncated ({type(error).__name__})") from error
    model = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}
    return {**about, "model": model}


def _find(run: str, models: Path) -> Path:
    given = expanded(run)
    if given.is_file() and (given.suffix or len(given.parts) > 1):  # else it may only share the name
        return given
    own, released = _runs_of(models, CHECKPOINT), _runs_of(models, RELEASED)
    for profile in PROFILES:  # a released model comes before a quick run, whose numbers mean nothing
        for files in (own, released):
            found = [path for path in files if path.is_relative_to(models / profile) and _is_called(run, path, models)]
            if len(found) > 1:
                raise ValueError(f"there are several runs {run}; give the path of one: {_listed(map(str, found))}")
            if found:
                return found[0]
    names = dict.fromkeys(_full_name(path, models) for path in own + released)
    on_other_data = [name for name in names if name.endswith(f"/{run}")]
    known = f"there are {_listed(on_other_data or names) or 'none'}"
    similar = difflib.get_close_matches(run, dict.fromkeys([*names, *_published()]), n=5, cutoff=0.6)
    if similar and not on_other_data:
        known = f"similar names: {', '.join(similar)}"
    raise FileNotFoundError(
        f"there is no trained run {run}; {known}; the path of a checkpoint works too; "
        "python -m evaluation.publish places released models, python train.py trains experiments"
    )


def _runs_of(models: Path, suffix: str) -> list[Path]:
    """The files of finished runs: models/<profile>/<run>, and of other data models/<profile>/<data>/<run>."""
    files = sorted((*models.glob(f"*/*{suffix}"), *models.glob(f"*/*/*{suffix}")))
    return [file for file in files if not _is_unfinished(file)]


def _published() -> list[str]:
    """The names of the released models, which a command places under models/ when one is named."""
    return [path.stem for path in sorted(PUBLISHED.glob(f"*{RELEASED}"))]


def _full_name(path: Path, models: Path) -> str:
    """<run>, or of other data than the study's <data>/<run>."""
    return path.relative_to(models).with_suffix("").as_posix().partition("/")[2]


def _is_called(run: str, path: Path, models: Path) -> bool:
    """Whether a file is the run of this name, which is without a data set where that is the experiment's own."""
    experiment = experiment_of(run)
    own = run if experiment is None else f"{experiment.data}/{run}"
    return _full_name(path, models) in (run, own)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = [f"{len(names) - LISTED} more"] if len(names) > LISTED else []
    return ", ".join(names[:LISTED] + more)


def _is_unfinished(path: Path) -> bool:
    """Whether the file is the state of an unfinished run, or the weights of one epoch."""
    return path.stem.endswith((".state", ".last")) or ".epoch" in path.stem


def _experiment_of(saved: Mapping, path: Path) -> Experiment:
    """What a finished run was trained as, as far as its network depends on it; ValueError names the file."""
    if "class_names" not in saved or not isinstance(saved.get("model"), Mapping):
        raise ValueError(f"{path} is not the checkpoint of a finished run: it has no class names, or no weights")
    try:
        settings = saved["identity"]["settings"]
        optional = {name: settings[name] for name in ("network", "flip_tta") if name in settings}  # older code had none
        return Experiment(path.stem, "", **{name: settings[name] for name in SETTINGS}, **optional)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} was saved with settings that make no network here ({type(error).__name__}: {error})"
        ) from error


def _build(experiment: Experiment, num_classes: int | None, tensors: Mapping, path: Path) -> SceneClassifier:
    """The network of a file, in eval mode; ValueError names the file if its tensors are not those of the network.

    Without a number of classes it has no head.
    """
    model = classifier_of(experiment, num_classes or 1)
    if num_classes is None:
        model.classifier = torch.nn.Identity()
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if differing:
        raise ValueError(
            f"{path} does not hold the network that its settings describe: {len(differing)} tensors differ, "
            f"such as {differing[0]}"
        )
    model.load_state_dict(tensors)
    return model.eval()


def _tensors_in(saved: Mapping, path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The weights of a file whose names begin with `prefix`, in float32.

    ValueError names the file and a tensor that is none, or is not finite.
    """
    every = without_wrappers(saved["model"], path)
    tensors = {name: tensor for name, tensor in every.items() if name.startswith(prefix)}
    for name, tensor in tensors.items():
        check_tensor(name, tensor, path)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
