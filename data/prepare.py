"""Get a data set, check it, and lay it out as <split>/<class>/<image>.

    python -m data.prepare 15scene|nature|cifar10|synthetic [--source FOLDER|ZIP|TAR|URL] [--to FOLDER]
                           [--checksum md5:HEX|sha256:HEX] [--skip-bad-images]
                           [--val NUMBER|SHARE --test NUMBER|SHARE] [--decode imagenet:224 ...]

The splits are always called train, val and test (cifar10 has no val).  Beside them lies the record, split.csv, with a
row an image (class, file_name, split, bytes), and skipped.csv if bad images were left out.  A second run compares the
folder with its record and changes nothing.  Everything is built in a hidden folder beside the result and renamed at
the end: an error or a crash leaves the old folder or none.

nature keeps a test folder of its source, unless --val and --test ask for sizes: those are drawn from all its images.
The split of 15scene is data/manifests/15scene.csv, which was made once by
    python -c "from data.prepare import make_manifest; make_manifest('../shared/data/15SceneData')"
"""

import argparse
import csv
import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from data.download import check_checksum, download, unpack

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ROOT / "data" / "manifests" / "15scene.csv"
DATA_SETS = ("15scene", "nature", "cifar10", "synthetic")
SPLITS = ("train", "val", "test")
SEED = 0  # of every split drawn here
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

# Folder of a source -> split.  The seg_ folders are those of the public Intel archive.
SPLIT_FOLDERS = {
    "train": "train",
    "seg_train": "train",
    "val": "val",
    "validation": "val",
    "test": "test",
    "seg_test": "test",
}

CLASS_NAMES = {
    "15scene": (
        "bedroom",
        "coast",
        "forest",
        "highway",
        "industrial",
        "insidecity",
        "kitchen",
        "livingroom",
        "mountain",
        "office",
        "opencountry",
        "store",
        "street",
        "suburb",
        "tallbuilding",
    ),
    "nature": ("buildings", "forest", "glacier", "mountain", "sea", "street"),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}

# Folder of a 15-Scene source -> class: the classes as they are, and the original archive's names where they differ.
FOLDERS_OF_15SCENE = {class_name: class_name for class_name in CLASS_NAMES["15scene"]} | {
    "CALsuburb": "suburb",
    "MITcoast": "coast",
    "MITforest": "forest",
    "MIThighway": "highway",
    "MITinsidecity": "insidecity",
    "MITmountain": "mountain",
    "MITopencountry": "opencountry",
    "MITstreet": "street",
    "MITtallbuilding": "tallbuilding",
    "PARoffice": "office",
}

# Data set -> (address, checksum).  That of 15scene is recorded in public code and was not tried by us; that of
# cifar10 is the one torchvision uses.
ADDRESSES = {
    "15scene": (
        "http://www-cvr.ai.uiuc.edu/ponce_grp/data/scene_categories/scene_categories.zip",
        "md5:58828019197b2ad0a7efb472e7a85c2a",
    ),
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "md5:c58f30108f718f92721af3b95e74349a",
    ),
}

# Data set -> where else a person finds it.
ELSEWHERE = {
    "15scene": "15-Scene is also article 7007177 of figshare.com",
    "nature": "the Intel scene images are puneet6060/intel-image-classification on kaggle.com",
    "cifar10": "CIFAR-10 is cifar-10-python.tar.gz on www.cs.toronto.edu/~kriz",
}


class ImageName(NamedTuple):
    """What an image is called in a prepared folder: `<split>/<class_name>/<file_name>`."""

    split: str | None  # None: not split yet
    class_name: str
    file_name: str

    def __str__(self):
        """Give the path below the prepared folder."""
        return "/".join(part for part in self if part)


