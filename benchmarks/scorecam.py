"""Score-CAM of one image at three layers of EfficientNet-B0: ours against grad-cam and torchcam.

    python -m benchmarks.scorecam [--rounds 2]

The peers by their public functions and defaults, on torchvision's network in the default order with the default
allocator; ours as `evaluation.explain` calls it.  The image is the first test image of 15-Scene, or of the drawn
scenes.  The class is the one the network finds.  torchcam's map has the
layer's resolution and is upsampled after the clock has stopped.  Their definitions differ from ours in how masks are
upsampled and scaled (`evaluation.scorecam.score_cam` says how), so the maps are not equal but correlate.  All are
exact but the one that names its clusters.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytorch_grad_cam
import torch
import torchcam.methods
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from benchmarks import ways
from benchmarks.implementations import Comparison, Measurement
from evaluation.scorecam import scale_to_unit, score_cam
from helper_functions import autocast, keep_freed_memory
from supervised.dataloader import build_loaders
from supervised.settings import BASE

MASKS = {"1": 16, "2": 24, "8": 1280}  # of each stage measured: as many as it has channels
REPEATS = {"1": 5, "2": 5, "8": 1}


def gradcam_maps(network: nn.Module, stage: str, images: torch.Tensor, target_class: int) -> np.ndarray:
    """Maps (1, H, W) of grad-cam."""
    with pytorch_grad_cam.ScoreCAM(network, [network.features[int(stage)]]) as extractor:
        return extractor(images, [ClassifierOutputTarget(target_class)])


@torch.no_grad()
def torchcam_maps(network: nn.Module, stage: str, images: torch.Tensor, target_class: int) -> np.ndarray:
    """Maps (1, height, width) of torchcam, of the layer's resolution."""
    with torchcam.methods.ScoreCAM(network, network.features[int(stage)]) as extractor:
        network(images)
        return extractor(target_class)[0].numpy()


def our_maps(
    network: nn.Module,
    stage: str,
    images: torch.Tensor,
    target_class: int,
    precision: str = "float32",
    clusters: int | None = None,
) -> np.ndarray:
    """Maps (1, H, W) of ours; exact, or with so many clusters."""
    with autocast(precision, images.device):
        return score_cam(network, images, network.features[int(stage)], [target_class], clusters=clusters).maps.numpy()


def measure(stage: str, maps_of: Callable, ours: bool = False) -> Measurement:
    """A map of one stage.  A first one of an early stage, which sets things up, is not counted."""
    if ours:
        keep_freed_memory()
    network = ways.plain_network().requires_grad_(False)
    loaders = build_loaders(replace(BASE, data=ways.data_set()), progress=False)
    images = loaders.test.dataset[0][0][None]
    with torch.inference_mode():
        target_class = network(images).argmax().item()
    if ours:
        network = ways.our_network(network)
    maps_of(network, "1", images, target_class)
    found = []
    seconds = ways.seconds_of(lambda: found.append(maps_of(network, stage, images, target_class)), REPEATS[stage])
    maps = nn.functional.interpolate(torch.from_numpy(found[0])[:, None], images.shape[2:], mode="bilinear")
    return Measurement(seconds, len(images), scale_to_unit(maps[:, 0]).numpy())


def ways_of(stage: str) -> dict[str, Callable[[], Measurement]]:
    """The peers' and ours; clusters where there are many masks."""
    found = {way: partial(measure, stage, maps_of) for way, maps_of in PEERS.items()}
    for precision in ways.precisions():
        found[ways.ours(precision)] = partial(measure, stage, partial(our_maps, precision=precision), ours=True)
    if stage == "8":
        found["ours, 64 clusters"] = partial(measure, stage, partial(our_maps, clusters=64), ours=True)
    return found


PEERS = {"grad-cam 1.5.7": gradcam_maps, "torchcam 0.5.0": torchcam_maps}
COMPARISONS = tuple(
    Comparison(f"Score-CAM, features[{stage}], {masks:,} masks", ways_of(stage), peers=tuple(PEERS), reference="ours")
    for stage, masks in MASKS.items()
)

if __name__ == "__main__":
    sys.exit(ways.main("scorecam", __doc__, COMPARISONS, rounds=2))
