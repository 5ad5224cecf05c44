"""Trained runs read from files: by name and by path, with the images they need."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluation.checkpoints import load_trained, read_released
from evaluation.publish import halve, write_released


@pytest.fixture
def photos(tmp_path):
    """One gray and one color image, neither square nor of the network's size."""
    generator = np.random.default_rng(0)
    gray, color = tmp_path / "a photo.jpg", tmp_path / "b.png"
    Image.fromarray(generator.integers(0, 255, (50, 70), dtype=np.uint8)).save(gray)
    Image.fromarray(generator.integers(0, 255, (60, 40, 3), dtype=np.uint8)).save(color)
    return [gray, color]


def test_a_run_reads_images_as_its_training_did(tiny_model, photos):
    run = load_trained("tiny")
    assert (run.name, run.class_names, run.image_size) == ("tiny", ("dark", "light", "striped"), 32)
    assert not run.model.training
    pixels, images = run.read(photos)
    assert [each.shape for each in pixels] == [(1, 32, 32), (3, 32, 32)]
    mean, std = torch.tensor(run.mean).view(3, 1, 1), torch.tensor(run.std).view(3, 1, 1)
    assert torch.allclose(images[1] * std + mean, torch.from_numpy(pixels[1].copy()) / 255, atol=1e-6)


def test_flip_tta_averages_the_logits_of_both_views_and_can_be_left_out(tiny_model):
    run = load_trained("tiny")
    run.model.flip_tta = True
    plain, images = run.without_flip_tta(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        one, flipped = (plain.model(each) for each in (images, images.flip(-1)))
        assert torch.allclose(run.model(images), (one + flipped) / 2, atol=1e-6)
    assert not torch.allclose(one, flipped, atol=1e-4)
    assert plain.layer("8") is run.layer("8")


def test_a_folded_run_has_the_same_outputs(tiny_model):
    run, images = load_trained("tiny"), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(run.folded().model(images), run.model(images), atol=1e-4)


def test_a_run_is_found_by_its_path_too_and_a_missing_one_is_named(tiny_model):
    assert load_trained(tiny_model).name == "tiny"
    checkpoint = torch.load(tiny_model, weights_only=True)
    epoch = tiny_model.with_name("tiny.epoch3.pt")
    torch.save({key: checkpoint[key] for key in ("format", "identity", "model")}, epoch)
    with pytest.raises(FileNotFoundError, match="there is no trained run nothing; there are tiny, and"):
        load_trained("nothing")
    with pytest.raises(ValueError, match="not the checkpoint of a finished run"):
        load_trained(epoch)
    with pytest.raises(ValueError, match="no layer 9; name a stage, 0 to 8"):
        load_trained("tiny").layer("9")


def test_the_full_profile_comes_before_the_quick_one_and_a_checkpoint_before_a_released_file(tiny_model, root):
    run = load_trained("tiny")
    about = {"identity": {"settings": settings_of(tiny_model)}, "class_names": list(run.class_names)}
    full = root / "models" / "full"
    write_released(full / "tiny.safetensors", halve(run.model), about)
    assert load_trained("tiny").weights != run.weights
    (full / "tiny.pt").write_bytes(tiny_model.read_bytes())
    assert load_trained("tiny").weights == run.weights


def test_weights_that_are_not_finite_are_refused(tiny_model):
    checkpoint = torch.load(tiny_model, weights_only=True)
    checkpoint["model"]["classifier.1.bias"][0] = torch.nan
    torch.save(checkpoint, tiny_model)
    with pytest.raises(ValueError, match="classifier.1.bias in .*tiny.pt holds values that are not finite"):
        load_trained("tiny")


@pytest.mark.parametrize("contents", [b"", b"not safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_file_that_is_no_released_model_is_named(contents, tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="run.safetensors is not a released model"):
        load_trained(path)


def test_tensors_without_a_description_are_no_released_model(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match="is not a released model"):
        read_released(tmp_path / "run.safetensors")


def settings_of(path):
    return torch.load(path, weights_only=True)["identity"]["settings"]
