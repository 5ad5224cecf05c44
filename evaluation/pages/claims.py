"""What the earlier reports claim and what is measured here: `python -m evaluation.pages.claims` writes results/README.md.

Every number of the page comes from results/full; a claim whose rows have not been run says which are missing.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.faithfulness import compare_maps
from data.files import write_atomically
from evaluation.metrics import (
    accuracies_of,
    compare_paired,
    holm,
    mean_and_interval,
    of_first_seeds,
    read_results,
    seeds_comparison_table,
)

ROOT = Path(__file__).resolve().parents[1]
FIRST, SECOND = "Zioło (undated)", "Deceuninck 2023"
MAPS_OF = "supervised_short"  # whose heat maps evaluation.ipynb measures
MAPS = ROOT / "results" / "full" / "explanations" / MAPS_OF / "faithfulness.csv"
HARD_CLASSES = ("coast", "mountain", "opencountry")
BETTER, WORSE = True, False


@dataclass(frozen=True)
class Claim:
    """That the row `of` is better (or worse) on the test images than the row `than`, or on those of some classes."""

    words: str
    source: str
    of: str
    than: str
    better: bool
    classes: tuple[str, ...] = ()


CLAIMS = (
    Claim("Plain transforms do better than augmentation", FIRST, "supervised_1", "supervised_2", BETTER),
    Claim("A deeper head is slightly worse", FIRST, "supervised_3", "supervised_2", WORSE),
    Claim("Weights in the loss are slightly worse", FIRST, "supervised_4", "supervised_2", WORSE),
    Claim(
        "Weights help the classes they are for (what they were meant to do)",
        FIRST,
        "supervised_4",
        "supervised_2",
        BETTER,
        HARD_CLASSES,
    ),
    Claim("SGD is worse than Adam at the same learning rate", FIRST, "supervised_5", "supervised_2", WORSE),
    Claim("A learning rate of 0.01 is worse than 0.001", FIRST, "supervised_6", "supervised_2", WORSE),
    Claim("Without the crop, and with weights, it is best", FIRST, "supervised_final", "supervised_2", BETTER),
    Claim("A searched, far lower learning rate is better", SECOND, "supervised_tuned", "supervised_final", BETTER),
    Claim(
        "Supervised training beats frozen features of rotation",
        FIRST,
        "supervised_final",
        "rotation_classifier_tuned_10",
        BETTER,
    ),
    Claim(
        "Supervised training beats frozen features of perturbation",
        FIRST,
        "supervised_final",
        "perturbation_classifier_tuned_10",
        BETTER,
    ),
    Claim(
        "On frozen features of rotation plain transforms do better than augmentation",
        FIRST,
        "rotation_classifier_3",
        "rotation_classifier_1",
        BETTER,
    ),
    Claim("The same of perturbation", FIRST, "perturbation_classifier_3", "perturbation_classifier_1", BETTER),
    Claim(
        "On frozen features of rotation a deeper head is slightly worse",
        FIRST,
        "rotation_classifier_2",
        "rotation_classifier_1",
        WORSE,
    ),
    Claim("The same of perturbation", FIRST, "perturbation_classifier_2", "perturbation_classifier_1", WORSE),
    Claim(
        "Perturbation gives slightly better features than rotation",
        FIRST,
        "perturbation_classifier_3",
        "rotation_classifier_3",
        BETTER,
    ),
    Claim(
        "The more a network has adapted to perturbation, the worse its features: 10 epochs against 3",
        SECOND,
        "perturbation_classifier_tuned_10",
        "perturbation_classifier_tuned_3",
        WORSE,
    ),
    Claim(
        "The same of rotation (not claimed, but to be expected then)",
        SECOND,
        "rotation_classifier_tuned_10",
        "rotation_classifier_tuned_3",
        WORSE,
    ),
    Claim(
        "The same of rotation to the epoch that was chosen: 15 epochs against 3",
        SECOND,
        "rotation_classifier_tuned",
        "rotation_classifier_tuned_3",
        WORSE,
    ),
    Claim(
        "Perturbation, stopped early, gives better features than rotation",
        SECOND,
        "perturbation_classifier_tuned_3",
        "rotation_classifier_tuned_3",
        BETTER,
    ),
    Claim(
        "Rotation, trained to the epoch that was chosen, gives better features than perturbation, trained likewise",
        SECOND,
        "rotation_classifier_tuned",
        "perturbation_classifier_tuned_10",
        BETTER,
    ),
    Claim(
        "Rotation makes ImageNet's features better for scenes (the hope of both)",
        SECOND,
        "rotation_classifier_tuned_3",
        "imagenet_classifier_tuned",
        BETTER,
    ),
    Claim(
        "Perturbation makes ImageNet's features better for scenes (the hope of both)",
        SECOND,
        "perturbation_classifier_tuned_3",
        "imagenet_classifier_tuned",
        BETTER,
    ),
    Claim(
        "Ours: a head that standardises reads more out of the first report's features of rotation than its plain head",
        "this repository",
        "rotation_classifier_3_batchnorm_head",
        "rotation_classifier_3",
        BETTER,
    ),
    Claim(
        "The same of perturbation",
        "this repository",
        "perturbation_classifier_3_batchnorm_head",
        "perturbation_classifier_3",
        BETTER,
    ),
    Claim(
        "Ours: rotation alone teaches a network of random weights something of scenes",
        "this repository",
        "rotation_scratch_classifier",
        "random_classifier",
        BETTER,
    ),
    Claim(
        "The same of perturbation",
        "this repository",
        "perturbation_scratch_classifier",
        "random_classifier",
        BETTER,
    ),
    Claim(
        "Ours: the gentlest rotation pretext makes ImageNet's features better",
        "this repository",
        "rotation_gentle_classifier",
        "imagenet_classifier_best",
        BETTER,
    ),
    Claim(
        "Ours: the gentlest perturbation pretext makes ImageNet's features better",
        "this repository",
        "perturbation_gentle_classifier",
        "imagenet_classifier_best",
        BETTER,
    ),
    Claim(
        "Ours: a head on four stages, larger pictures and averaged weights beat the searched learning rate",
        "this repository",
        "supervised_short",
        "supervised_tuned",
        BETTER,
    ),
    Claim(
        "Ours: the same for more than twice as many epochs beats it too",
        "this repository",
        "supervised_long",
        "supervised_tuned",
        BETTER,
    ),
    Claim(
        "Ours: one network that learns what three of the first kind say of its images beats it too",
        "this repository",
        "distilled",
        "supervised_tuned",
        BETTER,
    ),
    Claim(
        "Ours: it is what they say that helps, and not the number of epochs, which is more than twice theirs",
        "this repository",
        "distilled",
        "supervised_long",
        BETTER,
    ),
    Claim(
        "Ours: such a network beats it after twice as many epochs",
        "this repository",
        "distilled_long",
        "supervised_tuned",
        BETTER,
    ),
)


BESIDE = {  # ours, and the earlier row that is its like: the highest number that the reports give of that kind
    "supervised_short": "supervised_tuned",
    "supervised_long": "supervised_tuned",
    "distilled": "supervised_tuned",
    "distilled_long": "supervised_tuned",
    "rotation_gentle_classifier": "rotation_classifier_tuned",
    "perturbation_gentle_classifier": "perturbation_classifier_tuned_3",
}

OVER_SEEDS = (  # words, the row, what it is compared with: ours that were trained with several seeds
    ("Fine-tuning beats frozen ImageNet features", "supervised_short", "imagenet_classifier_best"),
    ("Learning from three such networks beats learning from labels", "distilled", "supervised_short"),
    ("More than twice as many epochs are better", "supervised_long", "supervised_short"),
    ("Learning from three networks beats labels in as many epochs", "distilled", "supervised_long"),
    ("The gentlest rotation pretext makes features better", "rotation_gentle_classifier", "imagenet_classifier_best"),
    (
        "The gentlest perturbation pretext makes features better",
        "perturbation_gentle_classifier",
        "imagenet_classifier_best",
    ),
    (
        "BatchNorm's statistics after the rotation pretext do harm",
        "rotation_gentle_classifier",
        "rotation_gentle_classifier_own_batchnorm",
    ),
    (
        "BatchNorm's statistics after the perturbation pretext do harm",
        "perturbation_gentle_classifier",
        "perturbation_gentle_classifier_own_batchnorm",
    ),
)


@dataclass(frozen=True)
class Measured:
    """Accuracies (0 to 1) of both rows on the same images, their difference, its 95 % interval, McNemar's p value."""

    of: float
    than: float
    images: int
    difference: float
    low: float
    high: float
    p_value: float


