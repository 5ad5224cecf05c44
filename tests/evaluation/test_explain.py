"""What is cached of each model: of the right weights, complete, and not computed twice."""

import json
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from data.files import CODE
from evaluation import explain, explained, map_measures, probes
from evaluation.checkpoints import TrainedRun
from evaluation.model_inversion import InversionSettings, score_by_another
from evaluation.statistics import mean_and_interval, mean_difference
from supervised.models import SceneClassifier, estimate_batchnorm

CLASSES = ("dark", "light", "striped")


def a_run(seed: int = 0, name: str = "") -> TrainedRun:
    """A network of random weights whose outputs depend on the image, for images of 32 pixels."""
    torch.manual_seed(seed)
    model = SceneClassifier(3)
    estimate_batchnorm(model, [(torch.randn(16, 3, 32, 32), None)])
    return TrainedRun(name or f"run_{seed}", model.eval(), CLASSES, 32, "imagenet", weights=f"digest {seed}")


class Images(Dataset):
    """Random images, of one brightness per class."""

    def __init__(self, number: int = 96):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(number) % 3
        self.images = torch.randn(number, 3, 32, 32, generator=generator) + labels.view(-1, 1, 1, 1)
        names = [f"{CLASSES[label]}/{index}.jpg" for index, label in enumerate(labels)]
        pixels = self.images.mean(dim=1, keepdim=True).clamp(0, 1).mul(255).byte().numpy()
        self.scenes = SimpleNamespace(
            names=names, labels=labels.numpy(), images=pixels, class_names=CLASSES, fingerprint="images"
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], int(self.scenes.labels[index])


def read_maps(folder, size=32):
    with np.load(folder / "scorecam.npz") as saved:
        return explained.heat_maps(dict(saved), size)


def test_a_folder_of_other_weights_or_images_is_emptied_and_one_of_the_same_is_not(tmp_path):
    for other in (("other", "images"), ("abc", "others")):
        folder = explain.open_folder(tmp_path / "run", "abc", "images")
        (folder / "test.npz").write_text("cached")
        assert (explain.open_folder(folder, "abc", "images") / "test.npz").exists()
        assert not (explain.open_folder(folder, *other) / "test.npz").exists()
        assert json.loads((folder / "weights.json").read_text()) == dict(zip(("weights", "images"), other, strict=True))


def test_inversions_of_another_recipe_are_made_again_and_those_of_the_same_are_not(tmp_path):
    run, settings = a_run(), InversionSettings(image_size=32, jitter=2, steps=20)

    def made(settings):
        explain.invert_again(run, explain.class_logit, {"dark": 0, "a/b": 1}, settings, "none", tmp_path / "classes")
        return (tmp_path / "classes" / "a%2Fb.png").stat().st_mtime_ns

    first = made(settings)
    assert made(settings) == first
    assert made(replace(settings, learning_rate=0.1)) != first
    assert explained.read_inversion(tmp_path / "classes").table["name"].tolist() == ["dark", "a/b"]


def test_features_are_read_back_for_the_same_weights_and_computed_for_others(tmp_path, monkeypatch):
    run, loader = a_run(), DataLoader(Images(), 32)
    features, labels = probes.features_of(run.model, loader, "abc", tmp_path / "f.npz")
    monkeypatch.setattr(probes, "stage_features", lambda *_: ("computed", "again"))
    again, labels_again = probes.features_of(run.model, loader, "abc", tmp_path / "f.npz")
    assert all(np.array_equal(one, other) for one, other in zip(features, again, strict=True))
    assert np.array_equal(labels, labels_again)
    assert probes.features_of(run.model, loader, "other", tmp_path / "f.npz") == ("computed", "again")


def test_cached_probabilities_are_the_models_own(tmp_path):
    run, dataset = a_run(), Images()
    features, labels = probes.stage_features(run.model, DataLoader(dataset, 32))
    explain.describe_test_images(run.model, features, labels, tmp_path)
    with np.load(tmp_path / "test.npz") as saved, torch.no_grad():
        assert np.allclose(saved["probabilities"], run.model(dataset.images).softmax(dim=1).numpy(), atol=1e-5)
        assert saved["places"].shape == (96, 2) and np.array_equal(saved["labels"], dataset.scenes.labels)
    table = pd.read_csv(tmp_path / "representation.csv")
    assert table["stage"].tolist() == list(range(9))
    assert table["neighbour_purity"].between(0, 1).all() and (table["rank_me"] <= table["channels"]).all()


