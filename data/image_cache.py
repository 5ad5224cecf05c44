"""Folders of scenes, decoded once into a store on disk that is mapped, not read.

A data set is a folder `<root>/<split>/<class>/<image>`.  Decoding JPEGs costs more than anything else that is done to
them, so each split is decoded and resized once, into an .npy of bytes (N, channels, size, size) beside an index (.json)
that tells which files it was made from.  A file that is added, removed or changed makes the store anew.
"""

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from tqdm.auto import tqdm

from data.prepare import DATA_SETS, is_image, prepare

ROOT = Path(__file__).resolve().parents[1]
STORES = ROOT / "data" / "stores"
RESIZE_RULES = ("squash", "imagenet")
SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
VAL_SHARE = 0.3  # of the images that are not for training, where only one folder holds them all
STORE_FORMAT = 1
CHUNK = 256  # images decoded at a time


@dataclass(frozen=True)
class Selection:
    """Images of an array, by their numbers and in their order; none is read before it is asked for.

    It is counted, indexed (by a number, numbers or a slice) and converted as the array of these images would be.
    """

    images: np.ndarray
    numbers: np.ndarray

    def __len__(self):
        """How many images there are."""
        return len(self.numbers)

    def __getitem__(self, index):
        """Bytes of one image, or of several, copied from the disk."""
        return self.images[self.numbers[index]]

    def __array__(self, dtype=None, copy=None):
        """All of them, in memory."""
        return np.asarray(self.images[self.numbers], dtype=dtype)

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
        images, numbers = self.images, np.arange(len(self))
        if isinstance(images, Selection):
            images, numbers = images.images, images.numbers
        return replace(
            self,
            images=Selection(images, numbers[indices]),
            labels=self.labels[indices],
            names=tuple(self.names[i] for i in indices),
        )

    def first_of_each_class(self, images_per_class: int) -> "Scenes":
        """At most so many images of each class, the first by name."""
        kept = [np.flatnonzero(self.labels == label)[:images_per_class] for label in range(len(self.class_names))]
        return self.subset(np.concatenate(kept))

    def share_of_each_class(self, share: float, seed: int) -> "Scenes":
        """This share (above 0, to 1) of each class, drawn by seed; ValueError names a class that would be empty."""
        generator = np.random.default_rng(seed)
        kept = []
        for label, name in enumerate(self.class_names):
            of_class = np.flatnonzero(self.labels == label)
            number = round(share * len(of_class))
            if number < 1:
                raise ValueError(f"a share of {share} leaves none of the {len(of_class)} images of class {name}")
            kept.append(np.sort(generator.permutation(of_class)[:number]))
        return self.subset(np.concatenate(kept))


def locate(data: str | Path) -> Path:
    """The folder of a data set: a prepared one by its name, or any other by its path.

    The synthetic scenes are drawn on first use; they need no download.  Raises FileNotFoundError that says what to do.
    """
    prepared = ROOT / "data" / str(data)
    if data == "synthetic":
        prepare("synthetic", to=prepared, progress=False)
    if str(data) in DATA_SETS:
        if not prepared.is_dir():
            raise FileNotFoundError(
                f"the data set {data} is not prepared: run `python -m data.prepare {data}` (it takes --source), "
                "or name a folder of your own, or synthetic, with --data"
            )
        return prepared
    if not Path(data).is_dir():
        raise FileNotFoundError(f"there is no data folder {data}; known names are {', '.join(DATA_SETS)}")
    return Path(data).resolve()


