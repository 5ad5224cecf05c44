from dataclasses import replace

import pytest

from evaluation.pages.earlier_numbers import read_earlier_numbers
from self_supervised.settings import CIFAR10_REPORTED, EXPERIMENTS, ClassifierExperiment


def test_no_changed_field_turns_a_classifier_on_frozen_features_into_a_fine_tuned_one():
    for name, frozen in (("cifar10_rotation_classifier", False), ("cifar10_rotation_finetuned", True)):
        with pytest.raises(ValueError, match=f"{name}: freeze_features"):
            replace(EXPERIMENTS[name], freeze_features=frozen)


def test_an_unknown_source_of_batchnorm_statistics_is_refused():
    with pytest.raises(ValueError, match="mine: batchnorm is 'none'"):
        ClassifierExperiment("mine", "?", batchnorm="none")


def test_reported_accuracies_of_the_lab_report_are_those_that_it_states():
    reported = {each.what: each.accuracy for each in CIFAR10_REPORTED}
    start = "highest accuracy on the test set, "
    stated = {
        each.quantity.removeprefix(start): each.value for each in read_earlier_numbers() if each.document == "002"
    }
    assert reported["rotation, ResNet-18"] == stated["rotation"]
    assert reported["class, with the pretext"] == stated["pretext, fine-tuned"] == stated["pretext, features frozen"]
    assert reported["class, from scratch"] == stated["from scratch"]
