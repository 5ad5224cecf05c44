"""Several implementations of one task, compared in speed: the basis of every benchmark here.

Each measurement runs in its own process, because allocator settings and peak memory belong to a process.  The
implementations take turns, so that a machine that slows down slows all of them.  The median over the rounds is used.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torchvision.models import efficientnet_b0
from tqdm import tqdm

from data.files import CODE
from data.prepare import locate
from loop.batchnorm import fold_batchnorm
from supervised.models import SceneClassifier, estimate_batchnorm, load_initial_weights

FOLDER = CODE / "benchmarks"
NUM_CLASSES = 15


@dataclass(frozen=True)
class Measurement:
    """Seconds for a number of images, the result (None: nothing to compare), and more columns for the table."""

    seconds: float
    images: int
    result: np.ndarray | None = None
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """One task and its implementations by name: functions that measure an implementation in this process.

    The ratio is to the fastest of `peers`.  Results are compared with those of `reference`, unless it is None.  The
    names of this project's own implementations, which the chart shows, begin with "ours".
    """

    what: str
    implementations: dict[str, Callable[[], Measurement]]
    peers: tuple[str, ...]
    reference: str | None = None


def main(name: str, description: str, comparisons: Sequence[Comparison], rounds: int = 3, arguments=None) -> int:
    """The command line of the benchmark `name`: measure all implementations and write a table, or only one."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--implementation", help="measure one implementation in this process and print it as JSON")
    parser.add_argument("--what", default=comparisons[0].what, help="the comparison that the implementation belongs to")
    parser.add_argument("--result", type=Path, help="the .npy file for what came out of the implementation")
    options = parser.parse_args(arguments)
    if options.implementation:
        comparison = next(each for each in comparisons if each.what == options.what)
        print(json.dumps(_measure_here(comparison, options.implementation, options.result)))
        return 0
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; it must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        table = make_table(comparisons, *measure_in_turn(name, comparisons, options.rounds, Path(folder)))
    table = table.assign(rounds=options.rounds, machine=machine())
    table.to_csv(FOLDER / f"{name}.csv", index=False)
    print(table.drop(columns="machine").to_string(index=False))
    print(machine())
    return 0


def _measure_here(comparison: Comparison, implementation: str, result: Path | None) -> dict:
    found = comparison.implementations[implementation]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    if result is not None and found.result is not None:
        np.save(result, found.result)
    facts = {"seconds": found.seconds, "images": found.images, "peak_mib": round(peak), **found.facts}
    return {"what": comparison.what, "implementation": implementation, **facts}


def measure_in_turn(
    name: str, comparisons: Sequence[Comparison], rounds: int, folder: Path
) -> tuple[list[dict], dict[tuple[str, str], np.ndarray]]:
    """What each process measured, and the first round's results by (what, implementation); `folder` holds them.

    Raises RuntimeError with the last output of a process that fails.
    """
    turns = [
        (each, implementation) for _ in range(rounds) for each in comparisons for implementation in each.implementations
    ]
    measured, results, path = [], {}, folder / "result.npy"
    with tqdm(turns, desc=name, unit="process") as bar:
        for comparison, implementation in bar:
            bar.set_postfix_str(f"{comparison.what}: {implementation}")
            options = ["--what", comparison.what, "--implementation", implementation, "--result", str(path)]
            command = [sys.executable, "-m", f"benchmarks.{name}", *options]
            done = subprocess.run(command, capture_output=True, text=True, cwd=CODE)
            if done.returncode != 0:
                raise RuntimeError(f"{name}, {comparison.what}, {implementation} failed:\n{done.stderr[-2000:]}")
            measured.append(json.loads(done.stdout.splitlines()[-1]))
            if path.exists():
                results.setdefault((comparison.what, implementation), np.load(path))
                path.unlink()
    return measured, results


