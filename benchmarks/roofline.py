"""What the loop can reach on a GPU, on paper: nothing here was measured on one since augmentation runs in batches.

    python -m benchmarks.roofline

benchmarks/h100.csv has what was measured on one H100 with the earlier loop: the limit of this network, and the loop.
Here the operations are counted that a step and the making of its batch launch, and the bytes that the latter moves.
From these follows what a batch takes at least, so how many images a second there are at most: the host launches one
operation after another, the device computes and moves memory meanwhile, and the slower of the two decides.

- An operation takes as long to launch as in the limit's step of 32 images, which is bound by launches.
- The random numbers of an image are drawn on the CPU, image by image; that is measured here.
- The device computes an image as fast as in the limit's step of 256 images, and moves BANDWIDTH bytes per second.
- A recorded step (step="graph") is launched at once; the operations that make its batch are not.  Steps on two views,
  and those of distillation, cannot be recorded.
- A pair of views costs as much as `study.forward_passes` says, and has no measured limit of its own.

benchmarks/gpu.py measures all of it, where there is a GPU.  The study's time is a projection from the same numbers.
"""

import sys
import timeit
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu import CASES, Options, loaders_for, step_on_one_batch
from benchmarks.implementations import FOLDER
from experiments import EXPERIMENTS, configure
from run_files import STUDY_DATA
from self_supervised.settings import JointEmbeddingExperiment
from study import BACKWARD, IMAGES, forward_passes

MEASURED = FOLDER / "h100.csv"
TABLE, STUDY = FOLDER / "roofline.csv", FOLDER / "roofline_study.csv"
BANDWIDTH = 2e12  # bytes per second: less than the 3.35e12 of the data sheet, which copies do not reach
BATCHES = (32, 256)
COUNTED = (4, 8)  # images in the batches that are counted: what grows with their number is drawn image by image
RECORDABLE = ("plain", "advanced", "pretext")
COST = {"two views": 2 * (BACKWARD + 1) / BACKWARD}  # of an image in training passes of a single one


@dataclass
class Work:
    """Operations that were launched, and the bytes that they read and wrote; draws of random numbers for an image."""

    operations: float = 0
    bytes: float = 0
    draws: float = 0


