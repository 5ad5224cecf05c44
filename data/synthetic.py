"""Fifteen classes of synthetic gray scenes, made in seconds for tests and quick runs without a download.

The class names are those of 15-Scene (Lazebnik et al. 2006).  Framing, noise, mean and contrast are sampled alike for
all classes.  Shape identifies a class, brightness does not.
"""

from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.files import expanded

IMAGES_PER_CLASS = {"train": 24, "val": 8, "test": 10}
OVERSAMPLING = 2  # sketches are larger by this factor: scaling them down smooths the edges


class _Sketch:
    """Shapes on a square image: x to the right and y downwards in 0..1, gray 0 black to 1 white."""

    def __init__(self, generator, pixels):
        self.image = Image.new("L", (pixels, pixels))
        self.draw = ImageDraw.Draw(self.image)
        self.uniform, self.integers = generator.uniform, generator.integers

    def near(self, gray):
        return gray + self.uniform(-0.1, 0.1)

    def polygon(self, points, gray):
        self.draw.polygon((np.ravel(points) * self.image.width).tolist(), round(255 * gray))

    def box(self, lefts, tops, width, height, gray, frame=None):
        """A box at each pair of a left and a top edge; one box if both are numbers."""
        for left, top in product(np.ravel(lefts), np.ravel(tops)):
            corners = np.array([left, top, left + width, top + height]) * self.image.width
            outline = None if frame is None else round(255 * frame)
            self.draw.rectangle(corners.tolist(), round(255 * gray), outline, round(0.015 * self.image.width))

    def taper(self, x, top, top_half, bottom, bottom_half, gray):
        """A trapezoid centered on `x`, given the half widths of its upper and lower side."""
        self.polygon([x - top_half, top, x + top_half, top, x + bottom_half, bottom, x - bottom_half, bottom], gray)

    def ellipse(self, x, y, half_width, half_height, gray):
        corners = np.array([x - half_width, y - half_height, x + half_width, y + half_height]) * self.image.width
        self.draw.ellipse(corners.tolist(), round(255 * gray))

    def wave(self, y, amplitude, periods, thickness, gray):
        """A sine wave across the image, thickened downwards.  Returns its points, shape (40, 2)."""
        x = np.linspace(-0.05, 1.05, 40)
        wave = np.stack([x, y + amplitude * np.sin(2 * np.pi * (periods * x + self.uniform()))], axis=1)
        self.polygon([*wave, *wave[::-1] + (0, thickness)], gray)
        return wave

    def sky(self, lowest, highest, ground):
        """A cloudy sky above the ground.  Returns the height of the horizon."""
        horizon = self.uniform(lowest, highest)
        self.box(0, 0, 1, 1, self.near(0.8))
        for x in self.uniform(0, 1, size=self.integers(1, 4)):
            self.ellipse(x, self.uniform(0.1, 0.6) * horizon, self.uniform(0.1, 0.2), 0.03, 1.0)
        self.box(0, horizon, 1, 1, self.near(ground))
        return horizon

    def room(self):
        """Walls, ceiling and floor seen head on.  Returns the height where the far wall meets the floor."""
        floor, half = self.uniform(0.6, 0.68), self.uniform(0.36, 0.44)
        self.box(0, 0, 1, 1, self.near(0.55))
        self.taper(0.5, 0, 0.6, 0.1, half, 0.95)
        self.taper(0.5, floor, half, 1, 0.75, self.near(0.4))
        self.box(0.5 - half, 0.1, 2 * half, floor - 0.1, self.near(0.75))
        return floor

    def tree(self, x, ground, height):
        self.taper(x, ground - 0.6 * height, 0.03 * height, ground, 0.05 * height, 0.1)
        for side, up in ((-0.2, 0.55), (0.2, 0.6), (0, 0.8)):
            self.ellipse(x + side * height, ground - up * height, 0.25 * height, 0.25 * height, self.near(0.25))


