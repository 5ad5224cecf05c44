import math
import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import EfficientNet_B0_Weights

from evaluation.image_parameters import fourier_from_pixels, mean_amplitudes, pixels_from_fourier
from evaluation.model_inversion import (
    Inversion,
    InversionSettings,
    blur,
    class_log_probability,
    class_logit,
    clip_gradient,
    clip_small_contribution,
    clip_small_norm,
    decay,
    filter_mean,
    invert,
    regularize,
    score_by_another,
    starting_pixels,
    strongest_filters,
)
from supervised.models import SceneClassifier, estimate_batchnorm
from tests.wrapped import Wrapped

DOWNLOAD = EfficientNet_B0_Weights.IMAGENET1K_V1.url
IMAGENET_FEATURES = Path(os.environ.get("WEIGHTS") or Path(torch.hub.get_dir()) / "checkpoints" / Path(DOWNLOAD).name)
HALF = (0.5, 0.5, 0.5)
SHORT = InversionSettings(image_size=32, steps=20, jitter=2)


def run(model, objective=class_logit, targets=(0, 1, 2), settings=SHORT, **arguments):
    return invert(model, objective, targets, settings, HALF, HALF, progress=False, **arguments)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("colour", "red"),
        ("parameters", "wavelets"),
        ("image_size", 31),
        ("steps", 19),
        ("blur_every", 0),
        ("learning_rate", 0),
        ("learning_rate", math.inf),
        ("gradient_clip", 0),
        ("decay", 1),
        ("norm_clip", -0.1),
        ("contribution_clip", math.nan),
        ("start_noise", 0.6),
        ("blur_sigma", -1),
        ("blur_sigma", 28),
        ("jitter", 224),
        ("views", 0),
        ("noise", 0.6),
        ("scale", 1.5),
        ("rotation", -1),
        ("levels", 0),
        ("patience", -1),
        ("coarsest", 0.1),
    ],
)
def test_invalid_settings_are_refused_by_name_and_value(field, value):
    with pytest.raises(ValueError, match=rf"^{field} is '?{value}'?;"):
        InversionSettings(**{"levels": 2, field: value})


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        SHORT.steps = 30


