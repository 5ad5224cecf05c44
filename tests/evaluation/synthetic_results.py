"""Results as runs.py writes them, on a few images of two classes, without a training."""

import json
from pathlib import Path

import numpy as np

from run_files import FORMAT

CLASSES = ["coast", "forest"]


def result(
    name: str, wrong=(), *, images: int = 100, machine=("cpu (x86_64)", "2.15.0", "float32"), **settings
) -> dict:
    """The result of a run that misclassifies the images of these numbers; labels alternate."""
    labels = np.arange(images) % 2
    predictions = labels.copy()
    predictions[list(wrong)] ^= 1
    accuracy = float((predictions == labels).mean())
    device, torch, precision = machine
    return {
        "format": FORMAT,
        "class_names": CLASSES,
        "labels": {"test": labels.tolist()},
        "predictions": {"test": predictions.tolist()},
        "earlier_protocol_predictions": {"test": predictions.tolist()},
        "settings": {"name": name, "seed": 0, "train": {"max_epochs": 30}, **settings},
        "data": {"name": "15scene", "images": {"train": images, "test": images}},
        "test_accuracy": accuracy,
        "test_accuracy_by_class": {
            each: float((predictions == labels)[labels == label].mean()) for label, each in enumerate(CLASSES)
        },
        "earlier_protocol_accuracy": accuracy,
        "history": {"train_accuracy": [0.5, 1.0], "test_accuracy": [0.5, accuracy]},
        **dict.fromkeys(("earlier_protocol_epoch", "val_accuracy", "train_accuracy", "epoch"), 1),
        "seconds": 90,
        "initial_weights": {"weights": "random"},
        "device": device,
        "precision": precision,
        "versions": {"torch": torch},
    }


def seeds(name: str, *wrong, **changes) -> dict[str, dict]:
    """Results by file stem: one run for each sequence of misclassified images."""
    return {
        name if seed == 0 else f"{name}.seed{seed}": result(name, each, seed=seed, **changes)
        for seed, each in enumerate(wrong)
    }


def write(folder: Path, results: dict[str, dict]):
    """The results as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, each in results.items():
        (folder / f"{stem}.json").write_text(json.dumps(each))
