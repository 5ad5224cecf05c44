"""EfficientNet-B0 (Tan and Le 2019) or a ResNet (He et al. 2016) with a scene classifier, and initial weights."""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision import models as torchvision_models
from torchvision.models import EfficientNet_B0_Weights, ResNet18_Weights, ResNet34_Weights, WeightsEnum
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import SqueezeExcitation

from data.files import digest_of_file, expanded, load_plain
from helper_functions import Objective
from loop.batchnorm import fold_batchnorm
from supervised.settings import Experiment
from supervised.state_dicts import features_of

_RESNET_WIDTHS = (64, 64, 128, 256, 512)
STAGE_WIDTHS = {  # channels after each stage of `features`
    "efficientnet_b0": (32, 16, 24, 40, 80, 112, 192, 320, 1280),
    "resnet18": _RESNET_WIDTHS,
    "resnet34": _RESNET_WIDTHS,
}
TORCHVISION_WEIGHTS = {
    "efficientnet_b0": EfficientNet_B0_Weights.IMAGENET1K_V1,
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": ResNet34_Weights.IMAGENET1K_V1,
}
# Provenance of known weight files, by the first 8 digits of their SHA-256.
KNOWN_WEIGHTS = {
    "7f5810bc": "ImageNet (torchvision IMAGENET1K_V1)",
    "4ce8c47e": "ImageNet features, BatchNorm statistics re-estimated",
}
IN_TRAIN_MODE = {  # of frozen features, by frozen_mode
    "eval": (),
    "batchnorm": (nn.BatchNorm2d,),
    "stochastic_depth": (StochasticDepth,),
    "train": (nn.BatchNorm2d, StochasticDepth),
}


class SceneClassifier(nn.Module):
    """Images (N, 3, S, S) to logits (N, num_classes): `features` and `classifier`, named as in torchvision.

    `features` is a sequence of stages, see `build_features`; `stages` are those whose pooled maps the head sees.
    Frozen features, or the first `frozen_stages` of them, take no gradients and stay in eval mode: in train mode
    BatchNorm would update its statistics and stochastic depth would drop blocks.  A `frozen_mode` other than "eval" has
    them do so, to measure what that costs.  `unfreeze` lets all features learn, as to fine-tune a released model.
    """

    foldable = True  # `train` evaluates it with BatchNorm folded
    recordable = True  # `train` may record its step as a CUDA graph: it never waits for the GPU

    def __init__(
        self,
        num_classes: int,
        head: str = "shallow",
        freeze_features: bool = False,
        stages: Sequence[int] = (8,),
        network: str = "efficientnet_b0",
        flip_tta: bool = False,
        frozen_stages: int = 0,
        frozen_mode: str = "eval",
    ):
        super().__init__()
        self.frozen_mode = frozen_mode
        self.features = build_features(network)
        self.stages = frozenset(stages)
        self.classifier = build_head(head, num_classes, sum(STAGE_WIDTHS[network][stage] for stage in self.stages))
        self.frozen_stages = len(self.features) if freeze_features else frozen_stages
        self.flip_tta = flip_tta
        self.features[: self.frozen_stages].requires_grad_(False)
        self.train()  # sets frozen features to eval mode from the start
        self.to(memory_format=torch.channels_last)  # faster on CPUs and GPUs, see benchmarks/training_step.csv

    def pooled_features(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, S, S) to the mean of each map of the head's stages: (N, 1280) for the last one alone.

        With horizontal-flip test-time augmentation, in eval mode, the features of an image and of its flipped copy are
        averaged; for a linear head that averages their logits.
        """
        if self.flip_tta and not self.training:
            flipped = self._pool(images.flip(-1))  # first, so that hooks see the image itself last
            return (self._pool(images) + flipped) / 2
        return self._pool(images)

    def _pool(self, images: torch.Tensor) -> torch.Tensor:
        return pool_stages(self.features, self.stages, images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, S, S), or their `pooled_features` (N, D), to logits (N, num_classes)."""
        return self.classifier(images if images.dim() == 2 else self.pooled_features(images))

    def train(self, mode: bool = True):
        """As nn.Module.train, but frozen features stay in eval mode, except as `frozen_mode` asks."""
        super().train(mode)
        self.features.train(mode and self.frozen_stages < len(self.features))
        self.features[: self.frozen_stages].eval()
        for module in self.features[: self.frozen_stages].modules():
            if isinstance(module, IN_TRAIN_MODE[self.frozen_mode]):
                module.train(mode)
        return self

    def unfreeze(self) -> "SceneClassifier":
        """Let all features take gradients and follow the mode of the network; returns it."""
        self.frozen_stages = 0
        self.features.requires_grad_(True)
        return self.train(self.training)


