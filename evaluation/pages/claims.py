"""What the earlier reports claim and what is measured here: `python -m evaluation.pages.claims` writes docs/claims.md.

The claims are those of evaluation/claims.csv, measured by `results.comparisons`.  Every number comes from results/full;
a claim whose experiments have not been run names those that are missing.
"""

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from data.files import root_folder, run_command, write_text
from evaluation.explained import measured_rows
from evaluation.map_measures import COMPARED, CONTROL, compare_by_model
from evaluation.pages.earlier_numbers import Measured, read_earlier_numbers
from evaluation.pages.reproduction import DOCUMENTS
from evaluation.pages.tables import difference_text, machines_text, markdown, p_text, runs_text
from evaluation.pages.verdicts import compare_settings, other_settings
from evaluation.results import (
    BESIDE,
    EARLIER_CLAIMS,
    MIN_RUNS,
    Claim,
    beside_reported,
    comparisons,
    read_claims,
    read_profile,
    runs_by_platform,
    runs_of,
    runs_of_pretext,
    runs_to_compare,
)
from evaluation.statistics import estimate, variance_of_mean, verdict
from experiments import EXPERIMENTS
from run_files import STUDY_DATA

EXPLANATIONS = Path("results") / "full" / "explanations"
OVERFITTING = ("supervised_1", "supervised_2")  # without and with augmentation
DOCUMENTS_OF = {"Zioło (undated)": ("000",), "Deceuninck 2023": ("001",), "both reports": ("000", "001")}
MARKS = {  # what stands in brackets behind a claim that is not a result as a report states it
    "its table says the opposite": "the report's text says so, but the accuracies in its table have the other order.",
    "in a table only": "the accuracies in the report's table have this order; its text does not compare them.",
    "expected, not measured": "the report gives it as a reason or an expectation and compares nothing of the kind.",
    "not claimed": "no report says so; the comparison is this study's.",
}
REVISED = (  # pairs that took the place of others after results had been seen
    ("supervised_final", "supervised_1"),
    ("supervised_final", "rotation_classifier_3"),
    ("supervised_tuned", "perturbation_classifier_tuned_10"),
)
TRAINED_AGAIN = {  # features of a second run of a pretext, of the same seed; no result file says which run they are of
    "2463c86af8f6c482c7a2feb25999e3f6ff311ae651f80a0661b3acf614457b48": "rotation_tuned, epoch 10",
    "dc2cd69afd5f5e2f3d72bcd3aea794ef00f612b87c1cc00aabeff43fbe866dd3": "perturbation_tuned, epoch 3",
}
PAGE = """# Are the earlier claims true?

Written by `make pages` from the files in `results/full`; no number is typed.  The claims are those of {covered} of the
{reports} earlier reports: {sources}.  `docs/reproduction.md` has the numbers of all {reports}.

{stated} of the {claims} claims are stated by a report as its results.  A mark in brackets says what the others are:

{marks}

A claim that something is *best* is tested against the next best experiment in the report's table.  After results had
been seen, some wordings were corrected, and some pairs of experiments were replaced because a report does not compare
them.  The number of claims stayed the same.  The new pairs are {revised}.

Each claim compares two experiments on the same test images; the epoch of each run is selected on val.  The column
*measured* names both with their mean test accuracies, in the same order.  The {claims} claims are one family: the
interval of each difference has a level of 1 - 0.05 / {claims}, and p is multiplied by {claims} (Bonferroni).  p is
below 0.05 exactly when the interval excludes 0; the claim then *holds* or *does not hold*.  Otherwise it is
*inconclusive*, which does not say that both are equal.  A claim of *no improvement* or *does not improve* holds if the
first experiment is worse, and does not hold if it is better.  `docs/results.md` says which runs a comparison uses, and
why a mean here can differ from that in its tables of experiments.

1* is a single run: its seed variance is unknown, so the interval covers the sampling of test images only and is too
narrow.  Such a verdict is marked *one run each* or *one run on one side*; other seeds may change it.  {spread}

*Far from theirs* marks an experiment whose mean accuracy under the earlier protocol is far from the report's: farther
than the report's own two accuracies are from each other.  Then the difference on which the report bases its claim is
smaller than the gap between its number and ours, and the verdict is about our runs alone.  `docs/reproduction.md` can
still call such an accuracy *reproduced*.  Claims about some classes only, and those for which a report lacks one of
the two accuracies, are never marked.{unlike}{two_runs}

`docs/results.md` has this study's own comparisons.

{table}

## Our experiments beside the highest earlier numbers

Both are under the earlier protocol: the epoch is selected, and the accuracy reported, on val and test images together.
Ours is the mean over seeds.  The interval of the difference covers our seed variance and the sampling of images, as if
each side had images of its own.  Theirs is a single run, whose seed variance is unknown and not covered.  The {lines}
lines are one family.

{beside}

## Augmentation stops the overfitting

Zioło (undated) claims this in section 1; section 3 says that the transforms changed the overfitting little.  The gap
is the accuracy on training images minus that on test images, in the last epoch.  Training images are measured with
augmentation, which alone makes them harder.  So a smaller gap does not by itself show less overfitting, and the
accuracy on test images at the epoch selected on val counts too: the first claim above compares it.  The claim holds if
with augmentation the gap is smaller and that accuracy better.  It does not hold if the gap is larger or the accuracy
worse.

The runs, and so the machines, are those of the first claim.  The table has the last epoch; its accuracies and gaps are
means over runs.  The difference of the two gaps is a family of its own, and its interval covers images and seeds.

{overfitting}

## Score-CAM shows what the model looks at

Both reports claim this.  The maps are of the last stage, for the class that the model predicts.  Pixels are hidden
(*deletion*: a low score is good) or shown (*insertion*: a high score is good) in the order of the map.  Hidden pixels
are black, have the mean color of the image, or are blurred; the score of an image is the mean over the three.
Score-CAM is compared, image by image, with two control maps that do not use the model: smooth noise (*random*) and the
edges of the image (*edges*).  An advantage above 0 means that Score-CAM is better.  For a model, the claim holds if
Score-CAM is better than both by both measures; it does not hold if it is worse than one of them by one measure.
Otherwise it is inconclusive.

{maps}

`evaluation/evaluation.ipynb` has other kinds of maps and model inversion.  `supervised/report.ipynb` has the
overfitting by epoch, and `self_supervised/report.ipynb` the epochs and stages of the pretexts.
"""


