"""What data.prepare accepts, what it refuses, and that nothing incomplete is ever left behind."""

import csv
import errno
import hashlib
import os
import pickle
import shutil
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from data import image_cache
from data import prepare as prepare_module
from data.files import CODE, say_once
from data.image_cache import load_splits
from data.prepare import CLASS_NAMES, MANIFEST, Request, locate, main, make_manifest, prepare
from data.splits import SPLITS, duplicates_across_splits

REAL_15SCENE = CODE.parent / "shared" / "data" / "15SceneData"
ORIGINAL_FOLDERS = {"suburb": "CALsuburb", "office": "PARoffice"} | {
    name: f"MIT{name}"
    for name in ("coast", "forest", "highway", "insidecity", "mountain", "opencountry", "street", "tallbuilding")
}


def run(name, source, to, **options):
    """Prepare without a word."""
    return prepare(Request(name, source, to, progress=False, **options))


def write_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_nature(folder, counts):
    """counts: {path of a split folder: images in each class}.  All images and file names differ."""
    seed = 0
    for split_folder, count in counts.items():
        for class_name in CLASS_NAMES["nature"]:
            for _ in range(count):
                seed += 1
                write_image(folder / split_folder / class_name / f"{seed}.png", seed)


def zip_folder(folder, path):
    return Path(shutil.make_archive(str(path), "zip", folder.parent, folder.name))


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """A stand-in for 15-Scene in the split layout, 2 + 10 images a class, with a manifest of its own."""
    source = tmp_path / "scenes"
    for class_index, class_name in enumerate(CLASS_NAMES["15scene"]):
        for number in range(12):
            split = "train" if number < 2 else "validation"
            write_image(source / split / class_name / f"image_{number:04d}.jpg", seed=class_index * 100 + number)
    monkeypatch.setattr(prepare_module, "MANIFEST", tmp_path / "manifests" / "15scene.csv")
    make_manifest(source)
    return source


