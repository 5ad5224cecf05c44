"""What the study comes to, a sentence each, from the results: README.md and the front page both begin with it."""

from collections.abc import Mapping

import pandas as pd

from evaluation.metrics import accuracies_of, comparison_table, of_first_seeds, seeds_comparison_table

CONTROL = "imagenet_classifier_best"
QUESTIONS = (  # asked of the results, where there are those of the row and of CONTROL
    ("Fine-tuned with labels", "supervised_short"),
    ("The same for more than twice as many epochs", "supervised_long"),
    ("Taught by three of the first kind, for as long", "distilled"),
    ("Features frozen after the rotation pretext", "rotation_gentle_classifier"),
    ("Features frozen after the perturbation pretext", "perturbation_gentle_classifier"),
)
BEST = (  # beside the highest of the earlier reports
    "supervised_short",
    "supervised_long",
    "distilled",
    "distilled_long",
)


def in_short(table: pd.DataFrame, results: Mapping[str, dict]) -> list[str]:
    """All sentences, from `metrics.results_table` with the earlier reports' numbers and the results of all seeds."""
    return [*against_earlier(table, results), *answers(results)]


def against_earlier(table: pd.DataFrame, results: Mapping[str, dict]) -> list[str]:
    """What the rows of BEST come to by the earlier reports' protocol, and the highest of theirs: one sentence."""
    found = [f"{row} {_mean_in_words(results, row, 'earlier_protocol_accuracy')}" for row in BEST if accuracies_of(results, row)]
    if not found or table["earlier"].isna().all():
        return []
    highest = table["earlier"].idxmax()
    return [
        f"By the earlier reports' protocol (course accuracy): {'; '.join(found)}. The highest of theirs: "
        f"{table['earlier'][highest]:.4f} ({highest})."
    ]


def answers(results: Mapping[str, dict]) -> list[str]:
    """What CONTROL comes to, and beside it the QUESTIONS, of those that have results; nothing if there is none.

    By the test images of the first runs, and over the runs where both have several; p values are corrected for the
    number of questions (Holm 1979).
    """
    pairs = [(words, CONTROL, row) for words, row in QUESTIONS]
    over_seeds = {each["row"]: each for each in seeds_comparison_table(results, pairs).to_dict("records")}
    sentences = []
    for paired in comparison_table(of_first_seeds(results), pairs).to_dict("records"):
        runs = over_seeds.get(paired["row"])
        found = _verdicts(paired, runs) if runs else f"{paired['row is']} (p = {paired['p (Holm)']:.2g})"
        sentences.append(f"{paired['question']}: {_mean_in_words(results, paired['row'])}. Against those: {found}.")
    if not sentences:
        return []
    lead = (
        f"Frozen ImageNet features, read out as well as they can be: test accuracy {_mean_in_words(results, CONTROL)}. "
        "What follows is set against those: on the same images (McNemar) and over the runs (Welch), p after Holm."
    )
    return [lead, *sentences]


def _verdicts(paired: dict, runs: dict) -> str:
    images, seeds = f"p = {paired['p (Holm)']:.2g}", f"p = {runs['p (Holm)']:.2g}"
    if paired["row is"] == runs["row is"]:
        return f"{paired['row is']} ({images} on the same images, {seeds} over the runs)"
    return f"{paired['row is']} on the same images ({images}), {runs['row is']} over the runs ({seeds})"


def _mean_in_words(results: Mapping[str, dict], row: str, accuracy: str = "test_accuracy") -> str:
    runs = accuracies_of(results, row, accuracy)
    return f"{sum(runs) / len(runs):.4f} ({f'mean of {len(runs)} runs' if len(runs) > 1 else '1 run'})"
