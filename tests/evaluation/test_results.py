from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation import results as module
from evaluation.results import (
    COLUMNS,
    EARLIER_CLAIMS,
    PRIMARY_FAMILY,
    accuracies_without_pretext,
    comparisons,
    correct_on_test,
    experiments_table,
    machine,
    machines,
    of_experiments,
    pairs_to_compare,
    pretext_epochs_table,
    read_claims,
    read_profile,
    read_results,
    results_table,
    runs_of,
    seeds_table,
    settings_table,
)
from evaluation.statistics import accuracy_interval, compare, mean_accuracy
from experiments import EXPERIMENTS, configure, find
from run_files import read, settings_of
from supervised.settings import Experiment
from tests.evaluation.synthetic_results import result, seeds, write

H200 = ("NVIDIA H200", "2.11.0", "bfloat16")


def experiment(name, compared_with="", earlier_accuracy=None):
    about = {"name": name, "question": f"Is {name} better?", "compared_with": compared_with, "data": "15scene"}
    return SimpleNamespace(**about, family=Experiment.family, earlier_accuracy=earlier_accuracy)


OWN = {each.name: each for each in (experiment("one", "two"), experiment("two", "three"), experiment("three"))}


@pytest.fixture
def no_claims(monkeypatch):
    monkeypatch.setattr(module, "read_claims", lambda: [])


