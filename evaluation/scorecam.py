"""Score-CAM (Wang et al. 2020): where the channels of a layer are active that speak for a class.

Each channel is upsampled to the image, scaled to [0, 1] and multiplied with it; what the model makes of the masked
image weighs the channel.  Exact, one forward pass a channel, in batches of bounded memory; or, where asked, with fewer.

A sheet of images by layers from the command line: `python -m evaluation.scorecam IMAGE... --model RUN --layers 1 2 8`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn
from tqdm import tqdm

from evaluation import plots
from evaluation.mask_clusters import choose_medoids, predict_scores

WEIGHTINGS = ("softmax", "probability")
NOT_FINITE = "an activation of the layer or a score of a masked image is not finite"
ROUNDING = 1e-6  # what varies by less than this share of its largest value is constant but for float32's rounding


@dataclass(frozen=True)
class ScoreCam:
    """Maps (N, H, W) in [0, 1], float32, and how many of the layer's channels were constant (N,); on the CPU as all.

    `held_out` (N,): with clusters, the share of the measured scores' variance that is predicted when each is held out
    (1 is perfect; nan where nothing was predicted).
    """

    maps: torch.Tensor
    constant_channels: torch.Tensor
    held_out: torch.Tensor


def score_cam(
    model: nn.Module,
    images: torch.Tensor,
    layer: nn.Module,
    target_classes: Sequence[int],
    weighting: str = "softmax",
    batch_size: int = 32,
    clusters: int | None = None,
) -> ScoreCam:
    """Where the layer finds the target class in each image: one map an image, at the image's resolution.

    `images` (N, 3, H, W) are normalised as the model expects and on its device.  `layer` is a module of the model that
    puts out (N, channels, height, width); of one that runs more than once the last output counts.  `target_classes`
    (N,) are label numbers.  `batch_size` masked images run at once.  Within `torch.autocast` the passes are bfloat16.
    A model of `torch.compile` will do.

    With `clusters` the map is an approximation of 2 * clusters passes: one for each medoid of so many clusters of
    masks, then one for each of so many channels that are predicted to add most to the map; the other channels' scores
    are predicted from those (`evaluation.mask_clusters`).  A layer of no more channels than that is exact as ever.
    benchmarks/scorecam_clusters.csv has how near the maps come: near for networks with a plain head, and for some
    images of others not at all, so compare a few with exact ones first.

    `weighting` names the source.  "softmax": channels are weighed by the softmax, over channels, of the class's logit,
    and their sum is cut off below zero before it is upsampled (the paper; grad-cam, torchcam).  "probability": they are
    weighed by the class's probability and the sum is cut off after it is upsampled (the authors' code of 2020,
    github.com/haofanwang/Score-CAM).  Both upsample bilinearly (align_corners=False) and scale masks afterwards, as the
    authors do; grad-cam upsamples its masks with align_corners=True, torchcam scales them before it upsamples.

    Masks hide by the value 0 of the normalised image, as in all these sources: its mean colour, not black.  A constant
    channel masks nothing: it is left out, as in the authors' code, and counted.  A map that is constant comes out as
    zeros.  Modes of the submodules, gradients and hooks are as before, whatever happens.
    Raises ValueError for images of another shape or type, a layer that the model does not have or run or that puts out
    no feature maps, an unknown weighting, fewer than 2 clusters, and target classes the model does not have;
    FloatingPointError if an activation or a score is not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(f"images must be normalised floats (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; it must be one of {', '.join(WEIGHTINGS)}")
    if clusters is not None and clusters < 2:
        raise ValueError(f"clusters is {clusters}; it must be at least 2, or None for the exact map")
    if layer not in set(model.modules()):
        raise ValueError(f"the layer ({type(layer).__name__}) is not a module of the model ({type(model).__name__})")
    targets = one_target_each(images, target_classes)

    maps = torch.zeros(len(images), *images.shape[2:])
    constant_channels = torch.zeros(len(images), dtype=torch.long)
    held_out = torch.full((len(images),), torch.nan)
    uncompiled = getattr(model, "_orig_mod", model)  # a compiled model does not call hooks that come later
    with torch.inference_mode(), eval_mode(model):
        for batch in torch.arange(len(images)).split(batch_size):
            activations, logits = _activations_and_logits(uncompiled, images[batch], layer)
            check_targets(targets, logits.shape[1])
            low, high = activations.amin(dim=(2, 3)), activations.amax(dim=(2, 3))
            constant = _is_constant(low, high)
            measure = partial(_scores, model, images[batch], activations, targets[batch], weighting, batch_size)
            if clusters is None or activations.shape[1] <= 2 * clusters:
                scores = measure(~constant)
            else:
                scores, held_out[batch] = _scores_by_clusters(measure, activations, ~constant, clusters, weighting)
            scores = _weights(scores, constant, weighting)
            sums = (scores[:, :, None, None] * activations).sum(dim=1)
            if not sums.isfinite().all():
                raise FloatingPointError(NOT_FINITE)
            if weighting == "softmax":
                sums = sums.relu()
            maps[batch] = scale_to_unit(_upsample(sums, images.shape[2:]).relu()).cpu()
            constant_channels[batch] = constant.sum(dim=1).cpu()
    return ScoreCam(maps, constant_channels, held_out)


