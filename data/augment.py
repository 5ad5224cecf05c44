"""Random augmentation of whole batches: parameters are drawn for each image, and applied to all images at once.

    drawn = draw(SCENE_VIEWS, seeds)
    views = apply(drawn, images, size=160)

Parameters are drawn on the CPU, from a seed for each image.  So what an image looks like does not depend on its batch,
on the number of workers or processes, or on the device.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

AUGMENTATION_RULES = 2  # stands in results: 1 was torchvision's, image by image, whose rotation took the nearest pixel
CROP_TRIES = 10  # as in torchvision: a box that does not fit into the image is drawn again
CROP_RATIO = (3 / 4, 4 / 3)  # width to height of a crop, in pixels
GRAY = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue, as in torchvision
MANY = 9.0  # further out than any image reaches, where images are 2 wide
STRENGTHS = 31  # of TrivialAugment's operations
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")  # TrivialAugment's, in torchvision's order
BLENDS = ("brightness", "color", "contrast", "sharpness")
OPERATIONS = ("identity", *GEOMETRIC, *BLENDS, "posterize", "solarize", "autocontrast", "equalize")


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for an image.  Probabilities are 0 to 1; 0 leaves an operation out.

    Raises ValueError that names the field for a value that makes no sense.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)  # smallest and largest share of the image's area
    antialias: bool = True  # for views smaller than the images; without it, resampling takes a third of the time
    padding: float = 0.0  # black around the image, as a share of its side; a window of the image's size is taken
    flip: float = 0.5  # probability of a horizontal flip
    rotation: float = 0.0  # largest angle, degrees, in either direction; the corners become black
    trivial: bool = False  # one random operation of TrivialAugment (Mueller and Hutter 2021)
    jitter: float = 0.0  # probability of a change of brightness and contrast
    brightness: float = 0.0  # brightness is multiplied by 1 - this to 1 + this
    contrast: float = 0.0  # so is contrast
    blur: float = 0.0  # probability of a Gaussian blur
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # smallest and largest standard deviation, pixels of the view
    solarize: float = 0.0  # probability that what is brighter than 127 is inverted (as in BYOL)

    def __post_init__(self):
        """Refuse what cannot be drawn."""
        for name in ("padding", "flip", "jitter", "blur", "brightness", "contrast", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 to 1")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale is {self.crop_scale}; both ends must be above 0, at most 1, and in order")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma is {self.blur_sigma}; both ends must be above 0 and in order")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation is {self.rotation}; it must be 0 to 180 degrees")
        if self.antialias and (self.padding or self.rotation or self.trivial):
            raise ValueError("antialias cannot be combined with padding, rotation or trivial; set it to False")


@dataclass(frozen=True)
class Drawn:
    """The parameters of N images: tensors (N,), boxes (N, 4) and shifts (N, 2).  None: no image is changed so."""

    boxes: torch.Tensor  # left, top, width, height of the crop, as fractions of the image
    flipped: torch.Tensor  # bool
    antialias: bool = True
    padding: float = 0.0
    shifts: torch.Tensor | None = None  # of the window in the padded image: 0 is at the left or top, 1 the other end
    angles: torch.Tensor | None = None  # degrees, counter-clockwise
    operations: torch.Tensor | None = None  # indices of OPERATIONS
    strengths: torch.Tensor | None = None  # of the operations, -1 to 1; those without a direction take the absolute
    brightness: torch.Tensor | None = None  # factors; 1: unchanged
    contrast: torch.Tensor | None = None
    sigma: torch.Tensor | None = None  # standard deviation of the blur, pixels; 0: none
    reach: int = 0  # of the blur's kernels to each side, pixels; one for all, so that no image depends on its batch
    solarized: torch.Tensor | None = None  # bool


SCENE_VIEWS = Augmentation(crop_scale=(0.2, 1.0), jitter=0.8, brightness=0.4, contrast=0.4, blur=0.5)
ADVANCED = Augmentation(crop_scale=(0.08, 1.0), antialias=False, rotation=20)
AUGMENTATIONS = {  # by name; the `views` of a joint-embedding pretext may be one that you add
    "crop": Augmentation(crop_scale=(0.08, 1.0), antialias=False, flip=0.0),  # this and the next two: the first report
    "advanced": ADVANCED,
    "advanced_without_crop": replace(ADVANCED, crop_scale=(1.0, 1.0)),
    "padded_crop": Augmentation(antialias=False, padding=1 / 8),  # CIFAR-10's: 4 pixels of 32 (He et al. 2016)
    "mild": Augmentation(crop_scale=(0.5, 1.0), antialias=False),
    "trivial": Augmentation(crop_scale=(0.08, 1.0), antialias=False, trivial=True),
    "scene": SCENE_VIEWS,  # this and the next ones: for the views of joint-embedding pretexts
    "without_jitter": replace(SCENE_VIEWS, jitter=0.0),
    "without_blur": replace(SCENE_VIEWS, blur=0.0),  # also for images of 32 pixels
    "gentle_crops": replace(SCENE_VIEWS, crop_scale=(0.5, 1.0)),
    "strong_crops": replace(SCENE_VIEWS, crop_scale=(0.08, 1.0)),
}


def draw(augmentation: Augmentation, seeds: Sequence[int], views: int = 1) -> Drawn:
    """Parameters of `views` independent views of each image; with more than one, those of an image stand together.

    Boxes have the distribution of torchvision's RandomResizedCrop on square images.  Raises ValueError for seeds that
    are no whole numbers.
    """
    try:
        generators = [torch.Generator().manual_seed(operator.index(seed)) for seed in seeds]
    except TypeError as error:
        raise ValueError(f"seeds is {seeds!r}; it must be a list of whole numbers, one for each image") from error
    uniform = _uniform(generators, views, 2 * CROP_TRIES + 8)
    tries, rest = uniform[:, : 2 * CROP_TRIES], uniform[:, 2 * CROP_TRIES :]
    left, top, flip, jitter, brightness, contrast, blur, sigma = rest.unbind(dim=1)
    width, height = _sizes_of_boxes(augmentation.crop_scale, tries[:, :CROP_TRIES], tries[:, CROP_TRIES:])
    drawn = {
        "boxes": torch.stack([left * (1 - width), top * (1 - height), width, height], dim=1),
        "flipped": flip < augmentation.flip,
    }
    if augmentation.jitter > 0:
        changed = jitter < augmentation.jitter
        drawn["brightness"] = torch.where(changed, 1 + augmentation.brightness * (2 * brightness - 1), 1.0)
        drawn["contrast"] = torch.where(changed, 1 + augmentation.contrast * (2 * contrast - 1), 1.0)
    if augmentation.blur > 0:
        low, high = augmentation.blur_sigma
        drawn["sigma"] = torch.where(blur < augmentation.blur, low + (high - low) * sigma, 0.0)
        drawn["reach"] = math.ceil(3 * high)
    if augmentation.padding or augmentation.rotation or augmentation.trivial or augmentation.solarize:
        drawn |= _draw_more(augmentation, _uniform(generators, views, 6))
    return Drawn(antialias=augmentation.antialias, padding=augmentation.padding, **drawn)


def _uniform(generators: Sequence[torch.Generator], views: int, count: int) -> torch.Tensor:
    """Uniform numbers (generators * views, count), those of a generator together."""
    return torch.stack([torch.rand(views, count, generator=each) for each in generators]).flatten(0, 1)


def _draw_more(augmentation: Augmentation, uniform: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the views of the study's joint-embedding pretexts do not need, from uniform numbers (N, 6)."""
    angle, operation, strength, solarize = uniform[:, :4].unbind(dim=1)
    drawn = {}
    if augmentation.padding > 0:
        drawn["shifts"] = uniform[:, 4:]
    if augmentation.rotation > 0:
        drawn["angles"] = augmentation.rotation * (2 * angle - 1)
    if augmentation.trivial:
        steps = (2 * STRENGTHS * strength).floor()  # each strength once in either direction
        drawn["operations"] = (len(OPERATIONS) * operation).long()
        drawn["strengths"] = (steps % STRENGTHS) / (STRENGTHS - 1) * torch.where(steps < STRENGTHS, 1.0, -1.0)
    if augmentation.solarize > 0:
        drawn["solarized"] = solarize < augmentation.solarize
    return drawn


