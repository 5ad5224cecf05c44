import itertools
import os
import shutil
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.models import EfficientNet_B0_Weights

from data import files, image_cache
from data.image_cache import decode, decode_or_skip, load_scenes, load_splits
from tests.conftest import NO_PROCESS


@pytest.fixture(autouse=True)
def cache(root):
    """The image cache of a test's own."""
    return root / "data" / "cache"


def load(folder, size=32, **arguments):
    return load_scenes(folder, size, progress=False, **arguments)


def files_of(cache):
    return sorted(path.suffix for path in cache.iterdir())


# ------------------------------------------------------------------------------------------------------------ decoding


def test_squash_equals_the_plain_image_folder_with_resize_and_to_tensor(scene_folder):
    plain = ImageFolder(scene_folder / "train", v1.Compose([v1.Grayscale(), v1.Resize((32, 32)), v1.ToTensor()]))
    cached = load(scene_folder / "train")
    assert cached.class_names == tuple(plain.classes)
    assert len(cached) == len(plain) == 36
    for index, (image, label) in enumerate(plain):
        assert torch.equal(torch.from_numpy(cached.images[index] / np.float32(255)), image)
        assert cached.labels[index] == label


def test_imagenet_equals_torchvisions_own_preset(scene_folder):
    preset = EfficientNet_B0_Weights.IMAGENET1K_V1.transforms(mean=(0, 0, 0), std=(1, 1, 1))
    path = sorted((scene_folder / "train" / "striped").iterdir())[0]
    expected = preset(Image.open(path).convert("RGB"))[:1]
    assert torch.allclose(torch.from_numpy(decode(path, 224, "imagenet") / np.float32(255)), expected, atol=1e-6)


def test_squash_sees_all_of_an_image_and_imagenet_its_center(tmp_path):
    image = np.zeros((64, 128), dtype=np.uint8)
    image[:, :16] = 255
    Image.fromarray(image).save(tmp_path / "left_edge.png")
    assert decode(tmp_path / "left_edge.png", 32, "squash").max() == 255
    assert decode(tmp_path / "left_edge.png", 32, "imagenet").max() == 0


@pytest.mark.parametrize(
    ("size", "rule", "named"), [(32, "crop", "'crop'"), (0, "squash", "0"), (2.5, "squash", "2.5")]
)
def test_a_rule_or_size_that_is_none_is_refused_by_its_name_and_not_taken_for_a_bad_image(
    scene_folder, size, rule, named
):
    path = scene_folder / "train/dark/image_0000.jpg"
    reads = (
        lambda: decode(path, size, rule),
        lambda: decode_or_skip(path, size, rule, skip_bad_images=True),
        lambda: load_splits(scene_folder, size, rule, progress=False),
    )
    for read in reads:
        with pytest.raises(ValueError, match=f"(resize|size) is {named}") as refusal:
            read()
        assert path.name not in str(refusal.value)