def make_table(
    comparisons: Sequence[Comparison], measured: Sequence[dict], results: dict[tuple[str, str], np.ndarray]
) -> pd.DataFrame:
    """One line per implementation, from what `measure_in_turn` returns.

    Columns: what, implementation, seconds (median over the rounds), spread (lowest to highest), images (the number that
    the seconds are for), ratio (how many times as fast as ratio_to), peak_mib (the highest), largest_difference and,
    for results of more than one dimension, correlation with the reference's; and the facts of the first round.
    """
    rows = []
    for comparison in comparisons:
        of_each = {
            implementation: [
                each for each in measured if (each["what"], each["implementation"]) == (comparison.what, implementation)
            ]
            for implementation in comparison.implementations
        }
        medians = {
            implementation: statistics.median(each["seconds"] for each in found)
            for implementation, found in of_each.items()
        }
        peer = min(comparison.peers, key=medians.get)
        for implementation, found in of_each.items():
            seconds = [each["seconds"] for each in found]
            row = {
                "what": comparison.what,
                "implementation": implementation,
                "seconds": float(f"{medians[implementation]:.4g}"),
                "spread": f"{min(seconds):.4g} to {max(seconds):.4g}",
                "images": found[0]["images"],
                "ratio": float(f"{medians[peer] / medians[implementation]:.3g}"),
                "ratio_to": peer,
                "peak_mib": max(each["peak_mib"] for each in found),
            }
            reference = results.get((comparison.what, comparison.reference))
            if reference is not None and implementation != comparison.reference:
                row |= _differences(results[comparison.what, implementation], reference)
            rows.append(row | {key: value for key, value in found[0].items() if key not in row})
    return pd.DataFrame(rows)


def _differences(result: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    found = {"largest_difference": float(f"{np.abs(result - reference).max():.2g}")}
    if result.ndim > 1:
        found["correlation"] = round(float(np.corrcoef(result.ravel(), reference.ravel())[0, 1]), 6)
    return found


def machine() -> str:
    """What the speeds are of: cores, what the CPU can do, torch's version and threads."""
    capabilities = [torch.backends.cpu.get_cpu_capability()]
    capabilities += [name.upper() for name in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)]
    return (
        f"{os.cpu_count()} cores, {platform.machine()} with {', '.join(capabilities)}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16; where they are emulated it would take minutes an image."""
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


def precisions() -> tuple[str, ...]:
    """The precisions that are measured on this machine."""
    return ("float32", "bfloat16") if has_bfloat16() else ("float32",)


def ours(precision: str) -> str:
    """The name of our implementation in a precision."""
    return "ours" if precision == "float32" else f"ours, {precision}"


def compiled(network: nn.Module) -> nn.Module:
    """The network compiled for inference: weights are constants of the program, which PyTorch calls freezing."""
    return torch.compile(network.requires_grad_(False), options={"freezing": True}, dynamic=False)


def seconds_of(step: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, the mean over so many."""
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - started) / repeats


def draw_images(count: int, seed: int = 0, size: int = 224) -> torch.Tensor:
    """Normalized images (count, 3, size, size) of smooth shapes with grain, which a network tells apart."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 6, 6, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return smooth + 0.3 * torch.randn(count, 3, size, size, generator=generator)


def plain_network() -> nn.Module:
    """torchvision's EfficientNet-B0 for 15 classes as a plain script has it, in eval mode.

    Its features are those of the file that WEIGHTS in the environment names.  Without it they are random, and
    BatchNorm is set to synthetic images: else the logits would be the bias of the head, whatever the image.
    """
    torch.manual_seed(0)
    network = efficientnet_b0(num_classes=NUM_CLASSES)
    weights = os.environ.get("WEIGHTS")
    if weights:
        network.features.load_state_dict(load_initial_weights(weights).state_dict)
    else:
        estimate_batchnorm(network.features, [(draw_images(16, seed=1), None)])
    return network.eval()


def our_network(plain: nn.Module) -> nn.Module:
    """The same network as this project runs it where nothing is trained: channels-last, BatchNorm folded in."""
    network = SceneClassifier(NUM_CLASSES)
    network.load_state_dict(plain.state_dict())
    return fold_batchnorm(network)


def data_set() -> str:
    """15-Scene if it is prepared, else the synthetic scenes."""
    try:
        locate("15scene")
    except FileNotFoundError:
        return "synthetic"
    return "15scene"