class _Scenes(_Sketch):
    """One method for each class, under its name."""

    def bedroom(self):
        floor, x, half, foot = self.room(), self.uniform(0.4, 0.6), self.uniform(0.18, 0.25), self.uniform(0.3, 0.4)
        self.box(x - half, floor - 0.24, 2 * half, 0.24, self.near(0.15))
        self.taper(x, floor - 0.05, half, 0.92, foot, 1.0)
        self.taper(x, floor + 0.07, 0.6 * half + 0.4 * foot, 0.92, foot, self.near(0.45))
        for side in (-1, 1):
            self.ellipse(x + side * half / 2, floor - 0.05, 0.45 * half, 0.05, 1.0)
            self.box(x + side * (half + 0.12) - 0.06, floor - 0.08, 0.12, 0.16, 0.2)
            self.taper(x + side * (half + 0.12), floor - 0.2, 0.03, floor - 0.08, 0.07, 1.0)

    def coast(self):
        horizon = self.sky(0.3, 0.5, 0.4)
        self.ellipse(self.uniform(0.2, 0.8), horizon - 0.12, 0.08, 0.08, 1.0)
        for y in np.linspace(horizon + 0.07, 0.95, self.integers(4, 7)):
            self.wave(y, 0.015, self.uniform(2, 4), 0.02, self.near(0.9))
        self.polygon([(0, self.uniform(0.65, 0.8)), (self.uniform(0.6, 1.1), 1), (0, 1)], self.near(0.9))

    def forest(self):
        self.sky(0.75, 0.85, 0.4)
        for x in np.linspace(0, 1, self.integers(7, 11)) + self.uniform(-0.04, 0.04):
            self.taper(x, 0, self.uniform(0.01, 0.025), self.uniform(0.8, 0.95), 0.035, self.near(0.15))
            self.ellipse(x, self.uniform(0, 0.2), 0.1, 0.1, self.near(0.35))

    def highway(self):
        horizon, x, road = self.sky(0.35, 0.5, 0.65), self.uniform(0.4, 0.6), self.near(0.25)
        self.taper(x, horizon, 0.02, 1, 0.7, road)
        self.taper(x, horizon, 0, 1, 0.03, 1.0)
        self.box(x - 0.05, horizon + np.array([0.05, 0.14, 0.3]), 0.1, 0.06, road)
        self.box(0.14, horizon - 0.15, 0.025, 0.35, 0.15)
        self.box(0.03, horizon - 0.25, 0.24, 0.14, 0.3, frame=1.0)

    def industrial(self):
        ground, roof, left = self.sky(0.8, 0.9, 0.5), self.uniform(0.6, 0.68), self.uniform(-0.15, 0.15)
        for x in np.linspace(left + 0.2, 0.85, self.integers(2, 4)):
            for puff in range(6):
                self.ellipse(x + 0.04 * puff, 0.33 - 0.05 * puff, 0.04 + 0.01 * puff, 0.06, self.near(0.5))
            self.taper(x, 0.33, 0.03, ground, 0.05, self.near(0.15))
        for x in np.arange(left, 1, 0.2):
            self.polygon([(x, ground), (x, roof - 0.12), (x + 0.2, roof), (x + 0.2, ground)], self.near(0.3))
        self.box(np.arange(left + 0.03, 1, 0.1), roof + 0.06, 0.05, 0.06, 1.0)

    def insidecity(self):
        floor, lefts = self.uniform(0.5, 0.58), np.arange(self.uniform(-0.15, 0.05), 1, self.uniform(0.28, 0.36))
        self.box(0, 0, 1, 1, self.near(0.55))
        for x in lefts + 0.11:
            self.ellipse(x, 0.16, 0.11, 0.11, 1.0)
            self.ellipse(x, 0.16, 0.09, 0.09, 0.1)
        self.box(lefts, 0.16, 0.22, floor - 0.24, 0.1, frame=1.0)
        self.box(0, floor, 1, 0.92 - floor, 0.15)
        self.box(lefts[1], floor + 0.1, 0.16, 0.82 - floor, self.near(0.6), frame=1.0)
        self.box(np.arange(lefts[0], 1, 0.16), floor, 0.08, 0.14, 1.0)

    def kitchen(self):
        number, front, top, worktop = self.integers(4, 6), self.near(0.7), self.uniform(0.28, 0.36), 0.56
        lefts, width = np.linspace(0, 1, number, endpoint=False), 1 / number
        oven = lefts[self.integers(1, number - 1)]
        self.box(0, 0, 1, 1, 0.9)
        for upper, lower in ((0, top), (worktop, 0.74), (0.74, 0.9)):
            self.box(lefts, upper, width, lower - upper, front, frame=0.1)
            self.box(lefts + 0.3 * width, lower - 0.06, 0.4 * width, 0.02, 0.1)
        self.box(oven, worktop, width, 0.34, 0.1, frame=1.0)

    def livingroom(self):
        floor, x, half, sofa = self.room(), self.uniform(0.4, 0.5), self.uniform(0.24, 0.3), self.near(0.3)
        self.box(x - 0.14, 0.16, 0.28, 0.2, 1.0, frame=0.1)
        self.taper(x + half + 0.12, floor - 0.42, 0.04, floor - 0.26, 0.09, 1.0)
        self.box(x + half + 0.11, floor - 0.26, 0.02, 0.36, 0.1)
        self.ellipse(x, 0.88, 0.4, 0.09, self.near(0.85))
        self.box([x - half, x], floor - 0.16, half, 0.26, sofa, frame=0.05)
        self.box([x - half - 0.05, x + half - 0.05], floor - 0.07, 0.1, 0.2, sofa + 0.1)

    def mountain(self):
        ground = self.sky(0.75, 0.85, 0.2)
        for x in np.linspace(0.1, 0.9, self.integers(3, 6)) + self.uniform(-0.08, 0.08):
            peak, half, rock = self.uniform(0.15, 0.4), self.uniform(0.25, 0.35), self.near(0.5)
            self.taper(x, peak, 0, ground, half, rock)
            self.polygon([(x, peak), (x + 0.2 * half, ground), (x + half, ground)], rock - 0.25)
            self.taper(x, peak, 0, 0.7 * peak + 0.3 * ground, 0.3 * half, 1.0)

    def office(self):
        floor = self.room()
        self.box(0.25, np.arange(0.16, 0.34, 0.04), 0.5, 0.02, 0.3)
        for desk, scale, screens in ((floor, 0.6, 4), (0.86, 1.0, self.integers(2, 4))):
            lefts = np.linspace(0.2, 0.8, screens) - 0.12 * scale + self.uniform(-0.05, 0.05)
            self.box(lefts + 0.1 * scale, desk - 0.08 * scale, 0.04 * scale, 0.08 * scale, 0.1)
            self.box(lefts, desk - 0.24 * scale, 0.24 * scale, 0.18 * scale, 0.8, frame=0.05)
            self.box(0.05, desk, 0.9, 0.04 * scale, 1.0)

    def opencountry(self):
        self.sky(0.35, 0.45, 0.6)
        for number, y in enumerate(np.linspace(0.45, 0.8, self.integers(3, 5))):
            hill = self.wave(y, 0.04, self.uniform(0.6, 1.2), 1, self.near((0.45, 0.75)[number % 2]))
            self.tree(*hill[self.integers(3, 37)], 0.12 + 0.06 * number)

    def store(self):
        self.box(0, 0, 1, 1, self.near(0.35))
        height = 0.92 / self.integers(4, 6)
        for shelf in np.arange(height, 1, height):
            for left in np.arange(self.uniform(-0.2, 0.0), 1, 0.21):
                goods = self.uniform(0.5, 0.8) * height
                self.box(left + np.array([0, 0.07, 0.14]), shelf - goods, 0.05, goods, self.uniform(0, 1))
            self.box(0, shelf, 1, 0.025, 1.0)

    def street(self):
        horizon, far = self.sky(0.5, 0.58, 0.7), self.uniform(0.42, 0.58)
        self.taper(far, horizon, 0.01, 1, self.uniform(0.35, 0.5), self.near(0.25))
        for edge in (-0.05, 1.05):
            self.polygon([(edge, -0.3), (edge, 0.95), (far, horizon)], 0.35)
            for y in np.arange(-0.2, 0.8, 0.22):
                self.polygon([(edge, y), (edge, y + 0.14), (far, horizon)], 1.0)
            for depth in (0.05, 0.3, 0.5, 0.65, 0.77, 0.86):
                x, top, bottom = np.array([edge, -0.3, 0.95]) * (1 - depth) + np.array([far, horizon, horizon]) * depth
                self.box(x - 0.015, top, 0.03, bottom - top, 0.35)

    def suburb(self):
        ground, x, half = self.sky(0.68, 0.75, 0.5), self.uniform(0.4, 0.6), self.uniform(0.22, 0.28)
        self.tree(x + half + 0.2, ground + 0.03, self.uniform(0.45, 0.6))
        self.box(x - half, ground - 0.27, 2 * half, 0.32, self.near(0.9))
        self.taper(x, ground - self.uniform(0.5, 0.57), 0.02, ground - 0.27, half + 0.06, self.near(0.2))
        self.box([x - half + 0.04, x + half - 0.14], ground - 0.2, 0.1, 0.11, 0.2, frame=0.5)
        self.box(np.arange(0, 1, 0.06), ground - 0.02, 0.03, 0.1, 1.0)
        self.box(x - 0.05, ground - 0.12, 0.1, 0.17, 0.15)

    def tallbuilding(self):
        self.sky(0.92, 0.96, 0.4)
        for x in np.linspace(0.18, 0.82, 3) + self.uniform(-0.05, 0.05):
            half, top, wall = self.uniform(0.1, 0.15), self.uniform(0.05, 0.35), self.uniform(0, 1)
            self.box(x - half, top, 2 * half, 0.95 - top, wall)
            lefts = np.linspace(x - half, x + half, self.integers(4, 6), endpoint=False) + 0.015
            self.box(lefts, np.arange(top + 0.03, 0.92, 0.07), 0.03, 0.04, (wall + 0.5) % 1)


