import pandas as pd

from evaluation.answers import CONTROL, against_earlier, answers, in_short

ROW = "supervised_distilled"


def result(name, right):
    return {
        "settings": {"name": name},
        "labels": {"test": [1] * 40},
        "predictions": {"test": [1] * right + [0] * (40 - right)},
        "test_accuracy": right / 40,
        "course_accuracy": right / 40,
    }


def test_an_answer_says_both_accuracies_and_the_verdict_of_the_test():
    (sentence,) = answers({ROW: result(ROW, 38), CONTROL: result(CONTROL, 20)})
    assert sentence.startswith("Taught by three such networks: test accuracy 0.9500 (1 run). Against the best read-out")
    assert ", 0.5000 (1 run): +0.4500 on the same images (p = 7.6e-06, McNemar: better)." in sentence
    (alike,) = answers({ROW: result(ROW, 38), CONTROL: result(CONTROL, 37)})
    assert alike.endswith("(p = 1, McNemar: cannot be told apart).")
    assert answers({ROW: result(ROW, 38)}) == []


def test_an_answer_of_several_runs_gives_their_mean_and_the_verdict_over_them():
    results = {ROW: result(ROW, 38), f"{ROW}.seed1": result(ROW, 34), CONTROL: result(CONTROL, 30)}
    results[f"{CONTROL}.seed1"] = result(CONTROL, 35)
    (sentence,) = answers(results)
    assert "test accuracy 0.9000 (mean of 2 runs)." in sentence and ", 0.8125 (mean of 2 runs): " in sentence
    assert "+0.2000 on the same images (p = 0.0078, McNemar: better)" in sentence  # of the first runs
    assert ", +0.0875 over the runs (p = " in sentence and sentence.endswith("Welch: cannot be told apart).")


def test_p_values_are_corrected_for_the_number_of_questions():
    other = "supervised_best"
    results = {ROW: result(ROW, 38), CONTROL: result(CONTROL, 30)}
    alone = answers(results)[0]
    beside = answers({**results, other: result(other, 38)})[1]
    assert "p = 0.0078," in alone and "p = 0.016," in beside


def test_the_earlier_reports_best_stands_beside_the_mean_of_ours():
    results = {ROW: result(ROW, 38), f"{ROW}.seed1": result(ROW, 36), CONTROL: result(CONTROL, 20)}
    table = pd.DataFrame({"earlier": [0.8, None, 0.7]}, index=["theirs", CONTROL, "another"])
    (sentence,) = against_earlier(table, results)
    assert f"{ROW} 0.9250 (mean of 2 runs). The highest of theirs: 0.8000 (theirs)." in sentence
    assert against_earlier(table, {CONTROL: result(CONTROL, 20)}) == []
    assert against_earlier(table.assign(earlier=float("nan")), results) == []
    assert in_short(table, results) == [sentence, *answers(results)]
