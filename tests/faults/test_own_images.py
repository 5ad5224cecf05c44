"""Folders, tables and files of one's own that gave a wrong value without a word: each right value."""

import os
import shlex
import shutil
import threading
import unicodedata
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data import files, prepare
from data.files import say_once, write_atomically
from data.image_cache import load_splits
from data.layouts import list_splits, record_split
from evaluation import audit, export, model_inversion, novelty, predict
from evaluation.checkpoints import load_trained
from evaluation.demo_page import demo_page
from evaluation.export import torchvision_state
from evaluation.predict import Model
from evaluation.split_images import images_for
from tests.conftest import CLASSES, NO_PROCESS, draw
from tests.small_runs import small_run


@pytest.fixture(autouse=True)
def own_root(root):
    """Records, models and the image cache lie in the test's own root folder."""
    say_once.cache_clear()


# ------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("renamed", ["Val", "VALIDATION"])
def test_a_split_folder_counts_whatever_its_case(scene_folder, renamed):
    expected = {split: images.names for split, images in list_splits(scene_folder).items()}
    (scene_folder / "val").rename(scene_folder / renamed)
    assert {split: images.names for split, images in list_splits(scene_folder).items()} == expected


def test_a_class_may_be_called_like_a_split(tmp_path):
    """Train is also a vehicle."""
    for class_name in ("Train", "Bus"):
        (tmp_path / "vehicles" / class_name).mkdir(parents=True)
        for number in range(8):
            draw(CLASSES[0], np.random.default_rng(number)).save(tmp_path / "vehicles" / class_name / f"{number}.png")
    assert list_splits(tmp_path / "vehicles")["train"].class_names == ("Bus", "Train")


def test_folders_with_classes_beside_the_splits_are_named(scene_folder, capsys):
    shutil.copytree(scene_folder / "test", scene_folder / "testing")
    (scene_folder / "notes").mkdir()
    load_splits(scene_folder, 32, progress=False)
    assert capsys.readouterr().err.count("testing/ is left out") == 1


def test_a_recorded_split_survives_another_unicode_form_of_the_names(tmp_path, capsys):
    """A copy through an old Mac decomposes the names of files."""
    folder = tmp_path / "zoo"
    for class_name in CLASSES[:2]:
        (folder / class_name).mkdir(parents=True)
        for number in range(40):
            draw(class_name, np.random.default_rng(number)).save(folder / class_name / f"bär{number}.png")
    load_splits(folder, 32, progress=False)
    before = splits_by_plain_name(folder)
    for path in list(folder.glob("*/*.png")):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert splits_by_plain_name(folder) == before
    capsys.readouterr()
    record_split(folder)
    assert capsys.readouterr().err == ""  # nothing is new, and nothing gone
    (folder / "split.csv").unlink()
    assert splits_by_plain_name(folder) == before  # the rule is that of the name too


def splits_by_plain_name(folder):
    return {
        unicodedata.normalize("NFC", name): split
        for split, images in list_splits(folder).items()
        for name in images.names
    }


def test_two_files_whose_names_differ_in_their_form_alone_both_count(tmp_path):
    folder = tmp_path / "zoo"
    for class_name in CLASSES[:2]:
        (folder / class_name).mkdir(parents=True)
        for form in ("NFC", "NFD"):
            for number in range(6):
                name = unicodedata.normalize(form, f"bär{number}.png")
                draw(class_name, np.random.default_rng(number)).save(folder / class_name / name)
    load_splits(folder, 32, progress=False)
    assert sum(len(images.names) for images in list_splits(folder).values()) == 24


@pytest.mark.parametrize(("first", "second"), [("bä.png", "bä.png"), ("bä.png", "./bä.png"), ("./bä.png", "bä.png")])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_file_that_a_table_lists_under_two_names_is_refused(tmp_path, first, second, forms):
    lines = ["file,label"]
    for number, class_name in enumerate(CLASSES[:2]):
        draw(class_name, np.random.default_rng(number)).save(tmp_path / f"{class_name}.png")
        lines.append(f"{class_name}.png,{class_name}")
    draw("dark", np.random.default_rng(5)).save(tmp_path / unicodedata.normalize("NFD", "bä.png"))
    lines += [
        f"{unicodedata.normalize(form, name)},{label}"
        for form, name, label in zip(forms, (first, second), CLASSES[:2], strict=True)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match="line 5.*twice"):
        list_splits(tmp_path / "labels.csv")


