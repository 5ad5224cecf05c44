"""Which files of a folder are images, what they contain, and what is said about it."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from data.files import say_once
from data.folders import IMAGE_SUFFIXES, images_in, list_images
from data.image_cache import load_splits
from data.layouts import fingerprints


@pytest.fixture(autouse=True)
def cache(root):
    """The image cache of a test's own."""
    say_once.cache_clear()
    return root / "data" / "cache"


def load(folder, **options):
    return load_splits(folder, 32, progress=False, **options)


# ------------------------------------------------------------------------------------------------------ what is read


def test_every_suffix_is_of_a_format_that_pillow_decodes():
    formats = Image.registered_extensions()
    assert not [suffix for suffix in IMAGE_SUFFIXES if formats[suffix] not in Image.OPEN]


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".jp2", ".avif", ".tga", ".Png"])
def test_images_are_read_whatever_their_suffix(scene_folder, suffix, capsys):
    for path in list((scene_folder / "train/dark").iterdir())[:5]:
        path.rename(path.with_suffix(suffix))  # a decoder looks at the contents
    assert len(load(scene_folder)["train"]) == 36
    assert capsys.readouterr().err == ""


def test_what_is_left_out_is_counted_on_one_line_once(scene_folder, capsys):
    dark = scene_folder / "train/dark"
    (dark / "deeper/still").mkdir(parents=True)
    for name in ("deeper/still/a.jpg", "deeper/b.jpg", ".hidden.jpg", "a.heic", "b.HEIC", "notes.txt", "none"):
        shutil.copy(dark / "image_0000.jpg", dark / name)
    shutil.copy(dark / "image_0000.jpg", scene_folder / "val/stray.jpg")
    (dark / "image_0001.jpg").write_bytes(b"")
    for noise in ("Thumbs.db", ".DS_Store"):
        (dark / noise).write_bytes(b"")
    for _ in range(2):
        load(scene_folder, skip_bad_images=True)
    (line,) = capsys.readouterr().err.splitlines()
    reasons = (
        "2 .heic",
        "2 in subfolders",
        "1 hidden",
        "1 .txt",
        "1 without a suffix",
        "1 outside",
        "1 that cannot be decoded",
    )
    assert line.startswith(f"{scene_folder}: 9 file") and all(each in line for each in reasons)


