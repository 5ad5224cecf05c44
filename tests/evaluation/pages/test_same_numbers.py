"""The same pair of experiments has the same numbers and verdict on every page."""

import json
import re
from html.parser import HTMLParser
from operator import itemgetter

import pytest

from data.files import CODE
from evaluation.pages.notebook import REPORTS
from evaluation.pages.tables import HEADLINES, difference_text, p_text, verdict_text
from evaluation.results import PRIMARY
from experiments import EXPERIMENTS

MARKDOWN = {name: CODE / name for name in ("README.md", "docs/results.md", "docs/claims.md")}
FRONT_PAGE = CODE / "results" / "full" / "index.html"


class Cells(HTMLParser):
    """The texts of all table cells, line by line."""

    def __init__(self):
        super().__init__()
        self.lines = [[]]

    def handle_starttag(self, tag, attributes):
        if tag in ("tr", "p", "script"):
            self.lines.append([])
        self.lines[-1].append("")

    def handle_data(self, data):  # in pieces, where there is a "<"
        self.lines[-1] = [*self.lines[-1][:-1], (self.lines[-1] or [""])[-1] + data]


@pytest.fixture(scope="module")
def expected(compared):
    """By pair and classes: what every page must show of it."""
    return {
        (line["experiment"], line["compared_with"], line["classes"]): (
            difference_text(line["difference"], line["low"], line["high"]),
            p_text(line["p"]),
            verdict_text(line),
        )
        for line in compared.to_dict("records")
    }


def in_html(text):
    cells = Cells()
    cells.feed(text)
    return [[cell.strip() for cell in line if cell.strip()] for line in cells.lines]


def shown_in(lines, expected):
    """The comparisons in the lines of a table of `tables.shown_comparisons`: pair, difference, p, verdict.

    A notebook may leave out the last column, the machines.
    """
    experiments, order = {key[0] for key in expected}, itemgetter(6, 7, 2, 3, 1)
    return [order(line) for line in lines if len(line) in (9, 10) and line[6] in experiments]


def of_all_images(expected):
    return {key[:2]: numbers for key, numbers in expected.items() if not key[2]}


def lines_of(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_results_page_and_front_page_show_every_comparison_with_its_numbers(expected):
    for lines in (lines_of(MARKDOWN["docs/results.md"].read_text()), in_html(FRONT_PAGE.read_text())):
        shown = shown_in(lines, expected)
        assert sorted(shown) == sorted((*key[:2], *numbers) for key, numbers in expected.items())


# The other two notebooks compare samplers, and experiments on one's own images.
@pytest.mark.parametrize(
    ("report", "least"),
    [("supervised", 20), ("self_supervised", 30), ("evaluation", 5), ("nature", 9), ("cifar10", 10)],
)
def test_executed_notebooks_show_the_same_numbers(expected, report, least):
    known, found = {(*key[:2], *numbers) for key, numbers in expected.items()}, set()
    for cell in json.loads((CODE / REPORTS[report].path).read_text())["cells"]:
        for output in cell.get("outputs", ()):
            lines = in_html("".join(output.get("data", {}).get("text/html", "")))
            found |= set(shown_in(lines, expected))
    assert found <= known and len(found) >= least
    if report == "self_supervised":
        assert {PRIMARY, "rotation_gentle_classifier"} <= {line[0] for line in found}


def test_the_claims_page_shows_each_claim_with_the_numbers_of_its_comparison(expected):
    verdicts = {"**holds**": {"better", "worse"}, "**does not hold**": {"better", "worse"}}
    shown = 0
    for line in lines_of(MARKDOWN["docs/claims.md"].read_text()):
        pair = re.match(r"(\S+) against (\S+): ", line[2]) if len(line) == 8 else None
        if pair:
            classes = re.search(r" images of (.*?)(?:, in|, after|$)", line[2])
            difference, p_value, verdict = expected[(*pair.groups(), classes.group(1) if classes else "")]
            assert (line[4], line[5]) == (difference, p_value)
            assert verdict.split(" (")[0] in verdicts.get(line[7].split(" (")[0], {"inconclusive"})
            shown += 1
    assert shown > 15


@pytest.mark.parametrize("path", [MARKDOWN["docs/results.md"], FRONT_PAGE], ids=["results page", "front page"])
def test_the_headlines_show_the_numbers_of_their_comparisons(expected, path):
    lines = lines_of(path.read_text()) or in_html(path.read_text())
    shown = {(line[0], *line[3:6]) for line in lines if len(line) == 7}
    for (experiment, other), numbers in of_all_images(expected).items():
        if experiment in HEADLINES and EXPERIMENTS[experiment].compared_with == other:
            assert (HEADLINES[experiment][0], *numbers) in shown


def test_the_table_of_the_readme_shows_the_numbers_of_its_comparisons(expected):
    lines = [line for line in lines_of(MARKDOWN["README.md"].read_text()) if len(line) == 10 and line[6]]
    shown = {(line[0], line[4]): (line[5], line[6].split(";")[0]) for line in lines[2:]}
    known = {pair: (difference, verdict) for pair, (difference, _, verdict) in of_all_images(expected).items()}
    assert shown == {pair: known[pair] for pair in shown} and len(shown) >= 6
