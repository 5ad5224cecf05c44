"""Faithfulness: does a heat map point at the regions that the model uses?

It is measured by hiding and showing regions, and by randomizing the model's weights.  Maps are (N, H, W) in [0, 1].
Images (N, 3, H, W) are normalized as the model expects and on its device.  Confidence is the probability (0 to 1) of
the target class.  A baseline is the image that replaces hidden pixels.  A hidden region can itself look like something
to the model, so compare several baselines, and compare with control maps that do not depend on the model.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.stats import spearmanr
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from evaluation.hooks import eval_mode
from evaluation.scorecam import (
    as_images,
    check_batch_size,
    check_targets,
    one_target_each,
    probabilities_of,
    scale_to_unit,
    score_cam,
)
from evaluation.statistics import MeanDifference, mean_difference
from helper_functions import logits_of
from loop.devices import as_input_of
from supervised.models import estimate_batchnorm

ROUNDING = 1e-3  # of half precision, by which maps may leave 0..1
COMPARISON_COLUMNS = [
    *("map", "compared_with", "measure", "advantage", "low", "high", "p", "verdict"),
    *("images", "images_better", "images_worse", "images_left_out"),
]
LOWER_IS_BETTER = {"drop": True, "increase": False, "deletion": True, "insertion": False}


@dataclass(frozen=True)
class ConfidenceCurves:
    """Confidences (N, steps + 1) after these fractions (steps + 1,) of an image's pixels, 0 to 1, were replaced."""

    fractions: torch.Tensor
    confidences: torch.Tensor

    @property
    def areas(self) -> torch.Tensor:
        """The area under each image's curve (N,), by the trapezoidal rule: the mean confidence, 0 to 1."""
        return torch.trapezoid(self.confidences, self.fractions, dim=1)


