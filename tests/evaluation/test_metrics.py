import numpy as np
import pytest
from scipy.stats import binom, t, ttest_1samp

from evaluation.metrics import (
    accuracy_interval,
    average_precision,
    by_confidence,
    classification_report,
    compare_paired,
    comparison_table,
    confident_mistakes,
    confusion_matrix,
    expected_calibration_error,
    holm,
    mean_and_interval,
    mean_average_precision_of_batches,
    most_confused,
    quality_of_probabilities,
    results_table,
    rightly_predicted_by_all,
    seeds_comparison_table,
    seeds_table,
    settings_table,
    top_k_accuracy,
    verdict,
)


def test_confusion_matrix_has_true_classes_in_rows():
    matrix = confusion_matrix([0, 0, 0, 1], [0, 1, 1, 1], num_classes=3)
    assert matrix.tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]
    assert confusion_matrix([0, 0, 0, 1], [0, 1, 1, 1], 2, normalise=True)[0].tolist() == pytest.approx([1 / 3, 2 / 3])


def test_the_most_confused_pairs_leave_out_what_is_right():
    matrix = np.array([[9, 1, 0], [4, 8, 0], [0, 2, 7]])
    table = most_confused(matrix, ["coast", "forest", "store"], 2)
    assert table.values.tolist() == [["forest", "coast", 4], ["store", "forest", 2]]


def test_the_quality_of_probabilities_is_that_of_each_measure():
    labels = np.array([0, 1, 2, 0])
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.6, 0.1, 0.3]])
    quality = quality_of_probabilities(labels, probabilities)
    assert (quality["top 1"], quality["top 2"], quality["top 3"]) == (0.75, 1, 1)
    assert quality["mAP"] == pytest.approx(average_precision(labels, probabilities).mean())
    assert quality["calibration error"] == pytest.approx(expected_calibration_error(labels, probabilities))
    assert quality["mean confidence"] == pytest.approx(0.65)


def test_the_accuracy_interval_is_wilsons():
    hits, images, z = 90, 100, 1.959963984540054
    centre = (hits / images + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * np.sqrt(0.9 * 0.1 / images + z**2 / (4 * images**2))
    assert accuracy_interval(hits, images) == pytest.approx((centre - half, centre + half))


def test_the_paired_test_counts_only_images_on_which_the_models_differ():
    labels = np.zeros(100, dtype=int)
    first, second = np.zeros(100, dtype=int), np.zeros(100, dtype=int)
    first[:12] = 1  # twelve mistakes of the first alone
    second[10:15] = 1  # five of the second, two of them common
    paired = compare_paired(labels, first, second)
    assert (paired.only_first, paired.only_second) == (3, 10)
    assert paired.difference == pytest.approx(0.07)
    assert paired.p_value == pytest.approx(2 * binom.cdf(3, 13, 0.5))
    assert compare_paired(labels, second, first).difference == pytest.approx(-0.07)


def test_a_clear_difference_has_a_verdict_and_equal_models_have_none():
    labels, wrong = np.zeros(30, dtype=int), np.ones(30, dtype=int)
    for first, second, expected in ((wrong, labels, "better"), (labels, wrong, "worse")):
        paired = compare_paired(labels, first, second)
        assert verdict(paired.difference, paired.p_value) == expected
    assert compare_paired(labels, labels, labels).p_value == 1.0
    assert verdict(0.07, 0.06) == "cannot be told apart"


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]).tolist() == []


def test_a_table_corrects_its_p_values_before_it_judges():
    labels = [0] * 100
    noise = [int(i < 9) for i in range(100)], [int(10 <= i < 11) for i in range(100)]  # 9 to 1: p = 0.021 alone
    answers = {"one": noise[0], "two": noise[1], "three": noise[1]}
    results = {name: {"labels": {"test": labels}, "predictions": {"test": each}} for name, each in answers.items()}
    alone = comparison_table(results, [("?", "one", "two")])
    assert alone.loc[0, "row is"] == "better"
    table = comparison_table(results, [("?", "one", "two"), ("?", "one", "three"), ("?", "two", "three")])
    assert table["p"][0] == alone["p"][0]
    assert table["p (Holm)"][0] == pytest.approx(3 * alone["p"][0])
    assert set(table["row is"]) == {"cannot be told apart"}


