"""Numbers from predictions.

Labels and predictions are arrays (N,) of class numbers; probabilities (N, classes) are of a complete split, never of a
batch.  Lists, and tensors of a CPU such as `helper_functions.predict` gives, do as well.  All values are 0 to 1 unless
said otherwise.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import sklearn.metrics

ROUNDING = 1e-3  # of half precision, by which a probability may be above 1


def confusion_matrix(labels, predictions, num_classes: int) -> np.ndarray:
    """Counts (num_classes, num_classes): row = true class, column = predicted class.

    Raises ValueError unless labels and predictions are as many, and class numbers.
    """
    labels, predictions = _class_numbers_of(labels, predictions, num_classes)
    return sklearn.metrics.confusion_matrix(labels, predictions, labels=range(num_classes))


def most_confused(matrix: np.ndarray, class_names: Sequence[str], count: int) -> pd.DataFrame:
    """The most frequent confusions of a confusion matrix of counts: true class, predicted class, images."""
    mistakes = np.asarray(matrix) * (1 - np.eye(len(matrix), dtype=int))
    order = np.argsort(-mistakes, axis=None, kind="stable")[: min(count, np.count_nonzero(mistakes))]
    rows, columns = np.unravel_index(order, mistakes.shape)
    return pd.DataFrame(
        {
            "true": np.asarray(class_names)[rows],
            "predicted": np.asarray(class_names)[columns],
            "images": mistakes[rows, columns],
        }
    )


def quality_of_probabilities(labels, probabilities) -> dict[str, float]:
    """Top-k accuracies, mAP, calibration error and mean confidence of probabilities (N, classes).

    Raises ValueError for other values, such as logits, and for another number of labels.
    """
    labels, probabilities = _checked(labels, probabilities)
    return {
        "top 1": top_k_accuracy(labels, probabilities, 1),
        "top 2": top_k_accuracy(labels, probabilities, 2),
        "top 3": top_k_accuracy(labels, probabilities, 3),
        "mAP": float(np.nanmean(average_precision(labels, probabilities))),
        "calibration error": expected_calibration_error(labels, probabilities),
        "mean confidence": float(np.max(probabilities, axis=1).mean()),
    }


def classification_report(labels, predictions, class_names: Sequence[str]) -> pd.DataFrame:
    """Precision, recall (the accuracy of a class), F1 and images of each class, and their means; scikit-learn's.

    Raises ValueError unless labels and predictions are as many, and numbers of these classes.
    """
    labels, predictions = _class_numbers_of(labels, predictions, len(class_names))
    report = sklearn.metrics.classification_report(
        labels,
        predictions,
        labels=range(len(class_names)),
        target_names=class_names,
        output_dict=True,
        zero_division=np.nan,
    )
    report.pop("accuracy", None)  # one number for all classes
    return pd.DataFrame.from_dict(report, orient="index").rename(columns={"support": "images"})


def top_k_accuracy(labels, probabilities, k: int) -> float:
    """The fraction of images whose true class is among the k most probable ones; of equals the first counts as more."""
    most_probable = np.argsort(-np.asarray(probabilities), axis=1, kind="stable")[:, :k]
    return float((most_probable == np.asarray(labels)[:, None]).any(axis=1).mean())


def average_precision(labels, probabilities) -> np.ndarray:
    """The area under the precision-recall curve of each class (classes,) over all images; nan for one without images.

    Images are ranked by the probability of the class.  `np.nanmean` of it is mAP.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    return np.array(
        [
            sklearn.metrics.average_precision_score(labels == label, probabilities[:, label])
            if (labels == label).any()
            else np.nan
            for label in range(probabilities.shape[1])
        ]
    )


def mean_average_precision_of_batches(
    labels, probabilities, batch_size: int, batches: int = 200, seed: int = 0
) -> np.ndarray:
    """The mAP (batches,) of single random batches: what mAP would seem to be from one of them.

    A class without images in a batch does not count.
    """
    generator = np.random.default_rng(seed)
    sampled = [generator.choice(len(labels), batch_size, replace=False) for _ in range(batches)]
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    return np.array([np.nanmean(average_precision(labels[batch], probabilities[batch])) for batch in sampled])


