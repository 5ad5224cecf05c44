"""Class probabilities of images, and a command that prints, lists and draws them.

    python -m evaluation.predict PATH... [--model RUN] [--csv FILE] [--map] [--why-not CLASS]

A path is an image or a folder, which is searched at any depth.  The command prints each image's most probable class,
its probability and the runner-up, and warns of images that are unlike all scenes of the training set
(evaluation/novelty.py).  With `--map` it draws each image beside a heat map of the most probable class, and with
`--why-not` beside that of the difference between its class and another one; figures of earlier calls stay.  If the
command ends early, the table of the images that were finished is written beside FILE, and FILE stays as it is.  In a
notebook:

    from evaluation.predict import load
    model = load("byol_classifier")
    model.predict(images), model.embed(images), model.explain(image), model.pixels(image)

There an image is a path, an image of Pillow, or an array, uint8 (H, W) or (H, W, 3) with the channels red, green, blue.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn
from tqdm import tqdm

from data.files import check_output, expanded, say_once, shortened, write_atomically, write_table
from data.folders import images_in
from data.image_cache import NamedImage, named_image
from data.prepare import DATA_SETS
from evaluation import plots
from evaluation.checkpoints import TrainedRun
from evaluation.embed import add_model_options, check_target, embed, features_in_batches
from evaluation.hooks import eval_mode
from evaluation.novelty import Novelty, novelty_of
from evaluation.plots import readable
from evaluation.publish import load_run
from evaluation.recipro_cam import recipro_cam, recipro_contrast
from evaluation.scorecam import contrast_cam, probabilities_of, score_cam
from helper_functions import logits_of
from runs import run_command

TOP = 5  # classes shown
METHODS = {"recipro_cam": "Recipro-CAM", "score_cam": "Score-CAM"}  # of a heat map
METHOD = "recipro_cam"  # unless another one is asked for: a tenth of the time, and no less faithful
BATCH = 64  # images
LONGEST_STEM = 240  # bytes
UNFINISHED = ".unfinished"  # in the name of a table of which the command ended early
Given = str | Path | Image.Image | np.ndarray  # an image as a user gives it, or the path of a folder of images


@torch.inference_mode()
def class_probabilities(model: nn.Module, images: torch.Tensor | Iterable) -> np.ndarray:
    """The probability (N, classes), 0..1, of each class, in float32 whatever precision the model was trained in.

    `images` are normalized images (N, 3, H, W), pooled features (N, D) of a SceneClassifier, or a loader of (images,
    labels), whose order is that of the result.  The model runs in eval mode and is left in its own mode.
    """
    batches = images.split(BATCH) if isinstance(images, torch.Tensor) else (batch for batch, _ in images)
    with eval_mode(model):
        return torch.cat([probabilities_of(logits_of(model, batch)).cpu() for batch in batches]).numpy()


@dataclass(frozen=True)
class Model:
    """A trained network for images: what `load` returns.

    An image is given as a path, as an image of Pillow, or as an array, uint8 (H, W) or (H, W, 3) with the channels red,
    green, blue.  All are prepared in the same way, so the EXIF orientation of an image of Pillow is applied too.
    `novelty` describes the training images, and is None where nothing is known of them.
    """

    run: TrainedRun
    novelty: Novelty | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of probabilities and labels."""
        return self.run.class_names

    def predict(self, images: Iterable[Given] | Given, skip_bad_images: bool = False) -> pd.DataFrame:
        """One line per image: file, class, probability, runner_up, runner_up_probability, distance, unlike_training.

        Images are one or several; the path of a folder stands for those below it.  The file of an image that comes from
        none is its place among those given, such as "image 1".  Of an image that is not square, most networks see the
        center alone, see `pixels`.  `distance` is that to the training images, 1 at the threshold; above it an image is
        `unlike_training`.  Both are missing where the training images are not known.
        Raises FileNotFoundError or ValueError that names a file which is not there or cannot be decoded, and ValueError
        for no images, for an array of another type or shape, and for what is no image.
        """
        found = [table for table, _ in self.predictions(_images_of(images), skip_bad_images)]
        return pd.concat(found, ignore_index=True)

    def predictions(
        self, images: Sequence[Path | NamedImage], skip_bad_images: bool = False
    ) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
        """In batches: lines as `predict` returns them, and the probabilities (images, classes)."""
        run = self.run.folded()
        for batch, features in features_in_batches(run, images, skip_bad_images):
            probabilities = class_probabilities(run.model, torch.from_numpy(features))
            yield self._lines(batch, features, probabilities), probabilities

    def embed(self, images: Iterable[Given] | Given, skip_bad_images: bool = False) -> np.ndarray:
        """The vectors of images, float32 (N, D): the pooled features that the head of the network reads.

        Images are those of `predict`.  With `skip_bad_images`, the row of an image that cannot be decoded is NaN.
        """
        wanted = _images_of(images)
        decoded, vectors = embed(self.run, wanted, skip_bad_images)
        if len(decoded) == len(wanted):
            return vectors
        vector_of = dict(zip(decoded, vectors, strict=True))
        return np.stack([vector_of.get(image, np.full_like(vectors[0], np.nan)) for image in wanted])

    def pixels(self, image: Given) -> np.ndarray:
        """The square of an image that the network sees, uint8 (S, S, 3): a heat map of `explain` lies on these pixels.

        It is the center of the image, or with the resize rule "squash" the whole image, squeezed.
        """
        (pixels,), _ = self.run.read([_image_of(image)])
        return np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)

    def explain(
        self,
        image: Given,
        class_name: str | None = None,
        why_not: str | None = None,
        layer: str | int | None = None,
        method: str = METHOD,
    ) -> np.ndarray:
        """Where in an image the network finds a class: a heat map, float32 (S, S) in 0..1.

        The map lies on the square that the network sees, which is `pixels`, and not on the whole of an image that is
        not square.  It is of a layer, by default the last stage.  Without `class_name` the class is the most probable
        one.  With `why_not` it is what speaks for the class and against this other one, or against the runner-up where
        that is the most probable class itself.  `method` is one of METHODS.  Raises ValueError for another one, for a
        class that the network does not have, and for a class against itself.
        """
        _, prepared = self.run.read([_image_of(image)])
        rival = None if why_not is None else self.run.label(why_not)
        if class_name is None:
            probabilities = class_probabilities(self.run.model, prepared)[0]
            target, rival = int(probabilities.argmax()), rival_of(probabilities, rival)
        else:
            target = self.run.label(class_name)
            if target == rival:
                raise ValueError(f"class_name and why_not are both {class_name}; a class is explained against another")
        layer = self.run.last_stage if layer is None else layer
        explained = self.run.ready_to_explain([layer])
        return heat_map_of(explained, prepared, target, rival, layer, method).numpy()

    def _lines(
        self, images: Sequence[Path | NamedImage], features: np.ndarray, probabilities: np.ndarray
    ) -> pd.DataFrame:
        first, second = probabilities.argsort(axis=1)[:, :-3:-1].T
        rows, names = np.arange(len(images)), np.array(self.class_names, dtype=object)
        table = pd.DataFrame({"file": [str(image) for image in images], "class": names[first]})
        table["probability"] = probabilities[rows, first]
        table["runner_up"], table["runner_up_probability"] = names[second], probabilities[rows, second]
        distances = None if self.novelty is None else self.novelty.distances(features)
        table["distance"] = np.nan if distances is None else distances
        table["unlike_training"] = pd.array([pd.NA] * len(images) if distances is None else distances > 1, "boolean")
        return table


