import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from evaluation import few_labels as module
from evaluation.few_labels import (
    ALONE,
    ORACLE,
    SPREAD,
    accuracies,
    collect,
    few_labels,
    paired_differences,
    spread_labels,
    spreading_against_pretexts,
    spreading_matrix,
)
from evaluation.probes import digest_of_images
from evaluation.statistics import compare
from experiments import configure, find
from run_files import FORMAT, files_of
from tests.clouds import splits_of


def rings(images=120, seed=0):
    """Two circles around one point, with labels: the nearest images of most have their class, a mean says nothing."""
    generator = np.random.default_rng(seed)
    angles, labels = generator.uniform(0, 2 * np.pi, images), np.arange(images) % 2
    radii = 1 + 3 * labels
    return np.stack([radii * np.cos(angles), radii * np.sin(angles), 3.0 * labels], axis=1), labels


def test_one_label_of_a_class_spreads_over_its_images():
    features, labels = rings()
    labelled = np.array([0, 1])
    found = spread_labels(spreading_matrix(features, 8), labelled, labels[labelled])
    assert (found == labels).mean() > 0.95


def test_known_labels_stay_and_have_the_names_that_they_had():
    features, labels = rings()
    labelled, wrong = np.array([0, 1, 2]), np.array([7, 3, 3])  # the third is an image of the first's circle
    found = spread_labels(spreading_matrix(features, 8), labelled, wrong)
    assert found[labelled].tolist() == [7, 3, 3] and set(found) == {3, 7}


def test_labels_spread_as_zhou_et_al_iterate():
    features, labels = rings(images=30)
    labelled = np.array([0, 1, 2, 3])
    found = spread_labels(spreading_matrix(features, 4), labelled, labels[labelled])
    standardized = (features - features.mean(axis=0)) / features.std(axis=0)
    standardized /= np.linalg.norm(standardized, axis=1, keepdims=True)
    similarities = standardized @ standardized.T - 2 * np.eye(30)
    joined = np.zeros((30, 30))
    for image in range(30):
        joined[image, np.argsort(-similarities[image])[:4]] = 1
    joined = np.maximum(joined, joined.T)
    degrees = joined.sum(axis=1)
    matrix = joined / np.sqrt(degrees[:, None] * degrees[None])
    first = np.eye(2)[labels] * np.isin(np.arange(30), labelled)[:, None]
    mass = first
    for _ in range(500):
        mass = module.SPREAD_SHARE * matrix @ mass + (1 - module.SPREAD_SHARE) * first
    expected = (mass / mass.sum(axis=0)).argmax(axis=1)
    expected[labelled] = labels[labelled]
    assert found.tolist() == expected.tolist()


def test_a_table_has_one_line_per_number_draw_and_readout():
    splits = splits_of(images=(10, 12, 12))
    table = few_labels(splits, (1, 3, 50), draws=2, oracle_draws=1)
    assert set(table["images_per_class"]) == {1, 3}  # no class has 50
    assert (
        table.groupby(["images_per_class", "draw"])["readout"].apply(list).tolist()
        == [
            [ALONE, SPREAD, ORACLE],
            [ALONE, SPREAD],
        ]
        * 2
    )
    assert table["test_accuracy"].between(0, 1).all()
    assert few_labels(splits, (1,), draws=2)["readout"].unique().tolist() == [ALONE, SPREAD]


def test_labels_alone_do_not_read_the_other_images():
    splits = splits_of(images=(10, 12, 12))
    features, labels = splits["train"]
    sample = module.sample_of_each_class(labels, 3, seed=0)
    changed = np.full_like(features, 1e3)
    changed[sample] = features[sample]
    one, other = (few_labels({**splits, "train": (each, labels)}, (3,), 1) for each in (features, changed))
    alone = [table.set_index("readout").loc[ALONE, "test_accuracy"] for table in (one, other)]
    assert alone[0] == alone[1]


def table_of(features, seed, values):
    lines = [(features, seed, 5, draw, ALONE, value) for draw, value in enumerate(values)]
    return pd.DataFrame(lines, columns=["features", "seed", "images_per_class", "draw", "readout", "test_accuracy"])


