"""Audit a data set: images that are probably mislabeled, and images that are in it more than once.

    python -m evaluation.audit DATA [--output FOLDER] [--model RUN | --weights FILE]
    python -m evaluation.audit DATA --planted 0.05      flip 5 % of the labels first, and count how many are found

**Labels.** Each image gets probabilities from a linear probe that was not fitted to it (5-fold cross-validation, on the
frozen features of a network), as in confident learning (Northcutt et al. 2021).  Its label is listed where another
class is more probable by at least MARGIN.

**Exact copies** have the same bytes.  **Near copies** look alike: the fine structure of their thumbnails, one of them
flipped horizontally or not, correlates above a threshold that 99 % of re-encoded copies of this data set's own images
exceed (see `copy_threshold`).  Crops are not found.

The folder gets audit.html, a page of thumbnails that needs no other file, and audit.csv.  With `--planted` nothing but
results/full/audit_15scene.csv is written, or of other data results/full/<data>/audit_<data>.csv.
"""

import argparse
import io
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import laplace
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from data.files import check_output, digest_of_tensors, expanded, root_folder, write_table
from data.image_cache import Scenes, load_splits
from data.layouts import list_splits, sources_of
from data.prepare import locate
from evaluation.audit_page import write_audit
from evaluation.checkpoints import TrainedRun
from evaluation.embed import add_model_option
from evaluation.probes import features_of_scenes
from evaluation.publish import load_run
from evaluation.web_page import picture_of
from run_files import folder_of_data
from runs import run_command
from supervised.models import SceneClassifier, load_initial_weights

FOLDS = 5
DIRECTIONS = 256  # principal components of the features that the probe sees, at most
STRENGTHS = (0.0001, 0.001, 0.01, 0.1)  # C of the probe
MARGIN = 0.5  # a label is listed where another class is more probable by so much
THUMBNAIL = 32  # pixels, square
# Gray levels, the standard deviation of a thumbnail's Laplacian; photographs of scenes have 8 to 90.
LEAST_STRUCTURE = 4.0
COPIES = 200  # images that the threshold of near copies is chosen by
COPIES_FOUND = 0.99  # share of their re-encoded copies that are above it
BLOCK = 1024  # images compared at a time
SEED = 0
WEIGHTS_STAGES = (5, 6, 7, 8)  # whose features are read where only weights are given


@dataclass(frozen=True)
class Audited:
    """The images of a data set in the order of the splits, and pixels and digest of each."""

    files: tuple[str, ...]  # as messages name them
    paths: tuple[Path, ...]
    splits: np.ndarray  # (N,) names
    labels: np.ndarray  # (N,) numbers
    class_names: tuple[str, ...]
    digests: tuple[bytes, ...]  # of the files' bytes
    scenes: Mapping[str, Scenes]

    @cached_property
    def thumbnails(self) -> np.ndarray:
        """Gray thumbnails, float32 (N, THUMBNAIL, THUMBNAIL), 0..255."""
        return np.stack([shrink(image) for scenes in self.scenes.values() for image in scenes.images])

    def pixels(self, number: int) -> np.ndarray:
        """The bytes of one image (1 or 3, S, S)."""
        for scenes in self.scenes.values():
            if number < len(scenes):
                return np.asarray(scenes.images[number])
            number -= len(scenes)
        raise IndexError(number)


def read_data(root: Path, scenes: Mapping[str, Scenes]) -> Audited:
    """The images of a data set whose splits are loaded."""
    sources = sources_of(list_splits(root.resolve()))
    files, paths, digests = [], [], []
    for split, of_split in scenes.items():
        images = sources[split]
        digest_of = dict(zip(images.names, images.digests, strict=True))
        paths += [images.folder / name for name in of_split.names]
        files += [f"{split}/{name}" for name in of_split.names]
        digests += [digest_of[name] for name in of_split.names]
    return Audited(
        tuple(files),
        tuple(paths),
        np.repeat(list(scenes), [len(each) for each in scenes.values()]),
        np.concatenate([each.labels for each in scenes.values()]),
        scenes["train"].class_names,
        tuple(digests),
        scenes,
    )


