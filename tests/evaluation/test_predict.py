"""Class probabilities, and the command that prints and draws them."""

import os
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from evaluation import predict
from evaluation.checkpoints import TrainedRun, load_trained
from evaluation.predict import class_probabilities
from evaluation.scorecam import ScoreCam


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


def test_images_are_in_memory_one_at_a_time(tiny_model, tmp_path, monkeypatch):
    photos = [tmp_path / f"{number}.png" for number in range(5)]
    for photo in photos:
        Image.new("L", (40, 40)).save(photo)
    alive, most = weakref.WeakSet(), []
    read = TrainedRun.read

    def counted(run, paths):
        pixels, images = read(run, paths)
        alive.add(images)
        most.append(len(alive))
        return pixels, images

    monkeypatch.setattr(TrainedRun, "read", counted)
    monkeypatch.setattr(predict, "score_cam", lambda model, images, *rest: ScoreCam(torch.zeros(1, 32, 32), None))
    assert predict.main([*map(str, photos), "--model", "tiny", "--output", str(tmp_path / "out")]) == 0
    assert len(most) == 5 and max(most) <= 2  # the last one, and the one that takes its place
    assert len(list((tmp_path / "out").iterdir())) == 5


@pytest.mark.parametrize(
    "name", ["cost_$5_to_$9.png", "[1].png", f"{'n' * 251}.png", f"{'é' * 125}.png", b"\xff\xfe.png"]
)
def test_images_of_any_name_are_predicted(name, tiny_model, tmp_path, capsys):
    photo = tmp_path / os.fsdecode(name)
    Image.new("L", (40, 40)).save(photo)
    assert predict.main([str(photo), "--model", "tiny", "--layer", "2", "--output", str(tmp_path / "out")]) == 0
    (written,) = (tmp_path / "out").iterdir()
    assert len(os.fsencode(written.name)) <= 255 and str(written) in capsys.readouterr().out


def test_a_mistake_is_one_sentence_and_exit_code_2(tiny_model, tmp_path, capsys):
    broken, photo = tmp_path / "broken.jpg", tmp_path / "photo.png"
    broken.write_bytes(b"no image")
    Image.new("L", (40, 40)).save(photo)
    mistakes = {
        "there is no image": ["missing.jpg", "--model", "tiny"],
        "cannot be decoded": [str(broken), "--model", "tiny"],
        "there is no trained run": [str(photo), "--model", "nothing"],
        "has no layer 17": [str(photo), "--model", "tiny", "--layer", "17"],
        "last.jpg": [str(photo), str(tmp_path / "last.jpg"), "--model", "tiny"],
    }
    for words, arguments in mistakes.items():
        assert predict.main([*arguments, "--output", str(tmp_path / "out")]) == 2
        sentence = capsys.readouterr().err.strip().splitlines()[-1]  # after a progress bar
        assert sentence.startswith("error: ") and words in sentence
    assert not (tmp_path / "out").exists()
