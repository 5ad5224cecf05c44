from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation.pages.claims import (
    BESIDE,
    BETTER,
    CLAIMS,
    MAPS,
    OVER_SEEDS,
    ROOT,
    WORSE,
    Claim,
    beside_earlier_markdown,
    claims_markdown,
    maps_markdown,
    measure,
    over_seeds_markdown,
    overfitting_markdown,
    page,
    verdict,
)
from evaluation.metrics import read_results
from self_supervised.settings import EXPERIMENTS as SELF_SUPERVISED
from supervised.settings import ALL_EXPERIMENTS, EXPERIMENTS

CLAIM = Claim("first is better", "a report", "first", "second", BETTER)


def result(wrong, max_epochs=30):
    """A result on 100 images of two classes, with these images mistaken."""
    labels = np.arange(100) % 2
    predictions = labels.copy()
    predictions[list(wrong)] ^= 1
    return {
        "class_names": ["coast", "forest"],
        "labels": {"test": labels.tolist()},
        "predictions": {"test": predictions.tolist()},
        "settings": {"train": {"max_epochs": max_epochs}},
    }


def test_a_claim_is_measured_on_the_same_images_and_judged_by_its_direction():
    results = {"first": result(range(5)), "second": result(range(30))}
    found = measure(CLAIM, results)
    assert (found.of, found.than, found.images) == (0.95, 0.7, 100)
    assert found.difference == pytest.approx(0.25) and found.p_value == pytest.approx(2 * 0.5**25)
    assert found.low == pytest.approx(0.25 - 1.96 * np.sqrt(0.25 * 0.75 / 100))
    assert verdict(CLAIM, found, 0.01) == "**holds**"
    assert verdict(replace(CLAIM, better=WORSE), found, 0.01) == "**does not hold**"
    assert verdict(CLAIM, found, 0.2) == "cannot be told"


def test_a_claim_of_classes_looks_at_their_images_alone():
    results = {"first": result([0, 2, 4]), "second": result(range(0, 100, 2))}
    of_coast = measure(replace(CLAIM, classes=("coast",)), results)
    assert (of_coast.of, of_coast.than, of_coast.images) == (0.94, 0, 50)
    of_forest = measure(replace(CLAIM, classes=("forest",)), results)
    assert (of_forest.difference, of_forest.p_value) == (0, 1)


def test_p_values_are_corrected_for_the_claims_that_could_be_measured_and_what_is_missing_is_named():
    results = {"first": result(range(3)), "second": result(range(9)), "third": result(range(9))}
    claims = (CLAIM, replace(CLAIM, words="third is", of="third"), replace(CLAIM, of="fourth"))
    lines = claims_markdown(results, claims).splitlines()[2:]
    assert "| 0.062 | cannot be told |" in lines[0]  # 2 * 0.5**6, times two
    assert "+0.0600 (" in lines[0] and "0.9700, 0.9100" in lines[0]
    assert lines[2].endswith("| not run yet: fourth |")


def test_a_p_value_below_the_smallest_float_is_not_said_to_be_zero():
    results = {"first": result(()), "second": result(range(100))}
    for each in results.values():
        each.update({key: {"test": each[key]["test"] * 30} for key in ("labels", "predictions")})
    assert "| < 1e-300 | **holds** |" in claims_markdown(results, (CLAIM,))


def test_rows_that_were_trained_for_differing_lengths_say_so():
    results = {"first": result(range(3), max_epochs=12), "second": result(range(9))}
    assert "0.9700, 0.9100, in 12 and 30 epochs |" in claims_markdown(results, (CLAIM,))
    results["first"] = result(range(3))
    assert "epochs" not in claims_markdown(results, (CLAIM,))


def test_rows_on_pretexts_of_differing_lengths_say_so():
    def classifier(pretext_epoch, pretext_run="long"):
        words = {"pretext_run": pretext_run, "pretext_epoch": pretext_epoch}
        return {**result(range(3)), "settings": {"train": {"max_epochs": 40}, **words}}

    pretexts = {name: {**result(()), "epoch": best} for name, best in (("long", 20), ("short", 4))}
    for of, than, words in (
        (10, 3, "after 10 and 3 epochs of the pretext"),
        ("best", 3, "after 20 and 3 epochs of the pretext"),
        ("last", 3, "after 30 and 3 epochs of the pretext"),
    ):
        results = {**pretexts, "first": classifier(of), "second": classifier(than)}
        assert words in claims_markdown(results, (CLAIM,))
    for second in (classifier(10), result(range(3), max_epochs=40)):  # as long, and without a pretext
        results = {**pretexts, "first": classifier(10), "second": second}
        assert "pretext" not in claims_markdown(results, (CLAIM,))
    results = {**pretexts, "first": classifier("best"), "second": classifier("best", "short")}
    assert "after 20 and 4 epochs" in claims_markdown(results, (CLAIM,))


