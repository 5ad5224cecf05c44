"""Data sets as people have them, and their images by split.

    <root>/<split>/<class>/<image>    as data.prepare lays it out
    <root>/<class>/<image>            is split here: 70 % for train, 15 % for val, 15 % for test, stratified by class
    FILE.csv                          columns file and label, and split or none; files are relative to the table
    <root>/**                         all images below a folder, without labels, to be added to those of a pretext

A split that is made here depends on the images' names alone: it is the same on every machine, and one more image moves
few others.  It is recorded in split.csv beside the images, or in data/splits/ of the root folder where that cannot be
written.  The records decide from then on: an image in one keeps its split, and new ones are assigned by the same rule.
"""

import csv
import hashlib
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data.files import expanded, locked, root_folder, say_once, write_atomically
from data.folders import (
    SPLIT_NAMES,
    ImageFolder,
    digests_of,
    has_class_folders,
    images_in,
    in_nfc,
    list_images,
    list_split_folders,
    named_as_split,
)
from data.splits import SPLITS, ImageName, assign, read_record, write_record

ALL_BELOW = "**"  # the last part of a path that means all images below a folder
TABLE = ".csv"
COLUMNS = ("file", "label", "split")  # of a table; the last is optional
UNLABELLED = "unlabelled"  # the class of images without one


def name_of_images(folder: str | Path) -> str:
    """The name of a data set, or of a folder without those above it, which differ between machines; also photos/**."""
    path = expanded(folder).resolve()
    return f"{path.parent.name}/{ALL_BELOW}" if path.name == ALL_BELOW else path.name


def list_splits(root: str | Path) -> dict[str, ImageFolder]:
    """The image files of each split, in any layout above; nothing is written.

    Raises FileNotFoundError or ValueError, naming the folder, file, line or class, for what is no data set.
    """
    root = expanded(root).resolve()  # a record is found by the whole path
    if root.name == ALL_BELOW:
        return {"train": _all_below(root.parent)}
    unsplit = _unsplit(root)
    if unsplit is not None:
        return unsplit.parts(_split_of(root, unsplit))
    return _Table.read(root).parts() if root.is_file() else list_split_folders(root)


def record_split(root: str | Path, skipped: Collection[str] = ()):
    """Write the record of a data set that comes without splits, unless it is up to date, and say once what changed.

    The names in `skipped` are of images that cannot be decoded: they keep a split, but do not count.
    """
    root = expanded(root).resolve()
    unsplit = None if root.name == ALL_BELOW else _unsplit(root)
    if unsplit is None:
        return
    if _split_of(root, unsplit) in _records(root):
        return
    with locked(root_folder() / "data" / "splits" / f".{_stem(root)}.lock"):
        recorded, split_of = _recorded(root), _split_of(root, unsplit)
        if split_of in _records(root):
            return
        images = {image._replace(split=split): () for image, split in split_of.items()}
        for path in _record_paths(root):
            try:
                write_atomically(path, lambda temporary: write_record(temporary, (), images))
                break
            except OSError:
                if path == _record_paths(root)[-1]:
                    raise
    names = unsplit.names  # a property, which names every image
    bad = {names[name] for name in skipped}
    used = {image: split for image, split in split_of.items() if image not in bad}
    words = f", without {len(skipped):,} that cannot be decoded" if skipped else ""
    say_once(f"{root}: {_what_changed(recorded, split_of, used)}{words}; the split is recorded in {path}")


def fingerprints(root: str | Path, skipped: Collection[str] = ()) -> dict[str, str]:
    """The fingerprint of each split as results hold them, without the images "<split>/<class>/<file>" in `skipped`."""
    return {
        split: images.fingerprint({name.removeprefix(f"{split}/") for name in skipped if name.startswith(f"{split}/")})
        for split, images in sources_of(list_splits(root)).items()
    }


def sources_of(listed: Mapping[str, ImageFolder]) -> dict[str, ImageFolder]:
    """The images that train, val and test come from: where only one folder is beside train, it is divided in two."""
    only = next((split for split in listed if split != "train"), "train")
    return {split: listed.get(split, listed[only]) for split in SPLIT_NAMES}


def is_split(root: str | Path) -> bool:
    """Whether a folder holds train, val or test."""
    root = expanded(root)
    return root.is_dir() and any(named_as_split(root, names) for names in SPLIT_NAMES.values())


