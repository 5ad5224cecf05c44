"""The numbers of the earlier reports, and where ours of each is found: earlier_numbers.csv and its keys.

The CSV has one
line per number of the five reports:

    document, place         000 to 004, and the table, figure or section
    kind                    result: measured; setting: chosen; description: of data or code, with nothing to compare
    quantity, stated, value what it is, as printed, and as a number (accuracies 0 to 1)
    better                  higher or lower; empty where neither is better, as for an epoch
    experiment, key         where ours is found: experiments separated by spaces, and a key of READERS or a path in the
                            result file, such as settings.train.learning_rate; where a report chose the epoch by the
                            validation loss, the key takes ours at the lowest (at_lowest_loss)
    differs_by              what is known to differ in ours besides the settings that the CSV compares
    reason                  why the experiment cannot be run here
    contradiction, note     where a document disagrees with itself; a remark
"""

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open

from evaluation.metrics import average_precision, classification_report
from evaluation.nature import LOOKED_AT
from evaluation.results import runs_of

EARLIER_NUMBERS = Path(__file__).with_name("earlier_numbers.csv")
PLATEAU = 0.01  # accuracy below the highest that counts as reached
KINDS = ("result", "setting", "description")


@dataclass(frozen=True)
class EarlierNumber:
    """One line of earlier_numbers.csv, see above.  Raises ValueError for a kind or a direction that does not exist."""

    document: str
    place: str
    kind: str
    quantity: str
    stated: str
    value: float | None
    better: str
    experiment: str
    key: str
    differs_by: str
    reason: str
    contradiction: str
    note: str

    def __post_init__(self):
        """Refuse what cannot be shown."""
        where = f"document {self.document}, {self.place}, {self.quantity}"
        if self.kind not in KINDS:
            raise ValueError(f"{where}: kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.better not in ("", "higher", "lower"):
            raise ValueError(f"{where}: better is {self.better!r}; it must be higher, lower or empty")
        if self.kind != "description" and self.value is None:
            raise ValueError(f"{where}: value is empty; a {self.kind} needs a number")

    @property
    def rounding(self) -> float:
        """Half a unit of the last digit that is printed, in the unit of `value`; 0 for a whole number."""
        found = re.fullmatch(r"-?\d*\.?(\d*)(e-?\d+)?( ?%)?", self.stated)
        if found is None or not (found[1] or found[3]):
            return 0.0
        return 0.5 * 10 ** -len(found[1]) * float(f"1{found[2] or ''}") * (0.01 if found[3] else 1)

    @property
    def experiments(self) -> list[str]:
        """The names of our experiments that it belongs to."""
        return self.experiment.split()


@dataclass(frozen=True)
class Measured:
    """What was measured here: results by file stem, the folder of their profile, and that of the released models."""

    results: Mapping[str, dict]
    folder: Path
    released: Path

    def runs(self, experiment: str) -> list[dict]:
        """The results of an experiment, one per seed, the lowest seed first."""
        return sorted(runs_of(self.results, experiment), key=lambda run: run["settings"]["seed"])


def read_earlier_numbers(path: Path = EARLIER_NUMBERS) -> list[EarlierNumber]:
    """All lines of the CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            EarlierNumber(**{**line, "value": float(line["value"]) if line["value"] else None})
            for line in csv.DictReader(file)
        ]


def _from_runs(value_of: Callable[..., float]) -> Callable:
    """The reader that calls `value_of(result, *words)` for each run; a run that has no such epoch has no value."""

    def reader(study: Measured, experiment: str, words: Sequence[str]) -> list[float]:
        values = [value_of(run, *words) for run in study.runs(experiment)]
        return [value for value in values if value is not None]

    return reader


def series_of(result: dict, name: str) -> list[float]:
    """A column of a run's history, one value per epoch.

    "validation" stands for all validation images of the earlier protocol, which are val and test here: the mean of both
    over their images.
    """
    history = result["history"]
    if not name.startswith("validation_"):
        return history[name]
    measure = name.removeprefix("validation_")
    val, test = (len(result["labels"][split]) for split in ("val", "test"))
    pairs = zip(history[f"val_{measure}"], history[f"test_{measure}"], strict=True)
    return [(of_val * val + of_test * test) / (val + test) for of_val, of_test in pairs]


def _value_of_history(result: dict, series: str, when: str) -> float | None:
    values = series_of(result, series)
    if when == "at_lowest_loss":
        return values[int(_epoch_of_history(result, "validation_loss", "lowest")) - 1]
    if when in ("lowest", "highest"):
        return min(values) if when == "lowest" else max(values)
    if when.startswith("from"):
        return float(np.mean(values[int(when.removeprefix("from")) - 1 :])) if len(values) > 1 else None
    epoch = {"last": len(values), "selected": result["earlier_protocol_epoch"]}.get(when) or int(when)
    return values[epoch - 1] if epoch <= len(values) else None


def _epoch_of_history(result: dict, series: str, when: str) -> float:
    """An epoch, counted from 1; infinity for an event that did not happen."""
    values = series_of(result, series)
    if when in ("lowest", "highest"):
        return 1 + values.index(min(values) if when == "lowest" else max(values))
    if when == "plateau":
        return 1 + next(epoch for epoch, value in enumerate(values) if value >= max(values) - PLATEAU)
    if when == "first_perfect":
        return next((epoch for epoch, value in enumerate(values, start=1) if value == 1), math.inf)
    rise = next((epoch for epoch, (last, value) in enumerate(pairwise(values), start=2) if value > last), math.inf)
    return rise if when == "first_rise" else rise - 1


def _report_of_test(result: dict, measure: str, *class_name: str) -> float:
    report = classification_report(result["labels"]["test"], result["predictions"]["test"], result["class_names"])
    return float(report.loc[" ".join(class_name), measure])


def _difference(study: Measured, experiment: str, words: Sequence[str]) -> list[float]:
    """Of accuracies under the earlier protocol, between runs of the same seed."""
    key = "earlier_protocol_accuracy"
    other = {run["settings"]["seed"]: run[key] for run in study.runs(words[0])}
    pairs = [(run[key], other.get(run["settings"]["seed"])) for run in study.runs(experiment)]
    return [of - than for of, than in pairs if than is not None]


def _test_scores(study: Measured, experiment: str) -> tuple[dict, np.ndarray] | None:
    """The first run's result and the softmax scores (N, classes) of its test images."""
    runs = study.runs(experiment)
    path = study.folder / "nature" / f"scores_{experiment}.npy"
    return (runs[0], np.load(path)) if runs and path.exists() else None


def _average_precision(study: Measured, experiment: str, words: Sequence[str]) -> list[float]:
    found = _test_scores(study, experiment)
    if found is None:
        return []
    result, scores = found
    of_classes = average_precision(result["labels"]["test"], scores)
    return [float(of_classes.mean() if words[0] == "mean" else of_classes[result["class_names"].index(words[0])])]


def _ranked_score(study: Measured, experiment: str, words: Sequence[str]) -> list[float]:
    """The score of a class at a rank: "sea highest 10" is the tenth highest."""
    found = _test_scores(study, experiment)
    if found is None:
        return []
    result, scores = found
    class_name, end, rank = words
    ordered = np.sort(scores[:, result["class_names"].index(class_name)])
    return [float(ordered[-int(rank)] if end == "highest" else ordered[int(rank) - 1])]


def _non_positive(study: Measured, experiment: str, words: Sequence[str]) -> list[float]:
    """The share of values at or below 0 at a hook point, over the val images."""
    path = study.folder / "nature" / "non_positive.csv"
    if not path.exists():
        return []
    table = pd.read_csv(path)
    of_experiment = table["features"].map(LOOKED_AT) == experiment
    return table.loc[of_experiment & (table["hook_point"] == words[0]), "share"].tolist()


def _search(study: Measured, experiment: str, words: Sequence[str]) -> list[float]:
    """The lowest loss of each search with a sampler, taken by the second report's rule for the loss of a trial."""
    paths = sorted((study.folder / "searches").glob(f"{experiment}_{words[0]}_subset0.1_seed*.csv"))
    return [float(pd.read_csv(path)["report_loss"].min()) for path in paths]


def _inversion(study: Measured, experiment: str, words: Sequence[str]) -> list[float]:
    """The final loss of model inversion: "lowest" of the grid, or at a learning rate and a weight decay."""
    path = study.folder / "searches" / f"inversion_{experiment}_filter70_grid_seed0.csv"
    if not path.exists():
        return []
    table = pd.read_csv(path)
    if words[0] != "lowest":
        table = table[np.isclose(table[["learning_rate", "weight_decay"]], [float(word) for word in words]).all(axis=1)]
    return [float(table["value"].min())] if len(table) else []


def _filter_sums(study: Measured, experiment: str) -> np.ndarray | None:
    """The sum of the weights of each filter of the last convolution of a released model."""
    path = study.released / f"{experiment}.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor("features.8.0.weight").astype(np.float64).sum(axis=(1, 2, 3))


def _filter(study: Measured, experiment: str, words: Sequence[str]) -> list[float]:
    """The number of the filter whose sum has a rank, counted from 1."""
    sums = _filter_sums(study, experiment)
    return [] if sums is None else [float(np.argsort(-sums, kind="stable")[int(words[0]) - 1])]


def _filter_sum(study: Measured, experiment: str, words: Sequence[str]) -> list[float]:
    sums = _filter_sums(study, experiment)
    return [] if sums is None else [float(sums.max() if words[0] == "highest" else sums.min())]


READERS: dict[str, Callable[[Measured, str, Sequence[str]], list[float]]] = {
    # SERIES lowest|highest|last|selected|at_lowest_loss|EPOCH|fromEPOCH, which is a mean
    "history": _from_runs(_value_of_history),
    "epoch": _from_runs(_epoch_of_history),  # SERIES lowest|highest|plateau|first_perfect|first_rise|before_first_rise
    "epoch0": _from_runs(lambda *words: _epoch_of_history(*words) - 1),  # counted from 0
    "epochs_run": _from_runs(lambda result: len(result["history"]["train_loss"])),
    "images": _from_runs(lambda result: sum(result["data"]["images"].values())),  # of all splits
    "head_layers": _from_runs(lambda result: 3 if result["settings"]["head"] == "deep" else 1),
    "class_weight": _from_runs(lambda result, name: dict(result["settings"]["class_weights"]).get(name, 1.0)),
    "report": _from_runs(_report_of_test),  # MEASURE CLASS, of scikit-learn's classification report
    "difference": _difference,  # EXPERIMENT
    "average_precision": _average_precision,  # CLASS|mean
    "score": _ranked_score,  # CLASS highest|lowest RANK
    "non_positive": _non_positive,  # HOOK_POINT
    "search": _search,  # SAMPLER
    "inversion": _inversion,  # lowest, or LEARNING_RATE WEIGHT_DECAY
    "filter": _filter,  # RANK
    "filter_sum": _filter_sum,  # highest|lowest
}


def measured(study: Measured, experiment: str, key: str) -> list:
    """Our values of a key, one per run; [] where nothing was measured.

    A key that does not begin with one of READERS is a path in the result file.  Raises KeyError for a wrong path.
    """
    if not (experiment and key):
        return []
    name, *words = key.split()
    if name in READERS:
        return READERS[name](study, experiment, words)
    values = []
    for run in study.runs(experiment):
        value = run
        for part in name.split("."):
            value = value[part]
        values.append(value)
    return values
