"""Trained networks, read from files, and images for them: what the commands of this folder begin with."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from data.files import digest_of_tensors, root_folder
from data.image_cache import decode
from helper_functions import fold_batchnorm
from runs import load_checkpoint
from supervised.dataloader import MEAN, STD, normalise
from supervised.models import SceneClassifier

RELEASED = ".safetensors"  # suffix of a released model
SUFFIXES = (".pt", RELEASED)  # of a checkpoint first
PROFILES = ("full", "quick")  # in the order in which they are searched


@dataclass(frozen=True)
class TrainedRun:
    """A network in eval mode, and how its images are prepared."""

    name: str
    model: SceneClassifier
    class_names: tuple[str, ...]
    image_size: int  # pixels, square
    resize: str  # a resize rule of data.image_cache
    weights: str  # digest of the weights: what is computed from a run can name them

    @property
    def mean(self) -> tuple[float, float, float]:
        """The mean of red, green and blue, 0..1, that normalisation subtracts."""
        return MEAN[self.resize]

    @property
    def std(self) -> tuple[float, float, float]:
        """The standard deviation of red, green and blue, 0..1, that normalisation divides by."""
        return STD[self.resize]

    def read(self, paths: Sequence[Path]) -> tuple[list[np.ndarray], torch.Tensor]:
        """Read image files: pixels, uint8 (1 or 3, S, S) each, and normalised images, float32 (N, 3, S, S).

        Raises FileNotFoundError for a missing file and ValueError for one that cannot be decoded; both name it.
        """
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"there is no image {path}")
        pixels = [decode(path, self.image_size, self.resize) for path in paths]
        colour = [torch.tensor(each).expand(3, -1, -1) for each in pixels]
        return pixels, normalise(torch.stack(colour), self.resize)

    def folded(self) -> "TrainedRun":
        """The same run with BatchNorm folded into the convolutions: equal outputs but for rounding, a third faster."""
        return replace(self, model=fold_batchnorm(self.model))

    def without_flip_tta(self) -> "TrainedRun":
        """The same run without horizontal-flip test-time augmentation.

        A heat map or a gradient then belongs to one view of the image, and takes half the time.
        """
        model = copy.copy(self.model)  # shares its modules with the other
        model.flip_tta = False
        return replace(self, model=model)

    def layer(self, name: str) -> torch.nn.Module:
        """A module by its name, such as features.8.0; a number is a stage of `features`.  ValueError if not there."""
        try:
            return self.model.get_submodule(f"features.{name}" if name.isdigit() else name)
        except AttributeError as error:
            raise ValueError(
                f"{self.name} has no layer {name}; name a stage, 0 to {len(self.model.features) - 1}, "
                "or a module, such as features.8.0"
            ) from error


def load_trained(run: str | Path, models: Path | None = None) -> TrainedRun:
    """Load a finished run by its name, or by the path of its checkpoint or released file.

    A name is looked up in `models` (default: models/ of the root folder): the full profile before the quick one, a
    checkpoint before a released file.
    Raises FileNotFoundError that lists the runs that are there, and ValueError for a file that is not one of ours.
    """
    path = _find(str(run), models or root_folder() / "models")
    saved = read_released(path) if path.suffix == RELEASED else load_checkpoint(path)
    if "class_names" not in saved:
        raise ValueError(f"{path} is not the checkpoint of a finished run: it has no class names")
    model = _build(path, saved)
    settings = saved["identity"]["settings"]
    return TrainedRun(
        name=path.stem,
        model=model,
        class_names=tuple(saved["class_names"]),
        image_size=settings["image_size"],
        resize=settings["resize"],
        weights=digest_of_tensors(saved["model"]),
    )


def read_released(path: Path) -> dict:
    """Read a released file: the keys of its description, and "model", the state dict in float32.

    Raises ValueError for a file that is truncated or is not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            about = json.loads((opened.metadata() or {})["about"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a released model, or is truncated ({type(error).__name__})") from error
    model = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}
    return {**about, "model": model}


def _find(run: str, models: Path) -> Path:
    named = [models / profile / f"{run}{suffix}" for profile in PROFILES for suffix in SUFFIXES]
    for path in (Path(run), *named):
        if path.suffix in SUFFIXES and path.is_file():
            return path
    files = [file for suffix in SUFFIXES for file in models.glob(f"*/*{suffix}")]
    known = sorted({file.stem for file in files if not _is_unfinished(file)})
    raise FileNotFoundError(
        f"there is no trained run {run}; there are {', '.join(known) or 'none'}, and the path of a checkpoint works "
        "too; python -m evaluation.publish places released models, python train.py trains experiments"
    )


def _is_unfinished(path: Path) -> bool:
    """Whether the file is the state of an unfinished run, or the weights of one epoch."""
    return path.stem.endswith((".state", ".last")) or ".epoch" in path.stem


def _build(path: Path, saved: Mapping) -> SceneClassifier:
    """The network of a file, in eval mode; ValueError if the file does not hold one, or holds NaN or infinity."""
    try:
        settings = saved["identity"]["settings"]
        model = SceneClassifier(
            len(saved["class_names"]),
            settings["head"],
            settings["freeze_features"],
            settings["stages"],
            settings.get("network", "efficientnet_b0"),  # checkpoints of older code have no network
            settings.get("flip_tta", False),  # nor flip_tta
        )
        model.load_state_dict(saved["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a network of ours ({error})") from error
    for name, tensor in saved["model"].items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} in {path} holds values that are not finite")
    return model.eval()
