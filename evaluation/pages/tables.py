"""The tables of results: `python -m evaluation.pages.tables` writes README.md's results and docs/results.md.

Everything is read from results/full.  README.md has its part between two comments; the rest of it is left as it is.
The front page and docs/claims.md format their numbers by the functions of this file.
"""

import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from data.files import CODE, root_folder, run_command, write_text
from evaluation import few_labels
from evaluation.checkpoints import read_released
from evaluation.ensemble import is_stale
from evaluation.pages.earlier_numbers import Measured, read_earlier_numbers
from evaluation.pages.verdicts import WORDS, compare_results
from evaluation.publish import float32_accuracy
from evaluation.results import (
    DETERMINISTIC,
    PRIMARY,
    PRIMARY_FAMILY,
    beside_reported,
    comparisons,
    comparisons_elsewhere,
    experiments_table,
    of_experiments,
    pairs_to_compare,
    platforms_table,
    read_profile,
    runs_of,
)
from evaluation.statistics import LEVEL
from experiments import EXPERIMENTS
from run_files import platform_of
from self_supervised.settings import (
    CIFAR10_CLASSIFIERS,
    CIFAR10_PRETEXTS,
    CLASSIFIER_EXPERIMENTS,
    JOINT_EMBEDDINGS,
    LATER_QUESTIONS,
    NATURE_PRETEXTS,
    NATURE_PROBES,
    PRETEXT_EXPERIMENTS,
    PROBES,
    REPRODUCTION,
)
from supervised.settings import ABLATIONS, DISTILLATION_ABLATIONS, NATURE_EXPERIMENTS
from supervised.settings import EXPERIMENTS as SUPERVISED
from supervised.settings import REPRODUCTION as SUPERVISED_REPRODUCTION

