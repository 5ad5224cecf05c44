"""Features whose classes are clouds of points, for the tests of what is fitted to frozen features."""

import numpy as np


def clouds(images, classes=3, channels=8, distance=6.0, seed=0):
    """Features (images, channels) and labels; class centers lie `distance` standard deviations from the origin."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    return (generator.standard_normal((images, channels)) + distance * np.eye(channels)[labels]).astype("f4"), labels


def splits_of(images=(60, 30, 45), **options):
    """Clouds for "train", "val" and "test"."""
    return {
        split: clouds(count, seed=seed, **options)
        for seed, (split, count) in enumerate(zip(("train", "val", "test"), images, strict=True))
    }


def spoiled(splits, split, features=None, labels=None):
    """The splits, with other features or labels in one of them."""
    old_features, old_labels = splits[split]
    return {**splits, split: (old_features if features is None else features, old_labels if labels is None else labels)}
