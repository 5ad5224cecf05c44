"""Figures of numbers that are computed elsewhere.  No function computes, shows or saves.

`plot_...` draws on the axes it is given (default: the current ones, for `plot_images` new ones) and returns them.
`draw_...` returns a new figure.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import ScaledTranslation

SHOWN_VIEWS = 6  # images whose views are drawn
EMPTY_MAP = "empty map"  # written over an image whose heat map shows nothing
MAP_VALUES = "0: lowest, 1: highest value of each map"
ACCURACY_TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 0.99)
KINDS = {  # of features, by how their names begin: color (after Okabe and Ito 2008), marker and line style
    "imagenet": ("black", "o", "-"),
    "byol with neighbours": ("#56B4E9", "D", "-."),
    "byol": ("#0072B2", "s", "--"),
    "neighbours": ("#009E73", "^", (0, (4, 1, 1, 1, 1, 1))),
    "rotation": ("#D55E00", "v", "-"),
    "perturbation": ("#E69F00", "P", "-."),
    "random": ("#808080", "X", ":"),
    "distilled": ("#CC79A7", "*", (0, (6, 1))),
    "fine-tuned": ("#CC79A7", "*", (0, (6, 1))),
    "from scratch": ("#882255", "h", "--"),
}
VARIANTS = (  # of one kind in a figure, after the first: marker, line style, and what its color is mixed with
    ("<", (0, (1, 1)), "white"),
    ("d", (0, (3, 1)), "black"),
    (">", (0, (8, 2)), "white"),
    ("p", (0, (1, 2)), "black"),
)
OTHERS = (  # names of no kind
    ("#332288", "o", "-"),
    ("#999933", "s", "--"),
    ("#AA4499", "^", "-."),
    ("#44AA99", "D", ":"),
    ("#661100", "v", (0, (6, 1))),
)
SPLITS = {"train": ("C0", "--"), "val": ("C1", "-"), "test": ("C2", "-.")}  # color and line style
FONTS = (  # on Linux, macOS and Windows, for scripts that matplotlib's own lacks
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Devanagari", "Noto Sans Thai"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),
)
COLUMNS = {  # of tables and histories, in words
    "neighbour_purity": "share of 20 nearest images of the same class",
    "rank_me": "dimensions used (RankMe)",
    "cka": "similarity to the initial features (CKA)",
    "loss": "loss (nats per image)",
    **{f"{split}_loss": f"{split} loss (nats per image)" for split in SPLITS},
}


def fallback_fonts(installed: Collection[str]) -> list[str]:
    """The fonts of FONTS that are installed, by name."""
    return [name for name in FONTS if name in installed]


# Class names and file names may be of any script, and matplotlib's own font has no signs of some.
plt.rcParams["font.family"] = [
    *plt.rcParams["font.family"],
    *fallback_fonts({font.name for font in font_manager.fontManager.ttflist}),
]


def readable(name) -> str:
    """A name that can be printed: bytes of a file's name that are not UTF-8 become question marks."""
    return os.fsencode(str(name)).decode("utf-8", errors="replace")


def plain(name) -> str:
    """A name that is drawn letter by letter: matplotlib takes what is between two dollar signs for mathematics."""
    return readable(name).replace("$", r"\$")


def in_words(column: str) -> str:
    """The name of a column, as the label of an axis."""
    return COLUMNS.get(column, column.replace("_", " "))


def styles_of(names: Iterable[str], kinds: Mapping[str, tuple] = KINDS) -> dict[str, dict]:
    """Color, marker and line style of each name, as the arguments of `plot`.

    All figures show features of one kind in one color.  Of several names of a kind the first has the style of the
    kind; the others have shades of its color, other markers and other line styles.
    """
    styles, numbers = {}, Counter()
    for name in names:
        begins = str(name).lower().removeprefix("cifar10_")
        kind = next((kind for kind in kinds if begins.startswith(kind)), None)
        color, marker, line = kinds[kind] if kind else OTHERS[numbers[kind] % len(OTHERS)]
        if kind and numbers[kind]:
            marker, line, other = VARIANTS[(numbers[kind] - 1) % len(VARIANTS)]
            color = tuple(0.65 * np.array(to_rgb(color)) + 0.35 * np.array(to_rgb(other)))
        numbers[kind] += 1
        styles[name] = {"color": color, "marker": marker, "linestyle": line}
    return styles


