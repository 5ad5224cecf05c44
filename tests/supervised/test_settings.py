import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from supervised.settings import BASE, EXPERIMENTS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "resnet50"),
        ("head", "wide"),
        ("augmentation", "strong"),
        ("resize", "stretch"),
        ("image_size", 16),
        ("batch_size", 1),
        ("seed", -1),
        ("seed", 2**64),
        ("subset", 0),
        ("subset", 1.5),
        ("stages", ()),
        ("stages", (8, 6)),
        ("stages", (9,)),
        ("images_per_class", 0),
        ("images_per_class", -1),
        ("images_per_class", 2.5),
        ("image_size", "64"),
        ("batch_size", 16.5),
        ("seed", None),
        ("freeze_features", 1),
        ("subset", "half"),
        ("frozen_stages", 9),
        ("frozen_stages", -1),
        ("crop_size", 224),  # of "basic", which does not crop
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_experiment_field_and_value(field, value):
    with pytest.raises(ValueError, match=re.escape(f"supervised_1: {field} is {value!r}")):
        replace(BASE, **{field: value})


def test_values_of_numpy_and_paths_become_plain_types():
    training = replace(BASE.train, max_epochs=np.int32(3), learning_rate=np.float32(0.5), ema_decay=np.float64(0.25))
    numpy = {"seed": np.int64(1), "image_size": np.uint8(64), "subset": np.float16(0.5), "flip_tta": np.bool_(True)}
    others = {"stages": np.array([7, 8]), "images_per_class": torch.tensor(5), "save_epochs": [np.int64(2), "last"]}
    found = replace(BASE, **numpy, **others, train=training, data=Path("flowers"), initial_weights=Path("a/w.pth"))
    plain = {"seed": 1, "image_size": 64, "subset": 0.5, "flip_tta": True, "stages": (7, 8), "images_per_class": 5}
    plain |= {"save_epochs": (2, "last"), "data": "flowers", "initial_weights": "a/w.pth"}
    assert found == replace(BASE, **plain, train=replace(BASE.train, max_epochs=3, learning_rate=0.5, ema_decay=0.25))
    assert json.loads(json.dumps(asdict(found)))["train"]["max_epochs"] == 3


def test_a_training_setting_of_another_type_is_named():
    with pytest.raises(ValueError, match=r"max_epochs is 2\.5"):
        replace(BASE, train=replace(BASE.train, max_epochs=2.5))


def test_values_that_make_no_sense_together_are_refused():
    with pytest.raises(ValueError, match="frozen_stages is 4"):  # freeze_features freezes every stage
        replace(EXPERIMENTS["imagenet_classifier"], frozen_stages=4)
    with pytest.raises(ValueError, match="crop_size is 16"):
        replace(EXPERIMENTS["supervised_2"], crop_size=16)


@pytest.mark.parametrize(
    "changes", [{"freeze_features": True, "frozen_stages": 0}, {"class_weights": (("coast", 2.0),)}]
)
def test_frozen_features_and_class_weights_cannot_be_combined_with_distillation(changes):
    with pytest.raises(ValueError, match=f"distilled: {next(iter(changes))}"):
        replace(EXPERIMENTS["distilled"], **changes)


def test_features_are_the_same_in_every_epoch_only_where_frozen_and_not_augmented():
    frozen = replace(BASE, freeze_features=True)
    assert frozen.features_once
    assert not BASE.features_once and not replace(frozen, augmentation="crop").features_once


@pytest.mark.parametrize(
    ("mode", "all_once", "held_out_once"),
    [("eval", True, True), ("stochastic_depth", False, True), ("batchnorm", False, False), ("train", False, False)],
)
def test_features_are_computed_once_only_where_every_epoch_sees_the_same(mode, all_once, held_out_once):
    experiment = replace(EXPERIMENTS["imagenet_classifier"], frozen_mode=mode)
    assert (experiment.features_once, experiment.held_out_features_once) == (all_once, held_out_once)
