"""A network observed from outside: eval mode and forward hooks that last for one block of code."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode within the block, then give each submodule its own mode back, whatever happens.

    `model.train()` would not restore the modes: frozen features, for example, are in eval mode on purpose.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def outputs_of(model: nn.Module, modules: Sequence[nn.Module], see: Callable[[nn.Module, object], None]):
    """Call see(module, output) each time one of the modules has run within the block.

    `see` is called before the next module runs.  It must copy an output that it needs later, because the next module
    may work in place.  The hooks are removed at the end of the block, whatever happens.
    Raises ValueError for a module that is not part of the model, and at the end of the block for one that did not run.
    """
    missing = [module for module in modules if module not in set(model.modules())]
    if missing:
        raise ValueError(f"the layer ({_type(missing[0])}) is not a module of the model ({_type(model)})")
    silent = set(modules)

    def hook(module, inputs, output):
        silent.discard(module)
        see(module, output)

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if silent:
        raise ValueError(f"the layer ({_type(silent.pop())}) did not run when the model was given the images")


def maps_and_logits(model: nn.Module, images: torch.Tensor, layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward pass: the maps (N, channels, height, width) of a layer of the model, and the model's outputs.

    Where the layer runs more than once, its last output counts.  Gradients flow through the maps.
    Raises ValueError for a layer that is not part of the model, does not run, or gives no maps.
    """
    outputs = []
    with outputs_of(model, [layer], lambda _, output: outputs.append(_copy(output))):
        logits = model(images)
    maps = outputs[-1]
    if not isinstance(maps, torch.Tensor) or maps.ndim != 4:
        found = tuple(maps.shape) if isinstance(maps, torch.Tensor) else _type(maps)
        raise ValueError(f"the layer ({_type(layer)}) must give maps (N, channels, height, width), not {found}")
    return maps, logits


def _copy(output):
    return output.clone() if isinstance(output, torch.Tensor) else output


def _type(value) -> str:
    return type(value).__name__
