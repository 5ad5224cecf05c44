import hashlib
import http.server
import json
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from evaluation import published
from evaluation.checkpoints import load_trained
from runs import FORMAT, ROOT, Files
from supervised.models import SceneClassifier

SETTINGS = {
    "network": "efficientnet_b0",
    "head": "batchnorm_linear",
    "stages": [7, 8],
    "freeze_features": True,
    "flip_tta": True,
    "image_size": 64,
    "resize": "imagenet",
    "seed": 0,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = SceneClassifier(2, "batchnorm_linear", freeze_features=True, stages=(7, 8), flip_tta=True)
    model.features.train()
    model.classifier.train()
    with torch.no_grad():
        for _ in range(3):
            model.classifier(model._pool(torch.randn(8, 3, 64, 64)))  # BatchNorm gets statistics of its own
    return model.eval()


@pytest.fixture
def folder(model, tmp_path):
    folder = tmp_path / "published"
    about = {"identity": {"settings": SETTINGS}, "class_names": ["coast", "forest"], "measured": {}}
    published.write_published(folder / "run.safetensors", published.halve(model), about)
    digest = hashlib.sha256((folder / "run.safetensors").read_bytes()).hexdigest()
    (folder / published.DIGESTS).write_text(json.dumps({"run": digest}))
    return folder


def test_half_of_the_size_and_nearly_the_same_outputs(model, folder, tmp_path):
    published.place([], folder, tmp_path / "models" / "full", folder)
    run = load_trained("run", tmp_path / "models")
    assert (folder / "run.safetensors").stat().st_size < 0.56 * sum(4 * each.numel() for each in model.parameters())
    assert run.model.flip_tta and run.class_names == ("coast", "forest") and run.image_size == 64
    images = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        expected, found = model(images), run.model(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.std()))


def test_statistics_of_batchnorm_stay_as_they_are(model, folder):
    kept = published.read_published(folder / "run.safetensors")["model"]
    for name, tensor in model.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(kept[name], tensor), name
    assert not torch.equal(kept["features.0.0.weight"], model.state_dict()["features.0.0.weight"])
    assert torch.equal(kept["features.0.0.weight"], model.state_dict()["features.0.0.weight"].half().float())


def test_a_variance_beyond_half_precision_survives():
    norm = torch.nn.Sequential(torch.nn.BatchNorm2d(1))
    norm[0].running_var.fill_(1e6)
    assert published.halve(norm)["0.running_var"].item() == 1e6


def test_from_an_address(folder, tmp_path):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        (placed,) = published.place(["run"], address, tmp_path / "models", folder)
        assert placed.read_bytes() == (folder / "run.safetensors").read_bytes()
        placed.write_bytes(b"of an earlier version")
        (placed,) = published.place(["run"], address, tmp_path / "models", folder)
        assert placed.read_bytes() == (folder / "run.safetensors").read_bytes()
        (folder / "run.safetensors").write_bytes(b"another file than the one that was published")
        before = placed.read_bytes()
        with pytest.raises(ValueError, match="run.safetensors has the wrong checksum"):
            published.place(["run"], address, tmp_path / "models", folder)
        assert placed.read_bytes() == before and list((tmp_path / "models").iterdir()) == [placed]
        with pytest.raises(ValueError, match="other is not published; there are run"):
            published.place(["other"], address, tmp_path / "models", folder)
    finally:
        server.shutdown()
        server.server_close()


def test_a_file_of_another_digest_is_refused_and_the_old_one_stays(folder, tmp_path):
    models = tmp_path / "models"
    (placed,) = published.place(["run"], folder, models, folder)
    before = placed.read_bytes()
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "run.safetensors").write_bytes(before[:-1] + b"x")
    with pytest.raises(ValueError, match="run.safetensors has the wrong checksum"):
        published.place(["run"], changed, models, folder)
    assert placed.read_bytes() == before and [each.name for each in models.iterdir()] == ["run.safetensors"]
    with pytest.raises(FileNotFoundError, match="there is no .*run.safetensors"):
        published.place(["run"], tmp_path / "nowhere", models, folder)


