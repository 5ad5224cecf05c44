"""Folding BatchNorm into convolutions never changes what a network computes, and training never trusts it blindly."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, TensorDataset, default_collate

from helper_functions import TrainSettings, evaluate, predict, train
from loop.batchnorm import fold_batchnorm
from loop.devices import build_accelerator
from supervised.models import SceneClassifier


class StandardizedConv(nn.Conv2d):
    def forward(self, images):
        centered = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(images, centered / centered.std((1, 2, 3), keepdim=True), None, padding=1)


class TanhBetween(nn.Sequential):
    def forward(self, images):
        return self[1](torch.tanh(self[0](images)))


class ShiftedNorm(nn.BatchNorm2d):
    def forward(self, maps):
        return super().forward(maps) + 3


def conv():
    return nn.Conv2d(3, 8, 3, padding=1)


def changed(change):
    pair = nn.Sequential(conv(), nn.BatchNorm2d(8))
    change(pair)
    return pair


def replace_forward(pair):
    pair[0].forward = lambda images: nn.Conv2d.forward(pair[0], images) ** 2


LEFT_ALONE = {
    "weight standardization": lambda: nn.Sequential(StandardizedConv(3, 8, 3, padding=1), nn.BatchNorm2d(8)),
    "a forward of its own": lambda: TanhBetween(conv(), nn.BatchNorm2d(8)),
    "a forward of the object": lambda: changed(replace_forward),
    "a hook on BatchNorm": lambda: changed(lambda pair: pair[1].register_forward_hook(lambda *each: 2 * each[2])),
    "a hook before BatchNorm": lambda: changed(
        lambda pair: pair[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] ** 2,))
    ),
    "a hook on the convolution": lambda: changed(
        lambda pair: pair[0].register_forward_hook(lambda *each: each[2].tanh())
    ),
    "weight_norm": lambda: nn.Sequential(nn.utils.weight_norm(conv()), nn.BatchNorm2d(8)),
    "spectral_norm": lambda: nn.Sequential(nn.utils.spectral_norm(conv()), nn.BatchNorm2d(8)),
    "pruning": lambda: nn.Sequential(prune.l1_unstructured(conv(), "weight", 0.5), nn.BatchNorm2d(8)),
    "a parametrization": lambda: nn.Sequential(parametrizations.weight_norm(conv()), nn.BatchNorm2d(8)),
    "statistics of the batch": lambda: nn.Sequential(conv(), nn.BatchNorm2d(8, track_running_stats=False)),
    "a derived BatchNorm": lambda: nn.Sequential(conv(), ShiftedNorm(8)),
    "a transposed convolution": lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)),
}
FOLDED = {
    "plain": lambda: nn.Sequential(conv(), nn.BatchNorm2d(8)),
    "no scale and shift": lambda: nn.Sequential(conv(), nn.BatchNorm2d(8, affine=False)),
    "groups, reflection, no bias": lambda: nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1, groups=3, padding_mode="reflect", bias=False),
        nn.BatchNorm2d(9),
        nn.Conv2d(9, 8, 1),
        nn.BatchNorm2d(8),
    ),
}
BLOCKS = {**LEFT_ALONE, **FOLDED}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's older weight_norm


def network(block):
    torch.manual_seed(0)
    model = nn.Sequential(block, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    for name, parameter in model.named_parameters():  # BatchNorm's scales and shifts too
        if "original" not in name and "weight_" not in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def batches():
    labels = torch.arange(32) % 3
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + labels.view(-1, 1, 1, 1)
    return DataLoader(TensorDataset(images, labels), 16)


def count_norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", [*LEFT_ALONE, *FOLDED])
def test_a_folded_network_has_the_outputs_of_the_network(name):
    model, loader = network(BLOCKS[name]()), batches()
    for images, _ in loader:
        model(images)  # with gradients: weight_norm and pruning then hold tensors that cannot be copied
    folded = fold_batchnorm(model)
    model.eval()
    with torch.no_grad():
        expected = model(loader.dataset.tensors[0])
        assert expected.std() > 0.01
        torch.testing.assert_close(folded(loader.dataset.tensors[0]), expected, rtol=1e-4, atol=1e-4)
    assert count_norms(folded) == (count_norms(model) if name in LEFT_ALONE else 0)


def layers_by_index(block):
    """A network that never calls the Sequential which holds its layers."""

    class ByIndex(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.head = block, nn.Linear(8, 3)

        def forward(self, images):
            return self.head(self.block[1](torch.tanh(self.block[0](images))).mean(dim=(2, 3)))

    return ByIndex()


@pytest.mark.parametrize("name", [*LEFT_ALONE, "layers by index", "its last maps kept"])
def test_training_reports_the_network_that_it_trains(name):
    model, loader = network(BLOCKS.get(name, FOLDED["plain"])()), batches()
    if name == "layers by index":
        model = layers_by_index(FOLDED["plain"]())
    if name == "its last maps kept":  # as tutorials on heat maps do; such a list cannot be copied
        model.kept = []
        model[0].register_forward_hook(lambda module, inputs, output: model.kept.append(output))
    history = train(
        model, loader, loader, TrainSettings(max_epochs=2, learning_rate=0.05), device="cpu", progress=False
    )
    found = evaluate(model, loader)
    assert found.loss == pytest.approx(history.val_loss[history.best_epoch - 1], rel=1e-5)
    assert found.predictions.tolist() == history.val_predictions[history.best_epoch - 1]


def test_the_networks_of_this_project_are_folded_for_each_evaluation(monkeypatch):
    folded = []
    monkeypatch.setattr("helper_functions.fold_batchnorm", lambda model: folded.append(model) or fold_batchnorm(model))
    torch.manual_seed(0)
    model, images = SceneClassifier(3, network="resnet18", stages=(4,)), torch.randn(8, 3, 32, 32)
    loader = DataLoader(TensorDataset(images, torch.arange(8) % 3), 4)
    train(model, loader, loader, TrainSettings(max_epochs=1), device="cpu", progress=False)
    assert folded == [model]


# --------------------------------------------------------------------------------------------- other people's networks


class Flattens(nn.Module):
    """A tutorial's network: it flattens its maps by view(), which needs contiguous ones."""

    def __init__(self, wrap=lambda logits: logits):
        super().__init__()
        self.conv, self.pool, self.fc, self.wrap = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.MaxPool2d(2),
            nn.Linear(64, 3),
            wrap,
        )

    def forward(self, images):
        maps = self.pool(torch.relu(self.conv(images)))
        return self.wrap(self.fc(maps.view(len(maps), -1)))


