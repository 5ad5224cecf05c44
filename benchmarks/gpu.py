"""What a GPU gives: the loop beside a step alone, evaluation, Score-CAM and inversion, in about four minutes.

    python -m benchmarks.gpu [--device cuda] [--batches 32 256] [--size 224]

A step alone is forward, backward and the optimizer on one batch that stays on the device, each operation launched by
itself.  The loop is `helper_functions.train` on noise images, which takes as long as on others: its fastest epoch after
the first, with every way to launch a step that the device has.  The table benchmarks/gpu.csv is written after every
line, so that an interrupted call leaves what it has measured.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.implementations import FOLDER, machine
from benchmarks.scorecam import PEERS, our_maps
from data.augment import AUGMENTATIONS
from data.image_cache import Scenes
from evaluation.model_inversion import InversionSettings, class_logit, invert
from helper_functions import CrossEntropy, Objective, TrainSettings, build_optimizer, predict, train
from loop.batchnorm import fold_batchnorm
from loop.devices import autocast, build_accelerator, resolve_precision
from runs import run_command
from self_supervised.dataloader import RotatedDataset, ViewsDataset
from self_supervised.joint_embedding import OfViews
from self_supervised.models import build_joint_embedding
from self_supervised.settings import EXPERIMENTS as SELF_SUPERVISED
from supervised.dataloader import MEAN, STD, Loaders, SceneDataset, loaders_of, with_views_of
from supervised.models import SceneClassifier
from supervised.settings import BASE

CASES = ("plain", "advanced", "pretext", "two views")
BATCHES_PER_EPOCH = 64
EPOCHS = 3  # the first one loads kernels
CLASSES = 15
STEPS = 40  # of inversion
STAGE = "8"  # of Score-CAM


@dataclass(frozen=True)
class Options:
    """What is measured, and how large."""

    device: str
    size: int  # pixels, square
    batches_per_epoch: int = BATCHES_PER_EPOCH
    epochs: int = EPOCHS

    @property
    def steps(self) -> tuple[str, ...]:
        """How a step can be launched here."""
        return ("eager", "graph") if self.device == "cuda" else ("eager",)


def noise_scenes(count: int, size: int) -> Scenes:
    """A split of gray noise, of CLASSES classes."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    names = tuple(f"{number}" for number in range(CLASSES))
    return Scenes(images, np.arange(count) % CLASSES, tuple(map(str, range(count))), names, "noise")


