"""Numbers from predictions.

Labels and predictions are arrays (N,) of label numbers, probabilities (N, classes) of a whole split, never of a batch;
fractions are 0 to 1.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn.metrics
from scipy.stats import binomtest, ttest_ind
from scipy.stats import t as student_t
from statsmodels.stats.multitest import multipletests


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same images: how many only the first, only the second gets right, and the test of it."""

    difference: float  # accuracy of the second minus that of the first
    only_first: int
    only_second: int
    p_value: float


def confusion_matrix(labels, predictions, num_classes: int, normalise: bool = False) -> np.ndarray:
    """Counts (num_classes, num_classes): row = true class, column = predicted class; `normalise` divides by rows."""
    return sklearn.metrics.confusion_matrix(
        labels, predictions, labels=range(num_classes), normalize="true" if normalise else None
    )


def most_confused(matrix: np.ndarray, class_names, count: int) -> pd.DataFrame:
    """The pairs of classes that are mistaken most often, of a confusion matrix of counts: true, predicted, images."""
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=int))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, mistakes.shape)
    return pd.DataFrame(
        {
            "true": np.asarray(class_names)[rows],
            "predicted": np.asarray(class_names)[columns],
            "images": mistakes[rows, columns],
        }
    )


def quality_of_probabilities(labels, probabilities) -> dict[str, float]:
    """What probabilities (N, classes) of a whole split are worth, in a row of a table: all fractions, 0 to 1."""
    return {
        "top 1": top_k_accuracy(labels, probabilities, 1),
        "top 2": top_k_accuracy(labels, probabilities, 2),
        "top 3": top_k_accuracy(labels, probabilities, 3),
        "mAP": float(np.nanmean(average_precision(labels, probabilities))),
        "calibration error": expected_calibration_error(labels, probabilities),
        "mean confidence": float(np.max(probabilities, axis=1).mean()),
    }


def classification_report(labels, predictions, class_names) -> pd.DataFrame:
    """Precision, recall (a class's own accuracy), F1 and images of each class, and their means; scikit-learn's."""
    report = sklearn.metrics.classification_report(
        labels,
        predictions,
        labels=range(len(class_names)),
        target_names=class_names,
        output_dict=True,
        zero_division=np.nan,
    )
    report.pop("accuracy", None)  # one number, not a row
    return pd.DataFrame.from_dict(report, orient="index").rename(columns={"support": "images"})


def top_k_accuracy(labels, probabilities, k: int) -> float:
    """In how many images the true class is among the k most probable ones."""
    return float(sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=k, labels=_class_numbers(probabilities)))


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
            for label in _class_numbers(probabilities)
        ]
    )


def mean_average_precision_of_batches(labels, probabilities, batch_size: int, batches: int = 200, seed: int = 0):
    """The mAP (batches,) of single batches, each drawn from all images: what it would seem to be from one of them.

    A class that a batch lacks does not count.
    """
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(len(labels), batch_size, replace=False) for _ in range(batches)]
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    return np.array([np.nanmean(average_precision(labels[batch], probabilities[batch])) for batch in drawn])


def expected_calibration_error(labels, probabilities, bins: int = 15) -> float:
    """By how much confidence and accuracy differ, in the mean over images (Guo et al. 2017), 0 to 1.

    Confidence is the highest probability; images are put into bins of equal width by it, and each bin counts the
    difference of its mean confidence and its accuracy for each of its images.
    """
    confidence, right = np.max(probabilities, axis=1), np.argmax(probabilities, axis=1) == labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(places, right - confidence)).sum() / len(confidence))


def by_confidence(probabilities) -> np.ndarray:
    """Indices of the images (N,), the most confidently predicted first; of equal ones the first."""
    return np.argsort(-np.max(probabilities, axis=1), kind="stable")


def confident_mistakes(labels, probabilities) -> np.ndarray:
    """Indices of the images that are mistaken, the most confident mistake first."""
    order = by_confidence(probabilities)
    return order[np.argmax(probabilities, axis=1)[order] != np.asarray(labels)[order]]


