"""Everything that evaluation.ipynb shows of the compared models: computed once from their checkpoints, then cached.

    python -m evaluation.explain [--profile full] [--data DATA] [--weights FILE]

The cache is the folder explanations/ beside the results, with one folder per model, by its name:

    weights.json            digests of the weights and test images that everything in the folder was computed from
    test.npz                probabilities of all test images, and their t-SNE
    representation.csv      k-NN purity and RankMe of each stage
    scorecam.npz            heat maps of the images that every model is shown
    faithfulness.csv        how faithful the heat maps of several methods are, measured on test images of all classes
    randomisation.csv       how heat maps change as weights are randomized (first model only)
    classes/, filters/      images by model inversion, as `model_inversion.save_inversion` writes them; of classes also
                            what the other models recognize, and the nearest training images
    activating.csv          the test images to which each of these filters responds most

Beside these folders is a table of all models together: cka.csv.  explained.py reads the cache.  What is there is not
computed again.  If a model's predictions or the test images have changed, its folder is emptied first.

What chose the recipe of inversions and the definition of Score-CAM is computed apart, into the same folder:

    python -m evaluation.inversion_quality --model distilled_long --evaluators byol_classifier imagenet_classifier_probe
        perturbation_classifier_tuned_3 --recipes all --output results/full/explanations/inversion_quality
    python -m evaluation.scorecam_defaults --images 15 --output results/full/explanations/scorecam_defaults.csv
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.data import DataLoader

from data.files import read_table, say_once, write_atomically, write_table, write_text
from evaluation import faithfulness, plots, representation
from evaluation.checkpoints import RELEASED, TrainedRun, load_trained
from evaluation.explained import AGREEMENT, Explained, agreement_with, read_explanations
from evaluation.heat_maps import GRADIENTS, WITHOUT_GRADIENTS, maps_at
from evaluation.inversion_quality import (
    RECIPE,
    classes_of,
    evaluate_images,
    find_nearest,
    fitted,
    holds_others,
    invert_all,
    written_settings,
)
from evaluation.map_measures import COMPARED, CONTROL, measure_run
from evaluation.metrics import rightly_predicted_by_all
from evaluation.model_inversion import class_logit, filter_mean, strongest_filters
from evaluation.probes import features_of
from evaluation.scorecam import score_cam
from evaluation.split_images import evenly_spread, loaders_of_run
from experiments import add_data_options, experiments_of
from run_files import files_of
from runs import collect, run_command
from supervised.settings import Experiment

SHOWN_IMAGES = {"full": 4, "quick": 2}  # to look at; maps are compared on `measured_images`
LAYERS = ("1", "2", "8")  # of the heat maps, stages of the network (the first report)
RANDOMIZED_LAYER = "5"  # of the maps during randomization: they take 112 masked images each
CKA_STAGES = (2, 4, 6, 8)
RANDOMIZED = ("classifier", "features.8", "features.7", "features.6", "features.5", "features.4")
RANDOMIZED_IMAGES = 4
PERPLEXITY = 30.0  # of the t-SNE, lower for fewer than 90 images
ACTIVATING = 3  # test images shown beside a filter
STAMP = "weights.json"  # names what the folder of a model was computed from
IMAGES_AT_ONCE = 2  # whose maps are computed before they are saved
MAP_SIZE = 112  # pixels, square, at most: cached maps are for looking


@dataclass(frozen=True)
class Effort:
    """How much is computed."""

    measured_images: int = 60  # test images for the faithfulness of maps, per model: half an hour on one core
    inversion_steps: int = RECIPE.steps  # at most
    randomized_seeds: int = 3


EFFORT = {
    "full": Effort(),
    "quick": Effort(measured_images=2, inversion_steps=20, randomized_seeds=2),
}


@dataclass(frozen=True)
class Subject:
    """A model to be explained, its test images, and where its files go."""

    run: TrainedRun
    loader: DataLoader  # all test images, in the order of the results
    data: str  # name or folder of the data set
    folder: Path
    features_file: Path  # features of the test images: too large for results/


def collect_explanations(experiments: Mapping[str, Experiment], profile: str, compute: bool = False) -> Explained:
    """Everything that evaluation.ipynb shows of the compared models, from the cache; `compute` fills the cache first.

    `experiments` are configured, by name: at least COMPARED and CONTROL.  Models without a result are left out.
    Nothing is computed for a model that has neither a checkpoint nor a released file here.
    Raises ValueError if no model has a result, or if too few test images are classified correctly by every model.
    """
    compared = {name: experiments[name] for name in (*COMPARED, CONTROL)}
    results = collect(compared.values(), profile)
    if not results:
        raise ValueError(f"there is no result of {', '.join(compared)}; train.py trains them")
    first = compared[next(iter(results))]
    folder = files_of(first, profile).results / "explanations"
    scenes = loaders_of_run(next(iter(results.values()))["data"], first).test.dataset.scenes
    shown = _choose_images(results, profile)
    if compute:
        subjects = [_subject(compared[name], profile, folder, result) for name, result in results.items()]
        subjects = [subject for subject in subjects if subject is not None]
        explain(subjects, shown, folder, EFFORT[profile])
        draw_last_maps(read_explanations(folder, results, scenes, shown), folder.parent / "scorecam.jpg")
    explained = read_explanations(folder, results, scenes, shown)
    return replace(explained, missing=[name for name in compared if name not in explained.probabilities])


def explain(subjects: Sequence[Subject], shown: Sequence[int], folder: Path, effort: Effort):
    """Compute whatever the folders of the models lack, and the tables of all models in `folder`.

    Of the control only the test images are described and the maps measured.  The weights of the first other model are
    randomized.  All loaders hold the test images in one order; heat maps are shown of those with the numbers `shown`.
    """
    features_of_stages = {}
    for subject in subjects:
        images = subject.loader.dataset.scenes.fingerprint
        open_folder(subject.folder, subject.run.weights, images)
        model, digest = subject.run.folded().model, f"{subject.run.weights} {images}"
        features, labels = features_of(model, subject.loader, digest, subject.features_file)
        describe_test_images(model, features, labels, subject.folder)
        features_of_stages |= {f"{subject.run.name}, stage {stage}": features[stage] for stage in CKA_STAGES}
    models = [subject for subject in subjects if subject.run.name != CONTROL]
    for subject in models:
        last_features = features_of_stages[f"{subject.run.name}, stage {CKA_STAGES[-1]}"]
        _explain_model(subject, last_features, shown, effort)
    if models:
        _evaluate_classes(models, subjects)
        similarity = representation.cka_table(features_of_stages)
        write_table(folder / "cka.csv", _with_those_absent(similarity, folder / "cka.csv"), index=True)
    for subject in models[:1]:
        _randomize_model(subject, effort)
    for subject in subjects:  # last: it takes hours
        _measure_maps(subject, effort)


def _with_those_absent(similarity: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A table of similarities with the lines and columns that its file has of compared models that are not here."""
    if not path.exists():
        return similarity
    before = pd.read_csv(path, index_col=0)
    compared = [name for name in before.index if name.split(",")[0] in (*COMPARED, CONTROL) or name in similarity.index]
    before = before.reindex(index=compared, columns=compared)
    order = [*compared, *(name for name in similarity.index if name not in compared)]
    return similarity.combine_first(before).reindex(index=order, columns=order)


