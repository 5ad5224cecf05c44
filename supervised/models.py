"""EfficientNet-B0 (Tan and Le 2019) or a ResNet (He et al. 2016) with a scene classifier, and initial weights."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision import models as torchvision_models
from torchvision.models import EfficientNet_B0_Weights, ResNet18_Weights, ResNet34_Weights, WeightsEnum

from helper_functions import fold_batchnorm, load_plain
from supervised.settings import Experiment

_RESNET_WIDTHS = (64, 64, 128, 256, 512)
STAGE_WIDTHS = {  # channels after each stage of `features`
    "efficientnet_b0": (32, 16, 24, 40, 80, 112, 192, 320, 1280),
    "resnet18": _RESNET_WIDTHS,
    "resnet34": _RESNET_WIDTHS,
    "resnet18_cifar": _RESNET_WIDTHS,
    "resnet34_cifar": _RESNET_WIDTHS,
}
PUBLISHED = {
    "efficientnet_b0": EfficientNet_B0_Weights.IMAGENET1K_V1,
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": ResNet34_Weights.IMAGENET1K_V1,
}
# What is in a weights file that has been seen before, by the first 8 digits of its SHA-256.
KNOWN_WEIGHTS = {
    "7f5810bc": "ImageNet (torchvision IMAGENET1K_V1)",
    "4ce8c47e": "ImageNet features, BatchNorm statistics re-estimated",
}


class SceneClassifier(nn.Module):
    """Images (N, 3, S, S) to logits (N, num_classes): `features` and `classifier`, named as in torchvision.

    `features` is a sequence of stages, see `build_features`; `stages` are those whose pooled maps the head sees.
    Frozen features, or the first so many `frozen_stages` of them, neither take gradients nor leave eval mode: in train
    mode BatchNorm would go on learning its statistics, and stochastic depth would drop blocks.
    """

    def __init__(
        self,
        num_classes: int,
        head: str = "shallow",
        freeze_features: bool = False,
        stages: Sequence[int] = (8,),
        network: str = "efficientnet_b0",
        flip_tta: bool = False,
        frozen_stages: int = 0,
    ):
        super().__init__()
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

        With flip averaging, in eval mode, they are the mean of an image's and its mirror image's; of a linear head that
        gives the mean of their logits.
        """
        if self.flip_tta and not self.training:
            mirrored = self._pool(images.flip(-1))  # before the image itself, whose maps hooks then keep as the last
            return (self._pool(images) + mirrored) / 2
        return self._pool(images)

    def _pool(self, images: torch.Tensor) -> torch.Tensor:
        pooled = []
        for number, stage in enumerate(self.features):
            images = stage(images)
            if number in self.stages:
                pooled.append(images.mean(dim=(2, 3)))
        return torch.cat(pooled, dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, S, S), or what `pooled_features` gave of them (N, D), to logits (N, num_classes)."""
        return self.classifier(images if images.dim() == 2 else self.pooled_features(images))

    def train(self, mode: bool = True):
        """As nn.Module.train, but frozen features stay in eval mode."""
        super().train(mode)
        self.features.train(mode and self.frozen_stages < len(self.features))
        self.features[: self.frozen_stages].eval()
        return self


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that is float32 within bfloat16 training on a CPU, and else as any other.

    Its gradients in bfloat16 are several times slower there than in float32, most of all those of 5x5 kernels and of
    strides of 2, which makes all of the training slower than in float32; without them it is a fifth faster
    (benchmarks/training_step.csv).
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to maps of the same number of channels."""
        learns = torch.is_grad_enabled() and (images.requires_grad or self.weight.requires_grad)
        if learns and images.is_cpu and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(images.float()).to(torch.get_autocast_dtype("cpu"))
        return super().forward(images)


def build_features(network: str) -> nn.Sequential:
    """The stages of a network without its classifier, with random weights.

    EfficientNet-B0's are torchvision's `features`.  A ResNet's are `stem` and torchvision's `layer1` to `layer4`; for
    CIFAR the stem is one convolution of 3x3 without a pooling after it (He et al. 2016, section 4.2), since
    torchvision's would leave a map of 8x8 of an image of 32x32.
    """
    if network == "efficientnet_b0":
        features = torchvision_models.efficientnet_b0(weights=None).features
        for module in features.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.__class__ = DepthwiseConv2d  # a new one would draw weights, and so change what a seed gives
        return features
    resnet = getattr(torchvision_models, network.removesuffix("_cifar"))(weights=None)
    stem = OrderedDict(conv1=resnet.conv1, bn1=resnet.bn1, relu=resnet.relu, maxpool=resnet.maxpool)
    if network.endswith("_cifar"):
        stem["conv1"] = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem["conv1"].weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
        del stem["maxpool"]
    layers = {f"layer{number}": getattr(resnet, f"layer{number}") for number in range(1, 5)}
    return nn.Sequential(OrderedDict(stem=nn.Sequential(stem), **layers))


