"""Numbers that describe features: t-SNE, k-NN purity, CKA, effective dimensions, spectra, and sparsity.

Features are (N, D), one line per image, and labels (N,) are label numbers: arrays, lists, or tensors of a CPU.
Features of another shape, and values that are not finite, raise ValueError.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import nn

from evaluation.hooks import eval_mode, outputs_of
from loop.devices import as_input_of
from self_supervised.probes import nearest_images

PURITY_NEIGHBORS = 20  # of the k-NN purity, all others where there are fewer
PCA_COMPONENTS = 50  # before t-SNE, as in van der Maaten and Hinton 2008


def tsne(features: np.ndarray, perplexity: float = 30.0) -> np.ndarray:
    """Coordinates (N, 2) of the images by t-SNE (van der Maaten and Hinton 2008), initialized by PCA.

    They are for viewing only: distances between groups and sizes of groups mean nothing, so report `neighbour_purity`
    of the features with them.  Raises ValueError for fewer images than three times the perplexity.
    """
    features = _as_array(features)
    if len(features) < 3 * perplexity:
        raise ValueError(
            f"t-SNE of perplexity {perplexity} needs at least {3 * perplexity:.0f} images, not {len(features)}"
        )
    components = min(PCA_COMPONENTS, *features.shape)
    reduced = PCA(components, random_state=0).fit_transform(features)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)


def neighbour_purity(features: np.ndarray, labels: np.ndarray, neighbors: int | None = None) -> float:
    """k-NN purity: the fraction (0..1) of an image's nearest neighbors (cosine) of its own class, averaged over images.

    By default it is of PURITY_NEIGHBORS.  Chance is 1 / number of classes where these have equal size.
    Raises ValueError if there are not more images than neighbors, or not as many as labels.
    """
    features, labels = _as_array(features), np.asarray(labels)
    if len(features) != len(labels):
        raise ValueError(f"there are features of {len(features)} images, but {len(labels)} labels")
    nearest = nearest_images(features, neighbors or min(PURITY_NEIGHBORS, len(features) - 1))
    return float((labels[nearest] == labels[:, None]).mean())


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """Similarity of two models' features: debiased linear centered kernel alignment (Kornblith et al. 2019).

    `one` (N, D) and `other` (N, E) are of the same images in the same order.  1: equal but for rotation and scale.  0:
    unrelated; estimates are spread around it, so some are below.  Each of the three alignments is estimated without
    bias (Song et al. 2012).  The plain estimator reads 0.38 for unrelated noise at N = 2,091 and D = E = 1,280.
    NaN where the images are too few to tell the features of one side from noise, as 3 are.
    Raises ValueError if the numbers of images differ, or if one side is the same for all images.
    """
    one, other = _as_array(one), _as_array(other)
    if len(one) != len(other):
        raise ValueError(f"CKA compares the same images; there are {len(one)} and {len(other)}")
    if len(one) < 4:
        return float("nan")
    if any((each == each[0]).all() for each in (one, other)):
        raise ValueError("one side has the same features for all images; CKA is not defined")
    one, other = (each.astype(np.float64) - each.mean(axis=0, dtype=np.float64) for each in (one, other))
    one, other = (each / np.linalg.norm(each) for each in (one, other))
    lengths = _alignment(one, one), _alignment(other, other)
    if min(lengths) <= 1e-9:  # an alignment is at most 1
        return float("nan")
    return float(_alignment(one, other) / np.sqrt(lengths[0] * lengths[1]))


def _alignment(one: np.ndarray, other: np.ndarray) -> float:
    """The alignment of centered features (N, D) and (N, E), without bias, up to a factor that depends on N alone."""
    images = len(one)
    plain = np.linalg.norm(other.T @ one) ** 2
    lengths, of_other = (np.square(each).sum(axis=1) for each in (one, other))  # of each image with itself
    all_lengths = lengths.sum() * of_other.sum()
    return plain - images / (images - 2) * (lengths @ of_other) + all_lengths / ((images - 1) * (images - 2))


def cka_table(features: dict[str, np.ndarray]) -> pd.DataFrame:
    """`linear_cka` of every pair of the named features (of models, or of stages), as a symmetric table.

    The name of its index says which estimator it is.
    """
    names = list(features)
    values = np.eye(len(names))
    for row in range(len(names)):
        for column in range(row):
            values[row, column] = values[column, row] = linear_cka(features[names[row]], features[names[column]])
    return pd.DataFrame(values, index=pd.Index(names, name="debiased linear CKA"), columns=names)


def rank_me(features: np.ndarray) -> float:
    """RankMe (Garrido et al. 2023): the effective number of dimensions of features (N, D), 1 to min(N, D).

    It is the exponential of the entropy of the singular values, normalized to sum 1; as there, without centering.
    Features that are all zero fill no dimension: 0.
    """
    singular_values = np.linalg.svd(_as_array(features).astype(np.float64), compute_uv=False)
    if not singular_values.any():
        return 0.0
    probabilities = singular_values / singular_values.sum()
    probabilities = probabilities[probabilities > 0]
    return float(np.exp(-(probabilities * np.log(probabilities)).sum()))


def covariance_spectrum(features: np.ndarray) -> np.ndarray:
    """Eigenvalues (D,) of the covariance of features (N, D), the largest first.

    At most N - 1 of them are above zero, whatever the features are.  Raises ValueError for fewer than two images.
    """
    features = _as_array(features)
    if len(features) < 2:
        raise ValueError(f"a spectrum needs at least 2 images, not {len(features)}")
    centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    eigenvalues = np.zeros(features.shape[1])
    squares = np.linalg.svd(centered, compute_uv=False) ** 2 / (len(features) - 1)
    eigenvalues[: len(squares)] = squares
    if len(features) <= features.shape[1]:
        eigenvalues[len(features) - 1 :] = 0  # not exactly 0 before: centering removed one dimension
    return eigenvalues


def spectrum_by_images(features: np.ndarray, numbers: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """The covariance spectra of subsets of the images, nested and sampled by seed: does the spectrum depend on N?

    Columns: images (the size of the subset), place (from 1) and eigenvalue.  A spectrum that changes with N describes
    the sample and not the features.  Raises ValueError for a size below 2 or above the number of images.
    """
    features = _as_array(features)
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
            model(as_input_of(model, images.to(device)))
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
        outputs[module] = output.float().cpu().numpy().copy()

    with outputs_of(model, list(modules.values()), copy), eval_mode(model):
        model(as_input_of(model, images))
    return {name: outputs[module] for name, module in modules.items()}


def _as_array(features) -> np.ndarray:
    """Features as an array; ValueError unless they are (N, D) and finite."""
    features = np.asarray(features)
    if features.ndim != 2:
        raise ValueError(f"features have shape {features.shape}; they must be (N, D), one line per image")
    if not np.isfinite(features).all():
        raise ValueError("the features hold values that are not finite")
    return features


def _modules_named(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    missing = [name for name in names if name not in modules]
    if missing:
        raise ValueError(f"the model has no module {missing[0]!r}")
    return {name: modules[name] for name in names}
