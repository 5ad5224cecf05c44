"""What holds for every input of a kind: hypothesis samples inputs, and shows the smallest that breaks a rule."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from data.image_cache import Scenes, decode
from data.splits import ImageName, divide, divide_by_number
from evaluation.scorecam import scale_to_unit, score_cam
from self_supervised.dataloader import PRETEXTS
from supervised.dataloader import MEAN, STD, SeededShuffle, normalize

settings.register_profile(
    "ours", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("ours")

CLASS_SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 60), min_size=1)


def images_of(sizes: dict[str, int]) -> list[ImageName]:
    return [ImageName(None, name, f"{number}.jpg") for name, size in sizes.items() for number in range(size)]


# -------------------------------------------------------------------------------------------------------------- splits


@given(CLASS_SIZES, st.floats(0.05, 0.9))
def test_a_split_by_shares_has_every_image_once_and_is_stratified(sizes, share):
    images = images_of(sizes)
    split_of = divide(images, {"train": share, "test": 1 - share})
    assert split_of.keys() == set(images)
    counts = Counter((image.class_name, split) for image, split in split_of.items())
    for name, size in sizes.items():
        assert abs(counts[name, "train"] - share * size) <= 0.5 + 1e-9


@given(CLASS_SIZES, st.data())
def test_a_split_by_numbers_has_exactly_these_and_is_stratified(sizes, data):
    images = images_of(sizes)
    val = data.draw(st.integers(0, len(images) - 1))
    test = data.draw(st.integers(0, len(images) - 1 - val))
    split_of = divide_by_number(images, {"val": val, "test": test})
    counts = Counter(split_of.values())
    assert (counts["val"], counts["test"], counts.total()) == (val, test, len(images))
    by_class = Counter((image.class_name, split) for image, split in split_of.items())
    for name, size in sizes.items():
        assert abs(by_class[name, "val"] - val * size / len(images)) < 1


@given(CLASS_SIZES)
def test_a_split_does_not_depend_on_the_order_in_which_a_disk_lists_images(sizes):
    images = images_of(sizes)
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    assert divide(images, shares) == divide(images[::-1], shares)


def scenes_of(sizes: dict[str, int]) -> Scenes:
    labels = np.repeat(np.arange(len(sizes)), list(sizes.values()))
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(4, axis=2).repeat(4, axis=3)
    names = tuple(f"{name}/{number}.jpg" for name, size in sizes.items() for number in range(size))
    return Scenes(images, labels, names, tuple(sizes), "0")


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(4, 40), min_size=2), st.floats(0.3, 1), st.integers(0, 9))
def test_a_share_of_each_class_is_stratified_and_image_label_and_name_stay_together(sizes, share, seed):
    scenes = scenes_of(sizes)
    part = scenes.share_of_each_class(share, seed)
    for label, (name, size) in enumerate(sizes.items()):
        assert (part.labels == label).sum() == round(share * size), name
    for index in range(len(part)):
        original = int(part.images[index][0, 0, 0])
        assert part.names[index] == scenes.names[original]
        assert part.labels[index] == scenes.labels[original]
    assert len(set(part.names)) == len(part)


# ------------------------------------------------------------------------------------------------------------- loaders


@given(st.integers(1, 300), st.integers(0, 2**31 - 1), st.integers(0, 3))
def test_every_epoch_shows_every_image_once_and_continues_from_the_generators_state(length, seed, epochs_before):
    sampler = SeededShuffle(length, seed)
    for _ in range(epochs_before):
        assert sorted(index for index, _ in sampler) == list(range(length))
    resumed = SeededShuffle(length, 0)
    resumed.generator.set_state(sampler.generator.get_state())
    assert list(resumed) == list(sampler)


@given(st.sampled_from(sorted(MEAN)), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(0, 10**6))
def test_normalized_images_can_be_converted_back_to_their_bytes(resize, count, channels, seed):
    images = torch.randint(0, 256, (count, channels, 8, 8), generator=torch.Generator().manual_seed(seed))
    normalized = normalize(images.to(torch.uint8), resize)
    assert normalized.shape == (count, 3, 8, 8) and normalized.dtype == torch.float32
    mean, std = (torch.tensor(each[resize]).view(3, 1, 1) for each in (MEAN, STD))
    assert torch.equal((255 * (normalized * std + mean)).round().long(), images.expand(-1, 3, -1, -1))


@given(
    st.sampled_from(["L", "RGB", "RGBA", "P", "CMYK", "1", "LA"]),
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["squash", "imagenet"]),
    st.integers(8, 40),
)
def test_an_image_of_any_mode_and_shape_becomes_a_square_of_bytes(tmp_path, mode, width, height, resize, size):
    path = tmp_path / "image"
    Image.new(mode, (width, height)).save(path, "tiff" if mode in ("CMYK", "LA") else "png")
    found = decode(path, size, resize)
    assert found.dtype == np.uint8
    assert found.shape == (1 if mode in ("L", "LA", "1") else 3, size, size)


# ------------------------------------------------------------------------------------------------------------ pretexts


@given(st.integers(6, 20), st.sampled_from([1, 3]), st.integers(0, 10**6))
def test_a_rotation_is_undone_by_rotating_back(half, channels, seed):
    image = torch.randint(0, 256, (channels, 2 * half, 2 * half), generator=torch.Generator().manual_seed(seed))
    dataset = PRETEXTS["rotation"](image[None].to(torch.uint8).numpy(), "squash")
    for label in range(4):
        rotated = dataset.transform_batch(image[None].clone(), [label], [0])[0]
        assert torch.equal(rotated.rot90(-label, dims=(1, 2)), image)


@given(st.integers(10, 40), st.sampled_from([1, 3]), st.integers(0, 10**6))
def test_a_square_has_one_value_and_a_hundred_pixels_wherever_it_lies(size, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(1, 255, (channels, size, size), generator=generator).to(torch.uint8)  # neither 0 nor 255
    dataset = PRETEXTS["perturbation"](image[None].numpy(), "squash")
    for label, value in ((0, 0), (1, 255)):
        changed = dataset.transform_batch(image[None].clone(), [label], [seed])[0]
        differing = (changed != image).any(dim=0)
        assert differing.sum() == 100
        assert (changed[:, differing] == value).all()


@given(st.integers(2, 20), st.integers(0, 10**6))
def test_a_jigsaw_moves_quadrants_and_loses_none(half, seed):
    image = torch.randint(0, 256, (1, 2 * half, 2 * half), generator=torch.Generator().manual_seed(seed))
    dataset = PRETEXTS["jigsaw_2x2"](image[None].to(torch.uint8).numpy(), "squash")

    def quadrants(image):
        parts = [part for row in image.split(half, dim=1) for part in row.split(half, dim=2)]
        return Counter(tuple(part.flatten().tolist()) for part in parts)

    for label in range(24):
        assert quadrants(dataset.transform_batch(image[None].clone(), [label], [0])[0]) == quadrants(image)


# ----------------------------------------------------------------------------------------------------------- Score-CAM


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_a_scaled_map_fills_0_to_1_or_is_constant_and_zero(count, size, seed, scale):
    maps = scale * torch.randn(count, size, size, generator=torch.Generator().manual_seed(seed))
    scaled = scale_to_unit(maps)
    for each, original in zip(scaled, maps, strict=True):
        if original.max() == original.min():
            assert not each.any()
        else:
            assert each.min() == 0 and each.max() == pytest.approx(1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()


@settings(max_examples=25)
@given(st.integers(1, 4), st.sampled_from(["softmax", "probability"]), st.integers(1, 7), st.integers(0, 10**6))
def test_a_map_depends_on_its_image_alone_and_not_on_the_batch(network, count, weighting, batch_size, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 24, 24, generator=generator)
    targets = torch.randint(0, 4, (count,), generator=generator).tolist()
    together = score_cam(network, images, network[2], targets, weighting, batch_size).maps
    assert together.shape == (count, 24, 24)
    assert together.min() >= 0 and together.max() <= 1
    for index in range(count):
        alone = score_cam(network, images[index : index + 1], network[2], targets[index : index + 1], weighting)
        assert torch.allclose(together[index], alone.maps[0], atol=1e-4)