def rightly_predicted_by_all(labels, predictions, count: int, seed: int = 0) -> np.ndarray:
    """Indices (count,) of images that every model predicts rightly, drawn by seed, each of another class.

    `predictions` are those of each model, of the same images.  Raises ValueError if there are too few such classes.
    """
    labels = np.asarray(labels)
    right = np.flatnonzero(np.all([np.asarray(each) == labels for each in predictions], axis=0))
    shuffled = np.random.default_rng(seed).permutation(right)
    _, first_of_class = np.unique(labels[shuffled], return_index=True)
    if len(first_of_class) < count:
        raise ValueError(f"all models are right in images of {len(first_of_class)} classes only; {count} are asked for")
    return np.sort(shuffled[np.sort(first_of_class)[:count]])


def accuracy_interval(hits: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of an accuracy (Wilson 1927): between which values the true one lies with this confidence."""
    interval = binomtest(hits, images).proportion_ci(confidence, method="wilson")
    return interval.low, interval.high


def compare_paired(labels, first, second) -> PairedComparison:
    """Exact McNemar test (1947) of two models' predictions of the same images.

    Only images that one model gets right and the other wrong tell them apart; if both are equally good, each such
    image falls to either side like a coin.
    """
    first_right, second_right = np.asarray(first) == labels, np.asarray(second) == labels
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    differing = only_first + only_second
    return PairedComparison(
        difference=(only_second - only_first) / len(first_right),
        only_first=only_first,
        only_second=only_second,
        p_value=binomtest(only_first, differing).pvalue if differing else 1.0,
    )


def read_results(folder: Path) -> dict[str, dict]:
    """The results in a folder by the names of their files; raises FileNotFoundError if there are none."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise FileNotFoundError(f"{folder} holds no results; python -m supervised.train makes them")
    return found


def of_first_seeds(results: dict[str, dict]) -> dict[str, dict]:
    """Without the runs of further seeds."""
    return {name: result for name, result in results.items() if ".seed" not in name}


def of_rows(results: Mapping[str, dict], rows: Collection[str]) -> dict[str, dict]:
    """The runs of these rows only, whatever their seed."""
    return {name: result for name, result in results.items() if result["settings"]["name"] in rows}


def results_table(results: dict[str, dict], earlier: dict[str, float | None]) -> pd.DataFrame:
    """One row a result: accuracy in both protocols, the interval of the test accuracy, and the earlier report's number.

    "test" is chosen on val and read once; "course" is chosen and reported on all of val and test, as `earlier` was.
    """
    rows = {}
    for name, result in results.items():
        test = np.array(result["labels"]["test"]), np.array(result["predictions"]["test"])
        low, high = accuracy_interval(int((test[0] == test[1]).sum()), len(test[0]))
        rows[name] = {
            "earlier": earlier.get(name),
            "course": result["earlier_protocol_accuracy"],
            "course epoch": result["earlier_protocol_epoch"],
            "test": result["test_accuracy"],
            "from": low,
            "to": high,
            "val": result["val_accuracy"],
            "train": result["train_accuracy"],
            "epoch": result["epoch"],
            "minutes": result["seconds"] / 60,
            "initial weights": result["initial_weights"]["weights"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def settings_table(results: Mapping[str, dict]) -> tuple[str, pd.DataFrame]:
    """The settings that are the same in all results, in words, and a table of the others: one row a result.

    Those of the training stand without their prefix; "precision used" is what "auto" came to on the machine of the run.
    """
    rows = [{**result["settings"], "precision used": result["precision"]} for result in results.values()]
    table = pd.json_normalize(rows).drop(columns="name").rename(columns=lambda key: key.removeprefix("train."))
    table.index = list(results)
    differs = table.astype(str).nunique(dropna=False) > 1  # a setting that only some rows have differs too
    same = ", ".join(f"{key} = {table[key].iloc[0]}" for key in table.columns[~differs])
    return same, table.loc[:, differs]


def verdict(difference: float, p_value: float) -> str:
    """What a comparison says in words, at the level of 0.05."""
    if p_value >= 0.05:
        return "cannot be told apart"
    return "better" if difference > 0 else "worse"


def holm(p_values) -> np.ndarray:
    """p values corrected for their number (Holm 1979): at 0.05, one false alarm in twenty whole tables, not rows."""
    return multipletests(p_values, method="holm")[1] if len(p_values) else np.array([])


def accuracies_of(results: Mapping[str, dict], row: str, accuracy: str = "test_accuracy") -> list[float]:
    """Of every run of the row, whatever its seed; empty if there is none."""
    return [result[accuracy] for result in of_rows(results, {row}).values()]


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of repeated measurements and its 95 % interval, from and to (Student 1908).

    One measurement says nothing of its spread: its interval is (nan, nan).  Raises ValueError if there is none.
    """
    if len(values) == 0:
        raise ValueError("the mean of no values was asked for; there must be at least one")
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    half = float(student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def seeds_table(results: dict[str, dict], accuracy: str = "test_accuracy") -> pd.DataFrame:
    """One row an experiment that was run with several seeds: mean, standard deviation and range of its accuracies."""
    runs = pd.DataFrame(
        [(result["settings"]["name"], result[accuracy]) for result in results.values()],
        columns=["name", "accuracy"],
    )
    table = runs.groupby("name", sort=False)["accuracy"].agg(["count", "mean", "std", "min", "max"])
    return table[table["count"] > 1].rename(columns={"count": "seeds", "std": "standard deviation"})


def seeds_of_both_protocols(results: dict[str, dict]) -> pd.DataFrame:
    """`seeds_table` of the test accuracy and of the course accuracy side by side; its columns are pairs."""
    return pd.concat({words: seeds_table(results, f"{words}_accuracy") for words in ("test", "course")}, axis=1)


def comparison_table(results: dict[str, dict], pairs: list[tuple[str, str, str]]) -> pd.DataFrame:
    """One row for each (question, first, second) whose results are both there: paired test on the test images.

    "row is" goes by the p value that is corrected for the number of rows.
    """
    rows = []
    for question, first, second in pairs:
        if first in results and second in results:
            paired = compare_paired(
                np.array(results[first]["labels"]["test"]),
                results[first]["predictions"]["test"],
                results[second]["predictions"]["test"],
            )
            rows.append(
                {
                    "question": question,
                    "row": second,
                    "against": first,
                    "difference": paired.difference,
                    "only row right": paired.only_second,
                    "only other right": paired.only_first,
                    "p": paired.p_value,
                }
            )
    return _with_verdicts(rows)


def seeds_comparison_table(results: dict[str, dict], pairs: list[tuple[str, str, str]]) -> pd.DataFrame:
    """One row for each (question, first, second) with several seeds of both: their test accuracies by Welch's t test.

    Welch 1947, with the 95 % interval of the difference of the means, from and to.  It covers the luck of a training,
    which `comparison_table` cannot know, and not that of the test images, which are the same in all runs.  "row is"
    goes by the p value that is corrected for the number of rows.
    """
    rows = []
    for question, first, second in pairs:
        ours, others = accuracies_of(results, second), accuracies_of(results, first)
        if min(len(ours), len(others)) > 1:
            test = ttest_ind(ours, others, equal_var=False)
            low, high = test.confidence_interval()
            rows.append(
                {
                    "question": question,
                    "row": second,
                    "against": first,
                    "runs": f"{len(ours)}, {len(others)}",
                    "difference": np.mean(ours) - np.mean(others),
                    "from": low,
                    "to": high,
                    "p": 1.0 if np.isnan(test.pvalue) else test.pvalue,  # not a number where all accuracies are equal
                }
            )
    return _with_verdicts(rows)


def _with_verdicts(rows: list[dict]) -> pd.DataFrame:
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    table["p (Holm)"] = holm(table["p"])
    table["row is"] = [verdict(*each) for each in zip(table["difference"], table["p (Holm)"], strict=True)]
    return table


def _class_numbers(probabilities) -> range:
    return range(np.shape(probabilities)[1])