UNLIKE = """  *Unlike theirs* names settings that
are not those of the report, see `docs/reproduction.md`: the verdict is about ours."""
TWO_RUNS = """

*Features of two runs*: both sides should have features of one run of the pretext, after fewer and more epochs.  With
the seed in brackets, one side has features of a second run, which was trained later.  So a part of the difference may
come from the two runs and not from the number of epochs."""


def claims_table(results: Mapping[str, dict]) -> pd.DataFrame:
    """The claims as text: what was compared, the difference with its interval, p, machines and the verdict."""
    table = comparisons(results)
    differing = other_settings(compare_settings(Measured(results, Path(), Path()), read_earlier_numbers()))
    measured = {
        (line["experiment"], line["compared_with"], line["classes"]): line
        for line in table[table["family"] == EARLIER_CLAIMS].to_dict("records")
    }
    lines = []
    for claim in read_claims():
        key = claim.experiment, claim.compared_with, ", ".join(claim.classes)
        about = {"claim": claim.claim, "source": claim.source}
        if key in measured:
            lines.append({**about, **_measured(claim, measured[key], results)})
            lines[-1]["measured"] += _unlike_theirs(claim, results, differing) + _far_from_theirs(claim, results)
            lines[-1]["measured"] += _two_runs_of_pretext(claim, results)
        else:
            pair = f"{claim.experiment} against {claim.compared_with}"
            lines.append({**about, "measured": pair, "verdict": _why_not_measured(claim, results)})
    columns = ["claim", "source", "measured", "runs", "difference (interval)", "p", "machines", "verdict"]
    return pd.DataFrame([{**dict.fromkeys(columns, ""), **line} for line in lines])


def _measured(claim: Claim, line: Mapping, results: Mapping[str, dict]) -> dict[str, str]:
    images = f", {line['images']:,} images of {', '.join(claim.classes)}" if claim.classes else ""
    found = {claim.direction: "**holds**", "inconclusive": "inconclusive"}.get(line["verdict"], "**does not hold**")
    found += "" if line["verdict"] == "inconclusive" else _single_runs(line)
    return {
        "measured": f"{claim.experiment} against {claim.compared_with}: {line['accuracy']:.4f}, "
        f"{line['other_accuracy']:.4f}{images}{_lengths(claim, results)}",
        "runs": runs_text(line),
        "difference (interval)": difference_text(line["difference"], line["low"], line["high"]),
        "p": p_text(line["p"]),
        "machines": machines_text(line),
        "verdict": found,
    }


def _single_runs(line: Mapping) -> str:
    """Which sides of a comparison are a single run whose seed variance is unknown, in brackets; "" if neither is."""
    return ("", " (one run on one side)", " (one run each)")[runs_text(line).count("*")]


