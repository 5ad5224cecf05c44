import urllib.error
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models as torchvision_models
from torchvision.models import EfficientNet_B0_Weights, efficientnet_b0

from helper_functions import TrainSettings, evaluate, train
from supervised.dataloader import Loaders, SeededShuffle, _as_it_is
from supervised.models import (
    STAGE_WIDTHS,
    DepthwiseConv2d,
    SceneClassifier,
    Teachers,
    build_features,
    build_head,
    build_model,
    calibrate_batchnorm,
    load_initial_weights,
)
from supervised.settings import NETWORKS, Experiment


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A whole EfficientNet-B0 as a user may have saved it, with its 1000-class classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "b0.pth"
    torch.save(efficientnet_b0(weights=None).state_dict(), path)
    return path


@pytest.fixture
def loaders():
    """24 coloured noise images of 32 pixels, three classes that differ in colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3
    images = torch.randn(24, 3, 32, 32, generator=generator)
    images[torch.arange(24), labels] += 2
    dataset = TensorDataset(images, labels)
    in_order = DataLoader(dataset, 8)
    shuffled = DataLoader(dataset, 8, shuffle=True, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(
        train=shuffled, train_in_order=in_order, val=in_order, test=in_order, class_names=("a", "b", "c")
    )


def test_names_and_outputs_are_those_of_torchvision(weights_file):
    reference = efficientnet_b0(weights=None)
    reference.load_state_dict(torch.load(weights_file, weights_only=True))
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    calibrate_batchnorm(reference.features, [(images, None)])  # else the logits do not depend on the image
    model = SceneClassifier(1000)
    model.load_state_dict(reference.state_dict())  # every key, none missing, none new
    expected = reference.eval()(images)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    assert torch.allclose(model.eval()(images), expected, atol=1e-4)


def test_a_depthwise_convolution_has_the_gradients_of_float32_within_bfloat16():
    torch.manual_seed(0)
    depthwise = build_features("efficientnet_b0")[1][0].block[0][0]
    images = torch.randn(2, 32, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = depthwise(images)
    assert outputs.dtype == torch.bfloat16
    gradients = torch.autograd.grad(outputs.float().square().sum(), [depthwise.weight, images])
    plain = torch.nn.functional.conv2d(images, depthwise.weight, padding=1, groups=32)
    rounded = plain.to(torch.bfloat16).float()  # the gradient passes through the same rounding
    expected = torch.autograd.grad(plain, [depthwise.weight, images], 2 * rounded.to(torch.bfloat16).float())
    for found, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-2, atol=1e-6)
    assert torch.equal(depthwise(images), plain)  # outside of autocast it is as any other


def test_every_depthwise_convolution_is_one_of_ours_and_draws_as_torchvisions_does():
    torch.manual_seed(0)
    reference = efficientnet_b0(weights=None).features
    torch.manual_seed(0)
    features = build_features("efficientnet_b0")
    depthwise = [module for module in features.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert len(depthwise) == 16 and all(isinstance(module, DepthwiseConv2d) for module in depthwise)
    pairs = zip(features.state_dict().values(), reference.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_flip_averaging_gives_an_image_and_its_mirror_image_the_mean_of_their_logits():
    torch.manual_seed(0)
    model = SceneClassifier(3, stages=(1, 2), head="batchnorm_linear", flip_tta=True)
    images = torch.randn(4, 3, 64, 64)
    calibrate_batchnorm(model.features, [(images, None)])
    plain = SceneClassifier(3, stages=(1, 2), head="batchnorm_linear")
    plain.load_state_dict(model.state_dict())
    model.eval(), plain.eval()
    logits = [plain(images), plain(images.flip(-1))]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert torch.allclose(model(images), (logits[0] + logits[1]) / 2, atol=1e-5)
    assert torch.allclose(model(images), model(images.flip(-1)), atol=1e-5)
    torch.manual_seed(1)
    in_training = model.train()(images)
    torch.manual_seed(1)
    assert torch.equal(in_training, plain.train()(images))  # only in eval mode


def test_what_a_hook_keeps_last_of_a_mirrored_look_is_of_the_image_itself():
    torch.manual_seed(0)
    model = SceneClassifier(3, flip_tta=True).eval()
    images, kept = torch.randn(2, 3, 32, 32), []
    with model.features[1].register_forward_hook(lambda module, inputs, output: kept.append(output)):
        model(images)
    assert len(kept) == 2 and torch.equal(kept[-1], model.features[:2](images))


@pytest.mark.parametrize("network", ["resnet18", "resnet34"])
def test_a_resnet_with_torchvisions_weights_gives_its_outputs(network, tmp_path):
    torch.manual_seed(0)
    reference = getattr(torchvision_models, network)(weights=None).eval()
    torch.save(reference.state_dict(), tmp_path / "resnet.pth")
    model = SceneClassifier(1000, stages=(4,), network=network)
    model.features.load_state_dict(load_initial_weights(str(tmp_path / "resnet.pth"), network).state_dict)
    model.classifier[1].load_state_dict(reference.fc.state_dict())
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = reference(images)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    assert torch.allclose(model.eval()(images), expected, atol=1e-4)


def test_a_resnet_for_cifar_keeps_the_resolution_of_its_images():
    images = torch.randn(2, 3, 32, 32)
    sizes = {}
    for network in ("resnet18", "resnet18_cifar"):
        maps = images
        for name, stage in SceneClassifier(10, stages=(4,), network=network).features.named_children():
            maps = stage(maps)
            sizes[network, name] = tuple(maps.shape[1:])
    assert sizes["resnet18_cifar", "stem"] == sizes["resnet18_cifar", "layer1"] == (64, 32, 32)
    assert sizes["resnet18_cifar", "layer4"] == (512, 4, 4)
    assert sizes["resnet18", "layer4"] == (512, 1, 1)


def test_networks_of_which_no_weights_are_published_are_refused_as_imagenet():
    with pytest.raises(ValueError, match="no published ImageNet weights of resnet18_cifar"):
        load_initial_weights("imagenet", "resnet18_cifar")


def test_every_network_has_the_stages_and_widths_that_are_told_of_it():
    for network, stages in NETWORKS.items():
        model = SceneClassifier(3, stages=range(stages), network=network).eval()
        assert len(model.features) == len(STAGE_WIDTHS[network]) == stages
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_heads_have_the_layers_of_the_first_report():
    widths = [
        (layer.in_features, layer.out_features) for layer in build_head("deep", 15) if isinstance(layer, nn.Linear)
    ]
    assert widths == [(1280, 640), (640, 320), (320, 15)]
    assert [layer.p for layer in build_head("deep", 15) if isinstance(layer, nn.Dropout)] == [0.2] * 3
    assert [type(layer).__name__ for layer in build_head("shallow", 15)] == ["Dropout", "Linear"]


def test_a_linear_probe_standardises_what_it_is_given_and_has_one_layer():
    norm, linear = build_head("batchnorm_linear", 15, 20)
    assert not list(norm.parameters()) and (linear.in_features, linear.out_features) == (20, 15)
    features = 5 + 100 * torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    assert norm(features).std(dim=0, correction=0).allclose(torch.ones(20), atol=1e-4)


def test_a_head_sees_the_mean_maps_of_the_stages_it_names():
    torch.manual_seed(0)
    model = SceneClassifier(3, head="batchnorm_linear", freeze_features=True, stages=(1, 8))
    images = torch.rand(2, 3, 32, 32)
    found = model.pooled_features(images)
    assert found.shape == (2, 16 + 1280) and model.classifier[1].in_features == 16 + 1280
    assert torch.equal(found[:, :16], model.features[:2](images).mean(dim=(2, 3)))
    assert torch.equal(found[:, 16:], model.features(images).mean(dim=(2, 3)))
    assert model(images).shape == (2, 3)


def test_frozen_features_are_bit_identical_after_training_and_the_head_is_not(loaders):
    torch.manual_seed(0)
    model = SceneClassifier(3, freeze_features=True)
    calibrate_batchnorm(model.features, loaders.train_in_order)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(
        model, loaders.train, loaders.val, TrainSettings(max_epochs=2, weight_decay=0.1), device="cpu", progress=False
    )
    assert any("running_mean" in name for name in before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) is name.startswith("features."), name


def test_of_partly_frozen_features_the_first_stages_are_bit_identical_and_the_others_are_not(loaders):
    torch.manual_seed(0)
    model = SceneClassifier(3, frozen_stages=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, loaders.train, loaders.val, TrainSettings(max_epochs=1), device="cpu", progress=False)
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    first = {name for name in before if name.startswith(("features.0.", "features.1.", "features.2.", "features.3."))}
    assert same == first and "features.3.0.block.0.1.running_mean" in first


def test_features_that_are_not_frozen_do_change_so_the_test_above_can_fail(loaders):
    torch.manual_seed(0)
    model = SceneClassifier(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, loaders.train, loaders.val, TrainSettings(max_epochs=1), device="cpu", progress=False)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert "features.0.1.running_mean" in changed
    assert "features.0.0.weight" in changed


def test_frozen_features_are_the_same_twice_even_in_train_mode(loaders):
    model = SceneClassifier(3, freeze_features=True).train()
    images = torch.rand(4, 3, 32, 32)
    assert model.classifier.training
    assert not any(module.training for module in model.features.modules())
    assert torch.equal(model.pooled_features(images), model.pooled_features(images))


def test_training_the_head_on_features_computed_once_gives_the_numbers_of_the_plain_way(loaders):
    dataset = loaders.val.dataset

    def loader(sampler=None):
        class Batches(TensorDataset):
            def __getitems__(self, keys):
                return self[[key if isinstance(key, int) else key[0] for key in keys]]

        return DataLoader(
            Batches(*dataset.tensors), 8, sampler=sampler, collate_fn=_as_it_is, generator=torch.Generator()
        )

    images = Loaders(
        train=loader(SeededShuffle(24, seed=3)), train_in_order=loader(), val=loader(), test=loader(),
        class_names=("a", "b", "c"), class_weights=None, data={},
    )  # fmt: skip
    torch.manual_seed(0)
    model = SceneClassifier(3, freeze_features=True).eval()
    calibrate_batchnorm(model.features, images.train_in_order)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features = images.of_features(model.pooled_features)
    settings = TrainSettings(max_epochs=3)
    torch.manual_seed(1)
    once = train(model.classifier, features.train, features.val, settings, device="cpu", progress=False)
    head = [parameter.clone() for parameter in model.classifier.parameters()]
    model.load_state_dict(start)
    torch.manual_seed(1)
    plain = train(model, images.train, images.val, settings, device="cpu", progress=False)
    assert once.train_loss == pytest.approx(plain.train_loss, rel=1e-5)
    assert once.val_loss == pytest.approx(plain.val_loss, rel=1e-5)
    for one, other in zip(head, model.classifier.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)

    half = images.of_features(model.pooled_features, train=False)  # where training images are augmented
    assert half.train is images.train and next(iter(half.val))[0].shape == (8, 1280)
    model.load_state_dict(start)
    images.train.sampler.generator.manual_seed(3)
    torch.manual_seed(1)
    on_both = train(model, half.train, half.val, settings, device="cpu", progress=False)
    assert on_both.train_loss == plain.train_loss
    assert on_both.val_loss == pytest.approx(plain.val_loss, rel=1e-5)


def test_calibration_makes_random_features_depend_on_the_image(loaders):
    torch.manual_seed(0)
    model = SceneClassifier(3, freeze_features=True)
    images = next(iter(loaders.val))[0]
    assert not model.features.training, "frozen from the start, before anybody calls train or eval"
    assert model.pooled_features(images).std(dim=0).max() < 1e-6
    momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    calibrate_batchnorm(model.features, loaders.train)
    assert model.pooled_features(images).std(dim=0).mean() > 1e-2
    assert momenta == [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(module.training for module in model.features.modules())


def test_a_random_frozen_row_is_calibrated_and_still_learns_something(loaders):
    torch.manual_seed(0)
    row = Experiment("row", "?", initial_weights="random", freeze_features=True)
    model, source = build_model(row, loaders)
    assert source == {"weights": "random"}
    settings = TrainSettings(max_epochs=20, learning_rate=0.01)
    history = train(model, loaders.train, loaders.val, settings, device="cpu", progress=False)
    assert max(history.val_accuracy) > 0.6
    assert evaluate(model, loaders.val).accuracy == max(history.val_accuracy)


def test_weights_from_a_file_are_those_of_the_file_and_named_by_its_digest(weights_file, loaders):
    row = Experiment("row", "?", initial_weights=str(weights_file))
    model, source = build_model(row, loaders)
    for name, tensor in torch.load(weights_file, weights_only=True).items():
        if name.startswith("features."):
            assert torch.equal(model.state_dict()[name], tensor)
    assert source["file"] == "b0.pth"
    assert len(source["sha256"]) == 64
    assert model.classifier[1].out_features == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("features.3.0.block.0.0.weight"), "has no features.3.0.block.0.0.weight"),
        (lambda state: state.update({"features.0.0.weight": torch.zeros(32, 1, 3, 3)}), "has shape"),
        (lambda state: state["features.0.0.weight"].fill_(float("nan")), "not finite"),
    ],
    ids=["missing", "shape", "nan"],
)
def test_weights_that_do_not_fit_are_refused_by_name(weights_file, tmp_path, damage, message):
    state = torch.load(weights_file, weights_only=True)
    damage(state)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=message):
        load_initial_weights(str(tmp_path / "bad.pth"))


def test_a_weights_file_that_is_missing_or_no_state_dict_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_initial_weights(str(tmp_path / "nowhere.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pth is not a state dict"):
        load_initial_weights(str(tmp_path / "text.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth"):
        load_initial_weights(str(tmp_path / "list.pth"))


def test_a_failed_download_stops_and_says_how_to_give_a_file(monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(EfficientNet_B0_Weights, "get_state_dict", no_network)
    with pytest.raises(ConnectionError, match="--weights PATH"):
        load_initial_weights("imagenet")


def test_a_download_is_used_and_named(monkeypatch, weights_file, tmp_path):
    """The published file stands in torch's cache, as after a download."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / EfficientNet_B0_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    cached.parent.mkdir()
    cached.write_bytes(weights_file.read_bytes())
    monkeypatch.setattr(
        EfficientNet_B0_Weights, "get_state_dict", lambda *_, **__: torch.load(cached, weights_only=True)
    )
    initial = load_initial_weights("imagenet")
    assert initial.source["file"] == "efficientnet_b0_rwightman-7f5810bc.pth"
    assert "0.0.weight" in initial.state_dict


