"""The network of the second step: a scene classifier on the features of a pretext."""

import torch

from self_supervised.settings import ClassifierExperiment
from supervised.models import SceneClassifier, classifier_of, load_initial_weights


def build_classifier(
    experiment: ClassifierExperiment, num_classes: int, features: dict[str, torch.Tensor]
) -> SceneClassifier:
    """The experiment's network on the `features` of a pretext, a state dict; only the head is new.

    BatchNorm's running statistics are those of the initial weights where the experiment says so.  Raises what
    `supervised.models.load_initial_weights` raises.
    """
    model = classifier_of(experiment, num_classes)
    if experiment.batchnorm == "initial":
        initial = load_initial_weights(experiment.initial_weights, experiment.network).state_dict
        initial = initial or model.features.state_dict()
        features = {name: initial[name] if _is_statistic(name) else tensor for name, tensor in features.items()}
    model.features.load_state_dict(features)
    return model


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))