CLASS_NAMES: tuple[str, ...] = tuple(name for name in vars(_Scenes) if not name.startswith("_"))


def draw_scene(class_name: str, generator: np.random.Generator, size: int = 128) -> np.ndarray:
    """Draw one image of a class, another one at each call: uint8, shape (size, size), 0 black to 255 white.

    All randomness comes from `generator`.  Raises ValueError if the class is not one of CLASS_NAMES.
    """
    if class_name not in CLASS_NAMES:
        raise ValueError(f"unknown scene class {class_name!r}; known are {', '.join(CLASS_NAMES)}")
    scene = _Scenes(generator, OVERSAMPLING * size)
    getattr(scene, class_name)()
    side = generator.uniform(0.88, 1.0) * scene.image.width
    left, top = generator.uniform(0, scene.image.width - side, size=2)
    framed = scene.image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    values = np.asarray(framed, dtype=np.float64)[:, :: generator.choice([-1, 1])]
    values = (values - values.mean()) / values.std()  # or mean and spread of gray would identify the class
    values = values + generator.normal(0, generator.uniform(0, 0.15), size=values.shape)
    contrast = generator.choice([-1, 1], p=[0.06, 0.94]) * generator.uniform(46, 57)  # negative at night
    return np.clip(generator.uniform(112, 142) + contrast * values, 0, 255).round().astype(np.uint8)


def write_scenes(
    folder: str | Path, images_per_class: dict[str, int] = IMAGES_PER_CLASS, size: int = 128, seed: int = 0
) -> Path:
    """Write synthetic scenes as `<folder>/<split>/<class>/image_NNNN.png` and return the folder.

    images_per_class: split name -> images of each class in that split.  size: pixels, square.  seed: 0 or more.
    The seed of an image is made of (seed, split, class, number): the same arguments give the same bytes, and a larger
    data set contains the smaller one.  Raises FileExistsError if the folder of a class is there already.
    """
    for split, (label, class_name) in product(images_per_class, enumerate(CLASS_NAMES)):
        target = expanded(folder) / split / class_name
        target.mkdir(parents=True)
        for number in range(images_per_class[split]):
            generator = np.random.default_rng([seed, label, number, int.from_bytes(split.encode(), "big")])
            Image.fromarray(draw_scene(class_name, generator, size)).save(target / f"image_{number:04d}.png")
    return expanded(folder)
