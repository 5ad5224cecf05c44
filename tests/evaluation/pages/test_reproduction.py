import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from data.files import CODE
from evaluation.nature import LOOKED_AT
from evaluation.pages import earlier_numbers, reproduction
from evaluation.pages.earlier_numbers import READERS, EarlierNumber, Measured, measured, read_earlier_numbers, series_of
from evaluation.pages.hypotheses import Hypothesis, conclusion, found_markdown, hypotheses_markdown
from evaluation.pages.reproduction import DOCUMENTS, page
from evaluation.pages.verdicts import (
    BETTER,
    CANNOT,
    DIFFERS,
    FEWER,
    NOT_RUN,
    ONE_RUN,
    OTHER,
    REPRODUCED,
    SAME,
    WORDS,
    compare_results,
    compare_settings,
    prediction_interval,
    scale_of,
    verdict,
)
from experiments import EXPERIMENTS
from helper_functions import TrainSettings, should_stop
from hyperparameter_search import EARLIER_LOSSES
from supervised.settings import EARLIER_AVERAGE_PRECISION, EARLIER_NON_POSITIVE

SOURCES = CODE.parent / "shared" / "source_documents"


def number(value=0.9, **changes) -> EarlierNumber:
    fields = {
        "document": "000",
        "place": "table 1",
        "kind": "result",
        "quantity": "accuracy",
        "stated": "" if value is None else f"{value:.4f}",
        "value": value,
        "better": "higher",
        "experiment": "first",
        "key": "earlier_protocol_accuracy",
        **dict.fromkeys(("differs_by", "reason", "contradiction", "note"), ""),
    }
    return EarlierNumber(**{**fields, **changes})


def result(name="first", seed=0, accuracy=0.9, epochs=3, **settings) -> dict:
    """A result with 1 val and 3 test images, whose losses fall and then rise."""
    return {
        "settings": {
            "name": name,
            "seed": seed,
            "head": "deep",
            "class_weights": [["coast", 1.5]],
            "train": {"max_epochs": epochs},
            **settings,
        },
        "earlier_protocol_accuracy": accuracy,
        "earlier_protocol_epoch": 2,
        "class_names": ["coast", "forest"],
        "labels": {"val": [0], "test": [0, 0, 1]},
        "predictions": {"val": [0], "test": [0, 1, 1]},
        "data": {"images": {"train": 2, "val": 1, "test": 3}},
        "history": {
            "train_loss": [0.9, 0.5, 0.4],
            "train_accuracy": [0.2, 0.695, 0.7],
            "val_loss": [1.0, 0.2, 0.6],
            "test_loss": [0.6, 0.6, 0.2],
            "val_accuracy": [0.0, 1.0, 1.0],
            "test_accuracy": [0.0, 1.0, 0.0],
        },
        "device": "cpu (x86_64)",
        "precision": "float32",
        "versions": {"torch": "2.15.0"},
    }


def study_of(*results, folder=Path("results"), released=Path("published")) -> Measured:
    return Measured({f"run{place}": each for place, each in enumerate(results)}, folder, released)


# ------------------------------------------------------------------------------------------------------------- the CSV


@pytest.fixture(scope="module")
def numbers() -> list[EarlierNumber]:
    return read_earlier_numbers()


def test_every_number_is_printed_in_its_document(numbers):
    if not SOURCES.is_dir():
        pytest.skip(f"no {SOURCES}")
    texts = {path.name[:3]: " ".join(path.read_text().split()) for path in SOURCES.glob("*.txt")}
    assert set(texts) == set(DOCUMENTS)
    assert [each for each in numbers if " ".join(each.stated.split()) not in texts[each.document]] == []


def test_values_are_the_stated_numbers(numbers):
    plain = [each for each in numbers if re.fullmatch(r"-?[\d.]+(e-\d+)?( ?%)?", each.stated)]
    assert len(plain) > 350
    for each in plain:
        percent = each.stated.endswith("%")
        stated = float(each.stated.removesuffix("%")) / (100 if percent else 1)
        assert each.value == pytest.approx(stated, rel=1e-9), each