def build_head(head: str, num_classes: int, num_features: int = STAGE_WIDTHS["efficientnet_b0"][-1]) -> nn.Sequential:
    """The first report's classifiers, "shallow" (its Model1, torchvision's own) and "deep" (Model2), or a linear probe.

    The probe, "batchnorm_linear", has a BatchNorm without weights before its one layer, as in He et al. 2022 (MAE): stages
    of different scale then count alike.
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


class Teachers(nn.Module):
    """Images (N, 3, S, S) to those to learn from, and the mean of what the networks say of them: (N, classes).

    With mixup, each image becomes a mixture with the one before it in the batch, of which it takes a share drawn
    between 0 and a half (after Zhang et al. 2018): on images that they have learned by heart, teachers say little more
    than the label.  The networks stay as they are, in eval mode.
    """

    def __init__(self, networks: Sequence[SceneClassifier], mixup: bool):
        super().__init__()
        self.networks = nn.ModuleList(fold_batchnorm(network) for network in networks).eval().requires_grad_(False)
        for network in self.networks:  # what they say of a mirrored image counts where the network sees it mirrored
            network.flip_tta = False
        self.mixup = mixup

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The images, mixed or not, and the probabilities, float32."""
        if self.mixup:
            shares = torch.rand(len(images), 1, 1, 1) / 2  # on the CPU, whose generator a resumed training restores
            images = torch.lerp(images, images.roll(1, dims=0), shares.to(images.device))
        logits = torch.stack([network(images).float() for network in self.networks])
        return images, logits.softmax(dim=2).mean(dim=0)


@dataclass(frozen=True)
class InitialWeights:
    """Weights of `features.*` to begin with (None: random), and the words for them that stand in every result."""

    state_dict: dict[str, torch.Tensor] | None
    source: dict[str, str]


def load_initial_weights(weights: str, network: str = "efficientnet_b0") -> InitialWeights:
    """Initial weights by name or file: "random", "imagenet" (torchvision's, downloaded once), or a state dict's path.

    Raises FileNotFoundError for a missing file, ValueError for one without the network's features or a network of
    which none are published, and ConnectionError if the download fails: nothing else is then used in its place.
    """
    if weights == "random":
        return InitialWeights(None, {"weights": "random"})
    if weights == "imagenet":
        if network not in PUBLISHED:
            raise ValueError(f"there are no published ImageNet weights of {network}; begin with --weights random")
        path = _download(PUBLISHED[network])
    else:
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"there is no weights file {path}; --weights takes imagenet, random or a file")
    try:
        state_dict = dict(load_plain(path))
    except Exception as error:
        raise ValueError(f"{path} is not a state dict that can be opened safely ({type(error).__name__})") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return InitialWeights(
        state_dict=_features_of(state_dict, path, network),
        source={"weights": KNOWN_WEIGHTS.get(digest[:8], "a file of the user's"), "file": path.name, "sha256": digest},
    )


def classifier_of(experiment: Experiment, num_classes: int) -> SceneClassifier:
    """The network of an experiment with random weights."""
    return SceneClassifier(
        num_classes,
        experiment.head,
        experiment.freeze_features,
        experiment.stages,
        experiment.network,
        experiment.flip_tta,
        experiment.frozen_stages,
    )


def build_model(experiment: Experiment, loaders) -> tuple[SceneClassifier, dict[str, str]]:
    """The experiment's network with its initial weights, and the words for these weights.

    `loaders` (supervised.dataloader.Loaders) gives the classes and, where the features are random and frozen, the
    images to set BatchNorm by.  The head draws its weights from torch's global generator.  Raises what
    `load_initial_weights` raises.
    """
    initial = load_initial_weights(experiment.initial_weights, experiment.network)
    model = classifier_of(experiment, len(loaders.class_names))
    if initial.state_dict is not None:
        model.features.load_state_dict(initial.state_dict)
    elif experiment.freeze_features:
        calibrate_batchnorm(model.features, loaders.train)  # shuffled: a batch of one class is no sample
    return model, initial.source


def build_teacher(experiment: Experiment, loaders, load_run: Callable) -> tuple[Teachers | None, dict]:
    """The teachers of a `DistilledExperiment` and the words for them; (None, {}) of any other row.

    `load_run(name, seed)` gives the row of a run, its weights (a state dict) and the words for these.
    """
    if not experiment.has_teachers:
        return None, {}
    networks, words = [], []
    for seed in experiment.teacher_seeds:
        row, weights, source = load_run(experiment.teacher_run, seed)
        network = classifier_of(row, len(loaders.class_names))
        network.load_state_dict(weights)
        networks.append(network)
        words.append(source)
    return Teachers(networks, experiment.mixup), {"of_seeds": list(experiment.teacher_seeds), "runs": words}


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


def _download(published: WeightsEnum) -> Path:
    """The file of published weights in torch's own cache, downloaded and checked if it is not there yet."""
    try:
        published.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"the ImageNet weights could not be downloaded from {published.url} ({error}); "
            "give a file with --weights PATH, or begin with --weights random"
        ) from error
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name


def _features_of(state_dict: dict, path: Path, network: str) -> dict[str, torch.Tensor]:
    """The features' entries under the names of `build_features`; every one there, of its shape, and finite."""
    expected = build_features(network).state_dict()
    found = {}
    for name, tensor in expected.items():
        saved = next((each for each in (f"features.{name}", name.removeprefix("stem.")) if each in state_dict), None)
        if saved is None:
            raise ValueError(f"{path} has no features.{name}; it must hold {network} under torchvision's names")
        found[name] = state_dict[saved]
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"{saved} in {path} has shape {tuple(found[name].shape)}; {network} has {tuple(tensor.shape)}"
            )
        if not torch.isfinite(found[name]).all():
            raise ValueError(f"{saved} in {path} holds values that are not finite")
    return found
