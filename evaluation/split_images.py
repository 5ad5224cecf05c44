"""The images of a data set's split as a trained network sees them."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch
from scipy.stats.qmc import Halton

from data.image_cache import Scenes
from data.layouts import name_of_images
from evaluation.checkpoints import TrainedRun, refuse_other_training_images
from evaluation.image_parameters import mean_amplitudes
from self_supervised.dataloader import build_loaders
from supervised.dataloader import Loaders, SceneDataset
from supervised.settings import BASE, Experiment


def loaders_of_run(data: Mapping, experiment: Experiment) -> Loaders:
    """The loaders of an experiment, without images that cannot be decoded where a run has left such out.

    `data` describes the images of that run, as its result does.
    """
    return build_loaders(experiment, skip_bad_images=bool(data.get("skipped")), progress=False)


def images_for(run: TrainedRun, data: str, split: str) -> SceneDataset:
    """The images of a split, "train", "val" or "test", in a fixed order, without augmentation, as `loaders_of_run`."""
    experiment = replace(BASE, data=data, image_size=run.image_size, resize=run.resize, augmentation="basic")
    return getattr(loaders_of_run(run.data, experiment), split).dataset


def evenly_spread(images: int, count: int) -> list[int]:
    """Numbers of `count` of so many images, evenly over their order, which is that of the classes; at most all.

    Those of a smaller count come first in those of a larger one.  So what was measured of them need not be measured
    again, and what an interrupted call has measured is evenly spread too.
    """
    halves = Halton(d=1, scramble=False).fast_forward(1)  # 1/2, 1/4, 3/4, 1/8 ...
    points = halves.random(2 ** images.bit_length())[:, 0]
    return pd.unique((points * images).astype(int))[: min(count, images)].tolist()


def refuse_other_data(run: TrainedRun, train: Scenes, data: str):
    """Raise ValueError for the training images of a data set of another name, unless they are those of the run."""
    if run.data.get("name") not in (None, name_of_images(data)):
        refuse_other_training_images(run, train, data, "--data")


def training_amplitudes(run: TrainedRun, data: str) -> torch.Tensor:
    """The `mean_amplitudes` (1 or 3, S, S // 2 + 1) of all training images of a data set, at the size of the run.

    Raises what `refuse_other_data` raises.
    """
    scenes = images_for(run, data, "train").scenes
    refuse_other_data(run, scenes, data)
    pixels = scenes.images
    return mean_amplitudes(
        (torch.tensor(pixels[start : start + 64]) for start in range(0, len(pixels), 64)), gray=pixels.shape[1] == 1
    )