def test_an_image_of_the_asked_size_is_not_resampled(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert np.array_equal(decode(tmp_path / "image.png", 32, "squash"), pixels.transpose(2, 0, 1))


RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
SAMPLES_OF_12_BITS = (RAMP >> 4).reshape(-1, 2).astype(int)
PACKED = np.stack(
    [
        SAMPLES_OF_12_BITS[:, 0] >> 4,
        (SAMPLES_OF_12_BITS[:, 0] & 15) << 4 | SAMPLES_OF_12_BITS[:, 1] >> 8,
        SAMPLES_OF_12_BITS[:, 1] & 255,
    ],
    axis=1,
)


def pgm(highest, samples):
    return f"P5 64 64 {highest}\n".encode() + samples.tobytes()


def tiff(samples, photometric=1, bits=16, sample_format=1):
    """64 x 64 gray samples; photometric 0: 0 is white; sample_format 2: signed."""
    data = samples.tobytes()
    fields = {256: 64, 257: 64, 258: bits, 259: 1, 262: photometric, 273: 146, 277: 1, 278: 64, 279: len(data)}
    fields |= {296: 1, 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, fields[tag]) for tag in fields)
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + entries + bytes(4)).ljust(146, b"\0") + data


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("16 bits.pgm", pgm(65535, RAMP.astype(">u2"))),
        ("12 bits.pgm", pgm(4095, (RAMP >> 4).astype(">u2"))),
        ("10 bits.pgm", pgm(1023, (RAMP >> 6).astype(">u2"))),
        ("16 bits.tif", tiff(RAMP)),
        ("0 is white.tif", tiff(65535 - RAMP, photometric=0)),
        ("0 is white, 8 bits.tif", tiff((255 - (RAMP >> 8)).astype("u1"), photometric=0, bits=8)),
        ("12 bits packed.tif", tiff(PACKED.astype("u1"), bits=12)),
    ],
)
def test_gray_images_of_any_range_are_scaled_to_8_bits(tmp_path, name, contents):
    (tmp_path / name).write_bytes(contents)
    expected = Image.fromarray((RAMP >> 8).astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
    image = decode(tmp_path / name, 32, "squash")
    assert image.shape == (1, 32, 32)
    assert abs(image[0].astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("12 bits in 16.tif", tiff(RAMP >> 4)),
        ("10 bits in 16.tif", tiff(RAMP >> 6)),
        ("signed.tif", tiff(RAMP // 2, sample_format=2)),
        ("32 bits.tif", Image.new("I", (8, 8), 70_000)),
        ("float.tif", Image.new("F", (8, 8), 0.5)),
        ("12 bits in 16.png", Image.fromarray(RAMP >> 4)),
    ],
)
def test_an_image_of_unknown_range_is_refused(tmp_path, name, contents):
    contents.save(tmp_path / name) if isinstance(contents, Image.Image) else (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=f"{name} cannot be decoded .*bits"):
        decode(tmp_path / name, 32, "squash")


def test_black_of_16_bits_is_black(tmp_path):
    Image.fromarray(np.zeros((40, 40), dtype=np.uint16)).save(tmp_path / "black.png")
    assert decode(tmp_path / "black.png", 32, "squash").max() == 0


def noise(*shape):
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tga", ".tif"])
def test_colors_under_alpha_0_are_white(tmp_path, suffix):
    image = Image.fromarray(np.concatenate([noise(40, 40, 3), np.zeros((40, 40, 1), dtype=np.uint8)], axis=2))
    image.save(tmp_path / f"hidden{suffix}", lossless=True, exact=True)
    assert decode(tmp_path / f"hidden{suffix}", 32, "squash").min() == 255


@pytest.mark.parametrize(
    ("mode", "color", "name", "options", "expected"),
    [
        ("P", 3, "keyed.gif", {"transparency": 3}, 255),
        ("P", 0, "keyed.png", {"transparency": 0}, 255),
        ("L", 7, "keyed.png", {"transparency": 7}, 255),
        ("RGB", (7, 8, 9), "keyed.png", {"transparency": (7, 8, 9)}, 255),
        ("1", 0, "keyed.png", {"transparency": 0}, 255),
        ("LA", (0, 0), "hidden.png", {}, 255),
        ("RGBA", (0, 0, 0, 128), "half.png", {}, 127),
    ],
)
def test_what_is_transparent_lies_on_white(tmp_path, mode, color, name, options, expected):
    Image.new(mode, (40, 40), color).save(tmp_path / name, **options)
    image = decode(tmp_path / name, 32, "squash")
    assert (len(image) == 1) == (mode in ("1", "L", "LA"))
    assert (image == expected).all()


@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000), (30_001, 3)])
def test_a_strip_costs_memory_by_what_is_left_of_it(tmp_path, shape, monkeypatch):
    sizes, resize = [], image_cache.transforms.resize
    monkeypatch.setattr(
        image_cache.transforms, "resize", lambda *given, **more: sizes.append(resize(*given, **more)) or sizes[-1]
    )
    width, height = shape
    middle = abs(np.arange(max(shape)) - max(shape) / 2) < max(shape) / 10
    pixels = np.tile((200 * middle).astype(np.uint8), (min(shape), 1))
    Image.fromarray(pixels if width > height else pixels.T).save(tmp_path / "strip.png")
    assert (decode(tmp_path / "strip.png", 224, "imagenet") == 200).all()
    assert max(sizes[0].size) <= 17 * 256


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_images_of_every_mode_are_read_with_their_gray(tmp_path, mode, channels):
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 40), 204 * 256, dtype=np.uint16))
    else:
        image = Image.new("L", (40, 40), 204).convert("RGB").convert(mode)  # 204 is in the web palette of P
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    array = decode(path, 32, "squash")
    assert array.shape == (channels, 32, 32)
    assert abs(array.astype(int) - 204).max() <= 2


