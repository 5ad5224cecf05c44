"""What explain.py has cached about the compared models, read back, and the tables that are made of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn
from torchvision.transforms.v2.functional import resize

from data.files import read_table
from data.image_cache import Scenes
from evaluation.faithfulness import LOWER_IS_BETTER
from evaluation.map_measures import CONTROL_MAPS, compare_by_model, summarize
from evaluation.metrics import confident_mistakes
from evaluation.model_inversion import picture_file
from evaluation.scorecam import is_empty
from evaluation.statistics import mean_and_interval

AGREEMENT = 0.99  # of cached and reported predictions; below it they come from different weights
INVERTED = ("classes", "filters")  # folders of images by model inversion


@dataclass(frozen=True)
class SavedInversion:
    """Images by model inversion, of classes or of filters."""

    table: pd.DataFrame  # name, final_loss, converged
    pictures: torch.Tensor  # uint8 (N, 3, S, S)
    losses: pd.DataFrame  # one column per image, by step
    settings: dict


@dataclass(frozen=True)
class Explained:
    """The cache.  Dicts are by model and lack models that are not explained; tables that are not there are empty."""

    scenes: Scenes  # test images, as the first model sees them
    shown: np.ndarray  # numbers of the test images that heat maps are shown of
    probabilities: dict[str, np.ndarray]  # of all test images (N, classes)
    places: dict[str, np.ndarray]  # t-SNE of the last stage (N, 2)
    agreement: pd.Series  # fraction of the test images whose cached prediction is that of the result
    representation: dict[str, pd.DataFrame]  # stage, channels, neighbour_purity, rank_me
    maps: dict[str, dict[str, torch.Tensor]]  # by layer: heat maps (images, S, S) in 0..1, of the first of `shown`
    map_table: pd.DataFrame  # see `describe_maps`
    definitions: pd.DataFrame  # of Score-CAM, on val, for each model; see `map_measures.summarize`
    methods: pd.DataFrame  # kinds of heat maps, on test, for each model; see `map_measures.summarize`
    against_score_cam: pd.DataFrame  # of the same images, see `compare_with_score_cam`
    randomization: pd.DataFrame  # of the first model: seed, part, image, correlation
    inversions: dict[tuple[str, str], SavedInversion]  # by model and kind, see INVERTED
    activating: dict[str, pd.DataFrame]  # see `explain.activating_images`
    inversion_quality: pd.DataFrame  # of the first model, see `inversion_quality.quality_lines`
    blind: pd.DataFrame  # see `blind_hits`
    recognition: pd.DataFrame  # of class images by the models: model, evaluator, class, probability (0..1)
    nearest: pd.DataFrame  # training images to class images: model, see `inversion_quality.find_nearest`
    cka: pd.DataFrame  # see `representation.cka_table`
    missing: list[str]  # models that are not explained
    stale: list[str]  # models explained with other weights, or other images, than those of the results

    @property
    def note(self) -> str:
        """What is missing and what is stale, in two sentences."""
        return (
            f"Not explained yet: {'; '.join(self.missing) or 'nothing'}.  "
            f"Explained with other weights than those of the results: {'; '.join(self.stale) or 'nothing'}."
        )


def read_explanations(folder: Path, results: Mapping[str, dict], scenes: Scenes, shown: np.ndarray) -> Explained:
    """Read the cache in `folder` of the models in `results`, whose test images are `scenes`.

    `shown` are the numbers of the images that heat maps must be of.
    """
    described = _read_all(folder, results, "test.npz")
    saved_maps = _read_all(folder, results, "scorecam.npz")
    activating = {name: _read_table(folder / name / "activating.csv") for name in results}
    activating = {name: table for name, table in activating.items() if len(table)}
    agreement = {name: agreement_with(results[name], saved["probabilities"]) for name, saved in described.items()}
    known = set(scenes.names)
    shown_names = [scenes.names[number] for number in shown]
    stale = {name for name, fraction in agreement.items() if fraction < AGREEMENT}
    stale |= {name for name, saved in saved_maps.items() if list(saved["names"]) != shown_names[: len(saved["names"])]}
    stale |= {name for name, table in activating.items() if not known.issuperset(table["image"])}
    maps = {name: heat_maps(saved, scenes.images.shape[-1]) for name, saved in saved_maps.items()}
    measured = measured_rows(folder, results)
    randomized = [folder / name for name in results if (folder / name / "randomisation.csv").exists()]
    first = randomized[0] if randomized else folder / next(iter(results))
    return Explained(
        scenes=scenes,
        shown=shown,
        probabilities={name: saved["probabilities"] for name, saved in described.items()},
        places={name: saved["places"].astype(float) for name, saved in described.items()},
        agreement=pd.Series(agreement, dtype=float),
        representation={name: _read_table(folder / name / "representation.csv") for name in described},
        maps=maps,
        map_table=describe_maps(maps, {name: saved["constant_channels"] for name, saved in saved_maps.items()}),
        definitions=_read_table(folder / "scorecam_defaults.csv"),
        methods=summarize(measured),
        against_score_cam=compare_with_score_cam(measured),
        randomization=_read_table(first / "randomisation.csv"),
        inversions={
            (name, kind): read_inversion(folder / name / kind)
            for name in results
            for kind in INVERTED
            if (folder / name / kind / "settings.json").exists()
        },
        activating=activating,
        inversion_quality=_quality_of(first, folder / "inversion_quality" / "quality.csv"),
        blind=blind_hits(folder, list(results)),
        recognition=_recognition(folder, results),
        nearest=_tables_of(folder, results, "classes/nearest.csv", converters={"name": str}),
        cka=_read_table(folder / "cka.csv", index_col=0),
        missing=[name for name in results if name not in described],
        stale=[name for name in results if name in stale],
    )


def agreement_with(result: Mapping, probabilities: np.ndarray) -> float:
    """The fraction of test images whose most probable class is that of a result; 0 for other numbers of images."""
    expected = result["predictions"]["test"]
    return float(np.mean(probabilities.argmax(axis=1) == expected)) if len(probabilities) == len(expected) else 0.0


def heat_maps(saved: Mapping[str, np.ndarray], size: int) -> dict[str, torch.Tensor]:
    """The heat maps of a scorecam.npz by layer, each (N, size, size) in 0..1."""
    maps = torch.from_numpy(saved["maps"]).float() / 255
    maps = nn.functional.interpolate(maps, size=(size, size), mode="bilinear")
    return dict(zip(saved["layers"].tolist(), maps, strict=True))


def describe_maps(
    maps: Mapping[str, Mapping[str, torch.Tensor]], constant_channels: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Count what is wrong with heat maps: one line per layer and model.

    `constant_channels` (layers, images) are those of each model.  Columns: stage, model, images, constant channels (of
    all images), empty maps, fraction above half (of the pixels: those above half of the maximum).
    """
    lines = []
    for name, by_layer in maps.items():
        for (layer, of_layer), constant in zip(by_layer.items(), constant_channels[name], strict=True):
            empty = int(is_empty(of_layer).sum())
            lines.append(
                (layer, name, len(of_layer), int(constant.sum()), empty, (of_layer > 0.5).float().mean().item())
            )
    columns = ["stage", "model", "images", "constant channels", "empty maps", "fraction above half"]
    return pd.DataFrame(lines, columns=columns)


