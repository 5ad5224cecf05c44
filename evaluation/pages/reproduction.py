"""The numbers of the earlier reports beside ours: `python -m evaluation.pages.reproduction`.

Writes docs/reproduction.md from earlier_numbers.csv and from result files; no number of ours is typed.  The CSV has one
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
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open
from scipy.stats import t as student_t

from data.files import CODE, root_folder, run_command, write_text
from evaluation.metrics import average_precision, classification_report
from evaluation.nature import LOOKED_AT
from evaluation.results import MIN_RUNS, machine, read_profile, runs_of
from experiments import EXPERIMENTS
from run_files import platform_of
from self_supervised.dataloader import PRETEXTS
from self_supervised.settings import CLASSIFIER_EXPERIMENTS, FROZEN_WORDS, REPRODUCTION
from supervised.settings import REPRODUCTION as SUPERVISED_REPRODUCTION
from supervised.settings import Experiment

EARLIER_NUMBERS = Path(__file__).with_name("earlier_numbers.csv")
CONFIDENCE = 0.95  # of the prediction interval
HYPOTHESES = (*SUPERVISED_REPRODUCTION.values(), *REPRODUCTION.values())  # of what the reports did
ACCURACY = "earlier_protocol_accuracy"  # a key
LOSS_AFTER_EPOCHS = r"history \w+_loss \d+"  # a key
TESTED = rf"{ACCURACY}|history validation_accuracy .*|{LOSS_AFTER_EPOCHS}"  # keys that hypotheses are about
SCALE_OF_KEYS = {  # of the prediction interval, one of SCALES; other keys are on the linear one
    r"history \w+_loss .*|search \w+": "log",
    r"(\w+_)?accuracy|history \w+_accuracy .*|(average_precision|score|non_positive) .*|report (?!images).*": "share",
    r"epochs_run|epoch0? .*": "count",
}
# There and back.  A share of 1 has a finite angle but no finite logit, and the reports state 100 %.
SCALES: dict[str, tuple[Callable, Callable]] = {
    "linear": (lambda value: value, lambda value: value),
    "log": (np.log, np.exp),
    "share": (lambda value: np.arcsin(np.sqrt(value)), lambda angle: np.sin(np.clip(angle, 0, math.pi / 2)) ** 2),
    "count": (lambda value: value, lambda value: np.maximum(value, 0)),
}
_SEARCHED = "perturbation_searched_classifier"
NOT_ON_THIS = ", on other numbers of this training"
PLATEAU = 0.01  # accuracy below the highest that counts as reached
KINDS = ("result", "setting", "description")
REPRODUCED, BETTER, DIFFERS = "reproduced", "better", "differs"
ONE_RUN, FEWER, OTHER = "one run", "fewer than three runs", "other settings"
NOT_RUN, CANNOT = "not run", "cannot be run here"
SAME = "same"
INSIDE, OUTSIDE, TOO_FEW = "inside", "outside", "too few runs"
HYPOTHESIS_WORDS = (INSIDE, OUTSIDE, TOO_FEW)
UNCHANGED = "-"
WORDS = (REPRODUCED, BETTER, DIFFERS, ONE_RUN, FEWER, OTHER, NOT_RUN, CANNOT)
SETTING_WORDS = (SAME, OTHER, NOT_RUN, CANNOT)
UNSTATED = (  # what a document leaves open: the experiment and the setting that hold our choice
    ("000", "factor of a step of the learning rate", "supervised_1", "train.step_factor"),
    ("000", "epochs between two such steps", "supervised_1", "train.step_epochs"),
    ("000", "momentum of SGD", "supervised_5", "train.momentum"),
    ("001", "width of the pretext's square, in pixels", "perturbation_tuned", "square"),
    ("001", "learning rate of the head after the searched perturbation", _SEARCHED, "train.learning_rate"),
    ("001", "batch size of that head", _SEARCHED, "batch_size"),
    ("002", "data", "cifar10_rotation", "data"),
    ("002", "network", "cifar10_rotation", "network"),
    ("002", "optimizer", "cifar10_rotation", "train.optimizer"),
    ("002", "learning rate", "cifar10_rotation", "train.learning_rate"),
    ("002", "batch size", "cifar10_rotation", "batch_size"),
    ("002", "epochs of a classifier on frozen features", "cifar10_rotation_classifier", "train.max_epochs"),
    ("002", "epochs of a classifier that trains them", "cifar10_rotation_finetuned", "train.max_epochs"),
    ("004", "momentum of SGD", "nature_resnet18_sgd_1e-2", "train.momentum"),
    ("004", "batch size", "nature_resnet18_sgd_1e-2", "batch_size"),
    ("004", "augmentation", "nature_resnet18_sgd_1e-2", "augmentation"),
)
DOCUMENTS = {
    "000": "K. Zioło, *Self-Supervised Scene Classification* (undated), the first report: EfficientNet-B0 on 15-Scene, "
    "fine-tuned with labels, and as a frozen network after a rotation and a perturbation pretext, with Score-CAM and "
    "model inversion.",
    "001": "A. Deceuninck, *Artificial Neural Network Project* (2023), the second report: the same three models with "
    "searched learning rates and batch sizes, the perturbation pretext at several epochs, Score-CAM, and images for "
    "single filters.",
    "002": "A. Hernández Ramos, *On the effect of rotation-based self-supervised learning* (undated): a rotation "
    "pretext, and the classifier with and without it.  It names neither its data nor its network, but for the "
    "ResNet-34 of a second trial; we take CIFAR-10 and ResNet-18.",
    "003": "I. Berezin, *Mandatory assignment 1, IN4310* (2023): ResNet-18 from ImageNet weights on six classes of "
    "nature scenes, with a classification report, rankings, feature maps and covariance spectra.",
    "004": "“DF”, *Mandatory assignment 1, IN4310* (undated): the same assignment with ResNet-18 from random and from "
    "ImageNet weights on smaller images, with average precision and the share of non-positive values.",
}


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


# ------------------------------------------------------------------------------------------- where a number is found
# A reader gets the study, the name of an experiment and the words of the key after its first, and returns one value per
# run; an empty list where nothing was measured.


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


# ------------------------------------------------------------------------------------------------------------ verdicts


def scale_of(key: str, values: Sequence[float]) -> str:
    """Which of SCALES the values of a key are on; a loss of 0 has no logarithm and leaves them on the linear one."""
    scale = next((scale for keys, scale in SCALE_OF_KEYS.items() if re.fullmatch(keys, key)), "linear")
    return "linear" if scale == "log" and min(values) <= 0 else scale


def prediction_interval(values: Sequence[float], scale: str = "linear") -> tuple[float, float]:
    """Where one further run lies with a probability of 0.95: mean +- t s sqrt(1 + 1/n), with n - 1 degrees of freedom.

    Computed on one of SCALES, and returned in the unit of the values.  Raises ValueError for fewer than three values.
    """
    n = len(values)
    if n < MIN_RUNS:
        raise ValueError(f"there are {n} values; a prediction interval needs at least {MIN_RUNS}")
    there, back = SCALES[scale]
    scaled = there(np.asarray(values, dtype=float))
    reach = student_t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(scaled, ddof=1) * math.sqrt(1 + 1 / n)
    return float(back(np.mean(scaled) - reach)), float(back(np.mean(scaled) + reach))


def _interval(values: Sequence[float], key: str) -> tuple[float, float]:
    return prediction_interval(values, scale_of(key, values))


def _holds(interval: tuple[float, float], value: float, rounding: float = 0.0) -> bool:
    """Whether a rounded value lies in an interval, which without any spread is a single number."""
    return interval[0] - rounding - 1e-9 <= value <= interval[1] + rounding + 1e-9


def verdict(number: EarlierNumber, ours: Sequence[float], other_settings: bool = False) -> str:
    """One of WORDS, for a result of an earlier report and our values of it, one per run."""
    if not ours:
        return CANNOT if number.reason else NOT_RUN
    if other_settings:
        return OTHER
    if len(ours) < MIN_RUNS:
        return ONE_RUN if len(ours) == 1 else FEWER
    if not all(map(math.isfinite, ours)):  # an event of theirs that did not happen in every run of ours
        return DIFFERS
    interval = _interval(ours, number.key)
    if _holds(interval, number.value, number.rounding):
        return REPRODUCED
    return BETTER if number.better == ("higher" if interval[0] > number.value else "lower") else DIFFERS


def compare_settings(study: Measured, numbers: Iterable[EarlierNumber]) -> pd.DataFrame:
    """One line per setting and experiment: number, experiment, ours (first run; None: there is no run) and word."""
    lines, numbers = [], list(numbers)
    impossible = {experiment for number in numbers if number.reason for experiment in number.experiments}
    for number in numbers:
        if number.kind != "setting":
            continue
        for experiment in number.experiments:
            values = measured(study, experiment, number.key)
            ours = values[0] if values else None
            same = isinstance(ours, int | float) and math.isclose(ours, number.value, rel_tol=1e-3)
            without = CANNOT if experiment in impossible else NOT_RUN
            word = without if ours is None else SAME if same else OTHER
            lines.append({"number": number, "experiment": experiment, "ours": ours, "word": word})
    return pd.DataFrame(lines, columns=["number", "experiment", "ours", "word"])


def other_settings(settings: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """Which settings of an experiment differ from those that a document states, by (document, experiment)."""
    found: dict[tuple[str, str], list[str]] = {}
    for number, experiment in settings.loc[settings["word"] == OTHER, ["number", "experiment"]].itertuples(index=False):
        quantity = "images" if number.key.startswith(("data.images", "images", "report images")) else number.quantity
        quantities = found.setdefault((number.document, experiment), [])
        if quantity not in quantities:
            quantities.append(quantity)
    return found


def compare_results(study: Measured, numbers: Iterable[EarlierNumber]) -> pd.DataFrame:
    """One line per result of a report: number, ours (values, one per run), word, machines of the runs, and remark."""
    numbers = list(numbers)
    differing = other_settings(compare_settings(study, numbers))
    tested = {each.compared_with for each in HYPOTHESES}
    lines = []
    for number in numbers:
        if number.kind != "result":
            continue
        ours, runs = measured(study, number.experiment, number.key), study.runs(number.experiment)
        others = []
        if ours and runs:
            pretext = runs[0]["settings"].get("pretext_run")
            others += differing.get((number.document, number.experiment), [])
            others += [f"{quantity} of {pretext}" for quantity in differing.get((number.document, pretext), [])]
        word = verdict(number, ours, other_settings=bool(others or number.differs_by))
        remarks = [f"other {', '.join(others)}" if others else "", number.differs_by if ours else ""]
        remarks += [number.reason, number.note]
        if word == DIFFERS and number.experiment in tested:
            remarks.append(f"hypotheses are tested below{'' if re.fullmatch(TESTED, number.key) else NOT_ON_THIS}")
        lines.append(
            {
                "number": number,
                "ours": ours,
                "word": word,
                "machines": len({machine(run) for run in runs}),
                "remark": "; ".join(filter(None, remarks)),
            }
        )
    return pd.DataFrame(lines, columns=["number", "ours", "word", "machines", "remark"])


# ------------------------------------------------------------------------------------------------------------ the page


def _in_digits(value: float | int | str, integer: bool = False) -> str:
    """Four decimals; whole numbers (where `integer`, or from 2 on) without any; small ones with two digits."""
    if isinstance(value, str):
        return value
    if math.isinf(value):
        return "never"
    if float(value).is_integer() and (integer or abs(value) >= 2):
        return f"{value:.0f}"
    return f"{value:.2g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"


def _stated(number: EarlierNumber) -> str:
    """As printed; where that is a formula or has words around it, the value."""
    plain = all(letter in "0123456789.,-%xe " for letter in number.stated)
    return number.stated if plain or number.value is None else f"{number.value:g}"


def _ours(values: Sequence[float], key: str, integer: bool = False) -> str:
    """The mean over runs and, of runs enough, the prediction interval."""
    if not values:
        return "none"
    mean = _in_digits(float(np.mean(values)), integer)
    if len(values) < MIN_RUNS or mean == "never":
        return mean
    return f"{mean} ({_range(_interval(values, key))})"


def _range(interval: tuple[float, float]) -> str:
    return " to ".join(map(_in_digits, interval))


def results_markdown(compared: pd.DataFrame) -> str:
    """The results of one document.  Numbers without a key share a line with others of their place and remark."""
    lines = ["| place | quantity | theirs | ours | runs | word | remark |", "|---|---|---|---|---|---|---|"]
    together: dict[tuple, list[EarlierNumber]] = {}
    for line in compared.to_dict("records"):
        number = line["number"]
        if not number.key:
            together.setdefault((number.place, line["word"], line["remark"]), []).append(number)
            continue
        runs = f"{len(line['ours'])}{', mixed' if line['machines'] > 1 and len(line['ours']) > 1 else ''}"
        cells = (
            number.place,
            number.quantity,
            _stated(number),
            _ours(line["ours"], number.key, not number.better),
            runs,
        )
        lines.append(f"| {' | '.join(cells)} | {line['word']} | {line['remark'] or '-'} |")
    for (place, word, remark), numbers in together.items():
        quantities = numbers[0].quantity if len(numbers) == 1 else f"{numbers[0].quantity} to {numbers[-1].quantity}"
        quantities = "; ".join(each.quantity for each in numbers) if len(numbers) < 6 else quantities
        lines.append(
            f"| {place} | {quantities} | {'; '.join(map(_stated, numbers))} | none | 0 | {word} | {remark or '-'} |"
        )
    return "\n".join(lines)


def settings_markdown(settings: pd.DataFrame) -> str:
    """One line per document, place, quantity, and value of theirs and of ours; experiments that share them together."""
    lines = [
        "| document | place | setting | theirs | ours | word | experiments | remark |",
        "|---|---|---|---|---|---|---|---|",
    ]
    together: dict[tuple, list[str]] = {}
    for line in settings.to_dict("records"):
        number, ours = line["number"], line["ours"]
        without_ours = {NOT_RUN: "none", CANNOT: "none", SAME: _stated(number)}
        text = without_ours.get(line["word"]) or _in_digits(ours, integer=True)
        key = (number.document, number.place, number.quantity, _stated(number), text, line["word"], number.note or "-")
        together.setdefault(key, []).append(line["experiment"])
    for (*cells, remark), experiments in together.items():
        lines.append(f"| {' | '.join(cells)} | {', '.join(f'`{name}`' for name in experiments)} | {remark} |")
    return "\n".join(lines)


def unstated_markdown() -> str:
    """What the documents leave open, and what we chose."""
    lines = ["| document | not stated | ours | experiment |", "|---|---|---|---|"]
    for document, quantity, name, setting in UNSTATED:
        experiment = EXPERIMENTS[name]
        value = PRETEXTS[experiment.pretext].square if setting == "square" else attrgetter(setting)(experiment)
        lines.append(f"| {document} | {quantity} | {value} | `{name}` |")
    return "\n".join(lines)


def counts_markdown(compared: pd.DataFrame) -> str:
    """How many results of each document got which word."""
    documents = [number.document for number in compared["number"]]
    counts = Counter(zip(documents, compared["word"], strict=True))
    lines = [f"| document | results | {' | '.join(WORDS)} |", f"|---|---|{'---|' * len(WORDS)}"]
    for document in DOCUMENTS:
        of_words = [counts[document, word] for word in WORDS]
        lines.append(f"| {document} | {sum(of_words)} | {' | '.join(map(str, of_words))} |")
    of_words = [sum(counts[document, word] for document in DOCUMENTS) for word in WORDS]
    lines.append(f"| all | {sum(of_words)} | {' | '.join(map(str, of_words))} |")
    return "\n".join(lines)


def contradictions_markdown(numbers: Iterable[EarlierNumber]) -> str:
    """Where documents disagree with themselves, one item each."""
    found = [number for number in numbers if number.contradiction]
    return "\n".join(f"- {number.document}, {number.place}: {number.contradiction}" for number in found)


@dataclass(frozen=True)
class Hypothesis:
    """A number of a report beside ours of its experiment, as it is or with a change that may explain theirs."""

    experiment: str
    change: str  # UNCHANGED for the experiment itself
    quantity: str  # of a loss; "": the accuracy
    theirs: float
    key: str
    ours: Sequence[float]  # one per run
    unchanged: Sequence[float]  # ours of the experiment itself, on the platforms of `ours`; [] where that is the line
    others: bool  # whether the classifier or its pretext has other settings than the report's

    @property
    def word(self) -> str:
        """Whether theirs lies in the prediction interval of ours, one of HYPOTHESIS_WORDS, or why that is open."""
        if not self.ours:
            return NOT_RUN
        if self.others:
            return OTHER
        if len(self.ours) < MIN_RUNS:
            return TOO_FEW
        return INSIDE if _holds(self.interval, self.theirs) else OUTSIDE

    @property
    def interval(self) -> tuple[float, float]:
        """The prediction interval of ours.  Raises ValueError for too few runs."""
        return _interval(self.ours, self.key)

    @property
    def tells_little(self) -> bool:
        """Whether the interval holds ours without the change too."""
        return bool(self.unchanged) and _holds(self.interval, float(np.mean(self.unchanged)))

    @property
    def goes_beyond(self) -> bool:
        """Whether theirs lies outside of the interval, and ours is the better one."""
        low, high = self.interval
        return high < self.theirs if self.quantity else low > self.theirs


def hypotheses_markdown(study: Measured, numbers: Sequence[EarlierNumber]) -> str:
    """Accuracies of experiments, and losses that the reports state, beside those of hypotheses of what they did.

    One line per experiment and change.  A change without a number of its own stands beside that of the experiment,
    which it may explain.  *unchanged* is ours of the experiment itself, on the platforms of the runs with the change.
    """
    lines = ["| experiment | changed | theirs | ours | unchanged |", "|---|---|---|---|---|"]
    for tested in _hypotheses(study, numbers):
        change = f"{tested.change} ({tested.quantity})" if tested.quantity else tested.change
        ours = f"{_ours(tested.ours, tested.key)}, {_count(tested.ours)}" if tested.ours else NOT_RUN
        ours += {INSIDE: ": theirs is inside", OUTSIDE: ": theirs is outside", OTHER: f", {OTHER}"}.get(tested.word, "")
        unchanged = "-"
        if tested.unchanged:
            unchanged = f"{_in_digits(float(np.mean(tested.unchanged)))}, {_count(tested.unchanged)}"
        lines.append(f"| {tested.experiment} | {change} | {_in_digits(tested.theirs)} | {ours} | {unchanged} |")
    return "\n".join(lines)


def found_markdown(study: Measured, numbers: Sequence[EarlierNumber]) -> str:
    """What `hypotheses_markdown` finds, in one line per number: which changes come as far as theirs, and which do not.

    A change with other settings says nothing, nor does one that was not run.
    """
    of_numbers: dict[tuple, list[Hypothesis]] = {}
    for tested in _hypotheses(study, numbers):
        if tested.word not in (NOT_RUN, OTHER):
            of_numbers.setdefault((tested.experiment, tested.quantity, tested.theirs), []).append(tested)
    lines = []
    for (name, quantity, theirs), tests in of_numbers.items():
        changed = [each for each in tests if each.change != UNCHANGED]
        if not changed:
            continue
        of_words = {word: [_in_words(each) for each in changed if each.word == word] for word in HYPOTHESIS_WORDS}
        said = "; ".join(f"*{word}*: {', '.join(changes)}" for word, changes in of_words.items() if changes)
        number = f"`{name}`, {f'{quantity}, ' if quantity else ''}theirs {_in_digits(theirs)}"
        lines.append(f"- {number}: {said}. {conclusion(tests)}")
    return "\n".join(lines)


def _in_words(tested: Hypothesis) -> str:
    """A change, and how little it says where theirs is inside."""
    return f"{tested.change} {_extent(tested)}" if tested.word == INSIDE else tested.change


def _extent(tested: Hypothesis) -> str:
    return f"({_range(tested.interval)}, {_count(tested.ours)})"


def conclusion(tests: Sequence[Hypothesis]) -> str:
    """What all that was tested for one number comes to, in one sentence."""
    unchanged = [each for each in tests if each.change == UNCHANGED and each.word == INSIDE]
    if unchanged:
        return f"Theirs is inside without a change {_extent(unchanged[0])}, so none is needed."
    changed = [each for each in tests if each.change != UNCHANGED]
    inside, outside = ([each for each in changed if each.word == word] for word in (INSIDE, OUTSIDE))
    if inside:
        little = [each for each in inside if each.tells_little]
        where = "its interval" if len(inside) == 1 else f"the interval of {_quoted(little)}"
        but = f", but {where} holds ours unchanged too" if little else ""
        return f"{_quoted(inside)} {'come' if len(inside) > 1 else 'comes'} as far as theirs{but}."
    if outside:
        beyond = [each for each in outside if each.goes_beyond]
        further = f": {_quoted(beyond)} {'go' if len(beyond) > 1 else 'goes'} beyond it" if beyond else ""
        return f"No change with {MIN_RUNS} runs or more has theirs inside{further}."
    nearest = min(tests, key=lambda each: abs(float(np.mean(each.ours)) - each.theirs))
    mean = _in_digits(float(np.mean(nearest.ours)))
    return f"No change has {MIN_RUNS} runs; {_quoted([nearest])} comes nearest, at {mean}."


def _quoted(tests: Sequence[Hypothesis]) -> str:
    return " and ".join("ours unchanged" if each.change == UNCHANGED else f"“{each.change}”" for each in tests)


def _hypotheses(study: Measured, numbers: Sequence[EarlierNumber]) -> Iterator[Hypothesis]:
    """The lines of `hypotheses_markdown`."""
    differing = {experiment for _, experiment in other_settings(compare_settings(study, numbers))}
    heads = [each for each in CLASSIFIER_EXPERIMENTS.values() if _has_another_head(each)]
    for name in dict.fromkeys(each.compared_with for each in HYPOTHESES):
        experiment = EXPERIMENTS[name]
        others = bool({name, getattr(experiment, "pretext_run", name)} & differing)
        rows = [experiment, *(each for each in (*HYPOTHESES, *heads) if each.compared_with == name)]
        losses = [each for each in numbers if each.experiment == name and re.fullmatch(LOSS_AFTER_EPOCHS, each.key)]
        accuracies = []
        for each in rows:
            of = each if each.earlier_accuracy else experiment
            other_epochs = each.train.max_epochs != experiment.train.max_epochs
            accuracies.append((each, of.earlier_accuracy, _key_of_accuracy(numbers, of), others or other_epochs, ""))
        of_losses = [(row, each.value, each.key, others, each.quantity) for each in losses for row in rows]
        for each, theirs, key, other, quantity in (*accuracies, *of_losses):
            ours, unchanged = measured(study, each.name, key), _unchanged(study, each, experiment, key)
            yield Hypothesis(name, _change(each, experiment), quantity, theirs, key, ours, unchanged, other)


def _key_of_accuracy(numbers: Iterable[EarlierNumber], experiment: Experiment) -> str:
    """Where ours of the accuracy that a report states of an experiment is found, so that it is the same everywhere."""
    of = [each for each in numbers if (each.experiment, each.value) == (experiment.name, experiment.earlier_accuracy)]
    keys = [each.key for each in of if each.key == ACCURACY or each.key.startswith("history validation_accuracy")]
    return ACCURACY if ACCURACY in keys or not keys else keys[0]


def _unchanged(study: Measured, changed: Experiment, experiment: Experiment, key: str) -> list[float]:
    """Ours of an experiment on the platforms of the runs of a changed one; [] for the experiment itself."""
    if changed is experiment:
        return []
    platforms = {platform_of(run) for run in study.runs(changed.name)}
    there = {stem: result for stem, result in study.results.items() if platform_of(result) in platforms}
    return measured(replace(study, results=there), experiment.name, key)


def _count(runs: Sequence) -> str:
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}"


def _has_another_head(experiment: Experiment) -> bool:
    """Whether it is a control of ours that reads the same features by another head."""
    other = CLASSIFIER_EXPERIMENTS.get(experiment.compared_with)
    same = other is not None and other.pretext_run == experiment.pretext_run
    return same and experiment.earlier_accuracy is None and other.head != experiment.head


def _change(experiment: Experiment, other: Experiment) -> str:
    """What an experiment changes in another one."""
    if getattr(experiment, "pretext", "") != getattr(other, "pretext", ""):
        return f"pretext: {experiment.pretext}"
    if experiment.augmentation != other.augmentation:
        return f"transforms: {experiment.augmentation}, {experiment.train.max_epochs} epochs"
    if experiment.train.momentum != other.train.momentum:
        return f"momentum: {experiment.train.momentum:g}, Nesterov's"
    if experiment.train.schedule != other.train.schedule:
        return f"schedule: {experiment.train.schedule}"
    if experiment.train.learning_rate != other.train.learning_rate:
        return f"learning rate: {experiment.train.learning_rate:g}"
    if experiment.frozen_mode != other.frozen_mode:
        return f"train mode: {FROZEN_WORDS[experiment.frozen_mode]}"
    if experiment.head != other.head:
        return f"head: {experiment.head}"
    if getattr(experiment, "pretext_epoch", "") != getattr(other, "pretext_epoch", ""):
        return f"pretext: epoch {experiment.pretext_epoch}"
    return UNCHANGED if experiment is other else f"pretext: {experiment.pretext_run}"


def page(study: Measured, numbers: Sequence[EarlierNumber]) -> str:
    """docs/reproduction.md."""
    compared, settings = compare_results(study, numbers), compare_settings(study, numbers)
    kinds = Counter(number.kind for number in numbers)
    setting_words = Counter(settings["word"])
    tables = []
    for document, report in DOCUMENTS.items():
        of_document = compared[[number.document == document for number in compared["number"]]]
        tables.append(f"### Document {document}\n\n{report}\n\n{results_markdown(of_document)}")
    return TEMPLATE.format(
        reports="\n".join(f"- **{document}**: {report}" for document, report in DOCUMENTS.items()),
        results=kinds["result"],
        setting_numbers=kinds["setting"],
        descriptions=kinds["description"],
        counts=counts_markdown(compared),
        tables="\n\n".join(tables),
        setting_counts=", ".join(
            f"{setting_words[word]} are *{word}*" for word in SETTING_WORDS if setting_words[word]
        ),
        settings=settings_markdown(settings),
        pairs=len(settings),
        unstated=unstated_markdown(),
        found=found_markdown(study, numbers),
        hypotheses=hypotheses_markdown(study, numbers),
        contradictions=contradictions_markdown(numbers),
    )


TEMPLATE = """# The earlier reports' numbers beside ours