def plot_curves(curves: dict[str, list[float]], ylabel: str, ax=None, styles: dict | None = None):
    """One line per name, against the epoch, which counts from 1; `styles` are arguments of `plot` by name."""
    ax = ax or plt.gca()
    for name, values in curves.items():
        marker = "o" if len(values) == 1 else None  # a line of one point is not visible
        style = {"marker": marker, "markersize": 4, "markevery": max(1, len(values) // 8), "label": plain(name)}
        ax.plot(range(1, len(values) + 1), values, **{**style, **(styles or {}).get(name, {})})
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def plot_history(history: dict[str, list[float]], quantity: str, ax=None):
    """The train, val and test lines of a result's history; `quantity` is "loss" (nats per image) or "accuracy".

    That of `helper_functions.train` has its columns as `History.columns`.  Raises ValueError for another quantity.
    """
    if quantity not in ("loss", "accuracy"):
        raise ValueError(f"quantity is {quantity!r}; it must be loss or accuracy")
    curves = {
        split: history[f"{split}_{quantity}"] for split in ("train", "val", "test") if f"{split}_{quantity}" in history
    }
    styles = {split: {"color": color, "linestyle": line} for split, (color, line) in SPLITS.items()}
    return plot_curves({name: values for name, values in curves.items() if values}, in_words(quantity), ax, styles)


def plot_accuracies(table, ax=None):
    """One line per row of `results.results_table` or `experiments_table`: test accuracy with its interval.

    Beside it are the accuracy under the earlier protocol and that of the earlier report.  The axis is logit, so that
    accuracies near 1 can be distinguished.
    """
    ax = ax or plt.gca()
    places = np.arange(len(table))[::-1]
    reach = [table["test"] - table["low"], table["high"] - table["test"]]
    style = {"fmt": "o", "capsize": 3, "color": OTHERS[0][0], "markerfacecolor": "white"}
    ax.errorbar(table["test"], places, xerr=reach, label="test, 95 % interval", **style)
    ax.plot(table["earlier protocol"], places, "x", color="black", label="earlier protocol (optimistic)")
    style = {"color": "gray", "markersize": 4, "zorder": 3}  # above the circle
    ax.plot(table["earlier report"].astype(float), places, "D", label="earlier report", **style)
    ax.set_xscale("logit", nonpositive="clip")
    ax.set_xlim(max(0.01, table["low"].min() - 0.03), min(0.999, table["high"].max() + 0.01))
    low, high = ax.get_xlim()
    ax.set_xticks(*[[each for each in ACCURACY_TICKS if low <= each <= high]] * 2, rotation=45)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(places, map(plain, table.index))
    ax.set_xlabel("accuracy (logit axis)")
    ax.grid(alpha=0.3)
    ax.set_ylim(-0.6, len(table) - 0.4)
    _legend_above(ax)
    return ax


def draw_trials(searches: dict):
    """One panel per search: its trials by learning rate and batch size, colored by loss, the best one ringed.

    `searches` are tables of trials by name, with the columns learning_rate, batch_size and value.  All panels share
    one color scale.
    """
    figure, axes = plt.subplots(
        1, len(searches), figsize=(3 * len(searches), 3), squeeze=False, sharey=True, layout="constrained"
    )
    values = np.concatenate([table["value"].dropna() for table in searches.values()])
    norm = LogNorm(values.min(), values.max())
    for ax, (name, table) in zip(axes[0], searches.items(), strict=True):
        points = ax.scatter(table["learning_rate"], table["batch_size"], c=table["value"], norm=norm, cmap="viridis_r")
        best = table.loc[table["value"].idxmin()]
        ax.scatter(best["learning_rate"], best["batch_size"], s=150, facecolors="none", edgecolors="red")
        ax.set_title(f"{name}: lowest {best['value']:.3f}", fontsize=9)
        ax.set_xscale("log")
        ax.set_xlabel("learning rate")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("batch size")
    figure.colorbar(points, ax=axes, label=in_words("val_loss"))
    return figure


def plot_best_so_far(curves, ax=None):
    """One line per sampler: the mean over its seeds, in a band from the lowest to the highest.

    `curves` is a table of `search_comparison.best_so_far`.
    """
    ax = ax or plt.gca()
    styles = styles_of(curves.index.unique("sampler"), kinds={})  # "random" is a sampler here
    for sampler, of_sampler in curves.groupby(level="sampler", sort=False):
        style = {**styles[sampler], "markersize": 4, "label": f"{sampler} (seeds: {len(of_sampler)})"}
        (line,) = ax.plot(curves.columns, of_sampler.mean(), **style)
        ax.fill_between(
            curves.columns, of_sampler.min(), of_sampler.max(), color=line.get_color(), alpha=0.15, linewidth=0
        )
    ax.set_xlabel("trials")
    ax.set_ylabel("lowest val loss so far\n(nats per image)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    _legend_above(ax, columns=2)
    return ax


def draw_loss_curves(curves, trials):
    """A grid of panels by learning rate and weight decay: the loss of each trial against the step.

    `curves` has one column per trial and one row per step.  `trials` has one row per trial, with the columns trial,
    learning_rate, weight_decay and converged; green trials converged, the others are red and dashed.  The vertical
    axis is linear near 0, else logarithmic.
    """
    styles = {
        True: {"color": "#009E73", "linestyle": "-", "label": "converged"},
        False: {"color": "#D55E00", "linestyle": "--", "label": "did not converge"},
    }
    rates, decays = (sorted(trials[name].unique()) for name in ("learning_rate", "weight_decay"))
    size = (1.9 * len(decays) + 0.5, 1.4 * len(rates) + 0.5)
    figure, axes = plt.subplots(
        len(rates), len(decays), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for trial in trials.to_dict("records"):
        ax = axes[rates.index(trial["learning_rate"]), decays.index(trial["weight_decay"])]
        values = curves[trial["trial"]]
        ax.plot(values.index, values, **styles[bool(trial["converged"])])
        ax.set_yscale("symlog", linthresh=1)
        ax.grid(alpha=0.3)
    for ax, decay in zip(axes[0], decays, strict=True):
        ax.set_title(f"weight decay {decay:g}", fontsize=8)
    for ax, rate in zip(axes[:, 0], rates, strict=True):
        ax.set_ylabel(f"learning rate\n{rate:g}", fontsize=8)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("loss: minus the filter's mean", fontsize=9)
    handles = [Line2D([], [], **style) for style in styles.values()]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=8)
    return figure


def plot_confusion_matrix(matrix: np.ndarray, class_names, ax=None):
    """Counts (true class by predicted class), colored by their fraction of the true class.

    Raises ValueError unless there is one name for each class.
    """
    matrix = np.asarray(matrix)
    if matrix.shape != (len(class_names), len(class_names)):
        raise ValueError(f"the matrix has shape {matrix.shape}, but there are {len(class_names)} class names")
    ax = ax or plt.gca()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix > 0):
        color = "white" if fractions[row, column] > 0.5 else "black"
        ax.text(column, row, matrix[row, column], ha="center", va="center", color=color, fontsize=6)
    ax.set_xticks(range(len(class_names)), map(plain, class_names), rotation=90, fontsize=7)
    ax.set_yticks(range(len(class_names)), map(plain, class_names), fontsize=7)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return ax


def plot_images(images, titles, columns: int, axes=None):
    """Images uint8 (N, channels, height, width) in a grid, each with its title; one channel is shown in gray.

    Raises ValueError for images of another shape, and unless there is one title for each.
    """
    if len(images) != len(titles):
        raise ValueError(f"there are {len(images)} images and {len(titles)} titles; each image needs one")
    for image in images:
        _check_channels_first(image)
    rows = -(-len(images) // columns)
    if axes is None:
        _, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.8 * rows), squeeze=False)
    for ax in np.ravel(axes):
        ax.axis("off")
    for ax, image, title in zip(np.ravel(axes), images, titles, strict=False):
        ax.imshow(np.asarray(image).transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        ax.set_title(plain(title), fontsize=8)
    return axes


def _check_channels_first(image):
    """Raise ValueError unless an image is (1 or 3, H, W)."""
    shape = np.shape(image)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"an image has shape {tuple(shape)}; it must be (1 or 3, H, W), with the channels first")


def plot_heat_map(pixels, heat_map, ax=None, colorbar: bool = True):
    """A heat map (H, W) in 0..1, with or without a color bar, over all of the gray image, uint8 (1 or 3, H, W).

    A map of another size than the image is stretched over it.  A map that is the same everywhere, or not finite, shows
    nothing: the image stays as it is, and a note says so.  Raises ValueError for an image of another shape.
    """
    _check_channels_first(pixels)
    ax = ax or plt.gca()
    gray = ax.imshow(np.asarray(pixels).mean(axis=0), cmap="gray", vmin=0, vmax=255)
    heat_map = np.asarray(heat_map)
    if not np.isfinite(heat_map).all() or heat_map.min() == heat_map.max():
        ax.text(0.5, 0.5, EMPTY_MAP, ha="center", va="center", transform=ax.transAxes, bbox={"facecolor": "white"})
        ax.axis("off")
        return ax
    overlay = ax.imshow(heat_map, cmap="jet", vmin=0, vmax=1, alpha=0.5, extent=gray.get_extent())
    if colorbar:
        ax.figure.colorbar(overlay, ax=ax, fraction=0.046, pad=0.03).set_label(MAP_VALUES, fontsize=7)
    ax.axis("off")
    return ax


def draw_heat_map_sheet(images, titles, maps: dict, images_across: bool = False):
    """One line per image: the image with its title, then its heat map for every name (of a layer, or of a model).

    `images` are uint8 (1 or 3, S, S) each, `maps` are (images, H, W) in 0..1 by name.  With `images_across` there is
    one column per image instead.  All maps share one color bar.
    """
    lines, columns = (1 + len(maps), len(images)) if images_across else (len(images), 1 + len(maps))
    size = (2.1 * columns, 2.1 * lines + 0.3)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    axes = axes.T if images_across else axes
    plot_images(images, titles, columns=1, axes=axes[:, 0])
    for column, (name, of_images) in zip(axes[:, 1:].T, maps.items(), strict=True):
        column[0].set_title(plain(name), fontsize=8, loc="left" if images_across else "center")
        for ax, image, heat_map in zip(column, images, of_images, strict=True):
            plot_heat_map(image, heat_map, ax, colorbar=False)
    overlays = [ax.images[1] for ax in axes.ravel() if len(ax.images) > 1]
    if overlays:
        bar = figure.colorbar(overlays[0], ax=axes, fraction=0.03, pad=0.01, aspect=10 * lines)
        bar.set_label(MAP_VALUES, fontsize=8)
    return figure


def plot_embedding(places, labels, class_names, ax=None):
    """Images as points at their coordinates (N, 2), colored by label (N,), with a legend of the classes."""
    ax = ax or plt.gca()
    colors = plt.get_cmap("tab20")
    for label, name in enumerate(class_names):
        of_class = places[np.asarray(labels) == label]
        ax.scatter(of_class[:, 0], of_class[:, 1], s=4, color=colors(label % 20), label=plain(name))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.legend(fontsize=6, markerscale=2)
    return ax


def plot_probe_by_stage(tables: dict, ax=None):
    """One line per name: test accuracy with its interval, against the stage of the network.

    Each table has rows of `probes.probe_stages`, one per stage, for example of one probe.
    """
    ax = _plot_accuracies_with_bands(tables, "stage", ax)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("stage of the network")
    return ax


def plot_label_fractions(tables: dict, ax=None):
    """One line per name: mean test accuracy with its interval, against the labeled images per class (logarithmic).

    Each table is one of `probes.mean_of_draws`.
    """
    ax = _plot_accuracies_with_bands(tables, "images_per_class", ax)
    ax.set_xscale("log")
    numbers = sorted({number for table in tables.values() for number in table["images_per_class"]})
    ax.set_xticks(numbers, numbers)
    ax.minorticks_off()
    ax.set_xlabel("labeled images per class")
    return ax


def draw_few_labels(accuracies, differences):
    """Accuracy against labeled images per class, and the paired differences from the control, by readout.

    The tables are those of `few_labels.accuracies` and `few_labels.paired_differences`.  Lines of one color are of one
    features; the oracle, which chooses with more labels, is left out.
    """
    readouts = [each for each in accuracies["readout"].unique() if each != "oracle"]
    figure, axes = plt.subplots(
        2, len(readouts), figsize=(5 * len(readouts), 7), squeeze=False, sharey="row", layout="constrained"
    )
    styles = styles_of(accuracies["features"].unique())
    for column, readout in zip(axes.T, readouts, strict=True):
        column[0].set_title(readout)
        of_readout = accuracies[accuracies["readout"] == readout]
        plot_label_fractions(dict(list(of_readout.groupby("features", sort=False))), column[0])
        for features, lines in differences[differences["readout"] == readout].groupby("features", sort=False):
            low, high = lines["difference"] - lines["low"], lines["high"] - lines["difference"]
            style = {**styles[features], "markersize": 5, "capsize": 3, "label": features}
            column[1].errorbar(lines["images_per_class"], lines["difference"], (low, high), **style)
        column[1].axhline(0, color="black", linewidth=0.8)
        column[1].set_xscale("log")
        column[1].set_xticks(sorted(set(of_readout["images_per_class"])), sorted(set(of_readout["images_per_class"])))
        column[1].minorticks_off()
        column[1].set_xlabel("labeled images per class")
        column[1].grid(alpha=0.3)
    axes[1, 0].set_ylabel("difference from the control, 95 % interval")
    _one_legend(figure, axes[0], loc="outside upper center")
    return figure


def draw_pretext_features(tables: dict):
    """One panel per measure of `pretext_epochs.features_by_epoch`, one line per pretext."""
    measures, styles = ("rank_me", "cka", "neighbour_purity"), styles_of(tables)
    figure, axes = plt.subplots(1, len(measures), figsize=(13, 3.5), layout="constrained")
    for ax, measure in zip(axes, measures, strict=True):
        for name, table in tables.items():
            ax.plot(table["epoch"], table[measure], **styles[name], markersize=5, label=plain(name))
        ax.set_title(in_words(measure), fontsize=11)
        ax.set_xlabel("epoch of the pretext")
        ax.grid(alpha=0.3)
    _one_legend(figure, axes, loc="outside upper center")
    return figure


def draw_views(views):
    """Random views of the first SHOWN_VIEWS images, one column each; views (N, V, 3, S, S) are inputs of any scale."""
    views = np.asarray(views)[:SHOWN_VIEWS]
    images, views_per_image = views.shape[:2]
    size = (1.6 * images, 1.6 * views_per_image)
    figure, axes = plt.subplots(views_per_image, images, figsize=size, squeeze=False)
    for column, of_image in zip(axes.T, views, strict=True):
        for ax, view in zip(column, of_image, strict=True):
            ax.imshow(view.mean(axis=0), cmap="gray", vmin=views.min(), vmax=views.max())
            ax.axis("off")
    return figure


def _plot_accuracies_with_bands(tables, column, ax):
    ax, styles = ax or plt.gca(), styles_of(tables)
    for name, table in tables.items():
        (line,) = ax.plot(table[column], table["test_accuracy"], **styles[name], markersize=5, label=plain(name))
        ax.fill_between(table[column], table["from"], table["to"], color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set_ylabel("test accuracy, 95 % interval")
    ax.grid(alpha=0.3)
    _legend_above(ax, columns=2)
    return ax


def draw_feature_maps(maps: dict, channels: int = 7):
    """One line per layer: its first `channels` channels for one image; `maps` are (channels, height, width) by name.

    Each map has its own color scale, because layers differ in scale.
    """
    figure, axes = plt.subplots(
        len(maps), channels, figsize=(1.3 * channels, 1.4 * len(maps)), squeeze=False, layout="constrained"
    )
    for line, (name, of_layer) in zip(axes, maps.items(), strict=True):
        for number, (ax, feature_map) in enumerate(zip(line, of_layer, strict=False)):
            ax.imshow(np.asarray(feature_map, dtype=np.float32), cmap="viridis")
            ax.set_title(f"{name}: {number}" if number == 0 else str(number), fontsize=7)
    for ax in axes.ravel():
        ax.axis("off")
    return figure


def plot_spectra(spectra: dict, ax=None):
    """One line per name: eigenvalues, the largest first, on a logarithmic axis; zeros are left out."""
    ax, styles = ax or plt.gca(), styles_of(spectra)
    for name, eigenvalues in spectra.items():
        above_zero = np.asarray(eigenvalues)[np.asarray(eigenvalues) > 0]
        style = {**styles[name], "marker": None, "label": plain(name)}
        ax.plot(range(1, len(above_zero) + 1), above_zero, **style)
    ax.set_yscale("log")
    ax.set_xlabel("place of the eigenvalue (1: the largest)")
    ax.set_ylabel("eigenvalue of the covariance")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)
    return ax


def panels(count: int, columns: int, size: tuple[float, float], extra: float = 0, **options):
    """A figure and the axes (count,) of a grid of panels of `size` inches each; unused panels are hidden.

    `extra` inches of height are for a legend.
    """
    columns = min(columns, max(count, 1))
    lines = max(1, -(-count // columns))
    size = (size[0] * columns, size[1] * lines + extra)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained", **options)
    for ax in axes.ravel()[count:]:
        ax.axis("off")
    return figure, axes.ravel()[:count]


def draw_histories(results: dict, columns: int = 3, quantity: str = "accuracy"):
    """One panel per result: `quantity` (as in `plot_history`) on train, val and test against the epoch.

    A dotted line marks the chosen epoch.
    """
    figure, axes = panels(len(results), columns, (4, 2.7), extra=0.3)
    for ax, (name, result) in zip(axes, results.items(), strict=True):
        plot_history(result["history"], quantity, ax)
        ax.axvline(result["epoch"], color="gray", linestyle=":", label="epoch of the weights that are used")
        ax.set_title(plain(name), fontsize=9)
    _one_legend(figure, axes, loc="outside upper center")
    return figure


def draw_curve_groups(groups: dict, results: dict, quantity: str = "val_accuracy"):
    """One panel per group of experiments, {title: names}: a list of their history, of those with a result."""
    most = max(map(len, groups.values()), default=0)
    figure, axes = panels(len(groups), 3, (4.2, 2.8 + 0.14 * most))
    for ax, (title, names) in zip(axes, groups.items(), strict=True):
        curves = {name: results[name]["history"][quantity] for name in names if name in results}
        if curves:
            plot_curves(curves, in_words(quantity), ax, styles_of(curves))
            below = ax.transAxes + ScaledTranslation(0, -0.5, figure.dpi_scale_trans)  # of the label of the axis
            options = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
            ax.legend(fontsize=7, borderaxespad=0, handlelength=3, **options)
        else:
            ax.text(0.5, 0.5, "not run yet", ha="center", transform=ax.transAxes)
        ax.set_title(plain(title), fontsize=9)
    return figure


def draw_confusion_matrices(matrices: dict, columns: int = 3, size: float = 4.1):
    """One panel per entry of `metrics.confusion_matrices`: {title: (matrix, class names)}."""
    figure, axes = panels(len(matrices), columns, (size, size))
    for ax, (title, (matrix, class_names)) in zip(axes, matrices.items(), strict=True):
        plot_confusion_matrix(matrix, class_names, ax)
        ax.set_title(plain(title), fontsize=9)
    return figure


def draw_pretexts(pretexts: dict, columns: int = 6):
    """One line per pretext, {name: dataset}: as many images as fit, each under every label of the pretext.

    Of a pretext with more labels than columns the first ones are shown, of one image.  The datasets are those of
    self_supervised.dataloader, of at least `columns` images each or of as many as there are.
    """
    figure, axes = plt.subplots(
        len(pretexts), columns, figsize=(1.8 * columns, 2 * len(pretexts)), squeeze=False, layout="constrained"
    )
    for line, dataset in zip(axes, pretexts.values(), strict=True):
        number = len(dataset.label_names)
        shown = min(number, columns)
        sources = range(min(columns // shown, len(dataset.images)))
        items = [dataset.item(source * number + label) for source in sources for label in range(shown)]
        titles = [dataset.label_names[label] for _, label in items]
        plot_images([image for image, _ in items], titles, columns, axes=line)
    return figure


def draw_pretext_epochs(table, losses: dict, controls: dict):
    """Loss of each pretext by epoch, and test accuracy of the classifier on its features by epoch of the pretext.

    `table` is one of `results.pretext_epochs_table`; `losses` are the val losses of a pretext's epochs, by its name.
    `controls` are the accuracies of the same classifiers without a pretext, by its name.
    """
    figure, axes = panels(2, 2, (5.5, 3.6), extra=0.3)
    styles = styles_of(table["pretext"].unique())
    for name, group in table.groupby("pretext", sort=False):
        plot_curves({name: losses[name]}, "val loss of the pretext (nats per image)", axes[0], styles)
        reach = [group["test"] - group["low"], group["high"] - group["test"]]
        axes[1].errorbar(group["epochs"], group["test"], yerr=reach, capsize=3, label=plain(name), **styles[name])
        if name in controls:
            dotted = {**styles[name], "linestyle": ":", "marker": ""}
            axes[1].axhline(controls[name], label=f"no pretext, head of {plain(name)}", **dotted)
    axes[0].set_yscale("log")
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    axes[1].set_xlabel("epochs of the pretext")
    axes[1].set_ylabel("scene test accuracy, 95 % interval")
    axes[1].grid(alpha=0.3)
    _one_legend(figure, axes[1:], loc="outside upper center")
    return figure


def draw_probes(by_stage: dict, groups: dict, probes=("linear", "20 nearest")):
    """One line of panels per group, {title: names}, and one panel in it per probe: test accuracy by stage.

    `by_stage` are tables of `probes.probe_stages` by name.
    """
    size = (6 * len(probes) + 2.4, 3.8 * len(groups))  # with the legends at the right
    options = {"sharex": True, "sharey": True, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(groups), len(probes), figsize=size, **options)
    for line, (title, names) in zip(axes, groups.items(), strict=True):
        for ax, probe in zip(line, probes, strict=True):
            tables = {name: by_stage[name][by_stage[name]["probe"] == probe] for name in names if name in by_stage}
            if tables:
                plot_probe_by_stage(tables, ax)
                ax.get_legend().remove()
            ax.set_title(f"{title}: {probe}", fontsize=9)
        if line[-1].lines:
            line[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), handlelength=4)
    return figure


def draw_image_lines(lines: dict):
    """One line of images per name: {name: (images uint8 (N, 1 or 3, H, W), their titles)}."""
    columns = max((len(titles) for _, titles in lines.values()), default=1)
    height = max(len(lines), 1)
    figure, axes = plt.subplots(
        height, columns, figsize=(1.9 * columns + 0.4, 2.2 * height), squeeze=False, layout="constrained"
    )
    for line, (name, (images, titles)) in zip(axes, lines.items(), strict=False):
        plot_images(images, titles, columns, axes=line)
        line[0].text(
            -0.08, 0.5, plain(name), rotation=90, ha="right", va="center", fontsize=8, transform=line[0].transAxes
        )
    return figure


def draw_embeddings(places: dict, labels, class_names, columns: int = 2):
    """One panel per entry of {title: coordinates (N, 2)} of the same images; one legend beside them."""
    figure, axes = panels(len(places), columns, (6, 5))
    for ax, (title, of_images) in zip(axes, places.items(), strict=True):
        plot_embedding(of_images, labels, class_names, ax)
        ax.get_legend().remove()
        ax.set_title(plain(title), fontsize=10)
    if places:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, markerscale=3)
    return figure


def draw_columns_by_stage(tables: dict, columns):
    """One panel per column: its value against the column stage, one line per table, {name: table}."""
    figure, axes = panels(len(columns), len(columns), (6, 3.5), extra=0.3)
    styles = styles_of(tables)
    for ax, column in zip(axes, columns, strict=True):
        for name, table in tables.items():
            ax.plot(table["stage"], table[column], **styles[name], label=plain(name))
        ax.set_xlabel("stage of the network")
        ax.set_ylabel(in_words(column), fontsize=9)
        ax.grid(alpha=0.3)
    _one_legend(figure, axes, loc="outside upper center")
    return figure


def draw_inversion_losses(losses: dict):
    """One panel per entry of {title: losses}, a table with one column per image and one row per step."""
    figure, axes = panels(len(losses), 2, (5.5, 2.8))
    for ax, (title, table) in zip(axes, losses.items(), strict=True):
        colors = plt.get_cmap("tab10" if table.shape[1] <= 10 else "tab20").colors
        styles = {name: {"color": colors[number % len(colors)]} for number, name in enumerate(table)}
        plot_curves(dict(table.items()), "loss: minus the logit,\nor the filter's mean", ax, styles)
        ax.set_xlabel("step")
        ax.set_title(plain(title), fontsize=9)
        ax.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure


def plot_randomization(table, ax=None):
    """Mean and interval of `explained.randomization_table`, against the part down to which weights are randomized."""
    ax = ax or plt.gca()
    if len(table):
        reach = [table["mean"] - table["from"], table["to"] - table["mean"]]
        ax.errorbar(table.index, table["mean"], yerr=reach, marker="o", capsize=3)
    ax.axhline(0, color="gray", linestyle=":")
    ax.set_xlabel("randomized down to")
    ax.set_ylabel("rank correlation with the original\nmap, 95 % interval over seeds")
    return ax


def draw_spectra(spectra, tuned: str):
    """One column of panels per source of images: the spectra of each features, then those of `tuned` by images.

    `spectra` is a table of images (their number), place, eigenvalue, features and images_of (their source).
    """
    sources = list(dict.fromkeys(spectra["images_of"])) if len(spectra) else []
    figure, axes = panels(2 * len(sources), max(len(sources), 1), (4.5, 3.5))
    for above, below, source in zip(axes[: len(sources)], axes[len(sources) :], sources, strict=True):
        of_source = spectra[spectra["images_of"] == source]
        most = of_source["images"].max()
        by_features = of_source[of_source["images"] == most].groupby("features", sort=False)["eigenvalue"]
        plot_spectra({name: values.to_numpy() for name, values in by_features}, above)
        above.set_title(f"{plain(source)}: {most} images", fontsize=9)
        by_images = of_source[of_source["features"] == tuned].groupby("images")["eigenvalue"]
        plot_spectra({f"{number} images": values.to_numpy() for number, values in by_images}, below)
        below.set_title(f"{plain(source)}: {tuned}, by number of images", fontsize=9)
    return figure


def plot_differences(table, marks: dict | None = None, ax=None):
    """One line per row of `results.comparisons`: the difference of the accuracies with its interval.

    `marks` are differences to compare with, {label: difference}, as dotted lines.
    """
    ax = ax or plt.gca()
    places = np.arange(len(table))[::-1]
    reach = [table["difference"] - table["low"], table["high"] - table["difference"]]
    style = {"fmt": "D", "capsize": 4, "color": OTHERS[0][0], "label": "difference and its interval"}
    ax.errorbar(table["difference"], places, xerr=reach, **style)
    ax.axvline(0, color="black", linewidth=0.8)
    for label, difference in (marks or {}).items():
        ax.axvline(difference, color="#D55E00", linestyle=":", label=plain(label))
    names = [f"{one}\nminus {other}" for one, other in table[["experiment", "compared_with"]].values]
    ax.set_yticks(places, map(plain, names), fontsize=8)
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.set_xlabel("difference of the test accuracies")
    ax.grid(alpha=0.3)
    _legend_above(ax)
    return ax


def _legend_above(ax, columns: int = 3):
    ax.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, handlelength=3)


def _one_legend(figure, axes, **options):
    """A legend of all lines of these axes outside of them, each name once, and none on an axes of the figure."""
    entries = {}
    for ax in axes:
        entries |= {name: handle for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    for ax in figure.axes:
        if ax.get_legend():
            ax.get_legend().remove()
    if entries:
        columns = max(1, int(figure.get_figwidth() // 2))  # two inches each
        figure.legend(entries.values(), entries, fontsize=8, ncols=columns, handlelength=4, **options)
