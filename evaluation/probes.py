"""How good frozen features are: small classifiers on them, by stage of the network and by number of labels.

    python -m evaluation.probes [scenes | cifar10] [--profile full] [--data DATA] [--weights FILE]

The command probes the features that a self-supervised report shows, and caches the tables as CSV files beside the
results.  Each table says which weights it was computed from; a table of the same weights is not computed again.

The network is never trained.  `splits` is a dict of "train", "val" and "test" everywhere: a probe learns from train,
every choice is made on val, and test is read once.  Labels are arrays (N,) of class numbers.  Accuracies are 0..1.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from data.files import digest_of_tensors, root_folder, say_once, write_atomically, write_table
from data.image_cache import Scenes
from evaluation import plots, representation
from evaluation.checkpoints import TrainedRun
from evaluation.hooks import eval_mode
from evaluation.results import PRETEXTS_BY_EPOCH, accuracies_without_pretext, pretext_epochs_table
from evaluation.split_images import loaders_of_run
from evaluation.statistics import accuracy_interval, mean_and_interval
from experiments import add_data_options, experiments_of, prerequisites
from loop.batchnorm import fold_batchnorm
from run_files import files_of, load_checkpoint, load_result, load_weights
from runs import build_model, collect, run_command
from self_supervised.probes import NEIGHBORS, Splits, check_splits, linear_probe, nearest_neighbors
from self_supervised.settings import CLASSIFIER_EXPERIMENTS, ProbeExperiment
from supervised.dataloader import Loaders, SceneDataset, build_loader
from supervised.models import SceneClassifier
from supervised.settings import Experiment

BATCH = 64  # images
IMAGES_PER_CLASS = (1, 5, 10, 25, 50, 100)

# What the reports probe: name in figures, experiment that the features come from.
SCENES = {
    "ImageNet": "imagenet_classifier_tuned",
    "random": "random_classifier",
    **{
        f"{pretext}, epoch {epoch}": f"{pretext}_classifier_tuned_{epoch}"
        for pretext in ("rotation", "perturbation")
        for epoch in (3, 6, 10)
    },
    **{
        f"{pretext}_gentle{suffix}": f"{pretext}_gentle_classifier{of_name}"
        for pretext in ("rotation", "perturbation")
        for of_name, suffix in (("", ""), ("_own_batchnorm", ", its own BatchNorm"))
    },
    "BYOL": "byol_classifier",
}
SCENES_IN_QUICK = ("ImageNet", "random", "rotation, epoch 10")
SCENES_BY_LABELS = ("ImageNet", "random", "rotation, epoch 10", "perturbation, epoch 10")
CIFAR10 = {
    "random": "cifar10_random_classifier",
    "rotation pretext": "cifar10_rotation",
    "fine-tuned": "cifar10_rotation_finetuned",
    "from scratch": "cifar10_scratch",
}
CIFAR10_CONTROL = "cifar10_random_classifier"  # probed on its images: a pretext's loaders show rotated ones
DRAWS = {"quick": 2, "full": 5}  # samples of each number of labels
CIFAR10_DRAWS = {"quick": 3, "full": 3}
CIFAR10_IMAGES_PER_CLASS = {"quick": (1, 2, 4), "full": (5, 25, 100, 400)}
CIFAR10_PERPLEXITY = {"quick": 5.0, "full": 30.0}
CIFAR10_NEIGHBORS = {"quick": 5, "full": 20}

StagesOfSplits = dict[str, tuple[list[np.ndarray], np.ndarray]]  # split: what `stage_features` returns


@dataclass(frozen=True)
class Probed:
    """The cached tables of a report, by the name of the features in its figures."""

    by_stage: dict[str, pd.DataFrame]  # as `probe_stages` returns them
    fractions: dict[str, pd.DataFrame]  # as `label_fractions` returns them
    places: dict[str, pd.DataFrame]  # CIFAR-10: x, y (t-SNE), label, purity of the last stage for each test image
    missing: list[str]  # names without tables
    stale: list[str]  # names whose tables were computed from other weights than the results
    tried: pd.DataFrame = field(default_factory=pd.DataFrame)  # scenes: see `pretexts_tried`

    @property
    def note(self) -> str:
        """What is missing and what is stale, in two sentences."""
        return (
            f"Not probed yet: {'; '.join(self.missing) or 'nothing'}.  "
            f"Probed with other weights than those of the results: {'; '.join(self.stale) or 'nothing'}."
        )


@torch.inference_mode()
def stage_features(model: nn.Module, loader, device: str = "cpu") -> tuple[list[np.ndarray], np.ndarray]:
    """The mean of each feature map after every stage of `model.features`, for all images in the loader's order.

    `model.features` is an nn.Sequential on `device`, whose stages return (N, channels, height, width).  The loader
    yields (images, labels).  Returns one float32 array (N, channels) per stage, and the labels (N,).
    A model with `flip_tta` gives the mean over the image and its horizontal flip, which is what its head sees.
    Everything is computed once, in eval mode; afterwards each module is in its own mode again.
    Raises ValueError if the loader has no batch, and for a model without such `features`.
    """
    if not isinstance(getattr(model, "features", None), nn.Sequential):
        raise ValueError(
            f"{type(model).__name__} has no `features` that are an nn.Sequential; put its stages into one, in a module "
            "that has it as `features`"
        )
    pooled, all_labels = [[] for _ in model.features], []
    with eval_mode(model.features):
        for images, labels in loader:
            views = [images.to(device)]
            if getattr(model, "flip_tta", False):
                views.append(views[0].flip(-1))
            for stage, means in zip(model.features, pooled, strict=True):
                views = [stage(maps) for maps in views]
                means.append(torch.stack([maps.float().mean(dim=(2, 3)) for maps in views]).mean(dim=0).cpu())
            all_labels.append(labels.cpu())
    if not all_labels:
        raise ValueError("the loader has no batch; there are no images to compute features of")
    return [torch.cat(means).numpy() for means in pooled], torch.cat(all_labels).numpy()


def features_of(model: nn.Module, loader, weights: str, cache: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """As `stage_features`; read from the .npz file `cache` if that holds those of the same `weights`, a digest.

    A file that cannot be read, as after a crash of the machine, is written again.
    """
    if cache.exists():
        with suppress(Exception), np.load(cache) as saved:  # zipfile, zlib and NumPy raise errors of many kinds
            if str(saved["weights"]) == weights:
                return [saved[f"stage_{number}"] for number in range(len(model.features))], saved["labels"]
    features, labels = stage_features(model, loader)
    stages = {f"stage_{number}": each for number, each in enumerate(features)}
    write_atomically(cache, lambda path: np.savez(path, weights=weights, labels=labels, **stages))
    return features, labels


def digest_of_images(data: Mapping) -> str:
    """A digest of all images of a data set, from its description in a result."""
    return hashlib.sha256(json.dumps(data.get("fingerprint"), sort_keys=True).encode()).hexdigest()[:16]


def weights_here(experiment: Experiment, profile: str) -> str | None:
    """The digest of the features' weights of a finished run, or None if its checkpoint is not here."""
    path = files_of(experiment, profile).checkpoint
    if not path.exists():
        return None
    tensors = load_checkpoint(path)["model"].items()
    prefix = "features."
    return digest_of_tensors({name.removeprefix(prefix): each for name, each in tensors if name.startswith(prefix)})