def prepare(name, source=None, to=None, checksum=None, skip_bad_images=False, progress=True, val=None, test=None):
    """Prepare a data set as `<to>/<split>/<class>/<image>`, or verify the one that is there; returns the folder.

    name: "15scene", "nature", "cifar10" or "synthetic".  source: folder, zip or tar archive, or http(s) address of
    an archive; None takes the public address (nature has none).  to: default ROOT/data/<name>.  checksum: "md5:HEX"
    or "sha256:HEX" of the archive.  skip_bad_images: leave out images that cannot be decoded, and record them.
    progress: show bars and the closing table.  val, test: of nature, how many images (int) or which share of all
    (float below 1), drawn anew whatever split the source has; both or neither.

    Raises ValueError, FileNotFoundError, ConnectionError or another OSError with one sentence that names the file,
    class or value; nothing is left behind then, but for a download, with which the next run goes on.

    Sources: 15-Scene (Lazebnik et al. 2006; its original archive is also article 7007177 of figshare), the Intel
    scene images (2018), CIFAR-10 (Krizhevsky 2009).
    """
    if name not in DATA_SETS:
        raise ValueError(f"there is no data set {name!r}: choose one of {', '.join(DATA_SETS)}")
    held_out = _held_out(name, val, test)
    to = Path(to or ROOT / "data" / name).absolute()
    if to.exists() and any(to.iterdir()):
        _remove_unfinished(to)
        images, skipped = verify(name, to)
        _check_sizes(images | skipped, held_out, to)
        if progress:
            print(f"{name}: nothing to do, {to} is complete and no source is read (delete it to prepare it anew)")
            print(_summary(name, images, skipped))
        return to

    if source is None and name in ADDRESSES:
        source, known_checksum = ADDRESSES[name]
        checksum = checksum or known_checksum
    address_digest = hashlib.sha256(str(source).encode()).hexdigest()[:8]  # or two addresses might share one .part
    download_path = to.with_name(f".{to.name}.download-{address_digest}-{Path(str(source)).name}")
    to.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(to.with_name(f".{to.name}.lock"))
    with lock:  # of several processes one prepares at a time
        try:
            if to.exists() and any(to.iterdir()):  # another was faster
                return prepare(name, source, to, checksum, skip_bad_images, progress, val, test)
            _remove_unfinished(to)
            images, skipped, duplicates = _build(
                name, source, to, checksum, download_path, held_out, skip_bad_images, progress
            )
        finally:
            Path(lock.lock_file).unlink()
    download_path.unlink(missing_ok=True)
    if progress:
        print(_table(images))
        for image, reason in skipped.items():
            print(f"left out as bad: {image} ({reason})")
        for same in duplicates:
            print(f"the same bytes in more than one split: {', '.join(map(str, same))}")
        print(_summary(name, images, skipped))
    return to


