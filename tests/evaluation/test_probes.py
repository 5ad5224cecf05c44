"""Small classifiers on frozen features, and the cache of what the reports probe."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

from evaluation import probes, representation
from evaluation.probes import (
    collect_cifar10,
    collect_scenes,
    label_fractions,
    mean_of_draws,
    probe_stages,
    sample_of_each_class,
    stage_features,
)
from evaluation.statistics import accuracy_interval, mean_and_interval
from experiments import configure, find
from run_files import FORMAT, files_of, load_weights, read
from runs import build_model, run, write_result
from self_supervised.dataloader import build_loaders
from self_supervised.probes import linear_probe
from supervised.models import SceneClassifier, estimate_batchnorm
from tests.clouds import splits_of, spoiled
from tests.evaluation.synthetic_results import result


class TwoStages(nn.Module):
    """A first stage that passes both channels on, a second that passes on only the last one; there is no classifier."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Identity(), nn.Conv2d(2, 1, 1, bias=False))
        self.features[1].weight.data = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)


def images_with_class_in_first_channel(count, seed):
    """One batch: the brightness of the first channel gives the class, the second channel is noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.rand(count, 2, 4, 4, generator=generator)
    images[:, 0] += 3 * labels[:, None, None]
    return [(images, labels)]


def test_features_of_a_model_with_flip_tta_are_those_of_its_head():
    torch.manual_seed(0)
    model = SceneClassifier(2, stages=(2, 8), flip_tta=True)
    images = torch.randn(3, 3, 32, 32)
    estimate_batchnorm(model.features, [(images, None)])
    stages, _ = stage_features(model, [(images, torch.tensor([0, 1, 0]))])
    with torch.inference_mode():
        expected = model.eval().pooled_features(images).numpy()
        assert np.abs(expected[:, :24] - model.features[:3](images).mean(dim=(2, 3)).numpy()).max() > 1e-3
    np.testing.assert_allclose(np.concatenate([stages[2], stages[8]], axis=1), expected, atol=1e-5)


def test_a_stage_is_the_mean_of_its_maps_for_each_image_of_the_loader(small_network):
    images, labels = torch.randn(7, 3, 16, 16), torch.arange(7)
    small_network.features[1].running_mean.fill_(0.5)
    stages, found = stage_features(small_network, [(images[:4], labels[:4]), (images[4:], labels[4:])])
    small_network.eval()
    with torch.no_grad():
        for length, stage in enumerate(stages, start=1):
            expected = small_network.features[:length](images).mean(dim=(2, 3))
            assert stage.shape == (7, 8) and stage.dtype == np.float32
            assert np.allclose(stage, expected.numpy(), atol=1e-6)
    assert len(stages) == 3
    assert found.tolist() == labels.tolist()


def test_every_stage_runs_once_a_batch(small_network):
    calls = []
    for number, stage in enumerate(small_network.features):
        stage.register_forward_hook(lambda *_, number=number: calls.append(number))
    stage_features(small_network, [(torch.randn(2, 3, 8, 8), torch.zeros(2))] * 2)
    assert calls == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("broken", [False, True])
def test_every_module_runs_in_eval_mode_and_is_left_in_its_own(small_network, broken):
    def watch(module, *_):
        modes.append(module.training)
        if broken:
            raise RuntimeError("broken")

    modes = []
    small_network.train()
    small_network.features[1].eval()  # a mode of its own, which one call of train() would not restore
    small_network.features[2].register_forward_hook(watch)
    with pytest.raises(RuntimeError, match="broken") if broken else nullcontext():
        stage_features(small_network, [(torch.randn(4, 3, 8, 8), torch.zeros(4))])
    assert modes == [False]
    assert [module.training for module in small_network.features] == [True, False, True]
    assert small_network.training and small_network.classifier.training


def test_no_weight_and_no_statistic_changes_while_features_are_taken(small_network):
    small_network.train()
    before = {name: tensor.clone() for name, tensor in small_network.state_dict().items()}
    stage_features(small_network, [(torch.randn(4, 3, 8, 8), torch.zeros(4))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_network.state_dict().items())


def test_a_loader_without_a_batch_is_refused(small_network):
    with pytest.raises(ValueError, match="no batch"):
        stage_features(small_network, [])


def test_the_stage_that_holds_the_information_is_found():
    model = TwoStages()
    features = {
        split: stage_features(model, images_with_class_in_first_channel(count, seed))
        for seed, (split, count) in enumerate({"train": 240, "val": 100, "test": 200}.items())
    }
    table = probe_stages(features)
    assert table.columns.tolist() == ["stage", "probe", "val_accuracy", "test_accuracy", "from", "to"]
    assert table["stage"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table["probe"].tolist() == ["linear", "20 nearest", "200 nearest"] * 2
    assert (table.loc[table["stage"] == 0, ["val_accuracy", "test_accuracy"]] > 0.95).all(axis=None)
    assert (table.loc[table["stage"] == 1, "test_accuracy"] < 0.65).all()
    for row in table.itertuples():
        assert (row[5], row[6]) == accuracy_interval(round(200 * row.test_accuracy), 200)


def test_a_vote_of_more_neighbors_than_images_is_left_out_of_the_table():
    splits = splits_of()
    table = probe_stages({split: ([features], labels) for split, (features, labels) in splits.items()})
    assert table["probe"].tolist() == ["linear", "20 nearest"]


def test_samples_are_stratified_without_replacement_nested_and_seeded():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [10, 12, 20]))
    few, many = sample_of_each_class(labels, 3, seed=4), sample_of_each_class(labels, 10, seed=4)
    assert np.bincount(labels[few]).tolist() == [3, 3, 3]
    assert np.bincount(labels[many]).tolist() == [10, 10, 10]
    assert len(set(many)) == 30
    assert set(few) < set(many)
    assert few.tolist() == sample_of_each_class(labels, 3, seed=4).tolist()
    assert set(few) != set(sample_of_each_class(labels, 3, seed=5))
    with pytest.raises(ValueError, match="class 0 has 10 images, fewer than 11"):
        sample_of_each_class(labels, 11, seed=0)


def test_label_fractions_have_a_line_per_draw_and_leave_out_numbers_that_the_data_do_not_have():
    table = label_fractions(splits_of(distance=2.0), draws=3)  # 20 training images a class
    assert table["images_per_class"].tolist() == [1] * 3 + [5] * 3 + [10] * 3
    assert table["draw"].tolist() == [0, 1, 2] * 3
    means = table.groupby("images_per_class")["test_accuracy"].mean()
    assert means[10] > means[1]


def test_a_fraction_is_the_linear_probe_of_its_draw_on_all_of_val_and_test():
    splits = splits_of(distance=1.0)
    (row,) = label_fractions(splits, images_per_class=[5], draws=1).itertuples()
    drawn = sample_of_each_class(splits["train"][1], 5, seed=0)
    expected = linear_probe({**splits, "train": tuple(array[drawn] for array in splits["train"])})
    assert (row.val_accuracy, row.test_accuracy) == (expected.val_accuracy, expected.test_accuracy)


def test_all_images_are_one_draw():
    splits = splits_of(distance=1.0)
    table = label_fractions(splits, images_per_class=[20], draws=5)
    assert table["draw"].tolist() == [0]
    assert table["test_accuracy"].item() == linear_probe(splits).test_accuracy


def test_features_that_cannot_be_probed_are_refused():
    splits = splits_of()
    with pytest.raises(ValueError, match="the features of val belong to 29 images, but there are 30 labels"):
        label_fractions(spoiled(splits, "val", features=splits["val"][0][1:]))


def test_draws_are_summarised_by_their_number_of_images():
    fractions = pd.DataFrame({"images_per_class": [1, 1, 5], "draw": [0, 1, 0], "test_accuracy": [0.2, 0.4, 0.7]})
    summary = mean_of_draws(fractions)
    assert summary["images_per_class"].tolist() == [1, 5]
    assert summary["test_accuracy"].tolist() == pytest.approx([0.3, 0.7])
    assert summary.loc[0, ["from", "to"]].tolist() == pytest.approx(mean_and_interval([0.2, 0.4])[1:])


def test_the_stage_that_cannot_be_probed_is_named():
    features = {split: ([array, array.copy()], labels) for split, (array, labels) in splits_of().items()}
    features["val"][0][1][0, 0] = np.nan
    with pytest.raises(ValueError, match="the features of stage 1 of val hold values that are not finite"):
        probe_stages(features)
    features["val"] = (features["val"][0][:1], features["val"][1])
    with pytest.raises(ValueError, match="same stages; their numbers are {'train': 2, 'val': 1, 'test': 2}"):
        probe_stages(features)


@pytest.fixture
def scenes(scene_folder, root, monkeypatch):
    """The random control of the scenes' report, on tiny images, with a result of its own."""
    monkeypatch.setattr(probes, "SCENES", {"random": "random_classifier"})
    experiment = configure(find("random_classifier"), "quick", data=str(scene_folder))
    experiment = replace(experiment, images_per_class=6, batch_size=8)
    results = {"random_classifier": {"initial_weights": {"weights": "random"}, "data": {}}}
    monkeypatch.setattr(probes, "collect", lambda asked, _: results if list(asked) else {})
    return {"random_classifier": experiment}, results