@pytest.mark.parametrize(
    ("stated", "half"),
    [("0.9289", 0.00005), ("100%", 0.005), ("93.77%", 0.00005), ("1.4e-05", 5e-7), ("10", 0), ("224x224", 0)],
)
def test_a_number_is_known_to_half_of_its_last_digit(stated, half):
    assert number(stated=stated).rounding == pytest.approx(half)
    ours = [0.9961, 0.9962, 0.9963]
    if stated == "100%":
        assert verdict(number(1.0, stated=stated), ours) == "reproduced"
        assert verdict(number(1.0, stated="1.0000"), ours) == "differs"


def test_ours_is_of_the_lowest_loss_where_the_second_report_chose_the_epoch_by_it(numbers):
    """Its scene classifiers; their accuracies would be too high at the epoch of the highest one."""
    keys = {each.key for each in numbers if each.document == "001" and each.kind == "result"}
    assert "earlier_protocol_accuracy" not in keys and not any(key.endswith("selected") for key in keys)
    of_scenes = [each for each in numbers if each.document == "001" and each.value in (0.9374, 0.8419, 0.8157)]
    in_stated = [each for each in of_scenes if "in the stated epoch" in each.quantity]
    assert {each.key for each in in_stated} == {f"history validation_accuracy {epoch}" for epoch in (32, 27, 37)}
    others = [each for each in of_scenes if each not in in_stated]
    assert len(others) == 7 and {each.key for each in others} == {"history validation_accuracy at_lowest_loss"}


def test_the_scene_accuracies_of_the_second_report_stand_beside_both_epochs(numbers):
    """The one with our lowest loss, and the one that its table 2 states."""
    stated = {each.experiment: each.value for each in numbers if each.quantity.startswith("epochs, scenes")}
    table = [each for each in numbers if (each.document, each.place) == ("001", "table 2")]
    assert len(stated) == 3
    for experiment, epoch in stated.items():
        of = [each for each in table if each.experiment == experiment]
        for series in ("train", "validation"):
            lowest, there = (
                next(each for each in of if each.key == f"history {series}_accuracy {when}")
                for when in ("at_lowest_loss", f"{epoch:.0f}")
            )
            assert lowest.value == there.value


def test_the_lowest_test_loss_of_the_fifth_report_has_a_line_for_each_model(numbers):
    of = {each.experiment: each.value for each in numbers if each.key == "epoch test_loss lowest"}
    imagenet = "nature_resnet18_imagenet_sgd_1e-2"
    assert of == {"nature_resnet18_sgd_1e-2": 7, imagenet: 7, "nature_resnet18_sgd_1e-3": 5}
    losses = [each.experiment for each in numbers if each.key == "history test_loss lowest"]
    assert losses == ["nature_resnet18_sgd_1e-2", imagenet]


def test_every_table_of_the_documents_is_complete(numbers):
    """Numbers by table: what the documents print, counted by hand."""
    places = pd.Series([f"{each.document} {each.place}" for each in numbers]).value_counts()
    counts = {
        "000 table 2": 6,
        "000 table 3": 15,
        "000 appendix 12": 15 * 5,
        "001 table 1": 5 * 3,
        "001 table 2": 5 * 3 + 3 * 2,  # two accuracies of each scene classifier are read in two ways
        "001 table 3": 3 * 3,
        "001 table 7": 3 * 7,
        "003 classification report": 8 * 4 + 2,
        "003 softmax scores": 6 * 6,
        "004 table 1": 4 * 7,
        "004 table 2": 5,
    }
    assert {place: places[place] for place in counts} == counts


def test_each_line_names_an_experiment_and_a_key_or_says_why_not(numbers):
    for each in numbers:
        assert set(each.experiments) <= set(EXPERIMENTS), each
        if each.key:
            first = each.key.split()[0]
            assert each.experiments and (
                first in READERS or "." in first or first.endswith("accuracy") or first.endswith("epoch")
            )
        if each.kind == "result":
            assert len(each.experiments) <= 1
            assert each.key or each.reason or each.note, each
    assert {each.document for each in numbers} == set(DOCUMENTS)


def test_no_line_stands_twice(numbers):
    lines = [(each.document, each.place, each.quantity, each.stated, each.experiment) for each in numbers if each.key]
    assert len(lines) == len(set(lines))


