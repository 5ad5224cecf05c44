"""Small classifiers on frozen features, and the head and the experiment that a linear probe becomes."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

import runs
from experiments import configure, find
from run_files import load_checkpoint, read
from self_supervised import probes
from self_supervised.dataloader import build_loaders
from self_supervised.probes import linear_probe, nearest_images, nearest_neighbors, set_head, vote_of_neighbors
from supervised.models import build_head
from tests.clouds import clouds, splits_of, spoiled


def test_a_linear_probe_separates_separable_classes_and_not_shuffled_ones():
    splits = splits_of(images=(120, 200, 400), classes=4)
    probe = linear_probe(splits)
    assert probe.val_accuracy == probe.test_accuracy == 1.0
    assert probe.test_predictions.tolist() == splits["test"][1].tolist()
    generator = np.random.default_rng(0)
    shuffled = {split: (features, generator.permutation(labels)) for split, (features, labels) in splits.items()}
    assert linear_probe(shuffled).test_accuracy == pytest.approx(0.25, abs=0.08)


def test_the_accuracies_are_those_of_the_predictions():
    splits = splits_of(distance=1.0)
    for probe in (linear_probe(splits), nearest_neighbors(splits, 5)):
        assert 0.4 < probe.test_accuracy < 1.0
        assert probe.test_accuracy == np.mean(probe.test_predictions == splits["test"][1])


def test_the_strength_is_chosen_on_val_and_the_test_images_change_nothing_else():
    """Training labels are noisy: clean images favor a strong penalty, the training images themselves none."""
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


def test_features_are_standardized_by_the_training_images_alone():
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
def test_the_linear_probe_gives_no_warning(distance):
    splits = splits_of(images=(30, 30, 30), channels=200, distance=distance)
    splits["train"][0][:, 5] = 0  # a dead channel
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_probe(splits)


def test_a_linear_probe_of_more_features_than_images_is_that_of_all_features():
    splits = splits_of(images=(30, 30, 60), channels=200, distance=3.0)
    probe = linear_probe(splits)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=probe.C, tol=1e-5, max_iter=10_000))
    plain.fit(splits["train"][0].astype(float), splits["train"][1])
    assert plain.score(*splits["val"]) == probe.val_accuracy
    assert plain.predict(splits["test"][0]).tolist() == probe.test_predictions.tolist()


def test_one_image_per_class_is_enough_for_a_linear_probe():
    assert linear_probe(splits_of(images=(3, 30, 45), channels=3)).test_accuracy > 0.9


def by_hand(splits, neighbors):
    """The vote of Wu et al. 2018, in plain loops."""
    train, test = (
        features / np.linalg.norm(features, axis=1, keepdims=True)
        for features in (splits["train"][0].astype(float), splits["test"][0].astype(float))
    )
    predictions = []
    for similarities in test @ train.T:
        votes = np.zeros(3)
        for index in np.argsort(-similarities)[:neighbors]:
            votes[splits["train"][1][index]] += np.exp(similarities[index] / 0.07)
        predictions.append(votes.argmax())
    return predictions


@pytest.mark.parametrize("neighbors", [1, 7, 60])
def test_neighbors_vote_by_their_similarity(neighbors):
    splits = splits_of(distance=1.5)
    assert nearest_neighbors(splits, neighbors).test_predictions.tolist() == by_hand(splits, neighbors)


def test_one_neighbor_is_the_nearest_one():
    splits = splits_of(distance=1.5)
    plain = KNeighborsClassifier(1).fit(normalize(splits["train"][0]), splits["train"][1])
    expected = plain.predict(normalize(splits["test"][0]))
    assert nearest_neighbors(splits, 1).test_predictions.tolist() == expected.tolist()


def test_a_near_neighbor_outvotes_two_far_ones():
    train = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]]), np.array([0, 1, 1])
    test = np.array([[1.0, 0.1]]), np.array([0])
    assert nearest_neighbors({"train": train, "val": test, "test": test}, 3).test_predictions.tolist() == [0]


def test_the_length_of_a_feature_vector_changes_nothing_for_the_neighbors():
    splits = splits_of(distance=1.5)
    lengths = np.random.default_rng(0).uniform(0.1, 10, 60).astype("f4")[:, None]
    scaled = {split: (features * lengths[: len(features)], labels) for split, (features, labels) in splits.items()}
    expected = nearest_neighbors(splits, 20).test_predictions
    assert nearest_neighbors(scaled, 20).test_predictions.tolist() == expected.tolist()


def test_more_neighbors_than_training_images_are_refused():
    with pytest.raises(ValueError, match="200 neighbors .* there are 60"):
        nearest_neighbors(splits_of(), 200)


@pytest.mark.parametrize("probe", [linear_probe, lambda splits: nearest_neighbors(splits, 5)])
def test_features_that_cannot_be_probed_are_refused(probe):
    splits = splits_of()
    infinite = splits["test"][0].copy()
    infinite[3, 2] = np.inf
    with pytest.raises(ValueError, match="the features of val belong to 29 images, but there are 30 labels"):
        probe(spoiled(splits, "val", features=splits["val"][0][1:]))
    with pytest.raises(ValueError, match="the features of test hold values that are not finite"):
        probe(spoiled(splits, "test", features=infinite))
    with pytest.raises(ValueError, match="all training images are of class 2"):
        probe(spoiled(splits, "train", labels=np.full(60, 2)))
    with pytest.raises(ValueError, match="of val are empty"):
        probe(spoiled(splits, "val", features=splits["val"][0][:0], labels=splits["val"][1][:0]))


# --------------------------------------------------------------------------------------------------- neighbors by index


def test_the_nearest_images_are_the_others_of_highest_cosine_similarity_in_order():
    features, _ = clouds(20, distance=1.0)
    unit = normalize(features.astype(float))
    similarities = unit @ unit.T
    np.fill_diagonal(similarities, -np.inf)
    assert nearest_images(features, 4).tolist() == np.argsort(-similarities, axis=1)[:, :4].tolist()


def test_an_image_is_not_its_own_neighbor_and_its_copy_is():
    features, _ = clouds(6)
    nearest = nearest_images(np.concatenate([features, 3 * features]), 1)  # the length of a feature counts nothing
    assert nearest[:, 0].tolist() == [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]


def test_more_neighbors_than_other_images_are_refused():
    features, _ = clouds(6)
    assert nearest_images(features, 5).shape == (6, 5)
    with pytest.raises(ValueError, match="6 neighbors"):
        nearest_images(features, 6)


def test_votes_are_of_the_labels_that_are_given_whatever_their_numbers():
    splits = splits_of(distance=1.5)
    features, labels = splits["train"]
    votes = vote_of_neighbors(features, labels + 4, splits["test"][0], 7)
    assert votes.tolist() == [label + 4 for label in by_hand(splits, 7)]


# --------------------------------------------------------------------------------------------------- a probe as a head


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("images", "channels"), [(90, 8), (30, 200)], ids=["all features", "fewer images: PCA"])
def test_a_head_has_the_logits_of_its_probe(classes, images, channels, monkeypatch):
    monkeypatch.setattr(probes, "STRENGTHS", (1.0,))  # a weaker penalty has larger logits
    splits = splits_of(images=(images, 30, 45), classes=classes, channels=channels, distance=1.0)
    scale = (10.0 ** (np.arange(channels) % 5 - 2)).astype("f4")
    splits = {split: (features * scale + 3 * scale, labels) for split, (features, labels) in splits.items()}
    splits["train"][0][:, 5] = 2.0  # a dead channel, which lives in no split
    splits["test"][0][:, 5] = 2.0
    probe = linear_probe(splits)
    assert ("pca" in probe.pipeline.named_steps) == (images < channels)
    head = build_head("batchnorm_linear", classes, channels)
    set_head(head, probe)
    features = splits["test"][0]
    with torch.inference_mode():
        logits = head.eval()(torch.from_numpy(features)).double().numpy()
    expected = probe.pipeline.decision_function(features)
    found = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(expected).max() > 1
    assert logits.argmax(axis=1).tolist() == probe.test_predictions.tolist()


@pytest.fixture
def control(scene_folder, root, tiny_run, tmp_path):
    """The control of the primary readout, on tiny images, from a file of weights whose features tell images apart."""
    torch.save(load_checkpoint(tiny_run)["model"], tmp_path / "weights.pth")
    return configure(
        find("imagenet_classifier_probe"), "quick", data=str(scene_folder), weights=str(tmp_path / "weights.pth")
    )


def run(experiment, profile="quick"):
    return runs.run(experiment, profile, device="cpu", progress=False)


def test_a_probe_experiment_is_the_linear_probe_of_its_features_whatever_its_seed(control):
    model, result = run(control)
    assert model.stages == {5, 6, 7, 8} and model.flip_tta
    loaders = build_loaders(control, progress=False)
    untouched, _ = runs.build_model(control, loaders)
    weights = model.state_dict()
    assert all(torch.equal(weights[f"features.{name}"], each) for name, each in untouched.features.state_dict().items())

    def features_of(loader):
        parts = [(untouched.pooled_features(images).numpy(), labels.numpy()) for images, labels in loader]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    untouched.eval()
    with torch.inference_mode():
        in_order = {"train": loaders.train_in_order, "val": loaders.val, "test": loaders.test}
        splits = {split: features_of(loader) for split, loader in in_order.items()}
        logits = torch.cat([model(images) for images, _ in loaders.test])
    probe = linear_probe(splits)
    assert probe.test_accuracy > 0.5  # of three classes: the features differ
    assert result["C"] == probe.C
    assert result["predictions"]["test"] == probe.test_predictions.tolist() == logits.argmax(dim=1).tolist()
    assert (result["val_accuracy"], result["test_accuracy"]) == (probe.val_accuracy, probe.test_accuracy)
    expected = torch.from_numpy(probe.pipeline.predict_log_proba(splits["test"][0]))
    loss = torch.nn.functional.nll_loss(expected, torch.from_numpy(splits["test"][1])).item()
    assert result["history"]["test_loss"] == [pytest.approx(loss, abs=1e-3)]

    again, result_again = run(control)
    assert result_again == result == read(control, "quick")
    of_seed, result_of_seed = run(replace(control, seed=1))
    numbers = ("C", "test_accuracy", "predictions", "labels")
    assert [result[name] for name in numbers] == [result_of_seed[name] for name in numbers]
    for other in (again, of_seed):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in other.state_dict().items())


def test_statistics_estimated_on_the_training_images_are_what_is_probed(control):
    weights = torch.load(control.initial_weights, weights_only=True)
    model, _ = run(replace(control, batchnorm="estimated"))
    for name, tensor in model.features.state_dict().items():
        same = torch.equal(tensor, weights[f"features.{name}"])
        assert same == (not name.endswith(("running_mean", "running_var", "num_batches_tracked"))), name


@pytest.mark.parametrize("probe", [linear_probe, lambda splits: nearest_neighbors(splits, 5)])
def test_tensors_and_lists_are_probed_as_arrays(probe):
    splits = splits_of(distance=1.0)
    expected = probe(splits).test_predictions.tolist()
    for as_given in (torch.tensor, lambda values: values.tolist()):
        given = {split: tuple(map(as_given, parts)) for split, parts in splits.items()}
        assert probe(given).test_predictions.tolist() == expected


@pytest.mark.parametrize("probe", [linear_probe, lambda splits: nearest_neighbors(splits, 5)])
def test_a_missing_split_and_features_of_another_shape_are_refused(probe):
    splits = splits_of()
    with pytest.raises(ValueError, match="val is missing"):
        probe({split: parts for split, parts in splits.items() if split != "val"})
    with pytest.raises(ValueError, match=r"of test have shape \(45, 7\); .* same D"):
        probe(spoiled(splits, "test", features=splits["test"][0][:, :7]))
    with pytest.raises(ValueError, match=r"of train have shape \(60, 8, 1\)"):
        probe(spoiled(splits, "train", features=splits["train"][0][..., None]))
    with pytest.raises(ValueError, match="neighbors is 0"):
        nearest_neighbors(splits, 0)