def one_target_each(images: torch.Tensor, target_classes: Sequence[int]) -> torch.Tensor:
    """The target classes (N,) on the device of the images (N, 3, H, W); ValueError if there is not one for each."""
    targets = torch.as_tensor(target_classes, device=images.device)
    if targets.shape != (len(images),):
        raise ValueError(f"target_classes has shape {tuple(targets.shape)}; {len(images)} images need one class each")
    return targets


def check_targets(targets: torch.Tensor, num_classes: int):
    """Raises ValueError for a target that is not one of the model's classes."""
    if targets.min() < 0 or targets.max() >= num_classes:
        raise ValueError(f"target_classes must be 0 to {num_classes - 1}, got {targets.tolist()}")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode within the block; afterwards every submodule in its own mode again, whatever happens.

    `model.train()` would not do: a module within may be deliberately in another mode, as frozen features are.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def scale_to_unit(maps: torch.Tensor) -> torch.Tensor:
    """Maps (N, H, W), each scaled so that its lowest value is 0 and its highest 1; a constant one becomes zeros."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return ((maps - low) / (high - low)).masked_fill(_is_constant(low, high), 0)


def _is_constant(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return high - low <= ROUNDING * torch.maximum(low.abs(), high.abs())


def _activations_and_logits(model, images, layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's outputs (N, channels, height, width) and the model's (N, classes)."""
    with _recorded_outputs(layer) as outputs:
        logits = model(images)
    if not outputs:
        raise ValueError(f"the layer ({type(layer).__name__}) did not run when the model was given the images")
    activations = outputs[-1]
    if not isinstance(activations, torch.Tensor) or activations.ndim != 4:
        found = tuple(activations.shape) if isinstance(activations, torch.Tensor) else type(activations).__name__
        raise ValueError(f"the layer ({type(layer).__name__}) must put out (N, channels, height, width), not {found}")
    return activations.float(), logits.float()  # within torch.autocast they are bfloat16


@contextmanager
def _recorded_outputs(layer: nn.Module) -> Iterator[list]:
    """What the layer puts out within the block, copied: a next layer that works in place would change the original."""
    outputs = []

    def record(module, inputs, output):
        outputs.append(output.clone() if isinstance(output, torch.Tensor) else output)

    handle = layer.register_forward_hook(record)
    try:
        yield outputs
    finally:
        handle.remove()


def _scores(model, images, activations, targets, weighting, batch_size, wanted) -> torch.Tensor:
    """The class's logit or probability in each masked image, (N, channels); zero where it is not wanted."""
    scores = torch.zeros_like(wanted, dtype=activations.dtype)
    for pairs in wanted.nonzero().split(batch_size):
        image_numbers, channels = pairs.unbind(dim=1)
        masks = scale_to_unit(_upsample(activations[image_numbers, channels], images.shape[2:]))
        masked = images[image_numbers] * masks[:, None]
        outputs = model(masked.contiguous(memory_format=torch.channels_last)).float()  # faster, on CPUs and GPUs
        if weighting == "probability":
            outputs = outputs.softmax(dim=1)
        scores[image_numbers, channels] = outputs.gather(1, targets[image_numbers, None]).squeeze(1)
    return scores


def _weights(scores, constant, weighting) -> torch.Tensor:
    """What weighs the channels (N, channels): their softmax over the channels, or the scores as they are."""
    if weighting == "softmax":
        return scores.masked_fill(constant, -torch.inf).softmax(dim=1).masked_fill(constant, 0)
    return scores


