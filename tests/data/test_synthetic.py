"""The drawn scenes: the same every time, one class from another by shape alone, whole on disk or not there."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.datasets import ImageFolder

from data import synthetic
from data.synthetic import CLASS_NAMES, draw_scene, write_scenes

SIZE = 32


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A small data set on disk: 12 training and 6 test images a class, 64 pixels square."""
    return write_scenes(tmp_path_factory.mktemp("data") / "synthetic", {"train": 12, "test": 6}, size=64)


def files_of(folder):
    """Path below the folder -> bytes, of every image."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def held_out_accuracy(folder, features_of):
    """Accuracy on the test split of a linear classifier that learned from the train split."""
    features, labels = {}, {}
    for split in ("train", "test"):
        samples = ImageFolder(folder / split).samples
        greys = [np.asarray(Image.open(path), dtype=np.float32) for path, _ in samples]
        features[split] = np.stack([features_of(grey) for grey in greys])
        labels[split] = [label for _, label in samples]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return classifier.fit(features["train"], labels["train"]).score(features["test"], labels["test"])


def brightness_and_contrast(grey):
    """Mean and standard deviation of the greys."""
    return np.array([grey.mean(), grey.std()])


def coarse_edges(grey):
    """Strength of upright and level edges in 8 x 8 cells, free of brightness and contrast."""
    down, across = np.abs(np.gradient(grey))
    cell = grey.shape[0] // 8
    cells = np.stack([edges.reshape(8, cell, 8, cell).mean(axis=(1, 3)) for edges in (down, across)])
    return (cells / cells.mean()).ravel()


def test_names_are_the_15_scene_classes_in_order():
    assert CLASS_NAMES == (
        "bedroom", "coast", "forest", "highway", "industrial", "insidecity", "kitchen", "livingroom",
        "mountain", "office", "opencountry", "store", "street", "suburb", "tallbuilding",
    )  # fmt: skip


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_a_scene_is_a_grey_square_and_no_two_are_alike(class_name):
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


def test_every_split_reads_as_an_image_folder(scenes):
    for split, count in (("train", 12), ("test", 6)):
        images = ImageFolder(scenes / split)
        assert tuple(images.classes) == CLASS_NAMES
        assert np.bincount(images.targets).tolist() == [count] * len(CLASS_NAMES)
    with Image.open(images.samples[0][0]) as image:
        assert (image.mode, image.size) == ("L", (64, 64))


def test_no_image_appears_twice_in_any_split(scenes):
    digests = [hashlib.sha256(content).hexdigest() for content in files_of(scenes).values()]
    assert len(set(digests)) == len(digests) == 15 * 18


def test_brightness_does_not_tell_the_class_but_shape_does(scenes):
    assert held_out_accuracy(scenes, brightness_and_contrast) < 0.25
    assert held_out_accuracy(scenes, coarse_edges) > 0.8


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return draw_scene(*arguments)

    monkeypatch.setattr(synthetic, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", {"train": 1}, SIZE)
    assert len(calls) == 5
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_scenes(tmp_path, {"train": 1}, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    assert write_scenes(folder, {"train": 1}, SIZE) == folder
    assert len(files_of(folder)) == 15
