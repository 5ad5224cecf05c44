"""What a network's features look like as numbers: how many are not positive, and how many dimensions they fill."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import nn

from evaluation.scorecam import eval_mode


@torch.inference_mode()
def share_non_positive(model: nn.Module, loader, hook_points: Sequence[str], device: str = "cpu") -> pd.DataFrame:
    """Of what each named module puts out over all images, the share (0..1) of values that are zero or below.

    It depends on the module: after BatchNorm about half, after ReLU the same ones but as zeros, after SiLU again
    others.  So the table names it: hook_point (such as features.8.1), module (its type), share, values (their number).
    `loader` gives (images, labels).  The model runs in eval mode and is left as it was.
    Raises ValueError for a module that the model does not have, or that did not run.
    """
    counts = {name: np.zeros(2, dtype=np.int64) for name in hook_points}

    def count(name, output):
        counts[name] += (int((output <= 0).sum()), output.numel())

    with _seeing_outputs(model, hook_points, count), eval_mode(model):
        for images, _ in loader:
            model(images.to(device))
    modules = dict(model.named_modules())
    return pd.DataFrame(
        [
            {
                "hook_point": name,
                "module": type(modules[name]).__name__,
                "share": not_positive / values,
                "values": values,
            }
            for name, (not_positive, values) in counts.items()
        ]
    )


@torch.inference_mode()
def module_outputs(model: nn.Module, images: torch.Tensor, hook_points: Sequence[str]) -> dict[str, np.ndarray]:
    """What each named module puts out for normalised images (N, 3, H, W), by its name: (N, channels, height, width).

    A module that runs twice is there as it ran last.  The model runs in eval mode and is left as it was.
    Raises ValueError for a module that the model does not have, or that did not run.
    """
    outputs = {}

    def keep(name, output):
        outputs[name] = output.cpu().numpy().copy()

    with _seeing_outputs(model, hook_points, keep), eval_mode(model):
        model(images)
    return {name: outputs[name] for name in hook_points}


@contextmanager
def _seeing_outputs(model: nn.Module, hook_points: Sequence[str], see: Callable):
    """Call see(name, output) with what each named module puts out, at once: the next module may work in place."""
    modules = dict(model.named_modules())
    missing = [name for name in hook_points if name not in modules]
    if missing:
        raise ValueError(f"the model has no module {missing[0]!r}")
    silent = set(hook_points)

    def hook_of(name):
        def hook(module, inputs, output):
            silent.discard(name)
            see(name, output)

        return hook

    handles = [modules[name].register_forward_hook(hook_of(name)) for name in hook_points]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if silent:
        raise ValueError(f"{min(silent)} did not run when the model was given the images")


def rank_me(features: np.ndarray) -> float:
    """How many dimensions features (N, D) fill, 1 to min(N, D): RankMe (Garrido et al. 2023).

    The exponential of the entropy of the singular values as shares of their sum; not centred, as there.
    """
    singular_values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    shares = singular_values / singular_values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def covariance_spectrum(features: np.ndarray) -> np.ndarray:
    """Eigenvalues (D,) of the covariance of features (N, D), the largest first.

    Of N images at most N - 1 are above zero, whatever the features are.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    eigenvalues = np.zeros(features.shape[1])
    squares = np.linalg.svd(centred, compute_uv=False) ** 2 / (len(features) - 1)
    eigenvalues[: len(squares)] = squares
    if len(features) <= features.shape[1]:
        eigenvalues[len(features) - 1 :] = 0  # rounding: centring took one dimension away
    return eigenvalues


def spectrum_by_images(features: np.ndarray, numbers: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """The covariance spectrum of the first so many of the images, in an order drawn by seed: does it depend on N?

    Columns: images, place (from 1), eigenvalue; a spectrum that still changes with the number of images is that of the
    sample and not of the features.  Raises ValueError for a number below 2 or above what there is.
    """
    order = np.random.default_rng(seed).permutation(len(features))
    parts = []
    for number in numbers:
        if not 2 <= number <= len(features):
            raise ValueError(f"a spectrum of {number} images is asked for; there are {len(features)}, and it takes 2")
        eigenvalues = covariance_spectrum(features[order[:number]])
        places = range(1, len(eigenvalues) + 1)
        parts.append(pd.DataFrame({"images": number, "place": places, "eigenvalue": eigenvalues}))
    return pd.concat(parts, ignore_index=True)