def _why_not_measured(claim: Claim, results: Mapping[str, dict]) -> str:
    missing = [name for name in (claim.experiment, claim.compared_with) if not runs_of(results, name)]
    return f"not run yet: {', '.join(missing)}" if missing else "not measured: the test images differ"


def _unlike_theirs(claim: Claim, results: Mapping[str, dict], differing: Mapping[tuple[str, str], list[str]]) -> str:
    """Which settings of both experiments and of their pretexts are not those that the reports state."""
    names = []
    for name in (claim.experiment, claim.compared_with):
        names += [name, runs_of(results, name)[0]["settings"].get("pretext_run")]
    found = [
        f"{', '.join(quantities)} of {name}"
        for (document, name), quantities in differing.items()
        if name in names and document in DOCUMENTS_OF.get(claim.source, (document,))
    ]
    return f"; unlike theirs: {'; '.join(dict.fromkeys(found))}" if found else ""


def _far_from_theirs(claim: Claim, results: Mapping[str, dict]) -> str:
    """Which sides are further from their own accuracy in a report than both sides are from each other there.

    Under the earlier protocol, means over runs.  "" for a claim about some classes, or where a side was not reported.
    """
    names = claim.experiment, claim.compared_with
    sides = runs_to_compare(results, *names)
    reported = [EXPERIMENTS[name].earlier_accuracy if name in EXPERIMENTS else None for name in names]
    if claim.classes or None in reported:
        return ""
    found = []
    for name, theirs, runs in zip(names, reported, sides, strict=True):
        ours = float(np.mean([run["earlier_protocol_accuracy"] for run in runs]))
        if abs(ours - theirs) > abs(reported[0] - reported[1]):
            found.append(f"{name} is {abs(ours - theirs):.4f} {'higher' if ours > theirs else 'lower'}")
    return f"; far from theirs: {', '.join(found)}" if found else ""


def _two_runs_of_pretext(claim: Claim, results: Mapping[str, dict]) -> str:
    """In which seeds both sides have the same pretext, but one side features of its second run; "" if in none."""
    ones, others = runs_to_compare(results, claim.experiment, claim.compared_with)
    pretext = ones[0]["settings"].get("pretext_run")
    if not pretext or pretext != others[0]["settings"].get("pretext_run"):
        return ""
    again, others_again = (
        {(run["settings"]["seed"], run["initial_weights"].get("sha256") in TRAINED_AGAIN) for run in runs}
        for runs in (ones, others)
    )
    seeds = sorted({seed for seed, found in again if (seed, not found) in others_again})
    return f"; features of two runs of {pretext} (seed {', '.join(map(str, seeds))})" if seeds else ""


def _lengths(claim: Claim, results: Mapping[str, dict]) -> str:
    """The epochs of both experiments and of their pretexts, where they differ."""
    pair = runs_to_compare(results, claim.experiment, claim.compared_with)
    epochs = [runs[0]["settings"]["train"]["max_epochs"] for runs in pair]
    text = f", in {epochs[0]} and {epochs[1]} epochs" if epochs[0] != epochs[1] else ""
    pretexts = [_pretext_epochs(runs, results) for runs in pair]
    if None not in pretexts and pretexts[0] != pretexts[1]:
        text += f", after {pretexts[0]} and {pretexts[1]} epochs of the pretext"
    return text


def _pretext_epochs(runs: list[dict], results: Mapping[str, dict]) -> str | None:
    """The epochs of the pretext whose features runs have, "LEAST to MOST" if they differ; None without a pretext."""
    epoch = runs[0]["settings"].get("pretext_epoch")
    if epoch in ("best", "last"):
        pretexts = runs_of_pretext(runs, results)
        found = {each["epoch"] if epoch == "best" else each["settings"]["train"]["max_epochs"] for each in pretexts}
    else:
        found = {epoch} - {None}
    return " to ".join(map(str, sorted({min(found), max(found)}))) if found else None


def spread_of_runs(results: Mapping[str, dict]) -> str:
    """A sentence: how far the runs of one experiment on frozen features are apart at most, on all platforms.

    It is about test accuracies on 15-Scene and experiments with MIN_RUNS runs or more; "" if there is none.
    """
    frozen = {
        stem: each
        for stem, each in results.items()
        if each["settings"].get("freeze_features") and each["data"]["name"] == STUDY_DATA
    }
    table = {}
    for name in {each["settings"]["name"] for each in frozen.values()}:
        runs = chain.from_iterable(runs_by_platform(frozen, name).values())
        accuracies = [run["test_accuracy"] for run in runs]
        if len(accuracies) >= MIN_RUNS:
            table[name] = min(accuracies), max(accuracies)
    if not table:
        return ""
    apart = {name: high - low for name, (low, high) in table.items()}
    name = max(apart, key=apart.get)
    low, high = table[name]
    return (
        f"Among the {len(table)} classifiers on frozen features that have {MIN_RUNS} runs or more, the test "
        f"accuracies of one classifier's runs are up to {apart[name]:.4f} apart ({name}: {low:.4f} to {high:.4f})."
    )


