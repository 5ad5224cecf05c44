"""Folders of images, `<root>/<split>/<class>/<image>`: which files belong, which are left out, what they contain."""

import functools
import hashlib
import itertools
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from data.files import expanded, say_once

IMAGE_SUFFIXES = (  # of formats that Pillow decodes by itself; others are counted as left out
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".jpf", ".png", ".apng", ".gif", ".webp", ".avif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx", ".qoi", ".ico"),
)
CHUNK = 64  # files that a thread reads at a time
SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
SYSTEM_NAMES = (  # what operating systems and network drives put beside images
    *("@eaDir", "#recycle", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information"),
    *("Thumbs.db", "desktop.ini"),
)


@dataclass(frozen=True)
class ImageFolder:
    """The image files of one split, `<folder>/<class>/<image>`, in the order of their classes and names.

    A class name that is written in two Unicode forms, as by Linux and by an old Mac, is one: class_names are in NFC.
    Where the names are other paths below the folder, `class_of` gives the class of each.
    """

    folder: Path
    class_names: tuple[str, ...]
    names: tuple[str, ...] = ()  # "<class>/<file>", as on the disk
    digests: tuple[bytes | None, ...] = ()  # SHA-256 of each file; None where it cannot be read
    left_out: Counter = field(default_factory=Counter)  # files that are not taken, by a word for the reason
    class_of: Mapping[str, str] = field(default_factory=dict)
    part: str = ""  # which of the folder's images these are, where they are not all

    @property
    def classes(self) -> dict[str, str]:
        """The class of each name."""
        return {name: self.class_of.get(name) or in_nfc(name.split("/")[0]) for name in self.names}

    @property
    def labels(self) -> dict[str, int]:
        """The label of each name."""
        label_of = {class_name: label for label, class_name in enumerate(self.class_names)}
        return {name: label_of[class_name] for name, class_name in self.classes.items()}

    def fingerprint(self, skipped: Collection[str] = ()) -> str:
        """A digest of the files' names and bytes, without those that are skipped; the same on every machine."""
        digest = hashlib.sha256()
        for name, of_file in zip(self.names, self.digests, strict=True):
            if name not in skipped:
                labeled = f"{self.class_of[name]}/{name}" if self.class_of else name
                digest.update(os.fsencode(labeled) + (of_file or b""))
        return digest.hexdigest()


def is_image(file_name: str) -> bool:
    """Whether a file is taken for an image, by its name: hidden files and other suffixes are not."""
    return file_name.lower().endswith(IMAGE_SUFFIXES) and not file_name.startswith(".")


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split that a data set has: train, and val, test or both.

    Raises FileNotFoundError where one is missing, and ValueError where one has two names or is none; both say what was
    found.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no data folder {root}; it must hold <split>/<class>/<image>")
    folders = {}
    for split, names in SPLIT_NAMES.items():
        found = named_as_split(root, names)
        if len(found) > 1:
            raise ValueError(f"{root} holds both {found[0].name} and {found[1].name}; keep one of them")
        if found:
            folders[split] = found[0]
    for folder in folders.values():
        if _images_of(folder) and not has_class_folders(folder):
            raise ValueError(
                f"{folder} is taken for a split, but holds images and no class folders; sort them "
                f"into <class>/<image>, or, if {folder.name} is a class, rename it or list files and labels in a table"
            )
    others = [each.name for each in _folders_in(root) if each not in folders.values() and has_class_folders(each)]
    if "train" not in folders or len(folders) < 2:
        raise FileNotFoundError(_what_is_missing(root, [each.name for each in folders.values()], others))
    if others:
        say_once(f"{root}: {', '.join(others)}/ is left out, since splits are named train, val and test")
    return folders


def _what_is_missing(root: Path, splits: Sequence[str], others: Sequence[str]) -> str:
    """Why a folder is no data set, by what it holds: folders of splits, and other folders of folders of images."""
    if splits:
        found = ", ".join((*splits, *others))
        return f"{root} holds {found}; it must hold the folders train and val (or test), each with <class>/<image>"
    if _images_of(root):
        return (
            f"{root} holds images and no class folders; sort them into <class>/<image>, or list files and labels in a "
            "table (.csv); images without labels are for --unlabeled of train.py, beside labeled ones"
        )
    if others:
        inside = next(each.name for each in _folders_in(root / others[0]) if _images_of(each))
        return (
            f"{root} holds images in {others[0]}/{inside}, neither as <class>/<image> nor as <split>/<class>/<image>; "
            f"if {others[0]} is a split, call it train, val or test, and if it is a class, move its images up into it"
        )
    return f"{root} holds no images in <class>/<image> or <split>/<class>/<image>"


def named_as_split(root: Path, names: Sequence[str]) -> list[Path]:
    """The folders of a data set that have one of the names of a split.

    Another case, as in Val, counts where folders are inside: Train alone may be a class.
    """
    return [
        folder
        for folder in sorted(root.iterdir())
        if folder.name.lower() in names and folder.is_dir() and (folder.name in names or _folders_in(folder))
    ]


def has_class_folders(root: Path) -> bool:
    """Whether folders with images are inside."""
    return any(map(_images_of, _folders_in(root)))


def _images_of(folder: Path) -> list[str]:
    """The names of the images directly in a folder."""
    return [name for name in os.listdir(folder) if is_image(name)]


def _folders_in(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and is_users_own(path.name)]


def list_split_folders(root: Path) -> dict[str, ImageFolder]:
    """The image files of each split; raises ValueError unless all have the same classes, at least two."""
    found = {split: list_images(folder) for split, folder in split_folders(root).items()}
    train = found["train"]
    for of_split in found.values():
        differing = sorted(set(of_split.class_names) ^ set(train.class_names))
        if differing:
            has, lacks = (train, of_split) if differing[0] in train.class_names else (of_split, train)
            raise ValueError(
                f"class {differing[0]!r} is in {has.folder} but not in {lacks.folder}; every split needs it"
            )
    if len(train.class_names) < 2:
        raise ValueError(f"{train.folder} holds {len(train.class_names)} class folder(s); at least 2 are needed")
    return found


def list_images(folder: str | Path) -> ImageFolder:
    """The image files of `<folder>/<class>/<image>`; every file is read, once in a process unless it changes.

    Raises FileNotFoundError for a missing folder, and ValueError for a class that has two folders, whose names differ
    in their Unicode form.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of images; it must hold <class>/<image>")
    classes, left_out = {}, Counter()
    for entry in sorted(folder.iterdir()):
        if is_image(entry.name):
            left_out["outside the class folders"] += 1
        elif entry.is_dir() and is_users_own(entry.name):
            if in_nfc(entry.name) in classes:
                raise ValueError(f"{folder} holds class {entry.name!r} twice, in two Unicode forms; join the two")
            classes[in_nfc(entry.name)] = entry
    names = []
    for _, class_folder in sorted(classes.items()):
        for name in sorted(os.listdir(class_folder)):
            if is_image(name):
                names.append(f"{class_folder.name}/{name}")
            elif (class_folder / name).is_dir():
                left_out["in subfolders"] += 0 if name in SYSTEM_NAMES else _count_images(class_folder / name)
            else:
                left_out[reason_to_leave_out(name)] += 1
    del left_out[""]
    return ImageFolder(folder, tuple(sorted(classes)), tuple(names), digests_of(folder, names), left_out)


def digests_of(folder: Path, names: Sequence[str]) -> tuple[bytes | None, ...]:
    """SHA-256 of each file of a folder, read once in a process unless it changes; None where it cannot be read."""
    paths = [os.path.join(folder, name) for name in names]
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(itertools.chain.from_iterable(pool.map(_digests_of_contents, chunks)))


def images_in(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files that are named, and every image below the folders that are named, sorted by folder and name.

    Says once how many files of the folders are left out.  Raises FileNotFoundError for a path that is not there, and
    ValueError for a folder without images.
    """
    found = []
    for path in map(expanded, [paths] if isinstance(paths, (str, Path)) else paths):
        if path.is_dir():
            found += _images_below(path)
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"there is no image {path}")
    return found


