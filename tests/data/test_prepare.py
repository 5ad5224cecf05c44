"""Claims about data.prepare: what it accepts, what it refuses, and that nothing half-written is ever left behind."""

import csv
import errno
import hashlib
import http.server
import io
import pickle
import random
import shutil
import sys
import tarfile
import threading
import types
import zipfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import archives
from data import prepare as prepare_module
from data.download import download, unpack
from data.prepare import (
    CLASS_NAMES,
    FOLDERS_OF_15SCENE,
    MANIFEST,
    ROOT,
    duplicates_across_splits,
    main,
    make_manifest,
    prepare,
)

REAL_15SCENE = ROOT.parent / "shared" / "data" / "15SceneData"
ORIGINAL_FOLDERS = {FOLDERS_OF_15SCENE[folder]: folder for folder in FOLDERS_OF_15SCENE}  # the later one wins


def write_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_nature(folder, counts):
    """counts: {path of a split folder: images a class}.  All images and file names differ."""
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


@pytest.fixture
def out(tmp_path):
    """An empty folder to prepare in: whatever is left behind can be seen there."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def original_layout(scenes, folder):
    """The same images in the folders of the original archive."""
    for path in scenes.rglob("*.jpg"):
        copied = folder / ORIGINAL_FOLDERS[path.parent.name] / path.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    return folder


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
        rows = list(csv.DictReader(file))
    assert len(rows) == len({(row["class"], row["file_name"]) for row in rows}) == 4485
    assert sorted({row["class"] for row in rows}) == list(CLASS_NAMES["15scene"])
    counts = Counter((row["class"], row["split"]) for row in rows)
    assert Counter(row["split"] for row in rows) == {"train": 1500, "val": 894, "test": 2091}
    for class_name in CLASS_NAMES["15scene"]:
        val, test = counts[class_name, "val"], counts[class_name, "test"]
        assert counts[class_name, "train"] == 100
        assert abs(val - 0.3 * (val + test)) <= 0.5


@pytest.mark.skipif(not REAL_15SCENE.exists(), reason=f"no real 15-Scene data in {REAL_15SCENE}")
def test_real_data_gives_the_committed_manifest_and_1500_and_2985_images(tmp_path, monkeypatch, capsys):
    committed = MANIFEST.read_bytes()
    folder = prepare("15scene", REAL_15SCENE, to=tmp_path / "15scene")
    assert "15scene: 1,500 train, 2,985 validation (894 val + 2,091 test)" in capsys.readouterr().out
    assert len(list(folder.glob("train/*/*.jpg"))) == 1500
    assert len(list(folder.glob("val/*/*.jpg"))) + len(list(folder.glob("test/*/*.jpg"))) == 2985
    monkeypatch.setattr(prepare_module, "MANIFEST", tmp_path / "15scene.csv")
    make_manifest(REAL_15SCENE)
    assert (tmp_path / "15scene.csv").read_bytes() == committed


# ------------------------------------------------------------------------------------------------------------- 15-Scene


def test_every_layout_and_archive_gives_the_same_tree(scenes, tmp_path):
    original = original_layout(scenes, tmp_path / "scene_categories")
    with tarfile.open(tmp_path / "flat.tar.gz", "w:gz") as tar:
        tar.add(original, "scene_categories")
    sources = [scenes, original, zip_folder(scenes, tmp_path / "split"), tmp_path / "flat.tar.gz"]
    trees = [
        files_below(prepare("15scene", source, to=tmp_path / f"result{index}", progress=False))
        for index, source in enumerate(sources)
    ]
    assert len(trees[0]) == 15 * 12 + 1  # the images and split.csv
    assert trees[1:] == trees[:1] * 3


def test_prepared_images_are_those_of_the_source_in_the_split_of_the_manifest(scenes, out):
    folder = prepare("15scene", scenes, to=out / "result", progress=False)
    for split, source_split, count in (("train", "train", 2), ("val", "validation", 3), ("test", "validation", 7)):
        for class_name in CLASS_NAMES["15scene"]:
            paths = list((folder / split / class_name).iterdir())
            assert len(paths) == count
            for path in paths:
                assert path.read_bytes() == (scenes / source_split / class_name / path.name).read_bytes()


def test_files_copied_from_a_read_only_source_can_be_written(scenes, out):
    for path in scenes.rglob("*.jpg"):
        path.chmod(0o444)
    folder = prepare("15scene", scenes, to=out / "result", progress=False)
    assert all(path.stat().st_mode & 0o200 for path in folder.rglob("*.jpg"))


def test_hidden_files_and_files_that_are_no_images_are_passed_over(scenes, out):
    for name in ("Thumbs.db", ".DS_Store", "._image_0001.jpg", "notes.txt"):
        (scenes / "train" / "coast" / name).write_text("no image")
    (scenes / "__MACOSX" / "coast").mkdir(parents=True)
    (scenes / "__MACOSX" / "coast" / "image_0099.jpg").write_text("no image")
    folder = prepare("15scene", scenes, to=out / "result", progress=False)
    assert len(list((folder / "train" / "coast").iterdir())) == 2


def test_second_run_says_there_is_nothing_to_do_and_changes_nothing(scenes, out, capsys):
    arguments = ["15scene", "--source", str(scenes), "--to", str(out / "result")]
    assert main(arguments) == 0
    assert "15scene: 30 train, 150 validation (45 val + 105 test)" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("damage", ["removed", "added", "cut", "emptied"])
def test_damage_to_a_prepared_folder_is_named_and_nothing_is_deleted(scenes, out, capsys, damage):
    folder = prepare("15scene", scenes, to=out / "result", progress=False)
    path = folder / "train" / "coast" / "image_0001.jpg"
    if damage == "removed":
        path.unlink()
        words = ["train/coast/image_0001.jpg is missing"]
    elif damage == "added":
        shutil.copyfile(path, path.with_name("mine.jpg"))
        words = ["train/coast/mine.jpg does not belong here"]
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
        words = ["train/coast/image_0001.jpg has 50 bytes"]
    else:
        shutil.rmtree(path.parent)
        words = ["class train/coast has no images, but should have 2"]
    before = files_below(folder)
    with pytest.raises(ValueError, match="delete this one") as raised:
        prepare("15scene", scenes, to=folder, progress=False)
    assert all(word in str(raised.value) for word in words)
    assert files_below(folder) == before


def test_a_folder_that_was_not_prepared_here_is_left_alone(scenes, out):
    (out / "result").mkdir()
    (out / "result" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="was not prepared here"):
        prepare("15scene", scenes, to=out / "result", progress=False)
    assert files_below(out) == {"result/mine.txt": b"mine"}


def test_a_folder_of_another_data_set_is_not_taken_for_this_one(scenes, out):
    folder = prepare("15scene", scenes, to=out / "result", progress=False)
    with pytest.raises(ValueError, match="another data set than nature"):
        prepare("nature", scenes, to=folder, progress=False)


def test_a_folder_split_by_another_manifest_is_not_taken_for_this_one(scenes, out):
    folder = prepare("15scene", scenes, to=out / "result", progress=False)
    manifest = prepare_module.MANIFEST
    manifest.write_text(manifest.read_text().replace("coast,image_0001.jpg,train", "coast,image_0001.jpg,val"))
    with pytest.raises(ValueError, match="is not split as"):
        prepare("15scene", scenes, to=folder, progress=False)


def test_truncated_image_is_refused_by_name(scenes, out, capsys):
    path = scenes / "validation" / "forest" / "image_0005.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    words = ["validation/forest/image_0005.jpg cannot be decoded", "--skip-bad-images"]
    assert_refused(out, capsys, "15scene", "--source", scenes, words=words)


def test_renamed_image_is_refused_by_both_names(scenes, out, capsys):
    (scenes / "train" / "coast" / "image_0001.jpg").rename(scenes / "train" / "coast" / "beach.jpg")
    words = ["coast/image_0001.jpg is missing", "coast/beach.jpg does not belong here"]
    assert_refused(out, capsys, "15scene", "--source", scenes, words=words)


def test_emptied_class_is_refused_by_name(scenes, out, capsys):
    for path in scenes.glob("*/kitchen/*"):
        path.unlink()
    words = ["class kitchen has no images, but should have 12"]
    assert_refused(out, capsys, "15scene", "--source", scenes, words=words)


def test_image_in_train_and_validation_is_refused(scenes, out, capsys):
    path = scenes / "train" / "coast" / "image_0001.jpg"
    shutil.copyfile(path, scenes / "validation" / "coast" / path.name)
    assert_refused(out, capsys, "15scene", "--source", scenes, words=["coast/image_0001.jpg twice"])


def test_skip_bad_images_leaves_them_out_names_them_and_remembers(scenes, out, capsys):
    path = scenes / "train" / "forest" / "image_0001.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    arguments = ["15scene", "--source", str(scenes), "--to", str(out / "result")]
    assert main([*arguments, "--skip-bad-images"]) == 0
    told = capsys.readouterr().out
    assert "left out as bad: train/forest/image_0001.jpg" in told
    assert "29 train, 150 validation (45 val + 105 test), 1 left out as bad" in told
    assert not (out / "result" / "train" / "forest" / "image_0001.jpg").exists()
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_class_that_bad_images_empty_is_refused(scenes, out, capsys):
    for path in (scenes / "train" / "forest").iterdir():
        path.write_text("no image")
    words = ["class forest has no images for train"]
    assert_refused(out, capsys, "15scene", "--source", scenes, "--skip-bad-images", words=words)


def test_full_disk_is_told_in_a_sentence_and_leaves_nothing(scenes, out, capsys, monkeypatch):
    def copyfile(source, to):
        Path(to).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    assert_refused(out, capsys, "15scene", "--source", scenes, words=["disk", "is full"])


# ------------------------------------------------------------------------------------------------------------- archives


def write_tar(path, name, **attributes):
    member = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    with tarfile.open(path, "w") as tar:
        good = tarfile.TarInfo("good.txt")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        tar.addfile(member, io.BytesIO(b""))
    return path


def write_zip(path, name, mode=0o100644):
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("good.txt", "good")
        member = zipfile.ZipInfo(name)
        member.create_system, member.external_attr = 3, mode << 16
        zipped.writestr(member, "../../outside")
    return path


@pytest.mark.parametrize(
    "write, name, attributes",
    [
        (write_zip, "../evil.jpg", {}),
        (write_zip, "coast/../../evil.jpg", {}),
        (write_zip, "/tmp/evil.jpg", {}),
        (write_zip, "C:/evil.jpg", {}),
        (write_zip, "link", {"mode": 0o120777}),
        (write_tar, "../evil.jpg", {}),
        (write_tar, "/tmp/evil.jpg", {}),
        (write_tar, "link", {"type": tarfile.SYMTYPE, "linkname": "../../outside"}),
        (write_tar, "link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        (write_tar, "hard", {"type": tarfile.LNKTYPE, "linkname": "../../outside"}),
        (write_tar, "device", {"type": tarfile.CHRTYPE}),
    ],
)
def test_archive_that_leads_outside_is_refused_before_anything_is_written(
    write, name, attributes, tmp_path, out, capsys
):
    archive = write(tmp_path / "archive", name, **attributes)
    with pytest.raises(ValueError, match="is refused"):
        unpack(archive, out / "unpacked")
    assert list(out.iterdir()) == []
    assert_refused(out, capsys, "15scene", "--source", archive, words=[str(archive), repr(name)])


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path, out, monkeypatch):
    monkeypatch.setattr(archives, "UNPACKED_BYTES_LIMIT", 3)
    with pytest.raises(ValueError, match="would unpack to"):
        unpack(write_zip(tmp_path / "archive.zip", "more.txt"), out / "unpacked")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_archive_cut_short_is_refused(kind, scenes, tmp_path, out, capsys):
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), kind, scenes))
    archive.write_bytes(archive.read_bytes()[:-2000])
    assert_refused(out, capsys, "15scene", "--source", archive, words=[str(archive), "get it again"])


def test_file_that_is_no_archive_is_refused(tmp_path, out, capsys):
    (tmp_path / "scenes.rar").write_bytes(b"Rar!" * 1000)
    words = ["scenes.rar is neither a zip nor a tar archive"]
    assert_refused(out, capsys, "15scene", "--source", tmp_path / "scenes.rar", words=words)


def test_checksum_of_an_archive_is_compared(scenes, tmp_path, out, capsys):
    archive = zip_folder(scenes, tmp_path / "archive")
    right = hashlib.sha256(archive.read_bytes()).hexdigest()
    arguments = ["15scene", "--source", archive, "--checksum"]
    wrong = "md5:" + "0" * 32
    assert_refused(out, capsys, *arguments, wrong, words=[str(archive), "wrong checksum", wrong])
    assert_refused(out, capsys, *arguments, "md5:12", words=["'md5:12'", "32 hex digits"])
    assert_refused(out, capsys, "15scene", "--source", scenes, "--checksum", wrong, words=["leave out --checksum"])
    prepare("15scene", archive, to=out / "result", checksum=f"sha256:{right}", progress=False)


def test_bad_names_are_answered_with_the_right_ones(out, capsys):
    assert_refused(out, capsys, "15scenes", words=["'15scenes'", "15scene, nature, cifar10, synthetic"])
    assert_refused(out, capsys, "15scene", "--source", "/no/such", words=["there is no /no/such"])
    assert_refused(out, capsys, "nature", "--source", out.parent, words=["no images in folders", "buildings, forest"])
    assert_refused(out, capsys, "nature", words=["--source"])


# ------------------------------------------------------------------------------------------------------------- download


@pytest.fixture
def server():
    """A web server on this machine.  files: {path: bytes}; ranges: it knows Range; cut_at: where it breaks off."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = state.files.get(self.path)
            start = 0
            state.requests.append(self.headers.get("Range"))
            if body is None:
                return self.send_error(404)
            if state.ranges and self.headers.get("Range"):
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    return self.send_error(416)
                self.send_response(206)
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : state.cut_at])

        def log_message(self, *arguments):
            pass

    state = types.SimpleNamespace(files={}, ranges=True, cut_at=None, requests=[])
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{web.server_port}"
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield state
    web.shutdown()
    web.server_close()