def expected_calibration_error(labels, probabilities, bins: int = 15) -> float:
    """The mean difference of confidence and accuracy (Guo et al. 2017).

    Confidence is the highest probability.  Images are put into bins of equal width by it; each bin counts the
    difference of its mean confidence and its accuracy, weighted by its images.
    Raises ValueError for other values, such as logits, and for another number of labels.
    """
    labels, probabilities = _checked(labels, probabilities)
    confidence, correct = np.max(probabilities, axis=1), np.argmax(probabilities, axis=1) == labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(places, correct - confidence)).sum() / len(confidence))


def by_confidence(probabilities) -> np.ndarray:
    """Indices of the images (N,) by falling confidence; ties in their order."""
    return np.argsort(-np.max(np.asarray(probabilities), axis=1), kind="stable")


def confident_mistakes(labels, probabilities) -> np.ndarray:
    """Indices of the misclassified images by falling confidence."""
    probabilities = np.asarray(probabilities)
    order = by_confidence(probabilities)
    return order[np.argmax(probabilities, axis=1)[order] != np.asarray(labels)[order]]


def ends_of_ranking(probabilities, target_class: int, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images with the highest and of those with the lowest probability of a class, `count` each.

    The highest are in falling order, the lowest in rising order; ties in their order.
    """
    of_class = np.asarray(probabilities)[:, target_class]
    return np.argsort(-of_class, kind="stable")[:count], np.argsort(of_class, kind="stable")[:count]


def rightly_predicted_by_all(labels, predictions, count: int, seed: int = 0) -> np.ndarray:
    """Indices (count,) of images that every model classifies correctly, sampled by seed, each of another class.

    `predictions` holds those of each model on the same images.  Raises ValueError if there are too few such classes.
    """
    labels = np.asarray(labels)
    correct = np.flatnonzero(np.all([np.asarray(each) == labels for each in predictions], axis=0))
    shuffled = np.random.default_rng(seed).permutation(correct)
    _, first_of_class = np.unique(labels[shuffled], return_index=True)
    if len(first_of_class) < count:
        raise ValueError(f"all models are correct on images of {len(first_of_class)} classes only; {count} are needed")
    return np.sort(shuffled[np.sort(first_of_class)[:count]])


def _class_numbers_of(labels, predictions, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions as arrays (N,).  ValueError for others: scikit-learn leaves out what is of no class."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(
            f"labels have shape {labels.shape} and predictions {predictions.shape}; both must be class numbers (N,)"
        )
    for name, numbers in (("labels", labels), ("predictions", predictions)):
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < num_classes):
            raise ValueError(
                f"{name} are {numbers.min()} to {numbers.max()}; of {num_classes} classes they must be 0 to "
                f"{num_classes - 1}"
            )
    return labels, predictions


def _checked(labels, probabilities) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and probabilities (N, classes) as arrays; ValueError unless they are as many, and 0 to 1."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"labels have shape {labels.shape} and probabilities {probabilities.shape}; they must be (N,) and "
            "(N, classes)"
        )
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1 + ROUNDING):
        raise ValueError(
            f"probabilities are {probabilities.min():.3g} to {probabilities.max():.3g}; they must be 0 to 1, as "
            "logits.softmax(dim=1) gives them"
        )
    return labels, probabilities


def confusion_matrices(results: dict[str, dict]) -> dict[str, tuple[np.ndarray, list[str]]]:
    """The confusion matrix of each result's test images and its class names, by a title with the test accuracy."""
    return {
        f"{name}: {result['test_accuracy']:.4f}": (
            confusion_matrix(result["labels"]["test"], result["predictions"]["test"], len(result["class_names"])),
            result["class_names"],
        )
        for name, result in results.items()
    }
