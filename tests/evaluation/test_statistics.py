import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency, norm, ttest_1samp, ttest_ind, ttest_rel
from scipy.stats import t as student_t

from evaluation.statistics import (
    accuracy_interval,
    compare,
    compare_with_reported,
    correctness,
    estimate,
    mean_accuracy,
    mean_and_interval,
    mean_difference,
    p_bound,
    verdict,
)


def simulated(generator, images, runs, shift, image_spread, seed_spread):
    """Correctness (runs, images) of two sides whose images and seeds are random, and the true difference.

    An image is classified correctly if its ease, the side's skill on it, the seed's skill and noise exceed 0 in sum.
    """
    ease = generator.normal(1.5, 1, images)
    sides = []
    for mean in (0.0, shift):
        of_image = generator.normal(0, image_spread, images)
        of_seed = generator.normal(0, seed_spread, (runs, 1))
        sides.append(ease + mean + of_image + of_seed + generator.normal(0, 0.5, (runs, images)) > 0)
    spread = np.sqrt(1 + image_spread**2 + seed_spread**2 + 0.5**2)
    return sides[0].astype(float), sides[1].astype(float), norm.cdf(1.5 / spread) - norm.cdf((1.5 + shift) / spread)


@pytest.mark.parametrize(
    ("image_spread", "seed_spread"),
    [(0.5, 0.1), (0.8, 0.0), (0.0, 0.4)],
    ids=["images and seeds", "images alone", "seeds above all"],
)
def test_the_interval_covers_the_true_difference_over_random_images_and_three_random_seeds(image_spread, seed_spread):
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        one, other, truth = simulated(generator, 300, 3, 0.2, image_spread, seed_spread)
        found = compare(one, other)
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) >= 0.93


def test_equal_experiments_are_called_different_in_at_most_one_of_twenty_families():
    generator = np.random.default_rng(1)
    wrong = [
        any(
            compare(*simulated(generator, 200, 3, 0.0, 0.5, 0.1)[:2], comparisons=5).verdict != "inconclusive"
            for _ in "12345"
        )
        for _ in range(200)
    ]
    assert np.mean(wrong) <= 0.08  # 0.05 and two standard errors


@pytest.mark.parametrize("unequal", [1.0, 8.0])
def test_the_bound_of_p_keeps_the_level_of_a_family_where_three_seeds_are_most_of_the_variance(unequal):
    generator, comparisons, draws = np.random.default_rng(4), 20, 6000
    true = np.array([0.05, 1.0, unequal])  # of images, and of the seeds of each side
    freedom = np.array([300, 2, 2])
    means = generator.normal(0, true.sum() ** 0.5, draws)
    found = true * generator.chisquare(freedom, (draws, 3)) / freedom
    wrong = {estimate: 0 for estimate in ("satterthwaite", "bound")}
    for mean, variances in zip(means, found, strict=True):
        parts = list(zip(variances, freedom, strict=True))
        wrong["satterthwaite"] += estimate(mean, parts, comparisons)[2] < 0.05
        wrong["bound"] += p_bound(mean, parts, comparisons) < 0.05
    expected = draws * 0.05 / comparisons
    assert wrong["bound"] <= expected + 3 * expected**0.5
    assert wrong["satterthwaite"] > wrong["bound"]  # which is why there is a bound


def test_the_bound_of_p_is_p_without_seed_variance_and_unknown_with_a_single_run():
    generator = np.random.default_rng(5)
    one, other = (generator.random((3, 200)) < share for share in (0.9, 0.8))
    fixed = compare(one, other, deterministic=(True, True))
    assert fixed.p_bound == pytest.approx(fixed.p_value)
    assert compare(one, other).p_bound >= compare(one, other).p_value
    assert np.isnan(compare(one[:1], other).p_bound)


@st.composite
def two_sides(draw):
    images = draw(st.integers(2, 30))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    sides = [
        generator.random((draw(st.integers(1, 4)), images)) < draw(st.sampled_from([0.0, 0.3, 0.6, 0.95, 1.0]))
        for _ in range(2)
    ]
    return *(side.astype(float) for side in sides), draw(st.integers(1, 80))


