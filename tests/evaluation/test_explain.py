"""What is kept of each model: of the right weights, whole, and not computed twice."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation import explanations
from evaluation.checkpoints import TrainedRun
from supervised.models import SceneClassifier, calibrate_batchnorm

CLASSES = ("dark", "light", "striped")


def a_run(seed: int = 0, weights: str = "abc") -> TrainedRun:
    """A network of random weights whose outputs depend on the image, for images of 32 pixels."""
    torch.manual_seed(seed)
    model = SceneClassifier(3)
    calibrate_batchnorm(model, [(torch.randn(16, 3, 32, 32), None)])
    return TrainedRun(f"run_{seed}", model.eval(), CLASSES, 32, "imagenet", (0.5,) * 3, (0.25,) * 3, weights)


class Images(torch.utils.data.Dataset):
    """Random images, of one brightness a class."""

    def __init__(self, number: int = 96):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(number) % 3
        self.images = torch.randn(number, 3, 32, 32, generator=generator) + self.labels.view(-1, 1, 1, 1)
        self.scenes = SimpleNamespace(names=[f"{CLASSES[label]}/{i}.jpg" for i, label in enumerate(self.labels)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


def test_a_folder_of_other_weights_is_emptied_and_one_of_the_same_is_kept(tmp_path):
    folder = explanations.open_folder(tmp_path / "run", "abc")
    (folder / "test.npz").write_text("kept")
    assert (explanations.open_folder(folder, "abc") / "test.npz").exists()
    assert not (explanations.open_folder(folder, "other") / "test.npz").exists()
    assert json.loads((folder / "weights.json").read_text()) == {"weights": "other"}


def test_features_are_read_back_for_the_same_weights_and_computed_for_others(tmp_path, monkeypatch):
    run, loader = a_run(), torch.utils.data.DataLoader(Images(), 32)
    features, labels = explanations.features_of(run.model, loader, "abc", tmp_path / "f.npz")
    monkeypatch.setattr(explanations, "stage_features", lambda *_: ("computed", "anew"))
    again, labels_again = explanations.features_of(run.model, loader, "abc", tmp_path / "f.npz")
    assert all(np.array_equal(one, other) for one, other in zip(features, again, strict=True))
    assert np.array_equal(labels, labels_again)
    assert explanations.features_of(run.model, loader, "other", tmp_path / "f.npz") == ("computed", "anew")


def test_probabilities_that_are_kept_are_the_models_own(tmp_path):
    run, images = a_run(), Images()
    features, labels = explanations.stage_features(run.model, torch.utils.data.DataLoader(images, 32))
    explanations.describe_test_images(run.model, features, labels, tmp_path)
    with np.load(tmp_path / "test.npz") as saved, torch.no_grad():
        assert np.allclose(saved["probabilities"], run.model(images.images).softmax(dim=1).numpy(), atol=1e-5)
        assert saved["places"].shape == (96, 2) and np.array_equal(saved["labels"], images.labels)
    table = pd.read_csv(tmp_path / "representation.csv")
    assert table["stage"].tolist() == list(range(9))
    assert table["neighbour_purity"].between(0, 1).all() and (table["rank_me"] <= table["channels"]).all()


def test_kept_maps_are_those_of_score_cam_and_are_made_anew_for_other_images(tmp_path):
    run, images = a_run(), Images(2).images
    explanations.explain_images(run, images, [0, 1], ["a", "b"], tmp_path)
    maps = explanations.read_maps(tmp_path, 32)
    assert list(maps) == ["1", "2", "8"]
    expected = explanations.score_cam(run.model, images, run.layer("2"), [0, 1]).maps
    assert (maps["2"] - expected).abs().max() < 1 / 255
    before = (tmp_path / "scorecam.npz").stat().st_mtime_ns
    explanations.explain_images(run, images, [0, 1], ["a", "b"], tmp_path)
    assert (tmp_path / "scorecam.npz").stat().st_mtime_ns == before
    explanations.explain_images(run, images, [0, 1], ["a", "c"], tmp_path)
    assert (tmp_path / "scorecam.npz").stat().st_mtime_ns != before


def test_maps_of_an_interrupted_call_are_kept(tmp_path, monkeypatch):
    run, images, names = a_run(), Images(3).images, ["a", "b", "c"]
    explanations.explain_images(run, images, [0, 1, 2], names, tmp_path)
    whole = explanations.read_maps(tmp_path, 32)
    (tmp_path / "scorecam.npz").unlink()
    explanations.explain_images(run, images[:2], [0, 1], names[:2], tmp_path)
    seen = []
    monkeypatch.setattr(
        explanations, "score_cam", lambda *given, score_cam=explanations.score_cam: seen.append(1) or score_cam(*given)
    )
    explanations.explain_images(run, images, [0, 1, 2], names, tmp_path)
    assert len(seen) == 3  # one image, at three layers
    assert all(torch.equal(one, whole[layer]) for layer, one in explanations.read_maps(tmp_path, 32).items())


def test_models_that_look_at_the_same_places_correlate():
    generator = torch.Generator().manual_seed(0)
    maps, others = torch.rand(2, 3, 8, 8, generator=generator)
    table = explanations.compare_models({"one": {"8": maps}, "same": {"8": maps**2}, "other": {"8": others}})
    correlations = table.set_index(["one", "other"])["correlation"]
    assert correlations["one", "same"] == pytest.approx(1)
    assert abs(correlations["one", "other"]) < 0.3


def test_an_empty_map_is_left_out_of_the_comparison():
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    emptied = torch.stack([maps[0] ** 2, torch.zeros(8, 8)])
    table = explanations.compare_models({"one": {"8": maps}, "other": {"8": emptied}})
    assert table["correlation"].tolist() == pytest.approx([1])


def test_an_interrupted_measurement_goes_on_and_gives_the_same_table(tmp_path, monkeypatch):
    run, images = a_run(), Images(4).images
    monkeypatch.setattr(explanations, "STEPS", 2)

    def measure(folder, numbers):
        explanations.measure_maps(run, lambda wanted: images[wanted], numbers, [0, 1, 2, 0][: len(numbers)], folder, 2)
        return pd.read_csv(folder / "faithfulness.csv")

    (tmp_path / "whole").mkdir(), (tmp_path / "parts").mkdir()
    whole = measure(tmp_path / "whole", [0, 1, 2, 3])
    assert measure(tmp_path / "parts", [0, 1])["image"].nunique() == 2
    assert whole.equals(measure(tmp_path / "parts", [0, 1, 2, 3]))
    assert set(whole["map"]) == {"Score-CAM", "random", "edges"}
    assert set(whole["baseline"]) == {"black", "mean", "blurred"}


def test_the_faithfulness_table_holds_means_and_their_intervals():
    measured = pd.DataFrame(
        {"baseline": "black", "map": "Score-CAM", "image": [0, 1], "drop": [0.0, 0.2], "increase": [0, 1]}
        | {"deletion": [0.1, 0.3], "insertion": [0.5, 0.5]}
    )
    table = explanations.faithfulness_table(measured).set_index("measure")
    assert table.loc["deletion", "mean"] == pytest.approx(0.2)
    assert table.loc["deletion", "from"] < 0.1 and table.loc["deletion", "to"] > 0.3
    assert table.loc["insertion", "from"] == pytest.approx(0.5)
    assert table["images"].tolist() == [2] * 4


def test_settings_of_inversions_are_compared_by_what_another_model_makes_of_the_images(monkeypatch):
    monkeypatch.setattr(explanations, "CLASSES", ("light", "striped", "beach"))
    run, judge = a_run(0), a_run(1)
    settings = explanations.InversionSettings(image_size=32, steps=20, jitter=2)
    table = explanations.compare_settings(run, judge, {"plain": settings, "fast": replace(settings, learning_rate=0.1)})
    inversion = explanations.invert(run.model, explanations.class_logit, [1, 2], settings, run.mean, run.std)
    probabilities = explanations.score_by_another(judge.model, inversion.images, [1, 2], judge.mean, judge.std)
    assert table.loc["plain", "probability"] == pytest.approx(probabilities.mean().item(), rel=1e-4)
    assert table.loc["plain", "final_loss"] == pytest.approx(inversion.final_losses.mean().item(), rel=1e-4)
    assert table["learning_rate"].tolist() == [0.02, 0.1]


def test_all_runs_are_explained_in_one_call_and_judged_by_each_other(tmp_path, monkeypatch):
    for name, value in (("STEPS", 2), ("RANDOMISED", ("classifier", "features.8")), ("CLASSES", ("light", "beach"))):
        monkeypatch.setattr(explanations, name, value)
    runs, controls = {"one": a_run(0), "other": a_run(1)}, {"control": a_run(2)}
    loaders = dict.fromkeys((*runs, *controls), torch.utils.data.DataLoader(Images(), 32))
    effort = explanations.Effort(measured_images=2, inversion_steps=20, tried_settings=1)
    explanations.explain(runs, controls, loaders, np.array([0, 1]), tmp_path / "kept", tmp_path / "cache", effort)
    assert {path.name for path in (tmp_path / "kept" / "one").iterdir()} == {
        *("weights.json", "test.npz", "representation.csv", "scorecam.npz", "faithfulness.csv", "randomisation.csv"),
        *("inversion_settings.csv", "classes", "filters"),
    }
    assert not (tmp_path / "kept" / "other" / "faithfulness.csv").exists()
    assert len(list((tmp_path / "kept" / "control").iterdir())) == 3
    judged = pd.read_csv(tmp_path / "kept" / "judged.csv").set_index(["model", "judge"])["probability"]
    own = explanations.score_by_another(
        runs["one"].model,
        explanations.read_pictures([tmp_path / "kept" / "one" / "classes" / "light.png"]).float() / 255,
        [1],
        runs["one"].mean,
        runs["one"].std,
    )
    assert judged["one", "one"] == pytest.approx(own.item(), abs=1e-4)
    cka = pd.read_csv(tmp_path / "kept" / "cka.csv", index_col=0)
    assert cka.shape == (12, 12) and np.allclose(np.diag(cka), 1)
