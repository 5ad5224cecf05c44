import pytest
import torch

from evaluation.random_views import Views, generator_of, views_of

VIEWS = Views(shift=0.1, scale=0.3, rotation=20.0, noise=0.05, count=3)


def pictures(count=2, size=24):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0)) - 0.5


def generators(*targets, seed=0):
    return [generator_of(seed, 0, target) for target in targets]


def test_without_any_difference_a_view_is_the_image():
    assert torch.equal(views_of(pictures(), Views(), generators(0, 1)), pictures())


def test_the_views_of_an_image_do_not_depend_on_the_batch_and_differ_from_each_other():
    together = views_of(pictures(), VIEWS, generators(4, 7))
    assert together.shape == (6, 1, 24, 24)
    alone = views_of(pictures()[1:], VIEWS, generators(7))
    assert torch.allclose(together[3:], alone, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=0.05)
    assert not torch.allclose(alone, views_of(pictures()[1:], VIEWS, generators(7, seed=1)), atol=0.05)


@pytest.mark.parametrize(
    ("views", "spread"), [(Views(shift=0.2), 4.8), (Views(scale=0.5), 0.0), (Views(rotation=45.0), 0.0)]
)
def test_a_shift_moves_the_center_and_scales_and_rotations_do_not(views, spread):
    dot = torch.full((1, 1, 25, 25), -0.5)
    dot[0, 0, 11:14, 11:14] = 0.5
    seen = views_of(dot, Views(**{**vars(views), "count": 40}), generators(0)) + 0.5
    places = torch.arange(25.0)
    centers = (seen.sum(dim=2) * places).sum(dim=2) / seen.sum(dim=(2, 3))
    moved = (centers - 12).abs().max()
    assert moved <= spread + 0.3 and (moved > 2) == (spread > 0)
    sizes = seen.sum(dim=(1, 2, 3))
    assert (sizes.max() > 1.5 * sizes.min()) == (views.scale > 0)


def test_gradients_reach_the_pixels():
    pixels = pictures().requires_grad_()
    views_of(pixels, VIEWS, generators(0, 1)).square().sum().backward()
    assert (pixels.grad != 0).float().mean() > 0.5
