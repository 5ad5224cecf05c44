from dataclasses import replace

import pandas as pd
import pytest

from data.files import CODE
from evaluation import results as results_module
from evaluation.explained import measured_rows
from evaluation.map_measures import COMPARED, CONTROL, compare_by_model, summarize
from evaluation.pages import claims as module
from evaluation.pages.claims import (
    DOCUMENTS_OF,
    EXPLANATIONS,
    MARKS,
    REVISED,
    TRAINED_AGAIN,
    beside_table,
    claims_table,
    maps_table,
    maps_together,
    maps_verdict,
    mark_of,
    overfitting,
    page,
    spread_of_runs,
    write_page,
)
from evaluation.pages.earlier_numbers import EarlierNumber, read_earlier_numbers
from evaluation.pages.tables import difference_text
from evaluation.results import BESIDE, Claim, beside_reported, read_claims
from experiments import EXPERIMENTS
from tests.evaluation.synthetic_results import result, seeds, write

CLAIM = Claim("One is better", "a report", "one", "two", "better")


@pytest.fixture
def claims(monkeypatch):
    """The claims of a test, in place of those of the earlier reports."""

    def claim(*claims):
        for each in (module, results_module):
            monkeypatch.setattr(each, "read_claims", lambda: list(claims))

    return claim


def test_a_claim_holds_does_not_hold_or_is_inconclusive(claims):
    claims(CLAIM, replace(CLAIM, experiment="two", compared_with="one"))
    runs = {**seeds("one", range(5)), **seeds("two", range(40))}
    table = claims_table(runs)
    assert table["verdict"].tolist() == ["**holds** (one run each)", "**does not hold** (one run each)"]
    assert table["measured"][0] == "one against two: 0.9500, 0.6000" and table["runs"][0] == "1*, 1*"
    assert table["difference (interval)"][0].startswith("+0.3500 (+0.2")
    claims(replace(CLAIM, direction="worse"))
    assert claims_table(runs)["verdict"].tolist() == ["**does not hold** (one run each)"]
    assert claims_table({**runs, **seeds("two", range(6))})["verdict"].tolist() == ["inconclusive"]


def test_claims_that_a_report_states_compare_what_it_measured():
    measured = {
        (number.document, name)
        for number in read_earlier_numbers()
        for name in number.experiments
        if number.kind == "result"
    }
    stated = [claim for claim in read_claims() if mark_of(claim) not in ("not claimed", "expected, not measured")]
    assert len(stated) > 10
    for claim in stated:
        documents = DOCUMENTS_OF[claim.source]
        missing = [
            name
            for name in (claim.experiment, claim.compared_with)
            if not any((document, name) in measured for document in documents)
        ]
        assert not missing, claim.claim
    assert {mark_of(claim) for claim in read_claims()} == {"", *MARKS}


def test_the_accuracies_of_a_report_have_the_order_of_its_claims_but_for_one_that_says_so():
    compared = 0
    for claim in read_claims():
        one, other = (EXPERIMENTS[name].earlier_accuracy for name in (claim.experiment, claim.compared_with))
        if None not in (one, other) and not claim.classes:
            opposite = mark_of(claim) == "its table says the opposite"
            assert (one > other) == ((claim.direction == "better") != opposite), claim.claim
            compared += 1
    assert compared > 10


def test_the_best_of_a_report_is_compared_with_its_next_best():
    names = [f"supervised_{number}" for number in range(1, 7)]
    next_best = max(names, key=lambda name: EXPERIMENTS[name].earlier_accuracy)
    best = [claim for claim in read_claims() if claim.experiment == "supervised_final" and "best" in claim.claim]
    assert [claim.compared_with for claim in best] == [next_best]


def test_pairs_that_were_chosen_later_are_those_of_claims():
    assert set(REVISED) < {(claim.experiment, claim.compared_with) for claim in read_claims()}


def test_the_page_says_what_marks_mean_and_counts_them(claims):
    claims(CLAIM, *(replace(CLAIM, claim=f"{each} is better (not claimed)") for each in ("one", "1 (a number)")))
    text = page({**seeds("one", range(5)), **seeds("two", range(9))}, pd.DataFrame())
    assert "\n1 of the 3 claims" in text and f"- *not claimed* (2): {MARKS['not claimed']}\n" in text
    assert "in a table only" not in text and "Features of two runs" not in text