def _scores_by_clusters(measure, activations, wanted, clusters, weighting) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_scores`, of which `measure(wanted)` does some and the others are predicted; and `ScoreCam.held_out`.

    A map is a sum in which few channels count, so half of the passes are kept for those that will.
    """
    masks = scale_to_unit(activations.flatten(0, 1)).view_as(activations).flatten(2).double().cpu().numpy()
    channels = [each.nonzero().squeeze(1).cpu().numpy() for each in wanted]
    measured = torch.zeros_like(wanted)
    for image, masked in enumerate(channels):
        measured[image, masked[choose_medoids(masks[image, masked], clusters)]] = True
    scores = measure(measured)
    predicted, _ = _predict_others(masks, channels, scores, measured)
    contributions = _weights(predicted, ~wanted, weighting) * activations.amax(dim=(2, 3)).relu()
    strongest = contributions.masked_fill(measured | ~wanted, -1).topk(clusters, dim=1).indices
    others = torch.zeros_like(wanted).scatter(1, strongest, True) & wanted & ~measured
    return _predict_others(masks, channels, scores + measure(others), measured | others)


def _predict_others(masks, channels, scores, measured) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, channels) where those measured stay and the others among `channels` are predicted; and held_out."""
    predicted, held_out = scores.clone(), torch.full((len(scores),), torch.nan)
    for image, masked in enumerate(channels):
        known = measured[image, masked].nonzero().squeeze(1).cpu().numpy()
        if len(known) == len(masked):
            continue
        values = scores[image, masked[known]].double().cpu().numpy()
        if not (np.isfinite(values).all() and np.isfinite(masks[image]).all()):
            raise FloatingPointError(NOT_FINITE)
        found, held_out[image] = predict_scores(masks[image, masked], known, values)
        predicted[image, masked] = torch.from_numpy(found).to(scores)
    return predicted, held_out


def _upsample(maps: torch.Tensor, size) -> torch.Tensor:
    """Maps (N, height, width) to (N, H, W)."""
    return nn.functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def main(arguments=None) -> int:
    """Answer the command line; a user's mistake gets one sentence and exit code 2."""
    from runs import run_command  # here, so that the functions above need nothing but torch

    parser = argparse.ArgumentParser(prog="python -m evaluation.scorecam", description=__doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--model", required=True, metavar="RUN", help="a trained run's name, or its checkpoint")
    parser.add_argument("--layers", nargs="+", default=["1", "2", "8"], help="stages, 0 to 8, or names of modules")
    parser.add_argument("--target", metavar="CLASS", help="the class to explain; without it, the most probable one")
    parser.add_argument("--weighting", choices=WEIGHTINGS, default="softmax")
    parser.add_argument("--clusters", type=int, help="approximate, with twice as many passes; without it, exact")
    parser.add_argument("--output", type=Path, default=Path("scorecam.png"), help="the sheet; its maps go into .npz")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return run_command(lambda: _draw_sheet(options))


def _draw_sheet(options):
    from evaluation.checkpoints import load_trained

    run = load_trained(options.model)
    explained = run.folded().without_mirror_image()
    layers = {name: explained.layer(name) for name in options.layers}
    if options.target is not None and options.target not in run.class_names:
        raise ValueError(f"{run.name} has no class {options.target}; it has {', '.join(run.class_names)}")
    pixels, images = run.read(options.images)
    with torch.inference_mode():
        targets = torch.cat([run.model(batch).argmax(dim=1) for batch in images.split(64)]).tolist()
    if options.target is not None:
        targets = [run.class_names.index(options.target)] * len(images)
    found = {
        name: score_cam(explained.model, images, layer, targets, options.weighting, clusters=options.clusters)
        for name, layer in tqdm(layers.items(), desc="Score-CAM", unit="layer")
    }
    titles = [f"{path.name}: {run.class_names[target]}" for path, target in zip(options.images, targets, strict=True)]
    figure = plots.draw_heat_map_sheet(pixels, titles, {name: each.maps for name, each in found.items()})
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=120)
    plt.close(figure)
    maps = {f"layer_{name}": each.maps.numpy() for name, each in found.items()}
    np.savez_compressed(options.output.with_suffix(".npz"), targets=targets, **maps)
    for name, each in found.items():
        print(f"layer {name}: {int(each.constant_channels.sum())} constant channels in {len(images)} images")
        if not each.held_out.isnan().all():
            print(f"layer {name}: predicted of the held-out scores' variance, at worst {each.held_out.min():.2f}")
    print(f"{options.output}, {options.output.with_suffix('.npz')}")


if __name__ == "__main__":
    sys.exit(main())
