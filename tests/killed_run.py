"""A small training in a process of its own, which can kill itself: `python killed_run.py FOLDER`, KILL_AT=passes.

Everything that makes resuming hard is in it: shuffling, augmentation, dropout, BatchNorm, Adam, a schedule, averages.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import SmallNetwork

from data import scenes
from helper_functions import TrainSettings
from runs import files_of, run_experiment
from supervised import dataloader
from supervised.settings import Experiment

KILL_AT = int(os.environ.get("KILL_AT", "0"))


class KilledNetwork(SmallNetwork):
    """A small network that ends its process without a word in its KILL_AT-th training pass."""

    passes = 0

    def forward(self, images):
        self.passes += self.training
        if self.training and self.passes == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


@dataclass(frozen=True)
class SmallExperiment(Experiment):
    """A row for images smaller than EfficientNet-B0 takes."""

    def __post_init__(self):
        pass


def main(folder: Path):
    """Train to the end, or go on where the last process was killed."""
    scenes.STORES = folder / "stores"
    row = SmallExperiment(
        "row",
        "Does it end the same?",
        data=str(folder / "scenes"),
        augmentation="advanced",
        image_size=24,
        batch_size=8,
        train=TrainSettings(max_epochs=6, learning_rate=0.01, step_epochs=3, ema_decay=0.8),
    )
    run_experiment(
        row,
        lambda row, loaders: (KilledNetwork(len(loaders.class_names)), {"weights": "random"}),
        lambda row: dataloader.build_loaders(row, progress=False),
        files_of(row, "full", own_data=row.data, root=folder),
        device="cpu",
        progress=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
