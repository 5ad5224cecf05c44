import html
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from data.files import CODE, run_command
from evaluation.pages.front_page import html_name, links, main, page, write
from evaluation.pages.notebook import REPORTS
from evaluation.pages.tables import difference_text
from evaluation.results import comparisons
from tests.evaluation.synthetic_results import seeds
from tests.evaluation.synthetic_results import write as write_results

FULL = CODE / "results" / "full"
CONTROL, PRETEXT = "imagenet_classifier_four_stages", "rotation_gentle_classifier"
RESULTS = {**seeds(CONTROL, range(20), range(22)), **seeds(PRETEXT, range(60), range(55))}


@pytest.fixture
def folder(tmp_path):
    write_results(tmp_path, RESULTS)
    return tmp_path


def test_the_page_holds_headlines_results_and_comparisons(folder):
    written = page(folder, "full", "15scene")
    line = comparisons(RESULTS).iloc[0]
    difference = difference_text(line["difference"], line["low"], line["high"])
    assert written.count(f"<td>{difference}</td>") == 2  # in the headlines and in the table of comparisons
    assert f"<td>{CONTROL}</td>" in written and "<td>worse</td>" in written


@pytest.mark.parametrize(("data", "below"), [("15scene", ""), ("flowers", "flowers/")])
def test_only_pictures_that_are_there_are_shown(folder, data, below):
    write_results(folder / below, RESULTS)
    assert "<img" not in page(folder, "full", data)
    (folder / below / "pretext_epochs.png").touch()
    classes = folder / below / "explanations" / "model" / "classes"
    classes.mkdir(parents=True)
    (classes / "settings.json").write_text("{}")
    pd.DataFrame({"name": ["coast"]}).to_csv(classes / "inversion.csv")
    pictures = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: pictures.append(dict(attributes)["src"]) if tag == "img" else None
    parser.feed(page(folder, "full", data))
    # The page of a user's own data lies beside its pictures.
    assert pictures == ["pretext_epochs.png", "explanations/model/classes/coast.png"]


def test_the_overview_of_the_study_is_on_its_page_only(folder):
    results = folder / "results" / "full"
    write_results(results, RESULTS)
    (folder / "docs").mkdir()
    (folder / "docs" / "overview.jpg").touch()
    assert 'src="../../docs/overview.jpg"' in page(results, "full", "15scene")
    assert "<img" not in page(results, "quick", "15scene")


def test_what_comes_from_files_is_escaped(folder):
    run = seeds("my <b>", [0])["my <b>"]
    run["initial_weights"] = {"weights": "the run <a>", "began_with": {"weights": "ImageNet & more"}}
    write_results(folder, {"mine": run})
    written = page(folder, "full", "15scene", left_out={"supervised/report.ipynb": "no <folder>"})
    assert "my &lt;b&gt;" in written and "the run &lt;a&gt;" in written and "ImageNet &amp; more" in written
    assert "no &lt;folder&gt;" in written
    assert "my <b>" not in written and "the run <a>" not in written and "no <folder>" not in written


def test_a_report_is_linked_where_it_was_made_and_its_reason_stands_where_it_was_left_out():
    made, left_out = [report.path for report in REPORTS.values()][:2]
    lines = links({left_out: "its data are missing"}, [made])
    assert f'href="{html_name(CODE / made)}"' in lines[0] and "left out" not in lines[0]
    assert "left out: its data are missing" in lines[1] and ".html" not in lines[1]
    assert ".html" not in lines[2] and "left out" not in lines[2]


def test_results_on_other_data_come_from_the_folder_of_that_data(folder):
    write_results(folder / "flowers", seeds("supervised_1", range(33)))
    written = page(folder, "quick", "somewhere/flowers")
    assert "0.6700" in written and CONTROL not in written and "mean nothing" in written
    assert "mean nothing" not in page(folder, "full", "15scene")
    with pytest.raises(FileNotFoundError, match="holds no results"):
        page(folder, "quick", "synthetic")


@pytest.mark.parametrize("data", ["15scene", "synthetic"])
def test_the_command_finds_the_results_that_the_reports_have_left(tmp_path, monkeypatch, data):
    monkeypatch.setenv("SCENES_ROOT", str(tmp_path))
    monkeypatch.setenv("PROFILE", "quick")
    monkeypatch.delenv("DATA", raising=False)
    assert run_command(main) == 2
    below = tmp_path / "results" / "quick"
    if data == "15scene":
        (tmp_path / "data" / data).mkdir(parents=True)
    write_results(below if data == "15scene" else below / data, RESULTS)
    assert run_command(main) == 0
    assert (below / "index.html").read_text() == page(below, "quick", data)


def test_the_page_of_the_study_begins_with_the_answer_of_the_readme():
    readme = " ".join((CODE / "README.md").read_text().split())
    [said] = re.findall(r"<p><b>([^<]+)</b></p>", page(FULL, "full", "15scene"))
    assert f"**{html.unescape(' '.join(said.split()))}**" in readme
    assert "</b></p>" not in page(FULL, "full", "cifar10")


def test_the_committed_page_is_that_of_the_committed_results():
    assert (FULL / "index.html").read_text() == page(FULL, "full", "15scene")


def test_every_link_of_the_committed_page_leads_somewhere_in_a_fresh_clone():
    linked = re.findall(r'(?:href|src)="([^"]+)"', (FULL / "index.html").read_text())
    assert len(linked) > len(REPORTS) and all((FULL / path).exists() for path in linked)


def test_the_page_is_written_into_the_folder(folder):
    assert write(folder, "full", "15scene").read_text() == page(folder, "full", "15scene")