LINE = 120  # characters of a line in README.md
START, END = "<!-- results: written by make pages -->", "<!-- end of results -->"
SHORT_TABLE = {  # the experiments of README.md and of its figure, and what each is
    "imagenet_classifier_tuned": "frozen ImageNet features, settings of the second report",
    "rotation_classifier_tuned_10": "after 10 of 15 epochs of rotation, second report",
    "perturbation_classifier_tuned_3": "after 3 of 10 epochs of perturbation, second report",
    "imagenet_classifier_four_stages": "frozen ImageNet features, trained head",
    "rotation_gentle_classifier": "after gentle rotation, trained head",
    "perturbation_gentle_classifier": "after gentle perturbation, trained head",
    "imagenet_classifier_probe": "frozen ImageNet features, logistic regression",
    "byol_classifier": "after BYOL, logistic regression",
    "supervised_long": "fine-tuned, 20 epochs",
    "distilled_long": "distilled from three fine-tuned networks",
}
HEADLINES = {  # an experiment with `compared_with`, and both in words
    "byol_classifier": ("BYOL, logistic regression", "ImageNet features, logistic regression"),
    "byol_scratch_classifier": ("BYOL from random weights", "random features of the same stages"),
    "rotation_classifier_tuned_10": ("rotation, 10 epochs, second report's settings", "ImageNet features, same head"),
    "perturbation_classifier_tuned_3": (
        "perturbation, 3 epochs, second report's settings",
        "ImageNet features, same head",
    ),
    "rotation_gentle_classifier": ("gentle rotation, trained head", "ImageNet features, trained head"),
    "perturbation_gentle_classifier": ("gentle perturbation, trained head", "ImageNet features, trained head"),
    "imagenet_classifier_four_stages": ("ImageNet features, trained head", "fine-tuning, 20 epochs"),
}
FEW = {PRIMARY: ("BYOL", 1, "the same with one labeled image per class")}  # features of `few_labels`, and how many
FEW_NOTE = """With one labeled image per class, the interval covers runs and random choices of that image, not test
images.  Gentle pretexts have few epochs at a low learning rate.  They are evaluated with a trained head, BYOL with
logistic regression."""
BEST = "supervised_long"  # beside the highest number of the earlier reports
PRETEXTS_NOTE = """Accuracy on the labels of the pretext (rotations, colors, orders), not on classes.  For a
joint-embedding pretext (BYOL) it is the accuracy on classes of a vote of the 20 nearest training images."""
PROBES_NOTE = """The primary readout is logistic regression on the pooled features of stages 5 to 8.  The features of an
image and of its horizontal flip are averaged and standardized, and the regularization strength is selected on val.
There is no epoch to select, so the accuracy under the earlier protocol is that on val and test together.  On untouched
features there is no seed."""
EXPLORED = """  SimCLR, VICReg and the ablations of BYOL are compared with `byol_classifier`; of the methods, only BYOL
and `neighbours` are compared with ImageNet features that are read in the same way.  The last two lines have a trained
head and fine-tuning instead.

BYOL and its settings come from exploratory runs of other code: three methods in eight settings, evaluated by this
readout, and clusters as labels.  Those runs showed accuracies on val and on these test images, also of two runs with
the settings below and with 1 to 20 labels per class, before this comparison was declared primary.  So its runs are new,
but its test images are not."""
NEIGHBORS_NOTE = """Accuracy on classes of a vote of the 20 nearest training images, by the features of the last epoch:
no epoch is selected."""
SECTIONS = (  # data set, title, a note, experiments
    ("15-Scene", "Supervised experiments and controls", "", tuple(SUPERVISED)),
    ("15-Scene", "Classifiers on frozen features of a pretext", "", tuple(CLASSIFIER_EXPERIMENTS)),
    ("15-Scene", "Reproduction: what the reports may have done", "", (*SUPERVISED_REPRODUCTION, *REPRODUCTION)),
    ("15-Scene", "Joint-embedding pretexts, by the primary readout", PROBES_NOTE + EXPLORED, tuple(PROBES)),
    ("15-Scene", "Ablations", "", (*ABLATIONS, *DISTILLATION_ABLATIONS)),
    ("15-Scene", "Pretexts", PRETEXTS_NOTE, tuple(PRETEXT_EXPERIMENTS)),
    ("15-Scene", "Joint-embedding pretexts", NEIGHBORS_NOTE, tuple(JOINT_EMBEDDINGS)),
    ("Nature scenes", "Experiments", "", tuple(NATURE_EXPERIMENTS)),
    ("Nature scenes", "Joint-embedding pretexts, by the primary readout", PROBES_NOTE, tuple(NATURE_PROBES)),
    ("Nature scenes", "Joint-embedding pretexts", NEIGHBORS_NOTE, tuple(NATURE_PRETEXTS)),
    ("CIFAR-10", "Classifiers", "", tuple(CIFAR10_CLASSIFIERS)),
    ("CIFAR-10", "Pretexts", PRETEXTS_NOTE, tuple(CIFAR10_PRETEXTS)),
)
SCRATCH = "byol_scratch_classifier"
GENTLE = {"rotation_gentle_classifier": "rotation", "perturbation_gentle_classifier": "perturbation"}
FOUND = {"better": "improved them", "worse": "made them worse", "inconclusive": "did not clearly improve them"}
ANSWER = """**Trained from random weights, without any label, BYOL's features reach a test accuracy of {scratch}.
ImageNet features, which were learned with labels, reach {control}. Started from these and trained without labels, BYOL
{found} ({accuracy}; with one label per class {few}). {gentle}.**"""
FIGURE = "![Pretexts, test accuracies with intervals, few labels, heat maps](docs/overview.jpg)"
READING = """**Test** is the accuracy on the test images; the epoch is selected on val.  **Earlier protocol** is the
accuracy on val and test together, at the epoch selected on both, as in the first report (the second selected by the
loss).  It is optimistic; compare it with **earlier report**, the number that a report states.  Both of ours are means
over runs, one run per seed.  A *platform* is a kind of machine with one version of torch.  If a platform has three
runs, the line is of that platform alone (of two such, of the one with the newer torch); otherwise it is of all runs.
The 95 % interval of the test accuracy covers the sampling of test images and seed variance.  That of a single run
(Wilson 1927) covers the images only, and that of two runs can be as wide as 0 to 1.  **Mean per class** is the mean
over classes of the test accuracy of a class."""
COMPARING = """Every comparison is between runs of both experiments on the same test images.  The runs are of one
platform if it has three of each side, or all that there are.  Otherwise they are of all platforms, and the line is
marked *across machines*; *across precisions* marks runs of one platform in float32 and in bfloat16.  So the mean of an
experiment here can differ from its line in the tables of experiments.

The interval of a difference covers the sampling of test images and the seed variance of each side.  It is Student's
interval, with Satterthwaite's degrees of freedom (1946).  The comparisons of a family share the level of 0.05
(Bonferroni).  All planned ones count, also those that were not run or were dropped before they were run.  Each family
has its own question: are the claims of the earlier reports true, what do their methods give here, how did their numbers
come about, what do joint embeddings give.  The families and their numbers of comparisons: {families}.{primary}

*Accuracies* and *runs* are those of the experiment, then of the one that it is compared with.  *Better*, *worse* and
*inconclusive* are said of the experiment; whether a claim holds is in docs/claims.md.  p is below 0.05 exactly when the
interval excludes 0.  "Inconclusive" does not say that both are equal.

1* is a single run: the seed variance of that side is unknown, so the interval is too narrow.  A verdict on *these runs*
has such a side.  It says which of these networks is better; other seeds may change it.{bound}{together}

Only the primary comparison was declared before its runs.  Questions of the family *reproduction* were asked one after
another, often after the results of others, and some experiments got more seeds after a verdict: their verdicts are
exploratory."""
EXPLORATORY = """  So are those of *later questions*, asked after other results had been seen."""
BOUND = """

Satterthwaite's degrees of freedom are an approximation, which is too liberal where most of the variance is estimated
from few seeds.  The fewest degrees of freedom hold for any variances (Mickey and Brown 1966).  With these, {stand} of
the {decided} verdicts of better or worse on more runs remain: {pairs}.  The others are approximate."""
TOGETHER = """

If all {many} comparisons were one family, {changed} of the {decided} verdicts of better or worse would become
inconclusive{pairs}."""
ACROSS_AUGMENTATIONS = """  *Old and new augmentation*: images were rotated by two versions of the code, see
docs/performance.md."""