def is_made_from(table: pd.DataFrame, source: Mapping[str, str | float | None]) -> bool:
    """Whether a cached table was computed from a source, which its columns of these names describe.

    What is not known of the source, and columns that tables of older code lack, do not count.
    """
    known = {column: value for column, value in source.items() if value is not None and column in table}
    found = {column: table[column].iloc[-1] for column in known}
    return all(
        np.isclose(found[column], value) if isinstance(value, float) else found[column] == value
        for column, value in known.items()
    )


def warn_of_stale(stale: Sequence[str], module: str):
    """Say which tables that a module has cached are of other weights than those of the results, if any are."""
    if stale:
        say_once(
            f"computed from other weights than those of the results: {'; '.join(stale)}; "
            f"python -m {module} computes them again"
        )


def features_of_probe(experiment: ProbeExperiment, profile: str = "full") -> tuple[Splits, str, str]:
    """What an experiment's probe reads, pooled features (N, D) and labels (N,) by split; digests of weights and images.

    Raises FileNotFoundError if the pretext has no weights here.
    """
    model, loaders = _network_and_loaders(experiment, profile, _data_of_probe(experiment, profile))
    splits = {
        split: (np.concatenate([features[stage] for stage in experiment.stages], axis=1), labels)
        for split, (features, labels) in _features_of_splits(model, loaders).items()
    }
    return splits, digest_of_tensors(model.features.state_dict()), digest_of_images(loaders.data)