# -------------------------------------------------------------------------------------------------------------- labels


def out_of_fold_probabilities(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) of each image by a linear probe that was fitted to the others, in FOLDS parts.

    The probe reads the first principal components of the standardized features.  Its strength is that of STRENGTHS with
    the lowest out-of-fold loss.  Raises ValueError for a class with fewer than two images.
    """
    folds = min(FOLDS, int(np.bincount(labels).min()))
    if folds < 2:
        raise ValueError("a class has fewer than 2 images; its labels cannot be audited")
    reduced = PCA(min(DIRECTIONS, features.shape[1], len(features) - 1), random_state=SEED)
    inputs = reduced.fit_transform(StandardScaler().fit_transform(features.astype(np.float64)))
    parts = StratifiedKFold(folds, shuffle=True, random_state=SEED)
    found = [
        cross_val_predict(
            LogisticRegression(C=strength, max_iter=500), inputs, labels, cv=parts, method="predict_proba"
        )
        for strength in STRENGTHS
    ]
    return min(found, key=lambda probabilities: log_loss(labels, probabilities, labels=np.arange(labels.max() + 1)))


def suspicious_labels(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Images whose label is probably wrong, the most certain first: image (its number), suggestion, margin.

    `suggestion` is the number of the other class, and `margin`, at least MARGIN, how much more probable it is.
    """
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -1
    suggestion = others.argmax(axis=1)
    margin = others[rows, suggestion] - probabilities[rows, labels]
    table = pd.DataFrame({"image": rows, "suggestion": suggestion, "margin": margin})
    return table[table["margin"] >= MARGIN].sort_values("margin", ascending=False, ignore_index=True)


def plant_errors(labels: np.ndarray, share: float) -> np.ndarray:
    """Labels of which this share, sampled by SEED, is another class at random."""
    generator = np.random.default_rng(SEED)
    planted, count = labels.copy(), labels.max() + 1
    chosen = generator.choice(len(labels), round(share * len(labels)), replace=False)
    planted[chosen] = (labels[chosen] + generator.integers(1, count, len(chosen))) % count
    return planted


def score_planted(features: np.ndarray, labels: np.ndarray, share: float) -> dict[str, float]:
    """How many planted errors are found: planted, flagged, found, precision, recall, and precision_of_the_first.

    The last is that of as many images as were planted.  Wrong and ambiguous labels that the data had before count as
    false, so the precision is a lower bound.
    """
    planted = plant_errors(labels, share)
    found = suspicious_labels(out_of_fold_probabilities(features, planted), planted)["image"].to_numpy()
    hits, number = planted[found] != labels[found], int((planted != labels).sum())
    return {
        "planted": number,
        "flagged": len(found),
        "found": int(hits.sum()),
        "precision": float(hits.mean()) if len(hits) else 0.0,
        "recall": float(hits.sum() / max(1, number)),
        "precision_of_the_first": float(hits[:number].sum() / max(1, number)),
    }


# -------------------------------------------------------------------------------------------------------------- copies


def exact_copies(digests: tuple[bytes, ...]) -> list[tuple[int, int]]:
    """Pairs of images with the same bytes, as numbers in order: the first of a group with each of the others."""
    same = defaultdict(list)
    for number, digest in enumerate(digests):
        same[digest].append(number)
    return sorted((numbers[0], other) for numbers in same.values() for other in numbers[1:])


def shrink(image: np.ndarray) -> np.ndarray:
    """A gray thumbnail, float32 (THUMBNAIL, THUMBNAIL), of bytes (1 or 3, S, S)."""
    picture = picture_of(image).convert("L")
    return np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)


