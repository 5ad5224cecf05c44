"""Train supervised experiments by name: `python -m supervised.train supervised_final --profile full`.

Finished runs are read back, interrupted ones go on; `--list` shows the rows.
"""

import argparse
import sys
from dataclasses import replace

from accelerate import PartialState

from runs import files_of, run_experiment
from supervised.dataloader import build_loaders
from supervised.models import build_model
from supervised.settings import EXPERIMENTS, configure, find


def parse_arguments(arguments=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m supervised.train", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments, see --list")
    parser.add_argument("--list", action="store_true", help="show the experiments and end")
    parser.add_argument("--profile", choices=("quick", "full"), default="quick", help="full is the study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run a seed")
    parser.add_argument("--data", help="a prepared data set's name or a folder <split>/<class>/<image>")
    parser.add_argument("--weights", help="imagenet (full), random (quick), or the file of a state dict")
    parser.add_argument("--epochs", type=int, help="at most so many")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument("--overwrite", action="store_true", help="replace files of other settings")
    return parser.parse_args(arguments)


def experiment_of(name: str, seed: int, options: argparse.Namespace):
    """The row of this name with what the command line changes in it."""
    experiment = replace(configure(find(name), options.profile, options.data, options.weights), seed=seed)
    max_epochs = options.epochs if options.epochs is not None else experiment.train.max_epochs
    return replace(experiment, train=replace(experiment.train, precision=options.precision, max_epochs=max_epochs))


def main(arguments=None) -> int:
    """Run what the command line asks for; a user's mistake is answered in one sentence and exit code 2."""
    options = parse_arguments(arguments)
    if options.list:
        for row in EXPERIMENTS.values():
            print(f"{row.name:22} {row.question}")
        return 0
    try:
        if not options.names:
            raise ValueError("name at least one experiment; --list shows them")
        experiments = [experiment_of(name, seed, options) for name in options.names for seed in options.seeds]
        for experiment in experiments:
            files = files_of(experiment, options.profile)
            _, result = run_experiment(
                experiment,
                build_model,
                lambda row: build_loaders(row, options.skip_bad_images),
                files,
                device=options.device,
                overwrite=options.overwrite,
            )
            PartialState().print(  # once, however many processes there are
                f"{files.name}: test accuracy {result['test_accuracy']:.4f} (epoch {result['epoch']}, chosen on val), "
                f"course accuracy {result['course_accuracy']:.4f} (epoch {result['course_epoch']}), "
                f"initial weights: {result['initial_weights']['weights']}; {files.result}"
            )
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
