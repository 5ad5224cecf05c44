"""How close Score-CAM with clusters of masks comes to the exact map, for trained networks at their last stage.

    python -m benchmarks.scorecam_clusters supervised_augmented imagenet_classifier_best [--images 16]

The images are test images of 15-Scene, evenly spread over the classes; the class is the predicted one.  Every mask is
scored once, and each approximate map takes the scores it would have measured from these.  One row per image is written
to benchmarks/scorecam_clusters.csv after each image, and an interrupted run continues.  exact_seconds is the time of
the exact map, seconds_besides the time of an approximate map without its passes.  share_of_time is the time of the
approximate map as a fraction of the exact one's, computed from these.
"""

import argparse
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import implementations
from data.files import write_atomically
from evaluation.checkpoints import TrainedRun, load_trained
from evaluation.hooks import maps_and_logits
from evaluation.mask_clusters import scores_by_clusters
from evaluation.scorecam import MaskedImages
from helper_functions import keep_freed_memory
from runs import run_command
from supervised.dataloader import build_loaders
from supervised.settings import EXPERIMENTS

CLUSTERS = (32, 64, 128, 256)
TABLE = implementations.FOLDER / "scorecam_clusters.csv"


@torch.inference_mode()
def compare(run: TrainedRun, image: torch.Tensor) -> list[dict]:
    """The rows of one image (1, 3, S, S): the approximate map of each number of clusters against the exact one."""
    activations, logits = maps_and_logits(run.model, image, run.layer("8"))
    masked = MaskedImages(run.model, image, activations, logits.argmax(dim=1), "softmax", batch_size=32)
    started = time.perf_counter()
    scores = masked.scores(~masked.constant)
    exact_seconds = time.perf_counter() - started
    exact = masked.maps(scores).flatten().numpy()
    rows = []
    for clusters in CLUSTERS:
        started = time.perf_counter()
        found, held_out = scores_by_clusters(masked, clusters, lambda channels: scores * channels)
        seconds = time.perf_counter() - started
        approximate = masked.maps(found).flatten().numpy()
        rows.append(
            {
                "clusters": clusters,
                "passes": 2 * clusters,
                "correlation": np.corrcoef(approximate, exact)[0, 1] if exact.std() > 0 else np.nan,
                "held_out": held_out.item(),
                "exact_seconds": exact_seconds,
                "seconds_besides": seconds,
                "share_of_time": 2 * clusters / (~masked.constant).sum().item() + seconds / exact_seconds,
            }
        )
    return rows


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per run and number of clusters: correlations over the images, and costs."""
    rows = rows.assign(correlation=rows["correlation"].fillna(0))  # the approximate map is constant, the exact one not
    groups = rows.groupby(["run", "clusters"])
    return groups.agg(
        passes=("passes", "first"),
        images=("correlation", "size"),
        median=("correlation", "median"),
        lowest=("correlation", "min"),
        share_of_time=("share_of_time", "median"),
        held_out=("held_out", "median"),
    ).reset_index()


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scorecam_clusters", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="names of trained runs, or paths of their files")
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args(arguments)
    return run_command(lambda: _measure(options.runs, options.images))


def _measure(names: list[str], images: int):
    """Measure what is not in the table yet, and print a summary."""
    keep_freed_memory()
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    experiment = replace(EXPERIMENTS["supervised_tuned"], data=implementations.data_set())
    dataset = build_loaders(experiment, progress=False).test.dataset
    numbers = np.linspace(0, len(dataset) - 1, images).astype(int).tolist()
    done = {(row["run"], row["image"]) for row in rows}
    with tqdm(total=len(names) * len(numbers), unit="image") as bar:
        for name in names:
            run = load_trained(name).folded()
            for number in numbers:
                if (name, number) not in done:
                    rows += [{"run": name, "image": number} | row for row in compare(run, dataset[number][0][None])]
                    write_atomically(TABLE, partial(pd.DataFrame(rows).to_csv, index=False))
                bar.update()
    print(summarise(pd.DataFrame(rows)).round(4).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
