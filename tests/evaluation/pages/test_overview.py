"""The figure of the front page shows every pretext, every model that is explained, and leaves out what is not."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image

from data.files import CODE
from evaluation import few_labels, plots
from evaluation.pages.overview import SHOWN, digest_of_figure, draw_overview
from evaluation.pages.tables import SHORT_TABLE
from experiments import EXPERIMENTS, configure
from tests.evaluation.synthetic_results import seeds


def test_the_figure_shows_the_pretexts_the_models_and_few_labels():
    names = list(SHORT_TABLE)[:2]
    images = np.random.default_rng(0).integers(0, 255, (3, 1, 64, 64), np.uint8)
    maps = {name: {"8": torch.rand(2, 64, 64)} for name in ("byol_classifier", "distilled_long")}
    explained = SimpleNamespace(
        scenes=SimpleNamespace(images=images, names=["a/1.jpg", "b/2.jpg", "c/3.jpg"]), shown=[2, 0], maps=maps
    )
    columns = ["features", "seed", "images_per_class", "draw", "readout", "test_accuracy"]
    lines = [
        (features, 0, number, draw, readout, 0.5 + 0.01 * draw)
        for features in ("ImageNet", "BYOL")
        for number in (1, 5)
        for draw in (0, 1)
        for readout in (few_labels.ALONE, few_labels.SPREAD)
    ]
    results = {**seeds(names[0], range(10)), **seeds(names[1], range(20))}
    figure = draw_overview(explained, results, pd.DataFrame(lines, columns=columns))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[: len(SHOWN) + 3] == [
        "photograph",
        "rotation: 90 degrees",
        "perturbation: a white square,\nmagnified in the corner",
        "jigsaw: quarters 2143",
        "BYOL: view 1",
        "BYOL: view 2",
    ]
    (inset,) = figure.axes[2].child_axes
    left, right = map(round, inset.get_xlim())
    bottom, top = map(round, inset.get_ylim())
    shown = np.asarray(inset.images[0].get_array())[top:bottom, left:right]
    assert (shown == 255).mean() > 0.8  # of such small images the magnified part is the square
    assert titles[-6:] == ["c", "distilled", "BYOL", "a", "distilled", "BYOL"]
    (few,) = (ax for ax in figure.axes if ax.get_xlabel() == "labeled images per class")
    assert [line.get_label() for line in few.get_lines()] == [
        "BYOL",
        "ImageNet",
        "BYOL, labels spread to neighbors",
        "ImageNet, labels spread to neighbors",
    ]
    byol, imagenet = ({line.get_label(): line for line in few.get_lines()}[name] for name in ("BYOL", "ImageNet"))
    assert [byol.get_color(), imagenet.get_color()] == [plots.KINDS[name][0] for name in ("byol", "imagenet")]
    plt.close(figure)


def test_the_committed_figure_shows_the_committed_numbers(study):
    experiments = {name: configure(each, "full") for name, each in EXPERIMENTS.items()}
    few = few_labels.collect(experiments, "full")
    with Image.open(CODE / "docs" / "overview.jpg") as figure:
        assert figure.info["comment"].decode() == digest_of_figure(
            study, few, CODE / "results" / "full" / "explanations"
        )