@dataclass(frozen=True)
class _Unsplit:
    """The images of a data set that comes without splits, and what their split is recorded by."""

    images: ImageFolder
    stem: str = ""  # of a table

    @property
    def names(self) -> dict[str, ImageName]:
        """What each file is called in a record."""
        by_class = not self.images.class_of
        return _in_one_form(
            {
                name: ImageName(None, class_name, name.partition("/")[2] if by_class else name)
                for name, class_name in self.images.classes.items()
            }
        )

    def parts(self, split_of: Mapping[ImageName, str]) -> dict[str, ImageFolder]:
        """The images of each split; what is left out is counted with the first."""
        names = self.names
        return {
            split: _part(self.images, {name for name in names if split_of[names[name]] == split}, split, self.stem)
            for split in SPLITS
        }


def _unsplit(root: Path) -> _Unsplit | None:
    """The images of a folder or table without splits; None for one that has them, or is none.

    Raises ValueError for fewer than two classes.
    """
    if root.is_file():
        table = _Table.read(root)
        return None if table.splits else _Unsplit(table.images, root.stem)
    if is_split(root) or not root.is_dir() or not has_class_folders(root):
        return None
    images = list_images(root)
    _check_classes(root, images)
    left_out = images.left_out.copy()
    del left_out["outside the class folders"]  # data.image_cache counts them in every layout
    return _Unsplit(replace(images, left_out=left_out))


def _check_classes(root: Path, images: ImageFolder):
    if len(images.class_names) < 2:
        only = ", ".join(images.class_names)
        raise ValueError(f"{root} holds {len(images.class_names)} class(es), {only}; at least 2 are needed")


def _part(images: ImageFolder, names: Collection[str], split: str, stem: str) -> ImageFolder:
    kept = [(name, digest) for name, digest in zip(images.names, images.digests, strict=True) if name in names]
    return replace(
        images,
        names=tuple(name for name, _ in kept),
        digests=tuple(digest for _, digest in kept),
        left_out=images.left_out if split == "train" else Counter(),
        part=f"{stem}-{split}" if stem else split,
    )