def test_the_interval_is_students():
    values = [0.5, 0.6, 0.8]
    mean, low, high = mean_and_interval(values)
    assert mean == pytest.approx(np.mean(values))
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert mean_and_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_one_measurement_has_no_interval_and_none_is_refused():
    mean, low, high = mean_and_interval([0.5])
    assert mean == 0.5 and np.isnan(low) and np.isnan(high)
    with pytest.raises(ValueError, match="at least one"):
        mean_and_interval([])


def test_the_seeds_of_an_experiment_are_put_together_and_single_runs_left_out():
    def run(name, accuracy):
        return {"settings": {"name": name}, "test_accuracy": accuracy}

    table = seeds_table({"a": run("a", 0.8), "a.seed1": run("a", 0.9), "b": run("b", 0.5)})
    assert table.index.tolist() == ["a"]
    assert table.loc["a", ["seeds", "mean", "min", "max"]].tolist() == pytest.approx([2, 0.85, 0.8, 0.9])
    assert table.loc["a", "standard deviation"] == pytest.approx(np.std([0.8, 0.9], ddof=1))


@pytest.mark.filterwarnings("ignore:Precision loss")  # where all accuracies are equal
def test_rows_are_compared_over_seeds_by_their_accuracies_and_rows_of_one_run_are_left_out():
    def runs(name, *accuracies):
        return {
            f"{name}.seed{seed}": {"settings": {"name": name}, "test_accuracy": accuracy}
            for seed, accuracy in enumerate(accuracies)
        }

    results = {**runs("a", 0.80, 0.81, 0.82), **runs("b", 0.90, 0.91), **runs("c", 0.80, 0.83, 0.81), **runs("d", 0.99)}
    pairs = [("clear?", "a", "b"), ("equal?", "a", "c"), ("one run?", "a", "d"), ("not run?", "a", "e")]
    table = seeds_comparison_table(results, pairs)
    assert table["question"].tolist() == ["clear?", "equal?"]
    first = table.iloc[0]
    assert first["difference"] == pytest.approx(0.095) and first["runs"] == "2, 3"
    # Welch's own formulas, with the variance of each mean.
    a, b = 0.01**2 / 3, 0.005**2
    freedom = (a + b) ** 2 / (a**2 / 2 + b**2 / 1)
    reach = t.ppf(0.975, freedom) * np.sqrt(a + b)
    assert [first["from"], first["to"]] == pytest.approx([0.095 - reach, 0.095 + reach])
    assert first["p"] == pytest.approx(2 * t.sf(0.095 / np.sqrt(a + b), freedom))
    assert first["p (Holm)"] == pytest.approx(2 * first["p"])
    assert table["row is"].tolist() == ["better", "cannot be told apart"]
    same = seeds_comparison_table({**runs("a", 0.5, 0.5), **runs("b", 0.5, 0.5)}, [("same?", "a", "b")])
    assert same["row is"].item() == "cannot be told apart"
    assert seeds_comparison_table({}, pairs).empty


def result(predictions):
    return {
        "labels": {"val": [0], "test": [0, 1, 0, 1]},
        "predictions": {"val": [0], "test": predictions},
        "test_accuracy": float(np.mean(np.array(predictions) == [0, 1, 0, 1])),
        **dict.fromkeys(("earlier_protocol_accuracy", "earlier_protocol_epoch", "val_accuracy", "train_accuracy", "epoch"), 1),
        "seconds": 90,
        "initial_weights": {"weights": "random"},
    }


def test_the_table_has_a_row_a_result_with_the_earlier_number_beside_it():
    table = results_table({"one": result([0, 1, 0, 0]), "two": result([0, 1, 0, 1])}, {"one": 0.9, "two": None})
    assert table.index.tolist() == ["one", "two"]
    assert table.loc["one", ["earlier", "test", "minutes"]].tolist() == [0.9, 0.75, 1.5]
    assert table.loc["one", "from"] < 0.75 < table.loc["one", "to"]


def test_the_comparison_table_leaves_out_what_has_not_been_run():
    results = {"one": result([1, 0, 1, 0]), "two": result([0, 1, 0, 1])}
    table = comparison_table(results, [("better?", "one", "two"), ("third?", "one", "three")])
    assert table["question"].tolist() == ["better?"]
    assert table["difference"].tolist() == [1.0]
    assert comparison_table({}, [("better?", "one", "two")]).empty


# Of four images of three classes; the third class has none.
LABELS = np.array([0, 0, 1, 1])
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.8, 0.0], [0.5, 0.1, 0.4]])


