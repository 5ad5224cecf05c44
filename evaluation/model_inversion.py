"""Model inversion (Yosinski et al. 2015): images optimized to maximize a class's logit, a filter, or any function.

Four parts, from top to bottom: image parameters, regularizers, objectives, optimization loop.  Inside the loop an image
is its difference from mid gray, (N, 1 or 3, S, S) in -0.5..0.5, so decay and clipping pull toward gray.  It stays
float: rounding to bytes would lose small steps.  Each image is optimized independently: in a batch it is the same as
alone.

The command writes the images, a sheet of them, the loss curves, the settings and which images converged:

    python -m evaluation.model_inversion --model RUN --classes bedroom coast
    python -m evaluation.model_inversion --model RUN --filters top5
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import nn
from torchvision.transforms.v2 import functional
from torchvision.utils import save_image
from tqdm.auto import trange

from data.files import expanded
from evaluation import plots
from evaluation.checkpoints import TrainedRun, load_trained
from evaluation.hooks import eval_mode, maps_and_logits
from evaluation.scorecam import check_targets, label_numbers, one_target_each, probabilities_of
from helper_functions import logits_of
from runs import run_command

COLOURS = ("grey", "colour")
PARAMETERS = ("pixels", "fourier")
LAST_STEPS = 10  # number of losses at the end of a curve that decide whether it converged
# (model, normalized images (N, 3, S, S), targets (N,)) to the values (N,) that are maximized.
Objective = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class InversionSettings:
    """How images are optimized.  Pixels are 0..1.  Raises ValueError that names a field with an invalid value."""

    image_size: int = 224  # pixels, square
    colour: str = "grey"  # one channel, repeated three times; "colour": three channels
    parameters: str = "fourier"  # what is optimized: the image's spectrum, or its "pixels"
    start_noise: float = 0.01  # standard deviation of the initial image around mid gray
    seed: int = 0  # of the noise and of the shifts
    steps: int = 200
    learning_rate: float = 0.02  # of Adam; roughly the change of a pixel per step
    gradient_clip: float = 0.1  # maximum norm of the gradient of an image's parameters; inf: none
    decay: float = 0.01  # fraction of its difference from mid gray that a pixel loses per step
    blur_sigma: float = 0.5  # pixels; 0: no blur
    blur_every: int = 4  # steps
    norm_clip: float = 0.0  # fraction of an image's pixels, those nearest to mid gray, set to mid gray per step
    contribution_clip: float = 0.0  # the same for the pixels that contribute least to the objective
    jitter: int = 16  # pixels; maximum shift of the images that the model sees in a step

    def __post_init__(self):
        """Check every field."""
        for name, known in (("colour", COLOURS), ("parameters", PARAMETERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        # EfficientNet-B0 halves images five times.  Convergence compares the last ten losses with the ten before.
        for name, lowest in (("image_size", 32), ("steps", 2 * LAST_STEPS), ("blur_every", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {lowest}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 and finite")
        if not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip is {self.gradient_clip}; it must be above 0")
        for name in ("decay", "norm_clip", "contribution_clip"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if not 0 <= self.start_noise <= 0.5:
            raise ValueError(f"start_noise is {self.start_noise}; it must be 0 to 0.5")
        if not 0 <= self.blur_sigma < self.image_size / 8:
            raise ValueError(f"blur_sigma is {self.blur_sigma}; it must be at least 0 and below image_size / 8")
        if not 0 <= self.jitter < self.image_size:
            raise ValueError(f"jitter is {self.jitter}; it must be at least 0 and below image_size")


@dataclass(frozen=True)
class Inversion:
    """Images (N, 3, S, S) in 0..1, their targets (N,), and losses (N, steps): minus the objective.

    A loss is measured before its step, on the shifted image.  All tensors are on the CPU.
    """

    images: torch.Tensor
    targets: torch.Tensor
    losses: torch.Tensor

    @property
    def final_losses(self) -> torch.Tensor:
        """The median of the last ten losses (N,), which ignores a single spike: settings are searched by it."""
        return self.losses[:, -LAST_STEPS:].quantile(0.5, dim=1)

    @property
    def converged(self) -> torch.Tensor:
        """Whether each loss decreased and stayed low (N,), relative to its decrease from the first to the lowest value.

        Each of the last ten losses must be within a quarter of the decrease from the lowest, and their median within a
        twentieth of the decrease from the median of the ten before.  Noise, a curve with a single spike, and a curve
        that still falls steeply have not converged.
        """
        lowest = self.losses.min(dim=1).values
        fall = self.losses[:, 0] - lowest
        worst_of_last = self.losses[:, -LAST_STEPS:].max(dim=1).values
        before = self.losses[:, -2 * LAST_STEPS : -LAST_STEPS].quantile(0.5, dim=1)
        stayed = worst_of_last - lowest <= fall / 4
        settled = (self.final_losses - before).abs() <= fall / 20
        return (fall > 0) & stayed & settled


def starting_pixels(settings: InversionSettings, starts: int) -> torch.Tensor:
    """Small noise (starts, 1 or 3, S, S) around mid gray.  The seed of start k is seed + k."""
    shape = (1 if settings.colour == "grey" else 3, settings.image_size, settings.image_size)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed + k)) for k in range(starts)]
    return (settings.start_noise * torch.stack(noise)).clamp(-0.5, 0.5)


def fourier_from_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (N, C, S, S) to their scaled spectrum (N, C, S, S // 2 + 1, 2), real and imaginary parts.

    Each frequency is divided by its weight in natural images, 1 / frequency (Olah et al. 2017).  A step of the
    optimizer then changes the large shapes of an image more than its fine texture.
    """
    spectrum = torch.view_as_real(torch.fft.rfft2(pixels, norm="ortho"))
    return spectrum / _frequency_weights(pixels.shape[-2]).to(pixels.device)


