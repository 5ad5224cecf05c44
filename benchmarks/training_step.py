"""Images a second of training and evaluating EfficientNet-B0 on a CPU: the plain way against ours.

    python -m benchmarks.training_step [--rounds 3]

Plain is what a plain script does: torchvision's network and a batch in the default order, the default allocator, Adam
as it comes.  Each way runs in a process of its own, since the allocator is the process's; the ways alternate, and the
median over the rounds counts.  The table is written to benchmarks/training_step.csv.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torchvision.models import efficientnet_b0
from tqdm import tqdm

from helper_functions import TrainSettings, autocast, build_optimizer, keep_freed_memory

CSV = Path(__file__).with_suffix(".csv")
WAYS = {  # name: (memory of the allocator kept, channels-last, fused Adam, precision of evaluation)
    "plain": (False, False, False, "float32"),
    "allocator kept": (True, False, False, "float32"),
    "channels-last": (False, True, False, "float32"),
    "ours": (True, True, True, "float32"),
    "ours, evaluation in bfloat16": (True, True, True, "bfloat16"),
}
BATCH_SIZE, STEPS = 32, 3


def measure(way: str) -> dict[str, float]:
    """Images a second of one way, in this process: training steps, then evaluation."""
    kept, channels_last, fused, precision = WAYS[way]
    if kept:
        keep_freed_memory()
    torch.manual_seed(0)
    model, order = efficientnet_b0(num_classes=15), torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=order)
    images = torch.randn(BATCH_SIZE, 3, 224, 224).contiguous(memory_format=order)
    labels = torch.randint(15, (BATCH_SIZE,))
    optimizer = build_optimizer(model, TrainSettings()) if fused else torch.optim.Adam(model.parameters(), lr=1e-3)

    def train_step():
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def evaluation_step():
        with torch.inference_mode(), autocast(precision, images.device):
            model(images)

    speeds = {}
    for name, step in (("training", train_step), ("evaluation", evaluation_step)):
        model.train(name == "training")
        step()  # the first one sets things up
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        speeds[name] = BATCH_SIZE * STEPS / (time.perf_counter() - started)
    return speeds


def main(arguments=None) -> int:
    """Measure all ways in turn and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process and print it as JSON")
    options = parser.parse_args(arguments)
    if options.way:
        print(json.dumps(measure(options.way)))
        return 0
    speeds = {way: {"training": [], "evaluation": []} for way in WAYS}
    for way in tqdm([way for _ in range(options.rounds) for way in WAYS], unit="process"):
        command = [sys.executable, "-m", "benchmarks.training_step", "--way", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        for name, speed in json.loads(done.stdout).items():
            speeds[way][name].append(speed)
    rows = []
    for way, measured in speeds.items():
        row = {"way": way}
        for name, values in measured.items():
            row[f"{name} images/s"] = round(statistics.median(values), 1)
            row[f"{name} spread"] = f"{min(values):.1f} to {max(values):.1f}"
            row[f"{name} ratio"] = round(statistics.median(values) / statistics.median(speeds["plain"][name]), 2)
        rows.append(row)
    machine = f"{os.cpu_count()} cores, {platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    table = pd.DataFrame(rows).assign(machine=f"{machine}, torch {torch.__version__}")
    table.to_csv(CSV, index=False)
    print(table.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