@pytest.mark.parametrize("size", [7, 8])
def test_the_spectrum_is_inverted(size):
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) - 0.5
    parameters = fourier_from_pixels(pixels)
    assert parameters.shape == (2, 3, size, size // 2 + 1, 2)
    assert torch.allclose(pixels_from_fourier(parameters), pixels, atol=1e-6)


def test_the_amplitude_of_a_frequency_is_proportional_to_its_wavelength():
    def amplitude(frequency):
        parameters = torch.zeros(1, 1, 16, 9, 2)
        parameters[0, 0, 0, frequency, 0] = 1
        return pixels_from_fourier(parameters).abs().max()

    assert amplitude(1) / amplitude(4) == pytest.approx(4)
    assert amplitude(2) / amplitude(6) == pytest.approx(3)


def test_decay_removes_a_fraction_of_the_difference_from_mid_gray():
    pixels = torch.tensor([[[[0.5, -0.2], [0.0, 0.1]]]])
    assert torch.allclose(decay(pixels, 0.1), torch.tensor([[[[0.45, -0.18], [0.0, 0.09]]]]))


def test_blur_of_one_white_pixel_is_a_gaussian_with_the_same_sum():
    pixels = torch.zeros(1, 1, 11, 11)
    pixels[0, 0, 5, 5] = 1
    blurred = blur(pixels, sigma=1.0)[0, 0]
    # exp(-d^2 / 2) / sum, at the distances 0, 1 and 2
    assert blurred[5, 5:8].tolist() == pytest.approx([0.15916, 0.09653, 0.02154], abs=1e-4)
    assert blurred[6, 6].item() == pytest.approx(0.09653**2 / 0.15916, abs=1e-4)
    assert blurred.sum().item() == pytest.approx(1)
    assert torch.allclose(blurred, blurred.T)


def test_the_pixels_of_each_image_with_the_smallest_norm_are_clipped():
    pixels = torch.tensor([[[[0.3, 0.1], [-0.4, 0.2]], [[0.0, 0.2], [0.0, -0.1]]]])  # norms 0.3, 0.224, 0.4, 0.224
    pixels = torch.cat([pixels, 0.1 * pixels.flip(3)])
    expected = torch.tensor([[[[0.3, 0.0], [-0.4, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    assert torch.allclose(clip_small_norm(pixels, 0.5), torch.cat([expected, 0.1 * expected.flip(3)]))
    assert torch.equal(clip_small_norm(pixels, 0.0), pixels)


def test_the_pixels_that_contribute_least_are_clipped_whatever_their_norm():
    pixels = torch.tensor([[[[0.5, 0.1], [-0.4, 0.2]], [[0.5, 0.1], [0.0, 0.2]]]])
    gradient = torch.tensor([[[[2.0, 3.0], [-1.0, 0.1]], [[-2.0, 3.0], [0.0, 0.1]]]])  # sums 0, 0.6, 0.4, 0.04
    expected = torch.tensor([[[[0.0, 0.1], [-0.4, 0.0]], [[0.0, 0.1], [0.0, 0.0]]]])
    assert torch.allclose(clip_small_contribution(pixels, gradient, 0.5), expected)
    assert torch.allclose(clip_small_contribution(pixels, -gradient, 0.5), expected)


def test_gradients_are_clipped_per_image_and_only_above_the_maximum():
    gradient = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]], [[0.0, 0.0]]])
    expected = torch.tensor([[[0.6, 0.8]], [[0.3, 0.4]], [[0.0, 0.0]]])
    assert torch.allclose(clip_gradient(gradient, 1.0), expected)
    assert torch.equal(clip_gradient(gradient, math.inf), gradient)


def test_pixels_are_blurred_every_third_step_and_clamped():
    settings = InversionSettings(image_size=32, decay=0.0, blur_sigma=1.0, blur_every=3, norm_clip=0.0)
    pixels = torch.zeros(1, 1, 32, 32)
    pixels[0, 0, 16, 16] = 0.7
    sharp = regularize(pixels, pixels, settings, step=2)
    assert sharp[0, 0, 16, 16] == 0.5
    assert sharp.count_nonzero() == 1
    assert regularize(pixels, pixels, settings, step=3).count_nonzero() > 1


@pytest.mark.parametrize("colour", ["grey", "colour"])
def test_images_start_as_small_noise_that_depends_on_seed_and_start(colour):
    settings = InversionSettings(colour=colour, start_noise=0.02)
    pixels = starting_pixels(settings, starts=3)
    assert pixels.shape == (3, 1 if colour == "grey" else 3, 224, 224)
    assert pixels.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(pixels[1:], starting_pixels(replace(settings, seed=1), starts=2))
    assert not torch.equal(pixels[0], pixels[1])


@pytest.mark.parametrize("parameters", ["pixels", "fourier"])
@pytest.mark.parametrize("colour", ["grey", "colour"])
def test_the_objective_rises_and_images_have_their_range_and_colors(small_network, parameters, colour):
    inversion = run(small_network, settings=replace(SHORT, parameters=parameters, colour=colour))
    assert inversion.images.shape == (3, 3, 32, 32)
    assert inversion.images.dtype == torch.float32
    assert 0 <= inversion.images.min() < inversion.images.max() <= 1
    assert (inversion.final_losses < inversion.losses[:, 0]).all()
    assert torch.equal(inversion.images[:, 0], inversion.images[:, 1]) is (colour == "grey")
    with torch.no_grad():
        logits = small_network.eval()((inversion.images - 0.5) / 0.5)
    assert (logits.diagonal() > -inversion.losses[:, 0]).all()


def test_a_step_too_small_for_a_byte_is_not_lost(small_network):
    still = replace(
        SHORT, learning_rate=1e-5, decay=0.0, blur_sigma=0.0, jitter=0
    )  # all steps together move a pixel by less than 1 / 255
    losses = run(small_network, settings=still).losses
    assert (losses.diff(dim=1) < 0).all()


@pytest.mark.parametrize("parameters", ["pixels", "fourier"])
def test_an_image_of_a_batch_equals_the_same_image_alone(small_network, parameters):
    settings = replace(SHORT, parameters=parameters, norm_clip=0.1, contribution_clip=0.1, gradient_clip=0.01)
    together = run(small_network, targets=[2, 0, 1], starts=2, settings=settings)
    assert together.targets.tolist() == [2, 2, 0, 0, 1, 1]
    alone = run(small_network, targets=[0], settings=settings)
    assert torch.allclose(together.images[2:3], alone.images, atol=1e-5)
    assert torch.allclose(together.losses[2:3], alone.losses, atol=1e-5)
    assert not torch.allclose(together.images[2], together.images[3], atol=1e-2)


def test_the_same_seed_gives_the_same_images(small_network):
    once, again = run(small_network), run(small_network)
    assert torch.equal(once.images, again.images)
    assert not torch.equal(once.images, run(small_network, settings=replace(SHORT, seed=1)).images)


@pytest.mark.parametrize(
    "change",
    [
        {"gradient_clip": 0.01},
        {"decay": 0.2},
        {"blur_sigma": 2.0},
        {"norm_clip": 0.5},
        {"contribution_clip": 0.5},
        {"jitter": 0},
        {"scale": 0.5},
        {"rotation": 30.0},
        {"noise": 0.2},
        {"views": 2},
    ],
    ids=str,
)
def test_every_regulariser_changes_the_image(small_network, change):
    plain = replace(SHORT, gradient_clip=math.inf, decay=0.0, blur_sigma=0.0)
    difference = (
        run(small_network, settings=plain).images - run(small_network, settings=replace(plain, **change)).images
    )
    assert difference.abs().max() > 1e-3


def test_images_grow_in_resolution_each_from_the_coarser_one_with_new_noise(small_network):
    still = replace(SHORT, learning_rate=1e-6, decay=0.0, blur_sigma=0.0, jitter=0)
    settings = replace(still, image_size=64, steps=60, levels=3, coarsest=0.5)
    seen = []
    handle = small_network.features.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].detach() / 2))
    inversion = run(small_network, settings=settings)
    handle.remove()
    assert [pixels.shape[-1] for pixels in seen] == 20 * [32] + 20 * [48] + 20 * [64]
    assert inversion.images.shape == (3, 3, 64, 64) and inversion.losses.shape == (3, 60)
    for coarse, fine in ((seen[19], seen[20]), (seen[39], seen[40])):
        noise = starting_pixels(replace(still, image_size=fine.shape[-1]), 1)
        larger = nn.functional.interpolate(coarse, fine.shape[2:], mode="bicubic", antialias=True)
        assert torch.allclose(fine, larger + noise, atol=1e-4) and larger.std() > 5e-3


