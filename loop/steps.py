"""The gradients of one batch: operations launched one by one, compiled, or recorded as a CUDA graph."""

import torch
from accelerate import Accelerator
from torch import nn

from loop.devices import as_input_of, autocast

STEPS = ("auto", "eager", "compiled", "graph")
WARM_UP = 3  # steps before one is recorded, as CUDA asks for


def sums_over_batch(
    losses: torch.Tensor, weights: torch.Tensor, accelerator: Accelerator
) -> tuple[torch.Tensor, torch.Tensor]:
    """This process's part of the sum of the global batch's losses, and the sum of the global batch's weights.

    The mean of the parts over processes is the sum.  `losses` and `weights` (N,) are those of this process's images.
    To fill the last batch, accelerate repeats images, so processes may have different numbers of new ones; repeated
    images do not count.
    """
    batch, images = accelerator.gradient_state, len(losses)
    if accelerator.num_processes > 1 and batch.end_of_dataloader and batch.remainder > 0:
        images = min(max(batch.remainder - accelerator.process_index * images, 0), images)
    weight = accelerator.reduce(weights[:images].sum(), reduction="sum")
    return losses[:images].sum() * accelerator.num_processes, weight


class Step:
    """The gradients of one batch: forward and backward, each operation launched by itself, or compiled."""

    def __init__(self, network: nn.Module, objective: nn.Module, accelerator: Accelerator, settings):
        """Take network and objective, which are on the accelerator's device."""
        self.network = torch.compile(network) if settings.step == "compiled" else network
        self.objective, self.accelerator, self.precision = objective, accelerator, settings.precision

    def __call__(self, images, labels, earlier_weight):
        """Add to the gradients; returns losses (N,), logits (N, classes) or None, and the weight of the step so far.

        `earlier_weight` is the sum of the weights of the earlier batches of this optimizer step.
        """
        with autocast(self.precision, self.accelerator.device):
            images = as_input_of(self.network, images)
            losses, weights, logits = self.objective(self.network, images, labels)
            loss, weight = sums_over_batch(losses, weights, self.accelerator)
            weight = earlier_weight + weight
            loss = loss / weight
        gradients = [each.grad for each in self.network.parameters() if each.grad is not None]
        if gradients:  # of earlier batches of this step: the mean over their images becomes one over more images
            torch._foreach_mul_(gradients, earlier_weight / weight)
        loss.backward()  # accelerator.backward would divide by the number of batches
        return losses, logits, weight


class RecordedStep(Step):
    """The same, recorded once for each shape of a batch as a CUDA graph and replayed: one launch for all operations.

    Batches must not be accumulated, since a replay overwrites the gradients.
    """

    def __init__(self, network, objective, accelerator, settings):
        """As `Step`; nothing is recorded yet."""
        super().__init__(network, objective, accelerator, settings)
        self.parameters = [each for each in network.parameters() if each.requires_grad]
        self.recorded = {}

    def __call__(self, images, labels, earlier_weight):
        """As `Step`, for a batch that is an optimizer step by itself."""
        key = tuple(images.shape)
        if key not in self.recorded:
            self.recorded[key] = self._record(torch.empty_like(images), torch.empty_like(labels), images, labels)
        graph, static_images, static_labels, gradients, outputs = self.recorded[key]
        static_images.copy_(images)
        static_labels.copy_(labels)
        graph.replay()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return outputs

    def _record(self, static_images, static_labels, images, labels):
        static_images.copy_(images)
        static_labels.copy_(labels)
        buffers = [each.clone() for each in self.network.buffers()]  # steps to warm up must leave no trace
        generator = torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._forget_gradients()
                super().__call__(static_images, static_labels, 0)
        torch.cuda.current_stream().wait_stream(stream)
        for buffer, before in zip(self.network.buffers(), buffers, strict=True):
            buffer.copy_(before)
        torch.cuda.set_rng_state(generator)
        self._forget_gradients()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = super().__call__(static_images, static_labels, 0)
        return graph, static_images, static_labels, [each.grad for each in self.parameters], outputs

    def _forget_gradients(self):
        for parameter in self.parameters:
            parameter.grad = None


def build_step(network: nn.Module, objective: nn.Module, accelerator: Accelerator, settings) -> Step:
    """The step that a training takes for each batch; arguments and errors as in `resolve_step`."""
    recorded = resolve_step(settings, network, objective, accelerator) == "graph"
    return (RecordedStep if recorded else Step)(network, objective, accelerator, settings)


def resolve_step(settings, network: nn.Module, objective: nn.Module, accelerator: Accelerator) -> str:
    """How a step is launched: "eager", "compiled" by torch.compile, or recorded once as a CUDA "graph".

    "auto" is a graph where there can be one and the class of the network says `recordable`, for on a GPU small batches
    are bound by launches.  Else it is eager: on two CPU cores compiling takes minutes for steps 1.2 times as fast.
    `settings` are TrainSettings and `objective` is an Objective, both of helper_functions.
    Raises ValueError for a graph where there can be none.
    """
    if settings.step not in ("auto", "graph"):
        return settings.step
    reasons = {
        "needs an NVIDIA GPU": accelerator.device.type != "cuda",
        "needs one process": accelerator.num_processes > 1,
        "needs gradient_accumulation_steps = 1": settings.gradient_accumulation_steps > 1,
        f"cannot record {type(objective).__name__}": not objective.recordable,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if settings.step == "graph" and reason is not None:
        raise ValueError(f"step is 'graph', which {reason}; use 'auto'")
    wanted = settings.step == "graph" or getattr(network, "recordable", False)
    return "graph" if wanted and reason is None else "eager"
