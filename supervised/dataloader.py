"""Scenes in batches: transforms, their mean and std, loaders.

The first report's names stand at the end, for notebooks: `simple_15SceneData` has the augmentation "basic" and
`load_15SceneData` has "advanced", or "advanced_without_crop" without the crop.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from torchvision.transforms import v2

from data.image_cache import Scenes, load_splits
from data.prepare import locate
from supervised.settings import BASE, Experiment

EVALUATION_BATCH = 64  # images, at least: without gradients they need little memory, and small batches leave a GPU idle
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


class SceneDataset(Dataset):
    """Scenes as network input.  Item: (image (3, S, S) float32, normalized for the resize rule, label).

    The key of an item is its index, or (index, seed) for an augmented image.
    """

    def __init__(self, scenes: Scenes, resize: str, augmentation: Callable | None = None):
        self.scenes = scenes
        self.resize = resize
        self.augmentation = augmentation

    def __len__(self):
        """Number of images."""
        return len(self.scenes)

    def __getitem__(self, key):
        """One image and its label."""
        images, labels = self.__getitems__([key])
        return images[0], int(labels[0])

    def __getitems__(self, keys):
        """A batch at once, as DataLoader asks for it: images (N, 3, S, S), labels (N,)."""
        indices = [key if isinstance(key, int) else key[0] for key in keys]
        images = torch.from_numpy(self.scenes.images[indices])
        if self.augmentation is not None:
            images = torch.stack(
                [augment(image, self.augmentation, seed) for image, (_, seed) in zip(images, keys, strict=True)]
            )
        return normalise(images, self.resize), torch.from_numpy(self.scenes.labels[indices])


def augment(image: torch.Tensor, augmentation: Callable, seed: int) -> torch.Tensor:
    """Augment the bytes of one image (C, S, S) by its seed; for a batch torchvision would draw once."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return augmentation(image)


def normalise(images: torch.Tensor, resize: str) -> torch.Tensor:
    """Bytes (N, 1 or 3, S, S) to network input: float32 (N, 3, S, S), channels last, minus MEAN, divided by STD."""
    mean, std = (255 * torch.tensor(values[resize]).view(3, 1, 1) for values in (MEAN, STD))
    images = (images.float() - mean) / std  # one grey channel becomes three here
    return images.contiguous(memory_format=torch.channels_last)


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
        of_features = {name: _loader(dataset, self.train.batch_size) for name, dataset in in_order.items()}
        if train:
            sampler = SeededShuffle(len(self.train.dataset), self.train.sampler.generator.initial_seed())
            of_features["train"] = _loader(in_order["train_in_order"], self.train.batch_size, sampler)
        return replace(self, **of_features)

    def in_batches_of(self, batch_size: int) -> "Loaders":
        """The same training images, in batches of another size."""
        sampler = SeededShuffle(len(self.train.dataset), self.train.sampler.generator.initial_seed())
        return replace(self, train=_loader(self.train.dataset, batch_size, sampler))


class _FeatureDataset(Dataset):
    """Features (N, D) and labels (N,), under the keys of SceneDataset."""

    def __init__(self, features, labels):
        self.features, self.labels = features.clone(), labels.clone()  # inference tensors cannot be trained on

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, keys):
        indices = [key if isinstance(key, int) else key[0] for key in keys]
        return self.features[indices], self.labels[indices]


def build_augmentation(name: str, size: int) -> Callable | None:
    """Training transforms for one image of bytes (C, S, S); None for "basic".

    "crop" and "advanced" are the first report's.  "padded_crop" is the usual augmentation of CIFAR-10 (He et al. 2016:
    4 pixels of 32).  "trivial" adds TrivialAugment (Mueller and Hutter 2021) to a random crop and flip.  "mild" is a
    random crop of at least half the image, and a flip.
    """
    if name == "basic":
        return None
    if name == "padded_crop":
        return v2.Compose([v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip(0.5)])
    if name == "mild":
        crop = v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True)
        return v2.Compose([crop, v2.RandomHorizontalFlip(0.5)])
    if name == "trivial":
        crop = v2.RandomResizedCrop(size, antialias=True)
        return v2.Compose([crop, v2.RandomHorizontalFlip(0.5), v2.TrivialAugmentWide()])
    crop = [] if name == "advanced_without_crop" else [v2.RandomResizedCrop(size, antialias=True)]
    if name == "crop":
        return v2.Compose(crop)
    return v2.Compose([v2.RandomHorizontalFlip(0.5), *crop, v2.RandomRotation(20)])


def build_loaders(experiment: Experiment, skip_bad_images: bool = False, progress: bool = True) -> Loaders:
    """The loaders of an experiment, over its data set `experiment.data` (a prepared name or a folder).

    Raises what `load_scenes_of` and `loaders_of` raise.
    """
    splits, data = load_scenes_of(experiment, skip_bad_images, progress)
    augmentation = build_augmentation(experiment.augmentation, experiment.crop_size or experiment.image_size)
    class_names = splits["train"].class_names
    return loaders_of(
        experiment,
        data,
        train=SceneDataset(splits["train"], experiment.resize, augmentation),
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

    `copies` is that of `SeededShuffle`.  Raises ValueError if there are too few images for a batch.
    """
    if len(train) < experiment.batch_size:
        limits = [f"images_per_class = {experiment.images_per_class}"] * (experiment.images_per_class is not None)
        limits += [f"subset = {experiment.subset}"] * (experiment.subset < 1)
        words = f" with {' and '.join(limits)}" if limits else ""
        raise ValueError(
            f"{data['name']} has {len(train)} training images{words}, fewer than one batch of {experiment.batch_size}"
        )
    at_once = max(experiment.batch_size, EVALUATION_BATCH)
    return Loaders(
        train=_loader(train, experiment.batch_size, SeededShuffle(len(train), experiment.seed, copies)),
        train_in_order=_loader(in_order["train"], at_once),
        val=_loader(in_order["val"], at_once),
        test=_loader(in_order["test"], at_once),
        class_names=class_names,
        class_weights=class_weights,
        data=data,
    )


def with_views_of(loaders: Loaders, val: Dataset) -> Loaders:
    """Loaders of a joint-embedding pretext: whole batches in training, and views of val."""
    train = loaders.train
    batches = _loader(train.dataset, train.batch_size, train.sampler, drop_last=True)
    return replace(loaders, train=batches, views_of_val=_loader(val, train.batch_size))


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
            raise ValueError(f"{experiment.name}: class_weights names {name!r}, which is no class of the data")
        weights[class_names.index(name)] = weight
    return weights


def _loader(dataset: Dataset, batch_size: int, sampler: Sampler | None = None, drop_last: bool = False) -> DataLoader:
    # A generator of its own: else DataLoader draws its workers' seed from the global one, which dropout uses.
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler or SequentialSampler(dataset),
        collate_fn=_identity,
        generator=torch.Generator(),
        drop_last=drop_last or (sampler is not None and len(dataset) % batch_size == 1),  # too few for BatchNorm
    )


def _identity(batch):
    return batch