def _explain_model(subject: Subject, features: np.ndarray, shown: Sequence[int], effort: Effort):
    """Inversions and heat maps of one model; `features` (N, channels) of all test images are those of stage 8."""
    run, dataset = subject.run.without_flip_tta(), subject.loader.dataset
    folded, settings = run.folded(), replace(fitted(RECIPE, run.image_size), steps=effort.inversion_steps)
    filters = strongest_filters(run.layer("features.8.0"))
    invert_again(folded, class_logit, classes_of(run), settings, subject.data, subject.folder / "classes")
    names = {f"filter_{number}": number for number in filters}
    of_filters = filter_mean(folded.layer("features.8.2"))
    invert_again(folded, of_filters, names, settings, subject.data, subject.folder / "filters")
    write_table(subject.folder / "activating.csv", activating_images(features, filters, dataset.scenes.names))
    targets, names = dataset.scenes.labels[shown], [dataset.scenes.names[number] for number in shown]
    explain_images(folded, _images(dataset, shown), targets, names, subject.folder)


def _evaluate_classes(models: Sequence[Subject], subjects: Sequence[Subject]):
    """What all models recognize in the class images of each, and the training images nearest to these."""
    evaluators = [subject.run.folded().without_flip_tta() for subject in subjects]
    evaluators.sort(key=lambda run: run.name != CONTROL)
    for subject in models:
        evaluate_images(subject.run, evaluators, subject.folder / "classes")
    # The first says what is near, in one space for all models: the control, if it is here.  Of its own images the next.
    for evaluator, own in zip(evaluators[:2], (False, True), strict=False):
        evaluated = [each for each in models if (each.run.name == evaluators[0].name) == own]
        if evaluated:
            find_nearest(evaluator, evaluated[0].data, [each.folder / "classes" for each in evaluated])


