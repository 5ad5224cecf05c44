"""What the reports may have done: their numbers beside ours of experiments that change one thing."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.pages.earlier_numbers import EarlierNumber, Measured, measured
from evaluation.pages.verdicts import (
    ACCURACY,
    HYPOTHESES,
    LOSS_AFTER_EPOCHS,
    NOT_RUN,
    OTHER,
    compare_settings,
    holds,
    in_digits,
    interval_of,
    other_settings,
    ours_markdown,
    range_markdown,
)
from evaluation.results import MIN_RUNS
from experiments import EXPERIMENTS
from run_files import platform_of
from self_supervised.settings import CLASSIFIER_EXPERIMENTS, FROZEN_WORDS
from supervised.settings import Experiment

INSIDE, OUTSIDE, TOO_FEW = "inside", "outside", "too few runs"
HYPOTHESIS_WORDS = (INSIDE, OUTSIDE, TOO_FEW)
UNCHANGED = "-"


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
        return INSIDE if holds(self.interval, self.theirs) else OUTSIDE

    @property
    def interval(self) -> tuple[float, float]:
        """The prediction interval of ours.  Raises ValueError for too few runs."""
        return interval_of(self.ours, self.key)

    @property
    def tells_little(self) -> bool:
        """Whether the interval holds ours without the change too."""
        return bool(self.unchanged) and holds(self.interval, float(np.mean(self.unchanged)))

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
        ours = f"{ours_markdown(tested.ours, tested.key)}, {_count(tested.ours)}" if tested.ours else NOT_RUN
        ours += {INSIDE: ": theirs is inside", OUTSIDE: ": theirs is outside", OTHER: f", {OTHER}"}.get(tested.word, "")
        unchanged = "-"
        if tested.unchanged:
            unchanged = f"{in_digits(float(np.mean(tested.unchanged)))}, {_count(tested.unchanged)}"
        lines.append(f"| {tested.experiment} | {change} | {in_digits(tested.theirs)} | {ours} | {unchanged} |")
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
        number = f"`{name}`, {f'{quantity}, ' if quantity else ''}theirs {in_digits(theirs)}"
        lines.append(f"- {number}: {said}. {conclusion(tests)}")
    return "\n".join(lines)


def _in_words(tested: Hypothesis) -> str:
    """A change, and how little it says where theirs is inside."""
    return f"{tested.change} {_extent(tested)}" if tested.word == INSIDE else tested.change


def _extent(tested: Hypothesis) -> str:
    return f"({range_markdown(tested.interval)}, {_count(tested.ours)})"


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
    mean = in_digits(float(np.mean(nearest.ours)))
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
