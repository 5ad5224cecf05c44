"""Splits: the names of images in a prepared folder, how they are divided, and the record that says so (split.csv)."""

import csv
import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.files import digest_of_file, expanded

SPLITS = ("train", "val", "test")
SEED = 0  # of every split that is made here
SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}  # of a data set that comes without splits


class ImageName(NamedTuple):
    """What an image is called in a prepared folder: `<split>/<class_name>/<file_name>`."""

    split: str | None  # None: not split yet
    class_name: str
    file_name: str

    def __str__(self):
        """Give the path below the prepared folder."""
        return "/".join(part for part in self if part)


def divide(images: Iterable[ImageName], shares: Mapping[str, float]) -> dict[ImageName, str]:
    """Divide images over splits, stratified by class; returns {image: split}.

    shares: {split: fraction}, adding up to 1.  The order is that of a hash of SEED and the name.  So the split is the
    same on every machine and version, and one more image moves few others.
    """
    split_of = {}
    for members in _shuffled_classes(images).values():
        start, share_so_far = 0, 0.0
        for split, share in shares.items():
            share_so_far += share
            stop = round(share_so_far * len(members))
            split_of.update(dict.fromkeys(members[start:stop], split))
            start = stop
    return split_of


def assign(images: Iterable[ImageName], recorded: Mapping[ImageName, str]) -> dict[ImageName, str]:
    """The split of images that came without one: the recorded split, and for new images that of `divide` by SHARES.

    Returns {image: split}.  Every class has an image in each split: where it would have none, its largest split gives
    one.  Raises ValueError, naming the class, for one of fewer than three images.
    """
    classes = _shuffled_classes(images)
    for class_name, members in classes.items():
        if len(members) < len(SPLITS):
            raise ValueError(f"class {class_name!r} has {len(members)} image(s); train, val and test need one each")
    by_rule = divide((image for members in classes.values() for image in members), SHARES)
    split_of = {image: recorded.get(image, split) for image, split in by_rule.items()}
    for members in classes.values():
        for split in SPLITS:
            counts = Counter(split_of[image] for image in members)
            if not counts[split]:
                largest = max(SPLITS, key=counts.__getitem__)
                split_of[[image for image in members if split_of[image] == largest][-1]] = split
    return split_of


def divide_by_number(
    images: Collection[ImageName], sizes: Mapping[str, int | float], where: str = "the source"
) -> dict[ImageName, str]:
    """Divide images over val and test, of exactly the sizes asked for, and train, the rest; returns {image: split}.

    sizes: {"val": images (int) or share of all (float below 1), "test": likewise}.  Stratified: each class gives its
    part, rounded so that they add up.  Raises ValueError, naming `where`, if nothing is left to train on.
    """
    numbers = numbers_of_images(sizes, len(images))
    if sum(numbers.values()) >= len(images):
        asked = " and ".join(f"{number:,} for {split}" for split, number in numbers.items())
        raise ValueError(f"{where} has {len(images):,} images, and {asked} are asked for: none would be left for train")
    classes = _shuffled_classes(images)
    split_of, start = dict.fromkeys(images, "train"), dict.fromkeys(classes, 0)
    for split, number in numbers.items():
        counts = {name: len(members) for name, members in classes.items()}
        left = {name: count - start[name] for name, count in counts.items()}
        for class_name, part in _parts(number, counts, left).items():
            stop = start[class_name] + part
            split_of.update(dict.fromkeys(classes[class_name][start[class_name] : stop], split))
            start[class_name] = stop
    return split_of


def numbers_of_images(sizes: Mapping[str, int | float], total: int) -> dict[str, int]:
    """Sizes of splits in images: an int is one already, a float is a share of the total."""
    return {split: size if isinstance(size, int) else round(size * total) for split, size in sizes.items()}


def _shuffled_classes(images: Iterable[ImageName]) -> dict[str, list[ImageName]]:
    """Return {class: its images}, each class in the order of a hash of SEED and the name."""
    classes = defaultdict(list)
    for image in images:
        classes[image.class_name].append(image)
    for members in classes.values():
        members.sort(key=_shuffled_place)
    return classes


def _shuffled_place(image: ImageName) -> bytes:
    return hashlib.sha256(os.fsencode(f"{SEED}/{image.class_name}/{image.file_name}")).digest()


def _parts(number: int, counts: Mapping[str, int], left: Mapping[str, int]) -> dict[str, int]:
    """Divide a number in proportion to counts, into integers that add up to it; the largest remainders round up.

    No part is above what is left of its count, which adds up to at least the number.
    """
    total = sum(counts.values())
    parts = {name: number * count // total for name, count in counts.items()}
    by_remainder = sorted(counts, key=lambda name: (-(number * counts[name] % total), name))
    for name in itertools.cycle(by_remainder):
        if sum(parts.values()) == number:
            return parts
        parts[name] += parts[name] < left[name]


def write_record(path: Path, more_columns: Sequence[str], images: Mapping[ImageName, Sequence]) -> None:
    """Write {ImageName: values of more_columns} as CSV, sorted by class, file name and split."""
    returned = any("\r" in image.class_name + image.file_name for image in images)
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # names are bytes on Linux
        # Quoted, because the writer leaves a carriage return in a name as it is, and the reader ends a line at it.
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if returned else csv.QUOTE_MINIMAL)
        writer.writerow(("class", "file_name", "split", *more_columns))
        writer.writerows(sorted((image.class_name, image.file_name, image.split, *images[image]) for image in images))


def read_record(path: Path) -> dict[ImageName, list[str]]:
    """Return {ImageName: values of further columns}; raises ValueError for a file that is not a complete record."""
    try:
        # A spreadsheet saves a byte order mark, and semicolons in many countries.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            delimiter = ";" if file.readline().replace('"', "").startswith("class;") else ","
            file.seek(0)
            header, *rows = csv.reader(file, strict=True, delimiter=delimiter)
        if header[:3] != ["class", "file_name", "split"] or any(len(row) != len(header) for row in rows):
            raise ValueError("its columns must be class, file_name, split and those that data.prepare adds")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a complete record ({error})") from error
    return {ImageName(split, class_name, file_name): values for class_name, file_name, split, *values in rows}


def duplicates_across_splits(folder: str | Path) -> list[list[ImageName]]:
    """Images of a prepared folder that have the same bytes, in groups that do not lie in one split alone."""
    folder, same_bytes = expanded(folder), defaultdict(list)
    for image in sorted(read_record(folder / "split.csv")):
        same_bytes[digest_of_file(folder / str(image))].append(image)
    return [same for same in same_bytes.values() if len({image.split for image in same}) > 1]
