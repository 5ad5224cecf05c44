"""Runs of a network of one convolution: a pass takes a millisecond, that of a random EfficientNet half a second."""

import torch

from evaluation.checkpoints import TrainedRun
from tests.conftest import CLASSES, SmallNetwork


class PooledNetwork(SmallNetwork):
    """With the features that a SceneClassifier has."""

    flip_tta = False

    def pooled_features(self, images):
        return self.features(images).mean(dim=(2, 3))

    def forward(self, images):
        return self.classifier(self.pooled_features(images))


def small_run(name: str) -> TrainedRun:
    """The run named tiny or other; FileNotFoundError for any other name, as `load_trained`."""
    if name not in ("tiny", "other"):
        raise FileNotFoundError(f"there is no trained run {name}")
    torch.manual_seed(len(name))
    return TrainedRun(name, PooledNetwork().eval(), CLASSES, 32, "imagenet", name * 16)
