from collections import Counter

import pandas as pd
import pytest

from data.files import CODE
from evaluation import few_labels
from evaluation.pages import tables
from evaluation.pages.earlier_numbers import Measured, read_earlier_numbers
from evaluation.pages.tables import (
    BEST,
    END,
    HEADLINES,
    SCRATCH,
    SECTIONS,
    SHORT_TABLE,
    START,
    accuracy_text,
    answer,
    comparing_text,
    difference_text,
    headlines,
    markdown,
    marks,
    p_text,
    readme_part,
    results_page,
    runs_text,
    short_table,
    shown_comparisons,
    shown_experiments,
    verdict_text,
    with_part,
    write_pages,
)
from evaluation.pages.verdicts import compare_results
from evaluation.results import (
    PRIMARY,
    PRIMARY_FAMILY,
    comparisons,
    comparisons_elsewhere,
    experiments_table,
    pairs_to_compare,
    read_profile,
)
from experiments import EXPERIMENTS
from self_supervised.settings import PROBES, JointEmbeddingExperiment, PretextExperiment
from tests.evaluation.synthetic_results import seeds, write

CONTROL, PRETEXT = "imagenet_classifier_four_stages", "rotation_gentle_classifier"
RESULTS = {
    **seeds(CONTROL, range(20), range(22), images=400),
    **seeds(PRETEXT, range(200), range(190), images=400),
    **seeds(BEST, range(16), images=400),
}


def test_numbers_are_shown_with_their_intervals():
    assert accuracy_text(0.91239, 0.9, 0.92) == "0.9124 (0.9000 to 0.9200)"
    assert accuracy_text(0.9, float("nan"), float("nan")) == "0.9000"
    assert [p_text(p) for p in (0.0499, 0.0501, 1.0, 1e-30, 0.0)] == ["0.0499", "0.0501", "1", "< 1e-16", "< 1e-16"]


def test_a_table_of_text_becomes_markdown():
    table = shown_experiments(experiments_table(RESULTS))
    lines = markdown(table[["runs"]], "experiment").splitlines()
    assert lines == [
        "| experiment | runs |",
        "| --- | --- |",
        f"| {CONTROL} | 2 |",
        f"| {PRETEXT} | 2 |",
        f"| {BEST} | 1 |",
    ]
    assert table["lowest to highest run"].tolist() == ["0.9450 to 0.9500", "0.5000 to 0.5250", ""]


def test_a_comparison_shows_single_runs_and_differing_machines():
    runs = {**RESULTS, **seeds(BEST, range(16), images=400, machine=("NVIDIA H200", "2.11.0", "bfloat16"))}
    shown = shown_comparisons(comparisons(runs)).set_index("experiment")
    assert shown.loc[PRETEXT, "runs"] == "2, 2" and shown.loc[CONTROL, "runs"] == "2, 1*"
    assert shown.loc[CONTROL, "machines"].startswith("across machines: NVIDIA H200, ")
    assert shown.loc[PRETEXT, "machines"] == "cpu, torch 2.15.0, float32"
    assert shown.loc[PRETEXT, "verdict"] == "worse"


def test_what_differs_besides_the_question_is_marked():
    same = dict.fromkeys((column for column in comparisons({}).columns if column.startswith("across_")), False)
    assert marks(same) == []
    found = {column: marks(same | {column: True}) for column in same}
    assert found["across_machines"] == ["across machines"] and found["across_weights"] == ["other initial weights"]
    assert all(len(words) == 1 for words in found.values())
    assert marks(same | {"across_machines": True, "across_teachers": True}) == ["across machines", "other teachers"]


def test_what_one_family_would_change_is_said():
    families = {pair.family: pair.comparisons for pair in pairs_to_compare()}
    table, many = comparisons(RESULTS).iloc[:2], sum(families.values())
    m = table["m"].iloc[0]
    barely, clearly = 0.049, 0.04 * m / many  # p is that of the family already
    said = " ".join(comparing_text(table.assign(p=[barely, clearly], verdict=["better", "worse"])).split())
    pair = "` against `".join(table[["experiment", "compared_with"]].values[0])
    assert (
        m < many
        and f"all {many} comparisons were one family, 1 of the 2 verdicts" in said
        and f" inconclusive: `{pair}`." in said
    )
    assert "were one family" not in comparing_text(table.assign(verdict="inconclusive"))


def test_a_verdict_with_a_single_run_is_one_on_these_runs():
    assert verdict_text({"verdict": "better", "single_run": True}) == "better (these runs)"
    assert verdict_text({"verdict": "inconclusive", "single_run": True}) == "inconclusive"
    assert verdict_text({"verdict": "worse", "single_run": False}) == verdict_text({"verdict": "worse"}) == "worse"


