"""Train supervised experiments by name: `python -m supervised.train supervised_final --profile full`.

Finished runs are read back, interrupted ones go on; `--list` shows the rows.
"""

import argparse
import sys
from functools import partial

from accelerate import PartialState

from hyperparameter_search import rows_asked_for
from runs import build_parser, files_of, load_weights, report, run_command, run_experiment, with_options
from supervised.dataloader import build_loaders
from supervised.models import build_model, build_teacher
from supervised.settings import ALL_EXPERIMENTS, configure, find


def main(arguments=None) -> int:
    """Run what the command line asks for; a user's mistake is answered in one sentence and exit code 2."""
    options = build_parser("python -m supervised.train", __doc__).parse_args(arguments)
    if options.list:
        for row in ALL_EXPERIMENTS.values():
            print(f"{row.name:34} {row.question}")
        return 0
    return run_command(lambda: _train(options))


def _train(options):
    found = rows_asked_for(options.names, options.from_study, find)
    for experiment in [_configured(row, seed, options) for row in found for seed in options.seeds]:
        _run(experiment, options)


def _configured(row, seed, options):
    return with_options(configure(row, options.profile, options.data, options.weights), seed, options)


def _run(experiment, options):
    files = files_of(experiment, options.profile)
    _, result = run_experiment(
        experiment,
        build_model,
        lambda row: build_loaders(row, options.skip_bad_images),
        files,
        build_teacher=partial(build_teacher, load_run=partial(_load_run, options)),
        device=options.device,
        overwrite=options.overwrite,
    )
    PartialState().print(report(files, result))  # once, however many processes there are


def _load_run(options, name, seed):
    """A run that teaches, trained here if it is not there yet."""
    options = argparse.Namespace(**{**vars(options), "epochs": None})  # --epochs is the pupil's
    row = _configured(find(name), seed, options)
    files = files_of(row, options.profile)
    if not files.checkpoint.exists():
        _run(row, options)
    return row, *load_weights(row, files, "best")


if __name__ == "__main__":
    sys.exit(main())