Written by `python -m evaluation.pages.reproduction` (or `make pages`) from the result files and from
`evaluation/pages/earlier_numbers.csv`. No number of ours is typed.

## The five reports

{reports}

The CSV holds the numbers of the five reports: {results} results, {setting_numbers} settings, and {descriptions}
descriptions of data and code, with which nothing is compared. A result that a report repeats, or that can be read in
two ways, has a line for each.

## The words

| word | meaning |
|---|---|
| reproduced | Theirs lies in the 95 % prediction interval of one further run of ours. |
| better | Theirs lies outside of it, and ours is the better one. |
| differs | Theirs lies outside of it, and ours is the worse one, or neither is better. |
| one run, fewer than three runs | We have too few runs for an interval. Nothing is concluded. |
| other settings | Ours has another stated setting, other data or another model. Nothing is concluded. |
| not run | No run of ours measured it. |
| cannot be run here | The remark gives the reason. |

The prediction interval of n runs with mean m and standard deviation s is m ± t s √(1 + 1/n). Here t has n - 1 degrees
of freedom, and n is at least 3. With three runs it reaches five standard deviations to each side, so *reproduced* then
says little. Where all runs are equal it is a single number, which is too narrow. We take each number of theirs as that
of one training, known to half of the last digit that is printed: 100 % is 99.5 % or more.

