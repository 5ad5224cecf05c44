"""Every report runs top to bottom in the quick profile, as in a fresh clone: synthetic scenes, random weights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]
DRAWN_AND_DECODED = (("data", "synthetic"), ("data", "stores"))  # what a notebook may leave besides results and models


@pytest.fixture(scope="module")
def drawn_scenes(tmp_path_factory) -> Path:
    """The synthetic scenes, drawn once: each notebook would spend a quarter of a minute on the same."""
    return prepare("synthetic", to=tmp_path_factory.mktemp("drawn") / "synthetic", progress=False)


def copy_of_the_code(target: Path, drawn_scenes: Path | None = None) -> Path:
    """The project as a fresh clone has it: no models, no results, no prepared data, or the drawn scenes alone."""

    def ignore(folder, names):
        if Path(folder) == ROOT:
            return {".git", ".venv", "models", "results", "tests"} & set(names)
        if Path(folder) == ROOT / "data":
            return {name for name in names if (ROOT / "data" / name).is_dir() and name != "manifests"}
        return {"__pycache__"} & set(names)

    shutil.copytree(ROOT, target, ignore=ignore)
    if drawn_scenes is not None:
        shutil.copytree(drawn_scenes, target / "data" / "synthetic")
    return target


def execute(folder: Path, *notebooks: str) -> subprocess.CompletedProcess:
    ours = ("DATA", "WEIGHTS", "TRAIN_MISSING", "PROBE", "EXPLAIN")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    before = files_of(folder)
    done = subprocess.run(
        [sys.executable, "-m", "evaluation.pages.report", *notebooks],
        cwd=folder,
        env={**environment, "PROFILE": "quick"},
        capture_output=True,
        text=True,
    )
    after = files_of(folder)
    assert before.items() <= after.items()  # nothing is changed or gone
    written = {path.parts[:2] for path in after.keys() - before.keys()}
    assert all(parts[0] in ("results", "models") or parts in DRAWN_AND_DECODED for parts in written), written
    return done


def files_of(folder: Path) -> dict[Path, int]:
    """Every file of the code's copy and when it was last written; without what Python compiles."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in paths}


def test_the_self_supervised_report_runs_in_the_quick_profile_from_pretexts_to_probes(tmp_path, drawn_scenes):
    clone = copy_of_the_code(tmp_path / "clone", drawn_scenes)
    done = execute(clone, "self_supervised/report.ipynb")
    assert done.returncode == 0, done.stderr[-4000:]
    html = (clone / "results/quick/self_supervised_report.html").read_text()
    for words in ("Profile <code>quick</code>", "data <strong>synthetic</strong>", "initial weights random"):
        assert words in html
    assert "nothing; the tables are whole" in html
    assert "Not probed yet: nothing; probed on other weights than the results': nothing." in html.replace("&#39;", "'")
    results = clone / "results/quick/synthetic"
    classifier = json.loads((results / "perturbation_classifier_tuned_3.json").read_text())
    assert classifier["initial_weights"]["weights"] == "perturbation_tuned, epoch 2"
    epochs = (clone / "results/quick/pretext_epochs.csv").read_text().splitlines()
    assert len(epochs) == 1 + 7


def test_the_supervised_report_runs_in_the_quick_profile_and_its_network_learns(tmp_path):
    clone = copy_of_the_code(tmp_path / "clone")
    done = execute(clone, "supervised/report.ipynb")
    assert done.returncode == 0, done.stderr[-4000:]
    html = (clone / "results/quick/supervised_report.html").read_text()
    for words in ("Profile <code>quick</code>", "data <strong>synthetic</strong>", "initial weights random"):
        assert words in html
    result = json.loads((clone / "results/quick/synthetic/supervised_1.json").read_text())
    assert result["test_accuracy"] > 0.6
    assert "nothing; the table is whole" in html


def test_the_nature_report_runs_in_the_quick_profile_from_the_split_to_the_spectra(tmp_path, drawn_scenes):
    clone = copy_of_the_code(tmp_path / "clone", drawn_scenes)
    done = execute(clone, "supervised/nature_report.ipynb")
    assert done.returncode == 0, done.stderr[-4000:]
    html = (clone / "results/quick/supervised_nature_report.html").read_text()
    for words in (
        "Profile <code>quick</code>",
        "data <strong>synthetic</strong>",
        "nothing; the table is whole",
        "Made from other weights than the scores: nothing.",
    ):
        assert words in html
    results = clone / "results/quick/synthetic"
    assert {json.loads(path.read_text())["settings"]["image_size"] for path in results.glob("nature_*.json")} == {
        32,
        37,
        56,
    }
    scores = np.load(results / "scores_nature_efficientnet_best.npy")
    result = json.loads((results / "nature_efficientnet_best.json").read_text())
    assert scores.argmax(axis=1).tolist() == result["predictions"]["test"]
    text = (results / "non_positive.txt").read_text()
    assert "features.layer4.1.conv2" in text and "features.stem.maxpool" in text
    images = [line.split(",")[0] for line in (results / "spectra.csv").read_text().splitlines()[1:]]
    assert max(images.count("25"), images.count("50")) == 2 * 49  # of 50 images at most 49 eigenvalues are above zero


