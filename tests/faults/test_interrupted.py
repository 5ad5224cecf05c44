"""Ctrl-C, a full disk, and a clock that is set back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from helper_functions import TrainSettings, train
from runs import load_checkpoint, write_atomically

TESTS = Path(__file__).resolve().parents[1]
TRAIN = """
import signal, sys, pathlib
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored by what runs in the background
sys.path.insert(0, {tests!r})
import runs
from supervised import train as script
from data import scenes
here = pathlib.Path.cwd()
scenes.STORES = here / "stores"
script.files_of = lambda row, profile: runs.files_of(row, profile, root=here)
sys.exit(script.main(["supervised_1", "--data", "scenes", "--device", "cpu", "--epochs", {epochs!r}]))
"""
SEARCH = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
from hyperparameter_search import SPACES, open_study, work
from runs import run_command
def objective(trial):
    print(trial.number, flush=True)
    time.sleep(0.2)
    return trial.params["learning_rate"]
space = SPACES["report"]
def search():
    study = open_study("toy.journal", {{"settings": {{"name": "toy"}}}}, space, 6, "random")
    work(study, "toy.journal", objective, space)
sys.exit(run_command(search))
"""


def start(code: str, folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, text=True, **pipes)


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


def test_ctrl_c_ends_a_training_with_its_state_saved_and_130_and_it_goes_on(tmp_path, scene_folder):
    state = tmp_path / "models/quick/scenes/supervised_1.state.pt"
    training = start(TRAIN.format(tests=str(TESTS), epochs="500"), tmp_path)
    wait_for(state.exists, training)
    training.send_signal(signal.SIGINT)
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from what was finished"
    assert "Traceback" not in errors
    assert load_checkpoint(state)["training"]["history"]["val_loss"]
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.glob("models/**/.*.lock"))


def test_ctrl_c_ends_a_search_and_the_trial_is_run_again(tmp_path):
    code = SEARCH.format(tests=str(TESTS))
    search = start(code, tmp_path)
    assert search.stdout.readline() == "0\n"
    search.send_signal(signal.SIGINT)
    _, errors = search.communicate(timeout=60)
    assert search.returncode == 130, errors
    again = start(code, tmp_path)
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert "6 done" in output.splitlines()[-1]


FULL_DISK = """
import resource, sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from runs import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails, as on a full disk
try:
    write_atomically(Path("row.pt"), lambda path: torch.save(torch.zeros(1_000_000), path))
except OSError as error:
    print(error)
"""


def test_a_disk_that_fills_up_leaves_the_file_that_was_there(tmp_path):
    torch.save({"whole": True}, tmp_path / "row.pt")
    ended = start(FULL_DISK.format(tests=str(TESTS)), tmp_path)
    output, errors = ended.communicate(timeout=60)
    assert output.startswith("row.pt cannot be written ("), errors
    assert "see whether the disk is full or read-only" in output
    assert torch.load(tmp_path / "row.pt", weights_only=True) == {"whole": True}
    assert [path.name for path in tmp_path.iterdir()] == ["row.pt"]


def test_a_file_that_cannot_be_written_leaves_nothing_and_is_named(tmp_path):
    def write(path):
        path.write_text("half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with pytest.raises(OSError, match=r"row\.pt cannot be written \(PytorchStreamWriter failed"):
        write_atomically(tmp_path / "row.pt", write)
    assert list(tmp_path.iterdir()) == []


def test_seconds_are_right_though_the_clock_is_set_back(monkeypatch, small_network):
    clock = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    images = TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3)
    history = train(
        small_network, DataLoader(images, 4), DataLoader(images, 4), TrainSettings(max_epochs=2), progress=False
    )
    assert all(0 < seconds < 100 for seconds in history.seconds)