def measure(claim: Claim, results: Mapping[str, dict]) -> Measured:
    """Both rows on the test images of the claim's classes.

    The interval is that of a difference of paired proportions (Wald; Agresti 2013, section 11.1).
    """
    of, than = results[claim.of], results[claim.than]
    labels = np.array(of["labels"]["test"])
    wanted = np.ones(len(labels), dtype=bool)
    if claim.classes:
        wanted = np.isin(labels, [of["class_names"].index(name) for name in claim.classes])
    labels = labels[wanted]
    predictions = [np.array(result["predictions"]["test"])[wanted] for result in (of, than)]
    paired = compare_paired(labels, predictions[1], predictions[0])
    discordant = (paired.only_first + paired.only_second) / len(labels)
    margin = 1.96 * np.sqrt((discordant - paired.difference**2) / len(labels))
    return Measured(
        *(float((each == labels).mean()) for each in predictions),
        images=len(labels),
        difference=paired.difference,
        low=paired.difference - margin,
        high=paired.difference + margin,
        p_value=paired.p_value,
    )


def verdict(claim: Claim, measured: Measured, p_value: float) -> str:
    """Whether the claim holds, at the level of 0.05 of a p value that is corrected for the number of claims."""
    return _verdict((measured.difference > 0) == claim.better, p_value)


