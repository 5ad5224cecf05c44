import copy
import functools
import re
import types
from dataclasses import replace

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import efficientnet_b0, resnet18

from evaluation.hooks import maps_and_logits
from evaluation.scorecam import WEIGHTINGS, MaskedImages, contrast_cam, scale_to_unit, score_cam
from helper_functions import TrainSettings, train
from supervised.models import SceneClassifier, estimate_batchnorm
from tests.wrapped import Wrapped

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


def test_on_a_trained_network_the_alignment_of_masks_is_all_that_differs_from_gradcam(monkeypatch):
    """The softmax of logits selects few channels, and masks that are shifted by half a position select others."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    images = 0.5 * torch.randn(96, 3, 32, 32, generator=generator)
    places = torch.randint(0, 24, (96, 2), generator=generator)
    for image, label, (row, column) in zip(images, labels, places, strict=True):
        image[label, row : row + 8, column : column + 8] += 3  # the color of a patch is its class
    torch.manual_seed(0)
    model = nn.Sequential(
        *(
            layer
            for width in ((3, 16), (16, 32), (32, 32))
            for layer in (nn.Conv2d(*width, 3, 2, 1), nn.BatchNorm2d(width[1]), nn.ReLU())
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    loader = DataLoader(TensorDataset(images, labels), 16)
    history = train(
        model, loader, loader, TrainSettings(max_epochs=8, learning_rate=0.01), device="cpu", progress=False
    )
    assert history.val_accuracy[-1] > 0.9
    case = types.SimpleNamespace(model=model.eval(), layer=model[8], images=images[:6], classes=labels[:6].tolist())
    ours, theirs = score_cam(model, case.images, case.layer, case.classes).maps, gradcam_maps(case)
    unaligned = functools.partial(nn.Upsample, mode="bilinear", align_corners=False)
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", unaligned)
    assert (ours - gradcam_maps(case)).abs().max() < 1e-3
    assert (ours - theirs).abs().max() > 0.01


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


class BelowZero(HalfNetwork):
    """The maps are those of HalfNetwork less 2: negative everywhere, and the logits are the same."""

    def __init__(self):
        super().__init__()
        self.colours = nn.Conv2d(3, 3, 1)
        self.colours.weight = nn.Parameter(torch.eye(3)[:, :, None, None])
        self.colours.bias = nn.Parameter(torch.full((3,), -2.0))

    def forward(self, images):
        left, right = (self.colours(images) + 2).relu().chunk(2, dim=3)
        return self.sharpness * torch.stack([left.mean(dim=(1, 2, 3)), right.mean(dim=(1, 2, 3))], dim=1)


@pytest.mark.parametrize("weighting", ["softmax", "probability"])
def test_where_the_weighted_sum_is_nowhere_positive_the_masks_are_shown_instead(weighting):
    usual, below = HalfNetwork(), BelowZero()
    expected = score_cam(usual, two_patches(), usual.colours, [0], weighting)
    found = score_cam(below, two_patches(), below.colours, [0], weighting)
    assert found.fell_back.tolist() == [True] and expected.fell_back.tolist() == [False]
    assert not found.empty.any() and torch.allclose(found.maps, expected.maps, atol=1e-5)


def test_a_map_that_shows_nothing_is_marked_empty():
    model = BelowZero()
    images = torch.cat([two_patches(), torch.zeros(1, 3, 16, 16)])
    found = score_cam(model, images, model.colours, [0, 0])
    assert found.empty.tolist() == [False, True] and found.fell_back.tolist() == [True, False]


def test_the_papers_baseline_changes_nothing_within_the_softmax_and_lowers_probabilities():
    """The score of the blank image is one number for all channels."""
    model = HalfNetwork(sharpness=20.0)
    masked = MaskedImages(model, two_patches(), model.colours(two_patches()), torch.tensor([0]), "softmax", 8)
    with torch.no_grad():
        scores = masked.scores(~masked.constant)
        less = scores - model(torch.zeros(1, 3, 16, 16))[:, :1]
        assert torch.allclose(masked.weights(scores), masked.weights(less))
        increase = replace(masked, weighting="increase")
        probabilities = increase.scores(~masked.constant)
        assert increase.weights(probabilities)[0].tolist() == pytest.approx(
            [probabilities[0, 0].item() - 0.5, probabilities[0, 1].item() - 0.5, 0.0]
        )


# --- why one class and not another -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_contrast_shows_what_speaks_for_either_of_two_classes(weighting):
    model = HalfNetwork()
    for classes in ((0, 1), (1, 0)):
        found = contrast_cam(model, two_patches(), model.colours, classes[:1], classes[1:], weighting)
        for maps, name in ((found.maps, classes[0]), (found.other_maps, classes[1])):
            halves = maps[0].chunk(2, dim=1)
            assert halves[name].max() == 1 and halves[1 - name].sum() < 1e-3 * halves[name].sum()


class ThreeClasses(HalfNetwork):
    """The third class needs both patches: it shares the left one with the first class."""

    def forward(self, images):
        left, right = super().forward(images).unbind(dim=1)
        return torch.stack([left, right, left + right], dim=1)


def test_what_two_classes_share_is_not_in_their_contrast():
    model = ThreeClasses(sharpness=20.0)
    alone = score_cam(model, two_patches(), model.colours, [2], "probability").maps[0]
    left, right = alone.chunk(2, dim=1)
    assert left.max() > 0.5 and right.max() > 0.5
    left, right = contrast_cam(model, two_patches(), model.colours, [2], [0], "probability").maps[0].chunk(2, dim=1)
    assert right.max() == 1 and left.max() < 0.1


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_contrast_is_the_difference_of_two_weighted_sums_in_one_set_of_passes(weighting, small_network):
    images, layer = torch.rand(3, 3, 16, 16), small_network.features[0]
    sizes = []
    handle = layer.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    found = contrast_cam(small_network, images, layer, [0, 1, 2], [1, 2, 0], weighting, batch_size=2)
    handle.remove()
    assert sum(sizes) - 3 * 8 - 3 <= 4  # at most two blank images for each of two batches
    sums = []
    with torch.no_grad():
        small_network.eval()
        for targets in ([0, 1, 2], [1, 2, 0]):
            masked = MaskedImages(small_network, images, layer(images), torch.tensor(targets), weighting, 8)
            weights = masked.weights(masked.scores(~masked.constant))
            sums.append((weights[:, :, None, None] * masked.activations).sum(dim=1))
    difference = sums[0] - sums[1] if weighting != "softmax" else (sums[0] - sums[1]).relu()
    expected = scale_to_unit(bilinear(difference[:, None], (16, 16))[:, 0].relu())
    shown = ~found.fell_back & ~found.empty
    assert shown.any() and torch.allclose(found.maps[shown], expected[shown], atol=2e-3)


class Negative(nn.Module):
    """Two maps that are negative everywhere, as SiLU can give them, the first one further below zero."""

    def forward(self, images):
        return torch.cat([-2 - images[:, :1], -1 - images[:, 1:2] / 2], dim=1)


def test_where_nothing_speaks_for_a_class_its_contrast_is_empty_and_no_other_map_takes_its_place(monkeypatch):
    network = nn.Sequential(Negative(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])  # the first mask speaks for the target, the second for the other
    monkeypatch.setattr(MaskedImages, "scores_of_classes", lambda *_: scores)
    found = contrast_cam(network, images, network[0], [0], [1])
    assert found.maps.max() == 0 and found.other_maps.max() == 1 and not found.fell_back.any()
    masked = MaskedImages(network, images, network[0](images), torch.tensor([0]), "softmax", 8)
    maps, fell_back = masked.maps(torch.tensor([[1.0, -1.0]]))
    assert maps.max() == 1 and fell_back.all()  # as the map of a single class would have it


def test_a_contrast_of_a_class_with_itself_or_an_unknown_class_is_refused(small_network):
    images, layer = torch.rand(2, 3, 16, 16), small_network.features
    for others, words in (([0, 1], "two classes"), ([1, 3], "must be 0 to 2"), ([1], "1 target classes; 2 images")):
        with pytest.raises(ValueError, match=words):
            contrast_cam(small_network, images, layer, [0, 2], others)


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


def test_targets_that_are_no_numbers_of_classes_are_refused_by_what_they_are(small_network):
    images, layer = torch.rand(2, 3, 16, 16), small_network.features
    for targets in ([0.0, 1.0], None, ["a", "b"], [True, False], torch.tensor([0.0, 1.0]), [[0, 1]], 1, [0, None]):
        with pytest.raises(ValueError, match="target classes must be a list of whole numbers"):
            score_cam(small_network, images, layer, targets)
    for images_of_no_kind in ([[1.0]], None, "photo.jpg"):
        with pytest.raises(ValueError, match="images must be a tensor or an array"):
            score_cam(small_network, images_of_no_kind, layer, [0, 1])
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
            score_cam(small_network, images, layer, [0, 1], batch_size=batch_size)


# --- other people's models -------------------------------------------------------------------------------------------


def maps_of(model, images, layer, targets=(0, 1), **options):
    return score_cam(model, images, layer, list(targets), **options).maps


@pytest.mark.parametrize(
    "targets", [np.array([0, 1], "u1"), torch.tensor([0, 1], dtype=torch.uint8), (0, 1), np.int16([0, 1])]
)
def test_whole_numbers_of_any_kind_are_targets_and_images_may_be_numpys(small_network, targets):
    images = torch.rand(2, 3, 16, 16)
    expected = maps_of(small_network, images, small_network.features)
    assert torch.equal(score_cam(small_network, images, small_network.features, targets).maps, expected)
    assert torch.equal(maps_of(small_network, images.numpy(), small_network.features), expected)
    assert torch.allclose(maps_of(small_network, images.double().numpy(), small_network.features), expected)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_a_model_of_another_precision_has_nearly_the_same_maps(small_network, dtype, most):
    images = torch.rand(2, 3, 16, 16)
    expected = maps_of(small_network, images, small_network.features)
    assert expected.std() > 0.1
    model = copy.deepcopy(small_network).to(dtype)
    for given in (images, images.to(dtype)):
        found = maps_of(model, given, model.features)
        assert found.dtype == torch.float32
        assert (found - expected).abs().mean() < most


def test_a_network_that_flattens_by_view_has_the_maps_of_one_that_reshapes():
    class Flattens(nn.Module):
        def __init__(self, flatten):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc, self.flatten = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(256, 2), flatten

        def forward(self, images):
            return self.fc(self.flatten(self.conv(images).relu()))

    by_view, by_reshape = (
        Flattens(way) for way in (lambda maps: maps.view(len(maps), -1), lambda maps: maps.flatten(1))
    )
    images = torch.rand(2, 3, 16, 16)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(maps_of(by_view, given, by_view.conv), maps_of(by_reshape, images, by_reshape.conv))


def test_a_layer_with_the_channels_last_has_the_map_of_the_same_layer_with_channels_first():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.patches, self.first, self.last = nn.Conv2d(3, 6, 4, 4), nn.Identity(), nn.Identity()

        def forward(self, images):
            maps = self.last(self.first(self.patches(images)).permute(0, 2, 3, 1))
            return 5 * maps.relu().mean(dim=(1, 2))

    model, images = Patches(), torch.rand(2, 3, 32, 48)
    assert torch.equal(maps_of(model, images, model.last), maps_of(model, images, model.first))


def test_logits_may_stand_in_a_dict_and_other_outputs_are_refused(small_network):
    images, layer = torch.rand(2, 3, 16, 16), small_network.features
    in_dict = Wrapped(small_network, lambda logits: {"logits": logits, "hidden": None})
    assert torch.equal(maps_of(in_dict, images, layer), maps_of(small_network, images, layer))
    others = {
        "a tuple": lambda logits: (logits, logits),
        "a dict": lambda logits: {"out": logits},
        "(2,)": lambda logits: logits[:, 0],
        "(2, 3, 1, 1)": lambda logits: logits[:, :, None, None],
        "a NoneType": lambda logits: None,
    }
    for found, wrap in others.items():
        with pytest.raises(ValueError, match=rf"must give logits .* not {re.escape(found)}"):
            maps_of(Wrapped(small_network, wrap), images, layer)


def test_the_probability_of_a_single_logit_is_its_sigmoid():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    )
    model[4].weight.data *= 20
    image = torch.randn(1, 3, 16, 16)
    one = maps_of(model, image, model[1], [0], weighting="probability")
    # Two logits, the first of which is 0, have the sigmoid as the probability of the second.
    two = nn.Sequential(*model[:4], nn.Linear(4, 2))
    two[4].weight.data, two[4].bias.data = (
        torch.cat([0 * each, each]) for each in (model[4].weight.data, model[4].bias.data)
    )
    torch.testing.assert_close(one, maps_of(two, image, two[1], [1], weighting="probability"))
    model[4].weight.data.neg_()
    assert not torch.allclose(one, maps_of(model, image, model[1], [0], weighting="probability"), atol=1e-3)
    with pytest.raises(ValueError, match=r"0 to 0, got \[1\]"):
        maps_of(model, image, model[1], [1])


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
