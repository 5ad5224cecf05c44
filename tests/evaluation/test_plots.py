import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

from evaluation import plots
from self_supervised.dataloader import PRETEXTS


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_curves_count_epochs_from_one():
    ax = plots.plot_curves({"one": [0.1, 0.5, 0.9]}, "accuracy", plt.figure().gca())
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata().tolist() == [0.1, 0.5, 0.9]
    assert ax.get_ylabel() == "accuracy"


def test_a_history_shows_only_what_was_measured():
    history = {"train_loss": [2.0, 1.0], "val_loss": [2.1, 1.5], "test_loss": [], "train_accuracy": [0.1, 0.2]}
    ax = plots.plot_history(history, "loss", plt.figure().gca())
    assert [line.get_label() for line in ax.lines] == ["train", "val"]


def test_accuracies_are_plotted_from_top_to_bottom_with_their_intervals():
    table = pd.DataFrame(
        {
            "test": [0.9, 0.5],
            "low": [0.88, 0.4],
            "high": [0.91, 0.6],
            "earlier protocol": [0.92, 0.55],
            "earlier report": [0.93, None],
        },
        index=["one", "two"],
    )
    ax = plots.plot_accuracies(table, plt.figure().gca())
    test, _, _, earlier_protocol, earlier_report = ax.lines  # the second and third are caps of the intervals
    assert test.get_xdata().tolist() == [0.9, 0.5]
    assert earlier_protocol.get_xdata().tolist() == [0.92, 0.55] and earlier_protocol.get_ydata().tolist() == [1, 0]
    assert earlier_report.get_xdata().tolist() == pytest.approx([0.93, np.nan], nan_ok=True)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]
    (interval,) = ax.containers
    assert interval.lines[2][0].get_segments()[1][:, 0].tolist() == pytest.approx([0.4, 0.6])


def test_a_kind_of_features_has_one_color_and_every_name_its_own_style():
    names = ["BYOL", "BYOL with neighbours", "ImageNet", "rotation, epoch 3", "rotation, epoch 6", "unknown", "other"]
    styles = plots.styles_of(names)
    assert len({(style["color"], style["marker"], str(style["linestyle"])) for style in styles.values()}) == len(names)
    assert len({style["marker"] for style in list(styles.values())[:5]}) == 5
    alone = plots.styles_of(["neighbours", "byol_classifier", "cifar10_byol"])
    assert alone["byol_classifier"] == styles["BYOL"] and alone["cifar10_byol"]["marker"] != styles["BYOL"]["marker"]
    assert plots.styles_of(["random"], kinds={})["random"]["color"] == plots.OTHERS[0][0]


def test_names_of_no_kind_and_curves_of_one_kind_can_be_distinguished_without_color():
    for names in ([f"name {number}" for number in range(5)], [f"rotation {number}" for number in range(5)]):
        styles = plots.styles_of(names).values()
        assert len({str(style["linestyle"]) for style in styles}) == len({style["marker"] for style in styles}) == 5


def test_measures_and_losses_have_words_and_units():
    assert plots.in_words("val_loss") == "val loss (nats per image)"
    assert plots.in_words("val_accuracy") == "val accuracy"
    assert "_" not in plots.in_words("neighbour_purity") + plots.in_words("rank_me")


def searched(*values):
    return pd.DataFrame(
        {"learning_rate": [1e-5, 1e-3, 1e-2][: len(values)], "batch_size": [4, 8, 16][: len(values)], "value": values}
    )


def test_trials_have_a_panel_per_search_with_shared_colors_and_the_best_ringed():
    figure = plots.draw_trials({"grid": searched(2.0, 0.5, 1.0), "random": searched(0.8, None, 3.0)})
    grid, random, colour_bar = figure.axes
    assert grid.get_title() == "grid: lowest 0.500" and random.get_title() == "random: lowest 0.800"
    trials, ring = grid.collections
    assert trials.get_offsets().tolist() == [[1e-5, 4], [1e-3, 8], [1e-2, 16]]
    assert ring.get_offsets().tolist() == [[1e-3, 8]]
    assert trials.get_clim() == random.collections[0].get_clim() == (0.5, 3.0)
    assert colour_bar.get_ylabel() == plots.in_words("val_loss")


