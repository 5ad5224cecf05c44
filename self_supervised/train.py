"""Train self-supervised experiments by name: `python -m self_supervised.train perturbation_classifier_tuned_3`.

A classifier's pretext is trained first if it has not been.  Finished runs are read back, interrupted ones go on;
`--list` shows the rows.
"""

import argparse
import sys
from functools import partial

from accelerate import PartialState

from hyperparameter_search import rows_asked_for
from runs import build_parser, files_of, load_features, report, run_command, run_experiment, with_options
from self_supervised.dataloader import build_loaders
from self_supervised.models import build_model
from self_supervised.settings import EXPERIMENTS, configure, find


def main(arguments=None) -> int:
    """Run what the command line asks for; a user's mistake is answered in one sentence and exit code 2."""
    options = build_parser("python -m self_supervised.train", __doc__).parse_args(arguments)
    if options.list:
        for row in EXPERIMENTS.values():
            print(f"{row.name:40} {row.question}")
        return 0
    return run_command(lambda: _train(options))


def _train(options):
    found = rows_asked_for(options.names, options.from_study, find)
    for row in [_configured(row, options) for row in found]:
        for seed in options.seeds:
            _run(with_options(row, seed, options), options)


def _configured(row, options):
    return configure(row, options.profile, options.data, options.weights)


def _run(experiment, options):
    files = files_of(experiment, options.profile)
    _, result = run_experiment(
        experiment,
        partial(build_model, load_pretext=partial(_load_pretext, options)),
        lambda row: build_loaders(row, options.skip_bad_images),
        files,
        device=options.device,
        overwrite=options.overwrite,
    )
    PartialState().print(report(files, result))  # once, however many processes there are


def _load_pretext(options, name, seed, epoch):
    """The features of a pretext run, trained here if the epoch is not there yet."""
    options = argparse.Namespace(**{**vars(options), "epochs": None})  # --epochs is the classifier's
    pretext = with_options(_configured(find(name), options), seed, options)
    files = files_of(pretext, options.profile)
    if not files.kept(epoch).exists():
        _run(pretext, options)
    return load_features(pretext, files, epoch)


if __name__ == "__main__":
    sys.exit(main())
