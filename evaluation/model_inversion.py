"""Regularised model inversion (Yosinski et al. 2015): images that raise a class's logit, a filter, or anything else.

Four parts, from top to bottom: the image parameters, the regularisers, the objectives, the optimiser loop.  Inside the
loop an image is its difference from mid grey, (N, 1 or 3, S, S) in -0.5..0.5: decay and clipping pull towards grey.
It stays float: rounding to bytes would swallow small steps.  What is done to an image depends on that image alone, so
one that is optimised in a batch equals the same one optimised by itself.

From the command line, with a contact sheet, the loss curves, the settings and whether each converged:
`python -m evaluation.model_inversion --model RUN --classes bedroom coast` or `... --filters top5`.
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

from evaluation import plots
from evaluation.scorecam import check_targets, eval_mode, one_target_each

COLOURS = ("grey", "colour")
PARAMETERS = ("pixels", "fourier")
LAST_STEPS = 10  # how many losses at the end of a curve are judged together
# (model, normalised images (N, 3, S, S), targets (N,)) to the values (N,) that are to become high.
Objective = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class InversionSettings:
    """How images are optimised.  Pixels are 0..1; a value that makes no sense raises ValueError naming it."""

    image_size: int = 224  # pixels, square
    colour: str = "grey"  # one channel repeated to three; "colour": three
    parameters: str = "fourier"  # what the optimiser moves: the image's spectrum, or its "pixels"
    start_noise: float = 0.01  # standard deviation of the first image around mid grey
    seed: int = 0  # of the noise and of the shifts
    steps: int = 200
    learning_rate: float = 0.02  # of Adam; roughly how far a pixel moves in a step
    gradient_clip: float = 0.1  # highest norm of the gradient of an image's parameters; inf: any
    decay: float = 0.01  # share of its difference from mid grey that a pixel loses each step
    blur_sigma: float = 0.5  # pixels; 0: no blur
    blur_every: int = 4  # steps
    norm_clip: float = 0.0  # share of an image's pixels, the nearest to mid grey, that are set to it each step
    contribution_clip: float = 0.0  # share of an image's pixels, those that matter least, likewise
    jitter: int = 16  # pixels; in each step the model sees the images shifted by up to so many

    def __post_init__(self):
        """Refuse what cannot be run."""
        for name, known in (("colour", COLOURS), ("parameters", PARAMETERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        # EfficientNet-B0 halves its images five times; convergence compares the last losses with as many before them.
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
    """Images (N, 3, S, S) of 0..1, the target of each (N,), and losses (N, steps): minus the objective.

    A loss is measured before the step, on the shifted image.  All tensors are on the CPU.
    """

    images: torch.Tensor
    targets: torch.Tensor
    losses: torch.Tensor

    @property
    def final_losses(self) -> torch.Tensor:
        """The median of the last ten losses (N,), which a lone spike cannot move: what settings are searched by."""
        return self.losses[:, -LAST_STEPS:].quantile(0.5, dim=1)

    @property
    def converged(self) -> torch.Tensor:
        """Whether each loss came down and stayed (N,), in shares of its whole fall, from the first to the lowest.

        Each of the last ten losses lies within a quarter of the fall from the lowest, and their median within a
        twentieth of that of the ten before.  A curve with a lone spike, of noise, or that still falls steeply fails.
        """
        lowest = self.losses.min(dim=1).values
        fall = self.losses[:, 0] - lowest
        worst_of_last = self.losses[:, -LAST_STEPS:].max(dim=1).values
        before = self.losses[:, -2 * LAST_STEPS : -LAST_STEPS].quantile(0.5, dim=1)
        stayed = worst_of_last - lowest <= fall / 4
        settled = (self.final_losses - before).abs() <= fall / 20
        return (fall > 0) & stayed & settled


def starting_pixels(settings: InversionSettings, starts: int) -> torch.Tensor:
    """Small noise (starts, 1 or 3, S, S) around mid grey.  Start k has a seed of its own: seed + k."""
    shape = (1 if settings.colour == "grey" else 3, settings.image_size, settings.image_size)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed + k)) for k in range(starts)]
    return (settings.start_noise * torch.stack(noise)).clamp(-0.5, 0.5)


def fourier_from_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (N, C, S, S) to their scaled spectrum (N, C, S, S // 2 + 1, 2), real and imaginary parts.

    Each frequency is divided by the weight it has in natural images, 1 / frequency (Olah et al. 2017): a step of the
    optimiser then moves an image's large shapes further than its fine grain.
    """
    spectrum = torch.view_as_real(torch.fft.rfft2(pixels, norm="ortho"))
    return spectrum / _frequency_weights(pixels.shape[-2]).to(pixels.device)