def load_splits(
    root: Path | str,
    size: int = 224,
    resize: str = "squash",
    stores: Path | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> dict[str, Scenes]:
    """The scenes of a data set by split: "train", "val" and "test", all with the same classes.

    If only one folder besides `train` holds images (val, validation or test), its images are divided, class by class
    and always in the same way, into val (30 %) and test (70 %): what chooses must not be what reports.
    Raises FileNotFoundError for a missing folder, ValueError for one with no, one or differing classes, and for an
    image that cannot be decoded (unless `skip_bad_images`).
    """
    root = Path(root)
    folders = _split_folders(root)
    class_names = _class_names(folders)
    splits = {
        split: load_scenes(folder, size, resize, stores, skip_bad_images, progress) for split, folder in folders.items()
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
    stores: Path | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> Scenes:
    """All images of `<folder>/<class>/<image>`, decoded and resized to size x size by the rule `resize`.

    "squash" resizes to the square, whatever the image's shape (the first report).  "imagenet" resizes the shorter side
    to 256/224 of the size, bicubic, and crops the centre (the second report, and torchvision's weights).
    """
    folder, stores = Path(folder).resolve(), stores or STORES
    if resize not in RESIZE_RULES:
        raise ValueError(f"resize is {resize!r}; it must be one of {', '.join(RESIZE_RULES)}")
    class_names = tuple(sorted(entry.name for entry in folder.iterdir() if _is_class_folder(entry)))
    files = [path for name in class_names for path in sorted((folder / name).iterdir()) if is_image(path.name)]
    if not files:
        raise ValueError(f"{folder} holds no images; they must lie in {folder}/<class>/<image>")
    made_from = {
        "format": STORE_FORMAT,
        "folder": str(folder),
        "size": size,
        "resize": resize,
        "skip_bad_images": skip_bad_images,
        "files": _listing_digest(folder, files),
    }
    place = hashlib.sha256(f"{folder}|{size}|{resize}".encode()).hexdigest()[:8]
    index_path = stores / f"{folder.parent.name}-{folder.name}-{resize}-{size}-{place}.json"
    stores.mkdir(parents=True, exist_ok=True)
    with FileLock(index_path.with_suffix(".lock")):  # of several processes one builds, and the others find it built
        index = _read_index(index_path)
        if index is None or index["made_from"] != made_from or not (stores / index["images"]).exists():
            index = _build_store(folder, files, made_from, index_path, progress)
        images = np.load(stores / index["images"], mmap_mode="r")  # here: the next to build removes this file
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
    """One image as bytes (channels, size, size): 1 channel if the file is grey, else 3.

    Raises ValueError that names the file if it cannot be decoded whole.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode in ("F", "I"):  # PIL would clip them to 0 and 255
                raise ValueError("32 bits a pixel have no known range; 8 and 16 are read")
            if image.mode.startswith("I;16"):  # PIL would clip 16 bits to 255 instead of scaling them
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
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


def _build_store(folder: Path, files: list[Path], made_from: dict, index_path: Path, progress: bool) -> dict:
    """Decode every file into a new store and return its index; memory holds CHUNK images at a time.

    After each chunk its names and digests are written into a journal beside the images: a build that is killed, or
    ended with Ctrl-C, goes on from there, unless files or settings have changed; one that fails is removed.  At the end
    the images get a name of their own and the index is replaced last, in one step: whoever reads finds the old store or
    the new one, and a crash leaves the old one or none.
    """
    building, journal = index_path.with_suffix(".building.npy"), index_path.with_suffix(".building.jsonl")
    temporary = index_path.with_suffix(".tmp")
    size, resize = made_from["size"], made_from["resize"]

    def read(path):
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest(), decode(path, size, resize)
        except ValueError:
            if made_from["skip_bad_images"]:
                return None, None
            raise

    try:
        done = _read_journal(journal, building, made_from)
        if done is None:
            journal.unlink(missing_ok=True)  # first: it must never speak of an array that is still empty
            channels = 1 if all(_is_grey(path) for path in files) else 3
            _create_array(building, (len(files), channels, size, size))
            journal.write_text(json.dumps(made_from) + "\n")
            done = []
        images, row = np.load(building, mmap_mode="r+"), sum(digest is not None for _, digest in done)
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(total=len(files), initial=len(done), desc=f"decoding {folder.name}", disable=not progress) as bar,
            journal.open("a") as lines,
        ):
            while len(done) < len(files):
                paths = files[len(done) : len(done) + CHUNK]
                chunk = []
                for path, (digest, image) in zip(paths, pool.map(read, paths), strict=True):
                    chunk.append((path.relative_to(folder).as_posix(), digest))
                    if digest is not None:
                        images[row] = image  # a grey image among coloured ones fills all three channels
                        row += 1
                images.flush()
                lines.write(json.dumps(chunk) + "\n")
                lines.flush()
                done += chunk
                bar.update(len(chunk))
        fingerprint = hashlib.sha256()
        for name, digest in done:
            if digest is not None:
                fingerprint.update(name.encode() + bytes.fromhex(digest))
        index = {
            "made_from": made_from,
            "images": index_path.with_suffix(f".{fingerprint.hexdigest()[:8]}.npy").name,
            "fingerprint": fingerprint.hexdigest(),
            "names": [name for name, digest in done if digest is not None],
            "skipped": [name for name, digest in done if digest is None],
        }
        _cut_array(building, (row, *images.shape[1:]))
        temporary.write_text(json.dumps(index))
        building.replace(index_path.parent / index["images"])
        journal.unlink()
        temporary.replace(index_path)
    except Exception:  # not Ctrl-C: the next call goes on
        for path in (building, journal, temporary):
            path.unlink(missing_ok=True)
        raise
    for other in index_path.parent.glob(f"{index_path.stem}.*.npy"):  # the old images, or those of a killed build
        if other.name != index["images"]:
            other.unlink()
    return index


def _read_journal(path: Path, building: Path, made_from: dict) -> list | None:
    """Names and digests of what an unfinished build has decoded, or None if there is none of the same files.

    A last line that was not written to its end is cut off.
    """
    try:
        with path.open("rb+") as file:
            whole = [line for line in file if line.endswith(b"\n")]
            file.truncate(sum(map(len, whole)))
        heading, *chunks = map(json.loads, whole)
        np.load(building, mmap_mode="r")
    except (FileNotFoundError, ValueError):  # there is none, or it is damaged: not JSON, no lines, images cut short
        return None
    return [tuple(pair) for chunk in chunks for pair in chunk] if heading == made_from else None


def _create_array(path: Path, shape: tuple[int, ...]):
    """An .npy of bytes with its space on the disk: to write to a map of a disk that is full would end the process."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _cut_array(path: Path, shape: tuple[int, ...]):
    """Keep the first rows of an .npy of bytes, in place: NumPy makes headers equally long for any number of rows."""
    with path.open("rb+") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + math.prod(shape))


def _read_index(path: Path) -> dict | None:
    """The index, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


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


def _class_names(folders: dict[str, Path]) -> list[str]:
    """The class folders, sorted; all splits must have the same ones."""
    classes = {split: {e.name for e in folder.iterdir() if _is_class_folder(e)} for split, folder in folders.items()}
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
    """Into val and test, class by class, by a fixed seed; every class keeps at least one image in each."""
    generator = np.random.default_rng(0)
    chosen = np.zeros(len(scenes), dtype=bool)
    for label, class_name in enumerate(scenes.class_names):
        of_class = np.flatnonzero(scenes.labels == label)
        if len(of_class) < 2:
            raise ValueError(f"class {class_name!r} has one image besides train; val and test need one each")
        chosen[generator.permutation(of_class)[: max(1, round(VAL_SHARE * len(of_class)))]] = True
    return scenes.subset(np.flatnonzero(chosen)), scenes.subset(np.flatnonzero(~chosen))


def _listing_digest(folder: Path, files: list[Path]) -> str:
    """A digest that changes when a file is added, removed, renamed or written to."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _is_class_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _is_grey(path: Path) -> bool:
    """By the file's header alone; a file without a readable one is reported when it is decoded."""
    try:
        with Image.open(path) as image:
            return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16")
    except (OSError, Image.DecompressionBombError):
        return True