An interval must not hold what is impossible, so it is computed on a scale that fits the quantity, and shown in the
quantity's own unit:

- Cross-entropy losses are positive, and theirs can be a small fraction of ours: the logarithm.
- Accuracies, average precisions, and shares lie between 0 and 1, and their seed variance shrinks near 1: the arcsine of
  the square root, with ends cut at 0 and 1. A logit would be infinite for a report's 100 %.
- All others are on their own scale: epochs, with a lower end cut at 0, differences, and sums of weights.

*Validation accuracy* is under the earlier protocol: the epoch is selected, and the accuracy reported, on the same
images (all 2,985 of 15-Scene). This is optimistic. Ours is the highest of all epochs, or that of the epoch that the
report states. Document 001 chose the epochs of its scene classifiers from their loss curves, by eye (section 2.1).
Beside its accuracies of scenes, those of training too, ours is of the epoch with the lowest validation loss. Those of
its table 2 have a second line, where ours is of the epoch that the table states. Our own comparisons use separate test
images, see [results.md](results.md).

## The initial weights

Our EfficientNet-B0 starts from a file that holds the convolution, squeeze-excitation and BatchNorm affine tensors of an
ImageNet network. As far as we can tell these are torchvision's `IMAGENET1K_V1`. The file has no running means and
variances of BatchNorm, so these were re-estimated on 1,000 ImageNet photographs. If we are right, a run from
torchvision's download differs from ours in these statistics only, and its accuracies may differ a little. The file is
not in this repository, so our numbers cannot be repeated to the last digit without it.

