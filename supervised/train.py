"""Train supervised experiments by name: `python -m supervised.train supervised_final --profile full`.

Finished runs are read back, interrupted ones go on; `--list` shows the rows.
"""

import sys

from accelerate import PartialState

from hyperparameter_search import rows_asked_for
from runs import build_parser, files_of, report, run_command, run_experiment, with_options
from supervised.dataloader import build_loaders
from supervised.models import build_model
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
    rows = [configure(row, options.profile, options.data, options.weights) for row in found]
    for experiment in [with_options(row, seed, options) for row in rows for seed in options.seeds]:
        files = files_of(experiment, options.profile)
        _, result = run_experiment(
            experiment,
            build_model,
            lambda row: build_loaders(row, options.skip_bad_images),
            files,
            device=options.device,
            overwrite=options.overwrite,
        )
        PartialState().print(report(files, result))  # once, however many processes there are


if __name__ == "__main__":
    sys.exit(main())
