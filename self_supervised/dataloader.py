"""Pretexts: labels made from the images themselves, and the loaders of every experiment.

A pretext of your own is one class: its label names, and how an image looks under each label.

    class FlippedDataset(PretextDataset):
        label_names = ("original", "flipped")

        def transform(self, image, label, generator):
            return image.flip(-1) if label == 1 else image

    PRETEXTS["flipped"] = FlippedDataset

`runs.run(PretextExperiment("flipped_1", "How well is a flip predicted?", pretext="flipped"))` then trains on it.
A classifier finds the pretext by its name in `experiments.EXPERIMENTS`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data.augment import AUGMENTATIONS, Augmentation, apply, augment, draw
from data.files import say_once
from data.image_cache import Scenes, Selection, load_splits
from data.layouts import list_splits, name_of_images
from data.on_device import DeviceDataset, DeviceImages, with_seeds
from data.prepare import locate
from self_supervised.settings import JointEmbeddingExperiment, PretextExperiment
from supervised import dataloader as supervised
from supervised.dataloader import (
    Loaders,
    SceneDataset,
    load_scenes_of,
    loaders_of,
    normalize,
    with_views_of,
)

SHOWN_IMAGES = 300  # of val, evenly spaced: what a joint-embedding pretext is evaluated on after each epoch


class PretextDataset(DeviceDataset):
    """Every image once under each label of the pretext.  Item: (image (3, S, S) float32, normalized, label).

    images: a sequence of bytes (C, S, S), C = 1 or 3, such as `Scenes.images`.  With n labels, item i is image i // n
    under label i % n.  The key is the item's index, or (index, seed) in training.  Random choices of a pretext, such as
    the place of a square, depend on the seed in training.  In evaluation they depend on the image's index, so they are
    the same in every epoch and for every label.

    A subclass defines `label_names` and `transform`, and nothing else; or `transform_batch` instead, which is faster.
    """

    label_names: tuple[str, ...]

    def __init__(self, images: Sequence, resize: str = "squash", augmentation: Augmentation | None = None):
        """Raise ValueError unless the images are square, and the label names have an order and differ."""
        names = getattr(self, "label_names", None)
        if not isinstance(names, (tuple, list)) or len(set(names)) != len(names) or len(names) < 2:
            raise ValueError(
                f"label_names of {type(self).__name__} is {names!r}; it must be a tuple of differing names"
            )
        images = np.asarray(images) if isinstance(images, list) else images
        if images.shape[-1] != images.shape[-2]:
            raise ValueError(f"images {tuple(images.shape[1:])} are not square; {type(self).__name__} needs squares")
        self.images = DeviceImages(images)
        self.labels = np.tile(np.arange(len(self.label_names)), len(self.images))
        self.resize = resize
        self.augmentation = augmentation

    def transform(self, image: torch.Tensor, label: int, generator: torch.Generator) -> torch.Tensor:
        """The bytes of an image (C, S, S) under `label`, of the same shape: augmented already, not yet normalized.

        Every random choice must use the generator.
        """
        raise NotImplementedError

    def transform_batch(self, images: torch.Tensor, labels: list[int], seeds: list[int]) -> torch.Tensor:
        """The bytes of images (N, C, S, S), each under its label; what is random depends on an image's seed alone."""
        shape, transformed = images.shape[1:], []
        for image, label, seed in zip(images, labels, seeds, strict=True):
            image = self.transform(image, label, torch.Generator().manual_seed(seed))
            if not (isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.shape == shape):
                found = f"{image.dtype} of {tuple(image.shape)}" if hasattr(image, "dtype") else type(image).__name__
                raise ValueError(
                    f"transform of {type(self).__name__} must return torch.uint8 of {tuple(shape)}, it returns {found}"
                )
            transformed.append(image)
        return torch.stack(transformed)

    def items(self, keys) -> tuple[torch.Tensor, list[int]]:
        """Items before normalization: bytes (N, C, S, S) and their labels."""
        pairs = [key if isinstance(key, tuple) else (key, None) for key in keys]
        sources = [index // len(self.label_names) for index, _ in pairs]
        labels = [index % len(self.label_names) for index, _ in pairs]
        seeds = [source if seed is None else seed for source, (_, seed) in zip(sources, pairs, strict=True)]
        images = self.images[sources]
        if self.augmentation is not None and all(seed is not None for _, seed in pairs):
            images = augment(self.augmentation, images, seeds, self.images.size).round().byte()
        return self.transform_batch(images, labels, seeds), labels

    def item(self, index: int, seed: int | None = None) -> tuple[torch.Tensor, int]:
        """One item before normalization: bytes (C, S, S) and its label."""
        images, labels = self.items([index if seed is None else (index, seed)])
        return images[0], labels[0]

    def __len__(self):
        """Images times labels."""
        return len(self.images) * len(self.label_names)

    def __getitem__(self, key):
        """One image and its label."""
        images, labels = self.__getitems__([key])
        return images[0], int(labels[0])

    def __getitems__(self, keys):
        """A batch at once, as DataLoader asks for it: images (N, 3, S, S), labels (N,)."""
        images, labels = self.items(keys)
        return normalize(images, self.resize), torch.tensor(labels)


class RotatedDataset(PretextDataset):
    """Rotated counter-clockwise by 0, 90, 180 or 270 degrees (Gidaris et al. 2018).

    Quarter turns of a square move pixels without resampling, so neither shape nor smoothness reveals the rotation.
    """

    label_names = ("0 degrees", "90 degrees", "180 degrees", "270 degrees")

    def transform_batch(self, images, labels, seeds):
        """Each image after as many quarter turns as its label says."""
        for turns in (1, 2, 3):
            chosen = torch.tensor([place for place, label in enumerate(labels) if label == turns], dtype=torch.int64)
            chosen = chosen.to(images.device)
            images[chosen] = torch.rot90(images[chosen], turns, dims=(-2, -1))
        return images


class PerturbationDataset(PretextDataset):
    """With a black or a white square of 10x10 pixels at a random place (the first report).

    The square is set in the bytes of the resized image, to 0 or 255, so that no resize blurs it and no normalization
    changes its color.  Raises ValueError if the images are smaller than the square.
    """

    label_names = ("black", "white")
    square = 10  # pixels

    def transform_batch(self, images, labels, seeds):
        """Each image with its square, of 0 for label 0 and of 255 for label 1."""
        size = images.shape[-1]
        if size < self.square:
            raise ValueError(f"a square of {self.square} pixels does not fit into images of {size} pixels")
        for image, label, seed in zip(images, labels, seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            top, left = torch.randint(size - self.square + 1, (2,), generator=generator).tolist()
            image[:, top : top + self.square, left : left + self.square] = 255 * label
        return images


class LargePerturbationDataset(PerturbationDataset):
    """With a square of 20x20 pixels: the second report does not state the size of its own."""

    square = 20  # pixels


class JigsawDataset(PretextDataset):
    """Its four quadrants in one of their 24 orders (after Noroozi and Favaro 2016, who use nine tiles with gaps).

    There is no gap between the quadrants, so edges that do not match reveal the order as well as the content does.
    Raises ValueError if the size is odd.
    """

    orders = tuple(itertools.permutations((1, 2, 3, 4)))
    label_names = tuple("".join(map(str, order)) for order in orders)

    def transform_batch(self, images, labels, seeds):
        """The quadrants (1 2 above 3 4) in the order of each label's name."""
        size = images.shape[-1]
        if size % 2:
            raise ValueError(f"jigsaw_2x2 needs an even image size, got {size} pixels")
        quadrants = torch.stack([half for row in images.chunk(2, dim=-2) for half in row.chunk(2, dim=-1)], dim=1)
        orders = torch.tensor([self.orders[label] for label in labels], device=images.device) - 1
        quadrants = quadrants[torch.arange(len(images), device=images.device)[:, None], orders]
        first, second, third, fourth = quadrants.unbind(dim=1)
        return torch.cat([torch.cat([first, second], dim=-1), torch.cat([third, fourth], dim=-1)], dim=-2)


class ViewsDataset(DeviceDataset):
    """Random views of images, for joint-embedding pretexts.  Item: (views (V, 3, S, S) float32, normalized, label).

    The key is the image's index, or (index, seed) in training; in evaluation an image's views depend on its index.  The
    label is that of the scene, or -1: it serves the accuracy that is shown while training.  With `neighbors` (N, k),
    indices of the nearest images, views after the first are of one of these.
    """

    def __init__(self, images: Sequence, labels: np.ndarray, experiment: JointEmbeddingExperiment):
        self.images = DeviceImages(images)
        self.labels = labels
        self.augmentation = AUGMENTATIONS[experiment.views]
        self.views_per_image, self.view_size = experiment.views_per_image, experiment.view_size
        self.resize = experiment.resize
        self.neighbors = None

    def __len__(self):
        """Number of images."""
        return len(self.images)

    def __getitem__(self, key):
        """The views of one image, and its label."""
        views, labels = self.__getitems__([key])
        return views[0], int(labels[0])

    def __getitems__(self, keys):
        """A batch at once, as DataLoader asks for it: views (N, V, 3, S, S), labels (N,)."""
        pairs = with_seeds(keys)
        indices = np.array([index for index, _ in pairs])
        sources = np.repeat(indices[:, None], self.views_per_image, axis=1)
        if self.neighbors is not None:
            for row, (index, seed) in enumerate(pairs):
                sources[row, 1:] = np.random.default_rng(seed).choice(self.neighbors[index], self.views_per_image - 1)
        drawn = draw(self.augmentation, [seed for _, seed in pairs], self.views_per_image)
        views = apply(drawn, self.images[sources.ravel()], self.view_size)
        views = normalize(views, self.resize).unflatten(0, sources.shape)
        return views, torch.from_numpy(self.labels[indices])


PRETEXTS = {
    "rotation": RotatedDataset,
    "perturbation": PerturbationDataset,
    "perturbation_20": LargePerturbationDataset,
    "jigsaw_2x2": JigsawDataset,
}


def build_loaders(experiment, skip_bad_images: bool = False, progress: bool = True) -> Loaders:
    """The loaders of any experiment; those of a pretext have the pretext's labels as classes.

    All labels of an image stay in its split.  Those of a joint-embedding pretext train on views and yield scenes in
    order.  Raises what `supervised.dataloader.build_loaders` raises, and ValueError for an unknown pretext or views.
    """
    if isinstance(experiment, JointEmbeddingExperiment):
        return _build_loaders_of_views(experiment, skip_bad_images, progress)
    if not isinstance(experiment, PretextExperiment):
        return supervised.build_loaders(experiment, skip_bad_images, progress)
    if experiment.pretext not in PRETEXTS:
        raise ValueError(
            f"{experiment.name}: there is no pretext {experiment.pretext!r}; there are: {', '.join(PRETEXTS)}"
        )
    pretext = PRETEXTS[experiment.pretext]
    splits, data = load_scenes_of(experiment, skip_bad_images, progress)
    augmentation = AUGMENTATIONS.get(experiment.augmentation)  # none for "basic"
    return loaders_of(
        experiment,
        data,
        train=pretext(splits["train"].images, experiment.resize, augmentation),
        in_order={split: pretext(scenes.images, experiment.resize) for split, scenes in splits.items()},
        class_names=pretext.label_names,
        copies=len(pretext.label_names) if experiment.copies == "together" else 1,
    )


def _build_loaders_of_views(experiment: JointEmbeddingExperiment, skip_bad_images: bool, progress: bool) -> Loaders:
    if experiment.views not in AUGMENTATIONS:
        raise ValueError(
            f"{experiment.name}: there are no views {experiment.views!r}; there are: {', '.join(AUGMENTATIONS)}"
        )
    splits, data = load_scenes_of(experiment, skip_bad_images, progress)
    images, labels = splits["train"].images, splits["train"].labels
    if experiment.unlabelled:
        root, size, resize = locate(experiment.unlabelled), experiment.image_size, experiment.resize
        more = load_splits(root, size, resize, skip_bad_images=skip_bad_images, progress=progress)["train"]
        images, labels = _with_unlabelled(experiment, splits["train"], more)
        data = {**data, "unlabelled": _description_of(experiment, more)}
    loaders = loaders_of(
        experiment,
        data,
        train=ViewsDataset(images, labels, experiment),
        in_order={split: SceneDataset(scenes, experiment.resize) for split, scenes in splits.items()},
        class_names=splits["train"].class_names,
    )
    shown = _evenly_spaced(splits["val"], loaders.train.batch_size)
    return with_views_of(loaders, ViewsDataset(shown.images, shown.labels, experiment))


def _with_unlabelled(experiment: JointEmbeddingExperiment, train: Scenes, more: Scenes) -> tuple["_Joined", np.ndarray]:
    """Images (N, C, S, S) and labels (N,) of the training images and more, whose label is -1; or of these alone."""
    kept = more.subset(_not_held_out(experiment, more.names))
    unknown = np.full(len(kept), -1)
    if experiment.unlabelled_alone:
        return _Joined((kept.images,), channels=train.images.shape[1]), unknown
    images = _Joined((train.images, kept.images), channels=train.images.shape[1])
    return images, np.concatenate([train.labels, unknown])


def _description_of(experiment: JointEmbeddingExperiment, more: Scenes) -> dict:
    """What a result says of the images without labels."""
    skipped = [f"train/{name}" for name in more.skipped]
    return {"name": name_of_images(experiment.unlabelled), "fingerprint": more.fingerprint, "skipped": skipped}


def _not_held_out(experiment: JointEmbeddingExperiment, names: Sequence[str]) -> np.ndarray:
    """The indices of the unlabelled images of these names whose bytes are in neither val nor test.

    Says how many are left out.  Raises ValueError if none is left.
    """
    listed, unlabelled = list_splits(locate(experiment.data)), list_splits(locate(experiment.unlabelled))["train"]
    held_out = {digest for split in ("val", "test") if split in listed for digest in listed[split].digests}
    digest_of = dict(zip(unlabelled.names, unlabelled.digests, strict=True))
    kept = np.array([index for index, name in enumerate(names) if digest_of[name] not in held_out], dtype=np.int64)
    if len(kept) < len(names):
        say_once(
            f"{experiment.name}: {len(names) - len(kept):,} of {len(names):,} images without labels are left out, "
            "because they are val or test images"
        )
    if not len(kept):
        raise ValueError(f"{experiment.name}: all images of {experiment.unlabelled} are val or test images")
    return kept


def _evenly_spaced(scenes: Scenes, batch_size: int) -> Scenes:
    """At least SHOWN_IMAGES of the scenes, or all, but in whole batches: VICReg has no loss of a single image."""
    count = -(-len(scenes) // max(1, len(scenes) // SHOWN_IMAGES))
    if count > batch_size:
        count -= count % batch_size
    return scenes.subset(np.arange(count) * len(scenes) // count)


@dataclass(frozen=True)
class _Joined:
    """Images of several arrays, one after the other, with so many channels; none is read before it is asked for.

    It is counted, indexed and converted as a `Selection` is.
    """

    parts: tuple[np.ndarray | Selection, ...]
    channels: int

    def __len__(self):
        return sum(map(len, self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), self.channels, *self.parts[0].shape[2:]

    def __getitem__(self, index) -> np.ndarray:
        indices, start = np.arange(len(self))[index], 0
        flat = indices.ravel()
        found = np.empty((len(flat), *self.shape[1:]), dtype=np.uint8)
        for part in self.parts:
            here = np.flatnonzero((start <= flat) & (flat < start + len(part)))
            if len(here):
                found[here] = _like(part[flat[here] - start], self.channels)
            start += len(part)
        return found.reshape(*indices.shape, *found.shape[1:])

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype=dtype)


def _like(images: np.ndarray, channels: int) -> np.ndarray:
    """Images (N, 3, S, S) as gray ones if `channels` is 1, by the weights of Pillow."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=1)
    gray = [np.tensordot((0.299, 0.587, 0.114), image, axes=1).round()[None] for image in images]
    return np.stack(gray).astype(np.uint8)
