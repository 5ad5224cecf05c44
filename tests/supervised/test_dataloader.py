from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder

from data import on_device
from data.augment import AUGMENTATIONS
from supervised.dataloader import (
    EVALUATION_BATCH,
    MEAN,
    STD,
    build_loaders,
    normalize,
    with_views_of,
)
from supervised.settings import AUGMENTATION_NAMES, CROPS, Experiment
from tests.conftest import needs_gpu

IN_ORDER = ("val", "test", "train_in_order")


@pytest.fixture
def experiment(scene_folder, root):
    """An experiment on the scene folder, at 32 pixels."""
    return Experiment("mine", "?", data=str(scene_folder), image_size=32, batch_size=8)


def load(experiment, **changes):
    return build_loaders(replace(experiment, **changes), progress=False)


def all_of(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


@pytest.mark.parametrize("resize", ["squash", "imagenet"])
def test_images_equal_those_of_torchvisions_image_folder_and_transforms(experiment, scene_folder, resize):
    if resize == "squash":
        resizing = [v1.Resize((32, 32))]
    else:
        resizing = [v1.Resize(37, interpolation=v1.InterpolationMode.BICUBIC), v1.CenterCrop(32)]
    plain = ImageFolder(
        scene_folder / "val", v1.Compose([*resizing, v1.ToTensor(), v1.Normalize(MEAN[resize], STD[resize])])
    )
    images, labels = all_of(load(experiment, resize=resize).val)
    assert torch.equal(labels, torch.tensor(plain.targets))
    assert torch.allclose(images, torch.stack([image for image, _ in plain]), atol=1e-5)


@pytest.mark.parametrize("color", [False, True])
def test_batches_have_three_channels_last_of_gray_and_color_images(experiment, scene_folder, color):
    if color:
        for path in scene_folder.rglob("*.jpg"):
            Image.open(path).convert("RGB").save(path)
    images, labels = next(iter(load(experiment, augmentation="advanced").train))
    assert images.shape == (8, 3, 32, 32)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(experiment):
    loaders = load(experiment)
    first, second, ordered = all_of(loaders.train), all_of(loaders.train), all_of(loaders.train_in_order)

    def means(images):
        return sorted(images.mean(dim=(1, 2, 3)).tolist())

    assert not torch.equal(first[1], second[1])
    for images, labels in (first, second):
        assert means(images) == pytest.approx(means(ordered[0]))
        assert Counter(labels.tolist()) == Counter(ordered[1].tolist())


def test_two_heads_see_the_same_batches_and_two_seeds_do_not(experiment):
    shallow = all_of(load(experiment, augmentation="advanced").train)
    torch.rand(100)  # whatever else draws from the global generator
    deep = all_of(load(experiment, augmentation="advanced", head="deep").train)
    other = all_of(load(experiment, augmentation="advanced", seed=1).train)
    assert torch.equal(shallow[0], deep[0]) and torch.equal(shallow[1], deep[1])
    assert not torch.equal(shallow[0], other[0])


def test_augmentation_depends_on_the_epoch_and_not_on_workers_and_leaves_dropouts_draws_alone(experiment):
    train = load(experiment, augmentation="advanced_without_crop").train
    state = train.sampler.generator.get_state()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = all_of(train)[0], all_of(train)[0]
    assert torch.equal(torch.rand(3), expected)
    train.sampler.generator.set_state(state)
    by_workers = DataLoader(train.dataset, 8, sampler=train.sampler, collate_fn=train.collate_fn, num_workers=2)
    assert torch.equal(all_of(by_workers)[0], first) and not torch.equal(first, second)
    same_image = train.dataset.__getitems__([(0, seed) for seed in range(8)])[0]
    assert len({image.numpy().tobytes() for image in same_image}) > 4


def test_validation_and_test_images_are_never_augmented(experiment):
    augmented, plain = load(experiment, augmentation="advanced"), load(experiment)
    for name in IN_ORDER:
        assert torch.equal(all_of(getattr(augmented, name))[0], all_of(getattr(plain, name))[0])
    assert not torch.equal(all_of(augmented.train)[0], all_of(plain.train)[0])


def test_every_augmentation_that_an_experiment_can_name_is_there(experiment):
    assert set(AUGMENTATION_NAMES) - set(AUGMENTATIONS) == {"basic"}
    cropped = {name for name in AUGMENTATION_NAMES if name != "basic" and AUGMENTATIONS[name].crop_scale[0] < 1}
    assert cropped == set(CROPS)
    plain = load(experiment).train.dataset
    assert plain.augmentation is None


def test_an_augmented_batch_is_that_of_its_images_by_themselves_and_of_their_seeds(experiment):
    dataset = load(experiment, augmentation="advanced").train.dataset
    keys = [(3, 11), (0, 12), (3, 13), (3, 11)]
    images, labels = dataset.__getitems__(keys)
    for key, image, label in zip(keys, images, labels, strict=True):
        alone = dataset[key]
        assert torch.equal(alone[0], image) and alone[1] == label
    assert torch.equal(images[0], images[3]) and not torch.allclose(images[0], images[2], atol=0.1)


@pytest.mark.parametrize("resize", MEAN)
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_and_floats_are_normalized_to_the_last_bit_as_by_the_formula(resize, channels):
    images = torch.randint(0, 256, (3, channels, 9, 9), dtype=torch.uint8)
    mean, std = (255 * torch.tensor(values[resize]).view(3, 1, 1) for values in (MEAN, STD))
    expected = (images.float() - mean) / std
    for given in (images, images.float()):
        found = normalize(given, resize)
        assert torch.equal(found, expected) and found.is_contiguous(memory_format=torch.channels_last)


def test_a_crop_size_is_that_of_training_images_alone(experiment):
    loaders = load(experiment, augmentation="mild", image_size=64, crop_size=48)
    sizes = {name: next(iter(getattr(loaders, name)))[0].shape[2] for name in ("train", *IN_ORDER)}
    assert sizes == {"train": 48, "train_in_order": 64, "val": 64, "test": 64}


def test_features_come_in_the_order_of_the_images_they_were_computed_from(experiment):
    def extract(images):
        return images.mean(dim=3).flatten(1)

    loaders, features = load(experiment), load(experiment).of_features(extract)
    for _ in range(2):  # two epochs
        for (images, labels), (computed, same_labels) in zip(loaders.train, features.train, strict=True):
            assert torch.equal(labels, same_labels)
            assert torch.allclose(extract(images), computed, atol=1e-6)
    assert torch.equal(all_of(features.val)[1], all_of(loaders.val)[1])


def test_loaders_on_a_device_keep_their_images_and_order_and_have_larger_batches_in_order(experiment, monkeypatch):
    monkeypatch.setitem(EVALUATION_BATCH, "cpu", 10)
    loaders = load(experiment, augmentation="advanced")
    loaders = with_views_of(loaders, loaders.val.dataset)
    monkeypatch.setitem(EVALUATION_BATCH, "cpu", 16)  # as a GPU has larger ones
    moved, state = loaders.on(torch.device("cpu")), loaders.train.sampler.generator.get_state()
    in_order = {"train_in_order": [16, 16, 4], "val": [16, 2], "test": [16, 8]}
    for name, sizes in {"train": [8] * 4, "views_of_val": [8, 8, 2], **in_order}.items():
        images, labels = all_of(getattr(loaders, name))
        loaders.train.sampler.generator.set_state(state)
        found = all_of(getattr(moved, name))
        assert torch.equal(found[0], images) and torch.equal(found[1], labels)
        assert [len(labels) for _, labels in getattr(moved, name)] == sizes


@needs_gpu
@pytest.mark.parametrize("share", [on_device.RESIDENT_SHARE, 0.0])  # 0: images are copied batch by batch
@pytest.mark.parametrize("augmentation", ["basic", "advanced", "scene"])
def test_batches_of_a_gpu_are_those_of_the_cpu_but_for_rounding(experiment, monkeypatch, augmentation, share):
    monkeypatch.setattr(on_device, "RESIDENT_SHARE", share)
    loaders = load(experiment)
    loaders.train.dataset.augmentation = AUGMENTATIONS.get(augmentation)
    moved, state = loaders.on(torch.device("cuda")), loaders.train.sampler.generator.get_state()
    assert isinstance(moved.train.dataset.images.images, torch.Tensor) == (share > 0)
    for name in ("train", *IN_ORDER):
        images, labels = all_of(getattr(loaders, name))
        loaders.train.sampler.generator.set_state(state)
        found = all_of(getattr(moved, name))
        assert found[0].device.type == "cuda" and torch.equal(found[1], labels)
        # 0.04 is 5 of 255 gray levels; a pixel at the border of a rotated image may fall on either side
        assert ((found[0].cpu() - images).abs() < 0.04).double().mean() > 0.999


def test_class_weights_are_in_label_order_and_of_classes_that_exist(experiment):
    assert load(experiment, class_weights=(("striped", 1.5),)).class_weights.tolist() == [1.0, 1.0, 1.5]
    assert load(experiment).class_weights is None
    with pytest.raises(ValueError, match="coast"):
        load(experiment, class_weights=(("coast", 1.5),))


def test_batches_of_any_size_that_batchnorm_can_train_on(experiment):
    loaders = load(experiment, batch_size=7)  # 36 = 5 x 7 + 1
    assert [len(labels) for _, labels in loaders.train] == [7] * 5
    assert len(all_of(loaders.train_in_order)[1]) == 36
    assert [len(labels) for _, labels in loaders.in_batches_of(10).train] == [10, 10, 10, 6]


def test_images_per_class_limits_every_split_and_a_subset_those_that_are_learned_from(experiment):
    loaders = load(experiment, images_per_class=4)
    assert loaders.data["images"] == {"train": 12, "val": 12, "test": 12}
    assert np.bincount(all_of(loaders.test)[1]).tolist() == [4, 4, 4]
    assert load(experiment, subset=0.5).data["images"] == {"train": 18, "val": 9, "test": 24}


@pytest.mark.parametrize("changes", [{"images_per_class": 2}, {"subset": 0.2}, {"batch_size": 64}])
def test_fewer_images_than_a_batch_are_one_batch_which_is_said_with_what_limits_them(experiment, changes, capsys):
    loaders = load(experiment, **changes)
    images = loaders.data["images"]["train"]
    assert [len(labels) for _, labels in loaders.train] == [images] and images < changes.get("batch_size", 8)
    (field, value) = next(iter(changes.items()))
    limit = "a batch of 64" if field == "batch_size" else f"{field} = {value}, fewer than a batch of 8"
    assert f"{images} training images" in (said := capsys.readouterr().err) and limit in said


def test_skipped_images_are_named_in_the_data_of_the_result(experiment, scene_folder):
    (scene_folder / "train" / "dark" / "image_0001.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="image_0001"):
        load(experiment)
    loaders = build_loaders(experiment, skip_bad_images=True, progress=False)
    assert loaders.data["skipped"] == ["train/dark/image_0001.jpg"]
    assert loaders.data["images"]["train"] == 35