def pixels_from_fourier(parameters: torch.Tensor) -> torch.Tensor:
    """The inverse of `fourier_from_pixels`, for square images."""
    size = parameters.shape[-3]
    spectrum = torch.view_as_complex(parameters * _frequency_weights(size).to(parameters.device))
    return torch.fft.irfft2(spectrum, s=(size, size), norm="ortho")


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


def regularise(pixels: torch.Tensor, gradient: torch.Tensor, settings: InversionSettings, step: int) -> torch.Tensor:
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
) -> Inversion:
    """Optimize `starts` images for each target, all in one batch; those of the first target come first.

    `targets` are class or filter numbers, as the objective expects.  Start k has the same initial noise for every
    target.  `mean` and `std` of red, green and blue normalize images in 0..1 as the model expects.  The model is in
    eval mode meanwhile; it does not change, and its parameters get no gradients.  Within `torch.no_grad` and
    `torch.inference_mode` it works as outside.
    Raises ValueError for no targets or starts, another number of colors, a model that was built in inference mode, an
    objective that does not give one value per image, and whatever the objective raises; FloatingPointError if a value
    is not finite.
    """
    if len(targets) < 1 or starts < 1:
        raise ValueError(f"there are {len(targets)} targets and {starts} starts; there must be at least 1 of each")
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"mean and std have {len(mean)} and {len(std)} values; red, green and blue need one each")
    weight = next(model.parameters())
    if weight.is_inference():
        raise ValueError("the model was built within torch.inference_mode, which rules out gradients; build it outside")
    encode, decode = _PARAMETRISATIONS[settings.parameters]
    device = weight.device
    targets = label_numbers(targets).to(device).repeat_interleave(starts)
    pixels = starting_pixels(settings, starts).repeat(len(targets) // starts, 1, 1, 1).to(device)
    parameters = encode(pixels).requires_grad_()
    optimizer = torch.optim.Adam([parameters], settings.learning_rate)  # elementwise, so images stay independent
    shifts = torch.Generator().manual_seed(settings.seed)
    losses = []
    with eval_mode(model):
        for step in trange(1, settings.steps + 1, desc="model inversion", unit="step", disable=not progress):
            pixels = decode(parameters)
            shift = torch.randint(-settings.jitter, settings.jitter + 1, (2,), generator=shifts).tolist()
            images = _images(pixels).roll(shift, dims=(2, 3))  # the same shift whatever the batch
            values = objective(model, _normalise(images, mean, std), targets)
            if values.shape != targets.shape:
                raise ValueError(f"the objective gives {tuple(values.shape)}; it must give one value per image")
            if not values.isfinite().all():
                raise FloatingPointError(f"the objective is not finite in step {step}")
            losses.append(-values.detach())
            # torch.autograd.grad leaves the model's parameters without gradients.
            pixel_gradient, gradient = torch.autograd.grad(-values.sum(), (pixels, parameters))
            parameters.grad = clip_gradient(gradient, settings.gradient_clip)
            optimizer.step()
            with torch.no_grad():
                parameters.copy_(encode(regularise(decode(parameters), pixel_gradient, settings, step)))
    with torch.no_grad():
        images = _images(decode(parameters)).clamp(0, 1)  # rounding of the spectrum may exceed the range by 1e-7
    return Inversion(images.cpu(), targets.cpu(), torch.stack(losses, dim=1).cpu())


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
        probabilities = probabilities_of(logits_of(model, _normalise(images, mean, std)))
    check_targets(targets, probabilities.shape[1])
    return probabilities.gather(1, targets[:, None])[:, 0].cpu()


# From pixels to the parameters that are optimized, and back.
_PARAMETRISATIONS = {
    "pixels": (torch.clone, torch.clone),
    "fourier": (fourier_from_pixels, pixels_from_fourier),
}


def _frequency_weights(size: int) -> torch.Tensor:
    """Weights (S, S // 2 + 1, 1) whose mean square over the spectrum is 1.

    The learning rate then has the same scale for both kinds of parameters.  Frequencies are in periods per pixel;
    frequency 0, the mean gray, has the weight of the lowest other frequency.
    """
    frequencies = torch.fft.fftfreq(size)
    weights = 1 / torch.hypot(frequencies[:, None], frequencies[None, :]).clamp(min=1 / size)
    weights = weights / weights.square().mean().sqrt()
    return weights[:, : size // 2 + 1, None]


def _clip_smallest(pixels: torch.Tensor, sizes: torch.Tensor, fraction: float) -> torch.Tensor:
    """Set the fraction of each image's pixels (N, C, S, S) with the smallest sizes (N, S, S) to mid gray."""
    clipped = int(fraction * sizes[0].numel())
    threshold = sizes.flatten(1).kthvalue(clipped + 1, dim=1).values
    return pixels * (sizes >= threshold[:, None, None])[:, None]


def _images(pixels: torch.Tensor) -> torch.Tensor:
    """Differences from mid gray (N, 1 or 3, S, S) to images (N, 3, S, S) in 0..1."""
    return (0.5 + pixels).expand(-1, 3, -1, -1)


def _normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images - mean) / std


def save_inversion(inversion: Inversion, names: Sequence[str], folder: Path, facts: dict[str, list] | None = None):
    """Write each image, a sheet of all, the losses and a table to a folder.

    `names` of the images stand in the table and in file names.  The table, inversion.csv, has one row per image: name,
    final_loss, converged, and the columns of `facts`.  losses.csv has one column per image and one row per step.
    Raises ValueError unless there is one name per image.
    """
    if len(names) != len(inversion.images):
        raise ValueError(f"there are {len(names)} names for {len(inversion.images)} images")
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"name": names, "final_loss": inversion.final_losses, "converged": inversion.converged})
    table = table.assign(**(facts or {}))
    table.to_csv(folder / "inversion.csv", index=False)
    losses = pd.DataFrame(inversion.losses.T.numpy(), columns=names, index=range(1, inversion.losses.shape[1] + 1))
    losses.rename_axis("step").to_csv(folder / "losses.csv")
    for name, image in zip(names, inversion.images, strict=True):
        save_image(image, folder / f"{name}.png")
    titles = [
        f"{name}{'' if converged else ' (not converged)'}" for name, converged in table[["name", "converged"]].values
    ]
    plots.plot_images((255 * inversion.images).round().byte(), titles, columns=min(5, len(names)))
    plt.gcf().savefig(folder / "sheet.png", dpi=120, bbox_inches="tight")
    plt.close()
    ax = plots.plot_curves(dict(losses.items()), "loss", plt.figure().gca())
    ax.set_xlabel("step")
    ax.figure.savefig(folder / "losses.png", dpi=120)
    plt.close()


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
    if options.output.is_file():
        raise ValueError(f"{options.output} is a file; --output takes a folder")
    run = load_trained(options.model).without_flip_tta()
    settings = InversionSettings(image_size=run.image_size, **{name: getattr(options, name) for name in _options()})
    objective, targets, names = _objective(run, options)
    evaluator = _evaluator(run, options.evaluator)
    inversion = invert(run.model, objective, targets, settings, run.mean, run.std, options.starts)
    facts = {}
    if evaluator is not None:
        scores = score_by_another(evaluator.model, inversion.images, inversion.targets, evaluator.mean, evaluator.std)
        facts = {"evaluator": evaluator.name, "probability": scores.tolist()}
    if options.starts > 1:
        names = [f"{name}_{start}" for name in names for start in range(options.starts)]
    save_inversion(inversion, names, options.output, facts)
    written = {"model": run.name, "objective": "class" if options.classes else "filter", **asdict(settings)}
    (options.output / "settings.json").write_text(json.dumps(written, indent=1) + "\n")
    print(pd.read_csv(options.output / "inversion.csv").to_string(index=False))
    print(options.output / "sheet.png")