def test_best_so_far_is_the_mean_over_seeds_in_the_band_of_all():
    index = pd.MultiIndex.from_tuples([("tpe", 0), ("tpe", 1), ("grid", 0)], names=["sampler", "seed"])
    curves = pd.DataFrame([[3.0, 1.0], [5.0, 2.0], [4.0, 4.0]], index=index, columns=[1, 2])
    ax = plots.plot_best_so_far(curves, plt.figure().gca())
    assert [(line.get_label(), line.get_ydata().tolist()) for line in ax.lines] == [
        ("tpe (seeds: 2)", [4.0, 1.5]),
        ("grid (seeds: 1)", [4.0, 4.0]),
    ]
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.0, 5.0)


def test_loss_curves_are_in_the_panel_of_their_settings_colored_by_convergence():
    trials = pd.DataFrame(
        {
            "trial": [0, 1, 2],
            "learning_rate": [1.0, 0.1, 1.0],
            "weight_decay": [0.01, 0.01, 10.0],
            "converged": [True, False, False],
        }
    )
    curves = pd.DataFrame({0: [0.0, -1.0], 1: [0.0, -2.0], 2: [0.0, -3.0]}, index=[1, 2])
    figure = plots.draw_loss_curves(curves, trials)
    axes = np.reshape(figure.axes, (2, 2))
    losses = [[[line.get_ydata().tolist() for line in ax.lines] for ax in line] for line in axes]
    assert losses == [[[[0.0, -2.0]], []], [[[0.0, -1.0]], [[0.0, -3.0]]]]
    lines = [line for ax in axes[1] for line in ax.lines]
    assert [line.get_label() for line in lines] == ["converged", "did not converge"]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["converged", "did not converge"]
    assert axes[0, 1].get_title() == "weight decay 10" and axes[1, 0].get_ylabel() == "learning rate\n1"


def test_a_confusion_matrix_shows_its_counts():
    ax = plots.plot_confusion_matrix(np.array([[5, 1], [0, 0]]), ["a", "b"], plt.figure().gca())
    assert {(text.get_position(), text.get_text()) for text in ax.texts} == {((0, 0), "5"), ((1, 0), "1")}
    fractions = ax.images[0].get_array()
    assert fractions[0].tolist() == pytest.approx([5 / 6, 1 / 6])
    assert np.isfinite(fractions).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_unchanged_with_their_titles(channels):
    images = np.random.default_rng(0).integers(0, 255, (3, channels, 8, 8), dtype=np.uint8)
    axes = plots.plot_images(images, ["a", "b", "c"], columns=2)
    assert axes.shape == (2, 2)
    assert [ax.get_title() for ax in axes.ravel()] == ["a", "b", "c", ""]
    assert np.array_equal(np.squeeze(images[0].transpose(1, 2, 0)), np.squeeze(axes[0, 0].images[0].get_array()))
    assert axes[0, 0].images[0].get_clim() == (0, 255)


@pytest.mark.parametrize("value", [0.0, 0.5, float("nan")])
def test_a_map_that_shows_nothing_is_not_drawn(value):
    ax = plots.plot_heat_map(np.zeros((1, 8, 8), np.uint8), np.full((8, 8), value), plt.figure().gca())
    assert len(ax.images) == 1 and [text.get_text() for text in ax.texts] == [plots.EMPTY_MAP]


def test_a_heat_map_is_over_the_gray_image_with_a_color_bar():
    pixels = np.stack([np.full((8, 8), value, dtype=np.uint8) for value in (0, 90, 150)])
    ax = plots.plot_heat_map(pixels, np.eye(8), plt.figure().gca())
    gray, overlay = ax.images
    assert gray.get_array()[0, 0] == 80 and gray.get_clim() == (0, 255)
    assert np.array_equal(overlay.get_array(), np.eye(8)) and overlay.get_clim() == (0, 1)
    assert overlay.get_cmap().name == "jet" and overlay.colorbar.ax.get_ylabel() == plots.MAP_VALUES


