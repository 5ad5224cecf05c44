"""What the earlier reports claim and what is measured here: `python -m evaluation.pages.claims` writes docs/claims.md.

The claims are those of evaluation/claims.csv, measured by `results.comparisons`.  Every number comes from results/full;
a claim whose experiments have not been run names those that are missing.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from data.files import root_folder, run_command, write_text
from evaluation.explained import measured_rows
from evaluation.map_measures import COMPARED, CONTROL, compare_by_model
from evaluation.pages.reproduction import Measured, compare_settings, other_settings, read_earlier_numbers
from evaluation.pages.tables import difference_text, machines_text, markdown, p_text, runs_text
from evaluation.results import (
    BESIDE,
    EARLIER_CLAIMS,
    Claim,
    beside_reported,
    comparisons,
    read_claims,
    read_profile,
    runs_of,
)
from evaluation.statistics import estimate

EXPLANATIONS = Path("results") / "full" / "explanations"
OVERFITTING = ("supervised_1", "supervised_2")  # without and with augmentation
DOCUMENTS_OF = {"Zioło (undated)": ("000",), "Deceuninck 2023": ("001",), "both reports": ("000", "001")}
PAGE = """# Are the earlier claims true?

Written by `make pages` from the files in `results/full`; no number is typed.  Each claim compares two experiments on
the same test images; the epoch of each run is selected on val.  The {claims} claims are one family: the interval of
each difference has a level of 1 - 0.05 / {claims}, and p is multiplied by {claims} (Bonferroni).  p is below 0.05
exactly when the interval excludes 0; the claim then *holds* or *does not hold*.  Otherwise it is *inconclusive*, which
does not say that both are equal.  1* is a single run: its seed variance is unknown, so the interval covers the
sampling of test images only and is too narrow.  *Unlike theirs* names settings that are not those of the report, see
`docs/reproduction.md`: the verdict is of ours.  `docs/results.md` has this study's own comparisons.

{table}

## Our experiments beside the highest earlier numbers

Both under the earlier protocol: the epoch is selected and the accuracy reported on val and test images together.  Ours
is the mean over seeds.  The interval of the difference covers our seeds, and images on both sides as if theirs were
others.  Theirs is a single run, whose seed variance is unknown and not covered.  The {lines} lines are one family.

{beside}

## Augmentation stops the overfitting

Zioło (undated).  The gap is the accuracy on training images minus that on test images, in the last epoch.  Training
images are measured as augmented, which alone makes them harder, so a smaller gap does not show less overfitting.  What
counts is the accuracy on test images: that is the first claim above.

{overfitting}

## Score-CAM shows what the model looks at

Both reports.  The maps are of the last stage, for the class that the model predicts.  Pixels are hidden (deletion: a
low score is good) or shown (insertion: a high score is good) in the order of the map; hidden ones are black, have the
mean color of the image or are blurred, and an image counts with its mean over the three.  Score-CAM is compared, image
by image, with two maps that know nothing of the model: smooth noise and the edges of the image.  Above 0, Score-CAM is
better.  The 32 comparisons of a model with such maps, most of them in `evaluation/evaluation.ipynb`, are one family.

{maps}

