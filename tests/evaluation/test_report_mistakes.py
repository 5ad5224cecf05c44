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
        ({"COMPUTE": "yes"}, [], "COMPUTE is 'yes'"),
        ({"PROFILE": "full", "DATA": "nature"}, [NATURE], "nature_report.ipynb cannot be made: the data set nature"),
    ],
)
def test_a_mistake_is_told_at_once(environment, names, words, root, monkeypatch, capsys):
    for name in ("PROFILE", "DATA", "WEIGHTS", "RESNET18_WEIGHTS", "COMPUTE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(report, "execute", lambda *arguments: pytest.fail("a notebook was run"))
    assert report.main(names) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ") and words in sentence and len(sentence) < 320


def test_on_data_without_the_weighed_classes_the_other_experiments_remain(scene_folder):
    study = notebook.Study("quick", str(scene_folder), {}, compute=False)
    left_out = EXPERIMENTS.keys() - study.configured(EXPERIMENTS).keys()
    assert "supervised_4" in left_out and left_out == {name for name, each in EXPERIMENTS.items() if each.class_weights}
