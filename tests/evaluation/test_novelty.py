"""Whether an image looks like a training image: distances, thresholds, files."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data.files import read_table
from evaluation import novelty
from evaluation.checkpoints import load_trained
from evaluation.novelty import count_flagged, digest_of_features, fit_novelty, novelty_of, read_novelty
from evaluation.publish import halve
from tests.clouds import splits_of


@pytest.fixture
def splits():
    """Features of three classes."""
    return splits_of((120, 200, 45), channels=16)


def test_the_share_of_val_above_the_threshold_is_that_of_false_alarms(splits):
    found = fit_novelty(splits, "abc")
    assert (found.distances(splits["val"][0]) > 1).mean() == pytest.approx(0.05, abs=0.005)
    assert (found.distances(splits["test"][0]) > 1).mean() < 0.25


def test_features_that_vary_otherwise_than_those_of_the_training_are_far():
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((3, 16))  # in which scenes differ
    splits = {
        split: (features @ directions + 0.1 * generator.standard_normal((len(labels), 16)), labels)
        for split, (features, labels) in splits_of((120, 200, 45), channels=3).items()
    }
    train, _ = splits["train"]
    other = train.mean(axis=0) + train.std(axis=0) * generator.standard_normal((30, 16))
    table = count_flagged(fit_novelty(splits, "abc"), {"known": splits["test"][0], "other": other}).set_index("images")
    assert table.loc["other", "share"] > 0.9 and table.loc["known", "share"] < 0.25
    assert table["number"].tolist() == [45, 30] and (table["flagged"] == table["share"] * table["number"]).all()
    assert (table["from"] <= table["share"]).all() and (table["share"] <= table["to"]).all()


def test_the_directions_are_those_in_which_training_images_vary_most(splits, monkeypatch):
    monkeypatch.setattr(novelty, "COMPONENTS", 4)
    found, (train, _) = fit_novelty(splits, "abc"), splits["train"]
    variances = ((train - found.mean) / found.std @ found.components).var(axis=0)
    np.testing.assert_allclose(variances, np.linalg.eigvalsh(np.corrcoef(train.T))[:-5:-1], rtol=0.01)
    assert found.images.shape == (120, 4)


def test_the_distance_is_that_of_the_fifth_neighbor(splits):
    found = dataclasses.replace(fit_novelty(splits, "abc"), threshold=1.0)
    directions = found._directions(splits["test"][0])
    exact = np.sort(np.linalg.norm(directions[:, None] - found.images.astype(np.float32), axis=2), axis=1)[:, 4]
    np.testing.assert_allclose(found.distances(splits["test"][0]), exact, atol=1e-3)


def test_a_constant_feature_and_many_training_images_are_no_problem(splits, monkeypatch):
    splits = {split: (np.pad(features, ((0, 0), (0, 1))), labels) for split, (features, labels) in splits.items()}
    monkeypatch.setattr(novelty, "MOST_IMAGES", 20)
    found = fit_novelty(splits, "abc")
    assert len(found.images) == 20 and np.isfinite(found.distances(splits["test"][0])).all()


@pytest.mark.parametrize(("split", "images"), [("train", 99), ("val", 39)])
def test_too_few_images_to_tell_what_is_unlike_them_are_refused(splits, split, images):
    splits[split] = tuple(each[: images + 1] for each in splits[split])
    fit_novelty(splits, "abc")
    splits[split] = tuple(each[:images] for each in splits[split])
    with pytest.raises(ValueError, match=f"there are {images} {split} images"):
        fit_novelty(splits, "abc")


def test_training_images_are_hardly_more_often_flagged_than_others_though_features_are_many():
    splits = splits_of((100, 100, 200), channels=500, distance=20.0)
    found = fit_novelty(splits, "abc")
    shares = count_flagged(found, {split: features for split, (features, _) in splits.items()})["share"]
    assert (shares < 0.2).all(), shares.tolist()
    assert found.false_alarms == shares.iloc[2]  # those of test, which have set nothing


def test_a_description_is_found_beside_its_run_and_only_for_its_weights(tiny_model, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(novelty, "FOLDER", tmp_path / "published")
    run = load_trained("tiny")
    assert novelty_of(run) is None
    fit_novelty(splits, "other weights").write(tmp_path / "published" / "tiny.novelty.npz")
    assert novelty_of(run) is None
    written = fit_novelty(splits, digest_of_features(run))
    written.write(tiny_model.with_name("tiny.novelty.npz"))
    assert tiny_model.with_name("tiny.novelty.npz").stat().st_size < 1e6
    found = novelty_of(run)
    np.testing.assert_allclose(found.distances(splits["test"][0]), written.distances(splits["test"][0]))
    run.model.features[0][0].weight.data += 1
    assert novelty_of(run) is None


def test_a_description_of_other_training_images_is_not_used(tiny_model, splits):
    run = dataclasses.replace(load_trained("tiny"), data={"fingerprint": {"train": "new"}})  # frozen features stay
    path = tiny_model.with_name("tiny.novelty.npz")
    fit_novelty(splits, digest_of_features(run), "old").write(path)
    assert novelty_of(run) is None
    fit_novelty(splits, digest_of_features(run), "new").write(path)
    assert novelty_of(run).fingerprint == "new"


def test_the_description_of_a_released_model_is_that_of_its_training_images():
    assert novelty_of(load_trained(novelty.FOLDER / "byol_classifier.safetensors")) is not None


def test_a_run_and_its_released_file_have_the_same_digest(tiny_model):
    run = load_trained("tiny")
    before = digest_of_features(run)
    run.model.load_state_dict(halve(run.model))
    assert digest_of_features(run) == before


@pytest.mark.parametrize("contents", [b"", b"hello", b"PK\3\4"])
def test_a_file_that_is_none_is_named(contents, tmp_path):
    (tmp_path / "a.novelty.npz").write_bytes(contents)
    with pytest.raises(ValueError, match=r"a\.novelty\.npz does not describe"):
        read_novelty(tmp_path / "a.novelty.npz")


def test_the_command_describes_a_run_and_counts_photographs(tiny_model, scene_folder, root, monkeypatch):
    monkeypatch.setattr(novelty, "LEAST_IMAGES", {})
    (root / "photos").mkdir()
    for number in range(3):
        pixels = torch.randint(0, 255, (40, 40, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(root / "photos" / f"{number}.png")
    arguments = ["tiny", "--data", str(scene_folder), "--photographs", f"noise={root / 'photos'}"]
    assert novelty.main(arguments) == 0
    assert novelty_of(load_trained("tiny")) is not None
    path = root / "results/full/scenes/novelty.csv"  # not beside those on 15-Scene
    table = pd.read_csv(path).set_index("images")
    assert table["number"].tolist() == [18, 24, 3] and table.index[-1] == "noise"
    assert (table["flagged"] == (table["share"] * table["number"]).round()).all()
    table.reset_index().assign(model="other").to_csv(path, index=False)
    (root / "photos" / "bad.png").write_text("no image")
    assert novelty.main(arguments) == 2
    assert novelty.main([*arguments, "--skip-bad-images"]) == 0
    both = pd.read_csv(path)
    assert both["model"].tolist() == ["other"] * 3 + ["tiny"] * 3 and both["number"].tolist() == [18, 24, 3] * 2
    both.replace({"images": {"noise": "l\udce4rm"}}).to_csv(path, index=False, errors="surrogateescape")  # not UTF-8
    assert novelty.main([*arguments, "--skip-bad-images"]) == 0
    assert read_table(path)["images"].tolist().count("l\udce4rm") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "nothing"),
        (["tiny", "--data", "nowhere"], "nowhere"),
        (["tiny", "--data", "scenes", "--photographs", "nowhere"], "'nowhere'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, words, tiny_model, scene_folder, monkeypatch, capsys):
    monkeypatch.chdir(scene_folder.parent)
    assert novelty.main(arguments) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ") and words in sentence
