from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder

from data import scenes
from supervised import dataloader
from supervised.dataloader import MEAN, STD, SeededShuffle, build_augmentation, build_loaders
from supervised.settings import Experiment


@pytest.fixture
def row(scene_folder, tmp_path, monkeypatch):
    """An experiment on the scene folder, at 32 pixels."""
    monkeypatch.setattr(scenes, "STORES", tmp_path / "stores")
    return Experiment("row", "?", data=str(scene_folder), image_size=32, batch_size=8)


def all_of(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


@pytest.mark.parametrize("resize", ["squash", "imagenet"])
def test_a_batch_equals_the_plain_image_folder_with_to_tensor_and_normalize(row, scene_folder, resize):
    if resize == "squash":
        resizing = [v1.Resize((32, 32))]
    else:
        resizing = [v1.Resize(37, interpolation=v1.InterpolationMode.BICUBIC), v1.CenterCrop(32)]
    plain = ImageFolder(
        scene_folder / "val", v1.Compose([*resizing, v1.ToTensor(), v1.Normalize(MEAN[resize], STD[resize])])
    )
    images, labels = all_of(build_loaders(replace(row, resize=resize), progress=False).val)
    assert torch.equal(labels, torch.tensor(plain.targets))
    assert torch.allclose(images, torch.stack([image for image, _ in plain]), atol=1e-5)


def test_batches_come_channels_last_with_three_channels(row):
    images, labels = next(iter(build_loaders(row, progress=False).train))
    assert images.shape == (8, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(row):
    train = build_loaders(row, progress=False).train
    in_order = build_loaders(row, progress=False).train_in_order
    first, second, ordered = all_of(train), all_of(train), all_of(in_order)
    assert not torch.equal(first[1], second[1])
    for images, labels in (first, second):
        assert sorted(images.mean(dim=(1, 2, 3)).tolist()) == pytest.approx(
            sorted(ordered[0].mean(dim=(1, 2, 3)).tolist())
        )
        assert Counter(labels.tolist()) == Counter(ordered[1].tolist())


def test_two_heads_see_the_same_batches_and_two_seeds_do_not(row):
    augmented = replace(row, augmentation="advanced")
    shallow = all_of(build_loaders(augmented, progress=False).train)
    torch.rand(100)  # whatever else draws from the global generator
    deep = all_of(build_loaders(replace(augmented, head="deep"), progress=False).train)
    other = all_of(build_loaders(replace(augmented, seed=1), progress=False).train)
    assert torch.equal(shallow[0], deep[0])
    assert torch.equal(shallow[1], deep[1])
    assert not torch.equal(shallow[0], other[0])


def test_augmentation_does_not_depend_on_the_number_of_workers(row):
    augmented = build_loaders(replace(row, augmentation="advanced"), progress=False).train
    state = augmented.sampler.generator.get_state()
    alone = all_of(augmented)
    augmented.sampler.generator.set_state(state)
    workers = torch.utils.data.DataLoader(
        augmented.dataset, 8, sampler=augmented.sampler, collate_fn=augmented.collate_fn, num_workers=2
    )
    assert torch.equal(all_of(workers)[0], alone[0])


def test_augmentation_is_drawn_for_each_image_and_each_epoch_and_leaves_dropouts_draws_alone(row):
    train = build_loaders(replace(row, augmentation="advanced_without_crop"), progress=False).train
    same_image = train.dataset.__getitems__([(0, seed) for seed in range(8)])[0]
    assert len({image.numpy().tobytes() for image in same_image}) > 4
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    all_of(train)
    assert torch.equal(torch.rand(3), expected)


def test_validation_images_are_never_augmented(row):
    augmented = build_loaders(replace(row, augmentation="advanced"), progress=False)
    plain = build_loaders(row, progress=False)
    for split in ("val", "test", "train_in_order"):
        assert torch.equal(all_of(getattr(augmented, split))[0], all_of(getattr(plain, split))[0])
        assert torch.equal(all_of(getattr(augmented, split))[0], all_of(getattr(augmented, split))[0])


def test_augmentations_do_what_their_names_say():
    image = torch.arange(32 * 32, dtype=torch.uint8).reshape(1, 32, 32)
    assert build_augmentation("basic", 32) is None
    for name, crops in (("advanced", True), ("advanced_without_crop", False)):
        steps = [type(step).__name__ for step in build_augmentation(name, 32).transforms]
        assert ("RandomResizedCrop" in steps) is crops
        assert {"RandomHorizontalFlip", "RandomRotation"} <= set(steps)
        augmented = build_augmentation(name, 32)(image)
        assert augmented.shape == image.shape
        assert augmented.dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("padded_crop", ["RandomCrop", "RandomHorizontalFlip"]),
        ("mild", ["RandomResizedCrop", "RandomHorizontalFlip"]),
        ("trivial", ["RandomResizedCrop", "RandomHorizontalFlip", "TrivialAugmentWide"]),
    ],
)
def test_augmentations_of_the_side_studies_and_the_best_row_take_grey_and_colour(name, steps, channels):
    image = torch.randint(256, (channels, 32, 32), dtype=torch.uint8)
    augmentation = build_augmentation(name, 32)
    assert [type(step).__name__ for step in augmentation.transforms] == steps
    drawn = [augmentation(image) for _ in range(20)]
    assert all(each.shape == image.shape and each.dtype == torch.uint8 for each in drawn)
    assert any(not torch.equal(each, image) for each in drawn)


