"""Training, Score-CAM and model inversion again and again: does the process grow?

    python -m benchmarks.soak [--minutes 30]

After each round the memory that the process holds and its open files are written down, into benchmarks/soak.csv and
soak.png.  Rounds are small, so that there are many.  Linux.
"""

import argparse
import os
import resource
import sys
import time

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from benchmarks import implementations
from evaluation.model_inversion import InversionSettings, class_logit, invert
from evaluation.scorecam import score_cam
from helper_functions import TrainSettings, train
from supervised.models import SceneClassifier

PIXELS, IMAGES = 32, 32


def one_round():
    """An epoch of training, a map of one image, a picture of one class."""
    torch.manual_seed(0)
    model, images = SceneClassifier(3), implementations.draw_images(IMAGES, size=PIXELS)
    loader = DataLoader(TensorDataset(images, torch.arange(IMAGES) % 3), 16)
    train(model, loader, loader, TrainSettings(max_epochs=1), progress=False)
    score_cam(model, images[:1], model.features[1], [0])
    settings = InversionSettings(image_size=PIXELS, steps=20, jitter=2)
    invert(model, class_logit, [0], settings, (0.5,) * 3, (0.25,) * 3, progress=False)


def memory_mib() -> float:
    """What the process holds in memory now."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def draw(table: pd.DataFrame):
    """Memory and open files against time, each from 0 with room above the highest."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 4), sharex=True, layout="constrained")
    for ax, column, label in zip(axes, ("memory_mib", "open_files"), ("memory (MiB)", "open files"), strict=True):
        ax.plot(table["minutes"], table[column])
        ax.set_ylabel(label)
        ax.set_ylim(0, 1.2 * table[column].max())
        ax.grid(alpha=0.3)
    axes[-1].set_xlabel("minutes")
    return figure


def main(arguments=None) -> int:
    """Repeat for so many minutes, write the table and the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes}; it must be above 0")
    started, rows = time.monotonic(), []
    with tqdm(desc="soak", unit="round") as bar:
        while (minutes := (time.monotonic() - started) / 60) < options.minutes:
            one_round()
            rows.append(
                {"minutes": minutes, "memory_mib": memory_mib(), "open_files": len(os.listdir("/proc/self/fd"))}
            )
            bar.update()
            bar.set_postfix_str(f"{rows[-1]['memory_mib']:.0f} MiB, {rows[-1]['open_files']} open files")
    table = pd.DataFrame(rows).rename_axis("round").round(2)
    table.to_csv(implementations.FOLDER / "soak.csv")
    draw(table).savefig(implementations.FOLDER / "soak.png", dpi=100)
    warm = table.iloc[len(table) // 10 :]  # the first rounds fill caches
    print(
        f"{len(table)} rounds: memory {warm['memory_mib'].iloc[0]:.0f} MiB after a tenth of them and "
        f"{warm['memory_mib'].iloc[-1]:.0f} MiB at the end, open files {warm['open_files'].iloc[0]} and "
        f"{warm['open_files'].iloc[-1]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
