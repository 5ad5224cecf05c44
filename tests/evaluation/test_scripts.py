"""The commands on trained runs: scorecam, model_inversion."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data.files import CODE
from evaluation import model_inversion, scorecam
from evaluation.checkpoints import load_trained
from evaluation.explained import read_pictures
from evaluation.model_inversion import probability_by


@pytest.fixture
def photos(tmp_path):
    """Two gray images that are not of the network's size."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.fromarray(generator.integers(0, 255, (50, 70), dtype=np.uint8)).save(path)
    return paths


def test_scorecam_writes_a_sheet_and_the_maps_it_shows(tiny_model, photos, tmp_path):
    sheet = tmp_path / "new" / "sheet.png"
    arguments = [*map(str, photos), "--model", "tiny", "--layers", "1", "features.2.0", "--target", "striped"]
    assert scorecam.main([*arguments, "--output", str(sheet)]) == 0
    saved = np.load(sheet.with_suffix(".npz"))
    assert saved["targets"].tolist() == [2, 2]
    run = load_trained("tiny").folded()
    expected = scorecam.score_cam(run.model, run.read(photos)[1], run.model.features[2][0], [2, 2])
    assert np.array_equal(saved["layer_features.2.0"], expected.maps.numpy())
    assert np.asarray(Image.open(sheet)).std() > 10


def test_maps_that_cannot_be_written_leave_those_of_an_earlier_call(tiny_model, photos, tmp_path, monkeypatch, capsys):
    def full_disk(path, **arrays):
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    sheet = tmp_path / "sheet.png"
    sheet.with_suffix(".npz").write_bytes(b"of an earlier call")
    monkeypatch.setattr(scorecam.np, "savez_compressed", full_disk)
    arguments = [str(photos[0]), "--model", "tiny", "--layers", "2", "--output", str(sheet)]
    assert scorecam.main(arguments) == 2
    assert "sheet.npz cannot be written" in capsys.readouterr().err
    assert sheet.with_suffix(".npz").read_bytes() == b"of an earlier call"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.jpg"], "there is no image"),
        (["a.png", "--layers", "17"], "has no layer 17"),
        (["a.png", "--target", "beach"], "tiny has no class beach; it has dark, light, striped"),
    ],
)
def test_a_mistake_with_scorecam_is_one_sentence_and_exit_code_2(
    arguments, words, tiny_model, photos, tmp_path, capsys
):
    image = str(tmp_path / arguments[0])
    sheet = tmp_path / "out" / "sheet.png"
    assert scorecam.main([image, *arguments[1:], "--model", "tiny", "--output", str(sheet)]) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ") and words in sentence
    assert not sheet.parent.exists()


@pytest.mark.parametrize("output", ["sheet", "my.scene", ".", "maps.npz", "folder.png", ".png"])
def test_a_sheet_that_cannot_be_written_is_told_before_the_model_is_read(output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert scorecam.main(["a.png", "--model", "not read", "--output", output]) == 2
    assert capsys.readouterr().err.startswith(f"error: --output is {output}")


def test_no_command_needs_its_docstring():
    """Python removes them with -OO, or PYTHONOPTIMIZE=2."""
    places = [
        path
        for folder in (".", "evaluation", "evaluation/pages", "data", "benchmarks")
        for path in (CODE / folder).glob("*.py")
    ]
    assert len(places) > 40 and not [path for path in places if "__doc__." in path.read_text()]


def test_model_inversion_writes_images_sheet_curves_settings_and_an_evaluators_probabilities(tiny_model, tmp_path):
    folder, other = tmp_path / "out", torch.load(tiny_model, weights_only=True)
    other["model"]["classifier.1.bias"] += torch.tensor([0.0, 1.0, 0.0])
    torch.save(other, tiny_model.with_name("other.pt"))
    arguments = ["--model", "tiny", "--classes", "light", "striped", "--starts", "2", "--steps", "20", "--jitter", "2"]
    assert model_inversion.main([*arguments, "--evaluator", "tiny", "--output", str(folder)]) == 2  # the same network
    assert model_inversion.main([*arguments, "--evaluator", "other", "--output", str(folder)]) == 0
    table = pd.read_csv(folder / "inversion.csv")
    assert table["name"].tolist() == ["light_0", "light_1", "striped_0", "striped_1"]
    assert table["evaluator"].unique().tolist() == ["other"]
    images = read_pictures([folder / f"{name}.png" for name in table["name"]]).float() / 255
    seen_by_other = probability_by(load_trained("other"), images, [1, 1, 2, 2])
    assert table["probability"].tolist() == pytest.approx(seen_by_other.tolist(), abs=0.01)  # of pictures in bytes
    losses = pd.read_csv(folder / "losses.csv", index_col="step")
    assert losses.shape == (20, 4)
    assert losses["light_0"].iloc[-10:].median() == pytest.approx(table["final_loss"][0], rel=1e-4)
    assert json.loads((folder / "settings.json").read_text())["jitter"] == 2
    for name in ("light_0.png", "sheet.png", "losses.png"):
        assert np.asarray(Image.open(folder / name)).std() > 1
    assert Image.open(folder / "light_0.png").size == (32, 32)


def test_filters_are_named_by_number_or_as_the_strongest(tiny_model, tmp_path):
    arguments = ["--model", "tiny", "--steps", "20", "--jitter", "2", "--output", str(tmp_path / "out")]
    assert model_inversion.main([*arguments, "--filters", "top2"]) == 0
    strongest = model_inversion.strongest_filters(load_trained("tiny").model.features[8][0], 2)
    names = pd.read_csv(tmp_path / "out" / "inversion.csv")["name"].tolist()
    assert names == [f"filter_{number}" for number in strongest]


def test_a_filter_that_is_named_twice_is_inverted_once(tiny_model, tmp_path):
    arguments = ["--model", "tiny", "--steps", "20", "--jitter", "2", "--output", str(tmp_path / "out")]
    assert model_inversion.main([*arguments, "--filters", "3", "1", "3"]) == 0
    assert pd.read_csv(tmp_path / "out" / "inversion.csv")["name"].tolist() == ["filter_3", "filter_1"]


def test_model_inversion_mixes_no_images_in_a_folder(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the default output is in it
    arguments = ["--model", "tiny", "--steps", "20", "--jitter", "2"]
    assert model_inversion.main([*arguments, "--classes", "Light"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "inversion").iterdir()}
    assert tmp_path / "inversion" / "light.png" in before  # the class has its own name
    for more in (["--classes", "dark"], ["--classes", "light", "--seed", "1"], ["--filters", "3"]):
        assert model_inversion.main([*arguments, *more]) == 2
        assert "inversion holds images of other" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "inversion").iterdir()} == before
    assert model_inversion.main([*arguments, "--classes", "light"]) == 0  # the same again
    (tmp_path / "inversion" / "settings.json").unlink()  # older code was interrupted
    assert model_inversion.main([*arguments, "--classes", "light"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--classes", "beach"], "tiny has no class beach"),
        (["--filters", "strong"], "--filters takes numbers, or top5; got strong"),
        (["--filters", "5000"], "5000"),
        (["--classes", "light", "--steps", "3"], "steps is 3"),
        (["--filters", "1", "--evaluator", "tiny"], "--evaluator reports the probability of a class"),
    ],
)
def test_a_mistake_with_model_inversion_is_one_sentence_and_exit_code_2(arguments, words, tiny_model, tmp_path, capsys):
    assert model_inversion.main(["--model", "tiny", *arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (tmp_path / "out").exists()