def test_a_crop_size_is_that_of_training_images_alone(row):
    loaders = build_loaders(replace(row, augmentation="mild", image_size=64, crop_size=48), progress=False)
    sides = {
        name: next(iter(getattr(loaders, name)))[0].shape[2:] for name in ("train", "train_in_order", "val", "test")
    }
    assert sides == {"train": (48, 48), "train_in_order": (64, 64), "val": (64, 64), "test": (64, 64)}
    for wrong in ({"crop_size": 48}, {"crop_size": 48, "augmentation": "padded_crop"}, {"crop_size": 16}):
        with pytest.raises(ValueError, match=f"crop_size is {wrong['crop_size']} and augmentation"):
            replace(row, **wrong)


def test_features_come_in_the_same_order_as_the_images_they_were_computed_from(row):
    loaders = build_loaders(row, progress=False)
    features = build_loaders(row, progress=False).of_features(lambda images: images.mean(dim=3).flatten(1))
    for _ in range(2):  # two epochs
        for (images, labels), (computed, same_labels) in zip(loaders.train, features.train, strict=True):
            assert torch.equal(labels, same_labels)
            assert torch.allclose(images.mean(dim=3).flatten(1), computed, atol=1e-6)
    assert torch.equal(all_of(features.val)[1], all_of(loaders.val)[1])


def test_class_weights_stand_in_label_order(row):
    weights = build_loaders(replace(row, class_weights=(("striped", 1.5),)), progress=False).class_weights
    assert weights.tolist() == [1.0, 1.0, 1.5]
    assert build_loaders(row, progress=False).class_weights is None
    with pytest.raises(ValueError, match="row weighs class 'coast', which the data does not have"):
        build_loaders(replace(row, class_weights=(("coast", 1.5),)), progress=False)


def test_too_few_images_for_a_batch_are_named(row):
    with pytest.raises(ValueError, match="36 training images, fewer than one batch of 64"):
        build_loaders(replace(row, batch_size=64), progress=False)


def test_a_last_batch_of_one_image_is_left_out_of_training_only(row):
    loaders = build_loaders(replace(row, batch_size=7), progress=False)  # 36 = 5 x 7 + 1
    assert [len(labels) for _, labels in loaders.train] == [7] * 5
    assert len(all_of(loaders.train_in_order)[1]) == 36


def test_images_per_class_limits_every_split(row):
    loaders = build_loaders(replace(row, images_per_class=4), progress=False)
    assert loaders.data["images"] == {"train": 12, "val": 12, "test": 12}
    assert np.bincount(all_of(loaders.test)[1]).tolist() == [4, 4, 4]


def test_images_that_were_skipped_stand_in_the_data_of_the_result(row, scene_folder):
    (scene_folder / "train" / "dark" / "image_0001.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="image_0001"):
        build_loaders(row, progress=False)
    loaders = build_loaders(row, skip_bad_images=True, progress=False)
    assert loaders.data["skipped"] == ["train/dark/image_0001.jpg"]
    assert loaders.data["images"]["train"] == 35


def test_coloured_folders_work_as_grey_ones(row, scene_folder):
    for path in scene_folder.rglob("*.jpg"):
        Image.open(path).convert("RGB").save(path)
    assert next(iter(build_loaders(replace(row, augmentation="advanced"), progress=False).train))[0].shape[1] == 3


def test_a_seeded_shuffle_goes_on_from_its_generators_state():
    sampler = SeededShuffle(20, seed=0)
    list(sampler)
    state = sampler.generator.get_state()
    second = list(sampler)
    resumed = SeededShuffle(20, seed=9)
    resumed.generator.set_state(state)
    assert list(resumed) == second


def test_the_earlier_names_still_build_loaders(row, scene_folder):
    for build in (dataloader.simple_15SceneData, dataloader.load_15SceneData):
        loaders = build(batch_size=4, data=scene_folder)
        assert next(iter(loaders.train))[0].shape == (4, 3, 224, 224)
        assert next(iter(loaders.val))[0].shape[1:] == (3, 224, 224)
    assert dataloader.simple_15SceneData(4, scene_folder).train.dataset.augmentation is None
    steps = dataloader.load_15SceneData(4, scene_folder, crop=False).train.dataset.augmentation.transforms
    assert "RandomResizedCrop" not in [type(step).__name__ for step in steps]