def test_a_heat_map_of_another_size_covers_the_whole_image():
    ax = plots.plot_heat_map(np.zeros((1, 12, 16), np.uint8), np.eye(8), plt.figure().gca())
    gray, overlay = ax.images
    assert overlay.get_extent() == gray.get_extent() == [-0.5, 15.5, 11.5, -0.5]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 15.5), (11.5, -0.5))


def test_a_sheet_has_a_line_per_image_and_a_column_per_map():
    images = [np.zeros((channels, 8, 8), dtype=np.uint8) for channels in (1, 3)]
    maps = {"layer 1": np.stack([np.eye(8), 0.5 * np.eye(8)]), "layer 8": np.zeros((2, 8, 8))}
    figure = plots.draw_heat_map_sheet(images, ["a", "b"], maps)
    axes = [ax for ax in figure.axes if ax.images]
    assert [ax.get_ylabel() for ax in figure.axes if not ax.images] == [plots.MAP_VALUES]
    assert [ax.get_title() for ax in axes[:6]] == ["a", "layer 1", "layer 8", "b", "", ""]
    assert axes[4].images[1].get_array().max() == 0.5
    across = [ax for ax in plots.draw_heat_map_sheet(images, ["a", "b"], maps, images_across=True).axes if ax.images]
    assert [ax.get_title() or ax.get_title(loc="left") for ax in across[:6]] == ["a", "b", "layer 1", "", "layer 8", ""]
    assert across[3].images[1].get_array().max() == 0.5


def test_an_embedding_has_a_point_per_image_in_the_color_of_its_class():
    places = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    ax = plots.plot_embedding(places, [0, 1, 0], ["a", "b"], plt.figure().gca())
    assert [each.get_label() for each in ax.collections] == ["a", "b"]
    assert ax.collections[0].get_offsets().tolist() == [[0, 1], [4, 5]]
    assert not np.array_equal(*(each.get_facecolor()[0] for each in ax.collections))


def test_probes_have_a_line_per_model_against_the_stage_with_intervals():
    table = pd.DataFrame({"stage": [0, 1], "test_accuracy": [0.4, 0.8], "from": [0.3, 0.7], "to": [0.5, 0.9]})
    ax = plots.plot_probe_by_stage({"first": table, "second": table.assign(test_accuracy=0.6)}, plt.figure().gca())
    assert [line.get_label() for line in ax.lines] == ["first", "second"]
    assert ax.lines[0].get_xdata().tolist() == [0, 1]
    assert ax.lines[0].get_ydata().tolist() == [0.4, 0.8]
    corners = ax.collections[0].get_paths()[0].vertices.tolist()
    assert [0, 0.3] in corners and [1, 0.9] in corners


def test_label_fractions_have_a_logarithmic_axis_and_no_band_without_an_interval():
    table = pd.DataFrame(
        {"images_per_class": [1, 10, 100], "test_accuracy": [0.4, 0.6, 0.8], "from": [0.3, 0.5, np.nan]}
    ).assign(to=[0.5, 0.7, np.nan])
    ax = plots.plot_label_fractions({"one": table}, plt.figure().gca())
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "10", "100"]
    assert ax.lines[0].get_ydata().tolist() == [0.4, 0.6, 0.8]
    assert ax.collections[0].get_paths()[0].vertices[:, 0].max() == 10


def test_feature_maps_are_in_a_line_per_layer_each_with_its_own_scale():
    maps = {"layer1": np.arange(3 * 16.0).reshape(3, 4, 4), "layer2": 100 * np.arange(9 * 4.0).reshape(9, 2, 2)}
    axes = plots.draw_feature_maps(maps, channels=7).axes
    assert [len(ax.images) for ax in axes] == [1, 1, 1, 0, 0, 0, 0] + [1] * 7
    assert axes[7].get_title() == "layer2: 0"
    assert np.array_equal(axes[8].images[0].get_array(), maps["layer2"][1])
    assert axes[8].images[0].get_clim() == (400, 700)


