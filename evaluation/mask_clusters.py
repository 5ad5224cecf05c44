"""Approximate Score-CAM in fewer passes: the scores of a few masks predict those of the others.

The masks of a layer of 7x7 positions are points in 49 dimensions, and many of them are alike.  The scores of a few are
measured: one medoid for each cluster of masks (k-medoids; Kaufman and Rousseeuw 1990).  Kernel ridge regression over
the masks predicts the others.  The leave-one-out error of the regression, which has a closed form, tells how good the
prediction is.  benchmarks/scorecam_clusters.csv compares the maps with exact ones; the quality depends on the network.

The command is that of `evaluation.scorecam`, with one option more:

    python -m evaluation.mask_clusters IMAGE... --model RUN --layers 8 --clusters 64
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.spatial.distance import cdist
from torch import nn

from evaluation.scorecam import (
    NOT_FINITE,
    MaskedImages,
    ScoreCam,
    build_parser,
    explain_batches,
    make_sheet,
    scale_to_unit,
)
from runs import run_command

WIDTHS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the kernel exp(-width |a - b|^2); the leave-one-out error selects one
PENALTIES = (0.001, 0.01, 0.1, 0.3, 1.0)
ROUNDS = 20  # of k-medoids; it converges in fewer


@dataclass(frozen=True)
class ClusterScoreCam(ScoreCam):
    """Approximate maps; `held_out` (N,) is the R^2 of the leave-one-out predictions of the measured scores.

    1 is perfect, 0 no better than the mean score; NaN where nothing was predicted.
    """

    held_out: torch.Tensor


def cluster_score_cam(
    model: nn.Module,
    images: torch.Tensor,
    layer: nn.Module,
    target_classes: Sequence[int],
    clusters: int,
    weighting: str = "softmax",
    batch_size: int = 32,
) -> ClusterScoreCam:
    """Approximate `score_cam` with 2 * clusters passes per image; the other arguments are those of `score_cam`.

    One half of the passes measures the medoids of the clusters of masks.  The other half measures the channels that are
    predicted to contribute most to the map.  The scores of all other channels are predicted.  For a layer of at most
    2 * clusters channels the map is exact.
    The maps are close to exact ones for networks with a plain head, but not for every image of other networks: compare
    a few with exact maps first.
    Raises ValueError for fewer than 2 clusters, and what `score_cam` raises.
    """
    check_clusters(clusters)
    held_out = []

    def scores_of(masked: MaskedImages) -> torch.Tensor:
        if masked.activations.shape[1] <= 2 * clusters:
            held_out.append(torch.full((len(masked.images),), torch.nan))
            return masked.scores(~masked.constant)
        scores, held_out_of_batch = scores_by_clusters(masked, clusters, masked.scores)
        held_out.append(held_out_of_batch)
        return scores

    found = explain_batches(model, images, layer, target_classes, weighting, batch_size, scores_of)
    return ClusterScoreCam(found.maps, found.constant_channels, torch.cat(held_out))


def check_clusters(clusters: int):
    """Raise ValueError for fewer than 2 clusters."""
    if clusters < 2:
        raise ValueError(f"clusters is {clusters}; it must be at least 2")


def scores_by_clusters(
    masked: MaskedImages, clusters: int, measure: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, channels), of which 2 * clusters per image are measured, and `ClusterScoreCam.held_out`.

    `measure` is called as `MaskedImages.scores`.  A map is a sum with few large terms, so half of the passes are
    reserved for these.
    """
    activations, wanted = masked.activations, ~masked.constant
    masks = scale_to_unit(activations.flatten(0, 1)).view_as(activations).flatten(2).double().cpu().numpy()
    channels = [each.nonzero().squeeze(1).cpu().numpy() for each in wanted]
    measured = torch.zeros_like(wanted)
    for image, numbers in enumerate(channels):
        measured[image, numbers[choose_medoids(masks[image, numbers], clusters)]] = True
    scores = measure(measured)
    predicted, _ = _predict_others(masks, channels, scores, measured)
    contributions = masked.weights(predicted) * activations.amax(dim=(2, 3)).relu()
    strongest = contributions.masked_fill(measured | ~wanted, -1).topk(clusters, dim=1).indices
    others = torch.zeros_like(wanted).scatter(1, strongest, True) & wanted & ~measured
    return _predict_others(masks, channels, scores + measure(others), measured | others)