BODY = random.Random(0).randbytes(300_000)
BODY_CHECKSUM = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_off_download_is_completed_by_the_next(ranges, server, out):
    server.files, server.ranges, server.cut_at = {"/file": BODY}, ranges, 100_000
    with pytest.raises(ConnectionError, match="broke off after 100,000 of 300,000 bytes"):
        download(f"{server.address}/file", out / "file", BODY_CHECKSUM, progress=False)
    assert files_below(out) == {"file.part": BODY[:100_000]}
    server.cut_at = None
    download(f"{server.address}/file", out / "file", BODY_CHECKSUM, progress=False)
    assert files_below(out) == {"file": BODY}
    assert server.requests == [None, "bytes=100000-"]


def test_part_that_is_longer_than_the_file_is_begun_again(server, out):
    server.files = {"/file": BODY}
    (out / "file.part").write_bytes(b"x" * 400_000)
    download(f"{server.address}/file", out / "file", BODY_CHECKSUM, progress=False)
    assert files_below(out) == {"file": BODY}


def test_download_with_a_wrong_checksum_leaves_nothing(server, out):
    server.files = {"/file": BODY}
    with pytest.raises(ValueError, match=f"{server.address}/file has the wrong checksum"):
        download(f"{server.address}/file", out / "file", "md5:" + "0" * 32, progress=False)
    assert list(out.iterdir()) == []


