"""Joint-embedding pretexts: views of one image get similar embeddings, without any label.

A method is a network with `features`, which are kept, and heads, which are not.  It takes views (N, V, 3, S, S), V
random views of each image, and returns losses (N,) and the pooled features of the first view.  A method of your own
defines its heads and `losses`:

    class Attraction(JointEmbedding):
        def __init__(self, features, experiment, steps):
            super().__init__(features, experiment)
            self.projector = build_mlp(self.width, 1024, 256)

        def losses(self, pooled, views):
            first, second = (self.projector(each) for each in pooled)
            return negative_cosine(first, second.detach())

    METHODS["attraction"] = Attraction

`runs.run(JointEmbeddingExperiment("attraction_1", "Does it collapse?", method="attraction"))` then trains it.
"""

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import combinations, permutations

import torch
import torch.distributed.nn.functional as across_processes
from torch import distributed, nn
from torch.nn import functional

from helper_functions import Evaluation, Objective
from loop.devices import autocast
from self_supervised.probes import vote_of_neighbors
from supervised.models import STAGE_WIDTHS, pool_stages

SHOWN_NEIGHBORS = 20  # of the accuracy that is shown while training


class JointEmbedding(nn.Module):
    """What the methods share: features, the gathering of all processes' images, and modes.

    `features` is a sequence of stages; heads see the pooled maps of the experiment's `stages`.  With `batchnorm`
    "initial", BatchNorm layers of the features stay in eval mode: they keep the statistics of the initial weights, and
    their scales and shifts are trained.  The first `frozen_stages` of the features are not trained at all.
    """

    foldable = True  # `train` evaluates it with BatchNorm folded

    def __init__(self, features: nn.Sequential, experiment):
        super().__init__()
        self.features = features.to(memory_format=torch.channels_last)
        self.keeps_batchnorm = experiment.batchnorm == "initial"
        self.frozen_stages = experiment.frozen_stages
        self.features[: self.frozen_stages].requires_grad_(False)
        self.stages = experiment.stages
        self.width = sum(STAGE_WIDTHS[experiment.network][stage] for stage in self.stages)

    def pooled_features(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, S, S) to what the heads see (N, width)."""
        return pool_stages(self.features, self.stages, images)

    def pool(self, features: nn.Sequential, views: torch.Tensor) -> list[torch.Tensor]:
        """The pooled maps (N, width), float32, of each of the V views (N, V, 3, S, S), of the images of all processes.

        Heads see the global batch, so BatchNorm and SimCLR's negatives are the same in one process and in many.
        """
        pooled = pool_stages(features, self.stages, views.flatten(0, 1)).float()
        return [gather(each) for each in pooled.unflatten(0, views.shape[:2]).unbind(dim=1)]

    def losses(self, pooled: list[torch.Tensor], views: torch.Tensor) -> torch.Tensor:
        """The loss of each image (N,).

        pooled: features (N, width) of the V views, of the images of all processes.  views: this process's images, for
        a second network.
        """
        raise NotImplementedError

    def after_step(self):
        """Called after each step of the optimizer."""

    def forward(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views (N, V, 3, S, S) to losses (N,) and the pooled features (N, width) of the first view, float32.

        Raises ValueError if `losses` does not give one loss for each image of all processes.
        """
        pooled = self.pool(self.features, views)
        losses = self.losses(pooled, views)
        if losses.shape != pooled[0].shape[:1]:
            raise ValueError(
                f"losses of {type(self).__name__} must return one loss for each image, shape ({len(pooled[0])},); it "
                f"returns {tuple(losses.shape)}"
            )
        own = slice_of_process(len(views))
        return losses[own], pooled[0][own].detach()

    def train(self, mode: bool = True):
        """As nn.Module.train, but layers with statistics that are kept, and frozen stages, stay in eval mode."""
        super().train(mode)
        self.features[: self.frozen_stages].eval()
        if self.keeps_batchnorm:
            for module in self.features.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class BYOL(JointEmbedding):
    """Bootstrap your own latent (Grill et al. 2020): predict what a slowly moving copy of the network gives.

    The target is an exponential moving average of features and projector.  Its momentum rises from the experiment's to
    1 over the `steps` of the training, by half a cosine.
    """

    def __init__(self, features, experiment, steps: int):
        super().__init__(features, experiment)
        self.projector = build_mlp(self.width, 1024, 256)
        self.predictor = build_mlp(256, 1024, 256)
        self.target_features = copy.deepcopy(features).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.momentum, self.steps = experiment.momentum, steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def losses(self, pooled, views):
        """The mean, over pairs of views, of minus the cosine of one's prediction and the other's target."""
        predictions = [self.predictor(self.projector(each)) for each in pooled]
        with torch.no_grad():
            targets = [self.target_projector(each) for each in self.pool(self.target_features, views)]
        pairs = list(permutations(range(len(pooled)), 2))
        return sum(negative_cosine(predictions[one], targets[other]) for one, other in pairs) / len(pairs)

    @torch.no_grad()
    def after_step(self):
        """Move the target."""
        momentum = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * self.step.item() / self.steps)) / 2
        for target, online in (
            (self.target_features, self.features),
            (self.target_projector, self.projector),
        ):
            torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)
        self.step += 1

    def train(self, mode: bool = True):
        """As above; with kept statistics the target's features are in eval mode, so that they drop no blocks either."""
        super().train(mode)
        self.target_features.train(mode and not self.keeps_batchnorm)
        self.target_features[: self.frozen_stages].eval()
        return self