def test_cached_maps_are_those_of_score_cam_and_are_made_again_for_other_images(tmp_path):
    run, images = a_run(), Images(2).images
    explain.explain_images(run, images, [0, 1], ["a", "b"], tmp_path)
    maps = read_maps(tmp_path)
    assert list(maps) == ["1", "2", "8"]
    expected = explain.score_cam(run.model, images, run.layer("2"), [0, 1]).maps
    assert (maps["2"] - expected).abs().max() < 1 / 255
    before = (tmp_path / "scorecam.npz").stat().st_mtime_ns
    explain.explain_images(run, images, [0, 1], ["a", "b"], tmp_path)
    assert (tmp_path / "scorecam.npz").stat().st_mtime_ns == before
    explain.explain_images(run, images, [0, 1], ["a", "c"], tmp_path)
    assert (tmp_path / "scorecam.npz").stat().st_mtime_ns != before


def test_maps_of_an_interrupted_call_are_not_computed_again(tmp_path, monkeypatch):
    run, images, names = a_run(), Images(3).images, ["a", "b", "c"]
    explain.explain_images(run, images, [0, 1, 2], names, tmp_path)
    complete = read_maps(tmp_path)
    (tmp_path / "scorecam.npz").unlink()
    explain.explain_images(run, images[:2], [0, 1], names[:2], tmp_path)
    calls, score_cam = [], explain.score_cam
    monkeypatch.setattr(explain, "score_cam", lambda *given: calls.append(1) or score_cam(*given))
    explain.explain_images(run, images, [0, 1, 2], names, tmp_path)
    assert len(calls) == 3  # one image, at three layers
    assert all(torch.equal(maps, complete[layer]) for layer, maps in read_maps(tmp_path).items())