def test_differences_are_paired_by_draw():
    spread = [0.1, 0.5, 0.9, 0.3]  # between draws, far wider than the difference
    table = pd.concat(
        [table_of("ImageNet", 0, spread), table_of("BYOL", 0, [each + 0.02 for each in spread[:3]] + [0.319])]
    )
    found = paired_differences(table).iloc[0]
    assert found["difference"] == pytest.approx(0.01975) and found["verdict"] == "better"
    assert found["draws_better"] == "4 of 4" and found["seeds"] == 1
    assert 0.018 < found["low"] < found["difference"] < found["high"] < 0.022


def test_seeds_widen_the_interval():
    control = table_of("ImageNet", 0, [0.5, 0.6, 0.55, 0.58])
    alike = [table_of("BYOL", seed, [0.52, 0.63, 0.57, 0.61]) for seed in (0, 1)]
    apart = [table_of("BYOL", 0, [0.50, 0.61, 0.55, 0.59]), table_of("BYOL", 1, [0.54, 0.65, 0.59, 0.63])]
    one, other = (paired_differences(pd.concat([control, *each])).iloc[0] for each in (alike, apart))
    assert one["difference"] == pytest.approx(other["difference"]) and one["seeds"] == 2
    assert other["high"] - other["low"] > 3 * (one["high"] - one["low"])
    assert (one["verdict"], other["verdict"]) == ("better", "inconclusive")


def test_comparisons_of_a_table_share_their_level():
    draws = {"ImageNet": [0.5, 0.6, 0.55, 0.58], "BYOL": [0.52, 0.63, 0.57, 0.61], "neighbours": [0.5, 0.62, 0.5, 0.6]}
    alone = pd.concat([table_of(name, 0, values) for name, values in draws.items()])
    spread = [0.6, 0.64, 0.6, 0.66]
    with_spread = pd.concat([alone, table_of("ImageNet", 0, spread).assign(readout=SPREAD)])
    found = paired_differences(alone).set_index("features")
    spreading = spreading_against_pretexts(with_spread).set_index("features")
    for name in ("BYOL", "neighbours"):
        for line, expected in (
            (found.loc[name], compare(draws[name], draws["ImageNet"], comparisons=2)),
            (spreading.loc[name], compare(spread, draws[name], comparisons=2)),
        ):
            measures = line[["difference", "low", "high", "p"]].tolist()
            assert measures == pytest.approx([expected.difference, expected.low, expected.high, expected.p_value])


def test_accuracies_are_means_over_seeds_and_draws():
    table = pd.concat([table_of("BYOL", 0, [0.5, 0.7]), table_of("BYOL", 1, [0.6, 0.8])])
    [line] = accuracies(table).to_dict("records")
    assert line["test_accuracy"] == pytest.approx(0.65) and line["from"] < 0.55 < 0.75 < line["to"]


def test_tables_are_cached_and_computed_again_for_other_weights(root, monkeypatch):
    weights, images = {"imagenet_classifier_probe": "a", "byol_classifier": "b"}, ["these"]
    computed = []

    def features(experiment, profile):
        computed.append(experiment.name)
        return splits_of(), weights[experiment.name], images[0]

    monkeypatch.setattr(module, "_has_weights", lambda experiment, profile: experiment.name in weights)
    monkeypatch.setattr(module, "features_of_probe", features)
    monkeypatch.setattr(module, "few_labels", lambda *_: table_of("", 0, [len(computed), 0.6]))
    configured = partial(configure, profile="quick", data="synthetic")
    experiments = {name: configured(find(name)) for name in module.FEATURES.values()}
    assert len(collect(experiments, "quick")) == 0
    table = collect(experiments, "quick", compute=True)
    assert table["features"].unique().tolist() == ["ImageNet", "BYOL"]  # the other pretexts have not been run
    assert computed == list(weights)
    assert collect(experiments, "quick", compute=True).equals(table)
    weights["byol_classifier"] = "of another run"
    again = collect(experiments, "quick", compute=True)
    changed = (again != table).any(axis=1)
    assert set(table.loc[changed, "features"]) == {"BYOL"} and len(again) == len(table)
    images[0] = "others"  # ImageNet features of other images have the same weights
    of_others = collect(experiments, "quick", compute=True)
    assert set(again.loc[(of_others != again).any(axis=1), "features"]) == {"ImageNet", "BYOL"}


