import pytest
import torch

from self_supervised.models import build_classifier
from self_supervised.settings import ClassifierExperiment
from supervised.models import SceneClassifier


def features_with(value: float) -> dict[str, torch.Tensor]:
    """Random features whose BatchNorm has one value as its running mean everywhere, and twice that as its variance."""
    state = SceneClassifier(4).features.state_dict()
    for name, tensor in state.items():
        if name.endswith(("running_mean", "running_var")):
            tensor.fill_(value if name.endswith("mean") else 2 * value)
    return state


@pytest.mark.parametrize(("batchnorm", "value"), [("initial", 0.25), ("pretext", 0.75)])
def test_batchnorm_statistics_are_the_initial_weights_or_the_pretexts_and_all_else_the_pretexts(
    tmp_path, batchnorm, value
):
    initial, pretext = features_with(0.25), features_with(0.75)
    torch.save({f"features.{name}": each for name, each in initial.items()}, tmp_path / "initial.pth")
    experiment = ClassifierExperiment("mine", "?", initial_weights=str(tmp_path / "initial.pth"), batchnorm=batchnorm)
    model = build_classifier(experiment, 3, pretext)
    for name, tensor in model.features.state_dict().items():
        if name.endswith("running_mean"):
            assert (tensor == value).all()
        elif name.endswith("running_var"):
            assert (tensor == 2 * value).all()
        elif name.endswith(("weight", "bias")):
            assert torch.equal(tensor, pretext[name])
    assert model.classifier[1].out_features == 3
    assert not any(parameter.requires_grad for parameter in model.features.parameters())


def test_initial_batchnorm_statistics_of_random_weights_are_those_of_a_new_network():
    experiment = ClassifierExperiment("mine", "?", initial_weights="random", batchnorm="initial")
    model = build_classifier(experiment, 3, features_with(0.75))
    assert (model.features[0][1].running_mean == 0).all() and (model.features[0][1].running_var == 1).all()
