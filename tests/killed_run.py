"""A training that can kill its process: `KILL_AT=passes SCENES_ROOT=folder python -m tests.killed_run SCENES`.

What makes resuming hard is in it: shuffling, augmentation, dropout, BatchNorm, Adam, a schedule, EMA.
"""

import os
import signal
import sys

import torch

from helper_functions import CrossEntropy, TrainSettings
from run_files import files_of
from runs import Job, train_job
from supervised.dataloader import build_loaders
from supervised.settings import Experiment
from tests.conftest import SmallNetwork

KILL_AT = int(os.environ.get("KILL_AT", "0"))


class KilledNetwork(SmallNetwork):
    """A small network that ends its process without a word in its KILL_AT-th training pass."""

    passes = 0

    def forward(self, images):
        self.passes += self.training
        if self.training and self.passes == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


def main(scenes: str):
    """Train to the end, or continue where the last process was killed."""
    experiment = Experiment(
        "killed",
        "?",
        data=scenes,
        initial_weights="random",
        augmentation="advanced",
        image_size=32,
        batch_size=8,
        train=TrainSettings(max_epochs=6, learning_rate=0.01, step_epochs=3, ema_decay=0.8),
    )
    loaders = build_loaders(experiment, progress=False)
    torch.manual_seed(experiment.seed)
    model, provenance = KilledNetwork(len(loaders.class_names)), {"initial_weights": {"weights": "random"}}
    files = files_of(experiment, "full")
    train_job(Job(experiment, files, model, loaders, CrossEntropy(), provenance, device="cpu", progress=False))


if __name__ == "__main__":
    main(sys.argv[1])
