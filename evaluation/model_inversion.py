"""Model inversion (Yosinski et al. 2015): images optimized to maximize a class's logit, a filter, or any function.

Four parts, from top to bottom: image parameters, regularizers, objectives, optimization loop.  Inside the loop an image
is its difference from mid gray, (N, 1 or 3, S, S) in -0.5..0.5, so decay and clipping pull toward gray.  It stays
float: rounding to bytes would lose small steps.  Each image is optimized independently: in a batch it is the same as
alone.  image_parameters.py has the image parameters, random_views.py the views of an image that a step sees.

The command writes the images, a sheet of them, the loss curves, the settings and which images converged:

    python -m evaluation.model_inversion --model RUN --classes bedroom coast
    python -m evaluation.model_inversion --model RUN --filters top5

inversion_quality.py has settings whose images other networks recognize, and measures what each part contributes.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import nn
from torchvision.transforms.v2 import functional
from torchvision.utils import save_image
from tqdm.auto import tqdm

from data.files import check_output, expanded, read_table, shortened, write_table, write_text
from evaluation import plots
from evaluation.checkpoints import TrainedRun
from evaluation.hooks import eval_mode, maps_and_logits
from evaluation.image_parameters import PARAMETERS, Conversion, conversion, low_frequencies
from evaluation.publish import load_run
from evaluation.random_views import Views, generator_of, views_of
from evaluation.scorecam import check_targets, label_numbers, one_target_each, probabilities_of
from evaluation.split_images import training_amplitudes
from helper_functions import logits_of
from loop.checks import check_choices, check_fields, make_plain
from runs import run_command

COLOURS = ("grey", "colour")
LONGEST_STEM = 200  # bytes
LAST_STEPS = 10  # number of losses at the end of a curve that decide whether it converged
# (model, normalized images (N, 3, S, S), targets (N,)) to the values (N,) that are maximized.
Objective = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class InversionSettings:
    """How images are optimized.  Pixels are 0..1.  Raises ValueError that names a field with an invalid value."""

    image_size: int = 224  # pixels, square
    colour: str = "grey"  # one channel, repeated three times; "colour": three channels
    parameters: str = "fourier"  # what is optimized: the image's spectrum, its "pixels", or only the "phase"s
    start_noise: float = 0.01  # standard deviation of the initial image around mid gray
    seed: int = 0  # of the noise and of the views
    steps: int = 200  # at most, of all levels together
    patience: int = 0  # steps in which an image must improve, or it is finished; 0: every image takes all steps
    levels: int = 1  # resolutions in equal steps from coarsest * image_size to image_size
    coarsest: float = 0.5  # fraction of image_size
    learning_rate: float = 0.02  # of Adam; roughly the change of a pixel per step
    gradient_clip: float = 0.1  # maximum norm of the gradient of an image's parameters; inf: none
    decay: float = 0.01  # fraction of its difference from mid gray that a pixel loses per step
    blur_sigma: float = 0.5  # pixels; 0: no blur
    blur_every: int = 4  # steps
    norm_clip: float = 0.0  # fraction of an image's pixels, those nearest to mid gray, set to mid gray per step
    contribution_clip: float = 0.0  # the same for the pixels that contribute least to the objective
    jitter: int = 16  # pixels of image_size, fewer on a lower level; maximum shift of the images that the model sees
    scale: float = 0.0  # maximum fraction by which they are enlarged or reduced
    rotation: float = 0.0  # degrees; maximum rotation of them, to either side
    noise: float = 0.0  # standard deviation of the noise that is added to them
    views: int = 1  # views of an image in each step; the objective is their mean

    def __post_init__(self):
        """Check every field."""
        make_plain(self, "InversionSettings")
        check_choices(self, colour=COLOURS, parameters=PARAMETERS)
        # EfficientNet-B0 halves images five times.  Convergence compares the last ten losses with the ten before.
        at_least = {"image_size": 32, "steps": 2 * LAST_STEPS, "blur_every": 1, "levels": 1, "views": 1, "patience": 0}
        for name, least in at_least.items():
            check_fields(self, (name,), lambda value, least=least: value >= least, f"at least {least}")
        check_fields(self, ("learning_rate",), lambda value: 0 < value < math.inf, "above 0 and finite")
        check_fields(self, ("gradient_clip",), lambda value: value > 0, "above 0")
        clipped = ("decay", "norm_clip", "contribution_clip")
        check_fields(self, clipped, lambda value: 0 <= value < 1, "at least 0 and below 1")
        for name, most in (("start_noise", 0.5), ("noise", 0.5), ("scale", 1), ("rotation", 180)):
            check_fields(self, (name,), lambda value, most=most: 0 <= value <= most, f"0 to {most}")
        if not 0 < self.coarsest <= 1 or self.sizes[0] < 32:
            raise ValueError(f"coarsest is {self.coarsest}; it must be at most 1 and leave at least 32 pixels")
        if self.steps < 2 * LAST_STEPS * self.levels:
            raise ValueError(f"steps is {self.steps}; {self.levels} levels need at least {2 * LAST_STEPS} each")
        # A blur reaches 4 sigma beyond the image, which is reflected there.
        if not 0 <= self.blur_sigma <= min(self.image_size / 8 - 1e-9, (self.sizes[0] - 1) // 4):
            raise ValueError(
                f"blur_sigma is {self.blur_sigma}; it must be at least 0 and below an eighth of image_size and a "
                "quarter of the coarsest size"
            )
        if not 0 <= self.jitter < self.image_size:
            raise ValueError(f"jitter is {self.jitter}; it must be at least 0 and below image_size")

    @property
    def sizes(self) -> list[int]:
        """The resolutions (pixels) in their order; a single level has the full one."""
        fractions = torch.linspace(self.coarsest, 1, self.levels).tolist() if self.levels > 1 else [1.0]
        return [round(fraction * self.image_size) for fraction in fractions]

    @property
    def random_views(self) -> Views:
        """How the views of an image differ from it."""
        return Views(self.jitter / self.image_size, self.scale, self.rotation, self.noise, self.views)


@dataclass(frozen=True)
class Inversion:
    """Images (N, 3, S, S) in 0..1, their targets (N,), and losses (N, steps): minus the objective.

    A loss is measured before its step, as the mean over the step's views.  It is NaN after the last step of an image.
    `stopped` (N,) says which images met the stopping rule before their last step; None where there was no rule.
    All tensors are on the CPU.
    """

    images: torch.Tensor
    targets: torch.Tensor
    losses: torch.Tensor
    stopped: torch.Tensor | None = None

    @property
    def steps(self) -> torch.Tensor:
        """The number of steps (N,) that each image took."""
        return self.losses.isfinite().sum(dim=1)

    @property
    def final_losses(self) -> torch.Tensor:
        """The median of the last ten losses (N,), which ignores a single spike: settings are searched by it."""
        return torch.stack([curve[-LAST_STEPS:].quantile(0.5) for curve in self._curves])

    @property
    def converged(self) -> torch.Tensor:
        """Whether each loss decreased and stayed low (N,), relative to its decrease from the first to the lowest value.

        Each of the last ten losses must be within a quarter of the decrease from the lowest, and their median within a
        twentieth of the decrease from the median of the ten before.  Noise, a curve with a single spike, and a curve
        that still falls steeply have not converged.
        With a stopping rule (see `InversionSettings.patience`) those have that met it, if their loss decreased and
        the median of its last values stayed low.  The rule compares medians of more steps: the loss of a single random
        view says little.
        """
        if self.stopped is not None:
            return self.stopped.cpu() & torch.tensor([_stayed_low(curve) for curve in self._curves])
        return torch.tensor([_has_converged(curve) for curve in self._curves])

    @property
    def _curves(self) -> list[torch.Tensor]:
        return [losses[:steps] for losses, steps in zip(self.losses, self.steps.tolist(), strict=True)]


def _has_converged(curve: torch.Tensor) -> bool:
    lowest = curve.min()
    fall = curve[0] - lowest
    last, before = curve[-LAST_STEPS:], curve[-2 * LAST_STEPS : -LAST_STEPS]
    stayed = last.max() - lowest <= fall / 4
    settled = (last.quantile(0.5) - before.quantile(0.5)).abs() <= fall / 20
    return bool(fall > 0 and stayed and settled)


def _stayed_low(curve: torch.Tensor) -> bool:
    lowest = curve.min()
    fall = curve[0] - lowest
    return bool(fall > 0 and curve[-LAST_STEPS:].quantile(0.5) - lowest <= fall / 4)


def starting_pixels(settings: InversionSettings, starts: int, size: int | None = None) -> torch.Tensor:
    """Small noise (starts, 1 or 3, S, S) around mid gray, S: `size` or image_size.  The seed of start k is seed + k."""
    size = size or settings.image_size
    shape = (1 if settings.colour == "grey" else 3, size, size)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed + k)) for k in range(starts)]
    return (settings.start_noise * torch.stack(noise)).clamp(-0.5, 0.5)


def decay(pixels: torch.Tensor, fraction: float) -> torch.Tensor:
    """L2 decay: every pixel of (N, C, S, S) loses a fraction (0..1) of its difference from mid gray."""
    return (1 - fraction) * pixels


def blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur pixels (N, C, S, S) by a Gaussian of standard deviation `sigma` (pixels), truncated at 4 sigma."""
    kernel_size = 2 * math.ceil(4 * sigma) + 1
    return functional.gaussian_blur(pixels, kernel_size, sigma)


