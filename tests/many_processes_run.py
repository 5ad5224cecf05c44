"""A training that several processes can share: `torchrun --nproc_per_node=2 -m tests.many_processes_run`.

No BatchNorm and no dropout: statistics and draws are a process's own.  The last batch of an epoch is not full, and
neither are those of val and test.  STOP_AFTER=epochs ends all processes in the middle of the epoch after.
"""

import os
from dataclasses import replace

import torch
from torch import nn

from helper_functions import CrossEntropy, TrainSettings
from runs import train_job
from tests.points import BATCHES, TINY, point_job

STOP_AFTER = int(os.environ.get("STOP_AFTER", "0"))


class StoppingNetwork(nn.Sequential):
    """Two layers; ends its process without a word in the epoch after STOP_AFTER."""

    passes = 0

    def forward(self, points):
        self.passes += self.training
        if STOP_AFTER and self.training and self.passes > STOP_AFTER * BATCHES + 3:
            os._exit(1)
        return super().forward(points)


def main():
    """Train to the end, or continue where the last processes ended."""
    settings = TrainSettings(max_epochs=8, learning_rate=0.1, stopping="patience", patience_epochs=2)
    torch.manual_seed(0)
    model = StoppingNetwork(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    objective = CrossEntropy(torch.tensor([1.0, 1.5]), label_smoothing=0.1)
    train_job(point_job(replace(TINY, train=settings), model=model, objective=objective))


if __name__ == "__main__":
    main()