@settings(max_examples=200, deadline=None)
@given(two_sides())
def test_p_is_below_5_percent_exactly_when_the_interval_excludes_0(sides):
    one, other, comparisons = sides
    found = compare(one, other, comparisons)
    assert -1 <= found.low <= found.difference <= found.high <= 1 and found.low < found.high
    assert 0 <= found.p_value <= 1
    assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0) == (found.verdict != "inconclusive")
    back = compare(other, one, comparisons)
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))
    assert back.p_value == pytest.approx(found.p_value)


def test_without_seed_variance_it_is_the_paired_t_test():
    generator = np.random.default_rng(2)
    one, other = (generator.random((3, 200)) < share for share in (0.9, 0.8))
    found = compare(one, other, deterministic=(True, True))
    expected = ttest_rel(one.mean(axis=0), other.mean(axis=0))
    assert found.p_value == pytest.approx(expected.pvalue) and not found.single_run
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_where_all_of_many_images_are_alike_it_is_welchs_test_of_the_accuracies():
    # An accuracy of 0.9 in every image leaves no variance over images, and so many images are hardly a sample.
    accuracies = np.array([0.90, 0.92, 0.91]), np.array([0.80, 0.85, 0.82, 0.84])
    one, other = (np.repeat(each[:, None], 100_000, axis=1) for each in accuracies)
    found, expected = compare(one, other), ttest_ind(*accuracies, equal_var=False)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-2)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-4)


def test_a_family_divides_the_level_and_multiplies_p():
    generator = np.random.default_rng(3)
    one, other = (generator.random((1, 500)) < share for share in (0.9, 0.86))
    alone, of_ten = compare(one, other), compare(one, other, comparisons=10)
    assert of_ten.p_value == pytest.approx(min(1, 10 * alone.p_value))
    expected = ttest_rel(one[0].astype(float), other[0].astype(float)).confidence_interval(1 - 0.05 / 10)
    assert (of_ten.low, of_ten.high) == pytest.approx(tuple(expected))


def test_a_side_with_one_run_is_marked_unless_it_is_deterministic():
    one, two = np.array([[1, 1, 0, 1.0]]), np.array([[1, 0, 0, 1.0], [1, 1, 0, 0]])
    assert compare(one, two).single_run and compare(two, one).single_run
    assert not compare(two, two).single_run
    assert not compare(one, two, deterministic=(True, False)).single_run
    images_only = ttest_rel(one[0], two.mean(axis=0)).confidence_interval(0.95)
    assert compare(one, two, deterministic=(False, True)).high == pytest.approx(min(1, images_only.high))


def test_the_seeds_of_each_side_widen_the_interval():
    generator = np.random.default_rng(4)
    one, other = (generator.random((3, 1000)) < share for share in (0.9, 0.85))
    widths = [
        found.high - found.low
        for fixed in ((True, True), (False, True), (False, False))
        for found in [compare(one, other, deterministic=fixed)]
    ]
    assert widths[0] < widths[1] < widths[2]


def agresti_and_min(one, other, freedom, comparisons=1):
    """Low and high from the table of Agresti and Min 2005, with 1/2 in each cell, by Student's t."""
    both, first, second, neither = (
        0.5 + np.sum((one == a) & (other == b)) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0))
    )
    images = both + first + second + neither
    error = np.sqrt(first + second - (first - second) ** 2 / images) / images
    reach = student_t.isf(0.025 / comparisons, freedom) * error
    return (first - second) / images - reach, (first - second) / images + reach