def test_it_agrees_with_what_the_settings_repeat(numbers):
    stated = {(each.experiment, each.key, each.value) for each in numbers}
    for name, experiment in EXPERIMENTS.items():
        if experiment.earlier_accuracy is not None:
            assert (name, experiment.earlier_accuracy) in {(of, value) for of, _, value in stated}
    classes = ("buildings", "forest", "glacier", "mountain", "sea", "street")
    for name, values in EARLIER_AVERAGE_PRECISION.items():
        assert {(name, f"average_precision {of}", value) for of, value in zip(classes, values, strict=True)} <= stated
    non_positive = {(key, value) for _, key, value in stated}
    assert {(f"non_positive {hook}", share) for hook, share in EARLIER_NON_POSITIVE.items()} <= non_positive
    assert {("supervised_tuned", f"search {sampler}", loss) for sampler, loss in EARLIER_LOSSES.items()} <= stated


def test_a_line_that_cannot_be_shown_is_refused():
    with pytest.raises(ValueError, match="kind is 'claim'"):
        number(kind="claim")
    with pytest.raises(ValueError, match="better is 'up'"):
        number(better="up")
    with pytest.raises(ValueError, match="a setting needs a number"):
        number(kind="setting", value=None)


# -------------------------------------------------------------------------------------------- where a number is found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("earlier_protocol_accuracy", 0.9),
        ("settings.train.max_epochs", 3),
        ("history train_loss last", 0.4),
        ("history train_loss 2", 0.5),
        ("history train_loss from2", 0.45),
        ("history validation_loss 1", (1.0 + 3 * 0.6) / 4),  # 1 val and 3 test images
        ("history validation_loss lowest", (0.6 + 3 * 0.2) / 4),
        ("history validation_loss selected", (0.2 + 3 * 0.6) / 4),
        ("history validation_accuracy highest", 1.0),
        ("history validation_accuracy at_lowest_loss", (1.0 + 3 * 0.0) / 4),  # epoch 3; 2 has the highest accuracy
        ("history train_accuracy at_lowest_loss", 0.7),
        ("epoch validation_loss lowest", 3),
        ("epoch0 validation_loss lowest", 2),
        ("epoch val_loss first_rise", 3),
        ("epoch val_loss before_first_rise", 2),
        ("epoch train_loss first_rise", math.inf),
        ("epoch validation_accuracy first_perfect", 2),
        ("epoch train_accuracy highest", 3),
        ("epoch train_accuracy plateau", 2),  # within a point of the highest
        ("epochs_run", 3),
        ("images", 6),
        ("head_layers", 3),
        ("class_weight coast", 1.5),
        ("class_weight forest", 1.0),
        ("report precision forest", 0.5),
        ("report recall coast", 0.5),
        ("report images macro avg", 3),
    ],
)
def test_a_key_finds_its_number(key, value):
    assert measured(study_of(result()), "first", key) == [pytest.approx(value)]


def test_nothing_is_found_of_an_epoch_or_an_experiment_that_was_not_run():
    assert measured(study_of(result()), "first", "history train_loss 4") == []
    assert measured(study_of(result()), "second", "epochs_run") == []
    with pytest.raises(KeyError):
        measured(study_of(result()), "first", "settings.no_such")


def test_differences_are_of_runs_of_the_same_seed():
    study = study_of(result("first", 0, 0.9), result("first", 1, 0.7), result("other", 1, 0.6), result("other", 2, 0.1))
    assert measured(study, "first", "difference other") == [pytest.approx(0.1)]


def test_scores_give_ranks_and_average_precision(tmp_path):
    (tmp_path / "nature").mkdir()
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    np.save(tmp_path / "nature" / "scores_first.npy", scores)
    study = study_of(result(), folder=tmp_path)
    assert measured(study, "first", "score coast highest 2") == [0.4]
    assert measured(study, "first", "score coast lowest 1") == [0.2]
    # coast is images 0 and 1, ranked first and last: precision 1 at the first, 2/3 at the second
    assert measured(study, "first", "average_precision coast") == [pytest.approx((1 + 2 / 3) / 2)]
    assert measured(study, "first", "average_precision forest") == [pytest.approx(0.5)]
    assert measured(study, "first", "average_precision mean") == [pytest.approx((5 / 6 + 0.5) / 2)]
    assert measured(study, "second", "average_precision mean") == []