def _data_of_probe(experiment: ProbeExperiment, profile: str) -> Mapping:
    """The images of an experiment, as its result or that of its pretext describes them; empty if neither is here."""
    runs = (experiment, *(pretext for pretext, _ in prerequisites(experiment, profile)))
    paths = [path for run in runs if (path := files_of(run, profile).result).exists()]
    return load_result(paths[0]).get("data", {}) if paths else {}


def probe_stages(features_by_split: StagesOfSplits) -> pd.DataFrame:
    """The linear probe and the nearest neighbors of every stage, from what `stage_features` returns for each split.

    One line per stage and probe: stage (its index in `model.features`), probe ("linear", "20 nearest", "200 nearest"),
    val_accuracy, test_accuracy, and from, to: the 95 % interval of the test accuracy (Wilson 1927).  A vote of more
    neighbors than there are training images is left out.
    Raises ValueError, which names the stage, for features that cannot be probed.
    """
    counts = {split: len(stages) for split, (stages, _) in features_by_split.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"every split must have the same stages; their numbers are {counts}")
    stages = [_at_stage(features_by_split, stage) for stage in range(counts["train"])]
    for stage, splits in enumerate(stages):
        check_splits(splits, f"the features of stage {stage}")  # before minutes are spent on earlier stages
    lines = []
    for stage, splits in enumerate(stages):
        probes = {"linear": linear_probe(splits)}
        for neighbors in NEIGHBORS:
            if neighbors <= len(splits["train"][1]):
                probes[f"{neighbors} nearest"] = nearest_neighbors(splits, neighbors)
        for name, probe in probes.items():
            correct = probe.test_predictions == splits["test"][1]
            low, high = accuracy_interval(int(correct.sum()), len(correct))
            lines.append((stage, name, probe.val_accuracy, probe.test_accuracy, low, high))
    return pd.DataFrame(lines, columns=["stage", "probe", "val_accuracy", "test_accuracy", "from", "to"])


def features_of_scenes(run: TrainedRun, splits: Mapping[str, Scenes]) -> Splits:
    """Pooled features (N, D), which the head of a trained run reads, and labels (N,) by split.

    They are computed once and cached in data/cache, as those of an experiment are.
    """
    loaders = {split: build_loader(SceneDataset(scenes, run.resize), BATCH) for split, scenes in splits.items()}
    found, stages = _cached_features(run.model, loaders), sorted(run.model.stages)
    return {
        split: (np.concatenate([features[stage] for stage in stages], axis=1), labels)
        for split, (features, labels) in found.items()
    }


