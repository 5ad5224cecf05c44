"""Pretexts: labels made from the images themselves, and the loaders of every experiment.

A pretext of your own is one class: its label names, and how an image looks under each label.

    class FlippedDataset(PretextDataset):
        label_names = ("original", "flipped")

        def transform(self, image, label, generator):
            return image.flip(-1) if label == 1 else image

    PRETEXTS["flipped"] = FlippedDataset

`runs.run(PretextExperiment("flipped_1", "How well is a flip predicted?", pretext="flipped"))` then trains on it.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from self_supervised.settings import PretextExperiment
from supervised import dataloader as supervised
from supervised.dataloader import Loaders, augment, build_augmentation, load_scenes_of, loaders_of, normalise


class PretextDataset(Dataset):
    """Every image once under each label of the pretext.  Item: (image (3, S, S) float32, normalised, label).

    images: a sequence of bytes (C, S, S), C = 1 or 3, such as `Scenes.images`.  With n labels, item i is image i // n
    under label i % n.  The key is the item's index, or (index, seed) in training.  Random choices of a pretext, such as
    the place of a square, depend on the seed in training.  In evaluation they depend on the image's index, so they are
    the same in every epoch and for every label.

    A subclass defines `label_names` and `transform`, and nothing else.
    """

    label_names: tuple[str, ...]

    def __init__(self, images: Sequence, resize: str = "squash", augmentation: Callable | None = None):
        self.images = images
        self.resize = resize
        self.augmentation = augmentation

    def transform(self, image: torch.Tensor, label: int, generator: torch.Generator) -> torch.Tensor:
        """The bytes of an image (C, S, S) under `label`, of the same shape: augmented already, not yet normalized.

        Every random choice must use the generator.
        """
        raise NotImplementedError

    def item(self, index: int, seed: int | None = None) -> tuple[torch.Tensor, int]:
        """One item before normalization: bytes (C, S, S) and its label."""
        source, label = divmod(index, len(self.label_names))
        image = torch.from_numpy(np.array(self.images[source]))  # a copy: a transform may write into it
        if image.shape[-1] != image.shape[-2]:
            raise ValueError(f"image {source} is not square: {tuple(image.shape)}; {type(self).__name__} needs squares")
        if self.augmentation is not None and seed is not None:
            image = augment(image, self.augmentation, seed)
        generator = torch.Generator().manual_seed(source if seed is None else seed)
        return self.transform(image, label, generator), label

    def __len__(self):
        """Images times labels."""
        return len(self.images) * len(self.label_names)

    def __getitem__(self, key):
        """One image and its label."""
        images, labels = self.__getitems__([key])
        return images[0], int(labels[0])

    def __getitems__(self, keys):
        """A batch at once, as DataLoader asks for it: images (N, 3, S, S), labels (N,)."""
        items = [self.item(*key) if isinstance(key, tuple) else self.item(key) for key in keys]
        images = normalise(torch.stack([image for image, _ in items]), self.resize)
        return images, torch.tensor([label for _, label in items])


class RotatedDataset(PretextDataset):
    """Rotated counter-clockwise by 0, 90, 180 or 270 degrees (Gidaris et al. 2018).

    Quarter turns of a square move pixels without resampling, so neither shape nor smoothness reveals the rotation.
    """

    label_names = ("0 degrees", "90 degrees", "180 degrees", "270 degrees")

    def transform(self, image, label, generator):
        """The image after `label` quarter turns."""
        return torch.rot90(image, label, dims=(-2, -1))


class PerturbationDataset(PretextDataset):
    """With a black or a white square of 10x10 pixels at a random place (the first report).

    The square is set in the bytes of the resized image, to 0 or 255, so that no resize blurs it and no normalization
    changes its color.  Raises ValueError if the images are smaller than the square.
    """

    label_names = ("black", "white")
    square = 10  # pixels

    def transform(self, image, label, generator):
        """The image with the square, of 0 for label 0 and of 255 for label 1."""
        size = image.shape[-1]
        if size < self.square:
            raise ValueError(f"a square of {self.square} pixels does not fit into images of {size} pixels")
        top, left = torch.randint(size - self.square + 1, (2,), generator=generator).tolist()
        image[:, top : top + self.square, left : left + self.square] = 255 * label
        return image


class JigsawDataset(PretextDataset):
    """Its four quadrants in one of their 24 orders (after Noroozi and Favaro 2016, who use nine tiles with gaps).

    There is no gap between the quadrants, so edges that do not match reveal the order as well as the content does.
    Raises ValueError if the size is odd.
    """

    orders = tuple(itertools.permutations((1, 2, 3, 4)))
    label_names = tuple("".join(map(str, order)) for order in orders)

    def transform(self, image, label, generator):
        """The quadrants (1 2 above 3 4) in the order of the label's name."""
        size = image.shape[-1]
        if size % 2:
            raise ValueError(f"jigsaw_2x2 needs an even image size, got {size} pixels")
        quadrants = [half for row in image.chunk(2, dim=-2) for half in row.chunk(2, dim=-1)]
        first, second, third, fourth = (quadrants[number - 1] for number in self.orders[label])
        return torch.cat([torch.cat([first, second], dim=-1), torch.cat([third, fourth], dim=-1)], dim=-2)


PRETEXTS = {"rotation": RotatedDataset, "perturbation": PerturbationDataset, "jigsaw_2x2": JigsawDataset}


def build_loaders(experiment, skip_bad_images: bool = False, progress: bool = True) -> Loaders:
    """The loaders of any experiment; those of a pretext have the pretext's labels as classes.

    All labels of an image stay in its split.  Raises what `supervised.dataloader.build_loaders` raises, and ValueError
    for an unknown pretext.
    """
    if not isinstance(experiment, PretextExperiment):
        return supervised.build_loaders(experiment, skip_bad_images, progress)
    if experiment.pretext not in PRETEXTS:
        raise ValueError(
            f"{experiment.name}: there is no pretext {experiment.pretext!r}; there are: {', '.join(PRETEXTS)}"
        )
    pretext = PRETEXTS[experiment.pretext]
    splits, data = load_scenes_of(experiment, skip_bad_images, progress)
    augmentation = build_augmentation(experiment.augmentation, experiment.image_size)
    return loaders_of(
        experiment,
        data,
        train=pretext(splits["train"].images, experiment.resize, augmentation),
        in_order={split: pretext(scenes.images, experiment.resize) for split, scenes in splits.items()},
        class_names=pretext.label_names,
    )
