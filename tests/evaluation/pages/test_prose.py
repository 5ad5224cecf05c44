"""Numbers in the prose of the notebooks are those of the tables that the same notebook shows."""

import json
import re

import pytest

from data.files import CODE
from evaluation.pages.notebook import REPORTS
from tests.evaluation.pages.test_same_numbers import in_html

COUNTS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BY_OTHERS = {  # a model's column in the table of class images, and what the prose calls it
    "byol_classifier": "All class images of BYOL get more than 0.5",
    "distilled_long": "all but one of the distilled model",
    "perturbation_classifier_tuned_3": "After perturbation {} do not",
    "rotation_classifier_tuned_10": "after rotation {}.",
}


def cells_of(report, kind):
    """The cells of a notebook of one kind: code or markdown."""
    cells = json.loads((CODE / REPORTS[report].path).read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def prose(report):
    """All markdown of a notebook, on one line."""
    return " ".join(" ".join("".join(cell["source"]) for cell in cells_of(report, "markdown")).split())


def shown_by(report, call):
    """The lines of cells in the tables that the cell with this call shows."""
    [cell] = [each for each in cells_of(report, "code") if call in "".join(each["source"])]
    tables = ("".join(output.get("data", {}).get("text/html", "")) for output in cell["outputs"])
    return [line for table in tables for line in in_html(table) if line]


def test_predictions_that_rounding_changes():
    shares = {name: float(share) for name, share in (line for line in shown_by("evaluation", "agreement") if line[1:])}
    changed = {name: round((1 - share) * 2091) for name, share in shares.items() if name != "imagenet_classifier_probe"}
    most = sorted(changed.pop(name) for name in [*changed] if name != "distilled_long")
    assert f"which changes {most[0]} to {most[-1]} of the 2,091 predictions of a model" in prose("evaluation")


def test_rank_correlations_of_randomized_weights():
    lines = {line[0]: line[1:] for line in shown_by("evaluation", "randomization_table") if len(line) == 5}
    (of_head, low, high, _), (of_stage, least, most, _) = lines["classifier"], lines["features.5"]
    said = prose("evaluation")
    assert f"a mean rank correlation of {of_head} ({low} to {high}, over three seeds)" in said
    assert f"then {of_stage} ({least} to {most}) remains" in said


def test_how_often_cheaper_maps_are_better_than_score_cam():
    verdicts = {method: [] for method in ("Recipro-CAM", "Grad-CAM", "LayerCAM")}
    for line in shown_by("evaluation", "against_score_cam"):
        for method in verdicts.keys() & set(line):
            verdicts[method].append([cell.rpartition(", ")[2] for cell in line[-4:]])
    better = {method: [each.count("better") for each in of] for method, of in verdicts.items()}
    said, models = prose("evaluation"), len(better["Grad-CAM"])
    assert f"Recipro-CAM is better in {sum(better['Recipro-CAM'])} of {4 * models} comparisons" in said
    assert f"and Grad-CAM in {sum(better['Grad-CAM'])}, four of each after perturbation" in said
    assert better["Recipro-CAM"][2] == better["Grad-CAM"][2] == 4
    assert all("worse" not in each for method in ("Recipro-CAM", "Grad-CAM") for each in verdicts[method])
    lower = sum(each[-1] == "worse" for each in verdicts["LayerCAM"])
    assert f"LayerCAM has a lower insertion in {COUNTS[lower]} of {COUNTS[models]} models" in said


def test_class_images_that_other_models_do_not_recognize():
    head, _, *lines = shown_by("evaluation", "mean_probability_by_others")[-17:]
    columns = dict(zip(head[1:], zip(*(line[1:] for line in lines), strict=True), strict=True))
    below = {name: sum(float(value) < 0.5 for value in values) for name, values in columns.items()}
    assert len(lines) == 15 and (below["byol_classifier"], below["distilled_long"]) == (0, 1)
    for name, words in BY_OTHERS.items():
        assert words.format(COUNTS[below[name]]) in prose("evaluation")


def test_what_a_reader_without_titles_recognizes():
    found = {line[0]: int(line[2]) for line in shown_by("evaluation", "shown.blind") if line[3:4] == ["15"]}
    parts = (
        f"recognizes {found['byol_classifier']} of BYOL's 15 class images",
        f"{found['distilled_long']} of the distilled model's, {found['perturbation_classifier_tuned_3']} after",
        f"perturbation and {found['rotation_classifier_tuned_10']} after rotation",
    )
    assert all(part in prose("evaluation") for part in parts)


def test_the_precision_of_few_images():
    lines = shown_by("nature", "map_of_single_batches")
    of_eight = [(float(line[4]), float(line[6])) for line in lines if line[1] == "8"]
    low, high = min(low for low, _ in of_eight), max(high for _, high in of_eight)
    assert f"the mAP of 8 images lies anywhere from {low:.2f} to {high:.0f}" in prose("nature")


def test_the_highest_number_of_the_reports_and_ours():
    readme = " ".join((CODE / "README.md").read_text(encoding="utf-8").split())
    ours, theirs, verdict = re.search(
        r"`supervised_long` (\S+), the highest of the reports (\S+); difference .*?\), (\w+)\.", readme
    ).groups()
    said = prose("supervised")
    assert f"our {float(ours):.3f} under their protocol" in said and verdict == "inconclusive"
    assert re.search(rf"against their highest number, {float(theirs):.3f}, is {verdict}", said)


@pytest.mark.parametrize("report", REPORTS)
def test_no_other_accuracy_is_typed(report):
    """Three decimals or more in prose are a result that nobody would update."""
    known = {"0.948", "0.937", "0.8333", "0.3333", "0.001"}  # two are tested above; DF's; a learning rate
    assert set(re.findall(r"\b0\.\d{3,}\b", prose(report))) <= known
