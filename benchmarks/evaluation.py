"""Logits of EfficientNet-B0 in eval mode on a CPU: the plain implementation against ours.

    python -m benchmarks.evaluation [--rounds 3]

Plain is torchvision's network and a batch in the default order, the default allocator, no gradients.  bfloat16 is
measured only where the CPU has instructions for it: elsewhere it is emulated, and twenty times slower.  Compiling is
not counted but told, in seconds_to_compile: it pays from some thousands of images.
"""

import sys
import time
from functools import partial

import torch

from benchmarks import implementations
from benchmarks.implementations import Comparison, Measurement
from loop.devices import autocast, keep_freed_memory

BATCH_SIZE, BATCHES = 32, 4


@torch.inference_mode()
def measure(
    model: torch.nn.Module, images: torch.Tensor, precision: str = "float32", compiled: bool = False
) -> Measurement:
    """A batch through the model."""

    def step():
        with autocast(precision, images.device):
            return model(images).float()

    started = time.perf_counter()
    logits = step()  # the first one sets things up
    facts = {"seconds_to_compile": round(time.perf_counter() - started)} if compiled else {}
    return Measurement(implementations.seconds_of(step, BATCHES), len(images), logits.numpy(), facts)


def measure_plain() -> Measurement:
    """As a plain script does."""
    return measure(implementations.plain_network(), implementations.draw_images(BATCH_SIZE))


def measure_ours(precision: str, compiled: bool = False) -> Measurement:
    """As `helper_functions.predict` does within a training; or compiled besides, its weights taken for constants."""
    keep_freed_memory()
    images = implementations.draw_images(BATCH_SIZE).contiguous(memory_format=torch.channels_last)
    network = implementations.our_network(implementations.plain_network())
    if not compiled:
        return measure(network, images, precision)
    dtype = getattr(torch, precision)  # of the whole network: autocast would convert the weights again in each pass
    return measure(implementations.compiled(network.to(dtype)), images.to(dtype), compiled=True)


IMPLEMENTATIONS = {"plain": measure_plain} | {
    name: partial(measure_ours, precision, compiled)
    for precision in implementations.precisions()
    for name, compiled in (
        (implementations.ours(precision), False),
        (f"{implementations.ours(precision)}, compiled", True),
    )
}
COMPARISONS = (Comparison("evaluation, 32 images", IMPLEMENTATIONS, peers=("plain",), reference="plain"),)

if __name__ == "__main__":
    sys.exit(implementations.main("evaluation", __doc__, COMPARISONS))
