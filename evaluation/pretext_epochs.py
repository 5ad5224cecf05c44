"""What a pretext does to its features, epoch by epoch, without any classifier.

    python -m evaluation.pretext_epochs [NAME ...] [--profile full] [--data DATA] [--weights FILE]

For the initial weights and each saved epoch of a pretext: how many dimensions the features of the test images use
(RankMe), how similar they are to those before (linear CKA), and how many of an image's nearest images are of its class.
The tables are cached as CSV files beside the results; each says which run it was computed from.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from data.files import write_table
from evaluation.probes import is_made_from, stage_features, warn_of_stale, weights_here
from evaluation.representation import linear_cka, neighbour_purity, rank_me
from evaluation.split_images import loaders_of_run
from experiments import add_data_options, experiments_of
from loop.batchnorm import fold_batchnorm
from run_files import files_of, load_weights
from runs import build_model, run_command
from self_supervised.settings import JointEmbeddingExperiment, ProbeExperiment

NAMES = ("byol", "byol_20_epochs", "byol_batchnorm_trained")  # of the report


def features_by_epoch(pretext: JointEmbeddingExperiment, profile: str, progress: bool = False) -> pd.DataFrame:
    """One line per saved epoch, the last one among them, and one for the initial weights (epoch 0).

    Columns: epoch, rank_me, cka (with epoch 0), neighbour_purity, weights (their digest, "" for epoch 0), all of the
    pooled last stage of the test images.  Raises FileNotFoundError if the pretext has not been run here.
    """
    same = ["name", "data", "network", "initial_weights", "stages", "resize", "image_size", "images_per_class"]
    fields = {name: getattr(pretext, name) for name in (*same, "batch_size")}
    probe = ProbeExperiment(question="", flip_tta=False, **fields)
    _, provenance = load_weights(pretext, profile)
    loaders = loaders_of_run(provenance["data"], probe)
    torch.manual_seed(pretext.seed)  # of random weights: those that the run began with
    model, _ = build_model(probe, loaders, profile)
    ends = pretext.train.max_epochs
    epochs = [*(epoch for epoch in pretext.save_epochs if epoch != "last" and epoch < ends), "best"]
    lines, before = [], None
    for epoch in tqdm([0, *epochs], desc=f"{pretext.name}, epochs", disable=not progress):
        weights = ""
        if epoch:
            features, provenance = load_weights(pretext, profile, epoch, "features.", loaders.data)
            model.features.load_state_dict(features)
            weights = provenance["sha256"]
        stages, labels = stage_features(fold_batchnorm(model), loaders.test)
        last = stages[-1]
        before = last if before is None else before
        number = ends if epoch == "best" else epoch
        purity = neighbour_purity(last, labels)
        lines.append((number, rank_me(last), linear_cka(before, last), purity, weights))
    return pd.DataFrame(lines, columns=["epoch", "rank_me", "cka", "neighbour_purity", "weights"])


def collect(
    pretexts: Iterable[JointEmbeddingExperiment], profile: str, compute: bool = False, progress: bool = False
) -> dict[str, pd.DataFrame]:
    """The tables of configured pretexts by name, from the cache; `compute` fills it with those that have weights.

    Tables of other weights than those that are here are named in a warning.
    """
    tables, stale = {}, []
    for pretext in pretexts:
        files = files_of(pretext, profile)
        path = files.results / f"epochs_{files.name}.csv"
        if compute and files.checkpoint.exists():
            _, provenance = load_weights(pretext, profile, "best", "features.")
            if not path.exists() or not is_made_from(_read(path), {"weights": provenance["sha256"]}):
                table = features_by_epoch(pretext, profile, progress)
                write_table(path, table)
        if path.exists():
            tables[pretext.name] = _read(path)
            if not is_made_from(tables[pretext.name], {"weights": weights_here(pretext, profile)}):
                stale.append(path.name)
    warn_of_stale(stale, "evaluation.pretext_epochs")
    return tables


def _read(path: Path) -> pd.DataFrame:
    """A table; a measure that is not a number stays one."""
    return pd.read_csv(path).fillna({"weights": ""})


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.pretext_epochs", description="What a pretext does to its features, epoch by epoch"
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"default: {', '.join(NAMES)}")
    add_data_options(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _compute(options))


def _compute(options):
    pretexts = experiments_of(options.names, options)
    for name, pretext in pretexts.items():
        if not isinstance(pretext, JointEmbeddingExperiment):
            raise ValueError(f"{name} is not a joint-embedding pretext, whose epochs are compared here")
        path = files_of(pretext, options.profile).checkpoint
        if options.names is not NAMES and not path.exists():
            raise FileNotFoundError(f"there is no {path}; train {name} first")
    for name, table in collect(pretexts.values(), options.profile, compute=True, progress=True).items():
        print(name, table.drop(columns="weights").to_string(index=False), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
