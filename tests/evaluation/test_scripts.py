"""The scripts on trained runs: predict, scorecam, model_inversion.  One tiny run is trained for all of them."""

import matplotlib

matplotlib.use("Agg")
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from evaluation import model_inversion, predict, scorecam, trained


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_run):
    """A folder of checkpoints: the tiny run, and one of its epochs."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "quick").mkdir()
    shutil.copy(tiny_run, folder / "quick" / "tiny.pt")
    checkpoint = torch.load(tiny_run, weights_only=True)
    torch.save({key: checkpoint[key] for key in ("format", "identity", "model")}, folder / "quick" / "tiny.epoch3.pt")
    return folder


@pytest.fixture
def known(models, monkeypatch):
    """`load_trained` looks for names in the folder of the tiny run."""
    monkeypatch.setattr(trained.load_trained, "__defaults__", (models,))
    return models


@pytest.fixture
def photos(tmp_path):
    """One grey and one colour image, neither square nor of the network's size."""
    generator = np.random.default_rng(0)
    grey, colour = tmp_path / "a photo.jpg", tmp_path / "b.png"
    Image.fromarray(generator.integers(0, 255, (50, 70), dtype=np.uint8)).save(grey)
    Image.fromarray(generator.integers(0, 255, (60, 40, 3), dtype=np.uint8)).save(colour)
    return [grey, colour]


def test_a_run_reads_images_as_its_training_did(known, photos):
    run = trained.load_trained("tiny")
    assert (run.name, run.class_names, run.image_size) == ("tiny", ("dark", "light", "striped"), 32)
    assert not run.model.training
    pixels, images = run.read(photos)
    assert [each.shape for each in pixels] == [(1, 32, 32), (3, 32, 32)]
    mean, std = torch.tensor(run.mean).view(3, 1, 1), torch.tensor(run.std).view(3, 1, 1)
    assert torch.allclose(images[1] * std + mean, torch.from_numpy(pixels[1].copy()) / 255, atol=1e-6)