def loaders_for(case: str, batch_size: int, options: Options) -> Loaders:
    """The loaders of a case on the device: an epoch of noise to train on, one batch to evaluate."""
    scenes = noise_scenes(batch_size * options.batches_per_epoch, options.size)
    experiment = replace(BASE, image_size=options.size, batch_size=batch_size)
    few = SceneDataset(scenes.subset(np.arange(batch_size)), "squash")
    if case == "two views":
        experiment = replace(SELF_SUPERVISED["byol"], view_size=options.size, batch_size=batch_size)
        dataset = ViewsDataset(scenes.images, scenes.labels, experiment)
    elif case == "pretext":
        dataset = RotatedDataset(scenes.images[: max(1, len(scenes) // 4)], "squash", AUGMENTATIONS["crop"])
        few = RotatedDataset(scenes.images[: max(1, batch_size // 4)], "squash")
    else:
        dataset = SceneDataset(scenes, "squash", AUGMENTATIONS.get(case))
    in_order = {"train": few, "val": few, "test": few}
    loaders = loaders_of(experiment, {}, train=dataset, in_order=in_order, class_names=scenes.class_names)
    if case == "two views":
        loaders = with_views_of(loaders, ViewsDataset(scenes.images[:batch_size], scenes.labels, experiment))
    return loaders.on(torch.device(options.device))


def network_for(case: str, loaders: Loaders) -> tuple[nn.Module, Objective]:
    """The network of a case with random weights, and its objective."""
    torch.manual_seed(0)
    if case == "two views":
        experiment = replace(SELF_SUPERVISED["byol"], initial_weights="random")
        return build_joint_embedding(experiment, loaders)[0], OfViews()
    return SceneClassifier(4 if case == "pretext" else CLASSES), CrossEntropy()


def rate_of_loop(case: str, batch_size: int, step: str, options: Options) -> float:
    """Images per second of an epoch of `train`."""
    loaders = loaders_for(case, batch_size, options)
    model, objective = network_for(case, loaders)
    settings = TrainSettings(max_epochs=options.epochs, step=step, schedule="none")
    held_out = loaders.views_of_val or loaders.val
    history = train(
        model, loaders.train, held_out, settings, objective=objective, device=options.device, progress=False
    )
    return len(loaders.train.dataset) / min(history.seconds[1:])


def step_on_one_batch(case: str, loaders: Loaders, device: torch.device) -> tuple[Callable, int]:
    """A training step on a batch that stays on the device, launched one operation at a time, and its images."""
    model, objective = network_for(case, loaders)
    model, objective = model.to(device).train(), objective.to(device)
    optimizer = build_optimizer(model, TrainSettings())
    images, labels = (each.to(device) for each in next(iter(loaders.train)))

    def step():
        with autocast("auto", device):
            losses, _, _ = objective(model, images, labels)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(model)

    return step, len(labels)


def rate_of_step_alone(case: str, batch_size: int, options: Options) -> float:
    """Images per second of `step_on_one_batch`."""
    device = torch.device(options.device)
    loaders = loaders_for(case, batch_size, replace(options, batches_per_epoch=1))
    step, images = step_on_one_batch(case, loaders, device)
    return images * options.batches_per_epoch / seconds_in_all(step, options.batches_per_epoch, device)


def rate_of_evaluation(options: Options) -> float:
    """Images per second of `predict` with BatchNorm folded, in batches of 512."""
    fewer = replace(options, batches_per_epoch=max(1, options.batches_per_epoch // 8))
    accelerator = build_accelerator(options.device)
    loader = accelerator.prepare(loaders_for("plain", 512, fewer).train)
    model = accelerator.prepare_model(fold_batchnorm(SceneClassifier(CLASSES)), evaluation_mode=True)
    predict(model, loader, accelerator)
    started = time.perf_counter()
    predict(model, loader, accelerator)
    return len(loader.dataset) / (time.perf_counter() - started)


def seconds_in_all(action: Callable, repeats: int, device: torch.device) -> float:
    """Seconds of so many calls, after three that set things up."""
    for _ in range(3):
        action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def explanations(options: Options):
    """Lines of the table for Score-CAM of one image, by the peers and ours, and for inversion."""
    device = torch.device(options.device)
    network = SceneClassifier(CLASSES).to(device).eval().requires_grad_(False)
    images = torch.randn(1, 3, options.size, options.size, device=device)
    network(images)
    for name, maps_of in {**PEERS, "ours": our_maps}.items():
        seconds = seconds_in_all(lambda maps_of=maps_of: maps_of(network, STAGE, images, 0), 1, device)
        yield {"case": f"Score-CAM, features[{STAGE}]", "implementation": name, "images_per_second": 1 / seconds}
    settings, classes = InversionSettings(image_size=options.size, steps=STEPS), tuple(range(CLASSES))
    normalization = MEAN["squash"], STD["squash"]
    seconds = seconds_in_all(
        lambda: invert(network, class_logit, classes, settings, *normalization, progress=False), 1, device
    )
    yield {
        "case": f"inversion, {STEPS} steps",
        "implementation": "ours",
        "batch_size": len(classes),
        "images_per_second": len(classes) / seconds,
    }


def measure_all(batch_sizes: list[int], options: Options):
    """Every line of the table, in order."""
    for batch_size in batch_sizes:
        for case in CASES:
            same = {"case": case, "batch_size": batch_size}
            yield same | {
                "implementation": "step alone",
                "images_per_second": rate_of_step_alone(case, batch_size, options),
            }
            for step in options.steps:
                if step == "eager" or case != "two views":  # a graph cannot record OfViews
                    rate = rate_of_loop(case, batch_size, step, options)
                    yield same | {"implementation": f"loop, {step}", "images_per_second": rate}
    yield {
        "case": "evaluation",
        "batch_size": 512,
        "implementation": "ours",
        "images_per_second": rate_of_evaluation(options),
    }
    yield from explanations(options)


def check_device(device: str):
    """Raise ValueError for a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no GPU here; --device cpu measures the same on the CPU")


def with_facts(line: dict, options: Options) -> dict:
    """A line with its images per second in four digits, and what they are of."""
    return line | {
        "images_per_second": float(f"{line['images_per_second']:.4g}"),
        "size": options.size,
        "precision": resolve_precision("auto", torch.device(options.device)),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else machine(),
        "torch": torch.__version__,
    }


def write_table(path: Path, batch_sizes: list[int], options: Options):
    """Measure everything and write the table after every line; print each."""
    lines = []
    for line in measure_all(batch_sizes, options):
        lines.append(with_facts(line, options))
        print(lines[-1], flush=True)
        pd.DataFrame(lines).to_csv(path, index=False)


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256], help="images in a batch")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batches-per-epoch", type=int, default=BATCHES_PER_EPOCH)
    parser.add_argument("--output", type=Path, default=FOLDER / "gpu.csv")
    options = parser.parse_args(arguments)

    def measure():
        check_device(options.device)
        asked = Options(options.device, options.size, options.batches_per_epoch)
        write_table(options.output, options.batches, asked)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
