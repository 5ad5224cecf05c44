"""Numbers from searches: the lowest loss of each sampler after so many trials, and the samplers compared.

`trials` is the table of any number of searches, one row per trial, with the columns sampler, seed, trial and value (the
loss; empty if pruned).
"""

import itertools
import warnings

import matplotlib.pyplot as plt
import optuna
import pandas as pd
from optuna.visualization import matplotlib as optuna_plots
from scipy.stats import friedmanchisquare

from evaluation import statistics
from hyperparameter_search import study_of_table

LOSS = "val loss (nats per image)"


def best_so_far(trials: pd.DataFrame) -> pd.DataFrame:
    """The lowest loss that each search (rows: sampler, seed) has found after 1, 2, ... trials (columns).

    There are as many columns as the shortest search has trials, so that all are compared at the same budget.
    """
    ordered = trials.sort_values("trial")
    number = ordered.groupby(["sampler", "seed"]).cumcount() + 1
    values = ordered.assign(trials=number).pivot(index=["sampler", "seed"], columns="trials", values="value")
    budget = trials.groupby(["sampler", "seed"]).size().min()
    return values.loc[:, :budget].cummin(axis=1).ffill(axis=1)


def best_losses(trials: pd.DataFrame) -> pd.DataFrame:
    """The lowest loss at equal budget: one row per seed, one column per sampler; only seeds that all samplers have."""
    return best_so_far(trials).iloc[:, -1].unstack("sampler").dropna()


def compare_samplers(losses: pd.DataFrame) -> pd.DataFrame:
    """Compare every two samplers of `best_losses` by their differences at equal seeds: one row per pair.

    A seed gives all samplers the same images and the same random numbers, so the difference is due to the sampler.
    `low` to `high` is the interval of its mean at level 1 - 0.05/m for m pairs, p is corrected likewise
    (`statistics.mean_difference`).  `verdict` is that of the first sampler, where a lower loss is better.
    Raises ValueError for fewer than 2 seeds.
    """
    pairs = list(itertools.combinations(losses, 2))
    rows = []
    for first, second in pairs:
        differences = losses[first] - losses[second]
        mean = statistics.mean_difference(differences, comparisons=len(pairs))
        rows.append(
            {
                "first": first,
                "second": second,
                "difference": mean.difference,
                "low": mean.low,
                "high": mean.high,
                "first lower in": int((differences < 0).sum()),
                "seeds": len(losses),
                "p": mean.p_value,
                "verdict": statistics.verdict(-mean.difference, mean.p_value),
            }
        )
    return pd.DataFrame(rows)


def rank_test(losses: pd.DataFrame) -> float:
    """The p value of Friedman's test (1937) that all samplers of `best_losses` rank alike; needs 3 samplers."""
    return float(friedmanchisquare(*(losses[sampler] for sampler in losses)).pvalue)


def winners(losses: pd.DataFrame) -> pd.Series:
    """The number of seeds in which each sampler of `best_losses` found the lowest loss; the first one wins a tie."""
    return losses.idxmin(axis=1).value_counts().reindex(losses.columns, fill_value=0)


def summary(losses: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """One line per sampler of `best_losses`: its losses over the seeds, how often it was the lowest, and its speed."""
    return pd.DataFrame(
        {
            "mean": losses.mean(),
            "standard deviation": losses.std(),
            "lowest": losses.min(),
            "highest": losses.max(),
            "seeds won": winners(losses),
            "mean rank": losses.rank(axis=1).mean(),
            "seconds per trial": trials.groupby("sampler")["seconds"].median(),
        }
    )


def draw_parameters(trials: pd.DataFrame) -> dict[str, float]:
    """Draw Optuna's parallel coordinates and importances of trials; returns the variance each parameter explains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Optuna's plots with matplotlib are
        study = study_of_table(trials)
        with plt.rc_context():  # Optuna changes the style
            ax = optuna_plots.plot_parallel_coordinate(study, target_name=LOSS)
            ax.set_title("All trials")
            ax.set_xticks(ax.get_xticks(), [label.get_text().replace("_", " ") for label in ax.get_xticklabels()])
            plt.gcf().set_size_inches(7, 3.6)
            ax = optuna_plots.plot_param_importances(study, target_name=LOSS)
            ax.set(xlabel="share of the variance of the val loss", ylabel="")
            ax.set_title("", loc="left")
            ax.set_yticks(ax.get_yticks(), [label.get_text().replace("_", " ") for label in ax.get_yticklabels()])
            ax.get_legend().remove()
            plt.gcf().set_size_inches(7, 1.8)
    return optuna.importance.get_param_importances(study)
