from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data.augment import AUGMENTATIONS
from self_supervised.dataloader import (
    PRETEXTS,
    JigsawDataset,
    PerturbationDataset,
    PretextDataset,
    RotatedDataset,
    ViewsDataset,
    build_loaders,
)
from self_supervised.settings import JointEmbeddingExperiment, PretextExperiment
from supervised.dataloader import MEAN, STD
from supervised.dataloader import build_loaders as build_scene_loaders
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
    """Six gray images of noise, without pure black or white."""
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
    dataset = ALL[name](images, "squash", AUGMENTATIONS["advanced"])
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


@pytest.mark.parametrize(("name", "width"), [("perturbation", 10), ("perturbation_20", 20)])
def test_a_perturbation_changes_exactly_the_pixels_of_its_square_to_black_or_white(images, name, width):
    dataset = PRETEXTS[name](images)
    for index in range(len(dataset)):
        image, label = dataset.item(index)
        pixels = place_of_square(dataset, images, index)
        assert len(pixels) == width**2 and np.ptp(pixels, axis=0).tolist() == [width - 1, width - 1]
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
    gray = PerturbationDataset(np.full((1, 1, SIZE, SIZE), 128, dtype=np.uint8))
    tops = {int(torch.nonzero(gray.item(0, seed)[0][0] == 0)[0, 0]) for seed in range(300)}
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


def values_of(loader):
    """The sorted pixel values of each image, which no rotation and no jigsaw changes."""
    return {tuple(image.flatten().sort().values.tolist()) for images, _ in loader for image in images}


@pytest.mark.parametrize("name", ["rotation", "jigsaw_2x2"])
def test_all_copies_of_an_image_belong_to_the_split_of_its_scene(experiment, name):
    scenes = Experiment("scenes", "?", data=experiment.data, image_size=SIZE, batch_size=8)
    pretext, scenes = load(experiment, pretext=name), build_scene_loaders(scenes, progress=False)
    for split in ("train_in_order", "val", "test"):
        assert values_of(getattr(pretext, split)) == values_of(getattr(scenes, split))
    assert not values_of(pretext.train_in_order) & (values_of(pretext.val) | values_of(pretext.test))


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


@pytest.mark.parametrize(
    "names", [{"a", "b"}, "ab", ("a",), ("a", "a"), None], ids=["set", "text", "one", "twice", "none"]
)
def test_label_names_must_have_an_order_and_differ(images, names):
    with pytest.raises(ValueError, match="label_names of Mine"):
        type("Mine", (FlippedDataset,), {"label_names": names})(images)


@pytest.mark.parametrize(
    "transform",
    [
        lambda image: image / 255,
        lambda image: image.float(),
        lambda image: None,
        lambda image: image.numpy(),
        lambda image: image[:, ::2],
        lambda image: image.expand(3, -1, -1),
    ],
    ids=["0 to 1", "float", "None", "numpy", "half", "color"],
)
def test_a_transform_must_return_bytes_of_the_same_shape(images, transform):
    mine = type("Mine", (FlippedDataset,), {"transform": lambda self, image, *_: transform(image)})
    with pytest.raises(ValueError, match="transform of Mine must return torch.uint8"):
        mine(images)[0]


def test_experiments_without_a_pretext_have_the_classes_of_the_data(experiment):
    plain = Experiment("plain", "?", data=experiment.data, image_size=SIZE, batch_size=8)
    assert build_loaders(plain, progress=False).class_names == ("dark", "light", "striped")


# --------------------------------------------------------------------------------------------------------------- views


@pytest.fixture
def of_views(scene_folder, root):
    """A joint-embedding experiment on the scene folder."""
    return JointEmbeddingExperiment(
        "mine", "?", data=str(scene_folder), image_size=SIZE, view_size=SIZE, batch_size=8, resize="squash"
    )


def views_of(dataset, *keys):
    return dataset.__getitems__(list(keys))[0]


