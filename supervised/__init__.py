"""Fully supervised scene classification: settings, loaders, networks, the training script and its reports."""