def clip_small_norm(pixels: torch.Tensor, fraction: float) -> torch.Tensor:
    """In each image of (N, C, S, S), set the fraction (0..1) of pixels with the smallest norm to mid gray."""
    return _clip_smallest(pixels, pixels.norm(dim=1), fraction)


def clip_small_contribution(pixels: torch.Tensor, gradient: torch.Tensor, fraction: float) -> torch.Tensor:
    """In each image, set the fraction (0..1) of pixels that contribute least to the objective to mid gray.

    `pixels` and the objective's `gradient` with respect to them are (N, C, S, S).  The contribution of a pixel is
    estimated linearly: the absolute value of the sum over channels of pixel times gradient.
    """
    return _clip_smallest(pixels, (pixels * gradient).sum(dim=1).abs(), fraction)


def clip_gradient(gradient: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Clip the gradient (N, ...) of each image's parameters to a maximum norm.

    Clipping the model's gradients instead, as earlier systems did, has no effect: the model is not optimized.
    """
    norms = torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.ndim)), keepdim=True)
    return torch.where(norms > max_norm, gradient * (max_norm / norms), gradient)


def regularize(pixels: torch.Tensor, gradient: torch.Tensor, settings: InversionSettings, step: int) -> torch.Tensor:
    """Apply the regularizers of one step, counted from 1, to pixels (N, C, S, S), and clamp to black and white."""
    pixels = decay(pixels, settings.decay)
    if settings.blur_sigma > 0 and step % settings.blur_every == 0:
        pixels = blur(pixels, settings.blur_sigma)
    pixels = clip_small_norm(pixels, settings.norm_clip)
    pixels = clip_small_contribution(pixels, gradient, settings.contribution_clip)
    return pixels.clamp(-0.5, 0.5)


def class_logit(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Objective: the logit (N,) of each image's class.  Raises ValueError for a class the model does not have."""
    logits = logits_of(model, images)
    check_targets(classes, logits.shape[1])
    return logits.gather(1, classes[:, None])[:, 0]


def class_log_probability(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Objective: the logarithm (N,) of the probability of each image's class; other classes count against it.

    Raises ValueError for a class the model does not have.
    """
    logits = logits_of(model, images)
    check_targets(classes, logits.shape[1])
    if logits.shape[1] == 1:  # its probability is the sigmoid
        return nn.functional.logsigmoid(logits)[:, 0]
    return logits.log_softmax(dim=1).gather(1, classes[:, None])[:, 0]


def filter_mean(layer: nn.Module) -> Objective:
    """Objective: the mean over positions of each image's filter in the output of `layer`.

    The objective raises ValueError if the layer is not in the model, gives no maps (N, filters, height, width), or
    lacks the filter.
    """

    def objective(model, images, filters):
        maps, _ = maps_and_logits(model, images, layer)
        if filters.min() < 0 or filters.max() >= maps.shape[1]:
            raise ValueError(f"filters are {filters.tolist()}; the layer has 0 to {maps.shape[1] - 1}")
        return maps.mean(dim=(2, 3)).gather(1, filters[:, None])[:, 0]

    objective.__name__ = "filter_mean"  # stands in settings.json
    return objective


def strongest_filters(convolution: nn.Conv2d, count: int = 5) -> list[int]:
    """Numbers of the filters with the highest sum of weights, the highest first (Deceuninck 2023).

    Raises ValueError if there are fewer filters than `count`.
    """
    if not 1 <= count <= convolution.out_channels:
        raise ValueError(f"the strongest {count} filters were asked for; the layer has {convolution.out_channels}")
    return convolution.weight.detach().sum(dim=(1, 2, 3)).topk(count).indices.tolist()


@torch.inference_mode(False)
@torch.enable_grad()
def invert(
    model: nn.Module,
    objective: Objective,
    targets: Sequence[int],
    settings: InversionSettings,
    mean: Sequence[float],
    std: Sequence[float],
    starts: int = 1,
    progress: bool = True,
    amplitudes: torch.Tensor | None = None,
) -> Inversion:
    """Optimize `starts` images for each target, all in one batch; those of the first target come first.

    `targets` are class or filter numbers, as the objective expects.  Start k has the same initial noise for every
    target.  `mean` and `std` of red, green and blue normalize images in 0..1 as the model expects.  `amplitudes` are
    those of `image_parameters.mean_amplitudes`, for parameters="phase".  The model is in eval mode meanwhile; it does
    not change, and its parameters get no gradients.  Within `torch.no_grad` and `torch.inference_mode` it works as
    outside.
    Raises ValueError for no targets or starts, another number of colors, phases without amplitudes, a model that was
    built in inference mode, an objective that does not give one value per image, and whatever the objective raises;
    FloatingPointError if a value is not finite.
    """
    count = math.prod(np.shape(targets))
    if count < 1 or starts < 1:
        raise ValueError(f"there are {count} targets and {starts} starts; there must be at least 1 of each")
    if any(np.shape(each) != (3,) for each in (mean, std)) or min(std) <= 0:
        raise ValueError(f"mean is {mean} and std {std}; red, green and blue need one value each, and std above 0")
    if settings.parameters == "phase" and amplitudes is None:
        raise ValueError("parameters is 'phase', which needs the amplitudes of training images")
    device = _device_of(model)
    targets = label_numbers(targets).to(device).repeat_interleave(starts)
    pixels = starting_pixels(settings, starts).repeat(len(targets) // starts, 1, 1, 1).to(device)
    generators = [
        generator_of(settings.seed, number % starts, target) for number, target in enumerate(targets.tolist())
    ]
    curves = [[] for _ in generators]

    def value_of(pixels: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """The objective (n,) of images (n, C, S, S), those of these numbers: the mean over their views."""
        views = views_of(pixels, settings.random_views, [generators[number] for number in numbers])
        of_views = targets[numbers].repeat_interleave(settings.views)
        values = objective(model, _normalize(_images(views), mean, std), of_views)
        if values.shape != of_views.shape:
            raise ValueError(f"the objective gives {tuple(values.shape)}; it must give one value per image")
        if not values.isfinite().all():
            raise FloatingPointError(f"the objective is not finite in step {len(curves[numbers[0]]) + 1}")
        return values.view(-1, settings.views).mean(dim=1)

    steps = settings.steps // settings.levels
    with eval_mode(model), tqdm(total=len(targets) * steps * settings.levels, unit="step", disable=not progress) as bar:
        bar.set_description("model inversion")
        for size in settings.sizes:
            if size != pixels.shape[-1]:
                pixels = _resized(pixels, size, settings)
            convert = conversion(settings.parameters, _at_size(amplitudes, size, settings, device))
            pixels, stopped = _optimize(pixels, value_of, convert, settings, curves, bar)
    images = _images(pixels).clamp(0, 1)  # rounding of the spectrum may exceed the range by 1e-7
    losses = nn.utils.rnn.pad_sequence(list(map(torch.tensor, curves)), batch_first=True, padding_value=torch.nan)
    return Inversion(images.cpu(), targets.cpu(), losses, stopped if settings.patience else None)


def _device_of(model: nn.Module) -> torch.device:
    """The device of a model.  Raises ValueError if no gradient can pass through it."""
    weight = next(model.parameters())
    if weight.is_inference():
        raise ValueError("the model was built within torch.inference_mode, which rules out gradients; build it outside")
    return weight.device


def _optimize(
    pixels, value_of: Callable, convert: Conversion, settings, curves: list[list[float]], bar
) -> tuple[torch.Tensor, torch.Tensor]:
    """Optimize images (N, C, S, S) at one resolution until each is finished; append its losses to its curve.

    `value_of` is called with images and their numbers.  A finished image leaves the batch: the others go on without it.
    Also returns which images (N,) met the stopping rule.
    """
    encode, decode = convert
    steps = settings.steps // settings.levels
    parameters, first = encode(pixels).requires_grad_(), [len(curve) for curve in curves]
    optimizer = torch.optim.Adam([parameters], settings.learning_rate)  # elementwise, so images stay independent
    active, finished = torch.arange(len(pixels)), torch.empty_like(pixels)
    stopped = torch.zeros(len(pixels), dtype=torch.bool)
    for step in range(1, steps + 1):
        pixels = decode(parameters)
        values = value_of(pixels, active)
        for number, value in zip(active.tolist(), values.tolist(), strict=True):
            curves[number].append(-value)
        # torch.autograd.grad leaves the model's parameters without gradients.
        pixel_gradient, gradient = torch.autograd.grad(-values.sum(), (pixels, parameters))
        parameters.grad = clip_gradient(gradient, settings.gradient_clip)
        optimizer.step()
        bar.update(len(active))
        with torch.no_grad():
            parameters.copy_(encode(regularize(decode(parameters), pixel_gradient, settings, step)))
            stopped[active] = torch.tensor(
                [_is_finished(curves[each], first[each], settings.patience) for each in active]
            )
            done = stopped[active] | (step == steps)
            if done.any():
                finished[active[done]] = decode(parameters)[done]
                bar.update(int(done.sum()) * (steps - step))
                active = active[~done]
                if not len(active):
                    return finished, stopped
                parameters, optimizer = _without(optimizer, parameters, ~done, settings.learning_rate)
    return finished, stopped


def _is_finished(curve: Sequence[float], first: int, patience: int) -> bool:
    """Whether the loss of an image has stopped falling since its step `first`.

    The median of its last `patience` losses is compared with that of the `patience` before.  It must be lower by a
    twentieth of the whole decrease.  Medians, because views make the loss noisy.
    """
    if patience < 1 or len(curve) - first < 2 * max(patience, LAST_STEPS):
        return False
    fall = curve[0] - min(curve)
    return statistics.median(curve[-2 * patience : -patience]) - statistics.median(curve[-patience:]) < fall / 20


def _without(optimizer, parameters: torch.Tensor, kept: torch.Tensor, learning_rate: float):
    """The parameters and the optimizer of the images that are kept, with their averages of gradients."""
    remaining = parameters.detach()[kept].requires_grad_()
    state = {name: value[kept] if value.ndim else value for name, value in optimizer.state[parameters].items()}
    optimizer = torch.optim.Adam([remaining], learning_rate)
    optimizer.state[remaining] = state
    return remaining, optimizer


def _resized(pixels: torch.Tensor, size: int, settings: InversionSettings) -> torch.Tensor:
    """The images at another resolution, with new noise: the frequencies that they did not have start from it."""
    noise = starting_pixels(settings, 1, size).to(pixels)
    resized = nn.functional.interpolate(pixels, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return (resized + noise).clamp(-0.5, 0.5)


def _at_size(amplitudes: torch.Tensor | None, size: int, settings: InversionSettings, device) -> torch.Tensor | None:
    """The amplitudes of one resolution, on the device; one channel of them where the images are gray."""
    if amplitudes is None or settings.parameters != "phase":
        return None
    if settings.colour == "grey":
        amplitudes = amplitudes.mean(dim=0, keepdim=True)
    return low_frequencies(amplitudes, size).to(device)


@torch.inference_mode()
def score_by_another(
    model: nn.Module, images: torch.Tensor, targets: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """The probability (N,), on the CPU, that an evaluator network gives the target of images (N, 3, S, S) in 0..1.

    An evaluator network had no part in making the images.  It recognizes an image that shows the class, but not one
    that only fools the network it was made with.  `mean` and `std` are the evaluator network's.
    Raises ValueError unless there is one target per image, and for a class that the network does not have.
    """
    images = images.to(next(model.parameters()).device)
    targets = one_target_each(images, targets)
    with eval_mode(model):
        probabilities = probabilities_of(logits_of(model, _normalize(images, mean, std)))
    check_targets(targets, probabilities.shape[1])
    return probabilities.gather(1, targets[:, None])[:, 0].cpu()


def probability_by(evaluator: TrainedRun, images: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    """As `score_by_another`, by a trained run, which sees the images at its own size."""
    seen = functional.resize(images, [evaluator.image_size] * 2, antialias=True).clamp(0, 1)
    return score_by_another(evaluator.model, seen, targets, evaluator.mean, evaluator.std)


def check_evaluator(run: TrainedRun, evaluator: TrainedRun):
    """Raise ValueError for an evaluator network with other classes, and for the network that is inverted itself."""
    if evaluator.weights == run.weights:
        raise ValueError(
            f"{evaluator.name} is the network that is inverted; an evaluator has no part in making the images"
        )
    if evaluator.class_names != run.class_names:
        raise ValueError(f"{evaluator.name} has other classes than {run.name}; an evaluator network needs the same")


def _clip_smallest(pixels: torch.Tensor, sizes: torch.Tensor, fraction: float) -> torch.Tensor:
    """Set the fraction of each image's pixels (N, C, S, S) with the smallest sizes (N, S, S) to mid gray."""
    clipped = int(fraction * sizes[0].numel())
    threshold = sizes.flatten(1).kthvalue(clipped + 1, dim=1).values
    return pixels * (sizes >= threshold[:, None, None])[:, None]


def _images(pixels: torch.Tensor) -> torch.Tensor:
    """Differences from mid gray (N, 1 or 3, S, S) to images (N, 3, S, S) in 0..1."""
    return (0.5 + pixels).expand(-1, 3, -1, -1)


def _normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images - mean) / std


def picture_file(name: str) -> str:
    """The file name of the image of a class or filter: its name, which may contain slashes or be that of our files."""
    taken = "_" if name in ("sheet", "sheet.blind", "losses") else ""
    stem = name.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C") + taken
    if len(os.fsencode(stem)) > LONGEST_STEM:  # file names have at most 255 bytes
        digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:16]
        stem = f"{shortened(stem, LONGEST_STEM)}-{digest}"
    return f"{stem}.png"


