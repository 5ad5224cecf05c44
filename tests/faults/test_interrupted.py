"""Ctrl-C, a disk that fills up, and a clock that is set back."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from data.files import CODE
from helper_functions import TrainSettings, train
from run_files import load_checkpoint
from train import main

# A shell may have Ctrl-C ignored by what it starts in the background, so it is restored.
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import {module}
sys.exit({module}.main({arguments!r}))
"""


def start(folder, module, *arguments):
    """A command of the project in a process of its own."""
    code = SCRIPT.format(module=module, arguments=[str(each) for each in arguments])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SCENES_ROOT": str(folder), "PYTHONPATH": str(CODE)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, text=True, **pipes)


def options(scene_folder, *more):
    return "--profile", "quick", "--data", str(scene_folder), "--device", "cpu", *more


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextmanager
def disk_for_files_of(bytes):
    """Within the block the write of a larger file fails, as on a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_ctrl_c_ends_a_training_with_its_state_saved_and_130(root, scene_folder):
    models = root / "models/quick/scenes"
    state = models / "supervised_1.state.pt"
    training = start(root, "train", "supervised_1", *options(scene_folder, "--epochs", 500))
    while not state.exists():
        assert training.poll() is None, training.stderr.read()
        time.sleep(0.05)
    training.send_signal(signal.SIGINT)
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 130, errors
    assert "Traceback" not in errors and "interrupted" in errors.splitlines()[-1]
    assert files_below(models) == [state.name] and not files_below(root / "results")
    assert load_checkpoint(state)["training"]["history"]["val_loss"]


@pytest.mark.slow
def test_ctrl_c_ends_a_search_and_its_trial_is_run_again(root, scene_folder):
    more = ("--storage", root / "toy.db", "--trials", 4, "--sampler", "random")
    command = ("hyperparameter_search", "imagenet_classifier", *options(scene_folder), *more)
    search = start(root, *command)
    assert search.stdout.readline().startswith("trial 0")
    search.send_signal(signal.SIGINT)
    _, errors = search.communicate(timeout=120)
    assert search.returncode == 130 and "Traceback" not in errors, errors
    output, errors = start(root, *command).communicate(timeout=300)
    assert "4 done" in output and "best: loss" in output, errors
    assert [name for name in files_below(root) if name.startswith("toy")] == ["toy.csv", "toy.db"]


def test_a_disk_that_fills_up_ends_a_training_with_one_sentence_and_leaves_no_file(root, scene_folder, capsys):
    with disk_for_files_of(40_000):  # more than the cached images have, and less than the state
        assert main(["imagenet_classifier", *options(scene_folder)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1 and "imagenet_classifier.state.pt" in errors.splitlines()[-1]
    assert files_below(root / "data") and not files_below(root / "models") and not files_below(root / "results")


def test_a_disk_that_fills_up_ends_the_decoding_with_one_sentence_and_leaves_no_file(root, scene_folder, capsys):
    with disk_for_files_of(30_000):
        assert main(["imagenet_classifier", *options(scene_folder)]) == 2
    assert "data/cache" in capsys.readouterr().err.splitlines()[-1]
    assert not [path for folder in ("data", "models", "results") for path in files_below(root / folder)]


def test_seconds_are_right_though_the_clock_is_set_back(monkeypatch, small_network):
    clock = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    images = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3), 4)
    history = train(small_network, images, images, TrainSettings(max_epochs=2), progress=False)
    assert all(0 < seconds < 100 for seconds in history.seconds)
