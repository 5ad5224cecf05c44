"""A run in a few hundredths of a second: a small network on points in two dimensions, as runs.py sees any other.

What makes resuming hard is in it: shuffling, dropout, BatchNorm, Adam, a schedule.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from helper_functions import CrossEntropy, TrainSettings
from run_files import files_of
from runs import Job
from supervised.dataloader import Loaders
from supervised.settings import Experiment

TINY = Experiment(
    "tiny",
    "?",
    initial_weights="random",
    batch_size=8,
    train=TrainSettings(max_epochs=3, learning_rate=0.01, step_epochs=2),
)
BATCHES = 8  # of an epoch: 60 points in batches of 8, the last of 4


class PointNetwork(nn.Module):
    """Points (N, 2) to logits (N, 2)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 2))

    def forward(self, points):
        return self.classifier(self.features(points))


def point_loaders(experiment: Experiment) -> Loaders:
    """Two overlapping classes of points; val (10) and test (30) differ in size."""
    labels = torch.arange(100) % 2
    points = torch.randn(100, 2, generator=torch.Generator().manual_seed(1)) + 1.5 * labels[:, None]
    train, val, test = (
        TensorDataset(points[part], labels[part]) for part in (slice(60), slice(60, 70), slice(70, None))
    )
    order = RandomSampler(train, generator=torch.Generator().manual_seed(experiment.seed))
    return Loaders(
        train=DataLoader(train, experiment.batch_size, sampler=order, generator=torch.Generator()),
        train_in_order=DataLoader(train, experiment.batch_size),
        val=DataLoader(val, experiment.batch_size),
        test=DataLoader(test, experiment.batch_size),
        class_names=("left", "right"),
        class_weights=None,
        data={"name": "points", "fingerprint": "1"},
    )


def point_job(experiment: Experiment = TINY, **changes) -> Job:
    """The job of one training on points; changes are fields of Job."""
    torch.manual_seed(experiment.seed)
    job = Job(
        experiment,
        files_of(experiment, "full"),
        PointNetwork(),
        point_loaders(experiment),
        CrossEntropy(label_smoothing=experiment.train.label_smoothing),
        {"initial_weights": {"weights": experiment.initial_weights}},
        device="cpu",
        progress=False,
    )
    return replace(job, **changes)
