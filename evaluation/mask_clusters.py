"""Approximate Score-CAM in fewer passes: the scores of a few masks predict those of the others.

The masks of a layer of 7x7 positions are points in 49 dimensions, and many of them are alike.  The scores of a few are
measured: one medoid for each cluster of masks (k-medoids; Kaufman and Rousseeuw 1990).  Kernel ridge regression over
the masks predicts the others.  Its leave-one-out errors, which have a closed form, are then put at random on the
predicted scores: where that changes the map of an image, the image is computed exactly.  How well the scores themselves
are predicted says little: the map depends on few of them.  benchmarks/scorecam_clusters.csv compares the maps with
exact ones.

The command is that of `evaluation.scorecam`, with one option more:

    python -m evaluation.mask_clusters IMAGE... --model RUN --layers 8 --clusters 64
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    make_sheet,
    run_batches,
    scale_to_unit,
)
from runs import run_command

WIDTHS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the kernel exp(-width |a - b|^2); the leave-one-out error selects one
PENALTIES = (0.001, 0.01, 0.1, 0.3, 1.0)
ROUNDS = 20  # of k-medoids; it converges in fewer
AGREEMENT = 0.997  # lowest correlation with the maps of perturbed scores; below it an image is computed exactly
DRAWS = 16  # perturbed maps of an image


@dataclass(frozen=True)
class ClusterScoreCam(ScoreCam):
    """Approximate maps, and exact ones where an approximate one cannot be trusted; tensors (N,).

    `held_out` is the R^2 of the leave-one-out predictions of the measured scores: 1 is perfect, 0 no better than the
    mean score; NaN where nothing was predicted.  `agreement` is that of `agreement_of`, `exact` says which maps have
    all scores measured.
    """

    held_out: torch.Tensor
    agreement: torch.Tensor
    exact: torch.Tensor


@dataclass(frozen=True)
class PredictedScores:
    """Scores (N, channels) of a batch of images, of which those in `measured` (N, channels) are not predicted.

    `held_out` (N,) is that of `ClusterScoreCam`; `errors` are the leave-one-out errors of each image's measured scores.
    """

    scores: torch.Tensor
    measured: torch.Tensor
    held_out: torch.Tensor
    errors: list[np.ndarray]


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
    predicted to contribute most to the map.  The scores of all other channels are predicted.  An image whose
    `agreement_of` is below AGREEMENT takes the rest of the passes too, so its map is exact.  For a layer of at most
    2 * clusters channels every map is exact.
    Raises ValueError for fewer than 2 clusters, and what `score_cam` raises.
    """
    check_clusters(clusters)

    def explain(masked: MaskedImages, _) -> tuple[torch.Tensor, ...]:
        if masked.activations.shape[1] <= 2 * clusters:
            nothing = torch.full((len(masked.images),), torch.nan)
            found = PredictedScores(masked.scores(~masked.constant), ~masked.constant, nothing, [])
            agreement, exact = nothing, torch.ones(len(nothing), dtype=torch.bool)
        else:
            found = scores_by_clusters(masked, clusters, masked.scores)
            agreement = agreement_of(masked, found)
            exact = ~(agreement >= AGREEMENT) | (found.measured | masked.constant).all(dim=1).cpu()
        rest = ~masked.constant & ~found.measured & exact.to(found.measured.device)[:, None]
        maps, fell_back = masked.maps(masked.weights(torch.where(rest, masked.scores(rest), found.scores)))
        return maps, masked.constant.sum(dim=1), fell_back, found.held_out, agreement, exact

    return ClusterScoreCam(*run_batches(model, images, layer, target_classes, weighting, batch_size, explain))


def agreement_of(masked: MaskedImages, found: PredictedScores) -> torch.Tensor:
    """The lowest correlation (N,) of each image's map with DRAWS maps whose predicted scores have errors.

    The errors are drawn from the leave-one-out errors of the image's measured scores.  A map that does not change is
    safe, however large they are.  1 where no score is predicted; NaN where a map is constant.
    """
    lowest = torch.ones(len(found.scores))
    for image, errors in enumerate(found.errors):
        predicted = ~found.measured[image] & ~masked.constant[image]
        if not predicted.any():
            continue
        drawn = np.random.default_rng(0).choice(errors, (DRAWS, int(predicted.sum())))
        scores = found.scores[image].repeat(1 + DRAWS, 1)
        scores[1:, predicted] += torch.from_numpy(drawn).to(scores)
        copies = torch.full((1 + DRAWS,), image, device=scores.device)
        repeated = replace(
            masked,
            images=masked.images[copies],
            activations=masked.activations[copies],
            targets=masked.targets[copies],
        )
        maps = repeated.maps(repeated.weights(scores))[0].flatten(1)
        lowest[image] = torch.corrcoef(maps)[0, 1:].min().cpu()
    return lowest


def check_clusters(clusters: int):
    """Raise ValueError for fewer than 2 clusters."""
    if clusters < 2:
        raise ValueError(f"clusters is {clusters}; it must be at least 2")


def scores_by_clusters(
    masked: MaskedImages, clusters: int, measure: Callable[[torch.Tensor], torch.Tensor]
) -> PredictedScores:
    """The scores of all channels, of which 2 * clusters per image are measured.

    `measure` is called as `MaskedImages.scores`.  A map is a sum with few large terms, so half of the passes are
    reserved for these.
    """
    activations, wanted = masked.activations, ~masked.constant
    masks = scale_to_unit(activations.flatten(0, 1)).view_as(activations).flatten(2).cpu().double().numpy()
    channels = [each.nonzero().squeeze(1).cpu().numpy() for each in wanted]
    measured = torch.zeros_like(wanted)
    for image, numbers in enumerate(channels):
        measured[image, numbers[choose_medoids(masks[image, numbers], clusters)]] = True
    scores = measure(measured)
    predicted = _predict_others(masks, channels, scores, measured).scores
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


def predict_scores(masks: np.ndarray, medoids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predict the scores (channels,) of masks (channels, positions) from those (clusters,) of the medoids.

    Measured scores are returned unchanged.  Also returns the errors (clusters,) of the leave-one-out predictions of the
    measured scores.
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


def _predict_others(masks, channels, scores, measured) -> PredictedScores:
    """Scores (N, channels) with those that are not measured predicted."""
    predicted, held_out = scores.clone(), torch.full((len(scores),), torch.nan)
    errors = []
    for image, numbers in enumerate(channels):
        known = measured[image, numbers].nonzero().squeeze(1).cpu().numpy()
        if len(known) == len(numbers):
            errors.append(np.zeros(len(known)))
            continue
        values = scores[image, numbers[known]].cpu().double().numpy()
        if not (np.isfinite(values).all() and np.isfinite(masks[image]).all()):
            raise FloatingPointError(NOT_FINITE)
        found, errors_of_image = predict_scores(masks[image, numbers], known, values)
        errors.append(errors_of_image)
        held_out[image] = held_out_r2(values, errors_of_image)
        predicted[image, numbers] = torch.from_numpy(found).to(scores)
    return PredictedScores(predicted, measured, held_out, errors)


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
        if not each.agreement.isnan().all():
            print(f"layer {name}: {int(each.exact.sum())} of {len(each.exact)} images computed exactly")


if __name__ == "__main__":
    sys.exit(main())
