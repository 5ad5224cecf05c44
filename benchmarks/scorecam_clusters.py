"""How close Score-CAM with clusters of masks comes to the exact map, for trained networks at their last stage.

    python -m benchmarks.scorecam_clusters [RUN ...] [--images 100] [--weighting softmax]

The images are test images of 15-Scene, evenly spread over the classes; the class is the predicted one.  Every mask is
scored once, and each approximate map takes the scores it would have measured from these.  One row per image is written
to benchmarks/scorecam_clusters.csv after each image, and an interrupted run continues.  exact_seconds is the time of
the exact map, seconds_besides the time of an approximate map without its passes.  share_of_time is the time of the
approximate map as a fraction of the exact one's, computed from these.  `correlation` and share_of_time are those before
the check of `mask_clusters.agreement_of`; checked_correlation and checked_share_of_time those of what
`cluster_score_cam` gives, where images below the check are exact.  `fell_back` and `empty` are those of the exact map:
whether the paper's definition gives none, and whether none is left, see `evaluation.scorecam.MaskedImages.maps`.
"""

import argparse
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import implementations
from data.files import expanded, write_atomically
from evaluation.checkpoints import TrainedRun, load_trained
from evaluation.hooks import maps_and_logits
from evaluation.mask_clusters import AGREEMENT, agreement_of, scores_by_clusters
from evaluation.scorecam import WEIGHTINGS, MaskedImages
from evaluation.split_images import evenly_spread, images_for
from helper_functions import keep_freed_memory
from runs import run_command

CLUSTERS = (32, 64, 128, 256)
RUNS = ("distilled_long", "rotation_classifier_tuned_10", "byol_classifier")
TABLE = implementations.FOLDER / "scorecam_clusters.csv"


@torch.inference_mode()
def compare(run: TrainedRun, image: torch.Tensor, weighting: str = "softmax") -> list[dict]:
    """The rows of one image (1, 3, S, S): the approximate map of each number of clusters against the exact one."""
    activations, logits = maps_and_logits(run.model, image, run.layer("8"))
    masked = MaskedImages(run.model, image, activations, logits.argmax(dim=1), weighting, batch_size=32)
    started = time.perf_counter()
    scores = masked.scores(~masked.constant)
    exact_seconds = time.perf_counter() - started
    exact_maps, fell_back = masked.maps(masked.weights(scores))
    exact = exact_maps.flatten().numpy()
    rows = []
    for clusters in CLUSTERS:
        started = time.perf_counter()
        found = scores_by_clusters(masked, clusters, lambda channels: scores * channels)
        agreement = agreement_of(masked, found).item()
        seconds = time.perf_counter() - started
        approximate = masked.maps(masked.weights(found.scores))[0].flatten().numpy()
        # No map at all, neither of them, is equal; only one of them is as far apart as two maps can be.
        comparable = exact.std() > 0 and approximate.std() > 0
        correlation = np.corrcoef(approximate, exact)[0, 1] if comparable else float(exact.std() == approximate.std())
        is_exact = not agreement >= AGREEMENT
        share = found.measured.sum().item() / (~masked.constant).sum().item() + seconds / exact_seconds
        rows.append(
            {
                "weighting": weighting,
                "clusters": clusters,
                "passes": 2 * clusters,
                "correlation": correlation,
                "held_out": found.held_out.item(),
                "agreement": agreement,
                "exact": is_exact,
                "checked_correlation": 1.0 if is_exact else correlation,
                "fell_back": fell_back.item(),
                "empty": not exact.any(),
                "exact_seconds": exact_seconds,
                "seconds_besides": seconds,
                "share_of_time": share,
                "checked_share_of_time": 1 + seconds / exact_seconds if is_exact else share,
            }
        )
    return rows


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per run and number of clusters: correlations over the images, and costs.

    Rows of older code have no check; then the columns exact (share of the images), lowest_checked and
    checked_share_of_time are left out.
    """
    rows = rows.assign(correlation=rows["correlation"].fillna(0))  # the approximate map is constant, the exact one not
    checked = {
        "exact": ("exact", "mean"),
        "lowest_checked": ("checked_correlation", "min"),
        "checked_share_of_time": ("checked_share_of_time", "mean"),
    }
    groups = rows.groupby(["run", *(["weighting"] if "weighting" in rows else []), "clusters"])
    return groups.agg(
        passes=("passes", "first"),
        images=("correlation", "size"),
        median=("correlation", "median"),
        lowest=("correlation", "min"),
        share_of_time=("share_of_time", "median"),
        held_out=("held_out", "median"),
        **({} if "agreement" not in rows else checked),
    ).reset_index()


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scorecam_clusters", description=__doc__)
    parser.add_argument("runs", nargs="*", default=RUNS, metavar="RUN", help="trained runs, or paths of their files")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--weighting", choices=WEIGHTINGS, default="softmax")
    parser.add_argument("--output", type=expanded, default=TABLE)
    options = parser.parse_args(arguments)
    return run_command(lambda: _measure(options))


def _measure(options):
    """Measure what is not in the table yet, and print a summary.  Rows of a run's earlier weights or images go."""
    if options.images < 1:
        raise ValueError(f"--images is {options.images}; it must be at least 1")
    keep_freed_memory()
    rows = pd.read_csv(options.output) if options.output.exists() else pd.DataFrame()
    rows = rows[rows["agreement"].notna()].to_dict("records") if "agreement" in rows else []  # others: of older code
    done = {(row["weights"], row.get("images"), row["weighting"], row["image"]) for row in rows}
    for name in options.runs:
        run = load_trained(name).folded().without_flip_tta()
        dataset = images_for(run, implementations.data_set(), "test")
        made_from = {"weights": run.weights, "images": dataset.scenes.fingerprint[:12]}
        rows = [row for row in rows if row["run"] != run.name or {key: row.get(key) for key in made_from} == made_from]
        for number in tqdm(evenly_spread(len(dataset), options.images), desc=name, unit="image"):
            if (*made_from.values(), options.weighting, number) not in done:
                found = compare(run, dataset[number][0][None], options.weighting)
                rows += [{"run": run.name, **made_from, "image": number} | row for row in found]
                write_atomically(options.output, partial(pd.DataFrame(rows).to_csv, index=False))
    print(summarise(pd.DataFrame(rows)).round(4).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
