import copy
import functools
import re

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision.models import efficientnet_b0, resnet18

from evaluation.hooks import maps_and_logits
from evaluation.scorecam import scale_to_unit, score_cam
from supervised.models import SceneClassifier, estimate_batchnorm

BUILDERS = {"efficientnet_b0": efficientnet_b0, "resnet18": resnet18}
EARLY = [("efficientnet_b0", "features.1"), ("efficientnet_b0", "features.2"), ("resnet18", "layer1")]
LAYERS = [*EARLY, ("efficientnet_b0", "features.4")]  # 16, 24, 64 and 80 channels


def shapes(count, seed=0):
    """Smooth shapes with noise, all different: (count, 3, 64, 64)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 6, 6, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")
    return smooth + 0.3 * torch.randn(count, 3, 64, 64, generator=generator)


@functools.cache
def random_model(name):
    """Fixed random weights; BatchNorm is estimated, because no logit would depend on the image otherwise."""
    torch.manual_seed(0)
    model = BUILDERS[name](weights=None)
    estimate_batchnorm(model, [torch.cat([shapes(2), shapes(14, seed=1)])])
    return model.requires_grad_(False)


class Comparison:
    """One layer of one model, two images, the predicted classes, and our maps of them."""

    def __init__(self, name, layer_name):
        self.model = random_model(name)
        self.layer = self.model.get_submodule(layer_name)
        self.images = shapes(2)
        with torch.no_grad():
            self.classes = self.model(self.images).argmax(dim=1).tolist()
        self.maps = score_cam(self.model, self.images, self.layer, self.classes).maps


comparison = functools.cache(Comparison)


def correlation(one, other):
    return np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]


def gradcam_maps(case):
    with pytorch_grad_cam.ScoreCAM(case.model, [case.layer]) as extractor:
        return torch.from_numpy(extractor(case.images, [ClassifierOutputTarget(each) for each in case.classes]))


def torchcam_maps(case, upsample=None):
    """torchcam's maps have the layer's resolution: they are upsampled and scaled here, as ours are."""
    with torchcam.methods.ScoreCAM(case.model, case.layer) as extractor, torch.no_grad():
        if upsample is not None:
            extractor._upsample = upsample
        case.model(case.images)
        (maps,) = extractor(case.classes)
    return scale_to_unit(bilinear(maps[:, None], (64, 64))[:, 0])


def bilinear(maps, size):
    return nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


# --- compared with other implementations -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layer_name"), EARLY)
def test_the_compared_models_distinguish_images(name, layer_name):
    case = comparison(name, layer_name)
    with torch.no_grad():
        logits = case.model(case.images)
    assert (logits[0] - logits[1]).std() > 0.1 * logits.std()
    assert abs(correlation(*case.maps)) < 0.9
    assert (case.maps.amin(dim=(1, 2)) == 0).all() and (case.maps.amax(dim=(1, 2)) == 1).all()


@pytest.mark.parametrize(("name", "layer_name"), EARLY)
def test_softmax_maps_agree_with_both_libraries_at_early_layers(name, layer_name):
    case = comparison(name, layer_name)
    for theirs in (gradcam_maps(case), torchcam_maps(case)):
        assert min(correlation(*pair) for pair in zip(case.maps, theirs, strict=True)) > 0.999


@pytest.mark.parametrize(("name", "layer_name"), LAYERS)
def test_softmax_maps_equal_gradcams_except_for_the_alignment_of_masks(name, layer_name, monkeypatch):
    case = comparison(name, layer_name)
    # nn.UpsamplingBilinear2d aligns the corners, so grad-cam's masks and its maps are shifted against each other.
    unaligned = functools.partial(nn.Upsample, mode="bilinear", align_corners=False)
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", unaligned)
    assert (case.maps - gradcam_maps(case)).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "layer_name"), LAYERS)
def test_softmax_maps_equal_torchcams_except_for_the_scaling_of_masks(name, layer_name):
    case = comparison(name, layer_name)

    def scaled_once_more(masks):  # torchcam scales before it upsamples, which lowers the maxima
        return scale_to_unit(bilinear(masks, (64, 64))[:, 0])[:, None]

    assert (case.maps - torchcam_maps(case, scaled_once_more)).abs().max() < 1e-5


def one_mask_at_a_time(model, image, layer, target_class):
    """The definition of the authors' code, channel by channel."""
    activations, _ = maps_and_logits(model, image[None], layer)
    total = torch.zeros(image.shape[1:])
    for channel in activations[0]:
        upsampled = bilinear(channel[None, None], image.shape[1:])[0, 0]
        if upsampled.max() == upsampled.min():
            continue
        mask = (upsampled - upsampled.min()) / (upsampled.max() - upsampled.min())
        total += model((image * mask)[None]).softmax(dim=1)[0, target_class] * upsampled
    total = total.relu()
    return (total - total.min()) / (total.max() - total.min())


