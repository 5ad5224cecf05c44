"""Networks of both steps: the pretext's, and the scene classifier on its frozen features."""

from collections.abc import Callable

from torch import nn

from self_supervised.settings import ClassifierExperiment
from supervised import models as supervised
from supervised.models import classifier_of, load_initial_weights


def build_model(experiment, loaders, load_pretext: Callable) -> tuple[nn.Module, dict]:
    """The experiment's network, and the words for the weights it begins with.

    A pretext network is the supervised one, with an output for each label of the pretext.  A scene classifier takes
    the features that `load_pretext(name, seed, epoch)` gives (a state dict of `features`, and the words for it),
    with BatchNorm's statistics of the initial weights where the row says so; only its head is new.
    Raises what `load_pretext` and `supervised.models.load_initial_weights` raise.
    """
    if not isinstance(experiment, ClassifierExperiment):
        return supervised.build_model(experiment, loaders)
    weights, source = load_pretext(experiment.pretext_run, experiment.seed, experiment.pretext_epoch)
    model = classifier_of(experiment, len(loaders.class_names))
    if experiment.batchnorm == "initial":
        initial = load_initial_weights(experiment.initial_weights, experiment.network).state_dict
        initial = initial or model.features.state_dict()
        weights = {name: initial[name] if _is_statistic(name) else tensor for name, tensor in weights.items()}
        source = {**source, "batchnorm": "statistics of the initial weights"}
    model.features.load_state_dict(weights)
    return model, source


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))
