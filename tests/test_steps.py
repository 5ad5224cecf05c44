"""Three ways to launch a training step have the same results.  A CUDA graph is tested where there is a GPU."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from helper_functions import CrossEntropy, Objective, TrainSettings, train
from loop.devices import build_accelerator
from loop.steps import resolve_step
from supervised.models import SceneClassifier
from tests.conftest import SmallNetwork, needs_gpu


def loaders():
    """27 train and 9 val images of three classes, in batches of 8 of which the last has 3."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(36, 3, 9, 9, generator=generator), torch.arange(36) % 3
    train_set, val_set = TensorDataset(images[:27], labels[:27]), TensorDataset(images[27:], labels[27:])
    return DataLoader(train_set, 8, shuffle=True, generator=torch.Generator().manual_seed(1)), DataLoader(val_set, 8)


def fit(step, device, dropout=0.2, optimizer="adam", **options):
    torch.manual_seed(0)
    model = SmallNetwork()
    model.classifier[0].p = dropout
    fixed = {"max_epochs": 3, "learning_rate": 0.01, "schedule": "cosine", "precision": "float32"}
    settings = TrainSettings(**fixed, optimizer=optimizer, step=step)
    history = train(model, *loaders(), settings, device=device, progress=False, **options)
    return history, model.cpu().state_dict()


def assert_same(one, other, **tolerance):
    assert one[0].train_loss == pytest.approx(other[0].train_loss, **tolerance)
    assert one[0].val_loss == pytest.approx(other[0].val_loss, **tolerance)
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        assert torch.allclose(tensor.double(), other[1][name].double(), rtol=1e-4, atol=1e-5), name


@pytest.mark.slow
def test_a_compiled_step_trains_as_an_eager_one_but_for_rounding():
    objective = CrossEntropy(torch.tensor([1.0, 2.0, 0.5]), 0.1)
    # Compiled dropout draws in another order, and Adam makes steps of what is only rounding.
    found = [fit(step, "cpu", dropout=0.0, optimizer="sgd", objective=objective) for step in ("eager", "compiled")]
    assert_same(*found, rel=1e-5)


@needs_gpu
def test_a_recorded_step_trains_as_an_eager_one_with_dropout_batchnorm_and_a_ragged_last_batch():
    assert_same(fit("eager", "cuda"), fit("graph", "cuda"), rel=1e-5)


@needs_gpu
def test_a_training_with_recorded_steps_continues_as_if_never_interrupted():
    states = []
    whole = fit("graph", "cuda", save_state=lambda state: states.append(copy.deepcopy(state)))
    assert_same(whole, fit("graph", "cuda", state=states[0]), rel=1e-6)


@needs_gpu
def test_what_cannot_be_recorded_is_refused_by_name():
    class Other(Objective):
        def forward(self, model, images, labels):
            return CrossEntropy()(model, images, labels)

    with pytest.raises(ValueError, match="cannot record Other"):
        fit("graph", "cuda", objective=Other())


def test_by_default_a_network_that_says_so_is_recorded_and_what_cannot_be_is_not():
    class Other(CrossEntropy):
        recordable = False

    gpu, two = (SimpleNamespace(device=torch.device("cuda"), num_processes=count) for count in (1, 2))
    settings, network, objective = TrainSettings(), SceneClassifier(3), CrossEntropy()
    accumulated = TrainSettings(gradient_accumulation_steps=2)
    assert resolve_step(settings, network, objective, gpu) == "graph"
    assert resolve_step(TrainSettings(step="graph"), network.classifier, objective, gpu) == "graph"
    assert resolve_step(TrainSettings(step="eager"), network, objective, gpu) == "eager"
    for given in (
        (settings, network, Other(), gpu),
        (settings, network.classifier, objective, gpu),
        (settings, network, objective, two),
        (accumulated, network, objective, gpu),
    ):
        assert resolve_step(*given) == "eager"


@needs_gpu
@pytest.mark.parametrize("frozen_stages", [0, 4])
def test_a_recorded_step_of_the_network_of_this_project_is_an_eager_one(frozen_stages):
    histories = []
    for step in ("eager", "graph"):
        torch.manual_seed(0)
        model = SceneClassifier(3, frozen_stages=frozen_stages)  # with dropout and stochastic depth
        settings = TrainSettings(max_epochs=2, schedule="none", step=step, precision="float32")
        images, labels = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
        loader = DataLoader(TensorDataset(images, labels), 8)
        histories.append(train(model, loader, loader, settings, device="cuda", progress=False))
    assert histories[0].train_loss == pytest.approx(histories[1].train_loss, rel=1e-3)


def test_by_default_steps_are_eager_on_a_cpu():
    found = resolve_step(TrainSettings(), SceneClassifier(3), CrossEntropy(), build_accelerator("cpu"))
    assert found == "eager"


def test_a_graph_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="'graph', which needs an NVIDIA GPU"):
        fit("graph", "cpu")
