"""How far a few labels go on frozen features, with and without the unlabeled training images.

    python -m evaluation.few_labels [--profile full] [--data DATA] [--weights FILE]

The features are those of the primary readout.  Three readouts learn from samples of the labels:

    labels alone      a linear probe of a strength that is fixed beforehand
    label spreading   the labels are spread over the neighbor graph of all training images (Zhou et al. 2004), and the
                      same probe learns from all of these; the control for every claim about unlabeled images
    oracle            a linear probe whose strength is chosen with all labels of val: more labels than it claims

Every pretext sees the same samples, so that differences are paired.  The tables are cached as CSV files beside the
results; each says which weights it was computed from.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from tqdm.auto import tqdm

from data.files import write_table
from evaluation.probes import (
    digest_of_images,
    features_of_probe,
    is_made_from,
    numbers_and_draws,
    sample_of_each_class,
    warn_of_stale,
    weights_here,
)
from evaluation.statistics import estimate, mean_and_interval, variance_of_mean, verdict
from experiments import add_data_options, experiments_of, prerequisites
from run_files import files_of, load_result
from runs import run_command
from self_supervised.probes import Splits, linear_probe, nearest_images
from self_supervised.settings import ProbeExperiment

FEATURES = {  # name in figures: the experiment whose features are read
    "ImageNet": "imagenet_classifier_probe",
    "BYOL": "byol_classifier",
    "neighbours": "neighbours_classifier",
    "BYOL with neighbours": "byol_neighbours_classifier",
}
CONTROL = "ImageNet"
ALONE, SPREAD, ORACLE = "labels alone", "label spreading", "oracle"
IMAGES_PER_CLASS = {"quick": (1, 2), "full": (1, 2, 5, 10, 20, 50)}
DRAWS = {"quick": 2, "full": 20}
ORACLE_DRAWS = {"quick": 0, "full": 5}  # it is slow, and of the first run of a pretext only
SEEDS = {"quick": 1, "full": 5}  # runs of a pretext, where there are so many
STRENGTH = 0.01  # C of both probes; from 0.001 to 10 it changes the control by less than 0.01
SPREAD_NEIGHBORS, SPREAD_SHARE = 20, 0.8  # chosen on val for the control


def spreading_matrix(features: np.ndarray, neighbors: int) -> np.ndarray:
    """How much of a label each image (N, rows) gets from each other one (N, columns): label spreading, in closed form.

    After Zhou et al. 2004.  features: (N, D), standardized here.  The graph joins each image with its nearest ones
    (cosine), in both directions.
    """
    standardized = normalize(StandardScaler().fit_transform(features))
    graph = np.zeros((len(features), len(features)))
    np.put_along_axis(graph, nearest_images(standardized, neighbors), 1.0, axis=1)
    graph = np.maximum(graph, graph.T)
    degrees = graph.sum(axis=1)
    return np.linalg.inv(np.eye(len(graph)) - SPREAD_SHARE * graph / np.sqrt(np.outer(degrees, degrees)))


def spread_labels(matrix: np.ndarray, labeled: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels (N,) for all images, by a `spreading_matrix` (N, N) and the `labels` (M,) of a few, which keep them.

    `labeled` are the indices (M,) of the few.  Each class has the same mass, because few labels would otherwise favor
    the class in the densest region.
    """
    classes, known = np.unique(labels, return_inverse=True)
    mass = matrix[:, labeled] @ np.eye(len(classes))[known]
    found = classes[(mass / mass.sum(axis=0)).argmax(axis=1)]
    found[labeled] = labels
    return found