def test_the_images_that_activate_a_filter_most_come_first_and_ties_in_their_order():
    features = np.array([[0.1, 5], [0.9, 5], [0.5, 1], [0.7, 5]])
    table = explain.activating_images(features, [0, 1], ["a", "b", "c", "d"])
    assert table["filter"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table["image"].tolist() == ["b", "d", "c", "a", "b", "d"]
    assert table["mean"].tolist() == [0.9, 0.7, 0.5, 5, 5, 5]


def test_answers_to_a_blind_sheet_are_counted_against_its_key(tmp_path):
    folder = tmp_path / "one" / "classes"
    folder.mkdir(parents=True)
    key = {"sheet": "digest", "answers": {"1": "coast", "2": "forest", "3": "street"}}
    (folder / "sheet.key.json").write_text(json.dumps(key))
    assert explained.blind_hits(tmp_path, ["one", "other"]).empty
    answers = {"who": "A. Reader", "sheet": "digest", "answers": {"1": "coast", "2": "street"}}
    (folder / "sheet.answers.json").write_text(json.dumps({**answers, "sheet": "of an older sheet"}))
    assert explained.blind_hits(tmp_path, ["one", "other"]).empty
    (folder / "sheet.answers.json").write_text(json.dumps(answers))
    (line,) = explained.blind_hits(tmp_path, ["one", "other"]).to_dict("records")
    assert (line["model"], line["recognized"], line["classes"]) == ("one", 1, 3)
    assert line["mistaken"] == "forest for street; street for None"


def test_the_probability_by_others_leaves_out_the_network_that_made_the_image():
    lines = [("one", "one", "coast", 0.9), ("one", "other", "coast", 0.2), ("one", "third", "coast", 0.4)]
    lines += [("other", "one", "coast", 0.5), ("other", "other", "coast", 1.0), ("other", "third", "coast", 0.1)]
    recognition = pd.DataFrame(lines, columns=["model", "evaluator", "class", "probability"])
    assert explained.mean_probability_by_others(recognition).tolist() == pytest.approx([0.3, 0.3])
    assert explained.recognition_by_model(recognition).loc["one"].tolist() == [0.9, 0.2, 0.4]


@pytest.fixture
def subjects(tmp_path, monkeypatch):
    """Two models and the control, on the same images, with little to compute."""
    recipe = InversionSettings(image_size=32, jitter=2)
    monkeypatch.setattr(map_measures, "STEPS", 2)
    monkeypatch.setattr(explain, "find_nearest", lambda *_: None)  # these images lie in no folder
    for name, value in (("RANDOMIZED", ("classifier", "features.8")), ("RECIPE", recipe)):
        monkeypatch.setattr(explain, name, value)
    loader = DataLoader(Images(), 32)
    return [
        explain.Subject(a_run(seed, name), loader, "none", tmp_path / "cache" / name, tmp_path / f"{name}.features.npz")
        for seed, name in enumerate(("one", "other", explain.CONTROL))
    ]


@pytest.mark.filterwarnings("ignore:An input array is constant")  # an empty map
def test_all_models_are_explained_in_one_call_and_read_back(subjects, tmp_path, monkeypatch):
    monkeypatch.setattr(explained, "AGREEMENT", 0.9)  # probabilities of random networks are nearly ties
    folder, scenes = tmp_path / "cache", subjects[0].loader.dataset.scenes
    effort = explain.Effort(measured_images=2, inversion_steps=20)
    explain.explain(subjects, np.array([0, 1]), folder, effort)
    assert {path.name for path in (folder / "one").iterdir()} == {
        *("weights.json", "test.npz", "representation.csv", "scorecam.npz", "faithfulness.csv", "randomisation.csv"),
        *("activating.csv", "classes", "filters"),
    }
    methods = ("Score-CAM", "Recipro-CAM", "Grad-CAM", "LayerCAM", "random", "edges")
    measured = pd.read_csv(folder / "one" / "faithfulness.csv")
    kinds = measured.groupby(["map", "baseline"])["image"].nunique()
    assert set(kinds.index) == {*product(methods, ("black", "mean", "blurred"))}
    assert (kinds == 2).all() and measured[["drop", "deletion", "insertion"]].notna().all(axis=None)
    assert not (folder / "other" / "randomisation.csv").exists()
    assert len(list((folder / explain.CONTROL).iterdir())) == 4

    predictions = {
        subject.run.name: subject.run.model(subject.loader.dataset.images).argmax(dim=1).tolist()
        for subject in subjects
    }
    results = {name: {"predictions": {"test": predicted}} for name, predicted in predictions.items()}
    found = explained.read_explanations(folder, results, scenes, np.array([0, 1]))
    assert (found.missing, found.stale) == ([], [])
    assert (found.agreement > 0.9).all()
    assert set(zip(found.methods["model"], found.methods["map"], strict=True)) == {*product(predictions, methods)}
    assert found.cka.shape == (12, 12) and np.allclose(np.diag(found.cka), 1)
    assert list(found.inversions) == [(name, kind) for name in ("one", "other") for kind in ("classes", "filters")]
    assert found.inversions["one", "classes"].settings["objective"] == "class_logit"
    assert found.map_table["images"].tolist() == [2] * 6

    recognition = found.recognition.set_index(["model", "evaluator"])["probability"]
    run, pictures = subjects[0].run, found.inversions["one", "classes"].pictures.float() / 255
    own = score_by_another(run.model, pictures, [0, 1, 2], run.mean, run.std)
    assert recognition["one", "one"].tolist() == pytest.approx(own.tolist(), abs=1e-4)

    images, titles, maps = explained.sheet(found, "other")
    assert titles == scenes.names[:2] and len(images) == 2 and list(maps) == [f"stage {n}" for n in explain.LAYERS]
    assert explained.inversion_table(found)["name"].tolist()[:3] == list(CLASSES)
    others_word = found.recognition.query("model == 'other' and evaluator != 'other' and `class` == 'light'")
    pictures, titles = explained.class_lines(found, ["light"])["other"]
    assert len(pictures) == 1 and titles == [f"light\n{others_word['probability'].mean():.2f}"]
    lines = explained.filter_lines(found)
    assert len(lines) == 2 * 5 and all(pictures.shape == (4, 3, 32, 32) for pictures, _ in lines.values())
    assert explained.representation_table(found.representation).shape == (9, 6)
    assert explained.recognition_by_model(found.recognition).shape == (2, 3)
    worst, titles = explained.mistake_lines(found, count=3)["one"]
    assert len(worst) == len(titles) == 3 and all(", not\n" in title for title in titles)

    explain.draw_last_maps(found, tmp_path / "sheet.jpg")
    assert (tmp_path / "sheet.jpg").stat().st_size > 1000
    stale = explained.read_explanations(folder, results, scenes, np.array([1, 0])).stale
    assert stale == ["one", "other"]  # their maps are of other images; the control has none
    results["other"]["predictions"]["test"] = [(label + 1) % 3 for label in predictions["other"]]
    assert explained.read_explanations(folder, results, scenes, np.array([0, 1])).stale == ["other"]


def test_a_few_test_images_of_other_classes_are_enough(tmp_path):
    run, features = a_run(), [np.random.default_rng(stage).random((6, 1280), np.float32) for stage in range(9)]
    explain.describe_test_images(run.model, features, np.arange(6) % 3, tmp_path)
    with np.load(tmp_path / "test.npz") as saved:
        assert np.isfinite(saved["places"]).all() and saved["probabilities"].shape == (6, 3)
    assert pd.read_csv(tmp_path / "representation.csv")["neighbour_purity"].tolist() == pytest.approx([0.2] * 9)


def test_randomization_is_averaged_over_images_with_an_interval_over_seeds():
    lines = [("head", seed, image, 0.1 * seed + image) for seed in range(3) for image in (0, 1)]
    lines += [("features.8", seed, image, np.nan if image else 0.5) for seed in range(3) for image in (0, 1)]
    table = explained.randomization_table(pd.DataFrame(lines, columns=["part", "seed", "image", "correlation"]))
    assert table.index.tolist() == ["head", "features.8"] and table["seeds"].tolist() == [3, 3]
    assert table.loc["head", ["mean", "from", "to"]].tolist() == pytest.approx(mean_and_interval([0.5, 0.6, 0.7]))
    assert table.loc["features.8", "mean"] == 0.5  # an empty map has no correlation
    older = pd.DataFrame({"part": ["head"] * 2, "image": [0, 1], "correlation": [0.2, 0.4]})
    found = explained.randomization_table(older)
    assert found.loc["head", "mean"] == pytest.approx(0.3) and np.isnan(found.loc["head", "to"])


def test_a_randomization_of_one_seed_by_older_code_is_made_again_and_an_interrupted_one_continues(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(explain, "RANDOMIZED", ("classifier",))
    seeds = []
    monkeypatch.setattr(
        explain.faithfulness,
        "cascading_randomization",
        lambda *arguments: [seeds.append(arguments[-1]), np.full((1, 2), 0.5)][1],
    )
    pd.DataFrame({"part": ["head"], "image": [0], "correlation": [0.2]}).to_csv(tmp_path / "randomisation.csv")
    for number in (2, 3, 3):
        explain.randomize(a_run(), torch.zeros(2, 3, 32, 32), {"a": 0, "b": 1}, tmp_path, seeds=number)
    assert seeds == [0, 1, 2]
    table = pd.read_csv(tmp_path / "randomisation.csv")
    assert table["seed"].tolist() == [0, 0, 1, 1, 2, 2] and table["correlation"].eq(0.5).all()
    assert table["image"].tolist() == ["a", "b"] * 3
    explain.randomize(a_run(), torch.zeros(2, 3, 32, 32), {"a": 0, "c": 1}, tmp_path, seeds=1)
    assert pd.read_csv(tmp_path / "randomisation.csv")["image"].tolist() == ["a", "c"]


def test_tables_of_an_empty_cache_are_empty():
    empty = pd.DataFrame()
    assert explained.measured_maps(empty).empty and explained.recognition_by_model(empty).empty
    assert explained.mean_probability_by_others(empty).unstack("model").empty
    nothing = SimpleNamespace(inversions={}, recognition=empty)
    assert explained.inversion_table(nothing).empty and explained.class_lines(nothing, ["coast"]) == {}
    assert explained.randomization_table(empty).empty and explained.representation_table({}).empty
    tables = explained.definition_table, explained.nearness_table, explained.compare_with_score_cam
    for table_of in (*tables, map_measures.compare_by_model):
        assert table_of(empty).empty


def test_cheaper_maps_are_compared_with_score_cam_image_by_image():
    values = {"Score-CAM": [0.5, 0.6, 0.7], "Grad-CAM": [0.61, 0.7, 0.79], "random": [0.1, 0.2, 0.3]}
    rows = pd.DataFrame(values).melt(var_name="map", value_name="insertion", ignore_index=False)
    rows = rows.rename_axis("image").reset_index().assign(model="a", drop=0.2, increase=0, deletion=0.3)
    table = explained.compare_with_score_cam(rows)
    assert table.index.tolist() == [("a", "Grad-CAM")]
    expected = mean_difference([0.11, 0.1, 0.09], comparisons=4)
    assert table["insertion"].item() == f"+0.100 ({expected.low:+.3f} to {expected.high:+.3f}), better"
    assert table["deletion"].item().startswith("+0.000") and table["deletion"].item().endswith("inconclusive")


def test_the_nearest_class_image_of_a_model_counts():
    nearest = pd.DataFrame({"model": ["a", "a", "b"], "similarity": [0.2, 0.6, 0.9], "median_of_val": 0.7})
    assert explained.nearness_table(nearest).to_numpy().tolist() == [[0.6, 0.7], [0.9, 0.7]]


def test_models_that_look_at_the_same_places_correlate():
    maps, others = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    table = explained.compare_models({"one": {"8": maps}, "same": {"8": maps**2}, "other": {"8": others}})
    correlations = table.set_index(["one", "other"])["correlation"]
    assert correlations["one", "same"] == pytest.approx(1)
    assert abs(correlations["one", "other"]) < 0.3


def test_an_empty_map_is_counted_and_left_out_of_the_comparison():
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    emptied = torch.stack([maps[0] ** 2, torch.zeros(8, 8)])
    by_model = {"one": {"8": maps}, "other": {"8": emptied}}
    assert explained.compare_models(by_model)["correlation"].tolist() == pytest.approx([1])
    table = explained.describe_maps(by_model, {"one": np.array([[0, 0]]), "other": np.array([[3, 4]])})
    assert table["empty maps"].tolist() == [0, 1]
    assert table["constant channels"].tolist() == [0, 7]


def test_without_a_result_nothing_can_be_explained(root, capsys):
    assert explain.main(["--profile", "quick"]) == 2
    assert "there is no result of distilled_long" in capsys.readouterr().err


def test_the_committed_cache_is_of_the_weights_of_the_committed_results():
    folder = CODE / "results" / "full"
    names = (*explain.COMPARED, explain.CONTROL)
    results = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    with np.load(folder / "explanations" / explain.COMPARED[0] / "scorecam.npz") as saved:
        shown = list(saved["names"])
    tables = [pd.read_csv(folder / "explanations" / name / "activating.csv") for name in explain.COMPARED]
    names = [*shown, *sorted(set(pd.concat(tables)["image"]) - set(shown))]
    scenes = SimpleNamespace(names=names, images=np.zeros((len(names), 1, 56, 56)))
    found = explained.read_explanations(folder / "explanations", results, scenes, np.arange(len(shown)))
    assert (found.missing, found.stale) == ([], [])
    assert found.map_table["images"].tolist() == [4] * 12
    assert len(found.inversions) == 8 and found.cka.shape == (20, 20)
    assert (
        (found.methods["images"] == explain.EFFORT["full"].measured_images).all()
        and len(found.methods) == 30
        and found.methods["empty"].eq(0).all()
    )
    assert found.recognition.groupby(["model", "evaluator"]).size().tolist() == [15] * 20