def test_which_verdicts_stand_with_the_fewest_degrees_of_freedom_is_said():
    table = comparisons(RESULTS).iloc[:2].assign(verdict="worse", p=0.001, single_run=False)
    one, other = (f"`{pair[0]}` against `{pair[1]}`" for pair in table[["experiment", "compared_with"]].values)
    said = " ".join(comparing_text(table.assign(p_bound=[0.01, 0.2])).split())
    assert "1 of the 2 verdicts" in said and f": {one}. " in said
    assert f": {one}, {other}." in comparing_text(table.assign(p_bound=0.01))
    assert "Mickey" not in comparing_text(table.assign(single_run=True))


def test_the_sizes_of_the_families_are_said():
    counts = {pair.family: pair.comparisons for pair in pairs_to_compare()}
    table = comparisons(RESULTS)
    assert counts.pop(PRIMARY_FAMILY) == 1
    assert all(f"{family} ({count})" in comparing_text(table) for family, count in counts.items())
    assert "Old and new augmentation" not in comparing_text(table)
    assert "Old and new augmentation" in comparing_text(table.assign(across_augmentations=True))


def test_the_headlines_are_those_of_the_comparisons_that_are_there():
    table = comparisons(RESULTS)
    shown = headlines(RESULTS, table)
    line = table[table["experiment"] == PRETEXT].iloc[0]
    assert len(shown) == 3 and shown["what"][0] == HEADLINES[PRETEXT][0]
    assert shown["accuracies"][0] == f"{line['accuracy']:.4f}, {line['other_accuracy']:.4f}"
    assert shown["difference (interval)"][0] == difference_text(line["difference"], line["low"], line["high"])
    assert (shown["verdict"][0], shown["runs"].tolist()) == ("worse", ["2, 2", "2, 1*", "1, 1*"])
    scenes = [each for each in EXPERIMENTS.values() if each.data == "15scene" and not hasattr(each, "pretext")]
    highest = max(each.earlier_accuracy or 0 for each in scenes)
    assert shown["accuracies"].iloc[-1] == f"0.9600, {highest:.4f}"
    assert headlines({}, comparisons({})).empty


def few_of_two_draws():
    accuracies = {
        ("BYOL", few_labels.ALONE, 1): (0.6, 0.7),
        ("BYOL", few_labels.ALONE, 2): (0.9, 0.8),
        ("BYOL", few_labels.SPREAD, 1): (0.8, 0.8),
        ("ImageNet", few_labels.ALONE, 1): (0.5, 0.5),
        ("ImageNet", few_labels.ALONE, 2): (0.7, 0.7),
        ("ImageNet", few_labels.SPREAD, 1): (0.6, 0.7),
    }
    columns = ["features", "readout", "images_per_class", "seed", "draw", "test_accuracy"]
    lines = [(*key, 0, draw, value) for key, values in accuracies.items() for draw, value in enumerate(values)]
    return pd.DataFrame(lines, columns=columns)


def test_a_headline_on_few_labels_shows_the_paired_difference_of_labels_alone():
    few = few_of_two_draws()
    runs = seeds(PRIMARY, range(20)) | seeds(EXPERIMENTS[PRIMARY].compared_with, range(40))
    shown = headlines(runs, comparisons(runs), few)
    assert len(shown) == 2 and len(headlines(runs, comparisons(runs))) == 1
    assert shown["accuracies"][1] == "0.6500, 0.5000"
    assert shown["difference (interval)"][1].startswith("+0.1500 (") and shown["runs"][1] == "1, 1"


def on_two_platforms():
    """A comparison of the primary experiment, with three runs of each side on two platforms."""
    gpu, runs = ("NVIDIA H200", "2.11.0", "bfloat16"), {}
    for name, wrong, more in ((PRIMARY, 2, 4), (EXPERIMENTS[PRIMARY].compared_with, 30, 6)):
        runs |= seeds(name, *(range(wrong + each) for each in range(3)))
        elsewhere = seeds(name, *(range(wrong + more + each) for each in range(3)), machine=gpu)
        runs |= {f"{stem}.elsewhere": run for stem, run in elsewhere.items()}
    return runs


def test_a_headline_says_what_its_repetition_on_another_platform_found():
    runs = on_two_platforms()
    table, (repeated,) = comparisons(runs), comparisons_elsewhere(runs).to_dict("records")
    shown = headlines(runs, table)
    lines = [table.to_dict("records")[0], repeated]
    assert shown["difference (interval)"].tolist() == [
        difference_text(line["difference"], line["low"], line["high"]) for line in lines
    ]
    assert shown["p"].tolist() == [p_text(line["p"]) for line in lines]
    assert repeated["machines"] in shown["what"][1]


