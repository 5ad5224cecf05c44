import re
from dataclasses import replace

import pytest

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
        ("subset", 0),
        ("subset", 1.5),
        ("stages", ()),
        ("stages", (8, 6)),
        ("stages", (9,)),
        ("frozen_stages", 9),
        ("frozen_stages", -1),
        ("crop_size", 224),  # of "basic", which does not crop
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_experiment_field_and_value(field, value):
    with pytest.raises(ValueError, match=re.escape(f"supervised_1: {field} is {value!r}")):
        replace(BASE, **{field: value})


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