def _sizes_of_boxes(
    scale: tuple[float, float], areas: torch.Tensor, ratios: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Width and height (N,), as fractions of the image, of the first try that fits, else of the whole image.

    `areas` and `ratios` (N, CROP_TRIES) are uniform numbers of 0..1, which become shares of the area and CROP_RATIO.
    """
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

    The order is crop, flip and rotation, TrivialAugment, brightness, contrast, blur, solarize.  Each is torchvision's,
    but that what moves pixels does so in one step, by bilinear interpolation.  Raises ValueError for images of another
    shape or another number than what is drawn.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[0] != len(drawn.boxes):
        raise ValueError(
            f"images have the shape {shape}; it must be ({len(drawn.boxes)}, 1 or 3, H, W), one for a seed"
        )
    images = (crop_and_flip if drawn.antialias else _warp)(drawn, images, size)
    if drawn.operations is not None:
        images = _apply_operations(images, drawn.operations, drawn.strengths)
    if drawn.brightness is not None:
        images = _blend(images, torch.zeros(()), drawn.brightness)
    if drawn.contrast is not None:
        images = _blend(images, _mean_gray(images), drawn.contrast)
    if drawn.sigma is not None:
        images = gaussian_blur(images, drawn.sigma, drawn.reach)
    if drawn.solarized is not None:
        inverted = drawn.solarized.to(images.device).view(-1, 1, 1, 1) & (images >= 128)
        images = torch.where(inverted, 255 - images, images)
    return images


def augment(augmentation: Augmentation, images: torch.Tensor, seeds: Sequence[int], size: int) -> torch.Tensor:
    """One view of each image by its seed: `apply` of what is drawn."""
    return apply(draw(augmentation, seeds), images, size)


def crop_and_flip(drawn: Drawn, images: torch.Tensor, size: int) -> torch.Tensor:
    """The boxes of images (N, C, H, W), flipped horizontally where asked for, resized to (N, C, size, size), float32.

    Bilinear and antialiased, as torchvision's resize of the cropped image is; boxes are not rounded to pixels.  Each
    direction is resampled by a matrix, since a sampling grid would alias.
    """
    left, top, width, height = drawn.boxes.to(images.device).unbind(dim=1)
    rows = _resampling_weights(top, height, images.shape[-2], size)
    columns = _resampling_weights(left, width, images.shape[-1], size)
    columns = torch.where(drawn.flipped.to(images.device).view(-1, 1, 1), columns.flip(1), columns)
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


def _warp(drawn: Drawn, images: torch.Tensor, size: int) -> torch.Tensor:
    """As `crop_and_flip` without antialiasing, with all else that moves pixels: one grid and one resampling for all.

    Coordinates are those of grid_sample: an image, and a view, reach from -1 to 1.
    """
    pixels = torch.tensor(images.shape[:-3:-1])  # width, height
    boxes = drawn.boxes
    if drawn.shifts is not None:
        margins = (drawn.padding * pixels).round()
        shifts = ((2 * margins + 1) * drawn.shifts).floor() - margins  # whole pixels, so nothing is interpolated
        boxes = torch.cat([boxes[:, :2] + shifts / pixels, boxes[:, 2:]], dim=1)
    centers, halves = 2 * boxes[:, :2] + boxes[:, 2:] - 1, boxes[:, 2:]
    in_crop, offsets = _matrices(drawn, size)  # of a view's point (x, y), to one in the crop
    turned = drawn.angles is not None or drawn.operations is not None
    parts = in_crop * halves[:, :, None], offsets * halves + centers, centers, halves - (0 if turned else 1 / pixels)
    matrices, offsets, centers, reaches = (part.to(images.device) for part in parts)
    points = (torch.arange(size, device=images.device) + 0.5) * 2 / size - 1
    grid = points.new_empty(2, len(images), size, size)
    first, last = points.new_full((2, len(images), size, 1), MANY).unbind()  # the part of each row within the crop
    first = -first
    for axis in (0, 1):
        along, down = matrices[:, axis, 0].view(-1, 1, 1), matrices[:, axis, 1].view(-1, 1, 1)
        start = down * points.view(1, -1, 1) + offsets[:, axis].view(-1, 1, 1)
        torch.add(along * points.view(1, 1, -1), start, out=grid[axis])
        low, high = ((centers + sign * reaches)[:, axis].view(-1, 1, 1) for sign in (-1, 1))
        if turned:
            slope = torch.where(along.abs() < 1e-6, 1e-6, along)  # a quarter turn
            ends = (low - start) / slope, (high - start) / slope
            first, last = first.maximum(torch.minimum(*ends)), last.minimum(torch.maximum(*ends))
        else:
            grid[axis].clamp_(low, high)  # at the crop's border its pixels count, not those beyond
    images = functional.grid_sample(images.float(), grid.permute(1, 2, 3, 0), align_corners=False)
    if turned:
        images.masked_fill_(((points < first) | (points > last))[:, None], 0.0)
    return images


def _matrices(drawn: Drawn, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From a point of the view to one of the crop: matrices (N, 2, 2), which are applied first, and offsets (N, 2)."""
    count = len(drawn.boxes)
    matrices, offsets = torch.eye(2).repeat(count, 1, 1), torch.zeros(count, 2)
    angles = torch.zeros(count) if drawn.angles is None else drawn.angles
    if drawn.operations is not None:
        strengths = {
            name: torch.where(drawn.operations == OPERATIONS.index(name), drawn.strengths, 0.0) for name in GEOMETRIC
        }
        for axis, name in enumerate(("shear_x", "shear_y")):  # from the top left corner
            matrices[:, axis, 1 - axis] = offsets[:, axis] = 0.99 * strengths[name]
        for axis, name in enumerate(("translate_x", "translate_y")):
            offsets[:, axis] -= 2 * (32 * strengths[name]).trunc() / size  # whole pixels, up to 32
        angles = angles + 135 * strengths["rotate"]
    cosines, sines = angles.deg2rad().cos(), angles.deg2rad().sin()
    rotations = torch.stack([cosines, -sines, sines, cosines], dim=1).view(-1, 2, 2)
    matrices = rotations @ matrices
    flips = torch.stack([torch.where(drawn.flipped, -1.0, 1.0), torch.ones(count)], dim=1)
    return flips[:, :, None] * matrices, flips * offsets


def _apply_operations(images: torch.Tensor, operations: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """Those of TrivialAugment's operations that leave pixels where they are, on float images of 0 to 255."""
    for number, name in enumerate(OPERATIONS):
        chosen = (operations == number).nonzero()[:, 0]
        if name == "identity" or name in GEOMETRIC or len(chosen) == 0:
            continue
        factors, chosen = strengths[chosen], chosen.to(images.device)
        images[chosen] = _operation(name, images[chosen], factors)
    return images


def _operation(name: str, images: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """One operation on images (N, C, S, S), floats of 0 to 255; strengths (N,) are -1 to 1."""
    if name in BLENDS:
        others = {
            "brightness": torch.zeros_like,
            "color": _gray,
            "contrast": _mean_gray,
            "sharpness": _smoothed,
        }
        return _blend(images, others[name](images), 1 + 0.99 * strengths)
    strengths = strengths.abs().to(images.device).view(-1, 1, 1, 1)
    if name == "solarize":
        return torch.where(images >= 255 * (1 - strengths), 255 - images, images)
    pixels = images.round().byte()
    if name == "posterize":
        steps = 2 ** (6 * strengths).round().byte()  # 8 to 2 bits are left
        return (pixels // steps * steps).float()
    return (transforms.autocontrast if name == "autocontrast" else transforms.equalize)(pixels).float()


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, reach: int) -> torch.Tensor:
    """Each image (N, C, H, W) with a Gaussian blur of its own standard deviation (N,), pixels; 0 leaves it as it is.

    Kernels reach `reach` pixels to each side, three of the largest standard deviation that can be drawn; the image is
    reflected at its edges.
    """
    blurred = sigma.nonzero()[:, 0]
    if len(blurred) == 0:
        return images
    sigma, blurred = sigma[blurred], blurred.to(images.device)
    chosen = images[blurred]
    count, channels, height, width = chosen.shape
    reach = min(reach, height - 1, width - 1)
    offsets = torch.arange(-reach, reach + 1)
    kernels = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images).repeat_interleave(channels, dim=0)
    chosen = chosen.reshape(1, count * channels, height, width)
    across = (-1, 1, 1, 2 * reach + 1), (reach, reach, 0, 0)
    down = (-1, 1, 2 * reach + 1, 1), (0, 0, reach, reach)
    for shape, padding in (across, down):
        padded = functional.pad(chosen, padding, mode="reflect")
        chosen = functional.conv2d(padded, kernels.view(shape), groups=count * channels)
    images = images.clone()
    images[blurred] = chosen.view(count, channels, height, width)
    return images


def _blend(images: torch.Tensor, other: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """factor * image + (1 - factor) * other, as bytes allow: 0 to 255."""
    factors = factors.to(images).view(-1, 1, 1, 1)
    return (factors * images + (1 - factors) * other.to(images)).clamp(0, 255)


def _gray(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 1 or 3, S, S) in gray (N, 1, S, S)."""
    return images if images.shape[1] == 1 else (images * images.new_tensor(GRAY).view(3, 1, 1)).sum(1, keepdim=True)


def _mean_gray(images: torch.Tensor) -> torch.Tensor:
    """The mean gray (N, 1, 1, 1) of each image (N, 1 or 3, S, S)."""
    return _gray(images).mean(dim=(1, 2, 3), keepdim=True)


def _smoothed(images: torch.Tensor) -> torch.Tensor:
    """Each pixel as the mean of its neighborhood, itself five times; those at the border as they are."""
    kernel = images.new_ones(3, 3)
    kernel[1, 1] = 5
    channels = images.shape[1]
    kernel = (kernel / kernel.sum()).expand(channels, 1, 3, 3)
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1] = functional.conv2d(images, kernel, groups=channels).round()
    return smoothed