@pytest.mark.parametrize("large", [{"jitter": 60}, {"blur_sigma": 7.0}])
def test_settings_that_suit_the_full_resolution_suit_every_level(large, small_network):
    settings = InversionSettings(**{"image_size": 64, "steps": 60, "levels": 3, "jitter": 0, **large})
    assert run(small_network, targets=[0], settings=settings).losses.isfinite().all()


def test_an_image_stops_when_its_loss_does_and_the_others_go_on_without_it(small_network):
    """Class 0 gets a reward that is soon exhausted, class 1 one that grows with every step."""

    def reward(model, images, targets):
        brightness = images.mean(dim=(1, 2, 3))
        return torch.where(targets == 0, brightness.clamp(max=0.1), 10 * brightness)

    settings = replace(
        SHORT, steps=120, patience=10, decay=0.0, blur_sigma=0.0, jitter=0, learning_rate=0.002, parameters="pixels"
    )
    inversion = run(small_network, reward, targets=[0, 1], settings=settings)
    assert inversion.steps[0] < 100 and inversion.steps[1] == 120
    assert inversion.losses[0, inversion.steps[0] :].isnan().all() and inversion.losses[1].isfinite().all()
    assert inversion.converged.tolist() == [True, False]
    alone = run(small_network, reward, targets=[1], settings=settings)
    assert torch.allclose(alone.images[0], inversion.images[1], atol=1e-5)


