import pytest
import torch
from torch import nn

from evaluation.image_parameters import (
    conversion,
    low_frequencies,
    mean_amplitudes,
    phases_of,
    pixels_from_phases,
)


def pictures(count=6, size=32, channels=1, seed=0):
    """Smooth pictures, uint8 (count, channels, size, size)."""
    coarse = torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (255 * nn.functional.interpolate(coarse, (size, size), mode="bilinear")).round().byte()


def amplitudes_of(pixels):
    return torch.fft.rfft2(pixels, norm="forward").abs()


def test_an_image_is_found_again_from_its_phases_and_its_own_amplitudes():
    pixels = pictures(1).float() / 255 - 0.5
    again = pixels_from_phases(phases_of(pixels), mean_amplitudes([pictures(1)]))
    assert torch.allclose(again, pixels, atol=1e-5)


def test_whatever_the_phases_the_amplitudes_are_those_of_the_training_images():
    amplitudes = mean_amplitudes(pictures(6).split(4))  # a ragged last batch
    expected = amplitudes_of(pictures(6).float() / 255 - 0.5).mean(dim=0)
    assert torch.allclose(amplitudes, expected, atol=1e-6)
    _, decode = conversion("phase", amplitudes)
    pixels = decode(phases_of(torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))))
    found = amplitudes_of(pixels)
    assert torch.allclose(found[:, :, 1:16, 1:16], amplitudes[:, 1:16, 1:16].expand(2, -1, -1, -1), atol=1e-6)


def test_gray_amplitudes_are_of_one_channel_and_color_ones_of_three():
    assert mean_amplitudes([pictures(channels=3)]).shape == (1, 32, 17)
    assert mean_amplitudes([pictures(channels=1)], gray=False).shape == (3, 32, 17)
    with pytest.raises(ValueError, match="no images"):
        mean_amplitudes([])


def test_amplitudes_of_a_lower_resolution_are_those_of_the_smaller_image():
    """A wave of one and of nine periods: 16 pixels can show the first alone."""
    line = torch.arange(32) / 32
    slow, fast = (0.2 * torch.cos(2 * torch.pi * periods * line).expand(32, 32) for periods in (1, 9))
    small = low_frequencies(amplitudes_of((slow + fast)[None]), 16)
    assert torch.allclose(small, amplitudes_of(slow[None, ::2, ::2]), atol=1e-6)
    with pytest.raises(ValueError, match="16 x 16"):
        low_frequencies(small, 32)
