import urllib.error
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models as torchvision_models
from torchvision.models import EfficientNet_B0_Weights, efficientnet_b0

from helper_functions import TrainSettings, evaluate, train
from supervised.dataloader import Loaders, SeededShuffle
from supervised.models import (
    STAGE_WIDTHS,
    DepthwiseConv2d,
    Distillation,
    GlobalMean,
    SceneClassifier,
    build_features,
    build_head,
    build_model,
    estimate_batchnorm,
    load_initial_weights,
)
from supervised.settings import NETWORKS, Experiment


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A complete EfficientNet-B0 as a user may have saved it, with its 1000-class classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "b0.pth"
    torch.save(efficientnet_b0(weights=None).state_dict(), path)
    return path


class _Images(TensorDataset):
    """Under the keys of SceneDataset."""

    def __getitems__(self, keys):
        return self[[key if isinstance(key, int) else key[0] for key in keys]]


@pytest.fixture
def loaders() -> Loaders:
    """24 noise images of 32 pixels, three classes that differ in color."""
    labels = torch.arange(24) % 3
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[torch.arange(24), labels] += 2
    dataset = _Images(images, labels)

    def loader(sampler=None):
        return DataLoader(dataset, 8, sampler=sampler, collate_fn=lambda batch: batch, generator=torch.Generator())

    in_order = {name: loader() for name in ("train_in_order", "val", "test")}
    return Loaders(
        train=loader(SeededShuffle(24, seed=3)), **in_order, class_names=("a", "b", "c"), class_weights=None, data={}
    )


