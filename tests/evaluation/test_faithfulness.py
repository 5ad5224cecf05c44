import contextlib
import copy
import functools

import numpy as np
import pandas as pd
import pytest
import torch
import torchcam.metrics
from torch import nn

from evaluation import faithfulness
from evaluation.faithfulness import (
    LOWER_IS_BETTER,
    black_baseline,
    blurred_baseline,
    cascading_randomization,
    compare_maps,
    confidences,
    deletion,
    drop_in_confidence,
    edge_maps,
    increase_in_confidence,
    insertion,
    masked_images,
    mean_baseline,
    measure_faithfulness,
    random_maps,
)
from evaluation.scorecam import score_cam
from evaluation.statistics import mean_difference

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


class LeftHalf(nn.Module):
    """The logit of class 0 is the brightness of the left half, that of class 1 is constant."""

    def __init__(self):
        super().__init__()
        self.colours = nn.Conv2d(3, 3, 1, bias=False)
        self.colours.weight = nn.Parameter(torch.eye(3)[:, :, None, None])

    def forward(self, images):
        left, _ = self.colours(images).relu().chunk(2, dim=3)
        brightness = left.mean(dim=(1, 2, 3))
        return torch.stack([40 * brightness, torch.full_like(brightness, 2.0)], dim=1)


def two_patches():
    """A red patch in the left half, an equal green one in the right, all else black: (1, 3, 16, 16)."""
    image = torch.zeros(1, 3, 16, 16)
    image[0, 0, 4:12, 1:7] = 1
    image[0, 1, 4:12, 9:15] = 1
    return image


def normalized(pixels):
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


# --- baselines and control maps --------------------------------------------------------------------------------------


def test_black_is_zero_before_the_normalisation_and_not_after():
    images = torch.rand(2, 3, 4, 4)
    black = black_baseline(images, MEAN, STD)
    assert black.shape == images.shape
    assert torch.allclose(black, normalized(torch.zeros(2, 3, 4, 4)))
    assert black[0, :, 0, 0].tolist() == pytest.approx([-1, -1.6, -1.5])


def test_the_mean_is_each_images_own_color():
    images = torch.rand(2, 3, 4, 4)
    baseline = mean_baseline(images)
    assert baseline.shape == images.shape
    assert torch.allclose(baseline[1, :, 2, 3], images[1].mean(dim=(1, 2)))


def test_blur_is_a_gaussian_within_an_image_and_channel():
    images = torch.zeros(2, 3, 41, 41)
    images[0, 1, 20, 20] = 1
    blurred = blurred_baseline(images, sigma=2.0)
    assert blurred.dtype == images.dtype
    assert blurred[0, 1].sum().item() == pytest.approx(1)
    assert (blurred[0, 1, 20, 22] / blurred[0, 1, 20, 20]).item() == pytest.approx(np.exp(-0.5), rel=1e-4)
    assert blurred[1].sum() == 0 and blurred[0, 0].sum() == 0


def test_random_maps_depend_on_the_seed_only_and_are_as_smooth_as_their_grid():
    images = torch.rand(2, 3, 32, 32)
    maps = random_maps(images, grid=4, seed=1)
    assert maps.shape == (2, 32, 32)
    assert (maps.amin(dim=(1, 2)) == 0).all() and (maps.amax(dim=(1, 2)) == 1).all()
    assert torch.equal(maps, random_maps(torch.zeros_like(images), grid=4, seed=1))
    assert not torch.allclose(maps[0], maps[1]) and not torch.allclose(maps, random_maps(images, grid=4, seed=2))
    assert maps.diff(dim=2).abs().mean() < random_maps(images, grid=32, seed=1).diff(dim=2).abs().mean() / 4


def test_edge_maps_are_high_along_edges_and_zero_without():
    images = torch.zeros(2, 3, 8, 8)
    images[0, :, :, 4:] = 1  # one vertical edge
    maps = edge_maps(images)
    assert maps[0, 3].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert (maps[1] == 0).all()


# --- drop and increase -----------------------------------------------------------------------------------------------


def test_drop_and_increase_by_hand():
    original, masked = torch.tensor([0.8, 0.5, 0.4]), torch.tensor([0.2, 0.5, 0.6])
    assert drop_in_confidence(original, masked).tolist() == pytest.approx([0.75, 0, 0])
    assert increase_in_confidence(original, masked).tolist() == [0, 0, 1]


