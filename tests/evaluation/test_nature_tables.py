"""The nature report's tables, on a few images of two classes whose probabilities are known."""

import numpy as np
import pandas as pd
import pytest

from data.image_cache import Scenes
from evaluation import nature_tables
from evaluation.explained import mistakes
from evaluation.nature import AFTER, BEFORE
from evaluation.nature_tables import EARLIER_MEAN_AVERAGE_PRECISION
from evaluation.pages.earlier_numbers import read_earlier_numbers
from supervised.settings import EARLIER_AVERAGE_PRECISION, EARLIER_NON_POSITIVE
from tests.evaluation.synthetic_results import result

IMAGES = 12
SEA = np.linspace(0.95, 0.05, IMAGES)  # the probability of the second class falls with the number of the image
PROBABILITIES = np.stack([1 - SEA, SEA], axis=1)
NAMES = ("forest", "sea")


@pytest.fixture
def results():
    """Of two experiments, of which one has scores; every second image is a sea."""
    first, other = (
        {**result(name, wrong=(0, 11), images=IMAGES, image_size=80), "class_names": list(NAMES)}
        for name in ("nature_resnet18_sgd_1e-2", "nature_resnet18_adam_1e-2")
    )
    return {"nature_resnet18_sgd_1e-2": first, "nature_resnet18_adam_1e-2": other}


@pytest.fixture
def scenes():
    images = np.arange(IMAGES, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 3, 4, 4), dtype=np.uint8)
    labels = np.arange(IMAGES) % 2
    return Scenes(images, labels, tuple(f"{number}.png" for number in range(IMAGES)), NAMES, "fingerprint", ())


def test_accuracies_stand_beside_the_map_of_the_experiments_that_have_scores(results):
    name = "nature_resnet18_sgd_1e-2"
    table = nature_tables.accuracies(results, {name: PROBABILITIES})
    precisions = nature_tables.average_precisions(results, {name: PROBABILITIES})
    assert precisions.index.tolist() == [name]
    assert table.loc[name, "mAP"] == precisions.loc[name, "mAP"] == precisions.loc[name, list(NAMES)].mean()
    assert np.isnan(table.loc["nature_resnet18_adam_1e-2", "mAP"])
    assert table.loc[name, "earlier mAP"] == EARLIER_MEAN_AVERAGE_PRECISION[name]
    assert table[["pixels", "of epochs"]].values.tolist() == [[80, 30]] * 2
    assert np.isnan(nature_tables.accuracies(results, {})["mAP"]).all()


def test_the_earlier_map_is_the_printed_one_which_is_not_always_the_mean_of_the_printed_precisions():
    table = nature_tables.earlier_average_precisions()
    printed = table["mAP"].to_dict()
    stated = {
        each.experiment: each.value
        for each in read_earlier_numbers()
        if (each.document, each.place, each.key) == ("004", "table 1", "average_precision mean")
    }
    assert printed == stated == EARLIER_MEAN_AVERAGE_PRECISION
    assert table.drop(columns="mAP").mean(axis=1).to_dict() == pytest.approx(printed, abs=1e-4)
    assert f"{np.mean(EARLIER_AVERAGE_PRECISION['nature_resnet18_adam_1e-3']):.4f}" == "0.7389"  # printed: 0.7388


def test_the_map_of_batches_lies_around_that_of_the_split_and_batches_larger_than_it_are_left_out(results):
    names = ["nature_resnet18_sgd_1e-2", "nature_resnet18_sgd_1e-2", "nature_resnet18_adam_1e-2"]
    table = nature_tables.map_of_single_batches(results, {names[0]: PROBABILITIES}, names, batches=50)
    assert table[["experiment", "images", "batches"]].values.tolist() == [[names[0], 8, 50]]
    line = table.iloc[0]
    assert line["lowest"] < line["complete split"] < line["highest"] <= 1