def _build(name, source, to, checksum, download_path, held_out, skip_bad_images, progress):
    """Build the folder `to` from its source; returns its ImageNames, those left out as bad, and duplicates."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{to.name}.partial-", dir=to.parent))
    try:
        folder = _open_source(name, source, checksum, scratch / "source", download_path, progress)
        if name == "cifar10":
            folder = _cifar10_images(folder, scratch / "images", progress)
        where = str(source or name)
        plan = _plan(name, folder, where, held_out)
        result = scratch / "result"
        skipped = _copy(plan, folder, result, where, skip_bad_images, progress)
        images = plan.keys() - skipped.keys()
        _check_classes(name, images, where)  # once more: leaving out bad images may have emptied one
        sizes = {image: [(result / str(image)).stat().st_size] for image in images}
        _write_record(result / "split.csv", ["bytes"], sizes)
        if skipped:
            _write_record(result / "skipped.csv", ["reason"], {image: [reason] for image, reason in skipped.items()})
        duplicates = duplicates_across_splits(result)
        result.rename(to)
        return images, skipped, duplicates
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(f"the disk of {to.parent} is full: make room, or name another folder with --to") from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_unfinished(to):
    """Remove what processes that were killed have left beside a prepared folder."""
    for left in to.parent.glob(f".{to.name}.partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def verify(name, folder):
    """Compare a prepared folder with its record, by names and sizes: quick, since no image is opened.

    Returns the ImageNames that are there, and those that were left out as bad.  Raises ValueError naming the first
    image that is missing, added or of another size, or saying that this is another data set or another split.
    """
    advice = "name another folder with --to, or delete this one to prepare it anew"
    if not (folder / "split.csv").exists():
        raise ValueError(f"{folder} is not empty and has no split.csv, so it was not prepared here: {advice}")
    try:
        sizes = {image: int(size) for image, (size,) in _read_record(folder / "split.csv").items()}
    except ValueError as error:  # of the record, or a size that is no number
        raise ValueError(f"{folder} is not as it was written here ({error}): {advice}") from error
    images = sizes.keys()
    skipped = set(_read_record(folder / "skipped.csv")) if (folder / "skipped.csv").exists() else set()
    classes = sorted({image.class_name for image in images})
    if name in CLASS_NAMES and classes != sorted(CLASS_NAMES[name]):
        raise ValueError(f"{folder} holds another data set than {name}, of the classes {', '.join(classes)}: {advice}")
    if name == "15scene" and images | skipped != read_manifest():
        raise ValueError(f"{folder} is not split as {MANIFEST} says: {advice}")

    found = {
        ImageName(split, path.parent.name, path.name): path.stat().st_size
        for split in SPLITS
        for path in (folder / split).glob("*/*")
        if is_image(path.name)
    }
    _check_names(images, found.keys(), folder, advice)
    for image, size in sizes.items():
        if found[image] != size:
            raise ValueError(f"{folder}: {image} has {found[image]:,} bytes, but {size:,} were written: {advice}")
    return images, skipped


# --------------------------------------------------------------------------------------- from a source to a folder


def _open_source(name, source, checksum, opened, download_path, progress):
    """Return the source as a folder: draw it, download it, unpack it into `opened`, or take it as it is."""
    if name == "synthetic":
        if source or checksum:
            raise ValueError("synthetic scenes are drawn, not copied: leave out --source and --checksum")
        from data.synthetic import write_scenes

        write_scenes(opened)
        return opened
    if source is None:
        raise ValueError(f"{name} has no address here: name a folder or archive with --source; {ELSEWHERE[name]}")
    if str(source).startswith(("http://", "https://")):
        try:
            download(source, download_path, checksum, progress)
        except ConnectionError as error:
            raise ConnectionError(f"{error}; {ELSEWHERE[name]}") from error
        try:
            unpack(download_path, opened)
        except ValueError:
            download_path.unlink()  # or the next run would take it for a good one
            raise
        return opened
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: name a folder, a zip or tar archive, or an http(s) address")
    if source.is_dir():
        if checksum:
            raise ValueError(f"{source} is a folder, and a checksum is of a file: leave out --checksum")
        return source
    if checksum:
        check_checksum(source, checksum, source)
    unpack(source, opened)
    return opened


# ------------------------------------------------------------------------------------- which file becomes which image


def find_images(folder, class_folders):
    """List the images in every subfolder that is named after a class, however deep it lies.

    class_folders: {name of a subfolder: class}.  Returns [(ImageName, path)], sorted by path; the split is that of the
    nearest folder above that is named after one, or None.  Hidden files and files that are no images are passed over.
    """
    found = []
    for parent, subfolders, file_names in os.walk(folder, followlinks=True):
        subfolders[:] = [subfolder for subfolder in subfolders if not subfolder.startswith((".", "__MACOSX"))]
        parts = Path(parent).relative_to(folder).parts
        if not parts or parts[-1] not in class_folders:
            continue
        split = next((SPLIT_FOLDERS[part] for part in reversed(parts) if part in SPLIT_FOLDERS), None)
        for file_name in filter(is_image, file_names):
            found.append((ImageName(split, class_folders[parts[-1]], file_name), Path(parent) / file_name))
    return sorted(found, key=lambda image_and_path: image_and_path[1])


def is_image(file_name):
    """Whether a file is taken for an image, by its name: hidden files and other suffixes are passed over."""
    return file_name.lower().endswith(IMAGE_SUFFIXES) and not file_name.startswith(".")


def _plan(name, folder, where, held_out):
    """Return {ImageName: path of its file in the source}, each with its final split; where: the source's name."""
    class_names = CLASS_NAMES.get(name) or {path.name for path in folder.glob("*/*")}
    class_folders = FOLDERS_OF_15SCENE if name == "15scene" else {class_name: class_name for class_name in class_names}
    found = find_images(folder, class_folders)
    if not found:
        raise ValueError(f"{where} has no images in folders named like the classes of {name}: {', '.join(class_names)}")
    if name == "15scene":
        found = _apply_manifest(found, where)
    elif name == "nature":
        found = _split_nature(found, held_out, where)
    plan = {}
    for image, path in found:
        if image in plan:
            raise ValueError(f"{where} holds {image} twice: {plan[image]} and {path}")
        plan[image] = path
    _check_classes(name, plan, where)
    return plan


