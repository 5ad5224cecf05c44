"""Score-CAM of one image at three layers of EfficientNet-B0: ours against grad-cam and torchcam.

    python -m benchmarks.scorecam [--rounds 2]

The peers run with their public functions and defaults, on torchvision's network in the default memory format with the
default allocator; ours runs as in `evaluation.explain`.  The image is the first test image of 15-Scene, or of the
synthetic scenes; the class is the predicted one.  torchcam's map has the layer's resolution and is upsampled after the
measurement.  The peers upsample and scale masks in another way (see `evaluation.scorecam.score_cam`), so the maps are
not equal but correlate.  All are exact except the one that names its clusters, which takes rounds of so many passes.
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

from benchmarks import implementations
from benchmarks.implementations import Comparison, Measurement
from evaluation.mask_clusters import cluster_score_cam
from evaluation.scorecam import scale_to_unit, score_cam
from loop.devices import autocast, keep_freed_memory
from supervised.dataloader import build_loaders
from supervised.settings import BASE

MASKS = {"1": 16, "2": 24, "8": 1280}  # channels of each measured stage
REPEATS = {"1": 5, "2": 5, "8": 1}
CLUSTERS = 64


def gradcam_maps(network: nn.Module, stage: str, images: torch.Tensor, target_class: int) -> np.ndarray:
    """Maps (1, H, W) of grad-cam."""
    with pytorch_grad_cam.ScoreCAM(network, [network.features[int(stage)]]) as extractor:
        return extractor(images, [ClassifierOutputTarget(target_class)])


@torch.no_grad()
def torchcam_maps(network: nn.Module, stage: str, images: torch.Tensor, target_class: int) -> np.ndarray:
    """Maps (1, height, width) of torchcam, at the layer's resolution."""
    with torchcam.methods.ScoreCAM(network, network.features[int(stage)]) as extractor:
        network(images)
        return extractor(target_class)[0].cpu().numpy()


def our_maps(
    network: nn.Module, stage: str, images: torch.Tensor, target_class: int, precision: str = "float32"
) -> np.ndarray:
    """Our maps (1, H, W)."""
    with autocast(precision, images.device):
        return score_cam(network, images, network.features[int(stage)], [target_class]).maps.cpu().numpy()


def our_cluster_maps(network: nn.Module, stage: str, images: torch.Tensor, target_class: int) -> np.ndarray:
    """Our approximate maps (1, H, W)."""
    return cluster_score_cam(network, images, network.features[int(stage)], [target_class], CLUSTERS).maps.numpy()


def measure(stage: str, maps_of: Callable, ours: bool = False) -> Measurement:
    """Measure the map of one stage, after a warm-up on an early stage."""
    if ours:
        keep_freed_memory()
    network = implementations.plain_network().requires_grad_(False)
    loaders = build_loaders(replace(BASE, data=implementations.data_set()), progress=False)
    images = loaders.test.dataset[0][0][None]
    with torch.inference_mode():
        target_class = network(images).argmax().item()
    if ours:
        network = implementations.our_network(network)
    maps_of(network, "1", images, target_class)
    found = []
    seconds = implementations.seconds_of(
        lambda: found.append(maps_of(network, stage, images, target_class)), REPEATS[stage]
    )
    maps = nn.functional.interpolate(torch.from_numpy(found[0])[:, None], images.shape[2:], mode="bilinear")
    return Measurement(seconds, len(images), scale_to_unit(maps[:, 0]).numpy())


def implementations_of(stage: str) -> dict[str, Callable[[], Measurement]]:
    """The peers' and ours; the approximate one where there are many masks."""
    found = {name: partial(measure, stage, maps_of) for name, maps_of in PEERS.items()}
    for precision in implementations.precisions():
        found[implementations.ours(precision)] = partial(
            measure, stage, partial(our_maps, precision=precision), ours=True
        )
    if stage == "8":
        found[f"ours, {CLUSTERS} clusters"] = partial(measure, stage, our_cluster_maps, ours=True)
    return found


PEERS = {"grad-cam 1.5.7": gradcam_maps, "torchcam 0.5.0": torchcam_maps}
COMPARISONS = tuple(
    Comparison(
        f"Score-CAM, features[{stage}], {masks:,} masks",
        implementations_of(stage),
        peers=tuple(PEERS),
        reference="ours",
    )
    for stage, masks in MASKS.items()
)

if __name__ == "__main__":
    sys.exit(implementations.main("scorecam", __doc__, COMPARISONS, rounds=2))
