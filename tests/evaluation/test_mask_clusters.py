import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from evaluation import mask_clusters
from evaluation.mask_clusters import choose_medoids, predict_scores


def groups(count=5, members=12, seed=0):
    """Points in tight groups far from each other, in a random order; and the group of each."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(count), members))
    return 10 * np.eye(count, 7)[group] + 0.1 * rng.standard_normal((count * members, 7)), group


def test_each_group_gets_the_medoid_in_its_middle():
    points, group = groups()
    medoids = choose_medoids(points, 5)
    assert sorted(group[medoids]) == [0, 1, 2, 3, 4]
    for medoid in medoids:
        members = points[group == group[medoid]]
        from_each = np.linalg.norm(members[:, None] - members[None], axis=2).sum(axis=1)
        assert np.isclose(np.linalg.norm(members - points[medoid], axis=1).sum(), from_each.min())


def test_no_more_clusters_than_points_and_doubles_are_no_trouble():
    assert choose_medoids(np.eye(3), 8).tolist() == [0, 1, 2]
    assert len(choose_medoids(np.zeros((9, 4)), 3)) == 3


def test_what_is_held_out_and_predicted_is_that_of_scikit_learn(monkeypatch):
    rng = np.random.default_rng(1)
    masks = rng.random((40, 5))
    scores = np.sin(3 * masks[:, 0]) + masks[:, 1]
    medoids = np.arange(0, 40, 2)
    monkeypatch.setattr(mask_clusters, "WIDTHS", (0.3,))
    monkeypatch.setattr(mask_clusters, "PENALTIES", (0.1,))
    predicted, held_out = predict_scores(masks, medoids, scores[medoids])
    ridge = KernelRidge(alpha=0.1, kernel="rbf", gamma=0.3)
    centred = scores[medoids] - scores[medoids].mean()
    reference = ridge.fit(masks[medoids], centred).predict(masks) + scores[medoids].mean()
    others = np.setdiff1d(np.arange(40), medoids)
    assert np.allclose(predicted[others], reference[others])
    assert np.array_equal(predicted[medoids], scores[medoids])
    left_out = cross_val_predict(ridge, masks[medoids], centred, cv=LeaveOneOut())
    assert held_out == pytest.approx(1 - ((centred - left_out) ** 2).mean() / centred.var())


def test_scores_that_follow_from_the_masks_are_predicted_and_noise_is_known_for_noise():
    rng = np.random.default_rng(2)
    masks = rng.random((300, 3))
    medoids = choose_medoids(masks, 40)
    smooth = masks @ [3.0, -2.0, 1.0]
    predicted, held_out = predict_scores(masks, medoids, smooth[medoids])
    assert held_out > 0.95 and np.corrcoef(predicted, smooth)[0, 1] > 0.98
    noise = rng.standard_normal(300)
    assert predict_scores(masks, medoids, noise[medoids])[1] < 0.2
    assert np.isnan(predict_scores(masks, medoids, np.ones(40))[1])