@pytest.fixture(scope="module")
def networks():
    """Two networks of three classes, whose outputs depend on the image."""
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = SceneClassifier(3, network="resnet18", stages=(4,), flip_tta=True)
        calibrate_batchnorm(network.features, [(images, None)])
        found.append(network.eval())
    return found


def test_teachers_say_the_mean_of_their_probabilities_of_the_very_images(networks):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    seen, probabilities = Teachers(networks, mixup=False)(images)
    assert torch.equal(seen, images)
    with torch.no_grad():  # a training network sees one side of an image at a time, and so do its teachers
        pooled = [network._pool(images) for network in networks]
        expected = [network.classifier(each).softmax(dim=1) for network, each in zip(networks, pooled, strict=True)]
    assert (expected[0] - expected[1]).abs().max() > 0.01
    assert torch.allclose(probabilities, (expected[0] + expected[1]) / 2, atol=1e-4)
    assert all(network.flip_tta for network in networks)  # they themselves stay as they were


def test_a_mixed_image_is_mostly_itself_and_teachers_speak_of_the_mixture(networks):
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    mixed, probabilities = Teachers(networks, mixup=True)(images)
    shares = ((mixed - images) / (images.roll(1, dims=0) - images)).median(dim=-1).values[:, 0, 0]
    assert 0 <= shares.min() < 0.1 and 0.4 < shares.max() <= 0.5
    assert torch.allclose(mixed, torch.lerp(images, images.roll(1, dims=0), shares.view(-1, 1, 1, 1)), atol=1e-4)
    assert torch.equal(probabilities, Teachers(networks, mixup=False)(mixed)[1])
    assert not torch.allclose(probabilities, Teachers(networks, mixup=False)(images)[1], atol=0.01)


def test_teachers_do_not_learn_with_the_network(networks, loaders):
    teachers = Teachers(networks, mixup=True)
    before = {name: tensor.clone() for name, tensor in teachers.state_dict().items()}
    torch.manual_seed(0)
    model = SceneClassifier(3, network="resnet18", stages=(4,))
    settings = TrainSettings(max_epochs=2)
    train(model, loaders.train, loaders.val, settings, teacher=teachers, device="cpu", progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teachers.state_dict().items())
    assert not any(module.training for network in teachers.networks for module in network.modules())