def channels_last(items):
    """A batch as this project's loaders give it."""
    images, labels = default_collate(items)
    return images.contiguous(memory_format=torch.channels_last), labels


@pytest.fixture
def loader():
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(12) % 3), 8, collate_fn=channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_network_that_flattens_by_view_is_trained_and_predicts_in_its_own_precision(dtype, loader):
    model = Flattens().to(dtype)
    history = train(
        model, loader, loader, TrainSettings(max_epochs=2, learning_rate=1e-3), device="cpu", progress=False
    )
    assert history.epochs == 2 and model.fc.weight.dtype == dtype
    logits, _ = predict(model, loader)
    expected = model(loader.dataset.tensors[0].to(dtype)).float()
    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02)


def test_batches_reach_this_projects_networks_as_they_are(loader):
    model, seen = SceneClassifier(3, network="resnet18", stages=(4,)), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch, _ = next(iter(loader))
    predict(model, [(batch, torch.arange(8))], build_accelerator("cpu"))
    assert seen[0] is batch


def test_logits_may_stand_in_a_dict(loader):
    torch.manual_seed(0)
    plain = Flattens()
    wrapped = Flattens(lambda logits: {"loss": None, "logits": logits})
    wrapped.load_state_dict(plain.state_dict())
    assert torch.equal(predict(plain, loader)[0], predict(wrapped, loader)[0])


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda logits: (logits, logits), "a tuple"),
        (lambda logits: {"out": logits}, "a dict"),
        (lambda logits: logits[:, 0], r"\(8,\)"),
        (lambda logits: logits[:, :, None, None], r"\(8, 3, 1, 1\)"),
        (lambda logits: logits[:1], r"\(1, 3\)"),
    ],
)
def test_other_outputs_are_refused_by_what_they_are(wrap, words, loader):
    with pytest.raises(ValueError, match=rf"must give logits .*, not {words}"):
        train(Flattens(wrap), loader, loader, TrainSettings(max_epochs=1), device="cpu", progress=False)
    with pytest.raises(ValueError, match="must give logits"):
        predict(Flattens(wrap), loader)


def test_a_network_of_one_logit_is_not_trained_by_cross_entropy(loader):
    with pytest.raises(ValueError, match="one logit"):
        train(
            Flattens(lambda logits: logits[:, :1]),
            loader,
            loader,
            TrainSettings(max_epochs=1),
            device="cpu",
            progress=False,
        )
