"""A frozen classifier trained for 50 epochs: features computed once, or every image through the network each epoch.

    [WEIGHTS=../shared/weights/efficientnet_b0_imagenet_features.pth] python -m benchmarks.frozen_classifier

The experiment is `imagenet_classifier`: the same weights, head, dropout and batches in the same order.  Where every
image goes through the network 50 epochs would take up to an hour, so one (all training images, then all val images) is
measured and multiplied, as the column `measured` says.  The seconds of ours are of all 50 epochs and the features.
No implementation reads the test images.  The compared results are the losses of the first epoch, on train and val.
"""

import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import implementations
from benchmarks.data import plain_dataset
from benchmarks.implementations import Comparison, Measurement
from helper_functions import train
from loop.batchnorm import fold_batchnorm
from loop.devices import build_accelerator
from supervised.dataloader import SeededShuffle, build_loaders
from supervised.models import SceneClassifier
from supervised.settings import EXPERIMENTS

EXPERIMENT = EXPERIMENTS["imagenet_classifier"]
EPOCHS = EXPERIMENT.train.max_epochs


def measure_plain() -> Measurement:
    """As a plain script does: torchvision's network in the default order, ImageFolder, the default allocator."""
    model, dataset = implementations.plain_network(), plain_dataset("train")
    model.features.requires_grad_(False)
    order = [index for index, _ in SeededShuffle(len(dataset), EXPERIMENT.seed)]
    train_loader = DataLoader(dataset, EXPERIMENT.batch_size, sampler=order, generator=torch.Generator())
    val_loader = DataLoader(plain_dataset("val"), EXPERIMENT.batch_size, generator=torch.Generator())
    optimizer = torch.optim.Adam(model.classifier.parameters(), EXPERIMENT.train.learning_rate)
    torch.manual_seed(EXPERIMENT.seed)  # the same dropout
    started = time.perf_counter()
    model.classifier.train()
    train_loss, val_loss = 0.0, 0.0
    for images, labels in train_loader:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        train_loss += loss.item() * len(labels)
    model.eval()
    with torch.no_grad():
        for images, labels in val_loader:
            val_loss += nn.functional.cross_entropy(model(images), labels, reduction="sum").item()
    seconds = time.perf_counter() - started
    losses = np.array([train_loss / len(dataset), val_loss / len(val_loader.dataset)])
    return _measurement(seconds, 1, len(dataset), losses)


def measure(features_once: bool) -> Measurement:
    """By `helper_functions.train`: for all epochs on features computed once, or for one on images."""
    loaders = replace(build_loaders(replace(EXPERIMENT, data=implementations.data_set()), progress=False), test=None)
    model = SceneClassifier(implementations.NUM_CLASSES, freeze_features=True)
    model.load_state_dict(implementations.plain_network().state_dict())
    model.eval()
    epochs = EPOCHS if features_once else 1
    started = time.perf_counter()
    device = build_accelerator().device
    network, batches = model.to(device), loaders
    if features_once:
        network, batches = model.classifier, loaders.of_features(fold_batchnorm(model).pooled_features, device)
    torch.manual_seed(EXPERIMENT.seed)
    settings = replace(EXPERIMENT.train, max_epochs=epochs)
    history = train(network, batches.train, batches.val, settings, progress=False)
    seconds = time.perf_counter() - started
    losses = np.array([history.train_loss[0], history.val_loss[0]])
    return _measurement(seconds, epochs, len(loaders.train.dataset), losses)


def _measurement(seconds: float, epochs: int, images: int, losses: np.ndarray) -> Measurement:
    """What all epochs take."""
    measured = f"{EPOCHS} epochs" if epochs == EPOCHS else f"{epochs} epoch, times {EPOCHS // epochs}"
    return Measurement(
        seconds * EPOCHS / epochs, images, losses, {"measured": measured, "data": implementations.data_set()}
    )


IMPLEMENTATIONS = {
    "plain, every image each epoch": measure_plain,
    "our loop, every image each epoch": partial(measure, features_once=False),
    "ours, features once": partial(measure, features_once=True),
}
PLAIN = "plain, every image each epoch"
COMPARISONS = (Comparison(f"frozen classifier, {EPOCHS} epochs", IMPLEMENTATIONS, peers=(PLAIN,), reference=PLAIN),)

if __name__ == "__main__":
    sys.exit(implementations.main("frozen_classifier", __doc__, COMPARISONS, rounds=1))