def test_a_map_of_ones_leaves_the_image_and_a_map_of_zeros_the_baseline(small_network):
    images, black = torch.randn(3, 3, 16, 16), black_baseline(torch.empty(3, 3, 16, 16), MEAN, STD)
    assert torch.allclose(masked_images(images, torch.ones(3, 16, 16), black), images, atol=1e-6)
    assert torch.equal(masked_images(images, torch.zeros(3, 16, 16), black), black)
    original = confidences(small_network, images, [0, 1, 2])
    masked = confidences(small_network, masked_images(images, torch.ones(3, 16, 16), images), [0, 1, 2])
    assert drop_in_confidence(original, masked).tolist() == [0, 0, 0]
    assert increase_in_confidence(original, masked).tolist() == [0, 0, 0]


def test_under_a_black_baseline_the_map_multiplies_the_pixels():
    pixels, maps = torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4)
    masked = masked_images(normalized(pixels), maps, black_baseline(pixels, MEAN, STD))
    assert torch.allclose(masked, normalized(pixels * maps[:, None]), atol=1e-6)


def test_confidences_are_softmax_probabilities_of_the_targets_and_leave_the_model_as_it_was(small_network):
    images = torch.rand(5, 3, 16, 16)
    small_network.train()
    found = confidences(small_network, images, [0, 1, 2, 0, 1], batch_size=2)
    assert small_network.training
    with torch.no_grad():
        expected = small_network.eval()(images).softmax(dim=1)[range(5), [0, 1, 2, 0, 1]]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


# --- deletion and insertion ------------------------------------------------------------------------------------------


class OnePixel(nn.Module):
    """Predicts class 0 while one pixel is bright, and class 1 otherwise."""

    def forward(self, images):
        bright = images[:, 0, 1, 1]
        return 1000 * torch.stack([bright - 0.5, 0.5 - bright], dim=1)


def test_the_area_under_a_step_by_hand():
    images, black = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    maps = torch.arange(16.0, 0, -1).reshape(1, 4, 4)  # decreasing row by row: the pixel is the sixth to be replaced
    curves = deletion(OnePixel(), images, maps, [0], black, pixels_per_step=4)
    assert curves.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curves.confidences.tolist() == [[1, 1, 0, 0, 0]]
    assert curves.areas.tolist() == [0.25 + 0.125]
    curves = insertion(OnePixel(), images, maps, [0], black, pixels_per_step=4)
    assert curves.confidences.tolist() == [[0, 0, 1, 1, 1]]
    assert curves.areas.tolist() == [0.125 + 0.5]


def test_the_area_accounts_for_a_shorter_last_step():
    images, black = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    maps = torch.arange(16.0, 0, -1).reshape(1, 4, 4)
    curves = deletion(OnePixel(), images, maps, [0], black, pixels_per_step=7)
    assert curves.fractions.tolist() == [0, 7 / 16, 14 / 16, 1]
    assert curves.confidences.tolist() == [[1, 0, 0, 0]]
    assert curves.areas.tolist() == [7 / 32]


def test_the_true_map_is_better_than_the_controls_where_one_half_determines_the_class():
    model, images = LeftHalf(), two_patches()
    found = score_cam(model, images, model.colours, [0])
    assert found.maps[0, :, :8].sum() > 0.9 * found.maps.sum()
    maps = {"Score-CAM": found.maps, "random": random_maps(images, grid=4), "edges": edge_maps(images)}
    black = black_baseline(images, mean=(0, 0, 0), std=(1, 1, 1))
    table = measure_faithfulness(model, images, maps, [0], {"black": black}, pixels_per_step=8)
    table = table.set_index("map")
    for control in ("random", "edges"):
        assert table.loc["Score-CAM", "deletion"] < table.loc[control, "deletion"] - 0.05
        assert table.loc["Score-CAM", "insertion"] > table.loc[control, "insertion"] + 0.05
    assert table.loc["Score-CAM", "drop"] < table.loc["random", "drop"]


