"""A training step of EfficientNet-B0 on a CPU: the plain implementation against ours.

    python -m benchmarks.training_step [--rounds 2]

Plain is what a plain script does: torchvision's network and a batch in the default order, the default allocator, Adam
as it comes.  Results that are compared are the losses of the first steps.  bfloat16 is measured only where the CPU has
instructions for it; "as autocast does it" is without our depthwise convolutions (supervised.models.DepthwiseConv2d).
"""

import sys
from functools import partial

import numpy as np
import torch
from torch import nn
from torchvision.models import efficientnet_b0

from benchmarks import implementations
from benchmarks.implementations import Comparison, Measurement
from helper_functions import TrainSettings, build_optimizer
from loop.devices import autocast, keep_freed_memory
from supervised.models import DepthwiseConv2d

BATCH_SIZE, STEPS = 32, 3


def measure(
    kept: bool = False,
    channels_last: bool = False,
    fused: bool = False,
    precision: str = "float32",
    depthwise: type[nn.Conv2d] = nn.Conv2d,
) -> Measurement:
    """A step, with what an implementation changes; `depthwise` is the class of the convolutions channel by channel."""
    if kept:
        keep_freed_memory()
    torch.manual_seed(0)
    order = torch.channels_last if channels_last else torch.contiguous_format
    model = efficientnet_b0(num_classes=implementations.NUM_CLASSES).to(memory_format=order)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.__class__ = depthwise
    images = torch.randn(BATCH_SIZE, 3, 224, 224).contiguous(memory_format=order)
    labels = torch.randint(implementations.NUM_CLASSES, (BATCH_SIZE,))
    optimizer = build_optimizer(model, TrainSettings()) if fused else torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []

    def step():
        with autocast(precision, images.device):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    step()  # the first one sets things up
    seconds = implementations.seconds_of(step, STEPS)
    return Measurement(seconds, BATCH_SIZE, np.array(losses))


_OURS = partial(measure, kept=True, channels_last=True, fused=True)
IMPLEMENTATIONS = {
    "plain": measure,
    "allocator kept": partial(measure, kept=True),
    "channels-last": partial(measure, channels_last=True),
    "ours": _OURS,
}
if implementations.has_bfloat16():
    IMPLEMENTATIONS["bfloat16 as autocast does it"] = partial(_OURS, precision="bfloat16")
    IMPLEMENTATIONS["ours, bfloat16"] = partial(_OURS, precision="bfloat16", depthwise=DepthwiseConv2d)
COMPARISONS = (Comparison("training step, 32 images", IMPLEMENTATIONS, peers=("plain",), reference="plain"),)

if __name__ == "__main__":
    sys.exit(implementations.main("training_step", __doc__, COMPARISONS, rounds=2))