def images_of(count, size=32, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def fit(model, loaders, **settings):
    """Train, and return the names of the tensors that stayed bit-identical."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, loaders.train, loaders.val, TrainSettings(**settings), device="cpu", progress=False)
    return {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}


# ------------------------------------------------------------------------------------------------------------ networks


def test_names_and_outputs_are_torchvisions(weights_file):
    reference = efficientnet_b0(weights=None)
    reference.load_state_dict(torch.load(weights_file, weights_only=True))
    images = images_of(8, 64)
    estimate_batchnorm(reference.features, [images])  # else the logits do not depend on the image
    model = SceneClassifier(1000)
    model.load_state_dict(reference.state_dict())  # every key, none missing, none new
    expected = reference.eval()(images)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    assert torch.allclose(model.eval()(images), expected, atol=1e-4)


@pytest.mark.parametrize("network", ["resnet18", "resnet34"])
def test_a_resnet_with_torchvisions_weights_has_its_outputs(network, tmp_path):
    torch.manual_seed(0)
    reference = getattr(torchvision_models, network)(weights=None).eval()
    torch.save(reference.state_dict(), tmp_path / "resnet.pth")
    model = SceneClassifier(1000, stages=(4,), network=network)
    model.features.load_state_dict(load_initial_weights(str(tmp_path / "resnet.pth"), network).state_dict)
    model.classifier[1].load_state_dict(reference.fc.state_dict())
    images = images_of(4, 64)
    expected = reference(images)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    assert torch.allclose(model.eval()(images), expected, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_global_mean_is_torchs_pooling_in_value_and_gradient(layout):
    maps = torch.randn(3, 5, 7, 4).contiguous(memory_format=layout)
    weights = torch.randn(3, 5, 1, 1)
    found, gradients = [], []
    for pool in (GlobalMean(), nn.AdaptiveAvgPool2d(1)):
        given = maps.clone().requires_grad_()
        found.append(pool(given))
        (weights * found[-1].square()).sum().backward()
        gradients.append(given.grad)
    assert found[0].shape == (3, 5, 1, 1)
    for one, other in (found, gradients):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_efficientnets_features_and_their_gradients_are_torchvisions():
    torch.manual_seed(0)
    reference = efficientnet_b0(weights=None).features
    images = images_of(4, 64)
    estimate_batchnorm(reference, [images])  # else the features do not depend on the image
    features = build_features("efficientnet_b0")
    features.load_state_dict(reference.state_dict())
    pooling = [module for module in features.modules() if isinstance(module, (GlobalMean, nn.AdaptiveAvgPool2d))]
    assert [type(module) for module in pooling] == [GlobalMean] * 16
    maps, expected = features.eval()(images), reference.eval()(images)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    assert (maps - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    for each in (maps, expected):
        each.square().mean().backward()
    for one, other in zip(features.parameters(), reference.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() < 1e-4 * other.grad.abs().max() + 1e-7


def test_depthwise_convolutions_draw_as_torchvisions_and_have_float32_gradients_within_bfloat16():
    torch.manual_seed(0)
    reference = efficientnet_b0(weights=None).features
    torch.manual_seed(0)
    features = build_features("efficientnet_b0")
    pairs = zip(features.state_dict().values(), reference.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    depthwise = [module for module in features.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert len(depthwise) == 16 and all(isinstance(module, DepthwiseConv2d) for module in depthwise)
    convolution, images = depthwise[0], torch.randn(2, 32, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = convolution(images)
    assert outputs.dtype == torch.bfloat16
    gradients = torch.autograd.grad(outputs.float().square().sum(), [convolution.weight, images])
    plain = nn.functional.conv2d(images, convolution.weight, padding=1, groups=32)
    rounded = 2 * plain.detach().to(torch.bfloat16).float()  # the gradient passes through the same rounding
    for found, wanted in zip(gradients, torch.autograd.grad(plain, [convolution.weight, images], rounded), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-2, atol=1e-6)
    assert torch.equal(convolution(images), plain)  # outside of autocast it is as any other


def test_every_network_has_the_stages_and_widths_in_the_tables():
    for network, stages in NETWORKS.items():
        model = SceneClassifier(3, stages=range(stages), network=network).eval()
        assert len(model.features) == len(STAGE_WIDTHS[network]) == stages
        assert model(images_of(1)).shape == (1, 3)


def test_heads_have_the_layers_of_the_first_report():
    deep = build_head("deep", 15)
    widths = [(layer.in_features, layer.out_features) for layer in deep if isinstance(layer, nn.Linear)]
    assert widths == [(1280, 640), (640, 320), (320, 15)]
    assert [layer.p for layer in deep if isinstance(layer, nn.Dropout)] == [0.2] * 3
    assert [type(layer).__name__ for layer in build_head("shallow", 15)] == ["Dropout", "Linear"]


def test_a_linear_probe_with_batchnorm_has_one_layer_with_parameters():
    norm, linear = build_head("batchnorm_linear", 15, 20)
    assert not list(norm.parameters()) and (linear.in_features, linear.out_features) == (20, 15)
    features = 5 + 100 * torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    assert norm(features).std(dim=0, correction=0).allclose(torch.ones(20), atol=1e-4)


def test_a_head_sees_the_mean_maps_of_its_stages():
    torch.manual_seed(0)
    model, images = SceneClassifier(3, head="batchnorm_linear", freeze_features=True, stages=(1, 8)), images_of(2)
    found = model.pooled_features(images)
    assert found.shape == (2, 16 + 1280) and model.classifier[1].in_features == 16 + 1280
    assert torch.equal(found[:, :16], model.features[:2](images).mean(dim=(2, 3)))
    assert torch.equal(found[:, 16:], model.features(images).mean(dim=(2, 3)))
    assert torch.equal(model.eval()(images), model(found))


def test_flip_tta_averages_the_logits_of_image_and_flipped_image_in_eval_mode():
    torch.manual_seed(0)
    model = SceneClassifier(3, stages=(1, 2), head="batchnorm_linear", flip_tta=True)
    images = images_of(4, 64)
    estimate_batchnorm(model.features, [images])
    plain = SceneClassifier(3, stages=(1, 2), head="batchnorm_linear")
    plain.load_state_dict(model.state_dict())
    model.eval(), plain.eval()
    logits = [plain(images), plain(images.flip(-1))]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert torch.allclose(model(images), (logits[0] + logits[1]) / 2, atol=1e-5)
    outputs = []
    with model.features[1].register_forward_hook(lambda module, inputs, output: outputs.append(output)):
        model(images)
    assert torch.equal(outputs[-1], model.features[:2](images))  # what a hook sees last is of the image itself
    for network in (model, plain):
        torch.manual_seed(1)
        outputs.append(network.train()(images))
    assert torch.equal(outputs[-2], outputs[-1])


# ------------------------------------------------------------------------------------------------------ frozen features


def test_frozen_features_are_bit_identical_after_training_and_the_head_is_not(loaders):
    torch.manual_seed(0)
    model = SceneClassifier(3, freeze_features=True)
    assert not model.features.training, "frozen from the start, before anybody calls train or eval"
    estimate_batchnorm(model.features, loaders.train_in_order)
    same = fit(model, loaders, max_epochs=2, weight_decay=0.1)
    assert same == {name for name in model.state_dict() if name.startswith("features.")}
    assert "features.0.1.running_mean" in same
    model.train()
    assert model.classifier.training and not any(module.training for module in model.features.modules())


@pytest.mark.parametrize(
    ("mode", "moved", "random"), [("batchnorm", True, False), ("stochastic_depth", False, True), ("train", True, True)]
)
def test_frozen_features_can_be_left_in_train_mode_on_purpose_and_no_weight_changes(loaders, mode, moved, random):
    torch.manual_seed(0)
    model = SceneClassifier(3, freeze_features=True, frozen_mode=mode)
    estimate_batchnorm(model.features, loaders.train_in_order)
    images = torch.randn(4, 3, 32, 32)
    model.train()
    first, second = (model.pooled_features(images.clone()) for _ in range(2))
    assert torch.equal(first, second) != random  # two passes in train mode
    model.eval()
    assert torch.equal(model.pooled_features(images), model.pooled_features(images))
    same = fit(model, loaders, max_epochs=1)
    weights = {name for name, _ in model.features.named_parameters(prefix="features")}
    assert weights <= same and ("features.0.1.running_mean" in same) != moved


def test_of_partly_frozen_features_the_first_stages_are_bit_identical_and_the_others_are_not(loaders):
    torch.manual_seed(0)
    model = SceneClassifier(3, frozen_stages=4)
    same = fit(model, loaders, max_epochs=1)
    frozen = tuple(f"features.{stage}." for stage in range(4))
    assert same == {name for name in model.state_dict() if name.startswith(frozen)}
    assert "features.3.0.block.0.1.running_mean" in same


def test_features_that_are_not_frozen_change(loaders):
    torch.manual_seed(0)
    assert not {"features.0.1.running_mean", "features.0.0.weight"} & fit(SceneClassifier(3), loaders, max_epochs=1)


def test_a_head_on_features_computed_once_trains_to_the_numbers_of_one_on_images(loaders):
    torch.manual_seed(0)
    model = SceneClassifier(3, freeze_features=True).eval()
    estimate_batchnorm(model.features, loaders.train_in_order)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def trained(network, batches):
        model.load_state_dict(start)
        loaders.train.sampler.generator.manual_seed(3)
        torch.manual_seed(1)
        settings = TrainSettings(max_epochs=3)
        history = train(network, batches.train, batches.val, settings, device="cpu", progress=False)
        return history, model.classifier[1].weight.clone()

    once, once_weight = trained(model.classifier, loaders.of_features(model.pooled_features))
    plain, plain_weight = trained(model, loaders)
    evaluated = loaders.of_features(model.pooled_features, train=False)  # where training images are augmented
    assert next(iter(evaluated.val))[0].shape == (8, 1280)
    on_both, _ = trained(model, evaluated)
    for history in (once, on_both):
        assert history.train_loss == pytest.approx(plain.train_loss, rel=1e-5)
        assert history.val_loss == pytest.approx(plain.val_loss, rel=1e-5)
    assert torch.allclose(once_weight, plain_weight, atol=1e-6)


def test_estimated_batchnorm_statistics_make_random_features_depend_on_the_image(loaders):
    torch.manual_seed(0)
    model = SceneClassifier(3, freeze_features=True)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta, images = [norm.momentum for norm in norms], next(iter(loaders.val))[0]
    assert model.pooled_features(images).std(dim=0).max() < 1e-6
    estimate_batchnorm(model.features, loaders.train)
    assert model.pooled_features(images).std(dim=0).mean() > 1e-2
    assert momenta == [norm.momentum for norm in norms]
    assert not any(module.training for module in model.features.modules())
    first = norms[0].running_mean.clone()
    estimate_batchnorm(model.features, [10 + images], norms[1:])  # of the other layers alone
    assert torch.equal(norms[0].running_mean, first)


def test_frozen_random_features_are_estimated_before_a_head_learns_from_them(loaders):
    torch.manual_seed(0)
    experiment = Experiment("mine", "?", initial_weights="random", freeze_features=True)
    model, provenance = build_model(experiment, loaders)
    assert provenance == {"weights": "random"}
    features, settings = loaders.of_features(model.pooled_features), TrainSettings(max_epochs=20, learning_rate=0.01)
    history = train(model.classifier, features.train, features.val, settings, device="cpu", progress=False)
    assert evaluate(model, loaders.val).accuracy == max(history.val_accuracy) > 0.6


# ----------------------------------------------------------------------------------------------------- initial weights


def test_weights_from_a_file_are_those_of_the_file_and_have_its_digest(weights_file):
    experiment = Experiment("mine", "?", initial_weights=str(weights_file))
    model, provenance = build_model(experiment, SimpleNamespace(class_names="abc"))
    for name, tensor in torch.load(weights_file, weights_only=True).items():
        if name.startswith("features."):
            assert torch.equal(model.state_dict()[name], tensor)
    assert provenance["file"] == "b0.pth" and len(provenance["sha256"]) == 64
    assert model.classifier[1].out_features == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda state, name: state.pop(name),
        lambda state, name: state.update({name: torch.zeros(32, 1, 3, 3)}),
        lambda state, name: state[name].fill_(float("nan")),
    ],
    ids=["missing", "shape", "nan"],
)
def test_weights_that_do_not_fit_are_refused_by_tensor_and_file(weights_file, tmp_path, damage):
    state, name = torch.load(weights_file, weights_only=True), "features.3.0.block.0.0.weight"
    damage(state, name)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=name) as error:
        load_initial_weights(str(tmp_path / "bad.pth"))
    assert "bad.pth" in str(error.value)


def test_a_weights_file_that_is_missing_or_no_state_dict_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_initial_weights(str(tmp_path / "nowhere.pth"))
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text.pth", "list.pth"):
        with pytest.raises(ValueError, match=name):
            load_initial_weights(str(tmp_path / name))


def test_a_failed_download_is_an_error_that_names_the_option_for_a_file(monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(EfficientNet_B0_Weights, "get_state_dict", no_network)
    with pytest.raises(ConnectionError, match="--weights"):
        load_initial_weights("imagenet")


def test_downloaded_weights_are_used_and_named(monkeypatch, weights_file, tmp_path):
    """The file lies in torch's cache, as after a download."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / EfficientNet_B0_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    cached.parent.mkdir()
    cached.write_bytes(weights_file.read_bytes())
    monkeypatch.setattr(
        EfficientNet_B0_Weights, "get_state_dict", lambda *_, **__: torch.load(cached, weights_only=True)
    )
    initial = load_initial_weights("imagenet")
    assert initial.provenance["file"] == "efficientnet_b0_rwightman-7f5810bc.pth"
    assert "0.0.weight" in initial.state_dict


# -------------------------------------------------------------------------------------------------------- distillation


@pytest.fixture(scope="module")
def teachers():
    """Two networks of three classes, whose outputs depend on the image."""
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(SceneClassifier(3, network="resnet18", stages=(4,), flip_tta=True))
        estimate_batchnorm(networks[-1].features, [images_of(16)])
        networks[-1].eval()
    return networks


def test_distillation_is_cross_entropy_with_the_teachers_mean_probabilities_of_the_same_images(teachers):
    images, student = images_of(8, seed=1), nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    with torch.no_grad():  # a student sees one view of an image, and so do its teachers
        expected = [each.classifier(each._pool(images)).softmax(dim=1) for each in teachers]
    assert (expected[0] - expected[1]).abs().max() > 0.01
    losses, weights, logits = Distillation(teachers, mixup=False)(student, images, torch.zeros(8, dtype=torch.long))
    assert torch.equal(logits, student(images))
    by_hand = -(sum(expected) / 2 * logits.log_softmax(dim=1)).sum(dim=1)
    assert torch.allclose(losses, by_hand, atol=1e-4) and weights.tolist() == [1.0] * 8
    assert all(each.flip_tta for each in teachers)  # they themselves stay as they were


def test_a_mixup_image_is_mostly_itself_and_teachers_see_the_mixture(teachers):
    images = images_of(64, seed=1)
    torch.manual_seed(0)
    mixed, probabilities = Distillation(teachers, mixup=True).targets(images)
    shares = ((mixed - images) / (images.roll(1, dims=0) - images)).median(dim=-1).values[:, 0, 0]
    assert 0 <= shares.min() < 0.1 and 0.4 < shares.max() <= 0.5
    assert torch.allclose(mixed, torch.lerp(images, images.roll(1, dims=0), shares.view(-1, 1, 1, 1)), atol=1e-4)
    plain = Distillation(teachers, mixup=False)
    assert torch.equal(probabilities, plain.targets(mixed)[1])
    assert not torch.allclose(probabilities, plain.targets(images)[1], atol=0.01)


def test_teachers_do_not_learn_with_the_student(teachers, loaders):
    objective = Distillation(teachers, mixup=True)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    torch.manual_seed(0)
    model = SceneClassifier(3, network="resnet18", stages=(4,))
    settings = TrainSettings(max_epochs=1)
    train(model, loaders.train, loaders.val, settings, objective=objective, device="cpu", progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
    assert not any(module.training for teacher in objective.teachers for module in teacher.modules())


def test_features_that_were_frozen_learn_again_once_they_are_unfrozen():
    model = SceneClassifier(3, freeze_features=True).eval()
    assert model.unfreeze() is model and not model.features.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = {name: tensor.clone() for name, tensor in model.features.state_dict().items()}
    loader = DataLoader(TensorDataset(torch.rand(6, 3, 32, 32), torch.arange(6) % 3), 6)
    train(model, loader, loader, TrainSettings(max_epochs=1), device="cpu", progress=False)
    changed = {name for name, tensor in model.features.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"0.0.weight", "0.1.running_mean", "8.0.weight"} <= changed