SPOILED = {
    "a link to nothing": lambda path: path.symlink_to("/annex/objects/gone"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a header alone": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
    "a broken GIF": lambda path: path.write_bytes(b"GIF89a\x05\0\x05\0\xff\0\0"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_whatever_cannot_be_read_is_named_or_skipped(scene_folder, spoil):
    path = scene_folder / "train/dark/image_0000.jpg"
    path.unlink()
    spoil(path)
    with pytest.raises(ValueError, match=r"dark/image_0000\.jpg cannot be decoded"):
        load(scene_folder)
    assert load(scene_folder, skip_bad_images=True)["train"].skipped == ("dark/image_0000.jpg",)


# ---------------------------------------------------------------------------------------------------------- contents


def exchange(one, other):
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)


def with_its_time(path, change):
    """Change a file and put its time of modification back, as archives and container layers do."""
    status = path.stat()
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def overwrite(train):
    path = train / "dark/image_0000.bmp"
    with_its_time(path, lambda: shutil.copyfile(train / "light/image_0000.bmp", path))


def lead_elsewhere(train):
    path = train / "dark/image_0000.bmp"
    path.unlink()
    path.symlink_to(train / "light/image_0000.bmp")


CHANGES = {
    "classes exchanged": lambda train: exchange(train / "dark", train / "light"),
    "images exchanged": lambda train: exchange(train / "dark/image_0000.bmp", train / "light/image_0000.bmp"),
    "overwritten": overwrite,
    "a link instead": lead_elsewhere,
    "moved to another class": lambda train: (train / "dark/image_0000.bmp").rename(train / "light/moved.bmp"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_images_are_decoded_anew_if_their_contents_change_though_not_their_sizes_and_times(scene_folder, cache, change):
    for path in list(scene_folder.rglob("*.jpg")):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
        os.utime(path.with_suffix(".bmp"), (1_500_000_000,) * 2)
    before = load(scene_folder)["train"]
    change(scene_folder / "train")
    after, truth = load(scene_folder)["train"], load(scene_folder, cache=cache / "fresh")["train"]
    assert np.array_equal(after.images, truth.images) and after.names == truth.names
    assert after.fingerprint == truth.fingerprint != before.fingerprint


def test_contents_that_only_moved_in_time_are_not_decoded_again(scene_folder, monkeypatch):
    load(scene_folder)
    for path in scene_folder.rglob("*.jpg"):
        os.utime(path, (0, 0))
    monkeypatch.setattr("data.image_cache.decode", lambda *_: pytest.fail("decoded again"))
    load(scene_folder)


@pytest.mark.parametrize("layout", ["three splits", "val is to be divided", "bad images"])
def test_fingerprints_without_decoding_are_those_of_the_loaded_images(scene_folder, layout):
    if layout == "val is to be divided":
        shutil.rmtree(scene_folder / "test")
    if layout == "bad images":
        (scene_folder / "train/dark/image_0003.jpg").write_bytes(b"")
    splits = load(scene_folder, skip_bad_images=True)
    skipped = [f"{split}/{name}" for split, scenes in splits.items() for name in scenes.skipped]
    assert fingerprints(scene_folder, skipped) == {split: scenes.fingerprint for split, scenes in splits.items()}


def test_images_that_are_in_two_splits_are_counted(scene_folder, capsys):
    load(scene_folder)
    assert capsys.readouterr().err == ""
    shutil.copy(scene_folder / "val/dark/image_0001.jpg", scene_folder / "test/light/another.jpg")
    shutil.rmtree(scene_folder / "val")
    shutil.copytree(scene_folder / "train", scene_folder / "val")
    shutil.copy(scene_folder / "val/dark/image_0001.jpg", scene_folder / "test/light/one more.jpg")
    load(scene_folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert "36 image(s) of val are also in train, 1 image(s) of test are also in train" in line
    shutil.rmtree(scene_folder / "test")
    (scene_folder / "test").symlink_to("train")
    load(scene_folder)
    assert "36 image(s) of test are also in train" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- names


def test_a_class_name_in_two_unicode_forms_is_one(scene_folder):
    for split, form in (("train", "NFC"), ("val", "NFD"), ("test", "NFC")):
        (scene_folder / split / "dark").rename(scene_folder / split / unicodedata.normalize(form, "café"))
    splits = load(scene_folder)
    assert {scenes.class_names for scenes in splits.values()} == {("café", "light", "striped")}
    assert np.bincount(splits["val"].labels).tolist() == [6, 6, 6]
    (scene_folder / "train" / unicodedata.normalize("NFD", "café")).mkdir()
    with pytest.raises(ValueError, match="twice"):
        load(scene_folder)


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "lost+found", "#recycle", "System Volume Information"])
def test_folders_of_the_system_are_no_classes(scene_folder, name):
    (scene_folder / "train" / name).mkdir()
    (scene_folder / "val/dark" / name).mkdir()
    assert list_images(scene_folder / "train").class_names == ("dark", "light", "striped")
    assert list_images(scene_folder / "val").left_out.total() == 0


@pytest.mark.parametrize("name", ["$a$ [b]*?", "x" * 251, os.fsdecode(b"caf\xe9"), "日本語", "~"])
def test_a_folder_a_class_and_an_image_may_have_any_name(scene_folder, name):
    root = scene_folder.rename(scene_folder.with_name(name))
    for split in ("train", "val", "test"):
        (root / split / "dark").rename(root / split / name)
    image = root / "train" / name / "image_0000.jpg"
    image.rename(image.with_name(f"{name[:200]}.jpg"))
    train = load(root)["train"]
    assert name in train.class_names and f"{name}/{name[:200]}.jpg" in train.names
    assert load(root)["train"].names == train.names


def test_images_of_files_and_folders_are_found_at_any_depth_in_the_order_of_their_names(scene_folder, capsys):
    for name in ("notes.txt", ".hidden.jpg"):
        (scene_folder / "train" / name).write_text("hello")
    (scene_folder / "train/.cache").mkdir()
    shutil.copy(scene_folder / "train/dark/image_0000.jpg", scene_folder / "train/.cache/a.jpg")
    named = scene_folder / "train/notes.txt"
    found = images_in([named, scene_folder / "train"])
    assert found == [named, *sorted((scene_folder / "train").glob("*/image*.jpg"))] and len(found) == 37
    assert "2 file(s) left out" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="gone"):
        images_in([scene_folder / "gone"])
    (scene_folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        images_in([scene_folder / "empty"])
