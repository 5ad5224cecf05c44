"""Explanations and their measures that were wrong without a word: each right value."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional

from evaluation import explain, inversion_quality
from evaluation.checkpoints import TrainedRun
from evaluation.demo import Demo
from evaluation.explained import read_inversion
from evaluation.faithfulness import masked_images
from evaluation.inversion_search import best_table, describe
from evaluation.mask_clusters import cluster_score_cam
from evaluation.model_inversion import (
    Inversion,
    _is_finished,
    check_evaluator,
    probability_by,
    save_inversion,
    score_by_another,
)
from evaluation.pages import notebook
from evaluation.pages.notebook import escaped, show
from evaluation.predict import Model
from evaluation.recipro_cam import recipro_cam, recipro_contrast
from evaluation.scorecam import score_cam
from evaluation.split_images import training_amplitudes
from supervised.models import SceneClassifier
from tests.conftest import SmallNetwork
from tests.evaluation.pages.test_same_numbers import in_html
from tests.evaluation.test_explain import Images, a_run
from tests.small_runs import small_run


def inversion_of(curve, stopped=True) -> Inversion:
    """One image with these losses, which met the stopping rule or not."""
    nothing = torch.zeros(1, 1, 2, 2)
    return Inversion(nothing, torch.zeros(1), torch.tensor([curve]), torch.tensor([stopped]))


def test_a_loss_that_only_rose_has_not_converged_though_it_met_the_stopping_rule():
    rising = [0.1 * step for step in range(60)]
    assert _is_finished(rising, 0, 30)  # it will not fall any more
    assert not inversion_of(rising).converged.any()
    fallen = [-1 + 1 / (1 + step) for step in range(60)]
    assert inversion_of(fallen).converged.all() and not inversion_of(fallen, stopped=False).converged.any()
    assert not inversion_of([*fallen[:40], *20 * [-0.2]]).converged.any()  # it fell, and came back


def test_pruned_trials_of_an_inversion_search_have_not_converged():
    trials = pd.DataFrame(
        {
            "learning_rate": [1.0, 2.0, 3.0],
            "weight_decay": [1.0, 1.0, 1.0],
            "value": [-1.0, -2.0, None],
            "trial": [0, 1, 2],
            "converged": [True, False, None],
        }
    )
    assert best_table({"tpe": trials})["trial"].tolist() == [1, 0]
    assert "1 converged" in describe("tpe", trials)


def test_an_evaluator_sees_images_at_its_own_size_and_is_another_network():
    run = a_run()
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    resized = functional.resize(images, [run.image_size] * 2, antialias=True).clamp(0, 1)
    expected = score_by_another(run.model, resized, [0, 1], run.mean, run.std)
    assert run.image_size != 48 and torch.equal(probability_by(run, images, [0, 1]), expected)
    with pytest.raises(ValueError, match="is the network that is inverted"):
        check_evaluator(run, run)


def test_amplitudes_of_another_data_set_than_that_of_the_training_are_refused(scene_folder, root):
    run = replace(small_run("tiny"), data={"name": "flowers", "fingerprint": {"train": "0"}})
    with pytest.raises(ValueError, match="not trained on the images of .*scenes, but on flowers; see --data"):
        training_amplitudes(run, str(scene_folder))
    for same in ({}, {"name": "scenes", "fingerprint": {"train": "a part of them"}}):
        assert training_amplitudes(replace(run, data=same), str(scene_folder)).ndim == 3


def test_as_many_images_are_explained_as_there_are_classes():
    labels, right = [0, 1, 0, 1], [0, 1, 0, 1]
    results = {explain.COMPARED[0]: {"labels": {"test": labels}, "predictions": {"test": right}}}
    assert sorted(np.array(labels)[explain._choose_images(results, "full")]) == [0, 1]


def test_a_class_whose_name_is_not_utf_8_is_inverted_and_read_back(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    pictures = torch.rand(1, 3, 32, 32)
    save_inversion(Inversion(pictures, torch.zeros(1), torch.zeros(1, 3), torch.tensor([True])), [name], tmp_path)
    (tmp_path / "settings.json").write_text("{}")
    found = read_inversion(tmp_path)
    assert list(found.table["name"]) == list(found.losses) == [name] and found.pictures.shape == (1, 3, 32, 32)


def test_maps_are_by_default_of_the_last_stage_whatever_the_network(tmp_path):
    torch.manual_seed(0)
    model = SceneClassifier(3, network="resnet18", stages=(4,))
    run = TrainedRun("r", model.eval(), ("a", "b", "c"), 64, "imagenet", "0")
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    found = Model(run).explain(path)
    assert np.array_equal(found, Model(run).explain(path, layer="4"))
    assert not np.array_equal(found, Model(run).explain(path, layer="3"))
    assert Demo(Model(run), None).answer(path.read_bytes())["map"]


def test_names_of_classes_are_no_html(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda style: shown.append(style.to_html()))
    show(pd.DataFrame({"<i>a": [0.5]}, index=["<script>b"]))
    shown.append(escaped(pd.DataFrame({"<i>a": [0.5]}, index=["<script>b"]).style).format("{:.2f}").to_html())
    assert all("&lt;script&gt;b" in each and "&lt;i&gt;a" in each and "<script>b" not in each for each in shown)


def test_each_word_of_the_recipes_counts(monkeypatch, tmp_path):
    asked, run = [], SimpleNamespace(weights="a", class_names=(), folded=lambda: run, without_flip_tta=lambda: run)
    monkeypatch.setattr(inversion_quality, "load_run", lambda name: run)
    monkeypatch.setattr(inversion_quality, "measure", lambda _run, _others, recipes, *_: asked.append(recipes))
    monkeypatch.setattr(inversion_quality.pd, "read_csv", lambda *_: pd.DataFrame())
    for words in (["ablation", "lucent"], ["lucent", "ablation", "lucent"]):
        options = SimpleNamespace(recipes=words, model="m", evaluators=[], data="none", output=tmp_path)
        inversion_quality._measure(options)
    ablation = list(inversion_quality.ABLATION)
    assert asked[0] == [*ablation, "lucent"] and sorted(asked[1]) == sorted(asked[0]) and asked[1][0] == "lucent"


def test_a_map_of_bytes_is_no_mask():
    images, maps = torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8)
    masked_images(images, maps, torch.zeros_like(images))
    for wrong in (255 * maps, maps - 0.5):
        with pytest.raises(ValueError, match="must be 0 to 1"):
            masked_images(images, wrong, torch.zeros_like(images))


def test_a_layer_that_is_none_and_a_class_against_itself_are_refused_by_both_kinds_of_maps():
    network, image = SmallNetwork().eval(), torch.rand(1, 3, 32, 32)
    for wrong in ("8", None, nn.ReLU()):
        for method in (score_cam, recipro_cam):
            with pytest.raises(ValueError, match="the layer"):
                method(network, image, wrong, [0])
    with pytest.raises(ValueError, match="two classes"):
        recipro_contrast(network, image, network.features[2], 1, 1)


class MostlyDead(nn.Module):
    """Forty channels, of which ten depend on the image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 40, 3, stride=2)
        self.features.weight.data[10:] = 0
        self.classifier = nn.Linear(40, 3)

    def forward(self, images):
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def test_a_map_of_which_every_score_was_measured_is_called_exact():
    network, image = MostlyDead().eval(), torch.rand(1, 3, 32, 32)
    found = cluster_score_cam(network, image, network.features, [0], clusters=8)
    torch.testing.assert_close(found.maps, score_cam(network, image, network.features, [0]).maps)
    assert found.exact.all()


