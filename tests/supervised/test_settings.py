import re
from dataclasses import FrozenInstanceError, replace

import pytest

from data import scenes
from supervised import settings
from supervised.settings import (
    BASE,
    EXPERIMENTS,
    MEANS_EXPERIMENTS,
    NATURE_EXPERIMENTS,
    TEACHING_EXPERIMENTS,
    configure,
    find,
)


def test_names_are_unique_and_rows_frozen():
    assert len(EXPERIMENTS) == len(settings._TABLE)
    assert len(NATURE_EXPERIMENTS) == len(settings._NATURE_TABLE)
    assert all(name == row.name for name, row in {**EXPERIMENTS, **NATURE_EXPERIMENTS}.items())
    assert not EXPERIMENTS.keys() & NATURE_EXPERIMENTS.keys()
    with pytest.raises(FrozenInstanceError):
        BASE.head = "deep"


def test_rows_name_the_resize_rules_that_the_data_room_knows():
    assert settings.RESIZE_RULES == scenes.RESIZE_RULES  # apart, because settings know nothing of data


def differing(one, other):
    fields = {name for name in vars(one) if name not in ("name", "question", "earlier_accuracy", "train")}
    return {name for name in fields if getattr(one, name) != getattr(other, name)} | {
        f"train.{name}" for name in vars(one.train) if getattr(one.train, name) != getattr(other.train, name)
    }


@pytest.mark.parametrize(
    ("name", "base", "fields"),
    [
        ("supervised_2", "supervised_1", {"augmentation"}),
        ("supervised_3", "supervised_2", {"head"}),
        ("supervised_4", "supervised_2", {"class_weights"}),
        ("supervised_5", "supervised_2", {"train.optimizer"}),
        ("supervised_6", "supervised_2", {"train.learning_rate", "train.max_epochs", "train.step_epochs"}),  # shortened
        ("supervised_final", "supervised_4", {"augmentation"}),
        ("random_classifier", "imagenet_classifier", {"initial_weights"}),
    ],
)
def test_rows_that_are_compared_differ_in_one_thing(name, base, fields):
    assert differing(EXPERIMENTS[name], EXPERIMENTS[base]) == fields


@pytest.mark.parametrize(
    ("name", "base", "fields"),
    [
        ("nature_resnet18_sgd_1e-3", "nature_resnet18_sgd_1e-2", {"train.learning_rate"}),
        ("nature_resnet18_adam_1e-2", "nature_resnet18_sgd_1e-2", {"train.optimizer", "train.momentum"}),
        ("nature_resnet18_adam_1e-3", "nature_resnet18_adam_1e-2", {"train.learning_rate"}),
        ("nature_resnet18_sgd_1e-2_150", "nature_resnet18_sgd_1e-2", {"image_size"}),
        ("nature_resnet18_imagenet_sgd_1e-2", "nature_resnet18_sgd_1e-2_224", {"initial_weights"}),
        ("nature_efficientnet_adam_1e-3", "nature_efficientnet_adam_1e-2", {"train.learning_rate"}),
        ("nature_efficientnet_sgd_1e-2_224", "nature_efficientnet_sgd_1e-2", {"image_size"}),
    ],
)
def test_rows_of_the_nature_scenes_that_are_compared_differ_in_one_thing(name, base, fields):
    assert differing(NATURE_EXPERIMENTS[name], NATURE_EXPERIMENTS[base]) == fields


def test_rows_of_the_nature_scenes_are_found_and_keep_to_their_data_and_to_different_sizes():
    assert all(find(name).data == "nature" for name in NATURE_EXPERIMENTS)
    sizes = [find(f"nature_resnet18_sgd_1e-2{suffix}") for suffix in ("", "_150", "_224")]
    assert [row.image_size for row in sizes] == [80, 150, 224]
    assert len({configure(row, "quick").image_size for row in sizes}) == 3


def test_every_row_says_what_it_is_there_to_answer():
    rows = {**EXPERIMENTS, **MEANS_EXPERIMENTS, **TEACHING_EXPERIMENTS, **NATURE_EXPERIMENTS}
    assert all(row.question.endswith("?") for row in rows.values())


def test_what_each_means_gives_is_asked_one_change_at_a_time():
    best = EXPERIMENTS["supervised_short"]
    changes = {name: differing(row, best) for name, row in MEANS_EXPERIMENTS.items()}
    assert changes.pop("supervised_short_smaller_images") == {"image_size", "crop_size"}  # one thing: how large the pictures are
    assert all(len(fields) == 1 for fields in changes.values()) and find("supervised_short_smaller_images").crop_size == 224
    distilled = EXPERIMENTS["distilled"]
    assert all(len(differing(row, distilled)) == 1 for row in TEACHING_EXPERIMENTS.values())
    without = differing(find("supervised_long"), distilled)  # the control for its length has all but the teachers
    assert without == {"train.label_smoothing"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze_features": True, "frozen_stages": 0}, "freeze_features is on; a network that has teachers"),
        ({"class_weights": (("coast", 2.0),)}, "class_weights weigh labels"),
    ],
)
def test_what_teachers_cannot_teach_is_refused(changes, words):
    with pytest.raises(ValueError, match=f"distilled: {words}"):
        replace(EXPERIMENTS["distilled"], **changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head", "wide"),
        ("augmentation", "strong"),
        ("resize", "stretch"),
        ("image_size", 16),
        ("batch_size", 1),
        ("stages", ()),
        ("stages", (8, 6)),
        ("stages", (9,)),
        ("frozen_stages", 9),
        ("frozen_stages", -1),
        ("crop_size", 224),  # of the augmentation "basic", which does not crop
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_row_field_and_value(field, value):
    with pytest.raises(ValueError, match=re.escape(f"supervised_1: {field} is {value!r}")):
        replace(BASE, **{field: value})


def test_features_that_are_frozen_whole_are_not_frozen_in_part_too():
    with pytest.raises(ValueError, match="imagenet_classifier: frozen_stages is 4; .* freeze_features is on"):
        replace(EXPERIMENTS["imagenet_classifier"], frozen_stages=4)


def test_an_unknown_experiment_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no experiment 'supervised_9'.*supervised_final"):
        find("supervised_9")


def test_full_begins_with_imagenet_and_quick_with_random_weights_unless_told():
    assert configure(BASE, "full").initial_weights == "imagenet"
    assert configure(BASE, "quick").initial_weights == "random"
    assert configure(BASE, "quick", weights="weights.pth").initial_weights == "weights.pth"
    assert configure(EXPERIMENTS["random_classifier"], "full", weights="weights.pth").initial_weights == "random"


def test_quick_changes_size_and_length_and_nothing_else():
    for row in {**EXPERIMENTS, **NATURE_EXPERIMENTS}.values():
        quick = configure(row, "quick", weights=row.initial_weights)
        assert differing(row, quick) - {"batch_size", "crop_size", "teacher_seeds"} == {
            "image_size",
            "images_per_class",
            "train.max_epochs",
        }
        assert quick.batch_size == row.batch_size or row.name in NATURE_EXPERIMENTS


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="profile is 'fast'"):
        configure(BASE, "fast")
