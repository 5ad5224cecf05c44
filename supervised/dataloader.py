"""Scenes in batches: transforms, their mean and std, loaders.

The first report's names live on here: its `simple_15SceneData` is the augmentation "basic" and its `load_15SceneData`
is "advanced" (both as functions below, for notebooks); leaving the crop out is "advanced_without_crop".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from torchvision.transforms import v2

from data.scenes import Scenes, load_splits, locate
from supervised.settings import BASE, Experiment

MEAN = {"squash": (0.5, 0.5, 0.5), "imagenet": (0.485, 0.456, 0.406)}  # of red, green and blue, in 0..1
STD = {"squash": (0.5, 0.5, 0.5), "imagenet": (0.229, 0.224, 0.225)}


class SeededShuffle(Sampler):
    """Every image once an epoch, in a random order, each with a seed for its own augmentation: (index, seed).

    What is drawn for an image thus depends on the epoch alone, not on how many workers or processes share the work.
    The state of `generator` is all that a resumed training needs.
    """

    def __init__(self, length: int, seed: int):
        self.length = length
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self):
        """One epoch of (index, seed)."""
        order = torch.randperm(self.length, generator=self.generator)
        seeds = torch.randint(2**31, (self.length,), generator=self.generator)
        yield from zip(order.tolist(), seeds.tolist(), strict=True)

    def __len__(self):
        """How many images an epoch has."""
        return self.length


class SceneDataset(Dataset):
    """Scenes as the network takes them.  Item: (image (3, S, S) float32 normalised by the resize rule, label).

    The key of an item is its index, or (index, seed) where the image is to be augmented.  Augmentation works on the
    bytes of one image at a time: a batch of its own would share one draw.
    """

    def __init__(self, scenes: Scenes, resize: str, augmentation: Callable | None = None):
        self.scenes = scenes
        self.augmentation = augmentation
        self.mean = 255 * torch.tensor(MEAN[resize]).view(3, 1, 1)
        self.std = 255 * torch.tensor(STD[resize]).view(3, 1, 1)

    def __len__(self):
        """How many images there are."""
        return len(self.scenes)

    def __getitem__(self, key):
        """One image and its label."""
        images, labels = self.__getitems__([key])
        return images[0], int(labels[0])

    def __getitems__(self, keys):
        """A whole batch at once, as DataLoader asks for it: images (N, 3, S, S), labels (N,)."""
        indices = [key if isinstance(key, int) else key[0] for key in keys]
        images = torch.from_numpy(self.scenes.images[indices])
        if self.augmentation is not None:
            images = torch.stack([self._augment(image, seed) for image, (_, seed) in zip(images, keys, strict=True)])
        images = (images.float() - self.mean) / self.std  # one grey channel becomes three here
        return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(self.scenes.labels[indices])

    def _augment(self, image, seed):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.augmentation(image)


@dataclass(frozen=True)
class Loaders:
    """The loaders of one experiment, each of (images, labels), and what its results have to say of the data.

    `train` is shuffled and augmented; `train_in_order`, `val` and `test` are neither.
    """

    train: DataLoader
    train_in_order: DataLoader
    val: DataLoader
    test: DataLoader
    class_names: tuple[str, ...]
    class_weights: torch.Tensor | None  # (classes,), of the loss
    data: dict  # name, fingerprint, images of each split, skipped images

    def of_features(self, extract: Callable, device: str = "cpu") -> "Loaders":
        """The same batches in the same order, of extract(images) (N, D) instead of images.  Computed here, once."""

        @torch.inference_mode()
        def features_of(loader):
            pairs = [(extract(images.to(device)).cpu(), labels) for images, labels in loader]
            return _FeatureDataset(torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]))

        in_order = {name: features_of(getattr(self, name)) for name in ("train_in_order", "val", "test")}
        sampler = SeededShuffle(len(in_order["train_in_order"]), self.train.sampler.generator.initial_seed())
        return replace(
            self,
            train=_loader(in_order["train_in_order"], self.train.batch_size, sampler),
            **{name: _loader(dataset, self.train.batch_size) for name, dataset in in_order.items()},
        )


class _FeatureDataset(Dataset):
    """Features (N, D) and labels (N,), under the keys of SceneDataset."""

    def __init__(self, features, labels):
        self.features, self.labels = features.clone(), labels.clone()  # tensors of inference mode cannot be trained on

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, keys):
        indices = [key if isinstance(key, int) else key[0] for key in keys]
        return self.features[indices], self.labels[indices]


def build_augmentation(name: str, size: int) -> Callable | None:
    """The first report's transforms for training, for one image of bytes (C, S, S); None for "basic"."""
    if name == "basic":
        return None
    crop = [v2.RandomResizedCrop(size, antialias=True)] if name == "advanced" else []
    return v2.Compose([v2.RandomHorizontalFlip(0.5), *crop, v2.RandomRotation(20)])


