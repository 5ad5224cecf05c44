"""Numbers that describe features: t-SNE, k-NN purity, CKA, effective dimensions, spectra, and sparsity.

Features are arrays (N, D), one line per image; labels are arrays (N,) of label numbers.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from torch import nn

from evaluation.hooks import eval_mode, outputs_of

PCA_COMPONENTS = 50  # before t-SNE, as in van der Maaten and Hinton 2008


def tsne(features: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """Coordinates (N, 2) of the images by t-SNE (van der Maaten and Hinton 2008), initialized by PCA.

    They are for viewing only: distances between groups and sizes of groups mean nothing, so report `neighbour_purity`
    of the features with them.  Raises ValueError for fewer images than three times the perplexity.
    """
    if len(features) < 3 * perplexity:
        raise ValueError(
            f"t-SNE of perplexity {perplexity} needs at least {3 * perplexity:.0f} images, not {len(features)}"
        )
    components = min(PCA_COMPONENTS, *features.shape)
    reduced = PCA(components, random_state=seed).fit_transform(features)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)


def neighbour_purity(features: np.ndarray, labels: np.ndarray, neighbours: int = 20) -> float:
    """k-NN purity: the fraction (0..1) of an image's nearest neighbors (cosine) of its own class, averaged over images.

    Chance is 1 / number of classes where these have equal size.
    Raises ValueError if there are not more images than neighbors.
    """
    if len(features) <= neighbours:
        raise ValueError(f"{neighbours} neighbors need more than {neighbours} images, not {len(features)}")
    search = NearestNeighbors(n_neighbors=neighbours, metric="cosine", algorithm="brute").fit(features)
    nearest = search.kneighbors(return_distance=False)  # without an argument, no image is its own neighbor
    return float((np.asarray(labels)[nearest] == np.asarray(labels)[:, None]).mean())


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """Similarity, 0..1, of two models' features: linear centered kernel alignment (Kornblith et al. 2019).

    `one` (N, D) and `other` (N, E) are of the same images in the same order.  Rotation and scaling do not change it.
    It is biased upward for few images: compare values at the same N, well above D.
    Raises ValueError if the numbers of images differ, or if one side is the same for all images.
    """
    if len(one) != len(other):
        raise ValueError(f"CKA compares the same images; there are {len(one)} and {len(other)}")
    one, other = (each.astype(np.float64) - each.mean(axis=0, dtype=np.float64) for each in (one, other))
    sizes = np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other)
    if sizes == 0:
        raise ValueError("one side has the same features for all images; CKA is not defined")
    return float(np.linalg.norm(other.T @ one) ** 2 / sizes)


def cka_table(features: dict[str, np.ndarray]) -> pd.DataFrame:
    """Linear CKA of every pair of the named features (of models, or of stages), as a symmetric table."""
    names = list(features)
    values = np.eye(len(names))
    for row in range(len(names)):
        for column in range(row):
            values[row, column] = values[column, row] = linear_cka(features[names[row]], features[names[column]])
    return pd.DataFrame(values, index=names, columns=names)


def rank_me(features: np.ndarray) -> float:
    """RankMe (Garrido et al. 2023): the effective number of dimensions of features (N, D), 1 to min(N, D).

    It is the exponential of the entropy of the singular values, normalized to sum 1; as there, without centering.
    """
    singular_values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    probabilities = singular_values / singular_values.sum()
    probabilities = probabilities[probabilities > 0]
    return float(np.exp(-(probabilities * np.log(probabilities)).sum()))


def covariance_spectrum(features: np.ndarray) -> np.ndarray:
    """Eigenvalues (D,) of the covariance of features (N, D), the largest first.

    At most N - 1 of them are above zero, whatever the features are.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    eigenvalues = np.zeros(features.shape[1])
    squares = np.linalg.svd(centred, compute_uv=False) ** 2 / (len(features) - 1)
    eigenvalues[: len(squares)] = squares
    if len(features) <= features.shape[1]:
        eigenvalues[len(features) - 1 :] = 0  # not exactly 0 before: centering removed one dimension
    return eigenvalues


def spectrum_by_images(features: np.ndarray, numbers: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """The covariance spectra of subsets of the images, nested and sampled by seed: does the spectrum depend on N?

    Columns: images (the size of the subset), place (from 1) and eigenvalue.  A spectrum that changes with N describes
    the sample and not the features.  Raises ValueError for a size below 2 or above the number of images.
    """
    order = np.random.default_rng(seed).permutation(len(features))
    parts = []
    for number in numbers:
        if not 2 <= number <= len(features):
            raise ValueError(f"a spectrum needs 2 to {len(features)} images here, not {number}")
        eigenvalues = covariance_spectrum(features[order[:number]])
        places = range(1, len(eigenvalues) + 1)
        parts.append(pd.DataFrame({"images": number, "place": places, "eigenvalue": eigenvalues}))
    return pd.concat(parts, ignore_index=True)


@torch.inference_mode()
def share_non_positive(model: nn.Module, loader, hook_points: Sequence[str], device: str = "cpu") -> pd.DataFrame:
    """Sparsity: the fraction (0..1) of values at or below zero in the outputs of named modules, over all images.

    It depends on the module: about a half after BatchNorm, the same after ReLU (as zeros), other values after SiLU.  So
    the table names it.  Columns: hook_point (such as features.8.1), module (its type), share, values (their number).
    `loader` gives (images, labels).  The model runs in eval mode; its modes are restored.
    Raises ValueError for a module that the model does not have, or that did not run.
    """
    modules = _modules_named(model, hook_points)
    counts = {module: np.zeros(2, dtype=np.int64) for module in modules.values()}

    def count(module, output):
        counts[module] += (int((output <= 0).sum()), output.numel())

    with outputs_of(model, list(modules.values()), count), eval_mode(model):
        for images, _ in loader:
            model(images.to(device))
    rows = []
    for name, module in modules.items():
        non_positive, values = counts[module]
        share = non_positive / values
        rows.append({"hook_point": name, "module": type(module).__name__, "share": share, "values": values})
    return pd.DataFrame(rows)


@torch.inference_mode()
def module_outputs(model: nn.Module, images: torch.Tensor, hook_points: Sequence[str]) -> dict[str, np.ndarray]:
    """The outputs (N, channels, height, width) of named modules for normalized images (N, 3, H, W), by name.

    Of a module that runs more than once it is the last one.  The model runs in eval mode; its modes are restored.
    Raises ValueError for a module that the model does not have, or that did not run.
    """
    modules = _modules_named(model, hook_points)
    outputs = {}

    def copy(module, output):
        outputs[module] = output.cpu().numpy().copy()

    with outputs_of(model, list(modules.values()), copy), eval_mode(model):
        model(images)
    return {name: outputs[module] for name, module in modules.items()}


def _modules_named(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    missing = [name for name in names if name not in modules]
    if missing:
        raise ValueError(f"the model has no module {missing[0]!r}")
    return {name: modules[name] for name in names}