def test_sides_with_features_of_two_runs_of_a_pretext_say_so(claims):
    digest, *_ = TRAINED_AGAIN
    claims(CLAIM)

    def measured(*again, pretexts=("long", "long")):
        """`again`: whether the features of each side and seed, 0 and 1, are of the second run."""
        runs = {}
        for number, found in enumerate(again):
            name, seed = ("one", "two")[number // 2], number % 2
            run = result(name, seed=seed, pretext_run=pretexts[number // 2], pretext_epoch=3 + number // 2)
            runs[str(number)] = {**run, "initial_weights": {"weights": "?", "sha256": digest if found else "another"}}
        return claims_table(runs)["measured"].item()

    assert measured(True, False, False, False).endswith("; features of two runs of long (seed 0)")
    assert measured(False, False, True, True).endswith("; features of two runs of long (seed 0, 1)")
    assert "two runs" not in measured(True, False, True, False)  # each seed has one run
    assert "two runs" not in measured(True, True, False, False, pretexts=("long", "short"))


def test_the_pretexts_that_were_trained_again_are_those_of_committed_results(study):
    found = {run["initial_weights"].get("sha256"): run["initial_weights"]["weights"] for run in study.values()}
    assert {digest: found[digest] for digest in TRAINED_AGAIN} == TRAINED_AGAIN


def test_a_verdict_says_which_sides_are_single_runs_of_random_seed(claims):
    claims(CLAIM, replace(CLAIM, compared_with="imagenet_classifier_probe"))
    several, other = seeds("one", range(5), range(6)), seeds("two", range(40), range(41))
    without_seed = seeds("imagenet_classifier_probe", range(40))
    assert set(claims_table({**several, **other, **without_seed})["verdict"]) == {"**holds**"}
    table = claims_table({**seeds("one", range(5)), **other, **without_seed})
    assert set(table["verdict"]) == {"**holds** (one run on one side)"}


def test_the_runs_that_are_furthest_apart_are_found_among_frozen_features_with_three_runs():
    frozen = seeds("head", range(5), range(12), range(9), freeze_features=True)
    apart = ("0.0700", "head: 0.8800 to 0.9500")
    others = {
        **seeds("another", range(5), range(6), range(7), freeze_features=True),
        **seeds("fine_tuned", [], range(30), range(40)),
        **seeds("two_runs", [], range(50), freeze_features=True),
    }
    of_other_data = seeds("elsewhere", [], range(60), range(70), freeze_features=True)
    for each in of_other_data.values():
        each["data"]["name"] = "cifar10"
    text = spread_of_runs({**others, **frozen, **of_other_data})
    assert all(part in text for part in apart) and "the 2 classifiers" in text
    assert spread_of_runs(seeds("two_runs", [], range(50), freeze_features=True)) == ""
    assert spread_of_runs({}) == ""


@pytest.mark.parametrize(("gap", "named"), [(0.01, False), (-0.01, False), (0.04, True), (-0.04, True)])
def test_ours_that_differ_from_the_report_by_more_than_its_two_sides_are_named(claims, monkeypatch, gap, named):
    monkeypatch.setattr(module, "read_earlier_numbers", lambda: [])  # results here have few settings
    names = "rotation_classifier_3", "perturbation_classifier_3"  # 0.6298 and 0.6539, 0.0241 apart
    claims(replace(CLAIM, experiment=names[0], compared_with=names[1]))
    one, other = result(names[0]), {**result(names[1]), "earlier_protocol_accuracy": 0.6539}
    runs = [{**one, "earlier_protocol_accuracy": 0.6298 + gap + seed} for seed in (-0.1, 0.1)]  # the mean counts
    found = claims_table({"a": runs[0], "b": runs[1], "c": other})["measured"].item()
    word = f"; far from theirs: {names[0]} is 0.0400 {'higher' if gap > 0 else 'lower'}"
    assert found.endswith(word) if named else "far from theirs" not in found


def test_claims_about_classes_and_of_unreported_accuracies_are_far_from_nothing(claims, monkeypatch):
    monkeypatch.setattr(module, "read_earlier_numbers", lambda: [])
    name, without = "perturbation_classifier_3", "imagenet_classifier"
    one = replace(CLAIM, experiment=name, compared_with="rotation_classifier_3", classes=("coast",))
    claims(one, replace(one, compared_with=without, classes=()))
    measured = claims_table({each: result(each) for each in (name, "rotation_classifier_3", without)})["measured"]
    assert not measured.str.contains("far from theirs").any() and len(measured) == 2


def test_a_claim_that_was_not_measured_says_why(claims):
    claims(CLAIM, replace(CLAIM, compared_with="three"), replace(CLAIM, compared_with="four"))
    table = claims_table({"one": result("one"), "two": result("two", images=80), "three": result("three")})
    assert table["verdict"][0] == "not measured: the test images differ"
    assert (table["verdict"][1], table["verdict"][2]) == ("inconclusive", "not run yet: four")
    assert table["p"].tolist() == ["", "1", ""]


def test_a_claim_about_classes_names_them_and_counts_their_images(claims):
    claims(replace(CLAIM, classes=("coast",)))
    measured = claims_table({**seeds("one", [0]), **seeds("two", [0, 2])})["measured"].item()
    assert measured == "one against two: 0.9800, 0.9600, 50 images of coast"


def test_experiments_of_differing_lengths_say_so(claims):
    claims(CLAIM)
    runs = {"one": result("one", train={"max_epochs": 12}), "two": result("two")}
    assert claims_table(runs)["measured"].item().endswith(", in 12 and 30 epochs")
    pretexts = {"long": {**result("long"), "epoch": 20}, "short": {**result("short"), "epoch": 4}}
    for epochs, expected in (((10, 3), "10 and 3"), (("best", 3), "20 and 3"), (("last", 3), "30 and 3")):
        one, two = (
            result(name, pretext_run="long", pretext_epoch=each)
            for name, each in zip(("one", "two"), epochs, strict=True)
        )
        measured = claims_table({**pretexts, "one": one, "two": two})["measured"].item()
        assert measured.endswith(f", after {expected} epochs of the pretext")
    runs = {**pretexts, "one": result("one", pretext_run="long", pretext_epoch=3), "two": result("two")}
    assert "epochs" not in claims_table(runs)["measured"].item()


def test_ours_stand_beside_the_earlier_numbers_of_the_one_comparison():
    runs = {**seeds("supervised_short", range(10), range(9), range(8)), **seeds("rotation_gentle_classifier", [0])}
    table, compared = beside_table(runs).set_index("experiment"), beside_reported(runs)
    assert table["ours is"].to_dict() == {"supervised_short": "inconclusive", "rotation_gentle_classifier": "better"}
    for name, line in compared.iterrows():
        assert table.loc[name, "difference (interval)"] == difference_text(*line[["difference", "low", "high"]])
    assert table.loc["supervised_short", "earlier report"] == "0.9374 (supervised_tuned)"
    assert set(BESIDE) | set(BESIDE.values()) <= set(EXPERIMENTS)


def test_the_gap_between_training_and_test_images_has_an_interval():
    plain, augmented = result("supervised_1", range(40)), result("supervised_2", range(40))
    augmented["history"]["train_accuracy"] = [0.5, 0.61]
    text = overfitting({"supervised_1": plain, "supervised_2": augmented})
    assert "+0.4000" in text and "+0.0100" in text and "-0.3900" in text and "**smaller**" in text
    augmented["history"]["train_accuracy"] = [0.5, 0.98]
    assert "**inconclusive**" in overfitting({"supervised_1": plain, "supervised_2": augmented})
    assert overfitting({"supervised_1": plain}) == ""


def test_the_gap_is_the_mean_over_all_runs_and_its_interval_covers_their_spread():
    plain = seeds("supervised_1", range(40), range(40), range(40))
    augmented = seeds("supervised_2", range(40), range(40), range(40))

    def with_accuracies(*train):
        for run, accuracy in zip(augmented.values(), train, strict=True):
            run["history"]["train_accuracy"] = [0.5, accuracy]
        return overfitting({**plain, **augmented})

    alike, apart = with_accuracies(0.7, 0.71, 0.72), with_accuracies(0.31, 0.82, 1.0)
    for text in (alike, apart):
        assert "| supervised_2 | 3 | 0.7100 | 0.6000 | +0.1100 |" in text and "by -0.2900 (" in text
    assert "**smaller**" in alike and "**inconclusive**" in apart  # though it is much smaller in the first run
    assert "-0.2900, +0.2200, +0.4000" in apart


@pytest.mark.parametrize(
    ("train_accuracy", "wrong", "verdict"),
    [
        (0.61, range(40), "is inconclusive"),  # a smaller gap alone
        (0.91, range(10), "**holds** (one run each)"),  # and better on test images
        (0.91, range(90), "**does not hold** (one run each)"),
        (1.00, range(90), "**does not hold** (one run each)"),
        (0.98, range(40), "is inconclusive"),
    ],
)
def test_less_overfitting_needs_a_smaller_gap_and_a_better_accuracy(train_accuracy, wrong, verdict):
    plain, augmented = result("supervised_1", range(40)), result("supervised_2", wrong)
    augmented["history"]["train_accuracy"] = [0.5, train_accuracy]
    assert overfitting({"supervised_1": plain, "supervised_2": augmented}).endswith(f"the claim {verdict}.")


def test_maps_are_those_of_the_one_comparison_of_maps():
    rows = measured_rows(CODE / EXPLANATIONS, (*COMPARED, CONTROL))
    compared = compare_by_model(rows).set_index(["model", "map", "measure", "compared_with"])
    verdicts = summarize(rows).set_index(["model", "map"])
    table = maps_table(compare_by_model(rows))
    assert len(table) == 5 * 4
    for line in table.to_dict("records"):
        expected = compared.loc[(line["model"], "Score-CAM", line["measure"], line["Score-CAM against"])]
        assert line["mean advantage (interval)"].startswith(f"{expected['advantage']:+.4f} ({expected['low']:+.4f}")
        assert line["Score-CAM is"] == expected["verdict"]
        column = f"{line['measure']}_against_{line['Score-CAM against']}"
        assert verdicts.loc[(line["model"], "Score-CAM"), column] == expected["verdict"]


def test_score_cam_shows_what_a_model_looks_at_where_it_is_better_than_every_control():
    verdicts = {
        "one": ["better"] * 4,
        "two": ["better", "worse"],
        "three": ["better", "inconclusive"],
        "four": ["worse"],
    }
    lines = [(model, each) for model in verdicts for each in verdicts[model]]
    text = maps_verdict(pd.DataFrame(lines, columns=["model", "Score-CAM is"]))
    holds, not_, unsure = text.split(";")
    assert "**holds**" in holds and "1 model (one)" in holds
    assert "**does not hold**" in not_ and "2 models (two, four)" in not_
    assert "inconclusive" in unsure and "1 model (three)" in unsure
    assert "no model" in maps_verdict(pd.DataFrame(lines[4:], columns=["model", "Score-CAM is"])).split(";")[0]


@pytest.mark.parametrize(
    ("p_values", "changed"),
    [((0.03, 0.03), "2 models (one, two)"), ((0.03, 0.02), "1 model (one)"), ((0, 0), "no model")],
)
def test_verdicts_on_several_models_are_also_those_of_one_family(p_values, changed):
    """Each model has a family of one comparison, so that p is twice as high in one family of all."""
    about = {"map": "Score-CAM", "measure": "deletion", "compared_with": "edges", "advantage": -0.1, "verdict": "worse"}
    compared = pd.DataFrame({"model": ["one", "two"], "p": p_values}).assign(**about, low=0, high=0)
    assert f"all 2 comparisons, the verdict of {changed}" in maps_together(compared.assign(images_better=0, images=9))


def test_settings_that_are_not_those_of_the_report_are_named(claims, monkeypatch):
    claims(CLAIM)
    number = {"document": "000", "place": "p", "kind": "setting", "stated": "30", "value": 30.0, "better": ""}
    empty = dict.fromkeys(("differs_by", "reason", "contradiction", "note"), "")
    about = {"quantity": "epochs", "experiment": "long", "key": "settings.train.max_epochs"}
    monkeypatch.setattr(module, "read_earlier_numbers", lambda: [EarlierNumber(**number, **empty, **about)])
    runs = {"one": result("one", pretext_run="long", pretext_epoch=3), "two": result("two")}
    for epochs, expected in ((6, True), (30, False)):
        table = claims_table({**runs, "long": result("long", train={"max_epochs": epochs})})
        assert table["measured"].item().endswith("; unlike theirs: epochs of long") is expected


def test_the_page_is_written_below_the_root(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read_earlier_numbers", lambda: [])  # results here have few settings
    write(tmp_path / "results" / "full", {**seeds("supervised_1", [0]), **seeds("supervised_2", range(40))})
    write_page(tmp_path)
    written = (tmp_path / "docs" / "claims.md").read_text()
    assert "Not measured yet." in written
    folder = tmp_path / EXPLANATIONS / CONTROL
    folder.mkdir(parents=True)
    insertion = {"Score-CAM": 0.6, "edges": 0.5}
    lines = [(name, image, insertion[name]) for name in insertion for image in range(3)]
    rows = pd.DataFrame(lines, columns=["map", "image", "insertion"])
    rows.assign(drop=0, increase=0, deletion=0, baseline="black").to_csv(folder / "faithfulness.csv", index=False)
    write_page(tmp_path)
    written = (tmp_path / "docs" / "claims.md").read_text()
    assert f"| {CONTROL} | insertion | edges | +0.1000" in written and "| 3 of 3 |" in written
    assert "supervised_2 against supervised_1: 0.6000, 0.9900" in written and "not run yet: supervised_3" in written


def test_the_committed_page_is_that_of_the_committed_results(study):
    rows = measured_rows(CODE / EXPLANATIONS, (*COMPARED, CONTROL))
    assert (CODE / "docs" / "claims.md").read_text() == page(study, rows)