@pytest.fixture
def dataset(images, of_views):
    """Views of six images."""
    return ViewsDataset(images, np.arange(6), of_views)


def test_the_views_of_an_image_depend_on_its_index_and_seed_and_not_on_its_batch(dataset):
    batch = views_of(dataset, (3, 5), (1, 6), (3, 7), (3, 5), (0, 2**31 - 1))
    assert batch.shape == (5, 2, 3, SIZE, SIZE) and batch.dtype == torch.float32
    for views, key in zip(batch, [(3, 5), (1, 6), (3, 7), (3, 5), (0, 2**31 - 1)], strict=True):
        assert torch.allclose(dataset[key][0], views, atol=1e-5)
        assert (views[0] - views[1]).abs().max() > 0.1
    assert torch.allclose(batch[0], batch[3], atol=1e-5)
    assert (batch[0] - batch[2]).abs().max() > 0.1
    assert dataset.__getitems__([(3, 5), (1, 6)])[1].tolist() == [3, 1] and dataset[(4, 9)][1] == 4


def test_in_evaluation_views_depend_on_the_index_alone(dataset):
    batch = views_of(dataset, 0, 1, 2)
    assert torch.allclose(views_of(dataset, 2, 0), batch[[2, 0]], atol=1e-5)
    assert len({views.numpy().tobytes() for views in batch.flatten(0, 1)}) == 6


def test_views_are_normalized_as_other_images(of_views):
    """Images of one color, which neither crop, flip nor blur changes."""
    images = np.full((1, 3, SIZE, SIZE), 0, dtype=np.uint8) + np.array([10, 100, 200], dtype=np.uint8).reshape(3, 1, 1)
    for resize in ("squash", "imagenet"):
        experiment = replace(of_views, views="without_jitter", resize=resize, views_per_image=3)
        views = ViewsDataset(images, np.zeros(1), experiment)[0][0]
        expected = (torch.tensor([10, 100, 200]) / 255 - torch.tensor(MEAN[resize])) / torch.tensor(STD[resize])
        assert views.shape == (3, 3, SIZE, SIZE)
        assert torch.allclose(views, expected.view(3, 1, 1).expand_as(views), atol=1e-4)


def test_views_after_the_first_are_of_the_neighbors_that_are_given(of_views):
    brightness = np.arange(6) * 40  # of six images of one gray
    images = np.zeros((6, 1, SIZE, SIZE), dtype=np.uint8) + brightness.astype(np.uint8).reshape(6, 1, 1, 1)
    dataset = ViewsDataset(images, np.arange(6), replace(of_views, views="without_jitter", views_per_image=3))
    dataset.neighbors = (np.arange(6)[:, None] + [1, 3]) % 6

    def seen(*keys):
        grays = (views_of(dataset, *keys)[:, :, 0, 0, 0] * STD["squash"][0] + MEAN["squash"][0]) * 255
        return (grays / 40).round().int().tolist()

    shown = seen(*((index, seed) for index in range(6) for seed in range(20)))
    for number, (first, *others) in enumerate(shown):
        assert first == number // 20
        assert set(others) <= {(first + 1) % 6, (first + 3) % 6}
    assert {tuple(others) for first, *others in shown if first == 0} == {(1, 1), (1, 3), (3, 1), (3, 3)}
    assert seen((4, 7), (2, 5)) == seen((4, 7)) + seen((2, 5))


def test_loaders_of_views_train_in_whole_batches_and_have_scenes_in_order_besides(of_views):
    loaders = build_loaders(of_views, progress=False)
    batches = list(loaders.train)
    assert [views.shape for views, _ in batches] == [(8, 2, 3, SIZE, SIZE)] * 4  # of 36 images
    again = list(build_loaders(of_views, progress=False).train)
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(batches, again, strict=True))
    for split, count in (("train_in_order", 36), ("val", 18), ("test", 24)):
        labels = torch.cat([labels for _, labels in getattr(loaders, split)])
        assert labels.tolist() == sorted(labels.tolist()) and len(labels) == count
    assert next(iter(loaders.val))[0].shape[1:] == (3, SIZE, SIZE)
    assert loaders.class_names == ("dark", "light", "striped")


