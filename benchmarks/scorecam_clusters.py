"""How close Score-CAM with clusters of masks comes to the exact map, for trained networks at their last stage.

    python -m benchmarks.scorecam_clusters [RUN ...] [--images 100] [--weighting softmax] [--split test]

The images are evenly spread over the classes; the class is the predicted one.  Every mask is scored once, which takes
half a minute for an image, and the scores are kept beside the run's checkpoint.  Each approximate map takes those that
it would have measured.  One row per image is written to benchmarks/scorecam_clusters.csv after each image, and an
interrupted run continues.  exact_seconds is the time of the exact map, seconds_besides the time of an approximate map
without its passes.  share_of_time is the time of the approximate map as a fraction of the exact one's, computed from
these.  `fell_back` and `empty` are those of the exact map: whether the paper's definition gives none, and whether none
is left, see `evaluation.scorecam.MaskedImages.maps`.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import implementations
from data.files import expanded, write_atomically, write_table
from evaluation.checkpoints import TrainedRun, load_trained
from evaluation.hooks import maps_and_logits
from evaluation.mask_clusters import AGREEMENT, MOST, UNCHANGED, scores_in_rounds
from evaluation.scorecam import WEIGHTINGS, MaskedImages
from evaluation.split_images import evenly_spread, images_for
from loop.devices import keep_freed_memory
from runs import run_command

CLUSTERS = (32, 64, 128)
RUNS = ("rotation_classifier_tuned_10", "perturbation_classifier_tuned_3", "byol_classifier")
LIMITS = f"{UNCHANGED} {AGREEMENT} {MOST}"  # when a map is settled
TABLE = implementations.FOLDER / "scorecam_clusters.csv"


def masked_images(run: TrainedRun, image: torch.Tensor, weighting: str = "softmax") -> MaskedImages:
    """The masks of the last stage for an image (1, 3, S, S) and the class that the network predicts."""
    activations, logits = maps_and_logits(run.model, image, run.layer("8"))
    return MaskedImages(run.model, image, activations, logits.argmax(dim=1), weighting, batch_size=32)


@torch.inference_mode()
def all_scores(masked: MaskedImages, path: Path) -> tuple[torch.Tensor, float]:
    """The score of every mask (1, channels), and the seconds of their passes; from a file, or measured and kept there.

    The file has logits and probabilities, which serve every weighting.
    """
    if not path.exists():
        started = time.perf_counter()
        logits, probabilities = masked.logits_and_probabilities()
        contents = {"softmax": logits.numpy(), "probability": probabilities.numpy()}
        seconds = time.perf_counter() - started
        write_atomically(path, partial(np.savez, seconds=seconds, **contents))
    with np.load(path) as saved:
        name = "softmax" if masked.weighting == "softmax" else "probability"
        return torch.from_numpy(saved[name]), float(saved["seconds"])


@torch.inference_mode()
def compare(run: TrainedRun, image: torch.Tensor, path: Path, weighting: str = "softmax") -> list[dict]:
    """The rows of one image (1, 3, S, S): the approximate map of each number of clusters against the exact one.

    `path` is that of `all_scores`.
    """
    masked = masked_images(run, image, weighting)
    scores, exact_seconds = all_scores(masked, path)
    exact_maps, fell_back = masked.maps(masked.weights(scores))
    exact = exact_maps.flatten().numpy()
    rows = []
    for clusters in CLUSTERS:
        started = time.perf_counter()
        found, _ = scores_in_rounds(masked, clusters, lambda channels: scores * channels)
        seconds = time.perf_counter() - started
        approximate = masked.maps(masked.weights(found.scores))[0].flatten().numpy()
        # No map at all, neither of them, is equal; only one of them is as far apart as two maps can be.
        comparable = exact.std() > 0 and approximate.std() > 0
        correlation = np.corrcoef(approximate, exact)[0, 1] if comparable else float(exact.std() == approximate.std())
        passes = found.measured.sum().item()
        rows.append(
            {
                "weighting": weighting,
                "clusters": clusters,
                "passes": passes,
                "correlation": correlation,
                "held_out": found.held_out,
                "exact": bool((found.measured | masked.constant).all()),
                "fell_back": fell_back.item(),
                "empty": not exact.any(),
                "exact_seconds": exact_seconds,
                "seconds_besides": seconds,
                "share_of_time": passes / (~masked.constant).sum().item() + seconds / exact_seconds,
            }
        )
    return rows


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per run, weighting and number of clusters: correlations over the images, and costs.

    Columns besides: images; passes and share_of_time, means; median, lowest (correlation); exact (share of the images).
    """
    rows = rows.assign(correlation=rows["correlation"].fillna(0))  # the approximate map is constant, the exact one not
    groups = rows.groupby(["run", "weighting", "clusters"])
    return groups.agg(
        images=("correlation", "size"),
        passes=("passes", "mean"),
        median=("correlation", "median"),
        lowest=("correlation", "min"),
        exact=("exact", "mean"),
        share_of_time=("share_of_time", "mean"),
    ).reset_index()


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scorecam_clusters", description=__doc__)
    parser.add_argument("runs", nargs="*", default=RUNS, metavar="RUN", help="trained runs, or paths of their files")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--split", choices=("val", "test"), default="test", help="choose on val, report on test")
    parser.add_argument("--weighting", choices=WEIGHTINGS, default="softmax")
    parser.add_argument("--output", type=expanded, default=TABLE)
    options = parser.parse_args(arguments)
    return run_command(lambda: _measure(options))


def _measure(options):
    """Measure what is not in the table yet, and print a summary.  Rows of a run's earlier weights or images go."""
    if options.images < 1:
        raise ValueError(f"--images is {options.images}; it must be at least 1")
    if options.split == "val" and options.output == TABLE:
        raise ValueError(f"{TABLE.name} is of test images; name another --output for those of val")
    keep_freed_memory()
    rows = pd.read_csv(options.output) if options.output.exists() else pd.DataFrame()
    rows = rows.to_dict("records") if "images" in rows else []  # others are of older code
    done = {(*(row.get(name) for name in ("weights", "images", "limits", "weighting")), row["image"]) for row in rows}
    for name in options.runs:
        run = load_trained(name).folded().without_flip_tta()
        dataset = images_for(run, implementations.data_set(), options.split)
        made_from = {"weights": run.weights, "images": dataset.scenes.fingerprint[:12], "limits": LIMITS}
        scores = run.file.with_name(f"{run.file.stem}.scores") / f"{run.weights[:12]}_{made_from['images']}"
        rows = [row for row in rows if row["run"] != run.name or {key: row.get(key) for key in made_from} == made_from]
        for number in tqdm(evenly_spread(len(dataset), options.images), desc=name, unit="image"):
            if (*made_from.values(), options.weighting, number) not in done:
                found = compare(run, dataset[number][0][None], scores / f"{number}.npz", options.weighting)
                rows += [{"run": run.name, **made_from, "image": number} | row for row in found]
                write_table(options.output, pd.DataFrame(rows))
    print(summarize(pd.DataFrame(rows)).round(4).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