# --------------------------------------------------------------------------------------------------------------- files


def test_two_writers_of_one_file_leave_what_one_of_them_wrote(tmp_path):
    path, both = tmp_path / "table.csv", threading.Barrier(2)

    def write(letter):
        def slowly(temporary):
            with temporary.open("w") as file:
                file.write(10 * letter)
                file.flush()
                both.wait(10)
                file.write(f"{letter}END")
            both.wait(10)

        write_atomically(path, slowly)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "AB"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in ("AAAAAAAAAAAEND", "BBBBBBBBBBBEND")
    assert os.listdir(tmp_path) == ["table.csv"]


def test_what_killed_processes_left_is_removed_and_files_of_a_users_own_are_not(tmp_path):
    left = tmp_path / f"{files.UNFINISHED}{NO_PROCESS}-{files.MACHINE}-0.table.csv"
    running = tmp_path / f"{files.UNFINISHED}{os.getppid()}-{files.MACHINE}-0.table.csv"
    elsewhere = tmp_path / f"{files.UNFINISHED}{NO_PROCESS}-0a1b2c3d-0.table.csv"  # of another machine
    long_ago = tmp_path / f"{files.UNFINISHED}{NO_PROCESS}-ffffffff-1.table.csv"
    long_ago.write_text("half")
    os.utime(long_ago, (0, 0))
    for path in (left, running, elsewhere, tmp_path / ".2024-05.csv", tmp_path / f"{files.UNFINISHED}song.csv"):
        path.write_text("half")
    files.write_text(tmp_path / "table.csv", "whole")
    assert (
        not (left.exists() or long_ago.exists())
        and running.exists()
        and elsewhere.exists()
        and len(os.listdir(tmp_path)) == 5
    )


# --------------------------------------------------------------------------------------------------------------- audit