def sample_of_each_class(labels: np.ndarray, images_per_class: int, seed: int) -> np.ndarray:
    """Indices of this many images of each class, sampled without replacement.

    With one seed a smaller sample is contained in every larger one.  Raises ValueError if a class has too few images.
    """
    generator = np.random.default_rng(seed)
    sample = []
    for label in np.unique(labels):
        shuffled = generator.permutation(np.flatnonzero(labels == label))  # of all, so that samples are nested
        if len(shuffled) < images_per_class:
            raise ValueError(f"class {label} has {len(shuffled)} images, fewer than {images_per_class}")
        sample.append(shuffled[:images_per_class])
    return np.concatenate(sample)


def numbers_and_draws(labels: np.ndarray, images_per_class: Sequence[int], draws: int) -> list[tuple[int, int]]:
    """The numbers of labeled images of a class to sample from labels (N,), each with its draws, counted from 0.

    Numbers above the size of the smallest class are left out.  Of all images of every class there is one draw, since
    every draw would be the same.
    """
    _, sizes = np.unique(labels, return_counts=True)
    return [
        (number, draw)
        for number in images_per_class
        if number <= sizes.min()
        for draw in range(1 if number == sizes.max() else draws)
    ]


def label_fractions(splits: Splits, images_per_class: Sequence[int] = IMAGES_PER_CLASS, draws: int = 5) -> pd.DataFrame:
    """The linear probe with fewer labeled training images: one line per number of images of a class and per draw.

    Columns: images_per_class, draw (its seed, from 0), val_accuracy, test_accuracy; see `numbers_and_draws`.
    C is chosen on all of val even then, so a probe with few labels uses more labels than these few.
    Raises ValueError for features that cannot be probed.
    """
    splits = check_splits(splits)
    features, labels = splits["train"]
    lines = []
    for number, draw in numbers_and_draws(labels, images_per_class, draws):
        sample = sample_of_each_class(labels, number, seed=draw)
        probe = linear_probe({**splits, "train": (features[sample], labels[sample])})
        lines.append((number, draw, probe.val_accuracy, probe.test_accuracy))
    return pd.DataFrame(lines, columns=["images_per_class", "draw", "val_accuracy", "test_accuracy"])


def mean_of_draws(fractions: pd.DataFrame) -> pd.DataFrame:
    """From `label_fractions`, one line per number of images: images_per_class, test_accuracy (the mean), from, to.

    The interval is that of the mean over the draws.  It does not account for the sampling of test images.
    """
    lines = [
        (number, *mean_and_interval(group["test_accuracy"].tolist()))
        for number, group in fractions.groupby("images_per_class")
    ]
    return pd.DataFrame(lines, columns=["images_per_class", "test_accuracy", "from", "to"])


def collect_scenes(
    experiments: Mapping[str, Experiment], profile: str, compute: bool = False, progress: bool = False
) -> Probed:
    """The probes that self_supervised/report.ipynb shows, from the cache; `compute` fills the cache first.

    `experiments` are configured, by name: at least those of SCENES.  Runs without a result are left out.
    The quick profile probes those of SCENES_IN_QUICK only.  All are probed with the second report's resize rule.
    Files, beside the results: probes_<name>.csv (with last_four_val, the val accuracy of one linear probe on stages 5
    to 8), fractions_<name>.csv of the last stage for SCENES_BY_LABELS, pretext_tried.csv, and pretext_epochs.png, a
    picture for the front page.
    Raises FileNotFoundError if `compute` needs the checkpoint of a pretext that is not there.
    """
    probed = {
        label: experiments[name] for label, name in SCENES.items() if profile == "full" or label in SCENES_IN_QUICK
    }
    results = _results_of(probed, profile)
    weights = {label: result["initial_weights"].get("sha256", "random") for label, result in results.items()}
    probed["random"] = replace(probed["random"], resize="imagenet")
    cache = _Cache(files_of(probed["random"], profile).results, _sources(results, weights=weights))
    if compute:
        cache.fill(probed, partial(_probe_scenes, profile, results), progress)
    tables = cache.read(probed)
    tried = pretexts_tried(tables.by_stage, probed, profile)
    if compute:
        write_table(cache.folder / "pretext_tried.csv", tried)
        write_pretext_epochs(experiments, profile, cache.folder / "pretext_epochs.png")
    return replace(tables, tried=tried)


