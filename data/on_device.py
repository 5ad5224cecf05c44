"""Images as bytes on the device of the network, so that augmentation runs there."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from data.files import say_once
from data.image_cache import Selection

RESIDENT_SHARE = 0.25  # of the device's free memory that the images of one split may take


@dataclass(frozen=True)
class DeviceImages:
    """Images (N, C, S, S) that are indexed by a list or array of indices, and come as bytes on a device.

    They stay in their array, from which a batch is copied; or they are a tensor that lies on the device.
    """

    images: np.ndarray | Selection | torch.Tensor
    device: torch.device = torch.device("cpu")

    def __len__(self):
        """How many images there are."""
        return len(self.images)

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.images.shape[-1]

    def __getitem__(self, indices) -> torch.Tensor:
        """Bytes (N, C, S, S), a copy."""
        if isinstance(self.images, torch.Tensor):
            return self.images[torch.as_tensor(indices).to(self.device, non_blocking=True)]
        batch = torch.from_numpy(np.array(self.images[indices]))
        # Pinned memory is copied while the device computes and the next batch is read.
        return batch if self.device.type != "cuda" else batch.pin_memory().to(self.device, non_blocking=True)

    def on(self, device: torch.device) -> "DeviceImages":
        """The same on another device: all at once where they take at most RESIDENT_SHARE of its free memory."""
        if device.type != "cuda":
            return DeviceImages(self.images, device)
        needed, free = int(np.prod(self.images.shape)), torch.cuda.mem_get_info(device)[0]
        fits = needed <= RESIDENT_SHARE * free
        words = "lie on the device" if fits else "are copied batch by batch"
        say_once(f"{needed / 2**20:,.0f} MiB of images {words}, which has {free / 2**30:.1f} GiB free")
        return DeviceImages(torch.from_numpy(np.array(self.images)).to(device) if fits else self.images, device)


def with_seeds(keys: Iterable[int | tuple[int, int]]) -> list[tuple[int, int]]:
    """The keys of a batch as (index, seed); in evaluation the key is the index alone, which is its seed too."""
    pairs = [key if isinstance(key, tuple) else (key, key) for key in keys]
    return [(int(index), int(seed)) for index, seed in pairs]


class DeviceDataset(Dataset):
    """A data set whose `images` are `DeviceImages`, so that its batches can be made on another device."""

    images: DeviceImages
    labels: np.ndarray  # (N,), of all items, in order: known without their images

    def on(self, device: torch.device) -> "DeviceDataset":
        """The same data set on a device."""
        moved = copy.copy(self)
        moved.images = self.images.on(device)
        return moved