The evidence is table 7 of document 001 below: the filters of the last convolution with the three highest sums of
weights are the same in its models and in ours. The other tensors could not be compared. Every result file records the
file name and the SHA-256 of its initial weights.

### Comparable numbers from torchvision's download

`python train.py` downloads torchvision's weights unless `--weights` names a file. Give such runs a folder of their own,
so that they do not mix with the committed results:

```sh
export SCENES_ROOT=~/scenes_torchvision
python -m data.prepare 15scene --source FOLDER
python train.py imagenet_classifier_four_stages supervised_long --seeds 0 1 2
```

Then compare differences: that of an experiment and its control from your weights with that of the same two experiments
here. A single accuracy is less comparable, because it moves with the initial weights. To come as near to our weights as
possible, re-estimate the statistics of the download and start from that file:

```python
import torch
from supervised.models import build_features, estimate_batchnorm, load_initial_weights

features = build_features("efficientnet_b0")
features.load_state_dict(load_initial_weights("imagenet").state_dict)
estimate_batchnorm(features, batches)  # your batches of normalized ImageNet photographs, (N, 3, 224, 224)
torch.save({{f"features.{{name}}": tensor for name, tensor in features.state_dict().items()}}, "re_estimated.pth")
```

then `python train.py supervised_long --weights re_estimated.pth`.

