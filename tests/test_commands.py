"""The README's first command as a user gives it, on notebooks that are one cell each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from evaluation.pages.front_page import REPORTS
from tests.test_notebooks import copy_of_the_code

RUN = """
import sys
sys.path.insert(0, "..")
from dataclasses import replace
from runs import collect_results, ROOT
from evaluation.metrics import results_table
from supervised.dataloader import build_loaders
from supervised.models import build_model
from supervised.settings import EXPERIMENTS, configure
import os
row = configure(EXPERIMENTS["random_classifier"], "quick", os.environ.get("DATA") or {data!r})
row = replace(row, image_size=32, images_per_class=2, batch_size=4)
results = collect_results([row], build_model, build_loaders, os.environ["PROFILE"])
results_table(results, {{}}).to_csv(ROOT / "results" / os.environ["PROFILE"] / "supervised.csv")
"""


def clone_with_short_reports(target: Path, data: str) -> Path:
    clone = copy_of_the_code(target)
    for path in REPORTS:
        source = RUN.format(data=data) if path == "supervised/report.ipynb" else "print('nothing to do')"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), clone / path)
    return clone


def make_report(clone: Path, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "evaluation.pages.report"],
        cwd=clone,
        env={**os.environ, "PROFILE": "quick", "DATA": "", **environment},
        capture_output=True,
        text=True,
    )


def images(folder: Path, *splits: str) -> Path:
    for split in splits:
        for name, grey in (("dark", 20), ("light", 200)):
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (40, 40), grey + number).save(folder / split / name / f"{number}.png")
    return folder


def test_a_fresh_clone_without_data_gets_all_reports_and_a_front_page(tmp_path):
    clone = clone_with_short_reports(tmp_path / "clone", "synthetic")
    done = make_report(clone)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (clone / "results/quick/index.html").read_text()
    assert "random_classifier" in page and "left out" not in page + done.stdout
    assert len(list((clone / "results/quick").glob("*.html"))) == len(REPORTS) + 1


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_a_report_whose_data_are_not_there_is_left_out_and_the_others_are_written(tmp_path, profile):
    clone = clone_with_short_reports(tmp_path / "clone", "15scene")
    own = images(tmp_path / "own", "train", "val", "test")
    environment = {"DATA": str(own)} if profile == "quick" else {}
    if profile == "full":
        images(clone / "data" / "15scene", "train", "val", "test")
    done = make_report(clone, PROFILE=profile, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(": left out, ") == 2
    page = (clone / f"results/{profile}/index.html").read_text()
    assert "random_classifier" in page and page.count("left out: ") == 2
    written = {path.name for path in (clone / f"results/{profile}").glob("*.html")}
    assert len(written) == len(REPORTS) - 2 + 1 and "self_supervised_cifar10_report.html" not in written
    assert json.loads(next((clone / f"results/{profile}").rglob("random_classifier.json")).read_text())