@pytest.mark.parametrize("comparisons", [1, 22])
@pytest.mark.parametrize("images", [2, 9, 2000])
def test_two_runs_that_agree_in_every_image_are_not_known_to_be_equal(images, comparisons):
    run = (np.arange(images) % 9 > 0).astype(float)
    found = compare(run, run, comparisons)
    assert (found.difference, found.p_value, found.verdict) == (0, 1, "inconclusive")
    low, high = agresti_and_min(run, run, images - 1, comparisons)
    assert (found.low, found.high) == pytest.approx((max(low, -1), min(high, 1)))
    assert found.low == -found.high < 0
    thirds = np.array([[1 / 3, 0.1], [1, 0.2], [1 / 3, 0.3]])  # in another order, their means differ by rounding
    assert compare(thirds, thirds[[2, 0, 1]]).high > 0.1
    more = compare(np.tile(run, 4), np.tile(run, 4), comparisons)
    assert more.high < found.high  # more images that agree show more


def test_runs_that_differ_by_the_same_in_every_image_have_an_interval_and_a_verdict():
    right, wrong = np.ones((2, 10)), np.zeros((2, 10))
    apart, back = compare(right, wrong), compare(wrong, right)
    low, high = agresti_and_min(right[0], wrong[0], 9)
    assert apart.difference == 1 and (apart.low, apart.high) == pytest.approx((low, min(high, 1)))
    assert (apart.verdict, back.verdict) == ("better", "worse") and back.low == -apart.high
    assert compare(right[:, :3], wrong[:, :3]).verdict == "inconclusive"  # three images show little


def test_seeds_widen_the_interval_of_sides_that_agree_in_every_image():
    runs = np.ones((3, 50))
    runs[1, :5] = 0
    images_only = compare(runs, runs, deterministic=(True, True))
    found = compare(runs, runs)
    assert (images_only.low, images_only.high) == pytest.approx(agresti_and_min(runs[0], runs[0], 49))
    assert (found.difference, found.p_value) == (0, 1) and found.high > images_only.high
    of_images, of_seeds = (1 / 52**2, 49), (runs.mean(axis=1).var(ddof=1) / 3, 2)
    assert (found.low, found.high) == pytest.approx(estimate(0, [of_images, of_seeds, of_seeds])[:2])


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.5, -7e5])
def test_equal_differences_have_no_variance_though_rounding_may_leave_some(value):
    three, ten = mean_difference([value] * 3), mean_difference([value] * 10)
    assert np.isnan([three.low, three.high, ten.low, ten.high]).all()
    assert three.verdict == "inconclusive" and ten.verdict == ("better" if value > 0 else "worse")
    assert ten.p_value == pytest.approx(binomtest(10, 10).pvalue)  # the sign test
    assert not np.isnan(mean_difference([value, value, value * (1 + 1e-6)]).low)


def test_a_reported_accuracy_counts_as_one_run_on_other_images():
    generator = np.random.default_rng(3)
    runs = (generator.random((3, 500)) < 0.9).astype(float)
    found = compare_with_reported(runs, 0.85, comparisons=2)
    images, seeds = runs.mean(axis=0), runs.mean(axis=1)
    parts = [(images.var(ddof=1) / 500, 499), (0.85 * 0.15 / 500, 499), (seeds.var(ddof=1) / 3, 2)]
    assert found.difference == pytest.approx(runs.mean() - 0.85)
    assert (found.low, found.high, found.p_value) == pytest.approx(estimate(found.difference, parts, 2))
    one = compare_with_reported(runs[:1], 0.85)
    table = [[runs[0].sum(), 500 - runs[0].sum()], [425, 75]]
    assert one.p_value == pytest.approx(chi2_contingency(table, correction=False).pvalue, rel=0.1)  # large samples


def test_sides_of_other_images_or_of_one_image_are_refused():
    with pytest.raises(ValueError, match="the same images, got 3 and 4"):
        compare(np.ones((1, 3)), np.ones((1, 4)))
    with pytest.raises(ValueError, match="at least two"):
        compare(np.ones((1, 1)), np.ones((1, 1)))
    with pytest.raises(ValueError, match="comparisons is 0"):
        compare(np.eye(3), np.ones((3, 3)), comparisons=0)


