"""Several kinds of heat maps of the same images, measured and compared: what commands that choose among them share.

A kind of map is a function from a trained run, normalized images and target classes to maps by name.  Rows are written
after each image, so an interrupted call continues.  The commands name the file of a network by digests of its weights
and images, so what has changed is measured again.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from data.files import check_output, expanded, write_table
from evaluation import faithfulness
from evaluation.checkpoints import TrainedRun
from evaluation.embed import check_target
from evaluation.faithfulness import COMPARISON_COLUMNS, LOWER_IS_BETTER, compare_maps
from evaluation.publish import load_run
from evaluation.scorecam import is_empty
from evaluation.split_images import evenly_spread, images_for
from evaluation.statistics import mean_and_interval

COMPARED = (
    "distilled_long",
    "rotation_classifier_tuned_10",
    "perturbation_classifier_tuned_3",
    "byol_classifier",
)
CONTROL = "imagenet_classifier_probe"  # ImageNet features without a pretext, read as those of byol_classifier are
CONTROL_MAPS = ("random", "edges")  # maps that know nothing of a network, see `control_maps`
STEPS = 8  # of deletion and insertion: an eighth of the pixels each


@dataclass(frozen=True)
class FoundMaps:
    """Maps (N, H, W) in 0..1 of one kind.

    `fell_back` (N,) says which maps would have been empty and were replaced, `seconds` is the time for all images.
    """

    maps: torch.Tensor
    fell_back: torch.Tensor
    seconds: float


MapsOf = Callable[[TrainedRun, torch.Tensor, Sequence[int]], dict[str, FoundMaps]]


def timed(maps_of: Callable) -> FoundMaps:
    """The maps that a call without arguments gives, a `ScoreCam` or a tensor, and the seconds it took."""
    started = time.perf_counter()
    found = maps_of()
    seconds = time.perf_counter() - started
    if isinstance(found, torch.Tensor):
        return FoundMaps(found, torch.zeros(len(found), dtype=torch.bool), seconds)
    return FoundMaps(found.maps, found.fell_back, seconds)


def control_maps(images: torch.Tensor, seed: int) -> dict[str, FoundMaps]:
    """Maps that know nothing of a network: random ones and edges."""
    return {
        "random": timed(lambda: faithfulness.random_maps(images, seed=seed)),
        "edges": timed(lambda: faithfulness.edge_maps(images)),
    }


def measure_run(run: TrainedRun, dataset: Dataset, numbers: Sequence[int], maps_of: MapsOf, path: Path) -> pd.DataFrame:
    """The rows of these images, measured if they are not in the file: one per baseline, kind of map and image.

    Columns: those of `faithfulness.measure_faithfulness`, and empty, fell_back, seconds and target (the class that the
    network predicts).  The file is written after each image.  Rows of other images in the file are not returned.
    """
    rows = pd.read_csv(path) if path.exists() else pd.DataFrame({"image": []})
    measured = set(rows["image"])
    missing = [number for number in numbers if number not in measured]
    for number in tqdm(missing, desc=run.name, unit="image"):
        of_image = _measure_image(run, dataset, number, maps_of)
        # An empty table before the first rows would turn their whole numbers into floats.
        rows = pd.concat([rows, of_image], ignore_index=True) if len(rows) else of_image
        write_table(path, rows)
    return rows[rows["image"].isin(numbers)]


def _measure_image(run: TrainedRun, dataset: Dataset, number: int, maps_of: MapsOf) -> pd.DataFrame:
    images = dataset[number][0][None]
    with torch.inference_mode():
        target = int(run.model(images).argmax())
    found = maps_of(run, images, [target]) | control_maps(images, seed=number)
    baselines = faithfulness.baselines_of(images, run.mean, run.std)
    pixels = -(-images.shape[-1] * images.shape[-2] // STEPS)
    maps = {name: each.maps for name, each in found.items()}
    rows = faithfulness.measure_faithfulness(run.model, images, maps, [target], baselines, pixels).round(5)
    facts = {
        "empty": {name: bool(is_empty(each.maps)) for name, each in found.items()},
        "fell_back": {name: bool(each.fell_back[0]) for name, each in found.items()},
        "seconds": {name: round(each.seconds, 4) for name, each in found.items()},
    }
    return rows.assign(image=number, target=target, **{fact: rows["map"].map(by) for fact, by in facts.items()})


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per network and kind of map, over all baselines; images are the unit of intervals.

    Columns: model, map, images, left_out (images whose map is not finite), empty and fell_back (shares of the images),
    seconds (median per image), for each measure its mean and its 95 % interval, and its verdict against each of
    CONTROL_MAPS, as "insertion_against_edges", empty for the controls themselves.  No rows give an empty table.
    """
    if not len(rows):
        return pd.DataFrame()
    facts = ["empty", "fell_back", "seconds"]
    verdicts = compare_by_model(rows).set_index(["model", "map", "measure", "compared_with"])["verdict"].to_dict()
    lines = []
    for (model, name), of_map in rows.groupby(["model", "map"], sort=False):
        by_image = of_map.groupby("image")[[*LOWER_IS_BETTER, *facts]].mean()
        line = {
            "model": model,
            "map": name,
            "images": len(by_image),
            "left_out": int(by_image["deletion"].isna().sum()),
            "empty": by_image["empty"].mean(),
            "fell_back": by_image["fell_back"].mean(),
            "seconds": by_image["seconds"].median(),
        }
        for measure in LOWER_IS_BETTER:
            values = by_image[measure].dropna().tolist()
            mean, low, high = mean_and_interval(values) if values else [np.nan] * 3
            line |= {measure: mean, f"{measure}_from": low, f"{measure}_to": high}
        for control, measure in product(CONTROL_MAPS, LOWER_IS_BETTER):
            line[f"{measure}_against_{control}"] = verdicts.get((model, name, measure, control), "")
        lines.append(line)
    return pd.DataFrame(lines)


