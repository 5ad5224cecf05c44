"""Score-CAM (Wang et al. 2020): heat maps of the regions that a network uses for a class.

Each channel of a layer is upsampled to the image, scaled to [0, 1] and multiplied with the image.  The network's score
of the class in the masked image is the weight of the channel.  Every channel takes one forward pass; they run in
batches, so memory is bounded.

A sheet of heat maps, one line per image and one column per layer:

    python -m evaluation.scorecam IMAGE... --model RUN --layers 1 2 8
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn
from tqdm import tqdm

from data.files import check_output, expanded, write_atomically
from evaluation import plots
from evaluation.checkpoints import TrainedRun
from evaluation.hooks import eval_mode, maps_and_logits
from evaluation.publish import load_run
from helper_functions import logits_in, logits_of
from runs import run_command

WEIGHTINGS = ("softmax", "probability", "increase")
NOT_FINITE = "an activation of the layer or a score of a masked image is not finite"
ROUNDING = 1e-6  # values that differ by less than this fraction of the largest are constant but for rounding
FIGURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")  # suffixes of a sheet


@dataclass(frozen=True)
class ScoreCam:
    """Heat maps, one per image.  All tensors are on the CPU.

    `maps` (N, H, W) are float32 in [0, 1].  `constant_channels` (N,) counts the channels that mask nothing.
    `fell_back` (N,) is True where the weighted sum of activations is nowhere positive, and the map shows the weighted
    sum of masks instead (see `MaskedImages.maps`).
    """

    maps: torch.Tensor
    constant_channels: torch.Tensor
    fell_back: torch.Tensor

    @property
    def empty(self) -> torch.Tensor:
        """Which maps (N,) are zero everywhere: there is nothing to show, for example in an image of one color."""
        return is_empty(self.maps)


@dataclass(frozen=True)
class ContrastCam(ScoreCam):
    """`maps` show what speaks for the target class and against the other; `other_maps` (N, H, W) the opposite.

    None of them falls back.
    """

    other_maps: torch.Tensor


@dataclass(frozen=True)
class MaskedImages:
    """A batch of images (N, 3, H, W), and the activations (N, channels, height, width) of a layer that mask them.

    `targets` (N,) are the classes to explain, `weighting` is one of WEIGHTINGS, and at most `batch_size` masked images
    run at once.
    """

    model: nn.Module
    images: torch.Tensor
    activations: torch.Tensor
    targets: torch.Tensor
    weighting: str
    batch_size: int

    def of(self, numbers: torch.Tensor) -> "MaskedImages":
        """The images of these numbers alone, in their order."""
        numbers = numbers.to(self.activations.device)
        parts = {name: getattr(self, name)[numbers] for name in ("images", "activations", "targets")}
        images = replace(self, **parts)
        if "of_blank" in vars(self):  # which is the same for all images
            vars(images)["of_blank"] = self.of_blank
        return images

    @cached_property
    def constant(self) -> torch.Tensor:
        """Which channels (N, channels) have the same value everywhere: they mask nothing and get no weight."""
        return _is_constant(self.activations.amin(dim=(2, 3)), self.activations.amax(dim=(2, 3)))

    @cached_property
    def of_blank(self) -> torch.Tensor:
        """The probabilities (1, classes) in the image that hides everything."""
        return probabilities_of(logits_of(self.model, torch.zeros_like(self.images[:1]))).float()

    def measure(
        self, channels: torch.Tensor, read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Run the model on every masked image, once: (N, channels, values); zero where `channels` is False.

        `channels` (N, channels) says which masks to run.  `read` is called with the logits (n, classes) of masked
        images and the numbers (n,) of the images behind them; it gives the values (n, values) to keep.
        """
        found = None
        for pairs in channels.nonzero().split(self.batch_size):
            if not len(pairs):  # what splitting nothing gives
                continue
            images, numbers = pairs.unbind(dim=1)
            masks = scale_to_unit(upsample(self.activations[images, numbers], self.images.shape[2:]))
            masked = self.images[images] * masks[:, None]
            values = read(logits_of(self.model, masked), images)
            if found is None:
                found = torch.zeros(*channels.shape, values.shape[1], device=channels.device)
            found[images, numbers] = values.to(found)
        return torch.zeros(*channels.shape, 1, device=channels.device) if found is None else found

    def scores(self, channels: torch.Tensor) -> torch.Tensor:
        """The class's logit or probability under each mask, (N, channels); zero where `channels` is False."""
        return self.scores_of_classes(channels, self.targets[:, None])[..., 0]

    def scores_of_classes(self, channels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """As `scores`, of several classes (N, K) in the same passes: (N, channels, K)."""

        def read(logits, images):
            outputs = logits if self.weighting == "softmax" else probabilities_of(logits)
            return outputs.gather(1, classes[images])

        return self.measure(channels, read).expand(-1, -1, classes.shape[1])

    def logits_and_probabilities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The class's logits and its probabilities under every mask, (N, channels) each, from the same passes."""

        def read(logits, images):
            of_target = self.targets[images, None]
            return torch.cat([logits.gather(1, of_target), probabilities_of(logits).gather(1, of_target)], dim=1)

        return self.measure(~self.constant, read).expand(-1, -1, 2).unbind(dim=2)

    def weights(self, scores: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """The weights (N, channels) of the channels, from the scores of `targets` (N,): by default of the targets.

        They are the softmax of the scores, the scores themselves, or their increase above the blank image's.
        """
        if self.weighting == "softmax":
            return scores.masked_fill(self.constant, -torch.inf).softmax(dim=1).masked_fill(self.constant, 0)
        if self.weighting == "increase":
            of_blank = self.of_blank[0, self.targets if targets is None else targets]
            return (scores - of_blank[:, None]).masked_fill(self.constant, 0)
        return scores

    def maps(self, weights: torch.Tensor, fall_back: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """The heat maps (N, H, W) of these weights (N, channels), and which fell back (N,).

        Where the weighted sum of activations is nowhere positive, its map would be empty.  It happens with activations
        that can be negative, as those of SiLU: the scores are those of masks, and a channel that is negative everywhere
        has a mask like any other.  The map then is the weighted sum of the masks, which the scores were measured with:
        the same weights and no further pass.  It is empty only where no channel has a positive weight, or without
        `fall_back`.
        Raises FloatingPointError if a value is not finite.
        """
        sums = (weights[:, :, None, None] * self.activations).sum(dim=1)
        if not sums.isfinite().all():
            raise FloatingPointError(NOT_FINITE)
        if self.weighting == "softmax":
            sums = sums.relu()
        maps = scale_to_unit(upsample(sums, self.images.shape[2:]).relu())
        empty = is_empty(maps)
        for image in empty.nonzero().flatten() if fall_back else ():
            of_masks = (weights[image, :, None, None] * scale_to_unit(self.activations[image])).sum(dim=0)
            maps[image] = scale_to_unit(upsample(of_masks[None], self.images.shape[2:]).relu())[0]
        return maps, empty & ~is_empty(maps)


def score_cam(
    model: nn.Module,
    images: torch.Tensor,
    layer: nn.Module,
    target_classes: Sequence[int],
    weighting: str = "softmax",
    batch_size: int = 32,
) -> ScoreCam:
    """Compute one heat map per image of the regions in which a layer finds the target class.

    `images` (N, 3, H, W) are normalized as the model expects and on its device.  `layer` is a module of the model with
    maps as `hooks.maps_and_logits` takes them.  `target_classes` (N,) are label numbers.  `batch_size` masked images
    run at once.  Within `torch.autocast` the passes are in bfloat16.  The model may have any precision, and may be
    compiled by `torch.compile`.

    `weighting` names the source.  "softmax": the weights are the softmax over channels of the class's logits, and
    negative sums are set to zero before upsampling (the paper; grad-cam, torchcam).  "probability": the weights are the
    class's probabilities, and negative sums are set to zero after upsampling (the authors' code of 2020,
    github.com/haofanwang/Score-CAM).  "increase": the same, less the probability in the blank image, which hides
    everything.  This is the paper's baseline.  In the paper it stands within the softmax, where it has no effect: it is
    one number for all channels, and a softmax does not change when a number is added to all its inputs.
    All upsample bilinearly (align_corners=False) and scale the masks afterwards, as the authors do; grad-cam upsamples
    its masks with align_corners=True, torchcam scales them before upsampling.  At a late layer of a trained network
    that is no detail: the softmax of logits selects few channels, and masks that are shifted by half a position select
    others.  With masks aligned alike the maps are grad-cam's.

    The probability of a model's only logit is its sigmoid.

    Masks hide by the value 0 of the normalized image, as in all these sources: its mean color, not black.  A constant
    channel masks nothing: it is left out, as in the authors' code, and counted.  Where the sources give an empty map,
    the map is that of the masks (see `MaskedImages.maps`) and `fell_back` says so.  A constant map becomes zeros.
    The modes of all submodules are restored, and no hook or gradient is left.
    Raises ValueError for images of another shape or type, a batch size below 1, an unknown weighting, a layer that the
    model does not have or run or that gives no maps, a model that does not give logits, and target classes that it does
    not have; FloatingPointError if an activation or a score is not finite.
    """

    def explain(masked: MaskedImages, _) -> tuple[torch.Tensor, ...]:
        maps, fell_back = masked.maps(masked.weights(masked.scores(~masked.constant)))
        return maps, masked.constant.sum(dim=1), fell_back

    return ScoreCam(*run_batches(model, images, layer, target_classes, weighting, batch_size, explain))


def contrast_cam(
    model: nn.Module,
    images: torch.Tensor,
    layer: nn.Module,
    target_classes: Sequence[int],
    other_classes: Sequence[int],
    weighting: str = "softmax",
    batch_size: int = 32,
) -> ContrastCam:
    """Why the target class and not the other one: the map of the difference of two classes, and the opposite map.

    The weighted sums of activations of the two classes (see `score_cam`) are subtracted.  Where the difference is
    positive the region speaks for the target class, where it is negative for the other one.  Both classes are scored in
    the same passes, so two classes cost no more than one.  A map is empty where nothing speaks for its class.
    The other arguments and the errors are those of `score_cam`.  Also raises ValueError where the two classes of an
    image are the same.
    """
    images = as_images(images)
    others = one_target_each(images, other_classes)
    check_two_classes(one_target_each(images, target_classes), others)

    def explain(masked: MaskedImages, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        check_targets(others, masked.of_blank.shape[1])
        classes = torch.stack([masked.targets, others[batch]], dim=1)
        of_target, of_other = masked.scores_of_classes(~masked.constant, classes).unbind(dim=2)
        weights = masked.weights(of_target) - masked.weights(of_other, others[batch])
        (maps, fell_back), (other_maps, _) = (masked.maps(each, fall_back=False) for each in (weights, -weights))
        return maps, masked.constant.sum(dim=1), fell_back, other_maps

    return ContrastCam(*run_batches(model, images, layer, target_classes, weighting, batch_size, explain))


def run_batches(
    model: nn.Module,
    images: torch.Tensor,
    layer: nn.Module,
    target_classes: Sequence[int],
    weighting: str,
    batch_size: int,
    explain: Callable[[MaskedImages, torch.Tensor], tuple[torch.Tensor, ...]],
) -> list[torch.Tensor]:
    """What `explain` gives for each batch of masked images and the numbers of its images: joined, on the CPU.

    The other arguments are those of `score_cam`.
    """
    images = as_images(images)
    check_batch_size(batch_size)
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; it must be one of {', '.join(WEIGHTINGS)}")
    targets = one_target_each(images, target_classes)
    found = []
    uncompiled = getattr(model, "_orig_mod", model)  # a compiled model does not call hooks that are added later
    with torch.inference_mode(), eval_mode(model):
        for batch in torch.arange(len(images)).split(batch_size):
            activations, outputs = maps_and_logits(uncompiled, images[batch], layer)
            check_targets(targets, logits_in(outputs, len(batch)).shape[1])
            masked = MaskedImages(model, images[batch], activations.float(), targets[batch], weighting, batch_size)
            found.append([each.cpu() for each in explain(masked, batch)])
    # Copies made outside inference mode are ordinary tensors, which callers may change.
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def as_images(images: torch.Tensor | np.ndarray) -> torch.Tensor:
    """The images as a tensor; ValueError unless they are floats (N, 3, H, W), as a normalization gives them."""
    images = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"images must be a tensor or an array, not {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(f"images must be normalized floats (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    return images


def check_batch_size(batch_size: int):
    """Raise ValueError for a batch without images."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")


def label_numbers(labels: Sequence[int]) -> torch.Tensor:
    """Labels (N,) as a tensor; ValueError unless they are whole numbers."""
    given = labels if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if isinstance(given, np.ndarray) and given.dtype.kind in "iu":
        given = torch.from_numpy(given)
    whole = isinstance(given, torch.Tensor) and not given.is_floating_point() and given.dtype != torch.bool
    if not whole or given.ndim != 1:
        raise ValueError(f"target classes must be a list of whole numbers, got {str(labels)[:80]}")
    return given.long()


def one_target_each(images: torch.Tensor, target_classes: Sequence[int]) -> torch.Tensor:
    """The target classes (N,) on the device of the images (N, 3, H, W); ValueError unless there is one per image."""
    targets = label_numbers(target_classes).to(images.device)
    if len(targets) != len(images):
        raise ValueError(f"there are {len(targets)} target classes; {len(images)} images need one class each")
    return targets


def probabilities_of(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities (N, classes), 0..1: the softmax of the logits, and the sigmoid of a single one."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def check_two_classes(targets: torch.Tensor, others: torch.Tensor):
    """Raise ValueError where the two classes (N,) of a contrast are the same."""
    if (targets == others).any():
        raise ValueError("the other class is the target class; a contrast needs two classes")


def check_targets(targets: torch.Tensor, num_classes: int):
    """Raise ValueError for a target that is not one of the model's classes."""
    if targets.min() < 0 or targets.max() >= num_classes:
        raise ValueError(f"target_classes must be 0 to {num_classes - 1}, got {targets.tolist()}")


def scale_to_unit(maps: torch.Tensor) -> torch.Tensor:
    """Maps (N, H, W), each scaled so that its lowest value is 0 and its highest 1; a constant map becomes zeros."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return ((maps - low) / (high - low)).masked_fill(_is_constant(low, high), 0)


def is_empty(maps: torch.Tensor) -> torch.Tensor:
    """Which maps (N, H, W) in 0..1 are zero everywhere: (N,)."""
    return maps.amax(dim=(1, 2)) == 0


def _is_constant(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return high - low <= ROUNDING * torch.maximum(low.abs(), high.abs())


def upsample(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps (N, height, width) to (N, H, W), bilinearly."""
    return nn.functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    options = build_parser("python -m evaluation.scorecam", "Score-CAM of images, as a sheet").parse_args(arguments)
    return run_command(lambda: write_sheet(explain_images(options, score_cam), options.output))


def build_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The options of a command that writes a sheet: those of `explain_images`."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("images", nargs="+", type=expanded, metavar="IMAGE")
    parser.add_argument("--model", required=True, metavar="RUN", help="name of a trained run, or path of its file")
    parser.add_argument("--layers", nargs="+", help="stages or names of modules (default: 1, 2 and the last)")
    parser.add_argument("--target", metavar="CLASS", help="the class to explain (default: the most probable one)")
    parser.add_argument("--weighting", choices=WEIGHTINGS, default="softmax")
    parser.add_argument("--output", type=expanded, default=Path("scorecam.png"), help="the sheet; the maps go to .npz")
    return parser


@dataclass(frozen=True)
class Explanations:
    """Images, uint8 (1 or 3, S, S) each, with their titles, the classes that are explained, and the maps by layer."""

    pixels: list[np.ndarray]
    titles: list[str]
    targets: list[int]
    found: dict[str, ScoreCam]


def explain_images(options: argparse.Namespace, explain: Callable[..., ScoreCam]) -> Explanations:
    """Explain the images of the command line at each layer; `explain` is called as `score_cam`.

    Raises ValueError for a wrong option before any map is computed.
    """
    if options.output.suffix.lower() not in FIGURES:
        raise ValueError(f"--output is {options.output}; it must be a file that ends in {', '.join(FIGURES)}")
    check_output(options.output, "--output")
    run = load_run(options.model)
    names = options.layers or ["1", "2", run.last_stage]
    explained = run.ready_to_explain(names)
    layers = {name: explained.layer(name) for name in names}
    target = None if options.target is None else run.label(options.target)
    pixels, images = run.read(options.images)
    targets = _targets(run, images, target)
    found = {
        name: explain(explained.model, images, layer, targets, weighting=options.weighting)
        for name, layer in tqdm(layers.items(), desc="Score-CAM", unit="layer")
    }
    titles = [
        f"{plots.readable(path.name)}: {run.class_names[target]}"
        for path, target in zip(options.images, targets, strict=True)
    ]
    return Explanations(pixels, titles, targets, found)


def write_sheet(explained: Explanations, output: Path):
    """Draw the sheet, save it and, beside it, the maps (.npz), and print what was written."""
    matplotlib.use("Agg")
    found, arrays = explained.found, output.with_suffix(".npz")
    figure = plots.draw_heat_map_sheet(
        explained.pixels, explained.titles, {name: each.maps for name, each in found.items()}
    )
    write_atomically(output, partial(figure.savefig, dpi=120))
    plt.close(figure)
    maps = {f"layer_{name}": each.maps.numpy() for name, each in found.items()}
    write_atomically(arrays, partial(np.savez_compressed, targets=explained.targets, **maps))
    for name, each in found.items():
        images, constant = len(each.maps), int(each.constant_channels.sum())
        print(f"layer {name}: {constant} constant channels in {images} images")
    print(f"{output}, {arrays}")


def _targets(run: TrainedRun, images: torch.Tensor, target: int | None) -> list[int]:
    """The class to explain in each image, if not one for all; the run itself, with its flip_tta, predicts it."""
    if target is not None:
        return [target] * len(images)
    with torch.inference_mode():
        return torch.cat([run.model(batch).argmax(dim=1) for batch in images.split(64)]).tolist()


if __name__ == "__main__":
    sys.exit(main())
