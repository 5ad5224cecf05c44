import importlib
import sys

import pandas as pd
import pytest
import torch

from evaluation import heat_maps, map_measures
from evaluation.map_measures import summarize
from tests.small_runs import small_run


@pytest.fixture(autouse=True)
def small_runs(root, monkeypatch):
    monkeypatch.setattr(map_measures, "load_run", small_run)


def test_every_method_is_measured_on_the_same_images(scene_folder, tmp_path):
    output = tmp_path / "heat_maps.csv"
    arguments = ["--models", "tiny", "--layer", "2", "--images", "2", "--split", "test", "--data", str(scene_folder)]
    assert heat_maps.main([*arguments, "--clusters", "2", "--output", str(output)]) == 0
    table = pd.read_csv(output).set_index("map")
    methods = {"Grad-CAM", "LayerCAM", "Recipro-CAM", "Score-CAM"}
    assert methods | {"random", "edges", "Score-CAM, 2 clusters or exact"} == set(table.index)
    assert (table["images"] == 2).all() and (table.loc[sorted(methods), "seconds"] > 0).all()


def test_gradients_are_found_in_a_frozen_network():
    run, images = small_run("tiny"), torch.randn(1, 3, 32, 32)
    expected = heat_maps.maps_at("2")(run, images, [0])["Grad-CAM"].maps
    run.model.requires_grad_(False)
    assert torch.equal(heat_maps.maps_at("2")(run, images, [0])["Grad-CAM"].maps, expected)


def test_without_the_library_nothing_is_measured_in_part(scene_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)  # importing it fails
    importlib.reload(heat_maps)
    output = tmp_path / "heat_maps.csv"
    assert heat_maps.main(["--models", "tiny", "--data", str(scene_folder), "--output", str(output)]) == 2
    assert ".[cam]" in capsys.readouterr().err and not output.exists()
    monkeypatch.undo()
    importlib.reload(heat_maps)
    assert list(heat_maps.GRADIENTS) == ["Grad-CAM", "LayerCAM"]


def test_a_library_map_that_is_not_finite_is_left_out_and_counted(scene_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(heat_maps, "_library_maps", lambda *given: lambda: torch.full((1, 32, 32), torch.nan))
    output = tmp_path / "heat_maps.csv"
    arguments = ["--models", "tiny", "--layer", "2", "--images", "1", "--data", str(scene_folder)]
    assert heat_maps.main([*arguments, "--output", str(output)]) == 0
    table = pd.read_csv(output).set_index("map")
    assert table["left_out"].to_dict()["LayerCAM"] == 1 and table["left_out"].to_dict()["Recipro-CAM"] == 0
    rows = pd.concat(map(pd.read_csv, output.with_suffix("").glob("*.csv")))
    assert summarize(rows.assign(model="tiny")).set_index("map").loc["Grad-CAM", "images"] == 1