def test_a_claim_over_seeds_is_judged_by_its_direction():
    def runs(name, *accuracies):
        settings = {"settings": {"name": name}}
        return {f"{name}.{seed}": {**settings, "test_accuracy": each} for seed, each in enumerate(accuracies)}

    _, of, than = OVER_SEEDS[0]
    better, worse = (0.90, 0.91, 0.90), (0.80, 0.81, 0.80)
    lines = over_seeds_markdown({**runs(of, *better), **runs(than, *worse)}).splitlines()
    assert len(lines) == 3 and "| 3, 3 | +0.1000 (" in lines[2] and lines[2].endswith("| **holds** |")
    assert over_seeds_markdown({**runs(of, *worse), **runs(than, *better)}).endswith("| **does not hold** |")
    assert over_seeds_markdown(runs(of, *better)) == ""


def test_every_claim_is_of_rows_that_exist():
    known = {**ALL_EXPERIMENTS, **SELF_SUPERVISED}
    assert all(claim.of in known and claim.than in known for claim in CLAIMS)
    assert all(of in known and than in known for _, of, than in OVER_SEEDS)


def test_the_page_that_is_committed_is_the_one_its_results_give():
    earlier = {name: row.earlier_accuracy for name, row in {**EXPERIMENTS, **SELF_SUPERVISED}.items()}
    written = page(read_results(ROOT / "results" / "full"), pd.read_csv(MAPS), earlier)
    assert (ROOT / "results" / "README.md").read_text() == written


def test_our_rows_are_above_an_earlier_number_only_if_the_interval_over_seeds_is():
    def run(name, accuracy):
        return {"settings": {"name": name}, "earlier_protocol_accuracy": accuracy}

    seeds = {f"best.seed{seed}": run("supervised_short", accuracy) for seed, accuracy in enumerate((0.90, 0.91, 0.92))}
    half = 4.303 * 0.01 / np.sqrt(3)  # Student's t of two degrees of freedom
    results = {**seeds, "taught": run("distilled", 0.99)}
    like = dict.fromkeys(BESIDE.values(), 0.88)
    lines = dict(zip(BESIDE, beside_earlier_markdown(results, like).splitlines()[2:], strict=True))
    words = f"| supervised_short | 3 | 0.9100 ({0.91 - half:.4f} to {0.91 + half:.4f}) | 0.8800 (supervised_tuned) |"
    assert lines["supervised_short"] == f"{words} **above** |"
    taught = lines["distilled"]
    assert taught.startswith("| distilled | 1 | 0.9900 | ") and taught.endswith("| cannot be told |")
    assert lines["supervised_long"].endswith("| not run yet |")
    assert "| **below** |" in beside_earlier_markdown(results, {**like, "supervised_tuned": 0.94}).splitlines()[2]
    assert "| cannot be told |" in beside_earlier_markdown(results, {**like, "supervised_tuned": 0.90}).splitlines()[2]


def history(train, test):
    return {
        "history": {"train_accuracy": [0.1, train], "test_accuracy": [0.2, test]},
        "data": {"images": {"train": 1500, "test": 2000}},
    }


def test_overfitting_is_the_gap_between_training_and_test_images_in_the_last_epoch():
    table = overfitting_markdown({"supervised_1": history(1.0, 0.9), "supervised_2": history(0.92, 0.9)})
    assert "| supervised_1 | 1.0000 | 0.9000 | +0.1000 |" in table
    margin = 1.96 * np.sqrt(2 * 0.9 * 0.1 / 2000 + 0.92 * 0.08 / 1500)
    assert f"by -0.0800 ({-0.08 - margin:+.4f} to {-0.08 + margin:+.4f}): **holds**" in table
    alike = overfitting_markdown({"supervised_1": history(0.92, 0.9), "supervised_2": history(0.92, 0.9)})
    assert "**cannot be told**" in alike
    wider = overfitting_markdown({"supervised_1": history(0.9, 0.9), "supervised_2": history(1.0, 0.9)})
    assert "**does not hold**" in wider
    assert overfitting_markdown({"supervised_1": history(1.0, 0.9)}) == ""


def test_a_map_is_set_against_those_that_know_nothing_of_the_model():
    images = np.arange(20)
    maps = {"Score-CAM": (0.2, 0.5), "random": (0.4, 0.5), "edges": (0.1, 0.9)}
    measured = pd.concat(
        pd.DataFrame(
            {"baseline": "mean", "map": name, "image": images, "drop": 0.0, "increase": 0.0}
            | {"deletion": deletion + images / 1000, "insertion": insertion}
        )
        for name, (deletion, insertion) in maps.items()
    )
    lines = maps_markdown(pd.concat([measured, measured.assign(baseline="black", deletion=9)])).splitlines()[2:]
    assert lines[0].startswith("| deletion | random | -0.2000 (-0.2000 to -0.2000) | 20, 0 |")
    assert lines[0].endswith("| **holds** |")
    assert lines[1] == "| insertion | random | +0.0000 (+0.0000 to +0.0000) | 0, 0 | 1 | cannot be told |"
    assert lines[2].endswith("| **does not hold** |") and lines[3].endswith("| **does not hold** |")