def collect_cifar10(
    experiments: Mapping[str, Experiment], profile: str, compute: bool = False, progress: bool = False
) -> Probed:
    """The probes that self_supervised/cifar10_report.ipynb shows, from the cache; `compute` fills the cache first.

    `experiments` are configured, by name: at least those of CIFAR10.  Runs without a result are left out.
    Files, beside the results: probes_<name>.csv, fractions_<name>.csv of the stage that is best on val, and
    tsne_<name>.csv.  They name the weights of their run, and its test accuracy, since no result names the weights.
    Raises FileNotFoundError if `compute` needs the checkpoint of a run that is not there.
    """
    probed = {label: experiments[name] for label, name in CIFAR10.items()}
    results = _results_of(probed, profile)
    accuracies = {label: result["test_accuracy"] for label, result in results.items()}
    weights = {label: weights_here(probed[label], profile) for label in results}
    control = experiments[CIFAR10_CONTROL]
    sources = _sources(results, **{"accuracy of run": accuracies, "weights": weights})
    cache = _Cache(files_of(control, profile).results, sources)
    if compute:
        cache.fill(probed, partial(_probe_cifar10, profile, results, control), progress)
    return cache.read(probed)


def _results_of(probed: Mapping[str, Experiment], profile: str) -> dict[str, dict]:
    """By the name of the features: the result of their run, where there is one."""
    results = collect(probed.values(), profile)
    return {label: results[each.name] for label, each in probed.items() if each.name in results}


def _sources(results: Mapping[str, dict], **columns: Mapping[str, str | float | None]) -> dict[str, dict]:
    """By the name of the features: these columns, and a digest of the images that their run learned from."""
    return {
        label: {
            **{column: values[label] for column, values in columns.items()},
            "images": digest_of_images(result.get("data", {})),
        }
        for label, result in results.items()
    }