def test_address_without_file_or_server_says_how_to_go_on(server, out, capsys):
    words = ["HTTP 404", "--source", "figshare"]
    assert_refused(out, capsys, "15scene", "--source", f"{server.address}/none.zip", words=words)
    closed = "http://127.0.0.1:9/scenes.zip"
    assert_refused(out, capsys, "15scene", "--source", closed, words=[closed, "refused", "--source"])


def test_data_set_is_downloaded_unpacked_and_the_archive_removed(server, scenes, tmp_path, out):
    server.files = {"/scenes": zip_folder(scenes, tmp_path / "archive").read_bytes()}
    server.cut_at = 5000
    with pytest.raises(ConnectionError):
        prepare("15scene", f"{server.address}/scenes", to=out / "result", progress=False)
    assert [path.stat().st_size for path in out.iterdir()] == [5000]  # the part alone, to go on from
    server.cut_at = None
    prepare("15scene", f"{server.address}/scenes", to=out / "result", progress=False)
    assert [path.name for path in out.iterdir()] == ["result"]


def test_download_that_is_no_archive_is_not_kept(server, out, capsys):
    server.files = {"/scenes.zip": b"<html>moved</html>"}
    assert_refused(out, capsys, "15scene", "--source", f"{server.address}/scenes.zip", words=["scenes.zip is neither"])


