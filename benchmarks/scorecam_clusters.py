"""How near Score-CAM with clusters comes to the exact map, on trained networks at their last stage.

    python -m benchmarks.scorecam_clusters supervised_augmented imagenet_classifier_best [--images 16]

The images are test images of 15-Scene, evenly spread over the classes; the class is the one the network finds.  Every
mask is scored once, and what a map with clusters would have measured is taken from that.  One row an image goes to
benchmarks/scorecam_clusters.csv after each image, and a run that was broken off goes on.  Seconds are those of the
exact map, and of what clusters cost besides their passes; share_of_time is the time of a map with clusters by that
count, as a share of the exact one's.
"""

import argparse
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import ways
from evaluation import scorecam
from data.files import write_atomically
from evaluation.checkpoints import load_trained
from helper_functions import keep_freed_memory
from supervised.dataloader import build_loaders
from supervised.settings import EXPERIMENTS

CLUSTERS = (32, 64, 128, 256)
TABLE = ways.FOLDER / "scorecam_clusters.csv"


def compare(run, image: torch.Tensor) -> list[dict]:
    """The rows of one image (1, 3, S, S): a map with each number of clusters beside the exact one."""
    layer = run.layer("8")
    with torch.inference_mode():
        activations, logits = scorecam._activations_and_logits(run.model, image, layer)
        wanted = torch.ones(activations.shape[:2], dtype=torch.bool)
        started = time.perf_counter()
        scores = scorecam._scores(run.model, image, activations, logits.argmax(dim=1), "softmax", 32, wanted)
        exact_seconds = time.perf_counter() - started
        exact = map_of(scores, activations)
        rows = []
        for clusters in CLUSTERS:
            started = time.perf_counter()
            found, held_out = scorecam._scores_by_clusters(
                lambda asked: scores * asked, activations, wanted, clusters, "softmax"
            )
            seconds = time.perf_counter() - started
            rows.append(
                {
                    "clusters": clusters,
                    "passes": 2 * clusters,
                    "correlation": np.corrcoef(map_of(found, activations), exact)[0, 1] if exact.std() > 0 else np.nan,
                    "held_out": held_out.item(),
                    "exact_seconds": exact_seconds,
                    "seconds_besides": seconds,
                    "share_of_time": 2 * clusters / wanted.sum().item() + seconds / exact_seconds,
                }
            )
    return rows


def map_of(scores: torch.Tensor, activations: torch.Tensor) -> np.ndarray:
    """The map, flat, that these scores (1, channels) make of the activations (1, channels, height, width)."""
    sums = (scores.softmax(dim=1)[:, :, None, None] * activations).sum(dim=1).relu()
    return scorecam.scale_to_unit(scorecam._upsample(sums, (224, 224))).flatten().numpy()


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a run and number of clusters: the correlations over images, and what they cost."""
    rows = rows.assign(correlation=rows["correlation"].fillna(0))  # a map of zeros where the exact one is not
    groups = rows.groupby(["run", "clusters"])
    return groups.agg(
        passes=("passes", "first"),
        images=("correlation", "size"),
        median=("correlation", "median"),
        lowest=("correlation", "min"),
        share_of_time=("share_of_time", "median"),
        held_out=("held_out", "median"),
    ).reset_index()


def main():
    """Measure what is not in the table yet, and print it summarised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scorecam_clusters", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args()
    keep_freed_memory()
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    dataset = build_loaders(replace(EXPERIMENTS["supervised_tuned"], data=ways.data_set()), progress=False).test.dataset
    numbers = np.linspace(0, len(dataset) - 1, options.images).astype(int).tolist()
    wanted = [(name, number) for name in options.runs for number in numbers]
    done = {(row["run"], row["image"]) for row in rows}
    with tqdm(total=len(wanted), unit="image") as bar:
        for name in options.runs:
            run = load_trained(name).folded()
            for number in numbers:
                if (name, number) not in done:
                    rows += [{"run": name, "image": number} | row for row in compare(run, dataset[number][0][None])]
                    write_atomically(TABLE, partial(pd.DataFrame(rows).to_csv, index=False))
                bar.update()
    print(summarise(pd.DataFrame(rows)).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