def test_the_report_of_classes_has_recall_as_their_accuracy_and_nothing_for_a_class_without_images():
    table = classification_report(LABELS, PROBABILITIES.argmax(axis=1), ["a", "b", "c"])
    assert table.loc["a", ["precision", "recall", "images"]].tolist() == [0.5, 0.5, 2]
    assert np.isnan(table.loc["c", "recall"]) and table.loc["c", "images"] == 0


def test_top_k_counts_the_true_class_among_the_k_most_probable():
    assert [top_k_accuracy(LABELS, PROBABILITIES, k) for k in (1, 2)] == [0.5, 0.75]


def test_average_precision_is_over_all_images_and_not_over_a_batch():
    # Class 0 ranks its images 1st and 3rd, class 1 1st and 4th: (1 + 2 / 3) / 2 and (1 + 2 / 4) / 2.
    found = average_precision(LABELS, PROBABILITIES)
    assert found[:2].tolist() == pytest.approx([5 / 6, 3 / 4])
    assert np.isnan(found[2])
    halves = [average_precision(LABELS[part], PROBABILITIES[part]) for part in (slice(0, 2), slice(2, 4))]
    assert np.nanmean(halves) == 1  # what the mean over batches made of it


def test_single_batches_give_average_precisions_that_the_whole_split_does_not_have():
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    probabilities = generator.dirichlet(np.ones(3), 300) + 0.4 * np.eye(3)[labels]
    whole = np.nanmean(average_precision(labels, probabilities))
    small = mean_average_precision_of_batches(labels, probabilities, batch_size=6)
    assert small.shape == (200,) and small.max() == 1 and small.min() < whole - 0.2
    assert small.mean() > whole + 0.05  # few images are ranked rightly more easily: one batch flatters besides
    assert mean_average_precision_of_batches(labels, probabilities, 300, batches=2) == pytest.approx(whole)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    sure = np.array([[0.9, 0.1]] * 10)
    assert expected_calibration_error([0] * 9 + [1], sure) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error([0] * 5 + [1] * 5, sure) == pytest.approx(0.4)
    # Gaps of two bins do not cancel out: 0.1 too modest, 0.4 too sure.
    both = np.concatenate([sure, [[0.55, 0.45]] * 10])
    assert expected_calibration_error([0] * 10 + [0] + [1] * 9, both) == pytest.approx((0.1 + 0.45) / 2)
    assert expected_calibration_error([0, 0], [[1.0, 0.0], [1.0, 0.0]]) == 0  # the last bin has its upper edge


def test_images_come_by_confidence_and_mistakes_likewise():
    assert by_confidence(PROBABILITIES).tolist() == [2, 0, 1, 3]
    assert confident_mistakes(LABELS, PROBABILITIES).tolist() == [1, 3]


def test_images_that_all_models_get_right_are_drawn_by_seed_from_different_classes():
    labels = np.repeat(np.arange(5), 20)
    one, other = labels.copy(), labels.copy()
    one[::2] = 9
    other[labels == 4] = 9
    chosen = rightly_predicted_by_all(labels, [one, other], 4)
    assert (chosen % 2 == 1).all() and sorted(labels[chosen]) == [0, 1, 2, 3]
    assert chosen.tolist() == rightly_predicted_by_all(labels, [one, other], 4).tolist()
    assert chosen.tolist() != rightly_predicted_by_all(labels, [one, other], 4, seed=1).tolist()
    with pytest.raises(ValueError, match="of 4 classes only; 5 are asked for"):
        rightly_predicted_by_all(labels, [one, other], 5)


def test_settings_that_all_rows_share_are_said_once_and_the_others_stand_in_a_table():
    def result(name, precision, **training):
        return {"settings": {"name": name, "head": "deep", "train": training}, "precision": precision}

    results = {
        "row": result("row", "float32", learning_rate=0.1, max_epochs=3),
        "row.seed1": result("row", "bfloat16", learning_rate=0.1, max_epochs=5),
    }
    same, table = settings_table(results)
    assert same == "head = deep, learning_rate = 0.1"
    assert table.to_dict("index") == {
        "row": {"max_epochs": 3, "precision used": "float32"},
        "row.seed1": {"max_epochs": 5, "precision used": "bfloat16"},
    }
    assert settings_table({"row": results["row"]})[1].empty
    results["row.seed1"]["settings"]["teachers"] = [2, 3]
    same, table = settings_table(results)
    assert "teachers" not in same and table["teachers"].tolist()[1] == [2, 3]
