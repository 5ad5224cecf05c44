"""The figure of README.md: `python -m evaluation.pages.overview` writes docs/overview.jpg.

What the pretexts show, test accuracies with their intervals, and heat maps of the compared models.  It needs the
photographs (data/15scene) besides the result files, so `make pages` does not write it.
"""

import sys

import matplotlib.pyplot as plt

from data.files import root_folder, run_command, write_atomically
from evaluation import plots
from evaluation.explain import collect_explanations
from evaluation.pages.tables import SHORT_TABLE
from evaluation.results import experiments_table, of_experiments, read_profile
from runs import EXPERIMENTS, configure
from self_supervised.dataloader import PRETEXTS

SHOWN = (("rotation", 1), ("rotation", 2), ("perturbation", 0), ("perturbation", 1), ("jigsaw_2x2", 7))
IMAGE = 0  # of the explained ones


def draw_overview(explained, results: dict):
    """The figure, from `explain.collect_explanations` and the results of all experiments."""
    figure = plt.figure(figsize=(11, 8.2), layout="constrained")
    above, middle, below = figure.subfigures(3, 1, height_ratios=(1, 2.3, 1.15))
    above.suptitle("What the pretexts show: an image under some of their labels", fontsize=10)
    photograph = explained.scenes.images[explained.shown[IMAGE] : explained.shown[IMAGE] + 1]
    axes = above.subplots(1, len(SHOWN) + 1)
    plots.plot_images([photograph[0]], ["photograph"], columns=1, axes=axes[:1])
    for ax, (name, label) in zip(axes[1:], SHOWN, strict=True):
        pretext = PRETEXTS[name](photograph)
        plots.plot_images([pretext.item(label)[0]], [f"{name}: {pretext.label_names[label]}"], columns=1, axes=[ax])
    middle.suptitle("Scene classification: test accuracy, mean over seeds", fontsize=10)
    table = experiments_table(of_experiments(results, SHORT_TABLE))
    ax = plots.plot_accuracies(table, middle.subplots())
    ax.set_yticks(ax.get_yticks(), [SHORT_TABLE[name] for name in table.index])
    below.suptitle("Where three models look for this class: Score-CAM after stages 1, 2 and 8", fontsize=10)
    maps = [(name, layer, by_layer[layer][IMAGE]) for name, by_layer in explained.maps.items() for layer in by_layer]
    for ax, (name, layer, heat_map) in zip(below.subplots(1, len(maps)), maps, strict=True):
        ax.imshow(photograph[0].mean(axis=0), cmap="gray", vmin=0, vmax=255)
        ax.imshow(heat_map, cmap="jet", vmin=0, vmax=1, alpha=0.5)
        ax.set_title(f"{name.removesuffix('_classifier')}\nstage {layer}", fontsize=7)
        ax.axis("off")
    return figure


def write_overview():
    """Write the figure below the root folder."""
    experiments = {name: configure(each, "full") for name, each in EXPERIMENTS.items()}
    figure = draw_overview(collect_explanations(experiments, "full"), read_profile(root_folder() / "results" / "full"))
    path = root_folder() / "docs" / "overview.jpg"
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100, pil_kwargs={"quality": 85}))
    print(path)


if __name__ == "__main__":
    sys.exit(run_command(write_overview))
