"""Search model inversion's learning rate and weight decay, for one filter of a trained run (Deceuninck 2023).

    python -m evaluation.inversion_search --model supervised_augmented --filter 70 --sampler grid

The objective is the median of an image's last ten losses: the last one alone would reward a lone spike.  Storage and
samplers are those of hyperparameter_search.  Beside the journal lie its trials, the loss curve of each, and two images:
of the lowest loss, and of the lowest among those that converged.  Started several times, it shares the work.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pandas as pd
from torch import nn
from torchvision.utils import save_image

from evaluation.model_inversion import InversionSettings, Objective, filter_mean, invert

# What the second report left as it was; its 0.1 clipped the model's gradient, this clips the image's.
REPORT = InversionSettings(blur_sigma=1.0, blur_every=4, gradient_clip=0.1)


def with_weight_decay(settings: InversionSettings, learning_rate: float, weight_decay: float) -> InversionSettings:
    """The settings with a learning rate, and the share that a weight decay takes from every pixel in one step.

    The product of both, as SGD and AdamW have it, but in the implicit form x / (1 + product): it is a share of 0 to 1
    however high the two are, where the explicit 1 - product overshoots grey and throws the image back and forth.
    """
    product = learning_rate * weight_decay
    return replace(settings, learning_rate=learning_rate, decay=product / (1 + product))


def inversion_loss(
    model: nn.Module,
    objective: Objective,
    target: int,
    settings: InversionSettings,
    mean: Sequence[float],
    std: Sequence[float],
) -> Callable:
    """The objective of a search over `learning_rate` and `weight_decay`: the final loss of one target's image.

    A trial reports the loss of each step and keeps whether it converged.  The arguments are those of
    `model_inversion.invert`.
    """

    def loss(trial) -> float:
        chosen = with_weight_decay(settings, trial.params["learning_rate"], trial.params["weight_decay"])
        inversion = invert(model, objective, [target], chosen, mean, std, progress=False)
        for step, value in enumerate(inversion.losses[0].tolist(), start=1):
            trial.report(value, step)
        trial.set_user_attr("converged", bool(inversion.converged[0]))
        return float(inversion.final_losses[0])

    return loss


def loss_curves(study: optuna.Study) -> pd.DataFrame:
    """The loss of each step (rows, counted from 1) in every finished trial (columns, by its number)."""
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return pd.DataFrame({trial.number: trial.intermediate_values for trial in trials}).rename_axis("step")


def best_trials(trials: pd.DataFrame) -> dict[str, pd.Series]:
    """Of a search's table, the trial of the lowest loss, and the lowest of those that converged, if any did."""
    best = {"lowest": trials.loc[trials["value"].idxmin()]}
    converged = trials[trials["converged"]]
    if len(converged):
        best["lowest_converged"] = converged.loc[converged["value"].idxmin()]
    return best


def main(arguments=None) -> int:
    """Answer the command line; a user's mistake gets one sentence and exit code 2."""
    from hyperparameter_search import INVERSION, SAMPLERS
    from runs import run_command  # here, so that the functions above need nothing of ours

    parser = argparse.ArgumentParser(prog="python -m evaluation.inversion_search", description=__doc__)
    parser.add_argument("--model", required=True, metavar="RUN", help="a trained run's name, or its checkpoint")
    parser.add_argument("--filter", type=int, default=70, help="of features.8; 70 is the strongest of ImageNet's")
    parser.add_argument("--sampler", choices=SAMPLERS, default="grid")
    parser.add_argument("--trials", type=int, default=len(INVERSION.cells), help="in all, by all workers")
    parser.add_argument("--steps", type=int, default=InversionSettings.steps, help="of each inversion")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler and of the first image")
    parser.add_argument("--output", type=Path, default=Path("inversion_search"), help="folder of journal and tables")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return run_command(lambda: _search(options))


def _search(options):
    from evaluation.checkpoints import load_trained
    from hyperparameter_search import INVERSION, open_study, trials_table, work, write_table

    run = load_trained(options.model).without_mirror_image()
    settings = replace(REPORT, image_size=run.image_size, steps=options.steps, seed=options.seed)
    name = f"inversion_{run.name}_filter{options.filter}"
    fixed = {key: value for key, value in asdict(settings).items() if key not in ("learning_rate", "decay")}
    path = options.output / f"{name}_{options.sampler}_seed{options.seed}.journal"
    identity = {"settings": {"name": name, **fixed}, "space": "inversion"}
    study = open_study(str(path), identity, INVERSION, options.trials, options.sampler, options.seed)
    layer = filter_mean(run.layer("features.8.2"))
    loss = inversion_loss(run.model, layer, options.filter, settings, run.mean, run.std)
    work(study, str(path), loss, INVERSION)
    write_table(study, str(path))
    loss_curves(study).to_csv(path.with_suffix(".curves.csv"), float_format="%.5g")
    for which, trial in best_trials(trials_table(study)).items():
        chosen = with_weight_decay(settings, trial["learning_rate"], trial["weight_decay"])
        images = invert(run.model, layer, [options.filter], chosen, run.mean, run.std, progress=False).images
        save_image(images, path.with_suffix(f".{which}.png"))
        print(
            f"{which}: loss {trial['value']:.4g} with learning_rate {trial['learning_rate']:.3g}, "
            f"weight_decay {trial['weight_decay']:.3g}; {path.with_suffix('.csv')}"
        )


if __name__ == "__main__":
    sys.exit(main())