def black_baseline(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pixel value 0 as the model sees it: -mean / std of the normalization, channel by channel.  Shape of `images`.

    Raises ValueError unless red, green and blue have one value each.
    """
    if np.shape(mean) != (3,) or np.shape(std) != (3,):
        raise ValueError(f"mean is {mean} and std {std}; red, green and blue need one value each")
    mean, std = (torch.as_tensor(each, dtype=images.dtype, device=images.device) for each in (mean, std))
    return (-mean / std)[:, None, None].expand_as(images)


def mean_baseline(images: torch.Tensor) -> torch.Tensor:
    """Each image's own mean color in all its pixels.  Shape of `images`."""
    images = as_images(images)
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


def blurred_baseline(images: torch.Tensor, sigma: float = 5.0) -> torch.Tensor:
    """Each image after a Gaussian blur of `sigma` pixels, reflected at the borders.  Shape of `images`.

    Petsiuk et al. (2018) use 5 pixels at 224 x 224, with a kernel of 11 x 11.
    """
    images = as_images(images).detach()
    return torch.from_numpy(ndimage.gaussian_filter(images.float().cpu().numpy(), (0, 0, sigma, sigma))).to(images)


def baselines_of(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> dict[str, torch.Tensor]:
    """The three baselines of images by name; `mean` and `std` are those of their normalization."""
    return {
        "black": black_baseline(images, mean, std),
        "mean": mean_baseline(images),
        "blurred": blurred_baseline(images),
    }


def random_maps(images: torch.Tensor, grid: int = 7, seed: int = 0) -> torch.Tensor:
    """Control maps (N, H, W): `grid` x `grid` uniform random values each, upsampled as Score-CAM's maps are.

    They are as smooth as the maps of a layer of that resolution.  Independent noise in every pixel would not be a fair
    control: hiding scattered pixels destroys an image sooner than hiding a region does.
    """
    noise = torch.rand(len(images), 1, grid, grid, generator=torch.Generator().manual_seed(seed))
    upsampled = nn.functional.interpolate(noise, size=images.shape[2:], mode="bilinear", align_corners=False)
    return scale_to_unit(upsampled[:, 0])


def edge_maps(images: torch.Tensor) -> torch.Tensor:
    """Control maps (N, H, W): the magnitude of the gray image's Sobel gradient; zeros for an image of one color."""
    gray = as_images(images).detach().float().mean(dim=1).cpu().numpy()
    # One image at a time: scipy smooths along every axis except the one it differentiates, so across images too.
    magnitudes = [np.hypot(ndimage.sobel(each, axis=0), ndimage.sobel(each, axis=1)) for each in gray]
    return scale_to_unit(torch.from_numpy(np.stack(magnitudes)))


def masked_images(images: torch.Tensor, maps: torch.Tensor, baselines: torch.Tensor) -> torch.Tensor:
    """The image where the map is 1, the baseline where it is 0, and a mixture between.  Shape of `images`.

    With a black baseline this multiplies the pixels by the map, as in Chattopadhay et al. (2018).
    Raises ValueError if the sizes differ, or a finite value of a map is not 0 to 1.
    """
    images, maps, baselines = _of_equal_sizes(images, maps, baselines)
    finite = maps[maps.isfinite()]
    if len(finite) and not (finite.min() >= -ROUNDING and finite.max() <= 1 + ROUNDING):
        raise ValueError(f"maps have values from {finite.min():.3g} to {finite.max():.3g}; they must be 0 to 1")
    return baselines + maps.to(images)[:, None] * (images - baselines)


@torch.inference_mode()
def confidences(model: nn.Module, images: torch.Tensor, target_classes, batch_size: int = 64) -> torch.Tensor:
    """The model's probability (N,), float64 on the CPU, of each image's target class, a label number."""
    images = as_images(images)
    check_batch_size(batch_size)
    targets = one_target_each(images, target_classes)
    with eval_mode(model):
        return torch.cat(
            [
                _target_probabilities(model, images[batch], targets[batch])
                for batch in torch.arange(len(images)).split(batch_size)
            ]
        )


def drop_in_confidence(original: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """The fraction (N,), 0 to 1, of the confidence in the original image that masking loses; a gain counts as 0.

    Its mean is the average drop of Chattopadhay et al. (2018), there in percent.  Low is good.
    """
    return (original - masked).clamp(min=0) / original


def increase_in_confidence(original: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """1 where the confidence in the masked image is higher than that in the original image, else 0, or NaN; shape (N,).

    Its mean is the increase in confidence of Chattopadhay et al. (2018), there in percent.  High is good.
    """
    return (masked > original).float().masked_fill(masked.isnan(), torch.nan)


def deletion(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    target_classes: Sequence[int],
    baselines: torch.Tensor,
    pixels_per_step: int = 224,
    batch_size: int = 64,
) -> ConfidenceCurves:
    """Confidence while pixels of the image are replaced by the baseline's, in order of decreasing map value.

    A small area is good.  Petsiuk et al. (2018) replace 224 pixels per step.  Equal map values are replaced row by row.
    The last step may be shorter, and the area accounts for it.  `batch_size` images run at once, from any steps.
    A map with a value that is not finite orders nothing: its confidences are NaN.
    Raises ValueError if the sizes differ or a step is below 1 pixel.
    """
    images, maps, baselines = _of_equal_sizes(images, maps, baselines)
    return _replacement_curves(model, images, baselines, maps, target_classes, pixels_per_step, batch_size)


def insertion(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    target_classes: Sequence[int],
    baselines: torch.Tensor,
    pixels_per_step: int = 224,
    batch_size: int = 64,
) -> ConfidenceCurves:
    """Confidence while pixels of the baseline are replaced by the image's; otherwise as `deletion`.

    A large area is good.
    """
    images, maps, baselines = _of_equal_sizes(images, maps, baselines)
    return _replacement_curves(model, baselines, images, maps, target_classes, pixels_per_step, batch_size)


def measure_faithfulness(
    model: nn.Module,
    images: torch.Tensor,
    maps: dict[str, torch.Tensor],
    target_classes: Sequence[int],
    baselines: dict[str, torch.Tensor],
    pixels_per_step: int = 224,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Measure every map with every baseline: one row per baseline, map and image.

    Columns: baseline and map (their names), image (its number), drop (a fraction), increase (0 or 1), deletion and
    insertion (areas).  All four are NaN for a map with a value that is not finite.
    Raises ValueError unless maps and baselines have names, and what `masked_images` and `confidences` raise.
    """
    for what, named in (("maps", maps), ("baselines", baselines)):
        if not isinstance(named, Mapping) or not named:
            raise ValueError(f"{what} is a {type(named).__name__}; it must be a dict of tensors by name, not empty")
    original = confidences(model, images, target_classes, batch_size)
    settings = {"pixels_per_step": pixels_per_step, "batch_size": batch_size}
    parts = []
    for baseline_name, baseline in baselines.items():
        for map_name, each in maps.items():
            masked = confidences(model, masked_images(images, each, baseline), target_classes, batch_size)
            part = {
                "baseline": baseline_name,
                "map": map_name,
                "image": range(len(images)),
                "drop": drop_in_confidence(original, masked).numpy(),
                "increase": increase_in_confidence(original, masked).numpy(),
                "deletion": deletion(model, images, each, target_classes, baseline, **settings).areas.numpy(),
                "insertion": insertion(model, images, each, target_classes, baseline, **settings).areas.numpy(),
            }
            parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def compare_maps(measured: pd.DataFrame, names: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
    """Compare each named map with each of the others, image by image: one row per map, other map and measure.

    `measured` has the rows of `measure_faithfulness`; of an image the mean over its baselines counts.  Columns: map,
    compared_with, measure, advantage, low, high, p, verdict (of the named map), and the numbers of images compared, and
    of those better, worse and left out.  The advantage is the mean over the images of the difference between the maps,
    positive where the named map is better.  low, high, p and verdict are those of `mean_difference`; all rows are one
    family of comparisons.  Images for which either map is not finite are left out.
    Raises ValueError for a map that was not measured, and for one name in place of several.
    """
    measured_maps = sorted(set(measured["map"]))
    for given in (names, others):
        if isinstance(given, str) or not set(given) <= set(measured_maps):
            raise ValueError(f"{given!r} must be a list of maps that were measured: {', '.join(measured_maps)}")
    values = measured.groupby(["map", "image"])[list(LOWER_IS_BETTER)].mean().unstack("map")
    comparisons = list(product(names, others, LOWER_IS_BETTER))
    rows = []
    for name, other, measure in comparisons:
        differences = values[measure, name] - values[measure, other]
        advantages = (-differences if LOWER_IS_BETTER[measure] else differences).dropna()
        if len(advantages) > 1:
            found = mean_difference(advantages, len(comparisons))
        else:  # too few for an interval
            found = MeanDifference(advantages.mean(), math.nan, math.nan, math.nan)
        counts = len(advantages), (advantages > 0).sum(), (advantages < 0).sum(), len(differences) - len(advantages)
        rows.append(
            (name, other, measure, found.difference, found.low, found.high, found.p_value, found.verdict, *counts)
        )
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def cascading_randomization(
    model: nn.Module,
    images: torch.Tensor,
    layer: nn.Module,
    target_classes: Sequence[int],
    parts: Sequence[nn.Module],
    seed: int = 0,
    batch_size: int = 16,
) -> np.ndarray:
    """Compare Score-CAM before and after randomizing weights: a map that does not change does not show the model.

    In a copy of the model, `parts` (its modules, from the output down) are initialized again one after another; each
    stays randomized.  Returns Spearman's rank correlation, -1 to 1, of each image's map with that of the original
    model, shape (parts, N); NaN where a map is constant.  This is the cascade of Adebayo et al. (2018).  The result
    depends much on the seed; report several.
    Every BatchNorm within randomized parts takes its statistics from all `images` together.  Otherwise activations of a
    random network vanish or explode from layer to layer, and the map would show only that.
    Raises ValueError for a part that is not in the model or has parameters that cannot be initialized again, and for a
    single image where a part has a BatchNorm1d.
    """
    images = as_images(images).detach()
    for part in parts:
        _check_own_weights(part)
    randomized = copy.deepcopy(model)
    copies = dict(zip(model.modules(), randomized.modules(), strict=True))
    for part in parts:
        if part not in copies:
            raise ValueError(f"a part ({type(part).__name__}) is not a module of the model ({type(model).__name__})")
    original = score_cam(model, images, layer, target_classes, batch_size=batch_size).maps
    correlations = np.full((len(parts), len(images)), np.nan)
    norms = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step, part in enumerate(parts):
            _initialize(copies[part])
            norms += [
                module
                for module in copies[part].modules()
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.track_running_stats
            ]
            estimate_batchnorm(randomized, [as_input_of(randomized, images)], norms)
            maps = score_cam(randomized, images, copies[layer], target_classes, batch_size=batch_size).maps
            for number, (before, after) in enumerate(zip(original.flatten(1), maps.flatten(1), strict=True)):
                if before.min() < before.max() and after.min() < after.max():
                    correlations[step, number] = spearmanr(before, after).statistic
    return correlations


def _of_equal_sizes(images, maps, baselines) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three as tensors; ValueError if their sizes differ."""
    images, maps, baselines = as_images(images), torch.as_tensor(maps), torch.as_tensor(baselines)
    if maps.shape != (len(images), *images.shape[2:]):
        raise ValueError(f"maps have shape {tuple(maps.shape)}; images {tuple(images.shape)} need (N, H, W) of these")
    if baselines.shape != images.shape:
        raise ValueError(
            f"baselines have shape {tuple(baselines.shape)}; they need that of images {tuple(images.shape)}"
        )
    return images, maps, baselines


def _target_probabilities(model, images, targets) -> torch.Tensor:
    logits = logits_of(model, images)
    check_targets(targets, logits.shape[1])
    # A drop is divided by the probability: in float64 it is above 0 even for a very unlikely class.
    return probabilities_of(logits.cpu().double()).gather(1, targets[:, None].cpu()).squeeze(1)


@torch.inference_mode()
def _replacement_curves(model, before, after, maps, target_classes, pixels_per_step, batch_size) -> ConfidenceCurves:
    """Confidences while pixels of `before` are replaced by those of `after`, in order of decreasing map value."""
    if pixels_per_step < 1:
        raise ValueError(f"pixels_per_step is {pixels_per_step}; it must be at least 1")
    check_batch_size(batch_size)
    images, height, width = maps.shape
    targets = one_target_each(before, target_classes)
    order = maps.to(before.device).flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1).reshape(images, 1, height, width)
    counts = torch.tensor([*range(0, height * width, pixels_per_step), height * width], device=before.device)
    curves = torch.empty(images, len(counts), dtype=torch.double)
    with eval_mode(model):
        for pairs in torch.cartesian_prod(torch.arange(images), torch.arange(len(counts))).split(batch_size):
            numbers, steps = pairs.unbind(dim=1)
            replaced = ranks[numbers] < counts[steps, None, None, None]
            mixed = torch.where(replaced, after[numbers], before[numbers])
            curves[numbers, steps] = _target_probabilities(model, mixed, targets[numbers])
    curves[~maps.isfinite().all(dim=(1, 2)).cpu()] = torch.nan
    return ConfidenceCurves(counts.cpu().double() / (height * width), curves)


def _check_own_weights(part: nn.Module):
    """Raise ValueError for weights that are computed from others, which `reset_parameters` does not reach."""
    for module in part.modules():
        names = [name for name, _ in module.named_parameters(recurse=False)]
        computed = [name for name in names if name.endswith(("_orig", "_g", "_v"))]
        if computed or is_parametrized(module):
            raise ValueError(
                f"the weights of a {type(module).__name__} are computed from others, as by spectral_norm, weight_norm "
                "or pruning; remove that before they are randomized"
            )


def _initialize(part: nn.Module):
    """New random values for every parameter of the part."""
    for module in part.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif list(module.parameters(recurse=False)):
            raise ValueError(f"{type(module).__name__} has parameters of its own but no reset_parameters()")
