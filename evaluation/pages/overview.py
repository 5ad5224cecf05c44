"""The figure of README.md: `python -m evaluation.pages.overview` writes docs/overview.jpg.

What the pretexts show, test accuracies with their intervals, accuracies with few labels, and heat maps of the compared
models.  It needs the photographs (data/15scene) besides the result files, so `make pages` does not write it.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from data.augment import AUGMENTATIONS, apply, draw
from data.files import root_folder, run_command, write_atomically
from evaluation import few_labels, plots
from evaluation.explain import LAYERS, STAMP, collect_explanations
from evaluation.explained import Explained
from evaluation.pages.tables import SHORT_TABLE
from evaluation.results import experiments_table, of_experiments, read_profile
from experiments import EXPERIMENTS, configure
from self_supervised.dataloader import PRETEXTS

BYOL = EXPERIMENTS["byol"]
SHOWN = (
    ("rotation", 1, "rotation: {}"),
    ("perturbation", 1, "perturbation: a {} square,\nmagnified in the corner"),
    ("jigsaw_2x2", 7, "jigsaw: quarters {}"),
)
EXPLAINED = (0, 1)  # photographs with heat maps; the pretexts show the first
WORDS = {  # of a model's heat map
    "distilled_long": "distilled",
    "rotation_classifier_tuned_10": "rotation",
    "perturbation_classifier_tuned_3": "perturbation",
    "byol_classifier": "BYOL",
}


def draw_overview(explained: Explained, results: Mapping[str, dict], few: pd.DataFrame) -> plt.Figure:
    """The figure: from the explanations, the results of all experiments, and `few_labels.collect`'s table."""
    figure = plt.figure(figsize=(11, 8.4), layout="constrained")
    above, middle, below = figure.subfigures(3, 1, height_ratios=(1.2, 2.2, 0.95))
    above.suptitle("What the pretexts show of a photograph", fontsize=12)
    _show_pretexts(explained.scenes.images[explained.shown[EXPLAINED[0]]], above)
    left, right = middle.subfigures(1, 2, width_ratios=(1.75, 1))
    left.suptitle("Scenes recognized: test accuracy, mean over runs", fontsize=12)
    table = experiments_table(of_experiments(results, SHORT_TABLE))
    ax = plots.plot_accuracies(table, left.subplots())
    ax.set_yticks(ax.get_yticks(), [SHORT_TABLE[name] for name in table.index], fontsize=8.5)
    ax.legend(fontsize=8, loc="lower left")
    words = f"mean of {few['draw'].nunique()} random choices of the labeled images\n(bands: its 95 % interval)"
    right.suptitle(f"Few labels: logistic regression on frozen features,\n{words}", fontsize=11)
    _show_few_labels(few_labels.accuracies(few), right.subplots())
    words = "Score-CAM of the true class after the last stage"
    below.suptitle(f"{words}, from the lowest (blue) to the highest value of each map (red)", fontsize=12)
    _show_maps(explained, below)
    return figure


def _show_pretexts(photograph: np.ndarray, figure):
    """A photograph (1 or 3, H, W) and what each pretext makes of it."""
    shown = [(photograph, "photograph")]
    for name, label, words in SHOWN:
        pretext = PRETEXTS[name](photograph[None])
        shown.append((pretext.item(label)[0], words.format(pretext.label_names[label])))
    pair = torch.from_numpy(photograph[None].repeat(2, axis=0))
    views = apply(draw(AUGMENTATIONS[BYOL.views], [0], views=2), pair, BYOL.view_size)
    shown += [(view.round().byte().numpy(), f"BYOL: view {number}") for number, view in enumerate(views, start=1)]
    images, titles = zip(*shown, strict=True)
    axes = figure.subplots(1, len(shown))
    plots.plot_images(images, titles, columns=1, axes=axes)
    for ax, image, (name, *_) in zip(axes[1:], images[1:], SHOWN, strict=False):
        if name == "perturbation":  # its square is small
            _magnify(np.asarray(image), (np.asarray(image) != photograph).any(axis=0), ax)
    for ax in axes:
        ax.title.set_fontsize(9)


def _magnify(image: np.ndarray, chosen: np.ndarray, ax):
    """Show the surroundings of the chosen pixels (H, W) of an image in the corner that is farthest from them."""
    size, reach = image.shape[-1], 0.08 * image.shape[-1]
    row, column = (each.mean() for each in np.nonzero(chosen))
    corner = [0.02 if column > size / 2 else 0.53, 0.53 if row > size / 2 else 0.02]
    inset = ax.inset_axes([*corner, 0.45, 0.45], xticks=[], yticks=[])
    inset.imshow(image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
    inset.set(xlim=(column - reach, column + reach), ylim=(row + reach, row - reach))
    inset.spines[:].set(color="red")
    ax.indicate_inset_zoom(inset, edgecolor="red", alpha=1)


def _show_few_labels(accuracies: pd.DataFrame, ax):
    readouts = {few_labels.ALONE: "{}", few_labels.SPREAD: "{}, labels spread to neighbors"}
    lines = {
        words.format(features): accuracies[(accuracies["features"] == features) & (accuracies["readout"] == readout)]
        for readout, words in readouts.items()
        for features in ("BYOL", few_labels.CONTROL)
    }
    plots.plot_label_fractions(lines, ax).set_ylabel("test accuracy")
    ax.legend(fontsize=8, handlelength=4, loc="lower right")


def _show_maps(explained: Explained, figure):
    """For each of EXPLAINED the photograph, and the heat map of its class by every model."""
    names = [name for name in WORDS if name in explained.maps]
    axes = iter(figure.subplots(1, len(EXPLAINED) * (1 + len(names))))
    for number in EXPLAINED:
        index = explained.shown[number]
        photograph, ax = explained.scenes.images[index], next(axes)
        plots.plot_images([photograph], [explained.scenes.names[index].split("/")[0]], columns=1, axes=[ax])
        ax.title.set_fontsize(9)
        for name in names:
            ax = plots.plot_heat_map(photograph, explained.maps[name][LAYERS[-1]][number], next(axes), colorbar=False)
            ax.set_title(WORDS[name], fontsize=9)


def digest_of_figure(results: Mapping[str, dict], few: pd.DataFrame, explanations: Path) -> str:
    """A digest of every number and label in the figure, and of the weights whose maps it shows.

    The file of the figure holds it as a comment: is it that of today?
    """
    table = experiments_table(of_experiments(results, SHORT_TABLE)).rename(index=SHORT_TABLE)
    text = "".join(each.round(4).to_csv() for each in (table, few_labels.accuracies(few)))
    text += "".join(word + (explanations / name / STAMP).read_text(encoding="utf-8") for name, word in WORDS.items())
    return hashlib.sha256(text.encode()).hexdigest()


def write_overview():
    """Write the figure below the root folder."""
    experiments = {name: configure(each, "full") for name, each in EXPERIMENTS.items()}
    explained = collect_explanations(experiments, "full")
    folder = root_folder() / "results" / "full"
    results, few = read_profile(folder), few_labels.collect(experiments, "full")
    figure = draw_overview(explained, results, few)
    digest, path = digest_of_figure(results, few, folder / "explanations"), root_folder() / "docs" / "overview.jpg"
    options = {"quality": 85, "comment": digest}
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100, pil_kwargs=options))
    print(path)


if __name__ == "__main__":
    sys.exit(run_command(write_overview))
