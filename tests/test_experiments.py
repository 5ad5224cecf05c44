"""The tables of experiments: names, comparisons, the earlier reports' settings, and what the quick profile changes."""

from dataclasses import FrozenInstanceError

import pytest

from data.augment import AUGMENTATIONS
from experiments import EXPERIMENTS, PROFILES, configure, find, prerequisites
from run_files import settings_of
from self_supervised import settings as self_supervised
from self_supervised.dataloader import PRETEXTS
from self_supervised.joint_embedding import METHODS
from self_supervised.settings import (
    ClassifierExperiment,
    FineTunedExperiment,
    JointEmbeddingExperiment,
    PretextExperiment,
    ProbeExperiment,
)
from supervised import settings as supervised

TABLES = (
    supervised.EXPERIMENTS,
    supervised.REPRODUCTION,
    supervised.ABLATIONS,
    supervised.DISTILLATION_ABLATIONS,
    supervised.NATURE_EXPERIMENTS,
    self_supervised.PRETEXT_EXPERIMENTS,
    self_supervised.CLASSIFIER_EXPERIMENTS,
    self_supervised.REPRODUCTION,
    self_supervised.JOINT_EMBEDDINGS,
    self_supervised.PROBES,
    self_supervised.NATURE_PRETEXTS,
    self_supervised.NATURE_PROBES,
    self_supervised.CIFAR10_PRETEXTS,
    self_supervised.CIFAR10_CLASSIFIERS,
)


def differing(one, other) -> set[str]:
    """The settings in which two experiments differ, besides their name."""

    def flat(experiment):
        settings = settings_of(experiment)
        training = settings.pop("train")
        return {**settings, **{f"train.{name}": value for name, value in training.items()}, "name": None}

    one, other = flat(one), flat(other)
    missing = object()
    return {name for name in one.keys() | other.keys() if one.get(name, missing) != other.get(name, missing)}


def test_names_are_unique_and_experiments_frozen_and_each_asks_a_question_of_its_own():
    assert len(EXPERIMENTS) == sum(map(len, TABLES))
    asked = [(each.data, each.question) for each in EXPERIMENTS.values() if each.compared_with]
    assert len(set(asked)) == len(asked)
    for name, experiment in EXPERIMENTS.items():
        assert experiment.name == name
        assert "?" in experiment.question
        with pytest.raises(FrozenInstanceError):
            experiment.seed = 1


def labels_of(experiment) -> str | tuple[str, ...]:
    if isinstance(experiment, JointEmbeddingExperiment):
        return "views"
    return PRETEXTS[experiment.pretext].label_names if isinstance(experiment, PretextExperiment) else "classes"


def test_experiments_are_compared_with_others_on_the_same_data_and_labels_and_never_in_a_circle():
    compared = {name: each for name, each in EXPERIMENTS.items() if each.compared_with}
    assert len(compared) > 50
    for experiment in compared.values():
        other = EXPERIMENTS[experiment.compared_with]
        assert other.data == experiment.data, experiment.name
        assert labels_of(other) == labels_of(experiment), experiment.name
        seen = [experiment.name]
        while other.compared_with:
            seen.append(other.name)
            other = EXPERIMENTS[other.compared_with]
            assert other.name not in seen


PRETEXT_ALONE = {"batchnorm", "pretext_epoch", "pretext_run"}  # fields that a control does not have
ADAM = {"train.optimizer", "train.momentum"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("supervised_2", {"augmentation"}),
        ("supervised_3", {"head"}),
        ("supervised_4", {"class_weights"}),
        ("supervised_5", {"train.optimizer"}),
        ("supervised_5_momentum", {"train.momentum"}),
        ("supervised_5_one_rate", {"train.schedule"}),
        ("supervised_6", {"train.learning_rate"}),
        ("supervised_final", {"augmentation", "class_weights"}),
        ("supervised_long", {"train.max_epochs"}),
        ("distilled", {"teacher_run", "teacher_seeds", "mixup", "train.label_smoothing"}),
        ("imagenet_classifier", {"initial_weights"}),
        ("rotation_classifier_2", {"head"}),
        ("rotation_classifier_3", PRETEXT_ALONE | {"train.stopping"}),
        ("rotation_classifier_3_batchnorm_head", {"head"}),
        ("perturbation_classifier_3_batchnorm_head", {"head"}),
        ("rotation_classifier_tuned_6", PRETEXT_ALONE),
        ("rotation_gentle_classifier", PRETEXT_ALONE),
        ("rotation_gentle_classifier_own_batchnorm", {"batchnorm"}),
        ("perturbation_searched_classifier", {"pretext_run", "pretext_epoch"}),
        ("perturbation_searched_classifier_epoch_2", {"pretext_epoch"}),
        ("perturbation_classifier_3_epoch_1", {"pretext_epoch", "pretext_run"}),
        ("perturbation_classifier_3_epoch_3", {"pretext_epoch"}),
        ("perturbation_searched_classifier_train_mode", {"frozen_mode"}),
        ("perturbation_searched_classifier_epoch_2_rate_1e-3", {"train.learning_rate"}),
        ("nature_resnet18_sgd_1e-3", {"train.learning_rate"}),
        ("nature_resnet18_adam_1e-2", ADAM),
        ("nature_resnet18_adam_1e-3", ADAM | {"train.learning_rate"}),
        ("nature_resnet18_sgd_1e-2_150", {"image_size"}),
        ("nature_resnet18_imagenet_sgd_1e-2", {"initial_weights"}),
        ("nature_efficientnet_sgd_1e-2_224", {"image_size"}),
        ("cifar10_rotation_classifier", PRETEXT_ALONE),
        ("cifar10_rotation_recipe_classifier", {"pretext_run"}),
        ("byol_classifier", {"pretext_run"}),
        ("imagenet_classifier_probe_last_stage", {"stages"}),
        ("byol_classifier_last_stage", {"pretext_run"}),
        ("byol_classifier_estimated", {"batchnorm"}),
        ("byol_scratch_classifier", {"pretext_run"}),
        ("byol_classifier_trained_head", PRETEXT_ALONE),
        ("nature_byol_classifier", {"pretext_run"}),
        ("cifar10_byol_classifier", {"pretext_run"}),
    ],
)
def test_compared_experiments_differ_in_what_is_asked_and_nothing_else(name, fields):
    experiment = find(name)
    assert differing(experiment, find(experiment.compared_with)) == fields


