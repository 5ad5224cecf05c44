"""Train experiments by name, with the pretexts and teachers that they need.

    python train.py supervised_1 rotation_classifier_tuned --profile full --seeds 0 1 2
    python train.py --list                   every experiment, its question, its accuracy; finished runs of your own
    python train.py --show supervised_long   every setting of one experiment
    python train.py --study                  every experiment that has no result, several at a time

Finished runs are read back.  Interrupted runs continue after their last finished epoch.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from accelerate import PartialState

from data.files import root_folder, say_once
from data.prepare import DATA_SETS, locate
from experiments import (
    EXPERIMENTS,
    add_common_options,
    check_data,
    configure,
    find,
    initial_weights_text,
    prerequisites,
    refuse_unused_weights,
    with_unlabelled,
)
from hyperparameter_search import experiment_of_study
from loop.devices import PRECISIONS
from run_files import files_of, read, settings_of
from runs import check_tensorboard, run, run_command
from self_supervised.settings import ProbeExperiment
from study import say_failed, train_missing
from supervised.settings import BASE, Experiment


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments, see --list")
    parser.add_argument("--list", action="store_true", help="list the experiments with their accuracies, and end")
    parser.add_argument("--show", metavar="NAME", help="show every setting of an experiment and end")
    parser.add_argument("--study", action="store_true", help="train what has no result: of NAME..., or of all")
    parser.add_argument("--at-a-time", type=int, metavar="N", help="runs of --study side by side; by default what fits")
    parser.add_argument("--from-study", metavar="FILE", help="train the best trial of a hyper-parameter search (.csv)")
    add_common_options(parser)
    parser.add_argument(
        "--unlabeled",
        "--unlabelled",  # the spelling of the settings
        dest="unlabelled",
        metavar="FOLDER",
        help="add images without labels to the training images of byol and the like",
    )
    parser.add_argument(
        "--unlabeled-alone",
        "--unlabelled-alone",
        dest="unlabelled_alone",
        action="store_true",
        help="let these images take the place of the training images",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per seed")
    parser.add_argument("--epochs", type=int, help="train for at most this many epochs")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: that of the experiment")
    parser.add_argument("--log", choices=("tensorboard",), help="log each epoch, below models/<profile>/")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that have other settings, or lack an epoch"
    )
    return parser


def list_experiments(profile: str, **changes) -> str:
    """One line per experiment: name, test accuracy of a finished run of seed 0 or "-", question, what it is against.

    `changes` are those of `experiments.configure`, also in `show`.
    """
    lines, seen = [], {}
    for name, experiment in EXPERIMENTS.items():
        accuracy = _finished_accuracy(configure(experiment, profile, **changes), profile, seen)
        against = f" [against {experiment.compared_with}]" if experiment.compared_with else ""
        lines.append(f"{name:50} {accuracy:7} {experiment.question}{against}")
    own = own_runs(profile)
    return "\n".join([*lines, *(["", "On your own images:"] if own else []), *own])


def own_runs(profile: str) -> list[str]:
    """One line per finished run on data that are not prepared ones: <data>/<run>, test accuracy, number of classes."""
    lines = []
    for path in sorted((root_folder() / "results" / profile).glob("*/*.json")):
        result = _result_in(path)
        if result is not None and result["data"]["name"] not in DATA_SETS:
            name = f"{path.parent.name}/{path.stem}"
            lines.append(f"{name:50} {result['test_accuracy']:.4f}  {len(result['class_names'])} classes")
    return lines


def _result_in(path: Path) -> dict | None:
    """The result in a file, or None if it holds something else."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(result, dict) and {"data", "test_accuracy", "class_names"} <= result.keys()
    return result if known else None


def _finished_accuracy(experiment: Experiment, profile: str, seen: dict | None = None) -> str:
    try:
        result = read(experiment, profile, seen)
    except ValueError:
        return "stale"  # of other settings
    return "-" if result is None else f"{result['test_accuracy']:.4f}"


def show(experiment: Experiment, profile: str, **changes) -> str:
    """Every setting, one per line; * marks those that differ from the experiment it is compared with, or from BASE."""
    base = find(experiment.compared_with) if experiment.compared_with else BASE
    settings, of_base = (_flat(settings_of(configure(each, profile, **changes))) for each in (experiment, base))
    lines = [f"{experiment.name}: {experiment.question}", f"(* differs from {base.name})"]
    for name, value in settings.items():
        mark = "*" if name not in of_base or of_base[name] != value else " "
        lines.append(f"{mark} {name} = {value}")
    finished = _finished_accuracy(configure(experiment, profile, **changes), profile)
    return "\n".join(
        [
            *lines,
            f"test accuracy of a finished run: {finished}",
            f"reproduce it: python train.py {experiment.name} --profile {profile}{_options_of(**changes)}",
        ]
    )


def _options_of(data: str | None = None, weights: str | None = None, max_epochs: int | None = None) -> str:
    """The options that ask for these changes."""
    given = {"--data": data, "--weights": weights, "--epochs": max_epochs}
    return "".join(f" {option} {shlex.quote(str(value))}" for option, value in given.items() if value is not None)


