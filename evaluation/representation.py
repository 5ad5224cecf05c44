"""How models arrange the same images: t-SNE, the classes among an image's neighbours, and CKA between models.

Features are arrays (N, D), one row an image; labels (N,).
"""

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

PCA_COMPONENTS = 50  # before t-SNE, as van der Maaten and Hinton 2008 do


def tsne(features: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """Places (N, 2) of the images in the plane (van der Maaten and Hinton 2008), begun from the principal components.

    A picture and no measurement: distances between groups and the size of a group mean nothing, so put
    `neighbour_purity` of the features beside it.  Raises ValueError for fewer images than three times the perplexity.
    """
    if len(features) < 3 * perplexity:
        raise ValueError(
            f"t-SNE of perplexity {perplexity} needs at least {3 * perplexity:.0f} images, not {len(features)}"
        )
    components = min(PCA_COMPONENTS, *features.shape)
    reduced = PCA(components, random_state=seed).fit_transform(features)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)


def neighbour_purity(features: np.ndarray, labels: np.ndarray, neighbours: int = 20) -> float:
    """The share (0..1) of an image's nearest others (cosine) that are of its class, in the mean over images.

    With classes of equal size, features that know nothing of them reach about one over their number.
    Raises ValueError if there are not more images than neighbours.
    """
    if len(features) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {neighbours} images, not {len(features)}")
    search = NearestNeighbors(n_neighbors=neighbours, metric="cosine", algorithm="brute").fit(features)
    nearest = search.kneighbors(return_distance=False)  # without an argument: of each image, itself left out
    return float((np.asarray(labels)[nearest] == np.asarray(labels)[:, None]).mean())


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """How alike two models see the same images, 0..1: linear centred kernel alignment (Kornblith et al. 2019).

    `one` (N, D) and `other` (N, E) have the same images in the same order.  Rotating or scaling features changes
    nothing.  With few images it is too high: compare at one N, well above D.
    Raises ValueError if the numbers of images differ or one side is the same for all images.
    """
    if len(one) != len(other):
        raise ValueError(f"CKA compares the same images; there are {len(one)} and {len(other)}")
    one, other = (each.astype(np.float64) - each.mean(axis=0, dtype=np.float64) for each in (one, other))
    sizes = np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other)
    if sizes == 0:
        raise ValueError("one of the two has the same features for all images; there is nothing to compare")
    return float(np.linalg.norm(other.T @ one) ** 2 / sizes)


def cka_table(features: dict[str, np.ndarray]) -> pd.DataFrame:
    """Linear CKA of each two of the named features (models, or stages of them), a symmetric table."""
    names = list(features)
    values = np.eye(len(names))
    for row in range(len(names)):
        for column in range(row):
            values[row, column] = values[column, row] = linear_cka(features[names[row]], features[names[column]])
    return pd.DataFrame(values, index=names, columns=names)
