"""The networks of both steps: of a joint-embedding pretext, and a scene classifier on the features of a pretext."""

import torch

from self_supervised.joint_embedding import METHODS, JointEmbedding
from self_supervised.settings import ClassifierExperiment, JointEmbeddingExperiment
from supervised.models import SceneClassifier, build_features, classifier_of, load_initial_weights


def build_joint_embedding(experiment: JointEmbeddingExperiment, loaders) -> tuple[JointEmbedding, dict[str, str]]:
    """The network of the experiment's method with its initial weights, and the provenance of these weights.

    `loaders` give the number of steps.  Raises ValueError for an unknown method, and what
    `supervised.models.load_initial_weights` raises.
    """
    if experiment.method not in METHODS:
        raise ValueError(f"{experiment.name}: there is no method {experiment.method!r}; there are {', '.join(METHODS)}")
    initial = load_initial_weights(experiment.initial_weights, experiment.network)
    features = build_features(experiment.network)
    if initial.state_dict is not None:
        features.load_state_dict(initial.state_dict)
    steps = experiment.train.max_epochs * -(-len(loaders.train) // experiment.train.gradient_accumulation_steps)
    return METHODS[experiment.method](features, experiment, steps), initial.provenance


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
