"""Small classifiers on frozen features: a linear probe, and the vote of nearest neighbors.

`splits` is a dict of "train", "val" and "test": a probe learns from train, every choice is made on val, and test is
read once.  Labels are arrays (N,) of class numbers.  Accuracies are 0..1.
"""

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

# See `Probe.C`.  Late stages, which have many channels, do best at 0.001 to 0.01, the first ones at 100.
STRENGTHS = tuple(10.0**power for power in range(-4, 3))
NEIGHBORS = (20, 200)  # k; Wu et al. 2018 use 200, DINO (Caron et al. 2021) found 20 to be best
TEMPERATURE = 0.07  # of the neighbors' votes (Wu et al. 2018)

Splits = dict[str, tuple[np.ndarray, np.ndarray]]  # split: features (N, D), labels (N,)


@dataclass(frozen=True)
class Probe:
    """What a small classifier on frozen features achieves on val and test; predictions are labels (N,)."""

    val_accuracy: float
    test_accuracy: float
    test_predictions: np.ndarray
    C: float | None = None  # scikit-learn's name: one over the strength of a linear probe's L2 penalty
    pipeline: Pipeline | None = field(default=None, repr=False, compare=False)  # of a linear probe


def linear_probe(splits: Splits) -> Probe:
    """Logistic regression on standardized features (Alain and Bengio 2016), with C chosen from STRENGTHS on val.

    Mean and standard deviation are those of the training images.  Of equally good C the smallest is taken.
    Raises ValueError for features that cannot be probed.
    """
    splits = check_splits(splits)
    features, labels = splits["train"][0].astype(np.float64), splits["train"][1]
    # Fewer images than features span few directions, and the solution lies in these: there it is found sooner.
    rotation = [PCA(svd_solver="full")] if len(features) < features.shape[1] else []
    prepare = make_pipeline(StandardScaler(), *rotation)
    features, val_features = prepare.fit_transform(features), prepare.transform(splits["val"][0])
    # Under a weak penalty lbfgs, scikit-learn's default, stops far from the optimum: at a tolerance of 1e-5 and
    # C = 100 up to 3 % of the predictions differ.  Newton's method gets there, in fewer steps; each C begins at the
    # optimum of the one before.
    classifier = LogisticRegression(solver="newton-cg", tol=1e-7, max_iter=1000, warm_start=True)
    chosen, val_accuracy = None, -1.0
    for strength in STRENGTHS:
        classifier.set_params(C=strength).fit(features, labels)
        accuracy = classifier.score(val_features, splits["val"][1])
        if accuracy > val_accuracy:
            chosen, val_accuracy = copy.deepcopy(classifier), accuracy
    probe = Pipeline([*prepare.steps, ("logisticregression", chosen)])
    return _read_test(probe, splits, val_accuracy)


def nearest_neighbors(splits: Splits, neighbors: int) -> Probe:
    """A vote of the training images with the highest cosine similarity, weighted by exp(similarity / TEMPERATURE).

    As in Wu et al. 2018 and DINO (Caron et al. 2021).  Nothing is learned or chosen.
    Raises ValueError for features that cannot be probed, or fewer training images than neighbors.
    """
    splits = check_splits(splits)
    if neighbors < 1:
        raise ValueError(f"neighbors is {neighbors}; it must be at least 1")
    if len(splits["train"][1]) < neighbors:
        raise ValueError(
            f"{neighbors} neighbors need at least as many training images; there are {len(splits['train'][1])}"
        )
    predictions, val_predictions = (
        vote_of_neighbors(*splits["train"], splits[split][0], neighbors) for split in ("test", "val")
    )
    val_accuracy = (val_predictions == splits["val"][1]).mean()
    return Probe(float(val_accuracy), float((predictions == splits["test"][1]).mean()), predictions)


def vote_of_neighbors(features: np.ndarray, labels: np.ndarray, queries: np.ndarray, neighbors: int) -> np.ndarray:
    """Labels (M,) of queries (M, D) by the vote of `nearest_neighbors`, among features (N, D) with labels (N,)."""
    classifier = KNeighborsClassifier(neighbors, metric="cosine", algorithm="brute", weights=_vote)
    return classifier.fit(features, labels).predict(queries)


def nearest_images(features: np.ndarray, neighbors: int) -> np.ndarray:
    """Indices (N, neighbors) of the other images with the highest cosine similarity to each of features (N, D).

    Raises ValueError if there are not more images than neighbors.
    """
    if len(features) <= neighbors:
        raise ValueError(f"{neighbors} neighbors need more than {neighbors} images, not {len(features)}")
    search = NearestNeighbors(n_neighbors=neighbors, metric="cosine", algorithm="brute").fit(features)
    return search.kneighbors(return_distance=False)  # without an argument, no image is its own neighbor


@torch.no_grad()
def set_head(head: nn.Sequential, probe: Probe):
    """Give a head "batchnorm_linear" the logits of a `linear_probe`: BatchNorm standardizes as the probe does."""
    steps = probe.pipeline.named_steps
    scaler, classifier = steps["standardscaler"], steps["logisticregression"]
    weight, bias = classifier.coef_, classifier.intercept_
    if "pca" in steps:
        weight = weight @ steps["pca"].components_
        bias = bias - weight @ steps["pca"].mean_
    if len(classifier.classes_) == 2:  # one line of weights, for the second class against the first
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    norm, linear = head
    scale = np.sqrt(scaler.var_ + norm.eps) / scaler.scale_  # BatchNorm adds eps to the variance
    for parameter, values in (
        (norm.running_mean, scaler.mean_),
        (norm.running_var, scaler.var_),
        (linear.weight, weight * scale),
        (linear.bias, bias),
    ):
        parameter.copy_(torch.from_numpy(values))


def _vote(distances: np.ndarray) -> np.ndarray:
    return np.exp((1 - distances) / TEMPERATURE)  # the similarity is one minus the cosine distance


def _read_test(pipeline: Pipeline, splits: Splits, val_accuracy: float) -> Probe:
    features, labels = splits["test"]
    predictions = pipeline.predict(features)
    return Probe(float(val_accuracy), float((predictions == labels).mean()), predictions, pipeline[-1].C, pipeline)


def check_splits(splits: Splits, name: str = "the features") -> Splits:
    """The features (N, D) and labels (N,) of train, val and test as arrays; they may be lists, or tensors of a CPU.

    Raises ValueError, which names the split, for one that is missing and for features that cannot be probed.
    """
    missing = [split for split in ("train", "val", "test") if split not in splits]
    if missing:
        raise ValueError(f"a probe needs train, val and test; {' and '.join(missing)} is missing")
    splits = {split: (np.asarray(features), np.asarray(labels)) for split, (features, labels) in splits.items()}
    wide = splits["train"][0].shape[1:]
    for split, (features, labels) in splits.items():
        if len(features) != len(labels):
            raise ValueError(f"{name} of {split} belong to {len(features)} images, but there are {len(labels)} labels")
        if len(labels) == 0:
            raise ValueError(f"{name} of {split} are empty; there must be at least one image")
        if features.ndim != 2 or features.shape[1:] != wide:
            raise ValueError(
                f"{name} of {split} have shape {features.shape}; they must be (N, D), with the same D in every split"
            )
        if not np.isfinite(features).all():
            raise ValueError(f"{name} of {split} hold values that are not finite")
    if len(np.unique(splits["train"][1])) < 2:
        raise ValueError(f"all training images are of class {splits['train'][1][0]}; a probe needs two classes")
    return splits