def _apply_manifest(found, where):
    """Give each image of 15-Scene the manifest's split, once the names are those of the manifest."""
    manifest = {image._replace(split=None): image for image in read_manifest()}
    found = [(image._replace(split=None), path) for image, path in found]
    _check_names(manifest.keys(), {image for image, _ in found}, where, f"its images must be those of {MANIFEST}")
    return [(manifest[image], path) for image, path in found]


def _split_nature(found, held_out, where):
    """Keep a test folder as the test split and carve val out of the rest; without one, divide all 70/15/15.

    A source that has train, val and test keeps them; `held_out` sizes are drawn from all images, whatever it has.
    A file name that train and test share gets its split in front.
    """
    uses = Counter(image[1:] for image, _ in found)
    for index, (image, path) in enumerate(found):
        if image.split and uses[image[1:]] > 1:
            found[index] = (image._replace(file_name=f"{image.split}_{image.file_name}"), path)
    if held_out:
        split_of = divide_by_number([image for image, _ in found], held_out, where)
        return [(image._replace(split=split_of[image]), path) for image, path in found]
    source_splits = {image.split for image, _ in found}
    if source_splits >= set(SPLITS):
        return found
    if "test" in source_splits:
        split_of = divide([image for image, _ in found if image.split != "test"], {"train": 5 / 6, "val": 1 / 6})
    else:
        split_of = divide([image for image, _ in found], {"train": 0.70, "val": 0.15, "test": 0.15})
    return [(image._replace(split=split_of.get(image, "test")), path) for image, path in found]