def fine_structure(thumbnails: np.ndarray) -> np.ndarray:
    """What two photographs of the same view do not share: the Laplacian of thumbnails, of mean 0 and length 1 (N, D).

    A thumbnail of one color, but for noise that no copy keeps, has none and becomes zeros.
    """
    flat = np.stack([laplace(each) for each in thumbnails]).reshape(len(thumbnails), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    least = LEAST_STRUCTURE * flat.shape[1] ** 0.5
    return np.where(length > least, flat / np.maximum(length, least), 0).astype(np.float32)


def copy_threshold(data: Audited) -> float:
    """The correlation that COPIES_FOUND of re-encoded copies of the data set's own images exceed.

    A copy is resized to three quarters, brightened a little, and saved as a JPEG of quality 50.  COPIES images are
    sampled by SEED.
    """
    generator = np.random.default_rng(SEED)
    chosen = generator.choice(len(data.files), min(COPIES, len(data.files)), replace=False)
    chosen = chosen[fine_structure(data.thumbnails[chosen]).any(axis=1)]  # an image of one color is like no other
    if not len(chosen):
        return 1.0
    copies = np.stack([shrink(_copied(data.pixels(number))) for number in chosen])
    correlations = (fine_structure(copies) * fine_structure(data.thumbnails[chosen])).sum(axis=1)
    return float(np.quantile(correlations, 1 - COPIES_FOUND))


def near_copies(thumbnails: np.ndarray, threshold: float) -> list[tuple[int, int, float]]:
    """Pairs of images that look alike, flipped horizontally or not, with their correlation: the highest first."""
    structure, flipped = fine_structure(thumbnails), fine_structure(thumbnails[:, :, ::-1])
    found = []
    for start in range(0, len(structure), BLOCK):
        block = structure[start : start + BLOCK]
        alike = np.maximum(block @ structure.T, block @ flipped.T)
        for row, column in np.argwhere(alike >= threshold):
            if start + row < column:
                found.append((int(start + row), int(column), float(alike[row, column])))
    return sorted(found, key=lambda pair: -pair[2])


def _copied(image: np.ndarray) -> np.ndarray:
    """A re-encoded copy, uint8 (1 or 3, s, s), of bytes (1 or 3, S, S); s is three quarters of S."""
    picture = picture_of(image)
    size = tuple(max(1, 3 * side // 4) for side in picture.size)
    smaller = picture.resize(size, Image.Resampling.BICUBIC)
    brighter = smaller.point(lambda value: min(255, int(1.1 * value) + 5))
    saved = io.BytesIO()
    brighter.save(saved, "jpeg", quality=50)
    copied = np.asarray(Image.open(saved))
    return copied[None] if copied.ndim == 2 else copied.transpose(2, 0, 1)


# --------------------------------------------------------------------------------------------------------------- audit


def audit(data: Audited, features: np.ndarray) -> tuple[pd.DataFrame, float]:
    """All that was found, and the threshold of near copies.

    Columns: kind (label, exact copy, near copy), file, split, label, other_file, other_split, other_label (of a label:
    the suggestion), score (margin or correlation), image and other (their numbers; -1: none).
    """
    lines = []
    suspicious = suspicious_labels(out_of_fold_probabilities(features, data.labels), data.labels)
    for image, suggestion, margin in suspicious.itertuples(index=False):
        lines.append(("label", image, -1, data.class_names[suggestion], margin))
    threshold = copy_threshold(data)
    pairs = [("exact copy", *pair, 1.0) for pair in exact_copies(data.digests)]
    for one, other, correlation in near_copies(data.thumbnails, threshold):
        if data.digests[one] is None or data.digests[one] != data.digests[other]:
            pairs.append(("near copy", one, other, correlation))
    lines += [(kind, one, other, data.class_names[data.labels[other]], score) for kind, one, other, score in pairs]
    names = np.array(data.class_names, dtype=object)
    table = pd.DataFrame(lines, columns=["kind", "image", "other", "other_label", "score"])
    one, other = table["image"].to_numpy(dtype=int), table["other"].to_numpy(dtype=int)
    files = np.array([*data.files, ""], dtype=object)  # -1 is the last
    table["file"], table["split"], table["label"] = files[one], data.splits[one], names[data.labels[one]]
    table["other_file"], table["other_split"] = files[other], np.array([*data.splits, ""], dtype=object)[other]
    columns = ["kind", "file", "split", "label", "other_file", "other_split", "other_label", "score", "image", "other"]
    return table[columns], threshold


def network_of(weights: str) -> TrainedRun:
    """EfficientNet-B0 with the features of a weights file, whose pooled late stages are read."""
    initial = load_initial_weights(weights)
    model = SceneClassifier(2, "batchnorm_linear", freeze_features=True, stages=WEIGHTS_STAGES).eval()
    if initial.state_dict is not None:
        model.features.load_state_dict(initial.state_dict)
    digest = digest_of_tensors(model.features.state_dict())
    return TrainedRun(Path(weights).name, model, ("none", "other"), 224, "imagenet", digest)


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.audit", description="Find images that are probably mislabeled, and copies"
    )
    parser.add_argument("data", metavar="DATA", help="a prepared data set, a folder of classes, or a table (.csv)")
    parser.add_argument("--output", type=expanded, metavar="FOLDER", help="default: audit")
    source = parser.add_mutually_exclusive_group()
    add_model_option(source)
    source.add_argument("--weights", metavar="FILE", help="features of EfficientNet-B0, instead of a trained run")
    parser.add_argument("--planted", type=float, metavar="SHARE", help="flip this share of the labels and count them")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be decoded")
    options = parser.parse_args(arguments)
    return run_command(lambda: _audit(options))


def _audit(options):
    if options.planted is not None and not 0 < options.planted < 1:
        raise ValueError(f"--planted is {options.planted}; it must be a share above 0 and below 1")
    if options.planted is not None and options.output is not None:
        raise ValueError("--planted writes a table of the results and no --output; leave that out")
    output = options.output or Path("audit")
    check_output(output, "--output", folder=True)
    root = locate(options.data)
    run = network_of(options.weights) if options.weights else load_run(options.model, needs_classes=False)
    scenes = load_splits(root, run.image_size, run.resize, skip_bad_images=options.skip_bad_images)
    data = read_data(root, scenes)
    features = np.concatenate([features for features, _ in features_of_scenes(run, scenes).values()])
    if options.planted is not None:
        folder = folder_of_data(root_folder() / "results" / "full", options.data)
        _write_score(folder / f"audit_{root.name.removesuffix('.csv')}.csv", root, run, data, features, options.planted)
        return
    table, threshold = audit(data, features)
    write_table(output / "audit.csv", table.drop(columns=["image", "other"]), float_format="%.4f")
    page = output / "audit.html"
    write_audit(page, root.name, table, data.pixels, threshold)
    print(f"{root}: {len(data.files):,} images, features of {run.name}\n{count(table)}\n{page}")


def _write_score(path: Path, root: Path, run: TrainedRun, data: Audited, features: np.ndarray, share: float):
    crossing = sum(data.splits[one] != data.splits[other] for one, other in exact_copies(data.digests))
    line = {"data": root.name, "features": run.name, "images": len(data.files), "share": share}
    line |= score_planted(features, data.labels, share) | {"exact_pairs_across_splits": crossing}
    table = pd.DataFrame([line])
    write_table(path, table, float_format="%.4f")
    print(f"{table.T.to_string(header=False)}\n{path}")


def count(table: pd.DataFrame) -> str:
    """What was found, in one line per kind."""
    copies = table[table["kind"] != "label"]
    across = copies[copies["split"] != copies["other_split"]]
    lines = [f"{(table['kind'] == 'label').sum():,} labels are probably wrong"]
    for kind in ("exact copy", "near copy"):
        of_kind, crossing = (copies["kind"] == kind).sum(), (across["kind"] == kind).sum()
        lines.append(f"{of_kind:,} pairs, kind: {kind}; {crossing:,} of them across splits")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
