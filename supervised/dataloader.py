"""Scenes in batches: transforms, their mean and std, loaders."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from data.augment import AUGMENTATIONS, Augmentation, augment
from data.files import say_once
from data.image_cache import Scenes, load_splits
from data.on_device import DeviceDataset, DeviceImages, with_seeds
from data.prepare import locate
from supervised.settings import Experiment

EVALUATION_BATCH = {"cpu": 64, "cuda": 512}  # images, at least: without gradients they need little memory
MEAN = {"squash": (0.5, 0.5, 0.5), "imagenet": (0.485, 0.456, 0.406)}  # of red, green and blue, in 0..1
STD = {"squash": (0.5, 0.5, 0.5), "imagenet": (0.229, 0.224, 0.225)}


class SeededShuffle(Sampler):
    """Every image once per epoch, in a random order, each with a seed for its own augmentation: (index, seed).

    The augmentation of an image depends on the epoch alone, not on the number of workers or processes.  The state of
    `generator` is all that a resumed training needs.  With `copies` above 1, so many successive items stay together and
    have one seed: the copies of an image that a pretext shows.
    """

    def __init__(self, length: int, seed: int, copies: int = 1):
        self.length, self.copies = length, copies
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self):
        """One epoch of (index, seed)."""
        order = torch.randperm(self.length // self.copies, generator=self.generator)
        seeds = torch.randint(2**31, (len(order),), generator=self.generator)
        for group, seed in zip(order.tolist(), seeds.tolist(), strict=True):
            yield from ((self.copies * group + copy, seed) for copy in range(self.copies))

    def __len__(self):
        """Images per epoch."""
        return self.length


class SceneDataset(DeviceDataset):
    """Scenes as network input.  Item: (image (3, S, S) float32, normalized for the resize rule, label).

    The key of an item is its index, or (index, seed) for an augmented image, which has `size` pixels a side.
    """

    def __init__(self, scenes: Scenes, resize: str, augmentation: Augmentation | None = None, size: int | None = None):
        self.scenes = scenes
        self.images, self.labels = DeviceImages(scenes.images), scenes.labels
        self.resize = resize
        self.augmentation = augmentation
        self.size = size or self.images.size

    def __len__(self):
        """Number of images."""
        return len(self.scenes)

    def __getitem__(self, key):
        """One image and its label."""
        images, labels = self.__getitems__([key])
        return images[0], int(labels[0])

    def __getitems__(self, keys):
        """A batch at once, as DataLoader asks for it: images (N, 3, S, S), labels (N,)."""
        indices, seeds = zip(*with_seeds(keys), strict=True)
        images = self.images[list(indices)]
        if self.augmentation is not None:
            images = augment(self.augmentation, images, seeds, self.size)
        return normalize(images, self.resize), torch.from_numpy(self.labels[list(indices)])


def normalize(images: torch.Tensor, resize: str) -> torch.Tensor:
    """Bytes or floats of 0 to 255 (N, 1 or 3, S, S) to network input: minus MEAN, divided by STD.

    It is float32 (N, 3, S, S) and channels last.  One gray channel becomes three.
    """
    mean, std = (255 * torch.tensor(values[resize], device=images.device) for values in (MEAN, STD))
    if images.dtype == torch.uint8 and images.shape[1] == 1:  # the same numbers, looked up in a third of the time
        table = (torch.arange(256, device=images.device)[:, None] - mean) / std
        return functional.embedding(images[:, 0].int(), table).permute(0, 3, 1, 2)
    shape = (len(images), 3, *images.shape[2:])
    normalized = torch.empty(shape, device=images.device, memory_format=torch.channels_last)
    for channel in range(3):  # faster than all at once, whose innermost dimension has three numbers
        values = images[:, min(channel, images.shape[1] - 1)].float()
        normalized[:, channel] = (values - mean[channel]) / std[channel]
    return normalized


@dataclass(frozen=True)
class Loaders:
    """The loaders of one experiment, each of (images, labels), and a description of the data for its result.

    `train` is shuffled and augmented; `train_in_order`, `val` and `test` are neither.
    """

    train: DataLoader
    train_in_order: DataLoader
    val: DataLoader
    test: DataLoader | None  # None where the test images must not be read
    class_names: tuple[str, ...]
    class_weights: torch.Tensor | None  # (classes,), of the loss
    data: dict  # name, fingerprint, images of each split, skipped images
    views_of_val: DataLoader | None = None  # what a joint-embedding pretext is evaluated on, instead of val and test

    def on(self, device: torch.device) -> "Loaders":
        """The same batches, made on a device; on a GPU, larger ones where images come in order.  Samplers are shared.

        Loaders of data sets without a method `on`, as `DeviceDataset` has it, stay as they are.
        """

        def moved(loader: DataLoader, at_least: int = 1) -> DataLoader:
            if not hasattr(loader.dataset, "on"):
                return loader
            batch_size = whole_batch(at_least) if loader.batch_size < at_least else loader.batch_size
            return build_loader(loader.dataset.on(device), batch_size, loader.sampler, loader.drop_last)

        at_least = EVALUATION_BATCH.get(device.type, 1)
        in_order = {name: getattr(self, name) for name in ("train_in_order", "val", "test")}
        loaders = {name: moved(each, at_least) for name, each in in_order.items() if each is not None}
        views = None if self.views_of_val is None else moved(self.views_of_val)
        return replace(self, train=moved(self.train), views_of_val=views, **loaders)

    def of_features(self, extract: Callable, device: str = "cpu", train: bool = True) -> "Loaders":
        """The same batches in the same order, of extract(images) (N, D) instead of images; computed here, once.

        Without `train`, the train loader still yields images, since augmented ones differ from epoch to epoch.
        """

        @torch.inference_mode()
        def features_of(loader):
            pairs = [(extract(images.to(device)).cpu(), labels) for images, labels in loader]
            return _FeatureDataset(torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]))

        names = ("train_in_order", "val", "test") if train else ("val", "test")
        loaders = {name: getattr(self, name) for name in names}
        in_order = {name: features_of(loader) for name, loader in loaders.items() if loader is not None}
        of_features = {name: build_loader(dataset, self.train.batch_size) for name, dataset in in_order.items()}
        if train:
            sampler = self._shuffled_anew()
            of_features["train"] = build_loader(in_order["train_in_order"], self.train.batch_size, sampler)
        return replace(self, **of_features)

    def in_batches_of(self, batch_size: int) -> "Loaders":
        """The same training images, in batches of another size."""
        return replace(self, train=build_loader(self.train.dataset, batch_size, self._shuffled_anew()))

    def _shuffled_anew(self) -> SeededShuffle:
        """The sampler of the training images, from its first epoch."""
        sampler = self.train.sampler
        return SeededShuffle(len(self.train.dataset), sampler.generator.initial_seed(), sampler.copies)


class _FeatureDataset(Dataset):
    """Features (N, D) and labels (N,), under the keys of SceneDataset."""

    def __init__(self, features, labels):
        self.features, self.labels = features.clone(), labels.clone()  # inference tensors cannot be trained on

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, keys):
        indices = [index for index, _ in with_seeds(keys)]
        return self.features[indices], self.labels[indices]


def build_loaders(experiment: Experiment, skip_bad_images: bool = False, progress: bool = True) -> Loaders:
    """The loaders of an experiment, over its data set `experiment.data` (a prepared name or a folder).

    Raises what `load_scenes_of` and `loaders_of` raise.
    """
    splits, data = load_scenes_of(experiment, skip_bad_images, progress)
    class_names = splits["train"].class_names
    return loaders_of(
        experiment,
        data,
        train=SceneDataset(
            splits["train"], experiment.resize, AUGMENTATIONS.get(experiment.augmentation), experiment.crop_size
        ),
        in_order={split: SceneDataset(scenes, experiment.resize) for split, scenes in splits.items()},
        class_names=class_names,
        class_weights=_class_weights(experiment, class_names),
    )


def load_scenes_of(
    experiment: Experiment, skip_bad_images: bool = False, progress: bool = True
) -> tuple[dict[str, Scenes], dict]:
    """The scenes of an experiment by split ("train", "val", "test"), and a description of them for its result.

    Raises what `locate` and `load_splits` raise.
    """
    root = locate(experiment.data)
    splits = load_splits(
        root, experiment.image_size, experiment.resize, skip_bad_images=skip_bad_images, progress=progress
    )
    skipped = [f"{split}/{name}" for split, scenes in splits.items() for name in scenes.skipped]
    if experiment.images_per_class is not None:
        splits = {split: scenes.first_of_each_class(experiment.images_per_class) for split, scenes in splits.items()}
    if experiment.subset < 1:
        for split in ("train", "val"):
            splits[split] = splits[split].share_of_each_class(experiment.subset, experiment.seed)
    return splits, {
        "name": root.name,
        "fingerprint": {split: scenes.fingerprint for split, scenes in splits.items()},
        "images": {split: len(scenes) for split, scenes in splits.items()},
        "skipped": skipped,
    }


def loaders_of(
    experiment: Experiment,
    data: dict,
    *,
    train: Dataset,
    in_order: dict[str, Dataset],
    class_names: tuple[str, ...],
    class_weights: torch.Tensor | None = None,
    copies: int = 1,
) -> Loaders:
    """Loaders of the experiment's batch size: `train` shuffled by its seed, the splits of `in_order` in order.

    `copies` is that of `SeededShuffle`.  Where there are fewer training images than a batch has, they are one batch.
    Raises ValueError for a single one, which BatchNorm cannot learn from.
    """
    batch_size = min(experiment.batch_size, len(train))
    if batch_size < experiment.batch_size:
        batch_size -= batch_size % number_of_processes()
        limits = [f"images_per_class = {experiment.images_per_class}"] * (experiment.images_per_class is not None)
        limits += [f"subset = {experiment.subset}"] * (experiment.subset < 1)
        words = f" with {' and '.join(limits)}" if limits else ""
        found = f"{data['name']} has {len(train)} training images{words}, fewer than a batch of {experiment.batch_size}"
        if batch_size < 2:
            raise ValueError(found)
        say_once(f"{found}: {'all of them are' if batch_size == len(train) else batch_size} one batch")
    at_once = whole_batch(max(experiment.batch_size, EVALUATION_BATCH["cpu"]))
    return Loaders(
        train=build_loader(train, batch_size, SeededShuffle(len(train), experiment.seed, copies)),
        train_in_order=build_loader(in_order["train"], at_once),
        val=build_loader(in_order["val"], at_once),
        test=build_loader(in_order["test"], at_once),
        class_names=class_names,
        class_weights=class_weights,
        data=data,
    )


def whole_batch(at_least: int) -> int:
    """The smallest batch of at least so many images that the processes divide evenly."""
    return -(-at_least // number_of_processes()) * number_of_processes()


def number_of_processes() -> int:
    """Of one training: each takes an equal part of a batch."""
    return max(1, int(os.environ.get("WORLD_SIZE") or 1))


def with_views_of(loaders: Loaders, val: Dataset) -> Loaders:
    """Loaders of a joint-embedding pretext: whole batches in training, and views of val."""
    train = loaders.train
    batches = build_loader(train.dataset, train.batch_size, train.sampler, drop_last=True)
    return replace(loaders, train=batches, views_of_val=build_loader(val, train.batch_size))


def _class_weights(experiment: Experiment, class_names: tuple[str, ...]) -> torch.Tensor | None:
    """The weight of each class in the loss, float32 (classes,), 1 where none is given; None without any.

    Raises ValueError that names a class the data do not have, or a weight that is not above 0 and finite.
    """
    if not experiment.class_weights:
        return None
    weights = torch.ones(len(class_names))
    for name, weight in experiment.class_weights:
        if name not in class_names:
            raise ValueError(f"{experiment.name}: class_weights names {name!r}, which is no class of the data")
        if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(f"{experiment.name}: the weight of {name!r} is {weight!r}; it must be above 0 and finite")
        weights[class_names.index(name)] = weight
    return weights


def build_loader(
    dataset: Dataset, batch_size: int, sampler: Sampler | None = None, drop_last: bool = False
) -> DataLoader:
    """Batches of a data set that makes a batch at once (`__getitems__`): in order, or as a sampler says."""
    # A generator of its own: else DataLoader draws its workers' seed from the global one, which dropout uses.
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler or SequentialSampler(dataset),
        collate_fn=_identity,
        generator=torch.Generator(),
        drop_last=drop_last or (isinstance(sampler, SeededShuffle) and len(dataset) % batch_size == 1),  # for BatchNorm
    )


def _identity(batch):
    return batch