def test_results_are_read_by_file_stem_and_an_empty_folder_is_refused(tmp_path):
    write(tmp_path, seeds("one", [0], [1]))
    assert list(read_results(tmp_path)) == ["one", "one.seed1"]
    with pytest.raises(FileNotFoundError, match="no results"):
        read_results(tmp_path / "nothing")
    (tmp_path / "one.seed1.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match="one.seed1.json is not complete"):
        read_results(tmp_path)


def test_runs_from_before_and_after_a_setting_was_added_are_runs_of_one_experiment(tmp_path):
    settings = settings_of(find("supervised_1"))
    runs = seeds("supervised_1", [0], [1], [2])
    for seed, each in enumerate(runs.values()):
        each["settings"] = settings | {"seed": seed}
    del runs["supervised_1"]["settings"]["stages"]
    runs["supervised_1.seed2"]["settings"]["batch_size"] = 7
    write(tmp_path, runs)
    assert [run["settings"]["seed"] for run in runs_of(read_results(tmp_path), "supervised_1")] == [0, 1]


def test_results_on_15_scene_come_with_the_side_studies_and_those_on_other_data_alone(tmp_path):
    for folder, name in ((".", "one"), ("nature", "nature_one"), ("cifar10", "cifar10_one"), ("flowers", "one")):
        write(tmp_path / folder, {name: result(name)})
    assert list(read_profile(tmp_path)) == ["one", "nature_one", "cifar10_one"]
    assert list(read_profile(tmp_path, "somewhere/flowers")) == ["one"]
    with pytest.raises(FileNotFoundError, match="synthetic"):
        read_profile(tmp_path, "synthetic")


def test_runs_are_those_of_one_experiment_and_not_of_a_longer_name():
    found = {**seeds("one", [0], [1]), **seeds("one_two", [2])}
    assert [run["settings"]["name"] for run in runs_of(found, "one")] == ["one", "one"]
    assert list(of_experiments(found, ("one_two", "one"))) == ["one_two", "one", "one.seed1"]


def test_a_pretext_counts_an_image_once():
    run = result("pretext", wrong=[0, 2, 3], images=8, pretext="perturbation")
    assert correct_on_test([run]).tolist() == [[0.5, 0, 1, 1]]  # two labels: each image is shown twice
    table = results_table({"pretext": run}, {})
    assert table.loc["pretext", ["low", "high"]].tolist() == pytest.approx(accuracy_interval(2, 4))


def test_a_machine_is_device_torch_and_precision():
    cpu, gpu = result("one"), result("one", machine=H200)
    assert machine(cpu) == "cpu, torch 2.15.0, float32"
    assert machines([cpu, gpu, cpu]) == "NVIDIA H200, torch 2.11.0, bfloat16; cpu, torch 2.15.0, float32"


def test_the_table_of_results_has_a_line_a_run_with_the_earlier_number_on_the_same_data_only():
    runs = {**seeds("one", [0], [0, 1]), "two": result("two")}
    runs["two"]["data"]["name"] = "flowers"
    table = results_table(runs, {name: experiment(name, earlier_accuracy=0.9) for name in ("one", "two")})
    assert table.index.tolist() == ["one", "one.seed1", "two"]
    assert table["earlier report"].tolist()[:2] == [0.9, 0.9] and np.isnan(table["earlier report"].iloc[2])
    assert table.loc["one.seed1", ["test", "minutes"]].tolist() == [0.98, 1.5]
    assert table.loc["one", ["low", "high"]].tolist() == pytest.approx(accuracy_interval(99, 100))


def test_the_table_of_experiments_has_the_mean_over_runs_with_an_interval_over_images_and_seeds():
    runs = {**seeds("one", range(10), range(5, 20)), **seeds("two", range(30), machine=H200)}
    table = experiments_table(runs, {"one": experiment("one", earlier_accuracy=0.8)})
    assert table.loc["one", ["runs", "earlier report", "lowest", "highest"]].tolist() == [2, 0.8, 0.85, 0.9]
    expected = mean_accuracy(correct_on_test(list(runs.values())[:2]))
    assert table.loc["one", ["test", "low", "high"]].tolist() == pytest.approx(expected)
    assert table.loc["two", ["low", "high"]].tolist() == pytest.approx(accuracy_interval(70, 100))


def test_the_table_of_seeds_leaves_out_single_runs():
    table = seeds_table({**seeds("one", range(20), range(10)), **seeds("two", [0])})
    assert table.index.tolist() == ["one"]
    columns = ["runs", "test", "test, standard deviation", "test, lowest", "test, highest"]
    assert table.loc["one", columns].tolist() == pytest.approx([2, 0.85, np.std([0.8, 0.9], ddof=1), 0.8, 0.9])


def test_table_3_has_the_pretext_after_the_epochs_that_each_classifier_is_on():
    history = {"val_accuracy": [0.3, 0.4, 0.5], "val_loss": [3.0, 2.0, 1.0]}
    pretexts = {"rotation_tuned": {"history": history}, "rotation_1": {"history": history}}
    on = {"a": ("rotation_tuned", "last"), "b": ("rotation_tuned", 2), "c": ("rotation_1", 2)}
    classifiers = {
        name: result(name, range(len(on[name][0])), pretext_run=on[name][0], pretext_epoch=on[name][1]) for name in on
    }
    table = pretext_epochs_table({**classifiers, "d": result("d")}, pretexts)
    columns = ["pretext", "epochs", "pretext accuracy", "pretext loss", "test"]
    assert table[columns].values.tolist() == [
        ["rotation_tuned", 2, 0.4, 2.0, 0.86],
        ["rotation_tuned", 3, 0.5, 1.0, 0.86],
    ]
    assert pretext_epochs_table({}, {}).empty


def test_beside_a_pretext_by_epoch_stands_the_same_head_on_imagenet_features():
    there = {"imagenet_classifier_tuned": {"test_accuracy": 0.9}, "other": {"test_accuracy": 0.5}}
    assert accuracies_without_pretext(there) == {"rotation_tuned": 0.9}


def test_settings_that_all_results_share_are_text_and_the_others_a_table():
    def with_settings(name, precision, **training):
        return {"settings": {"name": name, "head": "deep", "train": training}, "precision": precision}

    runs = {
        "one": with_settings("one", "float32", learning_rate=0.1, max_epochs=3),
        "one.seed1": with_settings("one", "bfloat16", learning_rate=0.1, max_epochs=5),
    }
    same, table = settings_table(runs)
    assert same == "head = deep, learning_rate = 0.1"
    assert table.to_dict("index") == {
        "one": {"max_epochs": 3, "precision used": "float32"},
        "one.seed1": {"max_epochs": 5, "precision used": "bfloat16"},
    }
    assert settings_table({"one": runs["one"]})[1].empty
    runs["one.seed1"]["settings"]["teachers"] = [2, 3]
    same, table = settings_table(runs)
    assert "teachers" not in same and table["teachers"].tolist()[1] == [2, 3]


def test_a_comparison_is_that_of_all_runs_in_its_family(no_claims):
    runs = {**seeds("one", range(4), range(6)), **seeds("two", range(20), range(22), range(25))}
    (line,) = comparisons(runs, OWN).to_dict("records")
    sides = [correct_on_test(runs_of(runs, name)) for name in ("one", "two")]
    found = compare(*sides, comparisons=2)
    assert (line["experiment"], line["compared_with"], line["question"]) == ("one", "two", "Is one better?")
    assert line["family"] == Experiment.family
    assert (line["m"], line["runs"], line["other_runs"], line["images"]) == (2, 2, 3, 100)
    numbers = [line[key] for key in ("accuracy", "other_accuracy", "difference", "low", "high", "p")]
    assert numbers == [
        *(found.accuracy, found.other_accuracy, found.difference),
        *(found.low, found.high, found.p_value),
    ]
    assert line["verdict"] == "better" and not line["single_run"] and not line["across_machines"]


def test_a_comparison_says_that_its_runs_are_of_several_machines_or_that_a_side_is_a_single_run(no_claims):
    runs = {**seeds("one", range(4), range(6)), **seeds("two", range(20), machine=H200)}
    (line,) = comparisons(runs, OWN).to_dict("records")
    assert line["across_machines"] and line["single_run"]
    assert line["machines"] == machines(runs.values()) and not line["across_precisions"]
    other_precision = seeds("two", range(20), machine=("cpu (x86_64)", "2.15.0", "bfloat16"))
    (line,) = comparisons({**runs, **other_precision}, OWN).to_dict("records")
    assert line["across_precisions"] and not line["across_machines"]


def on_two_platforms(name, here=(), there=()):
    """Runs on a CPU and on a GPU with an older torch, one for each number of wrong predictions."""
    return numbered([*seeds(name, *map(range, here)).values(), *seeds(name, *map(range, there), machine=H200).values()])


def numbered(runs):
    for seed, run in enumerate(runs):
        run["settings"]["seed"] = seed
    return {f"{run['settings']['name']}.seed{run['settings']['seed']}": run for run in runs}


@pytest.mark.parametrize(
    ("here", "there", "first", "standing"),
    [
        ((1, 2, 3), (4, 5, 6, 7, 8), "cpu", (1, 2, 3)),  # the newer torch, where both have enough
        ((1, 2), (4, 5, 6), "gpu", (4, 5, 6)),
        ((1, 2), (4, 5), "cpu", (1, 2, 4, 5)),  # none has enough
        ((1,), (4, 5), "gpu", (1, 4, 5)),
        ((), (4,), "gpu", (4,)),
    ],
)
def test_the_runs_of_one_platform_that_has_enough_stand_for_an_experiment(here, there, first, standing):
    runs = on_two_platforms("one", here, there)
    platforms = {"cpu": "cpu, torch 2.15.0", "gpu": "NVIDIA H200, torch 2.11.0"}
    found = module.runs_by_platform(runs, "one")
    assert next(iter(found)) == platforms[first] and sum(map(len, found.values())) == len(here) + len(there)
    assert [round(100 - 100 * run["test_accuracy"]) for run in runs_of(runs, "one")] == list(standing)
    assert experiments_table(runs, {}).loc["one", "test"] == pytest.approx(1 - np.mean(standing) / 100)


def test_a_comparison_takes_the_platform_on_which_both_have_runs(no_claims):
    runs = on_two_platforms("one", (1, 1, 1), (4, 4, 4)) | on_two_platforms("two", there=(8, 8, 8))
    (line,) = comparisons(runs, OWN).to_dict("records")
    assert (line["runs"], line["other_runs"], line["across_machines"]) == (3, 3, False)
    assert (line["accuracy"], line["other_accuracy"]) == pytest.approx((0.96, 0.92))
    assert runs_of(runs, "one")[0]["test_accuracy"] == 0.99  # which stands in the table of experiments


@pytest.mark.parametrize(
    ("one", "two", "runs", "pooled"),
    [
        (((1, 1), (4,)), ((8, 8), (9,)), (3, 3), True),  # two of each here, three in all
        (((1, 1), ()), ((8, 8), (9,)), (2, 3), True),  # two and two here, three of one side in all
        (((1, 1), ()), ((8, 8, 8), (9,)), (2, 3), False),  # more than three of one side would not help
        (((1,), ()), ((8,), (9, 9, 9)), (1, 4), True),  # else the single one here would hide a variance that is known
        (((1,), ()), ((), (9, 9)), (1, 2), True),  # on no platform both
    ],
)
def test_a_comparison_takes_all_platforms_where_that_gives_a_side_more_runs(one, two, runs, pooled, no_claims):
    (line,) = comparisons(on_two_platforms("one", *one) | on_two_platforms("two", *two), OWN).to_dict("records")
    assert (line["runs"], line["other_runs"]) == runs and line["across_machines"] == pooled


def test_a_comparison_is_repeated_on_another_platform_with_enough_runs_of_both(no_claims, monkeypatch):
    ones, few = on_two_platforms("one", (1, 2, 3), (4, 5, 6)), on_two_platforms("two", (8, 9, 10), (11, 12))
    assert comparisons({**ones, **few}, OWN)["accuracy"].item() == pytest.approx(0.98)
    assert module.comparisons_elsewhere({**ones, **few}, OWN).empty
    enough = on_two_platforms("two", (8, 9, 10), (11, 12, 13))
    (line,) = module.comparisons_elsewhere({**ones, **enough}, OWN).to_dict("records")
    assert (line["accuracy"], line["other_accuracy"], line["m"]) == pytest.approx((0.95, 0.88, 2))
    monkeypatch.setattr(module, "DETERMINISTIC", frozenset({"two"}))
    one_each = on_two_platforms("two", (8,), (11,))
    assert module.comparisons_elsewhere({**ones, **one_each}, OWN)["other_runs"].tolist() == [1]


def test_a_comparison_says_that_distilled_networks_had_other_teachers(no_claims):
    runs = seeds("one", range(4), teacher_run="teacher") | seeds("two", range(20), teacher_run="teacher")
    for run, digest in zip(runs.values(), ("a", "b"), strict=True):
        run["teachers"] = {"runs": [{"sha256": digest}]}
    assert comparisons(runs, OWN)["across_teachers"].item()
    runs["two"]["teachers"] = runs["one"]["teachers"]
    assert not comparisons(runs, OWN)["across_teachers"].item()
    assert not comparisons({**runs, **seeds("two", range(20))}, OWN)["across_teachers"].item()  # without any


@pytest.mark.parametrize(
    ("one", "two", "differ"),
    [
        ({"sha256": "a"}, {"sha256": "b"}, True),
        ({"sha256": "a"}, {"sha256": "c", "began_with": {"sha256": "b"}}, True),  # after a pretext
        ({"sha256": "a"}, {"sha256": "c", "began_with": {"sha256": "a"}}, False),
        ({"sha256": "a"}, {"weights": "random"}, False),  # the difference that is asked about
    ],
)
def test_a_comparison_says_that_runs_began_with_other_files_of_weights(one, two, differ, no_claims):
    runs = seeds("one", range(4)) | seeds("two", range(20))
    for run, weights in zip(runs.values(), (one, two), strict=True):
        run["initial_weights"] = weights
    assert comparisons(runs, OWN)["across_weights"].item() == differ


def test_the_weights_that_several_seeds_began_with_are_named_once():
    runs = seeds("one", [1], [2])
    runs["one"]["initial_weights"] = {"weights": "pretext, epoch 3"}
    runs["one.seed1"]["initial_weights"] = {"weights": "pretext.seed1, epoch 3"}
    assert experiments_table(runs, {}).loc["one", "initial weights"] == "pretext, epoch 3"


def test_the_table_of_platforms_has_the_experiments_of_several_with_their_difference():
    runs = on_two_platforms("one", (1, 2, 3), (4, 4, 4, 4)) | seeds("two", [1])
    table = module.platforms_table(runs)
    assert table["experiment"].tolist() == ["one", "one"] and table["runs"].tolist() == [3, 4]  # newest first
    assert table["test"].tolist() == pytest.approx([0.98, 0.96])
    assert table["difference"].tolist() == pytest.approx([0, -0.02])
    assert table["standard deviation"].tolist() == pytest.approx([0.01, 0])
    assert module.platforms_table(seeds("two", [1])).empty


def test_a_comparison_says_that_its_runs_or_their_pretexts_had_several_versions_of_the_augmentation(no_claims):
    runs = {**seeds("one", range(4)), **seeds("two", range(20)), **seeds("pretext", range(5))}
    runs["one"]["augmentation"] = 2
    assert not comparisons(runs, OWN)["across_augmentations"].item()  # no image was augmented
    for name in ("one", "two"):
        runs[name]["settings"]["augmentation"] = "crop"  # is not rotated
    assert not comparisons(runs, OWN)["across_augmentations"].item()
    for name in ("one", "two"):
        runs[name]["settings"]["augmentation"] = "advanced"
    assert comparisons(runs, OWN)["across_augmentations"].item()
    runs["two"]["augmentation"] = 2
    assert not comparisons(runs, OWN)["across_augmentations"].item()
    runs["pretext"]["settings"]["augmentation"] = "advanced"
    runs["two"]["settings"]["pretext_run"] = "pretext"
    assert comparisons(runs, OWN)["across_augmentations"].item()


def test_pairs_without_runs_or_with_other_test_images_are_left_out(no_claims):
    runs = {**seeds("one", [0]), **seeds("two", [1])}
    assert len(comparisons(runs, OWN)) == 1
    assert comparisons(seeds("one", [0]), OWN).empty
    assert comparisons({**runs, "two.seed1": result("two", images=80)}, OWN).empty
    assert comparisons({}, OWN).columns.tolist() == list(COLUMNS)


def test_the_size_of_a_family_does_not_depend_on_what_has_been_run(no_claims):
    few = comparisons({**seeds("one", [0]), **seeds("two", [1])}, OWN)
    more = comparisons({**seeds("one", [0]), **seeds("two", [1]), **seeds("three", [2])}, OWN)
    assert few.iloc[0].equals(more.iloc[0]) and len(more) == 2 and set(more["m"]) == {2}


def test_a_claim_about_classes_is_measured_on_their_images(monkeypatch):
    claim = module.Claim("one is better", "a report", "one", "two", "better")
    monkeypatch.setattr(module, "read_claims", lambda: [claim, replace(claim, classes=("coast",))])
    runs = {**seeds("one", [0, 2, 4]), **seeds("two", range(0, 100, 2))}
    table = comparisons(runs, OWN)
    assert table["family"].tolist() == [EARLIER_CLAIMS] * 2 and table["m"].tolist() == [2, 2]  # not of the own too
    assert table["classes"].tolist() == ["", "coast"] and table["images"].tolist() == [100, 50]
    assert table.loc[1, ["accuracy", "other_accuracy", "verdict"]].tolist() == [0.94, 0, "better"]
    assert set(table["question"]) == {"one is better"}
    for run in runs.values():
        run["class_names"] = ["rose", "tulip"]  # on images of the user's own
    assert comparisons(runs, OWN)["classes"].tolist() == [""]


def test_the_primary_comparison_is_a_family_of_one(no_claims, monkeypatch):
    monkeypatch.setattr(module, "PRIMARY", "one")
    families = {pair.experiment: (pair.family, pair.comparisons) for pair in pairs_to_compare(OWN)}
    assert families == {"one": (PRIMARY_FAMILY, 1), "two": (Experiment.family, 1)}


def test_a_deterministic_side_is_no_single_run(no_claims, monkeypatch):
    runs = {**seeds("one", range(4)), **seeds("two", range(20), range(22))}
    assert comparisons(runs, OWN)["single_run"].item()
    monkeypatch.setattr(module, "DETERMINISTIC", frozenset({"one"}))
    assert not comparisons(runs, OWN)["single_run"].item()


def test_every_pair_of_the_study_belongs_to_one_family_in_one_direction():
    pairs = pairs_to_compare()
    assert len({(pair.experiment, pair.compared_with, pair.classes) for pair in pairs}) == len(pairs)
    orders = {(pair.experiment, pair.compared_with) for pair in pairs}
    assert not {(second, first) for first, second in orders} & orders
    families = {}
    for pair in pairs:
        families.setdefault(frozenset((pair.experiment, pair.compared_with)), set()).add(pair.family)
    assert all(len(each) == 1 for each in families.values())
    sizes = Counter(pair.family for pair in pairs) + Counter(module.DELETED)
    assert all(pair.comparisons == sizes[pair.family] for pair in pairs) and sizes[PRIMARY_FAMILY] == 1
    assert sizes[Experiment.family] == 65  # what is asked later has families of its own, and changes no verdict


def test_every_claim_and_pair_is_of_experiments_that_exist():
    claims = read_claims()
    assert {name for each in claims for name in (each.experiment, each.compared_with)} <= set(EXPERIMENTS)
    assert {each.direction for each in claims} == {"better", "worse"}
    assert {each.compared_with for each in EXPERIMENTS.values()} - {""} <= set(EXPERIMENTS)


def test_every_committed_result_is_one_of_its_experiment(study):
    """What a report reads: a changed setting needs a new run."""
    asked = {(result["settings"]["name"], result["settings"]["seed"]) for result in study.values()}
    known = {(name, seed) for name, seed in asked if name in EXPERIMENTS}
    assert len(known) > 150 and {name.split("_tuned_")[0] for name, _ in asked - known} == {"imagenet_classifier"}
    for name, seed in sorted(known):  # the others are of the best trials of searches
        assert read(configure(find(name), "full", seed=seed)) is not None, name


def test_every_pair_of_the_study_with_results_of_both_is_compared(study, compared):
    there = {run["settings"]["name"] for run in study.values()}
    expected = [
        (pair.experiment, pair.compared_with, ", ".join(pair.classes))
        for pair in pairs_to_compare()
        if {pair.experiment, pair.compared_with} <= there
    ]
    assert list(compared[["experiment", "compared_with", "classes"]].itertuples(index=False, name=None)) == expected
    assert len(expected) > 50


def test_the_study_has_three_verdicts_that_agree_with_p_and_interval(compared):
    excludes_0 = (compared["low"] > 0) | (compared["high"] < 0)
    assert ((compared["p"] < 0.05) == excludes_0).all()
    assert ((compared["verdict"] != "inconclusive") == excludes_0).all()
    assert set(compared["verdict"]) == {"better", "worse", "inconclusive"}


def test_the_accuracies_of_the_study_are_those_of_its_predictions(study):
    table = results_table(study)
    right = {stem: correct_on_test([run]).mean() for stem, run in study.items()}
    assert table["test"].tolist() == pytest.approx(list(right.values()))
    assert ((table["low"] <= table["test"]) & (table["test"] <= table["high"])).all()
