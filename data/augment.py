"""Random augmentation of whole batches: parameters are drawn for each image, and applied to all images at once.

    drawn = draw(SCENE_VIEWS, seeds)
    views = apply(drawn, images, size=160)

Parameters are drawn on the CPU, from a seed for each image.  So what an image looks like does not depend on its batch,
on the number of workers or processes, or on the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

CROP_TRIES = 10  # as in torchvision: a box that does not fit into the image is drawn again
CROP_RATIO = (3 / 4, 4 / 3)  # width to height of a crop, in pixels
GREY = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue, as in torchvision


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for an image.  Probabilities are 0 to 1; 0 leaves an operation out.

    Raises ValueError that names the field for a value that makes no sense.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)  # smallest and largest share of the image's area
    flip: float = 0.5  # probability of a horizontal flip
    jitter: float = 0.0  # probability of a change of brightness and contrast
    brightness: float = 0.0  # brightness is multiplied by 1 - this to 1 + this
    contrast: float = 0.0  # so is contrast
    blur: float = 0.0  # probability of a Gaussian blur
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # smallest and largest standard deviation, pixels of the view

    def __post_init__(self):
        """Refuse what cannot be drawn."""
        for name in ("flip", "jitter", "blur", "brightness", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 to 1")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale is {self.crop_scale}; both ends must be above 0, at most 1, and in order")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma is {self.blur_sigma}; both ends must be above 0 and in order")


@dataclass(frozen=True)
class Drawn:
    """The parameters of N images: tensors (N,), and boxes (N, 4)."""

    boxes: torch.Tensor  # left, top, width, height of the crop, as fractions of the image
    flipped: torch.Tensor  # bool
    brightness: torch.Tensor  # factors; 1: unchanged
    contrast: torch.Tensor
    sigma: torch.Tensor  # standard deviation of the blur, pixels; 0: none
    reach: int  # of the blur's kernels to each side, pixels; one for all, so that no image depends on its batch


SCENE_VIEWS = Augmentation(crop_scale=(0.2, 1.0), jitter=0.8, brightness=0.4, contrast=0.4, blur=0.5)
AUGMENTATIONS = {  # for the views of joint-embedding pretexts; one of your own can be added
    "scene": SCENE_VIEWS,
    "without_jitter": replace(SCENE_VIEWS, jitter=0.0),
    "without_blur": replace(SCENE_VIEWS, blur=0.0),  # also for images of 32 pixels
    "gentle_crops": replace(SCENE_VIEWS, crop_scale=(0.5, 1.0)),
    "strong_crops": replace(SCENE_VIEWS, crop_scale=(0.08, 1.0)),
}


def draw(augmentation: Augmentation, seeds: Sequence[int], views: int = 1) -> Drawn:
    """Parameters of `views` independent views of each image; with more than one, those of an image stand together.

    Boxes have the distribution of torchvision's RandomResizedCrop on square images.
    """
    needed = 2 * CROP_TRIES + 8
    uniform = torch.stack(
        [torch.rand(views, needed, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    ).flatten(0, 1)
    tries, rest = uniform[:, : 2 * CROP_TRIES], uniform[:, 2 * CROP_TRIES :]
    left, top, flip, jitter, brightness, contrast, blur, sigma = rest.unbind(dim=1)
    width, height = _sizes_of_boxes(augmentation.crop_scale, tries[:, :CROP_TRIES], tries[:, CROP_TRIES:])
    changed = jitter < augmentation.jitter
    low, high = augmentation.blur_sigma
    return Drawn(
        boxes=torch.stack([left * (1 - width), top * (1 - height), width, height], dim=1),
        flipped=flip < augmentation.flip,
        brightness=torch.where(changed, 1 + augmentation.brightness * (2 * brightness - 1), 1.0),
        contrast=torch.where(changed, 1 + augmentation.contrast * (2 * contrast - 1), 1.0),
        sigma=torch.where(blur < augmentation.blur, low + (high - low) * sigma, 0.0),
        reach=math.ceil(3 * high),
    )


def _sizes_of_boxes(scale: tuple[float, float], areas: torch.Tensor, ratios: torch.Tensor):
    """Width and height (N,) of the first of the tries (N, CROP_TRIES) that fits, else of the whole image."""
    areas = scale[0] + (scale[1] - scale[0]) * areas
    low, high = (torch.tensor(each).log() for each in CROP_RATIO)
    ratios = torch.exp(low + (high - low) * ratios)
    sizes = torch.stack([(areas * ratios).sqrt(), (areas / ratios).sqrt()])
    fits = (sizes <= 1).all(dim=0)
    first = fits.int().argmax(dim=1)
    width, height = sizes[:, torch.arange(len(first)), first]
    whole = ~fits.any(dim=1)
    return width.masked_fill(whole, 1.0), height.masked_fill(whole, 1.0)


def apply(drawn: Drawn, images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (N, 1 or 3, H, W), bytes or floats of 0 to 255, to augmented ones (N, C, size, size), float32, 0 to 255.

    The order is crop and flip, brightness, contrast, blur.  Brightness and contrast are those of torchvision.
    """
    images = crop_and_flip(images, drawn.boxes, drawn.flipped, size)
    images = _blend(images, torch.zeros(()), drawn.brightness)
    grey = images if images.shape[1] == 1 else (images * images.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)
    images = _blend(images, grey.mean(dim=(1, 2, 3), keepdim=True), drawn.contrast)
    return gaussian_blur(images, drawn.sigma, drawn.reach)