def _measure_maps(subject: Subject, effort: Effort):
    """Write faithfulness.csv: measures of several kinds of maps after the last stage, on test images of all classes."""
    if not GRADIENTS:
        say_once(f"the heat maps of {subject.run.name} are not measured: {WITHOUT_GRADIENTS}")
        return
    run, dataset = subject.run.folded().without_flip_tta(), subject.loader.dataset
    numbers = evenly_spread(len(dataset), effort.measured_images)
    measure_run(run, dataset, numbers, maps_at(run.last_stage), subject.folder / "faithfulness.csv")


def _randomize_model(subject: Subject, effort: Effort):
    """Whether the heat maps of a model depend on its weights, on random test images, for the predicted classes."""
    run, dataset = subject.run.without_flip_tta(), subject.loader.dataset
    with np.load(subject.folder / "test.npz") as saved:
        predictions = saved["probabilities"].argmax(axis=1)
    sample = np.random.default_rng(0).permutation(len(predictions))[:RANDOMIZED_IMAGES]
    targets = {dataset.scenes.names[number]: int(predictions[number]) for number in sample}
    randomize(run, _images(dataset, sample), targets, subject.folder, effort.randomized_seeds)


def open_folder(folder: Path, weights: str, images: str) -> Path:
    """The folder of a model's cache, emptied if it was computed from weights or images with another digest."""
    digests = {"weights": weights, "images": images}
    if folder.exists() and _digests_of(folder) != digests:
        shutil.rmtree(folder)
    write_text(folder / STAMP, json.dumps(digests) + "\n")
    return folder


def _digests_of(folder: Path) -> dict[str, str]:
    """What a model's cache was computed from; empty if there is none."""
    stamp = folder / STAMP
    return json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else {}


@torch.inference_mode()
def describe_test_images(model: nn.Module, features: Sequence[np.ndarray], labels: np.ndarray, folder: Path):
    """Write test.npz and representation.csv, from the features of each stage (N, channels) of all test images.

    test.npz: labels (N,), probabilities (N, classes) of the model's head, and places (N, 2), the t-SNE of the last
    stage.  representation.csv: one line per stage, with neighbour_purity (0..1) and rank_me.
    """
    if not (folder / "test.npz").exists():
        pooled = np.concatenate([features[stage] for stage in sorted(model.stages)], axis=1)
        probabilities = model.classifier(torch.from_numpy(pooled)).softmax(dim=1).numpy()
        places = representation.tsne(features[-1], min(PERPLEXITY, len(labels) / 3)).astype(np.float16)
        contents = {"labels": labels, "probabilities": probabilities, "places": places}
        write_atomically(folder / "test.npz", lambda path: np.savez_compressed(path, **contents))
    if not (folder / "representation.csv").exists():
        purity = [representation.neighbour_purity(each, labels) for each in features]
        lines = [
            (stage, each.shape[1], purity[stage], representation.rank_me(each)) for stage, each in enumerate(features)
        ]
        table = pd.DataFrame(lines, columns=["stage", "channels", "neighbour_purity", "rank_me"])
        write_table(folder / "representation.csv", table)


