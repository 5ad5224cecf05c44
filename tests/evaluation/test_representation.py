import numpy as np
import pytest
import torch
from torch import nn

from evaluation.representation import (
    cka_table,
    covariance_spectrum,
    linear_cka,
    module_outputs,
    neighbour_purity,
    rank_me,
    share_non_positive,
    spectrum_by_images,
    tsne,
)


def groups(of_each=40, spread=0.1):
    """Three groups of points around the first three axes of 20 dimensions, and their labels."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], of_each)
    return np.eye(20)[labels] + spread * generator.standard_normal((3 * of_each, 20)), labels


def test_tsne_separates_groups_and_is_deterministic():
    features, labels = groups()
    places = tsne(features, perplexity=10)
    assert places.shape == (120, 2)
    centres = np.stack([places[labels == label].mean(axis=0) for label in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == labels).all()
    assert np.array_equal(places, tsne(features, perplexity=10))
    with pytest.raises(ValueError, match="90 images, not 20"):
        tsne(features[:20])


def test_purity_is_1_for_groups_and_chance_for_noise():
    features, labels = groups()
    assert neighbour_purity(features, labels) == 1
    noise = np.random.default_rng(1).standard_normal((600, 20))
    assert neighbour_purity(noise, np.repeat([0, 1, 2], 200)) == pytest.approx(1 / 3, abs=0.03)
    assert neighbour_purity(100 * features, labels) == 1  # cosine


def test_an_image_is_not_its_own_neighbor():
    features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert neighbour_purity(features, np.array([0, 1, 2, 3]), neighbors=1) == 0
    with pytest.raises(ValueError, match="not 4"):
        neighbour_purity(features, np.arange(4), neighbors=4)


def test_cka_ignores_rotation_and_scale_and_is_low_for_unrelated_features():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((500, 12))
    rotation, _ = np.linalg.qr(generator.standard_normal((12, 12)))
    assert linear_cka(features, 3 * features @ rotation + 7) == pytest.approx(1)
    assert linear_cka(features, generator.standard_normal((500, 12))) < 0.1
    assert linear_cka(features, features[:, :3]) < 0.6


def hsic(one, other):
    """The unbiased estimator by its definition (Song et al. 2012, equation 5)."""
    (first, second), n = (each @ each.T * (1 - np.eye(len(each))) for each in (one, other)), len(one)
    rows = first.sum(axis=0) @ second.sum(axis=0)
    total = np.trace(first @ second) + first.sum() * second.sum() / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)
    return total / (n * (n - 3))


def test_cka_is_the_debiased_one_by_its_definition():
    generator = np.random.default_rng(0)
    one, noise = generator.standard_normal((30, 50)) + 2, generator.standard_normal((30, 8))
    other = noise + one[:, :8]
    expected = hsic(one, other) / np.sqrt(hsic(one, one) * hsic(other, other))
    assert linear_cka(one, other) == pytest.approx(expected, abs=1e-12)
    assert linear_cka(one.astype("f4"), other.astype("f4")) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("images", "one", "other"), [(300, 200, 200), (100, 400, 30), (50, 1280, 1280)])
def test_cka_of_unrelated_noise_is_about_0_also_for_more_dimensions_than_images(images, one, other):
    generator = np.random.default_rng(0)
    found = [
        linear_cka(generator.standard_normal((images, one)), generator.standard_normal((images, other)) + 3)
        for _ in range(10)
    ]
    assert abs(np.mean(found)) < 0.04 and np.abs(found).max() < 0.1


def test_cka_says_which_it_is_and_where_it_cannot_be_told():
    assert cka_table({"a": groups()[0]}).index.name == "debiased linear CKA"
    assert np.isnan(linear_cka(np.eye(6), groups()[0][:6]))  # no two images have anything in common
    assert np.isnan(linear_cka(np.eye(3), np.eye(3)))
    with pytest.raises(ValueError, match="there are 4 and 5"):
        linear_cka(np.eye(4), np.eye(5))


def test_features_of_zeros_fill_no_dimension():
    assert rank_me(np.zeros((5, 3))) == 0
    assert rank_me(np.ones((5, 3), "f4")) == pytest.approx(1)
    assert rank_me(np.zeros((5, 3)) + 1e-300) == pytest.approx(1)


def test_the_table_is_symmetric_and_features_that_cannot_be_compared_are_refused():
    features, _ = groups()
    table = cka_table({"a": features, "b": features[:, :5], "c": -features})
    assert table.loc["a", "c"] == pytest.approx(1)
    assert table.loc["a", "b"] == table.loc["b", "a"] < 1
    with pytest.raises(ValueError, match="120 and 100"):
        linear_cka(features, features[:100])
    with pytest.raises(ValueError, match="not defined"):
        linear_cka(features, np.ones((120, 4)))


def test_rank_me_is_the_number_of_dimensions_with_equal_variance():
    orthonormal, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 8)))
    assert rank_me(orthonormal) == pytest.approx(8)
    assert rank_me(orthonormal[:, [0, 0, 0, 1]] / np.sqrt([3, 3, 3, 1])) == pytest.approx(2)
    assert rank_me(orthonormal * [1, 1e-9, 1e-9, 1e-9, 0, 0, 0, 0]) == pytest.approx(1, abs=1e-6)


def test_the_spectrum_is_that_of_numpys_covariance():
    features = np.random.default_rng(0).standard_normal((300, 6)) * [1, 2, 3, 4, 5, 6] + 10
    expected = np.sort(np.linalg.eigvalsh(np.cov(features.T)))[::-1]
    assert covariance_spectrum(features) == pytest.approx(expected)


def test_the_spectrum_of_few_images_is_mostly_zero():
    features = np.random.default_rng(0).standard_normal((400, 100))
    table = spectrum_by_images(features, [40, 400])
    above_zero = table[table["eigenvalue"] > 0].groupby("images")["place"].max()
    assert above_zero.to_dict() == {40: 39, 400: 100}
    largest = table[table["place"] == 1].set_index("images")["eigenvalue"]
    assert largest[40] > 1.5 * largest[400]  # of white noise, whose eigenvalues are all 1
    with pytest.raises(ValueError, match="400 images here, not 401"):
        spectrum_by_images(features, [401])


def test_the_fraction_depends_on_the_hook_point_which_is_named():
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


def test_images_of_a_short_last_batch_have_the_same_weight():
    images = torch.cat([torch.ones(3, 3, 2, 2), -torch.ones(1, 3, 2, 2)])
    table = share_non_positive(nn.Sequential(nn.Identity()), [(images[:3], None), (images[3:], None)], ["0"])
    assert table["share"].item() == 0.25  # the mean of the two batches' shares would be 0.5


def test_modules_that_are_missing_or_do_not_run_are_refused(small_network):
    small_network.unused = nn.Linear(2, 2)
    images = [(torch.rand(2, 3, 16, 16), None)]
    with pytest.raises(ValueError, match="layer4"):
        share_non_positive(small_network, images, ["features.0", "layer4"])
    with pytest.raises(ValueError, match="Linear"):
        share_non_positive(small_network, images, ["unused"])


def test_outputs_are_those_of_the_module_although_the_next_one_works_in_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)).train()
    images = torch.randn(2, 3, 8, 8)
    outputs = module_outputs(model, images, ["0", "2"])
    with torch.no_grad():
        assert np.array_equal(outputs["0"], model[0](images).numpy())
        assert outputs["2"] == pytest.approx(model(images).numpy())
    assert (outputs["0"] < 0).any() and outputs["2"].shape == (2, 4, 1, 1)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="layer4"):
        module_outputs(model, images, ["layer4"])


def test_tensors_and_lists_have_the_numbers_of_arrays():
    features = np.random.default_rng(0).standard_normal((30, 4))
    labels = np.arange(30) % 3
    for as_given in (torch.tensor, lambda values: values.tolist()):
        given = as_given(features)
        assert rank_me(given) == rank_me(features)
        assert linear_cka(given, as_given(features[:, :2])) == linear_cka(features, features[:, :2])
        assert neighbour_purity(given, as_given(labels)) == neighbour_purity(features, labels)
        np.testing.assert_array_equal(covariance_spectrum(given), covariance_spectrum(features))
        assert spectrum_by_images(given, [10]).equals(spectrum_by_images(features, [10]))
        np.testing.assert_array_equal(tsne(given, 5.0), tsne(features, 5.0))


def test_features_of_another_shape_and_values_that_are_not_finite_are_refused():
    maps, broken = np.ones((30, 4, 3, 3)), np.full((30, 4), np.nan)
    for wrong, words in ((maps, r"shape \(30, 4, 3, 3\); they must be \(N, D\)"), (broken, "not finite")):
        for use in (rank_me, covariance_spectrum, lambda each: linear_cka(each, each), lambda each: tsne(each, 5.0)):
            with pytest.raises(ValueError, match=words):
                use(wrong)
    with pytest.raises(ValueError, match="30 images, but 31 labels"):
        neighbour_purity(np.ones((30, 4)), np.zeros(31))
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        covariance_spectrum(np.ones((1, 4)))