def compare_models(maps: Mapping[str, Mapping[str, torch.Tensor]]) -> pd.DataFrame:
    """Whether models look at the same places: one line per layer and pair of models.

    `maps` are those of each model by layer; the first images, of which all models have maps, are compared.  Columns:
    stage, one, other, correlation: Spearman's, -1 to 1, of the two maps of an image, averaged over the images in which
    neither map is empty; NaN if there is none.
    """
    lines = []
    for one, other in combinations(maps, 2):
        for layer in maps[one]:
            pairs = zip(
                maps[one][layer], maps[other][layer], strict=False
            )  # the rest of an interrupted call is missing
            pairs = [(first.flatten(), second.flatten()) for first, second in pairs if first.any() and second.any()]
            values = [spearmanr(*pair).statistic for pair in pairs]
            lines.append((layer, one, other, np.mean(values) if values else np.nan))
    return pd.DataFrame(lines, columns=["stage", "one", "other", "correlation"])


def measured_rows(folder: Path, names: Sequence[str]) -> pd.DataFrame:
    """The measured heat maps of models, from their folders in the cache; see `map_measures.measure_run`, and model."""
    return _tables_of(folder, names, "faithfulness.csv")


def definition_table(table: pd.DataFrame) -> pd.DataFrame:
    """Lines of `map_measures.summarize` averaged over the models: one line per kind of map; an empty table stays empty.

    Columns: the means of the measures, and the largest shares of a model of maps that fell back and that are empty.
    """
    if not len(table):
        return table
    of_kind = table.groupby("map", sort=False)
    return of_kind[list(LOWER_IS_BETTER)].mean().join(of_kind[["fell_back", "empty"]].max())