## How many of each

{counts}

## Results

*ours* is the plain mean over runs. With three runs or more the prediction interval follows. *mixed* marks lines whose
runs come from several machines, torch versions or precisions. Losses are in nats per image, and epochs count from 1
unless the remark says otherwise.

{tables}

## What the reports may have done

Where ours is far from a report's number, we test what may explain it:

- **SGD, document 000.** It states neither a momentum nor when the learning rate is lowered. A momentum is tried, and a
  rate that is never lowered.
- **Both pretexts, document 000.** Its text and its appendix 12 state different transforms. Ours are those of the text;
  those of the appendix are tried in fewer epochs.
- **The perturbation, document 001.** It is learned faster there, up to an accuracy of 100 %. The report does not state
  how large the square is. Ours has the 10 pixels of document 000; 20 are tried.
- **Frozen features after perturbation**, of document 000, and of document 001 with the searched rate, are far better
  there. Four hypotheses:
  - "Frozen" features were left in train mode, a mistake that is made on purpose here. No gradient changes them, but
    BatchNorm normalizes by each training batch and moves its statistics to the scenes, and stochastic depth drops
    blocks.
  - The features were taken from an earlier epoch of the pretext. In document 000 the pretext's accuracy is 100 % after
    the first epoch, so the first may be the one that was kept. Ours of epochs 1 and 2 are from `perturbation_1_short`,
    the others from `perturbation_1`.
  - The features tell the scenes apart, but they are so small after the pretext that a plain head hardly learns from
    them. BatchNorm before the head makes them large again.
  - The head of document 001 had another learning rate, which was searched and is not stated.
