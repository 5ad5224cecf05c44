"""The synthetic scenes: the same bytes every time, classes and rotations identified by shape and not by brightness."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torchvision.datasets import ImageFolder

from data.synthetic import CLASS_NAMES, IMAGES_PER_CLASS, draw_scene, write_scenes

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data set as it is prepared, at 32 pixels."""
    return write_scenes(tmp_path_factory.mktemp("data") / "synthetic", size=SIZE)


@pytest.fixture(scope="module")
def splits(folder):
    """Split -> (images (N, 1, 32, 32) in about -2..2, labels (N,))."""
    found = {}
    for split in IMAGES_PER_CLASS:
        paths, labels = zip(*ImageFolder(folder / split).samples, strict=True)
        grays = np.stack([np.asarray(Image.open(path), dtype=np.float32) for path in paths])
        found[split] = (torch.from_numpy(grays)[:, None] / 64 - 2, torch.tensor(labels))
    return found


def files_of(folder):
    """Path below the folder -> bytes, of every image."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def rotated(images):
    """Every image at each of four rotations, and the quarter turns."""
    return torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)]), torch.arange(4).repeat_interleave(
        len(images)
    )


def network_accuracy(train, test, epochs):
    """Accuracy on `test` of a network of three convolutions after some epochs on `train`, both (images, labels)."""
    torch.manual_seed(0)
    layers = []
    for channels, filters in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(channels, filters, 3, stride=2, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(len(CLASS_NAMES)))
    network(train[0][:2])  # the last layer takes its size from the images
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(train[0])).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(train[0][batch]), train[1][batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return (network.eval()(test[0]).argmax(dim=1) == test[1]).float().mean().item()


def test_there_are_fifteen_classes_in_alphabetical_order():
    assert len(CLASS_NAMES) == 15
    assert list(CLASS_NAMES) == sorted(set(CLASS_NAMES))


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_every_call_draws_another_image_of_gray_bytes(class_name):
    generator = np.random.default_rng(0)
    first, second = (draw_scene(class_name, generator, SIZE) for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape == (SIZE, SIZE)
    assert not np.array_equal(first, second)


def test_the_same_generator_seed_draws_the_same_scene():
    first, second = (draw_scene("coast", np.random.default_rng(3), SIZE) for _ in range(2))
    assert np.array_equal(first, second)


def test_an_unknown_class_is_refused_by_name():
    with pytest.raises(ValueError, match="volcano"):
        draw_scene("volcano", np.random.default_rng(0), SIZE)


def test_the_same_arguments_write_the_same_bytes_and_another_seed_others(tmp_path):
    first, again, other = (
        files_of(write_scenes(tmp_path / name, {"train": 1}, SIZE, seed))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert first.keys() == other.keys()
    assert not set(first.values()) & set(other.values())


def test_an_image_depends_neither_on_the_order_nor_on_the_number_of_the_others(tmp_path):
    few = files_of(write_scenes(tmp_path / "few", {"train": 1, "test": 1}, SIZE))
    many = files_of(write_scenes(tmp_path / "many", {"test": 2, "train": 2}, SIZE))
    assert few.items() <= many.items()


def test_a_folder_that_has_scenes_is_refused_and_stays_as_it_is(tmp_path):
    before = files_of(write_scenes(tmp_path, {"train": 1}, SIZE))
    with pytest.raises(FileExistsError):
        write_scenes(tmp_path, {"train": 1}, SIZE, seed=1)
    assert files_of(tmp_path) == before


def test_every_split_reads_as_an_image_folder(folder):
    for split, count in IMAGES_PER_CLASS.items():
        images = ImageFolder(folder / split)
        assert tuple(images.classes) == CLASS_NAMES
        assert np.bincount(images.targets).tolist() == [count] * len(CLASS_NAMES)
    with Image.open(images.samples[0][0]) as image:
        assert (image.mode, image.size) == ("L", (SIZE, SIZE))


def test_no_image_appears_twice_in_any_split(folder):
    digests = [hashlib.sha256(content).hexdigest() for content in files_of(folder).values()]
    assert len(set(digests)) == len(digests) == 15 * sum(IMAGES_PER_CLASS.values())


def test_mean_and_spread_of_gray_do_not_identify_the_class(splits):
    features = {
        split: torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1) for split, (images, _) in splits.items()
    }
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    classifier.fit(features["train"].numpy(), splits["train"][1].numpy())
    assert classifier.score(features["test"].numpy(), splits["test"][1].numpy()) < 0.4


def test_a_small_network_learns_the_classes(splits):
    assert network_accuracy(splits["train"], splits["test"], epochs=10) > 0.8


def test_a_small_network_learns_how_a_scene_is_rotated(splits):
    assert network_accuracy(rotated(splits["train"][0]), rotated(splits["test"][0]), epochs=3) > 0.7
