"""A linear probe ends at the optimum of its penalty, also where that is weak."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from self_supervised.probes import linear_probe


def overlapping(images, channels, seed):
    """Features (images, channels) of three classes that overlap, on unequal scales."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % 3
    features = generator.standard_normal((images, channels)) + np.eye(channels)[labels]
    return (features * np.logspace(-2, 2, channels) + features[:, :1]).astype("f4"), labels


@pytest.mark.parametrize(("channels", "images"), [(6, 300), (40, 90), (200, 120)])
def test_under_a_weak_penalty_predictions_are_those_of_the_optimum(monkeypatch, channels, images):
    monkeypatch.setattr("self_supervised.probes.STRENGTHS", (100.0,))
    counts = {"train": images, "val": 30, "test": 300}
    splits = {split: overlapping(count, channels, seed) for seed, (split, count) in enumerate(counts.items())}
    probe, test = linear_probe(splits), splits["test"][0]
    optimum = make_pipeline(StandardScaler(), LogisticRegression(C=100.0, tol=1e-8, max_iter=100_000))
    optimum.fit(splits["train"][0].astype(np.float64), splits["train"][1])
    assert probe.test_predictions.tolist() == optimum.predict(test).tolist()
    assert np.abs(probe.pipeline.predict_proba(test) - optimum.predict_proba(test)).max() < 0.005
