"""Pictures of numbers that others have computed.  Each function draws on the axes it is given; none shows or saves."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import NullFormatter

ACCURACY_TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 0.99)


def plot_curves(curves: dict[str, list[float]], ylabel: str, ax=None):
    """One line a name against the epoch, which counts from 1."""
    ax = ax or plt.gca()
    for name, values in curves.items():
        ax.plot(range(1, len(values) + 1), values, label=name)
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def plot_history(history: dict[str, list[float]], quantity: str, ax=None):
    """The train, val and test lines of a result's history; quantity is "loss" (nats an image) or "accuracy"."""
    curves = {
        split: history[f"{split}_{quantity}"] for split in ("train", "val", "test") if f"{split}_{quantity}" in history
    }
    return plot_curves({name: values for name, values in curves.items() if values}, quantity, ax)


def plot_accuracies(table, ax=None):
    """One line a row of `metrics.results_table`: test accuracy with its interval, course accuracy, the earlier one.

    On a logit axis, so that rows near 1 can be told apart beside one near chance.
    """
    ax = ax or plt.gca()
    places = np.arange(len(table))[::-1]
    below, above = table["test"] - table["from"], table["to"] - table["test"]
    ax.errorbar(table["test"], places, xerr=[below, above], fmt="o", capsize=3, label="test, with 95 % interval")
    ax.plot(table["course"], places, "x", color="black", label="course (chosen and reported on all)")
    ax.plot(table["earlier"].astype(float), places, "D", color="grey", markersize=4, label="earlier report (course)")
    ax.set_xscale("logit", nonpositive="clip")
    ax.set_xlim(max(0.01, table["from"].min() - 0.03), min(0.999, table["to"].max() + 0.01))
    low, high = ax.get_xlim()
    ax.set_xticks(*[[each for each in ACCURACY_TICKS if low <= each <= high]] * 2)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(places, table.index)
    ax.set_xlabel("accuracy (logit axis)")
    ax.grid(alpha=0.3)
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.legend(fontsize=8)
    return ax


def draw_trials(searches: dict):
    """A figure of one panel a search: its trials by learning rate and batch size, coloured by loss, the best ringed.

    `searches` are tables of trials by name, with the columns learning_rate, batch_size and value; colours are shared.
    """
    figure, axes = plt.subplots(
        1, len(searches), figsize=(3 * len(searches), 3), squeeze=False, sharey=True, layout="constrained"
    )
    values = np.concatenate([table["value"].dropna() for table in searches.values()])
    norm = LogNorm(values.min(), values.max())
    for ax, (name, table) in zip(axes[0], searches.items(), strict=True):
        drawn = ax.scatter(table["learning_rate"], table["batch_size"], c=table["value"], norm=norm, cmap="viridis_r")
        best = table.loc[table["value"].idxmin()]
        ax.scatter(best["learning_rate"], best["batch_size"], s=150, facecolors="none", edgecolors="red")
        ax.set_title(f"{name}: lowest {best['value']:.3f}", fontsize=9)
        ax.set_xscale("log")
        ax.set_xlabel("learning rate")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("batch size")
    figure.colorbar(drawn, ax=axes, label="val loss")
    return figure


def plot_best_so_far(curves, ax=None):
    """One line a sampler, the mean over its seeds, in a band from the lowest to the highest of them.

    `curves` is a table of `searches.best_so_far`.
    """
    ax = ax or plt.gca()
    for sampler, of_sampler in curves.groupby(level="sampler", sort=False):
        (line,) = ax.plot(curves.columns, of_sampler.mean(), marker=".", label=f"{sampler} (seeds: {len(of_sampler)})")
        ax.fill_between(
            curves.columns, of_sampler.min(), of_sampler.max(), color=line.get_color(), alpha=0.15, linewidth=0
        )
    ax.set_xlabel("trials")
    ax.set_ylabel("lowest val loss so far")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def draw_loss_curves(curves, trials):
    """A figure of one panel a cell of a grid of learning rate and weight decay: the loss against the step.

    `curves` has a column a trial and a row a step, `trials` a row a trial with the columns trial, learning_rate,
    weight_decay and converged; green has converged.  The vertical axis is linear near 0 and logarithmic beyond.
    """
    rates, decays = (sorted(trials[name].unique()) for name in ("learning_rate", "weight_decay"))
    size = (1.9 * len(decays) + 0.5, 1.4 * len(rates) + 0.5)
    figure, axes = plt.subplots(
        len(rates), len(decays), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for trial in trials.to_dict("records"):
        ax = axes[rates.index(trial["learning_rate"]), decays.index(trial["weight_decay"])]
        values = curves[trial["trial"]]
        ax.plot(values.index, values, color="tab:green" if trial["converged"] else "tab:red")
        ax.set_yscale("symlog", linthresh=1)
        ax.grid(alpha=0.3)
    for ax, decay in zip(axes[0], decays, strict=True):
        ax.set_title(f"weight decay {decay:g}", fontsize=8)
    for ax, rate in zip(axes[:, 0], rates, strict=True):
        ax.set_ylabel(f"learning rate\n{rate:g}", fontsize=8)
    figure.supxlabel("step", fontsize=9)
    return figure


def plot_confusion_matrix(matrix: np.ndarray, class_names, ax=None):
    """Counts with their numbers, coloured by the share of the row; rows are true, columns predicted classes."""
    ax = ax or plt.gca()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix > 0):
        colour = "white" if shares[row, column] > 0.5 else "black"
        ax.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=6)
    ax.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=7)
    ax.set_yticks(range(len(class_names)), class_names, fontsize=7)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return ax


