import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from evaluation.search_comparison import (
    best_losses,
    best_so_far,
    compare_samplers,
    draw_parameters,
    rank_test,
    summary,
    winners,
)
from evaluation.statistics import mean_difference


def trials_of(**values) -> pd.DataFrame:
    """Trials by sampler: one list of values per seed."""
    rows = [
        {"sampler": sampler, "seed": seed, "trial": number, "value": value}
        for sampler, seeds in values.items()
        for seed, search in enumerate(seeds)
        for number, value in enumerate(search)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)  # the order of a table's rows must not matter


def test_the_lowest_so_far_never_rises_and_a_pruned_trial_finds_nothing():
    curves = best_so_far(trials_of(tpe=[[3.0, 4.0, None, 1.0], [None, 2.0, 5.0, 2.5]]))
    assert curves.columns.tolist() == [1, 2, 3, 4]
    assert curves.loc[("tpe", 0)].tolist() == [3.0, 3.0, 3.0, 1.0]
    assert np.isnan(curves.loc[("tpe", 1), 1]) and curves.loc[("tpe", 1)].tolist()[1:] == [2.0, 2.0, 2.0]


def test_samplers_are_compared_at_the_budget_of_the_shortest_search():
    losses = best_losses(trials_of(grid=[[5.0, 4.0]], random=[[6.0, 5.5, 0.1]]))
    assert losses.loc[0].to_dict() == {"grid": 4.0, "random": 5.5}


def test_a_trial_that_ran_again_under_another_number_leaves_no_gap():
    trials = trials_of(tpe=[[3.0, 2.0, 1.0]])
    trials.loc[trials["trial"] == 2, "trial"] = 7
    assert best_so_far(trials).loc[("tpe", 0)].tolist() == [3.0, 2.0, 1.0]


def test_only_seeds_that_all_samplers_have_are_compared():
    losses = best_losses(trials_of(grid=[[1.0], [2.0]], random=[[3.0]]))
    assert losses.index.tolist() == [0]


def seeds_with(difference: float, noise: float) -> pd.DataFrame:
    """Losses of eight seeds that differ much, of two samplers that differ by this within each, with a little noise."""
    level, wobble = np.linspace(1, 3, 8), noise * np.array([1, -1, 1, -1, -1, 1, -1, 1])
    return pd.DataFrame({"tpe": level, "random": level + difference + wobble})


def test_a_small_difference_at_every_seed_is_found_though_the_seeds_differ_far_more():
    (pair,) = compare_samplers(seeds_with(0.05, 0.01)).to_dict("records")
    assert pair["difference"] == pytest.approx(-0.05)
    assert pair["low"] < -0.05 < pair["high"] < 0
    assert (pair["first lower in"], pair["seeds"], pair["verdict"]) == (8, 8, "better")


def test_a_difference_within_the_noise_is_inconclusive():
    (pair,) = compare_samplers(seeds_with(0.001, 0.05)).to_dict("records")
    assert pair["low"] < 0 < pair["high"] and pair["p"] > 0.05
    assert pair["verdict"] == "inconclusive"


def test_equal_samplers_are_inconclusive_and_one_seed_is_refused():
    losses = pd.DataFrame({"grid": [1.0, 2.0], "random": [1.0, 2.0]})
    assert compare_samplers(losses)["verdict"].tolist() == ["inconclusive"]
    with pytest.raises(ValueError, match="at least two"):
        compare_samplers(losses[:1])


def test_intervals_and_p_values_are_those_of_a_family_of_all_pairs():
    losses = seeds_with(0.05, 0.01).assign(gp=lambda table: 1.1 * table["tpe"], grid=lambda table: 2 * table["tpe"])
    table = compare_samplers(losses)
    assert len(table) == 6
    for pair in table.to_dict("records"):
        expected = mean_difference(losses[pair["first"]] - losses[pair["second"]], comparisons=6)
        assert (pair["low"], pair["high"], pair["p"]) == (expected.low, expected.high, expected.p_value)
        assert (pair["p"] < 0.05) == (pair["low"] > 0 or pair["high"] < 0) == (pair["verdict"] != "inconclusive")


def test_winners_are_counted_and_ranks_tested():
    losses = pd.DataFrame({"grid": [3.0, 3.0, 1.0, 3.0], "random": [2.0] * 4, "tpe": [1.0, 1.0, 3.0, 1.0]})
    assert winners(losses).to_dict() == {"grid": 1, "random": 0, "tpe": 3}
    always = pd.DataFrame({"grid": [3.0] * 8, "random": [2.0] * 8, "tpe": [1.0] * 8})
    assert rank_test(always) < 0.001 < rank_test(losses)


def test_the_summary_has_a_line_per_sampler_with_its_ranks_among_the_samplers():
    losses = pd.DataFrame({"grid": [3.0, 3.0, 1.0, 5.0], "random": [2.0] * 4, "tpe": [1.0, 1.0, 3.0, 1.0]})
    trials = pd.DataFrame({"sampler": ["tpe", "grid", "tpe", "random", "tpe"], "seconds": [1.0, 7.0, 2.0, 5.0, 9.0]})
    lines = summary(losses, trials).to_dict("index")
    assert list(lines["grid"].values()) == pytest.approx([3, (8 / 3) ** 0.5, 1, 5, 1, 2.5, 7])
    assert list(lines["random"].values()) == [2, 0, 2, 2, 0, 2, 5]
    assert list(lines["tpe"].values()) == pytest.approx([1.5, 1, 1, 3, 3, 1.5, 2])


def test_the_parameter_that_the_loss_depends_on_is_drawn_as_the_important_one():
    generator = np.random.default_rng(0)
    rates, sizes = 10 ** generator.uniform(-6, -2, 30), generator.integers(4, 17, 30)
    trials = pd.DataFrame({"learning_rate": rates, "batch_size": sizes, "value": np.log10(rates) ** 2})
    plt.close("all")  # figures of other tests
    shares = draw_parameters(trials.assign(state="COMPLETE", started=0.0, seconds=1.0))
    assert shares["learning_rate"] > 0.9 and sum(shares.values()) == pytest.approx(1)
    coordinates, importances = (plt.figure(number).axes[0] for number in plt.get_fignums())
    assert [label.get_text() for label in coordinates.get_xticklabels()][1:] == ["batch size", "learning rate"]
    assert [label.get_text() for label in importances.get_yticklabels()] == ["batch size", "learning rate"]
    plt.close("all")