def test_what_is_probed_is_cached_by_the_digest_of_its_weights(scenes, monkeypatch):
    experiments, results = scenes
    before = collect_scenes(experiments, "quick")
    assert (before.missing, before.stale, before.by_stage) == (["random"], [], {})
    probed = collect_scenes(experiments, "quick", compute=True)
    assert (probed.missing, probed.stale) == ([], [])
    table = probed.by_stage["random"]
    assert table.query("probe == 'linear'")["stage"].tolist() == list(range(9))
    assert probed.fractions["random"]["images_per_class"].tolist() == [1, 1, 5, 5]
    assert probed.tried["stages 5 to 8 together"].tolist() == [table["last_four_val"][0]]

    computed = []
    monkeypatch.setattr(probes, "_probe_scenes", lambda *_: computed.append(1) or {"probes": table})
    collect_scenes(experiments, "quick", compute=True)
    assert not computed
    results["random_classifier"]["initial_weights"]["sha256"] = "of other weights"
    assert collect_scenes(experiments, "quick").stale == ["random"]
    assert collect_scenes(experiments, "quick", compute=True).stale == []
    assert len(computed) == 1


def test_the_best_stage_is_chosen_on_val_by_the_linear_probe():
    columns = {"stage": [0, 1, 2], "val_accuracy": [0.5, 0.7, 0.6], "test_accuracy": [0.9, 0.6, 0.4]}
    linear = pd.DataFrame(columns).assign(probe="linear")
    nearest = linear.assign(probe="20 nearest", val_accuracy=1.0)
    table = probes.best_stages({"a": pd.concat([nearest, linear])})
    assert table.values.tolist() == [["a", 1, 0.6, 0.4]]


