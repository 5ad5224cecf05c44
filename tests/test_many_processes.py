"""What several processes train together equals what one trains alone, but for the rounding of sums."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from data.files import CODE
from run_files import load_checkpoint

pytestmark = pytest.mark.slow


def train(folder, processes, stop_after=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STOP_AFTER": str(stop_after), "SCENES_ROOT": str(folder)}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.many_processes_run"]
    return subprocess.run(command, cwd=CODE, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where one process, two, and two that were interrupted after three epochs and started again have trained."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "two", "interrupted")}
    assert train(folders["interrupted"], 2, stop_after=3).returncode != 0
    assert (folders["interrupted"] / "models/full/tiny.state.pt").exists()
    assert not list((folders["interrupted"] / "results").rglob("*.json"))
    for name, processes in (("one", 1), ("two", 2), ("interrupted", 2)):
        done = train(folders[name], processes)
        assert done.returncode == 0, done.stderr[-3000:]
    return folders


def result_of(folder):
    return json.loads((folder / "results/full/tiny.json").read_text())


def test_two_processes_have_the_history_and_weights_of_one(folders):
    one, two = (result_of(folders[name]) for name in ("one", "two"))
    assert one["history"].keys() == two["history"].keys()
    for column in one["history"].keys() - {"seconds"}:
        assert np.allclose(one["history"][column], two["history"][column], atol=1e-5), column
    assert len(one["history"]["train_loss"]) == len(two["history"]["train_loss"]) < 8  # they stopped early, together
    assert one["labels"] == two["labels"] and one["predictions"] == two["predictions"]  # every image once, in order
    models = [load_checkpoint(folders[name] / "models/full/tiny.pt")["model"] for name in ("one", "two")]
    assert models[0].keys() == models[1].keys()
    for name, tensor in models[0].items():
        assert torch.allclose(tensor, models[1][name], atol=1e-5), name


def test_interrupted_processes_continue_together_bit_for_bit(folders):
    complete, resumed = (load_checkpoint(folders[name] / "models/full/tiny.pt") for name in ("two", "interrupted"))
    assert {**complete["history"], "seconds": None} == {**resumed["history"], "seconds": None}
    assert all(torch.equal(tensor, resumed["model"][name]) for name, tensor in complete["model"].items())


def test_the_main_process_alone_writes_files(folders):
    for folder in folders.values():
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        assert files == ["models/full/tiny.pt", "results/full/tiny.json"]