def test_a_spectrum_has_no_zeros():
    ax = plots.plot_spectra({"a": np.array([4.0, 1.0, 0.0, 0.0])}, plt.figure().gca())
    (line,) = ax.lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1, 2], [4, 1])
    assert ax.get_yscale() == "log"


def test_histories_have_a_panel_per_result_with_the_chosen_epoch_marked():
    results = {name: {"history": {"val_accuracy": [0.2, 0.6, 0.5]}, "epoch": 2} for name in ("a", "b", "c", "d")}
    figure = plots.draw_histories(results, columns=3)
    axes = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()][0] == "val"
    assert len(figure.legends) == 1 and all(ax.get_legend() is None for ax in axes)
    assert [ax.get_title() for ax in axes] == ["a", "b", "c", "d", "", ""]
    val, chosen = axes[3].lines
    assert val.get_ydata().tolist() == [0.2, 0.6, 0.5] and chosen.get_xdata() == [2, 2]
    assert not axes[5].axison


def test_groups_of_curves_have_only_experiments_with_a_result():
    results = {"a": {"history": {"val_accuracy": [0.2]}}}
    one, none = plots.draw_curve_groups({"one": ["a", "b"], "none": ["b"]}, results).axes[:2]
    assert [line.get_label() for line in one.lines] == ["a"]
    assert len(none.lines) == 0 and none.get_title() == "none"


def test_probes_have_a_line_of_panels_per_group_and_a_column_per_probe():
    columns = {"stage": [0, 1], "from": [0.1, 0.1], "to": [0.9, 0.9]}
    table = pd.concat(
        pd.DataFrame(columns).assign(probe=probe, test_accuracy=accuracy)
        for probe, accuracy in (("linear", 0.6), ("20 nearest", 0.4))
    )
    axes = plots.draw_probes({"a": table}, {"first": ["a", "b"], "second": ["b"]}).axes
    assert [ax.get_legend() is not None for ax in axes] == [False, True, False, False]
    assert [ax.get_title() for ax in axes] == [
        "first: linear",
        "first: 20 nearest",
        "second: linear",
        "second: 20 nearest",
    ]
    assert [[line.get_ydata().tolist() for line in ax.lines] for ax in axes] == [[[0.6, 0.6]], [[0.4, 0.4]], [], []]


def test_names_of_other_scripts_are_drawn_by_fonts_that_are_installed():
    assert plots.fallback_fonts({"DejaVu Sans", "Yu Gothic", "Noto Sans CJK JP"}) == ["Noto Sans CJK JP", "Yu Gothic"]
    assert plots.plt.rcParams["font.family"][0] == "sans-serif"  # matplotlib's own is the first


def test_pretext_epochs_are_plotted_with_the_losses_and_the_control():
    table = pd.DataFrame({"pretext": "rotation", "epochs": [3, 6], "test": [0.5, 0.4]})
    table = table.assign(low=table["test"] - 0.1, high=table["test"] + 0.2)
    losses, accuracies = plots.draw_pretext_epochs(
        table, {"rotation": [2.0, 1.0]}, {"rotation": 0.9, "other": 0.1}
    ).axes
    assert losses.lines[0].get_ydata().tolist() == [2.0, 1.0]
    (interval,) = accuracies.containers
    assert interval.lines[2][0].get_segments()[0].tolist() == [[3, pytest.approx(0.4)], [3, pytest.approx(0.7)]]
    assert [line.get_ydata() for line in accuracies.lines if line.get_linestyle() == ":"] == [[0.9, 0.9]]


def test_pretexts_show_as_many_images_as_fit_under_all_their_labels():
    images = np.random.default_rng(0).integers(0, 255, (8, 1, 16, 16), dtype=np.uint8)
    axes = plots.draw_pretexts({name: PRETEXTS[name](images) for name in ("rotation", "perturbation")}, columns=5).axes
    titles = [ax.get_title() for ax in axes]
    assert titles == [*(f"{angle} degrees" for angle in (0, 90, 180, 270)), "", *["black", "white"] * 2, ""]
    shown = [np.asarray(ax.images[0].get_array()) for ax in axes if ax.images]
    assert np.array_equal(shown[1], np.rot90(shown[0]))
    assert (shown[4] != shown[5]).sum() == 100 and not np.array_equal(shown[4], shown[6])


