import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from evaluation.pages.answers import CONTROL
from evaluation.pages.front_page import REPORTS, ROOT, links, page
from evaluation.metrics import results_table

FULL = ROOT / "results" / "full"


def result(name, right, accuracy=None):
    predictions = [1] * right + [0] * (40 - right)
    return {
        "settings": {"name": name},
        "labels": {"test": [1] * 40},
        "predictions": {"test": predictions},
        "test_accuracy": right / 40,
        "earlier_protocol_accuracy": right / 40,
        **dict.fromkeys(("earlier_protocol_epoch", "val_accuracy", "train_accuracy", "epoch", "seconds"), 1),
        "initial_weights": {"weights": "the run <a>", "began_with": {"weights": "ImageNet & more"}},
        "device": "cpu",
        "precision": "float32",
        "data": {"name": "15scene"},
    }


@pytest.fixture
def folder(tmp_path):
    row = "distilled"
    results = {row: result(row, 38), f"{row}.seed1": result(row, 36), CONTROL: result(CONTROL, 20)}
    for name, each in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(each))
    first = {name: each for name, each in results.items() if ".seed" not in name}
    results_table(first, {row: 0.8}).to_csv(tmp_path / "supervised.csv")
    return tmp_path


def test_the_page_holds_the_table_the_seeds_and_only_pictures_that_are_there(folder):
    (folder / "pretext_epochs.png").touch()
    classes = folder / "explanations" / "model" / "classes"
    classes.mkdir(parents=True)
    (classes / "settings.json").write_text("{}")
    pd.DataFrame({"name": ["coast"]}).to_csv(classes / "inversion.csv")
    written = page(folder, "full")
    assert "<b>0.9500</b>" in written and "0.8000" in written and "Seeds" in written and "0.9250" in written
    assert "<li>Taught by three of the first kind, for as long: 0.9250 (mean of 2 runs)" in written
    assert "ImageNet &amp; more" in written and "the run &lt;a&gt;" in written and "the run <a>" not in written
    pictures = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: pictures.append(dict(attributes)["src"]) if tag == "img" else None
    parser.feed(written)
    assert pictures == ["pretext_epochs.png", "explanations/model/classes/coast.png"]


def test_the_pretexts_have_a_table_of_their_own(folder):
    assert "The pretexts" not in page(folder, "full")
    results_table({"rotation_1": result("rotation_1", 30)}, {"rotation_1": 0.9}).to_csv(folder / "pretexts.csv")
    after = page(folder, "full").split("The pretexts")[1]
    assert "rotation_1" in after and "0.7500" in after and "0.9000" in after


def test_the_quick_page_says_that_no_number_means_anything(folder):
    assert "no number means anything" in page(folder, "quick") and "no number" not in page(folder, "full")


def test_reports_are_linked_where_they_have_been_made_and_their_notebooks_exist(folder):
    assert not any("report.html" in line for line in links(folder, {}))
    (folder / "supervised_report.html").touch()
    assert any('href="supervised_report.html"' in line for line in links(folder, {}))
    assert all((ROOT / path).is_file() for path in REPORTS)


def test_without_results_the_page_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results"):
        page(tmp_path, "full")


def test_the_committed_page_is_made_of_the_committed_results():
    committed = (FULL / "index.html").read_text()
    assert committed.split("<h2>All rows")[1] == page(FULL, "full").split("<h2>All rows")[1]
    assert committed.split("<h2>Reports")[0] == page(FULL, "full").split("<h2>Reports")[0]


def test_every_link_of_the_committed_page_leads_somewhere_in_a_fresh_clone():
    committed = (FULL / "index.html").read_text()
    linked = [FULL / each for each in re.findall(r'(?:href|src)="([^"]+)"', committed)]
    assert len(linked) > len(REPORTS) and all(path.exists() for path in linked)