def test_the_results_page_lists_what_was_repeated_and_the_means_on_each_platform(tmp_path):
    runs = on_two_platforms()
    (line,) = comparisons_elsewhere(runs).to_dict("records")
    page = results_page(runs, tmp_path)
    assert f"| {PRIMARY} | NVIDIA H200, torch 2.11.0 | 3 | 0.9300 | 0.0100 | -0.0400 |" in page
    again = f"| {PRIMARY} | {line['compared_with']} | {line['verdict']} | "
    assert again + difference_text(line["difference"], line["low"], line["high"]) in page
    assert "## The same on another platform" in page and "another platform" not in results_page(RESULTS, tmp_path)


def test_every_headline_and_every_experiment_of_the_readme_is_known_and_the_table_is_short():
    assert set(HEADLINES) <= {name for name, each in EXPERIMENTS.items() if each.compared_with}
    assert set(SHORT_TABLE) | {BEST} <= set(EXPERIMENTS) and len(SHORT_TABLE) <= 10
    of_scenes = [EXPERIMENTS[name] for name in SHORT_TABLE]  # a pretext's accuracy is not success
    assert not any(isinstance(each, (PretextExperiment, JointEmbeddingExperiment)) for each in of_scenes)


def test_every_experiment_has_one_place_on_the_results_page():
    shown = [name for *_, experiments in SECTIONS for name in experiments]
    assert sorted(shown) == sorted(EXPERIMENTS)


def of_the_answer(gentle_rotation_wrong):
    wrong = {SCRATCH: 300, "random_classifier_probe": 350, PRIMARY: 20, EXPERIMENTS[PRIMARY].compared_with: 80}
    wrong |= {CONTROL: 40, "perturbation_gentle_classifier": 41, PRETEXT: gentle_rotation_wrong}
    runs = {}
    for name, count in wrong.items():
        runs |= seeds(name, *[range(count)] * 3, images=400)
    return comparisons(runs)


def test_the_answer_holds_the_verdicts_and_numbers_of_its_comparisons():
    few = few_of_two_draws()
    said = " ".join(answer(of_the_answer(gentle_rotation_wrong=40), few).split())
    assert "reach a test accuracy of 0.2500. ImageNet features, which were learned with labels, reach 0.8000" in said
    assert "BYOL improved them (0.9500; with one label per class 0.6500 instead of 0.5000)" in said
    assert "Gentle rotation and perturbation did not clearly improve them" in said
    assert "(with a trained head 0.9000 and 0.8975 instead of 0.9000)" in said
    worse = " ".join(answer(of_the_answer(gentle_rotation_wrong=200), few).split())
    assert "Gentle rotation made them worse (with a trained head 0.5000 instead of 0.9000)" in worse
    assert "Gentle perturbation did not clearly improve them (with a trained head 0.8975 instead of 0.9000)" in worse


def test_there_is_no_answer_from_a_part_of_the_study():
    table = of_the_answer(gentle_rotation_wrong=40)
    assert answer(table) == "" and answer(table, few_of_two_draws().iloc[:0]) == ""
    assert answer(table[table["experiment"] != SCRATCH], few_of_two_draws()) == ""


def test_an_experiment_of_the_readme_stands_beside_its_control():
    runs = {**RESULTS, **seeds(BEST, range(16), images=400, machine=("NVIDIA H200", "2.11.0", "bfloat16"))}
    shown, compared = (
        short_table(runs, comparisons(runs), CODE / "published"),
        comparisons(runs).set_index("experiment"),
    )
    line = compared.loc[PRETEXT]
    assert shown.loc[PRETEXT, "compared with"] == CONTROL and shown.loc[PRETEXT, "verdict"] == "worse"
    assert shown.loc[PRETEXT, "difference (interval)"] == difference_text(line["difference"], line["low"], line["high"])
    assert shown.loc[CONTROL, "verdict"] == f"{compared.loc[CONTROL, 'verdict']}; across machines"
    assert shown.loc[BEST, "verdict"] == ""  # its comparison is none of the headlines


def test_below_the_table_stand_machines_repetitions_and_how_many_numbers_of_the_reports_are_reproduced(tmp_path):
    gpu, runs = ("NVIDIA H200", "2.11.0", "bfloat16"), on_two_platforms()
    runs |= seeds(BEST, range(16)) | seeds("distilled_long", range(9), machine=gpu)
    part = " ".join(readme_part(runs, tmp_path, tmp_path).split())
    assert "All runs are on cpu, torch 2.15.0, except `distilled_long` on NVIDIA H200, torch 2.11.0." in part
    (line,) = comparisons_elsewhere(runs).to_dict("records")
    found = f"{difference_text(line['difference'], line['low'], line['high'])}, {line['verdict']}."
    assert f"Repeated with other seeds on {line['machines']}: `{PRIMARY}` {found}" in part
    counted = Counter(compare_results(Measured(runs, tmp_path, tmp_path), read_earlier_numbers())["word"])
    assert all(f" {count} *{word}*" in part for word, count in counted.items()) and "Under the earlier protocol" in part


