"""Logits of EfficientNet-B0 in eval mode on a CPU: the plain way against ours.

    python -m benchmarks.evaluation [--rounds 3]

Plain is torchvision's network and a batch in the default order, the default allocator, no gradients.  bfloat16 is
measured only where the CPU has instructions for it: elsewhere it is emulated, and twenty times slower.
"""

import sys
from functools import partial

import torch

from benchmarks import ways
from benchmarks.ways import Comparison, Measurement
from helper_functions import autocast, keep_freed_memory

BATCH_SIZE, BATCHES = 32, 4


@torch.inference_mode()
def measure(model: torch.nn.Module, images: torch.Tensor, precision: str = "float32") -> Measurement:
    """A batch through the model."""

    def step():
        with autocast(precision, images.device):
            return model(images).float()

    logits = step()  # the first one sets things up
    return Measurement(ways.seconds_of(step, BATCHES), len(images), logits.numpy())


def measure_plain() -> Measurement:
    """As a plain script does."""
    return measure(ways.plain_network(), ways.draw_images(BATCH_SIZE))


def measure_ours(precision: str) -> Measurement:
    """As `helper_functions.predict` does within a training."""
    keep_freed_memory()
    images = ways.draw_images(BATCH_SIZE).contiguous(memory_format=torch.channels_last)
    return measure(ways.our_network(ways.plain_network()), images, precision)


WAYS = {"plain": measure_plain, "ours": partial(measure_ours, "float32")}
if ways.has_bfloat16():
    WAYS["ours, bfloat16"] = partial(measure_ours, "bfloat16")
COMPARISONS = (Comparison("evaluation, 32 images", WAYS, peers=("plain",), reference="plain"),)

if __name__ == "__main__":
    sys.exit(ways.main("evaluation", __doc__, COMPARISONS))