def save_inversion(inversion: Inversion, names: Sequence[str], folder: Path, facts: dict[str, list] | None = None):
    """Write each image, a sheet of all, the losses and a table to a folder.

    `names` of the images stand in the table and in file names, see `picture_file`.  The table, inversion.csv, has one
    row per image: name, final_loss, converged, and the columns of `facts`.  losses.csv has one column per image and one
    row per step.
    Raises ValueError unless there is one name per image.
    """
    names = list(map(str, names))
    if len(names) != len(inversion.images):
        raise ValueError(f"there are {len(names)} names for {len(inversion.images)} images")
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"name": names, "final_loss": inversion.final_losses, "converged": inversion.converged})
    table = table.assign(**(facts or {}))
    write_table(folder / "inversion.csv", table)
    losses = pd.DataFrame(inversion.losses.T.numpy(), columns=names, index=range(1, inversion.losses.shape[1] + 1))
    write_table(folder / "losses.csv", losses.rename_axis("step"), index=True)
    for name, image in zip(names, inversion.images, strict=True):
        save_image(image, folder / picture_file(name))
    titles = [
        f"{name}{'' if converged else ' (not converged)'}" for name, converged in table[["name", "converged"]].values
    ]
    axes = plots.plot_images((255 * inversion.images).round().byte(), titles, columns=min(5, len(names)))
    sheet = axes[0, 0].figure
    sheet.savefig(folder / "sheet.png", dpi=120, bbox_inches="tight")
    plt.close(sheet)
    figure, ax = plt.subplots()
    plots.plot_curves(dict(losses.items()), "loss", ax)
    ax.set_xlabel("step")
    figure.savefig(folder / "losses.png", dpi=120)
    plt.close(figure)


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.model_inversion",
        description="Images that maximize the logit of a class, or a filter",
    )
    parser.add_argument("--model", required=True, metavar="RUN", help="name of a trained run, or path of its file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--classes", nargs="+", metavar="CLASS", help="classes whose logits are maximized")
    what.add_argument("--filters", nargs="+", metavar="NUMBER", help="filters of features.8, or top5: the strongest")
    parser.add_argument("--starts", type=int, default=1, help="images per class or filter, each from other noise")
    parser.add_argument("--evaluator", metavar="RUN", help="evaluator network: reports the probability of the class")
    parser.add_argument(
        "--output", type=expanded, default=Path("inversion"), help="folder of images, curves and tables"
    )
    parser.add_argument("--data", default="15scene", help="training images of the amplitudes, with --parameters phase")
    for name, default in _options().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return run_command(lambda: _invert(options))


