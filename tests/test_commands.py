"""What `make report` does around the notebooks, which are not executed here; .ci/run gives the command itself."""

import shutil

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from data.files import CODE
from evaluation.pages import front_page, report
from evaluation.pages.notebook import OWN_TABLE, REPORTS, data_of, profile_of, reason_to_leave_out
from experiments import EXPERIMENTS
from study import Task
from tests.make_own_images import make

SIDE_STUDIES = {"supervised/nature_report.ipynb", "self_supervised/cifar10_report.ipynb"}
OWN = "evaluation/own_images.ipynb"


@pytest.fixture
def executed(root, monkeypatch):
    """Reports are made without a kernel: a page of their name is written, and their path is noted."""
    paths = []

    def execute(path, html_folder, in_place=False):
        paths.append(path.relative_to(CODE).as_posix())
        html_folder.mkdir(parents=True, exist_ok=True)
        target = html_folder / front_page.html_name(path)
        target.write_text("<p>made</p>")
        return target

    monkeypatch.setattr(report, "execute", execute)
    for name in ("PROFILE", "DATA", "WEIGHTS", "COMPUTE"):
        monkeypatch.delenv(name, raising=False)
    return paths


def put_results(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("supervised_1", "imagenet_classifier_four_stages"):
        shutil.copy(CODE / "results" / "full" / f"{name}.json", folder)


def test_without_data_every_report_is_made_and_the_front_page_shows_the_results_on_synthetic_scenes(root, executed):
    put_results(root / "results/quick/synthetic")
    assert report.main([]) == 0
    assert set(executed) == {each.path for each in REPORTS.values()} - {OWN}
    page = (root / "results/quick/index.html").read_text()
    assert "supervised_1" in page and page.count(".html") == len(REPORTS) - 1


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_reports_whose_data_are_missing_are_left_out_and_the_others_are_made(
    root, executed, monkeypatch, profile, capsys
):
    monkeypatch.setenv("PROFILE", profile)
    if profile == "quick":
        make(root / "own")
        monkeypatch.setenv("DATA", str(root / "own"))
        put_results(root / "results/quick/own")
    else:
        (root / "data/15scene").mkdir(parents=True)
        put_results(root / "results/full")
    assert report.main([]) == 0
    missing = SIDE_STUDIES if profile == "quick" else SIDE_STUDIES | {OWN}
    assert set(executed) == {each.path for each in REPORTS.values()} - missing
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0] for line in lines if "left out" in line} == missing
    page = root / ("results/quick/own/index.html" if profile == "quick" else "results/full/index.html")
    assert page.read_text().count("left out") == len(missing) and "supervised_1" in page.read_text()


@pytest.mark.parametrize("failed", [[], ["byol"]])
def test_of_own_images_the_full_profile_trains_a_small_table_and_makes_one_report(
    root, executed, monkeypatch, capsys, failed
):
    asked = []

    def train_missing(names, profile, **changes):
        asked.append((list(names), profile, changes["data"], changes["options"]))
        return [Task(EXPERIMENTS[name], profile) for name in failed]

    monkeypatch.setattr(report, "train_missing", train_missing)
    monkeypatch.setenv("PROFILE", "full")
    make(root / "own")
    monkeypatch.setenv("DATA", str(root / "own"))
    put_results(root / "results/full/own")
    monkeypatch.setenv("SKIP_BAD_IMAGES", "1")
    assert report.main([]) == len(failed)
    assert asked == [(list(OWN_TABLE), "full", str(root / "own"), ["--skip-bad-images"])]
    assert executed == ([] if failed else [OWN])
    pages = [path.relative_to(root).as_posix() for path in root.rglob("index.html")]
    assert pages == ([] if failed else ["results/full/own/index.html"])  # that of the study stays as it is
    assert all(name in capsys.readouterr().err for name in failed)


def test_a_report_that_fails_ends_the_command_with_an_error_and_without_a_front_page(root, executed, monkeypatch):
    def fail(path, html_folder, in_place=False):
        raise CellExecutionError("traceback", "ValueError", "this cell fails")

    monkeypatch.setattr(report, "execute", fail)
    assert report.main([]) == 1
    assert not list((root / "results").rglob("index.html"))


def test_mistakes_get_one_sentence_and_exit_code_2(root, executed, monkeypatch, capsys):
    assert report.main(["nowhere.ipynb"]) == 2
    monkeypatch.setenv("PROFILE", "huge")
    assert report.main([]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "nowhere.ipynb" in errors[0] and "huge" in errors[1]


def test_profile_and_data_come_from_the_environment_with_defaults(root):
    nature = REPORTS["nature"]
    assert profile_of({}) == "quick" and data_of(nature, {}) == "synthetic"
    assert data_of(nature, {"PROFILE": "full"}) == "nature"
    (root / "data/nature").mkdir(parents=True)
    assert data_of(nature, {}) == "nature" and not reason_to_leave_out(nature, {})
    assert reason_to_leave_out(REPORTS["supervised"], {"PROFILE": "full"})


def test_where_images_are_to_be_left_out_only_the_report_on_own_images_is_made(scene_folder):
    environment = {"DATA": str(scene_folder), "SKIP_BAD_IMAGES": "1"}
    made = [name for name, each in REPORTS.items() if not reason_to_leave_out(each, environment)]
    assert made == ["own"] and REPORTS["own"].path in reason_to_leave_out(REPORTS["supervised"], environment)


def test_a_report_about_15_scene_is_left_out_where_other_data_of_the_study_are_named(root):
    for name in ("nature", "15scene"):
        (root / "data" / name).mkdir(parents=True)
    environment = {"PROFILE": "full", "DATA": "nature"}
    assert not reason_to_leave_out(REPORTS["nature"], environment)
    assert "DATA is nature" in reason_to_leave_out(REPORTS["supervised"], environment)
    assert not reason_to_leave_out(REPORTS["supervised"], environment | {"COMPUTE": "1"})
    assert not reason_to_leave_out(REPORTS["supervised"], environment | {"DATA": "15scene"})
    assert not reason_to_leave_out(REPORTS["supervised"], environment | {"PROFILE": "quick"})


def test_paths_of_the_environment_become_absolute_and_names_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").touch()
    found = report.absolute_paths({"WEIGHTS": "weights.pth", "DATA": "15scene", "PROFILE": "full"})
    assert found == {"WEIGHTS": str(tmp_path / "weights.pth")}


@pytest.mark.slow
def test_a_failing_cell_is_named_with_its_error_and_leaves_no_html(tmp_path):
    path = tmp_path / "folder" / "broken.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        report.execute(path, tmp_path / "html")
    assert not (tmp_path / "html").exists()
