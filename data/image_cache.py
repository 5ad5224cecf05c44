"""The image cache: images are decoded and resized once, into arrays on disk that are memory-mapped.

A data set is a folder `<root>/<split>/<class>/<image>`.  Decoding JPEGs costs more than anything else that is done to
them.  The cache therefore holds each split as an .npy file of bytes (N, channels, size, size), with an index (.json) of
its names beside it.  Both files are named after a digest of what they were made from: an image that is added, removed
or changed leads to new ones.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from tqdm.auto import tqdm

from data.files import locked, root_folder, write_atomically

RESIZE_RULES = ("squash", "imagenet")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
GREY_MODES = ("1", "L", "LA", "La")
SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
VAL_SHARE = 0.3  # of the images outside train, where only one folder holds them
CACHE_FORMAT = 2
CHUNK = 256  # images that are decoded at a time


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

    channels is 1 where all images are grey, else 3.  The fingerprint is a digest of the image files' names and bytes:
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
        """At most this many images of each class, the first by name."""
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


@dataclass(frozen=True)
class _Source:
    """What one array of the cache is made from: image files, and how they are decoded."""

    folder: Path
    names: tuple[str, ...]  # "<class>/<file>"
    size: int
    resize: str
    skip_bad_images: bool

    def prefix(self) -> str:
        """How the cache's files of this folder, size and rule begin, whatever images the folder holds."""
        place = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        return f"{self.folder.parent.name}-{self.folder.name}-{self.resize}-{self.size}-{place}"

    def digest(self) -> str:
        """A digest that changes when an image file is added, removed, renamed or written to."""
        digest = hashlib.sha256(f"{CACHE_FORMAT}|{self.skip_bad_images}\n".encode())
        for name in self.names:
            status = (self.folder / name).stat()
            digest.update(f"{name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def read(self, name: str) -> tuple[bytes, np.ndarray] | None:
        """SHA-256 of an image file, and the image; None for one that cannot be decoded and may be left out."""
        path = self.folder / name
        try:
            image = decode(path, self.size, self.resize)
        except ValueError:
            if self.skip_bad_images:
                return None
            raise
        return hashlib.sha256(path.read_bytes()).digest(), image


def is_image(file_name: str) -> bool:
    """Whether a file is taken for an image, by its name: hidden files and other suffixes are ignored."""
    return file_name.lower().endswith(IMAGE_SUFFIXES) and not file_name.startswith(".")


def load_splits(
    root: Path | str,
    size: int = 224,
    resize: str = "squash",
    cache: Path | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> dict[str, Scenes]:
    """The scenes of a data set by split: "train", "val" and "test", all with the same classes.

    If only one folder besides `train` holds images (val, validation or test), its images are divided into val (30 %)
    and test (70 %), class by class and always in the same way: images that select a model must not report on it.
    Raises FileNotFoundError for a missing folder, ValueError for one with no, one or differing classes, and for an
    image that cannot be decoded (unless `skip_bad_images`).
    """
    folders = _split_folders(Path(root))
    class_names = _common_class_names(folders)
    splits = {
        split: load_scenes(folder, size, resize, cache, skip_bad_images, progress) for split, folder in folders.items()
    }
    for split, scenes in splits.items():
        for label, class_name in enumerate(class_names):
            if not np.any(scenes.labels == label):
                raise ValueError(f"class {class_name!r} has no image in {folders[split]}; add images or remove it")
    if len(splits) == 2:
        only = next(split for split in splits if split != "train")
        splits["val"], splits["test"] = _divide(splits[only])
    return {split: splits[split] for split in ("train", "val", "test")}


def load_scenes(
    folder: Path | str,
    size: int = 224,
    resize: str = "squash",
    cache: Path | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> Scenes:
    """All images of `<folder>/<class>/<image>`, decoded and resized to size x size by the rule `resize`.

    "squash" resizes to the square, whatever the image's shape (the first report).  "imagenet" resizes the shorter side
    to 256/224 of the size, bicubic, and crops the center (the second report, and torchvision's weights).
    cache: the folder of the image cache, by default data/cache of the root folder.
    """
    folder = Path(folder).resolve()
    if resize not in RESIZE_RULES:
        raise ValueError(f"resize is {resize!r}; it must be one of {', '.join(RESIZE_RULES)}")
    class_names = tuple(sorted(_class_names(folder)))
    paths = [path for name in class_names for path in sorted((folder / name).iterdir()) if is_image(path.name)]
    if not paths:
        raise ValueError(f"{folder} holds no images; they must lie in {folder}/<class>/<image>")
    names = tuple(f"{path.parent.name}/{path.name}" for path in paths)
    source = _Source(folder, names, size, resize, skip_bad_images)
    index, images = _cached(source, cache or root_folder() / "data" / "cache", progress)
    labels = {name: label for label, name in enumerate(class_names)}
    return Scenes(
        images=images,
        labels=np.array([labels[name.split("/")[0]] for name in index["names"]], dtype=np.int64),
        names=tuple(index["names"]),
        class_names=class_names,
        fingerprint=index["fingerprint"],
        skipped=tuple(index["skipped"]),
    )


def decode(path: Path, size: int, resize: str) -> np.ndarray:
    """One image as bytes (channels, size, size): 1 channel if the file is grey, else 3; EXIF orientation is applied.

    Raises ValueError that names the file if it cannot be decoded completely.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode in ("F", "I"):  # PIL would clip them to 0 and 255
                raise ValueError("32 bits a pixel have no known range; 8 and 16 are read")
            if image.mode.startswith("I;16"):  # PIL would clip 16 bits to 255 instead of scaling them
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("L" if image.mode in GREY_MODES else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be decoded ({error}); replace it, or leave such images out with --skip-bad-images"
        ) from error
    if resize == "imagenet":
        image = transforms.resize(image, round(size * 256 / 224), interpolation=InterpolationMode.BICUBIC)
        image = transforms.center_crop(image, size)
    else:
        image = transforms.resize(image, [size, size])
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _cached(source: _Source, cache: Path, progress: bool) -> tuple[dict, np.ndarray]:
    """Index and images of a source from the cache; of several processes that need them, one decodes.

    The images get their name first and the index last, each in one step.  A killed process leaves files that are never
    read; whoever caches the folder next removes them.
    """
    prefix = source.prefix()
    index_path = cache / f"{prefix}.{source.digest()}.json"
    cached = _read_cached(index_path)
    if cached is None:
        with locked(cache / f"{prefix}.lock"):
            cached = _read_cached(index_path)  # another process may have been faster
            if cached is None:
                for path in cache.iterdir():  # of other images in the same folder, or left by a killed process
                    if path.name.removeprefix(".").startswith(f"{prefix}.") and path.suffix != ".lock":
                        path.unlink()
                decode_all = partial(_decode_all, source, progress)
                index = write_atomically(index_path.with_suffix(".npy"), decode_all)
                write_atomically(index_path, lambda path: path.write_text(json.dumps(index)))
                cached = _read_cached(index_path)
    return cached


def _read_cached(index_path: Path) -> tuple[dict, np.ndarray] | None:
    """Index and images, or None where there are none, or where a crash of the machine has damaged them."""
    try:
        return json.loads(index_path.read_text()), np.load(index_path.with_suffix(".npy"), mmap_mode="r")
    except (FileNotFoundError, EOFError, ValueError):
        return None


def _decode_all(source: _Source, progress: bool, path: Path) -> dict:
    """Decode a source into the .npy file `path` and return its index; memory holds CHUNK images at a time."""
    channels = 1 if all(_is_grey(source.folder / name) for name in source.names) else 3
    shape = (channels, source.size, source.size)
    fingerprint, names, skipped = hashlib.sha256(), [], []
    with (
        path.open("wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(source.names), desc=f"decoding {source.folder.name}", disable=not progress) as bar,
    ):
        _write_header(file, (len(source.names), *shape))
        if hasattr(os, "posix_fallocate"):  # a disk that is too small is reported now (not on macOS and Windows)
            os.posix_fallocate(file.fileno(), 0, file.tell() + len(source.names) * int(np.prod(shape)))
        for start in range(0, len(source.names), CHUNK):
            chunk = source.names[start : start + CHUNK]
            for name, found in zip(chunk, pool.map(source.read, chunk), strict=True):
                if found is None:
                    skipped.append(name)
                else:
                    digest, image = found
                    names.append(name)
                    fingerprint.update(name.encode() + digest)
                    file.write(np.broadcast_to(image, shape).tobytes())  # grey among colored ones: three channels
                bar.update()
        file.truncate()  # space that was reserved for skipped images
        file.seek(0)
        _write_header(file, (len(names), *shape))  # NumPy makes it equally long for any number of images
        file.flush()
        os.fsync(file.fileno())  # or after a crash of the machine an index might name images that were never written
    return {"fingerprint": fingerprint.hexdigest(), "names": names, "skipped": skipped}


def _write_header(file: BinaryIO, shape: tuple[int, ...]):
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"there is no data folder {root}; it must hold <split>/<class>/<image>")
    folders = {}
    for split, names in SPLIT_NAMES.items():
        found = [root / name for name in names if (root / name).is_dir()]
        if len(found) > 1:
            raise ValueError(f"{root} holds both {found[0].name} and {found[1].name}; keep one of them")
        if found:
            folders[split] = found[0]
    if "train" not in folders or len(folders) < 2:
        raise FileNotFoundError(
            f"{root} must hold the folders train and val (or validation, or test), each with <class>/<image>"
        )
    return folders


def _class_names(folder: Path) -> set[str]:
    """Names of the class folders below a split's folder."""
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def _common_class_names(folders: dict[str, Path]) -> list[str]:
    """The class folders, sorted; all splits must have the same ones."""
    classes = {split: _class_names(folder) for split, folder in folders.items()}
    for split, names in classes.items():
        differing = sorted(names ^ classes["train"])
        if differing:
            has, lacks = ("train", split) if differing[0] in classes["train"] else (split, "train")
            raise ValueError(
                f"class {differing[0]!r} is in {folders[has]} but not in {folders[lacks]}; every split needs it"
            )
    if len(classes["train"]) < 2:
        raise ValueError(f"{folders['train']} holds {len(classes['train'])} class folder(s); at least 2 are needed")
    return sorted(classes["train"])


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


def _is_grey(path: Path) -> bool:
    """By the file's header alone; a file without a readable one is reported when it is decoded."""
    try:
        with Image.open(path) as image:
            return image.mode in GREY_MODES or image.mode.startswith("I;16")
    except (OSError, Image.DecompressionBombError):
        return True
