"""What model inversion optimizes: an image's pixels, its spectrum, or the phases of its spectrum alone.

Pixels are differences from mid gray, (N, 1 or 3, S, S) in -0.5..0.5.  Each kind of parameters has a function that
makes them from pixels and one that makes pixels from them; both work on batches and on any device.
"""

from collections.abc import Callable, Iterable

import torch

PARAMETERS = ("pixels", "fourier", "phase")
# From pixels to the parameters that are optimized, and back.
Conversion = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


def conversion(parameters: str, amplitudes: torch.Tensor | None = None) -> Conversion:
    """The functions from pixels to one of PARAMETERS, and back; "phase" takes the amplitudes of `phases_of`'s size."""
    if parameters == "phase":
        return phases_of, lambda phases: pixels_from_phases(phases, amplitudes)
    return {"pixels": (torch.clone, torch.clone), "fourier": (fourier_from_pixels, pixels_from_fourier)}[parameters]


def fourier_from_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (N, C, S, S) to their scaled spectrum (N, C, S, S // 2 + 1, 2), real and imaginary parts.

    Each frequency is divided by its weight in natural images, 1 / frequency (Olah et al. 2017).  A step of the
    optimizer then changes the large shapes of an image more than its fine texture.
    """
    spectrum = torch.view_as_real(torch.fft.rfft2(pixels, norm="ortho"))
    return spectrum / _frequency_weights(pixels.shape[-2]).to(pixels.device)


def pixels_from_fourier(parameters: torch.Tensor) -> torch.Tensor:
    """The inverse of `fourier_from_pixels`, for square images."""
    size = parameters.shape[-3]
    spectrum = torch.view_as_complex(parameters * _frequency_weights(size).to(parameters.device))
    return torch.fft.irfft2(spectrum, s=(size, size), norm="ortho")


def phases_of(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (N, C, S, S) to the phases (N, C, S, S // 2 + 1) of their spectrum, in radians."""
    return torch.fft.rfft2(pixels).angle()


def pixels_from_phases(phases: torch.Tensor, amplitudes: torch.Tensor) -> torch.Tensor:
    """Phases (N, C, S, S // 2 + 1) with fixed amplitudes (C, S, S // 2 + 1) to pixels (MaCo, Fel et al. 2023).

    Amplitudes that are those of photographs rule out most of what only fools a network: an image cannot get more of
    its fine texture or its contrast than photographs have, and has to place their shapes.
    """
    size = phases.shape[-2]
    return torch.fft.irfft2(torch.polar(amplitudes.expand_as(phases), phases), s=(size, size), norm="forward")


def mean_amplitudes(batches: Iterable[torch.Tensor], gray: bool = True) -> torch.Tensor:
    """The mean amplitude spectrum (1 or 3, S, S // 2 + 1), float32, of images uint8 (N, 1 or 3, S, S).

    `batches` are those of a user's own training images; with `gray` colors are averaged first.  The amplitudes are of
    differences from mid gray, divided by the number of pixels: they do not depend on the size of the images.
    Raises ValueError without images.
    """
    total, images = 0, 0
    for batch in batches:
        pixels = batch.float() / 255 - 0.5
        pixels = pixels.mean(dim=1, keepdim=True) if gray else pixels.expand(-1, 3, -1, -1)
        total = total + torch.fft.rfft2(pixels, norm="forward").abs().cpu().double().sum(dim=0)
        images += len(batch)
    if not images:
        raise ValueError("there are no images to take an amplitude spectrum of")
    return (total / images).float()


def low_frequencies(amplitudes: torch.Tensor, size: int) -> torch.Tensor:
    """The amplitudes (C, size, size // 2 + 1) of the same images at a lower resolution; ValueError for a higher one."""
    full = amplitudes.shape[-2]
    if size > full:
        raise ValueError(f"amplitudes are of {full} x {full} pixels; {size} x {size} needs higher frequencies")
    kept = torch.fft.fftfreq(size, 1 / size).long() % full
    return amplitudes[:, kept, : size // 2 + 1]


def _frequency_weights(size: int) -> torch.Tensor:
    """Weights (S, S // 2 + 1, 1) whose mean square over the spectrum is 1.

    The learning rate then has the same scale for both kinds of parameters.  Frequencies are in periods per pixel;
    frequency 0, the mean gray, has the weight of the lowest other frequency.
    """
    frequencies = torch.fft.fftfreq(size)
    weights = 1 / torch.hypot(frequencies[:, None], frequencies[None, :]).clamp(min=1 / size)
    weights = weights / weights.square().mean().sqrt()
    return weights[:, : size // 2 + 1, None]