@pytest.fixture
def trained_run(model, tmp_path, monkeypatch):
    """A checkpoint of a row as the full profile would have left it, and eight test images for it."""
    images, labels = torch.randn(8, 3, 64, 64), torch.tensor([0, 1] * 4)
    with torch.inference_mode():
        right = (model(images).argmax(dim=1) == labels).double()
    data = {"name": "15scene", "images": {"train": 4, "val": 4, "test": 8}}
    weights = {"weights": "rotation_gentle, epoch 2", "began_with": {"weights": "ImageNet"}}
    identity = {"settings": {**SETTINGS, "frozen_stages": 0}, "data": data, "initial_weights": weights}
    result = {
        "name": "rotation_gentle_classifier",
        "epoch": 3,
        "test_accuracy": right.mean().item(),
        "test_accuracy_by_class": {"coast": 0.5, "forest": 0.25},
        "labels": {"test": labels.tolist()},
        "history": {"val_loss": [1.0] * 4},
        **{"precision": "float32", "device": "cpu", "versions": {"torch": "2"}},
    }
    files = Files(tmp_path / "models", tmp_path / "results", "rotation_gentle_classifier")
    files.models.mkdir()
    names = ["coast", "forest"]
    contents = {"format": FORMAT, "identity": identity, "class_names": names, "model": model.state_dict()}
    torch.save({**contents, "result": result}, files.checkpoint)
    loaders = SimpleNamespace(test=DataLoader(TensorDataset(images, labels), 4))
    monkeypatch.setattr("runs.files_of", lambda row, profile: files)
    monkeypatch.setattr("self_supervised.dataloader.build_loaders", lambda row, progress: loaders)
    return result


def test_a_run_is_published_with_its_card_and_what_half_precision_changes(trained_run, tmp_path):
    folder = tmp_path / "published"
    path = published.make("rotation_gentle_classifier", folder)
    about = published.read_published(path)
    assert about["measured"] == {"test_accuracy": trained_run["test_accuracy"], "changed": 0}
    words = path.with_suffix(".md").read_text()
    digest = json.loads((folder / published.DIGESTS).read_text())["rotation_gentle_classifier"]
    assert words == published.card(trained_run, about, path.stat().st_size, digest)
    assert f"{trained_run['test_accuracy']:.4f} (95 % interval" in words and digest in words
    assert "rotation_gentle, epoch 2, which began with ImageNet" in words and "the head alone was trained" in words
    assert published.place([], folder, tmp_path / "placed", folder)[0].read_bytes() == path.read_bytes()
    about["identity"]["teachers"] = {"runs": [{"weights": "one, epoch best"}, {"weights": "another, epoch best"}]}
    words = published.card(trained_run, about, path.stat().st_size, digest)
    assert "by what 2 others say of the images: one, epoch best; another, epoch best" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "nothing is not published; there are"),
        (["--make"], "--make needs the names of runs"),
        (["--make", "nothing"], "there is no experiment 'nothing'"),
        (["supervised_short", "--source", "nowhere"], "there is no nowhere"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(arguments, words, capsys):
    assert published.main(arguments) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ") and words in sentence


@pytest.mark.parametrize("contents", [b"", b"not safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_what_is_no_published_model_is_named(contents, tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="run.safetensors is not a published model, or not whole"):
        load_trained(str(path))


def test_tensors_without_their_settings_are_no_published_model(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match="is not a published model"):
        load_trained(str(tmp_path / "run.safetensors"))


@pytest.mark.parametrize("path", sorted(published.FOLDER.glob("*.safetensors")), ids=lambda path: path.stem)
def test_each_card_is_made_of_its_file_and_its_result(path: Path):
    about = published.read_published(path)
    result = json.loads((ROOT / "results" / "full" / f"{path.stem}.json").read_text())
    assert about["identity"]["settings"] == result["settings"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads((published.FOLDER / published.DIGESTS).read_text())[path.stem] == digest
    assert path.with_suffix(".md").read_text() == published.card(result, about, path.stat().st_size, digest)
    assert abs(about["measured"]["test_accuracy"] - result["test_accuracy"]) < 0.003