class Counter(TorchDispatchMode):
    """Within it, every operation that computes something is counted; a view launches nothing."""

    def __init__(self):
        """Nothing is counted yet."""
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Run an operation and count it."""
        found = operation(*args, **(kwargs or {}))
        read, written = (
            [each for each in tree_leaves(part) if isinstance(each, torch.Tensor)] for part in ((args, kwargs), found)
        )
        known = {each.untyped_storage().data_ptr() for each in read}
        is_view = written and all(each.untyped_storage().data_ptr() in known for each in written)
        if operation._schema.is_mutable or not (is_view or operation.__name__.startswith("empty")):
            self.work.operations += 1
            self.work.bytes += sum(each.nbytes for each in (*read, *written))
        return found


def work_of(action: Callable) -> Work:
    """What a call does, on the CPU."""
    with Counter() as counter:
        action()
    return counter.work


def work_of_case(case: str, size: int = 224) -> tuple[Work, Work]:
    """The work of making a batch, with the draws and bytes of an image, and of a step."""
    made = []
    for count in COUNTED:
        loaders = loaders_for(case, count, Options("cpu", size, batches_per_epoch=1))
        made.append(work_of(lambda loaders=loaders: next(iter(loaders.train))))
    few, many = made
    draws = (many.operations - few.operations) / (COUNTED[1] - COUNTED[0])
    making = Work(few.operations - draws * COUNTED[0], few.bytes / COUNTED[0], draws)
    step, _ = step_on_one_batch(case, loaders, torch.device("cpu"))
    step()  # which makes the optimizer's state
    return making, work_of(step)


def seconds_of_draw() -> float:
    """How long this CPU takes to draw the random numbers of an image once."""
    generator = torch.Generator()
    return min(timeit.repeat(lambda: torch.rand(1, 20, generator=generator), repeat=5, number=1000)) / 1000


def limits(measured: pd.DataFrame) -> dict[int, float]:
    """Images per second of the limit by batch size."""
    of_limit = measured[measured["what"].str.startswith("limit")]
    return dict(zip(of_limit["batch_size"], of_limit["images_per_second"], strict=True))


def at_most(case: str, making: Work, step: Work, launch: float, draw: float, limit: dict[int, float]) -> list[dict]:
    """The lines of a case: what a batch takes the host and the device, and what follows for the loop.

    `launch` is the time of an operation and `draw` that of a draw (seconds), `limit` the measured images per second by
    batch size.  The share is of the limit of a step that is launched one operation at a time, on a batch that is there.
    """
    lines = []
    for batch_size in BATCHES:
        computing = COST.get(case, 1) * batch_size / limit[max(limit)]
        device = computing + making.bytes * batch_size / BANDWIDTH
        of_limit = batch_size / max(step.operations * launch, computing)
        of_batch = making.operations * launch + making.draws * batch_size * draw
        host = {"eager": of_batch + step.operations * launch}
        if case in RECORDABLE:
            host["graph"] = of_batch + launch
        for name, seconds in host.items():
            rate = batch_size / max(seconds, device)
            lines.append(
                {
                    "case": case,
                    "batch_size": batch_size,
                    "step": name,
                    "operations of the batch": round(making.operations),
                    "draws an image": round(making.draws),
                    "operations of the step": round(step.operations),
                    "MB an image": round(making.bytes / 1e6, 1),
                    "host, ms": round(1000 * seconds, 2),
                    "device, ms": round(1000 * device, 2),
                    "images_per_second": round(rate),
                    "share_of_limit": round(rate / of_limit, 2),
                }
            )
    return lines


def projected(table: pd.DataFrame, limit: dict[int, float]) -> pd.DataFrame:
    """The least time of every 15-Scene experiment of the study, once and one after another, by how steps are launched.

    Passes are those of `study.forward_passes`.  Training goes as the loop with the advanced augmentation does, at the
    nearer batch size, and is recorded where it can be; frozen features and what is evaluated go in large batches, at
    the limit.  Loading kernels is left out.
    """
    experiments = [configure(each, "full") for each in EXPERIMENTS.values() if each.data == STUDY_DATA]
    held_out = BACKWARD * limit[max(limit)]  # forward passes per second
    lines = []
    of_loop = table[table["case"] == "advanced"].set_index(["step", "batch_size"])["images_per_second"]
    for step in ("eager", "graph"):
        seconds = 0.0
        for experiment in experiments:
            recorded = not (isinstance(experiment, JointEmbeddingExperiment) or experiment.has_teachers)
            total = forward_passes(experiment)
            training = 0.0
            if not experiment.freeze_features:
                training = forward_passes(experiment, {**IMAGES, "val": 0, "test": 0})
            batch_size = min(BATCHES, key=lambda size, own=experiment.batch_size: abs(size - own))
            rate = of_loop[step if recorded else "eager", batch_size]
            seconds += training / (BACKWARD * rate) + (total - training) / held_out
        lines.append({"step": step, "experiments": len(experiments), "minutes": round(seconds / 60, 1)})
    return pd.DataFrame(lines)


def main() -> int:
    """Count, calculate, and write both tables."""
    measured = pd.read_csv(MEASURED)
    limit, lines = limits(measured), []
    counted = {case: work_of_case(case) for case in CASES}
    launch, draw = min(limit) / limit[min(limit)] / counted["plain"][1].operations, seconds_of_draw()
    for case, (making, step) in counted.items():
        lines += at_most(case, making, step, launch, draw, limit)
    table = pd.DataFrame(lines)
    study = projected(table, limit)
    table.to_csv(TABLE, index=False)
    study.to_csv(STUDY, index=False)
    print(f"{table.to_string(index=False)}\n\n{study.to_string(index=False)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
