"""Images per second of several trainings side by side, with steps that are launched one by one and recorded.

    python -m benchmarks.side_by_side [--processes 14] [--device cuda] [--size 224]

Each process trains on noise with the advanced augmentation in batches of 32.  Without NVIDIA's multi-process service
(MPS) their kernels take turns on a GPU; with it they run at the same time.  Call it with and without:
`nvidia-cuda-mps-control -d` starts the service, `echo quit | nvidia-cuda-mps-control` ends it.  Lines are added to
benchmarks/side_by_side.csv.
"""

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import torch

from benchmarks.gpu import Options, check_device, loaders_for, network_for, with_facts
from benchmarks.implementations import FOLDER
from helper_functions import CrossEntropy, TrainSettings, train
from runs import run_command

CASE, BATCH_SIZE = "advanced", 32
FIRST_STEPS = 8  # of each process, before anything is counted
WINDOW = 6.0  # seconds that are counted
PATIENCE = 120.0  # seconds for the first steps
ENDLESS = 10**6  # epochs
MPS = "nvidia-cuda-mps-server"


class EndedError(Exception):
    """A training was told to end."""


class Counted(CrossEntropy):
    """Counts the images of each step, and ends the training when asked to."""

    def __init__(self, images, phase, own: int):
        """`images` and `phase` are shared with the process that measures; `own` is the phase of this training."""
        super().__init__()
        self.images, self.phase, self.own = images, phase, own

    def after_step(self, model):
        """Called after each step."""
        self.images.value += BATCH_SIZE
        if self.phase.value != self.own:
            raise EndedError


def train_on(options: Options, images, phase):
    """In a process of its own: train with each kind of step, until the phase that it belongs to is over."""
    torch.set_num_threads(1)
    for own, step in enumerate(options.steps):
        loaders = loaders_for(CASE, BATCH_SIZE, options)
        model, _ = network_for(CASE, loaders)
        settings = TrainSettings(max_epochs=ENDLESS, step=step, schedule="none")
        objective = Counted(images[own], phase, own)
        same = {"device": options.device, "progress": False, "objective": objective}
        try:
            train(model, loaders.train, loaders.val, settings, **same)
        except EndedError:
            continue


def rates(processes: int, options: Options, window: float = WINDOW) -> dict[str, float]:
    """Images per second of all processes together, for each kind of step.

    Raises ValueError if a process has ended, or has not made FIRST_STEPS after PATIENCE seconds.
    """
    context = multiprocessing.get_context("spawn")
    phase = context.Value("i", 0)
    counts = [[context.Value("q", 0) for _ in options.steps] for _ in range(processes)]
    children = [context.Process(target=train_on, args=(options, images, phase), daemon=True) for images in counts]
    for each in children:
        each.start()
    found = {}
    try:
        for number, step in enumerate(options.steps):
            started = time.perf_counter()
            while any(images[number].value < FIRST_STEPS * BATCH_SIZE for images in counts):
                if not all(each.is_alive() for each in children) or time.perf_counter() - started > PATIENCE:
                    raise ValueError(f"a process has not made {FIRST_STEPS} steps ({step}); see its message above")
                time.sleep(0.1)
            before, started = sum(images[number].value for images in counts), time.perf_counter()
            time.sleep(window)
            after = sum(images[number].value for images in counts)
            found[step] = (after - before) / (time.perf_counter() - started)
            phase.value = number + 1
    finally:
        for each in children:
            each.kill()
    return found


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--seconds", type=float, default=WINDOW, help="that are counted")
    parser.add_argument("--output", type=Path, default=FOLDER / "side_by_side.csv")
    options = parser.parse_args(arguments)

    def measure():
        check_device(options.device)
        if options.processes < 1:
            raise ValueError(f"--processes is {options.processes}; it must be at least 1")
        asked = Options(options.device, options.size)
        mps = any(each.info["name"] == MPS for each in psutil.process_iter(["name"]))
        same = {"processes": options.processes, "mps": mps}
        lines = [
            with_facts({"step": step, "images_per_second": rate} | same, asked)
            for step, rate in rates(options.processes, asked, options.seconds).items()
        ]
        earlier = [pd.read_csv(options.output)] if options.output.exists() else []
        table = pd.concat([*earlier, pd.DataFrame(lines)])
        table.to_csv(options.output, index=False)
        print(table.to_string(index=False))

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