def few_labels(
    splits: Splits, images_per_class: Sequence[int], draws: int, oracle_draws: int = 0, progress: bool = False
) -> pd.DataFrame:
    """One line per number of labeled images of a class, draw and readout, with the test accuracy.

    Columns: images_per_class, draw (its seed, from 0), readout, test_accuracy.  Draws are nested: those of few labels
    are contained in those of more; see `numbers_and_draws`.  The oracle has the first `oracle_draws`.
    """
    features, labels = splits["train"]
    lines = []
    matrix = spreading_matrix(features, min(SPREAD_NEIGHBORS, len(features) - 1))
    samples = numbers_and_draws(labels, images_per_class, draws)
    for number, draw in tqdm(samples, desc="samples of labels", disable=not progress):
        sample = sample_of_each_class(labels, number, seed=draw)
        spread = spread_labels(matrix, sample, labels[sample])
        accuracies = {
            ALONE: _test_accuracy(features[sample], labels[sample], splits),
            SPREAD: _test_accuracy(features, spread, splits),
        }
        if draw < oracle_draws:
            of_sample = {**splits, "train": (features[sample], labels[sample])}
            accuracies[ORACLE] = linear_probe(of_sample).test_accuracy
        lines += [(number, draw, readout, accuracy) for readout, accuracy in accuracies.items()]
    return pd.DataFrame(lines, columns=["images_per_class", "draw", "readout", "test_accuracy"])


def _test_accuracy(features: np.ndarray, labels: np.ndarray, splits: Splits) -> float:
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
    return float(probe.fit(features, labels).score(*splits["test"]))


