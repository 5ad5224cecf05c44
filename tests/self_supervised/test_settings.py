from dataclasses import replace

import pytest

from self_supervised.settings import CIFAR10_REPORTED, EXPERIMENTS, ClassifierExperiment


def test_no_changed_field_turns_a_classifier_on_frozen_features_into_a_fine_tuned_one():
    for name, frozen in (("cifar10_rotation_classifier", False), ("cifar10_rotation_finetuned", True)):
        with pytest.raises(ValueError, match=f"{name}: freeze_features"):
            replace(EXPERIMENTS[name], freeze_features=frozen)


def test_an_unknown_source_of_batchnorm_statistics_is_refused():
    with pytest.raises(ValueError, match="mine: batchnorm is 'none'"):
        ClassifierExperiment("mine", "?", batchnorm="none")


def test_reported_accuracies_of_the_lab_report_are_those_beside_its_experiments():
    reported = {each.what: each.accuracy for each in CIFAR10_REPORTED}
    for what, name in (
        ("rotation, ResNet-18", "cifar10_rotation"),
        ("class, with the pretext", "cifar10_rotation_finetuned"),
        ("class, from scratch", "cifar10_scratch"),
    ):
        assert reported[what] == EXPERIMENTS[name].earlier_accuracy
