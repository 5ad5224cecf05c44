"""Released models: their files, their cards, and putting them where the commands find them."""

import hashlib
import http.server
import json
import re
import shutil
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from data.files import CODE, digest_of_file, digest_of_tensors
from evaluation import novelty, publish
from evaluation.checkpoints import load_trained, read_released
from run_files import FORMAT
from supervised.models import SceneClassifier, estimate_batchnorm
from tests.clouds import splits_of

NAME = "rotation_gentle_classifier"
SETTINGS = {
    "name": "run",
    "network": "efficientnet_b0",
    "head": "batchnorm_linear",
    "stages": [7, 8],
    "freeze_features": True,
    "flip_tta": True,
    "image_size": 64,
    "resize": "imagenet",
    "seed": 0,
    "frozen_stages": 0,
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
    """A folder of one released model, run."""
    folder = tmp_path / "published"
    about = {"identity": {"settings": SETTINGS}, "class_names": ["coast", "forest"], "measured": {}}
    publish.write_released(folder / "run.safetensors", publish.halve(model), about)
    (folder / publish.DIGESTS).write_text(json.dumps({"run": digest_of_file(folder / "run.safetensors")}))
    return folder


def test_a_released_file_has_half_the_size_and_nearly_the_same_outputs(model, folder, root):
    publish.place([], folder, root / "models" / "full", folder)
    run = load_trained("run")
    assert (folder / "run.safetensors").stat().st_size < 0.56 * sum(4 * each.numel() for each in model.parameters())
    assert run.model.flip_tta and run.class_names == ("coast", "forest") and run.image_size == 64
    images = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        expected, found = model(images), run.model(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.std()))


def test_batchnorm_stays_as_it_is_and_convolutions_are_rounded(model, folder):
    released = read_released(folder / "run.safetensors")["model"]
    for name, tensor in model.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(released[name], tensor), name
    convolution = model.state_dict()["features.0.0.weight"]
    assert not torch.equal(released["features.0.0.weight"], convolution)
    assert torch.equal(released["features.0.0.weight"], convolution.half().float())


def test_a_variance_beyond_half_precision_survives():
    norm = torch.nn.Sequential(torch.nn.BatchNorm2d(1))
    norm[0].running_var.fill_(1e6)
    assert publish.halve(norm)["0.running_var"].item() == 1e6


