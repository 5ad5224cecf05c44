"""Result files to tables: accuracies, settings, seeds, machines, and the comparisons that every page shows.

A result is what runs.py writes of one run.  Results are passed as {file stem: result}; an experiment may have several
runs, one per seed.  Accuracies are 0 to 1.
"""

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from packaging.version import Version

from data.augment import AUGMENTATIONS
from evaluation.statistics import accuracy_interval, compare, compare_with_reported, correctness, mean_accuracy
from experiments import EXPERIMENTS, initial_weights_text
from run_files import STUDY_DATA, folder_of_data, load_result, origin_of, platform_of, with_defaults
from self_supervised.settings import ProbeExperiment
from supervised.settings import Experiment

# The families of comparisons: the claims by a file, the others by `compared_with` and `family` of experiments.  A pair
# that is in the claims belongs to them alone.  What was added after other results had been seen is said in the pages.
EARLIER_CLAIMS, PRIMARY_FAMILY = "earlier claims", "primary"
# Comparisons that were deleted before they were run still count; otherwise intervals that are known would narrow.
DELETED = {"this study": 6, "reproduction": 6}
CLAIMS = Path(__file__).with_name("claims.csv")
PRIMARY: str | None = "byol_classifier"  # the experiment whose comparison is a family of its own (one comparison)
DETERMINISTIC = frozenset(  # experiments whose result does not depend on the seed
    name
    for name, each in EXPERIMENTS.items()
    if isinstance(each, ProbeExperiment) and not each.pretext_run and each.initial_weights != "random"
)

MIN_RUNS = 3  # that a variance of seeds needs
COLUMNS = (  # of `comparisons`
    *("question", "experiment", "compared_with", "classes", "family", "m", "images", "runs", "other_runs"),
    *("accuracy", "other_accuracy", "difference", "low", "high", "p", "p_bound", "verdict"),
    *("machines", "across_machines", "across_precisions", "across_augmentations"),
    *("across_teachers", "across_weights", "single_run"),
)
BESIDE = {  # ours, and the experiment whose earlier number is the highest of that kind
    "supervised_short": "supervised_tuned",
    "supervised_long": "supervised_tuned",
    "distilled": "supervised_tuned",
    "distilled_long": "supervised_tuned",
    "rotation_gentle_classifier": "rotation_classifier_tuned",
    "perturbation_gentle_classifier": "perturbation_classifier_tuned_3",
}
PRETEXTS_BY_EPOCH = {  # of the second report's table 3, each with the same head on ImageNet features
    "rotation_tuned": "imagenet_classifier_tuned",
    "perturbation_tuned": "imagenet_classifier_tuned_rate_2e-4",
}
SIDE_STUDIES = ("nature", "cifar10")  # data sets whose results have a folder inside that of 15-Scene


@dataclass(frozen=True)
class Claim:
    """A claim of an earlier report: an experiment is better, or worse, than another one."""

    claim: str
    source: str
    experiment: str
    compared_with: str
    direction: str  # "better" or "worse"
    classes: tuple[str, ...] = ()  # only the test images of these classes; (): all images


@dataclass(frozen=True)
class Pair:
    """Two experiments to compare, and the family of the comparison."""

    question: str
    experiment: str
    compared_with: str
    family: str
    comparisons: int  # in the family
    classes: tuple[str, ...] = ()


