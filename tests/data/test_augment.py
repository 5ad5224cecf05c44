"""Batched augmentation: the same pixels as torchvision's, and parameters that belong to the image alone."""

import math
from dataclasses import fields

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from data.augment import (
    ADVANCED,
    AUGMENTATIONS,
    GEOMETRIC,
    OPERATIONS,
    SCENE_VIEWS,
    Augmentation,
    Drawn,
    apply,
    augment,
    crop_and_flip,
    draw,
    gaussian_blur,
)

SIZE = 24
EVERYTHING = Augmentation(crop_scale=(0.2, 1.0), jitter=1.0, brightness=0.4, contrast=0.4, blur=1.0, solarize=0.5)
TRIVIAL = Augmentation(crop_scale=(0.2, 1.0), antialias=False, rotation=20, trivial=True, padding=0.1)
THEIRS = {  # names of TrivialAugmentWide's operations
    **{"shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY"},
    **{"rotate": "Rotate", "brightness": "Brightness", "color": "Color", "contrast": "Contrast"},
    **{"sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize", "identity": "Identity"},
    **{"autocontrast": "AutoContrast", "equalize": "Equalize"},
}

DRAWN = {  # by name: smallest area of a crop, share flipped, largest angle, padding, shares jittered and blurred
    "crop": (0.08, 0, 0, 0, 0, 0),
    "advanced": (0.08, 0.5, 20, 0, 0, 0),
    "advanced_without_crop": (1, 0.5, 20, 0, 0, 0),
    "padded_crop": (1, 0.5, 0, 1 / 8, 0, 0),
    "mild": (0.5, 0.5, 0, 0, 0, 0),
    "trivial": (0.08, 0.5, 0, 0, 0, 0),
    "scene": (0.2, 0.5, 0, 0, 0.8, 0.5),
    "without_jitter": (0.2, 0.5, 0, 0, 0, 0.5),
    "without_blur": (0.2, 0.5, 0, 0, 0.8, 0),
    "gentle_crops": (0.5, 0.5, 0, 0, 0.8, 0.5),
    "strong_crops": (0.08, 0.5, 0, 0, 0.8, 0.5),
}


