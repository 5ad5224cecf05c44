from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from torch import nn

from evaluation import mask_clusters
from evaluation.checkpoints import load_trained
from evaluation.hooks import maps_and_logits
from evaluation.mask_clusters import (
    PredictedScores,
    agreement_of,
    choose_medoids,
    cluster_score_cam,
    held_out_r2,
    predict_scores,
    scores_in_rounds,
)
from evaluation.scorecam import MaskedImages, ScoreCam, build_parser, explain_images, score_cam, write_sheet
from supervised.models import SceneClassifier, estimate_batchnorm


def groups(count=5, members=12, seed=0):
    """Points in tight groups far from each other, in random order, and the group of each."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(count), members))
    return 10 * np.eye(count, 7)[group] + 0.1 * rng.standard_normal((count * members, 7)), group


def test_each_group_gets_its_most_central_point_as_medoid():
    points, group = groups()
    medoids = choose_medoids(points, 5)
    assert sorted(group[medoids]) == [0, 1, 2, 3, 4]
    for medoid in medoids:
        members = points[group == group[medoid]]
        from_each = np.linalg.norm(members[:, None] - members[None], axis=2).sum(axis=1)
        assert np.isclose(np.linalg.norm(members - points[medoid], axis=1).sum(), from_each.min())


def test_few_points_and_equal_points_are_allowed():
    assert choose_medoids(np.eye(3), 8).tolist() == [0, 1, 2]
    assert len(choose_medoids(np.zeros((9, 4)), 3)) == 3


def test_predictions_and_held_out_scores_equal_scikit_learns(monkeypatch):
    rng = np.random.default_rng(1)
    masks = rng.random((40, 5))
    scores = np.sin(3 * masks[:, 0]) + masks[:, 1]
    medoids = np.arange(0, 40, 2)
    monkeypatch.setattr(mask_clusters, "WIDTHS", (0.3,))
    monkeypatch.setattr(mask_clusters, "PENALTIES", (0.1,))
    predicted, errors = predict_scores(masks, medoids, scores[medoids])
    ridge = KernelRidge(alpha=0.1, kernel="rbf", gamma=0.3)
    centered = scores[medoids] - scores[medoids].mean()
    reference = ridge.fit(masks[medoids], centered).predict(masks) + scores[medoids].mean()
    others = np.setdiff1d(np.arange(40), medoids)
    assert np.allclose(predicted[others], reference[others])
    assert np.array_equal(predicted[medoids], scores[medoids])
    left_out = cross_val_predict(ridge, masks[medoids], centered, cv=LeaveOneOut())
    assert np.allclose(errors, centered - left_out)
    assert held_out_r2(scores[medoids], errors) == pytest.approx(1 - (errors**2).mean() / centered.var())


def test_held_out_is_high_for_smooth_scores_and_low_for_noise():
    rng = np.random.default_rng(2)
    masks = rng.random((300, 3))
    medoids = choose_medoids(masks, 40)
    smooth = masks @ [3.0, -2.0, 1.0]
    predicted, errors = predict_scores(masks, medoids, smooth[medoids])
    assert held_out_r2(smooth[medoids], errors) > 0.95 and np.corrcoef(predicted, smooth)[0, 1] > 0.98
    noise = rng.standard_normal(300)
    assert held_out_r2(noise[medoids], predict_scores(masks, medoids, noise[medoids])[1]) < 0.2
    assert np.isnan(held_out_r2(np.ones(40), predict_scores(masks, medoids, np.ones(40))[1]))


@pytest.fixture(scope="module")
def network():
    """A random network whose logits depend on the image, and two images of smooth shapes with noise."""
    torch.manual_seed(0)
    coarse, noise = torch.randn(16, 3, 6, 6), 0.3 * torch.randn(16, 3, 64, 64)
    images = nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic") + noise
    model = SceneClassifier(15).eval()
    estimate_batchnorm(model, [images])
    return model, images[:2]


def passes_of(explain, model, *arguments, **options):
    """The maps, and the number of masked images that the model was given."""
    sizes = []
    handle = model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    found = explain(model, *arguments, **options)
    handle.remove()
    return found, sum(sizes) - len(found.maps)


@pytest.fixture
def settled(monkeypatch):
    """Every map is called settled after the medoids and two rounds."""
    monkeypatch.setattr(mask_clusters, "UNCHANGED", -1.0)
    monkeypatch.setattr(mask_clusters, "AGREEMENT", -1.0)


@pytest.mark.parametrize("weighting", ["softmax", "probability"])
def test_maps_are_close_to_exact_ones_in_fewer_passes(network, weighting, settled):
    model, images = network
    layer = model.features[5]  # 112 channels of 4 x 4: masks are points in 16 dimensions
    exact, passes = passes_of(score_cam, model, images, layer, [3, 7], weighting=weighting)
    assert passes == 2 * 112
    found, passes = passes_of(cluster_score_cam, model, images, layer, [3, 7], 14, weighting=weighting)
    assert passes == 2 * 42 and found.passes.tolist() == [42, 42]
    for pair in zip(found.maps, exact.maps, strict=True):
        assert np.corrcoef(*(each.flatten() for each in pair))[0, 1] > 0.98
    assert (found.held_out > 0.5).all() and (found.held_out <= 1).all()
    again = cluster_score_cam(model, images, layer, [3, 7], 14, weighting)
    assert torch.equal(again.maps, found.maps) and torch.equal(again.agreement, found.agreement)  # deterministic
    assert not found.exact.any() and (found.agreement <= 1).all()


def test_each_image_takes_as_many_rounds_as_its_map_needs_and_no_mask_runs_twice(network, monkeypatch):
    model, images = network
    layer = model.features[5]
    exact = score_cam(model, images, layer, [3, 7])
    monkeypatch.setattr(mask_clusters, "MOST", 0.9)
    monkeypatch.setattr(mask_clusters, "UNCHANGED", 0.9999)
    found, passes = passes_of(cluster_score_cam, model, images, layer, [3, 7], 7)
    assert passes == found.passes.sum() and set(found.passes.tolist()) <= {*range(21, 102, 7), 112}
    assert len(set(found.passes.tolist())) == 2  # one image is harder than the other
    for pair in zip(found.maps, exact.maps, strict=True):
        assert np.corrcoef(*(each.flatten() for each in pair))[0, 1] > 0.999
    alone = [cluster_score_cam(model, images[[number]], layer, [target], 7) for number, target in ((0, 3), (1, 7))]
    assert [each.passes.item() for each in alone] == found.passes.tolist()


@pytest.mark.parametrize("limit", ["UNCHANGED", "AGREEMENT"])
def test_a_map_that_never_settles_is_exact(network, limit, settled, monkeypatch):
    monkeypatch.setattr(mask_clusters, limit, 2.0)  # either of the two is enough to go on
    model, images = network
    exact = score_cam(model, images, model.features[5], [3, 7])
    found, passes = passes_of(cluster_score_cam, model, images, model.features[5], [3, 7], 14)
    assert found.exact.all() and passes == 2 * 112 and found.held_out.isnan().all()
    assert torch.allclose(found.maps, exact.maps, atol=1e-4) and (found.agreement == 1).all()


def test_rounds_end_where_every_predicted_contribution_is_far_below_zero(network, monkeypatch):
    """As weights of the increase can be, where the blank image is taken for the class."""
    monkeypatch.setattr(mask_clusters, "AGREEMENT", 2.0)
    model, images = network
    with torch.inference_mode():
        activations, _ = maps_and_logits(model, images[:1], model.features[5])
    masked = MaskedImages(model, images[:1], 1000 * activations, torch.tensor([3]), "increase", 32)
    vars(masked)["of_blank"] = torch.full((1, 15), 2.0)
    asked = []

    def measure(channels):
        asked.append(int(channels.sum()))
        return torch.rand(1, 112, generator=torch.Generator().manual_seed(0)) * channels

    found, agreement = scores_in_rounds(masked, 14, measure)
    assert sum(asked) == 112 and set(asked[:-1]) == {14} and found.measured.all() and agreement == 1


def test_the_check_sees_errors_that_change_the_map_and_no_others(network):
    """With one channel far above the others errors change nothing; with all alike they change the map."""
    model, images = network
    with torch.inference_mode():
        activations, _ = maps_and_logits(model, images[:1], model.features[5])
        masked = MaskedImages(model, images[:1], activations, torch.tensor([3]), "softmax", 32)
        measured = torch.arange(112)[None] < 20
        errors = np.random.default_rng(0).normal(0, 3.0, 20)
        alike = PredictedScores(torch.zeros(1, 112), measured, 0.0, errors)
        certain = replace(alike, scores=100.0 * (torch.arange(112)[None] == 3))
        assert agreement_of(masked, certain) > 0.999 > 0.9 > agreement_of(masked, alike)
        assert agreement_of(masked, replace(alike, errors=np.zeros(20))) > 0.999


def test_images_can_be_taken_from_a_batch_in_any_order(network):
    model, images = network
    activations, _ = maps_and_logits(model, images, model.features[5])
    masked = MaskedImages(model, images, activations, torch.tensor([3, 7]), "softmax", 32)
    other = masked.of(torch.tensor([1, 0, 1]))
    assert other.targets.tolist() == [7, 3, 7] and torch.equal(other.activations[0], activations[1])
    assert torch.equal(other.constant, masked.constant[[1, 0, 1]])


def test_the_map_of_a_layer_of_few_channels_is_exact(small_network):
    images = torch.rand(3, 3, 16, 16)
    exact = score_cam(small_network, images, small_network.features, [0, 1, 2])
    found = cluster_score_cam(small_network, images, small_network.features, [0, 1, 2], 4)
    assert torch.equal(found.maps, exact.maps) and found.held_out.isnan().all() and found.exact.all()


def test_constant_channels_are_left_out(small_network):
    nn.init.zeros_(small_network.features[0].weight[:3])
    nn.init.zeros_(small_network.features[0].bias)
    images, layer = torch.rand(2, 3, 16, 16), small_network.features[0]
    exact, every = passes_of(score_cam, small_network, images, layer, [0, 1])
    found, passes = passes_of(cluster_score_cam, small_network, images, layer, [0, 1], 2)
    assert exact.constant_channels.tolist() == found.constant_channels.tolist() == [3, 3]
    assert every == passes == 10  # of five channels all are measured
    found = cluster_score_cam(small_network, torch.zeros(1, 3, 16, 16), layer, [0], 2)  # all are constant
    assert (found.maps == 0).all() and found.held_out.isnan().all()


def test_too_few_clusters_and_values_that_are_not_finite_are_refused(small_network):
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="clusters is 1"):
        cluster_score_cam(small_network, images, small_network.features, [0], 1)
    images[0, 0, 4, 4] = torch.nan
    with pytest.raises(FloatingPointError):
        cluster_score_cam(small_network, images, small_network.features, [0], 2)


def test_the_command_writes_approximate_maps(tiny_model, tmp_path, capsys):
    photo, sheet = tmp_path / "a.png", tmp_path / "new" / "sheet.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70), dtype=np.uint8)).save(photo)
    arguments = [str(photo), "--model", "tiny", "--layers", "5", "--target", "light", "--output", str(sheet)]
    assert mask_clusters.main([*arguments, "--clusters", "1"]) == 2
    assert "clusters is 1" in capsys.readouterr().err and not sheet.parent.exists()
    assert mask_clusters.main([*arguments, "--clusters", "8"]) == 0
    run = load_trained("tiny").folded()
    expected = cluster_score_cam(run.model, run.read([photo])[1], run.layer("5"), [1], 8)
    with np.load(sheet.with_suffix(".npz")) as saved:
        assert np.array_equal(saved["layer_5"], expected.maps.numpy())
    assert f"{int(expected.exact.sum())} of 1" in capsys.readouterr().out
    without_layers = [each for each in arguments if each not in ("--layers", "5")]
    assert mask_clusters.main([*without_layers, "--clusters", "8"]) == 0
    assert capsys.readouterr().out.count(" computed exactly") == 3  # stages 1, 2 and the last


def test_images_are_explained_without_a_file_and_the_options_stay_as_they_are(tiny_model, tmp_path):
    photo = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70), dtype=np.uint8)).save(photo)
    before = sorted(tmp_path.iterdir())
    options = build_parser("", "").parse_args(
        [str(photo), "--model", "tiny", "--output", str(tmp_path / "a" / "b.png")]
    )
    explained = explain_images(options, lambda model, images, *_, weighting: constant_maps(images))
    assert options.layers is None and list(explained.found) == ["1", "2", "8"]
    assert sorted(tmp_path.iterdir()) == before
    write_sheet(explained, options.output)
    with np.load(tmp_path / "a" / "b.npz") as saved:
        assert saved["targets"].tolist() == explained.targets and saved["layer_8"].shape == (1, 32, 32)


def constant_maps(images):
    zeros = torch.zeros(len(images), dtype=torch.long)
    return ScoreCam(torch.full((len(images), *images.shape[2:]), 0.5), zeros, zeros.bool())
