"""A frozen classifier trained for 50 epochs: features computed once, or every image through the network each epoch.

    python -m benchmarks.frozen_classifier --weights ../shared/weights/efficientnet_b0_imagenet_features.pth

The experiment is `imagenet_classifier`: the same head, the same batches in the same order, the epoch chosen on val and
read on test, by `helper_functions.train` both times.  The plain way takes half an hour on two cores.  Seconds include
the features.  The table is written to benchmarks/frozen_classifier.csv.
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from helper_functions import build_accelerator, evaluate, fold_batchnorm, train
from supervised.dataloader import build_loaders
from supervised.models import build_model
from supervised.settings import EXPERIMENTS, configure

CSV = Path(__file__).with_suffix(".csv")


def measure(experiment, features_once: bool) -> dict:
    """Seconds, accuracies and the val losses of one way."""
    loaders = build_loaders(experiment, progress=False)
    torch.manual_seed(experiment.seed)
    model, _ = build_model(experiment, loaders)
    model.eval()
    started = time.perf_counter()
    device = build_accelerator().device
    network, batches = model.to(device), loaders
    if features_once:
        network, batches = model.classifier, loaders.of_features(fold_batchnorm(model).pooled_features, device)
    torch.manual_seed(experiment.seed)  # the same dropout
    history = train(network, batches.train, batches.val, experiment.train)
    test = evaluate(network, batches.test)
    return {
        "way": "features once" if features_once else "every image each epoch",
        "epochs": history.epochs,
        "seconds": round(time.perf_counter() - started, 1),
        "val_accuracy": max(history.val_accuracy),
        "epoch": history.best_epoch,
        "test_accuracy": test.accuracy,
        "val_loss of the last epoch": history.val_loss[-1],
    }


def main(arguments=None) -> int:
    """Measure both ways once and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frozen_classifier", description=__doc__)
    parser.add_argument("--weights", help="imagenet (default) or the file of a state dict")
    parser.add_argument("--data", help="default: 15scene")
    options = parser.parse_args(arguments)
    experiment = configure(EXPERIMENTS["imagenet_classifier"], "full", options.data, options.weights)
    table = pd.DataFrame([measure(experiment, features_once) for features_once in (True, False)])
    table["ratio"] = (table["seconds"].iloc[-1] / table["seconds"]).round(1)
    table["machine"] = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    table.to_csv(CSV, index=False)
    print(table.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
