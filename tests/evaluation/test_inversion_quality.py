import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from evaluation import inversion_quality
from evaluation.inversion_quality import RECIPE, fitted, nearest_training_images, recognition, save_blind_sheet
from evaluation.model_inversion import InversionSettings, class_logit
from evaluation.split_images import images_for
from tests.small_runs import small_run

SHORT = InversionSettings(image_size=32, steps=20, jitter=2, parameters="phase", learning_rate=0.1)


def test_the_command_inverts_once_asks_every_evaluator_and_refuses_other_settings(
    root, scene_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(inversion_quality, "load_run", small_run)
    monkeypatch.setattr(inversion_quality, "RECIPES", {"short": SHORT})
    output = tmp_path / "out"
    arguments = ["--model", "tiny", "--data", str(scene_folder), "--output", str(output), "--recipes", "short"]
    assert inversion_quality.main([*arguments, "--evaluators", "other"]) == 0
    (line,) = pd.read_csv(output / "quality.csv").to_dict("records")
    assert (line["model"], line["evaluator"], line["classes"], line["passes_per_image"]) == ("tiny", "other", 3, 20)
    folder = output / "tiny" / "short"
    evaluated = pd.read_csv(folder / "evaluators.csv")
    assert line["probability"] == pytest.approx(evaluated["probability"].mean(), abs=1e-4)
    assert set(evaluated["class"]) == {"dark", "light", "striped"}
    before = (folder / "inversion.csv").stat().st_mtime_ns
    assert inversion_quality.main([*arguments, "--evaluators", "other"]) == 0
    assert (folder / "inversion.csv").stat().st_mtime_ns == before
    assert inversion_quality.main([*arguments, "--evaluators", "tiny"]) == 2  # it made the images
    monkeypatch.setattr(inversion_quality, "RECIPES", {"short": replace(SHORT, steps=21)})
    capsys.readouterr()
    assert inversion_quality.main([*arguments, "--evaluators", "other"]) == 2
    assert str(folder) in capsys.readouterr().err


def test_evaluators_see_each_of_many_images_at_their_own_size_and_say_its_own_class():
    evaluators = [small_run("tiny"), replace(small_run("other"), image_size=64)]
    images = torch.rand(20, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    targets = np.arange(20) * 5 % 3
    table = recognition(evaluators, images, targets).set_index("evaluator")
    assert table["image"].tolist() == 2 * list(range(20))
    for run in evaluators:
        seen = functional.resize(images, [run.image_size] * 2, antialias=True).clamp(0, 1)
        with torch.no_grad():
            probabilities = run.model(functional.normalize(seen, run.mean, run.std)).softmax(dim=1)
        expected = probabilities[torch.arange(20), targets]
        assert table.loc[run.name, "probability"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_line_of_quality_sums_up_what_an_evaluator_said_and_the_images_cost(tmp_path):
    converged, similarity = [True, False, True, True], [0.2, 0.7, -0.4, 0.1]
    pd.DataFrame({"name": list("abcd"), "converged": converged}).to_csv(tmp_path / "inversion.csv")
    pd.DataFrame({"similarity": similarity, "median_of_val": 0.6}).to_csv(tmp_path / "nearest.csv")
    probabilities = [0.5, 0.9, 0.6, 0.2, 0.1, 0.3, 0.4, 0.2]
    evaluated = pd.DataFrame({"evaluator": ["one"] * 4 + ["other"] * 4, "probability": probabilities})
    run, written = small_run("tiny"), {"passes": 88, "seconds": 10.0}
    one, other = inversion_quality.quality_lines(run, "short", evaluated, tmp_path, written)
    assert one == {
        "model": "tiny",
        "weights": run.weights,
        "recipe": "short",
        "evaluator": "one",
        "classes": 4,
        "probability": 0.55,
        "lowest": 0.2,
        "above_half": 0.5,
        "converged": 3,
        "passes_per_image": 22,
        "seconds_per_image": 2.5,
        "nearest_similarity": 0.7,
        "median_of_val": 0.6,
    }
    assert other == one | {"evaluator": "other", "probability": 0.25, "lowest": 0.1, "above_half": 0.0}


def test_the_nearest_training_image_of_a_training_image_is_itself(root, scene_folder):
    run = small_run("tiny")
    training = images_for(run, str(scene_folder), "train")
    pixels = torch.tensor(training.scenes.images[[3, 20]]).float().expand(-1, 3, -1, -1) / 255
    val = images_for(run, str(scene_folder), "val")
    table, usual = nearest_training_images(run, pixels, training, [val[number][0] for number in range(4)])
    assert table["nearest"].tolist() == [training.scenes.names[3], training.scenes.names[20]]
    assert (table["similarity"] > 0.999).all() and -1 <= usual < 1


def test_a_blind_sheet_has_its_answers_in_another_file(tmp_path):
    images, names = torch.rand(4, 3, 8, 8), ["a", "b", "c", "d"]
    save_blind_sheet(images, names, tmp_path, seed=3)
    key = json.loads((tmp_path / "sheet.key.json").read_text())
    order = np.random.default_rng(3).permutation(4)
    assert key["answers"] == {str(place + 1): names[number] for place, number in enumerate(order)}
    assert key["sheet"] == hashlib.sha256((tmp_path / "sheet.blind.png").read_bytes()).hexdigest()
    assert Image.open(tmp_path / "sheet.blind.png").size[0] > 100


@pytest.mark.parametrize("size", [32, 64, 128, 352])
def test_the_recipe_fits_every_size(size):
    found = fitted(RECIPE, size)
    assert found.image_size == min(size, RECIPE.image_size) and found.levels == (1 if size == 32 else RECIPE.levels)
    assert found.jitter / found.image_size == pytest.approx(RECIPE.jitter / RECIPE.image_size, abs=0.03)


def test_many_classes_are_inverted_in_parts_and_give_what_all_at_once_give(root, tmp_path, monkeypatch):
    run, settings = small_run("tiny"), replace(SHORT, parameters="fourier", steps=24, patience=10)
    classes = inversion_quality.classes_of(run)
    for name, count in (("together", 16), ("parts", 2)):
        monkeypatch.setattr(inversion_quality, "IMAGES_AT_ONCE", count)
        written = inversion_quality.invert_all(
            run, inversion_quality.class_logit, classes, settings, "none", tmp_path / name, progress=False
        )
    together, parts = (inversion_quality.read_inversion(tmp_path / name) for name in ("together", "parts"))
    assert parts.table["name"].tolist() == list(classes) == list(run.class_names)
    assert parts.table["steps"].tolist() == together.table["steps"].tolist()
    assert written["passes"] == parts.table["steps"].sum()
    assert (parts.pictures.int() - together.pictures.int()).abs().max() <= 1


def test_several_folders_get_what_each_gets_alone(root, scene_folder, tmp_path):
    run = small_run("tiny")
    folders = [tmp_path / each / "classes" for each in ("a", "b")]
    for seed, folder in enumerate(folders):
        targets = {"dark": 0, "light": 1} if seed else {"striped": 2}
        inversion_quality.invert_all(run, class_logit, targets, replace(SHORT, seed=seed), str(scene_folder), folder)
    inversion_quality.find_nearest(run, str(scene_folder), folders)
    together = [(folder / "nearest.csv").read_text() for folder in folders]
    assert [text.count("\n") for text in together] == [2, 3]
    for folder in folders:
        (folder / "nearest.csv").unlink()
        inversion_quality.find_nearest(run, str(scene_folder), [folder])
    assert [(folder / "nearest.csv").read_text() for folder in folders] == together
