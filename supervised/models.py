"""EfficientNet-B0 (Tan and Le 2019) with a scene classifier on top, its heads, and its initial weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision.models import EfficientNet_B0_Weights, efficientnet_b0

from supervised.settings import Experiment

STAGE_WIDTHS = (32, 16, 24, 40, 80, 112, 192, 320, 1280)  # channels after each stage of `features`
# What is in a weights file that has been seen before, by the first 8 digits of its SHA-256.
KNOWN_WEIGHTS = {
    "7f5810bc": "ImageNet (torchvision IMAGENET1K_V1)",
    "4ce8c47e": "ImageNet features, BatchNorm statistics re-estimated",
}


class SceneClassifier(nn.Module):
    """Images (N, 3, S, S) to logits (N, num_classes): `features` and `classifier`, named as in torchvision.

    Frozen features neither take gradients nor leave eval mode: in train mode BatchNorm would go on learning its
    statistics, and stochastic depth would drop blocks.
    """

    def __init__(
        self, num_classes: int, head: str = "shallow", freeze_features: bool = False, stages: Sequence[int] = (8,)
    ):
        super().__init__()
        self.features = efficientnet_b0(weights=None).features
        self.stages = frozenset(stages)
        self.classifier = build_head(head, num_classes, sum(STAGE_WIDTHS[stage] for stage in self.stages))
        self.freeze_features = freeze_features
        self.features.requires_grad_(not freeze_features)
        self.train()  # sets frozen features to eval mode from the start
        self.to(memory_format=torch.channels_last)  # faster on CPUs and GPUs, see benchmarks/training_step.csv

    def pooled_features(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, S, S) to the mean of each map of the head's stages: (N, 1280) for the last one alone."""
        pooled = []
        for number, stage in enumerate(self.features):
            images = stage(images)
            if number in self.stages:
                pooled.append(images.mean(dim=(2, 3)))
        return torch.cat(pooled, dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, S, S) to logits (N, num_classes)."""
        return self.classifier(self.pooled_features(images))

    def train(self, mode: bool = True):
        """As nn.Module.train, but frozen features stay in eval mode."""
        super().train(mode)
        if self.freeze_features:
            self.features.eval()
        return self


def build_head(head: str, num_classes: int, num_features: int = STAGE_WIDTHS[-1]) -> nn.Sequential:
    """The first report's classifiers, "shallow" (its Model1, torchvision's own) and "deep" (Model2), or a linear probe.

    The probe, "standardised", has a BatchNorm without weights before its one layer, as in He et al. 2022 (MAE): stages
    of different scale then count alike.
    """
    if head == "shallow":
        return nn.Sequential(nn.Dropout(0.2), nn.Linear(num_features, num_classes))
    if head == "standardised":
        return nn.Sequential(nn.BatchNorm1d(num_features, affine=False), nn.Linear(num_features, num_classes))
    return nn.Sequential(
        nn.Dropout(0.2),
        nn.Linear(num_features, 640),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(640, 320),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(320, num_classes),
    )


@dataclass(frozen=True)
class InitialWeights:
    """Weights of `features.*` to begin with (None: random), and the words for them that stand in every result."""

    state_dict: dict[str, torch.Tensor] | None
    source: dict[str, str]


def load_initial_weights(weights: str) -> InitialWeights:
    """Initial weights by name or file: "random", "imagenet" (torchvision's, downloaded once), or a state dict's path.

    Raises FileNotFoundError for a missing file, ValueError for one without EfficientNet-B0's features, and
    ConnectionError if the download fails: nothing else is then used in its place.
    """
    if weights == "random":
        return InitialWeights(None, {"weights": "random"})
    if weights == "imagenet":
        path = _download(EfficientNet_B0_Weights.IMAGENET1K_V1)
    else:
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"there is no weights file {path}; --weights takes imagenet, random or a file")
    try:
        state_dict = dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ValueError(f"{path} is not a state dict that can be opened safely ({type(error).__name__})") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return InitialWeights(
        state_dict=_features_of(state_dict, path),
        source={"weights": KNOWN_WEIGHTS.get(digest[:8], "a file of the user's"), "file": path.name, "sha256": digest},
    )


def build_model(experiment: Experiment, loaders) -> tuple[SceneClassifier, dict[str, str]]:
    """The experiment's network with its initial weights, and the words for these weights.

    `loaders` (supervised.dataloader.Loaders) gives the classes and, where the features are random and frozen, the
    images to set BatchNorm by.  The head draws its weights from torch's global generator.  Raises what
    `load_initial_weights` raises.
    """
    initial = load_initial_weights(experiment.initial_weights)
    model = SceneClassifier(len(loaders.class_names), experiment.head, experiment.freeze_features, experiment.stages)
    if initial.state_dict is not None:
        model.features.load_state_dict(initial.state_dict)
    elif experiment.freeze_features:
        calibrate_batchnorm(model.features, loaders.train)  # shuffled: a batch of one class is no sample
    return model, initial.source


@torch.no_grad()
def calibrate_batchnorm(features: nn.Module, loader):
    """Set BatchNorm's running statistics to those of the loader's images; everything else stays in eval mode.

    Without it the activations of a random network vanish from layer to layer in eval mode, and its features do not
    depend on the image.  torch.optim.swa_utils.update_bn would leave stochastic depth on.
    """
    norms = [module for module in features.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    features.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for images, _ in loader:
        features(images)
    features.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _download(published: EfficientNet_B0_Weights) -> Path:
    """The file of published weights in torch's own cache, downloaded and checked if it is not there yet."""
    try:
        published.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"the ImageNet weights could not be downloaded from {published.url} ({error}); "
            "give a file with --weights PATH, or begin with --weights random"
        ) from error
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name


def _features_of(state_dict: dict, path: Path) -> dict[str, torch.Tensor]:
    """The entries `features.*` without that prefix; every one the network has, of its shape, and finite."""
    expected = efficientnet_b0(weights=None).features.state_dict()
    for name, tensor in expected.items():
        found = state_dict.get(f"features.{name}")
        if found is None:
            raise ValueError(f"{path} has no features.{name}; it must hold EfficientNet-B0 under torchvision's names")
        if found.shape != tensor.shape:
            raise ValueError(
                f"features.{name} in {path} has shape {tuple(found.shape)}; EfficientNet-B0 has {tuple(tensor.shape)}"
            )
        if not torch.isfinite(found).all():
            raise ValueError(f"features.{name} in {path} holds values that are not finite")
    return {name: state_dict[f"features.{name}"] for name in expected}
