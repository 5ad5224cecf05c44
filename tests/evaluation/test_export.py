"""Runs for other programs: ONNX, and torchvision's state dicts."""

import importlib.util
import json

import numpy as np
import pytest
import timm
import torch
from torchvision import models

from evaluation import export
from evaluation.checkpoints import TrainedRun, load_trained
from supervised.models import SceneClassifier, estimate_batchnorm
from tests.small_runs import small_run

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in export.PACKAGES), reason="the extra export is not installed"
)


def run_of(**options):
    torch.manual_seed(0)
    model = SceneClassifier(3, **options)
    estimate_batchnorm(model, [(torch.randn(16, 3, 32, 32), None)])
    return TrainedRun("any", model.eval(), ("a", "b", "c"), 32, "imagenet", "0")


@needs_onnx
def test_onnxruntime_gives_the_logits_of_the_run_at_any_batch_size(tmp_path, monkeypatch):
    run = small_run("tiny")
    monkeypatch.setattr(export, "load_run", lambda _: run)
    target = tmp_path / "new" / "tiny.onnx"
    assert export.main(["tiny", "--to", "onnx", "--output", str(target)]) == 0
    assert [path.name for path in target.parent.iterdir()] == ["tiny.onnx"]
    session = export.onnxruntime.InferenceSession(target)
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.inference_mode():
            expected = run.model(images).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about["class_names"] == list(run.class_names) and about["mean"] == list(run.mean)
    assert about["image_size"] == 32 and about["resize"] == "imagenet"


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"network": "resnet18", "head": "batchnorm_linear", "stages": (3, 4), "flip_tta": True}]
)
def test_both_networks_with_flips_and_several_stages_are_exported(options, tmp_path):
    assert export.to_onnx(run_of(**options), tmp_path / "any.onnx") < 1e-3


def test_without_the_packages_it_says_what_to_install(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert export.main(["tiny", "--to", "onnx", "--output", str(tmp_path / "a.onnx")]) == 2
    assert "pip install" in capsys.readouterr().err and not (tmp_path / "a.onnx").exists()


@needs_onnx
def test_a_package_that_is_broken_is_said_before_anything_is_exported(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "onnx", None)
    monkeypatch.setattr(export, "NOT_IMPORTED", "ImportError: libonnx", raising=False)
    assert export.main(["tiny", "--to", "onnx", "--output", str(tmp_path / "a.onnx")]) == 2
    assert "cannot be imported here (ImportError: libonnx)" in capsys.readouterr().err


def test_torchvisions_network_takes_the_state_dict_and_gives_the_same_logits(tiny_model, tmp_path):
    target = tmp_path / "tiny.pth"
    assert export.main(["tiny", "--to", "torchvision", "--output", str(target)]) == 0
    network = models.efficientnet_b0(num_classes=3)
    network.load_state_dict(torch.load(target, weights_only=True))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = load_trained("tiny").model(images)
        found = network.eval()(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("network", ["efficientnet_b0", "resnet18", "resnet34"])
def test_timms_network_takes_the_state_dict_and_gives_the_same_logits(tiny_model, network):
    run = run_of(network=network, stages=(4,)) if "resnet" in network else load_trained("tiny")
    state, name = export.timm_state(run)
    model = timm.create_model(name, num_classes=3)
    model.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        found, expected = model.eval()(images), run.model(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_a_resnet_has_torchvisions_names(name):
    run = run_of(network=name, stages=(4,))
    state, network_name = export.torchvision_state(run)
    network = getattr(models, network_name)(num_classes=3)
    network.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        found, expected = network.eval()(images), run.model(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_head_of_several_stages_is_left_out():
    state, network_name = export.torchvision_state(run_of(head="batchnorm_linear", stages=(7, 8)))
    missing, unexpected = getattr(models, network_name)().load_state_dict(state, strict=False)
    assert set(missing) == {"classifier.1.weight", "classifier.1.bias"} and not unexpected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "--to", "torchvision"], "nothing"),
        (["tiny", "--to", "torchvision", "--output", "a.onnx"], "a.onnx"),
        (["tiny", "--to", "onnx", "--output", "a.pth"], "a.pth"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, words, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert export.main(arguments) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ") and words in sentence