def test_tables_and_released_weights_are_read(tmp_path):
    folder = tmp_path / "searches"
    folder.mkdir()
    for seed, losses in enumerate(([0.5, 0.4], [0.3, 0.6])):
        path = folder / f"first_tpe_subset0.1_seed{seed}.csv"
        pd.DataFrame({"report_loss": losses}).to_csv(path, index=False)
    trials = {"learning_rate": [0.1, 100.0], "weight_decay": [1.0, 0.1], "value": [-2.0, -5.0]}
    pd.DataFrame(trials).to_csv(folder / "inversion_first_filter70_grid_seed0.csv", index=False)
    weights = np.zeros((3, 2, 1, 1), dtype=np.float16)
    weights[1], weights[2] = 0.5, -1
    save_file({"features.8.0.weight": weights}, tmp_path / "first.safetensors")
    study = study_of(result(), folder=tmp_path, released=tmp_path)
    assert measured(study, "first", "search tpe") == [0.4, 0.3]
    assert measured(study, "first", "search grid") == []
    assert measured(study, "first", "inversion 100 0.1") == [-5]
    assert measured(study, "first", "inversion 1 1") == []
    assert measured(study, "first", "inversion lowest") == [-5]
    assert [measured(study, "first", f"filter {rank}") for rank in (1, 2, 3)] == [[1], [0], [2]]
    assert measured(study, "first", "filter_sum highest") == [1]
    assert measured(study, "first", "filter_sum lowest") == [-2]


def test_shares_of_non_positive_values_are_of_the_experiment_and_the_hook_point(tmp_path):
    study = study_of(folder=tmp_path)
    names = {label: LOOKED_AT[label] for label in ("ResNet-18 from scratch", "ResNet-18 fine-tuned")}
    assert measured(study, names["ResNet-18 from scratch"], "non_positive a") == []
    (tmp_path / "nature").mkdir()
    table = {"features": [*names, *names], "hook_point": list("aabb"), "share": [0.1, 0.2, 0.3, 0.4]}
    pd.DataFrame(table).to_csv(tmp_path / "nature" / "non_positive.csv")
    found = [measured(study, name, f"non_positive {hook_point}") for hook_point in "abc" for name in names.values()]
    assert found == [[0.1], [0.2], [0.3], [0.4], [], []]


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_prediction_interval():
    low, high = prediction_interval([1.0, 2.0, 3.0])  # t of 2 degrees of freedom is 4.3027
    assert (low, high) == pytest.approx((2 - 4.3027 * math.sqrt(4 / 3), 2 + 4.3027 * math.sqrt(4 / 3)), abs=1e-3)
    with pytest.raises(ValueError, match="at least 3"):
        prediction_interval([1.0, 2.0])