@pytest.mark.parametrize(("name", "layer_name"), EARLY)
def test_probability_maps_equal_a_plain_loop_over_masks(name, layer_name):
    case = comparison(name, layer_name)
    ours = score_cam(case.model, case.images[:1], case.layer, case.classes[:1], "probability").maps[0]
    with torch.no_grad():
        plain = one_mask_at_a_time(case.model, case.images[0], case.layer, case.classes[0])
    assert (ours - plain).abs().max() < 1e-5


# --- what a map means ------------------------------------------------------------------------------------------------


class HalfNetwork(nn.Module):
    """The logits are the brightness of the left half, and of the right half."""

    def __init__(self, sharpness=100.0):
        super().__init__()
        self.colours = nn.Conv2d(3, 3, 1, bias=False)
        self.colours.weight = nn.Parameter(torch.eye(3)[:, :, None, None])
        self.sharpness = sharpness

    def forward(self, images):
        colours = self.colours(images).relu()
        left, right = colours.chunk(2, dim=3)
        return self.sharpness * torch.stack([left.mean(dim=(1, 2, 3)), right.mean(dim=(1, 2, 3))], dim=1)


def two_patches():
    """A red patch in the left half, an equal green one in the right; no blue."""
    image = torch.zeros(1, 3, 16, 16)
    image[0, 0, 4:12, 1:7] = 1
    image[0, 1, 4:12, 9:15] = 1
    return image


@pytest.mark.parametrize("weighting", ["softmax", "probability"])
def test_the_map_highlights_the_half_that_determines_the_class(weighting):
    model = HalfNetwork()
    for target_class in (0, 1):
        found = score_cam(model, two_patches(), model.colours, [target_class], weighting)
        left, right = found.maps[0].chunk(2, dim=1)
        mine, other = (left, right) if target_class == 0 else (right, left)
        assert mine.sum() > 0.9 * (mine.sum() + other.sum())
        assert found.constant_channels.tolist() == [1]  # blue


@pytest.mark.parametrize("weighting", ["softmax", "probability"])
def test_blank_images_and_constant_layers_give_finite_maps(weighting, small_network):
    blank = torch.full((2, 3, 16, 16), 0.3)
    found = score_cam(small_network, blank, small_network.features, [0, 1], weighting)
    assert (found.maps == 0).all()
    assert found.constant_channels.tolist() == [8, 8]

    nn.init.zeros_(small_network.features[0].weight)  # then all channels but one are constant
    nn.init.ones_(small_network.features[0].weight[0])
    found = score_cam(small_network, torch.rand(2, 3, 16, 16), small_network.features[0], [0, 1], weighting)
    assert found.maps.isfinite().all()
    assert found.constant_channels.tolist() == [7, 7]


@pytest.mark.parametrize("weighting", ["softmax", "probability"])
def test_a_sum_that_is_nowhere_positive_gives_zeros(weighting):
    model = HalfNetwork()
    with torch.no_grad():
        model.colours.weight.neg_()
    assert (score_cam(model, two_patches(), model.colours, [0], weighting).maps == 0).all()


def test_the_map_of_an_image_does_not_depend_on_the_batch(small_network):
    images, classes = torch.rand(5, 3, 24, 16), [0, 1, 2, 0, 1]
    together = score_cam(small_network, images, small_network.features, classes)
    assert together.maps.shape == (5, 24, 16) and together.maps.dtype == torch.float32
    for batch_size in (1, 3):
        single = score_cam(small_network, images[3:4], small_network.features, classes[3:4], batch_size=batch_size)
        assert (together.maps[3] - single.maps[0]).abs().max() < 1e-5


