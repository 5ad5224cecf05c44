"""A joint-embedding pretext in a tenth of a second, and one that several processes can share.

`torchrun --nproc_per_node=2 -m tests.tiny_views FOLDER` trains every method and saves what each ends with.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader

from helper_functions import History, TrainSettings, train
from self_supervised.dataloader import ViewsDataset
from self_supervised.joint_embedding import METHODS, JointEmbedding, OfViews
from self_supervised.settings import JointEmbeddingExperiment
from supervised.dataloader import SeededShuffle

TINY_VIEWS = JointEmbeddingExperiment(
    "tiny_views",
    "?",
    network="resnet18",  # its second stage has as many channels as that of `tiny_features`
    stages=(1,),
    view_size=32,
    batch_size=8,
    momentum=0.9,
    train=TrainSettings(max_epochs=2, learning_rate=0.01, backbone_lr_factor=0.5, keep="last"),
)
STEPS = 3  # of an epoch: 26 images in whole batches of 8


def tiny_features() -> nn.Sequential:
    """Two stages of a convolution with BatchNorm, whose statistics are not those of any batch."""

    def stage(inputs, outputs):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, bias=False)
        norm = nn.BatchNorm2d(outputs)
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.2, 0.5)
        return nn.Sequential(convolution, norm, nn.ReLU())

    return nn.Sequential(stage(3, 16), stage(16, 64))


def tiny_method(experiment: JointEmbeddingExperiment = TINY_VIEWS, seed: int = 0) -> JointEmbedding:
    """The network of an experiment on tiny features."""
    torch.manual_seed(seed)
    return METHODS[experiment.method](tiny_features(), experiment, experiment.train.max_epochs * STEPS)


def tiny_loaders(experiment: JointEmbeddingExperiment = TINY_VIEWS) -> tuple[DataLoader, DataLoader]:
    """Views of 26 train and 16 val images of three classes, which differ in brightness."""
    generator = np.random.default_rng(0)
    labels = np.arange(42) % 3
    images = (generator.integers(0, 90, (42, 1, 40, 40)) + 80 * labels[:, None, None, None]).astype(np.uint8)
    parts = [ViewsDataset(images[part], labels[part], experiment) for part in (slice(26), slice(26, None))]
    common = {"batch_size": experiment.batch_size, "collate_fn": lambda batch: batch, "drop_last": True}
    order = SeededShuffle(26, experiment.seed)
    return DataLoader(parts[0], sampler=order, generator=torch.Generator(), **common), DataLoader(parts[1], **common)


def fit(model: JointEmbedding, experiment: JointEmbeddingExperiment = TINY_VIEWS, loaders=None, **options) -> History:
    """Train a network on views."""
    loaders = loaders or tiny_loaders(experiment)
    options = {"objective": OfViews(), "device": "cpu", "progress": False, **options}
    return train(model, *loaders, experiment.train, **options)


def fit_every_method() -> dict:
    """History and weights of each method after a few steps.

    SGD, because Adam makes a step of a gradient that is nothing but rounding, such as that of VICReg's last bias.
    """
    ends = {}
    for method in ("byol", "simclr", "vicreg"):
        rate = {"byol": 0.05, "simclr": 0.01, "vicreg": 0.002}[method]  # as much as does not amplify rounding
        settings = replace(TINY_VIEWS.train, optimizer="sgd", learning_rate=rate)
        experiment = replace(TINY_VIEWS, method=method, train=settings)
        model = tiny_method(experiment)
        history = fit(model, experiment)
        ends[method] = {"history": history.columns, "model": model.state_dict()}
    return ends


if __name__ == "__main__":
    found = fit_every_method()
    torch.save(found, Path(sys.argv[1]) / f"{distributed.get_rank()}.pt")
    distributed.destroy_process_group()