def _all_below(folder: Path) -> ImageFolder:
    """Every image below a folder, as one class; a data set that has splits is refused, for it has test images."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of images without labels")
    names = tuple(path.relative_to(folder).as_posix() for path in images_in([folder]))
    class_of = dict.fromkeys(names, UNLABELLED)
    return ImageFolder(folder, (UNLABELLED,), names, digests_of(folder, names), Counter(), class_of, UNLABELLED)


# ----------------------------------------------------------------------------------------------------------- records


def _split_of(root: Path, unsplit: _Unsplit) -> dict[ImageName, str]:
    try:
        return assign(unsplit.names.values(), _recorded(root))
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from error


def _recorded(root: Path) -> dict[ImageName, str]:
    """The split of each image that a record of a data set names; the record beside the images decides where both do."""
    return {name: split for record in reversed(_records(root)) for name, split in record.items()}


def _records(root: Path) -> list[dict[ImageName, str]]:
    """The records of a data set that are there, each the split of its images, in the order of `_record_paths`."""
    records = []
    for path in filter(Path.is_file, _record_paths(root)):
        images = read_record(path)
        unknown = sorted({image.split for image in images} - set(SPLITS))
        if unknown:
            raise ValueError(f"{path} names the split {unknown[0]!r}; it must be one of {', '.join(SPLITS)}")
        plain = _in_one_form({image: image._replace(split=None) for image in images})
        records.append({name: image.split for image, name in plain.items()})
    return records


def _in_one_form(names: Mapping[str | ImageName, ImageName]) -> dict[str | ImageName, ImageName]:
    """Names in NFC, so that a copy through another system keeps its split; as they are where two would be one."""
    found = {key: name._replace(file_name=in_nfc(name.file_name)) for key, name in names.items()}
    return found if len(set(found.values())) == len(set(names.values())) else dict(names)


def _record_paths(root: Path) -> tuple[Path, Path]:
    """Where records of a data set may lie: beside it, and in the root folder."""
    beside = root.with_suffix(".split.csv") if root.suffix.lower() == TABLE else root / "split.csv"
    return beside, root_folder() / "data" / "splits" / f"{_stem(root)}.csv"


def _stem(root: Path) -> str:
    return f"{root.stem[:40]}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"


def _what_changed(
    recorded: Mapping[ImageName, str], split_of: Mapping[ImageName, str], used: Mapping[ImageName, str]
) -> str:
    counts = Counter(used.values())
    sizes = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS)
    if not recorded:
        return f"it has no splits, so its images were split by class and name: {sizes}"
    new, gone = len(split_of.keys() - recorded.keys()), len(recorded.keys() - split_of.keys())
    moved = sum(split_of.get(image, split) != split for image, split in recorded.items())
    words = ((new, "new, and assigned by the same rule"), (gone, "gone"), (moved, "moved into an empty split"))
    changes = ", ".join(f"{count:,} image(s) {what}" for count, what in words if count)
    return f"since the last record {changes}: {sizes}"


# ------------------------------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class _Table:
    """A CSV file of images: their files and labels, and the split of each file, or no splits at all."""

    path: Path
    images: ImageFolder
    splits: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> "_Table":
        """Read a table; raises ValueError that names its first fault and the line of it."""
        class_of, splits = {}, {}
        for line, (file, label, split) in _lines(path):
            if not file or not label:
                raise ValueError(f"{path}, line {line}: {'label' if file else 'file'} is empty")
            file = os.path.normpath(file)  # ./a.png is a.png
            if not (path.parent / file).is_file():
                # A Mac may have written the name in the other Unicode form.
                forms = [unicodedata.normalize(form, file) for form in ("NFC", "NFD")]
                file = next((form for form in forms if (path.parent / form).is_file()), "")
                if not file:
                    raise ValueError(f"{path}, line {line}: there is no file {path.parent / forms[0]}")
            if file in class_of:
                raise ValueError(f"{path}, line {line}: {file} stands in the table twice")
            class_of[file] = in_nfc(label)
            if split is not None:
                splits[file] = _split_named(split, f"{path}, line {line}")
        names = tuple(sorted(class_of, key=lambda name: (class_of[name], name)))
        classes = tuple(sorted(set(class_of.values())))
        images = ImageFolder(path.parent, classes, names, digests_of(path.parent, names), Counter(), class_of)
        _check_classes(path, images)
        return cls(path, images, splits)

    def parts(self) -> dict[str, ImageFolder]:
        """The images of each split that the table names; ValueError unless each class is in each of them."""
        found = [split for split in SPLITS if split in self.splits.values()]
        if "train" not in found or len(found) < 2:
            raise ValueError(f"{self.path} names the splits {', '.join(found)}; it needs train, and val or test")
        counts = Counter((split, self.images.class_of[name]) for name, split in self.splits.items())
        for split in found:
            for class_name in self.images.class_names:
                if not counts[split, class_name]:
                    raise ValueError(f"{self.path}: class {class_name!r} has no image for {split}")
        by_split = {split: {name for name, of_name in self.splits.items() if of_name == split} for split in found}
        return {split: _part(self.images, names, split, self.path.stem) for split, names in by_split.items()}


def _lines(path: Path) -> list[tuple[int, tuple[str, str, str | None]]]:
    """The number and the file, label and split (or None) of each line of a table, but for empty lines."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        delimiter = next((mark for mark in ",;\t" if mark in text.partition("\n")[0]), ",")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, row) for row in reader]
        header = [name.strip().lower() for name in rows.pop(0)[1]] if rows else []
        missing = [name for name in COLUMNS[:2] if name not in header]
        twice = [name for name in COLUMNS if header.count(name) > 1]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a table of images ({error}); its columns must be file and label") from error
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns must be file and label, and split or none")
    if twice:
        raise ValueError(f"{path} has the column {twice[0]!r} twice")
    places = [header.index(name) if name in header else None for name in COLUMNS]
    found = []
    for line, row in rows:
        if any(cell.strip() for cell in row):
            if len(row) != len(header):
                raise ValueError(f"{path}, line {line}: there are {len(row)} cells, but {len(header)} columns")
            found.append((line, tuple(None if place is None else row[place].strip() for place in places)))
    return found


def _split_named(name: str, where: str) -> str:
    for split, names in SPLIT_NAMES.items():
        if name.lower() in names:
            return split
    raise ValueError(f"{where}: split is {name!r}; it must be one of {', '.join(SPLITS)}")