ENSEMBLES = """Mean class probabilities of several runs, by `evaluation/ensemble.py`.  A prediction costs as many
networks.  **Earlier protocol** is the accuracy on val and test together, at epochs that were selected on val alone."""
ELSEWHERE = """Where a comparison has three runs of both sides on a second platform, it is repeated there, with other
seeds.  The tables above show the platform with the newer torch.  This rule was made after both had been run."""
PLATFORMS = """Experiments with runs on several platforms.  Each platform has its own seeds, so a difference is due to
both; with few runs it says little."""
NOT_RUN = """Experiments that are defined but have no result here.  `python train.py NAME` trains one.
`nature_resnet18_imagenet_*` start from torchvision's ResNet-18, which is downloaded or given by `--weights FILE`."""
VERSIONS = """How many result files of each data set were made with which version of torch.  Every result file names its
own.  `requirements.txt` pins torch {pinned}."""


def accuracy_text(mean: float, low: float, high: float) -> str:
    """An accuracy and its interval; without an interval of nan."""
    return f"{mean:.4f}" if pd.isna(low) else f"{mean:.4f} ({low:.4f} to {high:.4f})"


def difference_text(difference: float, low: float, high: float) -> str:
    """A difference and its interval, with signs; without an interval of nan."""
    return f"{difference:+.4f}" if pd.isna(low) else f"{difference:+.4f} ({low:+.4f} to {high:+.4f})"


