"""Images as vectors, and the files that hold them."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from evaluation import embed
from evaluation.checkpoints import load_trained


@pytest.fixture
def folder(tmp_path):
    """Five images, some of them deep in the folder."""
    generator = np.random.default_rng(0)
    for name in ("a.png", "b/1.jpg", "b/2.png", "b/c/3.png", "d e.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (40, 50), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("name", ["new/vectors.npz", "vectors.csv"])
def test_a_file_holds_the_vector_of_each_image_under_its_name(tiny_model, folder, tmp_path, name, monkeypatch):
    monkeypatch.setattr(embed, "BATCH", 2)
    target = tmp_path / name
    assert embed.main([str(folder), "--output", str(target), "--model", "tiny"]) == 0
    if target.suffix == ".npz":
        with np.load(target) as saved:
            files, vectors = saved["files"].tolist(), saved["vectors"]
        assert vectors.dtype == np.float32
    else:
        table = pd.read_csv(target)
        files, vectors = table.pop("file").tolist(), table.to_numpy()
    assert sorted(files) == ["a.png", "b/1.jpg", "b/2.png", "b/c/3.png", "d e.png"]
    run = load_trained("tiny")
    with torch.inference_mode():
        expected = run.model.pooled_features(run.read([folder / file for file in files])[1]).numpy()
    np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-3 * expected.max())


def test_a_single_photograph_and_the_features_of_a_pretext_are_embedded(tiny_model, folder, tmp_path):
    saved, target = torch.load(tiny_model, weights_only=True), tmp_path / "one.npz"
    saved["identity"]["settings"]["method"] = "byol"
    saved["model"] = {name: value for name, value in saved["model"].items() if name.startswith("features.")}
    torch.save(saved | {"model": saved["model"] | {"step": torch.tensor(3)}}, tiny_model.with_name("byol.pt"))
    vectors = []
    for model in ("tiny", "byol"):
        assert embed.main([str(folder / "b/1.jpg"), "--output", str(target), "--model", model]) == 0
        with np.load(target) as found:
            assert found["files"].tolist() == ["1.jpg"]
            vectors.append(found["vectors"])
    np.testing.assert_array_equal(*vectors)


def test_bad_images_end_the_command_or_are_left_out(tiny_model, folder, tmp_path, capsys):
    (folder / "b/2.png").write_text("no image")
    arguments = [str(folder), "--output", str(tmp_path / "out.npz"), "--model", "tiny"]
    assert embed.main(arguments) == 2 and not (tmp_path / "out.npz").exists()
    assert "2.png" in capsys.readouterr().err
    assert embed.main([*arguments, "--skip-bad-images"]) == 0
    with np.load(tmp_path / "out.npz") as saved:
        assert len(saved["files"]) == len(saved["vectors"]) == 4
    assert "1 file(s) left out" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_a_parquet_table_holds_the_same_vectors(tiny_model, folder, tmp_path):
    assert embed.main([str(folder), "--output", str(tmp_path / "out.parquet"), "--model", "tiny"]) == 0
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == 5


@pytest.mark.parametrize(
    ("folder_name", "out", "words"),
    [("nowhere", "a.npz", "nowhere"), ("photos", "a.txt", "a.txt"), ("empty", "a.npz", "empty")],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(folder_name, out, words, tiny_model, folder, capsys):
    (folder.parent / "empty").mkdir()
    target = folder.parent / out
    assert embed.main([str(folder.parent / folder_name), "--output", str(target), "--model", "tiny"]) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ") and words in sentence and not target.exists()


def test_parquet_without_pyarrow_is_refused_with_what_to_install(tiny_model, folder, monkeypatch, capsys):
    monkeypatch.setattr(embed.importlib.util, "find_spec", lambda name: None)
    assert embed.main([str(folder), "--output", "a.parquet", "--model", "tiny"]) == 2
    assert "pip install pyarrow" in capsys.readouterr().err
