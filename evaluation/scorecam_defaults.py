"""Which definition of Score-CAM to use by default: every weighting, with and without the paper's baseline, measured.

    python -m evaluation.scorecam_defaults [--models RUN ...] [--images 40] [--split val]

For each network, stage and definition: the share of empty maps, and their faithfulness beside that of random maps, of
edges and of the mean activation, which needs no pass.  Every mask runs once and serves all definitions.  Choose on
`val`; `--split test` reports the choice.  The table is written to scorecam_defaults.csv, the rows of the images beside
it, after each image: an interrupted call continues.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data.files import write_table
from evaluation.checkpoints import TrainedRun
from evaluation.map_measures import FoundMaps, add_options, measure_runs, print_table
from evaluation.scorecam import WEIGHTINGS, MaskedImages, run_batches, scale_to_unit, upsample
from runs import run_command

LAYERS = ("7", "8")
# Weighting and baseline of the paper.  Within the softmax the baseline changes nothing, see `score_cam`.
DEFINITIONS = {"softmax": "with or without", "probability": "without", "increase": "with"}


def all_weightings(run: TrainedRun, images: torch.Tensor, targets: Sequence[int]) -> dict[str, FoundMaps]:
    """Score-CAM of images (N, 3, H, W) by every weighting at every one of LAYERS, and the mean activation there.

    Names are "<weighting>, stage <layer>".  The seconds are those of the passes, which the weightings share.
    """
    found = {}
    for layer in LAYERS:
        started = time.perf_counter()
        tensors = run_batches(run.model, images, run.layer(layer), targets, "softmax", 32, _explain)
        seconds = time.perf_counter() - started
        for name, maps, fell_back in zip((*WEIGHTINGS, "mean activation"), tensors[::2], tensors[1::2], strict=True):
            found[f"{name}, stage {layer}"] = FoundMaps(maps, fell_back, seconds)
    return found


def _explain(masked: MaskedImages, _) -> tuple[torch.Tensor, ...]:
    """Maps and fell_back of each weighting, then of the mean activation, from one set of passes."""
    logits, probabilities = masked.logits_and_probabilities()
    found = []
    for weighting in WEIGHTINGS:
        weighted = replace(masked, weighting=weighting)
        found += weighted.maps(weighted.weights(logits if weighting == "softmax" else probabilities))
    mean = scale_to_unit(upsample(masked.activations.mean(dim=1), masked.images.shape[2:]))
    return (*found, mean, torch.zeros(len(mean), dtype=torch.bool))


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.scorecam_defaults", description=__doc__)
    add_options(parser, "15scene", Path("scorecam_defaults.csv"))
    options = parser.parse_args(arguments)
    return run_command(lambda: _measure(options))


def _measure(options):
    table = measure_runs(options, all_weightings)
    kind = table["map"].str.split(", stage ", expand=True).reindex(columns=[0, 1])
    table.insert(2, "baseline", kind[0].map(DEFINITIONS).fillna(""))
    write_table(options.output, table)
    print_table(table)
    print(options.output)


if __name__ == "__main__":
    sys.exit(main())
