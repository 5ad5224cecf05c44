import pandas as pd

from evaluation.pages.answers import CONTROL, against_earlier, answers, in_short

ROW = "distilled"


def result(name, right):
    return {
        "settings": {"name": name},
        "labels": {"test": [1] * 40},
        "predictions": {"test": [1] * right + [0] * (40 - right)},
        "test_accuracy": right / 40,
        "earlier_protocol_accuracy": right / 40,
    }


def test_an_answer_says_both_accuracies_and_the_verdict_of_the_test():
    lead, sentence = answers({ROW: result(ROW, 38), CONTROL: result(CONTROL, 20)})
    assert lead.startswith("Frozen ImageNet features, read out as well as they can be: test accuracy 0.5000 (1 run).")
    assert sentence == (
        "Taught by three of the first kind, for as long: 0.9500 (1 run). Against those: better (p = 7.6e-06)."
    )
    _, alike = answers({ROW: result(ROW, 38), CONTROL: result(CONTROL, 37)})
    assert alike.endswith("Against those: cannot be told apart (p = 1).")
    assert answers({ROW: result(ROW, 38)}) == []


def test_an_answer_of_several_runs_gives_their_mean_and_both_verdicts():
    results = {ROW: result(ROW, 38), f"{ROW}.seed1": result(ROW, 34), CONTROL: result(CONTROL, 30)}
    results[f"{CONTROL}.seed1"] = result(CONTROL, 35)
    lead, sentence = answers(results)
    assert "test accuracy 0.8125 (mean of 2 runs)." in lead and ": 0.9000 (mean of 2 runs)." in sentence
    assert "better on the same images (p = 0.0078), cannot be told apart over the runs (p = 0.3" in sentence
    results[CONTROL] = result(CONTROL, 36)  # the test on images is that of the first runs
    assert "Against those: cannot be told apart (p = 0.5 on the same images, p = " in answers(results)[1]


def test_p_values_are_corrected_for_the_number_of_questions():
    other = "supervised_short"
    results = {ROW: result(ROW, 38), CONTROL: result(CONTROL, 30)}
    alone = answers(results)[1]
    beside = answers({**results, other: result(other, 38)})[2]
    assert "(p = 0.0078)" in alone and "(p = 0.016)" in beside


def test_the_earlier_reports_best_stands_beside_the_mean_of_ours():
    results = {ROW: result(ROW, 38), f"{ROW}.seed1": result(ROW, 36), CONTROL: result(CONTROL, 20)}
    table = pd.DataFrame({"earlier": [0.8, None, 0.7]}, index=["theirs", CONTROL, "another"])
    (sentence,) = against_earlier(table, results)
    assert f"{ROW} 0.9250 (mean of 2 runs). The highest of theirs: 0.8000 (theirs)." in sentence
    assert against_earlier(table, {CONTROL: result(CONTROL, 20)}) == []
    assert against_earlier(table.assign(earlier=float("nan")), results) == []
    assert in_short(table, results) == [sentence, *answers(results)]