def test_an_image_of_phases_has_the_amplitudes_it_is_given_and_rises_in_the_objective(small_network):
    photographs = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    photographs = (255 * nn.functional.interpolate(photographs, (32, 32), mode="bilinear")).byte()
    amplitudes = mean_amplitudes([photographs])
    settings = replace(SHORT, parameters="phase", learning_rate=0.1, decay=0.0, blur_sigma=0.0, steps=40, levels=1)
    inversion = run(small_network, settings=settings, amplitudes=amplitudes)
    assert (inversion.final_losses < inversion.losses[:, 0]).all()
    found = torch.fft.rfft2(inversion.images[:, :1] - 0.5, norm="forward").abs()
    assert torch.allclose(found[..., 1:16, 1:16].mean(dim=0), amplitudes[:, 1:16, 1:16], atol=2e-3)
    with pytest.raises(ValueError, match="amplitudes"):
        run(small_network, settings=settings)


def test_an_image_with_every_part_is_the_same_in_a_batch_as_alone(small_network):
    settings = InversionSettings(
        image_size=64, steps=80, levels=2, patience=10, scale=0.2, rotation=10.0, noise=0.05, views=2, jitter=4
    )
    together = run(small_network, targets=[2, 0], starts=2, settings=settings)
    alone = run(small_network, targets=[0], starts=2, settings=settings)
    assert torch.allclose(together.images[2:], alone.images, atol=1e-3)
    assert torch.equal(together.steps[2:], alone.steps)


def test_the_log_probability_falls_where_another_class_rises(small_network):
    images, classes = torch.rand(2, 3, 32, 32), torch.tensor([0, 2])
    with torch.no_grad():
        expected = small_network.eval()(images).log_softmax(dim=1)[[0, 1], classes]
        assert torch.allclose(class_log_probability(small_network, images, classes), expected)


def test_the_model_does_not_change_and_its_parameters_get_no_gradients(small_network):
    small_network.train()
    small_network.features.eval()  # as frozen features are
    before = {name: tensor.clone() for name, tensor in small_network.state_dict().items()}
    run(small_network)
    run(small_network, filter_mean(small_network.features[0]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in small_network.parameters())
    assert small_network.training
    assert small_network.classifier.training
    assert not small_network.features[1].training
    assert not small_network.features[0]._forward_hooks


def test_a_frozen_model_gives_the_same_images(small_network):
    expected = run(small_network).images
    assert torch.equal(run(small_network.requires_grad_(False)).images, expected)


def test_modes_are_restored_when_an_objective_fails(small_network):
    def fail(model, images, targets):
        raise KeyError

    small_network.train()
    with pytest.raises(KeyError):
        run(small_network, fail)
    assert all(module.training for module in small_network.modules())


def test_the_objective_of_a_filter_is_the_mean_of_its_map():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten())
    images = torch.randn(2, 3, 32, 32)
    values = filter_mean(model[0])(model, images, torch.tensor([3, 1]))
    maps = model[0](images)
    assert torch.allclose(values, torch.stack([maps[0, 3].mean(), maps[1, 1].mean()]))
    inversion = run(model, filter_mean(model[0]), targets=[3, 1])
    assert (inversion.final_losses < inversion.losses[:, 0]).all()


