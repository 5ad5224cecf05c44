"""The one comparison: two experiments on the same test images, over images and seeds.

The difference of two mean accuracies has two sources of variance, and both count: the test images are a sample, and so
are the seeds.  The interval is Student's, with Satterthwaite's degrees of freedom (1946).  They are an approximation:
good where images are most of the variance, too many in the far tails where few seeds are.  `p_bound` has the fewest
degrees of freedom instead, and holds whatever the variances are.  A family of comparisons
shares the level: each has 1 - 0.05 / comparisons (Bonferroni).  The p value is of the same t, times the number of
comparisons, so it is below 0.05 exactly when the interval, if there is one, excludes 0.  Two experiments always have
one: where they differ equally in every image, often in none, it is that of Agresti and Min (2005).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student_t

LEVEL = 0.05  # of a family of comparisons


@dataclass(frozen=True)
class Comparison:
    """Two experiments on the same images: accuracies (0 to 1), their difference, its interval and p value."""

    accuracy: float
    other_accuracy: float
    difference: float  # accuracy - other_accuracy
    low: float
    high: float
    p_value: float
    single_run: bool  # a side with one run and random seeds: the interval covers the sampling of images only there
    p_bound: float  # p is at most this, see `p_bound`; nan with a single run

    @property
    def verdict(self) -> str:
        """Of the first experiment, see `verdict`."""
        return verdict(self.difference, self.p_value)


@dataclass(frozen=True)
class MeanDifference:
    """The mean of paired differences, its interval and its p value."""

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def verdict(self) -> str:
        """Where a difference above 0 is good, see `verdict`."""
        return verdict(self.difference, self.p_value)


def verdict(difference: float, p_value: float) -> str:
    """better, worse or inconclusive; the last does not say that both are equal."""
    if not p_value < LEVEL:  # also where there is none
        return "inconclusive"
    return "better" if difference > 0 else "worse"


def correctness(labels: Sequence[int], predictions: Sequence[Sequence[int]], copies: int = 1) -> np.ndarray:
    """Whether each image is classified correctly, 0 or 1, shape (runs, images).

    `predictions` has shape (runs, N).  Where a pretext shows each image several times, one after another, the value
    is the fraction of its `copies` that are classified correctly: the image is the sampling unit.
    Raises ValueError if predictions and labels differ in length, or N is no multiple of `copies`.
    """
    labels, predictions = np.asarray(labels), np.atleast_2d(predictions)
    if predictions.shape[1] != len(labels) or len(labels) % copies:
        raise ValueError(
            f"predictions have shape {predictions.shape}; {len(labels)} labels and {copies} copies of each image "
            "need (runs, labels)"
        )
    return (predictions == labels).reshape(len(predictions), -1, copies).mean(axis=2)


def compare(
    correct: np.ndarray,
    other: np.ndarray,
    comparisons: int = 1,
    deterministic: tuple[bool, bool] = (False, False),
) -> Comparison:
    """Compare two experiments by the `correctness` (runs, images) of each on the same images.

    `comparisons` is the size of the family.  A side whose result does not depend on its seed is `deterministic` and
    has no seed variance.  Where both sides differ equally in every image, see `with_pseudo_images`.
    Raises ValueError if the images differ in number or are fewer than two, and for values that are no `correctness`.
    """
    correct, other = _checked(correct), _checked(other)
    if correct.shape[1] != other.shape[1]:
        raise ValueError(f"both sides need the same images, got {correct.shape[1]} and {other.shape[1]}")
    differences = correct.mean(axis=0) - other.mean(axis=0)
    difference = center = float(differences.mean())
    of_images = variance_of_mean(differences)
    if np.ptp(differences) < 1e-12:  # equal but for rounding
        center, of_images = with_pseudo_images(difference, len(differences))
    sides = list(zip((correct, other), deterministic, strict=True))
    of_seeds = [variance_of_mean(side.mean(axis=1)) for side, fixed in sides if len(side) > 1 and not fixed]
    parts = [of_images, *of_seeds]
    low, high, p_value = estimate(center, parts, comparisons)
    single_run = any(len(side) == 1 and not fixed for side, fixed in sides)
    return Comparison(
        accuracy=float(correct.mean()),
        other_accuracy=float(other.mean()),
        difference=difference,
        low=max(low, -1.0),
        high=min(high, 1.0),
        p_value=p_value,
        single_run=single_run,
        p_bound=np.nan if single_run else p_bound(center, parts, comparisons),
    )


def with_pseudo_images(difference: float, images: int) -> tuple[float, tuple[float, int]]:
    """The center of an interval and its part for `estimate`, where the difference is the same in all images.

    Such images have no variance, and without one an interval has no width, which would claim to know the difference of
    all other images.  Agresti and Min (2005) add 1/2 to each of the four cells of the two-by-two table of both sides.
    These are two more images: one without a difference, half an image with +1 and half with -1.  Their interval has
    the normal distribution; here it is Student's, as everywhere in this file.
    """
    together = images + 2
    center = images * difference / together
    variance = (images * difference**2 + 1) / together - center**2
    return center, (variance / together, images - 1)


def compare_with_reported(correct: np.ndarray, reported: float, comparisons: int = 1) -> MeanDifference:
    """The accuracy of an experiment minus one that somebody else reports of a single run on as many images.

    `correct` (runs, images) is its `correctness`.  Which images the other run classifies correctly is not known, so its
    images count as another sample.  Its seed variance is not known either, and the interval does not cover it.
    Raises ValueError unless both are 0 to 1: `reported` is a fraction, not percent.
    """
    correct = _checked(correct)
    if not 0 <= reported <= 1:
        raise ValueError(f"the reported accuracy is {reported}; it must be 0 to 1")
    runs, images = correct.shape
    parts = [variance_of_mean(correct.mean(axis=0)), (reported * (1 - reported) / images, images - 1)]
    parts += [variance_of_mean(correct.mean(axis=1))] if runs > 1 else []
    difference = float(correct.mean()) - reported
    return MeanDifference(difference, *estimate(difference, parts, comparisons))


def mean_accuracy(correct: np.ndarray, deterministic: bool = False) -> tuple[float, float, float]:
    """Accuracy over the runs of an experiment and its 95 % interval, from its `correctness` (runs, images).

    The interval covers images and seeds as that of `compare` does.  One run has Wilson's interval, which covers images;
    so have several that classify every image correctly, or none.  Raises ValueError for values that are no
    `correctness`.
    """
    correct = _checked(correct)
    runs, images = correct.shape
    mean = float(correct.mean())
    if runs == 1 or deterministic:
        return mean, *accuracy_interval(round(correct[0].sum()), images)
    parts = [variance_of_mean(correct.mean(axis=0)), variance_of_mean(correct.mean(axis=1))]
    low, high, _ = estimate(mean, parts, comparisons=1)
    if np.isnan(low):
        return mean, *accuracy_interval(round(mean * images), images)
    return mean, max(low, 0.0), min(high, 1.0)


def _checked(correct) -> np.ndarray:
    """A `correctness` as an array (runs, images); ValueError for other values, such as predicted labels."""
    correct = np.atleast_2d(correct)
    if correct.ndim != 2 or not correct.size:
        raise ValueError(f"the correctness of images has shape {correct.shape}; it must be (runs, images)")
    if not (correct.min() >= 0 and correct.max() <= 1):  # also for nan
        raise ValueError(
            f"the correctness of images is {correct.min()} to {correct.max()}; it must be 0 to 1, as "
            "correctness(labels, predictions) gives it"
        )
    return correct


def accuracy_interval(hits: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of an accuracy, from the number of images classified correctly."""
    interval = binomtest(hits, images).proportion_ci(1 - LEVEL, method="wilson")
    return interval.low, interval.high


