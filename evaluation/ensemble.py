"""What several runs of one experiment say together: the mean of their class probabilities, an ensemble.

    python -m evaluation.ensemble byol_classifier --seeds 0 1 2 [--profile full] [--data DATA] [--weights FILE]

An ensemble costs as many networks as it has runs, so it stands beside single networks and is never compared with them
as one.  The table is results/<profile>/ensemble_<experiment>.csv: each run, their mean, and the ensemble.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from data.files import write_table
from evaluation.checkpoints import load_trained
from evaluation.predict import class_probabilities
from evaluation.split_images import loaders_of_run
from evaluation.statistics import accuracy_interval
from experiments import add_data_options, experiments_of
from run_files import files_of, load_weights
from runs import run_command
from supervised.settings import Experiment

HELD_OUT = ("val", "test")
TOLERANCE = 0.002  # of a run's accuracy: another precision or machine changes it by less


def ensemble_table(probabilities: dict[str, dict[str, np.ndarray]], labels: dict[str, np.ndarray]) -> pd.DataFrame:
    """One line a run, then their mean and the ensemble.

    probabilities: {run: {"val" and "test": (N, classes)}}; labels: {split: (N,)}.  `earlier_protocol` is the accuracy
    on val and test together, as the earlier reports count, at epochs that were chosen on val alone.
    """
    together = {split: np.mean([each[split] for each in probabilities.values()], axis=0) for split in HELD_OUT}
    lines = {run: _numbers(each, labels) for run, each in probabilities.items()}
    mean = pd.DataFrame(lines).T.mean()[["test_accuracy", "mean_per_class", "earlier_protocol"]].to_dict()
    count = len(probabilities)
    lines |= {f"mean of {count} runs": mean, f"ensemble of {count} runs": _numbers(together, labels)}
    return pd.DataFrame(lines).T.rename_axis("network")


def _numbers(probabilities: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> dict[str, float]:
    correct = {split: probabilities[split].argmax(axis=1) == labels[split] for split in HELD_OUT}
    test, classes = correct["test"], np.unique(labels["test"])
    low, high = accuracy_interval(int(test.sum()), len(test))
    return {
        "test_accuracy": test.mean(),
        "low": low,
        "high": high,
        "mean_per_class": np.mean([test[labels["test"] == label].mean() for label in classes]),
        "earlier_protocol": np.concatenate([*correct.values()]).mean(),
    }


def probabilities_of_runs(
    experiment: Experiment, profile: str, seeds: Sequence[int]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The class probabilities of each run on val and test, and the labels.

    Raises FileNotFoundError for a run that has no checkpoint, and ValueError for fewer than two different seeds.
    """
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds is {' '.join(map(str, seeds))}; an ensemble needs at least two, each once")
    runs = [replace(experiment, seed=seed) for seed in seeds]
    _, provenance = load_weights(runs[0], profile)
    loaders = loaders_of_run(provenance["data"], experiment)
    splits = {split: getattr(loaders, split) for split in HELD_OUT}
    labels = {split: loader.dataset.labels for split, loader in splits.items()}
    found = {}
    for each in runs:
        files = files_of(each, profile)
        load_weights(each, profile, data=loaders.data)  # refuses one of other settings or images
        model = load_trained(files.checkpoint).folded().model
        found[files.name] = {split: class_probabilities(model, loader) for split, loader in splits.items()}
    return found, labels


def write_ensemble(experiment: Experiment, profile: str, seeds: Sequence[int]) -> tuple[Path, pd.DataFrame]:
    """Compute and write the table; returns its file and itself."""
    table = ensemble_table(*probabilities_of_runs(experiment, profile, seeds))
    path = files_of(experiment, profile).results / f"ensemble_{experiment.name}.csv"
    write_table(path, table, index=True, float_format="%.6f")
    return path, table


def is_stale(table: pd.DataFrame, results: Mapping[str, dict]) -> bool:
    """Whether a run of an ensemble has another test accuracy than its result; `results` are by the run's name."""
    return any(
        abs(table.loc[name, "test_accuracy"] - results[name]["test_accuracy"]) > TOLERANCE
        for name in table.index.intersection(list(results))
    )


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.ensemble", description="The mean of the class probabilities of several runs"
    )
    parser.add_argument("name", metavar="NAME", help="an experiment, see train.py --list")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_data_options(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _write(options))


def _write(options):
    [experiment] = experiments_of([options.name], options).values()
    path, table = write_ensemble(experiment, options.profile, options.seeds)
    print(table.round(4).to_string())
    print(path)


if __name__ == "__main__":
    sys.exit(main())
