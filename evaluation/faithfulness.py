"""Whether a heat map points at what the model uses: what hiding it, showing it and forgetting change.

Maps are (N, H, W) in [0, 1]; images (N, 3, H, W) are normalised as the model expects and on its device; confidence is
the probability (0 to 1) of the target class.  A baseline is the image that stands where another is hidden: hiding can
itself look like something to the model, so results are to be read beside more than one baseline, and beside control
maps that know nothing of the model.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.stats import binomtest, spearmanr
from torch import nn

from evaluation.scorecam import check_targets, eval_mode, one_target_each, scale_to_unit, score_cam

LOWER_IS_BETTER = {"drop": True, "increase": False, "deletion": True, "insertion": False}


@dataclass(frozen=True)
class ConfidenceCurves:
    """Confidences (N, steps + 1) in each image when these shares (steps + 1,) of its pixels, 0 to 1, are replaced."""

    shares: torch.Tensor
    confidences: torch.Tensor

    @property
    def areas(self) -> torch.Tensor:
        """The area under each image's curve (N,), by trapezoids: the mean confidence on the way, 0 to 1."""
        return torch.trapezoid(self.confidences, self.shares, dim=1)


def black_baseline(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pixel value 0 as the model sees it: -mean / std of the normalisation, channel by channel.  Shape of `images`."""
    mean, std = (torch.as_tensor(each, dtype=images.dtype, device=images.device) for each in (mean, std))
    return (-mean / std)[:, None, None].expand_as(images)


def mean_baseline(images: torch.Tensor) -> torch.Tensor:
    """Each image's own mean colour in all its pixels.  Shape of `images`."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


def blurred_baseline(images: torch.Tensor, sigma: float = 5.0) -> torch.Tensor:
    """Each image under a Gaussian blur of `sigma` pixels, reflected at the borders.  Shape of `images`.

    Petsiuk et al. (2018) take 5 pixels at 224 x 224, and cut the Gaussian to 11 x 11.
    """
    return torch.from_numpy(ndimage.gaussian_filter(images.cpu().numpy(), (0, 0, sigma, sigma))).to(images)


def random_maps(images: torch.Tensor, grid: int = 7, seed: int = 0) -> torch.Tensor:
    """A control: noise, `grid` x `grid` uniform random values in each map, upsampled as Score-CAM's maps are.

    As smooth as the maps of a layer of that resolution.  Noise pixel by pixel would not be a fair control: hiding
    scattered pixels breaks an image sooner than hiding a region does, whatever is in it.
    """
    noise = torch.rand(len(images), 1, grid, grid, generator=torch.Generator().manual_seed(seed))
    upsampled = nn.functional.interpolate(noise, size=images.shape[2:], mode="bilinear", align_corners=False)
    return scale_to_unit(upsampled[:, 0])


def edge_maps(images: torch.Tensor) -> torch.Tensor:
    """A control: the Sobel gradient's magnitude of the mean over the channels; an image of one colour gives zeros."""
    grey = images.mean(dim=1).cpu().numpy()
    # One image at a time: scipy smooths along every axis but the one it differentiates, from image to image too.
    magnitudes = [np.hypot(ndimage.sobel(each, axis=0), ndimage.sobel(each, axis=1)) for each in grey]
    return scale_to_unit(torch.from_numpy(np.stack(magnitudes)))


def masked_images(images: torch.Tensor, maps: torch.Tensor, baselines: torch.Tensor) -> torch.Tensor:
    """The image where the map is 1, the baseline where it is 0, in proportion between.  Shape of `images`.

    With a black baseline this multiplies the pixels by the map, as Chattopadhay et al. (2018) do.
    Raises ValueError if the sizes differ.
    """
    _check_sizes(images, maps, baselines)
    return baselines + maps.to(images)[:, None] * (images - baselines)


@torch.inference_mode()
def confidences(model: nn.Module, images: torch.Tensor, target_classes, batch_size: int = 64) -> torch.Tensor:
    """The probability (N,), float64 on the CPU, that the model gives each image's target class, a label number."""
    targets = one_target_each(images, target_classes)
    with eval_mode(model):
        return torch.cat(
            [
                _target_probabilities(model, images[batch], targets[batch])
                for batch in torch.arange(len(images)).split(batch_size)
            ]
        )


def drop_in_confidence(whole: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """The share (N,), 0 to 1, of the confidence in the whole images that is lost in the masked ones; a gain counts 0.

    Its mean is the average drop of Chattopadhay et al. (2018), there in percent.  Low is good.
    """
    return (whole - masked).clamp(min=0) / whole


def increase_in_confidence(whole: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """In which images (N,), 1 or 0, the model is surer of the masked than of the whole image.

    Its mean is the increase in confidence of Chattopadhay et al. (2018), there in percent.  High is good.
    """
    return (masked > whole).double()


def deletion(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    target_classes: Sequence[int],
    baselines: torch.Tensor,
    pixels_per_step: int = 224,
    batch_size: int = 64,
) -> ConfidenceCurves:
    """How the confidence falls as the image's pixels give way to the baseline's, those of the highest map value first.

    Petsiuk et al. (2018), who replace 224 pixels a step; a small area is good.  Equal values go by rows.  The last
    step may be shorter, and counts for its share.  `batch_size` images run at once, of any step.
    Raises ValueError if the sizes differ or a step is below 1 pixel.
    """
    _check_sizes(images, maps, baselines)
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
    """How the confidence rises as the baseline's pixels give way to the image's; all else as in `deletion`.

    A large area is good.
    """
    _check_sizes(images, maps, baselines)
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
    """All four measures of every map, under every baseline, in every image: one row each.

    Columns: map and baseline (their names), image (its number), drop (the share of confidence lost), increase (0 or 1),
    deletion and insertion (areas).  `.groupby(["baseline", "map"]).mean()` is the table of a report.
    """
    whole = confidences(model, images, target_classes, batch_size)
    settings = {"pixels_per_step": pixels_per_step, "batch_size": batch_size}
    parts = []
    for baseline_name, baseline in baselines.items():
        for map_name, each in maps.items():
            masked = confidences(model, masked_images(images, each, baseline), target_classes, batch_size)
            part = {
                "baseline": baseline_name,
                "map": map_name,
                "image": range(len(images)),
                "drop": drop_in_confidence(whole, masked).numpy(),
                "increase": increase_in_confidence(whole, masked).numpy(),
                "deletion": deletion(model, images, each, target_classes, baseline, **settings).areas.numpy(),
                "insertion": insertion(model, images, each, target_classes, baseline, **settings).areas.numpy(),
            }
            parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def compare_maps(measured: pd.DataFrame, name: str) -> pd.DataFrame:
    """One map against each other map of `measure_faithfulness`: one row a baseline, other map and measure.

    "better" and "worse" count the images in which the named map is so; p is of the sign test (Dixon and Mood 1946),
    images in which both are equal left out; the verdict is at the level of 0.05.
    """
    rows = []
    for baseline, group in measured.groupby("baseline", sort=False):
        by_map = {map_name: part.set_index("image") for map_name, part in group.groupby("map", sort=False)}
        for other in (each for each in by_map if each != name):
            for measure, lower_is_better in LOWER_IS_BETTER.items():
                differences = by_map[name][measure] - by_map[other][measure]
                gains = -differences if lower_is_better else differences
                better, worse = int((gains > 0).sum()), int((gains < 0).sum())
                p_value = binomtest(better, better + worse).pvalue if better + worse else 1.0
                rows.append(
                    {
                        "baseline": baseline,
                        "map": name,
                        "against": other,
                        "measure": measure,
                        "difference": differences.mean(),
                        "better": better,
                        "worse": worse,
                        "p": p_value,
                        "map is": _verdict(better, worse, p_value),
                    }
                )
    return pd.DataFrame(rows)


def cascading_randomisation(
    model: nn.Module,
    images: torch.Tensor,
    layer: nn.Module,
    target_classes: Sequence[int],
    parts: Sequence[nn.Module],
    seed: int = 0,
    weighting: str = "softmax",
    batch_size: int = 16,
) -> np.ndarray:
    """How much of a model's Score-CAM outlives its weights: a map that stays shows the image, not the model.

    In a copy, `parts` (modules of the model, from its output down) are initialised anew, one after another and each
    staying so.  Returns Spearman's rank correlation, -1 to 1, of each image's map with that of the whole model, shape
    (parts, N); a constant map has none, and gives NaN.  The cascade of Adebayo et al. (2018).
    BatchNorm within the randomised parts takes its statistics from `images`: with any others a random network's
    activations vanish or explode from layer to layer, and its map would show that and not that it has forgotten.
    Raises ValueError for a part that is not in the model or holds parameters that cannot be initialised anew.
    """
    randomised = copy.deepcopy(model)
    copies = dict(zip(model.modules(), randomised.modules(), strict=True))
    for part in parts:
        if part not in copies:
            raise ValueError(f"a part ({type(part).__name__}) is not a module of the model ({type(model).__name__})")
    original = score_cam(model, images, layer, target_classes, weighting, batch_size).maps
    correlations = np.empty((len(parts), len(images)))
    norms = []
    for step, part in enumerate(parts):
        _initialise(copies[part], seed + step)
        norms += [module for module in copies[part].modules() if isinstance(module, nn.BatchNorm2d)]
        _estimate_statistics(randomised, norms, images, batch_size)
        maps = score_cam(randomised, images, copies[layer], target_classes, weighting, batch_size).maps
        for number in range(len(images)):
            correlations[step, number] = spearmanr(original[number].flatten(), maps[number].flatten()).statistic
    return correlations


def _check_sizes(images, maps, baselines):
    if maps.shape != (len(images), *images.shape[2:]):
        raise ValueError(f"maps have shape {tuple(maps.shape)}; images {tuple(images.shape)} need (N, H, W) of these")
    if baselines.shape != images.shape:
        raise ValueError(
            f"baselines have shape {tuple(baselines.shape)}; they need that of images {tuple(images.shape)}"
        )


def _target_probabilities(model, images, targets) -> torch.Tensor:
    logits = model(images.contiguous(memory_format=torch.channels_last))
    check_targets(targets, logits.shape[1])
    # In float64 a hopeless class keeps a probability above 0, by which a drop is divided.
    return logits.double().softmax(dim=1).gather(1, targets[:, None]).squeeze(1).cpu()


@torch.inference_mode()
def _replacement_curves(model, before, after, maps, target_classes, pixels_per_step, batch_size) -> ConfidenceCurves:
    """Confidences as pixels of `before` give way to those of `after`, those of the highest map value first."""
    if pixels_per_step < 1:
        raise ValueError(f"pixels_per_step is {pixels_per_step}; it must be at least 1")
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
    return ConfidenceCurves(counts.double().cpu() / (height * width), curves)


def _verdict(better: int, worse: int, p_value: float) -> str:
    if p_value >= 0.05:
        return "not told apart"
    return "better" if better > worse else "worse"


def _initialise(part: nn.Module, seed: int):
    """New random values for every parameter within, without touching the global generators."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in part.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif list(module.parameters(recurse=False)):
                raise ValueError(f"{type(module).__name__} has parameters of its own but no reset_parameters()")


@torch.no_grad()
def _estimate_statistics(model, norms, images, batch_size):
    """Set the running statistics of these BatchNorms to those of the images; all else runs in eval mode."""
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for batch in images.split(batch_size):
        model(batch)
    model.eval()
