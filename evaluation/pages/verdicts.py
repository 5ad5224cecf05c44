"""A number of an earlier report against ours: the prediction interval of one further run, and one word."""

import math
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from evaluation.pages.earlier_numbers import EarlierNumber, Measured, measured
from evaluation.results import MIN_RUNS, machine
from self_supervised.settings import REPRODUCTION
from supervised.settings import REPRODUCTION as SUPERVISED_REPRODUCTION

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
NOT_ON_THIS = ", on other numbers of this training"
REPRODUCED, BETTER, DIFFERS = "reproduced", "better", "differs"
ONE_RUN, FEWER, OTHER = "one run", "fewer than three runs", "other settings"
NOT_RUN, CANNOT = "not run", "cannot be run here"
SAME = "same"
WORDS = (REPRODUCED, BETTER, DIFFERS, ONE_RUN, FEWER, OTHER, NOT_RUN, CANNOT)
SETTING_WORDS = (SAME, OTHER, NOT_RUN, CANNOT)


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


def interval_of(values: Sequence[float], key: str) -> tuple[float, float]:
    """The prediction interval of the values of a key, on the scale of that key."""
    return prediction_interval(values, scale_of(key, values))


def holds(interval: tuple[float, float], value: float, rounding: float = 0.0) -> bool:
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
    interval = interval_of(ours, number.key)
    if holds(interval, number.value, number.rounding):
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


# --------------------------------------------------------------------------------------------------- numbers as text


def in_digits(value: float | int | str, integer: bool = False) -> str:
    """Four decimals; whole numbers (where `integer`, or from 2 on) without any; small ones with two digits."""
    if isinstance(value, str):
        return value
    if math.isinf(value):
        return "never"
    if float(value).is_integer() and (integer or abs(value) >= 2):
        return f"{value:.0f}"
    return f"{value:.2g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"


def ours_markdown(values: Sequence[float], key: str, integer: bool = False) -> str:
    """The mean over runs and, of runs enough, the prediction interval."""
    if not values:
        return "none"
    mean = in_digits(float(np.mean(values)), integer)
    if len(values) < MIN_RUNS or mean == "never":
        return mean
    return f"{mean} ({range_markdown(interval_of(values, key))})"


def range_markdown(interval: tuple[float, float]) -> str:
    """An interval in words, "LOW to HIGH"."""
    return " to ".join(map(in_digits, interval))