def divide(images, shares):
    """Divide images over splits, stratified by class; returns {image: split}.

    shares: {split: fraction}, adding up to 1.  The order is that of a hash of SEED and the name, so that the split is
    the same on every machine and version, and one more image moves few others.
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


def divide_by_number(images, held_out, where="the source"):
    """Divide images over val and test, of exactly the sizes asked for, and train, the rest; returns {image: split}.

    held_out: {"val": images (int) or share of all (float below 1), "test": likewise}.  Stratified: each class gives
    its part, rounded so that they add up.  Raises ValueError, naming `where`, if nothing is left to train on.
    """
    numbers = _numbers(held_out, len(images))
    if sum(numbers.values()) >= len(images):
        asked = " and ".join(f"{number:,} for {split}" for split, number in numbers.items())
        raise ValueError(f"{where} has {len(images):,} images, and {asked} are asked for: none would be left for train")
    classes = _shuffled_classes(images)
    split_of, start = dict.fromkeys(images, "train"), dict.fromkeys(classes, 0)
    for split, number in numbers.items():
        for class_name, part in _parts(number, {name: len(members) for name, members in classes.items()}).items():
            stop = start[class_name] + part
            split_of.update(dict.fromkeys(classes[class_name][start[class_name] : stop], split))
            start[class_name] = stop
    return split_of


def _shuffled_classes(images):
    """Return {class: its images}, each class in the order of a hash of SEED and the name."""
    classes = defaultdict(list)
    for image in images:
        classes[image.class_name].append(image)
    for members in classes.values():
        members.sort(key=lambda image: hashlib.sha256(f"{SEED}/{image.class_name}/{image.file_name}".encode()).digest())
    return classes


def _parts(number, counts):
    """Part a number in proportion to counts, into whole numbers that add up to it; the largest remainders round up."""
    total = sum(counts.values())
    parts = {name: number * count // total for name, count in counts.items()}
    by_remainder = sorted(counts, key=lambda name: (-(number * counts[name] % total), name))
    for name in by_remainder[: number - sum(parts.values())]:
        parts[name] += 1
    return parts


def _numbers(held_out, total):
    """Turn shares into numbers of images."""
    return {split: size if isinstance(size, int) else round(size * total) for split, size in held_out.items()}


def make_manifest(folder):
    """Write data/manifests/15scene.csv from 15-Scene as {train,validation}/<class>/<image>.

    Train stays; validation is divided into val (30 %) and test (70 %), stratified by class.  Columns: class,
    file_name, split; rows sorted.
    """
    found = [image for image, _ in find_images(folder, FOLDERS_OF_15SCENE)]
    split_of = divide([image for image in found if image.split != "train"], {"val": 0.3, "test": 0.7})
    images = {image._replace(split=split_of.get(image, "train")): () for image in found}
    MANIFEST.parent.mkdir(parents=True, exist_ok=True)
    _write_record(MANIFEST, (), images)


def read_manifest():
    """Return the set of ImageName that 15-Scene consists of."""
    return set(_read_record(MANIFEST))


def _cifar10_images(folder, images_folder, progress):
    """Write the official python batches as <split>/<class>/NNNNN.png; a folder without them is returned as it is."""
    batches = next((path for path in (folder, *folder.iterdir()) if path.name == "cifar-10-batches-py"), None)
    if batches is None:
        return folder
    from torchvision.datasets import CIFAR10  # takes seconds, and only this data set needs it

    for split in ("train", "test"):
        try:
            images = CIFAR10(batches.parent, train=split == "train")  # compares md5 before it opens a pickle
        except RuntimeError as error:
            raise ValueError(f"{batches} is not the official CIFAR-10: a file is missing or has other bytes") from error
        for index, (image, label) in enumerate(tqdm(images, desc=f"write {split}", disable=None if progress else True)):
            path = images_folder / split / images.classes[label] / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return images_folder


# ---------------------------------------------------------------------------------------------- checks and copies


def _held_out(name, val, test):
    """Return the sizes asked for as {"val": ..., "test": ...}, or {} where none are; raises ValueError for others."""
    sizes = {"val": val, "test": test}
    if val is None and test is None:
        return {}
    if name != "nature":
        raise ValueError(f"{name} has a split of its own: leave out --val and --test")
    for split, size in sizes.items():
        if size is None:
            raise ValueError(f"--{split} is missing: name the sizes of val and test, or neither")
        if size <= 0 or (size >= 1 and not isinstance(size, int)):
            raise ValueError(f"--{split} is {size}: it must be a number of images, or a share above 0 and below 1")
    return sizes


def _check_sizes(images, held_out, folder):
    """Raise ValueError if a prepared folder was split into other sizes than are asked for now."""
    counts = Counter(image.split for image in images)
    for split, number in _numbers(held_out, len(images)).items():
        if counts[split] != number:
            raise ValueError(
                f"{folder} has {counts[split]:,} images for {split}, and {number:,} are asked for: "
                "name another folder with --to, or delete this one to prepare it anew"
            )


def _check_names(expected, found, where, advice):
    """Raise ValueError, naming the first difference, unless two sets of ImageName are equal."""
    missing, unexpected = sorted(expected - found, key=str), sorted(found - expected, key=str)
    found_folders = {image[:-1] for image in found}
    for image in missing:
        if image[:-1] not in found_folders:
            folder = str(image).removesuffix(f"/{image.file_name}")
            count = sum(other[:-1] == image[:-1] for other in expected)
            raise ValueError(f"{where}: class {folder} has no images, but should have {count:,}: {advice}")
    faults = [
        f"{images[0]} {fault}" + (f" (and {len(images) - 1:,} more)" if len(images) > 1 else "")
        for images, fault in ((missing, "is missing"), (unexpected, "does not belong here"))
        if images
    ]
    if faults:
        raise ValueError(f"{where}: {' and '.join(faults)}: {advice}")


def _check_classes(name, images, where):
    """Raise ValueError unless every class of the data set has an image in each of its splits."""
    splits = ("train", "test") if name == "cifar10" else SPLITS
    counts = Counter(image[:2] for image in images)
    for image in images:
        if image.split not in splits:
            raise ValueError(f"{where}: {image} lies in none of the folders {', '.join(splits)}")
    for class_name in CLASS_NAMES.get(name, sorted({image.class_name for image in images})):
        for split in splits:
            if not counts[split, class_name]:
                raise ValueError(f"{where}: class {class_name} has no images for {split}")


def _copy(plan, source_folder, folder, where, skip_bad_images, progress):
    """Copy every image that can be decoded; returns {ImageName: reason} of those that cannot."""
    skipped = {}
    for image, path in tqdm(sorted(plan.items()), desc="check and copy", disable=None if progress else True):
        try:
            with Image.open(path) as opened:
                opened.load()
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
            if not skip_bad_images:
                raise ValueError(
                    f"{where}: {path.relative_to(source_folder)} cannot be decoded ({error}): "
                    "replace it, or leave such images out with --skip-bad-images"
                ) from error
            skipped[image] = str(error)
            continue
        copied = folder / str(image)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)  # not its mode: the source may be read-only
    return skipped


def duplicates_across_splits(folder):
    """Return lists of a prepared folder's ImageNames that have the same bytes and do not all lie in one split."""
    same_bytes = defaultdict(list)
    for image in sorted(_read_record(folder / "split.csv")):
        with open(folder / str(image), "rb") as file:
            same_bytes[hashlib.file_digest(file, "sha256").digest()].append(image)
    return [same for same in same_bytes.values() if len({image.split for image in same}) > 1]


