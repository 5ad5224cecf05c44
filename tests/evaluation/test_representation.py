import numpy as np
import pytest

from evaluation.representation import cka_table, linear_cka, neighbour_purity, tsne


def groups(of_each=40, spread=0.1):
    """Three groups of points around the first three axes of 20 dimensions, and their labels."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], of_each)
    return np.eye(20)[labels] + spread * generator.standard_normal((3 * of_each, 20)), labels


def test_tsne_keeps_groups_together_and_is_the_same_twice():
    features, labels = groups()
    places = tsne(features, perplexity=10)
    assert places.shape == (120, 2)
    centres = np.stack([places[labels == label].mean(axis=0) for label in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == labels).all()
    assert np.array_equal(places, tsne(features, perplexity=10))
    with pytest.raises(ValueError, match="needs at least 90 images, not 20"):
        tsne(features[:20])


def test_purity_is_whole_for_groups_and_chance_for_noise():
    features, labels = groups()
    assert neighbour_purity(features, labels) == 1
    noise = np.random.default_rng(1).standard_normal((600, 20))
    assert neighbour_purity(noise, np.repeat([0, 1, 2], 200)) == pytest.approx(1 / 3, abs=0.03)
    assert neighbour_purity(100 * features, labels) == 1  # cosine


def test_an_image_is_not_its_own_neighbour():
    features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert neighbour_purity(features, np.array([0, 1, 2, 3]), neighbours=1) == 0
    with pytest.raises(ValueError, match="more than 4 images"):
        neighbour_purity(features, np.arange(4), neighbours=4)


def test_cka_is_blind_to_turning_and_scaling_and_low_for_strangers():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((500, 12))
    turn, _ = np.linalg.qr(generator.standard_normal((12, 12)))
    assert linear_cka(features, 3 * features @ turn + 7) == pytest.approx(1)
    assert linear_cka(features, generator.standard_normal((500, 12))) < 0.1
    assert linear_cka(features, features[:, :3]) < 0.6


def test_cka_by_hand():
    # Centred: (-1, 1) against (-1, 1) and a second column that says nothing of it.
    one, other = np.array([[0.0], [2.0], [0.0], [2.0]]), np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    assert linear_cka(one, other) == pytest.approx(16 / (4 * np.sqrt(32)))


def test_the_table_is_symmetric_and_what_cannot_be_compared_is_refused():
    features, _ = groups()
    table = cka_table({"a": features, "b": features[:, :5], "c": -features})
    assert table.loc["a", "c"] == pytest.approx(1)
    assert table.loc["a", "b"] == table.loc["b", "a"] < 1
    with pytest.raises(ValueError, match="there are 120 and 100"):
        linear_cka(features, features[:100])
    with pytest.raises(ValueError, match="same features for all images"):
        linear_cka(features, np.ones((120, 4)))
