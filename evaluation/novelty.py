"""Whether an image looks like a scene of the training set, by its distance to the features of the training images.

    python -m evaluation.novelty RUN [--data DATA]        describe the training images of a run that was trained here
    python -m evaluation.novelty RUN... --published       the same for released models, beside their files
    python -m evaluation.novelty RUN... --photographs NAME=FOLDER...    and measure how often images are flagged

A network gives every image one of its classes, a portrait or a screenshot too.  The distance of an image is that to its
NEIGHBORS-th nearest training image (Sun et al. 2022), by the direction of its pooled features: standardized, and
projected on the directions in which those of the training images vary most: one for each IMAGES_PER_COMPONENT of them,
at most COMPONENTS.  An image is flagged above a threshold that FALSE_ALARMS of the val images exceed.  Which share of
the test images, which set nothing, exceed it is measured and stated.

With fewer images than LEAST_IMAGES it misleads: it flags many images of the same kind, or misses those of others.

    <run>.novelty.npz           beside a run's file, or in published/: directions and training images, below 1 MB
    results/full/novelty.csv    how many images of the data, and of the photographs, are flagged; written by
                                --photographs
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from data.files import expanded, read_table, root_folder, write_atomically, write_table
from data.folders import images_in
from data.image_cache import load_splits
from data.prepare import locate
from evaluation.checkpoints import RELEASED, TrainedRun, load_trained, refuse_other_training_images
from evaluation.embed import embed
from evaluation.probes import features_of_scenes
from evaluation.publish import FOLDER, NOVELTY, digest_of_released_features, halve, load_run
from evaluation.statistics import accuracy_interval
from run_files import folder_of_data
from runs import run_command
from self_supervised.probes import Splits

COMPONENTS = 128
IMAGES_PER_COMPONENT = 10  # with fewer, training images look unlike the others: their own noise is in the directions
LEAST_IMAGES = {"train": 100, "val": 40}
NEIGHBORS = 5
FALSE_ALARMS = 0.05
MOST_IMAGES = 1500  # training images that are kept; of more, evenly spaced ones


@dataclass(frozen=True)
class Novelty:
    """What is known of the training images of a run."""

    weights: str  # digest of the features' weights, see `digest_of_features`
    fingerprint: str  # of the training images
    mean: np.ndarray  # (D,), of the training features
    std: np.ndarray  # (D,)
    components: np.ndarray  # (D, K)
    images: np.ndarray  # (N, K): directions of the training images, of length 1
    threshold: float  # of the distance
    false_alarms: float  # share of other images of the data set above it

    def distances(self, features: np.ndarray) -> np.ndarray:
        """The distances (N,) of pooled features (N, D), 1 at the threshold."""
        return _distances(self._directions(features), self.images.astype(np.float32)) / self.threshold

    def _directions(self, features: np.ndarray) -> np.ndarray:
        standardized = (features - self.mean) / self.std
        return unit(standardized.astype(np.float32) @ self.components.astype(np.float32))

    def write(self, path: Path):
        """Write it to a file."""
        contents = {each.name: getattr(self, each.name) for each in fields(self)}
        write_atomically(path, lambda temporary: np.savez_compressed(temporary, **contents))


def fit_novelty(splits: Splits, weights: str, fingerprint: str = "") -> Novelty:
    """Describe the training images by the pooled features (N, D) of the splits; `test` measures the false alarms.

    Raises ValueError for fewer images than LEAST_IMAGES.
    """
    for split, least in LEAST_IMAGES.items():
        if len(splits[split][0]) < least:
            raise ValueError(
                f"there are {len(splits[split][0])} {split} images; flagging images unlike them needs at least {least}"
            )
    train = splits["train"][0]
    mean, std = mean_and_std(train)
    _, _, directions = np.linalg.svd(((train - mean) / std).astype(np.float64), full_matrices=False)
    components = directions[: min(COMPONENTS, len(train) // IMAGES_PER_COMPONENT)].T.astype(np.float16)
    found = Novelty(weights, fingerprint, mean, std, components, np.empty(0), 1.0, FALSE_ALARMS)
    kept = np.linspace(0, len(train) - 1, min(len(train), MOST_IMAGES)).round().astype(int)
    images = found._directions(train[kept]).astype(np.float16)
    of_val = _distances(found._directions(splits["val"][0]), images.astype(np.float32))
    found = replace(found, images=images, threshold=float(np.quantile(of_val, 1 - FALSE_ALARMS)))
    return replace(found, false_alarms=float((found.distances(splits["test"][0]) > 1).mean()))


def read_novelty(path: Path) -> Novelty:
    """Read what `Novelty.write` has written; ValueError names a file that is something else."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            contents = {each.name: saved[each.name] for each in fields(Novelty)}
        scalars = {name: contents[name].item() for name in ("weights", "fingerprint", "threshold", "false_alarms")}
    except Exception as error:  # zipfile, zlib and NumPy raise errors of many kinds
        raise ValueError(
            f"{path} does not describe training images, or older code wrote it ({type(error).__name__}); "
            "delete it, or make it again with evaluation.novelty"
        ) from error
    return Novelty(**contents | scalars)