def test_released_weights_are_linked_with_their_own_accuracy(tmp_path, monkeypatch):
    for name in (PRETEXT, CONTROL):
        (tmp_path / f"{name}.safetensors").touch()
    monkeypatch.setattr(tables, "read_released", lambda path: path.stem)
    monkeypatch.setattr(tables, "float32_accuracy", lambda name, about: 0.5125 if about == PRETEXT else None)
    column = short_table(RESULTS, comparisons(RESULTS), tmp_path)["released"]
    assert column[PRETEXT] == f"[0.5125](published/{PRETEXT}.md)"
    assert column[CONTROL] == f"[0.9500](published/{CONTROL}.md)"  # of seed 0, in the precision of the run
    assert column[BEST] == ""


def test_the_part_stands_between_the_comments_and_nothing_else_changes():
    readme = f"before\n{START}\nold\n{END}\nafter\n"
    written = with_part(readme, "new")
    assert written == f"before\n{START}\nnew\n{END}\nafter\n"
    assert with_part(written, "new") == written
    with pytest.raises(ValueError, match="lacks the comments"):
        with_part("nothing", "new")


def test_pages_are_written_from_the_results_below_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("SCENES_ROOT", str(tmp_path))
    write(tmp_path / "results" / "full", RESULTS)
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="lacks the comments"):
        write_pages(tmp_path)
    assert not (tmp_path / "docs").exists()
    (tmp_path / "README.md").write_text(f"{START}\n{END}\n")
    write_pages(tmp_path)
    page = (tmp_path / "docs" / "results.md").read_text()
    assert page == results_page(read_profile(tmp_path / "results" / "full"), tmp_path / "results" / "full")
    planned = page.split("## Planned, not run")[1]
    assert f"| {CONTROL} | 2 |" in page and "| 15-Scene | `supervised_1`, " in planned and f"`{CONTROL}`" not in planned
    assert f"| {BEST} | " in (tmp_path / "README.md").read_text()


def test_the_committed_results_page_is_that_of_the_committed_results(study, monkeypatch):
    monkeypatch.setenv("SCENES_ROOT", str(CODE))
    few = few_labels.collect(PROBES, "full")
    assert (CODE / "docs" / "results.md").read_text() == results_page(study, CODE / "results" / "full", few)


def test_the_committed_readme_holds_the_committed_results(study, monkeypatch):
    monkeypatch.setenv("SCENES_ROOT", str(CODE))
    readme, few = (CODE / "README.md").read_text(), few_labels.collect(PROBES, "full")
    assert with_part(readme, readme_part(study, CODE / "results" / "full", CODE / "published", few)) == readme


def test_ensembles_and_versions_stand_on_the_results_page(study, tmp_path):
    table = pd.DataFrame(
        {"test_accuracy": [0.9, 0.8, 0.85, 0.95]}, index=["a", "a.seed1", "mean of 2 runs", "ensemble of 2 runs"]
    )
    table = table.assign(
        low=[0.8, 0.7, None, 0.9], high=[0.95, 0.9, None, 0.97], mean_per_class=0.5, earlier_protocol=0.6
    )
    table.rename_axis("network").to_csv(tmp_path / "ensemble_a.csv")
    page = results_page(study, tmp_path)
    assert "| a: ensemble of 2 runs | 0.8500 | 0.9500 (0.9000 to 0.9700) | 0.5000 | 0.6000 |" in page
    assert "stale" not in page
    table.rename({"a": "byol_classifier"}).rename_axis("network").to_csv(tmp_path / "ensemble_a.csv")
    assert "| a: ensemble of 2 runs (stale" in results_page(study, tmp_path)  # its result has another accuracy
    older = [
        each for each in study.values() if each["versions"]["torch"] != "2.15.0" and each["data"]["name"] == "15scene"
    ]
    [line] = [line for line in page.splitlines() if line.startswith("| 15scene | ")]
    assert line.startswith(f"| 15scene | {len(older)} |") and older  # what is older than the pins is counted


def test_a_single_run_is_marked_unless_its_result_does_not_depend_on_the_seed():
    line = {"experiment": "byol_classifier", "runs": 1, "compared_with": "imagenet_classifier_probe", "other_runs": 1}
    assert runs_text(line) == "1*, 1"
    assert runs_text(line | {"runs": 5, "compared_with": "random_classifier"}) == "5, 1*"