def explain_images(
    run: TrainedRun,
    images: torch.Tensor,
    targets: Sequence[int],
    names: Sequence[str],
    folder: Path,
):
    """Write scorecam.npz: Score-CAM of normalized images (N, 3, S, S) for the target classes (N,), at LAYERS.

    It holds names (N,), layers (L,), maps uint8 (L, N, s, s) with s at most MAP_SIZE, and constant_channels (L, N).
    The file is written after every IMAGES_AT_ONCE images, so an interrupted call continues.  Maps of other images are
    replaced.
    """
    path = folder / "scorecam.npz"
    size = min(MAP_SIZE, images.shape[-1])
    maps = np.zeros((len(LAYERS), 0, size, size), np.uint8)
    constant_channels = np.zeros((len(LAYERS), 0), np.int64)
    if path.exists():
        with np.load(path) as saved:
            if list(saved["names"]) == list(names[: len(saved["names"])]):
                maps, constant_channels = saved["maps"], saved["constant_channels"]
    for start in range(maps.shape[1], len(images), IMAGES_AT_ONCE):
        part = slice(start, start + IMAGES_AT_ONCE)
        found = [score_cam(run.model, images[part], run.layer(layer), targets[part]) for layer in LAYERS]
        of_part = torch.stack([each.maps for each in found])
        of_part = nn.functional.interpolate(of_part, size=(size, size), mode="bilinear", antialias=True)
        maps = np.concatenate([maps, (255 * of_part).round().byte().numpy()], axis=1)
        constant_of_part = torch.stack([each.constant_channels for each in found]).numpy()
        constant_channels = np.concatenate([constant_channels, constant_of_part], axis=1)
        contents = {"names": np.array(names[: maps.shape[1]]), "layers": np.array(LAYERS), "maps": maps}
        write_atomically(path, partial(np.savez_compressed, constant_channels=constant_channels, **contents))


def randomize(run: TrainedRun, images: torch.Tensor, targets: Mapping[str, int], folder: Path, seeds: int):
    """Write randomisation.csv: `faithfulness.cascading_randomization` at RANDOMIZED_LAYER, per seed, part and image.

    `targets` are the class of each image by its name.  The file is written after every seed, so an interrupted call
    continues.  A file of other images, or of older code, which knew no names, is replaced.
    """
    path, parts = folder / "randomisation.csv", [run.layer(name) for name in RANDOMIZED]
    table = read_table(path) if path.exists() else pd.DataFrame({"image": []})
    tables = [table] if set(table["image"]) == set(targets) else []
    for seed in range(tables[0]["seed"].nunique() if tables else 0, seeds):
        correlations = faithfulness.cascading_randomization(
            run.model, images, run.layer(RANDOMIZED_LAYER), list(targets.values()), parts, seed
        )
        lines = [
            (seed, part, name, correlation)
            for part, of_images in zip(RANDOMIZED, correlations, strict=True)
            for name, correlation in zip(targets, of_images, strict=True)
        ]
        tables.append(pd.DataFrame(lines, columns=["seed", "part", "image", "correlation"]))
        write_table(path, pd.concat(tables, ignore_index=True))


