"""A network observed from outside: eval mode and forward hooks that last for one block of code."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from loop.devices import as_input_of

MOST_OFF = 4.5  # positions of a grid: convolutions without padding cut the same number from height and width


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
    missing = [module for module in modules if not any(module is each for each in model.modules())]
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


def maps_and_logits(model: nn.Module, images: torch.Tensor, layer: nn.Module) -> tuple[torch.Tensor, object]:
    """One forward pass: the maps (N, channels, height, width) of a layer of the model, and the model's outputs.

    Maps (N, height, width, channels), as a Swin Transformer has them, are recognized by the proportions of the images;
    where both orders fit equally well, channels come first.  Where the layer runs more than once, its last output
    counts.  Gradients flow through the maps.
    Raises ValueError for a layer that is not part of the model, does not run, or gives no maps.
    """
    outputs = []
    with outputs_of(model, [layer], lambda _, output: outputs.append(_copy(output))):
        of_model = model(as_input_of(model, images))
    maps = outputs[-1]
    if isinstance(maps, torch.Tensor) and maps.ndim == 4 and len(maps) == len(images):
        off_first, off_last = _off_grid(maps.shape[2:], images), _off_grid(maps.shape[1:3], images)
        if off_last < min(1, off_first):
            return maps.permute(0, 3, 1, 2), of_model
        if off_first < MOST_OFF:
            return maps, of_model
    found = tuple(maps.shape) if isinstance(maps, torch.Tensor) else _type(maps)
    raise ValueError(
        f"the layer ({_type(layer)}) must give maps (N, channels, height, width) in the proportions of the images, "
        f"not {found}"
    )


def _off_grid(shape: Sequence[int], images: torch.Tensor) -> float:
    """By how many positions of the grid its height or width differs from the proportions of the images."""
    (rows, columns), (height, width) = shape, images.shape[2:]
    return abs(rows * width - columns * height) / max(height, width)


def _copy(output):
    return output.clone() if isinstance(output, torch.Tensor) else output


def _type(value) -> str:
    return type(value).__name__
