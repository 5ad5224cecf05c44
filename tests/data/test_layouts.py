"""Data sets as people have them: folders without splits, tables, folders without labels."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data import layouts
from data.files import say_once, write_atomically
from data.folders import images_in
from data.image_cache import decode, load_scenes, load_splits
from data.layouts import fingerprints, is_split, list_splits, record_split
from data.prepare import locate
from data.splits import SHARES, divide, read_record
from tests.conftest import CLASSES, draw

COUNT = 20  # images of a class


@pytest.fixture(autouse=True)
def own_root(root):
    """Records and the image cache lie in the test's own root folder."""
    say_once.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """<class>/<image>, without splits."""
    generator = np.random.default_rng(0)
    for class_name in CLASSES:
        (tmp_path / "photos" / class_name).mkdir(parents=True)
        for number in range(COUNT):
            draw(class_name, generator).save(tmp_path / "photos" / class_name / f"{number}.png")
    return tmp_path / "photos"


def load(path, **options):
    return load_splits(path, 32, progress=False, **options)


def split_of_names(splits):
    return {name: split for split, scenes in splits.items() for name in scenes.names}


def write_table(path, lines, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)
    return path


@pytest.fixture
def table(folder):
    """A table of the images of the folder, beside it, whose labels are not the names of their folders."""
    lines = [("file", "label")]
    lines += [(f"photos/{path.parent.name}/{path.name}", path.parent.name.upper()) for path in folder.glob("*/*.png")]
    return write_table(folder.parent / "labels.csv", lines)


# ------------------------------------------------------------------------------------------------------- without splits


def test_a_folder_of_classes_is_split_by_class_and_the_split_recorded_beside_it_and_said_once(folder, capsys):
    splits = load(folder)
    for scenes, share in zip(splits.values(), SHARES.values(), strict=True):
        assert np.bincount(scenes.labels).tolist() == [round(share * COUNT)] * 3
        assert scenes.class_names == tuple(sorted(CLASSES)) and scenes.images.shape[1:] == (1, 32, 32)
    assert len(split_of_names(splits)) == 3 * COUNT
    recorded = {f"{image.class_name}/{image.file_name}": image.split for image in read_record(folder / "split.csv")}
    assert recorded == split_of_names(splits)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder / "split.csv") in line and "42 train, 9 val, 9 test" in line
    assert split_of_names(load(folder)) == recorded and capsys.readouterr().err == ""


def test_images_and_labels_are_those_of_the_files(folder):
    for scenes in load(folder).values():
        for image, label, name in zip(scenes.images, scenes.labels, scenes.names, strict=True):
            assert scenes.class_names[label] == name.split("/")[0]
            expected = np.asarray(Image.open(folder / name).resize((32, 32), Image.Resampling.BILINEAR), dtype=float)
            assert np.abs(image[0] - expected).mean() < 5


