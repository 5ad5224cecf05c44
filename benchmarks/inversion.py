"""Model inversion of five classes: ours, in one batch, against a common public recipe, one image after another.

    python -m benchmarks.inversion [--rounds 2]

The recipe is that of U. Ozbulak, pytorch-cnn-visualizations (2017, the regularized class images), written again as a
baseline: bytes between steps, PIL's blur, a new optimizer in each step, gradients of the model computed and clipped.
Both take the same number of steps.  Seconds are per image.  Where WEIGHTS names trained features, `objective` is the
logit of the class in the final image, averaged over the five, and `lowest_objective` the lowest of them, both from
torchvision's network: they show that ours is not faster by doing less.  For a random network they mean nothing: its
logits explode on images unlike those that its BatchNorm was estimated on.
"""

import os
import sys

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn
from torchvision.transforms import functional

from benchmarks import implementations
from benchmarks.implementations import Comparison, Measurement
from evaluation.model_inversion import InversionSettings, class_logit, invert
from loop.devices import keep_freed_memory
from supervised.dataloader import MEAN, STD

STEPS = 20
CLASSES = (0, 1, 2, 3, 4)
NORMALIZATION = (MEAN["imagenet"], STD["imagenet"])


def plain_picture(model: nn.Module, target_class: int, steps: int, size: int = 224) -> np.ndarray:
    """An image, uint8 (size, size, 3), that maximizes the class's logit, by the public recipe and its settings."""
    pixels = np.random.default_rng(target_class).integers(0, 256, (size, size, 3), dtype=np.uint8)
    for step in range(steps):
        picture = Image.fromarray(pixels)
        if step % 4 == 0:
            picture = picture.filter(ImageFilter.GaussianBlur(1))
        images = functional.normalize(functional.to_tensor(picture), *NORMALIZATION)[None].requires_grad_()
        optimizer = torch.optim.SGD([images], lr=6, weight_decay=1e-4)
        loss = -model(images)[0, target_class]
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATION)
        changed = (images.detach()[0] * std + mean).clamp(0, 1)
        pixels = (255 * changed).round().byte().permute(1, 2, 0).numpy()
    return pixels


def logits_of_classes(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The objective (N,): the model's logit of each image's class, for images (N, 3, S, S) in 0..1."""
    with torch.no_grad():
        return class_logit(model, functional.normalize(images, *NORMALIZATION), torch.tensor(CLASSES))


def measure_plain() -> Measurement:
    """One image after another."""
    model = implementations.plain_network()
    plain_picture(model, CLASSES[0], 1)  # warm-up
    pictures = []
    seconds = implementations.seconds_of(
        lambda: pictures.extend(plain_picture(model, each, STEPS) for each in CLASSES), 1
    )
    images = torch.stack([functional.to_tensor(picture) for picture in pictures])
    return _measurement(seconds, logits_of_classes(model, images))


def measure_ours() -> Measurement:
    """All in one batch, as `evaluation.explain` does."""
    keep_freed_memory()
    plain = implementations.plain_network()
    model, settings, found = implementations.our_network(plain), InversionSettings(steps=STEPS), []
    class_logit(model, implementations.draw_images(len(CLASSES)), torch.tensor(CLASSES))  # warm-up
    seconds = implementations.seconds_of(
        lambda: found.append(invert(model, class_logit, CLASSES, settings, *NORMALIZATION, progress=False)), 1
    )
    return _measurement(seconds, logits_of_classes(plain, found[0].images))


def _measurement(seconds: float, logits: torch.Tensor) -> Measurement:
    """Seconds and objectives per image."""
    if not os.environ.get("WEIGHTS"):  # the Makefile exports an empty value
        return Measurement(seconds / len(CLASSES), 1)
    facts = {"objective": round(logits.mean().item(), 3), "lowest_objective": round(logits.min().item(), 3)}
    return Measurement(seconds / len(CLASSES), 1, facts=facts)


PLAIN = "plain, one at a time"
IMPLEMENTATIONS = {PLAIN: measure_plain, "ours, one batch": measure_ours}
COMPARISONS = (Comparison(f"model inversion, {STEPS} steps", IMPLEMENTATIONS, peers=(PLAIN,)),)

if __name__ == "__main__":
    sys.exit(implementations.main("inversion", __doc__, COMPARISONS, rounds=2))