def accuracies_by_stage(by_stage: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Test accuracies of tables of `probe_stages`: one line per features and probe, one column per stage."""
    if not by_stage:
        return pd.DataFrame()
    table = pd.concat(by_stage, names=["features"]).reset_index("features")
    return table.pivot_table(index=["features", "probe"], columns="stage", values="test_accuracy", sort=False)


def best_stages(by_stage: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The stage whose linear probe is the best on val, beside the last stage: one line per features.

    Columns: features, best stage, its test accuracy, last stage (the test accuracy of its linear probe).
    """
    lines = []
    for name, table in by_stage.items():
        best, test = _best_stage(table), _linear_probes(table)["test_accuracy"]
        lines.append((name, best, test[best], test.iloc[-1]))
    return pd.DataFrame(lines, columns=["features", "best stage", "its test accuracy", "last stage"])


def _linear_probes(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of the linear probes in a table of `probe_stages`, by stage."""
    return table[table["probe"] == "linear"].set_index("stage")


def _best_stage(table: pd.DataFrame) -> int:
    """The stage whose linear probe is the best on val; of equal ones the first."""
    return int(_linear_probes(table)["val_accuracy"].idxmax())


def write_pretext_epochs(experiments: Mapping[str, Experiment], profile: str, path: Path):
    """Write the figure of `results.pretext_epochs_table` as a file, unless its results are missing."""
    by_epoch = [each for each in experiments.values() if getattr(each, "pretext_run", None) in PRETEXTS_BY_EPOCH]
    pretexts = collect([pretext for each in by_epoch for pretext, _ in prerequisites(each, profile)], profile)
    table = pretext_epochs_table(collect(by_epoch, profile), pretexts)
    if not len(table):
        return
    controls = accuracies_without_pretext(collect([experiments[name] for name in PRETEXTS_BY_EPOCH.values()], profile))
    losses = {name: result["history"]["val_loss"] for name, result in pretexts.items()}
    figure = plots.draw_pretext_epochs(table, losses, controls)
    write_atomically(path, figure.savefig)
    plt.close(figure)


def pretexts_tried(
    by_stage: Mapping[str, pd.DataFrame], probed: Mapping[str, Experiment], profile: str
) -> pd.DataFrame:
    """How gentle a pretext with labels was and what its features achieve: one line per features, accuracies on val.

    `by_stage` and `probed` are by the name of the features.  Columns: features; learning rate, epochs and accuracy of
    the pretext; whose BatchNorm statistics the features use; the linear probes of stages 5 to 8, one by one and of all
    four together.  Features without a pretext have no values of one.
    """
    lines = []
    for label, table in by_stage.items():
        experiment = probed[label]
        if isinstance(experiment, ProbeExperiment):
            continue
        learning_rate = epoch = accuracy = None
        for pretext, epoch in prerequisites(experiment, profile):
            learning_rate = pretext.train.learning_rate
            for result in collect([pretext], profile).values():
                accuracy = result["history"]["val_accuracy"][epoch - 1]
        linear = _linear_probes(table)["val_accuracy"]
        lines.append(
            {
                "features": label,
                "pretext learning rate": learning_rate,
                "pretext epochs": epoch,
                "pretext accuracy": accuracy,
                "BatchNorm of": getattr(experiment, "batchnorm", "initial"),
                **{f"stage {stage}": linear[stage] for stage in (5, 6, 7, 8)},
                "stages 5 to 8 together": table["last_four_val"].iloc[0],
            }
        )
    types = {"pretext learning rate": object, "pretext epochs": "Int64"}  # shown as they are
    return pd.DataFrame(lines).astype(types) if lines else pd.DataFrame()


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.probes",
        description="Small classifiers on frozen features: by stage of the network, and by number of labels",
    )
    parser.add_argument("report", nargs="?", choices=("scenes", "cifar10"), default="scenes", help="default: scenes")
    add_data_options(parser)
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return run_command(lambda: _probe(options))


def _probe(options):
    names, collect_report = {
        "scenes": ((*SCENES.values(), *CLASSIFIER_EXPERIMENTS), collect_scenes),
        "cifar10": (CIFAR10.values(), collect_cifar10),
    }[options.report]
    print(collect_report(experiments_of(names, options), options.profile, compute=True, progress=True).note)


@dataclass(frozen=True)
class _Cache:
    """Tables in CSV files of one folder; the columns of its source say what each was computed from."""

    folder: Path
    sources: Mapping[str, Mapping]  # by the name of the features: the source of the results, see `is_made_from`

    def fill(
        self,
        probed: Mapping[str, Experiment],
        probe: Callable[[str, Experiment], dict[str, pd.DataFrame]],
        progress: bool,
    ):
        """Compute what is missing or stale.  `probe` returns tables by kind; that of kind "probes" comes last."""
        for label, source in tqdm(self.sources.items(), desc="probing", disable=not progress):
            path = self._path("probes", probed[label])
            if path.exists() and self._is_of(pd.read_csv(path), label):
                continue
            for kind, table in probe(label, probed[label]).items():
                table = table.assign(**{column: value for column, value in source.items() if value is not None})
                write_table(self._path(kind, probed[label]), table)

    def read(self, probed: Mapping[str, Experiment]) -> Probed:
        by_stage, fractions, places = (
            {
                label: pd.read_csv(self._path(kind, experiment))
                for label, experiment in probed.items()
                if self._path(kind, experiment).exists()
            }
            for kind in ("probes", "fractions", "tsne")
        )
        missing = [label for label in probed if label not in by_stage]
        stale = [label for label, table in by_stage.items() if not self._is_of(table, label)]
        return Probed(by_stage, fractions, places, missing, stale)

    def _path(self, kind: str, experiment: Experiment) -> Path:
        return self.folder / f"{kind}_{experiment.name}.csv"

    def _is_of(self, table: pd.DataFrame, label: str) -> bool:
        return label in self.sources and is_made_from(table, self.sources[label])


def _probe_scenes(
    profile: str, results: Mapping[str, dict], label: str, experiment: Experiment
) -> dict[str, pd.DataFrame]:
    model, loaders = _network_and_loaders(experiment, profile, results[label]["data"])
    stages = _features_of_splits(model, loaders)
    fractions = {}
    if label in SCENES_BY_LABELS:
        fractions["fractions"] = label_fractions(_at_stage(stages, -1), draws=DRAWS[profile])
    last_four = {split: (np.concatenate(features[5:], axis=1), labels) for split, (features, labels) in stages.items()}
    return {**fractions, "probes": probe_stages(stages).assign(last_four_val=linear_probe(last_four).val_accuracy)}


def _probe_cifar10(
    profile: str, results: Mapping[str, dict], control: Experiment, label: str, experiment: Experiment
) -> dict[str, pd.DataFrame]:
    control = replace(control, network=experiment.network)
    model, loaders = _network_and_loaders(control, profile, results[label]["data"])
    if experiment.name != CIFAR10_CONTROL:
        model.features.load_state_dict(load_weights(experiment, profile, prefix="features.")[0])
    stages = _features_of_splits(model, loaders)
    by_stage = probe_stages(stages)
    best = _best_stage(by_stage)
    fractions = label_fractions(_at_stage(stages, best), CIFAR10_IMAGES_PER_CLASS[profile], CIFAR10_DRAWS[profile])
    features, labels = _at_stage(stages, -1)["test"]
    places = pd.DataFrame(representation.tsne(features, CIFAR10_PERPLEXITY[profile]), columns=["x", "y"])
    purity = representation.neighbour_purity(features, labels, CIFAR10_NEIGHBORS[profile])
    return {
        "fractions": fractions.assign(stage=best),
        "tsne": places.assign(label=labels, purity=purity),
        "probes": by_stage,
    }


def _network_and_loaders(experiment: Experiment, profile: str, data: Mapping) -> tuple[SceneClassifier, Loaders]:
    """The network of an experiment, before any training, and its loaders; `data` is that of `loaders_of_run`."""
    loaders = loaders_of_run(data, experiment)
    torch.manual_seed(experiment.seed)  # of random features
    model, _ = build_model(experiment, loaders, profile)
    return model, loaders


def _features_of_splits(model: SceneClassifier, loaders) -> StagesOfSplits:
    """`stage_features` of each split of an experiment, computed once and cached in data/cache for every later use."""
    splits = {"train": loaders.train_in_order, "val": loaders.val, "test": loaders.test}
    return _cached_features(model, splits)


def _cached_features(model: SceneClassifier, splits: Mapping[str, DataLoader]) -> StagesOfSplits:
    weights, folded, found = digest_of_tensors(model.features.state_dict()), fold_batchnorm(model), {}
    for split, loader in splits.items():
        scenes, resize = loader.dataset.scenes, loader.dataset.resize
        images = [scenes.fingerprint, *scenes.names, resize, str(scenes.images.shape)]  # names: it may be a part
        made_from = hashlib.sha256(os.fsencode("\n".join([weights, str(model.flip_tta), *images]))).hexdigest()
        cache = root_folder() / "data" / "cache" / f"features-{made_from[:16]}.npz"
        found[split] = features_of(folded, loader, made_from, cache)
    return found


def _at_stage(features_by_split: StagesOfSplits, stage: int) -> Splits:
    return {split: (stages[stage], labels) for split, (stages, labels) in features_by_split.items()}


if __name__ == "__main__":
    sys.exit(main())