def crop_and_flip(images: torch.Tensor, boxes: torch.Tensor, flipped: torch.Tensor, size: int) -> torch.Tensor:
    """The boxes of images (N, C, H, W), flipped horizontally where asked for, resized to (N, C, size, size), float32.

    Bilinear and antialiased, as torchvision's resize of the cropped image is; boxes are not rounded to pixels.  Each
    direction is resampled by a matrix: three times faster than a sampling grid, which would also alias.
    """
    left, top, width, height = boxes.to(images.device).unbind(dim=1)
    rows = _resampling_weights(top, height, images.shape[-2], size)
    columns = _resampling_weights(left, width, images.shape[-1], size)
    columns = torch.where(flipped.to(images.device).view(-1, 1, 1), columns.flip(1), columns)
    return rows[:, None] @ images.float() @ columns.transpose(1, 2)[:, None]


def _resampling_weights(start: torch.Tensor, length: torch.Tensor, pixels: int, size: int) -> torch.Tensor:
    """How much each of the `pixels` counts for each of `size` points of N intervals: (N, size, pixels).

    Intervals begin at `start` (N,) and are `length` (N,) long, as fractions of the pixels.  Weights fall linearly with
    the distance, to 0 at one pixel or one step between points, whichever is longer.
    """
    start, length = pixels * start.view(-1, 1, 1), pixels * length.view(-1, 1, 1)
    step = length / size
    points = start + step * (torch.arange(size, device=start.device).view(-1, 1) + 0.5)
    centers = torch.arange(pixels, device=start.device) + 0.5
    weights = (1 - (centers - points).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((centers > start) & (centers < start + length))  # of the cropped image only
    return weights / weights.sum(dim=2, keepdim=True)


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, reach: int) -> torch.Tensor:
    """Each image (N, C, H, W) with a Gaussian blur of its own standard deviation (N,), pixels; 0 leaves it as it is.

    Kernels reach `reach` pixels to each side, three of the largest standard deviation that can be drawn; the image is
    reflected at its edges.
    """
    blurred = sigma > 0
    if not blurred.any():
        return images
    chosen = images[blurred.to(images.device)]
    count, channels, height, width = chosen.shape
    reach = min(reach, height - 1, width - 1)
    offsets = torch.arange(-reach, reach + 1)
    kernels = torch.exp(-0.5 * (offsets / sigma[blurred, None]) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images).repeat_interleave(channels, dim=0)
    chosen = chosen.reshape(1, count * channels, height, width)
    across = (-1, 1, 1, 2 * reach + 1), (reach, reach, 0, 0)
    down = (-1, 1, 2 * reach + 1, 1), (0, 0, reach, reach)
    for shape, padding in (across, down):
        padded = functional.pad(chosen, padding, mode="reflect")
        chosen = functional.conv2d(padded, kernels.view(shape), groups=count * channels)
    images = images.clone()
    images[blurred.to(images.device)] = chosen.view(count, channels, height, width)
    return images


def _blend(images: torch.Tensor, other: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """factor * image + (1 - factor) * other, as bytes allow: 0 to 255."""
    factors = factors.to(images).view(-1, 1, 1, 1)
    return (factors * images + (1 - factors) * other.to(images)).clamp(0, 255)
