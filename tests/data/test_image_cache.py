import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.models import EfficientNet_B0_Weights

from data import scenes
from data.prepare import CLASS_NAMES, main
from data.image_cache import decode, load_scenes, load_splits, locate


@pytest.fixture(autouse=True)
def stores(tmp_path, monkeypatch):
    """Stores of a test's own."""
    monkeypatch.setattr(scenes, "STORES", tmp_path / "stores")
    return tmp_path / "stores"


def load(folder, size=32, **arguments):
    return load_scenes(folder, size, progress=False, **arguments)


def test_squash_equals_the_plain_image_folder_with_resize_and_to_tensor(scene_folder):
    plain = ImageFolder(scene_folder / "train", v1.Compose([v1.Grayscale(), v1.Resize((32, 32)), v1.ToTensor()]))
    stored = load(scene_folder / "train")
    assert stored.class_names == tuple(plain.classes)
    assert len(stored) == len(plain) == 36
    for index, (image, label) in enumerate(plain):
        assert torch.equal(torch.from_numpy(stored.images[index] / np.float32(255)), image)
        assert stored.labels[index] == label


def test_imagenet_equals_torchvisions_own_preset(scene_folder):
    preset = EfficientNet_B0_Weights.IMAGENET1K_V1.transforms(mean=(0, 0, 0), std=(1, 1, 1))
    path = sorted((scene_folder / "train" / "striped").iterdir())[0]
    expected = preset(Image.open(path).convert("RGB"))[:1]
    assert torch.allclose(torch.from_numpy(decode(path, 224, "imagenet") / np.float32(255)), expected, atol=1e-6)


def test_squash_sees_the_whole_image_and_imagenet_its_centre(tmp_path):
    image = np.zeros((64, 128), dtype=np.uint8)
    image[:, :16] = 255
    Image.fromarray(image).save(tmp_path / "left_edge.png")
    assert decode(tmp_path / "left_edge.png", 32, "squash").max() == 255
    assert decode(tmp_path / "left_edge.png", 32, "imagenet").max() == 0