def verdict_text(line: Mapping) -> str:
    """The verdict of a comparison; with a single run on a side it is one on these networks only."""
    these = line.get("single_run") and line["verdict"] != "inconclusive"
    return f"{line['verdict']} (these runs)" if these else line["verdict"]


def p_text(p_value: float) -> str:
    """Three digits: two could round a p value of one side of 0.05 to the other."""
    return "< 1e-16" if p_value < 1e-16 else f"{p_value:.3g}"


def shown_experiments(table: pd.DataFrame) -> pd.DataFrame:
    """`results.experiments_table` as text."""
    return pd.DataFrame(
        {
            "runs": table["runs"].map(str),
            "earlier report": table["earlier report"].map(lambda value: "" if pd.isna(value) else f"{value:.4f}"),
            "earlier protocol": table["earlier protocol"].map("{:.4f}".format),
            "test (95 % interval)": [accuracy_text(*each) for each in table[["test", "low", "high"]].values],
            "mean per class": table["mean per class"].map("{:.4f}".format),
            "lowest to highest run": [
                f"{low:.4f} to {high:.4f}" if runs > 1 else ""
                for runs, low, high in table[["runs", "lowest", "highest"]].values
            ],
            "initial weights": table["initial weights"],
            "machines": table["machines"],
        }
    )


def shown_comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """`results.comparisons` as text.  1* is a single run, whose seed variance is unknown."""
    lines = [
        {
            "question or claim": line["question"],
            "verdict": verdict_text(line),
            "difference (interval)": difference_text(line["difference"], line["low"], line["high"]),
            "p": p_text(line["p"]),
            "accuracies": f"{line['accuracy']:.4f}, {line['other_accuracy']:.4f}",
            "runs": runs_text(line),
            "experiment": line["experiment"],
            "compared with": line["compared_with"],
            "family": line["family"],
            "machines": machines_text(line),
        }
        for line in table.to_dict("records")
    ]
    return pd.DataFrame(lines)


def runs_text(line: Mapping) -> str:
    """How many runs each side of a comparison has; 1* where the seed variance of a single one is unknown."""
    sides = (line["experiment"], line["runs"]), (line["compared_with"], line["other_runs"])
    return ", ".join("1*" if count == 1 and name not in DETERMINISTIC else str(count) for name, count in sides)


def marks(line: Mapping) -> list[str]:
    """In what the runs of a comparison differ besides what it asks, in words."""
    across = ("machines",) if line["across_machines"] else ("precisions",) if line["across_precisions"] else ()
    trained_with = {
        "old and new augmentation": line["across_augmentations"],
        "other teachers": line["across_teachers"],
        "other initial weights": line["across_weights"],
    }
    return [*(f"across {each}" for each in across), *(words for words, differs in trained_with.items() if differs)]


def machines_text(line: Mapping) -> str:
    """The machines of a comparison; it says so where they or what was trained with differ."""
    found = marks(line)
    before = f"{found.pop(0)}: " if found and found[0].startswith("across") else ""
    return "; ".join([before + line["machines"], *found])