def estimate(mean: float, parts: Sequence[tuple[float, int]], comparisons: int = 1) -> tuple[float, float, float]:
    """Low, high and p value of a mean whose variance has independent parts, each with its degrees of freedom.

    Student's t with Satterthwaite's degrees of freedom (1946).  Without any variance there is no interval (nan).
    Raises ValueError if `comparisons` is below 1.
    """
    if comparisons < 1:
        raise ValueError(f"comparisons is {comparisons}; it must be at least 1")
    variance = sum(part for part, _ in parts)
    if variance == 0:  # the sign test (Arbuthnot 1710): so many equal differences all have one sign
        return np.nan, np.nan, 1.0 if mean == 0 else min(1.0, comparisons * 0.5 ** parts[0][1])
    freedom = 1 / sum((part / variance) ** 2 / part_freedom for part, part_freedom in parts)
    error = variance**0.5
    reach = float(student_t.isf(LEVEL / (2 * comparisons), freedom)) * error
    return mean - reach, mean + reach, _two_sided(mean / error, freedom, comparisons)


def _two_sided(t: float, freedom: float, comparisons: int) -> float:
    return min(1.0, 2 * comparisons * float(student_t.sf(abs(t), freedom)))


def p_bound(mean: float, parts: Sequence[tuple[float, int]], comparisons: int = 1) -> float:
    """An upper bound of the p value of `estimate`, with the fewest degrees of freedom of a part that has any variance.

    It holds for any true variances, as Mickey and Brown (1966) show for two samples: a weighted mean of independent
    variances varies less than the one of the fewest degrees of freedom does alone.  With three seeds it is far larger.
    """
    there = [each for each in parts if each[0] > 0]
    if not there:
        return estimate(mean, parts, comparisons)[2]
    variance, freedom = sum(part for part, _ in there), min(freedom for _, freedom in there)
    return _two_sided(mean / variance**0.5, freedom, comparisons)


def mean_difference(differences: Sequence[float], comparisons: int = 1) -> MeanDifference:
    """The mean of paired differences, in a family of so many comparisons (Student 1908).

    For repeated measurements of any kind: losses of two samplers by seed, scores of two heat maps by image.
    Raises ValueError for fewer than two differences, and for one that is not finite.
    """
    differences = np.asarray(differences, dtype=float)
    if differences.size < 2:
        raise ValueError(f"there is {differences.size} difference; an interval needs at least two")
    if not np.isfinite(differences).all():
        raise ValueError(f"{(~np.isfinite(differences)).sum()} of {differences.size} differences are not finite")
    mean = float(differences.mean())
    return MeanDifference(mean, *estimate(mean, [variance_of_mean(differences)], comparisons))


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of repeated measurements and its 95 % interval (Student 1908).

    That of a single measurement is (nan, nan), that of equal ones has no width.  Raises ValueError if there is none.
    """
    if len(values) == 0:
        raise ValueError("there are no values; a mean needs at least one")
    if len(values) == 1:
        return float(values[0]), float("nan"), float("nan")
    found = mean_difference(values)
    no_width = np.isnan(found.low)
    return found.difference, *((found.difference,) * 2 if no_width else (found.low, found.high))


def variance_of_mean(values: np.ndarray) -> tuple[float, int]:
    """The variance of the mean of a sample, and its degrees of freedom: a part for `estimate`."""
    if len(values) < 2:
        raise ValueError(f"there is {len(values)} value; a variance needs at least two")
    if np.ptp(values) <= 1e-12 * np.abs(values).max():  # equal but for rounding
        return 0.0, len(values) - 1
    return float(np.var(values, ddof=1)) / len(values), len(values) - 1
