"""Where the time goes in a training step and in a pass for logits: seconds by kind of operation, plain and ours.

    python -m benchmarks.profile

The other tables cannot tell which part of a step became faster, and what is left.  All of it is one process, so compare
shares, not seconds.  The table is written to benchmarks/profile.csv.
"""

import sys
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torchvision.models import efficientnet_b0

from benchmarks import implementations
from helper_functions import TrainSettings, build_optimizer
from loop.devices import autocast, keep_freed_memory
from supervised.models import SceneClassifier

BATCH_SIZE, STEPS = 32, 3
KINDS = {  # the beginning of an operation's name: what it is called here
    "aten::mkldnn_convolution": "convolutions",
    "aten::convolution_backward": "convolutions, backward",
    "aten::native_batch_norm_backward": "BatchNorm, backward",
    "aten::native_batch_norm": "BatchNorm",
    "aten::silu_backward": "SiLU, backward",
    "aten::silu": "SiLU",
    "aten::copy_": "copies and conversions",
    "aten::_fused_adam": "Adam",
}


def seconds_by_kind(step: Callable[[], object]) -> dict[str, float]:
    """Seconds of one step by kind of operation, after a first one that sets things up."""
    step()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profile:
        for _ in range(STEPS):
            step()
    found = {}
    for event in profile.key_averages():
        kind = next((kind for name, kind in KINDS.items() if event.key.startswith(name)), "all else")
        found[kind] = found.get(kind, 0) + event.self_cpu_time_total / 1e6 / STEPS
    return found


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, images, precision: str) -> Callable[[], None]:
    """A function that takes one step."""
    labels = torch.arange(len(images)) % implementations.NUM_CLASSES

    def step():
        with autocast(precision, images.device):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def logits(model: nn.Module, images, precision: str) -> Callable[[], None]:
    """A function that takes one pass."""

    def step():
        with torch.inference_mode(), autocast(precision, images.device):
            model(images)

    return step


def main() -> int:
    """Measure and write the table."""
    images = implementations.draw_images(BATCH_SIZE)
    plain = efficientnet_b0(num_classes=implementations.NUM_CLASSES)
    steps = {
        ("training step", "plain"): training_step(plain, torch.optim.Adam(plain.parameters()), images, "float32"),
        ("pass for logits", "plain"): logits(implementations.plain_network(), images, "float32"),
    }
    found = {key: seconds_by_kind(step) for key, step in steps.items()}
    keep_freed_memory()
    images = images.contiguous(memory_format=torch.channels_last)
    for precision in implementations.precisions():
        model = SceneClassifier(implementations.NUM_CLASSES)
        optimizer = build_optimizer(model, TrainSettings())
        network = implementations.our_network(implementations.plain_network())
        found["training step", implementations.ours(precision)] = seconds_by_kind(
            training_step(model, optimizer, images, precision)
        )
        found["pass for logits", implementations.ours(precision)] = seconds_by_kind(logits(network, images, precision))
    rows = [
        {"what": what, "implementation": implementation, "operations": kind, "seconds": round(seconds, 5)}
        for (what, implementation), kinds in found.items()
        for kind, seconds in sorted(kinds.items(), key=lambda each: -each[1])
    ]
    table = pd.DataFrame(rows).assign(machine=implementations.machine())
    table.to_csv(implementations.FOLDER / "profile.csv", index=False)
    print(table.drop(columns="machine").to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