def markdown(table: pd.DataFrame, index: str | None = None) -> str:
    """A table of texts as Markdown, with its index as the first column under the name `index` if one is given."""
    table = table if index is None else table.rename_axis(index).reset_index()
    lines = [list(table.columns), ["---"] * len(table.columns), *table.values.tolist()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def comparing_text(table: pd.DataFrame) -> str:
    """How to read the table of `results.comparisons`, and how many comparisons each family has."""
    families = {pair.family: pair.comparisons for pair in pairs_to_compare()}
    primary = (
        f"  The comparison of {PRIMARY} is primary and a family of its own." if families.pop(PRIMARY_FAMILY, 0) else ""
    )
    named = ", ".join(f"{name} ({many})" for name, many in families.items())
    text = COMPARING.format(families=named, primary=primary, bound=_by_bound(table), together=_in_one_family(table))
    text += EXPLORATORY if LATER_QUESTIONS in families else ""
    return text + (ACROSS_AUGMENTATIONS if table["across_augmentations"].any() else "")


def _in_one_family(table: pd.DataFrame) -> str:
    """Which verdicts would be inconclusive if all comparisons shared the level."""
    many = sum({pair.family: pair.comparisons for pair in pairs_to_compare()}.values())
    decided = table[table["verdict"] != "inconclusive"]
    changed = decided[decided["p"] / decided["m"] * many >= LEVEL]
    pairs = f": {_pairs(changed)}" if len(changed) else ""
    return TOGETHER.format(many=many, changed=len(changed), decided=len(decided), pairs=pairs) if len(decided) else ""


def _by_bound(table: pd.DataFrame) -> str:
    """Which verdicts stand with the fewest degrees of freedom."""
    decided = table[(table["verdict"] != "inconclusive") & ~table["single_run"].astype(bool)]
    stand = decided[decided["p_bound"] < LEVEL]
    pairs = _pairs(stand) or "none"
    return BOUND.format(stand=len(stand), decided=len(decided), pairs=pairs) if len(decided) else ""


def _pairs(table: pd.DataFrame) -> str:
    return ", ".join(f"`{one}` against `{other}`" for one, other in table[["experiment", "compared_with"]].values)


def headlines(results: Mapping[str, dict], table: pd.DataFrame, few: pd.DataFrame | None = None) -> pd.DataFrame:
    """The study in short, as text: the comparisons of HEADLINES that are in the table of `results.comparisons`.

    Each is followed by its repetition on another platform, and by those of FEW if `few`, the table of
    `few_labels.collect`, is given.  The last line is BEST under the earlier protocol, beside the highest number of the
    earlier reports on 15-Scene.
    """
    there, again = _of_control(table), _of_control(comparisons_elsewhere(results))
    lines = []
    for name, (what, other) in HEADLINES.items():
        lines += [_headline(what, other, line) for line in there if line["experiment"] == name]
        for line in again:
            if line["experiment"] == name:
                lines.append(_headline(f"the same with other seeds ({line['machines']})", other, line))
        if name in FEW and few is not None and len(few):
            lines.append(_with_few_labels(*FEW[name], few))
    beside = beside_reported(results)
    if BEST in beside.index:
        line = beside.loc[BEST]
        what, other = "fine-tuning, 20 epochs, earlier protocol", f"highest of the reports ({line['like']})"
        sides = {"accuracy": line["accuracy"], "other_accuracy": line["reported"]}
        lines.append(_headline(what, other, {**line, **sides}, f"{line['runs']}, 1*"))
    columns = ["what", "compared with", "accuracies", "difference (interval)", "p", "verdict", "runs"]
    return pd.DataFrame(lines, columns=columns)


def _of_control(table: pd.DataFrame) -> list[dict]:
    """The lines of `results.comparisons` on all classes that compare an experiment of HEADLINES with its control."""
    pairs = [(name, EXPERIMENTS[name].compared_with) for name in HEADLINES]
    lines = table[table["classes"] == ""].to_dict("records")
    return [line for line in lines if (line["experiment"], line["compared_with"]) in pairs]


def _headline(what: str, other: str, line: Mapping, runs: str = "") -> dict[str, str]:
    return {
        "what": what,
        "compared with": other,
        "accuracies": f"{line['accuracy']:.4f}, {line['other_accuracy']:.4f}",
        "difference (interval)": difference_text(line["difference"], line["low"], line["high"]),
        "p": p_text(line["p"]),
        "verdict": verdict_text(line),
        "runs": runs or runs_text(line),
    }


def _with_few_labels(features: str, images_per_class: int, what: str, few: pd.DataFrame) -> dict[str, str]:
    """A headline on labels alone."""
    line = _line_of_few_labels(features, images_per_class, few)
    return _headline(what, f"{few_labels.CONTROL} features", line, f"{line['seeds']}, 1")


def _line_of_few_labels(features: str, images_per_class: int, few: pd.DataFrame) -> dict:
    """The accuracies of these features and of the control by labels alone, and their paired difference."""

    def of(table: pd.DataFrame, name: str) -> pd.Series:
        asked = {"features": name, "readout": few_labels.ALONE, "images_per_class": images_per_class}
        return table[(table[list(asked)] == list(asked.values())).all(axis=1)].iloc[0]

    means, found = few_labels.accuracies(few), of(few_labels.paired_differences(few), features)
    sides = (of(means, name)["test_accuracy"] for name in (features, few_labels.CONTROL))
    return {**found, **dict(zip(("accuracy", "other_accuracy"), sides, strict=True))}


def answer(table: pd.DataFrame, few: pd.DataFrame | None = None) -> str:
    """The study in two sentences, from the table of `results.comparisons`; "" where a part of it was not run."""
    lines = {line["experiment"]: line for line in _of_control(table)}
    if few is None or few.empty or not {SCRATCH, PRIMARY, *GENTLE} <= set(lines):
        return ""
    primary, few_line = lines[PRIMARY], _line_of_few_labels(*FEW[PRIMARY][:2], few)
    by_verdict: dict[str, list[str]] = {}
    for name in GENTLE:
        by_verdict.setdefault(lines[name]["verdict"], []).append(name)
    gentle = []
    for verdict, names in by_verdict.items():
        accuracies, others = ([f"{lines[name][side]:.4f}" for name in names] for side in ("accuracy", "other_accuracy"))
        numbers = f"with a trained head {' and '.join(accuracies)} instead of {' and '.join(dict.fromkeys(others))}"
        pretexts = " and ".join(GENTLE[name] for name in names)
        gentle.append(f"Gentle {pretexts} {FOUND[verdict]} ({numbers})")
    text = ANSWER.format(
        scratch=f"{lines[SCRATCH]['accuracy']:.4f}",
        control=f"{primary['other_accuracy']:.4f}",
        accuracy=f"{primary['accuracy']:.4f}",
        found=FOUND[primary["verdict"]],
        few=f"{few_line['accuracy']:.4f} instead of {few_line['other_accuracy']:.4f}",
        gentle=". ".join(gentle),
    )
    return textwrap.fill(text, LINE)


def short_table(results: Mapping[str, dict], compared: pd.DataFrame, published: Path) -> pd.DataFrame:
    """The experiments of README.md that have results, as text, with the comparison of HEADLINES that each is in.

    `compared` is the table of `results.comparisons`.  The test accuracies of released weights are links.
    """
    table = shown_experiments(experiments_table(of_experiments(results, SHORT_TABLE)))
    lines = {line["experiment"]: line for line in _of_control(compared)}
    table.insert(0, "what it is", [SHORT_TABLE[name] for name in table.index])
    for column, text in {
        "compared with": lambda line: line["compared_with"],
        "difference (interval)": lambda line: difference_text(line["difference"], line["low"], line["high"]),
        "verdict": lambda line: "; ".join([verdict_text(line), *marks(line)]),
    }.items():
        table[column] = [text(lines[name]) if name in lines else "" for name in table.index]
    table["released"] = [_released(name, results, published / f"{name}.safetensors") for name in table.index]
    return table[
        [
            *("what it is", "runs", "test (95 % interval)", "compared with", "difference (interval)", "verdict"),
            *("earlier protocol", "earlier report", "released"),
        ]
    ]


def _released(name: str, results: Mapping[str, dict], path: Path) -> str:
    """The test accuracy of a released file, as the commands compute it, as a link to its card; "" if there is none."""
    if not path.exists():
        return ""
    accuracy = float32_accuracy(name, read_released(path))
    return f"[{results[name]['test_accuracy'] if accuracy is None else accuracy:.4f}](published/{name}.md)"


def readme_part(results: Mapping[str, dict], folder: Path, published: Path, few: pd.DataFrame | None = None) -> str:
    """What stands between the comments of README.md.

    `folder` holds the results and tables of the study; `few` is the table of `few_labels.collect`.
    """
    compared = comparisons(results)
    table = markdown(short_table(results, compared, published), "experiment")
    parts = [answer(compared, few), FIGURE, table, _beside_the_table(results, folder, published)]
    return "\n\n".join(part for part in parts if part)


def _beside_the_table(results: Mapping[str, dict], folder: Path, published: Path) -> str:
    """What stands below the table of README.md: machines, repetitions, and the numbers of the earlier reports."""
    platforms = {name: sorted({platform_of(run) for run in runs_of(results, name)}) for name in SHORT_TABLE}
    usual = Counter(each for of_one in platforms.values() for each in of_one).most_common(1)[0][0]
    others = [f"`{name}` on {' and '.join(each)}" for name, each in platforms.items() if each and each != [usual]]
    sentences = [f"All runs are on {usual}" + (f", except {'; '.join(others)}." if others else ".")]
    again: dict[str, list[str]] = {}
    for line in _of_control(comparisons_elsewhere(results)):
        again.setdefault(line["machines"], []).append(f"`{line['experiment']}` {_with_verdict(line)}")
    sentences += [f"Repeated with other seeds on {where}: {'; '.join(lines)}." for where, lines in again.items()]
    beside = beside_reported(results)
    if BEST in beside.index:
        line = beside.loc[BEST]
        numbers = f"`{BEST}` {line['accuracy']:.4f}, the highest of the reports {line['reported']:.4f}"
        sentences.append(f"Under the earlier protocol: {numbers}; difference {_with_verdict(line)}.")
    words = Counter(compare_results(Measured(results, folder, published), read_earlier_numbers())["word"])
    counted = ", ".join(f"{words[word]} *{word}*" for word in WORDS if words[word])
    sentences.append(f"The {words.total()} results of the five reports [beside ours](docs/reproduction.md): {counted}.")
    return "\n".join(textwrap.fill(each, LINE, initial_indent="- ", subsequent_indent="  ") for each in sentences)


def _with_verdict(line: Mapping) -> str:
    return f"{difference_text(line['difference'], line['low'], line['high'])}, {verdict_text(line)}"


def with_part(page: str, part: str, start: str = START, end: str = END) -> str:
    """A page in Markdown with another part between two comments.  Raises ValueError if they are not there."""
    before, found_start, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"README.md lacks the comments {start} and {end}")
    return f"{before}{start}\n{part}\n{end}{after}"


