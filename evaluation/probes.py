"""How good frozen features are: small classifiers on top of them, by stage of the network and by number of labels.

The network is never trained.  `splits` is everywhere a dict of "train", "val" and "test": a probe learns from train,
whatever is chosen is chosen on val, and test is read once.  Labels are arrays (N,) of label numbers; accuracies are
fractions of images, 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from evaluation.metrics import accuracy_interval, mean_and_interval

# Of a linear probe, see `Probe.C`.  Late stages (many channels) do best at 0.001 to 0.01, the first ones at 100.
STRENGTHS = tuple(10.0**power for power in range(-4, 3))
NEIGHBOURS = (20, 200)  # k; 200 is what Wu et al. 2018 use, DINO (Caron et al. 2021) found 20 to be best
TEMPERATURE = 0.07  # of the neighbours' votes (Wu et al. 2018)
IMAGES_PER_CLASS = (1, 5, 10, 25, 50, 100)

Splits = dict[str, tuple[np.ndarray, np.ndarray]]  # split: features (N, D), labels (N,)
StagesOfSplits = dict[str, tuple[list[np.ndarray], np.ndarray]]  # split: what `stage_features` gives


@dataclass(frozen=True)
class Probe:
    """What a small classifier on frozen features makes of val and test; predictions are labels (N,)."""

    val_accuracy: float
    test_accuracy: float
    test_predictions: np.ndarray
    C: float | None = None  # scikit-learn's name: one over the strength of a linear probe's L2 penalty


@torch.inference_mode()
def stage_features(model: nn.Module, loader, device: str = "cpu") -> tuple[list[np.ndarray], np.ndarray]:
    """The mean of each feature map after every stage of `model.features`, for all images in the loader's order.

    `model.features` is an nn.Sequential on `device`, whose stages give (N, channels, height, width); the loader gives
    (images, labels).  Returns one float32 array (N, channels) a stage, and the labels (N,).  Of a model with
    `flip_tta` they are the mean of the image's and its mirror image's, as its head sees them.  Everything is
    computed once, in eval mode; afterwards each module is in the mode it was in.
    Raises ValueError if the loader has no batch.
    """
    modes = [(module, module.training) for module in model.features.modules()]
    model.features.eval()
    pooled, all_labels = [[] for _ in model.features], []
    try:
        for images, labels in loader:
            views = [images.to(device)]
            if getattr(model, "flip_tta", False):
                views.append(views[0].flip(-1))
            for stage, means in zip(model.features, pooled, strict=True):
                views = [stage(maps) for maps in views]
                means.append(torch.stack([maps.float().mean(dim=(2, 3)) for maps in views]).mean(dim=0).cpu())
            all_labels.append(labels.cpu())
    finally:
        for module, training in modes:
            module.training = training
    if not all_labels:
        raise ValueError("the loader has no batch; there are no images to take features of")
    return [torch.cat(means).numpy() for means in pooled], torch.cat(all_labels).numpy()


def linear_probe(splits: Splits) -> Probe:
    """Logistic regression on standardised features (Alain and Bengio 2016), its C of STRENGTHS chosen on val.

    Mean and standard deviation are those of the training images.  Of equally good C the smallest is taken.
    Raises ValueError for features that cannot be probed.
    """
    _check(splits)
    chosen, val_accuracy = None, -1.0
    for strength in STRENGTHS:
        # At scikit-learn's own tolerance of 1e-4 lbfgs stops early under a weak penalty, which is then not what is
        # compared.  In float64, since in float32 its line search can fail on rounding.
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-5, max_iter=10_000))
        probe.fit(splits["train"][0].astype(np.float64), splits["train"][1])
        accuracy = probe.score(*splits["val"])
        if accuracy > val_accuracy:
            chosen, val_accuracy = probe, accuracy
    return _read_test(chosen, splits, val_accuracy, C=chosen[-1].C)


def nearest_neighbours(splits: Splits, neighbours: int) -> Probe:
    """The vote of the training images with the highest cosine similarity, weighted by exp(similarity / TEMPERATURE).

    As in Wu et al. 2018 and DINO (Caron et al. 2021).  Nothing is learned or chosen.
    Raises ValueError for features that cannot be probed, or fewer training images than neighbours.
    """
    _check(splits)
    if len(splits["train"][1]) < neighbours:
        raise ValueError(
            f"the vote of {neighbours} neighbours needs at least as many training images; "
            f"there are {len(splits['train'][1])}"
        )
    probe = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute", weights=_vote)
    probe.fit(*splits["train"])
    return _read_test(probe, splits, probe.score(*splits["val"]))


def probe_stages(features_by_split: StagesOfSplits) -> pd.DataFrame:
    """The linear probe and the nearest neighbours of every stage, from what `stage_features` gives for each split.

    One row a stage and probe: stage (its place in `model.features`), probe ("linear", "20 nearest", "200 nearest"),
    val_accuracy, test_accuracy, and from, to: the 95 % interval of the test accuracy (Wilson 1927).  A vote of more
    neighbours than there are training images is left out.
    Raises ValueError, which names the stage, for features that cannot be probed.
    """
    counts = {split: len(stages) for split, (stages, _) in features_by_split.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"every split must have the same stages; their numbers are {counts}")
    stages = [
        {split: (arrays[stage], labels) for split, (arrays, labels) in features_by_split.items()}
        for stage in range(counts["train"])
    ]
    for stage, splits in enumerate(stages):
        _check(splits, f"the features of stage {stage}")  # before minutes are spent on those before it
    rows = []
    for stage, splits in enumerate(stages):
        train_labels, test_labels = splits["train"][1], splits["test"][1]
        probes = {"linear": linear_probe(splits)}
        for neighbours in NEIGHBOURS:
            if neighbours <= len(train_labels):
                probes[f"{neighbours} nearest"] = nearest_neighbours(splits, neighbours)
        for name, probe in probes.items():
            low, high = accuracy_interval(int((probe.test_predictions == test_labels).sum()), len(test_labels))
            rows.append(
                {
                    "stage": stage,
                    "probe": name,
                    "val_accuracy": probe.val_accuracy,
                    "test_accuracy": probe.test_accuracy,
                    "from": low,
                    "to": high,
                }
            )
    return pd.DataFrame(rows)


def draw_of_each_class(labels: np.ndarray, images_per_class: int, seed: int) -> np.ndarray:
    """Indices of so many images of each class, drawn without replacement.

    Of one seed the smaller draws are contained in the larger ones.  Raises ValueError if a class has too few images.
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        shuffled = generator.permutation(np.flatnonzero(labels == label))  # all of them, so that the draws are nested
        if len(shuffled) < images_per_class:
            raise ValueError(f"{images_per_class} images are to be drawn, but class {label} has {len(shuffled)}")
        drawn.append(shuffled[:images_per_class])
    return np.concatenate(drawn)