def test_any_function_of_the_batch_can_be_the_objective(small_network):
    def left_half(model, images, targets):
        return images[..., :16].mean(dim=(1, 2, 3)) - images[..., 16:].mean(dim=(1, 2, 3))

    images = run(small_network, left_half, targets=[0], settings=replace(SHORT, jitter=0)).images
    assert images[..., :16].mean() > images[..., 16:].mean() + 0.1


def test_the_strongest_filters_have_the_highest_sum_of_weights():
    convolution = nn.Conv2d(2, 3, 1)
    convolution.weight.data = torch.tensor([[1.0, -3.0], [1.0, 2.0], [0.5, 0.5]]).view(3, 2, 1, 1)  # sums -2, 3, 1
    assert strongest_filters(convolution, count=2) == [1, 2]
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"{count} filters"):
            strongest_filters(convolution, count)


@pytest.mark.skipif(not IMAGENET_FEATURES.exists(), reason="needs ImageNet's weights: WEIGHTS, or torch's cache")
def test_the_strongest_filters_of_the_imagenet_features_are_those_of_the_earlier_report():
    weight = torch.load(IMAGENET_FEATURES, weights_only=True)["features.8.0.weight"]
    convolution = nn.Conv2d(320, 1280, 1, bias=False)
    convolution.weight.data = weight
    assert strongest_filters(convolution)[:3] == [70, 1250, 944]


def curve(**losses):
    """One image with a loss of 0 at first, -10 from step 11 to 40, and the given values `at_<step>`."""
    values = torch.full((1, 40), -10.0)
    values[0, :11] = torch.linspace(0, -10, 11)
    for name, loss in losses.items():
        values[0, int(name.removeprefix("at_"))] = loss
    return Inversion(torch.zeros(1, 3, 32, 32), torch.zeros(1), values)


def test_a_loss_that_falls_and_stays_low_has_converged():
    assert curve().converged.tolist() == [True]
    assert curve(at_35=-9.0).converged.tolist() == [True]
    assert curve(at_35=-9.0).final_losses.tolist() == [-10.0]


