"""What the nature report shows of trained networks: computed from their checkpoints, and again if these change."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation import nature
from evaluation.checkpoints import load_trained
from evaluation.predict import class_probabilities
from evaluation.representation import share_non_positive
from experiments import configure, find
from run_files import files_of, read
from runs import run
from self_supervised.dataloader import build_loaders

RESNET = "nature_resnet18_sgd_1e-2"


@pytest.fixture
def experiments(scene_folder, root, monkeypatch):
    """Two experiments of the report, trained on tiny images."""
    monkeypatch.setattr(nature, "LOOKED_AT", {"ResNet-18 from scratch": RESNET, nature.AFTER: nature.BEST})
    experiments = {name: configure(find(name), "quick", data=str(scene_folder)) for name in (RESNET, nature.BEST)}
    experiments = {name: replace(each, images_per_class=6, batch_size=8) for name, each in experiments.items()}
    experiments[RESNET] = replace(experiments[RESNET], image_size=32)  # and two sizes to evaluate at
    for experiment in experiments.values():
        run(experiment, "quick", progress=False)
    return experiments


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # maps of a network that has learned nothing
def test_everything_is_computed_once_and_again_for_another_checkpoint(experiments, monkeypatch):
    found = nature.collect_nature(experiments, "quick", compute=True)
    assert (found.missing, found.stale) == ([], [])
    best = experiments[nature.BEST]
    checkpoint = files_of(best, "quick").checkpoint
    expected = class_probabilities(load_trained(checkpoint).model, build_loaders(best, progress=False).test)
    np.testing.assert_allclose(found.scores[nature.BEST], expected, atol=1e-6)
    assert found.scores_table["as in the result"].tolist() == [1, 1]
    at_own_size = found.other_sizes.query("`trained at` == `evaluated at`").set_index("experiment")["val accuracy"]
    assert at_own_size[nature.BEST] == pytest.approx(read(best, "quick")["val_accuracy"])
    assert sorted(found.feature_maps) == [(label, number) for label in sorted(nature.LOOKED_AT) for number in (0, 2)]
    shares = {features: part["share"].tolist() for features, part in found.non_positive.groupby("features")}
    val, points = build_loaders(best, progress=False).val, nature.HOOK_POINTS[best.network]
    after = share_non_positive(load_trained(checkpoint).model, val, points)["share"]
    assert len(shares) == 3 and shares[nature.AFTER] == pytest.approx(after.tolist(), abs=1e-4)
    assert shares[nature.BEFORE] != pytest.approx(after.tolist(), abs=1e-4)
    sizes = found.spectra.groupby(["features", "images"]).size()
    assert sizes.tolist() == [4, 19] * 2  # N images have at most N - 1 eigenvalues above zero
    before, after = (part["eigenvalue"].to_numpy() for _, part in found.spectra.groupby("features"))
    assert not np.allclose(before, after, rtol=0.01, atol=0)

    tables = [files_of(best, "quick").results / f"{name}.csv" for name in ("other_sizes", "non_positive", "spectra")]
    before = [table.read_bytes() for table in tables]
    again = nature.collect_nature(experiments, "quick", compute=True)
    assert again.scores_table["largest difference"].max() < 1e-5
    assert [table.read_bytes() for table in tables] == before

    saved = torch.load(checkpoint, weights_only=True)
    saved["model"]["features.0.0.weight"] *= -1
    torch.save(saved, checkpoint)
    replace_scores(files_of(best, "quick").results / "scores.csv", nature.digest_of_file(checkpoint))
    stale = nature.collect_nature(experiments, "quick").stale
    assert {each.split(" in ")[1] for each in stale} == {*(table.name for table in tables), "feature maps"}
    assert {each.split(" in ")[0] for each in stale} == {nature.BEST}
    again = nature.collect_nature(experiments, "quick", compute=True)
    assert again.stale == []
    assert len(again.other_sizes) == len(found.other_sizes) and len(again.spectra) == len(found.spectra)

    def right_at_32_pixels(model, loader):
        return np.roll(np.eye(3)[loader.dataset.scenes.labels], loader.dataset[0][0].shape[-1] != 32, axis=1)

    monkeypatch.setattr(nature, "class_probabilities", right_at_32_pixels)
    by_size = nature.NatureStudy(experiments, "quick").evaluate_at_all_sizes(nature.BEST)
    assert by_size.values.tolist() == [[best.image_size, 32, 1], [best.image_size, best.image_size, 0]]


def replace_scores(path, digest):
    """As if the scores had been computed from a checkpoint of this digest."""
    table = pd.read_csv(path, index_col="experiment")
    table.loc[nature.BEST, "checkpoint"] = digest
    table.to_csv(path)


def test_only_parts_of_another_digest_are_computed_again(tmp_path):
    calls = []

    def compute(name):
        calls.append(name)
        return pd.DataFrame({"value": [1 / 3, len(calls)]})

    def refresh(**digests):
        wanted = {(name,): {"checkpoint": digest} for name, digest in digests.items()}
        nature._refresh(path, ["name"], wanted, compute)

    path = tmp_path / "table.csv"
    refresh(a="one", b="one")
    refresh(a="one", b="two")
    assert calls == ["a", "b", "b"]
    refresh(c="one")
    table = pd.read_csv(path)
    assert table["name"].tolist() == ["a", "a", "b", "b", "c", "c"]
    assert table["value"].tolist() == [1 / 3, 1, 1 / 3, 3, 1 / 3, 4]


def test_a_part_of_other_photographs_is_computed_again_and_older_tables_do_not_name_theirs(tmp_path):
    calls, path = [], tmp_path / "table.csv"

    def refresh(sample):
        wanted = {("a",): {"checkpoint": "one", "sample": sample}}
        nature._refresh(path, ["name"], wanted, lambda name: calls.append(name) or pd.DataFrame({"value": [1]}))

    pd.DataFrame({"name": ["a"], "value": [0], "checkpoint": ["one"]}).to_csv(path, index=False)
    refresh("x")
    assert calls == []
    path.unlink()
    for sample in ("x", "x", "y"):
        refresh(sample)
    assert len(calls) == 2 and pd.read_csv(path)["sample"].tolist() == ["y"]
    older = pd.DataFrame({"name": ["b", "a"], "value": [0, 0], "checkpoint": ["one", "one"], "sample": ["", "12"]})
    older.to_csv(path, index=False)
    wanted = {(name,): {"checkpoint": "one", "sample": sample} for name, sample in (("a", "12"), ("b", "7"))}
    nature._refresh(path, ["name"], wanted, lambda name: pytest.fail(f"{name} was computed again"))


def test_without_checkpoints_nothing_is_computed_and_the_command_names_what_is_missing(root, capsys):
    assert nature.main(["--profile", "quick"]) == 0
    assert capsys.readouterr().out.startswith("No scores yet: none are missing.")
    assert not (root / "results").exists()


def test_the_committed_files_belong_together():
    experiments = {name: configure(find(name), "full") for name in nature.NATURE_EXPERIMENTS}
    found = nature.collect_nature(experiments, "full")
    assert (found.missing, found.stale) == ([], [])
    assert (found.scores_table["as in the result"] > 0.99).all()
    assert len(found.feature_maps) == 4


def test_networks_are_looked_at_without_images_that_their_training_left_out(root, scene_folder):
    (scene_folder / "val/dark/broken.jpg").write_text("no image")
    experiment = replace(configure(find(RESNET), "quick", data=str(scene_folder)), image_size=32)
    _, result = run(experiment, "quick", device="cpu", skip_bad_images=True, progress=False)
    table = nature.NatureStudy({RESNET: experiment}, "quick").evaluate_at_all_sizes(RESNET)
    assert table["val accuracy"].tolist() == pytest.approx([result["val_accuracy"]])