def test_accuracies_by_stage_have_a_line_per_features_and_probe():
    linear = pd.DataFrame({"stage": [0, 1], "probe": "linear", "val_accuracy": 1.0, "test_accuracy": [0.5, 0.7]})
    both = pd.concat([linear, linear.assign(probe="20 nearest", test_accuracy=[0.4, 0.6])])
    table = probes.accuracies_by_stage({"b": both, "a": linear})
    assert table.columns.tolist() == [0, 1]
    assert table.T.to_dict("list") == {
        ("b", "linear"): [0.5, 0.7],
        ("b", "20 nearest"): [0.4, 0.6],
        ("a", "linear"): [0.5, 0.7],
    }
    assert probes.accuracies_by_stage({}).empty


@pytest.fixture
def after_a_pretext(monkeypatch):
    """Two classifiers on a pretext's features, and their control, with results."""
    names = ("rotation_classifier_tuned_3", "rotation_classifier_tuned_6", "imagenet_classifier_tuned")
    experiments = {name: configure(find(name), "full") for name in (*names, "imagenet_classifier_tuned_rate_2e-4")}
    results = {name: result(name, range(number), pretext_run="rotation_tuned") for number, name in enumerate(names)}
    for name, epoch in zip(names, (3, 6), strict=False):
        results[name]["settings"]["pretext_epoch"] = epoch
    history = {"val_accuracy": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "val_loss": [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}
    results["rotation_tuned"] = {"history": history}

    def collect(asked, _):
        return {each.name: results[each.name] for each in asked if each.name in results}

    monkeypatch.setattr(probes, "collect", collect)
    return experiments, results


def test_what_was_tried_has_the_pretext_at_the_epoch_of_the_features_and_its_linear_probes(after_a_pretext):
    experiments, _ = after_a_pretext
    stages = pd.DataFrame({"stage": range(9), "val_accuracy": np.arange(9) / 10, "last_four_val": 0.95})
    both = pd.concat([stages.assign(probe="20 nearest", val_accuracy=0.0), stages.assign(probe="linear")])
    probed = {"six": experiments["rotation_classifier_tuned_6"], "none": experiments["imagenet_classifier_tuned"]}
    six, none = probes.pretexts_tried(dict.fromkeys(probed, both), probed, "full").to_dict("records")
    rate = find("rotation_tuned").train.learning_rate
    assert list(six.values()) == ["six", rate, 6, 0.6, "pretext", 0.5, 0.6, 0.7, 0.8, 0.95]
    assert [none[column] for column in ("features", "BatchNorm of", "stage 5")] == ["none", "initial", 0.5]
    assert pd.isna([none[f"pretext {column}"] for column in ("learning rate", "epochs", "accuracy")]).all()


def test_the_picture_of_pretext_epochs_is_of_their_results_and_needs_some(after_a_pretext, tmp_path, monkeypatch):
    experiments, results = after_a_pretext
    drawn, opened = [], plt.get_fignums()  # by other tests
    monkeypatch.setattr(probes.plots, "draw_pretext_epochs", lambda *shown: drawn.append(shown) or plt.figure())
    probes.write_pretext_epochs(experiments, "full", tmp_path / "epochs.png")
    ((table, losses, controls),) = drawn
    assert table[["epochs", "pretext accuracy", "test"]].values.tolist() == [[3, 0.3, 1.0], [6, 0.6, 0.99]]
    assert losses == {"rotation_tuned": results["rotation_tuned"]["history"]["val_loss"]}
    assert controls == {"rotation_tuned": 0.98}  # that of perturbation has no result
    assert (tmp_path / "epochs.png").stat().st_size > 0 and plt.get_fignums() == opened
    del results["rotation_tuned"]
    probes.write_pretext_epochs(experiments, "full", tmp_path / "none.png")
    assert len(drawn) == 1 and not (tmp_path / "none.png").exists()


def test_a_pretext_on_cifar10_is_probed_on_the_images_of_its_control(scene_folder, root, monkeypatch):
    names = {"random": "cifar10_random_classifier", "rotation pretext": "cifar10_rotation"}
    monkeypatch.setattr(probes, "CIFAR10", names)
    monkeypatch.setattr(probes, "CIFAR10_PERPLEXITY", {"quick": 2.0})
    monkeypatch.setattr(probes, "CIFAR10_IMAGES_PER_CLASS", {"quick": (1,)})
    experiments = {name: configure(find(name), "quick", data=str(scene_folder)) for name in names.values()}
    experiments = {name: replace(each, images_per_class=6, batch_size=8) for name, each in experiments.items()}
    for experiment in experiments.values():
        run(experiment, "quick", progress=False)
    probed = collect_cifar10(experiments, "quick", compute=True)
    assert (probed.missing, probed.stale) == ([], [])
    assert probed.places["rotation pretext"]["label"].value_counts().tolist() == [6, 6, 6]
    control = experiments["cifar10_random_classifier"]
    loaders = build_loaders(control, progress=False)
    model, _ = build_model(control, loaders, "quick")
    model.features.load_state_dict(load_weights(experiments["cifar10_rotation"], "quick", prefix="features.")[0])
    (*_, last), labels = stage_features(model, loaders.test)
    purity = probed.places["rotation pretext"]["purity"].unique()
    assert purity == pytest.approx(representation.neighbour_purity(last, labels, 5))
    by_stage = probed.by_stage["rotation pretext"].query("probe == 'linear'").set_index("stage")["val_accuracy"]
    assert probed.fractions["rotation pretext"]["stage"].unique().tolist() == [by_stage.idxmax()]
    weights = load_weights(experiments["cifar10_rotation"], "quick", prefix="features.")[1]["sha256"]
    assert probed.by_stage["rotation pretext"]["weights"].unique().tolist() == [weights]
    monkeypatch.setattr(probes, "weights_here", lambda *_: "of a run of the same accuracy")
    assert collect_cifar10(experiments, "quick").stale == list(names)


def test_a_table_of_cifar10_is_of_the_weights_of_its_run_or_where_it_names_none_of_its_accuracy():
    source = {"accuracy of run": 0.5, "weights": "a", "images": "i"}
    of_older_code = pd.DataFrame({"stage": [0, 1], "accuracy of run": 0.5})
    table = of_older_code.assign(weights="a", images="i")
    assert probes.is_made_from(table, source)
    assert not probes.is_made_from(table, source | {"weights": "b"})  # of the same accuracy by chance
    assert probes.is_made_from(of_older_code, source)
    assert not probes.is_made_from(of_older_code, source | {"accuracy of run": 0.6})
    assert probes.is_made_from(table, source | {"weights": None})  # the checkpoint is not here


def test_the_command_prints_what_is_missing(scenes, capsys, monkeypatch):
    monkeypatch.setattr(probes, "collect", lambda *_: {})
    assert probes.main(["scenes", "--profile", "quick"]) == 0
    assert capsys.readouterr().out.startswith("Not probed yet: random.")


@pytest.mark.parametrize(("report", "collect"), [("SCENES", collect_scenes), ("CIFAR10", collect_cifar10)])
def test_committed_tables_are_of_the_weights_of_the_committed_results(report, collect):
    experiments = {name: configure(find(name), "full") for name in getattr(probes, report).values()}
    probed = collect(experiments, "full")
    labels = getattr(probes, report)
    assert probed.stale == []
    assert probed.missing == [label for label, name in labels.items() if read(experiments[name], "full") is None]


def test_cached_features_are_those_of_the_same_images_and_views_alone(root, monkeypatch):
    computed = []
    monkeypatch.setattr(
        probes, "stage_features", lambda *asked: computed.append(len(asked[1].dataset)) or stage_features(*asked)
    )
    probe = configure(find("imagenet_classifier_probe"), "quick", data="synthetic")
    splits, *_ = probes.features_of_probe(probe, "quick")
    again, *_ = probes.features_of_probe(probe, "quick")
    assert len(computed) == 3 and all(np.array_equal(splits[split][0], again[split][0]) for split in splits)
    fewer, *_ = probes.features_of_probe(replace(probe, images_per_class=2), "quick")
    assert {len(features) for features, _ in fewer.values()} == {30}  # of the same folders, and with the same weights
    one_view, *_ = probes.features_of_probe(replace(probe, flip_tta=False), "quick")
    assert not np.array_equal(splits["test"][0], one_view["test"][0])
    assert computed == [90] * 3 + [30] * 3 + [90] * 3


def test_features_are_computed_without_images_that_the_run_left_out(root, scene_folder):
    probe = configure(find("imagenet_classifier_probe"), "quick", data=str(scene_folder))
    (scene_folder / "val/dark/broken.jpg").write_text("no image")
    with pytest.raises(ValueError, match="broken.jpg"):
        probes.features_of_probe(probe, "quick")
    write_result(files_of(probe, "quick").result, {"format": FORMAT, "data": {"skipped": ["val/dark/broken.jpg"]}})
    splits, *_ = probes.features_of_probe(probe, "quick")
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {"train": 18, "val": 18, "test": 18}


def test_features_may_be_tensors_and_a_network_without_stages_is_refused(small_network):
    splits = splits_of()
    given = {split: tuple(map(torch.tensor, parts)) for split, parts in splits.items()}
    assert label_fractions(given, [2], 2).equals(label_fractions(splits, [2], 2))
    with pytest.raises(ValueError, match="Linear has no `features` that are an nn.Sequential"):
        stage_features(torch.nn.Linear(2, 2), [])