def test_tables_of_other_weights_than_those_of_the_results_are_named(root, capsys):
    experiments = {name: configure(find(name), "quick", data="synthetic") for name in module.FEATURES.values()}

    def write(name, digest):
        path = files_of(experiments[name], "quick").result
        path.parent.mkdir(parents=True, exist_ok=True)
        result = {"format": FORMAT, "initial_weights": {"sha256": digest}, "data": {"fingerprint": "not here"}}
        path.write_text(json.dumps(result))

    images = digest_of_images({"fingerprint": "not here"})
    for name in ("byol_classifier", "neighbours_classifier"):
        write(name, "a")
        table = table_of("", 0, [0.5, 0.6]).assign(weights="a", images=images)
        table.to_csv(module._path(experiments[name], "quick"), index=False)
    table = collect(experiments, "quick")
    assert capsys.readouterr().err == ""
    write("byol_classifier", "of another run")
    assert collect(experiments, "quick").equals(table)
    warning = capsys.readouterr().err
    assert "few_labels_byol_classifier.csv" in warning and "neighbours" not in warning


def test_the_committed_tables_are_of_the_weights_of_the_committed_results(capsys):
    experiments = {name: configure(find(name), "full") for name in module.FEATURES.values()}
    assert set(collect(experiments, "full")["features"]) == set(module.FEATURES)
    assert capsys.readouterr().err == ""


def test_what_is_computed_is_of_the_features_that_the_probe_reads(root, monkeypatch):
    read = {}
    monkeypatch.setattr(module, "few_labels", lambda splits, *_: read.update(splits) or table_of("", 0, [0.5, 0.6]))
    experiments = {name: configure(find(name), profile="quick", data="synthetic") for name in module.FEATURES.values()}
    collect(experiments, "quick", compute=True)
    assert {split: features.shape for split, (features, _) in read.items()} == {
        "train": (90, 112 + 192 + 320 + 1280),
        "val": (90, 1904),
        "test": (90, 1904),
    }


def test_all_labels_of_every_class_are_one_draw_which_has_no_interval():
    splits = splits_of((30, 30, 60), channels=4)
    tables = [few_labels(splits, (2, 10), draws=4).assign(features=name, seed=0) for name in ("ImageNet", "BYOL")]
    assert tables[0].groupby("images_per_class")["draw"].nunique().to_dict() == {2: 4, 10: 1}
    tables[1]["test_accuracy"] += 0.01 + 0.001 * tables[1]["draw"]
    table = paired_differences(pd.concat(tables)).set_index(["images_per_class", "readout"])
    of_all = table.loc[10, :]
    assert of_all["low"].isna().all() and set(of_all["verdict"]) == {"inconclusive"}
    assert table.loc[2, "low"].notna().all()
    seeds = [tables[1].assign(seed=seed, test_accuracy=tables[1]["test_accuracy"] + 0.001 * seed) for seed in range(3)]
    table = paired_differences(pd.concat([tables[0], *seeds])).set_index(["images_per_class", "readout"])
    assert table.loc[10, "low"].notna().all()  # of the seeds of the pretext alone


def test_label_spreading_is_compared_with_a_pretext_on_the_same_draws():
    lines = [
        (features, 0, 1, draw, readout, accuracy + gain * draw)
        for features, readout, accuracy, gain in (
            ("ImageNet", SPREAD, 0.7, 0.01),
            ("ImageNet", ALONE, 0.5, 0.01),
            ("BYOL", ALONE, 0.6, 0.012),
        )
        for draw in range(4)
    ]
    columns = ["features", "seed", "images_per_class", "draw", "readout", "test_accuracy"]
    (line,) = spreading_against_pretexts(pd.DataFrame(lines, columns=columns)).to_dict("records")
    assert line["features"] == "BYOL" and line["difference"] == pytest.approx(0.1 - 0.002 * 1.5)
    assert line["verdict"] == "better" and line["draws_better"] == "4 of 4"


def test_a_table_of_older_code_with_draws_that_are_the_same_is_made_again(monkeypatch, tmp_path):
    splits, made = splits_of((30, 30, 60), channels=4), []
    monkeypatch.setattr(module, "features_of_probe", lambda *_: (splits, "w", "i"))
    monkeypatch.setattr(module, "_path", lambda *_: tmp_path / "few.csv")
    monkeypatch.setattr(module, "few_labels", lambda *_: made.append(1) or table)
    table = pd.DataFrame({"images_per_class": [10, 10], "draw": [0, 1], "readout": ALONE, "test_accuracy": 0.5})
    probe = find("byol_classifier")
    for times in (1, 2):  # what was just made is wrong too, as by older code
        module._fill(probe, "quick", False)
        assert len(made) == times
    table = table[:1]
    for _ in range(2):
        module._fill(probe, "quick", False)
    assert len(made) == 3
