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

from evaluation import plots
from evaluation.checkpoints import load_trained
from evaluation.hooks import eval_mode
from evaluation.scorecam import score_cam
from runs import run_command

TOP = 5  # classes shown
BATCH = 64  # images


@torch.inference_mode()
def class_probabilities(model: nn.Module, images: torch.Tensor | Iterable) -> np.ndarray:
    """The probability (N, classes), 0..1, of each class, in float32 whatever precision the model was trained in.

    `images` are normalised images (N, 3, H, W), or a loader of (images, labels), whose order is that of the result.
    The model runs in eval mode and is left in its own mode.
    """
    batches = images.split(BATCH) if isinstance(images, torch.Tensor) else (batch for batch, _ in images)
    with eval_mode(model):
        return torch.cat([model(batch).softmax(dim=1).cpu() for batch in batches]).numpy()


def draw_prediction(pixels: np.ndarray, heat_map, probabilities: np.ndarray, class_names, title: str):
    """A figure of one image, uint8 (1 or 3, S, S), its heat map (S, S), and its most probable classes."""
    figure, (plain, explained, bars) = plt.subplots(
        1, 3, figsize=(10, 3.2), width_ratios=(1, 1.2, 1.2), layout="constrained"
    )
    plots.plot_images([pixels], [title], columns=1, axes=[plain])
    plots.plot_heat_map(pixels, heat_map, explained)
    explained.set_title(f"Score-CAM for {class_names[probabilities.argmax()]}", fontsize=8)
    top = probabilities.argsort()[::-1][:TOP]
    bars.barh([class_names[label] for label in top][::-1], probabilities[top][::-1])
    bars.set_xlim(0, 1)
    bars.set_xlabel("probability")
    return figure


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.predict", description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--model", required=True, metavar="RUN", help="name of a trained run, or path of its file")
    parser.add_argument("--layer", default="8", help="of the heat map: a stage, 0 to 8, or the name of a module")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder of the figures")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return run_command(lambda: _predict(options))


def _predict(options):
    run = load_trained(options.model)
    explained = run.folded().without_flip_tta()
    layer = explained.layer(options.layer)
    pixels, images = run.read(options.images)
    probabilities = class_probabilities(run.model, images)
    options.output.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(tqdm(options.images, desc="Score-CAM", unit="image")):
        top = probabilities[number].argsort()[::-1][:TOP]
        listed = ", ".join(f"{run.class_names[label]} {probabilities[number][label]:.3f}" for label in top)
        tqdm.write(f"{path}: {listed}")
        found = score_cam(explained.model, images[number : number + 1], layer, [top[0]])
        figure = draw_prediction(pixels[number], found.maps[0], probabilities[number], run.class_names, path.name)
        target = options.output / f"{number + 1:03d}_{path.stem}.png"
        figure.savefig(target, dpi=120)
        plt.close(figure)
        tqdm.write(f"  {target}")


if __name__ == "__main__":
    sys.exit(main())