def test_ablations_change_one_thing_of_their_base():
    for table, base in ((supervised.ABLATIONS, "supervised_short"), (supervised.DISTILLATION_ABLATIONS, "distilled")):
        changes = {name: differing(each, find(base)) for name, each in table.items()}
        if base == "supervised_short":
            assert changes.pop("supervised_short_smaller_images") == {"image_size", "crop_size"}
        assert all(len(fields) == 1 for fields in changes.values())
        assert {each.compared_with for each in table.values()} == {base}


def test_joint_embeddings_differ_from_byol_in_one_thing_and_their_readouts_in_the_pretext_alone():
    asked = self_supervised.JOINT_EMBEDDINGS
    assert asked["byol"].method == "byol" and {each.method for each in asked.values()} == METHODS.keys()
    of_views = {name for name, each in AUGMENTATIONS.items() if each.antialias}
    assert {each.views for each in asked.values()} == of_views
    readouts = [each for each in EXPERIMENTS.values() if each.compared_with == "byol_classifier"]
    read = [find(each.pretext_run) for each in readouts if each.pretext_run != "byol"]
    assert len(read) > 15
    for pretext, readout in zip(read, [each for each in readouts if each.pretext_run != "byol"], strict=True):
        assert len(differing(pretext, asked["byol"])) == 1, pretext.name
        assert differing(readout, find("byol_classifier")) == {"pretext_run"}, readout.name


def test_probes_read_stages_5_to_8_of_image_and_flip_after_the_last_epoch_of_their_pretext():
    probes = [each for each in EXPERIMENTS.values() if isinstance(each, ProbeExperiment)]
    assert {each.stages for each in probes if not each.name.endswith("last_stage")} == {(5, 6, 7, 8)}
    for experiment in probes:
        assert (experiment.flip_tta, experiment.head) == (True, "batchnorm_linear") and experiment.freeze_features
        if experiment.pretext_run:
            assert experiment.pretext_epoch == "best" and find(experiment.pretext_run).train.keep == "last"


def test_fine_tuned_networks_and_their_controls_from_scratch_differ_in_the_pretext_alone():
    fine_tuned = [each for each in EXPERIMENTS.values() if isinstance(each, FineTunedExperiment)]
    assert len(fine_tuned) == 5
    for experiment in fine_tuned:
        assert differing(experiment, find(experiment.compared_with)) == PRETEXT_ALONE


@pytest.mark.parametrize("profile", PROFILES)
def test_every_classifier_asks_for_an_epoch_that_its_pretext_saves_and_sees_images_of_the_same_kind(profile):
    for experiment in EXPERIMENTS.values():
        if isinstance(experiment, ClassifierExperiment):
            classifier = configure(experiment, profile, weights="a.pth")
            if isinstance(experiment, ProbeExperiment) and not experiment.pretext_run:  # of the initial weights
                assert prerequisites(classifier, profile) == []
                continue
            [(pretext, epoch)] = prerequisites(classifier, profile)
            assert epoch in ("best", "last") or 1 <= epoch <= pretext.train.max_epochs
            assert epoch in ("best", *pretext.save_epochs), experiment.name
            for name in ("resize", "network", "initial_weights", "data"):
                assert getattr(classifier, name) == getattr(pretext, name), experiment.name
            if experiment.freeze_features:
                assert experiment.image_size == find(experiment.pretext_run).image_size


