import numpy as np
import pytest
import torch

from evaluation.metrics import (
    average_precision,
    by_confidence,
    classification_report,
    confident_mistakes,
    confusion_matrices,
    confusion_matrix,
    ends_of_ranking,
    expected_calibration_error,
    mean_average_precision_of_batches,
    most_confused,
    quality_of_probabilities,
    rightly_predicted_by_all,
    top_k_accuracy,
)


def test_confusion_matrix_has_true_classes_in_rows():
    matrix = confusion_matrix([0, 0, 0, 1], [0, 1, 1, 1], num_classes=3)
    assert matrix.tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]


def test_matrices_of_results_are_of_their_test_images_under_a_title_with_the_accuracy():
    labels = {"labels": {"test": [0, 0, 1, 1]}, "predictions": {"test": [0, 1, 1, 1]}}
    found = confusion_matrices({"one": {"test_accuracy": 0.75, "class_names": ["a", "b", "c"], **labels}})
    ((title, (matrix, class_names)),) = found.items()
    assert title == "one: 0.7500" and class_names == ["a", "b", "c"]
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]


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


# Of four images of three classes; the third class has none.
LABELS = np.array([0, 0, 1, 1])
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.8, 0.0], [0.5, 0.1, 0.4]])


def test_the_report_of_classes_has_recall_as_their_accuracy_and_nothing_for_a_class_without_images():
    table = classification_report(LABELS, PROBABILITIES.argmax(axis=1), ["a", "b", "c"])
    assert table.loc["a", ["precision", "recall", "images"]].tolist() == [0.5, 0.5, 2]
    assert np.isnan(table.loc["c", "recall"]) and table.loc["c", "images"] == 0


def test_top_k_counts_the_true_class_among_the_k_most_probable():
    assert [top_k_accuracy(LABELS, PROBABILITIES, k) for k in (1, 2)] == [0.5, 0.75]
    of_two_classes = [[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]
    assert [top_k_accuracy([0, 1, 1], of_two_classes, k) for k in (1, 2, 3)] == [pytest.approx(2 / 3), 1, 1]


def test_two_classes_have_all_measures_and_the_first_of_equals_is_the_prediction():
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8], [0.9, 0.1]])
    quality = quality_of_probabilities([0, 1, 1, 1], probabilities)
    assert (quality["top 1"], quality["top 2"], quality["top 3"]) == (0.5, 1, 1)
    assert 0 < quality["mAP"] < 1
    generator = np.random.default_rng(0)
    ties = generator.integers(0, 3, (200, 4)) / 2  # many equal values
    labels = generator.integers(0, 4, 200)
    assert top_k_accuracy(labels, ties, 1) == (ties.argmax(axis=1) == labels).mean()
    assert top_k_accuracy(labels, ties, 4) == 1


def test_average_precision_is_over_all_images_and_not_over_a_batch():
    # Class 0 ranks its images 1st and 3rd, class 1 1st and 4th: (1 + 2 / 3) / 2 and (1 + 2 / 4) / 2.
    found = average_precision(LABELS, PROBABILITIES)
    assert found[:2].tolist() == pytest.approx([5 / 6, 3 / 4])
    assert np.isnan(found[2])
    halves = [average_precision(LABELS[part], PROBABILITIES[part]) for part in (slice(0, 2), slice(2, 4))]
    assert np.nanmean(halves) == 1  # what the mean over batches made of it


def test_single_batches_give_average_precisions_that_the_complete_split_does_not_have():
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    probabilities = generator.dirichlet(np.ones(3), 300) + 0.4 * np.eye(3)[labels]
    complete = np.nanmean(average_precision(labels, probabilities))
    small = mean_average_precision_of_batches(labels, probabilities, batch_size=6)
    assert small.shape == (200,) and small.max() == 1 and small.min() < complete - 0.2
    assert small.mean() > complete + 0.05  # few images are easier to rank: the mean over batches is optimistic too
    assert mean_average_precision_of_batches(labels, probabilities, 300, batches=2) == pytest.approx(complete)


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
    with pytest.raises(ValueError, match="4 classes only; 5"):
        rightly_predicted_by_all(labels, [one, other], 5)


def test_the_ends_of_a_ranking_are_the_highest_in_falling_and_the_lowest_in_rising_order():
    of_class = np.array([0.3, 0.9, 0.1, 0.9, 0.2])
    highest, lowest = ends_of_ranking(np.stack([1 - of_class, of_class], axis=1), 1, count=3)
    assert highest.tolist() == [1, 3, 0]
    assert lowest.tolist() == [2, 4, 0]


def test_tensors_and_lists_have_the_measures_of_arrays():
    labels, probabilities = torch.tensor(LABELS), torch.tensor(PROBABILITIES)
    expected = quality_of_probabilities(LABELS, PROBABILITIES)
    for given in ((labels, probabilities), (LABELS.tolist(), PROBABILITIES.tolist())):
        assert quality_of_probabilities(*given) == pytest.approx(expected)
        assert confident_mistakes(*given).tolist() == confident_mistakes(LABELS, PROBABILITIES).tolist()
    matrix = confusion_matrix(labels, probabilities.argmax(dim=1), 3)
    assert most_confused(torch.tensor(matrix), ["a", "b", "c"], 9)["images"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("measure", "given", "words"),
    [
        (confusion_matrix, ([0, 5], [0, 1], 3), "labels are 0 to 5; of 3 classes they must be 0 to 2"),
        (confusion_matrix, ([0, 1], [0, -1], 3), "predictions are -1 to 0"),
        (confusion_matrix, (LABELS, PROBABILITIES, 3), r"predictions \(4, 3\); both must be class numbers"),
        (classification_report, ([0, 1], [0, 2], ["a", "b"]), "predictions are 0 to 2"),
        (expected_calibration_error, (LABELS[:1], PROBABILITIES), r"labels have shape \(1,\)"),
        (expected_calibration_error, (LABELS, 20 * PROBABILITIES), "probabilities are 0 to 16; .*softmax"),
        (quality_of_probabilities, (LABELS, PROBABILITIES - 1), "must be 0 to 1"),
    ],
)
def test_labels_of_no_class_and_values_that_are_no_probabilities_are_refused(measure, given, words):
    with pytest.raises(ValueError, match=words):
        measure(*given)
