from evaluation.pages.report import absolute_paths


def test_paths_given_to_notebooks_hold_in_any_folder_and_names_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").touch()
    found = absolute_paths({"WEIGHTS": "weights.pth", "DATA": "15scene", "PROFILE": "full"})
    assert found == {"WEIGHTS": str(tmp_path / "weights.pth")}
    assert absolute_paths({"WEIGHTS": ""}) == {}
