import dataclasses
from dataclasses import replace

import pytest

from self_supervised.settings import (
    CIFAR10_CLASSIFIERS,
    CIFAR10_PRETEXTS,
    CLASSIFIER_EXPERIMENTS,
    EXPERIMENTS,
    PRETEXT_EXPERIMENTS,
    ClassifierExperiment,
    FineTunedExperiment,
    configure,
    find,
)
from supervised import settings as supervised


def test_names_are_unique_rows_frozen_and_every_row_asks_something():
    tables = (PRETEXT_EXPERIMENTS, CLASSIFIER_EXPERIMENTS, CIFAR10_PRETEXTS, CIFAR10_CLASSIFIERS)
    assert len(EXPERIMENTS) == sum(map(len, tables))
    assert not EXPERIMENTS.keys() & supervised.EXPERIMENTS.keys()
    for name, row in EXPERIMENTS.items():
        assert row.name == name
        assert row.question
        with pytest.raises(dataclasses.FrozenInstanceError):
            row.seed = 1


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_classifier_asks_for_an_epoch_that_its_pretext_keeps_and_sees_images_of_the_same_kind(profile):
    for row in CLASSIFIER_EXPERIMENTS.values():
        classifier = configure(row, profile)
        pretext = configure(PRETEXT_EXPERIMENTS[classifier.pretext_run], profile)
        assert classifier.pretext_epoch in ("best", *pretext.save_epochs), row.name
        assert classifier.pretext_epoch in ("best", "last") or classifier.pretext_epoch <= pretext.train.max_epochs
        assert (classifier.resize, classifier.image_size) == (pretext.resize, pretext.image_size)
        assert classifier.initial_weights == pretext.initial_weights
        assert classifier.freeze_features


def test_the_reports_rows_are_there_with_their_settings():
    """Appendix 12 of the first report and tables 1 to 3 of the second."""
    found = {
        name: (row.train.learning_rate, row.batch_size, row.head, row.augmentation, row.resize, row.earlier_accuracy)
        for name, row in EXPERIMENTS.items()
    }
    assert found["rotation_1"] == (0.001, 32, "shallow", "crop", "squash", 0.9678)
    assert found["rotation_classifier_1"] == (0.001, 32, "shallow", "advanced", "squash", 0.5182)
    assert found["rotation_classifier_2"] == (0.001, 32, "deep", "advanced", "squash", 0.5179)
    assert found["rotation_classifier_3"] == (0.001, 32, "shallow", "basic", "squash", 0.6298)
    assert found["perturbation_1"] == (0.001, 32, "shallow", "advanced_without_crop", "squash", 1.0)
    assert found["perturbation_classifier_3"] == (0.001, 32, "shallow", "basic", "squash", 0.6539)
    assert found["rotation_tuned"] == (1.055e-4, 14, "shallow", "basic", "imagenet", 0.9256)
    assert found["rotation_classifier_tuned"] == (1.320e-3, 16, "shallow", "basic", "imagenet", 0.8419)
    assert found["perturbation_tuned"] == (1.0e-5, 15, "shallow", "basic", "imagenet", 1.0)
    for epoch, accuracy in ((3, 0.8446), (6, 0.8265), (10, 0.8157)):
        row = EXPERIMENTS[f"perturbation_classifier_tuned_{epoch}"]
        assert found[row.name] == (2.018e-4, 13, "shallow", "basic", "imagenet", accuracy)
        assert row.pretext_epoch == epoch
    assert EXPERIMENTS["perturbation_searched"].train.learning_rate == 1.830e-3
    assert found["perturbation_searched_classifier"][-1] == 0.4355


def test_weights_of_the_users_reach_every_row_but_the_controls_from_scratch():
    for row in (*PRETEXT_EXPERIMENTS.values(), *CLASSIFIER_EXPERIMENTS.values()):
        expected = "random" if "scratch" in row.name else "a.pth"
        assert configure(row, "full", weights="a.pth").initial_weights == expected


def test_a_classifier_that_would_train_the_features_is_refused():
    with pytest.raises(ValueError, match="rotation_classifier_1: freeze_features is off"):
        replace(EXPERIMENTS["rotation_classifier_1"], freeze_features=False)
    assert isinstance(EXPERIMENTS["rotation_classifier_1"], ClassifierExperiment)


def test_fine_tuning_is_a_type_of_its_own_that_no_row_becomes_by_a_changed_field():
    frozen, tuned = find("cifar10_rotation_classifier"), find("cifar10_rotation_finetuned")
    assert isinstance(tuned, FineTunedExperiment)
    assert not tuned.freeze_features
    with pytest.raises(ValueError, match="cifar10_rotation_classifier: freeze_features is off"):
        replace(frozen, freeze_features=False)
    with pytest.raises(ValueError, match="cifar10_rotation_finetuned: freeze_features is on"):
        replace(tuned, freeze_features=True)
    fine_tuned = {name for name, row in EXPERIMENTS.items() if isinstance(row, FineTunedExperiment)}
    assert fine_tuned <= CIFAR10_CLASSIFIERS.keys()


def test_a_fine_tuned_row_and_the_one_from_scratch_differ_by_the_pretext_alone():
    for row in CIFAR10_CLASSIFIERS.values():
        if isinstance(row, FineTunedExperiment):
            scratch = vars(find(row.name.replace("rotation", "scratch").replace("_finetuned", "")))
            differing = {name for name, value in scratch.items() if getattr(row, name) != value}
            assert differing <= {"name", "question", "earlier_accuracy"}


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_rows_of_cifar10_fit_their_pretext_and_begin_with_random_weights_at_32_pixels(profile):
    for row in (*CIFAR10_PRETEXTS.values(), *CIFAR10_CLASSIFIERS.values()):
        row = configure(row, profile, weights="a.pth")
        assert (row.data, row.image_size, row.resize, row.initial_weights) == ("cifar10", 32, "squash", "random")
        if isinstance(row, ClassifierExperiment):
            pretext = configure(CIFAR10_PRETEXTS[row.pretext_run], profile)
            assert row.pretext_epoch == "best"
            assert row.network == pretext.network


def test_the_numbers_of_the_lab_report_stand_beside_the_rows_they_are_of():
    earlier = {name: row.earlier_accuracy for name, row in EXPERIMENTS.items() if name.startswith("cifar10")}
    assert {name: accuracy for name, accuracy in earlier.items() if accuracy is not None} == {
        "cifar10_rotation": 0.5093,
        "cifar10_rotation_classifier": 0.4055,
        "cifar10_rotation_finetuned": 0.4055,
        "cifar10_scratch": 0.3772,
    }
    assert find("cifar10_rotation").train.max_epochs == 10
    assert find("cifar10_rotation_resnet34").network == "resnet34"
    assert find("cifar10_rotation_resnet34").train.max_epochs == 30


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no experiment 'rotation_9'; there are: rotation_1, "):
        find("rotation_9")


@pytest.mark.parametrize("pretext", ["rotation", "perturbation"])
def test_a_batchnorm_head_row_differs_from_its_like_in_the_head_alone(pretext):
    plain, standardised = (EXPERIMENTS[f"{pretext}_classifier_3{words}"] for words in ("", "_batchnorm_head"))
    prose = {name: getattr(plain, name) for name in ("name", "question", "earlier_accuracy")}
    assert standardised.head == "batchnorm_linear" and plain.head == "shallow"
    assert replace(standardised, head="shallow", **prose) == plain