def pool_stages(features: nn.Sequential, stages: Collection[int], images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, S, S) to the mean of each map after these stages, joined in order: (N, D)."""
    pooled = []
    for number, stage in enumerate(features):
        images = stage(images)
        if number in stages:
            pooled.append(images.mean(dim=(2, 3)))
    return torch.cat(pooled, dim=1)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that computes in float32 within bfloat16 training on a CPU.

    Its bfloat16 gradients are several times slower there than those in float32, and would make all of the training
    slower than in float32.  Without them it is a fifth faster (benchmarks/training_step.csv).
    """

    foldable = True  # see `fold_batchnorm`: what it computes is the convolution of its weights

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to maps of the same number of channels."""
        learns = torch.is_grad_enabled() and (images.requires_grad or self.weight.requires_grad)
        if learns and images.is_cpu and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(images.float()).to(torch.get_autocast_dtype("cpu"))
        return super().forward(images)


class GlobalMean(nn.Module):
    """The mean of each map, as nn.AdaptiveAvgPool2d(1) computes it, with a gradient that is not written out in full.

    In squeeze-and-excitation that gradient is added to another one of the maps.  Written out, it has another memory
    layout than the maps, and on a CPU the sum is slow.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to (N, C, 1, 1)."""
        return maps.sum(dim=(2, 3), keepdim=True) / maps.shape[2:].numel()


def build_features(network: str) -> nn.Sequential:
    """The stages of a network without its classifier, with random weights.

    EfficientNet-B0's are torchvision's `features`.  A ResNet's are `stem` and torchvision's `layer1` to `layer4`.
    """
    if network == "efficientnet_b0":
        features = torchvision_models.efficientnet_b0(weights=None).features
        for module in features.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.__class__ = DepthwiseConv2d  # a new module would draw weights, and change what a seed gives
            if isinstance(module, SqueezeExcitation):
                module.avgpool = GlobalMean()
        return features
    resnet = getattr(torchvision_models, network)(weights=None)
    stem = OrderedDict(conv1=resnet.conv1, bn1=resnet.bn1, relu=resnet.relu, maxpool=resnet.maxpool)
    layers = {f"layer{number}": getattr(resnet, f"layer{number}") for number in range(1, 5)}
    return nn.Sequential(OrderedDict(stem=nn.Sequential(stem), **layers))


def build_head(head: str, num_classes: int, num_features: int = STAGE_WIDTHS["efficientnet_b0"][-1]) -> nn.Sequential:
    """The first report's classifiers, "shallow" (its Model1, torchvision's own) and "deep" (Model2), or a linear probe.

    "batchnorm_linear" is a linear probe with a BatchNorm without affine parameters before its layer, as in He et al.
    2022 (MAE), so that stages of different scale count alike.
    """
    if head == "shallow":
        return nn.Sequential(nn.Dropout(0.2), nn.Linear(num_features, num_classes))
    if head == "batchnorm_linear":
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


class Distillation(Objective):
    """The objective of a distilled network: cross-entropy with the mean probabilities of its teachers.

    Called as `helper_functions.CrossEntropy` is.  The teachers stay in eval mode and see the same pixels as the
    student.  With mixup, each image is mixed with the one before it in the batch, which contributes a share between 0
    and a half (after Zhang et al. 2018): on images that they have memorized, teachers say little more than the label.
    """

    def __init__(self, teachers: Sequence[SceneClassifier], mixup: bool, label_smoothing: float = 0.0):
        super().__init__()
        self.teachers = nn.ModuleList(fold_batchnorm(teacher) for teacher in teachers).eval().requires_grad_(False)
        for teacher in self.teachers:  # the student sees one view of an image, so its teachers see that one alone
            teacher.flip_tta = False
        self.mixup = mixup
        self.label_smoothing = label_smoothing

    def forward(self, model, images, labels):
        """Losses (N,), weights (N,) and logits (N, classes), float32; the labels are not used."""
        images, probabilities = self.targets(images)
        logits = model(images).float()
        losses = nn.functional.cross_entropy(
            logits, probabilities, reduction="none", label_smoothing=self.label_smoothing
        )
        return losses, torch.ones_like(losses), logits

    @torch.no_grad()
    def targets(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The images, mixed if asked for, and the teachers' mean probabilities (N, classes), float32."""
        if self.mixup:
            shares = torch.rand(len(images), 1, 1, 1) / 2  # on the CPU, whose generator a resumed training restores
            images = torch.lerp(images, images.roll(1, dims=0), shares.to(images.device))
        logits = torch.stack([teacher(images).float() for teacher in self.teachers])
        return images, logits.softmax(dim=2).mean(dim=0)


