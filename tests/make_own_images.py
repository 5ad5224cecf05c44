"""Write a small folder of images as a user might have it: `python make_own_images.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("beach", "garden path", "Straße")
SPLITS = {"train": 12, "val": 5, "test": 8}


def make(folder: Path):
    """Three classes of color images of differing sizes, <split>/<class>/<image>."""
    generator = np.random.default_rng(0)
    for label, class_name in enumerate(CLASSES):
        for split, count in SPLITS.items():
            (folder / split / class_name).mkdir(parents=True)
            for number in range(count):
                height, width = generator.integers(40, 90, 2)
                image = generator.integers(0, 120, (height, width, 3))
                image[:: 4 * (label + 1), :, label] += 130
                Image.fromarray(image.astype(np.uint8)).save(folder / split / class_name / f"{number}.jpg")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
