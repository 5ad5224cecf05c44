"""Random views of images under optimization: an image must show its class however it is shifted, scaled or rotated.

Without them an optimizer finds textures that fool one network and mean nothing to another (Olah et al. 2017).  The
draws belong to an image, not to a batch, so an image of a batch is the same as alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Views:
    """How far a view may differ from its image.

    `shift` is a fraction of the side of the image, `scale` of its size (0.25: zoomed to 0.8..1.25), `rotation` is in
    degrees to either side, `noise` is the standard deviation of what is added to a pixel (0..1), and `count` the number
    of views of an image in a step.
    """

    shift: float = 0.0
    scale: float = 0.0
    rotation: float = 0.0
    noise: float = 0.0
    count: int = 1

    @property
    def moves(self) -> bool:
        """Whether a view's pixels lie elsewhere than the image's."""
        return max(self.shift, self.scale, self.rotation) > 0


def generator_of(seed: int, start: int, target: int) -> torch.Generator:
    """The generator of one image's draws: equal for equal seed, start and target, whatever else is optimized."""
    return torch.Generator().manual_seed((1_000_003 * (seed + start) + 7_919 * target) % 2**63)


def views_of(pixels: torch.Tensor, views: Views, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """`views.count` random views of each image (N, C, S, S), one after another: (N * count, C, S, S).

    One bilinear resampling; what lies beyond the border is the reflected image.  Gradients flow to the pixels.
    """
    images = pixels.repeat_interleave(views.count, dim=0)
    if views.moves:
        drawn = torch.cat([2 * torch.rand(views.count, 4, generator=each) - 1 for each in generators]).to(pixels)
        grid = nn.functional.affine_grid(_matrices(drawn, views), images.shape, align_corners=False)
        images = nn.functional.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    if views.noise > 0:
        shape = (views.count, *pixels.shape[1:])
        noise = torch.cat([torch.randn(shape, generator=each) for each in generators])
        images = images + views.noise * noise.to(images)
    return images


def _matrices(drawn: torch.Tensor, views: Views) -> torch.Tensor:
    """Affine matrices (N, 2, 3) from view to image, from draws (N, 4) in -1..1: shifts, scale and rotation."""
    zoom = (1 + views.scale) ** drawn[:, 2]
    angle = math.radians(views.rotation) * drawn[:, 3]
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    shift = 2 * views.shift * drawn[:, :2]  # the side of an image is 2 long
    rows = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], dim=1)
    return rows.view(-1, 2, 3)
