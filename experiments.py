"""Find an experiment by name, set its profile, data, initial weights and seed, and list the runs that it starts from.

An experiment of your own is found like the others once it is in `EXPERIMENTS`.
"""

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from data.files import expanded, say_once
from data.layouts import ALL_BELOW, is_split, list_splits
from data.prepare import locate
from loop.devices import DEVICES
from self_supervised import settings as self_supervised
from self_supervised.settings import ClassifierExperiment, JointEmbeddingExperiment, ProbeExperiment
from supervised import settings as supervised
from supervised.settings import Experiment

EXPERIMENTS = {**supervised.ALL_EXPERIMENTS, **self_supervised.EXPERIMENTS}  # an experiment of your own can be added
PROFILES = {"full": "the study", "quick": "small and short, to try the code; its numbers mean nothing"}
DATA_HELP = "a prepared data set, a folder [<split>/]<class>/<image>, or a table of files and labels (.csv)"


def find(name: str) -> Experiment:
    """The experiment of this name.  Raises ValueError that lists similar names."""
    if name not in EXPERIMENTS:
        similar = difflib.get_close_matches(name, EXPERIMENTS, n=5, cutoff=0.5)
        words = f"; similar names: {', '.join(similar)}" if similar else ""
        raise ValueError(f"there is no experiment {name!r}{words}; python train.py --list shows all")
    return EXPERIMENTS[name]


def check_run(experiment: Experiment, profile: str):
    """Raise ValueError for what is no experiment, such as the name of one, and for an unknown profile."""
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{experiment!r} is no experiment; experiments.find(name) gives the one of a name")
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; it must be {' or '.join(PROFILES)}")


def configure(
    experiment: Experiment,
    profile: str,
    *,
    data: str | None = None,
    weights: str | None = None,
    seed: int | None = None,
    max_epochs: int | None = None,
) -> Experiment:
    """The experiment as a profile runs it, on other data or from other weights where they are given.

    Without `weights`, full starts from those of the experiment and quick from random ones: quick needs no download.
    An experiment that asks for random weights keeps them; a probe, which is fitted, keeps its one epoch.
    Raises ValueError for what `check_run` refuses, for an empty name, and for data that are images without labels.
    """
    check_run(experiment, profile)
    for name, value in (("data", data), ("weights", weights)):
        if value is not None and not str(value).strip():
            raise ValueError(f"{name} is empty; give --{name} a value, or leave it out")
    if data is not None and expanded(data).name == ALL_BELOW:
        raise ValueError(f"data is {data}; images without labels can be added to those of a pretext, see --unlabeled")
    if profile == "quick":
        kinds = self_supervised.PretextExperiment, JointEmbeddingExperiment, ClassifierExperiment
        of_pretexts = isinstance(experiment, kinds)
        table = self_supervised if of_pretexts or experiment.name in self_supervised.EXPERIMENTS else supervised
        experiment = table.quick(experiment)
    if experiment.initial_weights != "random":
        own = "random" if profile == "quick" else experiment.initial_weights
        experiment = replace(experiment, initial_weights=own if weights is None else weights)
    if max_epochs is not None and not isinstance(experiment, ProbeExperiment):  # which is fitted, not trained
        experiment = replace(experiment, train=replace(experiment.train, max_epochs=max_epochs))
    changes = {name: value for name, value in (("data", data), ("seed", seed)) if value is not None}
    return replace(experiment, **changes)


def with_precision(experiment: Experiment, precision: str) -> Experiment:
    """The experiment in the precision that an option asks for; "auto" is that of the experiment."""
    if precision == "auto":
        return experiment
    return replace(experiment, train=replace(experiment.train, precision=precision))


def with_unlabelled(experiment: Experiment, folder: str, alone: bool = False) -> Experiment:
    """A joint-embedding pretext, or what starts from one, with more images: a new experiment, which is returned.

    `folder` is the name of a prepared data set or a folder with splits, of which the training images are added, or any
    other folder, of which all images are added.  With `alone` they take the place of the training images.  The names of
    the new experiments end in that of the folder; they are added to `EXPERIMENTS`.
    Raises ValueError for an experiment without views or with such images already, and for what is no folder, and
    FileNotFoundError for a folder that is not there.
    """
    root = locate(folder)
    if not root.is_dir():
        raise ValueError(f"--unlabeled is {folder}; it must be a folder of images")
    name = f"{experiment.name}_{'on' if alone else 'with'}_{re.sub(r'[^A-Za-z0-9_-]+', '_', root.name)}"
    if isinstance(experiment, JointEmbeddingExperiment):
        if experiment.unlabelled:
            raise ValueError(f"{experiment.name} has images of {experiment.unlabelled} already; leave out --unlabeled")
        unlabelled = str(root if is_split(root) else root / ALL_BELOW)
        added = replace(experiment, name=name, unlabelled=unlabelled, unlabelled_alone=alone)
        count = len(list_splits(locate(unlabelled))["train"].names)
        place = "take the place of" if alone else "are added to"
        say_once(f"{added.name}: {count:,} images of {root} {place} the training images, without labels")
    elif getattr(experiment, "pretext_run", "") and isinstance(find(experiment.pretext_run), JointEmbeddingExperiment):
        pretext = with_unlabelled(find(experiment.pretext_run), folder, alone)
        added = replace(experiment, name=name, pretext_run=pretext.name)
    else:
        raise ValueError(
            f"{experiment.name} takes no --unlabeled; joint-embedding pretexts (byol) and what starts from them "
            "(byol_classifier) take it, beside labeled images"
        )
    EXPERIMENTS[added.name] = added
    return added


