"""Search model inversion's learning rate and weight decay, for one filter of a trained run (Deceuninck 2023).

    python -m evaluation.inversion_search --model supervised_augmented --filter 70 --sampler grid

The objective is the median of an image's last ten losses; the last one alone would reward a lone spike.  Files and
samplers are those of hyperparameter_search, and several processes can share a search.  Beside its file lie the table of
trials, their loss curves, and the images of the two trials that `best_trials` selects.
"""

import argparse
import glob
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torchvision.utils import save_image

from data.files import expanded, write_table
from evaluation.checkpoints import TrainedRun, load_trained
from evaluation.model_inversion import InversionSettings, Objective, filter_mean, invert
from evaluation.publish import load_run
from hyperparameter_search import SAMPLERS, SPACES, Search, format_parameters, open_study, read_trials, work
from runs import run_command

# What the second report did not vary; its 0.1 clipped the model's gradient, this clips the image's.
REPORT = InversionSettings(blur_sigma=1.0, blur_every=4, gradient_clip=0.1)
LAYER = "features.8.2"  # its filters are inverted
FILTER = 70  # the strongest of ImageNet's features
SEARCHED = ("learning_rate", "decay")  # fields of InversionSettings that a trial sets


def with_weight_decay(settings: InversionSettings, learning_rate: float, weight_decay: float) -> InversionSettings:
    """The settings with a learning rate, and with the decay of one step that the weight decay amounts to.

    SGD and AdamW decay by learning rate times weight decay, x.  The implicit form x / (1 + x) stays between 0 and 1
    for any x, where 1 - x would overshoot gray and throw the image back and forth.
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
    weights: str = "",
) -> Callable:
    """The objective of a search over `learning_rate` and `weight_decay`: the final loss of one target's image.

    A trial stores the loss of each step, whether it converged, and `weights`, the digest of the network's.  The other
    arguments are those of `model_inversion.invert`.
    """

    def loss(trial) -> float:
        chosen = with_weight_decay(settings, **trial.params)
        inversion = invert(model, objective, [target], chosen, mean, std, progress=False)
        trial.set_user_attr("losses", inversion.losses[0].tolist())
        trial.set_user_attr("converged", bool(inversion.converged[0]))
        trial.set_user_attr("weights", weights)
        return float(inversion.final_losses[0])

    return loss


def loss_curves(study: optuna.Study) -> pd.DataFrame:
    """The loss of each step (rows, counted from 1) in every finished trial (columns, by its number)."""
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    curves = pd.DataFrame({trial.number: trial.user_attrs["losses"] for trial in trials})
    return curves.set_axis(curves.index + 1).rename_axis("step")


def best_trials(trials: pd.DataFrame) -> dict[str, pd.Series]:
    """From the table of a search, the trial of the lowest loss, and the lowest of those that converged, if any did."""
    best = {"lowest": trials.loc[trials["value"].idxmin()]}
    converged = trials[_has_converged(trials)]
    if len(converged):
        best["lowest_converged"] = converged.loc[converged["value"].idxmin()]
    return best


def _has_converged(trials: pd.DataFrame) -> pd.Series:
    """Whether each trial has; one that was pruned has not, and its cell is empty."""
    return trials["converged"].eq(True)


def best_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The `best_trials` of each sampler's table, one line each."""
    columns = ["learning_rate", "weight_decay", "value", "trial", "converged"]
    return pd.DataFrame(
        {
            f"{sampler}: {which.replace('_', ', ')}": trial[columns]
            for sampler, table in tables.items()
            for which, trial in best_trials(table).items()
        }
    ).T