@pytest.mark.parametrize("name", ["image.png", "image.tif", "of 16 bits.png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_exif_is_that_of_pillow(tmp_path, orientation, name):
    pixels, exif = noise(32, 32), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels.astype(np.uint16) << 8 if "16" in name else pixels).save(tmp_path / name, exif=exif)
    Image.fromarray(pixels).save(tmp_path / "plain.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "plain.png")))
    assert np.array_equal(decode(tmp_path / name, 32, "squash")[0], expected)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage-bytes-here", bytes(20), b"Exif\0\0MM\0*"])
def test_an_image_with_damaged_exif_is_read_as_it_lies(tmp_path, exif, suffix):
    image = Image.fromarray(np.repeat(np.array([[0], [255]], dtype=np.uint8), 16, axis=0).repeat(32, axis=1))
    image.convert("RGB").save(tmp_path / f"odd{suffix}", exif=exif)
    array = decode(tmp_path / f"odd{suffix}", 32, "squash").astype(int)
    assert abs(array[0] - np.asarray(image)).mean() < 3


EXIF = b"Exif\0\0II*\0" + struct.pack("<IHHHIHH", 8, 2, 274, 3, 1, 6, 0)  # orientation 6, and one more tag


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize(
    "tag",
    [
        struct.pack("<HHII", 282, 2, 8, 38) + bytes(4) + b"72/1abc\0",  # the resolution as text
        struct.pack("<HHI", 296, 2, 2) + b"2\0\0\0" + bytes(4),  # its unit as text
        b"\xff",
    ],
    ids=["resolution", "unit", "cut"],
)
def test_exif_of_wrong_types_does_not_keep_an_image_from_being_turned(tmp_path, tag, suffix):
    image = Image.fromarray(np.repeat(np.array([[0], [255]], dtype=np.uint8), 20, axis=0).repeat(40, axis=1))
    image.convert("RGB").save(tmp_path / f"odd{suffix}", exif=EXIF + tag)
    array = decode(tmp_path / f"odd{suffix}", 32, "squash")
    assert array[0, :, 0].mean() > 200 and array[0, :, -1].mean() < 50


def test_an_orientation_that_is_none_is_not_applied(tmp_path):
    pixels, exif = noise(32, 32), Image.Exif()
    for value in (0, 9):
        exif[0x0112] = value
        Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
        assert np.array_equal(decode(tmp_path / "image.png", 32, "squash")[0], pixels)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_panorama_is_read_without_a_warning_up_to_the_limit_of_pillow(scene_folder, monkeypatch):
    path = scene_folder / "val/dark/image_0000.jpg"  # 1,920 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert len(load(scene_folder / "val")) == 18 and decode(path, 32, "squash").shape == (1, 32, 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(ValueError, match=r"image_0000\.jpg cannot be decoded"):
        decode(path, 32, "squash")


def test_the_orientation_of_exif_is_applied(tmp_path):
    image = Image.fromarray(np.repeat(np.array([[0], [255]], dtype=np.uint8), 20, axis=0).repeat(40, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.jpg", exif=exif)
    array = decode(tmp_path / "turned.jpg", 32, "squash")
    assert array[0, :10].mean() > 200
    assert array[0, -10:].mean() < 50


# --------------------------------------------------------------------------------------------------------------- cache


def test_gray_images_have_one_channel_and_all_have_three_where_one_is_colored(scene_folder):
    assert load(scene_folder / "train").images.shape == (36, 1, 32, 32)
    Image.new("RGB", (40, 40), (255, 0, 0)).save(scene_folder / "train" / "dark" / "red.png")
    colored = load(scene_folder / "train")
    assert colored.images.shape == (37, 3, 32, 32)
    assert (colored.images[colored.names.index("dark/red.png")] == np.array([255, 0, 0])[:, None, None]).all()
    gray = colored.images[colored.names.index("dark/image_0000.jpg")]
    assert (gray[0] == gray[1]).all()


def test_images_are_decoded_once_and_then_mapped(scene_folder, cache, monkeypatch):
    first = load(scene_folder / "train")
    monkeypatch.setattr(image_cache, "decode", lambda *_: pytest.fail("decoded again"))
    again = load(scene_folder / "train")
    assert isinstance(again.images, np.memmap)
    assert np.array_equal(again.images, first.images)
    assert files_of(cache) == [".json", ".npy"]


@pytest.mark.parametrize("change", ["write", "add", "remove", "rename"])
def test_a_changed_file_is_noticed_and_the_old_images_are_removed(scene_folder, cache, change):
    path = scene_folder / "train" / "dark" / "image_0003.jpg"
    Image.new("L", (40, 40), 111).save(path, "bmp")
    before = load(scene_folder / "train")
    if change == "write":
        Image.new("L", (40, 40), 222).save(path, "bmp")  # as many bytes as before
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
    assert files_of(cache) == [".json", ".npy"]


def test_the_fingerprint_does_not_depend_on_where_when_or_how_large(scene_folder, tmp_path):
    first = load(scene_folder / "train")
    for path in (scene_folder / "train").rglob("*.jpg"):
        os.utime(path, (0, 0))
    scene_folder.rename(tmp_path / "moved")
    assert load(tmp_path / "moved" / "train", size=48, resize="imagenet").fingerprint == first.fingerprint


def test_the_fingerprint_of_a_folder_never_changes(tmp_path):
    for name in ("a", "b"):  # result files hold fingerprints: another formula would disown them
        (tmp_path / "scenes" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 9).save(tmp_path / "scenes" / name / "image.bmp")
    digest = "bb4a74b6483f7da08fef690b56f76281d02fa9a71c86159629ce53a2a549b63a"
    assert load(tmp_path / "scenes").fingerprint == digest


def test_sizes_and_rules_are_cached_side_by_side(scene_folder, cache):
    for size, resize in ((32, "squash"), (48, "squash"), (32, "imagenet")):
        assert load(scene_folder / "train", size=size, resize=resize).images.shape[-1] == size
    assert files_of(cache) == 3 * [".json"] + 3 * [".npy"]


def test_an_interrupted_build_leaves_nothing_and_the_next_ends_as_one_that_was_not(scene_folder, cache, monkeypatch):
    undisturbed = load(scene_folder / "train", cache=cache / "undisturbed")

    def interrupted(path, size, resize):
        if path.parent.name == "light":
            raise KeyboardInterrupt
        return decode(path, size, resize)

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(scene_folder / "train")
    assert os.listdir(cache) == ["undisturbed"]
    again = load(scene_folder / "train")
    assert np.array_equal(again.images, undisturbed.images)
    assert (again.names, again.fingerprint) == (undisturbed.names, undisturbed.fingerprint)


def test_what_a_killed_build_left_is_not_read_and_is_removed_by_the_next(scene_folder, cache):
    first = np.array(load(scene_folder / "train").images)
    load(scene_folder / "val")
    (index,) = cache.glob("*-train-*.json")
    images = index.with_suffix(".npy")
    index.unlink()  # killed between the images and their index
    np.save(images, np.zeros_like(first))
    left_by_a_killed_process(images).write_bytes(b"half")  # while it decoded
    assert np.array_equal(load(scene_folder / "train").images, first)
    assert files_of(cache) == [".json", ".json", ".npy", ".npy"]


def left_by_a_killed_process(path: Path) -> Path:
    """The hidden file of a process that is no more, as the next process finds it."""
    files._remove_leftovers.cache_clear()
    return path.with_name(f"{files.UNFINISHED}{NO_PROCESS}-{files.MACHINE}-0.{path.name}")


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("suffix", [".json", ".npy"])
@pytest.mark.parametrize(
    "damage", [cut, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(bytes(5000)), Path.unlink]
)
def test_what_a_crash_of_the_machine_damaged_is_built_anew(scene_folder, cache, damage, suffix):
    first = load(scene_folder / "train")
    images = np.array(first.images)
    (path,) = cache.glob(f"*{suffix}")
    damage(path)
    again = load(scene_folder / "train")
    assert np.array_equal(again.images, images)
    assert (again.names, again.fingerprint) == (first.names, first.fingerprint)


def load_and_log(folder, log):
    """Load the folder and write down each image that this process decodes."""

    def logged(path, size, resize):
        with log.open("a") as file:
            file.write(f"{path}\n")
        return decode(path, size, resize)

    image_cache.decode = logged
    return load(folder)


def test_of_many_processes_that_need_the_same_images_one_decodes_them(scene_folder, cache, tmp_path):
    with ProcessPoolExecutor(4) as pool:
        loaded = list(pool.map(load_and_log, [scene_folder / "train"] * 4, [tmp_path / "log"] * 4))
    assert all(np.array_equal(each.images, loaded[0].images) for each in loaded)
    decoded = (tmp_path / "log").read_text().splitlines()
    assert len(decoded) == len(set(decoded)) == 36
    assert files_of(cache) == [".json", ".npy"]


def test_memory_holds_one_chunk_of_decoded_images(scene_folder, monkeypatch):
    monkeypatch.setattr(image_cache, "CHUNK", 4)
    alive, most = set(), []

    class Counted(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def counted(path, size, resize):
        image = decode(path, size, resize).view(Counted)
        alive.add(id(image))
        most.append(len(alive))
        return image

    monkeypatch.setattr(image_cache, "decode", counted)
    load(scene_folder / "train")
    assert max(most) <= 2 * 4  # the chunk that is decoded, and at most that before it


def test_a_full_disk_is_reported_before_anything_is_decoded(scene_folder, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(image_cache, "decode", lambda *_: pytest.fail("decoded for nothing"))
    with pytest.raises(OSError, match="No space left"):
        load(scene_folder / "train")
    assert files_of(cache) == []


HUGE_PNG = b"\x00\x00\x00\rIHDR" + (30000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
HUGE_PNG = b"\x89PNG\r\n\x1a\n" + HUGE_PNG + zlib.crc32(HUGE_PNG[4:]).to_bytes(4, "big")


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"this is text", lambda data: HUGE_PNG],
    ids=["empty", "truncated", "text", "decompression bomb"],
)
def test_an_image_that_cannot_be_decoded_is_named_or_left_out(scene_folder, cache, damage):
    path = scene_folder / "train" / "light" / "image_0002.jpg"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"light/image_0002\.jpg cannot be decoded.*--skip-bad-images"):
        load(scene_folder / "train")
    assert files_of(cache) == []
    found = load(scene_folder / "train", skip_bad_images=True)
    assert found.skipped == ("light/image_0002.jpg",)
    assert found.images.shape[0] == len(found.labels) == len(found.names) == 35
    with pytest.raises(ValueError, match="cannot be decoded"):
        load(scene_folder / "train")  # the cache of the other call is not read


def test_images_that_are_left_out_leave_no_gap(scene_folder, cache, monkeypatch):
    monkeypatch.setattr(image_cache, "CHUNK", 5)
    complete = load(scene_folder / "train")
    for number in (0, 7):
        (scene_folder / f"train/light/image_{number:04d}.jpg").write_bytes(b"")
    found = load(scene_folder / "train", skip_bad_images=True)
    assert found.skipped == ("light/image_0000.jpg", "light/image_0007.jpg")
    indices = [index for index, name in enumerate(complete.names) if name not in found.skipped]
    assert np.array_equal(found.images, complete.images[indices])
    assert found.names == tuple(complete.names[index] for index in indices)
    (path,) = cache.glob("*.npy")
    assert path.stat().st_size == 128 + 34 * 32 * 32


def test_hidden_files_and_files_that_are_no_images_are_ignored(scene_folder):
    (scene_folder / "train" / "dark" / "Thumbs.db").write_bytes(b"x")
    (scene_folder / "train" / "dark" / "._image.jpg").write_bytes(b"x")
    (scene_folder / "train" / ".cache").mkdir()
    assert len(load(scene_folder / "train")) == 36


# ----------------------------------------------------------------------------------------------------- scenes, splits


def test_a_subset_reads_nothing_and_gives_what_a_copy_would(scene_folder):
    complete = load(scene_folder / "train")
    part = complete.subset(np.arange(30, 3, -3))
    of_part = part.subset([4, 0, 2])
    for found, indices in ((part, np.arange(30, 3, -3)), (of_part, [18, 30, 24])):
        assert np.shares_memory(found.images.images, complete.images)
        expected = np.array(complete.images)[indices]
        assert found.images.shape == expected.shape
        assert np.array_equal(np.asarray(found.images), expected)
        assert np.array_equal(found.images[1:3], expected[1:3])
        assert np.array_equal(found.images[[0, 2]], expected[[0, 2]])
        assert np.array_equal(found.images[-1], expected[-1])
        assert [complete.names[index] for index in indices] == list(found.names)


def test_first_of_each_class_takes_the_first_by_name(scene_folder):
    few = load(scene_folder / "train").first_of_each_class(2)
    assert few.names == tuple(f"{name}/image_000{n}.jpg" for name in ("dark", "light", "striped") for n in (0, 1))
    with pytest.raises(ValueError, match="images_per_class is -1"):
        few.first_of_each_class(-1)


def test_a_share_of_each_class_that_would_be_empty_is_refused(scene_folder):
    train = load(scene_folder / "train")
    assert np.bincount(train.share_of_each_class(0.25, seed=0).labels).tolist() == [3, 3, 3]
    with pytest.raises(ValueError, match="class dark"):
        train.share_of_each_class(0.01, seed=0)


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
    assert np.bincount(splits["val"].labels).tolist() == [4, 4, 4]  # 30 % of 14 in each class
    assert np.bincount(splits["test"].labels).tolist() == [10, 10, 10]
    assert not set(splits["val"].names) & set(splits["test"].names)
    assert load_splits(scene_folder, 48, progress=False)["val"].names == splits["val"].names


def remove_images(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (shutil.rmtree, FileNotFoundError, "there is no data folder .*scenes"),
        (lambda f: (f / "train").rename(f / "training"), FileNotFoundError, "val, test, training; .* train and val"),
        (lambda f: remove_images(f / "val/light"), ValueError, "class 'light' has no image for val in .*val"),
        (lambda f: (f / "test/plaid").mkdir(), ValueError, "class 'plaid' is in .*test but not in .*train"),
        (lambda f: (f / "validation").mkdir(), ValueError, "both val and validation"),
        (
            lambda f: [
                shutil.rmtree(f / split / name) for split in ("train", "val", "test") for name in ("dark", "light")
            ],
            ValueError,
            "at least 2",
        ),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(scene_folder, change, error, words):
    change(scene_folder)
    with pytest.raises(error, match=words):
        load_splits(scene_folder, 32, progress=False)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="^there is no .*nowhere"):
        load(tmp_path / "nowhere")


EPOCH_IN_LITTLE_MEMORY = """
import resource
from dataclasses import replace
import numpy as np
from data.files import root_folder
from supervised import dataloader
from supervised.settings import BASE

dataloader.EVALUATION_BATCH["cpu"] = 4  # a batch of 64 would be a good part of these few images
experiment = replace(BASE, data=str(root_folder() / "scenes"), image_size=128, batch_size=4)
loaders = dataloader.build_loaders(experiment, progress=False)
next(iter(loaders.train))  # what an epoch needs once
size = sum(path.stat().st_size for path in (root_folder() / "data" / "cache").glob("*.npy"))
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()  # data and stack
resource.setrlimit(resource.RLIMIT_DATA, (used + size // 4, -1))
seen = {name: sum(len(labels) for _, labels in getattr(loaders, name)) for name in ("train", "val", "test")}
assert seen == {"train": 3 * 800, "val": 3 * 240, "test": 3 * 560}, seen
try:
    np.array(loaders.train.dataset.scenes.images)
    print("there was memory for all")
except MemoryError:
    print("seen")
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limit is Linux's")
def test_an_epoch_over_four_times_the_memory_there_is(root):
    Image.new("L", (2, 2), 9).save(root / "one.bmp")
    for split, class_name in itertools.product(("train", "val"), "abc"):
        (root / "scenes" / split / class_name).mkdir(parents=True)
        for number in range(800):
            os.link(root / "one.bmp", root / "scenes" / split / class_name / f"{number}.bmp")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", EPOCH_IN_LITTLE_MEMORY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "seen\n", done.stderr