def compare_by_model(rows: pd.DataFrame, others: Sequence[str] = CONTROL_MAPS) -> pd.DataFrame:
    """Each kind of map against each of the others: `compare_maps` of each network, with a column model first.

    The comparisons of a network are one family.  CONTROL_MAPS themselves are compared with nothing.
    """
    if not len(rows):
        return pd.DataFrame(columns=["model", *COMPARISON_COLUMNS])
    tables = []
    for model, of_model in rows.groupby("model", sort=False):
        maps = of_model["map"].unique()
        names = [name for name in maps if name not in (*CONTROL_MAPS, *others)]
        compared = compare_maps(of_model, names, [name for name in others if name in maps])
        compared.insert(0, "model", model)
        tables.append(compared)
    return pd.concat(tables, ignore_index=True)


def add_options(parser: argparse.ArgumentParser, data: str, output: Path):
    """The options of every command that measures maps: --models, --images, --split, --data and --output."""
    parser.add_argument("--models", nargs="+", default=(*COMPARED, CONTROL), metavar="RUN")
    parser.add_argument("--images", type=int, default=40, help="per network, evenly over the split")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--data", default=data)
    parser.add_argument("--output", type=expanded, default=output)


def measure_runs(options: argparse.Namespace, maps_of: MapsOf) -> pd.DataFrame:
    """Measure networks one after another, and write the output (CSV) again after each; return what it holds.

    `options` are those of `add_options`.  Networks that are not here are named and left out.  The output has the lines
    of `summarize`; the rows of the images lie beside it, in a folder of its name.
    """
    if options.images < 1:
        raise ValueError(f"--images is {options.images}; it must be at least 1")
    data, split, output = options.data, options.split, options.output
    check_target(output, "--output", (".csv",))
    check_output(output.with_suffix(""), "--output", folder=True)  # of the rows of the images
    parts, absent = [], []
    for name in options.models:
        try:
            run = load_run(name)
        except FileNotFoundError:
            absent.append(name)
            continue
        run = run.folded().without_flip_tta()
        dataset = images_for(run, data, split)
        # Of other images, another layer, other kinds of maps or other steps the rows are others.
        asked = [getattr(options, name, "") for name in ("layer", "clusters")]
        made_from = f"{dataset.scenes.fingerprint} {asked} {STEPS}"
        digest = hashlib.sha256(made_from.encode()).hexdigest()[:8]
        path = output.with_suffix("") / f"{run.name}_{run.weights[:12]}_{split}_{digest}.csv"
        rows = measure_run(run, dataset, evenly_spread(len(dataset), options.images), maps_of, path)
        parts.append(rows.assign(model=run.name))
        table = summarize(pd.concat(parts, ignore_index=True)).round(4)
        write_table(output, table)
    if absent:
        print(f"Not here, so not measured: {', '.join(absent)}.")
    if not parts:
        raise FileNotFoundError(f"none of the networks is here: {', '.join(absent)}")
    return table


def print_table(table: pd.DataFrame):
    """Print the lines of `summarize` without the ends of the intervals."""
    print(table.drop(columns=[each for each in table if each.endswith(("_from", "_to"))]).to_string(index=False))