def test_prediction_interval_covers_one_further_run():
    draws = np.random.default_rng(0).normal(size=(4000, 4))
    intervals = [prediction_interval(each[:3]) for each in draws]
    covered = [low <= further <= high for (low, high), further in zip(intervals, draws[:, 3], strict=True)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_the_interval_of_losses_is_that_of_their_logarithms():
    """Ours are hundreds of times theirs: on the linear scale, an interval that begins below 0 would hold it."""
    losses, key = [0.03124, 0.011258, 0.010036], "history validation_loss 7"
    low, high = prediction_interval(losses, scale_of(key, losses))
    expected = prediction_interval([math.log(loss) for loss in losses])
    assert (math.log(low), math.log(high)) == pytest.approx(expected)
    theirs = number(0.00001443, key=key, better="lower")
    assert prediction_interval(losses)[0] < 0 < theirs.value and verdict(theirs, losses) == DIFFERS
    assert verdict(number(low * 1.01, key=key, better="lower"), losses) == REPRODUCED
    assert scale_of(key, [0.0, *losses]) == "linear"  # 0 has no logarithm


def test_the_interval_of_shares_is_that_of_angles_and_stays_between_0_and_1():
    accuracies = [0.985092, 0.934171, 0.988945]
    assert prediction_interval(accuracies)[1] > 1
    low, high = prediction_interval(accuracies, scale_of("earlier_protocol_accuracy", accuracies))
    expected = prediction_interval([math.asin(math.sqrt(accuracy)) for accuracy in accuracies])
    assert high == 1 and math.asin(math.sqrt(low)) == pytest.approx(expected[0])
    assert verdict(number(1.0), accuracies) == REPRODUCED  # 1 is possible, and has an angle
    assert prediction_interval([0.02, 0.2, 0.05], "share")[0] == 0
    near_one = [0.982, 0.988667, 0.985667]
    assert prediction_interval(near_one)[1] > 1 and verdict(number(1.0), near_one) == DIFFERS


@pytest.mark.parametrize(
    ("key", "scale"),
    [
        ("history train_loss 10", "log"),
        ("history validation_loss lowest", "log"),
        ("search tpe", "log"),
        ("test_accuracy", "share"),
        ("history train_accuracy at_lowest_loss", "share"),
        ("average_precision mean", "share"),
        ("report precision macro avg", "share"),
        ("report images macro avg", "linear"),
        ("epoch0 validation_loss lowest", "count"),
        ("epochs_run", "count"),
        ("difference other", "linear"),  # may be negative, as may be those below
        ("inversion lowest", "linear"),
        ("filter_sum lowest", "linear"),
    ],
)
def test_the_scale_of_a_key(key, scale):
    assert scale_of(key, [0.1, 0.2, 0.3]) == scale


def test_no_interval_of_the_page_holds_what_is_impossible(study, numbers):
    """Of the committed results: losses above 0, shares from 0 to 1, and epochs from 0."""
    for line in compare_results(study, numbers).to_dict("records"):
        key, ours = line["number"].key, line["ours"]
        scale = scale_of(key, ours) if len(ours) >= 3 and all(map(math.isfinite, ours)) else "linear"
        if scale != "linear":
            low, high = prediction_interval(ours, scale)
            assert (low > 0 if scale == "log" else low >= 0) and (high <= 1 or scale != "share"), line


@pytest.mark.parametrize(
    ("ours", "changes", "word"),
    [
        ([], {}, NOT_RUN),
        ([], {"reason": "no weights"}, CANNOT),
        ([0.9], {}, ONE_RUN),
        ([0.9, 0.9], {}, FEWER),
        ([0.89, 0.90, 0.92], {}, REPRODUCED),
        ([0.9, 0.9, 0.9], {}, REPRODUCED),  # no spread, and the same number
        ([0.95, 0.951, 0.952], {}, BETTER),
        ([0.85, 0.851, 0.852], {}, DIFFERS),
        ([0.85, 0.851, 0.852], {"better": "lower"}, BETTER),
        ([0.95, 0.951, 0.952], {"better": "lower"}, DIFFERS),
        ([0.95, 0.951, 0.952], {"better": ""}, DIFFERS),
        ([0.89, 0.90, math.inf], {}, DIFFERS),
    ],
)
def test_verdict(ours, changes, word):
    assert verdict(number(0.9, **changes), ours) == word


def test_other_settings_leave_it_open():
    assert verdict(number(0.9), [0.89, 0.90, 0.92], other_settings=True) == OTHER
    assert verdict(number(0.9), [], other_settings=True) == NOT_RUN


def test_a_setting_of_the_pretext_counts_for_its_classifier():
    runs = [result(), result("probe", pretext_run="first"), result("alone")]
    epochs = number(30.0, kind="setting", quantity="epochs", key="settings.train.max_epochs", better="")
    numbers = [epochs, *(number(0.9, experiment=name) for name in ("first", "probe", "alone"))]
    numbers.append(number(0.9, document="001", experiment="first"))  # another report, which states no such setting
    settings = compare_settings(study_of(*runs), numbers)
    assert settings[["ours", "word"]].to_dict("records") == [{"ours": 3, "word": OTHER}]
    assert compare_results(study_of(*runs), numbers)["word"].tolist() == [OTHER, OTHER, ONE_RUN, ONE_RUN]


def test_settings_of_several_experiments_are_compared_one_by_one():
    runs = [result("first", epochs=30), result("second", epochs=12)]
    epochs = number(30.0, kind="setting", experiment="first second third", key="settings.train.max_epochs")
    assert compare_settings(study_of(*runs), [epochs])["word"].tolist() == [SAME, OTHER, NOT_RUN]
    impossible = number(0.9, experiment="third", reason="no weights")
    assert compare_settings(study_of(*runs), [epochs, impossible])["word"].tolist() == [SAME, OTHER, CANNOT]
    fourth = replace(epochs, experiment="first fourth")
    assert compare_settings(study_of(*runs), [fourth, impossible])["word"].tolist() == [SAME, NOT_RUN]


def test_runs_of_several_machines_are_marked():
    runs = [result(seed=seed, accuracy=accuracy) for seed, accuracy in enumerate((0.89, 0.9, 0.92))]
    assert compare_results(study_of(*runs), [number()])["machines"].tolist() == [1]
    runs[2]["versions"]["torch"] = "2.11.0"
    assert compare_results(study_of(*runs), [number()])["machines"].tolist() == [2]


@pytest.mark.parametrize(
    ("key", "tested"),
    [
        ("earlier_protocol_accuracy", True),
        ("history validation_accuracy 7", True),
        ("history train_loss 10", True),
        ("history train_accuracy 10", False),
        ("epoch validation_accuracy first_perfect", False),
    ],
)
def test_a_gap_on_which_no_hypothesis_is_tested_says_so(monkeypatch, key, tested):
    monkeypatch.setitem(earlier_numbers.READERS, key.split()[0], lambda *_: [0.1, 0.1, 0.1])
    gap = number(0.9, experiment="perturbation_searched", key=key)
    runs = [result(gap.experiment, seed, 0.1) for seed in range(3)]
    [remark] = compare_results(study_of(*runs), [gap])["remark"]
    assert remark == f"hypotheses are tested below{'' if tested else ', on other numbers of this training'}"


# ---------------------------------------------------------------------------- what remarks say of the committed results


def test_early_stopping_on_all_validation_images_ends_in_the_same_epochs_where_a_note_says_so(study, numbers):
    noted = [each for each in numbers if "they would stop in the same epochs" in each.note]
    assert len(noted) == 4 and {each.key for each in noted} == {"epochs_run"}
    for run in (run for each in noted for run in study.runs(each.experiment)):
        losses, train = series_of(run, "validation_loss"), TrainSettings(stopping="patience", patience_epochs=10)
        stops = [epoch for epoch in range(1, len(losses) + 1) if should_stop(losses[:epoch], train)]
        assert stops in ([len(losses)], []) and (stops or len(losses) == run["settings"]["train"]["max_epochs"])


def test_supervised_4_has_its_highest_accuracy_within_28_epochs(study):
    for run in study.runs("supervised_4"):
        accuracies = series_of(run, "validation_accuracy")
        assert max(accuracies[:28]) == max(accuracies) == pytest.approx(run["earlier_protocol_accuracy"])


def test_supervised_6_jumps_when_the_learning_rate_is_first_lowered(study):
    for run in study.runs("supervised_6"):
        assert run["settings"]["train"]["step_epochs"] == 10
        gains = np.diff(series_of(run, "validation_accuracy"))  # gains[0] is that of epoch 2
        assert gains[9] > 0.09 and gains[10:].max() < 0.04


def test_training_accuracies_pass_theirs_before_our_lowest_loss(study):
    for experiment, theirs, epoch in (
        ("perturbation_classifier_tuned_3", 0.9893, 30),
        ("perturbation_classifier_tuned_10", 0.956, 25),
    ):
        for run in study.runs(experiment):
            assert max(run["history"]["train_accuracy"][:epoch]) >= theirs
            losses = series_of(run, "validation_loss")
            assert losses.index(min(losses)) + 1 > epoch


def test_a_recipe_with_augmentation_has_the_order_of_training_and_test_accuracy_of_the_third_report(study):
    theirs, of = 0.5093, {}
    for name in ("cifar10_rotation", "cifar10_rotation_recipe"):
        runs = study.runs(name)
        train = [max(run["history"]["train_accuracy"]) for run in runs]
        of[name] = train, [max(series_of(run, "validation_accuracy")) for run in runs]
    (train, test), (recipe_train, recipe_test) = of.values()
    assert min(train) > max(test) + 0.2 and all(
        one < other for one, other in zip(recipe_train, recipe_test, strict=True)
    )
    assert theirs < min(recipe_test) and max(recipe_test) < min(test)
    assert len(recipe_train) < 3  # as the page says


def test_no_longer_training_makes_epoch_14_that_of_the_lowest_rotation_loss(study):
    for run in study.runs("rotation_tuned"):
        losses = series_of(run, "validation_loss")
        assert len(losses) == 15 and min(losses) < losses[14]


# ------------------------------------------------------------------------------------------------------------ the page


def test_features_in_train_mode_stand_beside_the_number_that_they_may_explain():
    name = "perturbation_classifier_3"
    runs = [result(f"{name}_train_mode", seed, accuracy) for seed, accuracy in enumerate((0.64, 0.66, 0.65))]
    text = hypotheses_markdown(study_of(result(name, accuracy=0.25), *runs), [])
    ours = {cells[1]: cells[2:] for cells in cells_of(text) if cells[0] == name}
    assert ours["-"] == ["0.6539", "0.2500, 1 run", "-"]
    assert ours["train mode: BatchNorm"] == ours["head: batchnorm_linear"] == ["0.6539", "not run", "-"]
    _, both, unchanged = ours["train mode: BatchNorm and stochastic depth"]
    assert unchanged == "0.2500, 1 run"
    elsewhere = result(name, 1, accuracy=0.35) | {"device": "H200"}  # the changed runs are not of that machine
    more = cells_of(hypotheses_markdown(study_of(result(name, accuracy=0.25), elsewhere, *runs), []))
    assert ["0.6539", both, unchanged] in [cells[2:] for cells in more if cells[0] == name]
    assert both.startswith("0.6500 (") and both.endswith("3 runs: theirs is inside")
    assert ours["pretext: epoch 3"] == ["0.6539", "not run", "-"]
    searched = {cells[1]: cells[2] for cells in cells_of(text) if cells[0] == "perturbation_searched_classifier"}
    assert searched["pretext: epoch 2"] == "0.4114" != searched["-"]  # which the report has itself
    of_sgd = [cells[1:] for cells in cells_of(text) if cells[0] == "supervised_5"]
    assert [cells[0] for cells in of_sgd] == ["-", "momentum: 0.9, Nesterov's", "schedule: none"]
    assert {cells[1] for cells in of_sgd} == {"0.7051"}
    of_rotation = [cells[1:] for cells in cells_of(text) if cells[0] == "rotation_1"]
    assert of_rotation == [["-", "0.9678", "not run", "-"], ["transforms: basic, 12 epochs", "0.9678", "not run", "-"]]
    loss = number(0.47, experiment="perturbation_tuned", key="history validation_loss 2", quantity="the loss")
    larger = result("perturbation_tuned_square_20")
    larger["history"] |= {"val_loss": [0.7, 0.46], "test_loss": [0.7, 0.46]}
    [without, with_square] = [
        cells[1:] for cells in cells_of(hypotheses_markdown(study_of(larger), [loss])) if "the loss" in cells[1]
    ]
    assert without == ["- (the loss)", "0.4700", "not run", "-"]
    assert with_square == ["pretext: perturbation_20 (the loss)", "0.4700", "0.4600, 1 run", "-"]
    far = study_of(*(result(f"{name}_train_mode", seed, 0.1 + seed / 100) for seed in range(3)))
    assert "3 runs: theirs is outside" in hypotheses_markdown(far, [])
    other = number(5, kind="setting", experiment=name, key="settings.train.max_epochs")
    far.results["run3"] = result(name)
    text = hypotheses_markdown(far, [other])
    assert "3 runs, other settings" in text and "outside" not in text  # of these nothing is concluded


def test_each_number_has_a_line_on_which_changes_come_as_far_as_theirs():
    name, seeds = "perturbation_classifier_3", range(3)
    runs = [result(f"{name}_epoch_1", seed, 0.65 + seed / 100) for seed in seeds]
    runs += [result(f"{name}_epoch_2", seed, 0.3 + seed / 100) for seed in seeds]
    found = found_markdown(study_of(*runs, result(f"{name}_epoch_3"), result(name)), [])
    low, high = prediction_interval([0.65, 0.66, 0.67], "share")  # shown, so that a reader sees how little it may say
    inside = f"*inside*: pretext: epoch 1 ({low:.4f} to {high:.4f}, 3 runs)"
    expected = f"{inside}; *outside*: pretext: epoch 2; *too few runs*: pretext: epoch 3"
    assert found.startswith(f"- `{name}`, theirs 0.6539: {expected}. ")


def of_change(change, *ours, unchanged=(), theirs=0.6) -> Hypothesis:
    return Hypothesis("first", change, "", theirs, "earlier_protocol_accuracy", ours, unchanged, others=False)


def test_the_conclusion_names_the_changes_that_come_as_far_as_theirs():
    near, far, beyond = (0.59, 0.6, 0.61), (0.29, 0.3, 0.31), (0.79, 0.8, 0.81)
    ours = of_change("-", *far)
    both = conclusion([ours, of_change("a", *near), of_change("b", *far), of_change("c", *near)])
    assert "“a” and “c” come" in both and "“b”" not in both
    wide = conclusion([ours, of_change("a", *near, unchanged=far), of_change("b", 0.3, 0.6, 0.9, unchanged=far)])
    assert "the interval of “b” holds ours unchanged too" in wide  # that of a does not
    assert "“b” goes beyond it" in conclusion([ours, of_change("a", *far), of_change("b", *beyond)])
    none = conclusion([ours, of_change("a", *far), of_change("b", 0.6)])
    assert "No change" in none and "“" not in none
    assert "“b” comes nearest, at 0.5000" in conclusion([ours, of_change("a", 0.4), of_change("b", 0.5)])
    assert "ours unchanged comes nearest, at 0.3000" in conclusion([ours, of_change("a", 0.1)])
    assert "without a change" in conclusion([of_change("-", *near), of_change("a", *near)])


def test_every_gap_that_was_tested_has_a_conclusion(study, numbers):
    lines = found_markdown(study, numbers).splitlines()
    compared = compare_results(study, numbers)
    gaps = compared.loc[compared["remark"].str.endswith("hypotheses are tested below"), "number"]
    losses = [each for each in gaps if "_loss" in each.key]
    assert len(losses) == 6
    for each in losses:
        [line] = [line for line in lines if line.startswith(f"- `{each.experiment}`, {each.quantity}, theirs ")]
        assert "comes nearest, at 0." in line
    for gap in ("supervised_5", "perturbation_classifier_", "rotation_classifier_", "perturbation_searched_classifier"):
        assert any(line.startswith(f"- `{gap}") for line in lines)
    for line in lines:
        assert line.endswith(".") and len(line.rpartition(". ")[2]) > 20, line  # a sentence after the changes


def test_an_accuracy_is_the_same_among_the_hypotheses_and_the_results(study, numbers):
    """The report's number after 7 epochs stands beside ours after 7, not beside our highest."""
    [ours] = [each for each in numbers if each.key == "history validation_accuracy 7"]
    mean = np.mean(measured(study, ours.experiment, ours.key))
    cells = next(line for line in cells_of(hypotheses_markdown(study, numbers)) if line[:2] == [ours.experiment, "-"])
    assert cells[3].startswith(f"{mean:.4f} (") and mean < np.mean(
        measured(study, ours.experiment, "earlier_protocol_accuracy")
    )


def cells_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def study() -> Measured:
    folder = CODE / "results" / "full"
    return Measured(reproduction.read_profile(folder), folder, CODE / "published")


@pytest.fixture(scope="module")
def text(study, numbers) -> str:
    return page(study, numbers)


def test_the_committed_page_is_that_of_the_committed_results(text):
    assert (CODE / "docs" / "reproduction.md").read_text() == text


def test_the_page_has_every_result_and_no_empty_cell(text, numbers):
    assert [line for line in cells_of(text) if "" in line] == []
    total = next(line for line in cells_of(text) if line[0] == "all")
    counts = [int(cell) for cell in total[1:]]
    assert counts[0] == sum(counts[1:]) == sum(each.kind == "result" for each in numbers)
    assert all(f"### Document {document}" in text for document in DOCUMENTS)


def test_words_of_the_study(study, numbers):
    compared = compare_results(study, numbers)
    assert set(compared["word"]) <= set(WORDS)
    for line in compared.to_dict("records"):
        assert line["word"] not in (REPRODUCED, BETTER, DIFFERS) or len(line["ours"]) >= 3
        assert (line["word"] in (NOT_RUN, CANNOT)) == (line["ours"] == [])
        assert line["word"] != CANNOT or line["remark"]


def test_our_initial_weights_have_the_strongest_filters_of_the_second_report(study, numbers):
    """The evidence that the page gives for where the initial weights come from."""
    strongest = [each for each in numbers if each.key in ("filter 1", "filter 2", "filter 3")]
    assert len(strongest) == 9
    for each in strongest:
        assert measured(study, each.experiment, each.key) == [each.value]


def test_command(root, capsys):
    assert reproduction.run_command(reproduction.main) == 2
    assert "results" in capsys.readouterr().err
    saved = json.loads((CODE / "results" / "full" / "supervised_1.json").read_text())
    saved["earlier_protocol_accuracy"] = 0.1234
    (root / "results" / "full").mkdir(parents=True)
    (root / "results" / "full" / "supervised_1.json").write_text(json.dumps(saved))
    assert reproduction.run_command(reproduction.main) == 0
    assert "0.1234" in (root / "docs" / "reproduction.md").read_text()
