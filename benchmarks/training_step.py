"""A training step of EfficientNet-B0 on a CPU: the plain way against ours.

    python -m benchmarks.training_step [--rounds 3]

Plain is what a plain script does: torchvision's network and a batch in the default order, the default allocator, Adam
as it comes.  Results that are compared are the losses of the first steps.
"""

import sys
from functools import partial

import numpy as np
import torch
from torch import nn
from torchvision.models import efficientnet_b0

from benchmarks import ways
from benchmarks.ways import Comparison, Measurement
from helper_functions import TrainSettings, build_optimizer, keep_freed_memory

BATCH_SIZE, STEPS = 32, 3


def measure(kept: bool = False, channels_last: bool = False, fused: bool = False) -> Measurement:
    """A step with the allocator's memory kept or not, channels-last or not, with fused Adam or not."""
    if kept:
        keep_freed_memory()
    torch.manual_seed(0)
    order = torch.channels_last if channels_last else torch.contiguous_format
    model = efficientnet_b0(num_classes=ways.NUM_CLASSES).to(memory_format=order)
    images = torch.randn(BATCH_SIZE, 3, 224, 224).contiguous(memory_format=order)
    labels = torch.randint(ways.NUM_CLASSES, (BATCH_SIZE,))
    optimizer = build_optimizer(model, TrainSettings()) if fused else torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []

    def step():
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    step()  # the first one sets things up
    seconds = ways.seconds_of(step, STEPS)
    return Measurement(seconds, BATCH_SIZE, np.array(losses))


WAYS = {
    "plain": measure,
    "allocator kept": partial(measure, kept=True),
    "channels-last": partial(measure, channels_last=True),
    "ours": partial(measure, kept=True, channels_last=True, fused=True),
}
COMPARISONS = (Comparison("training step, 32 images", WAYS, peers=("plain",), reference="plain"),)

if __name__ == "__main__":
    sys.exit(ways.main("training_step", __doc__, COMPARISONS))