def beside_table(results: Mapping[str, dict]) -> pd.DataFrame:
    """`results.beside_reported` as text."""
    return pd.DataFrame(
        {
            "experiment": name,
            "runs": str(line["runs"]),
            "earlier protocol": f"{line['accuracy']:.4f}",
            "earlier report": f"{line['reported']:.4f} ({line['like']})",
            "difference (interval)": difference_text(line["difference"], line["low"], line["high"]),
            "p": p_text(line["p"]),
            "ours is": line["verdict"],
        }
        for name, line in beside_reported(results).to_dict("index").items()
    )


def overfitting(results: Mapping[str, dict]) -> str:
    """The gap between training and test accuracy of two experiments as Markdown, the difference of the gaps, a verdict.

    It is over the runs of the first claim.  The variance between runs counts, and the images of the four accuracies
    count as independent samples, which makes the interval rather too wide: the result files do not say which images
    are classified correctly in the last epoch.  "" if an experiment has not been run, or on other images.
    """
    compared = comparisons(results)
    pair = (compared["experiment"] == OVERFITTING[1]) & (compared["compared_with"] == OVERFITTING[0])
    compared = compared[pair & (compared["classes"] == "")].to_dict("records")
    if not compared:
        return ""
    lines, means, parts = [], [], []
    sides = reversed(runs_to_compare(results, OVERFITTING[1], OVERFITTING[0]))
    counts = reversed(runs_text(compared[0]).split(", "))
    for runs, count in zip(sides, counts, strict=True):
        last = {split: [run["history"][f"{split}_accuracy"][-1] for run in runs] for split in ("train", "test")}
        gaps = np.subtract(last["train"], last["test"])
        means.append(gaps.mean())
        parts += _variances(last, gaps, runs[0]["data"]["images"])
        texts = (count, *(f"{np.mean(each):.4f}" for each in last.values()), f"{means[-1]:+.4f}")
        columns = "runs", "training images, augmented", "test images", "gap", "gap of each run"
        lines.append(dict(zip(columns, (*texts, ", ".join(f"{gap:+.4f}" for gap in gaps)), strict=True)))
    difference = means[1] - means[0]
    low, high, p_value = estimate(difference, parts)
    gap = "smaller" if high < 0 else "larger" if low > 0 else "inconclusive"
    found = f"it is **{gap}**" if gap == "inconclusive" else f"the gap is **{gap}**{_single_runs(compared[0])}"
    return (
        f"{markdown(pd.DataFrame(lines, index=OVERFITTING), 'experiment')}\n\nWith augmentation the gap "
        f"changes by {difference_text(difference, low, high)}, p = {p_text(p_value)}: {found}.  "
        f"{_overfitting_verdict(gap, compared[0])}"
    )


def _variances(last: Mapping[str, list[float]], gaps: np.ndarray, images: Mapping[str, int]) -> list[tuple[float, int]]:
    """The parts for `estimate` of a mean gap: the images of both splits, and the runs if there are several."""
    means = {split: float(np.mean(each)) for split, each in last.items()}
    of_images = [(mean * (1 - mean) / images[split], images[split] - 1) for split, mean in means.items()]
    return of_images + ([variance_of_mean(gaps)] if len(gaps) > 1 else [])


def _overfitting_verdict(gap: str, line: Mapping) -> str:
    """Whether augmentation stops the overfitting, from its gap and the `results.comparisons` of test accuracies."""
    text = difference_text(line["difference"], line["low"], line["high"])
    accuracy = (
        f"Over all runs the accuracy on test images changes by {text}, p = {p_text(line['p'])}: {line['verdict']}."
    )
    if gap == "larger" or line["verdict"] == "worse":
        return f"{accuracy}  So the claim **does not hold**{_single_runs(line)}."
    if gap == "smaller" and line["verdict"] == "better":
        return f"{accuracy}  So the claim **holds**{_single_runs(line)}."
    return f"{accuracy}  So the claim is inconclusive."


