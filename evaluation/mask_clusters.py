"""Approximate Score-CAM in fewer passes: the scores of a few masks predict those of the others.

The masks of a layer of 7x7 positions are points in 49 dimensions, and many of them are alike.  The scores of a few are
measured: one medoid for each cluster of masks (k-medoids; Kaufman and Rousseeuw 1990).  Kernel ridge regression over
the masks predicts the others.  Then the masks are measured that are predicted to contribute most, as many again in each
round, until the map of an image is settled: two rounds have not changed it, and it does not change either if errors
are put at random on the predicted scores, as large as the leave-one-out errors of the measured ones, which have a
closed form.  How well the scores themselves are predicted says little: the map depends on few of them.
benchmarks/scorecam_clusters.csv compares the maps with exact ones.

The command is that of `evaluation.scorecam`, with one option more:

    python -m evaluation.mask_clusters IMAGE... --model RUN --layers 8 --clusters 64
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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
    explain_images,
    run_batches,
    scale_to_unit,
    write_sheet,
)
from runs import run_command

WIDTHS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the kernel exp(-width |a - b|^2); the leave-one-out error selects one
PENALTIES = (0.001, 0.01, 0.1, 0.3, 1.0)
ITERATIONS = 20  # of k-medoids; it converges in fewer
# Chosen on val images (benchmarks.scorecam_clusters --split val): lowest correlations of a settled map.
UNCHANGED = 0.999  # with the map of the round before, twice
AGREEMENT = 0.999  # with the maps of perturbed scores
DRAWS = 16  # perturbed maps of an image
MOST = 0.75  # of the masks: a round that would pass this share measures all that are left


@dataclass(frozen=True)
class ClusterScoreCam(ScoreCam):
    """Settled maps, and exact ones where none settled; tensors (N,).

    `passes` are the masks that were measured, `exact` says where these were all.  `held_out` is the R^2 of the
    leave-one-out predictions of the measured scores: 1 is perfect, 0 no better than the mean score; NaN where nothing
    was predicted.  `agreement` is that of `agreement_of`.
    """

    passes: torch.Tensor
    exact: torch.Tensor
    held_out: torch.Tensor
    agreement: torch.Tensor


@dataclass(frozen=True)
class PredictedScores:
    """Scores (1, channels) of an image, of which those in `measured` (1, channels) are not predicted.

    `held_out` is that of `ClusterScoreCam`; `errors` are the leave-one-out errors of the measured scores.
    """

    scores: torch.Tensor
    measured: torch.Tensor
    held_out: float
    errors: np.ndarray


def cluster_score_cam(
    model: nn.Module,
    images: torch.Tensor,
    layer: nn.Module,
    target_classes: Sequence[int],
    clusters: int,
    weighting: str = "softmax",
    batch_size: int = 32,
) -> ClusterScoreCam:
    """Approximate `score_cam` in rounds of `clusters` passes; the other arguments are those of `score_cam`.

    An image takes as many rounds as `scores_in_rounds` says, at least three.  Where a layer has few channels, at most
    twice the clusters, its map is exact.
    Raises ValueError for fewer than 2 clusters, and what `score_cam` raises.
    """
    check_clusters(clusters)

    def explain(masked: MaskedImages, _) -> tuple[torch.Tensor, ...]:
        of_images = []
        for number in range(len(masked.images)):
            image = masked.of(torch.tensor([number]))
            found, agreement = scores_in_rounds(image, clusters, image.scores)
            maps, fell_back = image.maps(image.weights(found.scores))
            passes, exact = found.measured.sum(dim=1), (found.measured | image.constant).all(dim=1)
            facts = torch.tensor([found.held_out]), torch.tensor([agreement])
            of_images.append((maps, image.constant.sum(dim=1), fell_back, passes, exact, *facts))
        return tuple(map(torch.cat, zip(*of_images, strict=True)))

    return ClusterScoreCam(*run_batches(model, images, layer, target_classes, weighting, batch_size, explain))


def scores_in_rounds(
    image: MaskedImages, clusters: int, measure: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[PredictedScores, float]:
    """The scores of all channels of a single image, of which rounds of `clusters` are measured until its map settles.

    `measure` is called as `MaskedImages.scores`.  A map is a sum with few large terms, so after the medoids the
    channels are measured that are predicted to contribute most.  Also returns the `agreement_of` the settled map, 1 for
    an exact one.
    """
    activations, wanted = image.activations, ~image.constant
    masks = scale_to_unit(activations[0]).flatten(1).cpu().double().numpy()
    channels = wanted[0].nonzero().squeeze(1).cpu().numpy()
    first = wanted
    if len(channels) > 2 * clusters:
        first = torch.zeros_like(wanted)
        first[0, channels[choose_medoids(masks[channels], clusters)]] = True
    found = _predict_others(masks, channels, measure(first), first)
    before, unchanged = _map_of(image, found), 0
    while (wanted & ~found.measured).any():
        others = _strongest_others(image, found, clusters)
        scores = found.scores * found.measured + measure(others)
        found = _predict_others(masks, channels, scores, found.measured | others)
        now = _map_of(image, found)
        unchanged = unchanged + 1 if _lowest_correlation(now, before) >= UNCHANGED else 0
        if unchanged >= 2 and (agreement := agreement_of(image, found)) >= AGREEMENT:
            return found, agreement
        before = now
    return found, 1.0


def _strongest_others(image: MaskedImages, found: PredictedScores, count: int) -> torch.Tensor:
    """The channels (1, channels) that are not measured and predicted to contribute most, or all that are left."""
    left = ~image.constant & ~found.measured
    if found.measured.sum() + count > MOST * (~image.constant).sum():
        return left
    contributions = image.weights(found.scores) * image.activations.amax(dim=(2, 3)).relu()
    strongest = contributions.masked_fill(~left, -torch.inf).topk(count, dim=1).indices
    return torch.zeros_like(left).scatter(1, strongest, True) & left


def _map_of(image: MaskedImages, found: PredictedScores) -> torch.Tensor:
    return image.maps(image.weights(found.scores))[0].flatten(1)


def _lowest_correlation(one: torch.Tensor, others: torch.Tensor) -> float:
    """The lowest correlation of a flat map (1, P) with others (N, P); NaN where one is constant."""
    return torch.corrcoef(torch.cat([one, others]))[0, 1:].min().item()


def agreement_of(image: MaskedImages, found: PredictedScores) -> float:
    """The lowest correlation of an image's map with DRAWS maps whose predicted scores have errors.

    The errors are drawn from the leave-one-out errors of the measured scores.  A map that does not change is safe,
    however large they are.  1 where no score is predicted; NaN where a map is constant.
    """
    predicted = ~found.measured[0] & ~image.constant[0]
    if not predicted.any():
        return 1.0
    drawn = np.random.default_rng(0).choice(found.errors, (DRAWS, int(predicted.sum())))
    scores = found.scores.repeat(DRAWS, 1)
    scores[:, predicted] += torch.from_numpy(drawn).to(scores)
    repeated = image.of(torch.zeros(DRAWS, dtype=torch.long))
    return _lowest_correlation(_map_of(image, found), repeated.maps(repeated.weights(scores))[0].flatten(1))


def check_clusters(clusters: int):
    """Raise ValueError for fewer than 2 clusters."""
    if clusters < 2:
        raise ValueError(f"clusters is {clusters}; it must be at least 2")


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
    for _ in range(ITERATIONS):
        cluster_of = distances[:, medoids].argmin(axis=1)
        moved = medoids.copy()
        for cluster in np.unique(cluster_of):
            members = np.flatnonzero(cluster_of == cluster)
            moved[cluster] = members[distances[np.ix_(members, members)].sum(axis=1).argmin()]
        if np.array_equal(moved, medoids):
            break
        medoids = moved
    return medoids


def predict_scores(masks: np.ndarray, medoids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predict the scores (channels,) of masks (channels, positions) from those (clusters,) of the medoids.

    Measured scores are returned unchanged.  Also returns the errors (clusters,) of the leave-one-out predictions of the
    measured scores.
    """
    mean = scores.mean()
    centered = scores - mean
    between = cdist(masks[medoids], masks[medoids], "sqeuclidean")
    lowest, chosen = np.inf, None
    for width in WIDTHS:
        values, vectors = eigh(np.exp(-width * between))
        for penalty in PENALTIES:
            weights = 1 / (values + penalty)
            coefficients = vectors @ (weights * (vectors.T @ centered))
            errors = coefficients / (vectors**2 @ weights)
            if (errors**2).mean() < lowest:
                lowest, chosen = (errors**2).mean(), (width, coefficients, errors)
    width, coefficients, errors = chosen
    predicted = mean + np.exp(-width * cdist(masks, masks[medoids], "sqeuclidean")) @ coefficients
    predicted[medoids] = scores
    return predicted, errors