- **Rotation, document 002.** Its training accuracy is below its test accuracy; ours is far above. With padded crops,
  flips and SGD (`cifar10_rotation_recipe` in [results.md](results.md)) ours is below too, and its test accuracy is
  nearer to theirs. It has other settings in several ways and fewer than three runs, so it is not in the lists below.

Accuracies are under the earlier protocol, of the same epoch as in the results above. *Unchanged* is ours without the
change, from runs on the same device and torch version. A dash under *changed* marks the experiment itself. With three
runs or more the prediction interval follows, and whether theirs lies in it. Where this interval is wide, *inside* says
only that a hypothesis is possible. [results.md](results.md) compares each experiment with the one that it changes.

**Found.** A change that holds theirs *inside* may be what the report did; one with theirs *outside* is not what it did,
or not alone. The last sentence of each line concludes:

{found}

**In numbers.**

{hypotheses}

## Settings

What the reports state in numbers about their trainings, and what our experiments have. A line holds the experiments
that share a setting.  Of the {pairs} pairs of a setting and an experiment, {setting_counts}.
An experiment with *other settings* in this table has these words at all of its results above, and so has a classifier
on the features of such a pretext.  The results above say why an experiment cannot be run here.

{settings}

### What the reports leave open

{unstated}

Early stopping of document 000 looks at all 2,985 validation images. Ours looks at val alone, the part of them that
[data.md](data.md) gives. Document 000 states other transforms for its two pretexts in its table of settings than in its
text; ours are those of the text.

## Where the documents contradict themselves or the facts

{contradictions}
"""


def main() -> int:
    """Write the page."""
    root = root_folder()
    folder = root / "results" / "full"
    study = Measured(read_profile(folder), folder, CODE / "published")
    text = page(study, read_earlier_numbers())
    write_text(root / "docs" / "reproduction.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
