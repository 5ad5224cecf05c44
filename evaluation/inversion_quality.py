"""Images by model inversion that other networks recognize: the recipe, what each part contributes, and blind sheets.

    python -m evaluation.inversion_quality --model RUN --evaluators RUN ... [--recipes all | ablation | NAME ...]

An inverted class image is good when networks that had no part in making it recognize the class.  Search settings by the
word of one evaluator network and report that of others.  Written below --output, one folder per network and recipe:

    <model>/<recipe>/    images, curves and tables of `model_inversion.save_inversion`, evaluators.csv, nearest.csv
    <model>/<recipe>/sheet.blind.png, sheet.key.json    all classes in random order without titles, and the answers
    quality.csv          one line per network, recipe and evaluator network

What is there is not computed again.  A folder of other weights or settings is refused by its name.
"""

import argparse
import hashlib
import json
import math
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional
from tqdm.auto import tqdm

from data.files import check_output, expanded, read_table, write_table, write_text
from evaluation import plots
from evaluation.checkpoints import TrainedRun
from evaluation.explained import read_inversion
from evaluation.model_inversion import (
    Inversion,
    InversionSettings,
    Objective,
    check_evaluator,
    class_log_probability,
    class_logit,
    invert,
    probability_by,
    save_inversion,
)
from evaluation.publish import load_run
from evaluation.split_images import evenly_spread, images_for, refuse_other_data, training_amplitudes
from runs import run_command
from supervised.dataloader import normalize