def test_the_cifar10_report_runs_in_the_quick_profile_and_pairs_rows_of_one_seed(tmp_path, drawn_scenes):
    clone = copy_of_the_code(tmp_path / "clone", drawn_scenes)
    done = execute(clone, "self_supervised/cifar10_report.ipynb")
    assert done.returncode == 0, done.stderr[-4000:]
    html = (clone / "results/quick/self_supervised_cifar10_report.html").read_text()
    for words in ("Profile <code>quick</code>", "data <strong>synthetic</strong>", "initial weights random"):
        assert words in html
    assert "nothing; the tables are whole" in html
    assert "Not probed yet: nothing; probed on another run than the results': nothing." in html.replace("&#39;", "'")
    results = clone / "results/quick/synthetic"
    fine_tuned = json.loads((results / "cifar10_rotation_finetuned.seed1.json").read_text())
    assert fine_tuned["initial_weights"]["weights"] == "cifar10_rotation.seed1, epoch best"
    pairs = (results / "with_against_without.csv").read_text().splitlines()[1:]
    assert "seed 1,cifar10_rotation_finetuned.seed1,cifar10_scratch.seed1," in "\n".join(pairs)
    assert len(pairs) == 3 * 2


def test_the_search_notebook_runs_in_the_quick_profile_from_searches_to_inversions(tmp_path, drawn_scenes):
    clone = copy_of_the_code(tmp_path / "clone", drawn_scenes)
    done = execute(clone, "supervised/hyperparameter_search.ipynb")
    assert done.returncode == 0, done.stderr[-4000:]
    html = (clone / "results/quick/supervised_hyperparameter_search.html").read_text()
    for words in ("Profile <code>quick</code>", "data <strong>synthetic</strong>", "initial weights random"):
        assert words in html
    assert "nothing; the table is whole" in html
    searches = clone / "results/quick/synthetic/searches"
    samplers = [path.name.split("_")[3] for path in searches.glob("imagenet_classifier_tuned_*_seed1.csv")]
    assert sorted(samplers) == ["gp", "grid", "random", "tpe"]
    assert {"inversion_imagenet_classifier_tuned_filter70_tpe_seed0.curves.csv"} <= {
        path.name for path in searches.iterdir()
    }


def test_the_evaluation_explains_all_models_in_the_quick_profile(tmp_path, drawn_scenes):
    clone = copy_of_the_code(tmp_path / "clone", drawn_scenes)
    done = execute(clone, "evaluation/evaluation.ipynb")
    assert done.returncode == 0, done.stderr[-4000:]
    html = (clone / "results/quick/evaluation_evaluation.html").read_text().replace("&#39;", "'")
    for words in ("Profile <code>quick</code>", "data <strong>synthetic</strong>", "initial weights random"):
        assert words in html
    assert "have no result yet: none; all are there." in html
    assert "Not explained yet: nothing; explained with other weights than the results': nothing" in html
    kept = clone / "results/quick/explanations"
    for name in ("rotation_gentle_classifier", "perturbation_gentle_classifier"):
        assert {"bedroom.png", "sheet.png", "losses.csv"} <= {path.name for path in (kept / name / "classes").iterdir()}
    assert len((kept / "images.csv").read_text().splitlines()) == 1 + 2
    judged = (kept / "judged.csv").read_text().splitlines()
    assert len(judged) == 1 + 3 * 5 * 4  # models, classes, judges


def test_a_notebook_that_fails_is_named_with_its_error_and_leaves_no_html(tmp_path):
    clone = copy_of_the_code(tmp_path / "clone")
    broken = clone / "supervised" / "report.ipynb"
    notebook = json.loads(broken.read_text())
    notebook["cells"][1]["source"] = "raise RuntimeError('this cell fails')"
    broken.write_text(json.dumps(notebook))
    done = execute(clone, "supervised/report.ipynb")
    assert done.returncode == 1
    assert "supervised/report.ipynb failed" in done.stderr
    assert "this cell fails" in done.stderr
    assert not list((clone / "results").rglob("*.html"))


@pytest.mark.parametrize("word", [str(ROOT), "/home/", "/Users/"])
def test_no_notebook_shows_a_path_of_the_machine_it_ran_on(word):
    for path in ROOT.glob("*/*.ipynb"):
        assert word not in path.read_text(), path