def test_grey_images_keep_one_channel_and_coloured_ones_three(scene_folder):
    assert load(scene_folder / "train").images.shape == (36, 1, 32, 32)
    red = Image.new("RGB", (40, 40), (255, 0, 0))
    red.save(scene_folder / "train" / "dark" / "red.png")
    coloured = load(scene_folder / "train")
    assert coloured.images.shape == (37, 3, 32, 32)
    assert (coloured.images[coloured.names.index("dark/red.png")] == np.array([255, 0, 0])[:, None, None]).all()
    grey = coloured.images[coloured.names.index("dark/image_0000.jpg")]
    assert (grey[0] == grey[1]).all()


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70_000)])
def test_an_image_whose_range_is_not_known_is_refused_and_not_drawn_black_or_white(tmp_path, mode, value):
    Image.new(mode, (40, 40), value).save(tmp_path / "image.tiff")
    with pytest.raises(ValueError, match="image.tiff cannot be decoded .32 bits a pixel"):
        decode(tmp_path / "image.tiff", 32, "squash")


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_images_of_every_mode_are_read_with_their_grey(tmp_path, mode, channels):
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 40), 204 * 256, dtype=np.uint16))
    else:
        image = Image.new("L", (40, 40), 204).convert("RGB").convert(mode)  # 204 is in the web palette of P
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    array = decode(path, 32, "squash")
    assert array.shape == (channels, 32, 32)
    assert abs(array.astype(int) - 204).max() <= 2


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path):
    image = Image.fromarray(np.repeat(np.array([[0], [255]], dtype=np.uint8), 20, axis=0).repeat(40, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.jpg", exif=exif)
    array = decode(tmp_path / "turned.jpg", 32, "squash")
    assert array[0, :10].mean() > 200
    assert array[0, -10:].mean() < 50


def test_a_store_is_made_once_and_mapped_not_read(scene_folder, stores, monkeypatch):
    load(scene_folder / "train")
    monkeypatch.setattr(scenes, "decode", lambda *_: pytest.fail("decoded again"))
    again = load(scene_folder / "train")
    assert isinstance(again.images, np.memmap)
    assert len(list(stores.glob("*.npy"))) == 1


@pytest.mark.parametrize("change", ["write", "add", "remove", "rename"])
def test_a_changed_file_makes_the_store_anew(scene_folder, stores, change):
    before = load(scene_folder / "train")
    path = scene_folder / "train" / "dark" / "image_0003.jpg"
    if change == "write":
        Image.new("L", (40, 40), 222).save(path)
    elif change == "add":
        Image.new("L", (40, 40), 222).save(path.with_name("new.jpg"))
    elif change == "remove":
        path.unlink()
    else:
        path.rename(path.with_name("renamed.jpg"))
    after = load(scene_folder / "train")
    assert after.fingerprint != before.fingerprint
    if change == "write":
        assert abs(after.images[3].mean() - 222) < 2
    else:
        assert after.names != before.names
    assert len(list(stores.glob("*.npy"))) == 1, "the old store is gone"


def test_the_fingerprint_does_not_depend_on_where_when_or_how_large(scene_folder, tmp_path):
    first = load(scene_folder / "train")
    for path in (scene_folder / "train").rglob("*.jpg"):
        os.utime(path, (0, 0))
    scene_folder.rename(tmp_path / "moved")
    assert load(tmp_path / "moved" / "train", size=48).fingerprint == first.fingerprint


def test_sizes_and_rules_have_stores_of_their_own(scene_folder, stores):
    for size, resize in ((32, "squash"), (48, "squash"), (32, "imagenet")):
        assert load(scene_folder / "train", size=size, resize=resize).images.shape[-1] == size
    assert len(list(stores.glob("*.npy"))) == 3


def test_a_build_that_was_interrupted_goes_on_and_ends_as_one_that_was_not(scene_folder, stores, monkeypatch, tmp_path):
    monkeypatch.setattr(scenes, "CHUNK", 5)
    undisturbed = load(scene_folder / "train", stores=tmp_path / "undisturbed")
    decoded = []

    def interrupted(path, size, resize):
        decoded.append(path)
        if path.name == "image_0005.jpg" and path.parent.name == "light" and decoded.count(path) == 1:
            raise KeyboardInterrupt
        return decode(path, size, resize)

    monkeypatch.setattr(scenes, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(scene_folder / "train")
    assert not list(stores.glob("*.json"))  # there is no store yet
    with next(stores.glob("*.jsonl")).open("a") as journal:
        journal.write('[["striped/image')  # a line that was being written
    before = len(decoded)
    resumed = load(scene_folder / "train")
    assert len(decoded) - before == 36 - 15  # the three chunks before the interruption were not decoded again
    assert np.array_equal(resumed.images, undisturbed.images)
    assert (resumed.names, resumed.fingerprint) == (undisturbed.names, undisturbed.fingerprint)
    assert sorted(path.suffix for path in stores.iterdir()) == [".json", ".lock", ".npy"]


def build_and_die(folder, stores, log, dies_at, **arguments):
    """Build in chunks of 5 and write down what is decoded; at the dies_at-th decoding the process is gone."""
    decodings = itertools.count(1)  # each thread's next() is a number of its own; len() of a shared list is not

    def decode_and_die(path, size, resize):
        with log.open("a") as file:
            file.write(f"{path.name} of {path.parent.name}\n")
        if next(decodings) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path, size, resize)

    scenes.CHUNK, scenes.decode, scenes.STORES = 5, decode_and_die, stores
    load(folder, **arguments)


def build_in_a_process(*arguments, **more):
    process = multiprocessing.get_context("fork").Process(target=build_and_die, args=arguments, kwargs=more)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("skip_bad_images", [False, True])
def test_a_build_that_was_killed_again_and_again_ends_as_one_that_was_not(
    scene_folder, stores, tmp_path, skip_bad_images
):
    arguments, log = {"skip_bad_images": skip_bad_images}, tmp_path / "log"
    if skip_bad_images:
        for name in ("dark/image_0001.jpg", "striped/image_0011.jpg"):
            (scene_folder / "train" / name).write_bytes(b"")
    undisturbed = load(scene_folder / "train", stores=tmp_path / "undisturbed", **arguments)
    for dies_at in (3, 13, 12):  # in the first chunk, in the third, and two whole chunks later
        assert build_in_a_process(scene_folder / "train", stores, log, dies_at, **arguments) == -signal.SIGKILL
        assert not list(stores.glob("*.json"))
        with next(stores.glob("*.jsonl")).open("a") as journal:
            journal.write('[["striped/image')  # a line that was being written
    assert build_in_a_process(scene_folder / "train", stores, log, 1000, **arguments) == 0
    times = Counter(log.read_text().splitlines())
    whole_chunks = [f"image_{number:04d}.jpg of dark" for number in range(5, 10)]
    whole_chunks += [f"image_{number:04d}.jpg of light" for number in range(3, 8)]
    assert len(times) == 36
    assert all(times[name] == 1 for name in whole_chunks)
    resumed = load(scene_folder / "train", **arguments)
    assert (resumed.names, resumed.fingerprint) == (undisturbed.names, undisturbed.fingerprint)
    assert resumed.skipped == undisturbed.skipped
    files = [next(folder.glob("*.npy")).read_bytes() for folder in (stores, tmp_path / "undisturbed")]
    assert files[0] == files[1]
    assert sorted(path.suffix for path in stores.iterdir()) == [".json", ".lock", ".npy"]


def interrupt_a_build(folder, monkeypatch):
    """Build in chunks of 5 until the first image of the class light: two chunks are whole."""

    def interrupted(path, size, resize):
        if path.parent.name == "light":
            raise KeyboardInterrupt
        return decode(path, size, resize)

    monkeypatch.setattr(scenes, "CHUNK", 5)
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(folder)


def add_a_line_of_zeros(stores):
    with next(stores.glob("*.jsonl")).open("ab") as file:
        file.write(bytes(9) + b"\n")


@pytest.mark.parametrize(
    "damage",
    [
        add_a_line_of_zeros,
        lambda stores: next(stores.glob("*.jsonl")).write_bytes(b""),
        lambda stores: next(stores.glob("*.building.npy")).unlink(),
        lambda stores: os.truncate(next(stores.glob("*.building.npy")), 1000),
    ],
    ids=["a line of zeros", "an empty journal", "no images", "images cut short"],
)
def test_what_a_crash_of_the_machine_damaged_is_built_anew(scene_folder, stores, tmp_path, monkeypatch, damage):
    undisturbed = load(scene_folder / "train", stores=tmp_path / "undisturbed")
    interrupt_a_build(scene_folder / "train", monkeypatch)
    damage(stores)
    with monkeypatch.context() as patch:  # and is interrupted again, before anything is decoded

        def interrupted(*_):
            raise KeyboardInterrupt

        patch.setattr(os, "posix_fallocate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(scene_folder / "train")
    resumed = load(scene_folder / "train")
    assert np.array_equal(resumed.images, undisturbed.images)
    assert resumed.fingerprint == undisturbed.fingerprint


def test_what_an_interrupted_build_decoded_of_other_files_is_thrown_away(scene_folder, stores, monkeypatch):
    monkeypatch.setattr(scenes, "CHUNK", 5)

    def interrupted(path, size, resize):
        if path.parent.name == "light":
            raise KeyboardInterrupt
        return decode(path, size, resize)

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(scene_folder / "train")
    first = scene_folder / "train" / "dark" / "image_0000.jpg"
    Image.new("L", (40, 48), 99).save(first)
    assert (load(scene_folder / "train").images[0] == 99).all()


def test_memory_holds_one_chunk_of_decoded_images(scene_folder, monkeypatch):
    monkeypatch.setattr(scenes, "CHUNK", 4)
    alive, most = set(), []

    class Counted(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def counted(path, size, resize):
        image = decode(path, size, resize).view(Counted)
        alive.add(id(image))
        most.append(len(alive))
        return image

    monkeypatch.setattr(scenes, "decode", counted)
    load(scene_folder / "train")
    assert max(most) <= 2 * 4  # the chunk that is decoded, and at most that before it


def test_images_that_are_left_out_leave_no_gap(scene_folder, monkeypatch):
    monkeypatch.setattr(scenes, "CHUNK", 5)
    whole = load(scene_folder / "train")
    for number in (0, 7):
        (scene_folder / f"train/light/image_{number:04d}.jpg").write_bytes(b"")
    found = load(scene_folder / "train", skip_bad_images=True)
    kept = [index for index, name in enumerate(whole.names) if name in found.names]
    assert len(found) == 34
    assert found.skipped == ("light/image_0000.jpg", "light/image_0007.jpg")
    assert np.array_equal(found.images, whole.images[kept])


def test_a_disk_that_is_full_is_told_before_anything_is_decoded(scene_folder, stores, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(scenes, "decode", lambda *_: pytest.fail("decoded for nothing"))
    with pytest.raises(OSError, match="No space left"):
        load(scene_folder / "train")
    assert [path.suffix for path in stores.iterdir()] == [".lock"]


def test_a_subset_reads_nothing_and_gives_what_a_copy_would(scene_folder):
    whole = load(scene_folder / "train")
    part = whole.subset(np.arange(30, 3, -3))
    of_part = part.subset([4, 0, 2])
    for found, numbers in ((part, np.arange(30, 3, -3)), (of_part, [18, 30, 24])):
        assert np.shares_memory(found.images.images, whole.images)
        expected = np.array(whole.images)[numbers]
        assert found.images.shape == expected.shape
        assert np.array_equal(np.asarray(found.images), expected)
        assert np.array_equal(found.images[1:3], expected[1:3])
        assert np.array_equal(found.images[[0, 2]], expected[[0, 2]])
        assert np.array_equal(found.images[-1], expected[-1])
        assert [whole.names[number] for number in numbers] == list(found.names)


EPOCH_IN_LITTLE_MEMORY = """
import resource
import numpy as np
from dataclasses import replace
from data import scenes
from supervised import dataloader
from supervised.dataloader import build_loaders
from supervised.settings import BASE

scenes.STORES = scenes.Path("stores")
dataloader.EVALUATION_BATCH = 4  # a batch of 64 would be a good part of these few images
row = replace(BASE, data="scenes", image_size=128, batch_size=4)
loaders = build_loaders(row, progress=False)
next(iter(loaders.train))  # what an epoch needs once
size = sum(path.stat().st_size for path in scenes.STORES.glob("*.npy"))
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()  # data and stack
resource.setrlimit(resource.RLIMIT_DATA, (used + size // 4, -1))
seen = {}
for name in ("train", "val", "test"):
    seen[name] = sum(len(labels) for _, labels in getattr(loaders, name))
assert seen == {"train": 3 * 800, "val": 3 * 240, "test": 3 * 560}, seen
try:
    np.array(loaders.train.dataset.scenes.images)
    print("there was memory for all")
except MemoryError:
    print("seen")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limit is Linux's")
def test_an_epoch_over_four_times_the_memory_there_is(tmp_path):
    for split in ("train", "val"):
        for class_name in ("a", "b", "c"):
            (tmp_path / "scenes" / split / class_name).mkdir(parents=True)
    contents = io.BytesIO()
    Image.new("L", (2, 2), 9).save(contents, "bmp")
    (tmp_path / "one.bmp").write_bytes(contents.getvalue())
    for split in ("train", "val"):
        for class_name in ("a", "b", "c"):
            for number in range(800):
                os.link(tmp_path / "one.bmp", tmp_path / "scenes" / split / class_name / f"{number}.bmp")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", EPOCH_IN_LITTLE_MEMORY]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "seen\n", done.stderr


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"this is text",
        lambda data: (
            b"\x89PNG\r\n\x1a\n"
            + b"\x00\x00\x00\rIHDR"
            + (30000).to_bytes(4, "big") * 2
            + b"\x08\x00\x00\x00\x00"
            + zlib.crc32(b"IHDR" + (30000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00").to_bytes(4, "big")
        ),
    ],
    ids=["empty", "truncated", "text", "decompression bomb"],
)
def test_an_image_that_cannot_be_decoded_is_named_or_left_out(scene_folder, stores, damage):
    path = scene_folder / "train" / "light" / "image_0002.jpg"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"light/image_0002\.jpg cannot be decoded.*--skip-bad-images"):
        load(scene_folder / "train")
    assert not [path for path in stores.iterdir() if path.suffix != ".lock"]
    scenes_left = load(scene_folder / "train", skip_bad_images=True)
    assert len(scenes_left) == 35
    assert scenes_left.skipped == ("light/image_0002.jpg",)
    assert scenes_left.images.shape[0] == len(scenes_left.names) == 35
    assert "light/image_0002.jpg" not in scenes_left.names


def test_what_a_killed_build_left_is_removed_by_the_next(scene_folder, stores):
    load(scene_folder / "train")
    index = next(stores.glob("*.json"))
    stray = index.with_suffix(".999999.npy")
    stray.write_bytes(b"half")
    index.unlink()
    load(scene_folder / "train")
    assert not stray.exists()
    assert len(list(stores.glob("*.npy"))) == 1


def test_two_processes_that_need_the_same_store_make_it_once(scene_folder, stores):
    arguments = [scene_folder / "train"] * 4, [32] * 4, ["squash"] * 4, [stores] * 4, [False] * 4, [False] * 4
    with ProcessPoolExecutor(4) as pool:
        loaded = list(pool.map(load_scenes, *arguments))
    assert all(np.array_equal(each.images, loaded[0].images) for each in loaded)
    assert len(list(stores.glob("*.npy"))) == 1


def test_an_index_cut_in_the_middle_is_made_anew(scene_folder, stores):
    first = load(scene_folder / "train")
    index = next(stores.glob("*.json"))
    index.write_text(index.read_text()[:50])
    assert load(scene_folder / "train").names == first.names
    assert json.loads(index.read_text())["fingerprint"] == first.fingerprint


def test_hidden_files_and_files_that_are_no_images_are_passed_over(scene_folder):
    (scene_folder / "train" / "dark" / "Thumbs.db").write_bytes(b"x")
    (scene_folder / "train" / "dark" / "._image.jpg").write_bytes(b"x")
    (scene_folder / "train" / ".cache").mkdir()
    assert len(load(scene_folder / "train")) == 36


def test_splits_come_with_equal_classes(scene_folder):
    splits = load_splits(scene_folder, 32, progress=False)
    assert {split: len(each) for split, each in splits.items()} == {"train": 36, "val": 18, "test": 24}
    assert len({each.class_names for each in splits.values()}) == 1


@pytest.mark.parametrize("folder", ["val", "validation", "valid", "test"])
def test_one_folder_besides_train_is_divided_into_val_and_test(scene_folder, folder):
    for path in (scene_folder / "val").rglob("*.jpg"):
        path.rename(scene_folder / "test" / path.parent.name / f"more_{path.name}")
    shutil.rmtree(scene_folder / "val")
    (scene_folder / "test").rename(scene_folder / folder)
    splits = load_splits(scene_folder, 32, progress=False)
    assert (np.bincount(splits["val"].labels) == 4).all(), "30 % of 14 a class"
    assert (np.bincount(splits["test"].labels) == 10).all()
    assert not set(splits["val"].names) & set(splits["test"].names)
    assert load_splits(scene_folder, 48, progress=False)["val"].names == splits["val"].names


def test_an_image_of_the_asked_size_is_not_resampled(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert np.array_equal(decode(tmp_path / "image.png", 32, "squash"), pixels.transpose(2, 0, 1))


def test_a_missing_folder_is_named(tmp_path, scene_folder):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_splits(tmp_path / "nowhere", progress=False)
    (scene_folder / "train").rename(scene_folder / "training")
    with pytest.raises(FileNotFoundError, match="must hold the folders train and val"):
        load_splits(scene_folder, progress=False)


def test_an_empty_class_is_named(scene_folder):
    for path in (scene_folder / "val" / "light").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="class 'light' has no image in .*val"):
        load_splits(scene_folder, 32, progress=False)


def test_a_class_in_one_split_only_is_named(scene_folder):
    (scene_folder / "test" / "plaid").mkdir()
    with pytest.raises(ValueError, match="class 'plaid' is in .*test but not in .*train"):
        load_splits(scene_folder, 32, progress=False)


def test_two_folders_for_one_split_are_refused(scene_folder):
    (scene_folder / "validation").mkdir()
    with pytest.raises(ValueError, match="both val and validation"):
        load_splits(scene_folder, progress=False)


def test_a_single_class_is_refused(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "only").mkdir(parents=True)
    with pytest.raises(ValueError, match="at least 2"):
        load_splits(tmp_path, progress=False)


def test_first_of_each_class_takes_the_first_by_name(scene_folder):
    few = load(scene_folder / "train").first_of_each_class(2)
    assert few.names == tuple(f"{name}/image_000{n}.jpg" for name in ("dark", "light", "striped") for n in (0, 1))


def test_an_unknown_data_set_is_answered_with_the_known_ones():
    with pytest.raises(FileNotFoundError, match="15scenes; known names are 15scene, nature"):
        locate("15scenes")


def test_a_data_set_that_is_not_prepared_is_answered_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(scenes, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"python -m data\.prepare nature"):
        locate("nature")


def test_a_folder_of_ones_own_is_found_from_anywhere(scene_folder, monkeypatch):
    monkeypatch.chdir(scene_folder.parent)
    assert locate("scenes") == scene_folder.resolve()


def test_a_data_set_can_be_decoded_beforehand_and_training_finds_it_done(scene_folder, stores, tmp_path, monkeypatch):
    source = tmp_path / "source"
    for class_name in CLASS_NAMES["nature"]:
        (source / class_name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (8, 8), (number, 9, 9)).save(source / class_name / f"{number}.png")
    arguments = ["nature", "--source", str(source), "--to", str(tmp_path / "nature")]
    assert main([*arguments, "--decode", "imagenet:32", "squash:48"]) == 0
    assert len(list(stores.glob("*.npy"))) == 6
    monkeypatch.setattr(scenes, "decode", lambda *_: pytest.fail("decoded again"))
    for size, resize in ((32, "imagenet"), (48, "squash")):
        assert load_splits(tmp_path / "nature", size, resize, progress=False)["train"].images.shape[-1] == size