def plot_images(images, titles, columns: int, axes=None):
    """Images (N, channels, height, width) of bytes in a grid, each with its title; 1 channel is drawn grey."""
    rows = -(-len(images) // columns)
    if axes is None:
        _, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.8 * rows), squeeze=False)
    for ax in np.ravel(axes):
        ax.axis("off")
    for ax, image, title in zip(np.ravel(axes), images, titles, strict=False):
        ax.imshow(np.asarray(image).transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        ax.set_title(title, fontsize=8)
    return axes


def plot_heat_map(pixels, heat_map, ax=None):
    """A heat map (H, W) in 0..1 in jet colours with a colour bar, over the grey image (1 or 3, H, W) of bytes."""
    ax = ax or plt.gca()
    ax.imshow(np.asarray(pixels).mean(axis=0), cmap="gray", vmin=0, vmax=255)
    drawn = ax.imshow(np.asarray(heat_map), cmap="jet", vmin=0, vmax=1, alpha=0.5)
    ax.figure.colorbar(drawn, ax=ax, fraction=0.046, pad=0.03)
    ax.axis("off")
    return ax


def draw_heat_map_sheet(images, titles, maps: dict, images_across: bool = False):
    """A figure of one line an image: itself with its title, then its heat map of every name (a layer, a model).

    `images` are bytes (1 or 3, S, S) each, `maps` (images, S, S) in 0..1 by name.  With `images_across` there is one
    column an image instead.
    """
    lines, columns = (1 + len(maps), len(images)) if images_across else (len(images), 1 + len(maps))
    size = (2.1 * columns, 2.1 * lines + 0.3)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    axes = axes.T if images_across else axes
    plot_images(images, titles, columns=1, axes=axes[:, 0])
    for column, (name, of_images) in zip(axes[:, 1:].T, maps.items(), strict=True):
        column[0].set_title(name, fontsize=8, loc="left" if images_across else "center")
        for ax, image, heat_map in zip(column, images, of_images, strict=True):
            plot_heat_map(image, heat_map, ax)
    return figure


def plot_embedding(places, labels, class_names, ax=None):
    """Images at their places (N, 2), coloured by label (N,), with the classes' names."""
    ax = ax or plt.gca()
    colours = plt.get_cmap("tab20")
    for label, name in enumerate(class_names):
        of_class = places[np.asarray(labels) == label]
        ax.scatter(of_class[:, 0], of_class[:, 1], s=4, color=colours(label % 20), label=name)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.legend(fontsize=6, markerscale=2)
    return ax


def plot_probe_by_stage(tables: dict, ax=None):
    """One line a name: test accuracy with its interval against the stage of the network.

    Each table has rows of `probes.probe_stages`, one a stage: those of one probe for several models, say.
    """
    ax = _plot_accuracies_with_bands(tables, "stage", ax)
    ax.set_xlabel("stage of the network")
    return ax


def plot_label_fractions(tables: dict, ax=None):
    """One line a name: mean test accuracy with its interval against the labelled images a class, in logarithms.

    Each table is of `probes.mean_of_draws`.
    """
    ax = _plot_accuracies_with_bands(tables, "images_per_class", ax)
    ax.set_xscale("log")
    numbers = sorted({number for table in tables.values() for number in table["images_per_class"]})
    ax.set_xticks(numbers, numbers)
    ax.minorticks_off()
    ax.set_xlabel("labelled images a class")
    return ax


def _plot_accuracies_with_bands(tables, column, ax):
    ax = ax or plt.gca()
    for name, table in tables.items():
        (line,) = ax.plot(table[column], table["test_accuracy"], marker="o", markersize=4, label=name)
        ax.fill_between(table[column], table["from"], table["to"], color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set_ylabel("test accuracy, with 95 % interval")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def draw_feature_maps(maps: dict, channels: int = 7):
    """A figure of one line a layer: its first so many channels, (channels, height, width) by name, of one image.

    Each map has the whole range of colours, since layers differ in scale.
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
    """One line a name: eigenvalues, the largest first, against their place, in logarithms; zeros are left out."""
    ax = ax or plt.gca()
    for name, eigenvalues in spectra.items():
        above_zero = np.asarray(eigenvalues)[np.asarray(eigenvalues) > 0]
        ax.plot(range(1, len(above_zero) + 1), above_zero, label=name)
    ax.set_yscale("log")
    ax.set_xlabel("place")
    ax.set_ylabel("eigenvalue of the covariance")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)
    return ax