@pytest.mark.parametrize(
    "losses",
    [
        curve(at_20=-7545.0).losses,  # the spike in the second report
        curve(at_39=-7545.0).losses,
        curve(at_35=0.0).losses,  # not steady at the end
        torch.linspace(0, -10, 20)[None],  # still falling
        torch.linspace(-10, 0, 40)[None],
        torch.zeros(1, 40),
        torch.randn(1, 40, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["spike", "spike at the end", "unsteady", "still falling", "rising", "flat", "noise"],
)
def test_a_loss_that_only_spikes_or_does_not_settle_has_not_converged(losses):
    inversion = Inversion(torch.zeros(1, 3, 32, 32), torch.zeros(1), losses)
    assert inversion.converged.tolist() == [False]


def test_the_final_loss_does_not_follow_a_spike():
    assert curve(at_39=-7545.0).final_losses.tolist() == [-10.0]


def test_convergence_is_decided_per_image():
    losses = torch.cat([curve().losses, curve(at_20=-7545.0).losses])
    assert Inversion(torch.zeros(2, 3, 32, 32), torch.zeros(2), losses).converged.tolist() == [True, False]


def test_the_score_of_an_evaluator_network_is_its_probability_of_the_target(small_network):
    small_network.train()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scores = score_by_another(small_network, images, [2, 0], (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert all(module.training for module in small_network.modules())
    normalized = (images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    expected = small_network.eval()(normalized).softmax(dim=1)
    assert scores.tolist() == pytest.approx([expected[0, 2].item(), expected[1, 0].item()])


@pytest.mark.parametrize("target", [-1, 3])
def test_a_class_or_filter_out_of_range_is_refused(small_network, target):
    with pytest.raises(ValueError, match=str(target)):
        run(small_network, targets=[0, target])
    with pytest.raises(ValueError, match=str(target)):
        score_by_another(small_network, torch.zeros(1, 3, 32, 32), [target], HALF, HALF)
    wrong_filter = 8 if target == 3 else target
    with pytest.raises(ValueError, match=rf"\[{wrong_filter}\]"):
        run(small_network, filter_mean(small_network.features[0]), targets=[wrong_filter])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
@pytest.mark.parametrize("parameters", ["pixels", "fourier"])
def test_images_are_the_same_where_gradients_are_switched_off(small_network, mode, parameters):
    settings = replace(SHORT, parameters=parameters)
    expected = run(small_network, settings=settings)
    with mode():
        found = run(small_network, settings=settings)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)  # as before
    assert torch.equal(found.images, expected.images) and torch.equal(found.losses, expected.losses)


def test_a_model_built_in_inference_mode_is_refused():
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="built within torch.inference_mode"):
        run(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_of_another_precision_is_inverted(small_network, dtype):
    found = run(small_network.to(dtype))
    assert found.images.dtype == torch.float32 and found.images.isfinite().all()
    assert (found.losses[:, -1] < found.losses[:, 0]).all()


def test_logits_may_stand_in_a_dict_and_other_outputs_are_refused(small_network):
    expected = run(small_network)
    assert torch.equal(run(Wrapped(small_network, lambda logits: {"logits": logits})).images, expected.images)
    for wrap in (lambda logits: (logits, logits), lambda logits: logits[:, 0], lambda logits: logits[:, :, None, None]):
        with pytest.raises(ValueError, match="must give logits"):
            run(Wrapped(small_network, wrap))
    layer = filter_mean(small_network.features)  # a filter needs no logits
    tupled = Wrapped(small_network, lambda logits: (logits, logits))
    assert torch.equal(run(tupled, layer).images, run(small_network, layer).images)


def test_targets_and_colors_of_another_kind_are_refused(small_network):
    for targets in ([0.0], ["dark"], [True], [None]):
        with pytest.raises(ValueError, match="must be a list of whole numbers"):
            run(small_network, targets=targets)
    for mean, std in (((0.5,), HALF), (HALF, (0.5,)), ((0.5,) * 4, (0.5,) * 4)):
        with pytest.raises(ValueError, match="red, green and blue"):
            invert(small_network, class_logit, [0], SHORT, mean, std, progress=False)


def test_no_targets_and_unusable_objectives_are_refused(small_network):
    with pytest.raises(ValueError, match="0 targets"):
        run(small_network, targets=[])
    with pytest.raises(ValueError, match="0 starts"):
        run(small_network, targets=[0], starts=0)
    with pytest.raises(ValueError, match=r"\(\)"):
        run(small_network, lambda model, images, targets: model(images).sum())
    with pytest.raises(FloatingPointError, match="step 1"):
        run(small_network, lambda model, images, targets: model(images)[:, 0] / 0)


def test_class_logits_and_filters_rise_on_an_efficientnet():
    torch.manual_seed(0)
    model = SceneClassifier(3)
    estimate_batchnorm(model, [torch.randn(16, 3, 64, 64)])  # otherwise no logit depends on the image
    settings = InversionSettings(image_size=64, steps=20, learning_rate=0.05, jitter=4)
    for objective in (class_logit, filter_mean(model.features[8][2])):
        inversion = run(model, objective, targets=[0, 1], settings=settings)
        assert (inversion.final_losses < inversion.losses[:, 0] - 0.05).all()


@pytest.mark.parametrize(
    ("targets", "mean", "std", "words"),
    [
        (1, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "must be a list of whole numbers, got 1"),
        ([1], 0.5, 0.5, "red, green and blue need one value each"),
        ([1], (0.5, 0.5, 0.5), (0.5, 0, 0.5), "std above 0"),
    ],
)
def test_one_number_in_place_of_several_is_refused(small_network, targets, mean, std, words):
    with pytest.raises(ValueError, match=words):
        invert(small_network, class_logit, targets, InversionSettings(image_size=32, steps=20), mean, std)