def test_a_less_than_sign_stays_within_its_cell(monkeypatch):
    shown = []
    monkeypatch.setattr("evaluation.pages.notebook.display", lambda style: shown.append(style.to_html()))
    show(pd.DataFrame({"p": ["< 1e-16"], "name": ["<b>"], "high": [0.5]}), index=False)
    assert in_html(shown[0])[-1] == ["< 1e-16", "<b>", "0.5000"]


def test_tables_keep_the_lines_of_models_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.setattr(explain, "_explain_model", lambda *_: None)
    for name in ("_randomize_model", "_measure_maps", "_evaluate_classes"):
        monkeypatch.setattr(explain, name, lambda *_: None)
    monkeypatch.setattr(explain, "COMPARED", ("run_0", "run_1"))
    subjects = []
    for seed in (0, 1):
        run, loader = a_run(seed), torch.utils.data.DataLoader(Images(30), 30)
        subjects.append(explain.Subject(run, loader, "none", tmp_path / run.name, tmp_path / f"{seed}.npz"))
    effort = explain.EFFORT["quick"]
    explain.explain(subjects, [0], tmp_path, effort)
    before = pd.read_csv(tmp_path / "cka.csv", index_col=0)
    explain.explain(subjects[1:], [0], tmp_path, effort)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "cka.csv", index_col=0), before)
    monkeypatch.setattr(explain, "COMPARED", ("run_1",))
    explain.explain(subjects[1:], [0], tmp_path, effort)
    stages = [f"run_1, stage {stage}" for stage in explain.CKA_STAGES]
    assert list(pd.read_csv(tmp_path / "cka.csv", index_col=0)) == stages  # run_0 is not compared any more


@pytest.fixture
def weights_of(tmp_path, monkeypatch):
    """Writes files of weights, and what was explained of some; returns the weights that are explained next, or None."""
    loader = torch.utils.data.DataLoader(Images(30), 30)
    files = SimpleNamespace(checkpoint=tmp_path / "byol.pt", name="byol", models=tmp_path)
    monkeypatch.setattr(explain, "files_of", lambda *_: files)
    monkeypatch.setattr(explain, "load_trained", lambda path: replace(a_run(0, "byol"), weights=path.read_text()))
    monkeypatch.setattr(explain, "loaders_of_run", lambda *_: SimpleNamespace(test=loader))

    def chosen(own=None, released=None, cached=None, images="images", predicted=0):
        for path, weights in ((files.checkpoint, own), (files.checkpoint.with_suffix(".safetensors"), released)):
            path.unlink(missing_ok=True)
            if weights is not None:
                path.write_text(weights)
        (tmp_path / "byol").mkdir(exist_ok=True)
        (tmp_path / "byol" / "weights.json").write_text(json.dumps({"weights": cached, "images": images}))
        np.savez(tmp_path / "byol" / "test.npz", probabilities=np.eye(3)[np.full(30, predicted)])
        result = {"predictions": {"test": [0] * 30}, "data": {}}
        subject = explain._subject(SimpleNamespace(data="none"), "full", tmp_path, result)
        return subject and subject.run.weights

    return chosen


def test_what_was_explained_is_kept_as_long_as_it_agrees_with_the_result(weights_of, capsys):
    assert weights_of() is None
    assert weights_of(own="a", cached="a") == weights_of(released="a", cached="a") == "a"
    assert weights_of(own="a", released="b", cached="b") == "b"
    assert capsys.readouterr().err == ""
    assert weights_of(released="b", cached="a") is None and weights_of(own="b", cached="a") is None
    assert "byol is kept" in capsys.readouterr().err


def test_what_was_explained_of_other_predictions_or_images_is_made_again(weights_of):
    assert weights_of(own="new", released="b", cached="b", predicted=1) == "new"
    assert weights_of(released="b", cached="a", predicted=1) == "b"
    assert weights_of(own="a", released="b", cached="b", images="others") == "a"