def test_the_batch_size_is_respected_and_does_not_change_the_curves(small_network):
    images, maps, black = torch.randn(3, 3, 16, 16), torch.rand(3, 16, 16), torch.zeros(3, 3, 16, 16)
    sizes = []
    small_network.features.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    small_network.train()
    curves = [
        deletion(small_network, images, maps, [0, 1, 2], black, pixels_per_step=50, batch_size=batch_size)
        for batch_size in (4, 64)
    ]
    assert sizes == [4] * 5 + [1, 21]  # 3 images of 7 points
    assert torch.allclose(curves[0].confidences, curves[1].confidences, atol=1e-6)
    assert small_network.training
    original = confidences(small_network, images, [0, 1, 2])
    assert torch.allclose(curves[0].confidences[:, 0], original, atol=1e-6)


class GivenMaps:
    """A torchcam extractor that returns given maps, so that torchcam's metrics can measure them."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps
        self._hooks_off = contextlib.nullcontext

    def __call__(self, class_idx, scores):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]


def test_all_measures_equal_torchcams(small_network):
    torch.manual_seed(1)
    small_network.eval()
    images, maps, classes = torch.randn(6, 3, 16, 16), torch.rand(6, 16, 16), [0, 1, 2, 0, 1, 2]
    # torchcam reports only means over images, and hides by zeros after the normalization.
    zeros, softmax = torch.zeros_like(images), functools.partial(torch.softmax, dim=1)
    table = measure_faithfulness(
        small_network, images, {"given": maps}, classes, {"zero": zeros}, pixels_per_step=32
    ).mean(numeric_only=True)
    first = torchcam.metrics.ClassificationMetric(GivenMaps(small_network, maps), softmax)
    second = torchcam.metrics.DeletionInsertionMetric(GivenMaps(small_network, maps), softmax, steps=8)
    for metric in (first, second):
        metric.update(images, classes)
    expected = {**first.summary(), **second.summary()}
    assert table["drop"] == pytest.approx(expected["avg_drop"], abs=1e-6)
    assert table["increase"] == pytest.approx(expected["conf_increase"])
    assert table["deletion"] == pytest.approx(expected["deletion_auc"], abs=1e-6)
    assert table["insertion"] == pytest.approx(expected["insertion_auc"], abs=1e-6)


def test_wrong_sizes_targets_and_steps_are_refused(small_network):
    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"\(2, 8, 8\)"):
        deletion(small_network, images, torch.rand(2, 8, 8), [0, 0], images)
    with pytest.raises(ValueError, match=r"\(3, 1, 1\)"):
        insertion(small_network, images, torch.rand(2, 16, 16), [0, 0], torch.zeros(3, 1, 1))
    with pytest.raises(ValueError, match="2 images"):
        confidences(small_network, images, [0])
    with pytest.raises(ValueError, match=r"\[0, 3\]"):
        confidences(small_network, images, [0, 3])
    with pytest.raises(ValueError, match="pixels_per_step is 0"):
        deletion(small_network, images, torch.rand(2, 16, 16), [0, 0], images, pixels_per_step=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_left_out_and_counted(small_network, value):
    images, given = torch.randn(4, 3, 16, 16), torch.rand(4, 16, 16)
    given[1, 3, 5] = value
    maps, zeros = {"given": given, "random": random_maps(images)}, torch.zeros_like(images)
    curves = insertion(small_network, images, given, [0, 1, 2, 0], zeros)
    assert curves.areas.isfinite().tolist() == [True, False, True, True]
    measured = measure_faithfulness(small_network, images, maps, [0, 1, 2, 0], {"zero": zeros}, pixels_per_step=64)
    of_map = measured[measured["map"] == "given"].set_index("image")[list(LOWER_IS_BETTER)]
    assert of_map.loc[1].isna().all() and of_map.drop(1).notna().all(axis=None)
    compared = compare_maps(measured, ["random"], ["given"])
    assert compared["images_left_out"].tolist() == [1] * 4 and compared["advantage"].notna().all()


def test_models_of_another_precision_and_of_one_logit_have_confidences(small_network):
    images = torch.rand(3, 3, 16, 16)
    expected = confidences(small_network, images, [0, 1, 2])
    for dtype in (torch.float64, torch.bfloat16):
        model = copy.deepcopy(small_network).to(dtype)
        assert torch.allclose(confidences(model, images, [0, 1, 2]), expected, atol=0.01)
        assert blurred_baseline(images.to(dtype)).dtype == dtype and edge_maps(images.to(dtype)).isfinite().all()
    one = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    assert torch.allclose(confidences(one, images, [0, 0, 0]), one(images).sigmoid()[:, 0].double(), atol=1e-6)
    for wrong in ({"batch_size": 0}, {"target_classes": [0.0, 1.0, 2.0]}, {"images": images.byte()}):
        with pytest.raises(ValueError, match="batch_size is 0|whole numbers|uint8"):
            confidences(**{"model": small_network, "images": images, "target_classes": [0, 1, 2]} | wrong)


# --- comparisons of maps ---------------------------------------------------------------------------------------------


def test_a_comparison_is_the_mean_difference_in_the_direction_of_its_measure():
    generator = np.random.default_rng(0)
    noise, noise_of_other = generator.normal(0, 0.02, (2, 20))
    values = {  # drop, increase, deletion, insertion
        "Score-CAM": (0.2 + noise, 1.0, 0.3 + noise, 0.2 + noise),
        "random": (0.4 + noise_of_other, 1.0, 0.3 + noise_of_other, 0.4 + noise_of_other),
    }
    measured = pd.concat(
        pd.DataFrame(
            {"baseline": "black", "map": name, "image": range(20)} | dict(zip(LOWER_IS_BETTER, of_map, strict=True))
        )
        for name, of_map in values.items()
    )
    table = compare_maps(measured, ["Score-CAM"], ["random"]).set_index("measure")
    assert table["verdict"].to_dict() == {
        "drop": "better",
        "increase": "inconclusive",
        "deletion": "inconclusive",
        "insertion": "worse",
    }
    expected = mean_difference(0.2 + noise_of_other - noise, comparisons=4)
    assert table.loc["drop", ["advantage", "low", "high", "p"]].tolist() == pytest.approx(
        [expected.difference, expected.low, expected.high, expected.p_value]
    )
    assert table.loc["insertion", "advantage"] == pytest.approx(-table.loc["drop", "advantage"])
    assert table.loc["drop", ["images_better", "images_worse", "compared_with"]].tolist() == [20, 0, "random"]
    assert table.loc["insertion", ["images_better", "images_worse"]].tolist() == [0, 20]


def test_of_an_image_the_mean_over_baselines_counts_and_all_comparisons_are_one_family():
    generator = np.random.default_rng(0)
    names = [
        (baseline, name) for baseline in ("black", "mean") for name in ("Score-CAM", "Grad-CAM", "random", "edges")
    ]
    measured = pd.concat(
        pd.DataFrame({"baseline": baseline, "map": name, "image": range(9)}).assign(
            **{measure: generator.random(9) for measure in LOWER_IS_BETTER}
        )
        for baseline, name in names
    )
    table = compare_maps(measured, ["Score-CAM", "Grad-CAM"], ["random", "edges"])
    assert len(table) == 2 * 2 * 4
    values = measured.set_index(["baseline", "map"]).sort_index()["deletion"]
    mean_of = {name: (values["black", name].to_numpy() + values["mean", name].to_numpy()) / 2 for _, name in names}
    line = table.set_index(["map", "compared_with", "measure"]).loc[("Grad-CAM", "edges", "deletion")]
    expected = mean_difference(mean_of["edges"] - mean_of["Grad-CAM"], comparisons=16)
    assert line[["advantage", "p"]].tolist() == pytest.approx([expected.difference, expected.p_value])


# --- randomization ---------------------------------------------------------------------------------------------------


@pytest.fixture
def deeper_network():
    """Two stages and a head, for a cascade."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(6 * 6 * 6, 4)),
    ).eval()