def prerequisites(experiment: Experiment, profile: str) -> list[tuple[Experiment, int | str]]:
    """The runs that an experiment starts from, each with the epoch it needs: a pretext, or teachers.

    Raises ValueError for an epoch that such a run does not keep, for a pretext of another network, for images that it
    sees by another resize rule, and for a distilled network without teachers.
    """
    if getattr(experiment, "pretext_run", ""):
        name, seeds, epoch = experiment.pretext_run, (experiment.seed,), experiment.pretext_epoch
    elif experiment.has_teachers:
        for field in ("teacher_run", "teacher_seeds"):  # not refused before: defaults complete saved settings
            if not getattr(experiment, field):
                raise ValueError(f"{experiment.name}: {field} is empty; a distilled network needs teachers")
        name, seeds, epoch = experiment.teacher_run, experiment.teacher_seeds, "best"
    else:
        return []
    unchosen = profile == "full" and experiment.initial_weights == "imagenet"
    same = {"data": experiment.data, "weights": None if unchosen else experiment.initial_weights}
    needed = [configure(find(name), profile, seed=seed, **same) for seed in seeds]
    for each in needed:
        if epoch not in ("best", *each.save_epochs):
            kept = ", ".join(map(str, ("best", *each.save_epochs)))
            raise ValueError(f"{experiment.name} needs epoch {epoch} of {name}, which keeps {kept}; see save_epochs")
        if not isinstance(epoch, str) and epoch > each.train.max_epochs:
            raise ValueError(
                f"{experiment.name} needs epoch {epoch} of {name}, which ends after {each.train.max_epochs}"
            )
        for field in ("resize",) if experiment.has_teachers else ("network", "resize"):
            own, other = getattr(experiment, field), getattr(each, field)
            if own != other:
                raise ValueError(f"{experiment.name}: {field} is {own!r}, but that of {name} is {other!r}")
    return [(each, epoch) for each in needed]


def refuse_unused_weights(experiment: Experiment, weights: str | None):
    """Raise ValueError for weights that were asked for by an option, but that the experiment does not start from."""
    if weights not in (None, "", "random") and experiment.initial_weights == "random":
        raise ValueError(f"{experiment.name} starts from random weights and cannot use {weights}; leave out --weights")


def experiment_of(run: str) -> Experiment | None:
    """The experiment of a run by its name, <experiment> or <experiment>.seed<N>; None if there is none."""
    return EXPERIMENTS.get(re.sub(r"\.seed\d+$", "", run))


def initial_weights_text(initial_weights: Mapping) -> str:
    """What a run began with: a description of the weights, or the run and epoch of a pretext.

    Of a pretext that keeps its last epoch, "epoch best" is written as "last epoch": nothing was selected.
    """
    name, _, epoch = initial_weights["weights"].partition(", epoch ")
    pretext = experiment_of(name)
    keeps_last = epoch == "best" and pretext is not None and pretext.train.keep == "last"
    return f"{name}, last epoch" if keeps_last else initial_weights["weights"]


def add_data_options(parser: argparse.ArgumentParser):
    """The options that say which runs of experiments a command is about: --profile, --data, --weights."""
    parser.add_argument("--profile", choices=PROFILES, default="full", help="quick: small and short, to try the code")
    parser.add_argument("--data", help=DATA_HELP)
    parser.add_argument("--weights", help="initial weights: imagenet, random, or the file of a state dict")


def add_common_options(parser: argparse.ArgumentParser):
    """The options of every command that trains: those of data and weights, --skip-bad-images and --device."""
    add_data_options(parser)
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="mps is an Apple GPU")


def check_data(data: str | None):
    """Raise what `locate` raises for data that an option names: a mistyped folder would seem to have no results."""
    if data is not None:
        locate(data)


def experiments_of(names: Iterable[str], options: argparse.Namespace) -> dict[str, Experiment]:
    """Experiments by name, as the options of `add_data_options` say.  Raises what `find` and `locate` raise."""
    check_data(options.data)
    return {name: configure(find(name), options.profile, data=options.data, weights=options.weights) for name in names}