def choose_medoids(masks: np.ndarray, clusters: int) -> np.ndarray:
    """The numbers (clusters,) of the medoids of masks (channels, positions); of all masks, if there are no more.

    Deterministic: it starts with the most central mask and adds the mask farthest from those chosen.  Then it assigns
    masks to medoids and updates the medoids until nothing changes.
    """
    if clusters >= len(masks):
        return np.arange(len(masks))
    distances = cdist(masks, masks)
    medoids = [int(distances.sum(axis=1).argmin())]
    nearest = distances[medoids[0]].copy()
    while len(medoids) < clusters:
        medoids.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[medoids[-1]])
    medoids = np.array(medoids)
    for _ in range(ROUNDS):
        cluster_of = distances[:, medoids].argmin(axis=1)
        moved = medoids.copy()
        for cluster in np.unique(cluster_of):
            members = np.flatnonzero(cluster_of == cluster)
            moved[cluster] = members[distances[np.ix_(members, members)].sum(axis=1).argmin()]
        if np.array_equal(moved, medoids):
            break
        medoids = moved
    return medoids


def predict_scores(masks: np.ndarray, medoids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, float]:
    """Predict the scores (channels,) of masks (channels, positions) from those (clusters,) of the medoids.

    Measured scores are returned unchanged.  Also returns the R^2 of the leave-one-out predictions of the measured
    scores: 1 is perfect, 0 no better than their mean; NaN where they are all equal, or fewer than three.
    """
    mean = scores.mean()
    centred = scores - mean
    between = cdist(masks[medoids], masks[medoids], "sqeuclidean")
    lowest, chosen = np.inf, None
    for width in WIDTHS:
        values, vectors = eigh(np.exp(-width * between))
        for penalty in PENALTIES:
            weights = 1 / (values + penalty)
            coefficients = vectors @ (weights * (vectors.T @ centred))
            residuals = coefficients / (vectors**2 @ weights)  # of the leave-one-out predictions
            if (residuals**2).mean() < lowest:
                lowest, chosen = (residuals**2).mean(), (width, coefficients)
    width, coefficients = chosen
    predicted = mean + np.exp(-width * cdist(masks, masks[medoids], "sqeuclidean")) @ coefficients
    predicted[medoids] = scores
    constant = len(scores) < 3 or centred.std() <= 1e-6 * max(abs(mean), 1e-30)
    return predicted, float("nan") if constant else float(1 - lowest / centred.var())


def _predict_others(masks, channels, scores, measured) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, channels) with those that are not measured predicted, and the held_out of each image (N,)."""
    predicted, held_out = scores.clone(), torch.full((len(scores),), torch.nan)
    for image, numbers in enumerate(channels):
        known = measured[image, numbers].nonzero().squeeze(1).cpu().numpy()
        if len(known) == len(numbers):
            continue
        values = scores[image, numbers[known]].double().cpu().numpy()
        if not (np.isfinite(values).all() and np.isfinite(masks[image]).all()):
            raise FloatingPointError(NOT_FINITE)
        found, held_out[image] = predict_scores(masks[image, numbers], known, values)
        predicted[image, numbers] = torch.from_numpy(found).to(scores)
    return predicted, held_out


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = build_parser("python -m evaluation.mask_clusters", "Approximate Score-CAM of images, as a sheet")
    parser.add_argument("--clusters", type=int, default=64, help="half of the passes per image (default: 64)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _make_sheet(options))


def _make_sheet(options):
    check_clusters(options.clusters)
    found = []  # one a layer

    def explain(model, images, layer, targets, weighting):
        found.append(cluster_score_cam(model, images, layer, targets, options.clusters, weighting))
        return found[-1]

    make_sheet(options, explain)
    for name, each in zip(dict.fromkeys(options.layers), found, strict=True):
        if not each.held_out.isnan().all():
            print(f"layer {name}: R^2 of the held-out scores, lowest image {each.held_out.min():.2f}")


if __name__ == "__main__":
    sys.exit(main())