def load(run: str | Path) -> Model:
    """A trained run by its name or file, to be used on image files; a released model is put in its place by itself.

    Raises what `evaluation.checkpoints.load_trained` raises.
    """
    found = load_run(run)
    return Model(found, novelty_of(found))


def heat_map_of(
    run: TrainedRun,
    image: torch.Tensor,
    target: int,
    rival: int | None = None,
    layer: str | int | None = None,
    method: str = METHOD,
) -> torch.Tensor:
    """The heat map (S, S) of one image (1, 3, S, S) for a class, or for the difference between it and a rival.

    It is of a layer or the last stage.  `run` is `ready_to_explain`.  Raises ValueError unless `method` is of METHODS.
    """
    if method not in METHODS:
        raise ValueError(f"the method of the heat map is {method!r}; it must be one of {', '.join(METHODS)}")
    layer = run.layer(run.last_stage if layer is None else layer)
    if rival is None:
        map_of = score_cam if method == "score_cam" else recipro_cam
        return map_of(run.model, image, layer, [target]).maps[0]
    if method == "recipro_cam":
        return recipro_contrast(run.model, image, layer, target, rival)
    return contrast_cam(run.model, image, layer, [target], [rival]).maps[0]


def rival_of(probabilities: np.ndarray, why_not: int | None) -> int | None:
    """The class to explain the most probable one against: `why_not`, or if it is that class the runner-up."""
    first, second = probabilities.argsort()[:-3:-1]
    return int(second) if why_not == first else why_not