def photographs(folder, count):
    """Structured images of one class."""
    folder.mkdir(parents=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def test_a_few_dark_frames_do_not_make_photographs_near_copies(tmp_path):
    """The noise of a lens cap is gone in any copy, so a threshold for such images would find everything alike."""
    photographs(tmp_path / "data" / "a", 40)
    photographs(tmp_path / "data" / "b", 40)
    for number in range(3):
        noise = np.random.default_rng(number).normal(12, 1, (64, 64)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "data" / "a" / f"dark{number}.png")
    for path in (tmp_path / "data" / "b").glob("*"):  # other images than those of a
        Image.open(path).rotate(90).save(path)
    data = audit.read_data(tmp_path / "data", load_splits(tmp_path / "data", 64, progress=False))
    threshold = audit.copy_threshold(data)
    assert threshold > 0.8 and audit.near_copies(data.thumbnails, threshold) == []


def test_the_same_file_three_times_is_no_near_copy_too(scene_folder):
    for split in ("val", "test"):
        shutil.copy(scene_folder / "train/striped/image_0000.jpg", scene_folder / split / "striped/copy.jpg")
    data = audit.read_data(scene_folder, load_splits(scene_folder, 64, progress=False))
    table, _ = audit.audit(data, np.random.default_rng(0).normal(size=(len(data.files), 4)).astype(np.float32))
    same = {"train/striped/image_0000.jpg", "val/striped/copy.jpg", "test/striped/copy.jpg"}
    among_them = table[table["file"].isin(same) & table["other_file"].isin(same)]
    assert Counter(among_them["kind"]) == {"exact copy": 2}


# -------------------------------------------------------------------------------------------------------- trained runs


def test_an_export_never_replaces_the_file_it_reads(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.pth"
    shutil.copy(tiny_run, mine)
    before = mine.read_bytes()
    assert export.main(["mine.pth", "--to", "torchvision"]) == 2
    assert "--output" in capsys.readouterr().err and mine.read_bytes() == before
    assert export.main(["mine.pth", "--to", "torchvision", "--output", "other.pth"]) == 0


def test_an_export_of_a_run_that_averages_flipped_images_leaves_its_classifier_out(tiny_run):
    run = load_trained(tiny_run)
    assert "classifier.1.weight" in torchvision_state(run)[0]
    run.model.flip_tta = True
    assert not [name for name in torchvision_state(run)[0] if name.startswith("classifier")]


def test_training_images_of_another_data_set_with_the_same_classes_are_refused(
    scene_folder, tiny_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(novelty, "LEAST_IMAGES", {})
    mine, saved = tmp_path / "mine.pt", torch.load(tiny_run)
    train = load_splits(scene_folder, 32, progress=False)["train"]
    for fingerprint, code in ((train.fingerprint, 0), ("other", 2)):
        saved["identity"]["data"] = {"name": "flowers", "fingerprint": {"train": fingerprint}}
        torch.save(saved, mine)
        assert novelty.main([str(mine), "--data", str(scene_folder)]) == code
    assert "but on flowers" in capsys.readouterr().err


def test_vectors_stand_in_the_order_of_the_images_also_where_one_cannot_be_decoded(scene_folder, tiny_run):
    model = Model(load_trained(tiny_run))
    paths = sorted((scene_folder / "test/dark").glob("*"))[:3]
    expected = model.embed(paths)
    paths[1].write_text("no image")
    vectors = model.embed(paths, skip_bad_images=True)
    np.testing.assert_allclose(vectors[[0, 2]], expected[[0, 2]], atol=1e-3)
    assert np.isnan(vectors[1]).all()


def test_a_run_says_which_images_its_description_is_to_be_made_of(scene_folder, tiny_run, tmp_path, capsys):
    mine, saved = tmp_path / "my run.pt", torch.load(tiny_run)
    torch.save(saved | {"identity": saved["identity"] | {"data": {"name": "flowers"}}}, mine)
    image = scene_folder / "test/dark/image_0000.jpg"
    assert predict.main([str(image), "--model", str(mine)]) == 0
    sentence = capsys.readouterr().err  # nothing says in which folder flowers are
    assert f"evaluation.novelty {shlex.quote(str(mine))} --data DATA" in sentence and "flowers" in sentence


def test_a_page_shows_classes_whose_names_are_not_utf_8():
    page = demo_page("m", (os.fsdecode(b"caf\xe9"), "b"), 1).encode()
    assert b"caf\xef\xbf\xbd" in page and b'value="1">b' in page


def test_a_run_with_images_left_out_can_be_explained(scene_folder, tiny_run):
    run = replace(load_trained(tiny_run), data={"skipped": ["train/dark/image_0000.jpg"]})
    (scene_folder / "train/dark/image_0000.jpg").write_text("no image")
    assert len(images_for(run, str(scene_folder), "train")) == 35


# --------------------------------------------------------------------------------------------------------- class names


def test_a_class_is_known_by_its_name_in_either_form_of_unicode_to_every_command():
    run = replace(small_run("tiny"), class_names=(unicodedata.normalize("NFC", "Bär"), "dark", "light"))
    assert run.label(unicodedata.normalize("NFD", "Bär")) == 0
    asked = SimpleNamespace(classes=[unicodedata.normalize("NFD", "Bär"), "light"])
    assert model_inversion._objective(run, asked)[1] == [0, 2]
    with pytest.raises(ValueError, match="tiny has no class owl; it has Bär, dark, light"):
        run.label("owl")


def test_what_a_network_drive_puts_beside_images_is_not_prepared_as_images(tmp_path):
    for parent in ("coast", "@eaDir/coast", "$RECYCLE.BIN/coast", ".hidden/coast"):
        (tmp_path / parent).mkdir(parents=True)
        draw("dark", np.random.default_rng(0)).save(tmp_path / parent / "a.jpg")
    found = prepare._walk(tmp_path, {"coast": "coast"})
    assert [(parent.relative_to(tmp_path).as_posix(), files) for parent, _, files in found] == [("coast", ["a.jpg"])]