def novelty_of(run: TrainedRun) -> Novelty | None:
    """What is known of the training images of a run, beside its file or in published/; None if nothing is.

    A file that was made with other weights or of other training images is not used.
    """
    weights, trained_on = digest_of_features(run), run.data.get("fingerprint", {}).get("train")
    for path in (*(_beside(file) for file in [run.file] if file), FOLDER / f"{run.name}{NOVELTY}"):
        if path.is_file():
            found = read_novelty(path)
            if found.weights == weights and trained_on in (None, found.fingerprint):
                return found
    return None


def digest_of_features(run: TrainedRun) -> str:
    """A digest of the features' weights as they are released, so that a run and its released file have the same."""
    return digest_of_released_features(halve(run.model))


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.stem}{NOVELTY}")


def mean_and_std(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What standardizes features (N, D); a feature that never varies has a standard deviation of 1."""
    std = features.std(axis=0)
    return features.mean(axis=0), np.where(std > 0, std, 1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) of length 1 in the same directions."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _distances(directions: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The distance of each direction (N, K) to the NEIGHBORS-th nearest of the images (M, K)."""
    squared = np.maximum(2 - 2 * directions @ images.T, 0)
    return np.sqrt(np.partition(squared, NEIGHBORS - 1, axis=1)[:, NEIGHBORS - 1])


# ------------------------------------------------------------------------------------------------------ command line


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.novelty", description="Describe training images, to flag images unlike them"
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="names of trained runs, or paths of their files")
    parser.add_argument("--data", default="15scene", help="what the runs were trained on (default: 15scene)")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument("--published", action="store_true", help="write the files to published/")
    parser.add_argument(
        "--photographs", nargs="+", metavar="NAME=FOLDER", help="count the images of these folders that are flagged"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: _describe(options))


def _describe(options):
    photographs = _folders(options.photographs or [])
    tables = []
    for name in options.runs:
        run = load_trained(FOLDER / f"{name}{RELEASED}") if options.published else load_run(name)
        splits = load_splits(locate(options.data), run.image_size, run.resize, skip_bad_images=options.skip_bad_images)
        refuse_other_training_images(run, splits["train"], options.data, "--data")
        features = features_of_scenes(run, splits)
        found = fit_novelty(features, digest_of_features(run), splits["train"].fingerprint)
        target = FOLDER / f"{run.name}{NOVELTY}" if options.published else _beside(run.file)
        found.write(target)
        print(
            f"{target}: {target.stat().st_size / 1e6:.2f} MB, {len(found.images):,} training images; "
            f"it flags {found.false_alarms:.1%} of the {len(features['test'][0]):,} test images"
        )
        if photographs:
            groups = {f"{options.data}, {split}": features[split][0] for split in ("val", "test")}
            for each, folder in photographs.items():
                groups[each] = embed(run, images_in([folder]), options.skip_bad_images)[1]
            tables.append(count_flagged(found, groups).assign(model=run.name))
    if tables:
        table = pd.concat(tables)[["model", "images", "number", "flagged", "share", "from", "to"]]
        path = folder_of_data(root_folder() / "results" / "full", options.data) / "novelty.csv"
        if path.exists():  # lines of other models stay
            before = read_table(path)
            table = pd.concat([before[~before["model"].isin(table["model"])], table], ignore_index=True)
        write_table(path, table, float_format="%.4f")
        print(f"{table.to_string(index=False)}\n{path}")


def count_flagged(novelty: Novelty, groups: dict[str, np.ndarray]) -> pd.DataFrame:
    """How many of the images are flagged, by group: images, number, flagged, share with its 95 % interval from, to.

    `groups` are pooled features (N, D) by the name of the images.
    """
    lines = []
    for name, features in groups.items():
        flagged = int((novelty.distances(features) > 1).sum())
        share = flagged / len(features)
        lines.append((name, len(features), flagged, share, *accuracy_interval(flagged, len(features))))
    return pd.DataFrame(lines, columns=["images", "number", "flagged", "share", "from", "to"])


def _folders(named: Sequence[str]) -> dict[str, Path]:
    folders = {}
    for text in named:
        name, equals, folder = text.partition("=")
        if not (name and equals and expanded(folder).is_dir()):
            raise ValueError(f"--photographs is {text!r}; it must be NAME=FOLDER, and the folder must be there")
        folders[name] = expanded(folder)
    return folders


if __name__ == "__main__":
    sys.exit(main())