def assert_refused(out, capsys, *arguments, words):
    """The command line ends with 2 and one sentence that has all words, and leaves nothing in `out`."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--to", str(out / "result")]) == 2
    sentence = capsys.readouterr().err.strip()
    assert len(sentence.splitlines()) == 1
    for word in words:
        assert word in sentence
    assert list(out.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- manifest


def test_committed_manifest_has_the_split_of_the_earlier_reports():
    with open(MANIFEST, newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len({(line["class"], line["file_name"]) for line in lines}) == 4485
    assert sorted({line["class"] for line in lines}) == list(CLASS_NAMES["15scene"])
    counts = Counter((line["class"], line["split"]) for line in lines)
    assert Counter(line["split"] for line in lines) == {"train": 1500, "val": 894, "test": 2091}
    for class_name in CLASS_NAMES["15scene"]:
        val, test = counts[class_name, "val"], counts[class_name, "test"]
        assert counts[class_name, "train"] == 100
        assert abs(val - 0.3 * (val + test)) <= 0.5


@pytest.mark.slow
@pytest.mark.skipif(not REAL_15SCENE.exists(), reason=f"no real 15-Scene data in {REAL_15SCENE}")
def test_real_data_gives_the_committed_manifest_and_1500_and_2985_images(tmp_path, monkeypatch, capsys):
    committed = MANIFEST.read_bytes()
    folder = prepare(Request("15scene", REAL_15SCENE, tmp_path / "15scene"))
    assert "15scene: 1,500 train, 2,985 validation (894 val + 2,091 test)" in capsys.readouterr().out
    assert len(list(folder.glob("train/*/*.jpg"))) == 1500
    assert len(list(folder.glob("val/*/*.jpg"))) + len(list(folder.glob("test/*/*.jpg"))) == 2985
    assert len(duplicates_across_splits(folder)) == 13
    monkeypatch.setattr(prepare_module, "MANIFEST", tmp_path / "15scene.csv")
    make_manifest(REAL_15SCENE)
    assert (tmp_path / "15scene.csv").read_bytes() == committed


# ------------------------------------------------------------------------------------------------------------- 15-Scene


def test_every_layout_and_archive_gives_the_same_tree(scenes, tmp_path):
    original = tmp_path / "scene_categories"
    for path in scenes.rglob("*.jpg"):
        copied = original / ORIGINAL_FOLDERS.get(path.parent.name, path.parent.name) / path.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    with tarfile.open(tmp_path / "flat.tar.gz", "w:gz") as tar:
        tar.add(original, "scene_categories")
    sources = [scenes, original, zip_folder(scenes, tmp_path / "split"), tmp_path / "flat.tar.gz"]
    trees = [files_below(run("15scene", source, tmp_path / f"result{index}")) for index, source in enumerate(sources)]
    assert len(trees[0]) == 15 * 12 + 1  # the images and split.csv
    assert trees[1:] == trees[:1] * 3


def test_prepared_images_are_those_of_the_source_in_the_split_of_the_manifest(scenes, out):
    for path in scenes.rglob("*.jpg"):
        path.chmod(0o444)
    folder = run("15scene", scenes, out / "result")
    for split, source_split, count in (("train", "train", 2), ("val", "validation", 3), ("test", "validation", 7)):
        for class_name in CLASS_NAMES["15scene"]:
            paths = list((folder / split / class_name).iterdir())
            assert len(paths) == count
            for path in paths:
                assert path.read_bytes() == (scenes / source_split / class_name / path.name).read_bytes()
                assert path.stat().st_mode & 0o200, "a copy of a read-only file can be written"


def test_hidden_files_and_files_that_are_no_images_are_ignored(scenes, out):
    for name in ("Thumbs.db", ".DS_Store", "._image_0001.jpg", "notes.txt"):
        (scenes / "train" / "coast" / name).write_text("no image")
    (scenes / "__MACOSX" / "coast").mkdir(parents=True)
    (scenes / "__MACOSX" / "coast" / "image_0099.jpg").write_text("no image")
    folder = run("15scene", scenes, out / "result")
    assert len(list((folder / "train" / "coast").iterdir())) == 2


def test_a_second_run_has_nothing_to_do_and_changes_nothing(scenes, out, capsys):
    arguments = ["15scene", "--source", str(scenes), "--to", str(out / "result")]
    assert main(arguments) == 0
    assert "15scene: 30 train, 150 validation (45 val + 105 test)" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def cut(path, count=100):
    path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "train/coast/image_0001.jpg is missing"),
        (lambda path: shutil.copyfile(path, path.with_name("mine.jpg")), "train/coast/mine.jpg does not belong here"),
        (cut, "train/coast/image_0001.jpg has"),
        (lambda path: shutil.rmtree(path.parent), "class train/coast has no images, but should have 2"),
    ],
    ids=["removed", "added", "cut", "emptied"],
)
def test_damage_to_a_prepared_folder_is_named_and_nothing_is_deleted(scenes, out, damage, words):
    folder = run("15scene", scenes, out / "result")
    damage(folder / "train" / "coast" / "image_0001.jpg")
    before = files_below(folder)
    with pytest.raises(ValueError, match=words) as raised:
        run("15scene", scenes, folder)
    assert "delete this one" in str(raised.value)
    assert files_below(folder) == before


def test_a_folder_of_something_else_is_left_alone(scenes, out):
    (out / "mine").mkdir()
    (out / "mine" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="was not prepared here"):
        run("15scene", scenes, out / "mine")
    folder = run("15scene", scenes, out / "result")
    with pytest.raises(ValueError, match="another data set than nature"):
        run("nature", scenes, folder)
    manifest = prepare_module.MANIFEST
    manifest.write_text(manifest.read_text().replace("coast,image_0001.jpg,train", "coast,image_0001.jpg,val"))
    with pytest.raises(ValueError, match="is not split as"):
        run("15scene", scenes, folder)
    assert files_below(out / "mine") == {"mine.txt": b"mine"}


def move_into_validation(scenes):
    shutil.copyfile(scenes / "train/coast/image_0001.jpg", scenes / "validation/coast/image_0001.jpg")


@pytest.mark.parametrize(
    ("damage", "options", "words"),
    [
        (
            lambda scenes: cut(scenes / "validation/forest/image_0005.jpg"),
            [],
            ["validation/forest/image_0005.jpg cannot be decoded", "--skip-bad-images"],
        ),
        (
            lambda scenes: (scenes / "train/coast/image_0001.jpg").rename(scenes / "train/coast/beach.jpg"),
            [],
            ["coast/image_0001.jpg is missing", "coast/beach.jpg does not belong here"],
        ),
        (
            lambda scenes: [path.unlink() for path in scenes.glob("*/kitchen/*")],
            [],
            ["class kitchen has no images, but should have 12"],
        ),
        (move_into_validation, [], ["coast/image_0001.jpg twice"]),
        (
            lambda scenes: [path.write_text("no image") for path in (scenes / "train/forest").iterdir()],
            ["--skip-bad-images"],
            ["class forest has no images for train"],
        ),
    ],
    ids=["truncated image", "renamed image", "emptied class", "image in both splits", "class of bad images"],
)
def test_a_source_that_is_not_15_scene_is_refused_by_name(scenes, out, capsys, damage, options, words):
    damage(scenes)
    assert_refused(out, capsys, "15scene", "--source", scenes, *options, words=words)


def test_skip_bad_images_leaves_them_out_names_them_and_remembers(scenes, out, capsys):
    cut(scenes / "train" / "forest" / "image_0001.jpg")
    arguments = ["15scene", "--source", str(scenes), "--to", str(out / "result")]
    assert main([*arguments, "--skip-bad-images"]) == 0
    report = capsys.readouterr().out
    assert "left out as bad: train/forest/image_0001.jpg" in report
    assert "29 train, 150 validation (45 val + 105 test), 1 left out as bad" in report
    assert not (out / "result" / "train" / "forest" / "image_0001.jpg").exists()
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_full_disk_is_reported_in_a_sentence_and_leaves_nothing(scenes, out, capsys, monkeypatch):
    def copyfile(source, to):
        Path(to).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    assert_refused(out, capsys, "15scene", "--source", scenes, words=["disk", "is full"])


def test_ctrl_c_ends_with_130_and_leaves_nothing(scenes, out, monkeypatch):
    def copyfile(source, to):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    assert main(["15scene", "--source", str(scenes), "--to", str(out / "result")]) == 130
    assert list(out.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_cut_short_is_refused(kind, scenes, tmp_path, out, capsys):
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), kind, scenes))
    cut(archive, 2000)
    assert_refused(out, capsys, "15scene", "--source", archive, words=[str(archive), "get it again"])


def test_the_checksum_of_an_archive_is_compared(scenes, tmp_path, out, capsys):
    archive = zip_folder(scenes, tmp_path / "archive")
    right = hashlib.sha256(archive.read_bytes()).hexdigest()
    arguments = ["15scene", "--source", archive, "--checksum"]
    wrong = "md5:" + "0" * 32
    assert_refused(out, capsys, *arguments, wrong, words=[str(archive), "wrong checksum", wrong])
    assert_refused(out, capsys, *arguments, "md5:12", words=["'md5:12'", "32 hex digits"])
    assert_refused(out, capsys, "15scene", "--source", scenes, "--checksum", wrong, words=["leave out --checksum"])
    run("15scene", archive, out / "result", checksum=f"sha256:{right}")


def test_bad_names_are_answered_with_the_right_ones(out, tmp_path, capsys):
    (tmp_path / "scenes.rar").write_bytes(b"Rar!" * 1000)
    words = ["scenes.rar is neither a zip nor a tar archive"]
    assert_refused(out, capsys, "15scene", "--source", tmp_path / "scenes.rar", words=words)
    assert_refused(out, capsys, "15scenes", words=["'15scenes'", "15scene, nature, cifar10, synthetic"])
    assert_refused(out, capsys, "15scene", "--source", "/no/such", words=["there is no /no/such"])
    assert_refused(out, capsys, "nature", "--source", out.parent, words=["no images in folders", "buildings, forest"])
    assert_refused(out, capsys, "nature", words=["--source"])
    assert_refused(out, capsys, "synthetic", "--source", "scenes", words=["leave out --source"])


# ------------------------------------------------------------------------------------------------------------- download


def test_an_address_without_file_or_server_says_what_to_do(server, out, capsys):
    words = ["HTTP 404", "--source", "figshare"]
    assert_refused(out, capsys, "15scene", "--source", f"{server.address}/none.zip", words=words)
    closed = "http://127.0.0.1:9/scenes.zip"
    assert_refused(out, capsys, "15scene", "--source", closed, words=[closed, "refused", "--source"])


def test_a_data_set_is_downloaded_unpacked_and_the_archive_removed(server, scenes, tmp_path, out):
    server.files = {"/scenes": zip_folder(scenes, tmp_path / "archive").read_bytes()}
    server.cut_at = 5000
    with pytest.raises(ConnectionError):
        run("15scene", f"{server.address}/scenes", out / "result")
    assert [path.stat().st_size for path in out.iterdir()] == [5000]  # the part alone, for the next run to complete
    server.cut_at = None
    run("15scene", f"{server.address}/scenes", out / "result")
    assert [path.name for path in out.iterdir()] == ["result"]


def test_a_download_that_is_no_archive_is_removed(server, out, capsys):
    server.files = {"/scenes.zip": b"<html>moved</html>"}
    assert_refused(out, capsys, "15scene", "--source", f"{server.address}/scenes.zip", words=["scenes.zip is neither"])


def test_without_a_source_the_public_address_and_its_checksum_are_taken(server, scenes, tmp_path, out, monkeypatch):
    body = zip_folder(scenes, tmp_path / "archive").read_bytes()
    server.files = {"/public.zip": body}
    for known, checksum in (
        (hashlib.md5(b"other").hexdigest(), None),
        (hashlib.md5(body).hexdigest(), "md5:" + 32 * "0"),
    ):
        monkeypatch.setitem(prepare_module.ADDRESSES, "15scene", (f"{server.address}/public.zip", f"md5:{known}"))
        with pytest.raises(ValueError, match="wrong checksum"):
            run("15scene", None, out / "result", checksum=checksum)
    run("15scene", None, out / "result")
    assert [path.name for path in out.iterdir()] == ["result"]


# --------------------------------------------------------------------------------------------------------------- nature


def counts_of(folder):
    return Counter(path.parts[-3:-1] for path in folder.glob("*/*/*"))


@pytest.mark.parametrize(
    ("source_counts", "expected"),
    [
        ({"train": 12, "test": 5}, {"train": 10, "val": 2, "test": 5}),
        ({"seg_train/seg_train": 12, "seg_test/seg_test": 5}, {"train": 10, "val": 2, "test": 5}),
        ({".": 20}, {"train": 14, "val": 3, "test": 3}),
        ({"train": 6, "val": 4, "test": 5}, {"train": 6, "val": 4, "test": 5}),
    ],
)
def test_nature_is_split_by_class_and_disjoint_in_every_layout(source_counts, expected, tmp_path, out):
    write_nature(tmp_path / "nature", source_counts)
    write_image(tmp_path / "nature" / "seg_pred" / "seg_pred" / "1.jpg", seed=0)  # of no class
    folder = run("nature", tmp_path / "nature", out / "one")
    assert counts_of(folder) == {
        (split, class_name): count for split, count in expected.items() for class_name in CLASS_NAMES["nature"]
    }
    with open(folder / "split.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6 * sum(expected.values()) == len({(line["class"], line["file_name"]) for line in lines})
    for line in lines:
        assert (folder / line["split"] / line["class"] / line["file_name"]).exists()
    for source_test_image in (tmp_path / "nature").glob("**/*test/*/*.png"):
        assert (folder / "test" / source_test_image.parent.name / source_test_image.name).exists()
    assert files_below(run("nature", tmp_path / "nature", out / "two")) == files_below(folder)


def test_of_two_processes_one_prepares_and_nothing_else_is_left(tmp_path, out):
    write_nature(tmp_path / "nature", {".": 30})
    with ProcessPoolExecutor(2) as pool:
        results = [pool.submit(run, "nature", tmp_path / "nature", out / "result") for _ in range(2)]
        assert [each.result() for each in results] == [out / "result"] * 2
    assert [path.name for path in out.iterdir()] == ["result"]


def test_what_a_killed_preparation_left_is_removed_by_the_next(tmp_path, out):
    write_nature(tmp_path / "nature", {".": 20})
    for prepared_already in (False, True):
        (out / ".result.partial-abc" / "result").mkdir(parents=True)
        run("nature", tmp_path / "nature", out / "result")
        assert [path.name for path in out.iterdir()] == ["result"], prepared_already


def test_nature_separates_one_name_in_two_splits_and_reports_one_image_in_two_splits(tmp_path, out, capsys):
    write_nature(tmp_path / "nature", {"train": 6, "test": 2})
    write_image(tmp_path / "nature" / "train" / "sea" / "1.png", seed=1001)
    write_image(tmp_path / "nature" / "test" / "sea" / "1.png", seed=1002)
    shutil.copyfile(tmp_path / "nature/test/sea/1.png", tmp_path / "nature/test/sea/again.png")  # within a split: fine
    shutil.copyfile(tmp_path / "nature/test/sea/45.png", tmp_path / "nature/train/forest/same.png")
    folder = prepare(Request("nature", tmp_path / "nature", out / "result"))
    reported = [line for line in capsys.readouterr().out.splitlines() if line.startswith("the same bytes")]
    assert len(reported) == 1 and "test/sea/45.png" in reported[0] and "forest/same.png" in reported[0]
    assert (folder / "test" / "sea" / "test_1.png").exists()
    assert len(list(folder.glob("*/sea/train_1.png"))) == 1


def test_nature_is_split_into_exactly_the_sizes_asked_for(tmp_path, out):
    write_nature(tmp_path / "nature", {"seg_train": 12, "seg_test": 4})  # 96 images
    folder = run("nature", tmp_path / "nature", out / "result", val=0.125, test=18)
    counts = counts_of(folder)
    assert [sum(counts[split, name] for name in CLASS_NAMES["nature"]) for split in SPLITS] == [66, 12, 18]
    assert {counts["test", name] for name in CLASS_NAMES["nature"]} == {3}
    assert run("nature", None, folder, val=12, test=18) == folder
    with pytest.raises(ValueError, match="has 12 images for val, and 13 are asked for"):
        run("nature", None, folder, val=13, test=18)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("nature", ["--val", 2], ["--test is missing"]),
        ("nature", ["--val", 2, "--test", 0], ["--test is 0", "number of images, or a share"]),
        ("nature", ["--val", 1.5, "--test", 2], ["--val is 1.5"]),
        ("nature", ["--val", 20, "--test", 28], ["48 images", "20 for val and 28 for test", "left for train"]),
        ("15scene", ["--val", 2, "--test", 2], ["15scene has a split of its own"]),
    ],
)
def test_sizes_that_make_no_sense_are_refused(name, sizes, words, tmp_path, out, capsys):
    write_nature(tmp_path / "nature", {"train": 6, "test": 2})
    assert_refused(out, capsys, name, "--source", tmp_path / "nature", *sizes, words=words)


def test_a_class_of_nature_in_one_split_only_is_refused(tmp_path, out, capsys):
    write_nature(tmp_path / "nature", {"train": 6, "test": 2})
    shutil.rmtree(tmp_path / "nature" / "test" / "sea")
    assert_refused(out, capsys, "nature", "--source", tmp_path / "nature", words=["class sea has no images for test"])


# ------------------------------------------------------------------------------------------------------------- CIFAR-10


def test_a_png_tree_of_cifar10_keeps_its_names_and_splits(tmp_path, out):
    for class_index, class_name in enumerate(CLASS_NAMES["cifar10"]):
        for split in ("train", "test"):
            write_image(tmp_path / "cifar" / split / class_name / f"{class_index:05d}.png", seed=class_index)
    folder = run("cifar10", tmp_path / "cifar", out / "result")
    images = {name: content for name, content in files_below(folder).items() if name != "split.csv"}
    assert images == files_below(tmp_path / "cifar")


@pytest.fixture
def cifar10_batches(tmp_path, monkeypatch):
    """A cifar-10-batches-py of one batch each for train and test, with the checksums that torchvision is to expect."""
    folder = tmp_path / "official" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    contents = {
        "data_batch_1": {"data": pixels, "labels": list(range(10))},
        "test_batch": {"data": 255 - pixels, "labels": list(reversed(range(10)))},
        "batches.meta": {"label_names": list(CLASS_NAMES["cifar10"])},
    }
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]})
    return pixels, folder


def test_the_official_archive_of_cifar10_becomes_png(cifar10_batches, tmp_path, out, capsys):
    pixels, batches = cifar10_batches
    archive = shutil.make_archive(str(tmp_path / "cifar-10-python"), "gztar", batches.parent)
    folder = prepare(Request("cifar10", archive, out / "result"))
    assert "cifar10: 10 train, 10 test" in capsys.readouterr().out
    assert not (folder / "val").exists()
    with Image.open(folder / "train" / "bird" / "00002.png") as image:
        assert np.array_equal(np.asarray(image), pixels[2].reshape(3, 32, 32).transpose(1, 2, 0))
    assert (folder / "test" / "truck" / "00000.png").exists()


def test_batches_of_cifar10_with_other_bytes_are_never_opened(cifar10_batches, out, capsys):
    _, batches = cifar10_batches
    (batches / "data_batch_1").write_bytes(b"cos\nsystem\n")
    assert_refused(out, capsys, "cifar10", "--source", batches, words=["is not the official CIFAR-10"])


# -------------------------------------------------------------------------------------------- locating, decoding ahead


@pytest.fixture
def few_synthetic_scenes(monkeypatch):
    """Two classes, so that drawing takes no time."""

    def write_scenes(folder):
        for split, count in (("train", 2), ("val", 1), ("test", 1)):
            for index in range(count):
                for class_name in ("waves", "towers"):
                    write_image(folder / split / class_name / f"{index}.png", seed=index)

    monkeypatch.setattr(prepare_module, "write_scenes", write_scenes)


def test_synthetic_scenes_are_drawn_into_the_same_layout(few_synthetic_scenes, out, capsys):
    prepare(Request("synthetic", to=out / "result"))
    assert "synthetic: 4 train, 4 validation (2 val + 2 test)" in capsys.readouterr().out
    prepare(Request("synthetic", to=out / "result"))
    assert "nothing to do" in capsys.readouterr().out


def test_synthetic_scenes_are_located_without_being_prepared(few_synthetic_scenes, root):
    assert locate("synthetic") == locate("synthetic") == root / "data" / "synthetic"
    assert len(list((root / "data" / "synthetic").glob("*/*/*.png"))) == 8


def test_a_prepared_data_set_is_located_by_its_name(root):
    with pytest.raises(FileNotFoundError, match=r"python -m data\.prepare nature"):
        locate("nature")
    (root / "data" / "nature").mkdir(parents=True)
    assert locate("nature") == root / "data" / "nature"


def test_other_data_are_located_by_their_path(scene_folder, monkeypatch):
    monkeypatch.chdir(scene_folder.parent)
    assert locate("scenes") == scene_folder.resolve()
    with pytest.raises(FileNotFoundError, match="15scenes; known names are 15scene, nature"):
        locate("15scenes")


def test_a_folder_named_like_a_prepared_one_is_refused_unless_it_is_that(scene_folder, root, monkeypatch, capsys):
    """Results tell data sets apart by their names."""
    (root / "disk/nature").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "data/nature").symlink_to(root / "disk/nature")
    scene_folder.rename(root / "nature")
    monkeypatch.chdir(root)
    say_once.cache_clear()
    assert locate("nature") == root / "data/nature"
    assert str(root / "data/nature") in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"nature has the name of a prepared .*; rename the folder"):
        locate("./nature")
    assert locate("data/nature") == locate("disk/nature") == root / "disk/nature"
    monkeypatch.chdir(root / "data")
    assert locate("nature") == root / "data/nature"
    assert capsys.readouterr().err == ""


def test_the_home_folder_is_found_in_every_path(few_synthetic_scenes, scene_folder, root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.chdir(root)
    assert locate("~/scenes") == scene_folder
    assert prepare(Request("synthetic", to="~/drawn", progress=False)) == root / "drawn"
    write_nature(root / "source", {".": 20})
    assert prepare(Request("nature", "~/source", to="~/of nature", progress=False)) == root / "of nature"
    assert not (root / "~").exists()


@pytest.mark.parametrize("name", ["[a]*?", "$a$ {b}", os.fsdecode(b"caf\xe9"), "日本語"])
def test_a_folder_and_an_image_of_any_name_are_prepared_and_verified(tmp_path, out, name, capsys):
    write_nature(tmp_path / "nature", {".": 20})
    image = sorted((tmp_path / "nature/sea").iterdir())[0]
    image.rename(image.with_name(f"{name}.png"))
    (out / f".{name}.partial-abc").mkdir()
    folder = run("nature", tmp_path / "nature", out / name)
    assert f"{name}.png" in [path.name for path in folder.glob("*/sea/*")]
    assert run("nature", tmp_path / "nature", out / name) == folder
    assert [path.name for path in out.iterdir()] == [name]


def test_files_of_a_source_that_are_left_out_are_counted(tmp_path, out, capsys):
    write_nature(tmp_path / "nature", {".": 20})
    for name in ("a.heic", "b.HEIC", "notes.txt", ".hidden.jpg", "Thumbs.db"):
        (tmp_path / "nature/sea" / name).write_bytes(b"")
    prepare(Request("nature", tmp_path / "nature", out / "result"))
    assert "left out: 2 .heic, 1 " in capsys.readouterr().out


def test_a_data_set_can_be_decoded_ahead_and_a_training_decodes_nothing(few_synthetic_scenes, root, monkeypatch):
    assert main(["synthetic", "--decode", "imagenet:32", "squash:48"]) == 0
    assert len(list((root / "data" / "cache").glob("*.npy"))) == 6
    monkeypatch.setattr(image_cache, "decode", lambda *_: pytest.fail("decoded again"))
    for size, resize in ((32, "imagenet"), (48, "squash")):
        splits = load_splits(root / "data" / "synthetic", size, resize, progress=False)
        assert splits["train"].images.shape[-1] == size


@pytest.mark.parametrize("rule", ["squash", "squash:0", "squash:-1", "crop:32", ":32"])
def test_a_rule_to_decode_by_is_read_before_anything_is_prepared(few_synthetic_scenes, out, capsys, rule):
    assert_refused(out, capsys, "synthetic", "--decode", rule, words=["squash or imagenet"])
