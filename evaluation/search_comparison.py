"""Numbers from searches: what each sampler found, after how many trials, and whether the difference is more than luck.

`trials` is a table with a row a trial and the columns sampler, seed, trial and value (the loss; empty if pruned), of
any number of searches.
"""

import numpy as np
import pandas as pd
from scipy.stats import friedmanchisquare, ttest_rel

from evaluation.metrics import holm, verdict


def best_so_far(trials: pd.DataFrame) -> pd.DataFrame:
    """The lowest loss that each search (rows: sampler, seed) has found after 1, 2, ... trials (columns).

    As many columns as the shortest search has trials: what is compared has the same budget.
    """
    ordered = trials.sort_values("trial")
    number = ordered.groupby(["sampler", "seed"]).cumcount() + 1
    values = ordered.assign(trials=number).pivot(index=["sampler", "seed"], columns="trials", values="value")
    budget = trials.groupby(["sampler", "seed"]).size().min()
    return values.loc[:, :budget].cummin(axis=1).ffill(axis=1)


def best_losses(trials: pd.DataFrame) -> pd.DataFrame:
    """The lowest loss at equal budget: a row a seed, a column a sampler; only seeds that all samplers have."""
    return best_so_far(trials).iloc[:, -1].unstack("sampler").dropna()


def compare_samplers(losses: pd.DataFrame) -> pd.DataFrame:
    """Every two samplers of `best_losses` by their differences seed for seed: a row a pair.

    A seed gives all samplers the same images and the same trainings, so their difference is the sampler's alone.  Its
    mean has the 95 % interval of Student's t (`from`, `to`), and p is the paired t test's, corrected for the number of
    pairs (Holm 1979).  "first is" goes by the corrected one; lower is better.
    Raises ValueError for fewer than 2 seeds.
    """
    seeds = len(losses)
    if seeds < 2:
        raise ValueError(f"there is {seeds} seed; a spread needs at least 2")
    rows = []
    for place, first in enumerate(losses):
        for second in losses.columns[place + 1 :]:
            differences = losses[first] - losses[second]
            test = ttest_rel(losses[first], losses[second])
            low, high = test.confidence_interval()
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "difference": differences.mean(),
                    "from": low,
                    "to": high,
                    "first lower in": int((differences < 0).sum()),
                    "seeds": seeds,
                    "p": 1.0 if np.isnan(test.pvalue) else test.pvalue,  # not a number where no seed differs
                }
            )
    table = pd.DataFrame(rows)
    table["p (Holm)"] = holm(table["p"])
    table["first is"] = [verdict(-each["difference"], each["p (Holm)"]) for each in table.to_dict("records")]
    return table


def rank_test(losses: pd.DataFrame) -> float:
    """The p value of Friedman's test (1937) that all samplers of `best_losses` are ranked alike; needs 3 samplers."""
    return float(friedmanchisquare(*(losses[sampler] for sampler in losses)).pvalue)


def winners(losses: pd.DataFrame) -> pd.Series:
    """In how many seeds each sampler of `best_losses` found the lowest loss; of equal ones the first."""
    return losses.idxmin(axis=1).value_counts().reindex(losses.columns, fill_value=0)
