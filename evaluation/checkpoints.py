"""A trained run and images for it, from files: what the scripts of this folder begin with.

The only module here that knows the rest of the project; the others take models and tensors, and it is imported by
their `main` alone.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data.image_cache import decode
from evaluation.publish import read_published
from helper_functions import fold_batchnorm, keep_freed_memory
from runs import ROOT, digest_of, load_checkpoint
from supervised.dataloader import MEAN, STD, normalise
from supervised.models import SceneClassifier

SUFFIXES = (".pt", ".safetensors")  # of a checkpoint, and of what evaluation.publish places


@dataclass(frozen=True)
class TrainedRun:
    """A network in eval mode, with the frame its images need; `mean` and `std` of red, green, blue, pixels 0..1."""

    name: str
    model: SceneClassifier
    class_names: tuple[str, ...]
    image_size: int  # pixels, square
    resize: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str  # a digest of the network's weights: what is made from a run can say which ones it was

    def read(self, paths: Sequence[Path]) -> tuple[list[np.ndarray], torch.Tensor]:
        """Image files as pixels, bytes (1 or 3, S, S) each, and as the network takes them, float32 (N, 3, S, S).

        Raises FileNotFoundError for a file that is not there, ValueError for one that cannot be decoded; both name it.
        """
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"there is no image {path}")
        pixels = [decode(path, self.image_size, self.resize) for path in paths]
        colour = [torch.tensor(each).expand(3, -1, -1) for each in pixels]
        return pixels, normalise(torch.stack(colour), self.resize)

    def folded(self) -> "TrainedRun":
        """The same run on a network with BatchNorm folded in: its outputs but for rounding, a third faster on a CPU."""
        return replace(self, model=fold_batchnorm(self.model))

    def without_mirror_image(self) -> "TrainedRun":
        """The same run on a network that sees an image alone, and not its mirror image too.

        Explanations are of this one: which of two views a map or a gradient belongs to is then no question, and it
        takes half the time.
        """
        model = copy.copy(self.model)  # its modules are those of the other
        model.flip_tta = False
        return replace(self, model=model)

    def layer(self, name: str) -> torch.nn.Module:
        """A module by its name, such as features.8.0; a number is a stage of `features`.  ValueError if not there."""
        try:
            return self.model.get_submodule(f"features.{name}" if name.isdigit() else name)
        except AttributeError as error:
            raise ValueError(
                f"{self.name} has no layer {name}; take a stage, 0 to {len(self.model.features) - 1}, "
                "or the name of a module, such as features.8.0"
            ) from error


def load_trained(run: str, models: Path = ROOT / "models") -> TrainedRun:
    """A finished run by the path of its checkpoint or published file, or by its name.

    Of a name the full profile's is taken before the quick one's, and a checkpoint before a published file.  Also lets
    the process keep freed memory (`keep_freed_memory`), since what is loaded will be run.
    Raises FileNotFoundError that lists the runs that are there; ValueError for a file that is not one of ours.
    """
    keep_freed_memory()
    named = [models / profile / f"{run}{suffix}" for profile in ("full", "quick") for suffix in SUFFIXES]
    path = next((each for each in (Path(run), *named) if each.suffix in SUFFIXES and each.is_file()), None)
    if path is None:
        files = [file for suffix in SUFFIXES for file in models.glob(f"*/*{suffix}")]
        known = sorted({each.stem for each in files if not _is_part_of_a_run(each)})
        raise FileNotFoundError(
            f"there is no trained run {run}; there are {', '.join(known) or 'none'}, and a checkpoint's path will do; "
            "python -m evaluation.publish places trained ones, python -m supervised.train and "
            "python -m self_supervised.train make them"
        )
    saved = read_published(path) if path.suffix == ".safetensors" else load_checkpoint(path)
    if "class_names" not in saved:
        raise ValueError(f"{path} is not of a finished run: it has no class names")
    try:
        settings = saved["identity"]["settings"]
        model = SceneClassifier(
            len(saved["class_names"]),
            settings["head"],
            settings["freeze_features"],
            settings["stages"],
            settings.get("network", "efficientnet_b0"),  # runs from before there were others do not name it,
            settings.get("flip_tta", False),  # nor what was added later
        )
        model.load_state_dict(saved["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a network of ours ({error})") from error
    for name, tensor in saved["model"].items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} in {path} holds values that are not finite")
    return TrainedRun(
        name=path.stem,
        model=model.eval(),
        class_names=tuple(saved["class_names"]),
        image_size=settings["image_size"],
        resize=settings["resize"],
        mean=MEAN[settings["resize"]],
        std=STD[settings["resize"]],
        weights=digest_of(saved["model"]),
    )


def _is_part_of_a_run(path: Path) -> bool:
    """Whether the file is the state of an unfinished run, or of one epoch: not the end of one."""
    return path.stem.endswith((".state", ".last")) or ".epoch" in path.stem
