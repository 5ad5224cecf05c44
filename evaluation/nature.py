"""What supervised/nature_report.ipynb shows of trained networks: computed from their checkpoints, then cached.

    python -m evaluation.nature [--profile full] [--data DATA] [--weights FILE] [--photographs FOLDER]

Files, beside the results; each names the checkpoint (or the initial weights) it was computed from, by a digest:

    scores.csv, scores_<name>.npy       class probabilities of all test images
    other_sizes.csv                     val accuracy at image sizes that the network was not trained at
    non_positive.csv                    fraction of values of a module's output that are not positive
    feature_maps_<name>_<class>.npz     seven channels of four stages, for one test image of a class
    spectra.csv                         eigenvalues of the features' covariance, by number of images

What is there for the same digest is not computed again, except the scores: they show that a checkpoint reproduces them.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from data.files import digest_of_file, expanded, root_folder, write_atomically, write_table
from data.folders import is_image
from data.prepare import locate
from evaluation.checkpoints import TrainedRun, load_trained
from evaluation.hooks import eval_mode
from evaluation.predict import class_probabilities
from evaluation.representation import module_outputs, share_non_positive, spectrum_by_images
from evaluation.split_images import loaders_of_run
from experiments import add_data_options, check_data, configure, find
from run_files import files_of
from runs import build_model, collect, run_command
from supervised.dataloader import Loaders
from supervised.settings import EARLIER_NON_POSITIVE, NATURE_EXPERIMENTS, Experiment

BEST = "nature_efficientnet_finetuned"
LOOKED_AT = {  # name in figures: experiment
    "ResNet-18 from scratch": "nature_resnet18_sgd_1e-2",
    "ResNet-18 fine-tuned": "nature_resnet18_imagenet_sgd_1e-2",
    "EfficientNet-B0 fine-tuned": BEST,
}
BEFORE, AFTER = "EfficientNet-B0 before", "EfficientNet-B0 fine-tuned"  # fine-tuning, of BEST
AT_OTHER_SIZES = ("nature_resnet18_sgd_1e-2", "nature_efficientnet_sgd_1e-2", BEST)
HOOK_POINTS = {
    "resnet18": (*EARLIER_NON_POSITIVE, *(f"features.layer{number}.0.bn1" for number in (1, 2, 3, 4))),
    "efficientnet_b0": (
        *(f"features.{number}" for number in range(9)),
        *(f"features.{number}.0.block.0.{part}" for number in (2, 4, 6) for part in (0, 1, 2)),
    ),
}
DRAWN_STAGES = {
    "resnet18": tuple(f"features.layer{number}" for number in (1, 2, 3, 4)),
    "efficientnet_b0": tuple(f"features.{number}" for number in (2, 3, 5, 8)),
}
DRAWN_CHANNELS = 7
DRAWN_CLASSES = (0, 3)
SPECTRUM_IMAGES = {"quick": (5, 20), "full": (25, 50, 100, 200)}  # of each source, nested


@dataclass(frozen=True)
class NatureStatistics:
    """The cache.  Tables that are not there are empty."""

    scores: dict[str, np.ndarray]  # by experiment, (N, classes) of all test images
    scores_table: pd.DataFrame  # by experiment: images, largest difference, as in the result, precision
    other_sizes: pd.DataFrame  # experiment, trained at, evaluated at (pixels), val accuracy
    non_positive: pd.DataFrame  # as `representation.share_non_positive`, with features (their name), network, pixels
    feature_maps: dict[tuple[str, int], dict[str, np.ndarray]]  # by LOOKED_AT and class: by layer (channels, h, w)
    spectra: pd.DataFrame  # as `representation.spectrum_by_images`, with features, images_of (their source), pixels
    missing: list[str]  # experiments with a result but without scores
    stale: list[str]  # files computed from other checkpoints than the scores

    @property
    def note(self) -> str:
        """What is missing and what is stale, in two sentences."""
        return (
            f"No scores yet: {'; '.join(self.missing) or 'none are missing'}.  "
            f"Computed from other weights than the scores: {'; '.join(self.stale) or 'nothing'}."
        )


def collect_nature(
    experiments: Mapping[str, Experiment], profile: str, compute: bool = False, photographs: Path | None = None
) -> NatureStatistics:
    """What nature_report.ipynb shows of trained networks, from the cache; `compute` fills the cache first.

    `experiments` are configured, by name: NATURE_EXPERIMENTS.  Those without a result are left out; without a
    checkpoint nothing is computed for them.  `photographs` is a folder of ImageNet photographs, for the spectra.
    """
    results = collect(experiments.values(), profile)
    study = NatureStudy(experiments, profile, photographs)
    if compute:
        study.fill()
    return study.read(results)


@dataclass(frozen=True)
class NatureStudy:
    """The nature experiments of a profile, their checkpoints and the files computed from them."""

    experiments: Mapping[str, Experiment]
    profile: str
    photographs: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return files_of(self.experiments[BEST], self.profile).results

    @cached_property
    def checkpoints(self) -> dict[str, tuple[Path, str]]:
        """The checkpoints that are here, with their digests, by experiment."""
        paths = {name: files_of(experiment, self.profile).checkpoint for name, experiment in self.experiments.items()}
        return {name: (path, digest_of_file(path)) for name, path in paths.items() if path.exists()}

    @cached_property
    def networks(self) -> dict[str, tuple[nn.Module, Experiment, str]]:
        """The networks that are looked at, by their name in figures: model, experiment, digest."""
        networks = {
            label: (self.load(name).model, self.experiments[name], self.checkpoints[name][1])
            for label, name in LOOKED_AT.items()
            if name in self.checkpoints
        }
        if AFTER in networks:
            best = self.experiments[BEST]
            model, provenance = build_model(best, self.loaders(best), self.profile)
            networks[BEFORE] = model, best, provenance.get("sha256", "random")
        return networks

    @cached_property
    def sampled(self) -> dict[str, np.ndarray]:
        """The files whose features have a spectrum, by source."""
        number = SPECTRUM_IMAGES[self.profile][-1]
        return {
            source: np.random.default_rng(0).choice(files, number, replace=False)
            for source, files in self._photographs_of().items()
        }

    def load(self, name: str) -> TrainedRun:
        """The run of an experiment whose checkpoint is here."""
        return load_trained(self.checkpoints[name][0])

    @cached_property
    def images(self) -> dict[str, dict]:
        """What the runs whose checkpoints are here say of their images, by experiment."""
        return {name: self.load(name).data for name in self.checkpoints}

    def loaders(self, experiment: Experiment) -> Loaders:
        """The loaders of an experiment whose checkpoint is here, without the images that its training left out."""
        return loaders_of_run(self.images[experiment.name], experiment)

    def fill(self):
        """Compute what is missing or stale."""
        if not self.checkpoints:
            return
        self.save_scores()
        wanted = {
            (name,): {"checkpoint": self.checkpoints[name][1]} for name in AT_OTHER_SIZES if name in self.checkpoints
        }
        _refresh(self.folder / "other_sizes.csv", ["experiment"], wanted, self.evaluate_at_all_sizes)
        wanted = {(label,): {"checkpoint": digest} for label, (_, _, digest) in self.networks.items()}
        _refresh(self.folder / "non_positive.csv", ["features"], wanted, self.measure_non_positive)
        self.save_feature_maps()
        samples = {
            source: hashlib.sha256("".join(map(digest_of_file, files)).encode()).hexdigest()[:12]
            for source, files in self.sampled.items()
        }
        wanted = {
            (label, source): {"checkpoint": self.networks[label][2], "sample": digest}
            for source, digest in samples.items()
            for label in (BEFORE, AFTER)
            if label in self.networks
        }
        _refresh(self.folder / "spectra.csv", ["features", "images_of"], wanted, self.compute_spectrum)

    def save_scores(self):
        """Write scores_<name>.npy, or compare it with what the same checkpoint gives now, and scores.csv."""
        path = self.folder / "scores.csv"
        known = pd.read_csv(path, index_col="experiment").to_dict("index") if path.exists() else {}
        for name, (_, digest) in self.checkpoints.items():
            test = self.loaders(self.experiments[name]).test
            scores, file = class_probabilities(self.load(name).model, test), self._scores_file(name)
            if name in known and known[name]["checkpoint"] == digest:
                difference = np.abs(np.load(file) - scores).max()
            else:
                write_atomically(file, lambda temporary, scores=scores: np.save(temporary, scores))
                difference = None  # nothing to compare with yet
            known[name] = {"checkpoint": digest, "largest difference": difference}
        table = pd.DataFrame.from_dict(known, orient="index").rename_axis("experiment")
        write_table(path, table, index=True)

    def evaluate_at_all_sizes(self, name: str) -> pd.DataFrame:
        """The val accuracy of a network at every image size of the experiments."""
        model, experiment, lines = self.load(name).model, self.experiments[name], []
        for size in sorted({each.image_size for each in self.experiments.values()}):
            val = self.loaders(replace(experiment, image_size=size)).val
            correct = class_probabilities(model, val).argmax(axis=1) == val.dataset.scenes.labels
            lines.append((experiment.image_size, size, correct.mean()))
        return pd.DataFrame(lines, columns=["trained at", "evaluated at", "val accuracy"])

    def measure_non_positive(self, label: str) -> pd.DataFrame:
        """The fraction of values that are not positive at HOOK_POINTS, over the val images."""
        model, experiment, _ = self.networks[label]
        val = self.loaders(experiment).val
        table = share_non_positive(model, val, HOOK_POINTS[experiment.network])
        return table.assign(network=experiment.network, pixels=experiment.image_size)

    def save_feature_maps(self):
        """Write feature_maps_<name>_<class>.npz where it is missing or of another checkpoint."""
        for label, name in LOOKED_AT.items():
            if label not in self.networks:
                continue
            model, experiment, digest = self.networks[label]
            dataset = self.loaders(experiment).test.dataset
            for class_number in {min(number, len(dataset.scenes.class_names) - 1) for number in DRAWN_CLASSES}:
                path = self.folder / f"feature_maps_{name}_{class_number}.npz"
                if path.exists() and str(_arrays_of(path, ["checkpoint"])["checkpoint"]) == digest:
                    continue
                image = dataset[int(np.flatnonzero(dataset.scenes.labels == class_number)[0])][0]
                maps = module_outputs(model, image.unsqueeze(0), DRAWN_STAGES[experiment.network])
                maps = {layer: each[0, :DRAWN_CHANNELS].astype(np.float16) for layer, each in maps.items()}
                write_atomically(path, partial(np.savez_compressed, checkpoint=digest, **maps))

    def compute_spectrum(self, label: str, source: str) -> pd.DataFrame:
        """The eigenvalues above zero of the covariance of pooled features, of sampled images of a source."""
        size = 224 if self.profile == "full" else self.experiments[BEST].image_size
        _, images = replace(self.load(BEST), image_size=size).read(self.sampled[source])
        features = _pooled_features(self.networks[label][0], images)
        spectrum = spectrum_by_images(features, SPECTRUM_IMAGES[self.profile]).query("eigenvalue > 0")
        return spectrum.assign(eigenvalue=[float(f"{value:.6g}") for value in spectrum["eigenvalue"]], pixels=size)

    def read(self, results: Mapping[str, dict]) -> NatureStatistics:
        """Read the cache, for the experiments that have a result."""
        index = _read_table(self.folder / "scores.csv", "experiment").set_index("experiment")
        scores = {name: np.load(self._scores_file(name)) for name in results if name in index.index}
        lines = {
            name: {
                "images": len(each),
                "largest difference": index.loc[name, "largest difference"],
                "as in the result": np.mean(each.argmax(axis=1) == results[name]["predictions"]["test"]),
                "precision of the run": results[name]["precision"],
            }
            for name, each in scores.items()
        }
        columns = {"other_sizes": "experiment", "non_positive": "features", "spectra": "features"}
        tables = {name: _read_table(self.folder / f"{name}.csv", column) for name, column in columns.items()}
        maps = {
            (label, int(path.stem[-1])): _arrays_of(path)
            for label, name in LOOKED_AT.items()
            for path in sorted(self.folder.glob(f"feature_maps_{name}_[0-9].npz"))
        }
        sources = {
            f"{name}.csv": set(zip(tables[name][column], tables[name]["checkpoint"], strict=True))
            for name, column in columns.items()
        }
        sources["feature maps"] = {(label, str(each.pop("checkpoint"))) for (label, _), each in maps.items()}
        return NatureStatistics(
            scores=scores,
            scores_table=pd.DataFrame.from_dict(lines, orient="index"),
            feature_maps=maps,
            missing=[name for name in results if name not in scores],
            stale=_stale(sources, index["checkpoint"]),
            **tables,
        )

    def _scores_file(self, name: str) -> Path:
        return self.folder / f"scores_{name}.npy"

    def _photographs_of(self) -> dict[str, list[Path]]:
        """The image files of each source that has enough of them."""
        data = self.experiments[BEST].data
        folders = {
            "nature scenes" if data == "nature" else Path(data).name: locate(data) / "test",
            "CIFAR-10": root_folder() / "data" / "cifar10" / "test",
            **({"ImageNet": Path(self.photographs)} if self.photographs else {}),
        }
        files = {
            source: sorted(path for path in folder.rglob("*") if is_image(path.name))
            for source, folder in folders.items()
        }
        return {source: found for source, found in files.items() if len(found) >= SPECTRUM_IMAGES[self.profile][-1]}


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.nature",
        description="Compute what supervised/nature_report.ipynb shows of trained networks",
    )
    add_data_options(parser)
    parser.add_argument("--photographs", type=expanded, metavar="FOLDER", help="ImageNet photographs, for the spectra")
    options = parser.parse_args(arguments)
    return run_command(lambda: _compute(options))


def _compute(options):
    if options.photographs is not None:
        number = sum(is_image(path.name) for path in options.photographs.rglob("*"))
        needed = SPECTRUM_IMAGES[options.profile][-1]
        if number < needed:
            raise ValueError(f"--photographs is {options.photographs}, with {number} images; the spectra need {needed}")
    check_data(options.data)
    experiments = {}
    for name in NATURE_EXPERIMENTS:
        experiment = find(name)
        weights = options.weights if experiment.network == "efficientnet_b0" else None
        experiments[name] = configure(experiment, options.profile, data=options.data, weights=weights)
    print(collect_nature(experiments, options.profile, compute=True, photographs=options.photographs).note)


def _stale(sources: Mapping[str, set[tuple[str, str]]], digests: pd.Series) -> list[str]:
    """The files that name another digest than the scores; `sources` are (name of an experiment or label, digest)."""
    stale = []
    for file, of_file in sources.items():
        for label, digest in sorted(of_file):
            name = LOOKED_AT.get(label, label)
            if name != BEFORE and digests.get(name) != digest:
                stale.append(f"{name} in {file}")
    return stale


@torch.inference_mode()
def _pooled_features(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    with eval_mode(model):
        return torch.cat([model.pooled_features(batch) for batch in images.split(20)]).numpy()


def _refresh(
    path: Path,
    columns: Sequence[str],
    wanted: Mapping[tuple[str, ...], Mapping[str, str]],
    compute: Callable[..., pd.DataFrame],
):
    """Compute the parts of a CSV table that are missing or of other digests; the others stay as they are.

    `wanted` maps the values of `columns`, which identify a part, to the digests by column that it must be computed
    from.  Parts of older code lack some of these digests, and are kept.
    """
    table = _read_table(path, *columns)
    for values, digests in wanted.items():
        of_part = (table[list(columns)] == list(values)).all(axis=1)
        known = [table.loc[of_part, name] for name in digests if name in table]
        if not of_part.any() or any((each.notna() & (each != digests[each.name])).any() for each in known):
            part = compute(*values).assign(**dict(zip(columns, values, strict=True)), **digests)
            table = pd.concat([each for each in (table[~of_part], part) if len(each)], ignore_index=True)
            write_table(path, table)


def _arrays_of(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, or those of some names; it is closed, since Windows does not replace an open one."""
    with np.load(path) as saved:
        return {name: saved[name] for name in (saved if names is None else names)}


def _read_table(path: Path, *columns: str) -> pd.DataFrame:
    if path.exists():
        return pd.read_csv(path, dtype={"checkpoint": str, "sample": str})
    return pd.DataFrame(columns=[*columns, "checkpoint"], dtype=object)


if __name__ == "__main__":
    sys.exit(main())
