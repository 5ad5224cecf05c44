"""Recipro-CAM (Byun and Lee 2022): heat maps without gradients, from one masked pass per position of a layer.

Where Score-CAM masks the image by each channel, Recipro-CAM masks the layer's maps by each position: 49 passes at 7x7
positions instead of 1,280.  If the head sees only this layer or later ones, the earlier ones run once.
"""

from collections.abc import Sequence
from itertools import count

import torch
from torch import nn

from evaluation.hooks import eval_mode, maps_and_logits, outputs_of
from evaluation.scorecam import (
    NOT_FINITE,
    ScoreCam,
    as_images,
    check_batch_size,
    check_targets,
    check_two_classes,
    one_target_each,
    probabilities_of,
    scale_to_unit,
    upsample,
)
from helper_functions import logits_in, logits_of
from loop.devices import as_input_of

NEIGHBORHOOD = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16  # of a position, in the paper


def recipro_cam(
    model: nn.Module, images: torch.Tensor, layer: nn.Module, target_classes: Sequence[int], batch_size: int = 64
) -> ScoreCam:
    """One heat map per image: the class's probability when only one position of the layer's maps, and a share of its
    neighbors, is left.

    The arguments, the result and the errors are those of `score_cam`, without its weighting.  The paper leaves a
    neighborhood of 3 x 3 positions with Gaussian weights, as this does.  No channel is constant or left out, and no map
    falls back.
    """
    images = as_images(images)
    targets = one_target_each(images, target_classes)
    maps = []
    for image, target in zip(images[:, None], targets, strict=True):
        probabilities = probabilities_by_position(model, image, layer, batch_size)
        check_targets(target, len(probabilities))
        maps.append(_as_heat_map(probabilities[target], image))
    zeros = torch.zeros(len(images), dtype=torch.long)
    return ScoreCam(torch.cat(maps), zeros, zeros.bool())


def recipro_contrast(
    model: nn.Module, image: torch.Tensor, layer: nn.Module, target_class: int, other_class: int, batch_size: int = 64
) -> torch.Tensor:
    """Why the target class and not the other one, in an image (1, 3, H, W): the map (H, W) of their difference.

    High where a position by itself makes the target class more probable than the other one; zero where it does not.
    The errors are those of `contrast_cam`.
    """
    probabilities = probabilities_by_position(model, as_images(image), layer, batch_size)
    classes = torch.tensor([target_class, other_class])
    check_targets(classes, len(probabilities))
    check_two_classes(*classes)
    difference = probabilities[target_class] - probabilities[other_class]
    return _as_heat_map(difference.clamp(min=0), image)[0]


@torch.inference_mode()
def probabilities_by_position(
    model: nn.Module, image: torch.Tensor, layer: nn.Module, batch_size: int = 64
) -> torch.Tensor:
    """The probability of each class (classes, height, width) when only one position of the layer's maps is left.

    The image is (1, 3, H, W); the layer's maps have height times width positions.  Raises FloatingPointError if a
    probability is not finite.
    """
    check_batch_size(batch_size)
    model = getattr(model, "_orig_mod", model)  # a compiled model does not call hooks that are added later
    with eval_mode(model):
        runs = []
        with outputs_of(model, [layer], lambda *_: runs.append(1)):
            activations, _ = maps_and_logits(model, image, layer)
        height, width = activations.shape[2:]
        masks = position_masks(height, width).to(activations).split(batch_size)
        found = [probabilities_of(_logits_of_masked(model, layer, len(runs), image, part).float()) for part in masks]
    probabilities = torch.cat(found).T.reshape(-1, height, width)
    if not probabilities.isfinite().all():
        raise FloatingPointError(NOT_FINITE)
    return probabilities


def _as_heat_map(of_positions: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Values (height, width) as a map (1, H, W) of the image (1, 3, H, W), scaled to 0..1, on the CPU."""
    return scale_to_unit(upsample(scale_to_unit(of_positions[None]), image.shape[2:])).cpu()


def position_masks(height: int, width: int) -> torch.Tensor:
    """For each position of a grid, line by line, the weights of all positions: (height * width, 1, height, width)."""
    single = torch.eye(height * width).view(-1, 1, height, width)
    return nn.functional.conv2d(single, NEIGHBORHOOD[None, None], padding=1)


def _logits_of_masked(
    model: nn.Module, layer: nn.Module, runs: int, image: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """The logits (n, classes) of one image (1, 3, H, W) with the layer's maps masked by each mask (n, 1, h, w).

    The maps are those of the last of the layer's `runs`, as in `maps_and_logits`.  The layers before run once, if none
    of their outputs goes around the layer.  Else they run once a mask.
    """
    alone, run_numbers = runs == 1 and _reaches_the_head_alone(model, layer), count(1)

    def mask(module, inputs, output):
        return _masked(output, masks) if next(run_numbers) == runs else None

    handle = layer.register_forward_hook(mask)
    try:
        if alone:
            return logits_in(model(as_input_of(model, image)), len(masks))
        return logits_of(model, image.expand(len(masks), -1, -1, -1))
    finally:
        handle.remove()


def _reaches_the_head_alone(model: nn.Module, layer: nn.Module) -> bool:
    """Whether a SceneClassifier's head sees no stage before this one, and this is a stage."""
    stages, features = getattr(model, "stages", None), getattr(model, "features", ())
    numbers = [number for number, stage in enumerate(features) if stage is layer]
    return bool(stages and numbers) and numbers[0] <= min(stages)


def _masked(output: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The layer's output times the masks; channels come last where the masks' height and width fit only there."""
    if output.shape[2:] == masks.shape[2:]:
        return output * masks
    return output * masks.permute(0, 2, 3, 1)
