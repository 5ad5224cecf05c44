"""Score-CAM with fewer passes: masks that stand for others, and what the others' scores would be.

Channels of a layer of 7x7 positions hide much the same: their masks, which are points of 49 dimensions, lie in groups.
So the scores of a few masks are measured, one in the middle of each group (k-medoids; Kaufman and Rousseeuw 1990), and
kernel ridge regression over the masks predicts those of all others.  How well it does is known before a map is
believed: each measured score is predicted from the rest, which ridge regression gives in closed form.
How near the maps come to exact ones is in benchmarks/scorecam_clusters.csv, and depends on the network.
"""

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

WIDTHS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the kernel exp(-width |a - b|^2), which of them is chosen by what is held out
PENALTIES = (0.001, 0.01, 0.1, 0.3, 1.0)
ROUNDS = 20  # more than medoids move


def choose_medoids(masks: np.ndarray, clusters: int) -> np.ndarray:
    """The numbers (clusters,) of the masks that stand for the masks (channels, positions); all, if there are no more.

    Begins with the mask nearest to all and goes on with the one farthest from those chosen, so nothing is drawn; then
    assigns masks to medoids and moves medoids in turns until they stay.
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
    """Scores (channels,) of all masks (channels, positions) from those (clusters,) of the medoids, which stay.

    Also the share of the medoids' variance that is predicted when each is held out: 1 is perfect, 0 no better than
    their mean; nan where their scores are all equal, or there are only two of them.
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
            left_out = coefficients / (vectors**2 @ weights)  # score minus what the others predict
            if (left_out**2).mean() < lowest:
                lowest, chosen = (left_out**2).mean(), (width, coefficients)
    width, coefficients = chosen
    predicted = mean + np.exp(-width * cdist(masks, masks[medoids], "sqeuclidean")) @ coefficients
    predicted[medoids] = scores
    constant = len(scores) < 3 or centred.std() <= 1e-6 * max(abs(mean), 1e-30)
    return predicted, float("nan") if constant else float(1 - lowest / centred.var())