def compare_with_score_cam(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether a cheaper kind of map is as faithful: `compare_by_model` with Score-CAM as text, by model and map.

    `rows` are those of `measured_rows`; none give an empty table.  One column per measure: the advantage over Score-CAM
    with its interval, and the verdict.
    """
    lines = {}
    for line in compare_by_model(rows, ["Score-CAM"]).to_dict("records"):
        text = f"{line['advantage']:+.3f} ({line['low']:+.3f} to {line['high']:+.3f}), {line['verdict']}"
        lines.setdefault((line["model"], line["map"]), {})[line["measure"]] = text
    return pd.DataFrame.from_dict(lines, orient="index")


def measured_maps(table: pd.DataFrame) -> pd.DataFrame:
    """Lines of `map_measures.summarize` as text, by model and map; an empty table stays empty.

    Columns: each measure with its 95 % interval, marked * where it is better than edges and random maps and ! where it
    is worse than one of them; fell back and empty (shares of the images) and seconds.
    """
    if not len(table):
        return table
    text = table[["model", "map"]].copy()
    for measure in LOWER_IS_BETTER:
        values = table[[measure, f"{measure}_from", f"{measure}_to"]].to_numpy()
        verdicts = table[[f"{measure}_against_{control}" for control in CONTROL_MAPS]]
        better, worse = (verdicts == "better").all(axis=1), (verdicts == "worse").any(axis=1)
        marks = np.select([better, worse], [" *", " !"], "")
        text[measure] = [
            f"{mean:.3f} ({low:.3f} to {high:.3f}){mark}" for (mean, low, high), mark in zip(values, marks, strict=True)
        ]
    text["fell back"], text["empty"], text["seconds"] = table["fell_back"], table["empty"], table["seconds"]
    return text.set_index(["model", "map"])


def randomization_table(correlations: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation, averaged over the images, by the part down to which weights are randomized.

    Columns: mean, from and to (its 95 % interval over the seeds), seeds.  Tables of older code have one seed, and no
    column of that name.
    """
    if not len(correlations):
        return correlations
    by_seed = correlations.assign(seed=correlations.get("seed", 0)).groupby(["part", "seed"], sort=False)
    means = by_seed["correlation"].mean().groupby(level="part", sort=False)
    lines = {part: (*mean_and_interval(of_part.tolist()), len(of_part)) for part, of_part in means}
    return pd.DataFrame.from_dict(lines, orient="index", columns=["mean", "from", "to", "seeds"]).rename_axis("part")


def mean_probability_by_others(recognition: pd.DataFrame) -> pd.Series:
    """The mean probability of the class over the networks that did not make the image, by model and class."""
    recognition = recognition.reindex(columns=["model", "evaluator", "class", "probability"])  # an empty table has none
    of_others = recognition[recognition["model"] != recognition["evaluator"]]
    return of_others.groupby(["model", "class"], sort=False)["probability"].mean()


def nearness_table(nearest: pd.DataFrame) -> pd.DataFrame:
    """How near the class images of each model come to training images, at most, beside the median of val photographs.

    `nearest` is that of `Explained`; an empty table stays empty.
    """
    if not len(nearest):
        return nearest
    nearness = {"class images, highest": ("similarity", "max"), "val photographs, median": ("median_of_val", "first")}
    return nearest.groupby("model", sort=False).agg(**nearness)


def recognition_by_model(recognition: pd.DataFrame) -> pd.DataFrame:
    """The probability of the class, averaged over the classes: one line per model, one column per evaluator network."""
    if not len(recognition):
        return recognition
    return recognition.pivot_table(index="model", columns="evaluator", values="probability", sort=False)


def representation_table(by_model: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Neighbor purity and RankMe: one line per stage, one column per measure and model."""
    if not by_model:
        return pd.DataFrame()
    table = pd.concat(by_model, names=["model"])
    return table.pivot_table(index="stage", columns="model", values=["neighbour_purity", "rank_me"], sort=False)


def mistake_lines(explained: Explained, count: int = 8) -> dict[str, tuple[np.ndarray, list[str]]]:
    """The most confident mistakes of each model on the test images, as `plots.draw_image_lines` takes them."""
    return {name: mistakes(explained.scenes, each, count) for name, each in explained.probabilities.items()}


def mistakes(scenes: Scenes, probabilities: np.ndarray, count: int) -> tuple[np.ndarray, list[str]]:
    """The most confident mistakes on the test images `scenes`: the images, and a title for each."""
    worst = confident_mistakes(scenes.labels, probabilities)[:count]
    predicted, confidences = probabilities[worst].argmax(axis=1), probabilities[worst].max(axis=1)
    titles = [
        f"{scenes.class_names[label]}, not\n{scenes.class_names[guess]} {confidence:.2f}"
        for label, guess, confidence in zip(scenes.labels[worst], predicted, confidences, strict=True)
    ]
    return scenes.images[worst], titles


def class_lines(explained: Explained, classes: Sequence[str]) -> dict[str, tuple[torch.Tensor, list[str]]]:
    """The inversions of these classes in each model, as `plots.draw_image_lines` takes them.

    Of a data set without these classes they are the first ones, as many.  A title has the mean probability of the class
    according to the other networks.
    """
    lines, probabilities = {}, mean_probability_by_others(explained.recognition)
    for (name, kind), inversion in explained.inversions.items():
        if kind == "classes":
            count = len(inversion.table)
            numbers = [number for number in range(count) if inversion.table["name"][number] in classes]
            numbers = numbers or [*range(min(count, len(classes)))]
            of_classes = [(each, probabilities.get((name, each), np.nan)) for each in inversion.table["name"][numbers]]
            titles = [f"{each}\n{probability:.2f}" for each, probability in of_classes]
            lines[name] = inversion.pictures[numbers], titles
    return lines


def filter_lines(explained: Explained) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Each filter of each model, as `plots.draw_image_lines` takes it: its inversion, then what activates it most."""
    lines, numbers = {}, {name: number for number, name in enumerate(explained.scenes.names)}
    for (name, kind), inversion in explained.inversions.items():
        if kind == "filters" and name in explained.activating and name not in explained.stale:
            table = explained.activating[name]
            for picture, number in zip(inversion.pictures, table["filter"].unique(), strict=True):
                chosen = table[table["filter"] == number]
                indices = [numbers[each] for each in chosen["image"]]
                photographs = explained.scenes.images[indices]
                pictures = np.broadcast_to(photographs, (len(chosen), 3, *photographs.shape[2:]))
                labels = explained.scenes.labels[indices]
                titles = [
                    f"{explained.scenes.class_names[label]}\n{mean:.2f}"
                    for label, mean in zip(labels, chosen["mean"], strict=True)
                ]
                inverted = resize(picture[None], list(photographs.shape[2:]), antialias=True).numpy()
                lines[f"{name}\nfilter {number}"] = np.concatenate([inverted, pictures]), ["inversion\n", *titles]
    return lines


def blind_hits(folder: Path, names: Sequence[str]) -> pd.DataFrame:
    """How many classes somebody recognized on the sheet of each model without seeing titles.

    `folder` is the cache.  <model>/classes/sheet.key.json is of `inversion_quality.save_blind_sheet`.  Whoever looks
    writes sheet.answers.json beside it before opening it: {"who": ..., "sheet": SHA-256 of sheet.blind.png,
    "answers": {number on the sheet: class}}.  Models without answers to their present sheet are left out.  Columns:
    model, who, recognized, classes, mistaken (what was taken for what).
    """
    lines = []
    for name in names:
        paths = [folder / name / "classes" / f"sheet.{kind}.json" for kind in ("key", "answers")]
        if all(path.exists() for path in paths):
            key, given = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
            if given["sheet"] != key["sheet"]:
                continue
            pairs = [(right, given["answers"].get(number)) for number, right in key["answers"].items()]
            mistaken = [f"{right} for {answer}" for right, answer in pairs if right != answer]
            lines.append((name, given["who"], len(pairs) - len(mistaken), len(pairs), "; ".join(mistaken)))
    return pd.DataFrame(lines, columns=["model", "who", "recognized", "classes", "mistaken"])


def inversion_table(explained: Explained) -> pd.DataFrame:
    """Final loss, convergence and steps of every inversion, by model and kind."""
    tables = {key: inversion.table for key, inversion in explained.inversions.items()}
    if not tables:
        return pd.DataFrame(columns=["model", "kind", "name", "final_loss", "converged", "steps"])
    return pd.concat(tables, names=["model", "kind"]).droplevel(-1).reset_index()


def sheet(explained: Explained, name: str) -> tuple[np.ndarray, list[str], dict[str, torch.Tensor]]:
    """Images, titles and heat maps by stage of a model, as `plots.draw_heat_map_sheet` takes them."""
    maps = {f"stage {layer}": each for layer, each in explained.maps[name].items()}
    mapped = explained.shown[: len(next(iter(maps.values())))]  # an interrupted call has left maps of the first images
    return explained.scenes.images[mapped], [explained.scenes.names[each] for each in mapped], maps


def read_inversion(folder: Path) -> SavedInversion:
    """What `model_inversion.save_inversion` wrote into a folder, with the settings beside it."""
    table = read_table(folder / "inversion.csv", converters={"name": str})
    return SavedInversion(
        table=table,
        pictures=read_pictures([folder / picture_file(name) for name in table["name"]]),
        losses=read_table(folder / "losses.csv", index_col="step"),
        settings=json.loads((folder / "settings.json").read_text(encoding="utf-8")),
    )


def read_pictures(paths: Sequence[Path]) -> torch.Tensor:
    """Pictures of one size from files, uint8 (N, 3, H, W)."""
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _read_all(folder: Path, names: Sequence[str], file: str) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of the file of this name in the folder of each model that has it."""
    arrays = {}
    for name in names:
        if (folder / name / file).exists():
            with np.load(folder / name / file) as saved:
                arrays[name] = dict(saved)
    return arrays


def _quality_of(model: Path, path: Path) -> pd.DataFrame:
    """The lines of `inversion_quality`'s table that are of the weights in the folder of a model, without these."""
    table, stamp = _read_table(path), model / "weights.json"
    if not len(table) or not stamp.exists():
        return pd.DataFrame()
    of_model = table["weights"] == json.loads(stamp.read_text(encoding="utf-8"))["weights"]
    return table[of_model].drop(columns="weights")


def _recognition(folder: Path, names: Sequence[str]) -> pd.DataFrame:
    """The latest lines of each model about the class images of each; see `inversion_quality.evaluate_images`."""
    table = _tables_of(folder, names, "classes/evaluators.csv", converters={"class": str})
    if not len(table):
        return table
    table = table[table["evaluator"].isin(names)]
    return table.drop_duplicates(["model", "evaluator", "class"], keep="last")


def _tables_of(folder: Path, names: Sequence[str], file: str, **options) -> pd.DataFrame:
    """The tables of this name in the folders of models, one after another, with a column model first."""
    tables = {name: _read_table(folder / name / file, **options) for name in names}
    tables = [table.assign(model=name) for name, table in tables.items() if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _read_table(path: Path, **options) -> pd.DataFrame:
    return read_table(path, **options) if path.exists() else pd.DataFrame()