def test_randomisation_changes_the_map_and_not_the_model(deeper_network):
    before, state = copy.deepcopy(deeper_network.state_dict()), torch.get_rng_state()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    parts = [deeper_network[2], deeper_network[1], deeper_network[0]]
    correlations = cascading_randomization(deeper_network, images, deeper_network[1], [0, 1, 2], parts)
    assert correlations.shape == (3, 3)
    assert (np.abs(correlations) <= 1).all()
    assert (correlations < 1).all() and (correlations[1:] < 0.9).all()
    assert (
        np.abs(correlations[1:]).mean() < correlations[0].mean()
    )  # at first only the scores are random, then the maps too
    assert all(torch.equal(tensor, before[name]) for name, tensor in deeper_network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    again = cascading_randomization(deeper_network, images, deeper_network[1], [0, 1, 2], parts)
    assert np.array_equal(correlations, again)


@pytest.fixture
def seen(monkeypatch):
    """Copies of the networks that Score-CAM is computed of, in their order."""
    copies = []

    def recording(model, *arguments, **options):
        copies.append(copy.deepcopy(model))
        return score_cam(model, *arguments, **options)

    monkeypatch.setattr(faithfulness, "score_cam", recording)
    return copies


def test_the_cascade_randomises_from_the_top_and_logits_still_depend_on_the_image(deeper_network, seen):
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    parts = [deeper_network[2], deeper_network[1], deeper_network[0]]
    cascading_randomization(deeper_network, images, deeper_network[0], [0, 1, 2], parts)
    original, *steps = seen

    def same(one, other, number):
        return torch.equal(one[number].state_dict()[WEIGHT[number]], other[number].state_dict()[WEIGHT[number]])

    assert [[same(step, original, number) for number in (2, 1, 0)] for step in steps] == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
    assert all(same(steps[0], step, 2) for step in steps)
    with torch.no_grad():
        assert all(step(images).std(dim=0).min() > 1e-3 for step in steps)


def test_every_batchnorm_of_a_randomized_part_takes_its_statistics_from_the_images(deeper_network, seen):
    deeper_network[2].insert(1, nn.BatchNorm1d(216, affine=False))  # a head begins with one in every released model
    deeper_network[2][1].running_var.fill_(9.0)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cascading_randomization(deeper_network, images, deeper_network[0], [0] * 5, [deeper_network[2], deeper_network[1]])
    _, head, stage = seen
    with torch.no_grad():
        for network in (head, stage):
            features = network[2][0](network[:2](images))
            assert torch.allclose(network[2][1].running_mean, features.mean(dim=0), rtol=0.01, atol=1e-4)
            assert torch.allclose(network[2][1].running_var, features.var(dim=0), rtol=0.01, atol=1e-4)
        maps = stage[1][0](stage[0](images))
        assert torch.allclose(stage[1][1].running_var, maps.var(dim=(0, 2, 3)), rtol=0.01)
    assert torch.equal(head[1][1].running_var, deeper_network[1][1].running_var)  # a part that is not yet random


def test_a_cascade_depends_on_its_seed_alone(deeper_network):
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def correlations(seed):
        torch.manual_seed(torch.seed() % 100)
        return cascading_randomization(
            deeper_network, images, deeper_network[1], [0, 1, 2], [deeper_network[2], deeper_network[1]], seed
        )

    assert np.array_equal(correlations(1), correlations(1))
    assert not np.allclose(correlations(1), correlations(2))


WEIGHT = {0: "0.weight", 1: "0.weight", 2: "1.weight"}


def test_a_part_that_cannot_be_randomised_is_refused(deeper_network):
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match="Linear"):
        cascading_randomization(deeper_network, images, deeper_network[0], [0, 1], [nn.Linear(2, 2)])

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, images):
            return self.scale * images

    deeper_network.insert(1, Scale())
    with pytest.raises(ValueError, match="Scale"):
        cascading_randomization(deeper_network, images, deeper_network[0], [0, 1], [deeper_network[1]])


def test_maps_and_baselines_without_names_are_refused(small_network):
    images, maps = torch.rand(2, 3, 16, 16), torch.rand(2, 16, 16)
    for given in ((maps, {"mean": images}), ({"a": maps}, images), ({}, {"mean": images})):
        with pytest.raises(ValueError, match="must be a dict of tensors by name"):
            measure_faithfulness(small_network, images, given[0], [0, 1], given[1])
    measured = pd.DataFrame({"map": ["cam", "edges"], "image": 0, **dict.fromkeys(faithfulness.LOWER_IS_BETTER, 0.5)})
    for names, others in (("cam", ["edges"]), (["cam"], "edges"), (["cma"], ["edges"])):
        with pytest.raises(ValueError, match="must be a list of maps that were measured: cam, edges"):
            faithfulness.compare_maps(measured, names, others)
    with pytest.raises(ValueError, match="red, green and blue need one value each"):
        faithfulness.black_baseline(images, 0.5, 0.5)