def noise(count=4, channels=3, height=40, width=40, seed=0):
    """Bytes (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def unchanged(count, **changes):
    """Parameters that leave N images as they are, but for the changes."""
    defaults = {
        "boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(count, 1),
        "flipped": torch.zeros(count, dtype=torch.bool),
        "brightness": torch.ones(count),
        "contrast": torch.ones(count),
        "sigma": torch.zeros(count),
        "reach": 6,
    }
    return Drawn(**defaults | changes)


# ---------------------------------------------------------------------------------------------- the same as torchvision


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 17, 32, 60])  # much smaller, smaller, about the size of the boxes, larger
def test_a_crop_of_whole_pixels_is_torchvisions_resized_crop(channels, size):
    images = noise(channels=channels, height=44, width=36)
    pixels = torch.tensor(
        [[0, 0, 36, 44], [3, 5, 20, 31], [16, 12, 20, 32], [35, 0, 1, 44]]
    )  # left, top, width, height
    flipped = torch.tensor([False, True, False, True])
    found = crop_and_flip(Drawn(pixels / torch.tensor([36, 44, 36, 44]), flipped), images, size)
    for image, (left, top, width, height), flip, ours in zip(images, pixels.tolist(), flipped, found, strict=True):
        expected = functional.resized_crop(image.float(), top, left, height, width, [size, size], antialias=True)
        expected = functional.horizontal_flip(expected) if flip else expected
        assert (ours - expected).abs().max() < 1e-3  # of 255 gray levels


def test_the_whole_image_at_its_own_size_is_returned_and_flipped_twice_too():
    images = noise()
    assert torch.equal(apply(unchanged(4), images, 40), images.float())
    flip = unchanged(4, flipped=torch.ones(4, dtype=torch.bool))
    assert torch.equal(apply(flip, images, 40), images.flip(-1).float())


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_and_contrast_are_torchvisions_one_after_the_other(channels):
    images = noise(channels=channels)
    brightness, contrast = torch.tensor([0.6, 1.0, 1.4, 1.2]), torch.tensor([1.4, 0.6, 1.0, 0.7])
    found = apply(unchanged(4, brightness=brightness, contrast=contrast), images, 40)
    for image, light, spread, ours in zip(images, brightness, contrast, found, strict=True):
        expected = functional.adjust_brightness(image.float() / 255, light.item())
        expected = functional.adjust_contrast(expected, spread.item())
        assert (ours / 255 - expected).abs().max() < 1e-5
    assert found.min() == 0 and found.max() == 255


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_torchvisions_with_a_kernel_of_three_standard_deviations(channels):
    images, sigma = noise(channels=channels).float(), torch.tensor([2.0, 0.0, 0.5, 1.3])
    before, found = images.clone(), gaussian_blur(images, sigma, 6)
    for image, deviation, ours in zip(images, sigma.tolist(), found, strict=True):
        kernel = [13, 13]  # 6 to each side
        expected = functional.gaussian_blur(image, kernel, [deviation] * 2) if deviation else image
        assert (ours - expected).abs().max() < 1e-3
    assert torch.equal(images, before)


def test_a_blur_wider_than_the_image_stops_at_its_edges():
    image = torch.full((1, 1, 4, 4), 7.0)
    assert torch.allclose(gaussian_blur(image, torch.tensor([50.0]), 150), image)


def test_the_order_is_crop_brightness_contrast_blur():
    images = noise(count=3)
    drawn = draw(EVERYTHING, [3, 4, 5])
    step = crop_and_flip(drawn, images, SIZE)
    step = apply(unchanged(3, brightness=drawn.brightness), step, SIZE)
    step = apply(unchanged(3, contrast=drawn.contrast), step, SIZE)
    step = apply(unchanged(3, solarized=drawn.solarized), gaussian_blur(step, drawn.sigma, 6), SIZE)
    found = apply(drawn, images, SIZE)
    assert drawn.solarized.any() and not drawn.solarized.all()
    assert ((found - step).abs() < 1e-3).double().mean() > 0.999  # a pixel of 128 may fall on either side


def smooth(size=48):
    """A byte image (1, 1, size, size) without hard edges."""
    x = torch.linspace(0, 6, size)
    return (127 + 60 * torch.sin(x)[None] + 50 * torch.cos(1.3 * x)[:, None]).byte()[None, None]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [-20.0, 7.0, 90.0, 180.0])
def test_flip_crop_and_rotation_in_one_step_are_torchvisions_one_after_the_other(angle, flip):
    image, size = smooth().float(), 48
    box = torch.tensor([[6, 12, 36, 24]]) / size  # left, top, width, height
    given = {"boxes": box, "flipped": torch.tensor([flip]), "antialias": False}
    found = apply(unchanged(1, **given, angles=torch.tensor([angle])), image, size)[0]
    expected = functional.resized_crop(image[0], 12, 6, 24, 36, [size, size], antialias=True)
    expected = functional.horizontal_flip(expected) if flip else expected
    assert (apply(unchanged(1, **given), image, size)[0] - expected).abs().max() < 1e-3  # without the rotation
    expected = functional.rotate(expected, angle, interpolation=v2.InterpolationMode.BILINEAR)
    difference = (found - expected).abs()
    inside = torch.ones(1, size, size)
    inside = functional.rotate(inside, angle, interpolation=v2.InterpolationMode.BILINEAR) > 0.999
    assert difference[inside].max() < 3  # of 255: once interpolated instead of twice
    corner = functional.rotate(torch.ones(1, size, size), angle) == 0
    assert (found[corner] == 0).sum() >= 0.95 * corner.sum()


def test_a_padded_crop_moves_whole_pixels_by_up_to_the_padding_and_fills_with_black():
    image = noise(count=1, channels=3, height=32, width=32)
    augmentation = Augmentation(antialias=False, flip=0, padding=1 / 8)
    padded, found = torch.nn.functional.pad(image, (4, 4, 4, 4)), set()
    for seed in range(150):
        view = apply(draw(augmentation, [seed]), image, 32)
        places = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.allclose(view, padded[:, :, top : top + 32, left : left + 32].float(), atol=1e-2)
        ]
        assert len(places) == 1
        found |= set(places)
    assert len(found) > 60 and {top for top, _ in found} == {left for _, left in found} == set(range(9))


@pytest.mark.parametrize("strength", [-20, 12, 30])  # of 30
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_operations_of_trivial_augment_are_torchvisions(name, channels, strength):
    moves = name in GEOMETRIC
    images = smooth().repeat(1, channels, 1, 1) if moves else noise(count=2, channels=channels, height=48, width=48)
    count, share = len(images), strength / 30
    given = {"operations": torch.full((count,), OPERATIONS.index(name)), "strengths": torch.full((count,), share)}
    found = apply(unchanged(count, antialias=False, **given), images, 48)
    largest = {"translate_x": 32, "translate_y": 32, "rotate": 135}.get(name, 0.99)
    level = {"posterize": 8 - round(abs(strength) / 5), "solarize": 1 - abs(share)}.get(name, largest * share)
    bilinear = v2.InterpolationMode.BILINEAR
    theirs = v2.TrivialAugmentWide(interpolation=bilinear)
    for image, ours in zip(images, found, strict=True):
        image = image.float() if moves else image
        expected = theirs._apply_image_or_video_transform(image, THEIRS[name], level, bilinear, theirs._fill).float()
        difference = (ours - expected).abs()
        if moves:  # at the border torchvision blends with black, or with the pixel beside it
            assert (difference > 1).double().mean() < 0.03
        elif name == "solarize":
            assert difference[(image - 255 * level).abs() > 0.5].max() < 1e-3
        else:
            assert difference.max() < 2  # torchvision rounds to bytes


def test_trivial_augment_draws_every_operation_and_strength_equally_often():
    drawn = draw(TRIVIAL, range(14 * 400))
    counts = torch.bincount(drawn.operations, minlength=len(OPERATIONS))
    assert len(OPERATIONS) == len(THEIRS) == 14 and counts.min() > 320 and counts.max() < 480
    levels, counts = (30 * drawn.strengths).round().unique(return_counts=True)
    assert levels.tolist() == list(range(-30, 31)) and counts.min() > 50
    assert drawn.angles.abs().max() <= 20 and drawn.angles.std() == pytest.approx(40 / math.sqrt(12), rel=0.05)


# ----------------------------------------------------------------------------------------------- one image, one seed


def parameters(drawn):
    values = [getattr(drawn, field.name) for field in fields(drawn)]
    return [value for value in values if isinstance(value, torch.Tensor)]


def test_the_parameters_and_pixels_of_an_image_depend_on_its_seed_alone():
    images, seeds = noise(count=6), [5, 100, 2**31 - 1, 1234567, 5, 77]
    drawn = draw(EVERYTHING, seeds)
    assert (drawn.sigma > 0).all() and drawn.sigma.max() > 2 * drawn.sigma.min()
    together = apply(drawn, images, SIZE)
    order = [4, 2, 0, 5]
    again = draw(EVERYTHING, [seeds[place] for place in order])
    assert all(torch.equal(one[order], other) for one, other in zip(parameters(drawn), parameters(again), strict=True))
    assert torch.allclose(apply(again, images[order], SIZE), together[order], atol=1e-3)
    for place, seed in enumerate(seeds):
        alone = apply(draw(EVERYTHING, [seed]), images[place : place + 1], SIZE)
        assert torch.allclose(alone[0], together[place], atol=1e-3)
    assert all(torch.equal(each[0], each[4]) for each in parameters(drawn))  # one seed
    assert not torch.equal(drawn.boxes[0], drawn.boxes[1])


def test_torchs_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before, drawn = torch.get_rng_state(), parameters(draw(EVERYTHING, [3]))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(one, other) for one, other in zip(drawn, parameters(draw(EVERYTHING, [3])), strict=True))


def test_an_image_is_warped_by_its_seed_alone():
    images, seeds = noise(count=14, channels=3), list(range(14))
    together = apply(draw(TRIVIAL, seeds), images, 40)
    for place, seed in enumerate(seeds):
        alone = apply(draw(TRIVIAL, [seed]), images[place : place + 1], 40)
        assert torch.equal(alone[0], together[place])


def test_views_of_an_image_stand_together_and_the_first_ones_do_not_depend_on_their_number():
    one, three = draw(EVERYTHING, [7, 8]), draw(EVERYTHING, [7, 8], views=3)
    assert three.boxes.shape == (6, 4)
    assert len({tuple(box) for box in three.boxes.tolist()}) == 6
    assert torch.equal(three.boxes[::3], one.boxes) and torch.equal(three.sigma[::3], one.sigma)


# ------------------------------------------------------------------------------------------------------- distributions


@pytest.fixture(scope="module")
def many():
    """What is drawn for 4,000 seeds."""
    return draw(SCENE_VIEWS, range(4000))


def test_boxes_are_distributed_as_torchvisions_on_square_images(many):
    left, top, width, height = many.boxes.unbind(dim=1)
    assert (many.boxes >= 0).all() and (left + width <= 1 + 1e-6).all() and (top + height <= 1 + 1e-6).all()
    assert (width * height).min() > 0.2 - 1e-6 and (width * height).max() < 1 + 1e-6
    assert (width / height).min() > 3 / 4 - 1e-6 and (width / height).max() < 4 / 3 + 1e-6
    torch.manual_seed(0)
    pixels, image = 1000, torch.zeros(1, 1000, 1000)
    transform = v2.RandomResizedCrop(8, scale=(0.2, 1.0))
    found = [transform.make_params([image]) for _ in range(4000)]
    theirs = torch.tensor([[each[name] for name in ("left", "top", "width", "height")] for each in found]) / pixels
    shapes = [
        torch.stack([boxes[:, 2] * boxes[:, 3], boxes[:, 2].log() - boxes[:, 3].log()], dim=1)
        for boxes in (
            many.boxes,
            theirs,
        )
    ]
    for one, other in ((many.boxes, theirs), shapes):
        error = (one.var(dim=0) + other.var(dim=0)).div(4000).sqrt()
        assert ((one.mean(dim=0) - other.mean(dim=0)).abs() < 4 * error).all()
        assert torch.allclose(one.std(dim=0), other.std(dim=0), rtol=0.06)
        assert torch.allclose(
            one.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0),
            other.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0),
            atol=0.03,
        )


def test_a_box_that_never_fits_is_the_whole_image():
    boxes = draw(Augmentation(crop_scale=(0.9999, 1.0)), range(50)).boxes
    assert boxes.tolist() == [[0, 0, 1, 1]] * 50


def shares(drawn):
    """How many of the images were flipped, changed in brightness and contrast, and blurred."""
    changed = (drawn.brightness != 1) & (drawn.contrast != 1)
    assert torch.equal(changed, (drawn.brightness != 1) | (drawn.contrast != 1))  # both or none
    return [each.double().mean().item() for each in (drawn.flipped, changed, drawn.sigma > 0)]


def test_operations_are_as_frequent_as_asked_and_independent(many):
    assert shares(many) == pytest.approx([0.5, 0.8, 0.5], abs=0.03)
    happened = torch.stack([many.flipped, many.brightness != 1, many.sigma > 0]).double()
    assert (torch.corrcoef(happened) - torch.eye(3)).abs().max() < 0.06
    assert shares(draw(Augmentation(flip=1, jitter=1, brightness=0.4, contrast=0.4, blur=1), range(99))) == [1, 1, 1]
    never = draw(Augmentation(flip=0, brightness=0.4, contrast=0.4), range(99))
    assert not never.flipped.any() and never.brightness is never.contrast is never.sigma is None


def test_strengths_are_uniform_between_their_ends(many):
    for factors, low, high in ((many.brightness, 0.6, 1.4), (many.contrast, 0.6, 1.4), (many.sigma, 0.1, 2.0)):
        drawn = factors[(factors != 1) & (factors != 0)]
        assert low <= drawn.min() < low + 0.01 and high - 0.01 < drawn.max() <= high
        assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.05)
        assert drawn.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.05)
    assert torch.corrcoef(torch.stack([many.brightness, many.contrast]))[0, 1].abs() < 0.06


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_named_augmentation_draws_from_its_ranges(name):
    smallest, flipped, angle, padding, jittered, blurred = DRAWN[name]
    drawn = draw(AUGMENTATIONS[name], [0], views=4000)
    areas = drawn.boxes[:, 2] * drawn.boxes[:, 3]
    assert areas.min() == pytest.approx(smallest, abs=0.005) and areas.max() == pytest.approx(1, abs=0.02)
    angles, brightness, contrast, sigma = (
        torch.full((4000,), value) if given is None else given
        for given, value in ((drawn.angles, 0.0), (drawn.brightness, 1.0), (drawn.contrast, 1.0), (drawn.sigma, 0.0))
    )
    assert [-angles.min(), angles.max()] == pytest.approx([angle, angle], abs=0.1)
    shares = [each.double().mean().item() for each in (drawn.flipped, brightness != 1, contrast != 1, sigma > 0)]
    assert shares == pytest.approx([flipped, jittered, jittered, blurred], abs=0.03)
    assert drawn.padding == padding and (drawn.shifts is not None) == (padding > 0)
    assert (drawn.operations is not None) == (name == "trivial")


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_gives_gray_and_color_views_of_bytes_that_differ(name):
    for channels in (1, 3):
        images = noise(count=8, channels=channels)
        views = apply(draw(AUGMENTATIONS[name], range(8), views=2), images.repeat_interleave(2, dim=0), SIZE)
        assert views.shape == (16, channels, SIZE, SIZE) and views.dtype == torch.float32
        assert views.min() >= 0 and views.max() <= 255
        assert (views[::2] - views[1::2]).abs().amax(dim=(1, 2, 3)).min() > 5


def test_a_gray_image_and_its_copy_of_three_channels_are_augmented_alike():
    gray, drawn = noise(channels=1), draw(EVERYTHING, range(4))
    color = apply(drawn, gray.repeat(1, 3, 1, 1), SIZE)
    # the weights of red, green and blue are rounded and add up to 0.9999
    assert torch.allclose(color, apply(drawn, gray, SIZE).expand(-1, 3, -1, -1), atol=0.02)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip", -0.1),
        ("flip", math.nan),
        ("jitter", 1.1),
        ("blur", 2),
        ("brightness", -1),
        ("contrast", 1.5),
        ("padding", 1.5),
        ("solarize", -1),
        ("rotation", 190),
        ("rotation", -3),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 0.2)),
        ("crop_scale", (0.5, 1.1)),
        ("blur_sigma", (0.0, 1.0)),
        ("blur_sigma", (2.0, 1.0)),
    ],
)
def test_an_augmentation_that_makes_no_sense_is_refused_by_the_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} is"):
        Augmentation(**{field: value})


@pytest.mark.parametrize("given", [{"padding": 0.1}, {"rotation": 5}, {"trivial": True}])
def test_what_needs_a_grid_is_refused_with_antialiasing(given):
    with pytest.raises(ValueError, match="^antialias"):
        Augmentation(**given)


@pytest.mark.parametrize(
    ("images", "seeds"),
    [
        (noise(count=2), [1]),
        (noise(count=2)[0], [1, 2, 3]),
        (noise(channels=2), range(4)),
        (noise(count=1), [1.5]),
        (noise(count=1), 1),
    ],
    ids=["one seed for two images", "no batch", "two channels", "a seed between two", "no list"],
)
def test_images_and_seeds_that_do_not_fit_are_refused(images, seeds):
    for augmentation in (ADVANCED, SCENE_VIEWS):
        with pytest.raises(ValueError, match="images|seeds"):
            augment(augmentation, images, seeds, SIZE)