def _flat(settings: dict) -> dict:
    training = settings.pop("train")
    return {**settings, **{f"train.{name}": value for name, value in training.items()}}


def summary(experiment: Experiment, profile: str, result: dict) -> str:
    """A finished run in one line."""
    chosen = "the last" if experiment.train.keep == "last" else "chosen on val"
    return (
        f"{result['name']}: test accuracy {result['test_accuracy']:.4f} (epoch {result['epoch']}, {chosen}), "
        f"earlier protocol {result['earlier_protocol_accuracy']:.4f} (epoch {result['earlier_protocol_epoch']}), "
        f"initial weights: {initial_weights_text(result['initial_weights'])}; {files_of(experiment, profile).result}"
    )


def train_all(options: argparse.Namespace):
    """Run what the command line names.  Raises ValueError if it names nothing, and what `runs.run` raises."""
    found = [find(name) for name in options.names]
    if options.from_study:
        found.append(experiment_of_study(options.from_study, options.data))
    if not found:
        raise ValueError("name at least one experiment; --list shows them")
    if options.at_a_time is not None:
        raise ValueError("--at-a-time is an option of --study")
    for experiment in found:
        refuse_unused_weights(experiment, options.weights)
    if options.log is not None:
        check_tensorboard()
    if options.unlabelled is not None:
        found = [with_unlabelled(each, options.unlabelled, options.unlabelled_alone) for each in found]
        if options.data is None:
            _check_labeled(found)
    elif options.unlabelled_alone:
        raise ValueError("--unlabeled-alone says what --unlabeled FOLDER is for; name the folder")
    changes = _changes_of(options)
    for experiment in found:
        for seed in options.seeds:
            configured = configure(experiment, options.profile, seed=seed, **changes)
            if options.epochs is not None:
                _say_whose_epochs(configured, options)
            _, result = run(
                configured,
                options.profile,
                device=options.device,
                precision=options.precision,
                overwrite=options.overwrite,
                skip_bad_images=options.skip_bad_images,
                log=options.log is not None,
            )
            PartialState().print(summary(configured, options.profile, result))  # once, by the main process


def _check_labeled(experiments: list[Experiment]):
    """Raise FileNotFoundError where the labeled images are missing that --unlabeled needs beside its own."""
    for experiment in experiments:
        try:
            locate(experiment.data)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"--unlabeled needs labeled images too, by which {experiment.name} is evaluated; "
                f"name them with --data ({error})"
            ) from error


def _say_whose_epochs(experiment: Experiment, options: argparse.Namespace):
    """Say where --epochs does not apply: to a probe, which is fitted, and to what an experiment starts from.

    Raises ValueError where the command also names what the experiment starts from: with other epochs it does not fit.
    """
    unchanged = [experiment.name] * isinstance(experiment, ProbeExperiment)
    for needed, _ in prerequisites(experiment, options.profile):
        if needed.name in options.names and needed.train.max_epochs != options.epochs:
            raise ValueError(
                f"{experiment.name} needs all {needed.train.max_epochs} epochs of {needed.name}; "
                "with --epochs name one of both"
            )
        unchanged.append(needed.name)
    if unchanged:
        say_once(f"--epochs does not change {' and '.join(dict.fromkeys(unchanged))}")


def train_study(options: argparse.Namespace) -> int:
    """Train every run that is missing, after saying how long it will take; 1 if one failed, else 0."""
    if options.from_study or options.unlabelled or options.unlabelled_alone:
        raise ValueError("--study cannot be combined with --from-study or --unlabeled")
    if options.at_a_time is not None and options.at_a_time < 1:
        raise ValueError(f"--at-a-time is {options.at_a_time}; it must be at least 1")
    check_data(options.data)  # or every run would fail
    same = ["--device", options.device]
    same += [] if options.log is None else ["--log", options.log]
    same += ["--skip-bad-images"] * options.skip_bad_images
    failed = train_missing(
        options.names or EXPERIMENTS,
        options.profile,
        options.seeds,
        every=not options.names,
        options=same,
        at_a_time=options.at_a_time,
        overwrite=options.overwrite,
        precision=options.precision,
        **_changes_of(options),
    )
    say_failed(failed)
    return 1 if failed else 0


def _described(options: argparse.Namespace) -> str:
    check_data(options.data)
    if options.list:
        return list_experiments(options.profile, **_changes_of(options))
    return show(find(options.show), options.profile, **_changes_of(options))


def _changes_of(options: argparse.Namespace) -> dict:
    """What the options change of an experiment, as `experiments.configure` takes it."""
    return {"data": options.data, "weights": options.weights, "max_epochs": options.epochs}


def main(arguments: list[str] | None = None) -> int:
    """Answer the command line; a user's mistake gets one sentence and exit code 2."""
    options = build_parser().parse_args(arguments)
    if options.list or options.show:
        return run_command(lambda: print(_described(options)))
    return run_command(lambda: train_study(options) if options.study else train_all(options))


if __name__ == "__main__":
    sys.exit(main())