def read_results(folder: Path) -> dict[str, dict]:
    """The results in a folder by file stem, with defaults for settings that were added to the code after a run.

    Raises FileNotFoundError if there are none, and what `run_files.load_result` raises for a file.
    """
    found = {path.stem: load_result(path) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise FileNotFoundError(f"{folder} holds no results; python train.py NAME writes one")
    for result in found.values():
        if result["settings"]["name"] in EXPERIMENTS:
            result["settings"] = with_defaults(result["settings"], EXPERIMENTS[result["settings"]["name"]])
    return found


def read_profile(folder: Path, data: str = STUDY_DATA) -> dict[str, dict]:
    """The results on the data in use, below the folder of a profile; with 15-Scene those of the side studies too.

    Raises FileNotFoundError if there are none.
    """
    of_data = folder_of_data(folder, data)
    folders = [folder, *(folder / each for each in SIDE_STUDIES)] if of_data == folder else [of_data]
    there = [each for each in folders if any(each.glob("*.json"))]
    found = {}
    for each in there or folders[:1]:
        read = read_results(each)
        if each != of_data:  # an experiment of 15-Scene that was run on these data is none of the side study
            read = {name: result for name, result in read.items() if _belongs_to(result, each.name)}
        found |= read
    return found


def _belongs_to(result: dict, data: str) -> bool:
    experiment = EXPERIMENTS.get(result["settings"]["name"])
    return experiment is None or experiment.data == data


def runs_of(results: Mapping[str, dict], experiment: str) -> list[dict]:
    """The results that represent an experiment, one per seed.

    Those of the first of its `runs_by_platform`; where these are fewer than MIN_RUNS, those of all platforms.
    """
    platforms = runs_by_platform(results, experiment)
    first, runs = next(iter(platforms.values()), []), _all(platforms)
    return first if not runs or _runs_that_count(first) == _runs_that_count(runs) else runs


def runs_by_platform(results: Mapping[str, dict], experiment: str) -> dict[str, list[dict]]:
    """The results of an experiment on each `run_files.platform_of`, of the runs that have the settings of the first.

    Their order: one with MIN_RUNS runs before one with fewer, then one with a newer torch, then one with more runs.
    """
    runs = [result for result in results.values() if result["settings"]["name"] == experiment]
    found = {}
    for run in runs:
        if _kind_of_run(run) == _kind_of_run(runs[0]):
            found.setdefault(platform_of(run), []).append(run)
    return dict(sorted(found.items(), key=lambda each: _rank(each[1]), reverse=True))


def runs_to_compare(results: Mapping[str, dict], one: str, other: str) -> tuple[list[dict], list[dict]]:
    """The runs of two experiments on the platform that suits both best, by the order of `runs_by_platform`.

    If that leaves a side with fewer runs than all platforms have, up to MIN_RUNS, they are those of all platforms:
    `comparisons` marks such a line.
    """
    ones, others = runs_by_platform(results, one), runs_by_platform(results, other)
    pooled = _all(ones), _all(others)
    shared = [(ones[name], others[name]) for name in ones if name in others]
    best = max(shared, key=lambda sides: _rank(*sides), default=None)
    if best is None or list(map(_runs_that_count, best)) != list(map(_runs_that_count, pooled)):
        return pooled
    return best


def _all(platforms: Mapping[str, list[dict]]) -> list[dict]:
    """The runs of all platforms, in the order of their seeds."""
    runs = [run for of_platform in platforms.values() for run in of_platform]
    return sorted(runs, key=lambda run: run["settings"]["seed"])


def _rank(*sides: list[dict]) -> tuple:
    """What orders platforms: runs on the side that has fewest, at most MIN_RUNS; the version of torch; runs in all."""
    return min(map(_runs_that_count, sides)), _torch(sides[0]), sum(map(len, sides))


def _torch(runs: list[dict]) -> Version:
    """The version of torch that all runs of a platform have."""
    return Version(runs[0]["versions"]["torch"])


def _runs_that_count(runs: list[dict]) -> int:
    """How many runs there are, at most MIN_RUNS, which are enough; so is one where seeds change nothing."""
    if not runs:
        return 0
    return MIN_RUNS if runs[0]["settings"]["name"] in DETERMINISTIC else min(len(runs), MIN_RUNS)


def _kind_of_run(result: dict) -> dict:
    """What runs must have in common to be those of one experiment: the settings but for seed and precision."""
    settings, apart = result["settings"], {"seed", "precision"}
    train = {name: value for name, value in settings["train"].items() if name not in apart}
    return {name: value for name, value in settings.items() if name not in apart} | {"train": train}


def of_experiments(results: Mapping[str, dict], names: Iterable[str]) -> dict[str, dict]:
    """The results of these experiments, in the order of `names`, all seeds."""
    return {stem: each for name in names for stem, each in results.items() if each["settings"]["name"] == name}


def correct_on_test(runs: list[dict], classes: Collection[str] = ()) -> np.ndarray:
    """Which test images (of these classes, or all) the runs of an experiment classify correctly, (runs, images).

    See `statistics.correctness`.  A pretext shows each image once for each of its labels.
    """
    copies = len(runs[0]["class_names"]) if "pretext" in runs[0]["settings"] else 1
    labels = np.asarray(runs[0]["labels"]["test"])
    correct = correctness(labels, [run["predictions"]["test"] for run in runs], copies)
    numbers = [runs[0]["class_names"].index(name) for name in classes]
    return correct[:, np.isin(labels, numbers)] if numbers else correct


def machine(result: dict) -> str:
    """Device, torch version and precision of a run."""
    return f"{platform_of(result)}, {result['precision']}"


def machines(runs: Iterable[dict]) -> str:
    """The machines of several runs, each once."""
    return "; ".join(sorted({machine(run) for run in runs}))


def augmentation_rules(run: dict, results: Mapping[str, dict]) -> set[int]:
    """The versions of `data.augment` that rotated the images of a run and of its pretext's run of the same seed.

    The versions differ in rotated pixels alone; empty where neither rotated any.  `results` are those in which the
    pretext is looked for.
    """
    settings = run["settings"]
    used = [AUGMENTATIONS.get(settings.get(name)) for name in ("augmentation", "views")]
    rotated = any(each.rotation or each.trivial for each in used if each is not None)
    rules = {run.get("augmentation", 1)} if rotated else set()
    for pretext in runs_of_pretext([run], results):
        rules |= augmentation_rules(pretext, results)
    return rules


def runs_of_pretext(runs: Iterable[dict], results: Mapping[str, dict]) -> list[dict]:
    """The results of the pretext that the features of these runs come from, where they are there: of the same seeds."""
    asked = {(run["settings"].get("pretext_run"), run["settings"]["seed"]) for run in runs}
    return [each for each in results.values() if (each["settings"]["name"], each["settings"]["seed"]) in asked]


def results_table(results: Mapping[str, dict], experiments: Mapping[str, Experiment] = EXPERIMENTS) -> pd.DataFrame:
    """One line a run: accuracies in both protocols, the interval of the test accuracy, epochs, minutes, machine.

    "test": the epoch is selected on val and the accuracy is of the test images.  "earlier protocol": the epoch is
    selected, and the accuracy reported, on val and test together, as "earlier report" was.  low and high are Wilson's
    95 % interval over the test images.
    """
    lines = {}
    for stem, result in results.items():
        name, correct = result["settings"]["name"], correct_on_test([result])[0]
        low, high = accuracy_interval(round(correct.sum()), len(correct))
        lines[stem] = {
            "earlier report": _earlier_accuracy(result, experiments.get(name)),
            "earlier protocol": result["earlier_protocol_accuracy"],
            "earlier protocol epoch": result["earlier_protocol_epoch"],
            "test": result["test_accuracy"],
            "low": low,
            "high": high,
            "mean per class": mean_per_class(result),
            "val": result["val_accuracy"],
            "train": result["train_accuracy"],
            "epoch": result["epoch"],
            "minutes": result["seconds"] / 60,
            "initial weights": initial_weights_text(result["initial_weights"]),
            "machine": machine(result),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def experiments_table(results: Mapping[str, dict], experiments: Mapping[str, Experiment] = EXPERIMENTS) -> pd.DataFrame:
    """One line an experiment, over its `runs_of`: mean accuracies, the interval of the test accuracy, machines.

    The interval covers images and seeds; that of a single run covers images only.  lowest and highest are the test
    accuracies of single runs.
    """
    lines = {}
    for name in dict.fromkeys(result["settings"]["name"] for result in results.values()):
        runs = runs_of(results, name)
        test, low, high = mean_accuracy(correct_on_test(runs), name in DETERMINISTIC)
        accuracies = [run["test_accuracy"] for run in runs]
        lines[name] = {
            "runs": len(runs),
            "earlier report": _earlier_accuracy(runs[0], experiments.get(name)),
            "earlier protocol": float(np.mean([run["earlier_protocol_accuracy"] for run in runs])),
            "test": test,
            "low": low,
            "high": high,
            "mean per class": float(np.mean([mean_per_class(run) for run in runs])),
            "lowest": min(accuracies),
            "highest": max(accuracies),
            "initial weights": "; ".join(dict.fromkeys(_initial_weights_of_any_seed(run) for run in runs)),
            "machines": machines(runs),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def _initial_weights_of_any_seed(run: dict) -> str:
    return re.sub(r"\.seed\d+,", ",", initial_weights_text(run["initial_weights"]))


def mean_per_class(result: dict) -> float:
    """The mean over classes of the test accuracy of a class, as Lazebnik et al. 2006 report 15-Scene."""
    return float(np.mean(list(result["test_accuracy_by_class"].values())))


def _earlier_accuracy(result: dict, experiment: Experiment | None) -> float | None:
    """The number of an earlier report, which is of the experiment's own data set only."""
    same_data = experiment is not None and result["data"]["name"] == experiment.data
    return experiment.earlier_accuracy if same_data else None


def seeds_table(results: Mapping[str, dict]) -> pd.DataFrame:
    """One line an experiment with several runs: mean, standard deviation and range of both accuracies."""
    lines = {}
    for name in dict.fromkeys(result["settings"]["name"] for result in results.values()):
        runs = runs_of(results, name)
        if len(runs) > 1:
            lines[name] = {"runs": len(runs)}
            for title, key in (("test", "test_accuracy"), ("earlier protocol", "earlier_protocol_accuracy")):
                values = [run[key] for run in runs]
                lines[name] |= {
                    title: np.mean(values),
                    f"{title}, standard deviation": np.std(values, ddof=1),
                    f"{title}, lowest": min(values),
                    f"{title}, highest": max(values),
                }
    return pd.DataFrame.from_dict(lines, orient="index")


def settings_table(results: Mapping[str, dict]) -> tuple[str, pd.DataFrame]:
    """The settings that all results share, as text, and a table of the others with one line a result.

    Settings of the training have no prefix.  "precision used" is what "auto" resolved to on the machine of the run.
    """
    lines = [{**result["settings"], "precision used": result["precision"]} for result in results.values()]
    table = pd.json_normalize(lines).drop(columns="name").rename(columns=lambda key: key.removeprefix("train."))
    table.index = list(results)
    differs = table.astype(str).nunique(dropna=False) > 1  # a setting that only some experiments have differs too
    same = ", ".join(f"{key} = {table[key].iloc[0]}" for key in table.columns[~differs])
    return same, table.loc[:, differs]


def read_claims(path: Path = CLAIMS) -> list[Claim]:
    """The claims of the earlier reports."""
    with open(path, newline="", encoding="utf-8") as file:
        return [Claim(**{**line, "classes": tuple(line["classes"].split())}) for line in csv.DictReader(file)]


def pairs_to_compare(experiments: Mapping[str, Experiment] = EXPERIMENTS) -> list[Pair]:
    """Every comparison of all families, whether its runs are there or not: the claims first, then the primary one."""
    claims = read_claims()
    claimed = {frozenset((claim.experiment, claim.compared_with)) for claim in claims}
    own = [
        (each.family, each)
        for each in experiments.values()
        if each.compared_with and frozenset((each.name, each.compared_with)) not in claimed and each.name != PRIMARY
    ]
    primary = [experiments[PRIMARY]] if PRIMARY in experiments else []
    sizes = Counter(family for family, _ in own) + Counter(DELETED if experiments is EXPERIMENTS else {})
    return [
        *(Pair(c.claim, c.experiment, c.compared_with, EARLIER_CLAIMS, len(claims), c.classes) for c in claims),
        *(Pair(each.question, each.name, each.compared_with, PRIMARY_FAMILY, 1) for each in primary),
        *(Pair(each.question, each.name, each.compared_with, family, sizes[family]) for family, each in own),
    ]


def comparisons(results: Mapping[str, dict], experiments: Mapping[str, Experiment] = EXPERIMENTS) -> pd.DataFrame:
    """One line a comparison whose runs are all on the same test images: the table that every page and notebook shows.

    The runs are `runs_to_compare`.

    accuracy, other_accuracy: means over runs and other_runs.  difference: the first minus the second, with its interval
    (low, high), p, its bound and verdict in its family of m comparisons (see `evaluation.statistics`).
    machines: of all runs; across_machines: they are of several platforms; across_precisions: of several precisions on
    one platform.
    across_augmentations: see `augmentation_rules`.  across_teachers: distilled networks had other teachers.
    across_weights: trained initial weights were of several files, by their contents.
    single_run: a side has one run, so that its seed variance is unknown.
    `experiments` define the families, so leave them as they are and select lines of the table instead.
    """
    lines = []
    for pair in pairs_to_compare(experiments):
        runs, other_runs = runs_to_compare(results, pair.experiment, pair.compared_with)
        if runs and other_runs and _comparable([*runs, *other_runs], pair.classes):
            lines.append(_line_of_comparison(pair, runs, other_runs, results))
    return pd.DataFrame(lines, columns=COLUMNS)


def comparisons_elsewhere(
    results: Mapping[str, dict], experiments: Mapping[str, Experiment] = EXPERIMENTS
) -> pd.DataFrame:
    """The lines of `comparisons` again, with the runs of another platform where both sides have MIN_RUNS runs there.

    They repeat a measurement; the verdict of a comparison is that of `comparisons`.
    """
    lines = []
    for pair in pairs_to_compare(experiments):
        chosen, _ = runs_to_compare(results, pair.experiment, pair.compared_with)
        others = runs_by_platform(results, pair.compared_with)
        for name, runs in runs_by_platform(results, pair.experiment).items():
            sides = runs, others.get(name, [])
            again = {name} != set(map(platform_of, chosen)) and min(map(_runs_that_count, sides)) == MIN_RUNS
            if again and _comparable([*sides[0], *sides[1]], pair.classes):
                lines.append(_line_of_comparison(pair, *sides, results))
    return pd.DataFrame(lines, columns=COLUMNS)


def platforms_table(results: Mapping[str, dict]) -> pd.DataFrame:
    """One line an experiment with runs on several platforms, and platform: runs, mean and deviation of test accuracies.

    Newer versions of torch come first; difference: the mean minus that of the first platform.
    """
    lines = []
    for name in dict.fromkeys(result["settings"]["name"] for result in results.values()):
        newest_first = sorted(runs_by_platform(results, name).values(), key=_torch, reverse=True)
        accuracies = [[run["test_accuracy"] for run in runs] for runs in newest_first]
        for runs, values in zip(newest_first, accuracies, strict=True) if len(newest_first) > 1 else ():
            deviation = np.std(values, ddof=1) if len(values) > 1 else np.nan
            difference = np.mean(values) - np.mean(accuracies[0])
            lines.append((name, platform_of(runs[0]), len(runs), np.mean(values), deviation, difference))
    columns = ["experiment", "platform", "runs", "test", "standard deviation", "difference"]
    return pd.DataFrame(lines, columns=columns)


def _comparable(runs: list[dict], classes: tuple[str, ...]) -> bool:
    """Whether all runs have the same test images, by their contents, and the images these classes."""
    images = [(run["labels"]["test"], run["data"].get("fingerprint", {}).get("test")) for run in runs]
    return all(each == images[0] for each in images) and set(classes) <= set(runs[0]["class_names"])


def _line_of_comparison(pair: Pair, runs: list[dict], other_runs: list[dict], results: Mapping[str, dict]) -> dict:
    correct, other = correct_on_test(runs, pair.classes), correct_on_test(other_runs, pair.classes)
    deterministic = pair.experiment in DETERMINISTIC, pair.compared_with in DETERMINISTIC
    found = compare(correct, other, pair.comparisons, deterministic)
    teachers = {_teachers(run) for run in (*runs, *other_runs) if run["settings"].get("teacher_run")}
    platforms, precisions = ({of(run) for run in (*runs, *other_runs)} for of in (platform_of, machine))
    files = {origin_of(run["initial_weights"]).get("sha256") for run in (*runs, *other_runs)} - {None}  # None: random
    rules = set().union(*(augmentation_rules(run, results) for run in (*runs, *other_runs)))
    return {
        "question": pair.question,
        "experiment": pair.experiment,
        "compared_with": pair.compared_with,
        "classes": ", ".join(pair.classes),
        "family": pair.family,
        "m": pair.comparisons,
        "images": correct.shape[1],
        "runs": len(runs),
        "other_runs": len(other_runs),
        "accuracy": found.accuracy,
        "other_accuracy": found.other_accuracy,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p": found.p_value,
        "p_bound": found.p_bound,
        "verdict": found.verdict,
        "machines": machines([*runs, *other_runs]),
        "across_machines": len(platforms) > 1,
        "across_precisions": len(platforms) == 1 and len(precisions) > 1,
        "across_augmentations": len(rules) > 1,
        "across_teachers": len(teachers) > 1,
        "across_weights": len(files) > 1,
        "single_run": found.single_run,
    }


def _teachers(run: dict) -> tuple[str, ...]:
    """What tells the weights of a distilled network's teachers."""
    return tuple(each["sha256"] for each in run["teachers"]["runs"])


def pretext_epochs_table(classifiers: Mapping[str, dict], pretexts: Mapping[str, dict]) -> pd.DataFrame:
    """The second report's table 3: the same classifier on a pretext that is stopped after different epochs.

    Lines can be of several runs of the pretext; self_supervised/report.ipynb says which.  `classifiers` and `pretexts`
    are results of one seed.  One line per classifier on a run of PRETEXTS_BY_EPOCH: pretext, its epochs, its accuracy
    and loss on val after these epochs, and accuracies as in `results_table`.
    """
    lines = []
    accuracies = results_table(classifiers).reindex(
        columns=["train", "earlier report", "earlier protocol", "test", "low", "high", "machine"]
    )
    for name, of_classifier in accuracies.iterrows():
        settings = classifiers[name]["settings"]
        pretext, epochs = settings.get("pretext_run"), settings.get("pretext_epoch")
        if pretext in PRETEXTS_BY_EPOCH and pretext in pretexts:
            history = pretexts[pretext]["history"]
            epochs = len(history["val_loss"]) if epochs == "last" else epochs
            measured = {
                "pretext accuracy": history["val_accuracy"][epochs - 1],
                "pretext loss": history["val_loss"][epochs - 1],
            }
            lines.append({"pretext": pretext, "epochs": epochs, **measured, **of_classifier})
    columns = ["pretext", "epochs", "pretext accuracy", "pretext loss", *accuracies.columns]
    return pd.DataFrame(lines, columns=columns).sort_values(["pretext", "epochs"], ascending=[False, True])


def accuracies_without_pretext(results: Mapping[str, dict]) -> dict[str, float]:
    """By each pretext of PRETEXTS_BY_EPOCH, the test accuracy of the same head on ImageNet features.

    `results` are of one seed; a pretext whose control is not among them is left out.
    """
    return {
        pretext: results[control]["test_accuracy"]
        for pretext, control in PRETEXTS_BY_EPOCH.items()
        if control in results
    }


def beside_reported(results: Mapping[str, dict]) -> pd.DataFrame:
    """The experiments of BESIDE on 15-Scene under the earlier protocol, beside the highest number of the same kind.

    One line per experiment that has results, by its name.  Columns: runs, accuracy, like (the experiment of ours that
    repeats theirs), reported, and difference, low, high, p and verdict of `statistics.compare_with_reported`; the lines
    are one family.
    """
    lines = {}
    for name, like in BESIDE.items():
        runs = [run for run in runs_of(results, name) if run["data"]["name"] == STUDY_DATA]
        if runs:
            right = np.stack([_correct_under_earlier_protocol(run) for run in runs])
            reported = EXPERIMENTS[like].earlier_accuracy
            found = compare_with_reported(right, reported, comparisons=len(BESIDE))
            difference = {"difference": found.difference, "low": found.low, "high": found.high, "p": found.p_value}
            about = {"runs": len(runs), "accuracy": right.mean(), "like": like, "reported": reported}
            lines[name] = about | difference | {"verdict": found.verdict}
    return pd.DataFrame.from_dict(lines, orient="index")


def _correct_under_earlier_protocol(run: dict) -> np.ndarray:
    """Whether a run classifies each image of val and test correctly at the epoch that both chose."""
    splits = run["earlier_protocol_predictions"].items()
    return np.concatenate([correctness(run["labels"][split], predicted)[0] for split, predicted in splits])