def _verdict(holds: bool, p_value: float) -> str:
    if p_value >= 0.05:
        return "cannot be told"
    return "**holds**" if holds else "**does not hold**"


def _p_in_words(p_value: float) -> str:
    """Two digits; of hundreds of images that all speak for one row it is less than the smallest float, and so 0."""
    return f"{p_value:.2g}" if p_value > 0 else "< 1e-300"


def claims_markdown(results: Mapping[str, dict], claims: tuple[Claim, ...] = CLAIMS) -> str:
    """The table of claims: what was compared, the difference and its interval, and the verdict."""
    found = {claim: measure(claim, results) for claim in claims if claim.of in results and claim.than in results}
    p_values = dict(zip(found, holm([each.p_value for each in found.values()]), strict=True))
    lines = [
        "| claim | of | measured | difference (95 % interval) | p (Holm) | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims:
        rows = f"{claim.of} against {claim.than}"
        if claim not in found:
            missing = [name for name in (claim.of, claim.than) if name not in results]
            lines.append(f"| {claim.words} | {claim.source} | {rows} | | | not run yet: {', '.join(missing)} |")
            continue
        each = found[claim]
        images = f", {each.images:,} images of {', '.join(claim.classes)}" if claim.classes else ""
        pair = [results[name] for name in (claim.of, claim.than)]
        lengths = [result["settings"]["train"]["max_epochs"] for result in pair]
        pretexts = [_pretext_epochs(result, results) for result in pair]
        epochs = f", in {lengths[0]} and {lengths[1]} epochs" if lengths[0] != lengths[1] else ""
        if None not in pretexts and pretexts[0] != pretexts[1]:
            epochs += f", after {pretexts[0]} and {pretexts[1]} epochs of the pretext"
        lines.append(
            f"| {claim.words} | {claim.source} | {rows}: {each.of:.4f}, {each.than:.4f}{images}{epochs} "
            f"| {each.difference:+.4f} ({each.low:+.4f} to {each.high:+.4f}) | {_p_in_words(p_values[claim])} "
            f"| {verdict(claim, each, p_values[claim])} |"
        )
    return "\n".join(lines)


def _pretext_epochs(result: dict, results: Mapping[str, dict]) -> int | None:
    """How long the pretext had been trained whose features the row has; None of a row without one."""
    epoch = result["settings"].get("pretext_epoch")
    if not isinstance(epoch, str):
        return epoch
    pretext = results.get(result["settings"]["pretext_run"])
    return pretext and (pretext["epoch"] if epoch == "best" else pretext["settings"]["train"]["max_epochs"])


def beside_earlier_markdown(results: Mapping[str, dict], earlier: Mapping[str, float]) -> str:
    """The rows of BESIDE over all their seeds, in course accuracy, against the number that the earlier row came to.

    A row is said to be above if the 95 % interval of its mean is; of one run there is none, so it cannot be told.
    """
    lines = [
        "| row | runs | course accuracy, mean (95 % interval) | earlier report | the mean is |",
        "|---|---|---|---|---|",
    ]
    for name, like in BESIDE.items():
        runs = accuracies_of(results, name, "earlier_protocol_accuracy")
        if not runs:
            lines.append(f"| {name} | 0 | | {earlier[like]:.4f} ({like}) | not run yet |")
            continue
        mean, low, high = mean_and_interval(runs)
        found = "**above**" if low > earlier[like] else "**below**" if high < earlier[like] else "cannot be told"
        interval = f" ({low:.4f} to {high:.4f})" if len(runs) > 1 else ""
        lines.append(f"| {name} | {len(runs)} | {mean:.4f}{interval} | {earlier[like]:.4f} ({like}) | {found} |")
    return "\n".join(lines)


def over_seeds_markdown(results: Mapping[str, dict]) -> str:
    """The claims of OVER_SEEDS, each by the mean test accuracies of both rows; "" if none has several runs of both."""
    table = seeds_comparison_table(results, [(words, than, of) for words, of, than in OVER_SEEDS])
    lines = [
        "| claim | measured | runs | difference of the means (95 % interval) | p (Holm) | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        lines.append(
            f"| {row['question']} | {row['row']} against {row['against']} | {row['runs']} "
            f"| {row['difference']:+.4f} ({row['from']:+.4f} to {row['to']:+.4f}) | {_p_in_words(row['p (Holm)'])} "
            f"| {_verdict(row['difference'] > 0, row['p (Holm)'])} |"
        )
    return "\n".join(lines) if len(table) else ""


def overfitting_markdown(results: Mapping[str, dict], plain: str = "supervised_1", other: str = "supervised_2") -> str:
    """By how much two rows are better on training than on test images in their last epoch, and the difference.

    Its 95 % interval takes the four accuracies for independent proportions.  "" if one of the rows has not been run.
    """
    if not (plain in results and other in results):
        return ""
    lines = ["| row | training images, as they are shown | test images | gap |", "|---|---|---|---|"]
    gaps, variance = [], 0.0
    for name in (plain, other):
        history, images = results[name]["history"], results[name]["data"]["images"]
        accuracies = {split: history[f"{split}_accuracy"][-1] for split in ("train", "test")}
        gaps.append(accuracies["train"] - accuracies["test"])
        variance += sum(each * (1 - each) / images[split] for split, each in accuracies.items())
        lines.append(f"| {name} | {accuracies['train']:.4f} | {accuracies['test']:.4f} | {gaps[-1]:+.4f} |")
    difference, margin = gaps[1] - gaps[0], 1.96 * np.sqrt(variance)
    found = "holds" if difference + margin < 0 else "does not hold" if difference - margin > 0 else "cannot be told"
    return "\n".join(
        [
            *lines,
            "",
            f"Augmentation changes the gap by {difference:+.4f} ({difference - margin:+.4f} to "
            f"{difference + margin:+.4f}): **{found}**.",
        ]
    )


def maps_markdown(measured: pd.DataFrame, baseline: str = "mean") -> str:
    """Score-CAM against the maps that know nothing of the model, from `faithfulness.measure_faithfulness`.

    By deletion (low is good) and insertion (high is good), the hidden pixels being the image's mean colour.
    """
    measured = measured[measured["baseline"] == baseline]
    table = compare_maps(measured, "Score-CAM")
    table = table[table["measure"].isin(["deletion", "insertion"])]
    by_map = measured.pivot(index="image", columns="map")
    lines = [
        "| measure | against | difference (95 % interval) | better, worse in images | p (Holm) | that it is better |",
        "|---|---|---|---|---|---|",
    ]
    for row, p_value in zip(table.to_dict("records"), holm(table["p"]), strict=True):
        values = by_map[row["measure"]]
        mean, low, high = mean_and_interval(values["Score-CAM"] - values[row["against"]])
        lines.append(
            f"| {row['measure']} | {row['against']} | {mean:+.4f} ({low:+.4f} to {high:+.4f}) "
            f"| {row['better']}, {row['worse']} | {_p_in_words(p_value)} "
            f"| {_verdict(row['better'] > row['worse'], p_value)} |"
        )
    return "\n".join(lines)


def page(results: Mapping[str, dict], measured: pd.DataFrame, earlier: Mapping[str, float]) -> str:
    """results/README.md: from the results of all seeds, the measured heat maps of MAPS_OF, and the earlier numbers."""
    all_seeds, results = results, of_first_seeds(results)
    images = len(next(iter(results.values()))["labels"]["test"])
    return f"""# What is true of the earlier claims

Written by `python -m evaluation.pages.claims` from the files in `results/full`; no number is typed.  Each claim compares
two rows on the same {images:,} test images of 15-Scene, both chosen on val: the exact McNemar test (1947), by the
images that only one of them gets right, corrected for the number of claims (Holm 1979).  *Holds* and *does not hold*
are said at p < 0.05; else it cannot be told, which is not to say that the rows are equal.  Each row is one training:
other seeds move its accuracy too, which the test does not know.

{claims_markdown(results)}

## Our best rows beside the earlier reports' highest numbers

By the reports' own protocol: epoch chosen, and accuracy reported, on all validation images.  Ours are the mean over
seeds with its interval (Student 1908); theirs are one training each, whose luck is not known.

{beside_earlier_markdown(all_seeds, earlier)}

## Our comparisons over seeds

The same question as the first table's, of rows that were trained several times: the mean test accuracies by Welch's t
test (1947).  It covers the luck of a training and not that of the test images, the first table the other way round.

{over_seeds_markdown(all_seeds)}

## Augmentation stops the overfitting

{FIRST}.  How much better each row is on the images it learns from than on test images, in its last epoch.
Those it learns from are measured as the augmentation leaves them, which alone makes them harder; whether augmentation
helps on test images, which it is for, is the first claim above.

{overfitting_markdown(results)}

## Score-CAM shows what the model looks at

Both reports.  Of `{MAPS_OF}`, after stage 7, on {measured["image"].nunique()} test images drawn by seed.  Pixels are
hidden (deletion: the confidence should fall early, low is good) or shown (insertion: high is good) in the order of the
map, and of two maps that know nothing of the model: smooth noise, and the image's edges.

{maps_markdown(measured)}

More of it, with other ways of hiding and with model inversion, is in `evaluation/evaluation.ipynb`; augmentation and
overfitting, epoch by epoch, in `supervised/report.ipynb`; the pretexts' epochs and stages in
`self_supervised/report.ipynb`.
"""


def main() -> int:
    """Write the page."""
    from self_supervised.settings import EXPERIMENTS as SELF_SUPERVISED
    from supervised.settings import EXPERIMENTS

    earlier = {name: row.earlier_accuracy for name, row in {**EXPERIMENTS, **SELF_SUPERVISED}.items()}
    try:
        text = page(read_results(ROOT / "results" / "full"), pd.read_csv(MAPS), earlier)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomically(ROOT / "results" / "README.md", lambda temporary: temporary.write_text(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
