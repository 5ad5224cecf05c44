"""Weights files of the world: find the features of a network in one, or say in one sentence what it holds instead."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

WRAPPERS = ("module", "_orig_mod")  # parts of names that DataParallel and torch.compile add, anywhere
ANCHORS = ("1.0.block.0.0.weight", "layer1.0.conv1.weight")  # a tensor that every EfficientNet, every ResNet has
COUNTER = "num_batches_tracked"  # of BatchNorm; older files lack it
OF_FEATURES = re.compile(r"(\d+|conv\d+|bn\d+|layer\d+)\.")  # how names of features begin; the others are of a head
LIKELY = {  # number of tensors without counters, and channels of the last: the network of torchvision
    (309, 1280): "efficientnet_b0",
    (437, 1280): "efficientnet_b1",
    (437, 1408): "efficientnet_b2",
    (494, 1536): "efficientnet_b3",
    (608, 1792): "efficientnet_b4",
    (670, 1280): "efficientnet_v2_s",
    (100, 512): "resnet18",
    (180, 512): "resnet34",
    (265, 2048): "resnet50",
    (520, 2048): "resnet101",
}


def features_of(saved, path: Path, network: str, features: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of `features`, a network's, under its own names, from what was loaded from a weights file.

    The file's names are torchvision's or those of `features`, also below one prefix such as "backbone.".  The state
    dict may lie in a checkpoint, of this project, of Lightning or others.  BatchNorm's counters of batches may be
    missing.  Raises ValueError naming the file unless all others are there, alone and finite.
    """
    own = features.state_dict()
    expected = {name.removeprefix("stem."): tensor for name, tensor in own.items()}
    found = _below_prefix(without_wrappers(_state_dict_in(saved, path), path), path)
    for name, tensor in found.items():
        check_tensor(f"{_prefix(network)}{name}", tensor, path)
    needed = [name for name in expected if not name.endswith(COUNTER)]
    missing = [name for name in needed if name not in found]
    superfluous = [name for name in found if name not in expected]
    misshaped = [name for name in found if name in expected and found[name].shape != expected[name].shape]
    if missing or superfluous or misshaped:
        first = (missing + superfluous + misshaped)[0]
        shapes = f" {tuple(found[first].shape)} for {tuple(expected[first].shape)}" if first in misshaped else ""
        sizes = [tensor.shape[0] if tensor.dim() else 1 for name, tensor in found.items() if not name.endswith(COUNTER)]
        likely = LIKELY.get((len(sizes), sizes[-1]), network)
        raise ValueError(
            f"{path} is not {network}{f' but {likely}' * (likely != network)}: of {len(needed)} tensors it lacks "
            f"{len(missing)}, it has {len(superfluous)} too many and {len(misshaped)} of another shape, "
            f"first {_prefix(network)}{first}{shapes}"
        )
    return {name: found.get(name.removeprefix("stem."), tensor) for name, tensor in own.items()}


def _prefix(network: str) -> str:
    """How torchvision's names of a network's features begin."""
    return "features." if network.startswith("efficientnet") else ""


def _state_dict_in(saved, path: Path) -> Mapping:
    """The one state dict of features in what was loaded: itself, or one of its values."""
    if not isinstance(saved, Mapping):
        raise ValueError(f"{path} holds a {type(saved).__name__}; it must be a state dict")
    inside = {str(name): value for name, value in saved.items() if isinstance(value, Mapping)}
    found = {name: value for name, value in {"": saved, **inside}.items() if any(map(_is_anchor, value))}
    if len(found) > 1:
        raise ValueError(f"{path} holds several networks, {', '.join(found)}; save the state dict of one")
    return next(iter(found.values()), saved)


def _is_anchor(name) -> bool:
    return str(name).endswith(ANCHORS)


def without_wrappers(state_dict: Mapping, path: Path) -> dict:
    """The state dict without the parts of names that wrappers of a network add."""
    found = {}
    for name, value in state_dict.items():
        plain = ".".join(part for part in str(name).split(".") if part not in WRAPPERS)
        if plain in found:
            raise ValueError(f"{path} holds {plain} twice, with and without {' or '.join(WRAPPERS)} in its name")
        found[plain] = value
    return found


def _below_prefix(state_dict: dict, path: Path) -> dict:
    """The features in a state dict, by torchvision's names without "features." or whatever else they begin with."""
    ends = [name.removesuffix(anchor) for anchor in ANCHORS for name in state_dict if name.endswith(anchor)]
    prefixes = {prefix for prefix in ends if prefix == "" or prefix.endswith(".")}
    own = next((prefix for prefix in ("features.", "") if prefix in prefixes), None)
    if own is None and len(prefixes) > 1:
        raise ValueError(f"{path} holds several networks, below {', '.join(sorted(prefixes))}; save one of them")
    if own is None and not prefixes:
        if any(name.endswith("conv_stem.weight") for name in state_dict):
            raise ValueError(
                f"{path} has timm's names for an EfficientNet, which do not say how images are padded; "
                "save the weights under torchvision's names"
            )
        raise ValueError(
            f"{path} holds neither an EfficientNet (features.0.0.weight, ...) nor a ResNet (conv1.weight, layer1, ...) "
            f"under torchvision's names; its first names are: {', '.join(list(state_dict)[:3]) or 'none'}"
        )
    prefix = own if own is not None else prefixes.pop()
    found = {
        name.removeprefix(prefix).removeprefix("stem."): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }
    return {name: value for name, value in found.items() if OF_FEATURES.match(name)}


def check_tensor(name: str, tensor, path: Path):
    """Raise ValueError unless a network can compute with it."""
    if not isinstance(tensor, torch.Tensor):
        kind = f"is {tensor!r}" if tensor is None else f"is a {type(tensor).__name__}"
    elif tensor.is_meta:
        kind = "has a shape but no values (device meta)"
    elif tensor.is_quantized:
        kind = "is quantized"
    elif tensor.layout != torch.strided:
        kind = "is sparse"
    elif not (tensor.is_floating_point() or name.endswith(COUNTER)):
        kind = f"holds {tensor.dtype} values"
    elif not torch.isfinite(tensor).all():
        kind = "holds values that are not finite"
    else:
        return
    raise ValueError(f"{name} in {path} {kind}; it must be a dense tensor of finite floating-point values")