def _write_record(path, more_columns, images):
    """Write {ImageName: values of more_columns} as CSV, sorted by class, file name and split."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("class", "file_name", "split", *more_columns))
        writer.writerows(sorted((image.class_name, image.file_name, image.split, *images[image]) for image in images))


def _read_record(path):
    """Return {ImageName: list of the values of further columns}; raises ValueError for what is no whole record."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file, strict=True)
        if header[:3] != ["class", "file_name", "split"] or any(len(row) != len(header) for row in rows):
            raise ValueError("its columns must be class, file_name, split and those that a run of ours adds")
    except (ValueError, csv.Error) as error:  # bytes that are no text are a ValueError
        raise ValueError(f"{path} is not a whole record ({error}): delete its folder to prepare it anew") from error
    return {ImageName(split, class_name, file_name): values for class_name, file_name, split, *values in rows}


# --------------------------------------------------------------------------------------------------------- what is told


def _table(images):
    """Lay out the number of images a class and split."""
    splits = [split for split in SPLITS if any(image.split == split for image in images)]
    classes = sorted({image.class_name for image in images})
    counts = Counter(image[:2] for image in images)
    rows = [("class", *splits)]
    rows += [(class_name, *(f"{counts[split, class_name]:,}" for split in splits)) for class_name in classes]
    rows += [("total", *(f"{sum(counts[split, class_name] for class_name in classes):,}" for split in splits))]
    return "\n".join(f"{name:14}" + "".join(f"{count:>9}" for count in numbers) for name, *numbers in rows)


def _summary(name, images, skipped):
    """Say in one line how many images a prepared folder has; val and test are the earlier reports' validation."""
    counts = Counter(image.split for image in images)
    if counts["val"]:
        validation = counts["val"] + counts["test"]
        held_out = f"{validation:,} validation ({counts['val']:,} val + {counts['test']:,} test)"
    else:
        held_out = f"{counts['test']:,} test"
    left_out = f", {len(skipped):,} left out as bad" if skipped else ""
    return f"{name}: {counts['train']:,} train, {held_out}{left_out}"


def _number_or_share(text):
    """Read a size as the command line gives it: 2000 or 0.15."""
    return int(text) if text.isdecimal() else float(text)


def _rule_and_pixels(text):
    """Read how images are to be decoded, as the command line gives it: imagenet:224."""
    from data.image_cache import RESIZE_RULES  # here, since that module imports this one

    rule, _, pixels = text.partition(":")
    if rule not in RESIZE_RULES or not pixels.isdecimal() or int(pixels) < 1:
        raise ValueError(
            f"--decode is {text!r}; it takes {' or '.join(RESIZE_RULES)} and a size in pixels, such as imagenet:224"
        )
    return rule, int(pixels)


def main(arguments=None):
    """Run the command line; returns the exit code: 0, 2 after one sentence on stderr, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description="Get a data set, check it, lay it out.")
    parser.add_argument("name", help=", ".join(DATA_SETS))
    parser.add_argument("--source", help="folder, zip or tar archive, or its http(s) address (default: the public one)")
    parser.add_argument("--to", help="folder to write (default: data/NAME)")
    parser.add_argument("--checksum", help="md5:HEX or sha256:HEX of the archive")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be decoded")
    for split in ("val", "test"):
        parser.add_argument(
            f"--{split}", type=_number_or_share, help=f"of nature: images for {split}, or a share below 1 of all"
        )
    parser.add_argument(
        "--decode",
        nargs="+",
        default=[],
        metavar="RULE:PIXELS",
        help="decode the images beforehand, as the first training would: squash:224 imagenet:224",
    )
    options = vars(parser.parse_args(arguments))
    try:  # answered as `runs.run_command` does, without the seconds in which torch is imported
        stores = [_rule_and_pixels(text) for text in options.pop("decode")]
        folder = prepare(**options)
        for rule, pixels in stores:
            from data.image_cache import load_splits  # here, since that module imports this one

            load_splits(folder, pixels, rule)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what was finished", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
