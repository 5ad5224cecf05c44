"""Search model inversion's learning rate and weight decay, for one filter of a trained run (Deceuninck 2023).

    python -m evaluation.inversion_search --model supervised_best --filter 70 --sampler grid

The objective is the median of an image's last ten losses: the last one alone would reward a lone spike.  Workers and
storage are those of hyperparameter_search.  Beside the journal lie its trials, the loss curve of each, and two images:
of the lowest loss, and of the lowest among those that converged.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torchvision.utils import save_image

from evaluation.model_inversion import Inversion, InversionSettings, Objective, filter_mean, invert

# What the second report left as it was, with its 0.1 for the norm of the gradient: of the image's here, not the model's.
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
    keep: Callable[[int, Inversion], None] | None = None,
) -> Callable:
    """The objective of a search over `learning_rate` and `weight_decay`: the final loss of one target's image.

    A trial reports its loss after each step and keeps whether it converged; `keep(number, inversion)` is given all of
    it.  The other arguments are those of `model_inversion.invert`.
    """

    def loss(trial) -> float:
        chosen = with_weight_decay(settings, trial.params["learning_rate"], trial.params["weight_decay"])
        inversion = invert(model, objective, [target], chosen, mean, std, progress=False)
        for step, value in enumerate(inversion.losses[0].tolist(), start=1):
            trial.report(value, step)
        trial.set_user_attr("converged", bool(inversion.converged[0]))
        if keep is not None:
            keep(trial.number, inversion)
        return float(inversion.final_losses[0])

    return loss


def loss_curves(study) -> pd.DataFrame:
    """The loss after each step (rows, counted from 1) of every trial that ended (columns, by its number)."""
    curves = {trial.number: trial.intermediate_values for trial in study.trials if trial.state.name == "COMPLETE"}
    return pd.DataFrame(curves).sort_index().rename_axis("step")


def best_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Of a search's trials, that of the lowest loss, and the lowest of those that converged, if any did."""
    lowest = {"lowest loss": trials["value"].idxmin()}
    if trials["converged"].any():
        lowest["lowest that converged"] = trials.loc[trials["converged"], "value"].idxmin()
    return trials.loc[list(lowest.values())].assign(which=list(lowest))
