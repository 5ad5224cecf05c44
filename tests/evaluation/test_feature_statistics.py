import numpy as np
import pytest
import torch
from torch import nn

from evaluation.feature_statistics import (
    covariance_spectrum,
    module_outputs,
    rank_me,
    share_non_positive,
    spectrum_by_images,
)


def test_the_share_depends_on_the_hook_point_which_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Sigmoid()).train()
    images = torch.randn(10, 3, 8, 8)
    model(images)
    before = model[1].running_mean.clone()
    table = share_non_positive(model, [(images[:6], None), (images[6:], None)], ["1", "2", "3"])
    assert table["hook_point"].tolist() == ["1", "2", "3"]
    assert table["module"].tolist() == ["BatchNorm2d", "ReLU", "Sigmoid"]
    expected = (model.eval()[1](model[0](images)) <= 0).float().mean().item()
    assert table["share"].tolist() == pytest.approx([expected, expected, 0])  # ReLU in place has not changed the first
    assert table["values"].tolist() == [10 * 4 * 8 * 8] * 3
    assert torch.equal(model[1].running_mean, before)
    assert not any(module._forward_hooks for module in model.modules())


def test_every_image_counts_alike_in_a_short_last_batch():
    images = torch.cat([torch.ones(3, 3, 2, 2), -torch.ones(1, 3, 2, 2)])
    table = share_non_positive(nn.Sequential(nn.Identity()), [(images[:3], None), (images[3:], None)], ["0"])
    assert table["share"].item() == 0.25  # the mean of the two batches' shares would be 0.5


def test_modules_that_are_not_there_or_do_not_run_are_named(small_network):
    small_network.unused = nn.Linear(2, 2)
    images = [(torch.rand(2, 3, 16, 16), None)]
    with pytest.raises(ValueError, match="no module 'layer4'"):
        share_non_positive(small_network, images, ["features.0", "layer4"])
    with pytest.raises(ValueError, match="unused did not run"):
        share_non_positive(small_network, images, ["unused"])


def test_outputs_are_those_of_the_module_even_if_the_next_one_works_in_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)).train()
    images = torch.randn(2, 3, 8, 8)
    outputs = module_outputs(model, images, ["0", "2"])
    with torch.no_grad():
        assert np.array_equal(outputs["0"], model[0](images).numpy())
        assert outputs["2"] == pytest.approx(model(images).numpy())
    assert (outputs["0"] < 0).any() and outputs["2"].shape == (2, 4, 1, 1)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="no module 'layer4'"):
        module_outputs(model, images, ["layer4"])


def test_rank_me_counts_the_dimensions_that_are_filled_alike():
    orthonormal, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 8)))
    assert rank_me(orthonormal) == pytest.approx(8)
    assert rank_me(orthonormal[:, [0, 0, 0, 1]] / np.sqrt([3, 3, 3, 1])) == pytest.approx(2)
    assert rank_me(orthonormal * [1, 1e-9, 1e-9, 1e-9, 0, 0, 0, 0]) == pytest.approx(1, abs=1e-6)


def test_the_spectrum_is_that_of_the_covariance():
    features = np.random.default_rng(0).standard_normal((300, 6)) * [1, 2, 3, 4, 5, 6] + 10
    expected = np.sort(np.linalg.eigvalsh(np.cov(features.T)))[::-1]
    assert covariance_spectrum(features) == pytest.approx(expected)


def test_few_images_leave_most_of_the_spectrum_zero_whatever_the_features():
    features = np.random.default_rng(0).standard_normal((400, 100))
    table = spectrum_by_images(features, [40, 400])
    above_zero = table[table["eigenvalue"] > 0].groupby("images")["place"].max()
    assert above_zero.to_dict() == {40: 39, 400: 100}
    largest = table[table["place"] == 1].set_index("images")["eigenvalue"]
    assert largest[40] > 1.5 * largest[400]  # of white noise, whose eigenvalues are all 1
    with pytest.raises(ValueError, match="401 images is asked for; there are 400"):
        spectrum_by_images(features, [401])
