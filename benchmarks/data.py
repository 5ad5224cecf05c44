"""Images from files to network input: torchvision's ImageFolder against the image cache and its loaders.

    python -m benchmarks.data [--rounds 2]

The training images of 15-Scene, or of the synthetic scenes if it is not prepared.  Plain is an ImageFolder with Resize,
ToTensor and Normalize in a DataLoader without workers.  An epoch is read once before it is timed, so files lie in the
system's cache.  share_of_training is the time for the data as a share of an epoch's training steps by the same
implementation, from benchmarks/training_step.csv.  Results that are compared are the first image of every batch of 32.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks import implementations
from benchmarks.implementations import Comparison, Measurement
from data.image_cache import load_scenes
from data.prepare import locate
from supervised.dataloader import MEAN, STD, build_loaders
from supervised.settings import BASE

SIZE = (BASE.image_size, BASE.image_size)
PLAIN_AUGMENTATIONS = {  # as a plain script writes them
    "basic": [],
    "advanced": [
        transforms.RandomHorizontalFlip(0.5),
        transforms.RandomResizedCrop(BASE.image_size),
        transforms.RandomRotation(20),
    ],
}


def folder_of(split: str) -> Path:
    """The images of a split, <class>/<image>."""
    return locate(implementations.data_set()) / split


def plain_dataset(split: str, augmentation: str = "basic") -> ImageFolder:
    """(image, label) as a plain script reads them."""
    steps = [
        transforms.Resize(SIZE),
        *PLAIN_AUGMENTATIONS[augmentation],
        transforms.ToTensor(),
        transforms.Normalize(MEAN["squash"], STD["squash"]),
    ]
    return ImageFolder(folder_of(split), transforms.Compose(steps))


def plain_loader(augmentation: str) -> DataLoader:
    """Training images in batches, in order if they are not augmented."""
    return DataLoader(plain_dataset("train", augmentation), BASE.batch_size, shuffle=augmentation != "basic")


def our_loader(augmentation: str) -> DataLoader:
    """The same batches by our loaders."""
    experiment = replace(BASE, data=implementations.data_set(), augmentation=augmentation)
    loaders = build_loaders(experiment, progress=False)
    return loaders.train_in_order if augmentation == "basic" else loaders.train


def measure_epoch(build_loader: Callable[[str], DataLoader], augmentation: str, implementation: str) -> Measurement:
    """Every image once; `implementation` is the one whose training steps the time is compared with."""
    torch.manual_seed(0)
    loader = build_loader(augmentation)
    # Of every so many images one, whatever batches an implementation reads them in.
    first_images = np.concatenate([images[:: BASE.batch_size].numpy() for images, _ in loader])
    images = len(loader.dataset)
    seconds = implementations.seconds_of(lambda: sum(len(labels) for _, labels in loader), 1)
    return Measurement(
        seconds,
        images,
        first_images if augmentation == "basic" else None,
        share_of_training(seconds / images, implementation) | {"data": implementations.data_set()},
    )


def share_of_training(seconds: float, implementation: str) -> dict[str, float]:
    """Seconds to read an image as a share of those to train on it; empty if no training step has been measured."""
    path = implementations.FOLDER / "training_step.csv"
    if not path.exists():
        return {}
    step = pd.read_csv(path, index_col="implementation").loc[implementation]
    return {"share_of_training": float(f"{seconds * step['images'] / step['seconds']:.2g}")}


def decode_plainly(folder: Path) -> np.ndarray:
    """Every image decoded and resized, bytes (N, 3, S, S), and saved in a file."""
    resized = ImageFolder(folder_of("train"), transforms.Compose([transforms.Resize(SIZE), transforms.PILToTensor()]))
    images = torch.cat([images for images, _ in DataLoader(resized, BASE.batch_size)]).numpy()
    np.save(folder / "images.npy", images)
    return images


def decode_into_cache(folder: Path) -> np.ndarray:
    """The same by the image cache, bytes (N, channels, S, S): gray images have one channel."""
    return load_scenes(folder_of("train"), cache=folder, progress=False).images


def measure_decoding(decode: Callable[[Path], np.ndarray]) -> Measurement:
    """Every image once, into a new folder."""
    for path in folder_of("train").glob("*/*"):
        path.read_bytes()  # into the system's cache
    decoded = []
    with tempfile.TemporaryDirectory() as folder:
        seconds = implementations.seconds_of(lambda: decoded.append(decode(Path(folder))), 1)
        images = decoded[0]
        return Measurement(seconds, len(images), images[:: BASE.batch_size, :1].astype(np.float32))


EPOCHS = {
    augmentation: {
        "ImageFolder": partial(measure_epoch, plain_loader, augmentation, "plain"),
        "ours": partial(measure_epoch, our_loader, augmentation, "ours"),
    }
    for augmentation in PLAIN_AUGMENTATIONS
}
DECODING = {
    "ImageFolder": partial(measure_decoding, decode_plainly),
    "ours": partial(measure_decoding, decode_into_cache),
}
COMPARISONS = (
    Comparison("reading an epoch", EPOCHS["basic"], peers=("ImageFolder",), reference="ImageFolder"),
    Comparison("reading an augmented epoch", EPOCHS["advanced"], peers=("ImageFolder",)),
    Comparison("decoding and resizing once", DECODING, peers=("ImageFolder",), reference="ImageFolder"),
)

if __name__ == "__main__":
    sys.exit(implementations.main("data", __doc__, COMPARISONS, rounds=2))