def held_out_r2(scores: np.ndarray, errors: np.ndarray) -> float:
    """The R^2 of predictions of scores (n,) with these errors (n,); NaN for equal scores, or fewer than three."""
    constant = len(scores) < 3 or scores.std() <= 1e-6 * max(abs(scores.mean()), 1e-30)
    return float("nan") if constant else float(1 - (errors**2).mean() / scores.var())


def _predict_others(
    masks: np.ndarray, channels: np.ndarray, scores: torch.Tensor, measured: torch.Tensor
) -> PredictedScores:
    """Scores (1, channels) with those of `channels` that are not measured predicted from the masks (channels, D)."""
    known = measured[0, channels].nonzero().squeeze(1).cpu().numpy()
    if len(known) == len(channels):
        return PredictedScores(scores, measured, float("nan"), np.zeros(len(known)))
    values = scores[0, channels[known]].cpu().double().numpy()
    if not (np.isfinite(values).all() and np.isfinite(masks).all()):
        raise FloatingPointError(NOT_FINITE)
    found, errors = predict_scores(masks[channels], known, values)
    predicted = scores.clone()
    predicted[0, channels] = torch.from_numpy(found).to(scores)
    return PredictedScores(predicted, measured, held_out_r2(values, errors), errors)


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = build_parser("python -m evaluation.mask_clusters", "Approximate Score-CAM of images, as a sheet")
    parser.add_argument("--clusters", type=int, default=64, help="passes of a round (default: 64)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _write_sheet(options))


def _write_sheet(options):
    check_clusters(options.clusters)
    explained = explain_images(options, partial(cluster_score_cam, clusters=options.clusters))
    write_sheet(explained, options.output)
    for name, each in explained.found.items():
        passes = f"{each.passes.float().mean():,.0f} passes an image"
        print(f"layer {name}: {passes}, {int(each.exact.sum())} of {len(each.exact)} computed exactly")


if __name__ == "__main__":
    sys.exit(main())
