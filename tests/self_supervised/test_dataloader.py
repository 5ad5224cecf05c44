from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

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
from supervised.settings import Experiment

SIZE = 32


class FlippedDataset(PretextDataset):
    """The pretext of a user's own that the module's docstring shows."""

    label_names = ("original", "flipped")

    def transform(self, image, label, generator):
        return image.flip(-1) if label == 1 else image


ALL = {**PRETEXTS, "flipped": FlippedDataset}


@pytest.fixture
def images():
    """Six grey images of noise, without pure black or white."""
    return np.random.default_rng(0).integers(1, 255, (6, 1, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture
def experiment(scene_folder, root):
    """A pretext experiment on the scene folder, at 32 pixels."""
    return PretextExperiment("mine", "?", data=str(scene_folder), image_size=SIZE, batch_size=8)


def load(experiment, **changes):
    return build_loaders(replace(experiment, **changes), progress=False)


@pytest.mark.parametrize("name", ALL)
def test_every_pretext_follows_the_contract(name, images):
    before = images.copy()
    dataset = ALL[name](images, "squash", build_augmentation("advanced", SIZE))
    labels = len(dataset.label_names)
    assert len(dataset) == len(images) * labels
    assert len(set(dataset.label_names)) == labels
    # every image under every label, in order, and no two labels of an image look the same
    items = [dataset.item(index) for index in range(2 * labels)]
    assert [label for _, label in items] == 2 * list(range(labels))
    assert len({image.numpy().tobytes() for image, _ in items}) == len(items)
    assert {(image.dtype, image.shape) for image, _ in items} == {(torch.uint8, (1, SIZE, SIZE))}
    # without a seed nothing is augmented, and an item is always the same; with one it depends on the seed alone
    for index in range(labels):
        assert torch.equal(dataset.item(index)[0], dataset.item(index)[0])
        assert torch.equal(dataset.item(index, 7)[0], dataset.item(index, 7)[0])
    assert any(not torch.equal(dataset.item(index, 7)[0], dataset.item(index, 8)[0]) for index in range(labels))
    # a batch is its items, normalized, and the source images are untouched
    batch, batch_labels = dataset.__getitems__([(3, 5), (1, 6)])
    for image, (index, seed) in zip(batch, [(3, 5), (1, 6)], strict=True):
        expected = (dataset.item(index, seed)[0].float() / 255 - MEAN["squash"][0]) / STD["squash"][0]
        assert torch.allclose(image, expected.expand(3, -1, -1), atol=1e-6)
    assert batch_labels.tolist() == [3 % labels, 1 % labels]
    assert np.array_equal(images, before)
    with pytest.raises(ValueError, match="32, 40"):  # not square
        ALL[name]([np.zeros((1, 32, 40), dtype=np.uint8)])[0]


def test_rotations_are_counter_clockwise():
    image = np.array([[[1, 2], [3, 4]]], dtype=np.uint8)
    rotated = [RotatedDataset([image]).item(label)[0][0].tolist() for label in range(4)]
    assert rotated == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]


def place_of_square(dataset, images, index):
    return np.argwhere((dataset.item(index)[0] != torch.as_tensor(images[index // 2]))[0].numpy())


def test_a_perturbation_changes_exactly_10_by_10_pixels_to_black_or_white(images):
    dataset = PerturbationDataset(images)
    for index in range(len(dataset)):
        image, label = dataset.item(index)
        pixels = place_of_square(dataset, images, index)
        assert len(pixels) == 100 and np.ptp(pixels, axis=0).tolist() == [9, 9]
        assert set(image[0, *pixels.T].tolist()) == {255 * label}


@pytest.mark.parametrize("resize", ["squash", "imagenet"])
def test_a_white_square_is_exactly_white_in_what_the_network_gets(images, resize):
    white = PerturbationDataset(images, resize)[1][0]
    for channel in range(3):
        value = (1 - MEAN[resize][channel]) / STD[resize][channel]  # 255 after normalization, not 1.0
        assert torch.isclose(white[channel], torch.tensor(value), atol=1e-6).sum() == 100


def test_both_squares_of_a_validation_image_have_one_place_and_training_squares_lie_anywhere(images):
    dataset = PerturbationDataset(images)
    places = [tuple(place_of_square(dataset, images, index)[0]) for index in range(len(dataset))]
    assert places[0::2] == places[1::2]
    assert len(set(places)) > 3
    grey = PerturbationDataset(np.full((1, 1, SIZE, SIZE), 128, dtype=np.uint8))
    tops = {int(torch.nonzero(grey.item(0, seed)[0][0] == 0)[0, 0]) for seed in range(300)}
    assert tops == set(range(SIZE - 10 + 1))


def test_a_jigsaw_label_is_the_order_of_the_quadrants():
    image = np.kron([[1, 2], [3, 4]], np.ones((4, 4))).astype(np.uint8)[None]
    dataset = JigsawDataset([image])
    assert len(dataset) == 24
    for index, name in enumerate(dataset.label_names):
        shown = dataset.item(index)[0][0]
        assert "".join(str(int(shown[place])) for place in ((0, 0), (0, 7), (7, 0), (7, 7))) == name


@pytest.mark.parametrize(("dataset", "size"), [(PerturbationDataset, 8), (JigsawDataset, 33)])
def test_an_image_size_that_a_pretext_cannot_use_is_refused(dataset, size):
    with pytest.raises(ValueError, match=str(size)):
        dataset(np.zeros((1, 1, size, size), dtype=np.uint8))[0]


@pytest.mark.parametrize("name", PRETEXTS)
def test_an_epoch_shows_every_image_under_every_label_once(experiment, name):
    loaders, labels = load(experiment, pretext=name), len(PRETEXTS[name].label_names)
    counts = Counter(label for _, batch in loaders.train for label in batch.tolist())
    assert 36 * labels - counts.total() in (0, 1)  # a last batch of one image cannot train BatchNorm
    assert max(counts.values()) == 36
    assert sum(len(batch) for _, batch in loaders.val) == 18 * labels
    assert loaders.class_names == PRETEXTS[name].label_names
    assert loaders.data["images"] == {"train": 36, "val": 18, "test": 24}


def test_validation_images_are_not_augmented(experiment):
    plain, augmented = load(experiment), load(experiment, augmentation="crop")
    for name in ("val", "test", "train_in_order"):
        for (images, _), (others, _) in zip(getattr(plain, name), getattr(augmented, name), strict=True):
            assert torch.equal(images, others)
    assert not torch.equal(next(iter(plain.train))[0], next(iter(augmented.train))[0])


def test_two_runs_of_a_seed_see_the_same_squares(experiment):
    first, second = (
        torch.cat([images for images, _ in load(experiment, pretext="perturbation").train]) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_a_pretext_of_a_users_own_loads_by_its_name_and_an_unknown_one_is_refused(experiment, monkeypatch):
    with pytest.raises(ValueError, match="'flipped'.*rotation"):
        load(experiment, pretext="flipped")
    monkeypatch.setitem(PRETEXTS, "flipped", FlippedDataset)
    assert load(experiment, pretext="flipped").class_names == ("original", "flipped")


def test_experiments_without_a_pretext_have_the_classes_of_the_data(experiment):
    plain = Experiment("plain", "?", data=experiment.data, image_size=SIZE, batch_size=8)
    assert build_loaders(plain, progress=False).class_names == ("dark", "light", "striped")