def maps_table(compared: pd.DataFrame) -> pd.DataFrame:
    """Score-CAM against maps that know nothing of a network, as text: lines of `map_measures.compare_by_model`."""
    shown = compared[(compared["map"] == "Score-CAM") & compared["measure"].isin(["deletion", "insertion"])]
    lines = [
        {
            "model": line["model"],
            "measure": line["measure"],
            "Score-CAM against": line["compared_with"],
            "mean advantage (interval)": difference_text(line["advantage"], line["low"], line["high"]),
            "better in images": f"{line['images_better']} of {line['images']}",
            "p": p_text(line["p"]),
            "Score-CAM is": line["verdict"],
        }
        for line in shown.to_dict("records")
    ]
    return pd.DataFrame(lines)


def maps_verdict(table: pd.DataFrame) -> str:
    """A sentence: for which models the lines of `maps_table` bear out that Score-CAM shows what the model looks at."""
    by_model = _verdict_by_model(table)
    models = {
        found: [model for model, each in by_model.items() if each == found]
        for found in ("**holds**", "**does not hold**", "is inconclusive")
    }
    return f"The claim {'; it '.join(f'{found} for {_named(names)}' for found, names in models.items())}."


def _verdict_by_model(table: pd.DataFrame) -> dict[str, str]:
    found = {}
    for model, verdicts in table.groupby("model", sort=False)["Score-CAM is"]:
        unsure = "**does not hold**" if "worse" in set(verdicts) else "is inconclusive"
        found[model] = "**holds**" if set(verdicts) == {"better"} else unsure
    return found


def maps_together(compared: pd.DataFrame) -> str:
    """Two sentences: the level of `maps_verdict`, and what one family of all lines of `compare_by_model` would change.

    Their p values are of families of one model each.  A larger family turns verdicts into inconclusive ones only.
    """
    p_values = compared["p"] * len(compared) / compared.groupby("model")["model"].transform("size")
    verdicts = [verdict(*each) for each in zip(compared["advantage"], p_values, strict=True)]
    before, after = (_verdict_by_model(maps_table(each)) for each in (compared, compared.assign(verdict=verdicts)))
    changed = [model for model, found in before.items() if after[model] != found]
    return (
        f"The level holds for each model alone; a wrong verdict among all {len(before)} is more likely.  In one "
        f"family of all {len(compared)} comparisons, the verdict of {_named(changed)} would become inconclusive."
    )


def _named(models: Sequence[str]) -> str:
    """How many models, and which."""
    count = f"{len(models)} model{'' if len(models) == 1 else 's'}"
    return f"{count} ({', '.join(models)})" if models else "no model"


def maps_part(rows: pd.DataFrame) -> str:
    """The section on heat maps, from the measured rows of all models."""
    if not len(rows):
        return "Not measured yet."
    compared = compare_by_model(rows)
    table, sizes = maps_table(compared), sorted(set(compared.groupby("model").size()))
    return (
        f"The {' or '.join(map(str, sizes))} comparisons of a model's maps with control maps, most of them in "
        f"`evaluation/evaluation.ipynb`, are one family.\n\n{markdown(table)}\n\n"
        f"{maps_verdict(table)}  {maps_together(compared)}"
    )


def mark_of(claim: Claim) -> str:
    """What stands in brackets behind a claim, see MARKS; "" if nothing does."""
    return "".join(re.findall(r" \(([^()]*)\)$", claim.claim))


def page(results: Mapping[str, dict], measured: pd.DataFrame) -> str:
    """docs/claims.md, from the results of all seeds and the measured heat maps of the compared models."""
    table = markdown(claims_table(results))
    claims = read_claims()
    marks = Counter(map(mark_of, claims))
    sources = [source for source, documents in DOCUMENTS_OF.items() if len(documents) == 1]
    return PAGE.format(
        covered=len(sources),
        reports=len(DOCUMENTS),
        sources=" and ".join(sources),
        spread=spread_of_runs(results),
        claims=len(claims),
        stated=marks[""],
        marks="\n".join(f"- *{mark}* ({marks[mark]}): {meaning}" for mark, meaning in MARKS.items() if marks[mark]),
        revised=", ".join(" against ".join(pair) for pair in REVISED),
        two_runs=TWO_RUNS if "features of two runs" in table else "",
        unlike=UNLIKE if "unlike theirs" in table else "",
        table=table,
        beside=markdown(beside_table(results)),
        lines=len(BESIDE),
        overfitting=overfitting(results),
        maps=maps_part(measured),
    )


def write_page(root: Path):
    """Write docs/claims.md below `root` from its results/full."""
    text = page(read_profile(root / "results" / "full"), measured_rows(root / EXPLANATIONS, (*COMPARED, CONTROL)))
    write_text(root / "docs" / "claims.md", text)


if __name__ == "__main__":
    sys.exit(run_command(lambda: write_page(root_folder())))
