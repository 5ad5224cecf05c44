"""Class probabilities, and the command that prints and draws them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from evaluation import predict
from evaluation.checkpoints import load_trained
from evaluation.predict import class_probabilities


@pytest.mark.parametrize("batch_size", [4, 10])
def test_probabilities_of_a_loader_are_those_of_its_images_in_order(small_network, batch_size):
    images, labels = torch.rand(10, 3, 16, 16), torch.arange(10) % 3
    small_network(images)  # moves BatchNorm's statistics, so that train and eval mode differ
    loader = DataLoader(TensorDataset(images, labels), batch_size)
    probabilities = class_probabilities(small_network, loader)
    assert small_network.training
    small_network.eval()
    with torch.inference_mode():
        expected = small_network(images).softmax(dim=1)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(class_probabilities(small_network, images), probabilities, atol=1e-6)


def test_the_command_prints_the_probabilities_of_the_model_and_draws_each_image(tiny_model, tmp_path, capsys):
    photos = [tmp_path / "a photo.jpg", tmp_path / "b.png"]
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (50, 70), dtype=np.uint8)).save(photos[0])
    Image.fromarray(generator.integers(0, 255, (60, 40, 3), dtype=np.uint8)).save(photos[1])
    assert predict.main([*map(str, photos), "--model", "tiny", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()
    run = load_trained("tiny")
    with torch.inference_mode():
        probabilities = run.model(run.read(photos)[1]).softmax(dim=1)[0]
    best = probabilities.argmax()
    assert printed[0].startswith(f"{photos[0]}: {run.class_names[best]} {probabilities[best]:.3f}, ")
    for name in ("001_a photo.png", "002_b.png"):
        assert np.asarray(Image.open(tmp_path / "out" / name)).std() > 10


def test_a_mistake_is_one_sentence_and_exit_code_2(tiny_model, tmp_path, capsys):
    broken, photo = tmp_path / "broken.jpg", tmp_path / "photo.png"
    broken.write_bytes(b"no image")
    Image.new("L", (40, 40)).save(photo)
    mistakes = {
        "there is no image": ["missing.jpg", "--model", "tiny"],
        "cannot be decoded": [str(broken), "--model", "tiny"],
        "there is no trained run": [str(photo), "--model", "nothing"],
        "has no layer 17": [str(photo), "--model", "tiny", "--layer", "17"],
    }
    for words, arguments in mistakes.items():
        assert predict.main([*arguments, "--output", str(tmp_path / "out")]) == 2
        (sentence,) = capsys.readouterr().err.strip().splitlines()
        assert sentence.startswith("error: ") and words in sentence
    assert not (tmp_path / "out").exists()
