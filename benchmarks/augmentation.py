"""Augmenting cached images on one CPU core: whole batches by data.augment against torchvision, image by image.

    python -m benchmarks.augmentation [--rounds 3]

Both get batches of 32 gray images of bytes and give network input: torchvision's transforms draw for one image at a
time, since for a batch they would draw once; both end with `supervised.dataloader.normalize`.  Seconds are those of the
processor, so other processes count little.  What that is of an epoch of training stands in benchmarks/data.csv.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torchvision.transforms import v2

from benchmarks import implementations
from benchmarks.implementations import Comparison, Measurement
from data.augment import AUGMENTATIONS, augment
from loop.devices import keep_freed_memory
from supervised.dataloader import normalize

IMAGES, SIZE, REPEATS = 32, 224, 10
CROP, FLIP = v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(0.5)
ONE_BY_ONE = {
    "crop": v2.Compose([CROP]),
    "mild": v2.Compose([v2.RandomResizedCrop(SIZE, scale=(0.5, 1.0), antialias=True), FLIP]),
    "advanced": v2.Compose([FLIP, CROP, v2.RandomRotation(20)]),
    "trivial": v2.Compose([CROP, FLIP, v2.TrivialAugmentWide()]),
    "padded_crop": v2.Compose([v2.RandomCrop(SIZE, padding=SIZE // 8), FLIP]),
}


def images() -> torch.Tensor:
    """Gray noise, bytes (N, 1, S, S)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (IMAGES, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def one_by_one(name: str, batch: torch.Tensor, first_seed: int) -> torch.Tensor:
    """As this project did it before: torchvision's transforms, each image by its own seed."""
    augmented = []
    for seed, image in enumerate(batch, start=first_seed):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            augmented.append(ONE_BY_ONE[name](image))
    return normalize(torch.stack(augmented), "squash")


def whole_batch(name: str, batch: torch.Tensor, first_seed: int) -> torch.Tensor:
    """As `SceneDataset` does it."""
    seeds = range(first_seed, first_seed + len(batch))
    return normalize(augment(AUGMENTATIONS[name], batch, seeds, SIZE), "squash")


def measure(implementation: Callable, name: str) -> Measurement:
    """Processor seconds of REPEATS batches on one thread."""
    keep_freed_memory()
    torch.set_num_threads(1)
    batch = images()
    implementation(name, batch, 0)
    started = time.process_time()
    for repeat in range(REPEATS):
        implementation(name, batch, 1000 * repeat)
    return Measurement(time.process_time() - started, IMAGES * REPEATS)


COMPARISONS = tuple(
    Comparison(
        f"augmentation {name}",
        {"torchvision, one by one": partial(measure, one_by_one, name), "ours": partial(measure, whole_batch, name)},
        peers=("torchvision, one by one",),
    )
    for name in ONE_BY_ONE
)

if __name__ == "__main__":
    sys.exit(implementations.main("augmentation", __doc__, COMPARISONS))