def test_the_batch_size_is_respected(small_network):
    sizes = []
    small_network.features.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    found = score_cam(small_network, torch.rand(5, 3, 16, 16), small_network.features, [0] * 5, batch_size=4)
    assert max(sizes) == 4
    assert sum(sizes) == 5 + 5 * 8 - found.constant_channels.sum()


# --- the model does not change ---------------------------------------------------------------------------------------


class BreaksAtMasks(nn.Sequential):
    def forward(self, images):
        if (images == 0).any():
            raise RuntimeError("broken")
        return super().forward(images)


def test_hooks_are_removed_and_modes_restored_even_after_an_error(small_network):
    model = BreaksAtMasks(small_network)
    model.train()
    small_network.features[1].eval()  # on purpose, as frozen features are
    modes, images = [module.training for module in model.modules()], torch.rand(1, 3, 16, 16) + 0.1
    with pytest.raises(RuntimeError, match="broken"):
        score_cam(model, images, small_network.features, [0])
    assert not any(module._forward_hooks for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_weights_statistics_and_gradients_do_not_change(small_network):
    small_network.train()
    small_network.classifier.requires_grad_(False)
    before = copy.deepcopy(small_network.state_dict())
    wants_gradient = [parameter.requires_grad for parameter in small_network.parameters()]
    maps = score_cam(small_network, torch.rand(2, 3, 16, 16), small_network.features, [0, 1]).maps
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_network.state_dict().items())
    assert [parameter.requires_grad for parameter in small_network.parameters()] == wants_gradient
    assert all(parameter.grad is None for parameter in small_network.parameters())
    maps[0] += 1  # an ordinary tensor, not one of inference mode


def test_a_frozen_scene_classifier_in_train_mode_gives_a_finite_map():
    torch.manual_seed(0)
    model = SceneClassifier(15, freeze_features=True).train()
    images = shapes(1)
    maps = [score_cam(model, images, model.features[1], [3]).maps for _ in range(2)]
    assert maps[0].isfinite().all()
    assert torch.equal(*maps)  # dropout is off
    assert model.training and not model.features.training


# --- errors ----------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused_by_their_values(small_network):
    images, layer = torch.rand(2, 3, 16, 16), small_network.features
    small_network.unused = nn.Conv2d(3, 3, 1)
    wrong = {
        "(2, 1, 16, 16)": (images[:, :1], layer, [0, 0]),
        "(3, 16, 16)": (images[0], layer, [0]),
        "uint8": (images.byte(), layer, [0, 0]),
        "Linear": (images, nn.Linear(2, 2), [0, 0]),
        "Conv2d": (images, small_network.unused, [0, 0]),
        "(2, 3)": (images, small_network.classifier, [0, 0]),
        "[0, 3]": (images, layer, [0, 3]),
        "[-1, 0]": (images, layer, [-1, 0]),
        "2 images": (images, layer, [0]),
        "'logit'": (images, layer, [0, 0], "logit"),
    }
    for value, arguments in wrong.items():
        with pytest.raises(ValueError, match=re.escape(value)):
            score_cam(small_network, *arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error_and_not_a_map(value, small_network):
    images = torch.rand(1, 3, 16, 16)
    images[0, 0, 4, 4] = value
    with pytest.raises(FloatingPointError):
        score_cam(small_network, images, small_network.features, [0])


# --- faster passes ---------------------------------------------------------------------------------------------------


def test_a_compiled_model_gives_the_map_of_the_model(small_network):
    images = torch.rand(2, 3, 16, 16)
    exact = score_cam(small_network, images, small_network.features, [0, 1])
    ran = []

    def backend(graph, inputs):
        return lambda *arguments: (ran.append(True), graph(*arguments))[1]

    compiled = torch.compile(small_network, backend=backend)
    found = score_cam(compiled, images, small_network.features, [0, 1])
    assert torch.allclose(found.maps, exact.maps, atol=1e-5) and ran


def test_within_autocast_the_passes_are_bfloat16_and_the_map_nearly_the_same():
    case = comparison("efficientnet_b0", "features.2")
    with torch.autocast("cpu", torch.bfloat16):
        found = score_cam(case.model, case.images, case.layer, case.classes).maps
    assert found.dtype == torch.float32
    assert not torch.equal(found, case.maps)
    assert min(correlation(*pair) for pair in zip(found, case.maps, strict=True)) > 0.95