def _options() -> dict:
    """The settings that are options of the command, and their defaults; the image size is that of the run."""
    return {field.name: field.default for field in fields(InversionSettings) if field.name != "image_size"}


def _invert(options):
    if options.evaluator and not options.classes:
        raise ValueError("--evaluator reports the probability of a class; use it with --classes")
    check_output(options.output, "--output", folder=True)
    run = load_run(options.model).without_flip_tta()
    settings = InversionSettings(image_size=run.image_size, **{name: getattr(options, name) for name in _options()})
    objective, targets, names = _objective(run, options)
    if options.starts > 1:
        names = [f"{name}_{start}" for name in names for start in range(options.starts)]
    about = {"model": run.name, "weights": run.weights, "objective": "class" if options.classes else "filter"}
    written = json.dumps({**about, "images": names, **asdict(settings)}, indent=1) + "\n"
    refuse_other_images(options.output, written)
    evaluator = _evaluator(run, options.evaluator)
    amplitudes = training_amplitudes(run, options.data) if settings.parameters == "phase" else None
    inversion = invert(
        run.model, objective, targets, settings, run.mean, run.std, options.starts, amplitudes=amplitudes
    )
    facts = {}
    if evaluator is not None:
        scores = probability_by(evaluator, inversion.images, inversion.targets)
        facts = {"evaluator": evaluator.name, "probability": scores.tolist()}
    write_text(options.output / "settings.json", written)  # first: an interrupted call leaves no images without it
    save_inversion(inversion, names, options.output, facts)
    print(read_table(options.output / "inversion.csv").to_string(index=False))
    print(options.output / "sheet.png")