def best_pictures(tables: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """The images of the `best_trials` of each sampler, uint8 (3, S, S), from the files beside its table."""
    return {
        f"{sampler}: {which.replace('_', ', ')}": np.asarray(
            Image.open(path.with_suffix(f".{which}.png")).convert("RGB")
        ).transpose(2, 0, 1)
        for sampler, path in tables.items()
        for which in best_trials(read_trials(path))
    }


def describe(sampler: str, table: pd.DataFrame) -> str:
    """How many trials a search had, how many of them converged, and how many ended at a dead filter's loss of 0."""
    converged = table[_has_converged(table)]
    dead = int((converged["value"].abs() < 0.01).sum())
    return f"{sampler} with {len(table)} trials, {len(converged)} converged, {dead} of them within 0.01 of a loss of 0"


def file_of(folder: Path, name: str, sampler: str, filter_number: int = FILTER, seed: int = 0) -> Path:
    """The file of a search of one model's filter, by the model's name; its table and pictures lie beside it."""
    return folder / f"inversion_{name}_filter{filter_number}_{sampler}_seed{seed}.db"


def collect_inversions(
    name: str, checkpoint: Path, folder: Path, trials: int, steps: int, compute: bool = False
) -> dict[str, Path]:
    """The tables of the grid and the TPE search of a model, by sampler; `compute` runs those that are missing.

    Nothing is run for a model without a checkpoint here.
    """
    tables = {}
    for sampler in ("grid", "tpe"):
        table = file_of(folder, name, sampler).with_suffix(".csv")
        if compute and checkpoint.exists():
            run = load_trained(str(checkpoint))
            _remove_search_of_others(table, run.weights)
            if not _is_complete(table, trials):
                search_inversion(run, folder, sampler, trials, steps)
        if table.exists():
            tables[sampler] = table
    return tables


def _is_complete(table: Path, trials: int) -> bool:
    """Whether a search has all its trials, and the curves, which are written last."""
    return table.with_suffix(".curves.csv").exists() and table.exists() and len(read_trials(table)) >= trials


def _remove_search_of_others(table: Path, weights: str):
    """Remove what lies beside the table of a search, if that was of other weights; older tables do not name them."""
    found = read_trials(table).get("weights") if table.exists() else None
    if found is not None and not found.dropna().eq(weights).all():
        for path in table.parent.glob(f"{glob.escape(table.stem)}.*"):
            path.unlink()


def search_inversion(
    run: TrainedRun,
    folder: Path,
    sampler: str,
    trials: int,
    steps: int = InversionSettings.steps,
    filter_number: int = FILTER,
    seed: int = 0,
):
    """Search the settings for one filter of a run, and write everything below `folder`."""
    run = run.without_flip_tta()
    settings = replace(REPORT, image_size=run.image_size, steps=steps, seed=seed)
    fixed = {field: value for field, value in asdict(settings).items() if field not in SEARCHED}
    file = file_of(folder, run.name, sampler, filter_number, seed)
    subject = {"settings": {"name": f"inversion_{run.name}_filter{filter_number}", **fixed}, "model": run.weights}
    search = Search(file, subject, "inversion", sampler, seed)
    objective = filter_mean(run.layer(LAYER))
    with torch.inference_mode():  # an unknown filter is refused before anything is written
        objective(run.model, torch.zeros(1, 3, run.image_size, run.image_size), torch.tensor([filter_number]))
    file.with_suffix(".curves.csv").unlink(missing_ok=True)  # of fewer trials
    study = open_study(search, trials)
    work(search, study, inversion_loss(run.model, objective, filter_number, settings, run.mean, run.std, run.weights))
    for which, trial in best_trials(read_trials(search.table)).items():
        parameters = {parameter: trial[parameter] for parameter in SPACES["inversion"].distributions}
        chosen = with_weight_decay(settings, **parameters)
        images = invert(run.model, objective, [filter_number], chosen, run.mean, run.std, progress=False).images
        save_image(images, file.with_suffix(f".{which}.png"))
        print(f"{which}: loss {trial['value']:.4g} with {format_parameters(parameters)}; {search.table}")
    # Last: whoever finds it finds everything.
    write_table(file.with_suffix(".curves.csv"), loss_curves(study), index=True, float_format="%.5g")


def main(arguments=None) -> int:
    """Run the command line; a user's mistake gets one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.inversion_search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="RUN", help="a trained run's name, or its checkpoint")
    parser.add_argument("--filter", type=int, default=FILTER, help=f"of {LAYER}")
    parser.add_argument("--sampler", choices=SAMPLERS, default="grid")
    parser.add_argument("--trials", type=int, default=len(SPACES["inversion"].cells), help="in all, by all workers")
    parser.add_argument("--steps", type=int, default=InversionSettings.steps, help="of each inversion")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler and of the first image")
    parser.add_argument(
        "--output", type=expanded, default=Path("inversion_search"), help="folder of everything written"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: _search(options))


def _search(options):
    run = load_run(options.model)
    search_inversion(run, options.output, options.sampler, options.trials, options.steps, options.filter, options.seed)


if __name__ == "__main__":
    sys.exit(main())
