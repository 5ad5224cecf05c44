"""The image cache: images are decoded and resized once, into arrays on disk that are memory-mapped.

A data set is a folder `<root>/<split>/<class>/<image>`, or another of data.layouts.  Decoding JPEGs costs more than
anything else that is done to them.  The cache therefore holds each split as an .npy file of bytes (N, channels, size,
size), with an index (.json) of its names beside it.  Both files are named after a digest of the names and bytes of the
images they were made from: an image that is added, removed or changed leads to new ones.
"""

import hashlib
import json
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageChops
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from tqdm.auto import tqdm

from data.files import expanded, locked, root_folder, say_once, write_atomically, write_text
from data.folders import ImageFolder, is_image, list_images
from data.layouts import list_splits, record_split, sources_of

RESIZE_RULES = ("squash", "imagenet")
GRAY_MODES = ("1", "L", "LA", "La", "I")
VAL_SHARE = 0.3  # of the images outside train, where only one folder holds them
CACHE_FORMAT = 3
FEW_BITS = "it holds 12 bits or fewer as if they were 16, and would be nearly black; scale it to 8 bits"
CHUNK = 256  # images that are decoded at a time
LONGEST_SHAPE = 16  # longer side over shorter side; the ends of longer images are cropped before "imagenet" resizes
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF
IN_MEMORY = threading.Lock()  # Pillow decodes an opened image when it is first used, which two threads must not do
TURNS = {  # EXIF orientation -> how to undo it; ImageOps.exif_transpose also rewrites EXIF data, and fails on odd ones
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UndecodableError(ValueError):
    """An image that cannot be decoded; a rule or a size that does not exist is a plain ValueError."""


@dataclass(frozen=True)
class Selection:
    """Images of an array, by their indices and in that order; none is read before it is asked for.

    It is counted, indexed (by an index, indices or a slice) and converted as the array of these images would be.
    """

    images: np.ndarray
    indices: np.ndarray

    def __len__(self):
        """How many images there are."""
        return len(self.indices)

    def __getitem__(self, index):
        """Bytes of one image, or of several, copied from the disk."""
        return self.images[self.indices[index]]

    def __array__(self, dtype=None, copy=None):
        """All of them, in memory."""
        return np.asarray(self.images[self.indices], dtype=dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, channels, size, size)."""
        return len(self), *self.images.shape[1:]


@dataclass(frozen=True)
class Scenes:
    """One split: images (N, channels, size, size) of bytes, labels (N,), and names "<class>/<file>" in the same order.

    channels is 1 where all images are gray, else 3.  The fingerprint is a digest of the image files' names and bytes:
    it does not depend on the machine.  `skipped` names the images that could not be decoded.
    """

    images: np.ndarray | Selection
    labels: np.ndarray
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    skipped: tuple[str, ...] = ()

    def __len__(self):
        """How many images there are."""
        return len(self.labels)

    def subset(self, indices) -> "Scenes":
        """These images only, in this order; they stay on the disk."""
        images, in_array = self.images, np.arange(len(self))
        if isinstance(images, Selection):
            images, in_array = images.images, images.indices
        return replace(
            self,
            images=Selection(images, in_array[indices]),
            labels=self.labels[indices],
            names=tuple(self.names[index] for index in indices),
        )

    def first_of_each_class(self, images_per_class: int) -> "Scenes":
        """At most this many images of each class, the first by name; ValueError for fewer than one."""
        if images_per_class < 1:
            raise ValueError(f"images_per_class is {images_per_class}; it must be at least 1")
        indices = [np.flatnonzero(self.labels == label)[:images_per_class] for label in range(len(self.class_names))]
        return self.subset(np.concatenate(indices))

    def share_of_each_class(self, share: float, seed: int) -> "Scenes":
        """This share (above 0, to 1) of each class, sampled by seed; ValueError names a class that would be empty."""
        generator = np.random.default_rng(seed)
        sampled = []
        for label, name in enumerate(self.class_names):
            of_class = np.flatnonzero(self.labels == label)
            count = round(share * len(of_class))
            if count < 1:
                raise ValueError(f"a share of {share} leaves none of the {len(of_class)} images of class {name}")
            sampled.append(np.sort(generator.permutation(of_class)[:count]))
        return self.subset(np.concatenate(sampled))


@dataclass(frozen=True, eq=False)
class NamedImage:
    """An image in memory, and the name that tables and messages give it."""

    image: Image.Image
    name: str

    def __str__(self):
        """The name."""
        return self.name


@dataclass(frozen=True)
class _Source:
    """What one array of the cache is made from: image files, and how they are decoded."""

    images: ImageFolder
    size: int
    resize: str
    skip_bad_images: bool

    def prefix(self) -> str:
        """How the cache's files of this folder, size and rule begin, whatever images the folder holds."""
        folder = self.images.folder
        place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
        part = f"-{self.images.part[-20:]}" if self.images.part else ""
        return f"{folder.parent.name[:20]}-{folder.name[:20]}{part}-{self.resize}-{self.size}-{place}"

    def digest(self) -> str:
        """A digest that changes when an image is added, removed, renamed or written to, or Pillow is another."""
        made_from = f"{CACHE_FORMAT}|{PIL.__version__}|{self.skip_bad_images}|{self.images.fingerprint()}"
        return hashlib.sha256(made_from.encode()).hexdigest()[:16]

    def read(self, name: str) -> np.ndarray | None:
        """As `decode_or_skip`."""
        return decode_or_skip(self.images.folder / name, self.size, self.resize, self.skip_bad_images)


def load_splits(
    root: Path | str,
    size: int = 224,
    resize: str = "squash",
    cache: Path | str | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> dict[str, Scenes]:
    """The scenes of a data set by split: "train", "val" and "test", all with the same classes.

    The root is one of the layouts of data.layouts.  If only one folder besides `train` holds images (val, validation
    or test), its images are divided into val (30 %) and test (70 %), class by class and always in the same way: images
    that select a model must not report on it.  Images without labels, `<folder>/**`, are all "train".
    Raises FileNotFoundError for a missing folder, ValueError for one with no, one or differing classes, and for an
    image that cannot be decoded (unless `skip_bad_images`).
    """
    _check_rule(size, resize)
    root = expanded(root).resolve()
    listed = list_splits(root)
    splits = {
        split: _load(_source(images, size, resize, skip_bad_images), cache, progress)
        for split, images in listed.items()
    }
    _report_left_out(root, listed, splits)
    for split, scenes in splits.items():
        _refuse_empty_classes(split, listed[split], scenes)
    record_split(root, [name for scenes in splits.values() for name in scenes.skipped])
    if len(splits) == 2:
        only = next(split for split in splits if split != "train")
        listed = sources_of(listed)
        splits["val"], splits["test"] = _divide(splits[only])
    _report_copies(root, listed, splits)
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def load_scenes(
    folder: Path | str,
    size: int = 224,
    resize: str = "squash",
    cache: Path | str | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> Scenes:
    """All images of `<folder>/<class>/<image>`, decoded and resized to size x size by the rule `resize`.

    "squash" resizes to the square, whatever the image's shape (the first report).  "imagenet" resizes the shorter side
    to 256/224 of the size, bicubic, and crops the center (the second report, and torchvision's weights).
    cache: the folder of the image cache, by default data/cache of the root folder.  Raises FileNotFoundError for a
    missing folder, and what `load_splits` raises for images.
    """
    _check_rule(size, resize)
    images = list_images(expanded(folder).resolve())
    return _load(_source(images, size, resize, skip_bad_images), cache, progress)


def open_image(file: Path | BinaryIO, formats: Sequence[str] | None = None) -> Image.Image:
    """Open an image file as Pillow does, but without its warning of many pixels: up to twice as many are read.

    Raises Image.DecompressionBombError for more, about 179 million, and what else Pillow raises.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # catch_warnings is not for threads
    return Image.open(file, formats=formats)


def named_image(image: Image.Image | np.ndarray, number: int) -> NamedImage:
    """An image of Pillow, named after its file if it knows one, or an array; others are called "image NUMBER".

    Raises ValueError unless an array is uint8, (H, W) or (H, W, 3), and has pixels.
    """
    name = f"image {number}"
    if isinstance(image, Image.Image):
        return NamedImage(image, os.fsdecode(getattr(image, "filename", "") or name))
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)) or not image.size:
        raise ValueError(
            f"{name} is an array of {image.dtype} and shape {image.shape}; an image must be of uint8, 0 to 255, and "
            "shape (H, W) or (H, W, 3); give several images as a list"
        )
    return NamedImage(Image.fromarray(image), name)


@contextmanager
def _opened(path: Path | NamedImage) -> Iterator[Image.Image]:
    """The image of a file, which is closed afterwards, or one in memory, which one thread uses at a time."""
    if isinstance(path, NamedImage):
        with IN_MEMORY:
            yield path.image
        return
    if not path.is_file():
        raise OSError("it is a folder, or a link to nothing")
    with open_image(path) as image:
        yield image


def decode(path: str | Path | NamedImage, size: int, resize: str) -> np.ndarray:
    """One image as bytes (channels, size, size): 1 channel if the file is gray, else 3.

    EXIF orientation is applied, and what is transparent lies on white; ICC color profiles are ignored.  Raises
    UndecodableError that names the file if it cannot be decoded completely, or if its range is unknown, and ValueError
    that names the argument if there is no such rule or size.
    """
    _check_rule(size, resize)
    path = path if isinstance(path, NamedImage) else expanded(path)
    try:
        with _opened(path) as image:
            return _decoded(image, size, resize)
    except MemoryError as error:
        raise MemoryError(f"{path} takes more memory to decode than there is") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, TypeError, struct.error and more
        raise UndecodableError(f"{path} cannot be decoded ({error})") from error


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """How EXIF says that an image must be turned; not at all where it is damaged, since the pixels may be whole."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises SyntaxError, struct.error and more
        return None


def decode_image(image: Image.Image, size: int, resize: str) -> np.ndarray:
    """As `decode`, of an image that is open; raises what Pillow raises, and ValueError for another rule or size."""
    _check_rule(size, resize)
    return _decoded(image, size, resize)


def _decoded(image: Image.Image, size: int, resize: str) -> np.ndarray:
    """Bytes (channels, size, size) of an open image, by a rule and a size that are known to exist."""
    # Pillow reads color of 16 bits as 8, and forgets with `load` that it was more.
    was_16 = image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image.load()
    if was_16 and 0 < np.asarray(image)[..., :3].max() < 16:
        raise ValueError(FEW_BITS)
    turn = _turn_of(image)
    image = _in_8_bits(image)
    image = image if turn is None else image.transpose(turn)
    gray = image.mode in GRAY_MODES
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if gray else "RGB")
    if resize == "imagenet":
        image = _without_far_ends(image)
        image = transforms.resize(image, round(size * 256 / 224), interpolation=InterpolationMode.BICUBIC)
        image = transforms.center_crop(image, size)
    else:
        image = transforms.resize(image, [size, size])
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def decode_or_skip(path: str | Path | NamedImage, size: int, resize: str, skip_bad_images: bool) -> np.ndarray | None:
    """As `decode`, but None for an image that cannot be decoded and may be left out; else the error says how to."""
    try:
        return decode(path, size, resize)
    except UndecodableError as error:
        if skip_bad_images:
            return None
        raise UndecodableError(
            f"{error}; replace it, or leave such images out with --skip-bad-images where a command has it"
        ) from error


def _in_8_bits(image: Image.Image) -> Image.Image:
    """The image itself, or one of more bits a sample scaled to 8; PIL would clip it to 255."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    tags = getattr(image, "tag_v2", {})  # of TIFF
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ValueError("signed samples and those of 32 bits have no known range; 8 and 16 bits are read")
    bits = 16 if image.mode == "I" else tags.get(BITS_PER_SAMPLE, (16,))[0]
    samples = np.asarray(image).astype(np.uint16)
    if bits == 16 and 0 < samples.max() < 2**12:
        raise ValueError(FEW_BITS)
    scaled = Image.fromarray((samples >> (bits - 8)).astype(np.uint8))
    return ImageChops.invert(scaled) if tags.get(PHOTOMETRIC) == 0 else scaled


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of an image that is over LONGEST_SHAPE times as long as wide: the rest would be resized in vain."""
    shorter = min(image.size)
    margins = [max(0, (side - LONGEST_SHAPE * shorter) // 2) for side in image.size]
    return image.crop((*margins, image.width - margins[0], image.height - margins[1])) if any(margins) else image


def _check_rule(size: int, resize: str):
    """Raise ValueError that names the argument by which no image can be resized."""
    if resize not in RESIZE_RULES:
        raise ValueError(f"resize is {resize!r}; it must be one of {', '.join(RESIZE_RULES)}")
    if not isinstance(size, Integral) or size < 1:
        raise ValueError(f"size is {size!r}; it must be a whole number of pixels, at least 1")


def _source(images: ImageFolder, size: int, resize: str, skip_bad_images: bool) -> _Source:
    if not images.names:
        raise ValueError(f"{images.folder} holds no images; they must lie in {images.folder}/<class>/<image>")
    return _Source(images, size, resize, skip_bad_images)


def _load(source: _Source, cache: Path | str | None, progress: bool) -> Scenes:
    """The images of a source, decoded now or earlier."""
    index, images = _cached(source, expanded(cache or root_folder() / "data" / "cache"), progress)
    labels = source.images.labels
    return Scenes(
        images=images,
        labels=np.array([labels[name] for name in index["names"]], dtype=np.int64),
        names=tuple(index["names"]),
        class_names=source.images.class_names,
        fingerprint=index["fingerprint"],
        skipped=tuple(index["skipped"]),
    )


def _refuse_empty_classes(split: str, images: ImageFolder, scenes: Scenes):
    """Raise ValueError that names a class without images in a split, and why where its images were left out."""
    for label, class_name in enumerate(scenes.class_names):
        if not np.any(scenes.labels == label):
            classes = images.classes
            bad = next(
                (f", since {name} cannot be decoded" for name in scenes.skipped if classes[name] == class_name), ""
            )
            raise ValueError(
                f"class {class_name!r} has no image for {split} in {images.folder}{bad}; add some or remove it"
            )


def _report_left_out(root: Path, listed: dict[str, ImageFolder], splits: dict[str, Scenes]):
    """Say once how many files of a data set are not used, and why."""
    counts = sum((images.left_out for images in listed.values()), Counter())
    if root.is_dir():
        counts["outside the class folders"] += sum(is_image(path.name) for path in root.iterdir())
    counts["that cannot be decoded"] = sum(len(scenes.skipped) for scenes in splits.values())
    counts = +counts  # without those of which there are none
    if counts:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
        say_once(f"{root}: {counts.total():,} file(s) left out: {reasons}")


def _report_copies(root: Path, listed: dict[str, ImageFolder], splits: dict[str, Scenes]):
    """Say once how many images of val and test are also in a split that a network learns or is chosen from."""
    contents = {}
    for split, scenes in splits.items():
        digest_of = dict(zip(listed[split].names, listed[split].digests, strict=True))
        contents[split] = [digest_of[name] for name in scenes.names]
    found = []
    for split, other in (("val", "train"), ("test", "train"), ("test", "val")):
        of_other = set(contents.get(other, ()))
        count = sum(digest in of_other for digest in contents.get(split, ()))
        if count:
            found.append(f"{count:,} image(s) of {split} are also in {other}")
    if found:
        say_once(f"{root}: {', '.join(found)} (the same bytes), so accuracies on them are too high")


def _cached(source: _Source, cache: Path, progress: bool) -> tuple[dict, np.ndarray]:
    """Index and images of a source from the cache; of several processes that need them, one decodes.

    The images get their name first and the index last, each in one step.  Whoever caches the folder next removes images
    of which a killed process wrote no index.
    """
    prefix = source.prefix()
    index_path = cache / f"{prefix}.{source.digest()}.json"
    cached = _read_cached(index_path)
    if cached is None:
        with locked(cache / f"{prefix}.lock"):
            cached = _read_cached(index_path)  # another process may have been faster
            if cached is None:
                for path in cache.iterdir():  # of other images in the same folder, or left by a killed process
                    if path.name.startswith(f"{prefix}.") and path.suffix != ".lock":
                        path.unlink()
                decode_all = partial(_decode_all, source, progress)
                index = write_atomically(index_path.with_suffix(".npy"), decode_all)
                write_text(index_path, json.dumps(index))
                cached = _read_cached(index_path)
    return cached


def _read_cached(index_path: Path) -> tuple[dict, np.ndarray] | None:
    """Index and images, or None where there are none, or where a crash of the machine has damaged them."""
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
        return index, np.load(index_path.with_suffix(".npy"), mmap_mode="r")
    except (FileNotFoundError, NotADirectoryError, EOFError, ValueError):
        return None


def _decode_all(source: _Source, progress: bool, path: Path) -> dict:
    """Decode a source into the .npy file `path` and return its index; memory holds CHUNK images at a time."""
    folder, sources = source.images.folder, source.images.names
    shape = (1 if all(_is_gray(folder / name) for name in sources) else 3, source.size, source.size)
    names, skipped = [], []
    with (
        path.open("wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(sources), desc=f"decoding {folder.name}", disable=not progress) as bar,
    ):
        _write_header(file, (len(sources), *shape))
        if hasattr(os, "posix_fallocate"):  # a disk that is too small is reported now (not on macOS and Windows)
            os.posix_fallocate(file.fileno(), 0, file.tell() + len(sources) * int(np.prod(shape)))
        for start in range(0, len(sources), CHUNK):
            chunk = sources[start : start + CHUNK]
            for name, image in zip(chunk, pool.map(source.read, chunk), strict=True):
                if image is None:
                    skipped.append(name)
                else:
                    names.append(name)
                    file.write(np.broadcast_to(image, shape).tobytes())  # gray among colored ones: three channels
                bar.update()
        file.truncate()  # space that was reserved for skipped images
        file.seek(0)
        _write_header(file, (len(names), *shape))  # NumPy makes it equally long for any number of images
        file.flush()
        os.fsync(file.fileno())  # or after a crash of the machine an index might name images that were never written
    return {"fingerprint": source.images.fingerprint(skipped), "names": names, "skipped": skipped}


def _write_header(file: BinaryIO, shape: tuple[int, ...]):
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _divide(scenes: Scenes) -> tuple[Scenes, Scenes]:
    """Into val and test, class by class, by a fixed seed; every class has at least one image in each."""
    generator = np.random.default_rng(0)
    in_val = np.zeros(len(scenes), dtype=bool)
    for label, class_name in enumerate(scenes.class_names):
        of_class = np.flatnonzero(scenes.labels == label)
        if len(of_class) < 2:
            raise ValueError(f"class {class_name!r} has one image besides train; val and test need one each")
        in_val[generator.permutation(of_class)[: max(1, round(VAL_SHARE * len(of_class)))]] = True
    return scenes.subset(np.flatnonzero(in_val)), scenes.subset(np.flatnonzero(~in_val))


def _is_gray(path: Path) -> bool:
    """By the file's header alone; a file without a readable one is reported when it is decoded."""
    try:
        if path.is_file():
            with open_image(path) as image:
                return image.mode in GRAY_MODES or image.mode.startswith("I;16")
    except Exception:  # as in `decode`
        return True
    return True