def test_lines_of_images_have_their_names_and_titles():
    images = np.zeros((3, 1, 8, 8), dtype=np.uint8)
    axes = plots.draw_image_lines({"a": (images, ["x", "y", "z"]), "b": (images[:1], ["w"])}).axes
    assert [ax.get_title() for ax in axes] == ["x", "y", "z", "w", "", ""]
    assert [ax.texts[0].get_text() for ax in axes[::3]] == ["a", "b"]
    assert plots.draw_image_lines({}).axes


def test_columns_by_stage_have_a_panel_each():
    table = pd.DataFrame({"stage": [0, 1], "rank_me": [1.0, 2.0], "purity": [0.1, 0.2]})
    axes = plots.draw_columns_by_stage({"a": table, "b": table}, ["rank_me", "purity"]).axes
    assert [ax.get_ylabel() for ax in axes] == [plots.in_words("rank_me"), "purity"]
    assert [[line.get_ydata().tolist() for line in ax.lines] for ax in axes] == [[[1.0, 2.0]] * 2, [[0.1, 0.2]] * 2]


NAMES = ["cost_$5_to_$9", "a$10^$b", "$\\frac{", r"back\$slash$", "two\nlines $x$", "\udcff\udcfe not UTF-8 $1$"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_drawn_letter_by_letter(name):
    pictures = np.zeros((2, 3, 4, 4), np.uint8)
    heat_maps, places = np.zeros((2, 4, 4)), np.zeros((2, 2))
    figures = [
        plots.draw_heat_map_sheet(pictures, [name, "b"], {name: heat_maps}),
        plots.draw_image_lines({name: (pictures, [name, "b"])}),
        plots.draw_embeddings({name: places}, [0, 1], [name, "b"]),
        plots.draw_confusion_matrices({name: (np.eye(2, dtype=int), [name, "b"])}),
        plots.plot_curves({name: [1.0, 2.0]}, "loss", plt.figure().gca()).figure,
        plots.plot_spectra({name: [1.0, 0.1]}, plt.figure().gca()).figure,
    ]
    for figure in figures:
        figure.canvas.draw()  # mathematics that cannot be parsed is an error here
        texts = [
            text for text in figure.findobj(Text) if "$" in text.get_text() and "mathdefault" not in text.get_text()
        ]
        assert texts
        for text in texts:
            shown, is_mathematics = text._preprocess_math(text.get_text())
            assert not is_mathematics and shown == plots.readable(name)
        plt.close(figure)


def test_embeddings_share_one_legend():
    places = np.array([[0.0, 1.0], [2.0, 3.0]])
    figure = plots.draw_embeddings({"a": places, "b": places}, [0, 1], ["dark", "light"])
    assert all(ax.get_legend() is None for ax in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dark", "light"]


def test_randomisation_is_plotted_with_its_interval():
    table = pd.DataFrame({"mean": [0.5, 0.1], "from": [0.2, 0.0], "to": [0.6, 0.3]}, index=["head", "all"])
    ax = plots.plot_randomization(table, plt.figure().gca())
    (interval,) = ax.containers
    assert interval.lines[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([0.2, 0.6])
    plots.plot_randomization(pd.DataFrame(), plt.figure().gca())


def test_histories_and_groups_plot_the_quantity_that_is_asked_for():
    results = {"a": {"history": {"val_loss": [2.0], "val_accuracy": [0.2], "test_loss": [3.0]}, "epoch": 1}}
    (ax,) = plots.draw_histories(results, quantity="loss").axes
    assert [line.get_ydata().tolist() for line in ax.lines[:2]] == [[2.0], [3.0]]
    (ax,) = plots.draw_curve_groups({"one": ["a"]}, results, quantity="test_loss").axes
    assert ax.lines[0].get_ydata().tolist() == [3.0] and ax.get_ylabel() == plots.in_words("test_loss")


def test_spectra_stand_by_source_above_those_of_fewer_images():
    spectra = pd.DataFrame(
        {
            "images": [2, 4, 4, 2, 4, 4],
            "eigenvalue": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "features": ["after", "before", "after"] * 2,
            "images_of": ["sea"] * 3 + ["sky"] * 3,
        }
    )
    axes = plots.draw_spectra(spectra, tuned="after").axes
    values = [{line.get_label(): line.get_ydata().tolist() for line in ax.lines} for ax in axes]
    assert values[:2] == [{"before": [2.0], "after": [3.0]}, {"before": [5.0], "after": [6.0]}]
    assert values[2:] == [{"2 images": [1.0], "4 images": [3.0]}, {"2 images": [4.0], "4 images": [6.0]}]
    plots.draw_spectra(pd.DataFrame(), tuned="after")


def test_differences_are_plotted_with_their_intervals_and_a_mark():
    table = pd.DataFrame({"experiment": ["a", "b"], "compared_with": ["c", "c"], "difference": [0.1, -0.2]})
    table = table.assign(low=table["difference"] - 0.1, high=table["difference"] + 0.2)
    ax = plots.plot_differences(table, {"earlier": 0.03}, plt.figure().gca())
    (interval,) = ax.containers
    assert interval.lines[2][0].get_segments()[0].tolist() == [[0.0, 1.0], [pytest.approx(0.3), 1.0]]
    assert [line.get_xdata()[0] for line in ax.lines[-2:]] == [0, 0.03]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a\nminus c", "b\nminus c"]


def covered(legend, figure, lines) -> bool:
    """Whether the box of a legend has a point of a line in it."""
    figure.canvas.draw()
    box = legend.get_window_extent()
    points = [line.get_transform().transform(line.get_path().interpolated(50).vertices) for line in lines]
    return any(box.contains(x, y) for x, y in np.concatenate(points))


def test_legends_of_training_curves_cover_no_curve():
    high = {"history": {"val_accuracy": [0.0, 1.0, 0.0, 1.0, 0.5], "val_loss": [0.0, 1.0] * 3}, "epoch": 2}
    results = {f"a long name of experiment {number}": high for number in range(5)}
    losses = pd.DataFrame({f"class {number}": [number, 0.0, 4.0] for number in range(15)})
    figures = [
        plots.draw_histories(results),
        plots.draw_curve_groups({"one": list(results), "two": list(results)[:2]}, results),
        plots.draw_inversion_losses({"one": losses, "two": losses}),
    ]
    for figure in figures:
        legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
        assert legends
        lines = [line for ax in figure.axes for line in ax.lines if len(line.get_xdata()) > 2]
        assert not any(covered(legend, figure, lines) for legend in legends)


def test_what_would_be_plotted_wrongly_is_refused():
    image, ax = np.zeros((3, 8, 8), dtype=np.uint8), plt.figure().add_subplot()
    with pytest.raises(ValueError, match=r"shape \(3, 3\), but there are 2 class names"):
        plots.plot_confusion_matrix(np.eye(3), ["a", "b"], ax)
    with pytest.raises(ValueError, match="2 images and 1 titles"):
        plots.plot_images([image, image], ["a"], 2)
    for plot in (lambda: plots.plot_images([image.T], ["a"], 1), lambda: plots.plot_heat_map(image.T, np.eye(8), ax)):
        with pytest.raises(ValueError, match=r"shape \(8, 8, 3\); .* channels first"):
            plot()
    with pytest.raises(ValueError, match="'acuracy'; it must be loss or accuracy"):
        plots.plot_history({"train_accuracy": [0.5]}, "acuracy", ax)
    assert not ax.images and not ax.lines
    assert len(plots.plot_confusion_matrix(torch.tensor([[2, 0], [1, 3]]), ["a", "b"], ax).texts) == 3
