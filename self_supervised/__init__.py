"""Pretext tasks and the scene classifiers on their features."""