def test_nothing_is_written_before_every_image_is_decoded(folder):
    (folder / "dark/0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"dark/0\.png cannot be decoded"):
        load(folder)
    assert not (folder / "split.csv").exists()


def test_new_images_are_assigned_by_the_rule_and_those_that_are_gone_are_dropped(folder, capsys):
    before = split_of_names(load(folder))
    (folder / "dark/0.png").unlink()
    for number in range(COUNT, 2 * COUNT):
        draw("light", np.random.default_rng(number)).save(folder / "light" / f"{number}.png")
    capsys.readouterr()
    after = split_of_names(load(folder))
    assert all(after[name] == split for name, split in before.items() if name != "dark/0.png")
    assert len(after) == 4 * COUNT - 1
    images = [image._replace(split=None) for image in read_record(folder / "split.csv")]
    by_rule = divide(images, SHARES)
    new = [image for image in images if f"{image.class_name}/{image.file_name}" not in before]
    assert all(after[f"{image.class_name}/{image.file_name}"] == by_rule[image] for image in new)
    (line,) = capsys.readouterr().err.splitlines()
    assert "20 image(s) new" in line and "1 image(s) gone" in line


def test_a_record_decides_over_the_rule(folder):
    load(folder)
    record = folder / "split.csv"
    text = record.read_text()
    swapped = text.replace(",train", ",between").replace(",test", ",train").replace(",between", ",test")
    record.write_text(swapped)
    assert len(load(folder)["test"]) == 42 and record.read_text() == swapped


@pytest.fixture
def make_read_only(folder, monkeypatch):
    """Call it, and nothing can be written beside the images any more."""

    def only_elsewhere(path, write):
        if path.parent == folder:
            raise OSError(f"{path} is on a disk that is read-only")
        return write_atomically(path, write)

    return lambda: monkeypatch.setattr(layouts, "write_atomically", only_elsewhere)


def test_where_nothing_can_be_written_beside_the_images_the_record_lies_in_the_root_folder(
    folder, root, make_read_only, capsys
):
    make_read_only()
    before = split_of_names(load(folder))
    (record,) = (root / "data/splits").glob("*.csv")
    assert str(record) in capsys.readouterr().err and not (folder / "split.csv").exists()
    record.write_text(record.read_text().replace(",val", ",train"))
    after = split_of_names(load(folder))
    assert after != before  # it is read


def test_images_that_are_new_on_a_disk_that_is_read_only_keep_their_split_too(folder, make_read_only, capsys):
    """The record beside the images does not name them; its owner keeps adding some."""
    load(folder)
    make_read_only()
    before = {}
    for more in range(4):
        for number in range(15):
            shutil.copy(folder / "dark/0.png", folder / "dark" / f"more_{more}_{number}.png")
        after = split_of_names(load(folder))
        assert {name: after[name] for name in before} == before
        before = after
    say_once.cache_clear()
    capsys.readouterr()
    record_split(folder)
    assert capsys.readouterr().err == ""  # it is up to date


def test_every_class_has_an_image_in_each_split_however_few_there_are(folder):
    for number in range(3, COUNT):
        (folder / "dark" / f"{number}.png").unlink()
    assert all(np.bincount(scenes.labels, minlength=3)[0] == 1 for scenes in load(folder).values())
    (folder / "dark/0.png").unlink()
    with pytest.raises(ValueError, match=r"photos: class 'dark' has 2 image\(s\)"):
        load(folder)


def test_the_split_that_loses_its_only_image_of_a_class_is_named(folder, capsys):
    for number in range(3, COUNT):
        (folder / "dark" / f"{number}.png").unlink()
    (of_val,) = (name for name, split in split_of_names(load(folder)).items() if (split, name[:4]) == ("val", "dark"))
    (folder / of_val).write_text("no image")
    with pytest.raises(ValueError, match="class 'dark' has no image for val in .*photos"):
        load(folder, skip_bad_images=True)
    assert "1 that cannot be decoded" in capsys.readouterr().err


def test_fingerprints_of_a_folder_without_splits_are_those_of_the_loaded_images(folder):
    assert fingerprints(folder) == {split: scenes.fingerprint for split, scenes in load(folder).items()}


def test_the_image_cache_of_a_split_folder_keeps_its_names(scene_folder, root):
    load(scene_folder)
    names = {path.name.split(".")[0] for path in (root / "data/cache").glob("*.npy")}
    assert {name.rsplit("-", 1)[0] for name in names} == {f"scenes-{split}-squash-32" for split in SHARES}
    assert all(not images.part for images in list_splits(scene_folder).values())


@pytest.mark.parametrize("record", ["class,file_name\n", "class,file_name,split\ndark,0.png,exam\n", "\0"])
def test_a_record_that_is_none_is_named(folder, record):
    (folder / "split.csv").write_text(record)
    with pytest.raises(ValueError, match=r"split\.csv"):
        load(folder)


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_files_and_labels_is_a_data_set(table, folder, delimiter):
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b",", delimiter.encode()))  # as Excel writes it
    splits = load(table)
    assert splits["train"].class_names == ("DARK", "LIGHT", "STRIPED")
    assert {split: len(scenes) for split, scenes in splits.items()} == {"train": 42, "val": 9, "test": 9}
    for scenes in splits.values():
        assert all(
            scenes.class_names[label] == name.split("/")[1].upper()
            for label, name in zip(scenes.labels, scenes.names, strict=True)
        )
    assert (table.parent / "labels.split.csv").is_file() and not (folder / "split.csv").exists()
    assert fingerprints(table) == {split: scenes.fingerprint for split, scenes in splits.items()}


def test_the_splits_of_a_table_are_those_of_its_column(table):
    lines = [line.split(",") for line in table.read_text().splitlines()[1:]]
    names = {name: ("train", "validation", "test")[number % 3] for number, (name, _) in enumerate(lines)}
    write_table(table, [("split", "label", "file"), *((names[name], label, name) for name, label in lines)])
    splits = load(table)
    expected = {name: "val" if split == "validation" else split for name, split in names.items()}
    assert split_of_names(splits) == expected and not (table.parent / "labels.split.csv").exists()


def test_another_label_changes_the_fingerprint_though_no_file_changes(table):
    before = fingerprints(table)
    table.write_text(table.read_text().replace("LIGHT", "BRIGHT"))
    assert all(fingerprints(table)[split] != before[split] for split in before)


FAULTS = {
    "no label column": (lambda lines: [("file", "class"), *lines[1:]], "'label'"),
    "a file that is not there": (lambda lines: [*lines, ("gone.png", "DARK")], "line 62"),
    "an empty label": (lambda lines: [*lines[:1], (lines[1][0], ""), *lines[2:]], "line 2"),
    "a file twice": (lambda lines: [*lines, lines[1]], "twice"),
    "one class": (lambda lines: [lines[0], *((name, "DARK") for name, _ in lines[1:])], "DARK"),
    "a cell too many": (lambda lines: [*lines[:2], (*lines[2], "x"), *lines[3:]], "line 3"),
    "another split": (lambda lines: [(*lines[0], "split"), *((*line, "exam") for line in lines[1:])], "'exam'"),
    "train alone": (lambda lines: [(*lines[0], "split"), *((*line, "train") for line in lines[1:])], "val or test"),
    "nothing": (lambda lines: [], "columns"),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS)