@pytest.fixture
def address(folder):
    """The address of the folder, served over HTTP."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_come_from_an_address_and_replace_older_ones(folder, address, tmp_path):
    released = (folder / "run.safetensors").read_bytes()
    (placed,) = publish.place(["run"], address, tmp_path / "models", folder)
    assert placed.read_bytes() == released
    placed.write_bytes(b"of an earlier version")
    (placed,) = publish.place(["run"], address, tmp_path / "models", folder)
    assert placed.read_bytes() == released
    (folder / "run.safetensors").write_bytes(b"another file than the released one")
    with pytest.raises(ValueError, match="run.safetensors has the wrong checksum"):
        publish.place(["run"], address, tmp_path / "models", folder)
    assert placed.read_bytes() == released and list((tmp_path / "models").iterdir()) == [placed]
    with pytest.raises(ValueError, match="no released model other; there are run"):
        publish.place(["other"], address, tmp_path / "models", folder)


def test_a_file_with_another_digest_is_refused_and_the_old_one_stays(folder, tmp_path):
    models = tmp_path / "models"
    (placed,) = publish.place(["run"], folder, models, folder)
    before = placed.read_bytes()
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "run.safetensors").write_bytes(before[:-1] + b"x")
    with pytest.raises(ValueError, match="run.safetensors has the wrong checksum"):
        publish.place(["run"], changed, models, folder)
    assert placed.read_bytes() == before and [each.name for each in models.iterdir()] == ["run.safetensors"]
    with pytest.raises(FileNotFoundError, match="there is no .*run.safetensors"):
        publish.place(["run"], tmp_path / "nowhere", models, folder)


@pytest.mark.parametrize(
    ("changes", "photo"),
    [
        ({"head": "batchnorm_linear", "stages": [7, 8], "flip_tta": True}, "turned.jpg"),
        ({"head": "deep", "resize": "squash"}, "wide.png"),
        ({"head": "shallow", "stages": [2, 5]}, "wide.png"),
    ],
)
def test_the_code_on_a_card_runs_alone_and_gives_the_logits_of_the_released_model(
    changes, photo, tmp_path, monkeypatch
):
    settings = {**SETTINGS, "head": "shallow", "stages": [8], "flip_tta": False, **changes}
    torch.manual_seed(0)
    model = SceneClassifier(3, settings["head"], stages=settings["stages"], flip_tta=settings["flip_tta"])
    estimate_batchnorm(model, [torch.randn(16, 3, 64, 64)])  # else no logit depends on the image
    about = {"identity": {"settings": settings}, "class_names": ["coast", "forest", "street"]}
    publish.write_released(tmp_path / "run.safetensors", publish.halve(model), about)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 130, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6 if photo == "turned.jpg" else 1  # a camera held upright
    image.save(tmp_path / photo, exif=exif)
    run = load_trained(tmp_path / "run.safetensors")
    with torch.inference_mode():
        expected = run.model(run.read([tmp_path / photo])[1])

    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", publish.how_to_use("run", settings, 3), re.DOTALL)
    assert "evaluation" not in code and "supervised" not in code
    variables = {}
    exec(code.replace("photo.jpg", photo), variables)
    torch.testing.assert_close(variables["logits"], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_card_has_no_code_for_a_network_without_stages_in_torchvision():
    assert publish.how_to_use("run", {**SETTINGS, "network": "resnet18"}, 2) == ""


@pytest.fixture
def result(model, root, monkeypatch):
    """The result of an experiment whose checkpoint lies in the root folder, with eight test images of its own."""
    images, labels = torch.randn(8, 3, 64, 64), torch.tensor([0, 1] * 4)
    with torch.inference_mode():
        predictions = model(images).argmax(dim=1)
    identity = {
        "settings": SETTINGS,
        "data": {"name": "15scene", "images": {"train": 4, "val": 4, "test": 8}},
        "initial_weights": {"weights": "rotation_gentle, epoch 2", "began_with": {"weights": "ImageNet"}},
    }
    result = {
        "name": NAME,
        "epoch": 3,
        "test_accuracy": (predictions == labels).double().mean().item(),
        "test_accuracy_by_class": {"coast": 0.5, "forest": 0.25},
        "labels": {"test": labels.tolist()},
        "predictions": {"test": predictions.tolist()},
        "class_names": ["coast", "forest"],
        "history": {"val_loss": [1.0] * 4},
        **{"precision": "float32", "device": "cpu", "versions": {"torch": "2"}},
    }
    checkpoint = root / "models" / "full" / f"{NAME}.pt"
    checkpoint.parent.mkdir(parents=True)
    contents = {"format": FORMAT, "identity": identity, "class_names": ["coast", "forest"]}
    torch.save({**contents, "model": model.state_dict(), "result": result}, checkpoint)
    (root / "results" / "full").mkdir(parents=True)
    (root / "results" / "full" / f"{NAME}.json").write_text(json.dumps(result))
    loaders = SimpleNamespace(test=DataLoader(TensorDataset(images, labels), 4), data={"name": "15scene"})
    monkeypatch.setattr(publish, "loaders_of_run", lambda *_: loaders)
    return result


def test_a_run_of_other_images_is_not_released(result, tmp_path):
    publish.loaders_of_run().data["fingerprint"] = {"test": "of other images"}
    with pytest.raises(ValueError, match="trained on other images"):
        publish.make(NAME, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_a_run_is_released_with_its_card_and_what_half_precision_changes(result, tmp_path):
    folder = tmp_path / "published"
    path = publish.make(NAME, folder)
    about = read_released(path)
    assert about["measured"] == {"test_accuracy": result["test_accuracy"], "changed": 0}
    digest = json.loads((folder / publish.DIGESTS).read_text())[NAME]
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    card = path.with_suffix(".md").read_text()
    assert f"{result['test_accuracy']:.4f} (95 % interval" in card and digest in card
    assert "rotation_gentle, epoch 2, trained from ImageNet" in card and "only the head was trained" in card
    path.with_suffix(".md").write_text("")
    assert publish.write_cards(folder) == [path.with_suffix(".md")]
    assert path.with_suffix(".md").read_text() == card
    assert publish.place([], folder, tmp_path / "placed", folder)[0].read_bytes() == path.read_bytes()


def test_a_model_of_another_data_set_has_a_card_of_its_own_data(result, tmp_path, root, capsys):
    folder = tmp_path / "published"
    path = publish.make(NAME, folder)
    about = read_released(path)
    tensors = about.pop("model")
    about["identity"]["data"]["name"] = "nature"
    publish.write_released(path, tensors, about)
    (root / "results/full/nature").mkdir()
    (root / f"results/full/{NAME}.json").rename(root / f"results/full/nature/{NAME}.json")
    (card,) = publish.write_cards(folder)
    assert "gray photographs" not in card.read_text() and "2 classes of one data set" in card.read_text()
    assert publish.main(["--cards", NAME]) == 2
    assert "--cards" in capsys.readouterr().err


def test_a_card_begins_with_what_the_hugging_face_hub_reads(result, tmp_path):
    empty, matter, rest = publish.make(NAME, tmp_path).with_suffix(".md").read_text().split("---\n", 2)
    read = yaml.safe_load(matter)
    assert empty == "" and rest.startswith(f"# {NAME}")
    assert read["license"] == "mit" and read["metrics"] == ["accuracy"] and read["datasets"] == ["15scene"]
    ((model,), (measured,)) = read["model-index"], read["model-index"][0]["results"][0]["metrics"]
    assert model["name"] == NAME and model["results"][0]["task"]["type"] == "image-classification"
    assert measured == {
        "type": "accuracy",
        "name": "test accuracy of this file",
        "value": pytest.approx(result["test_accuracy"], abs=1e-4),
    }


def test_a_card_names_the_ensemble_that_a_network_was_distilled_from(result, tmp_path):
    about = read_released(publish.make(NAME, tmp_path))
    about["identity"]["settings"] = {**SETTINGS, "freeze_features": False, "frozen_stages": 4}
    about["identity"]["teachers"] = {"runs": [{"weights": "one, epoch best"}, {"weights": "other, epoch best"}]}
    quality = {"top 1": 0.4321, "calibration error": 0.1, "mean confidence": 0.5}
    card = publish.card_text({**result, "precision": "bfloat16"}, about, 1, "abc", quality)
    assert "in float32, as the commands compute, 0.4321" in card
    assert "all but the first 4 stages were trained" in card
    assert "ensemble of 2: one, epoch best; other, epoch best" in card


def row_of(card: str, name: str) -> str:
    """What stands in the table of a card beside a name."""
    (found,) = re.findall(rf"^\| {re.escape(name)}[^|]* \| (.*) \|$", card, re.MULTILINE)
    return found


def test_the_confusions_on_a_card_are_those_of_the_result(result, tmp_path):
    about = read_released(publish.make(NAME, tmp_path))
    predictions = {"test": [0, 0, 0, 0, 1, 0, 0, 1]}  # of 0, 1, 0, 1, ...
    card = publish.card_text({**result, "predictions": predictions}, about, 1, "abc")
    assert row_of(card, "most frequent confusions") == "forest taken for coast (3), coast taken for forest (1)"
    card = publish.card_text({**result, "predictions": result["labels"]}, about, 1, "abc")
    assert row_of(card, "most frequent confusions") == "none"


INITIAL = "those of the initial ImageNet weights"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretext_run": "byol", "batchnorm": "pretext"}, f"{INITIAL}, which the pretext kept"),
        (
            {"pretext_run": "byol_batchnorm_trained", "batchnorm": "pretext"},
            "those of the pretext, byol_batchnorm_trained",
        ),
        ({"pretext_run": "rotation_tuned", "batchnorm": "pretext"}, "those of the pretext, rotation_tuned"),
        ({"pretext_run": "rotation_tuned", "batchnorm": "initial"}, INITIAL),
        ({"pretext_run": "byol", "batchnorm": "estimated"}, "estimated on the training images"),
        ({"pretext_run": "", "batchnorm": "pretext"}, INITIAL),  # a probe of the initial weights
        ({"frozen_mode": "stochastic_depth"}, INITIAL),
        ({"frozen_mode": "batchnorm"}, "those of this training"),
        ({"freeze_features": False}, "those of this training"),
        (
            {"freeze_features": False, "frozen_stages": 4},
            f"those of this training; in the first 4 stages, which were frozen, {INITIAL}",
        ),
        ({"weights": "random"}, "estimated on the training images"),
        ({"weights": "random", "freeze_features": False}, "those of this training"),
        ({"weights": "a user's file"}, "those of the initial weights"),
    ],
)
def test_a_card_says_where_the_statistics_of_batchnorm_come_from(changes, words, result, tmp_path):
    about = read_released(publish.make(NAME, tmp_path))
    settings = {**SETTINGS, **changes}
    began_with = {"weights": settings.pop("weights", "ImageNet features")}
    provenance = {"weights": "of a pretext", "began_with": began_with} if settings.get("pretext_run") else began_with
    about["identity"] |= {"settings": settings, "initial_weights": provenance}
    assert row_of(publish.card_text(result, about, 1, "abc"), "BatchNorm statistics") == words


def test_what_the_committed_cards_say_of_batchnorm_is_true_of_the_files():
    statistics, words = {}, {}
    for path in publish.FOLDER.glob("*.safetensors"):
        model = read_released(path)["model"]
        statistics[path.stem] = {name: each for name, each in model.items() if re.match(r"features.*running_", name)}
        words[path.stem] = row_of(path.with_suffix(".md").read_text(), "BatchNorm statistics")

    def share_that_is_kept(name: str, stages: str) -> float:
        of_stages = [each for each in statistics[name] if re.match(rf"features\.[{stages}]\.", each)]
        return np.mean([torch.equal(statistics[name][each], initial[each]) for each in of_stages])

    initial = statistics["byol_classifier"]
    assert words["byol_classifier"] == f"{INITIAL}, which the pretext kept"
    assert words["distilled_long"].endswith(f"in the first 4 stages, which were frozen, {INITIAL}")
    assert (share_that_is_kept("distilled_long", "0-3"), share_that_is_kept("distilled_long", "4-8")) == (1, 0)
    for name in ("rotation_classifier_tuned_10", "perturbation_classifier_tuned_3"):
        assert words[name].startswith("those of the pretext") and share_that_is_kept(name, "0-8") == 0


def test_a_card_says_how_many_images_are_flagged_if_the_description_is_of_these_weights(result, tmp_path, root):
    path, row = publish.make(NAME, tmp_path / "published"), "flagged as unlike the training images"
    assert row_of(path.with_suffix(".md").read_text(), row).startswith("none")
    splits = splits_of((100, 40, 40))
    described = path.with_name(f"{NAME}{publish.NOVELTY}")
    novelty.fit_novelty(splits, "other weights").write(described)
    table = pd.DataFrame(
        [
            (NAME, "15scene, val", 8, 1),
            (NAME, "15scene, test", 8, 2),
            (NAME, "CIFAR-10", 4, 3),
            ("other", "ImageNet", 4, 4),
        ],
        columns=["model", "images", "number", "flagged"],
    )
    assert row_of(publish.card(result, path), row).startswith("none")
    novelty.fit_novelty(splits, novelty.digest_of_features(load_trained(path))).write(described)
    assert row_of(publish.card(result, path), row) == "not measured"
    table.to_csv(root / "results" / "full" / "novelty.csv", index=False)
    assert (
        row_of(publish.card(result, path), row) == "test images, by mistake: 2 of 8 (0.250); CIFAR-10: 3 of 4 (0.750)"
    )


def test_a_card_has_the_calibration_of_its_own_weights_alone(result, tmp_path, root):
    path = publish.make(NAME, tmp_path / "published")
    about, folder = read_released(path), root / "results" / "full" / "explanations" / NAME
    assert row_of(publish.card(result, path), "calibration") == "not measured"
    folder.mkdir(parents=True)
    np.savez(folder / "test.npz", labels=[0, 0, 1, 1], probabilities=[[0.6, 0.4]] * 4)
    (folder / "weights.json").write_text(json.dumps({"weights": "others"}))
    assert row_of(publish.card(result, path), "calibration") == "not measured"
    assert publish.float32_accuracy(NAME, about) is None
    (folder / "weights.json").write_text(json.dumps({"weights": digest_of_tensors(about["model"])}))
    assert publish.float32_accuracy(NAME, about) == 0.5
    words = row_of(publish.card(result, path), "calibration")
    assert [float(each) for each in re.findall(r"0\.\d+", words)] == [0.1, 0.6, 0.5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "no released model nothing; there are"),
        (["--make"], "--make needs the names of runs"),
        (["--make", "nothing"], "there is no experiment 'nothing'"),
        (["distilled_long", "--source", "nowhere"], "there is no nowhere"),
        (["--cards", "--source", "nowhere"], "leave it out with --make and --cards"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, words, root, capsys):
    assert publish.main(arguments) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ") and words in sentence


@pytest.mark.parametrize("path", sorted(publish.FOLDER.glob("*.safetensors")), ids=lambda path: path.stem)
def test_each_committed_card_is_made_of_its_file_and_its_result(path):
    about = read_released(path)
    result = json.loads((CODE / "results" / "full" / f"{path.stem}.json").read_text())
    assert about["identity"]["settings"] == result["settings"]
    digest = digest_of_file(path)
    assert json.loads((publish.FOLDER / publish.DIGESTS).read_text())[path.stem] == digest
    assert path.with_suffix(".md").read_text() == publish.card(result, path)
    assert abs(publish.float32_accuracy(path.stem, about) - result["test_accuracy"]) < 0.003
    assert abs(about["measured"]["test_accuracy"] - result["test_accuracy"]) < 0.003


@pytest.mark.parametrize("folder", ["quick", "full/flowers"])
def test_no_other_run_stands_in_for_a_released_model_of_its_name(folder, tiny_model, root):
    name = next(path.stem for path in sorted(publish.FOLDER.glob("*.safetensors")))
    other = root / "models" / folder / f"{name}.pt"
    other.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tiny_model, other)
    assert publish.load_run(name).file == root / "models" / "full" / f"{name}.safetensors"
    assert publish.load_run(other).file == other
