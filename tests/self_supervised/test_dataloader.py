from collections import Counter

import numpy as np
import pytest
import torch

from data import scenes
from self_supervised import dataloader
from self_supervised.dataloader import (
    PRETEXTS,
    JigsawDataset,
    PerturbationDataset,
    PretextDataset,
    RotatedDataset,
    build_loaders,
)
from self_supervised.settings import PretextExperiment
from supervised.dataloader import MEAN, STD, build_augmentation

SIZE = 32


@pytest.fixture
def images():
    """Six grey images of noise, without pure black or white."""
    return np.random.default_rng(0).integers(1, 255, (6, 1, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture
def row(scene_folder, tmp_path, monkeypatch):
    """A pretext experiment on the scene folder, at 32 pixels."""
    monkeypatch.setattr(scenes, "STORES", tmp_path / "stores")
    return PretextExperiment("row", "?", data=str(scene_folder), image_size=SIZE, batch_size=8)


class MirroredDataset(PretextDataset):
    """The pretext of a user's own that the module's first lines show."""

    label_names = ("as it was", "mirrored")

    def transform(self, image, label, generator):
        return image.flip(-1) if label == 1 else image


ALL = {**PRETEXTS, "mirrored": MirroredDataset}


@pytest.mark.parametrize("name", ALL)
def test_every_pretext_keeps_the_contract(name, images):
    before = images.copy()
    augmentation = build_augmentation("advanced", SIZE)
    dataset = ALL[name](images, "squash", augmentation)
    labels = len(dataset.label_names)
    assert len(dataset) == len(images) * labels
    assert len(set(dataset.label_names)) == labels
    # every image under every label, in order, and no two labels of an image look the same
    items = [dataset.item(index) for index in range(2 * labels)]
    assert [label for _, label in items] == 2 * list(range(labels))
    seen = {image.numpy().tobytes() for image, _ in items}
    assert len(seen) == len(items)
    for image, _ in items:
        assert image.dtype == torch.uint8
        assert image.shape == (1, SIZE, SIZE)
    # without a seed nothing is augmented, and an item is always the same; with one it depends on the seed alone
    for index in range(labels):
        assert torch.equal(dataset.item(index)[0], dataset.item(index)[0])
        assert torch.equal(dataset.item(index, 7)[0], dataset.item(index, 7)[0])
    assert any(not torch.equal(dataset.item(index, 7)[0], dataset.item(index, 8)[0]) for index in range(labels))
    # a batch is its items, normalised, and the source images are untouched
    batch, batch_labels = dataset.__getitems__([(3, 5), (1, 6)])
    for image, (index, seed) in zip(batch, [(3, 5), (1, 6)], strict=True):
        expected = (dataset.item(index, seed)[0].float() / 255 - MEAN["squash"][0]) / STD["squash"][0]
        assert torch.allclose(image, expected.expand(3, -1, -1), atol=1e-6)
    assert batch_labels.tolist() == [3 % labels, 1 % labels]
    assert np.array_equal(images, before)


def test_a_quarter_turn_is_counter_clockwise_and_moves_pixels_without_changing_them():
    image = np.array([[[1, 2], [3, 4]]], dtype=np.uint8)
    turned = [RotatedDataset([image]).item(label)[0][0].tolist() for label in range(4)]
    assert turned == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]


def test_turns_of_a_crop_are_turns_of_the_same_kind_as_of_the_image(images):
    """Four quarter turns bring the very image back: nothing was resampled on the way."""
    dataset = RotatedDataset(images)
    for label in range(4):
        assert torch.equal(torch.rot90(dataset.item(label)[0], -label, dims=(-2, -1)), torch.as_tensor(images[0]))


@pytest.mark.parametrize("name", ALL)
def test_an_image_that_is_not_square_is_refused_with_its_shape(name):
    with pytest.raises(ValueError, match=r"image 0 is not square: \(1, 32, 40\)"):
        ALL[name]([np.zeros((1, 32, 40), dtype=np.uint8)])[0]


def test_the_square_changes_exactly_its_100_pixels_to_0_or_255(images):
    dataset = PerturbationDataset(images)
    for index in range(len(dataset)):
        image, label = dataset.item(index)
        rows, columns = np.nonzero((image != torch.as_tensor(images[index // 2]))[0].numpy())
        assert len(rows) == 100
        assert np.ptp(rows) == np.ptp(columns) == 9
        assert set(image[0, rows, columns].tolist()) == {255 * label}


def test_the_square_is_exact_in_what_the_network_gets(images):
    for resize in ("squash", "imagenet"):
        white = PerturbationDataset(images, resize)[1][0]
        for channel in range(3):
            value = (1 - MEAN[resize][channel]) / STD[resize][channel]  # 255 after normalisation, not 1.0
            assert torch.isclose(white[channel], torch.tensor(value), atol=1e-6).sum() == 100


def test_both_squares_of_a_validation_image_lie_in_one_place_and_those_of_others_elsewhere(images):
    dataset = PerturbationDataset(images)

    def place(index):
        return np.argwhere((dataset.item(index)[0] != torch.as_tensor(images[index // 2]))[0].numpy())[0].tolist()

    places = [place(index) for index in range(len(dataset))]
    assert places[0::2] == places[1::2]
    assert len({tuple(each) for each in places}) > 3


def test_training_squares_lie_anywhere(images):
    dataset = PerturbationDataset(np.full((1, 1, SIZE, SIZE), 128, dtype=np.uint8))
    tops = {int(torch.nonzero(dataset.item(0, seed)[0][0] == 0)[0, 0]) for seed in range(300)}
    assert tops == set(range(SIZE - 10 + 1))


def test_a_square_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="a square of 10 pixels does not fit into images of 8 pixels"):
        PerturbationDataset(np.zeros((1, 1, 8, 8), dtype=np.uint8))[0]


def test_a_jigsaw_label_reads_as_the_order_of_the_quadrants():
    image = np.kron([[1, 2], [3, 4]], np.ones((4, 4))).astype(np.uint8)[None]
    dataset = JigsawDataset([image])
    assert len(dataset) == 24
    for index, name in enumerate(dataset.label_names):
        shown = dataset.item(index)[0][0]
        assert "".join(str(int(shown[place])) for place in ((0, 0), (0, 7), (7, 0), (7, 7))) == name


def test_a_jigsaw_of_odd_size_is_refused():
    with pytest.raises(ValueError, match="even image size, got 33 pixels"):
        JigsawDataset(np.zeros((1, 1, 33, 33), dtype=np.uint8))[0]


@pytest.mark.parametrize("name", PRETEXTS)
def test_an_epoch_shows_every_image_under_every_label_once(row, name):
    row = PretextExperiment(**{**vars(row), "pretext": name})
    loaders = build_loaders(row, progress=False)
    labels = len(PRETEXTS[name].label_names)
    counts = Counter(label for _, batch in loaders.train for label in batch.tolist())
    left_out = 36 * labels - counts.total()  # a last batch of one image cannot train BatchNorm
    assert left_out in (0, 1)
    assert max(counts.values()) == 36
    assert sum(len(batch) for _, batch in loaders.val) == 18 * labels
    assert loaders.class_names == PRETEXTS[name].label_names
    assert loaders.data["images"] == {"train": 36, "val": 18, "test": 24}


def test_validation_images_are_not_augmented(row):
    cropped = PretextExperiment(**{**vars(row), "augmentation": "crop"})
    plain, augmented = build_loaders(row, progress=False), build_loaders(cropped, progress=False)
    for split in ("val", "test", "train_in_order"):
        for (images, _), (others, _) in zip(getattr(plain, split), getattr(augmented, split), strict=True):
            assert torch.equal(images, others)
    assert not torch.equal(next(iter(plain.train))[0], next(iter(augmented.train))[0])


def test_two_runs_of_a_seed_see_the_same_squares(row):
    row = PretextExperiment(**{**vars(row), "pretext": "perturbation"})
    first, second = (torch.cat([images for images, _ in build_loaders(row, progress=False).train]) for _ in range(2))
    assert torch.equal(first, second)


def test_a_pretext_of_ones_own_trains_by_its_name(row, monkeypatch):
    monkeypatch.setitem(dataloader.PRETEXTS, "mirrored", MirroredDataset)
    row = PretextExperiment(**{**vars(row), "pretext": "mirrored"})
    assert build_loaders(row, progress=False).class_names == ("as it was", "mirrored")


def test_an_unknown_pretext_is_refused_by_name(row):
    row = PretextExperiment(**{**vars(row), "pretext": "colour"})
    with pytest.raises(ValueError, match="row: there is no pretext 'colour'; there are: rotation, perturbation"):
        build_loaders(row)
