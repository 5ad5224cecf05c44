"""Class probabilities, and a command that prints and draws them.

    python -m evaluation.predict photo.jpg --model supervised_short

The command prints the most probable classes of each image.  It draws each image beside its Score-CAM for the most
probable class.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn
from tqdm import tqdm

from data.files import expanded
from evaluation import plots
from evaluation.checkpoints import check_images, load_trained
from evaluation.hooks import eval_mode
from evaluation.plots import readable
from evaluation.scorecam import probabilities_of, score_cam
from helper_functions import logits_of
from runs import run_command

TOP = 5  # classes shown
BATCH = 64  # images
LONGEST_STEM = 240  # bytes


@torch.inference_mode()
def class_probabilities(model: nn.Module, images: torch.Tensor | Iterable) -> np.ndarray:
    """The probability (N, classes), 0..1, of each class, in float32 whatever precision the model was trained in.

    `images` are normalised images (N, 3, H, W), or a loader of (images, labels), whose order is that of the result.
    The model runs in eval mode and is left in its own mode.
    """
    batches = images.split(BATCH) if isinstance(images, torch.Tensor) else (batch for batch, _ in images)
    with eval_mode(model):
        return torch.cat([probabilities_of(logits_of(model, batch)).cpu() for batch in batches]).numpy()


def draw_prediction(pixels: np.ndarray, heat_map, probabilities: np.ndarray, class_names, title: str):
    """A figure of one image, uint8 (1 or 3, S, S), its heat map (S, S), and its most probable classes."""
    figure, (plain, explained, bars) = plt.subplots(
        1, 3, figsize=(10, 3.2), width_ratios=(1, 1.2, 1.2), layout="constrained"
    )
    plots.plot_images([pixels], [title], columns=1, axes=[plain])
    plots.plot_heat_map(pixels, heat_map, explained)
    explained.set_title(plots.plain(f"Score-CAM for {class_names[probabilities.argmax()]}"), fontsize=8)
    top = probabilities.argsort()[::-1][:TOP]
    bars.barh([plots.plain(class_names[label]) for label in top][::-1], probabilities[top][::-1])
    bars.set_xlim(0, 1)
    bars.set_xlabel("probability")
    return figure


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.predict", description="Print and draw the most probable classes of images"
    )
    parser.add_argument("images", nargs="+", type=expanded, metavar="IMAGE")
    parser.add_argument("--model", required=True, metavar="RUN", help="name of a trained run, or path of its file")
    parser.add_argument("--layer", default="8", help="of the heat map: a stage, 0 to 8, or the name of a module")
    parser.add_argument("--output", type=expanded, default=Path("predictions"), help="folder of the figures")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return run_command(lambda: _predict(options))


def _predict(options):
    run = load_trained(options.model)
    explained = run.ready_to_explain([options.layer])
    check_images(options.images)
    if options.output.is_file():
        raise ValueError(f"{options.output} is a file; --output takes a folder")
    for number, path in enumerate(tqdm(options.images, desc="Score-CAM", unit="image"), start=1):
        (pixels,), image = run.read([path])  # one at a time, so that memory does not grow with their number
        (probabilities,) = class_probabilities(run.model, image)
        top = probabilities.argsort()[::-1][:TOP]
        listed = ", ".join(f"{run.class_names[label]} {probabilities[label]:.3f}" for label in top)
        tqdm.write(f"{readable(path)}: {listed}")
        found = score_cam(explained.model, image, explained.layer(options.layer), [top[0]])
        figure = draw_prediction(pixels, found.maps[0], probabilities, run.class_names, readable(path.name))
        options.output.mkdir(parents=True, exist_ok=True)
        target = options.output / f"{number:03d}_{_shortened(readable(path.stem))}.png"
        figure.savefig(target, dpi=120)
        plt.close(figure)
        tqdm.write(f"  {target}")


def _shortened(name: str) -> str:
    """The beginning of a name that leaves room for more in the 255 bytes of a file's name."""
    return name.encode()[:LONGEST_STEM].decode(errors="ignore")


if __name__ == "__main__":
    sys.exit(main())