def test_a_table_that_is_none_is_named_with_its_fault(table, case):
    change, named = case
    write_table(table, change([line.split(",") for line in table.read_text().splitlines()]))
    with pytest.raises(ValueError, match=r"labels\.csv") as refusal:
        load(table)
    assert named in str(refusal.value) and len(str(refusal.value)) <= 300


# ------------------------------------------------------------------------------------------------------ without labels


def test_all_images_below_a_folder_are_training_images_without_labels(folder):
    shutil.copy(folder / "dark/0.png", folder / "stray.png")
    splits = load(folder / "**")
    assert list(splits) == ["train"] and len(splits["train"]) == 3 * COUNT + 1
    assert "stray.png" in splits["train"].names and not (folder / "split.csv").exists()
    assert fingerprints(folder / "**")["train"] == splits["train"].fingerprint


def test_two_parts_of_one_folder_do_not_remove_each_others_cache(folder, monkeypatch):
    load(folder), load(folder / "**")
    monkeypatch.setattr("data.image_cache.decode", lambda *_: pytest.fail("decoded again"))
    load(folder), load(folder / "**")


def test_a_fingerprint_does_not_depend_on_the_part(folder):
    images = list_splits(folder)["train"]
    assert replace(images, part="").fingerprint() == images.fingerprint()


# -------------------------------------------------------------------------------------------------- what is no data set


def moved_into(folder, *names):
    """Move what is in a folder into a new one, at the end of these names."""
    inside = list(folder.iterdir())
    folder.joinpath(*names).mkdir(parents=True)
    for path in inside:
        path.rename(folder.joinpath(*names, path.name))


NO_DATA_SETS = {  # what is done to a folder <class>/<image>: what the answer names
    "an empty folder": (lambda folder: shutil.rmtree(folder / "dark"), "dark", "no images"),
    "one class": (lambda folder: None, "dark", "--unlabeled"),
    "years": (lambda folder: [moved_into(each, "2019") for each in folder.iterdir()], "", "/2019,"),
    "other names of splits": (
        lambda folder: [shutil.copytree(folder, folder.parent / each) for each in ("both/training", "both/testing")],
        "../both",
        "testing/dark",
    ),
    "a class named as a split": (lambda folder: (folder / "dark").rename(folder / "train"), "", "train is a class"),
    "splits without classes": (
        lambda folder: ((folder / "dark").rename(folder / "train"), (folder / "light").rename(folder / "val")),
        "",
        "train is taken for a split",
    ),
}


@pytest.mark.parametrize("case", NO_DATA_SETS.values(), ids=NO_DATA_SETS)
def test_what_is_found_in_a_folder_that_is_no_data_set_is_named(folder, case):
    change, below, named = case
    change(folder)
    (folder / below).mkdir(exist_ok=True)
    with pytest.raises((FileNotFoundError, ValueError), match="photos|both") as refusal:
        list_splits(folder / below)
    assert named in str(refusal.value) and len(str(refusal.value)) < 400


def test_a_table_counts_whatever_the_case_of_its_suffix_and_another_file_is_said_to_be_none(table):
    upper = table.rename(table.with_name("LABELS.CSV"))
    assert locate(upper) == upper and len(load(upper)["train"]) == 42
    assert (table.parent / "LABELS.split.csv").is_file()
    for name in ("labels.tsv", "labels.txt"):
        shutil.copy(upper, table.with_name(name))
        with pytest.raises(ValueError, match=rf"{name}.*\.csv"):
            locate(table.with_name(name))
    with pytest.raises(ValueError, match="empty"):
        locate("")


def test_paths_may_be_texts_relative_to_this_folder_or_to_the_home_folder(folder, tmp_path, monkeypatch):
    expected = {split: images.names for split, images in list_splits(folder).items()}
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for given in (folder.name, f"~/{folder.name}"):
        assert {split: images.names for split, images in list_splits(given).items()} == expected
        assert len(load_splits(given, 32, cache="~/cache", progress=False)["train"]) == len(expected["train"])
        assert fingerprints(given).keys() == expected.keys() and not is_split(given)
        assert len(load_scenes(given, 32, progress=False)) == 3 * COUNT
        assert len(images_in(given)) == len(images_in([given])) == 3 * COUNT
        assert decode(f"{given}/dark/0.png", 32, "squash").shape[1:] == (32, 32)
        record_split(given)
    assert list((folder.parent / "cache").glob("*.npy"))


def test_an_image_that_is_left_out_is_not_counted_and_named_where_a_class_has_no_other(folder, capsys):
    (folder / "dark/0.png").write_bytes(b"")
    used = {split: len(scenes) for split, scenes in load(folder, skip_bad_images=True).items()}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "recorded" in line]
    assert ", ".join(f"{count} {split}" for split, count in used.items()) in line and "1 that cannot be decoded" in line
    for path in (folder / "light").iterdir():
        if split_of_names(list_splits(folder))[f"light/{path.name}"] == "test":
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"'light' has no image for test .*light/.*\.png cannot be decoded"):
        load(folder, skip_bad_images=True)
