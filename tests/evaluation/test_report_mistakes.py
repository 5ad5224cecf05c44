"""What the reports' command is told wrongly ends in one sentence and exit code 2, before any notebook runs."""

import pytest

from data.files import CODE
from evaluation.pages import notebook, report
from supervised.settings import EXPERIMENTS

OWN = str(CODE / "supervised" / "report.ipynb")
NATURE = str(CODE / "supervised" / "nature_report.ipynb")


@pytest.mark.parametrize(
    ("environment", "names", "words"),
    [
        ({"PROFILE": "huge"}, [OWN], "PROFILE is 'huge'"),
        ({}, ["supervised/gone.ipynb"], "supervised/gone.ipynb is no report"),
        ({"DATA": "nowhere"}, [], "there is no data folder"),
        ({"DATA": "~/nowhere"}, [OWN], "there is no data folder"),
        ({"DATA": "synthetic", "WEIGHTS": "gone.pth"}, [], "WEIGHTS is 'gone.pth'"),
        ({"DATA": "synthetic", "RESNET18_WEIGHTS": "imagenett"}, [NATURE], "RESNET18_WEIGHTS is 'imagenett'"),
        ({"DATA": "flat"}, [], "flat holds images and no class folders"),
        ({"PROFILE": "full", "DATA": "single"}, [], "at least 2 are needed"),
        ({"COMPUTE": "yes"}, [], "COMPUTE is 'yes'"),
        ({"PROFILE": "full", "DATA": "nature"}, [NATURE], "nature_report.ipynb cannot be made: the data set nature"),
    ],
)
def test_a_mistake_is_told_at_once(environment, names, words, root, monkeypatch, capsys):
    for name in ("PROFILE", "DATA", "WEIGHTS", "RESNET18_WEIGHTS", "COMPUTE"):
        monkeypatch.delenv(name, raising=False)
    for folder in (root / "flat", root / "single/dark"):
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(b"")
    monkeypatch.chdir(root)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(report, "execute", lambda *arguments: pytest.fail("a notebook was run"))
    assert report.main(names) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ") and words in sentence and len(sentence) < 320


def test_all_seeds_that_there_are_are_read_and_none_but_the_first_is_trained(monkeypatch, scene_folder):
    monkeypatch.setattr(notebook, "further_seeds", lambda experiment, profile: [7])
    asked = []

    def collect(experiments, profile, train_missing=False, skip_bad_images=False, progress=True):
        asked.extend((each.seed, train_missing) for each in experiments)
        return {f"{each.name}.{each.seed}": {} for each in experiments}

    monkeypatch.setattr(notebook, "collect", collect)
    study = notebook.Study("full", str(scene_folder), {}, compute=True)
    table = {"supervised_1": EXPERIMENTS["supervised_1"]}
    assert list(study.results(table)) == ["supervised_1.0"]
    assert list(study.results(table, all_seeds=True)) == ["supervised_1.0", "supervised_1.7"]
    assert asked == [(0, True), (0, True), (7, False)]


def test_a_quick_report_on_ones_own_images_trains_without_those_that_cannot_be_decoded(root, scene_folder):
    (scene_folder / "train/dark/broken.jpg").write_text("no image")
    study = notebook.Study("quick", str(scene_folder), {}, compute=True, skip_bad_images=True)
    (found,) = study.results({"random_classifier": EXPERIMENTS["random_classifier"]}).values()
    assert found["data"]["skipped"] == ["train/dark/broken.jpg"]


def test_on_data_without_the_weighed_classes_the_other_experiments_remain(scene_folder):
    study = notebook.Study("quick", str(scene_folder), {}, compute=False)
    left_out = EXPERIMENTS.keys() - study.configured(EXPERIMENTS).keys()
    assert "supervised_4" in left_out and left_out == {name for name, each in EXPERIMENTS.items() if each.class_weights}


def test_experiments_without_a_run_of_seed_0_are_apart_from_those_without_any(monkeypatch, scene_folder):
    said = []
    monkeypatch.setattr(notebook, "say", said.append)
    monkeypatch.setattr(notebook, "further_seeds", lambda each, profile: [1, 2] if each.name == "supervised_2" else [])
    study = notebook.Study("full", str(scene_folder), {}, compute=False)
    names = ("supervised_1", "supervised_2", "supervised_3")
    study.say_what_is_missing({name: EXPERIMENTS[name] for name in names}, {"supervised_1": {}})
    without, others = said[0].split(".", 1)
    assert "`supervised_3`" in without and "supervised_2" not in without
    assert "`supervised_2` (1, 2)" in others and "supervised_1`" not in said[0]