def build_loaders(experiment: Experiment, skip_bad_images: bool = False, progress: bool = True) -> Loaders:
    """The loaders of an experiment, over its data set `experiment.data` (a prepared name or a folder).

    Raises what `data.scenes.locate` and `data.scenes.load_splits` raise, and ValueError if there are too few images
    for a batch.
    """
    root = locate(experiment.data)
    splits = load_splits(
        root, experiment.image_size, experiment.resize, skip_bad_images=skip_bad_images, progress=progress
    )
    skipped = [f"{split}/{name}" for split, scenes in splits.items() for name in scenes.skipped]
    if experiment.images_per_class is not None:
        splits = {split: scenes.first_of_each_class(experiment.images_per_class) for split, scenes in splits.items()}
    if len(splits["train"]) < experiment.batch_size:
        raise ValueError(
            f"{root} has {len(splits['train'])} training images, fewer than one batch of {experiment.batch_size}"
        )
    in_order = {split: SceneDataset(scenes, experiment.resize) for split, scenes in splits.items()}
    augmentation = build_augmentation(experiment.augmentation, experiment.image_size)
    return Loaders(
        train=_loader(
            SceneDataset(splits["train"], experiment.resize, augmentation),
            experiment.batch_size,
            SeededShuffle(len(splits["train"]), experiment.seed),
        ),
        train_in_order=_loader(in_order["train"], experiment.batch_size),
        val=_loader(in_order["val"], experiment.batch_size),
        test=_loader(in_order["test"], experiment.batch_size),
        class_names=splits["train"].class_names,
        class_weights=_class_weights(experiment, splits["train"].class_names),
        data={
            "name": root.name,
            "fingerprint": {split: scenes.fingerprint for split, scenes in splits.items()},
            "images": {split: len(scenes) for split, scenes in splits.items()},
            "skipped": skipped,
        },
    )


def simple_15SceneData(batch_size: int = 32, data: str | Path = "15scene") -> Loaders:  # noqa: N802
    """The first report's loaders with basic transforms: resize to 224x224, mean 0.5, std 0.5."""
    return build_loaders(replace(BASE, batch_size=batch_size, data=str(data)))


def load_15SceneData(batch_size: int = 32, data: str | Path = "15scene", crop: bool = True) -> Loaders:  # noqa: N802
    """The first report's loaders with augmentation: flip, random crop (or not) and rotation of up to 20 degrees."""
    augmentation = "advanced" if crop else "advanced_without_crop"
    return build_loaders(replace(BASE, batch_size=batch_size, data=str(data), augmentation=augmentation))


def _class_weights(experiment: Experiment, class_names: tuple[str, ...]) -> torch.Tensor | None:
    if not experiment.class_weights:
        return None
    weights = torch.ones(len(class_names))
    for name, weight in experiment.class_weights:
        if name not in class_names:
            raise ValueError(f"{experiment.name} weighs class {name!r}, which the data does not have")
        weights[class_names.index(name)] = weight
    return weights


def _loader(dataset: Dataset, batch_size: int, sampler: Sampler | None = None) -> DataLoader:
    # A generator of its own: DataLoader would draw a seed for its workers from the global one, which dropout uses.
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler or SequentialSampler(dataset),
        collate_fn=_as_it_is,
        generator=torch.Generator(),
        drop_last=sampler is not None and len(dataset) % batch_size == 1,  # BatchNorm cannot train on one image
    )


def _as_it_is(batch):
    return batch