def test_an_explained_run_sees_the_image_alone_and_the_run_itself_its_mirror_image_too(known):
    run = trained.load_trained("tiny")
    run.model.flip_tta = True
    alone, images = run.without_mirror_image(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        seen = [alone.model(each) for each in (images, images.flip(-1))]
        assert torch.allclose(run.model(images), (seen[0] + seen[1]) / 2, atol=1e-6)
    assert not torch.allclose(*seen, atol=1e-4) and alone.layer("8") is run.layer("8")


def test_a_run_is_known_by_its_path_too_and_what_is_not_there_is_named(known, tmp_path):
    assert trained.load_trained(str(known / "quick" / "tiny.pt")).name == "tiny"
    with pytest.raises(FileNotFoundError, match="there is no trained run nothing; there are tiny, and"):
        trained.load_trained("nothing")
    with pytest.raises(ValueError, match="not of a finished run"):
        trained.load_trained(str(known / "quick" / "tiny.epoch3.pt"))
    with pytest.raises(ValueError, match="no layer 9; take a stage, 0 to 8"):
        trained.load_trained("tiny").layer("9")


def test_predict_prints_the_models_own_probabilities_and_draws_each_image(known, photos, tmp_path, capsys):
    assert predict.main([*map(str, photos), "--model", "tiny", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()
    run = trained.load_trained("tiny")
    with torch.no_grad():
        probabilities = run.model(run.read(photos)[1]).softmax(dim=1)[0]
    best = probabilities.argmax()
    assert printed[0].startswith(f"{photos[0]}: {run.class_names[best]} {probabilities[best]:.3f}, ")
    for name in ("001_a photo.png", "002_b.png"):
        assert np.asarray(Image.open(tmp_path / "out" / name)).std() > 10


def test_scorecam_writes_a_sheet_and_the_maps_it_shows(known, photos, tmp_path):
    sheet = tmp_path / "new" / "sheet.png"
    arguments = [*map(str, photos), "--model", "tiny", "--layers", "1", "features.2.0", "--target", "striped"]
    assert scorecam.main([*arguments, "--output", str(sheet)]) == 0
    stored = np.load(sheet.with_suffix(".npz"))
    assert stored["targets"].tolist() == [2, 2]
    run = trained.load_trained("tiny").folded()
    expected = scorecam.score_cam(run.model, run.read(photos)[1], run.model.features[2][0], [2, 2])
    assert np.array_equal(stored["layer_features.2.0"], expected.maps.numpy())
    assert np.asarray(Image.open(sheet)).std() > 10


@pytest.mark.parametrize("script", [predict, scorecam])
def test_a_users_mistake_is_one_sentence_and_exit_code_2(script, known, photos, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    option = {predict: "--layer", scorecam: "--layers"}[script]
    mistakes = {
        "there is no image": ["missing.jpg", "--model", "tiny"],
        "cannot be decoded": [str(broken), "--model", "tiny"],
        "there is no trained run": [str(photos[0]), "--model", "nothing"],
        "has no layer 17": [str(photos[0]), "--model", "tiny", option, "17"],
    }
    for words, arguments in mistakes.items():
        assert script.main([*arguments, "--output", str(tmp_path / "out")]) == 2
        printed = capsys.readouterr().err.strip().splitlines()
        assert printed[-1].startswith("error: ") and words in printed[-1]
    assert not (tmp_path / "out").exists()


def test_a_class_that_the_run_does_not_have_is_named(known, photos, capsys):
    assert scorecam.main([str(photos[0]), "--model", "tiny", "--target", "beach"]) == 2
    assert "tiny has no class beach; it has dark, light, striped" in capsys.readouterr().err


def test_model_inversion_writes_images_sheet_curves_settings_and_a_judges_word(known, tmp_path):
    folder = tmp_path / "out"
    arguments = ["--model", "tiny", "--classes", "light", "striped", "--starts", "2", "--steps", "20", "--jitter", "2"]
    assert model_inversion.main([*arguments, "--judge", "tiny", "--output", str(folder)]) == 0
    table = pd.read_csv(folder / "inversion.csv")
    assert table["name"].tolist() == ["light_0", "light_1", "striped_0", "striped_1"]
    assert table["judge"].unique().tolist() == ["tiny"] and table["probability"].between(0, 1).all()
    losses = pd.read_csv(folder / "losses.csv", index_col="step")
    assert losses.shape == (20, 4)
    assert losses["light_0"].iloc[-10:].median() == pytest.approx(table["final_loss"][0], rel=1e-4)
    assert json.loads((folder / "settings.json").read_text())["jitter"] == 2
    for name in ("light_0.png", "sheet.png", "losses.png"):
        assert np.asarray(Image.open(folder / name)).std() > 1
    assert Image.open(folder / "light_0.png").size == (32, 32)


def test_filters_are_named_by_number_or_as_the_strongest(known, tmp_path):
    arguments = ["--model", "tiny", "--steps", "20", "--jitter", "2", "--output", str(tmp_path)]
    assert model_inversion.main([*arguments, "--filters", "top2"]) == 0
    strongest = model_inversion.strongest_filters(trained.load_trained("tiny").model.features[8][0], 2)
    assert pd.read_csv(tmp_path / "inversion.csv")["name"].tolist() == [f"filter_{number}" for number in strongest]


def test_what_cannot_be_inverted_is_named(known, tmp_path, capsys):
    mistakes = {
        "tiny has no class beach": ["--classes", "beach"],
        "--filters takes numbers, or top5; got strong": ["--filters", "strong"],
        "filters are [5000]; the layer has 0 to 1279": ["--filters", "5000"],
        "steps is 3; it must be at least 20": ["--classes", "light", "--steps", "3"],
        "--judge gives the probability of a class": ["--filters", "1", "--judge", "tiny"],
    }
    for words, arguments in mistakes.items():
        assert model_inversion.main(["--model", "tiny", *arguments, "--output", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