def test_quick_changes_size_and_length_and_nothing_else():
    size = {"image_size", "crop_size", "view_size", "images_per_class", "subset", "batch_size", "unlabelled"}
    length = {"train.max_epochs", "train.precision", "save_epochs", "pretext_epoch", "teacher_seeds"}
    for experiment in EXPERIMENTS.values():
        quick = configure(experiment, "quick", weights=experiment.initial_weights)
        assert differing(experiment, quick) <= size | length, experiment.name
        assert quick.images_per_class < 30 and quick.train.max_epochs < 15


def test_quick_fits_the_smallest_data():
    """Folders of two classes, and the side studies' own data."""
    for experiment in EXPERIMENTS.values():
        quick, classes = configure(experiment, "quick"), {"nature": 6, "cifar10": 10}.get(experiment.data, 2)
        labels = len(PRETEXTS[quick.pretext].label_names) if isinstance(quick, PretextExperiment) else 1
        assert classes * quick.images_per_class * labels >= quick.batch_size, experiment.name


def test_quick_keeps_the_three_image_sizes_of_the_nature_study_apart():
    sizes = [find(f"nature_resnet18_sgd_1e-2{suffix}") for suffix in ("", "_150", "_224")]
    assert [each.image_size for each in sizes] == [80, 150, 224]
    assert len({configure(each, "quick").image_size for each in sizes}) == 3


def test_the_experiments_of_the_earlier_reports_have_their_settings():
    """Appendix 12 of the first report, tables 1 to 3 of the second, and the lab report on CIFAR-10."""
    found = {
        name: (each.train.learning_rate, each.batch_size, each.head, each.augmentation, each.resize)
        for name, each in EXPERIMENTS.items()
    }
    assert found["supervised_1"] == (0.001, 32, "shallow", "basic", "squash")
    assert found["supervised_final"] == (0.001, 32, "shallow", "advanced_without_crop", "squash")
    assert found["supervised_tuned"] == (2.405e-5, 16, "shallow", "basic", "imagenet")
    assert found["rotation_1"] == (0.001, 32, "shallow", "crop", "squash")
    assert found["rotation_classifier_1"] == (0.001, 32, "shallow", "advanced", "squash")
    assert found["rotation_classifier_2"] == (0.001, 32, "deep", "advanced", "squash")
    assert found["perturbation_1"] == (0.001, 32, "shallow", "advanced_without_crop", "squash")
    assert found["rotation_tuned"] == (1.055e-4, 14, "shallow", "basic", "imagenet")
    assert found["rotation_classifier_tuned"] == (1.320e-3, 16, "shallow", "basic", "imagenet")
    assert found["perturbation_tuned"] == (1.0e-5, 15, "shallow", "basic", "imagenet")
    assert found["perturbation_classifier_tuned_10"] == (2.018e-4, 13, "shallow", "basic", "imagenet")
    assert find("perturbation_searched").train.learning_rate == 1.830e-3
    assert find("cifar10_rotation").train.max_epochs == 10
    assert find("cifar10_rotation_resnet34").train.max_epochs == 30
    assert {each.image_size for name, each in EXPERIMENTS.items() if name.startswith("cifar10")} == {32}


def test_the_accuracies_of_the_earlier_reports_stand_beside_their_experiments():
    earlier = {name: each.earlier_accuracy for name, each in EXPERIMENTS.items() if each.earlier_accuracy is not None}
    assert earlier == {
        "supervised_1": 0.9289,
        "supervised_2": 0.9185,
        "supervised_3": 0.9135,
        "supervised_4": 0.9219,
        "supervised_5": 0.7051,
        "supervised_6": 0.7269,
        "supervised_final": 0.9300,
        "supervised_tuned": 0.9374,
        "nature_resnet18_imagenet_sgd_1e-2": 0.97,
        "rotation_1": 0.9678,
        "rotation_tuned": 0.9256,
        "perturbation_1": 1.0,
        "perturbation_tuned": 1.0,
        "perturbation_searched": 1.0,
        "rotation_classifier_1": 0.5182,
        "rotation_classifier_2": 0.5179,
        "rotation_classifier_3": 0.6298,
        "rotation_classifier_tuned": 0.8419,
        "perturbation_classifier_1": 0.6197,
        "perturbation_classifier_2": 0.5996,
        "perturbation_classifier_3": 0.6539,
        "perturbation_classifier_tuned_3": 0.8446,
        "perturbation_classifier_tuned_6": 0.8265,
        "perturbation_classifier_tuned_10": 0.8157,
        "perturbation_searched_classifier": 0.4355,
        "perturbation_searched_classifier_epoch_2": 0.4114,
        "perturbation_searched_classifier_epoch_5": 0.4379,
        "cifar10_rotation": 0.5093,
        "cifar10_rotation_classifier": 0.4055,
        "cifar10_rotation_finetuned": 0.4055,
        "cifar10_scratch": 0.3772,
    }