def collect(
    experiments: Mapping[str, ProbeExperiment], profile: str, compute: bool = False, progress: bool = False
) -> pd.DataFrame:
    """The tables of all runs together, from the cache; `compute` fills it first.

    `experiments` are configured, by name: at least those of FEATURES.  Columns: features, seed, and those of
    `few_labels`.  Runs whose pretext has no weights here and no table are left out; tables of other weights than those
    of the results are named in a warning.
    """
    tables, found = [], []
    for label, name in FEATURES.items():
        for seed in range(SEEDS[profile] if experiments[name].pretext_run else 1):
            experiment = replace(experiments[name], seed=seed)
            if compute and _has_weights(experiment, profile):
                _fill(experiment, profile, progress)
            path = _path(experiment, profile)
            if path.exists():
                table = pd.read_csv(path).assign(features=label, seed=seed)
                tables.append(table)
                found.append((experiment, table))
    _warn_of_stale(found, profile)
    columns = ["features", "seed", "images_per_class", "draw", "readout", "test_accuracy"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def _warn_of_stale(found: Sequence[tuple[ProbeExperiment, pd.DataFrame]], profile: str):
    """Name the tables of runs whose result is of other weights or images."""
    stale = []
    for experiment, table in found:
        path = files_of(experiment, profile).result
        if not path.exists():
            continue
        result = load_result(path)  # pages are made of files: the images need not be here
        of_pretext = result["initial_weights"].get("sha256") if experiment.pretext_run else None
        weights = of_pretext or weights_here(experiment, profile)
        if not is_made_from(table, {"weights": weights, "images": digest_of_images(result["data"])}):
            stale.append(_path(experiment, profile).name)
    warn_of_stale(stale, "evaluation.few_labels")


def _has_weights(experiment: ProbeExperiment, profile: str) -> bool:
    needed = prerequisites(experiment, profile)
    return all(files_of(pretext, profile).saved(epoch).exists() for pretext, epoch in needed)


def _path(experiment: ProbeExperiment, profile: str) -> Path:
    files = files_of(experiment, profile)
    return files.results / f"few_labels_{files.name}.csv"


def _fill(experiment: ProbeExperiment, profile: str, progress: bool):
    path = _path(experiment, profile)
    splits, weights, images = features_of_probe(experiment, profile)
    source = {"weights": weights, "images": images}
    before = pd.read_csv(path) if path.exists() else pd.DataFrame()
    if len(before) and is_made_from(before, source) and not _draws_all(before, splits):
        return
    oracle_draws = ORACLE_DRAWS[profile] if experiment.seed == 0 else 0
    table = few_labels(splits, IMAGES_PER_CLASS[profile], DRAWS[profile], oracle_draws, progress)
    write_table(path, table.assign(**source))


def _draws_all(table: pd.DataFrame, splits: Splits) -> bool:
    """Whether a table of older code has several draws of all labels, which are the same."""
    sizes = np.unique(splits["train"][1], return_counts=True)[1]
    return bool((table["images_per_class"].eq(sizes.max()) & table["draw"].gt(0)).any())


def accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """Mean test accuracy over draws and seeds, of each number of labels: features, readout, images_per_class, ...

    Columns besides: test_accuracy, and its interval over the draws (from, to).
    """
    lines = []
    for (features, readout, number), group in table.groupby(["features", "readout", "images_per_class"], sort=False):
        of_draws = group.groupby("draw")["test_accuracy"].mean()
        lines.append((features, readout, number, *mean_and_interval(of_draws.tolist())))
    return pd.DataFrame(lines, columns=["features", "readout", "images_per_class", "test_accuracy", "from", "to"])


def paired_differences(table: pd.DataFrame) -> pd.DataFrame:
    """The test accuracy of each features minus that of CONTROL, by the same readout on the same draws.

    Columns: features, readout, images_per_class, seeds, difference, low, high, p, draws_better, verdict.  The 95 %
    interval covers draws and seeds of the pretext, and the comparisons of the table share its level (Bonferroni); it
    does not cover the sampling of test images, which all have in common.  One draw of one seed has no interval.
    """
    control, others = _of_control(table), table[table["features"] != CONTROL]
    groups = others.groupby(["features", "readout", "images_per_class"], sort=False)
    return pd.DataFrame(
        {
            **dict(zip(("features", "readout", "images_per_class"), key, strict=True)),
            **_measures(_minus(group, control.loc[key[1:]]), groups.ngroups),
        }
        for key, group in groups
    )


def spreading_against_pretexts(table: pd.DataFrame) -> pd.DataFrame:
    """The test accuracy of label spreading on CONTROL's features minus that of labels alone on those of each pretext.

    So it says whether unlabeled images help more by label spreading, which needs no pretext, or by the pretext.
    Columns and intervals are those of `paired_differences`, but for the readout.
    """
    control, others = _of_control(table), table[(table["features"] != CONTROL) & (table["readout"] == ALONE)]
    groups = others.groupby(["features", "images_per_class"], sort=False)
    return pd.DataFrame(
        {
            "features": features,
            "images_per_class": number,
            **_measures(-_minus(group, control.loc[(SPREAD, number)]), groups.ngroups),
        }
        for (features, number), group in groups
        if (SPREAD, number) in control.index
    )


def _of_control(table: pd.DataFrame) -> pd.Series:
    """CONTROL's test accuracies by readout, images_per_class and draw."""
    control = table[table["features"] == CONTROL].set_index(["readout", "images_per_class", "draw"])
    return control.sort_index()["test_accuracy"]


def _minus(group: pd.DataFrame, control: pd.Series) -> pd.DataFrame:
    """Test accuracies of a pretext, one line per seed and one column per draw, minus those of the control."""
    values = group.pivot_table(index="seed", columns="draw", values="test_accuracy")
    return values - control.reindex(values.columns)


def _measures(differences: pd.DataFrame, comparisons: int) -> dict:
    """What `paired_differences` says of differences by seed (lines) and draw (columns)."""
    means = differences.mean(axis=0)
    parts = [variance_of_mean(each) for each in (means, differences.mean(axis=1)) if len(each) > 1]
    low, high, p_value = estimate(means.mean(), parts, comparisons) if parts else [np.nan] * 3
    return {
        "seeds": len(differences),
        "difference": means.mean(),
        "low": low,
        "high": high,
        "p": p_value,
        "draws_better": f"{(means > 0).sum()} of {len(means)}",
        "verdict": verdict(means.mean(), p_value),
    }


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.few_labels", description="How far a few labels go on frozen features"
    )
    add_data_options(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _compute(options))


def _compute(options):
    table = collect(experiments_of(FEATURES.values(), options), options.profile, compute=True, progress=True)
    print(accuracies(table).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