def ensembles(folder: Path, results: Mapping[str, dict]) -> pd.DataFrame:
    """The ensembles of `evaluation.ensemble` in a folder of results, as text; those of other networks are marked."""
    lines = {}
    for path in sorted(folder.glob("ensemble_*.csv")):
        table = pd.read_csv(path, index_col="network")
        mean, together = (table.loc[name] for name in table.index[-2:])
        mark = " (stale: of other networks than the results)" if is_stale(table, results) else ""
        lines[f"{path.stem.removeprefix('ensemble_')}: {together.name}{mark}"] = {
            "mean of the single runs": f"{mean['test_accuracy']:.4f}",
            "test (95 % interval)": accuracy_text(*together[["test_accuracy", "low", "high"]]),
            "mean per class": f"{together['mean_per_class']:.4f}",
            "earlier protocol": f"{together['earlier_protocol']:.4f}",
        }
    return pd.DataFrame(lines).T


def versions(results: Mapping[str, dict]) -> pd.DataFrame:
    """How many results of each data set were made with each torch version, as text."""
    counts = Counter((result["data"]["name"], result["versions"]["torch"]) for result in results.values())
    columns = sorted({version for _, version in counts})
    names = dict.fromkeys(name for name, _ in counts)
    return pd.DataFrame({f"torch {each}": {name: str(counts[name, each]) for name in names} for each in columns})