def invert_again(run: TrainedRun, objective, targets: Mapping[str, int], settings, data: str, folder: Path):
    """`inversion_quality.invert_all`; a folder of another recipe is removed first."""
    if holds_others(folder, written_settings(run, objective, settings, data)):
        shutil.rmtree(folder)
    invert_all(run, objective, targets, settings, data, folder, progress=False)


def activating_images(features: np.ndarray, filters: Sequence[int], names: Sequence[str]) -> pd.DataFrame:
    """The ACTIVATING images to which each filter responds most, from its means over images (N, filters), best first.

    `names` are those of the images.  Columns: filter, image, mean (of the filter's map; or of those of the image and
    its flip, if the model averages these).
    """
    lines = []
    for number in filters:
        for image in np.argsort(-features[:, number], kind="stable")[:ACTIVATING]:
            lines.append((number, names[image], features[image, number]))
    return pd.DataFrame(lines, columns=["filter", "image", "mean"])


def draw_last_maps(explained: Explained, path: Path):
    """Draw the heat maps of all models after the last stage into one picture, for the front page."""
    last = {name: maps[LAYERS[-1]] for name, maps in explained.maps.items()}
    if not last:
        return
    count = min(map(len, last.values()))
    shown = explained.shown[:count]
    titles = [explained.scenes.class_names[label] for label in explained.scenes.labels[shown]]
    last = {name: maps[:count] for name, maps in last.items()}
    sheet = plots.draw_heat_map_sheet(explained.scenes.images[shown], titles, last, images_across=True)
    write_atomically(path, partial(sheet.savefig, pil_kwargs={"quality": 85}))
    plt.close(sheet)


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.explain", description="Compute what evaluation.ipynb shows of the compared models"
    )
    add_data_options(parser)
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return run_command(lambda: _explain(options))


def _explain(options):
    experiments = experiments_of((*COMPARED, CONTROL), options)
    print(collect_explanations(experiments, options.profile, compute=True).note)


def _choose_images(results: Mapping[str, dict], profile: str) -> np.ndarray:
    """Numbers of test images that every compared model classifies correctly; in the quick profile, of any."""
    labels = np.array(next(iter(results.values()))["labels"]["test"])
    predictions = [result["predictions"]["test"] for name, result in results.items() if name != CONTROL]
    if profile == "quick" or not predictions:  # quick models have learned nothing
        predictions = [labels]
    return rightly_predicted_by_all(labels, predictions, min(SHOWN_IMAGES[profile], len(np.unique(labels))))


def _subject(experiment: Experiment, profile: str, folder: Path, result: Mapping) -> Subject | None:
    """The model of an experiment with its test images, or None if there is nothing to compute it from.

    The weights of a run and of its released file differ by rounding.  What was explained of one of them is kept as long
    as its predictions are those of the result: it takes hours to compute again.
    """
    files = files_of(experiment, profile)
    here = [path for path in (files.checkpoint, files.checkpoint.with_suffix(RELEASED)) if path.exists()]
    if not here:
        return None
    cache, test = folder / files.name, loaders_of_run(result["data"], experiment).test
    cached, kept = _digests_of(cache), False
    if cached.get("images") == test.dataset.scenes.fingerprint and (cache / "test.npz").exists():
        with np.load(cache / "test.npz") as saved:
            kept = agreement_with(result, saved["probabilities"]) >= AGREEMENT
    run = load_trained(here[0])
    if kept and run.weights != cached["weights"]:
        others = [each for each in map(load_trained, here[1:]) if each.weights == cached["weights"]]
        if not others:
            say_once(f"what was explained of {run.name} is kept: its weights here differ, the predictions do not")
            return None
        run = others[0]
    return Subject(run, test, experiment.data, cache, files.models / f"{files.name}.features.npz")


def _images(dataset, numbers: Sequence[int]) -> torch.Tensor:
    return torch.stack([dataset[int(number)][0] for number in numbers])


if __name__ == "__main__":
    sys.exit(main())