def refuse_other_images(folder: Path, written: str):
    """Raise ValueError if a folder has images by this command, and others than those of the settings in `written`.

    Of two sets of images in one folder the sheet, the losses and the table would show one alone.
    """
    path = folder / "settings.json"
    saved = path.read_text(encoding="utf-8") if path.exists() else ""
    if saved != written and (saved or (folder / "inversion.csv").exists()):
        raise ValueError(
            f"{folder} holds images of other classes, weights or settings; remove it, or name another --output"
        )


def _objective(run: TrainedRun, options) -> tuple[Objective, list[int], list[str]]:
    """The objective, the targets and the names of the images that the options ask for."""
    if not options.classes:
        targets = _filters(run, options.filters)
        return filter_mean(run.layer("features.8.2")), targets, [f"filter_{number}" for number in targets]
    targets = list(dict.fromkeys(run.label(name) for name in options.classes))
    return class_logit, targets, [run.class_names[target] for target in targets]


def _filters(run: TrainedRun, asked: list[str]) -> list[int]:
    """Numbers of filters; "top5" asks for the five strongest of the last convolution."""
    if len(asked) == 1 and asked[0].startswith("top") and asked[0][3:].isdigit():
        return strongest_filters(run.layer("features.8.0"), int(asked[0][3:]))
    if not all(each.isdigit() for each in asked):
        raise ValueError(f"--filters takes numbers, or top5; got {' '.join(asked)}")
    return list(dict.fromkeys(map(int, asked)))  # two images of one name would be one file


def _evaluator(run: TrainedRun, name: str | None) -> TrainedRun | None:
    if name is None:
        return None
    evaluator = load_run(name)
    check_evaluator(run, evaluator)
    return evaluator


if __name__ == "__main__":
    sys.exit(main())