class SimCLR(JointEmbedding):
    """Chen et al. 2020: among all views of all images, find the other view of the same image."""

    def __init__(self, features, experiment, steps: int):
        super().__init__(features, experiment)
        self.projector = build_mlp(self.width, 1024, 256)
        self.temperature = experiment.temperature

    def losses(self, pooled, views):
        """`nt_xent` of the embeddings, averaged over pairs of views."""
        return mean_over_pairs(partial(nt_xent, temperature=self.temperature), map(self.projector, pooled))


class VICReg(JointEmbedding):
    """Bardes et al. 2022: equal embeddings of both views, each dimension with variance, no two dimensions alike."""

    def __init__(self, features, experiment, steps: int):
        super().__init__(features, experiment)
        self.projector = build_mlp(self.width, 1024, 256)

    def losses(self, pooled, views):
        """`vicreg` of the embeddings, averaged over pairs of views."""
        return mean_over_pairs(vicreg, map(self.projector, pooled))


METHODS = {"byol": BYOL, "simclr": SimCLR, "vicreg": VICReg}


def mean_over_pairs(loss: Callable, embeddings: Iterable[torch.Tensor]) -> torch.Tensor:
    """The mean of loss(one, other), each (N,), over the pairs of views with these embeddings (N, D)."""
    pairs = list(combinations(embeddings, 2))
    return sum(loss(one, other) for one, other in pairs) / len(pairs)


def negative_cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Minus the cosine similarity of embeddings (N, D), (N,): -1 where they point in one direction."""
    return -functional.cosine_similarity(one.float(), other.float(), dim=1)


def nt_xent(one: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """The normalized, temperature-scaled cross-entropy (Chen et al. 2020) of embeddings (N, D), (N,) in nats.

    Each of the 2N embeddings is classified among the others; its class is the other view of its image.
    """
    embeddings = functional.normalize(torch.cat([one, other]).float(), dim=1)
    similarities = embeddings @ embeddings.T / temperature
    similarities = similarities.masked_fill(torch.eye(len(embeddings), dtype=torch.bool, device=one.device), -torch.inf)
    images = torch.arange(len(one), device=one.device)
    positions = torch.cat([images + len(one), images])
    return functional.cross_entropy(similarities, positions, reduction="none").view(2, -1).mean(dim=0)


def vicreg(
    one: torch.Tensor, other: torch.Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> torch.Tensor:
    """Invariance, variance and covariance terms (Bardes et al. 2022) of embeddings (N, D), weighted as there: (N,).

    The last two are of the batch and the same for every image.
    """
    one, other = one.float(), other.float()
    of_image = functional.mse_loss(one, other, reduction="none").mean(dim=1)
    of_batch = 0.0
    for embeddings in (one, other):
        centered = embeddings - embeddings.mean(dim=0)
        deviations = (centered.var(dim=0) + 1e-4).sqrt()
        products = centered.T @ centered / (len(centered) - 1)
        off_diagonal = products - torch.diag(products.diagonal())
        of_batch = of_batch + variance * functional.relu(1 - deviations).mean() / 2
        of_batch = of_batch + covariance * off_diagonal.square().sum() / embeddings.shape[1]
    return invariance * of_image + of_batch


def build_mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """A linear layer, BatchNorm, ReLU and a linear layer: the projectors and predictors of Grill et al. 2020."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
    )


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in their order; gradients go back to each process."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return tensor
    return torch.cat(across_processes.all_gather(tensor.contiguous()))


def slice_of_process(rows: int) -> slice:
    """Which of the rows of all processes are those of this one."""
    first = distributed.get_rank() * rows if distributed.is_initialized() else 0
    return slice(first, first + rows)


def _finite(features: torch.Tensor) -> torch.Tensor:
    """Features that neighbors can be found by, whatever they are: the loop reports a loss that is not finite."""
    return features.nan_to_num(0.0, 0.0, 0.0)


class OfViews(Objective):
    """The objective of a `JointEmbedding`.  The labels serve the accuracy that is shown and nothing else.

    That accuracy is a vote of the nearest first views of the epoch's training images, with the features that they had
    when they were seen.  It is 0 where none of these images has a class.
    """

    def __init__(self):
        super().__init__()
        self.seen = []  # features and labels of the epoch's training images

    def forward(self, model, images, labels):
        """Losses (N,), weights (N,), and no logits."""
        losses, features = model(images)
        self.seen.append((_finite(features.detach()), labels))
        return losses, torch.ones_like(losses), None

    def after_step(self, model):
        """Let the method move what moves without gradients."""
        model.after_step()

    @torch.inference_mode()
    def evaluate(self, network, loader, accelerator, precision):
        """The mean loss of views, and the accuracy of their nearest neighbors in the epoch's training images."""
        network.eval()
        all_losses, all_features, all_labels = [], [], []
        for images, labels in loader:
            with autocast(precision, accelerator.device):
                losses, features = network(images)
            losses, features, labels = accelerator.gather_for_metrics((losses, features, labels))
            all_losses.append(losses)
            all_features.append(_finite(features))
            all_labels.append(labels)
        train = [accelerator.gather(torch.cat(part)).cpu().numpy() for part in zip(*self.seen, strict=True)]
        train = [part[train[1] >= 0] for part in train]  # -1 is an image without a class
        self.seen.clear()
        labels = torch.cat(all_labels).cpu()
        neighbors, predictions = min(SHOWN_NEIGHBORS, len(train[1])), torch.full_like(labels, -1)
        if neighbors:
            found = vote_of_neighbors(*train, torch.cat(all_features).cpu().numpy(), neighbors)
            predictions = torch.from_numpy(found)
        return Evaluation(
            loss=torch.cat(all_losses).mean().item(),
            accuracy=(predictions == labels).sum().item() / len(labels),
            predictions=predictions,
        )
