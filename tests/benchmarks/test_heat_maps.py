import pandas as pd
import pytest
import torch

from benchmarks import heat_maps, scorecam_clusters
from benchmarks.chart import clusters_markdown
from evaluation import map_measures
from evaluation.map_measures import summarise
from tests.small_runs import small_run


@pytest.fixture(autouse=True)
def small_runs(root, monkeypatch):
    monkeypatch.setattr(map_measures, "load_trained", small_run)


def test_every_method_is_measured_on_the_same_images(scene_folder, tmp_path):
    output = tmp_path / "heat_maps.csv"
    arguments = ["--models", "tiny", "--layer", "2", "--images", "2", "--split", "test", "--data", str(scene_folder)]
    assert heat_maps.main([*arguments, "--clusters", "2", "--output", str(output)]) == 0
    table = pd.read_csv(output).set_index("map")
    methods = {"Grad-CAM", "LayerCAM", "Recipro-CAM", "Score-CAM"}
    assert methods | {"random", "edges", "Score-CAM, 2 clusters or exact"} == set(table.index)
    assert (table["images"] == 2).all() and (table["seconds"] >= 0).all()


def test_a_library_map_that_is_not_finite_is_left_out_and_counted(scene_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(heat_maps, "_library_maps", lambda *given: lambda: torch.full((1, 32, 32), torch.nan))
    output = tmp_path / "heat_maps.csv"
    arguments = ["--models", "tiny", "--layer", "2", "--images", "1", "--data", str(scene_folder)]
    assert heat_maps.main([*arguments, "--output", str(output)]) == 0
    table = pd.read_csv(output).set_index("map")
    assert table["left_out"].to_dict()["LayerCAM"] == 1 and table["left_out"].to_dict()["Recipro-CAM"] == 0
    rows = pd.concat(map(pd.read_csv, output.with_suffix("").glob("*.csv")))
    assert summarise(rows.assign(model="tiny")).set_index("map").loc["Grad-CAM", "images"] == 1


def test_the_clusters_after_the_check_are_summarised_beside_those_before():
    rows = pd.DataFrame({"run": "a", "weighting": "softmax", "clusters": 64, "passes": 128, "held_out": 0.5}, [0, 1])
    rows = rows.assign(correlation=[0.5, 0.995], agreement=[0.4, 1.0], exact=[True, False], share_of_time=0.1)
    rows = rows.assign(checked_correlation=[1.0, 0.995], checked_share_of_time=[1.0, 0.1])
    (line,) = scorecam_clusters.summarise(rows).to_dict("records")
    assert (line["lowest"], line["lowest_checked"], line["exact"]) == (0.5, 0.995, 0.5)
    assert line["checked_share_of_time"] == pytest.approx(0.55)
    assert "| 0.50 | 0.9950 | 0.550 |" in clusters_markdown(rows)