@pytest.mark.parametrize(("batch_size", "batches"), [(17, [17]), (9, [9, 9]), (30, [18])])  # of 18 images
def test_views_of_val_are_whole_batches_of_evenly_spaced_images(of_views, batch_size, batches):
    """A last batch of one image would have no variance, and VICReg no loss."""
    shown = list(build_loaders(replace(of_views, batch_size=batch_size), progress=False).views_of_val)
    assert [len(views) for views, _ in shown] == batches
    counts = Counter(label for _, labels in shown for label in labels.tolist())
    assert set(counts.values()) <= {5, 6} and len(counts) == 3


def test_images_without_labels_are_added_as_gray_as_the_others(of_views, tmp_path):
    generator, expected = np.random.default_rng(0), []
    for split in ("train", "val", "test"):
        for name in ("blue", "green"):
            folder = tmp_path / "colored" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                image = Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
                image.save(folder / f"{number}.png")
                if split == "train":
                    expected.append(np.array(image.convert("L")))
    plain = build_loaders(of_views, progress=False)
    loaders = build_loaders(replace(of_views, unlabelled=str(tmp_path / "colored")), progress=False)
    images, labels = (np.asarray(getattr(loaders.train.dataset, name)) for name in ("images", "labels"))
    assert images.shape == (44, 1, SIZE, SIZE) and images.dtype == np.uint8
    assert np.array_equal(images[:36], np.asarray(plain.train.dataset.images))  # in their order, then the others
    assert labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12 + [-1] * 8
    difference = np.abs(images[36:, 0].astype(int) - np.stack(expected))
    assert difference.max() <= 1 and difference.mean() < 0.01
    assert loaders.data["unlabelled"]["name"] == "colored"
    assert sum(len(views) for views, _ in loaders.train) == 40
    for split, count in (("train_in_order", 36), ("val", 18), ("views_of_val", 16)):
        assert sum(len(images) for images, _ in getattr(loaders, split)) == count


def test_copies_of_an_image_meet_in_one_batch_with_one_augmentation_where_the_experiment_says_so(experiment):
    for images, labels in load(experiment, copies="together", augmentation="advanced", batch_size=8).train:
        assert labels.tolist() == [0, 1, 2, 3] * (len(labels) // 4)
        for first in range(0, len(images), 4):
            upright = [torch.rot90(images[first + turns], -turns, dims=(-2, -1)) for turns in range(4)]
            assert all(torch.equal(upright[0], each) for each in upright)


def test_copies_of_an_image_are_apart_by_default(experiment):
    labels = [labels.tolist() for _, labels in load(experiment, batch_size=8).train]
    assert sorted(sum(labels, [])) == sorted([0, 1, 2, 3] * (len(sum(labels, [])) // 4))
    assert any(each != [0, 1, 2, 3] * (len(each) // 4) for each in labels)


def test_an_epoch_of_copies_together_shows_every_image_once_under_each_label_and_resumes(experiment):
    train = load(experiment, copies="together", batch_size=8).train
    keys = list(train.sampler)
    assert sorted(index for index, _ in keys) == list(range(len(train.dataset)))
    assert all(len({seed for _, seed in keys[first : first + 4]}) == 1 for first in range(0, len(keys), 4))
    state = train.sampler.generator.get_state()
    after = list(train.sampler)
    train.sampler.generator.set_state(state)
    assert list(train.sampler) == after != keys


def test_another_word_for_copies_is_refused(experiment):
    with pytest.raises(ValueError, match="copies is 'nearby'"):
        replace(experiment, copies="nearby")
