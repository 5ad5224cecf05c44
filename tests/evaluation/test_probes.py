import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize
from torch import nn

from evaluation.metrics import accuracy_interval, mean_and_interval
from evaluation.probes import (
    draw_of_each_class,
    label_fractions,
    linear_probe,
    mean_of_draws,
    nearest_neighbours,
    probe_stages,
    stage_features,
)
from supervised.models import SceneClassifier, calibrate_batchnorm


def clouds(images, classes=3, channels=8, distance=6.0, seed=0):
    """Features (images, channels) of classes that lie `distance` standard deviations from the middle, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    return (generator.standard_normal((images, channels)) + distance * np.eye(channels)[labels]).astype("f4"), labels


def splits_of(images=(60, 30, 45), **options):
    return {
        split: clouds(count, seed=seed, **options)
        for seed, (split, count) in enumerate(zip(("train", "val", "test"), images, strict=True))
    }


class TwoStages(nn.Module):
    """A first stage that keeps both channels, a second that keeps only the last; there is no need of a classifier."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Identity(), nn.Conv2d(2, 1, 1, bias=False))
        self.features[1].weight.data = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)


def images_with_class_in_first_channel(count, seed):
    """One batch a loader: the brightness of the first channel tells the class, the second is noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.rand(count, 2, 4, 4, generator=generator)
    images[:, 0] += 3 * labels[:, None, None]
    return [(images, labels)]


def test_features_of_a_model_that_sees_mirror_images_too_are_those_of_its_head():
    torch.manual_seed(0)
    model = SceneClassifier(2, stages=(2, 8), flip_tta=True)
    images = torch.randn(3, 3, 32, 32)
    calibrate_batchnorm(model.features, [(images, None)])
    stages, _ = stage_features(model, [(images, torch.tensor([0, 1, 0]))])
    with torch.inference_mode():
        expected = model.eval().pooled_features(images).numpy()
        assert np.abs(expected[:, :24] - model.features[:3](images).mean(dim=(2, 3)).numpy()).max() > 1e-3
    np.testing.assert_allclose(np.concatenate([stages[2], stages[8]], axis=1), expected, atol=1e-5)


def test_a_stage_is_the_mean_of_its_maps_over_the_whole_loader(small_network):
    images, labels = torch.randn(7, 3, 16, 16), torch.arange(7)
    small_network.features[1].running_mean.fill_(0.5)
    stages, found = stage_features(small_network, [(images[:4], labels[:4]), (images[4:], labels[4:])])
    small_network.eval()
    with torch.no_grad():
        for length, stage in enumerate(stages, start=1):
            expected = small_network.features[:length](images).mean(dim=(2, 3))
            assert stage.shape == (7, 8) and stage.dtype == np.float32
            assert np.allclose(stage, expected.numpy(), atol=1e-6)
    assert len(stages) == 3
    assert found.tolist() == labels.tolist()


def test_every_stage_runs_once_a_batch(small_network):
    calls = []
    for number, stage in enumerate(small_network.features):
        stage.register_forward_hook(lambda *_, number=number: calls.append(number))
    stage_features(small_network, [(torch.randn(2, 3, 8, 8), torch.zeros(2))] * 2)
    assert calls == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("broken", [False, True])
def test_every_module_runs_in_eval_mode_and_is_left_in_its_own(small_network, broken):
    def watch(module, *_):
        modes.append(module.training)
        if broken:
            raise RuntimeError("broken")

    modes = []
    small_network.train()
    small_network.features[1].eval()  # a mode of its own, which one call of train() would not put back
    small_network.features[2].register_forward_hook(watch)
    with pytest.raises(RuntimeError, match="broken") if broken else nullcontext():
        stage_features(small_network, [(torch.randn(4, 3, 8, 8), torch.zeros(4))])
    assert modes == [False]
    assert [module.training for module in small_network.features] == [True, False, True]
    assert small_network.training and small_network.classifier.training


def test_no_weight_and_no_statistic_changes_while_features_are_taken(small_network):
    small_network.train()
    before = {name: tensor.clone() for name, tensor in small_network.state_dict().items()}
    stage_features(small_network, [(torch.randn(4, 3, 8, 8), torch.zeros(4))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_network.state_dict().items())


def test_a_loader_without_a_batch_is_refused(small_network):
    with pytest.raises(ValueError, match="no batch"):
        stage_features(small_network, [])


def test_a_linear_probe_reads_separable_classes_and_says_nothing_of_shuffled_ones():
    splits = splits_of(images=(120, 200, 400), classes=4)
    probe = linear_probe(splits)
    assert probe.val_accuracy == probe.test_accuracy == 1.0
    assert probe.test_predictions.tolist() == splits["test"][1].tolist()
    generator = np.random.default_rng(0)
    shuffled = {split: (features, generator.permutation(labels)) for split, (features, labels) in splits.items()}
    assert linear_probe(shuffled).test_accuracy == pytest.approx(0.25, abs=0.08)


def test_the_accuracies_are_those_of_the_predictions():
    splits = splits_of(distance=1.0)
    for probe in (linear_probe(splits), nearest_neighbours(splits, 5)):
        assert 0.4 < probe.test_accuracy < 1.0
        assert probe.test_accuracy == np.mean(probe.test_predictions == splits["test"][1])


def test_the_strength_is_chosen_on_val_and_the_test_images_change_nothing_else():
    """Train labels are noisy, so clean images ask for a strong penalty, the training images themselves for none."""
    features, labels = clouds(90, channels=60, distance=2.0)
    noisy = np.where(np.arange(90) % 5 == 0, (labels + 1) % 3, labels)
    clean = clouds(90, channels=60, distance=2.0, seed=1)
    probe = linear_probe({"train": (features, noisy), "val": clean, "test": (features, noisy)})
    swapped = linear_probe({"train": (features, noisy), "val": (features, noisy), "test": clean})
    assert swapped.val_accuracy == 1.0 > probe.test_accuracy
    assert probe.C < swapped.C
    assert probe.val_accuracy > swapped.test_accuracy


def test_of_equally_good_strengths_the_smallest_is_chosen():
    probe = linear_probe(splits_of(distance=50.0))
    assert probe.C == 1e-4


def test_features_are_batchnorm_head_by_the_training_images_alone():
    splits = splits_of(distance=1.5)
    probe = linear_probe(splits)
    units = np.float32(10.0) ** np.arange(-3, 5)  # every channel in a unit of its own
    rescaled = {split: (features * units + 5 * units, labels) for split, (features, labels) in splits.items()}
    assert linear_probe(rescaled).test_predictions.tolist() == probe.test_predictions.tolist()
    features, labels = splits["test"]
    outlier = np.full((1, 8), 1e4, dtype=np.float32)
    with_outlier = {**splits, "test": (np.concatenate([features, outlier]), np.append(labels, 0))}
    assert linear_probe(with_outlier).test_predictions[:-1].tolist() == probe.test_predictions.tolist()


@pytest.mark.parametrize("distance", [0.0, 1.0, 100.0])
def test_the_linear_probe_warns_of_nothing(distance):
    splits = splits_of(images=(30, 30, 30), channels=200, distance=distance)
    splits["train"][0][:, 5] = 0  # a dead channel
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_probe(splits)


def test_one_image_a_class_is_enough_for_a_linear_probe():
    assert linear_probe(splits_of(images=(3, 30, 45), channels=3)).test_accuracy > 0.9


def by_hand(splits, neighbours):
    """The vote of Wu et al. 2018, written out."""
    train, test = (
        features / np.linalg.norm(features, axis=1, keepdims=True)
        for features in (splits["train"][0].astype(float), splits["test"][0].astype(float))
    )
    predictions = []
    for similarities in test @ train.T:
        votes = np.zeros(3)
        for index in np.argsort(-similarities)[:neighbours]:
            votes[splits["train"][1][index]] += np.exp(similarities[index] / 0.07)
        predictions.append(votes.argmax())
    return predictions


@pytest.mark.parametrize("neighbours", [1, 7, 60])
def test_the_neighbours_vote_by_their_similarity(neighbours):
    splits = splits_of(distance=1.5)
    assert nearest_neighbours(splits, neighbours).test_predictions.tolist() == by_hand(splits, neighbours)


def test_with_one_neighbour_it_is_the_plain_nearest_one():
    splits = splits_of(distance=1.5)
    plain = KNeighborsClassifier(1).fit(normalize(splits["train"][0]), splits["train"][1])
    expected = plain.predict(normalize(splits["test"][0]))
    assert nearest_neighbours(splits, 1).test_predictions.tolist() == expected.tolist()


def test_a_near_neighbour_outvotes_two_far_ones():
    train = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]]), np.array([0, 1, 1])
    test = np.array([[1.0, 0.1]]), np.array([0])
    assert nearest_neighbours({"train": train, "val": test, "test": test}, 3).test_predictions.tolist() == [0]


def test_the_length_of_a_row_changes_nothing_for_the_neighbours():
    splits = splits_of(distance=1.5)
    lengths = np.random.default_rng(0).uniform(0.1, 10, 60).astype("f4")[:, None]
    scaled = {split: (features * lengths[: len(features)], labels) for split, (features, labels) in splits.items()}
    expected = nearest_neighbours(splits, 20).test_predictions
    assert nearest_neighbours(scaled, 20).test_predictions.tolist() == expected.tolist()


def test_more_neighbours_than_training_images_are_refused():
    with pytest.raises(ValueError, match="200 neighbours .* there are 60"):
        nearest_neighbours(splits_of(), 200)


def test_the_stage_that_holds_the_information_is_found():
    model = TwoStages()
    features = {
        split: stage_features(model, images_with_class_in_first_channel(count, seed))
        for seed, (split, count) in enumerate({"train": 240, "val": 100, "test": 200}.items())
    }
    table = probe_stages(features)
    assert table.columns.tolist() == ["stage", "probe", "val_accuracy", "test_accuracy", "from", "to"]
    assert table["stage"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table["probe"].tolist() == ["linear", "20 nearest", "200 nearest"] * 2
    assert (table.loc[table["stage"] == 0, ["val_accuracy", "test_accuracy"]] > 0.95).all(axis=None)
    assert (table.loc[table["stage"] == 1, "test_accuracy"] < 0.65).all()
    for row in table.itertuples():
        assert (row[5], row[6]) == accuracy_interval(round(200 * row.test_accuracy), 200)


def test_a_vote_of_more_neighbours_than_images_is_left_out_of_the_table():
    splits = splits_of()
    table = probe_stages({split: ([features], labels) for split, (features, labels) in splits.items()})
    assert table["probe"].tolist() == ["linear", "20 nearest"]


def test_draws_are_stratified_without_replacement_nested_and_seeded():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [10, 12, 20]))
    few, many = draw_of_each_class(labels, 3, seed=4), draw_of_each_class(labels, 10, seed=4)
    assert np.bincount(labels[few]).tolist() == [3, 3, 3]
    assert np.bincount(labels[many]).tolist() == [10, 10, 10]
    assert len(set(many)) == 30
    assert set(few) < set(many)
    assert few.tolist() == draw_of_each_class(labels, 3, seed=4).tolist()
    assert set(few) != set(draw_of_each_class(labels, 3, seed=5))
    with pytest.raises(ValueError, match="11 images are to be drawn, but class 0 has 10"):
        draw_of_each_class(labels, 11, seed=0)


def test_label_fractions_have_a_row_a_draw_and_leave_out_what_the_data_does_not_have():
    table = label_fractions(splits_of(distance=2.0), draws=3)  # 20 training images a class
    assert table["images_per_class"].tolist() == [1] * 3 + [5] * 3 + [10] * 3
    assert table["draw"].tolist() == [0, 1, 2] * 3
    means = table.groupby("images_per_class")["test_accuracy"].mean()
    assert means[10] > means[1]


def test_a_fraction_is_the_linear_probe_of_its_draw_on_all_of_val_and_test():
    splits = splits_of(distance=1.0)
    (row,) = label_fractions(splits, images_per_class=[5], draws=1).itertuples()
    drawn = draw_of_each_class(splits["train"][1], 5, seed=0)
    expected = linear_probe({**splits, "train": tuple(array[drawn] for array in splits["train"])})
    assert (row.val_accuracy, row.test_accuracy) == (expected.val_accuracy, expected.test_accuracy)


def test_all_images_are_one_draw():
    splits = splits_of(distance=1.0)
    table = label_fractions(splits, images_per_class=[20], draws=5)
    assert table["draw"].tolist() == [0]
    assert table["test_accuracy"].item() == linear_probe(splits).test_accuracy


def test_draws_are_summarised_by_their_number_of_images():
    fractions = pd.DataFrame({"images_per_class": [1, 1, 5], "draw": [0, 1, 0], "test_accuracy": [0.2, 0.4, 0.7]})
    summary = mean_of_draws(fractions)
    assert summary["images_per_class"].tolist() == [1, 5]
    assert summary["test_accuracy"].tolist() == pytest.approx([0.3, 0.7])
    assert summary.loc[0, ["from", "to"]].tolist() == pytest.approx(mean_and_interval([0.2, 0.4])[1:])


def spoiled(splits, split, features=None, labels=None):
    old_features, old_labels = splits[split]
    return {**splits, split: (old_features if features is None else features, old_labels if labels is None else labels)}


@pytest.mark.parametrize("probe", [linear_probe, lambda splits: nearest_neighbours(splits, 5), label_fractions])
def test_what_cannot_be_probed_is_refused_in_a_sentence(probe):
    splits = splits_of()
    infinite = splits["test"][0].copy()
    infinite[3, 2] = np.inf
    with pytest.raises(ValueError, match="the features of val are of 29 images, but there are 30 labels"):
        probe(spoiled(splits, "val", features=splits["val"][0][1:]))
    with pytest.raises(ValueError, match="the features of test hold values that are not finite"):
        probe(spoiled(splits, "test", features=infinite))
    with pytest.raises(ValueError, match="all of class 2"):
        probe(spoiled(splits, "train", labels=np.full(60, 2)))
    with pytest.raises(ValueError, match="of val are of no image"):
        probe(spoiled(splits, "val", features=splits["val"][0][:0], labels=splits["val"][1][:0]))


def test_the_stage_that_cannot_be_probed_is_named():
    features = {split: ([array, array.copy()], labels) for split, (array, labels) in splits_of().items()}
    features["val"][0][1][0, 0] = np.nan
    with pytest.raises(ValueError, match="the features of stage 1 of val hold values that are not finite"):
        probe_stages(features)
    features["val"] = (features["val"][0][:1], features["val"][1])
    with pytest.raises(ValueError, match="same stages; their numbers are {'train': 2, 'val': 1, 'test': 2}"):
        probe_stages(features)
