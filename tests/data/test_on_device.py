import numpy as np
import pytest
import torch

from data.on_device import DeviceImages


@pytest.mark.parametrize("kind", [list, np.array])
def test_a_batch_of_images_that_lie_on_the_device_is_that_of_their_array(kind):
    array, indices = np.random.default_rng(0).integers(0, 256, (6, 1, 4, 4), dtype=np.uint8), [4, 0, 5, 4]
    resident, copied = DeviceImages(torch.from_numpy(array.copy())), DeviceImages(array)
    assert (len(resident), resident.size) == (len(copied), copied.size) == (6, 4)
    for images in (resident, copied):
        batch = images[kind(indices)]
        assert batch.dtype == torch.uint8 and np.array_equal(batch, array[indices])
        batch.zero_()  # a copy
        assert np.array_equal(images[kind(indices)], array[indices])
