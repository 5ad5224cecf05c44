import pytest
import torch
from torch import nn

from evaluation.recipro_cam import position_masks, probabilities_by_position, recipro_cam, recipro_contrast
from supervised.models import SceneClassifier, estimate_batchnorm


class Halves(nn.Module):
    """The logits are the brightness of the left half, and of the right half."""

    def __init__(self):
        super().__init__()
        self.maps = nn.AvgPool2d(4)

    def forward(self, images):
        left, right = self.maps(images).chunk(2, dim=3)
        return 100 * torch.stack([left.mean(dim=(1, 2, 3)), right.mean(dim=(1, 2, 3))], dim=1)


def test_the_map_highlights_the_half_that_determines_the_class():
    model, images = Halves(), torch.ones(2, 3, 32, 32)
    found = recipro_cam(model, images, model.maps, [0, 1])
    left, right = found.maps.chunk(2, dim=2)
    assert left[0].mean() > 2 * right[0].mean() and right[1].mean() > 2 * left[1].mean()
    assert found.maps.min() == 0 and found.maps.max() == 1 and not found.empty.any()
    assert not model.maps._forward_hooks
    with pytest.raises(ValueError, match="must be 0 to 1, got 2"):
        recipro_cam(model, images, model.maps, [0, 2])


def test_the_contrast_highlights_the_half_of_its_first_class_alone():
    model, image = Halves(), torch.ones(1, 3, 32, 32)
    left, right = (recipro_contrast(model, image, model.maps, *classes) for classes in ((0, 1), (1, 0)))
    assert left.max() == 1 and left[:, :14].min() > 0 and not left[:, 18:].any()
    assert torch.allclose(right, left.flip(1))


def test_a_mask_keeps_a_position_and_a_share_of_its_neighbors():
    masks = position_masks(3, 4)
    assert masks.shape == (12, 1, 3, 4)
    assert (16 * masks[5, 0]).tolist() == [[1, 2, 1, 0], [2, 4, 2, 0], [1, 2, 1, 0]]  # line 1, column 1
    assert (16 * masks[0, 0]).tolist() == [[4, 2, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0]]


def test_layers_before_run_once_if_only_the_stages_behind_reach_the_head(monkeypatch):
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    for stages in ((8,), (0, 8)):
        torch.manual_seed(0)
        model = SceneClassifier(3, stages=stages).eval()
        estimate_batchnorm(model, [torch.randn(8, 3, 64, 64)])
        seen = []
        model.features[0].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(output)))
        found = probabilities_by_position(model, images, model.features[7])
        assert sum(seen) == 1 + (1 if stages == (8,) else 4)
        with monkeypatch.context() as patch:
            patch.setattr("evaluation.recipro_cam._reaches_the_head_alone", lambda *_: False)
            once_a_mask = probabilities_by_position(model, images, model.features[7])
        assert found.std(dim=(1, 2)).min() > 1e-3 and torch.allclose(found, once_a_mask, atol=1e-5)
