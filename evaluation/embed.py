"""Images as vectors: the pooled features that a trained network computes of image files.

    python -m evaluation.embed PATH --output vectors.npz --model byol_classifier

The path is an image, or a folder, which is searched at any depth.  A vector is what the head of the network reads; a
pretext without classes, such as byol, can be named too.  The file holds

    .npz        vectors, float32 (N, D), and files (N,): paths below the folder, in the order of the vectors
    .csv        one line per image: file, v0, v1, ...
    .parquet    the same table, where pyarrow is installed: pandas cannot write Parquet by itself
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.files import check_output, expanded, say_once, write_atomically, write_table
from data.folders import images_in
from data.image_cache import NamedImage, decode_or_skip
from evaluation.checkpoints import RELEASED, TrainedRun
from evaluation.publish import FOLDER, load_run
from runs import run_command

DEFAULT_MODEL = FOLDER / f"byol_classifier{RELEASED}"  # released, of the best frozen features of the study
BATCH = 32  # images
SUFFIXES = (".npz", ".csv", ".parquet")


def features_in_batches(
    run: TrainedRun, paths: Sequence[Path | NamedImage], skip_bad_images: bool = False, progress: bool = True
) -> Iterator[tuple[list[Path | NamedImage], np.ndarray]]:
    """Images in batches, each with its pooled features, float32 (images, D).

    Memory holds one batch.  `run` computes faster if it is `folded`.  Raises ValueError that names an image which
    cannot be decoded, unless these are left out, which is said once, and if none is left.
    """
    rules = {"size": run.image_size, "resize": run.resize, "skip_bad_images": skip_bad_images}
    read, bad = partial(decode_or_skip, **rules), []
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(paths), unit="image", disable=not progress) as bar:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            pixels = dict(zip(batch, pool.map(read, batch), strict=True))
            bad += [path for path in batch if pixels[path] is None]
            kept = [path for path in batch if pixels[path] is not None]
            if kept:
                with torch.inference_mode():
                    features = run.model.pooled_features(run.normalized([pixels[path] for path in kept]))
                yield kept, features.float().numpy()
            bar.update(len(batch))
    if bad:
        say_once(f"{len(bad):,} file(s) left out that cannot be decoded, such as {bad[0]}")
    if len(bad) == len(paths):
        raise ValueError("none of the images can be decoded")


def embed(
    run: TrainedRun, paths: Sequence[Path | NamedImage], skip_bad_images: bool = False
) -> tuple[list[Path | NamedImage], np.ndarray]:
    """All images that can be decoded, as they are given, and their pooled features, float32 (N, D)."""
    batches = list(features_in_batches(run.folded(), paths, skip_bad_images))
    return [path for batch, _ in batches for path in batch], np.concatenate([features for _, features in batches])


def write_vectors(path: Path, files: Sequence[str], vectors: np.ndarray):
    """Write file names and vectors (N, D) in the format that the suffix of `path` names."""
    if path.suffix == ".npz":
        contents = {"files": np.array(files), "vectors": vectors}
        write_atomically(path, lambda temporary: np.savez_compressed(temporary, **contents))
        return
    table = pd.DataFrame(vectors, columns=[f"v{number}" for number in range(vectors.shape[1])])
    table.insert(0, "file", list(files))
    if path.suffix == ".parquet":
        write_atomically(path, partial(table.to_parquet, index=False))
    else:
        write_table(path, table)


def check_target(path: Path, option: str, suffixes: Sequence[str] = SUFFIXES):
    """Raise ValueError for a file that cannot be written, before anything is computed for it."""
    if path.suffix not in suffixes:
        raise ValueError(f"{option} is {path}; it must be a file that ends in {' or '.join(suffixes)}")
    check_output(path, option)
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{option} is {path}; Parquet needs pyarrow: pip install pyarrow, or write .npz or .csv")


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.embed", description="Write images as vectors")
    parser.add_argument("path", type=expanded, metavar="PATH", help="an image, or a folder of images")
    parser.add_argument("--output", required=True, type=expanded, metavar="FILE", help="ends in .npz, .csv or .parquet")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _embed(options))


def add_model_option(parser):
    """The option that names a network; `parser` may be a group."""
    words = f"a trained run, or its file (default: the released {DEFAULT_MODEL.stem})"
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="RUN", help=words)


def add_model_options(parser: argparse.ArgumentParser):
    """The options of every command that passes image files through a network."""
    add_model_option(parser)
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be decoded")


def _embed(options):
    check_target(options.output, "--output")
    wanted, folder = images_in([options.path]), options.path if options.path.is_dir() else options.path.parent
    run = load_run(options.model, needs_classes=False)
    paths, vectors = embed(run, wanted, options.skip_bad_images)
    write_vectors(options.output, [path.relative_to(folder).as_posix() for path in paths], vectors)
    print(f"{options.output}: {len(vectors):,} images, {vectors.shape[1]:,} numbers each, of {run.name}")


if __name__ == "__main__":
    sys.exit(main())