def draw_prediction(pixels: np.ndarray, heat_map, probabilities: np.ndarray, class_names, titles: Sequence[str]):
    """A figure of one image, uint8 (1 or 3, S, S), its heat map (S, S), and its most probable classes.

    `titles` are those of the image and of the heat map.
    """
    figure, (plain, explained, bars) = plt.subplots(
        1, 3, figsize=(10, 3.2), width_ratios=(1, 1.2, 1.2), layout="constrained"
    )
    plots.plot_images([pixels], titles[:1], columns=1, axes=[plain])
    plots.plot_heat_map(pixels, heat_map, explained)
    explained.set_title(plots.plain(titles[1]), fontsize=8)
    top = probabilities.argsort()[::-1][:TOP]
    bars.barh([plots.plain(class_names[label]) for label in top][::-1], probabilities[top][::-1])
    bars.set_xlim(0, 1)
    bars.set_xlabel("probability")
    return figure


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.predict", description="Print, list and draw the most probable classes of images"
    )
    parser.add_argument("paths", nargs="+", type=expanded, metavar="PATH", help="images, or folders of images")
    add_model_options(parser)
    parser.add_argument("--csv", type=expanded, metavar="FILE", help="also write a table of all images")
    parser.add_argument("--map", action="store_true", help="draw each image beside its heat map")
    parser.add_argument("--why-not", metavar="CLASS", help="draw what speaks for the predicted class and against CLASS")
    parser.add_argument(
        "--method",
        choices=METHODS,
        help=f"of the heat map (default: {METHOD}, which takes a tenth of the time)",
    )
    parser.add_argument("--layer", help="of the heat map: a stage or the name of a module (default: the last stage)")
    parser.add_argument("--output", type=expanded, help="folder of the figures (default: predictions)")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return run_command(lambda: _predict(options))


def _predict(options):
    for name in ("method", "layer", "output"):
        if getattr(options, name) and not (options.map or options.why_not):
            raise ValueError(f"--{name} is of a figure: add --map or --why-not CLASS")
    if options.csv is not None:
        check_target(options.csv, "--csv", (".csv",))
    model = load(options.model)
    figures = _Figures(model, options) if options.map or options.why_not else None
    paths = images_in(options.paths)
    if model.novelty is None:
        say_once(_how_to_describe(model.run, options.model))
    tables, finished = [], False
    try:
        for table, probabilities in model.predictions(paths, options.skip_bad_images):
            tables.append(table)
            for line, of_image in zip(table.itertuples(index=False, name=None), probabilities, strict=True):
                tqdm.write(_sentence(*line))
                if figures is not None:
                    tqdm.write(f"  {figures.draw(Path(line[0]), of_image)}")
        finished = True
    finally:  # also after Ctrl-C and a bad image
        if tables:
            csv = options.csv if finished else _unfinished(options.csv)
            _report(model, pd.concat(tables, ignore_index=True), len(paths), csv)


def _unfinished(csv: Path | None) -> Path | None:
    """Where the table goes if the command ends early: that of an earlier call stays, and nobody takes it for all."""
    return None if csv is None else csv.with_name(f"{shortened(csv.stem, LONGEST_STEM)}{UNFINISHED}{csv.suffix}")


