"""The audit of a data set: wrong labels, exact and near copies, the page and the table."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation import audit
from evaluation.audit import (
    copy_threshold,
    exact_copies,
    near_copies,
    out_of_fold_probabilities,
    plant_errors,
    read_data,
    score_planted,
    shrink,
    suspicious_labels,
)
from evaluation.audit import main as run_audit
from tests.clouds import clouds


@pytest.fixture
def classes():
    """Features (90, 8) of three classes far from each other, and their labels."""
    return clouds(90)


def test_a_flipped_label_is_found_with_its_class_and_no_other_image_is(classes):
    features, labels = classes
    wrong = labels.copy()
    wrong[[3, 40]] = [2, 0]  # of classes 0 and 1
    found = suspicious_labels(out_of_fold_probabilities(features, wrong), wrong)
    assert sorted(found["image"]) == [3, 40]
    assert dict(zip(found["image"], found["suggestion"], strict=True)) == {3: 0, 40: 1}
    assert found["margin"].is_monotonic_decreasing and (found["margin"] > 0).all()


def test_probabilities_of_an_image_do_not_depend_on_its_own_label(classes):
    features, labels = classes
    probabilities = out_of_fold_probabilities(features, labels)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (probabilities.argmax(axis=1) == labels).all()
    with pytest.raises(ValueError, match="fewer than 2 images"):
        out_of_fold_probabilities(features[:3], labels[:3])


def test_planted_errors_are_of_the_share_asked_for_and_are_counted(classes):
    features, labels = classes
    planted = plant_errors(labels, 0.1)
    assert (planted != labels).sum() == 9 and set(planted) == {0, 1, 2}
    score = score_planted(features, labels, 0.1)
    assert score["planted"] == 9 and score["recall"] > 0.8 and score["precision"] > 0.8


def test_exact_copies_are_each_image_after_the_first_of_the_same_bytes():
    assert exact_copies((b"a", b"b", b"a", b"c", b"b", b"a")) == [(0, 2), (0, 5), (1, 4)]


def pictures(count=12):
    """Gray images with structure, bytes (count, 64, 64)."""
    noise = np.random.default_rng(0).integers(0, 255, (count, 16, 16), dtype=np.uint8)
    return [np.asarray(Image.fromarray(each).resize((64, 64), Image.Resampling.BICUBIC)) for each in noise]


def test_an_image_saved_again_or_mirrored_is_a_near_copy_and_others_are_not(tmp_path):
    images = pictures()
    Image.fromarray(images[3]).resize((48, 48)).save(tmp_path / "again.jpg", quality=60)
    again = np.asarray(Image.open(tmp_path / "again.jpg").resize((64, 64)))
    everything = [*images, again, images[5][:, ::-1]]
    thumbnails = np.stack([shrink(image[None]) for image in everything])
    assert [pair[:2] for pair in near_copies(thumbnails, 0.8)] == [(5, 13), (3, 12)]


@pytest.fixture
def data_folder(scene_folder, root):
    """Scenes with an exact copy across splits, one near copy and one wrong label."""
    shutil.copy(scene_folder / "train/dark/image_0000.jpg", scene_folder / "test/dark/copy.jpg")
    again = Image.open(scene_folder / "train/light/image_0001.jpg")
    again.save(scene_folder / "val/light/again.jpg", quality=80)
    shutil.move(scene_folder / "train/striped/image_0002.jpg", scene_folder / "train/dark/wrong.jpg")
    return scene_folder


def test_the_command_writes_a_table_and_a_page_that_stands_alone(tiny_model, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "out_of_fold_probabilities", lambda features, labels: np.eye(3)[labels] * 0.9 + 0.05)
    out = tmp_path / "found"
    assert run_audit([str(data_folder), "--model", "tiny", "--output", str(out)]) == 0
    table, page = pd.read_csv(out / "audit.csv"), (out / "audit.html").read_text()
    exact = table[table["kind"] == "exact copy"]
    assert exact[["file", "other_file"]].values.tolist() == [["train/dark/image_0000.jpg", "test/dark/copy.jpg"]]
    near = table[table["kind"] == "near copy"]
    assert ["train/light/image_0001.jpg", "val/light/again.jpg"] in near[["file", "other_file"]].values.tolist()
    assert page.count("data:image/jpeg;base64,") == 2 * len(exact) + 2 * min(len(near), 200)
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "prefers-color-scheme" in page and "viewport" in page
    assert "across splits" in page


def test_names_cannot_write_into_the_page(tiny_model, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "out_of_fold_probabilities", lambda features, labels: np.eye(3)[labels] * 0.9 + 0.05)
    (data_folder / "test/dark/copy.jpg").rename(data_folder / 'test/dark/"><script>.jpg')
    assert run_audit([str(data_folder), "--model", "tiny", "--output", str(tmp_path / "out")]) == 0
    assert "<script>" not in (tmp_path / "out/audit.html").read_text()


def test_planted_errors_and_known_copies_are_scored_by_the_command(tiny_model, data_folder, root):
    data_folder = data_folder.rename(data_folder.with_name("photos.v1"))
    assert run_audit([str(data_folder), "--model", "tiny", "--planted", "0.1"]) == 0
    (line,) = pd.read_csv(root / "results/full/photos.v1/audit_photos.v1.csv").itertuples()
    assert line.images == 80 and line.planted == 8 and line.exact_pairs_across_splits == 1
    assert 0 <= line.precision <= 1 and 0 <= line.recall <= 1


def test_the_threshold_is_below_the_correlation_of_most_copies(data_folder, root):
    data = read_data(data_folder, audit.load_splits(data_folder, 64, progress=False))
    numbers = np.arange(len(data.files))
    copies = np.stack([audit.shrink(audit._copied(data.pixels(number))) for number in numbers])
    correlations = audit.fine_structure(copies) @ audit.fine_structure(data.thumbnails).T
    assert len(numbers) == 80 and correlations[numbers, numbers].min() <= copy_threshold(data)
    assert (correlations[numbers, numbers] > copy_threshold(data)).sum() == 79
    assert (data.splits == "test").sum() == 25 and data.labels[data.files.index("train/dark/wrong.jpg")] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere"),
        (["scenes", "--planted", "2"], "--planted is 2.0"),
        (["scenes", "--planted", "0.1", "--output", "page"], "no --output"),
        (["scenes", "--model", "nothing"], "nothing"),
        (["scenes", "--weights", "gone.pth"], "gone.pth"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, words, tiny_model, scene_folder, monkeypatch, capsys):
    monkeypatch.chdir(scene_folder.parent)
    assert run_audit(arguments) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ") and words in sentence and len(sentence) <= 300
    assert not (scene_folder.parent / "audit").exists()