def results_page(results: Mapping[str, dict], folder: Path, few: pd.DataFrame | None = None) -> str:
    """docs/results.md: all experiments and comparisons, by data set.

    `folder` holds the tables of ensembles; `few` is the table of `few_labels.collect`.
    """
    compared = comparisons(results)
    short = headlines(results, compared, few)
    parts = [
        "# Results",
        "Written by `make pages` from the files in `results/full`; no number is typed.",
        *(["## In short", markdown(short), FEW_NOTE] if len(short) else []),
        "## How to read the tables",
        READING,
        comparing_text(compared),
    ]
    for data in dict.fromkeys(section[0] for section in SECTIONS):
        parts.append(f"## {data}")
        names = []
        for _, title, note, experiments in (section for section in SECTIONS if section[0] == data):
            parts += [f"### {title}", *([note] if note else []), *_section(results, experiments)]
            names += experiments
        lines = compared[compared["experiment"].isin(names)]
        if len(lines):
            parts += ["### Comparisons", markdown(shown_comparisons(lines))]
    parts += _platforms_section(results)
    missing = [(data, f"`{name}`") for data, *_, names in SECTIONS for name in names if not runs_of(results, name)]
    if missing:
        by_data = pd.DataFrame(missing, columns=["data", "experiments"]).groupby("data", sort=False)["experiments"]
        parts += ["## Planned, not run", NOT_RUN, markdown(by_data.agg(", ".join).reset_index())]
    together = ensembles(folder, results)
    pinned = re.search(r"^torch==(\S+)", (CODE / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
    if len(together):
        parts += ["## Ensembles", ENSEMBLES, markdown(together, "ensemble")]
    parts += ["## Versions", VERSIONS.format(pinned=pinned), markdown(versions(results), "data")]
    return "\n\n".join(parts) + "\n"


def _platforms_section(results: Mapping[str, dict]) -> list[str]:
    repeated, platforms = comparisons_elsewhere(results), platforms_table(results)
    if platforms.empty:
        return []
    shown = platforms.assign(
        runs=platforms["runs"].map(str),
        test=platforms["test"].map("{:.4f}".format),
        difference=platforms["difference"].map("{:+.4f}".format).where(platforms.duplicated("experiment"), ""),
    )
    shown["standard deviation"] = ["" if pd.isna(each) else f"{each:.4f}" for each in platforms["standard deviation"]]
    again = []
    if len(repeated):
        lines = shown_comparisons(repeated).rename(columns={"verdict": "verdict there"})
        columns = ["experiment", "compared with", "verdict there", "difference (interval)", "p", "accuracies", "runs"]
        again = [ELSEWHERE, markdown(lines[[*columns, "machines"]])]
    return ["## The same on another platform", *again, PLATFORMS, markdown(shown)]


def _section(results: Mapping[str, dict], experiments: Iterable[str]) -> list[str]:
    there = of_experiments(results, experiments)
    return [markdown(shown_experiments(experiments_table(there)), "experiment")] if there else []


def write_pages(root: Path):
    """Write docs/results.md, and the part of a README.md that is there, below `root` from its results/full."""
    folder, readme = root / "results" / "full", root / "README.md"
    results, few = read_profile(folder), few_labels.collect(PROBES, "full")
    if readme.exists():  # not in a folder of results apart from the code
        part = readme_part(results, folder, CODE / "published", few)
        write_text(readme, with_part(readme.read_text(encoding="utf-8"), part))
    write_text(root / "docs" / "results.md", results_page(results, folder, few))


if __name__ == "__main__":
    sys.exit(run_command(lambda: write_pages(root_folder())))