def pixels_from_fourier(parameters: torch.Tensor) -> torch.Tensor:
    """The inverse of `fourier_from_pixels`; the images are square."""
    size = parameters.shape[-3]
    spectrum = torch.view_as_complex(parameters * _frequency_weights(size).to(parameters.device))
    return torch.fft.irfft2(spectrum, s=(size, size), norm="ortho")


def decay(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Every pixel of (N, C, S, S) nearer to mid grey by a share (0..1) of its difference: L2 decay."""
    return (1 - share) * pixels


def blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Pixels (N, C, S, S) under a true Gaussian of standard deviation `sigma` (pixels), cut off beyond four of them."""
    kernel_size = 2 * math.ceil(4 * sigma) + 1
    return functional.gaussian_blur(pixels, kernel_size, sigma)


def clip_small_norm(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Of each image of (N, C, S, S), the share (0..1) of pixels nearest to mid grey set to it: norm over channels."""
    return _clip_smallest(pixels, pixels.norm(dim=1), share)


def clip_small_contribution(pixels: torch.Tensor, gradient: torch.Tensor, share: float) -> torch.Tensor:
    """Of each image, the share (0..1) of pixels that matter least to the objective set to mid grey.

    `pixels` and `gradient`, of the objective by them, are (N, C, S, S).  What the objective would lose without a pixel
    is estimated linearly, by the size of the sum over channels of pixel times gradient.
    """
    return _clip_smallest(pixels, (pixels * gradient).sum(dim=1).abs(), share)


def clip_gradient(gradient: torch.Tensor, highest_norm: float) -> torch.Tensor:
    """The gradient (N, ...) of the images' parameters, each image's shortened to the highest norm if it is longer.

    Clipping the model's gradients instead, as earlier systems did, changes nothing: the model is not optimised.
    """
    norms = torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.ndim)), keepdim=True)
    return torch.where(norms > highest_norm, gradient * (highest_norm / norms), gradient)


def regularise(pixels: torch.Tensor, gradient: torch.Tensor, settings: InversionSettings, step: int) -> torch.Tensor:
    """Pixels (N, C, S, S) after the regularisers of one step, counted from 1, and cut off at black and white."""
    pixels = decay(pixels, settings.decay)
    if settings.blur_sigma > 0 and step % settings.blur_every == 0:
        pixels = blur(pixels, settings.blur_sigma)
    pixels = clip_small_norm(pixels, settings.norm_clip)
    pixels = clip_small_contribution(pixels, gradient, settings.contribution_clip)
    return pixels.clamp(-0.5, 0.5)


def class_logit(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Objective: the logit (N,) of each image's class.  Raises ValueError for a class the model does not have."""
    logits = model(images)
    check_targets(classes, logits.shape[1])
    return logits.gather(1, classes[:, None])[:, 0]


def filter_mean(layer: nn.Module) -> Objective:
    """Objective: the mean over the places of one filter's map, of each image's filter, in what `layer` puts out.

    The objective raises ValueError if the layer is not in the model, puts out no maps (N, filters, height, width), or
    lacks the filter.
    """

    def objective(model, images, filters):
        if layer not in set(model.modules()):
            raise ValueError(f"the layer {type(layer).__name__} is not part of the model")
        outputs = []
        # A copy: the activation after a layer may overwrite what that layer put out.
        with layer.register_forward_hook(lambda module, inputs, output: outputs.append(output.clone())):
            model(images)
        if not outputs or outputs[-1].ndim != 4:
            raise ValueError(f"the layer {type(layer).__name__} puts out no maps (N, filters, height, width)")
        means = outputs[-1].mean(dim=(2, 3))
        if filters.min() < 0 or filters.max() >= means.shape[1]:
            raise ValueError(f"filters are {filters.tolist()}; the layer has 0 to {means.shape[1] - 1}")
        return means.gather(1, filters[:, None])[:, 0]

    return objective


def strongest_filters(convolution: nn.Conv2d, count: int = 5) -> list[int]:
    """Numbers of the filters with the highest sum of weights, the highest first (Deceuninck 2023)."""
    return convolution.weight.detach().sum(dim=(1, 2, 3)).topk(count).indices.tolist()


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
    """Optimise `starts` images for each target, all in one batch: those of the first target come first.

    `targets` are class or filter numbers, as the objective understands them; start k begins with the same noise for
    every target.  `mean` and `std` of red, green and blue normalise the images of 0..1 as the model expects.  The model
    is in eval mode meanwhile; nothing of it changes, and its parameters get no gradients.
    Raises ValueError for no targets or starts, an objective that does not give a value an image, and what the objective
    itself refuses; FloatingPointError if a value is not finite.
    """
    if len(targets) < 1 or starts < 1:
        raise ValueError(f"there are {len(targets)} targets and {starts} starts; there must be at least 1 of each")
    encode, decode = _PARAMETRISATIONS[settings.parameters]
    device = next(model.parameters()).device
    targets = torch.tensor(targets, device=device).repeat_interleave(starts)
    pixels = starting_pixels(settings, starts).repeat(len(targets) // starts, 1, 1, 1).to(device)
    parameters = encode(pixels).requires_grad_()
    optimizer = torch.optim.Adam([parameters], settings.learning_rate)  # works on each number by itself
    shifts = torch.Generator().manual_seed(settings.seed)
    losses = []
    with eval_mode(model):
        for step in trange(1, settings.steps + 1, desc="model inversion", unit="step", disable=not progress):
            pixels = decode(parameters)
            shift = torch.randint(-settings.jitter, settings.jitter + 1, (2,), generator=shifts).tolist()
            images = _images(pixels).roll(shift, dims=(2, 3))  # one shift for all: it must not depend on the batch
            values = objective(model, _normalise(images, mean, std), targets)
            if values.shape != targets.shape:
                raise ValueError(f"the objective gives {tuple(values.shape)}; it must give one value an image")
            if not values.isfinite().all():
                raise FloatingPointError(f"the objective is not finite in step {step}")
            losses.append(-values.detach())
            # Of the images alone: the model's parameters get no gradients.
            pixel_gradient, gradient = torch.autograd.grad(-values.sum(), (pixels, parameters))
            parameters.grad = clip_gradient(gradient, settings.gradient_clip)
            optimizer.step()
            with torch.no_grad():
                parameters.copy_(encode(regularise(decode(parameters), pixel_gradient, settings, step)))
    with torch.no_grad():
        images = _images(decode(parameters)).clamp(0, 1)  # the spectrum's rounding may exceed the range by 1e-7
    return Inversion(images.cpu(), targets.cpu(), torch.stack(losses, dim=1).cpu())


@torch.inference_mode()
def score_by_another(
    model: nn.Module, images: torch.Tensor, targets: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """The probability (N,) that a model gives the target class of images (N, 3, S, S) of 0..1, on the CPU.

    A quality beyond looking: a model that had no part in making the images recognises what they show, but not what
    only deceives the first.  `mean` and `std` are those of this model.  Raises ValueError if there is not one target
    for each image or the model does not have it.
    """
    images = images.to(next(model.parameters()).device)
    targets = one_target_each(images, targets)
    with eval_mode(model):
        probabilities = model(_normalise(images, mean, std)).softmax(dim=1)
    check_targets(targets, probabilities.shape[1])
    return probabilities.gather(1, targets[:, None])[:, 0].cpu()


# To the optimiser's parameters and back.
_PARAMETRISATIONS = {
    "pixels": (torch.clone, torch.clone),
    "fourier": (fourier_from_pixels, pixels_from_fourier),
}


def _frequency_weights(size: int) -> torch.Tensor:
    """Weights (S, S // 2 + 1, 1) of mean square 1 over the spectrum, so that the learning rate means the same in both
    parametrisations.  Frequencies are in periods a pixel; the mean grey, of frequency 0, weighs as the lowest one.
    """
    frequencies = torch.fft.fftfreq(size)
    weights = 1 / torch.hypot(frequencies[:, None], frequencies[None, :]).clamp(min=1 / size)
    weights = weights / weights.square().mean().sqrt()
    return weights[:, : size // 2 + 1, None]


def _clip_smallest(pixels: torch.Tensor, sizes: torch.Tensor, share: float) -> torch.Tensor:
    """Pixels (N, C, S, S) without the share of each image's pixels whose sizes (N, S, S) are the smallest."""
    clipped = int(share * sizes[0].numel())
    threshold = sizes.flatten(1).kthvalue(clipped + 1, dim=1).values
    return pixels * (sizes >= threshold[:, None, None])[:, None]


def _images(pixels: torch.Tensor) -> torch.Tensor:
    """Differences from mid grey (N, 1 or 3, S, S) to images (N, 3, S, S) of 0..1."""
    return (0.5 + pixels).expand(-1, 3, -1, -1)


def _normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images - mean) / std


def save_inversion(inversion: Inversion, names: Sequence[str], folder: Path, facts: dict[str, list] | None = None):
    """Write into a folder all that an inversion has to show: each image, a sheet of them, losses, and a table.

    `names` are those of the images, in the table and in file names.  The table (inversion.csv) has a row an image:
    name, final_loss, converged, and whatever `facts` gives an image (by column).  losses.csv has a column an image.
    Raises ValueError if there is not one name for each image.
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
    """Answer the command line; a user's mistake gets one sentence and exit code 2."""
    from runs import run_command  # here, so that the functions above need nothing but torch

    parser = argparse.ArgumentParser(prog="python -m evaluation.model_inversion", description=__doc__)
    parser.add_argument("--model", required=True, metavar="RUN", help="a trained run's name, or its checkpoint")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--classes", nargs="+", metavar="CLASS", help="names of classes, their logits are raised")
    what.add_argument("--filters", nargs="+", metavar="NUMBER", help="of features.8, or top5: the strongest")
    parser.add_argument("--starts", type=int, default=1, help="images for each, from other noise")
    parser.add_argument("--judge", metavar="RUN", help="another run: how probable it finds the class in the image")
    parser.add_argument("--output", type=Path, default=Path("inversion"), help="folder of images, curves and tables")
    for setting in fields(InversionSettings):
        if setting.name != "image_size":  # the run's own
            parser.add_argument(
                f"--{setting.name.replace('_', '-')}", type=type(setting.default), default=setting.default
            )
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return run_command(lambda: _invert(options))


def _invert(options):
    from evaluation.checkpoints import load_trained

    run = load_trained(options.model).without_mirror_image()
    chosen = {
        field.name: getattr(options, field.name) for field in fields(InversionSettings) if field.name != "image_size"
    }
    settings = InversionSettings(image_size=run.image_size, **chosen)
    facts = {}
    if options.classes:
        unknown = [name for name in options.classes if name not in run.class_names]
        if unknown:
            raise ValueError(f"{run.name} has no class {unknown[0]}; it has {', '.join(run.class_names)}")
        objective, targets = class_logit, [run.class_names.index(name) for name in options.classes]
        names = options.classes
    else:
        objective = filter_mean(run.layer("features.8.2"))
        targets = _filters(run, options.filters)
        names = [f"filter_{number}" for number in targets]
    if options.judge and not options.classes:
        raise ValueError("--judge gives the probability of a class; it goes with --classes")
    judge = load_trained(options.judge) if options.judge else None
    if judge is not None and judge.class_names != run.class_names:
        raise ValueError(f"{judge.name} has other classes than {run.name}; the judge must know the same ones")
    inversion = invert(run.model, objective, targets, settings, run.mean, run.std, options.starts)
    if judge is not None:
        scores = score_by_another(judge.model, inversion.images, inversion.targets, judge.mean, judge.std)
        facts["judge"], facts["probability"] = judge.name, scores.tolist()
    if options.starts > 1:
        names = [f"{name}_{start}" for name in names for start in range(options.starts)]
    save_inversion(inversion, names, options.output, facts)
    written = {"model": run.name, "objective": "class" if options.classes else "filter", **asdict(settings)}
    (options.output / "settings.json").write_text(json.dumps(written, indent=1) + "\n")
    print(pd.read_csv(options.output / "inversion.csv").to_string(index=False))
    print(options.output / "sheet.png")


def _filters(run, asked: list[str]) -> list[int]:
    """Numbers of filters; "top5" stands for the strongest of the last convolution."""
    if len(asked) == 1 and asked[0].startswith("top") and asked[0][3:].isdigit():
        return strongest_filters(run.layer("features.8.0"), int(asked[0][3:]))
    if not all(each.isdigit() for each in asked):
        raise ValueError(f"--filters takes numbers, or top5; got {' '.join(asked)}")
    return [int(each) for each in asked]


if __name__ == "__main__":
    sys.exit(main())
