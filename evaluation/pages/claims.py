"""What the earlier reports claim and what is measured here: `python -m evaluation.pages.claims` writes docs/claims.md.

The claims are those of evaluation/claims.csv, measured by `results.comparisons`.  Every number comes from results/full;
a claim whose experiments have not been run names those that are missing.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from data.files import root_folder, run_command, write_text
from evaluation.faithfulness import compare_maps
from evaluation.pages.tables import accuracy_text, difference_text, machines_text, markdown, p_text, runs_text
from evaluation.results import EARLIER_CLAIMS, Claim, comparisons, read_claims, read_profile, runs_of
from evaluation.statistics import estimate, mean_and_interval
from runs import EXPERIMENTS

MAPS_OF = "supervised_short"  # the model whose heat maps are measured
MAPS = Path("results") / "full" / "explanations" / MAPS_OF / "faithfulness.csv"
BASELINE = "mean"  # what hides a pixel in that table: the image's mean color
BESIDE = {  # ours, and the experiment whose earlier number is the highest of that kind
    "supervised_short": "supervised_tuned",
    "supervised_long": "supervised_tuned",
    "distilled": "supervised_tuned",
    "distilled_long": "supervised_tuned",
    "rotation_gentle_classifier": "rotation_classifier_tuned",
    "perturbation_gentle_classifier": "perturbation_classifier_tuned_3",
}
PAGE = """# Are the earlier claims true?

Written by `make pages` from the files in `results/full`; no number is typed.  Each claim compares two experiments on
the same test images; the epoch of each run is selected on val.  The {claims} claims are one family: the interval of
each difference has a level of 1 - 0.05 / {claims}, and p is multiplied by {claims} (Bonferroni).  p is below 0.05
exactly when the interval excludes 0; the claim then *holds* or *does not hold*.  Otherwise it is *inconclusive*, which
does not say that both are equal.  1* is a single run: its seed variance is unknown, so the interval covers the
sampling of test images only and is too narrow.  `docs/results.md` has this study's own comparisons.

{table}

## Our experiments beside the highest earlier numbers

Both under the earlier protocol: the epoch is selected and the accuracy reported on val and test images together.  Ours
is the mean over seeds with its 95 % interval over seeds (Student 1908), each line by itself.  Theirs is a single run,
whose seed variance is unknown.

{beside}

## Augmentation stops the overfitting

Zioło (undated).  The gap is the accuracy on training images minus that on test images, in the last epoch.  Training
images are measured as augmented, which alone makes them harder.  The first claim above asks whether augmentation helps
on test images.

{overfitting}

## Score-CAM shows what the model looks at

Both reports.  The maps are of `{maps_of}`, on {images} random test images.  Pixels are hidden, which gives them
the mean color of the image (deletion: a low score is good), or shown (insertion: a high score is good), in the order of
the map.  Score-CAM is compared, image by image, with two maps that do not use the model: smooth noise and the edges of
the image.  Above 0, Score-CAM is better.
They are one family with the other baselines and measures of `evaluation/evaluation.ipynb`, {comparisons} in all.

{maps}

`evaluation/evaluation.ipynb` has other ways to hide pixels and model inversion, `supervised/report.ipynb` the
overfitting by epoch, and `self_supervised/report.ipynb` the epochs and stages of the pretexts.
"""


def claims_table(results: Mapping[str, dict]) -> pd.DataFrame:
    """The claims as text: what was compared, the difference with its interval, p, machines and the verdict."""
    table = comparisons(results)
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


def beside_earlier(results: Mapping[str, dict], earlier: Mapping[str, float]) -> pd.DataFrame:
    """The experiments of BESIDE under the earlier protocol, as text, beside the `earlier` number of their like."""
    lines = []
    for name, like in BESIDE.items():
        runs = [run["earlier_protocol_accuracy"] for run in runs_of(results, name)]
        line = {"experiment": name, "runs": str(len(runs)), "earlier report": f"{earlier[like]:.4f} ({like})"}
        if runs:
            mean, low, high = mean_and_interval(runs)
            place = "**above**" if low > earlier[like] else "**below**" if high < earlier[like] else "inconclusive"
            line |= {"earlier protocol, mean (95 % interval)": accuracy_text(mean, low, high), "our mean is": place}
        lines.append({"our mean is": "not run yet", **line})
    columns = ["experiment", "runs", "earlier protocol, mean (95 % interval)", "earlier report", "our mean is"]
    return pd.DataFrame([{**dict.fromkeys(columns, ""), **line} for line in lines])


def overfitting(results: Mapping[str, dict], plain: str = "supervised_1", augmented: str = "supervised_2") -> str:
    """The gap between training and test accuracy of two experiments as Markdown, and the difference of the gaps.

    The four accuracies count as independent proportions.  "" if an experiment has not been run.
    """
    if not (plain in results and augmented in results):
        return ""
    lines, gaps, parts = [], [], []
    for name in (plain, augmented):
        images = results[name]["data"]["images"]
        last = {split: results[name]["history"][f"{split}_accuracy"][-1] for split in ("train", "test")}
        gaps.append(last["train"] - last["test"])
        parts += [(each * (1 - each) / images[split], images[split] - 1) for split, each in last.items()]
        texts = f"{last['train']:.4f}", f"{last['test']:.4f}", f"{gaps[-1]:+.4f}"
        lines.append(dict(zip(("training images, augmented", "test images", "gap"), texts, strict=True)))
    difference = gaps[1] - gaps[0]
    low, high, p_value = estimate(difference, parts)
    found = "inconclusive" if low <= 0 <= high else "holds" if high < 0 else "does not hold"
    return (
        f"{markdown(pd.DataFrame(lines, index=[plain, augmented]), 'experiment')}\n\nAugmentation changes the gap by "
        f"{difference_text(difference, low, high)}, p = {p_text(p_value)}: **{found}**."
    )


def maps_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Score-CAM against the maps that do not use the model, as text: lines of `faithfulness.compare_maps`, on BASELINE.

    The advantage is the difference of deletion or insertion scores in the direction that is good.
    """
    compared = compare_maps(measured, "Score-CAM")
    shown = compared[(compared["baseline"] == BASELINE) & compared["measure"].isin(["deletion", "insertion"])]
    lines = [
        {
            "measure": line["measure"],
            "Score-CAM against": line["compared_with"],
            "mean advantage (interval)": difference_text(line["advantage"], line["low"], line["high"]),
            "better in images": f"{line['images_better']} of {measured['image'].nunique()}",
            "p": p_text(line["p"]),
            "Score-CAM is": line["verdict"],
        }
        for line in shown.sort_values("measure").to_dict("records")
    ]
    return pd.DataFrame(lines)


def page(results: Mapping[str, dict], measured: pd.DataFrame) -> str:
    """docs/claims.md, from the results of all seeds and the measured heat maps of MAPS_OF."""
    maps = maps_table(measured)
    return PAGE.format(
        claims=len(read_claims()),
        table=markdown(claims_table(results)),
        beside=markdown(beside_earlier(results, {name: each.earlier_accuracy for name, each in EXPERIMENTS.items()})),
        overfitting=overfitting(results),
        maps_of=MAPS_OF,
        images=measured["image"].nunique(),
        comparisons=len(compare_maps(measured, "Score-CAM")),
        maps=markdown(maps),
    )


def write_page(root: Path):
    """Write docs/claims.md below `root` from its results/full."""
    text = page(read_profile(root / "results" / "full"), pd.read_csv(root / MAPS))
    write_text(root / "docs" / "claims.md", text)


if __name__ == "__main__":
    sys.exit(run_command(lambda: write_page(root_folder())))