`evaluation/evaluation.ipynb` has other kinds of maps and model inversion, `supervised/report.ipynb` the
overfitting by epoch, and `self_supervised/report.ipynb` the epochs and stages of the pretexts.
"""


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
            lines[-1]["measured"] += _unlike_theirs(claim, results, differing)
        else:
            pair = f"{claim.experiment} against {claim.compared_with}"
            lines.append({**about, "measured": pair, "verdict": _why_not_measured(claim, results)})
    columns = ["claim", "source", "measured", "runs", "difference (interval)", "p", "machines", "verdict"]
    return pd.DataFrame([{**dict.fromkeys(columns, ""), **line} for line in lines])


def _measured(claim: Claim, line: Mapping, results: Mapping[str, dict]) -> dict[str, str]:
    images = f", {line['images']:,} images of {', '.join(claim.classes)}" if claim.classes else ""
    found = {claim.direction: "**holds**", "inconclusive": "inconclusive"}.get(line["verdict"], "**does not hold**")
    return {
        "measured": f"{claim.experiment} against {claim.compared_with}: {line['accuracy']:.4f}, "
        f"{line['other_accuracy']:.4f}{images}{_lengths(claim, results)}",
        "runs": runs_text(line),
        "difference (interval)": difference_text(line["difference"], line["low"], line["high"]),
        "p": p_text(line["p"]),
        "machines": machines_text(line),
        "verdict": found,
    }


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


def _lengths(claim: Claim, results: Mapping[str, dict]) -> str:
    """The epochs of both experiments and of their pretexts, where they differ."""
    pair = [runs_of(results, name)[0] for name in (claim.experiment, claim.compared_with)]
    epochs = [result["settings"]["train"]["max_epochs"] for result in pair]
    text = f", in {epochs[0]} and {epochs[1]} epochs" if epochs[0] != epochs[1] else ""
    pretexts = [_pretext_epochs(result, results) for result in pair]
    if None not in pretexts and pretexts[0] != pretexts[1]:
        text += f", after {pretexts[0]} and {pretexts[1]} epochs of the pretext"
    return text


def _pretext_epochs(result: dict, results: Mapping[str, dict]) -> int | None:
    """The epochs of the pretext whose features a result has; None without a pretext."""
    epoch = result["settings"].get("pretext_epoch")
    if not isinstance(epoch, str):
        return epoch
    pretext = results.get(result["settings"]["pretext_run"])
    return pretext and (pretext["epoch"] if epoch == "best" else pretext["settings"]["train"]["max_epochs"])


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
    """The gap between training and test accuracy of two experiments as Markdown, and the difference of the gaps.

    The four accuracies count as independent proportions.  "" if an experiment has not been run.
    """
    if not all(name in results for name in OVERFITTING):
        return ""
    lines, gaps, parts = [], [], []
    for name in OVERFITTING:
        images = results[name]["data"]["images"]
        last = {split: results[name]["history"][f"{split}_accuracy"][-1] for split in ("train", "test")}
        gaps.append(last["train"] - last["test"])
        parts += [(each * (1 - each) / images[split], images[split] - 1) for split, each in last.items()]
        texts = f"{last['train']:.4f}", f"{last['test']:.4f}", f"{gaps[-1]:+.4f}"
        lines.append(dict(zip(("training images, augmented", "test images", "gap"), texts, strict=True)))
    difference = gaps[1] - gaps[0]
    low, high, p_value = estimate(difference, parts)
    found = "the gap is **smaller**" if high < 0 else "the gap is **larger**" if low > 0 else "it is **inconclusive**"
    return (
        f"{markdown(pd.DataFrame(lines, index=OVERFITTING), 'experiment')}\n\nWith augmentation the gap changes by "
        f"{difference_text(difference, low, high)}, p = {p_text(p_value)}: {found}."
    )


def maps_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Score-CAM against maps that know nothing of a network, as text: lines of `map_measures.compare_by_model`."""
    compared = compare_by_model(rows)
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


def page(results: Mapping[str, dict], measured: pd.DataFrame) -> str:
    """docs/claims.md, from the results of all seeds and the measured heat maps of the compared models."""
    return PAGE.format(
        claims=len(read_claims()),
        table=markdown(claims_table(results)),
        beside=markdown(beside_table(results)),
        lines=len(BESIDE),
        overfitting=overfitting(results),
        maps=markdown(maps_table(measured)) if len(measured) else "Not measured yet.",
    )


def write_page(root: Path):
    """Write docs/claims.md below `root` from its results/full."""
    text = page(read_profile(root / "results" / "full"), measured_rows(root / EXPLANATIONS, (*COMPARED, CONTROL)))
    write_text(root / "docs" / "claims.md", text)


if __name__ == "__main__":
    sys.exit(run_command(lambda: write_page(root_folder())))