# --------------------------------------------------------------------------------------------------------------- nature


def counts_of(folder):
    return Counter(path.parts[-3:-1] for path in folder.glob("*/*/*"))


@pytest.mark.parametrize(
    "source_counts, expected",
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
    folder = prepare("nature", tmp_path / "nature", to=out / "result", progress=False)
    assert counts_of(folder) == {
        (split, class_name): count for split, count in expected.items() for class_name in CLASS_NAMES["nature"]
    }
    with open(folder / "split.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * sum(expected.values()) == len({(row["class"], row["file_name"]) for row in rows})
    for row in rows:
        assert (folder / row["split"] / row["class"] / row["file_name"]).exists()
    for source_test_image in (tmp_path / "nature").glob("**/*test/*/*.png"):
        assert (folder / "test" / source_test_image.parent.name / source_test_image.name).exists()


def prepare_nature(source, to):
    return prepare("nature", source, to=to, progress=False)


def test_two_processes_that_prepare_the_same_folder_make_it_once_and_leave_nothing_else(tmp_path, out):
    write_nature(tmp_path / "nature", {".": 30})
    with ProcessPoolExecutor(2) as pool:
        results = [pool.submit(prepare_nature, tmp_path / "nature", out / "result") for _ in range(2)]
        assert [each.result() for each in results] == [out / "result"] * 2
    assert [path.name for path in out.iterdir()] == ["result"]


def test_what_a_killed_preparation_left_is_removed_by_the_next(tmp_path, out):
    write_nature(tmp_path / "nature", {".": 20})
    for prepared_already in (False, True):
        (out / ".result.partial-abc" / "result").mkdir(parents=True)
        prepare_nature(tmp_path / "nature", out / "result")
        assert [path.name for path in out.iterdir()] == ["result"], prepared_already


def test_nature_split_does_not_depend_on_where_or_when_it_is_made(tmp_path, out):
    write_nature(tmp_path / "nature", {".": 20})
    folders = [prepare("nature", tmp_path / "nature", to=out / name, progress=False) for name in ("one", "two")]
    assert files_below(folders[0]) == files_below(folders[1])


def test_nature_tells_one_name_and_one_image_in_two_splits_apart(tmp_path, out, capsys):
    write_nature(tmp_path / "nature", {"train": 6, "test": 2})
    write_image(tmp_path / "nature" / "train" / "sea" / "1.png", seed=1001)
    write_image(tmp_path / "nature" / "test" / "sea" / "1.png", seed=1002)
    shutil.copyfile(tmp_path / "nature/test/sea/1.png", tmp_path / "nature/test/sea/again.png")  # within a split: fine
    shutil.copyfile(tmp_path / "nature/test/sea/45.png", tmp_path / "nature/train/forest/same.png")
    folder = prepare("nature", tmp_path / "nature", to=out / "result")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("the same bytes")]
    assert len(told) == 1 and "test/sea/45.png" in told[0] and "forest/same.png" in told[0]
    assert [{image.class_name for image in same} for same in duplicates_across_splits(folder)] == [{"sea", "forest"}]
    assert (folder / "test" / "sea" / "test_1.png").exists()
    assert len(list(folder.glob("*/sea/train_1.png"))) == 1


@pytest.mark.parametrize(("val", "test"), [(11, 17), (0.11, 17), (0.11, 0.17)])
def test_nature_is_split_into_exactly_the_sizes_asked_for_class_by_class(val, test, tmp_path, out):
    write_nature(tmp_path / "nature", {"seg_train": 12, "seg_test": 4})
    for number in range(4):  # classes of unequal size: 20 seas, 16 of the others, 100 in all
        write_image(tmp_path / "nature" / "seg_train" / "sea" / f"more_{number}.png", seed=1000 + number)
    folder = prepare("nature", tmp_path / "nature", to=out / "result", progress=False, val=val, test=test)
    counts = counts_of(folder)
    sizes = {split: sum(counts[split, name] for name in CLASS_NAMES["nature"]) for split in ("train", "val", "test")}
    assert sizes == {"train": 72, "val": 11, "test": 17}
    for split, size in sizes.items():
        for name in CLASS_NAMES["nature"]:
            assert abs(counts[split, name] - size * (20 if name == "sea" else 16) / 100) < 1.5
    assert prepare("nature", tmp_path / "nature", to=folder, progress=False, val=11, test=17) == folder
    with pytest.raises(ValueError, match="has 11 images for val, and 12 are asked for"):
        prepare("nature", tmp_path / "nature", to=folder, progress=False, val=12, test=17)


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


def test_nature_class_in_one_split_only_is_refused(tmp_path, out, capsys):
    write_nature(tmp_path / "nature", {"train": 6, "test": 2})
    shutil.rmtree(tmp_path / "nature" / "test" / "sea")
    assert_refused(out, capsys, "nature", "--source", tmp_path / "nature", words=["class sea has no images for test"])


# ----------------------------------------------------------------------------------------------- CIFAR-10 and synthetic


def test_cifar10_png_tree_keeps_its_names_and_splits(tmp_path, out):
    for class_index, class_name in enumerate(CLASS_NAMES["cifar10"]):
        for split in ("train", "test"):
            write_image(tmp_path / "cifar" / split / class_name / f"{class_index:05d}.png", seed=class_index)
    folder = prepare("cifar10", tmp_path / "cifar", to=out / "result", progress=False)
    images = {name: content for name, content in files_below(folder).items() if name != "split.csv"}
    assert images == files_below(tmp_path / "cifar")


@pytest.fixture
def cifar10_batches(tmp_path, monkeypatch):
    """A cifar-10-batches-py of one batch each for train and test, with the checksums that torchvision is to expect."""
    from torchvision.datasets import CIFAR10

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


def test_official_cifar10_archive_becomes_png(cifar10_batches, tmp_path, out, capsys):
    pixels, batches = cifar10_batches
    archive = shutil.make_archive(str(tmp_path / "cifar-10-python"), "gztar", batches.parent)
    folder = prepare("cifar10", archive, to=out / "result")
    assert "cifar10: 10 train, 10 test" in capsys.readouterr().out
    assert not (folder / "val").exists()
    with Image.open(folder / "train" / "bird" / "00002.png") as image:
        assert np.array_equal(np.asarray(image), pixels[2].reshape(3, 32, 32).transpose(1, 2, 0))
    assert (folder / "test" / "truck" / "00000.png").exists()


def test_cifar10_batches_with_other_bytes_are_never_opened(cifar10_batches, out, capsys):
    _, batches = cifar10_batches
    (batches / "data_batch_1").write_bytes(b"cos\nsystem\n")
    assert_refused(out, capsys, "cifar10", "--source", batches, words=["is not the official CIFAR-10"])


def test_synthetic_scenes_are_drawn_into_the_same_layout(out, monkeypatch, capsys):
    def write_scenes(folder):
        for split, count in (("train", 2), ("val", 1), ("test", 1)):
            for index in range(count):
                for class_name in ("waves", "towers"):
                    write_image(folder / split / class_name / f"{index}.png", seed=index)

    monkeypatch.setitem(sys.modules, "data.synthetic", types.SimpleNamespace(write_scenes=write_scenes))
    prepare("synthetic", to=out / "result")
    assert "synthetic: 4 train, 4 validation (2 val + 2 test)" in capsys.readouterr().out
    prepare("synthetic", to=out / "result")
    assert "nothing to do" in capsys.readouterr().out
    shutil.rmtree(out / "result")
    assert_refused(out, capsys, "synthetic", "--source", "scenes", words=["leave out --source"])