def _objective(run: TrainedRun, options) -> tuple[Objective, list[int], list[str]]:
    """The objective, the targets and the names of the images that the options ask for."""
    if not options.classes:
        targets = _filters(run, options.filters)
        return filter_mean(run.layer("features.8.2")), targets, [f"filter_{number}" for number in targets]
    unknown = [name for name in options.classes if name not in run.class_names]
    if unknown:
        raise ValueError(f"{run.name} has no class {unknown[0]}; it has {', '.join(run.class_names)}")
    return class_logit, [run.class_names.index(name) for name in options.classes], options.classes


def _filters(run: TrainedRun, asked: list[str]) -> list[int]:
    """Numbers of filters; "top5" asks for the five strongest of the last convolution."""
    if len(asked) == 1 and asked[0].startswith("top") and asked[0][3:].isdigit():
        return strongest_filters(run.layer("features.8.0"), int(asked[0][3:]))
    if not all(each.isdigit() for each in asked):
        raise ValueError(f"--filters takes numbers, or top5; got {' '.join(asked)}")
    return [int(each) for each in asked]


def _evaluator(run: TrainedRun, name: str | None) -> TrainedRun | None:
    if name is None:
        return None
    evaluator = load_trained(name)
    if evaluator.class_names != run.class_names:
        raise ValueError(f"{evaluator.name} has other classes than {run.name}; an evaluator network needs the same")
    return evaluator


if __name__ == "__main__":
    sys.exit(main())
