from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation import explained, map_measures, scorecam_defaults
from evaluation.map_measures import summarize, timed
from evaluation.scorecam import WEIGHTINGS, score_cam
from evaluation.split_images import evenly_spread
from evaluation.statistics import mean_difference
from tests.small_runs import small_run


def test_the_command_measures_every_definition_and_goes_on_where_it_stopped(root, scene_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(map_measures, "load_run", small_run)
    monkeypatch.setattr(scorecam_defaults, "LAYERS", ("2",))
    output = tmp_path / "out" / "defaults.csv"
    arguments = ["--models", "tiny", "absent", "--data", str(scene_folder), "--output", str(output)]
    assert scorecam_defaults.main([*arguments, "--images", "1"]) == 0
    (rows,) = output.with_suffix("").glob("tiny_*.csv")
    first = pd.read_csv(rows)
    assert {str(kind) for kind in first[["image", "target"]].dtypes} == {"int64"}  # 65 in the file, not 65.0
    assert scorecam_defaults.main([*arguments, "--images", "2"]) == 0
    again = pd.read_csv(rows)
    assert again["image"].nunique() == 2 and again[: len(first)].equals(first)  # not measured again: same seconds
    table = pd.read_csv(output)
    names = {*(f"{each}, stage 2" for each in WEIGHTINGS), "mean activation, stage 2", "random", "edges"}
    assert set(table["map"]) == names and (table["images"] == 2).all()
    assert table[["empty", "drop", "increase", "deletion", "insertion"]].notna().all(axis=None)
    assert scorecam_defaults.main(["--models", "absent", "--data", str(scene_folder), "--output", str(output)]) == 2


@pytest.mark.parametrize("name", ["hm", "hm.txt", "taken.csv"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(
    name, root, scene_folder, monkeypatch, capsys
):
    monkeypatch.setattr(map_measures, "load_run", small_run)
    monkeypatch.setattr(map_measures, "measure_run", lambda *given: pytest.fail("it was measured"))
    (root / "taken").write_text("a file where the folder of the rows would be")
    arguments = ["--models", "tiny", "--data", str(scene_folder), "--output", str(root / name), "--images", "1"]
    assert scorecam_defaults.main(arguments) == 2
    assert "--output is" in capsys.readouterr().err


def test_all_weightings_from_one_set_of_passes_are_those_of_score_cam(monkeypatch):
    run = small_run("tiny")
    monkeypatch.setattr(scorecam_defaults, "LAYERS", ("2",))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = scorecam_defaults.all_weightings(run, images, [0, 2])
    for weighting in WEIGHTINGS:
        expected = score_cam(run.model, images, run.layer("2"), [0, 2], weighting)
        assert torch.allclose(found[f"{weighting}, stage 2"].maps, expected.maps, atol=1e-3)


def test_maps_that_are_not_finite_are_left_out_and_counted():
    rows = pd.DataFrame(
        {
            "model": "a",
            "map": "m",
            "image": [0, 1, 2],
            "drop": [0.5, 0.1, float("nan")],
            "increase": [0, 1, float("nan")],
            "deletion": [0.2, 0.4, float("nan")],
            "insertion": [0.6, 0.8, float("nan")],
            "empty": [False, True, False],
            "fell_back": [True, False, False],
            "seconds": [1.0, 3.0, 2.0],
        }
    )
    (line,) = summarize(rows).to_dict("records")
    assert (line["images"], line["left_out"], line["seconds"]) == (3, 1, 2.0)
    assert line["empty"] == line["fell_back"] == pytest.approx(1 / 3)
    assert (line["deletion"], line["insertion"]) == (pytest.approx(0.3), pytest.approx(0.7))


def test_maps_are_timed_and_a_tensor_of_them_never_fell_back(monkeypatch):
    monkeypatch.setattr(map_measures.time, "perf_counter", iter([1.0, 3.5]).__next__)
    found = timed(lambda: torch.ones(2, 4, 4))
    assert found.fell_back.tolist() == [False, False] and found.seconds == 2.5


def test_each_kind_of_map_is_compared_with_the_controls_image_by_image():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, 30)
    rows = []
    for name, insertion in (("good", 0.6), ("random", 0.5), ("edges", 0.6 + noise), ("bad", 0.4)):
        values = {"insertion": insertion, "deletion": 0.3, "drop": 0.2, "increase": 0}
        facts = {"empty": False, "fell_back": False, "seconds": 1.0}
        for baseline, shift in (("black", 0.1), ("mean", -0.1)):  # of an image the mean over the baselines counts
            part = pd.DataFrame({"model": "a", "map": name, "baseline": baseline, "image": range(30)})
            part = part.assign(**values, **facts)
            rows.append(part.assign(insertion=part["insertion"] + shift))
    table = summarize(pd.concat(rows)).set_index("map")
    assert table["insertion_against_random"].to_dict() == {"good": "better", "random": "", "edges": "", "bad": "worse"}
    assert table["insertion_against_edges"].to_dict() == {
        "good": "inconclusive",
        "random": "",
        "edges": "",
        "bad": "worse",
    }
    assert table.loc["good", "deletion_against_edges"] == "inconclusive"  # equal everywhere
    # Two kinds of maps, four measures and two controls are one family of sixteen: at one in twenty it would be better.
    close = pd.concat(rows).assign(deletion=lambda each: 0.3 - 0.1 * (each["map"] == "good"))
    few = close[close["image"] < 2].assign(deletion=lambda each: each["deletion"] + 0.002 * each["image"])
    few.loc[(few["map"] == "good") & (few["image"] == 0), "deletion"] += 0.01
    assert mean_difference([0.1 - 0.01, 0.1]).verdict == "better"
    assert summarize(few).set_index("map").loc["good", "deletion_against_random"] == "inconclusive"


def test_the_images_of_a_smaller_count_are_among_those_of_a_larger_one():
    for images in (1, 2, 15, 61):
        assert sorted(evenly_spread(images, images)) == sorted(evenly_spread(images, images + 3)) == [*range(images)]
    for images, count in product((894, 2091), (1, 15, 30, 60)):
        few, more = evenly_spread(images, count), evenly_spread(images, count + 1)
        assert len(few) == count and few == more[:count]
        assert np.diff([0, *sorted(few), images]).max() <= 2 * images / (count + 1) + 1


def test_definitions_are_averaged_over_models_and_the_worst_share_counts():
    lines = [(model, "softmax", insertion, empty) for model, insertion, empty in (("a", 0.6, 0.0), ("b", 0.8, 0.5))]
    table = pd.DataFrame(lines, columns=["model", "map", "insertion", "empty"])
    table = table.assign(deletion=0.3, drop=0.2, increase=0.1, fell_back=[0.25, 0])
    found = explained.definition_table(table).loc["softmax"]
    assert found["insertion"] == pytest.approx(0.7) and (found["empty"], found["fell_back"]) == (0.5, 0.25)
