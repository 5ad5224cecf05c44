"""What the tests of the commands need: a trained run where they look for it."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def tiny_model(root, tiny_run) -> Path:
    """The checkpoint of a run named tiny, in the quick profile's folder of the test's own root."""
    path = root / "models" / "quick" / "tiny.pt"
    path.parent.mkdir(parents=True)
    shutil.copy(tiny_run, path)
    return path
