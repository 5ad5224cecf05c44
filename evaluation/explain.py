"""What the evaluation report shows of each model and cannot compute in passing: computed when asked, kept as files.

A folder a model, by its name; the functions below say what is in each file:

    weights.json          the digest of the weights that everything in the folder was made from
    test.npz              probabilities of all test images, and their places by t-SNE
    representation.csv    k-NN purity and RankMe of each stage
    scorecam.npz          heat maps of the images that all models are shown
    faithfulness.csv      what hiding and showing what the maps point at changes, in each of many images
    randomisation.csv     what is left of the maps as the model forgets
    inversion_settings.csv  how settings of the inversion do, see `compare_settings`
    classes/, filters/    images by model inversion, as `model_inversion.save_inversion` writes them

and beside these folders cka.csv and judged.csv, of all models together.
What is there is not computed again; where the weights are others, the folder is emptied first.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn
from torchvision.transforms.v2 import functional

from evaluation import embedding, faithfulness, feature_statistics
from data.files import write_atomically
from evaluation.metrics import mean_and_interval
from evaluation.model_inversion import (
    InversionSettings,
    class_logit,
    filter_mean,
    invert,
    save_inversion,
    score_by_another,
    strongest_filters,
)
from evaluation.probes import stage_features
from evaluation.scorecam import score_cam

LAYERS = ("1", "2", "8")  # of the heat maps, stages of the network (the first report)
CLASSES = ("bedroom", "coast", "forest", "highway", "industrial")  # to be inverted (the first report)
MEASURED_LAYER = "7"  # of faithfulness: a map takes 320 masked images, where stage 8 takes 1,280
RANDOMISED_LAYER = "5"  # of the maps of models that forget: 112, many times
STEPS = 8  # of deletion and insertion: an eighth of the pixels each
COMPARED_STAGES = (2, 4, 6, 8)
RANDOMISED = ("classifier", "features.8", "features.7", "features.6", "features.5", "features.4")
RANDOMISED_IMAGES = 4
MAP_SIZE = 112  # pixels, square, at most: kept maps are for looking

_TRIED = InversionSettings(steps=80, learning_rate=0.03, blur_sigma=1.0)
TRIED = {  # how the settings of the inversions were chosen, see `compare_settings`
    "as they are by default": InversionSettings(steps=128),
    "half the learning rate": InversionSettings(steps=128, learning_rate=0.01),
    "more blur": InversionSettings(steps=128, blur_sigma=1.0),
    "more blur, no decay, half the learning rate": InversionSettings(
        steps=128, blur_sigma=1.0, decay=0.0, learning_rate=0.01
    ),
    "far more blur, more jitter": replace(_TRIED, blur_sigma=2.0, jitter=32),
    "blur in every step, no decay": replace(_TRIED, blur_every=1, decay=0.0),
    "half the learning rate, far more jitter, less decay": InversionSettings(
        steps=80, learning_rate=0.01, jitter=64, decay=0.003
    ),
    "small pixels clipped, more blur": replace(_TRIED, norm_clip=0.3, contribution_clip=0.3),
    "small pixels clipped, more blur and jitter": InversionSettings(
        steps=128, norm_clip=0.3, contribution_clip=0.3, blur_sigma=1.0, jitter=32
    ),
}
CHOSEN = replace(TRIED["small pixels clipped, more blur and jitter"], steps=128)


@dataclass(frozen=True)
class Effort:
    """How much is computed.

    Of how many test images maps are measured, for how many steps at most images are inverted, and with how many of the
    settings in TRIED.
    """

    measured_images: int = 200
    inversion_steps: int = 128
    tried_settings: int = len(TRIED)


def explain(
    runs: dict,
    controls: dict,
    loaders: dict,
    image_numbers: Sequence[int],
    folder: Path,
    cache: Path,
    effort: Effort,
):
    """Compute for each run, by name, whatever its folder (`folder` / name) lacks; and the tables of all runs together.

    `runs` are `trained.TrainedRun`s, the first of them the one whose maps are measured; of `controls` only the test
    images are described.  `loaders` give the test images of each, in one order; `image_numbers` are those of the images
    that heat maps are drawn of.  `cache` is a folder for features, which are large.  Tables of all: cka.csv
    (`embedding.cka_table` of COMPARED_STAGES) and judged.csv (`judge_classes`).
    """
    stages, (measured, *_) = {}, runs
    for name, run in {**runs, **controls}.items():
        own, dataset = open_folder(folder / name, run.weights), loaders[name].dataset
        fast = run.folded()
        features, labels = features_of(fast.model, loaders[name], run.weights, cache / f"{name}.features.npz")
        stages |= {f"{name}, stage {stage}": features[stage] for stage in COMPARED_STAGES}
        describe_test_images(fast.model, features, labels, own)
        if name in controls:
            continue
        run, fast = run.without_mirror_image(), fast.without_mirror_image()
        settings = _fitted(CHOSEN, run, effort)
        invert_classes(fast, own, settings)
        invert_filters(fast, strongest_filters(run.layer("features.8.0")), own, settings)
        images, targets = _images(dataset, image_numbers), labels[image_numbers]
        explain_images(fast, images, targets, [dataset.scenes.names[number] for number in image_numbers], own)
        if name == measured:
            with np.load(own / "test.npz") as saved:
                predictions = saved["probabilities"].argmax(axis=1)
            drawn = np.random.default_rng(0).permutation(len(labels))[: effort.measured_images]
            randomise(run, images[:RANDOMISED_IMAGES], targets[:RANDOMISED_IMAGES], own)
            measure_maps(fast, partial(_images, dataset), drawn, predictions[drawn], own)
    if controls and not (folder / measured / "inversion_settings.csv").exists():
        words_and_settings = islice(TRIED.items(), effort.tried_settings)
        tried = {words: _fitted(each, runs[measured], effort) for words, each in words_and_settings}
        compared = compare_settings(runs[measured].without_mirror_image(), next(iter(controls.values())), tried)
        write_atomically(folder / measured / "inversion_settings.csv", compared.to_csv)
    write_atomically(folder / "cka.csv", lambda path: embedding.cka_table(stages).to_csv(path))
    _write_table(judge_classes(list(runs), {**runs, **controls}, folder), folder / "judged.csv")


def _fitted(settings: InversionSettings, run, effort: Effort) -> InversionSettings:
    """For images of the run's size, where a shift of 32 pixels may be more than there is."""
    steps, jitter = min(settings.steps, effort.inversion_steps), min(settings.jitter, run.image_size // 3)
    return replace(settings, image_size=run.image_size, steps=steps, jitter=jitter)


def _images(dataset, numbers: Sequence[int]) -> torch.Tensor:
    return torch.stack([dataset[int(number)][0] for number in numbers])


def open_folder(folder: Path, weights: str) -> Path:
    """The folder of a model's explanations, emptied if what is there was made from weights of another digest."""
    stamp = folder / "weights.json"
    if folder.exists() and (not stamp.exists() or json.loads(stamp.read_text())["weights"] != weights):
        shutil.rmtree(folder)
    write_atomically(stamp, lambda temporary: temporary.write_text(json.dumps({"weights": weights}) + "\n"))
    return folder


def features_of(model: nn.Module, loader, weights: str, cache: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """As `probes.stage_features`, read from the file `cache` (.npz) if it holds those of weights of this digest."""
    if cache.exists():
        with np.load(cache) as saved:
            if str(saved["weights"]) == weights:
                return [saved[f"stage_{number}"] for number in range(len(model.features))], saved["labels"]
    features, labels = stage_features(model, loader)
    stages = {f"stage_{number}": each for number, each in enumerate(features)}
    write_atomically(cache, lambda path: np.savez(path, weights=weights, labels=labels, **stages))
    return features, labels


@torch.inference_mode()
def describe_test_images(model: nn.Module, features: Sequence[np.ndarray], labels: np.ndarray, folder: Path):
    """Write test.npz and representation.csv from the features of each stage (N, channels) of all test images.

    test.npz: labels (N,), probabilities (N, classes) that the model's head gives, and places (N, 2), the t-SNE of the
    last stage.  representation.csv: one row a stage, with neighbour_purity (0..1) and rank_me.
    """
    if not (folder / "test.npz").exists():
        pooled = np.concatenate([features[stage] for stage in sorted(model.stages)], axis=1)
        probabilities = model.classifier(torch.from_numpy(pooled)).softmax(dim=1).numpy()
        places = embedding.tsne(features[-1]).astype(np.float16)
        write_atomically(
            folder / "test.npz",
            lambda path: np.savez_compressed(path, labels=labels, probabilities=probabilities, places=places),
        )
    if not (folder / "representation.csv").exists():
        rows = [
            {
                "stage": stage,
                "channels": each.shape[1],
                "neighbour_purity": embedding.neighbour_purity(each, labels),
                "rank_me": feature_statistics.rank_me(each),
            }
            for stage, each in enumerate(features)
        ]
        _write_table(pd.DataFrame(rows), folder / "representation.csv")


def explain_images(
    run, images: torch.Tensor, targets: Sequence[int], names: Sequence[str], folder: Path, images_at_once: int = 2
):
    """Write scorecam.npz: Score-CAM of images (N, 3, S, S), normalised, for the target classes (N,), at LAYERS.

    It holds names (N,), layers (L,), maps (L, N, s, s) in bytes of 0..255, s at most MAP_SIZE, and constant_channels
    (L, N).  Every `images_at_once` images it is written; a call that was interrupted goes on.  Maps of other images are
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
    for start in range(maps.shape[1], len(images), images_at_once):
        part = slice(start, start + images_at_once)
        found = [score_cam(run.model, images[part], run.layer(layer), targets[part]) for layer in LAYERS]
        of_part = torch.stack([each.maps for each in found])
        of_part = nn.functional.interpolate(of_part, size=(size, size), mode="bilinear", antialias=True)
        maps = np.concatenate([maps, (255 * of_part).round().byte().numpy()], axis=1)
        constant_of_part = torch.stack([each.constant_channels for each in found]).numpy()
        constant_channels = np.concatenate([constant_channels, constant_of_part], axis=1)
        contents = {"names": np.array(names[: maps.shape[1]]), "layers": np.array(LAYERS), "maps": maps}
        write_atomically(path, partial(np.savez_compressed, constant_channels=constant_channels, **contents))


def read_maps(folder: Path, size: int) -> dict[str, torch.Tensor]:
    """The maps of scorecam.npz by layer, each (N, size, size) in 0..1."""
    with np.load(folder / "scorecam.npz") as saved:
        maps = torch.from_numpy(saved["maps"]).float() / 255
        maps = nn.functional.interpolate(maps, size=(size, size), mode="bilinear")
        return dict(zip(saved["layers"].tolist(), maps, strict=True))


def compare_models(maps: dict[str, dict[str, torch.Tensor]]) -> pd.DataFrame:
    """Whether models look at the same places: one row a layer and pair, from the `read_maps` of each model.

    Columns: layer, one, other, correlation: Spearman's, -1 to 1, of the two maps of an image, in the mean over the
    images in which neither map is empty; NaN if there is none.
    """
    rows = []
    for one, other in combinations(maps, 2):
        for layer in maps[one]:
            pairs = zip(maps[one][layer], maps[other][layer], strict=True)
            pairs = [(first.flatten(), second.flatten()) for first, second in pairs if first.any() and second.any()]
            values = [spearmanr(*pair).statistic for pair in pairs]
            rows.append((layer, one, other, np.mean(values) if values else np.nan))
    return pd.DataFrame(rows, columns=["layer", "one", "other", "correlation"])


def measure_maps(
    run,
    images_of: Callable[[Sequence[int]], torch.Tensor],
    image_numbers: Sequence[int],
    targets: Sequence[int],
    folder: Path,
    images_at_once: int = 4,
):
    """Write faithfulness.csv: `faithfulness.measure_faithfulness` of Score-CAM, a random and an edge map.

    `images_of` gives the normalised images (n, 3, S, S) of so many of the image numbers; targets are one class each.
    Every `images_at_once` images the file is written; a call that was interrupted goes on after the last of them.
    """
    path = folder / "faithfulness.csv"
    parts = [pd.read_csv(path)] if path.exists() else []
    done = parts[0]["image"].nunique() if parts else 0
    for start in range(done, len(image_numbers), images_at_once):
        numbers = image_numbers[start : start + images_at_once]
        images, of_images = images_of(numbers), targets[start : start + images_at_once]
        layer = run.layer(MEASURED_LAYER)
        maps = {
            "Score-CAM": score_cam(run.model, images, layer, of_images).maps,
            "random": faithfulness.random_maps(images, seed=start),
            "edges": faithfulness.edge_maps(images),
        }
        baselines = {
            "black": faithfulness.black_baseline(images, run.mean, run.std),
            "mean": faithfulness.mean_baseline(images),
            "blurred": faithfulness.blurred_baseline(images),
        }
        pixels_per_step = -(-images.shape[-1] * images.shape[-2] // STEPS)
        part = faithfulness.measure_faithfulness(run.model, images, maps, of_images, baselines, pixels_per_step)
        parts.append(part.assign(image=np.asarray(numbers)[part["image"]]).round(5))
        _write_table(pd.concat(parts, ignore_index=True), path)


def faithfulness_table(measured: pd.DataFrame) -> pd.DataFrame:
    """The mean of each measure with its 95 % interval, "from" and "to", of `measure_faithfulness`: one row each.

    Columns: measure, baseline, map, mean, from, to, images.
    """
    rows = []
    for (baseline, name), group in measured.groupby(["baseline", "map"], sort=False):
        for measure in faithfulness.LOWER_IS_BETTER:
            mean, low, high = mean_and_interval(group[measure])
            rows.append((measure, baseline, name, mean, low, high, len(group)))
    return pd.DataFrame(rows, columns=["measure", "baseline", "map", "mean", "from", "to", "images"])


def randomise(run, images: torch.Tensor, targets: Sequence[int], folder: Path):
    """Write randomisation.csv: `faithfulness.cascading_randomisation` at RANDOMISED_LAYER, one row a part and image."""
    path = folder / "randomisation.csv"
    if path.exists():
        return
    parts = [run.layer(name) for name in RANDOMISED]
    correlations = faithfulness.cascading_randomisation(run.model, images, run.layer(RANDOMISED_LAYER), targets, parts)
    rows = [
        {"part": part, "image": number, "correlation": correlation}
        for part, of_part in zip(RANDOMISED, correlations, strict=True)
        for number, correlation in enumerate(of_part)
    ]
    _write_table(pd.DataFrame(rows), path)


def invert_classes(run, folder: Path, settings: InversionSettings):
    """Write the folder classes: an image that raises the logit of each of CLASSES that the run knows."""
    if (folder / "classes" / "settings.json").exists():
        return
    names = [name for name in CLASSES if name in run.class_names]
    targets = [run.class_names.index(name) for name in names]
    inversion = invert(run.model, class_logit, targets, settings, run.mean, run.std, progress=False)
    save_inversion(inversion, names, folder / "classes")
    _write_settings(folder / "classes", run, "class", settings)


def invert_filters(run, filters: Sequence[int], folder: Path, settings: InversionSettings):
    """Write the folder filters: an image that raises the mean of each filter after the last stage."""
    if (folder / "filters" / "settings.json").exists():
        return
    objective = filter_mean(run.layer("features.8.2"))
    inversion = invert(run.model, objective, filters, settings, run.mean, run.std, progress=False)
    save_inversion(inversion, [f"filter_{number}" for number in filters], folder / "filters")
    _write_settings(folder / "filters", run, "filter", settings)


def compare_settings(run, judge, tried: dict[str, InversionSettings]) -> pd.DataFrame:
    """How settings do that invert CLASSES: one row each, by name.

    Columns: final_loss, the mean over the classes of the median of the last ten losses (low is good, and easy to have
    from noise); converged, the number of images that did; probability, which `judge`, another run, gives the classes,
    in the mean (high is good: the image shows the class to one that had no part in making it); and the settings.
    """
    rows = {}
    targets = [run.class_names.index(name) for name in CLASSES if name in run.class_names]
    for name, settings in tried.items():
        inversion = invert(run.model, class_logit, targets, settings, run.mean, run.std, progress=False)
        probabilities = score_by_another(judge.model, inversion.images, targets, judge.mean, judge.std)
        rows[name] = {
            "final_loss": inversion.final_losses.mean().item(),
            "converged": int(inversion.converged.sum()),
            "probability": probabilities.mean().item(),
            **asdict(settings),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def judge_classes(names: Sequence[str], judges: dict, folder: Path) -> pd.DataFrame:
    """What runs make of the class images of each named one: the probability (0..1) of the class, by image and judge.

    Columns: model, judge, class, probability.  Of other models it tells whether an image shows the class or only
    deceives the model it was made with.
    """
    rows = []
    for name in names:
        classes = pd.read_csv(folder / name / "classes" / "inversion.csv")["name"]
        paths = [folder / name / "classes" / f"{each}.png" for each in classes]
        for judge, run in judges.items():
            images = functional.resize(read_pictures(paths).float() / 255, [run.image_size], antialias=True)
            targets = [run.class_names.index(each) for each in classes]
            probabilities = score_by_another(run.model, images, targets, run.mean, run.std)
            rows += [(name, judge, *each) for each in zip(classes, probabilities.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["model", "judge", "class", "probability"])


def read_pictures(paths: Sequence[Path]) -> torch.Tensor:
    """Pictures of one size from files, bytes (N, 3, H, W)."""
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _write_settings(folder: Path, run, objective: str, settings: InversionSettings):
    """Last, so that a folder with settings is whole."""
    written = {"model": run.name, "objective": objective, **asdict(settings)}
    write_atomically(folder / "settings.json", lambda temporary: temporary.write_text(json.dumps(written, indent=1) + "\n"))


def _write_table(table: pd.DataFrame, path: Path):
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))
