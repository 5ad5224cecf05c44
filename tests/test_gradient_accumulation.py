"""Batches that share a step of the optimizer have the gradient of one large batch, for whatever ends an epoch."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from data.files import CODE
from helper_functions import CrossEntropy, TrainSettings, train

# images, large batch, small batch, batches per step; every small batch lies within one large batch
WINDOWS = [
    (48, 16, 8, 2),  # nothing is left over
    (50, 16, 8, 2),  # the last step has one batch of two images
    (44, 16, 8, 2),  # a step of a full batch and a ragged one
    (61, 20, 5, 4),  # the last step has one image
    (9, 16, 2, 8),  # a single step of fewer batches than its number
]
CLASS_WEIGHTS = [None, torch.tensor([1.0, 5.0, 0.2])]


def trained(images, batch_size, steps, objective, optimizer="sgd"):
    """The weights of a linear layer after two epochs, and its train losses."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (images,), generator=generator)
    points = torch.randn(images, 4, generator=generator) + labels[:, None]
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    shuffle = torch.Generator().manual_seed(1)
    loader = DataLoader(TensorDataset(points, labels), batch_size, shuffle=True, generator=shuffle)
    settings = TrainSettings(
        max_epochs=2, learning_rate=0.1, optimizer=optimizer, gradient_accumulation_steps=steps, keep="last"
    )
    history = train(model, loader, loader, settings, objective=objective, device="cpu", progress=False)
    return torch.cat([model.weight.detach().flatten(), model.bias.detach()]), history.train_loss


@pytest.mark.parametrize("class_weights", CLASS_WEIGHTS)
@pytest.mark.parametrize(("images", "large", "small", "steps"), WINDOWS)
def test_small_batches_end_where_the_large_batch_does(images, large, small, steps, class_weights):
    objective = CrossEntropy(class_weights)
    for optimizer in ("sgd", "adamw"):
        one, _ = trained(images, large, 1, objective, optimizer)
        many, _ = trained(images, small, steps, objective, optimizer)
        torch.testing.assert_close(many, one, rtol=0, atol=2e-5)


def test_without_accumulation_a_step_is_the_gradient_of_the_mean_loss_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    points, labels = torch.randn(21, 4, generator=generator), torch.randint(0, 3, (21,), generator=generator)
    weights, model = CLASS_WEIGHTS[1], nn.Linear(4, 3)
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.1, fused=True)
    for batch in torch.arange(21).split(8):
        losses = nn.functional.cross_entropy(by_hand(points[batch]), labels[batch], weights, reduction="none")
        (losses.sum() / weights[labels[batch]].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    loader = DataLoader(TensorDataset(points, labels), 8)
    settings = TrainSettings(max_epochs=1, learning_rate=0.1, optimizer="sgd")
    train(model, loader, loader, settings, objective=CrossEntropy(weights), device="cpu", progress=False)
    assert torch.equal(model.weight, by_hand.weight) and torch.equal(model.bias, by_hand.bias)


class FirstLayerRests(nn.Sequential):
    """Two layers, the first of which takes no gradient in every other pass."""

    passes = 0

    def forward(self, points):
        self.passes += self.training
        hidden = self[0](points)
        return self[1](hidden.detach() if self.passes % 2 else hidden)


def test_a_layer_without_a_gradient_in_some_batches_counts_their_images_too():
    points, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(0)
    model = FirstLayerRests(nn.Linear(4, 4), nn.Linear(4, 3))
    before, expected = model[0].weight.detach().clone(), copy.deepcopy(model)
    logits = expected[1](expected[0](points[4:]))  # of the second batch alone, as a part of all six images
    (nn.functional.cross_entropy(logits, labels[4:], reduction="sum") / 6).backward()
    loader = DataLoader(TensorDataset(points, labels), 4)
    settings = TrainSettings(max_epochs=1, learning_rate=1.0, optimizer="sgd", gradient_accumulation_steps=2)
    train(model, loader, loader, settings, device="cpu", progress=False)
    torch.testing.assert_close(before - model[0].weight, expected[0].weight.grad, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_two_processes_that_accumulate_end_where_one_large_batch_does(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OUT": str(tmp_path)}
    command = [sys.executable, *launcher, "-m", "tests.test_gradient_accumulation"]
    done = subprocess.run(command, cwd=CODE, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    for (images, large, _, _), weights in zip(WINDOWS, found[0], strict=True):
        one, _ = trained(images, large, 1, CrossEntropy(CLASS_WEIGHTS[1]))
        torch.testing.assert_close(torch.tensor(weights), one, rtol=0, atol=2e-5)


if __name__ == "__main__":  # what each of the two processes runs; a batch of an odd size cannot be divided among them
    weights = []
    for images, large, small, steps in WINDOWS:
        small, steps = (small, steps) if small % 2 == 0 else (large // 2, 2)
        weights.append(trained(images, small, steps, CrossEntropy(CLASS_WEIGHTS[1]))[0].tolist())
    with open(f"{os.environ['OUT']}/{os.environ['RANK']}.json", "w") as file:
        json.dump(weights, file)