SIZE = 224  # pixels of the images; the network's own size, if that is smaller
RECIPE = InversionSettings(
    image_size=SIZE,
    parameters="phase",
    learning_rate=0.1,
    steps=480,
    patience=30,
    levels=2,
    coarsest=0.57,
    gradient_clip=math.inf,
    decay=0.0,
    blur_sigma=0.0,
    jitter=24,
    scale=0.25,
    rotation=10.0,
)
ABLATION = {  # each recipe lacks one part
    "all_parts": RECIPE,
    "without_scales_and_rotations": replace(RECIPE, scale=0.0, rotation=0.0),
    "without_views": replace(RECIPE, scale=0.0, rotation=0.0, jitter=0),
    "one_resolution": replace(RECIPE, levels=1),
    "spectrum": replace(RECIPE, parameters="fourier", learning_rate=0.02),  # amplitudes are optimized too
    "pixels": replace(RECIPE, parameters="pixels", learning_rate=0.02),
    "fixed_steps": replace(RECIPE, patience=0),
    "two_views": replace(RECIPE, views=2, steps=RECIPE.steps // 2),  # as many passes
    "noise": replace(RECIPE, noise=0.1),
    "log_probability": RECIPE,  # of the class, in the place of its logit
}
OBJECTIVES = {"log_probability": class_log_probability}  # of recipes that do not maximize the logit
OTHERS = {
    # The transformations and the learning rate of lucent's defaults (2020), Fourier parameters as there.
    "lucent": InversionSettings(
        parameters="fourier",
        learning_rate=0.05,
        steps=RECIPE.steps,
        gradient_clip=math.inf,
        decay=0.0,
        blur_sigma=0.0,
        jitter=12,
        scale=0.1,
        rotation=10.0,
    ),
    # The settings of the earlier figures.
    "earlier": InversionSettings(norm_clip=0.3, contribution_clip=0.3, blur_sigma=1.0, jitter=32, steps=RECIPE.steps),
}
RECIPES = ABLATION | OTHERS
IMAGES_AT_ONCE = 16  # that are optimized together: it bounds memory where there are many classes


def fitted(settings: InversionSettings, size: int) -> InversionSettings:
    """The settings for images of at most `size` pixels: shifts keep their share, and there are fewer resolutions."""
    size = min(settings.image_size, size)
    jitter = round(settings.jitter * size / settings.image_size)
    small = round(settings.coarsest * size) < 32
    blur_sigma = min(settings.blur_sigma, size / 9)
    return replace(
        settings,
        image_size=size,
        jitter=jitter,
        blur_sigma=blur_sigma,
        levels=1 if small else settings.levels,
        coarsest=1.0 if small else settings.coarsest,
    )


def classes_of(run: TrainedRun) -> dict[str, int]:
    """The classes that a network knows, and their numbers."""
    return {name: number for number, name in enumerate(run.class_names)}


def recognition(evaluators: Sequence[TrainedRun], images: torch.Tensor, targets: Sequence[int]) -> pd.DataFrame:
    """What evaluator networks say of images (N, 3, S, S) in 0..1: one line each, columns evaluator, image, probability.

    Each evaluator sees the images at its own size.
    """
    parts = []
    for run in evaluators:
        probabilities = [
            probability_by(run, images[part], np.asarray(targets)[part])
            for part in np.array_split(np.arange(len(images)), -(-len(images) // 8))
        ]
        lines = {"evaluator": run.name, "image": range(len(images)), "probability": torch.cat(probabilities).tolist()}
        parts.append(pd.DataFrame(lines))
    return pd.concat(parts, ignore_index=True)


@torch.inference_mode()
def features_of_images(run: TrainedRun, images: Dataset | Sequence[torch.Tensor]) -> torch.Tensor:
    """The pooled features (N, D) of normalized images, of length 1."""
    features = [run.model.pooled_features(batch) for batch in DataLoader(images, 32)]
    return nn.functional.normalize(torch.cat(features), dim=1)


def nearest_training_images(
    run: TrainedRun, images: torch.Tensor, training: Dataset, others: Sequence[torch.Tensor]
) -> tuple[pd.DataFrame, float]:
    """The training image whose features are nearest to those of each image (N, 3, S, S) in 0..1.

    Columns: nearest (the file) and similarity (cosine, -1 to 1) of features by `run`; take a network that had no part
    in making the images.  Also returns the median similarity of `others`, normalized photographs that were not trained
    on, to theirs: an image that copies a training image would be far above it.
    """
    known = features_of_images(run, _Images(training))
    resized = functional.resize(images, [run.image_size] * 2, antialias=True).clamp(0, 1)
    seen = normalize((255 * resized).round().byte(), run.resize)
    similarity, numbers = (features_of_images(run, list(seen)) @ known.T).max(dim=1)
    table = pd.DataFrame({"nearest": [training.scenes.names[number] for number in numbers], "similarity": similarity})
    usual = (features_of_images(run, list(others)) @ known.T).max(dim=1).values
    return table.round(4), float(usual.median())


class _Images(Dataset):
    """The images of a data set without their labels."""

    def __init__(self, scenes: Dataset):
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.scenes[index][0]


def save_blind_sheet(images: torch.Tensor, names: Sequence[str], folder: Path, seed: int = 0):
    """Write sheet.blind.png, the images (N, 3, S, S) in an order drawn from the seed with numbers for titles.

    sheet.key.json has the seed, the name of each number, and the SHA-256 of the sheet.  Write the answers to
    sheet.answers.json before opening it, see `explained.blind_hits`.
    """
    order = np.random.default_rng(seed).permutation(len(names))
    titles = [str(number) for number in range(1, len(names) + 1)]
    axes = plots.plot_images((255 * images[order]).round().byte(), titles, columns=min(5, len(names)))
    path, sheet = folder / "sheet.blind.png", axes[0, 0].figure
    sheet.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(sheet)
    answers = {title: names[number] for title, number in zip(titles, order, strict=True)}
    key = {"seed": seed, "sheet": hashlib.sha256(path.read_bytes()).hexdigest(), "answers": answers}
    write_text(folder / "sheet.key.json", json.dumps(key, indent=1) + "\n")


def written_settings(run: TrainedRun, objective: Objective, settings: InversionSettings, data: str) -> dict:
    """What settings.json says of how images were made, with numbers as they are saved and read back."""
    written = {"model": run.name, "weights": run.weights, "objective": objective.__name__, **asdict(settings)}
    if settings.parameters == "phase":
        written["amplitudes_of"] = images_for(run, data, "train").scenes.fingerprint
    return json.loads(json.dumps(written))


def holds_others(folder: Path, wanted: Mapping) -> bool:
    """Whether a folder holds images of other weights or settings than those of `written_settings`."""
    path = folder / "settings.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else wanted
    return {name: found.get(name) for name in wanted} != wanted


def invert_all(
    run: TrainedRun,
    objective: Objective,
    targets: Mapping[str, int],
    settings: InversionSettings,
    data: str,
    folder: Path,
    progress: bool = True,
) -> dict:
    """Invert targets (name: number of a class or filter) into a folder, unless it is there; return settings.json.

    settings.json is written last, so a folder that has it is complete.  `data` has the training images whose amplitudes
    phases need.  Raises ValueError that names the folder if it holds images of other weights or settings.
    """
    wanted, path = written_settings(run, objective, settings, data), folder / "settings.json"
    if holds_others(folder, wanted):
        raise ValueError(f"{folder} holds images of other weights or settings; remove it, or name another --output")
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    amplitudes = training_amplitudes(run, data) if settings.parameters == "phase" else None
    started, numbers = time.perf_counter(), list(targets.values())
    parts = [numbers[start : start + IMAGES_AT_ONCE] for start in range(0, len(numbers), IMAGES_AT_ONCE)]
    inversion = joined(
        [
            invert(run.model, objective, part, settings, run.mean, run.std, progress=progress, amplitudes=amplitudes)
            for part in parts
        ]
    )
    seconds, passes = time.perf_counter() - started, int(inversion.steps.sum()) * settings.views
    save_inversion(inversion, list(targets), folder, {"steps": inversion.steps.tolist()})
    # Every sheet has another order: whoever has opened one key knows nothing of the next sheet.
    save_blind_sheet(inversion.images, list(targets), folder, zlib.crc32(f"{run.name} {folder.name}".encode()))
    written = {**wanted, "seconds": round(seconds, 1), "passes": passes}
    write_text(path, json.dumps(written, indent=1) + "\n")
    return written


def joined(inversions: Sequence[Inversion]) -> Inversion:
    """Several inversions by the same settings as one."""
    longest = max(each.losses.shape[1] for each in inversions)
    losses = [
        nn.functional.pad(each.losses, (0, longest - each.losses.shape[1]), value=math.nan) for each in inversions
    ]
    stopped = None if inversions[0].stopped is None else torch.cat([each.stopped for each in inversions])
    images, targets = (torch.cat([getattr(each, name) for each in inversions]) for name in ("images", "targets"))
    return Inversion(images, targets, torch.cat(losses), stopped)


def evaluate_images(run: TrainedRun, evaluators: Sequence[TrainedRun], folder: Path) -> pd.DataFrame:
    """The probabilities (0..1) that evaluator networks give the classes of the images in a folder.

    Writes evaluators.csv; what is there for these evaluators' weights is read.  Columns: evaluator, weights, class,
    probability.  An image that only its own network recognizes does not show the class; it fools the network.
    """
    table = read_inversion(folder)
    names, images = list(table.table["name"]), table.pictures.float() / 255
    targets = [run.class_names.index(name) for name in names]
    path = folder / "evaluators.csv"
    known = read_table(path, converters={"class": str}) if path.exists() else pd.DataFrame({"weights": []})
    missing = [each for each in evaluators if each.weights not in set(known["weights"])]
    if missing:
        weights = {each.name: each.weights for each in missing}
        found = recognition(missing, images, targets)
        found = found.assign(weights=found["evaluator"].map(weights), **{"class": [names[i] for i in found["image"]]})
        known = pd.concat([known, found.drop(columns="image")], ignore_index=True)
        write_table(path, known.round(5))
    return known[known["weights"].isin([each.weights for each in evaluators])]


def find_nearest(evaluator: TrainedRun, data: str, folders: Sequence[Path]):
    """Write nearest.csv: the training images nearest to the class images in each folder, if not of this evaluator yet.

    Columns: those of `nearest_training_images`, and name, by, made_from and median_of_val, the median similarity of
    val photographs.
    """
    training, val = (images_for(evaluator, data, split) for split in ("train", "val"))
    refuse_other_data(evaluator, training.scenes, data)
    made_from = f"{evaluator.weights[:12]} {training.scenes.fingerprint[:12]}"
    inverted = {folder: read_inversion(folder) for folder in folders if _nearest_made_from(folder) != made_from}
    if not inverted:
        return
    others = [val[number][0] for number in evenly_spread(len(val), 60)]
    images = torch.cat([each.pictures for each in inverted.values()]).float() / 255
    nearest, usual = nearest_training_images(evaluator, images, training, others)
    names = pd.concat([each.table["name"] for each in inverted.values()], keys=range(len(inverted)))
    nearest = nearest.set_index(names.index).assign(name=names, by=evaluator.name, made_from=made_from)
    for number, folder in enumerate(inverted):
        write_table(folder / "nearest.csv", nearest.loc[number].assign(median_of_val=round(usual, 4)))


def _nearest_made_from(folder: Path) -> str:
    """What the nearest.csv of a folder was made from; empty if it is not there, or of older code."""
    path = folder / "nearest.csv"
    return read_table(path).get("made_from", pd.Series([""]))[0] if path.exists() else ""


def quality_lines(run: TrainedRun, recipe: str, evaluated: pd.DataFrame, folder: Path, written: dict) -> list[dict]:
    """One line per evaluator network: mean probability of the class, share of images it recognizes, and costs."""
    inversion = read_table(folder / "inversion.csv")
    nearest = read_table(folder / "nearest.csv")
    return [
        {
            "model": run.name,
            "weights": run.weights,
            "recipe": recipe,
            "evaluator": evaluator,
            "classes": len(group),
            "probability": round(group["probability"].mean(), 4),
            "lowest": round(group["probability"].min(), 4),
            "above_half": round((group["probability"] > 0.5).mean(), 4),
            "converged": int(inversion["converged"].sum()),
            "passes_per_image": round(written["passes"] / len(inversion)),
            "seconds_per_image": round(written["seconds"] / len(inversion), 1),
            "nearest_similarity": round(nearest["similarity"].max(), 4),
            "median_of_val": nearest["median_of_val"][0],
        }
        for evaluator, group in evaluated.groupby("evaluator", sort=False)
    ]


def measure(run: TrainedRun, evaluators: Sequence[TrainedRun], recipes: Sequence[str], data: str, output: Path):
    """Invert all classes by each recipe, and evaluate the images; `output`/quality.csv has a line for each."""
    path = output / "quality.csv"
    for recipe in tqdm(recipes, desc=run.name, unit="recipe"):
        folder = output / run.name / recipe
        objective, settings = OBJECTIVES.get(recipe, class_logit), fitted(RECIPES[recipe], run.image_size)
        written = invert_all(run, objective, classes_of(run), settings, data, folder)
        evaluated = evaluate_images(run, evaluators, folder)
        find_nearest(evaluators[0], data, [folder])
        lines = quality_lines(run, recipe, evaluated, folder, written)
        table = pd.DataFrame(lines)
        if path.exists():
            table = pd.concat([pd.read_csv(path), table]).drop_duplicates(["model", "recipe", "evaluator"], keep="last")
        write_table(path, table)


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.inversion_quality",
        description="Images of all classes by model inversion, evaluated by networks that had no part in making them",
    )
    parser.add_argument("--model", required=True, metavar="RUN")
    parser.add_argument("--evaluators", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--recipes", nargs="+", default=["all_parts"], metavar="NAME", help="names, ablation or all")
    parser.add_argument("--data", default="15scene")
    parser.add_argument("--output", type=expanded, default=Path("inversion_quality"), help="folder")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return run_command(lambda: _measure(options))


def _measure(options):
    groups = {"ablation": list(ABLATION), "all": list(RECIPES)}
    recipes = list(dict.fromkeys(name for word in options.recipes for name in groups.get(word, [word])))
    unknown = [name for name in recipes if name not in RECIPES]
    if unknown:
        raise ValueError(f"there is no recipe {unknown[0]}; there are {', '.join(RECIPES)}, ablation and all")
    check_output(options.output, "--output", folder=True)
    run, *evaluators = (load_run(name).folded().without_flip_tta() for name in (options.model, *options.evaluators))
    for each in evaluators:
        check_evaluator(run, each)
    measure(run, evaluators, recipes, options.data, options.output)
    print(pd.read_csv(options.output / "quality.csv").to_string(index=False))
    print(options.output / "quality.csv")


if __name__ == "__main__":
    sys.exit(main())
