"""The softmax scores that a model gives every image of a split: computed, kept in a file, ranked."""

from pathlib import Path

import numpy as np
from torch import nn

from data.files import write_atomically
from evaluation.predict import class_probabilities


def class_scores(model: nn.Module, loader) -> np.ndarray:
    """The probability (N, classes) of each class for all images of a loader of (images, labels), in its order.

    float32, whatever precision the model was trained in: a checkpoint gives them again to 1e-5, which bfloat16 and
    float16 (1e-3) could not hold.
    """
    return np.concatenate([class_probabilities(model, images) for images, _ in loader]).astype(np.float32)


def save_scores(path: Path, scores: np.ndarray):
    """Write scores as .npy, whole or not at all; `np.load(path)` reads them."""
    write_atomically(path, lambda temporary: np.save(temporary, scores))


def ends_of_ranking(scores: np.ndarray, target_class: int, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images with the highest and of those with the lowest scores (N, classes) of a class.

    The highest come from the top down, the lowest from the bottom up; of equal ones the first in the split comes first.
    """
    of_class = scores[:, target_class]
    return np.argsort(-of_class, kind="stable")[:count], np.argsort(of_class, kind="stable")[:count]
