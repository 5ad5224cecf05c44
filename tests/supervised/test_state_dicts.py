"""Weights files of the world: what is taken, and what is refused by name."""

import pytest
import torch
from torchvision.models import efficientnet_b0, efficientnet_b1, resnet18, resnet34

from supervised.models import build_features, load_initial_weights


@pytest.fixture(scope="module")
def b0():
    """EfficientNet-B0 as torchvision saves it."""
    torch.manual_seed(0)
    return efficientnet_b0(weights=None).state_dict()


def load(folder, saved, network="efficientnet_b0"):
    torch.save(saved, folder / "weights.pth")
    return load_initial_weights(str(folder / "weights.pth"), network).state_dict


def renamed(state, change):
    return {change(name): tensor for name, tensor in state.items()}


WRAPPED = {
    "features alone": lambda b0: {
        name.removeprefix("features."): tensor for name, tensor in b0.items() if name.startswith("features.")
    },
    "DataParallel": lambda b0: renamed(b0, lambda name: f"module.{name}"),
    "torch.compile": lambda b0: renamed(b0, lambda name: f"_orig_mod.{name}"),
    "both": lambda b0: renamed(b0, lambda name: f"module._orig_mod.{name}"),
    "compiled features": lambda b0: renamed(b0, lambda name: name.replace("features.", "features._orig_mod.")),
    "a backbone": lambda b0: renamed(b0, lambda name: f"backbone.{name}"),
    "Lightning": lambda b0: {
        "state_dict": renamed(b0, lambda name: f"model.{name}"),
        "epoch": 1,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    },
    "our checkpoint": lambda b0: {"format": 2, "identity": {"settings": {}}, "model": b0, "history": {"val_loss": []}},
    "a checkpoint with an optimizer": lambda b0: {
        "model": b0,
        "optimizer": {"x": torch.zeros(2)},
        "step": torch.ones(1),
    },
    "an average": lambda b0: {**renamed(b0, lambda name: f"module.{name}"), "n_averaged": torch.tensor(3)},
    "features and a target's": lambda b0: {**b0, **renamed(b0, lambda name: f"target.{name}")},
    "without counters": lambda b0: {name: tensor for name, tensor in b0.items() if "num_batches" not in name},
    "half precision": lambda b0: {name: tensor.half() for name, tensor in b0.items()},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_within_what_is_put_around_them(tmp_path, b0, wrap):
    found = load(tmp_path, wrap(b0))
    features = build_features("efficientnet_b0")
    features.load_state_dict(found)
    for name, tensor in features.state_dict().items():
        assert torch.allclose(tensor.float(), b0[f"features.{name}"].float(), rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "features."])
def test_a_resnets_weights_are_found_under_torchvisions_names_and_ours(tmp_path, prefix):
    state = build_features("resnet18").state_dict() if prefix == "features." else resnet18(weights=None).state_dict()
    found = load(tmp_path, renamed(state, lambda name: prefix + name), "resnet18")
    assert torch.equal(found["layer2.0.conv1.weight"], state["layer2.0.conv1.weight"])
    assert torch.equal(found["stem.conv1.weight"], state[("stem." if prefix == "features." else "") + "conv1.weight"])


ODD = {
    "None": (lambda tensor: None, "None"),
    "meta": (lambda tensor: tensor.to("meta"), "meta"),
    "sparse": (lambda tensor: tensor.to_sparse(), "sparse"),
    "quantized": (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "quantized"),
    "integers": (lambda tensor: tensor.int(), "int32"),
    "a list": (lambda tensor: tensor.tolist(), "list"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "complex64"),
    "infinite": (lambda tensor: tensor / 0, "finite"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ODD.values(), ids=ODD)
def test_an_odd_tensor_is_named(tmp_path, b0, case):
    change, word = case
    name = "features.0.0.weight"
    with pytest.raises(ValueError, match=rf"{name} in .*weights\.pth .*{word}"):
        load(tmp_path, {**b0, name: change(b0[name])})


REFUSED = {
    "B1 for B0": (
        lambda b0: efficientnet_b1(weights=None).state_dict(),
        ["efficientnet_b1", "lacks 0", "148 too many"],
    ),
    "a ResNet for B0": (lambda b0: resnet18(weights=None).state_dict(), ["resnet18", "lacks 309"]),
    "a stage too many": (
        lambda b0: {**b0, "features.9.0.weight": torch.zeros(3)},
        ["1 too many", "features.9.0.weight"],
    ),
    "a stage missing": (
        lambda b0: {name: tensor for name, tensor in b0.items() if not name.startswith("features.8")},
        ["lacks 5,", "features.8.0.weight"],
    ),
    "two networks": (
        lambda b0: {**renamed(b0, lambda name: f"one.{name}"), **renamed(b0, lambda name: f"other.{name}")},
        ["one.features.", "other.features."],
    ),
    "two state dicts": (lambda b0: {"model": b0, "ema": b0}, ["model", "ema"]),
    "timm's names": (
        lambda b0: {"conv_stem.weight": torch.zeros(1), "blocks.0.0.bn1.weight": torch.zeros(1)},
        ["timm"],
    ),
    "nothing": (lambda b0: {}, ["torchvision"]),
    "a tensor": (lambda b0: torch.zeros(3), ["Tensor"]),
    "with and without a wrapper": (
        lambda b0: {**b0, "module.features.0.0.weight": b0["features.0.0.weight"]},
        ["features.0.0.weight", "module"],
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_not_the_network_is_refused_with_counts_or_names(tmp_path, b0, case):
    make, words = case
    with pytest.raises(ValueError, match=r"weights\.pth") as error:
        load(tmp_path, make(b0))
    sentence = str(error.value).replace(str(tmp_path), "")
    assert all(word in sentence for word in words) and len(sentence) < 300, sentence


def test_a_deeper_resnet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not resnet18 but resnet34: .* lacks 0, .* 96 too many"):
        load(tmp_path, resnet34(weights=None).state_dict(), "resnet18")