@dataclass(frozen=True)
class InitialWeights:
    """Weights of `features.*` to start from (None: random), and their provenance, which stands in every result."""

    state_dict: dict[str, torch.Tensor] | None
    provenance: dict[str, str]


def load_initial_weights(weights: str, network: str = "efficientnet_b0") -> InitialWeights:
    """Initial weights by name or file: "random", "imagenet" (torchvision's, downloaded once), or a state dict's path.

    Raises FileNotFoundError for a missing file, ValueError for a file without the network's features, and
    ConnectionError if the download fails.  There is no silent fallback.
    """
    if weights == "random":
        return InitialWeights(None, {"weights": "random"})
    if weights == "imagenet":
        path = _download(TORCHVISION_WEIGHTS[network])
    else:
        path = expanded(weights)
        if not path.is_file():
            raise FileNotFoundError(f"there is no weights file {path}; --weights takes imagenet, random or a file")
    try:
        saved = load_plain(path)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be loaded safely ({type(error).__name__}); it must be a state dict as torch.save writes it"
        ) from error
    digest = digest_of_file(path)
    return InitialWeights(
        state_dict=features_of(saved, path, network, build_features(network)),
        provenance={"weights": KNOWN_WEIGHTS.get(digest[:8], "a user's file"), "file": path.name, "sha256": digest},
    )


def classifier_of(experiment: Experiment, num_classes: int) -> SceneClassifier:
    """The network of an experiment with random weights."""
    return SceneClassifier(
        num_classes,
        head=experiment.head,
        freeze_features=experiment.freeze_features,
        stages=experiment.stages,
        network=experiment.network,
        flip_tta=experiment.flip_tta,
        frozen_stages=experiment.frozen_stages,
        frozen_mode=experiment.frozen_mode,
    )


def build_model(experiment: Experiment, loaders) -> tuple[SceneClassifier, dict[str, str]]:
    """The experiment's network with its initial weights, and the provenance of these weights.

    `loaders` (supervised.dataloader.Loaders) give the classes, and the images to estimate BatchNorm's statistics with
    where the features are random and frozen.  The head draws its weights from torch's global generator.  Raises what
    `load_initial_weights` raises.
    """
    initial = load_initial_weights(experiment.initial_weights, experiment.network)
    model = classifier_of(experiment, len(loaders.class_names))
    if initial.state_dict is not None:
        model.features.load_state_dict(initial.state_dict)
    elif experiment.freeze_features:
        estimate_batchnorm(model.features, loaders.train)  # shuffled, since a batch of one class is no sample
    return model, initial.provenance


@torch.no_grad()
def estimate_batchnorm(model: nn.Module, batches: Iterable, norms: Sequence[nn.Module] | None = None):
    """Set BatchNorm's running statistics to those of the batches; everything else runs in eval mode, as all is left.

    `batches` are images (N, 3, S, S), or tuples that begin with them.  `norms` are BatchNorm layers of the model, by
    default every BatchNorm2d.  Without this, activations of a random network vanish from layer to layer in eval mode,
    and its features do not depend on the image.  torch.optim.swa_utils.update_bn would leave stochastic depth on.
    """
    if norms is None:
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for batch in batches:
        model(batch if isinstance(batch, torch.Tensor) else batch[0])
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _download(weights: WeightsEnum) -> Path:
    """The file of torchvision's weights in torch's own cache, downloaded and checked if it is not there yet."""
    try:
        weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"the ImageNet weights could not be downloaded from {weights.url} ({error}); "
            "give a file with --weights PATH, or use --weights random (in Python: initial_weights of the experiment)"
        ) from error
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