def _how_to_describe(run: TrainedRun, named: str | Path) -> str:
    """What is missing for warnings, and the command that makes it; the folder of a user's own images is not known."""
    name = run.data.get("name")
    data, known = (name, "") if name in DATA_SETS else ("DATA", f", where DATA is {name or 'what it was trained on'}")
    return (
        f"{run.name} has no description of its training images, so nothing warns of images unlike them; "
        f"python -m evaluation.novelty {shlex.quote(str(named))} --data {data} makes one{known}"
    )


def _sentence(file, name, probability, runner_up, second_probability, distance, _) -> str:
    warning = f"; unlike the training images, at {distance:.2f} times the threshold" if distance > 1 else ""
    return f"{readable(file)}: {name} {probability:.3f}, {runner_up} {second_probability:.3f}{warning}"


def _report(model: Model, table: pd.DataFrame, images: int, csv: Path | None):
    """Warn of images that are unlike the training images, and write the table, which has so many images if complete."""
    unlike = int(table["unlike_training"].sum())
    if unlike:
        say_once(
            f"warning: {unlike:,} of {len(table):,} image(s) look like no scene of the training set, so their classes "
            f"mean little; about {model.novelty.false_alarms:.0%} of images like those of the training get it too"
        )
    if csv is not None:
        write_table(csv, table)
        print(f"{csv}: {len(table):,}{'' if len(table) == images else f' of {images:,}'} images")


class _Figures:
    """Draws images one by one into a folder."""

    def __init__(self, model: Model, options: argparse.Namespace):
        """Refuse a layer, a class or a folder that cannot be, before any image is read."""
        self.model, self.layer = model, options.layer or model.run.last_stage
        self.method = options.method or METHOD
        self.explained = model.run.ready_to_explain([self.layer])
        self.explained.layer(self.layer)
        self.rival = None if options.why_not is None else model.run.label(options.why_not)
        self.folder = options.output or Path("predictions")
        check_output(self.folder, "--output", folder=True)
        numbers = [re.match(r"(\d+)_", path.name) for path in self.folder.glob("*.png")]
        self.drawn = max((int(number[1]) for number in numbers if number), default=0)  # those of earlier calls stay

    def draw(self, path: Path, probabilities: np.ndarray) -> Path:
        """Write the figure of an image, and return its path."""
        names, target = self.model.class_names, int(probabilities.argmax())
        rival = rival_of(probabilities, self.rival)
        (pixels,), image = self.model.run.read([path])
        heat_map = heat_map_of(self.explained, image, target, rival, self.layer, self.method)
        title = f"{METHODS[self.method]} for {names[target]}" + ("" if rival is None else f", not {names[rival]}")
        figure = draw_prediction(pixels, heat_map, probabilities, names, [readable(path.name), title])
        self.drawn += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        target_file = self.folder / f"{self.drawn:03d}_{shortened(readable(path.stem), LONGEST_STEM)}.png"
        write_atomically(target_file, lambda temporary: figure.savefig(temporary, dpi=120))
        plt.close(figure)
        return target_file


def _images_of(images: Iterable[Given] | Given) -> list[Path | NamedImage]:
    """The images that are given, one or several, and those of folders.  ValueError if there are none."""
    single = isinstance(images, (str, Path)) or _is_in_memory(images) or not isinstance(images, Iterable)
    found = []
    for number, given in enumerate([images] if single else images, 1):
        image = _image_of(given, number)
        found += [image] if isinstance(image, NamedImage) else images_in(image)
    if not found:
        raise ValueError("no images are named")
    return found


def _image_of(given: Given, number: int = 1) -> Path | NamedImage:
    """A path, or an image in memory with its name; ValueError for what is neither."""
    if _is_in_memory(given):
        return named_image(given, number)
    if not isinstance(given, (str, Path)):
        raise ValueError(
            f"image {number} is given as {type(given).__name__}; give a path, an image of Pillow, or a NumPy array of "
            "uint8 and shape (H, W) or (H, W, 3)"
        )
    return expanded(given)


def _is_in_memory(given) -> bool:
    """Whether this is one image, and not a path or several: an array can hold paths too."""
    return isinstance(given, Image.Image) or (isinstance(given, np.ndarray) and given.dtype.kind not in "OTU")


if __name__ == "__main__":
    sys.exit(main())