def label_fractions(splits: Splits, images_per_class: Sequence[int] = IMAGES_PER_CLASS, draws: int = 5) -> pd.DataFrame:
    """The linear probe with fewer labelled training images: one row a number of images a class and draw.

    Columns: images_per_class, draw (its seed, from 0), val_accuracy, test_accuracy.  Numbers above what the smallest
    class has are left out; where all training images are taken there is one draw, since all would be the same.  C is
    chosen on all of val even then, so a probe with few labels knows more than these few.
    Raises ValueError for features that cannot be probed.
    """
    _check(splits)
    features, labels = splits["train"]
    _, counts = np.unique(labels, return_counts=True)
    rows = []
    for number in images_per_class:
        if number > counts.min():
            continue
        for draw in range(1 if number == counts.max() else draws):
            drawn = draw_of_each_class(labels, number, seed=draw)
            probe = linear_probe({**splits, "train": (features[drawn], labels[drawn])})
            rows.append(
                {
                    "images_per_class": number,
                    "draw": draw,
                    "val_accuracy": probe.val_accuracy,
                    "test_accuracy": probe.test_accuracy,
                }
            )
    return pd.DataFrame(rows, columns=["images_per_class", "draw", "val_accuracy", "test_accuracy"])


def mean_of_draws(fractions: pd.DataFrame) -> pd.DataFrame:
    """From `label_fractions`, one row a number of images: images_per_class, test_accuracy (the mean), from, to.

    The interval is that of the mean over the draws; it does not say how few the test images are.
    """
    rows = [
        (number, *mean_and_interval(group["test_accuracy"])) for number, group in fractions.groupby("images_per_class")
    ]
    return pd.DataFrame(rows, columns=["images_per_class", "test_accuracy", "from", "to"])


def _vote(distances: np.ndarray) -> np.ndarray:
    return np.exp((1 - distances) / TEMPERATURE)  # cosine distance is one less the similarity


def _read_test(probe, splits: Splits, val_accuracy: float, C: float | None = None) -> Probe:  # noqa: N803
    features, labels = splits["test"]
    predictions = probe.predict(features)
    return Probe(float(val_accuracy), float((predictions == labels).mean()), predictions, C)


def _check(splits: Splits, name: str = "the features"):
    """Raise ValueError, in one sentence that names the split, for what no probe can be made of."""
    for split, (features, labels) in splits.items():
        if len(features) != len(labels):
            raise ValueError(f"{name} of {split} are of {len(features)} images, but there are {len(labels)} labels")
        if len(labels) == 0:
            raise ValueError(f"{name} of {split} are of no image; there must be at least one")
        if not np.isfinite(features).all():
            raise ValueError(f"{name} of {split} hold values that are not finite")
    if len(np.unique(splits["train"][1])) < 2:
        raise ValueError(f"the training images are all of class {splits['train'][1][0]}; a probe needs two classes")