def _images_below(root: Path) -> list[Path]:
    images, left_out, seen, closed = [], Counter(), set(), []
    for parent, folders, names in os.walk(root, onerror=closed.append, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder that is here already, or that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(is_users_own, folders))
        images += [Path(parent, name) for name in sorted(names) if is_image(name)]
        left_out.update(reason_to_leave_out(name) for name in names)
    del left_out[""]
    if closed:
        say_once(f"{root}: {len(closed):,} folder(s) cannot be read, such as {closed[0].filename}")
    if not images:
        raise ValueError(f"the folder {root} holds no images")
    if left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
        say_once(f"{root}: {left_out.total():,} file(s) left out: {reasons}")
    return images


def is_users_own(folder_name: str) -> bool:
    """Whether a folder is neither hidden nor put there by an operating system, by its name."""
    return not folder_name.startswith(".") and folder_name not in SYSTEM_NAMES


def reason_to_leave_out(file_name: str) -> str:
    """Why a file is not taken for an image, by its name; "" if it is taken, or if nobody misses it."""
    if is_image(file_name) or file_name in SYSTEM_NAMES:
        return ""
    if file_name.startswith("."):
        return "hidden" if is_image(file_name.lstrip(".")) else ""
    return Path(file_name).suffix.lower() or "without a suffix"


def _count_images(folder: Path) -> int:
    return sum(is_image(name) for _, _, names in os.walk(folder) for name in names)


def _digests_of_contents(paths: list[str]) -> list[bytes | None]:
    return [_digest_of_contents(path) for path in paths]


def _digest_of_contents(path: str) -> bytes | None:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return _digest_of_version(path, version)
    except OSError:
        return None


@functools.lru_cache(maxsize=2**20)
def _digest_of_version(path: str, version: tuple[int, ...]) -> bytes:
    """SHA-256 of a file.  Within a process its version decides: no program can set the time of the last change."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def in_nfc(name: str) -> str:
    """A name in one Unicode form, whatever system wrote it."""
    return unicodedata.normalize("NFC", name)
