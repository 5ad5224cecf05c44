"""A small training that several processes can share: `torchrun --nproc_per_node=2 many_processes_run.py FOLDER`.

No BatchNorm and no dropout: statistics and draws are a process's own.  The last batch of an epoch is not full, and
neither are those of val and test.  STOP_AFTER=epochs ends all processes in the middle of the epoch after.
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_runs import PointLoaders, Row, build_loaders

from helper_functions import TrainSettings
from runs import files_of, run_experiment

STOP_AFTER = int(os.environ.get("STOP_AFTER", "0"))
BATCHES_AN_EPOCH = 8  # 60 points in batches of 8, the last of 4


class Network(nn.Sequential):
    """Two layers; ends its process without a word in the epoch after STOP_AFTER."""

    passes = 0

    def forward(self, points):
        self.passes += self.training
        if STOP_AFTER and self.training and self.passes > STOP_AFTER * BATCHES_AN_EPOCH + 3:
            os._exit(1)
        return super().forward(points)


def main(folder: Path):
    """Train to the end, or go on where the last processes ended."""
    row = Row(
        "row",
        train=TrainSettings(
            max_epochs=8, learning_rate=0.1, stopping="patience", patience_epochs=2, label_smoothing=0.1
        ),
    )

    def weighted_loaders(row):
        return PointLoaders(**{**vars(build_loaders(row)), "class_weights": torch.tensor([1.0, 1.5])})

    run_experiment(
        row,
        lambda row, loaders: (Network(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)), {"weights": "random"}),
        weighted_loaders,
        files_of(row, "full", root=folder),
        device="cpu",
        progress=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
