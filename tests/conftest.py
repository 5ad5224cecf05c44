"""What several tests need: tiny images on disk, and a network of two layers that can be trained in a second."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from run_files import FORMAT
from supervised.models import SceneClassifier, estimate_batchnorm

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
NO_PROCESS = 2**22 + 1  # above the highest number of Linux
CLASSES = ("dark", "light", "striped")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing is fetched unless a download is asked for: a test that reaches beyond this machine fails."""
    connect = socket.socket.connect

    def connect_here(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a connection to {address} was tried")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The root folder of a test's own data, models and results."""
    monkeypatch.setenv("SCENES_ROOT", str(tmp_path))
    return tmp_path


def draw(class_name: str, generator: np.random.Generator, height: int = 40, width: int = 48) -> Image.Image:
    """A gray image that its class can be told from."""
    image = generator.integers(0, 60, (height, width))
    if class_name == "light":
        image += 150
    if class_name == "striped":
        image[:, ::8] += 120
        image[:, 1::8] += 120
    return Image.fromarray(image.astype(np.uint8))


@pytest.fixture
def scene_folder(tmp_path) -> Path:
    """<split>/<class>/<image>: 12 train, 6 val and 8 test images of each of three classes."""
    root = tmp_path / "scenes"
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 8)):
        for class_name in CLASSES:
            folder = root / split / class_name
            folder.mkdir(parents=True)
            for number in range(count):
                draw(class_name, generator).save(folder / f"image_{number:04d}.jpg")
    return root


class SmallNetwork(nn.Module):
    """A convolution with BatchNorm and dropout, then a linear layer: what makes resuming hard, in little."""

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, num_classes))

    def forward(self, images):
        return self.classifier(self.features(images).mean(dim=(2, 3)))


@pytest.fixture
def small_network():
    """A new small network from a fixed seed."""
    torch.manual_seed(0)
    return SmallNetwork()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A checkpoint of three classes at 32 pixels, as runs.py writes it but without a training; copy it."""
    torch.manual_seed(0)
    model = SceneClassifier(3)
    estimate_batchnorm(model, [(torch.randn(16, 3, 32, 32), None)])  # else nothing depends on the image
    settings = {"head": "shallow", "freeze_features": False, "stages": [8], "image_size": 32, "resize": "imagenet"}
    checkpoint = {
        "format": FORMAT,
        "identity": {"settings": settings},
        "class_names": list(CLASSES),
        "model": model.state_dict(),
    }
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    torch.save(checkpoint, path)
    return path