def test_classes_have_their_average_precision_where_there_are_scores(results):
    one = results["nature_resnet18_sgd_1e-2"]
    table = nature_tables.by_class(one, PROBABILITIES)
    assert table.loc["sea", "recall"] == pytest.approx(5 / 6)
    assert table.loc["macro avg", "average precision"] == table.loc[list(NAMES), "average precision"].mean()
    assert "average precision" not in nature_tables.by_class(one, None)


def test_rankings_show_the_ends_with_the_true_classes(scenes):
    lines = nature_tables.ranking_lines(scenes, PROBABILITIES, count=3)
    assert list(lines) == ["sea: highest\n(1 of 3 are)", "sea: lowest\n(2 of 3 are)"]
    (highest, titles), (lowest, _) = lines.values()
    assert [image[0, 0, 0] for image in highest] == [0, 1, 2]
    assert [image[0, 0, 0] for image in lowest] == [11, 10, 9]
    assert titles[:2] == ["forest\n9.5e-01", "sea\n8.7e-01"]
    assert len(nature_tables.ranking_lines(scenes.subset(range(IMAGES)), PROBABILITIES, count=2)) == 2


def test_mistakes_come_by_confidence_with_both_classes(scenes):
    images, titles = mistakes(scenes, PROBABILITIES, count=2)
    assert [image[0, 0, 0] for image in images] == [0, 11]
    assert titles == ["forest, not\nsea 0.95", "sea, not\nforest 0.95"]


def test_shares_stand_beside_those_of_the_reports_at_the_same_hook_point():
    table = pd.DataFrame(
        {
            "hook_point": ["features.layer1", "features.layer1.0.bn1", "features.8"],
            "module": ["Sequential", "BatchNorm2d", "SiLU"],
            "share": [0.3, 0.5, 0.8],
            "features": ["ResNet-18 from scratch", "ResNet-18 from scratch", "EfficientNet-B0 fine-tuned"],
            "network": ["resnet18", "resnet18", "efficientnet_b0"],
            "pixels": [80, 80, 224],
        }
    )
    of_resnet = nature_tables.non_positive_shares(table, "resnet18")
    assert of_resnet.columns.tolist() == ["earlier report", "ResNet-18 from scratch (80 pixels)"]
    assert of_resnet.iloc[0].tolist() == [EARLIER_NON_POSITIVE["features.layer1"], 0.3]
    assert "earlier report" not in nature_tables.non_positive_shares(table, "efficientnet_b0")
    places = nature_tables.non_positive_by_place(table)
    assert places.loc["layer1"].dropna().tolist() == [0.5, 0.3]


def test_spectra_are_described_by_number_of_images_and_before_and_after_fine_tuning():
    values = {(BEFORE, 2): [4.0], (BEFORE, 4): [3.0] * 10, (AFTER, 2): [4.0], (AFTER, 4): [10.0, *[1.0] * 9, 1e-3]}
    spectra = pd.concat(
        pd.DataFrame({"eigenvalue": each, "place": range(1, len(each) + 1)}).assign(
            features=features, images=images, images_of="sea"
        )
        for (features, images), each in values.items()
    )
    table = nature_tables.spectra_table(spectra)
    assert table["above zero"].tolist() == [1, 10, 1, 11]
    assert table["largest 5"].tolist() == pytest.approx([1, 0.5, 1, 14 / 19.001])
    change = nature_tables.before_and_after(spectra).loc["sea"]
    assert change.tolist() == pytest.approx([0.5, 14 / 19.001, 14 / 19.001 - 0.5])
    assert nature_tables.largest_eigenvalues(spectra).loc[("sea", AFTER)].tolist() == [10.0, *[1.0] * 9]


def test_what_is_not_cached_gives_empty_tables():
    nothing = pd.DataFrame(columns=["features", "checkpoint"])
    for describe in (
        nature_tables.accuracies_by_size,
        nature_tables.non_positive_by_place,
        nature_tables.spectra_table,
        nature_tables.before_and_after,
        nature_tables.largest_eigenvalues,
    ):
        assert len(describe(nothing)) == 0
    assert len(nature_tables.non_positive_shares(nothing, "resnet18")) == 0