def test_correctness_counts_the_copies_of_an_image_as_one_image():
    assert correctness([0, 1, 2], [[0, 1, 0], [1, 1, 2]]).tolist() == [[1, 1, 0], [0, 1, 1]]
    assert correctness([0, 1, 0, 1], [0, 1, 1, 1], copies=2).tolist() == [[1, 0.5]]
    with pytest.raises(ValueError, match="3 labels"):
        correctness([0, 1, 2], [[0, 1]])
    with pytest.raises(ValueError, match="2 copies"):
        correctness([0, 1, 2], [[0, 1, 2]], copies=2)


def test_the_accuracy_interval_is_wilsons():
    hits, images, z = 90, 100, 1.959963984540054
    center = (hits / images + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * np.sqrt(0.9 * 0.1 / images + z**2 / (4 * images**2))
    assert accuracy_interval(hits, images) == pytest.approx((center - half, center + half))


def test_the_accuracy_of_one_run_has_wilsons_interval_and_that_of_several_covers_seeds_too():
    generator = np.random.default_rng(5)
    runs = (generator.random((3, 400)) < np.array([[0.7], [0.72], [0.68]])).astype(float)
    one = mean_accuracy(runs[:1])
    assert one == pytest.approx((runs[0].mean(), *accuracy_interval(int(runs[0].sum()), 400)))
    mean, low, high = mean_accuracy(runs)
    images, seeds = runs.mean(axis=0), runs.mean(axis=1)
    parts = [(images.var(ddof=1) / 400, 399), (seeds.var(ddof=1) / 3, 2)]
    assert (low, high) == pytest.approx(estimate(mean, parts)[:2]) and mean == pytest.approx(runs.mean())
    assert high - low > one[2] - one[1]
    assert mean_accuracy(np.repeat(runs[:1], 3, axis=0), deterministic=True) == pytest.approx(one)
    assert mean_accuracy(np.ones((2, 5))) == pytest.approx((1, *accuracy_interval(5, 5)))


def test_a_mean_difference_is_the_one_sample_t_test():
    differences = [0.1, 0.3, -0.05, 0.2]
    found, expected = mean_difference(differences, comparisons=3), ttest_1samp(differences, 0)
    assert found.difference == pytest.approx(np.mean(differences))
    assert found.p_value == pytest.approx(3 * expected.pvalue) and found.verdict == "inconclusive"
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(1 - 0.05 / 3)))
    assert mean_difference([-1, -1.1, -0.9]).verdict == "worse"
    with pytest.raises(ValueError, match="at least two"):
        mean_difference([0.1])


def test_the_interval_of_a_mean_is_students_and_one_measurement_has_none():
    values = [0.5, 0.6, 0.8]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_and_interval(values) == pytest.approx((np.mean(values), expected.low, expected.high))
    assert mean_and_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    mean, low, high = mean_and_interval([0.5])
    assert mean == 0.5 and np.isnan(low) and np.isnan(high)
    with pytest.raises(ValueError, match="at least one"):
        mean_and_interval([])


@pytest.mark.parametrize(
    ("difference", "p_value", "expected"),
    [(0.1, 0.049, "better"), (-0.1, 0.049, "worse"), (0.1, 0.05, "inconclusive")],
)
def test_there_are_three_verdicts(difference, p_value, expected):
    assert verdict(difference, p_value) == expected


def test_values_that_are_no_correctness_are_refused():
    correct = np.array([[1, 0, 1, 1]])
    for wrong in ([[2, 0, 1, 1]], [[np.nan, 0, 1, 1]], [[-1, 0, 1, 1]]):
        for use in (lambda side: compare(side, correct), lambda side: compare(correct, side), mean_accuracy):
            with pytest.raises(ValueError, match=r"must be 0 to 1, as correctness\(labels, predictions\)"):
                use(wrong)
    with pytest.raises(ValueError, match="shape"):
        compare([], [])
    with pytest.raises(ValueError, match="reported accuracy is 80; it must be 0 to 1"):
        compare_with_reported(correct, 80)
