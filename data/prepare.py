"""Get a data set, check it, and lay it out as <split>/<class>/<image>.

    python -m data.prepare 15scene|nature|cifar10|synthetic [--source FOLDER|ZIP|TAR|URL] [--to FOLDER]
                           [--checksum md5:HEX|sha256:HEX] [--skip-bad-images]
                           [--val NUMBER|SHARE --test NUMBER|SHARE] [--decode imagenet:224 ...]

The splits are always called train, val and test (cifar10 has no val).  Beside them lies the record, split.csv, with a
line for each image (class, file_name, split, bytes), and skipped.csv if bad images were left out.  A second run
compares the folder with its record and changes nothing.  Everything is built in a hidden folder beside the result and
renamed at the end: an error or a crash leaves the old folder or none.

nature keeps a test folder of its source, unless --val and --test ask for sizes: those are sampled from all its images.
The split of 15scene is data/manifests/15scene.csv, which was made once by
    python -c "from data.prepare import make_manifest; make_manifest('../shared/data/15SceneData')"
"""

import argparse
import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from torchvision.datasets import CIFAR10
from tqdm import tqdm

from data.download import check_checksum, download, unpack
from data.files import CODE, expanded, locked, root_folder, run_command, say_once, write_atomically
from data.folders import SPLIT_NAMES, is_image, is_users_own, reason_to_leave_out
from data.image_cache import RESIZE_RULES, load_splits, open_image
from data.layouts import ALL_BELOW, TABLE
from data.splits import (
    SHARES,
    SPLITS,
    ImageName,
    divide,
    divide_by_number,
    duplicates_across_splits,
    numbers_of_images,
    read_record,
    write_record,
)
from data.synthetic import write_scenes

MANIFEST = CODE / "data" / "manifests" / "15scene.csv"
DATA_SETS = ("15scene", "nature", "cifar10", "synthetic")

# Folder of a source, in small letters -> split.  The seg_ folders are those of the public Intel archive.
SPLIT_FOLDERS = {name: split for split, names in SPLIT_NAMES.items() for name in (*names, f"seg_{split}")}

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

# Folder of a 15-Scene source -> class: in the original archive some names begin with the letters of their origin.
FOLDERS_OF_15SCENE = {
    prefix + class_name: class_name for class_name in CLASS_NAMES["15scene"] for prefix in ("", "CAL", "MIT", "PAR")
}

# Data set -> (address, checksum).  That of 15scene is recorded in public code and was not tried by us; that of
# cifar10 is the one torchvision uses.
ADDRESSES = {
    "15scene": (
        "http://www-cvr.ai.uiuc.edu/ponce_grp/data/scene_categories/scene_categories.zip",
        "md5:58828019197b2ad0a7efb472e7a85c2a",
    ),
    "cifar10": ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a"),
}

# Data set -> where else a person finds it.
ELSEWHERE = {
    "15scene": "15-Scene is also article 7007177 of figshare.com",
    "nature": "the Intel scene images are puneet6060/intel-image-classification on kaggle.com",
    "cifar10": "CIFAR-10 is cifar-10-python.tar.gz on www.cs.toronto.edu/~kriz",
}


@dataclass(frozen=True)
class Request:
    """What is to be prepared, from where, and how.

    name: "15scene", "nature", "cifar10" or "synthetic".  source: folder, zip or tar archive, or http(s) address of an
    archive; None takes the public address (nature has none).  to: the folder to write, by default data/<name> of the
    root folder.  checksum: "md5:HEX" or "sha256:HEX" of the archive.  skip_bad_images: leave out images that cannot be
    decoded, and record them.  val, test: of nature, how many images (int) or which share of all (float below 1),
    sampled anew whatever split the source has; both or neither.  progress: show bars and the closing table.

    Raises ValueError for an unknown name and for options that the data set does not take.
    """

    name: str
    source: str | Path | None = None
    to: str | Path | None = None
    checksum: str | None = None
    skip_bad_images: bool = False
    val: int | float | None = None
    test: int | float | None = None
    progress: bool = True

    def __post_init__(self):
        """Refuse what cannot be prepared."""
        if self.name not in DATA_SETS:
            raise ValueError(f"there is no data set {self.name!r}: choose one of {', '.join(DATA_SETS)}")
        if self.name == "synthetic" and (self.source or self.checksum):
            raise ValueError("synthetic scenes have no source: leave out --source and --checksum")
        if self.sizes and self.name != "nature":
            raise ValueError(f"{self.name} has a split of its own: leave out --val and --test")
        for split, size in self.sizes.items():
            if size is None:
                raise ValueError(f"--{split} is missing: name the sizes of val and test, or neither")
            if size <= 0 or (size >= 1 and not isinstance(size, int)):
                raise ValueError(f"--{split} is {size}: it must be a number of images, or a share above 0 and below 1")

    @property
    def folder(self) -> Path:
        """The folder to write."""
        return expanded(self.to or root_folder() / "data" / self.name).resolve()  # a link leads to another disk

    @property
    def where(self) -> str:
        """What messages call the source."""
        return str(self.source or self.name)

    @property
    def sizes(self) -> dict[str, int | float | None]:
        """The sizes of val and test that are asked for; empty if none are."""
        return {} if self.val is None and self.test is None else {"val": self.val, "test": self.test}

    @property
    def download_path(self) -> Path:
        """Where a download lies until the folder is complete; the digest separates addresses with one file name."""
        digest = hashlib.sha256(self.where.encode()).hexdigest()[:8]
        name = Path(urlsplit(self.where).path).name[-50:]  # its suffix matters; a signed address may be very long
        return self.folder.with_name(f".{self.folder.name}.download-{digest}-{name}")


def prepare(request: Request) -> Path:
    """Prepare a data set as `<folder>/<split>/<class>/<image>`, or verify the one that is there; returns the folder.

    Raises ValueError, FileNotFoundError, ConnectionError or another OSError with one sentence that names the file,
    class or value.  Nothing is left behind then, except a partial download, which the next run completes.

    Sources: 15-Scene (Lazebnik et al. 2006; its original archive is also article 7007177 of figshare), the Intel
    scene images (2018), CIFAR-10 (Krizhevsky 2009).
    """
    folder, report = request.folder, None
    if not _holds_files(folder):
        with locked(folder.with_name(f".{folder.name}.lock")):  # of several processes one prepares at a time
            if not _holds_files(folder):
                _remove_unfinished(folder)
                report = _build(request)
    if report is None:  # the folder is from an earlier run, or another process was faster
        _remove_unfinished(folder)
        images, skipped = verify(request.name, folder)
        _check_sizes(images | skipped, request.sizes, folder)
        report = f"{request.name}: nothing to do, {folder} is complete (delete it to prepare it anew)\n"
        report += _summary(request.name, images, skipped)
    if request.progress:
        print(report)
    return folder


def locate(data: str | Path) -> Path:
    """The folder of a data set, or its table: a prepared one by its name, or any other of data.layouts by its path.

    The synthetic scenes are made on first use; they need no download.  Raises FileNotFoundError that says what to do,
    ValueError for a file that is no table, and what `folder_of` raises.
    """
    name, folder = str(data), folder_of(data)
    if name in DATA_SETS and Path(name).is_dir() and Path(name).resolve() != folder.resolve():
        say_once(f"{name} is the prepared data set {folder}; to use the folder {name} that is here, rename it")
    if name == "synthetic":
        return prepare(Request(name, progress=False))
    of_all = folder.name == ALL_BELOW and folder.parent.is_dir()  # without labels
    if folder.is_dir() or of_all or (folder.is_file() and folder.suffix.lower() == TABLE):
        return folder
    if folder.is_file():
        raise ValueError(
            f"data is {data}, which is neither a folder nor a table (.csv) with the columns file and label"
        )
    if name in DATA_SETS:
        raise FileNotFoundError(
            f"the data set {name} is not prepared: run `python -m data.prepare {name}` (it takes --source), "
            "or name a folder of your own, or synthetic, with --data"
        )
    raise FileNotFoundError(f"there is no data folder or table (.csv) {data}; known names are {', '.join(DATA_SETS)}")


def folder_of(data: str | Path) -> Path:
    """Where a data set lies, or would lie once it is prepared.

    Raises ValueError for an empty name, and for another folder of the name of a prepared one: results tell data sets
    apart by their names.
    """
    if not str(data).strip():
        raise ValueError("data is empty; name a data set, a folder or a table (.csv)")
    if str(data) in DATA_SETS:
        return root_folder() / "data" / str(data)
    folder = expanded(data).resolve()
    if folder.name in DATA_SETS and folder.is_dir() and folder != folder_of(folder.name).resolve():
        raise ValueError(
            f"{folder} has the name of a prepared data set, and its results would be taken for those of that one; "
            "rename the folder"
        )
    return folder


def verify(name: str, folder: str | Path) -> tuple[Set[ImageName], Set[ImageName]]:
    """Compare a prepared folder with its record, by names and sizes: quick, since no image is opened.

    Returns the images that are there, and those that were left out as bad.  Raises ValueError naming the first image
    that is missing, added or of another size, or saying that this is another data set or another split.
    """
    folder = expanded(folder)
    if not (folder / "split.csv").exists():
        raise ValueError(
            f"{folder} is not empty and has no split.csv, so it was not prepared here: name another folder with --to"
        )
    advice = "name another folder with --to, or delete this one to prepare it anew"
    try:
        sizes = {image: int(size) for image, (size,) in read_record(folder / "split.csv").items()}
        skipped = read_record(folder / "skipped.csv").keys() if (folder / "skipped.csv").exists() else set()
    except ValueError as error:  # of a record, or a size that is no number
        raise ValueError(f"{folder} is not as it was written here ({error}): {advice}") from error
    classes = sorted({image.class_name for image in sizes})
    if name in CLASS_NAMES and classes != sorted(CLASS_NAMES[name]):
        raise ValueError(f"{folder} holds another data set than {name}, of the classes {', '.join(classes)}: {advice}")
    if name == "15scene" and sizes.keys() | skipped != read_manifest():
        raise ValueError(f"{folder} is not split as {MANIFEST} says: {advice}")

    found = {
        ImageName(split, path.parent.name, path.name): path.stat().st_size
        for split in SPLITS
        for path in (folder / split).glob("*/*")
        if is_image(path.name)
    }
    _check_names(sizes.keys(), found.keys(), folder, advice)
    for image, size in sizes.items():
        if found[image] != size:
            raise ValueError(f"{folder}: {image} has {found[image]:,} bytes, but {size:,} were written: {advice}")
    return sizes.keys(), skipped


# --------------------------------------------------------------------------------------- from a source to a folder


def _build(request: Request) -> str:
    """Build the folder from its source and return a report of what it holds."""
    if request.source is None and request.name in ADDRESSES:
        source, checksum = ADDRESSES[request.name]
        request = replace(request, source=source, checksum=request.checksum or checksum)
    folder = request.folder
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    result = scratch / "result"
    try:
        opened = _open_source(request, scratch / "source")
        if request.name == "cifar10":
            opened = _cifar10_images(opened, scratch / "images", request.progress)
        plan, left_out = _plan(request, opened)
        skipped = _copy(plan, opened, result, request)
        images = plan.keys() - skipped.keys()
        _check_classes(request.name, images, request.where)  # once more: leaving out bad images may have emptied one
        sizes = {image: [(result / str(image)).stat().st_size] for image in images}
        write_record(result / "split.csv", ["bytes"], sizes)
        if skipped:
            write_record(result / "skipped.csv", ["reason"], {image: [reason] for image, reason in skipped.items()})
        duplicates = duplicates_across_splits(result)
        result.rename(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                f"the disk of {folder.parent} is full: make room, or name another folder with --to"
            ) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    request.download_path.unlink(missing_ok=True)
    lines = [_table(images)]
    if left_out:
        lines.append("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common()))
    lines += [f"left out as bad: {image} ({reason})" for image, reason in skipped.items()]
    lines += [f"the same bytes in more than one split: {', '.join(map(str, same))}" for same in duplicates]
    return "\n".join([*lines, _summary(request.name, images, skipped)])


def _holds_files(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left beside a prepared folder."""
    for left in folder.parent.iterdir() if folder.parent.is_dir() else ():
        if left.name.startswith(f".{folder.name}.partial-"):
            shutil.rmtree(left, ignore_errors=True)


def _open_source(request: Request, opened: Path) -> Path:
    """Return the source as a folder: draw, download or unpack it into `opened`, or take it as it is."""
    if request.name == "synthetic":
        write_scenes(opened)
        return opened
    if request.source is None:
        name = request.name
        raise ValueError(f"{name} has no address here: name a folder or archive with --source; {ELSEWHERE[name]}")
    if request.where.startswith(("http://", "https://")):
        _download_and_unpack(request, opened)
        return opened
    source = expanded(request.source)
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: name a folder, a zip or tar archive, or an http(s) address")
    if source.is_dir():
        if request.checksum:
            raise ValueError(f"{source} is a folder, and a checksum is of a file: leave out --checksum")
        return source
    if request.checksum:
        check_checksum(source, request.checksum, source)
    unpack(source, opened)
    return opened


def _download_and_unpack(request: Request, opened: Path) -> None:
    try:
        download(request.where, request.download_path, request.checksum, request.progress)
    except ConnectionError as error:
        raise ConnectionError(f"{error}; {ELSEWHERE[request.name]}") from error
    try:
        unpack(request.download_path, opened)
    except ValueError:
        request.download_path.unlink()  # or the next run would take it for a good one
        raise


def _cifar10_images(folder: Path, images_folder: Path, progress: bool) -> Path:
    """Write the official python batches as <split>/<class>/NNNNN.png; a folder without them is returned as it is."""
    batches = next((path for path in (folder, *folder.iterdir()) if path.name == "cifar-10-batches-py"), None)
    if batches is None:
        return folder
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


def _copy(plan: Mapping[ImageName, Path], source_folder: Path, folder: Path, request: Request) -> dict[ImageName, str]:
    """Copy every image that can be decoded; returns {ImageName: reason} of those that cannot."""
    skipped = {}
    for image, path in tqdm(sorted(plan.items()), desc="check and copy", disable=None if request.progress else True):
        try:
            with open_image(path) as opened:
                opened.load()
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
            if not request.skip_bad_images:
                raise ValueError(
                    f"{request.where}: {path.relative_to(source_folder)} cannot be decoded ({error}): "
                    "replace it, or leave such images out with --skip-bad-images"
                ) from error
            skipped[image] = str(error)
            continue
        copied = folder / str(image)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)  # not its mode: the source may be read-only
    return skipped


# ------------------------------------------------------------------------------------- which file becomes which image


def find_images(folder: str | Path, class_folders: Mapping[str, str]) -> list[tuple[ImageName, Path]]:
    """List the images in every subfolder that is named after a class, however deep it lies.

    class_folders: {name of a subfolder: class}.  Returns [(ImageName, path)], sorted by path; the split is that of the
    nearest folder above that is named after one, or None.  Hidden files and files that are no images are ignored.
    """
    found, folder = [], expanded(folder)
    for parent, class_name, file_names in _walk(folder, class_folders):
        parts = parent.relative_to(folder).parts
        split = next((SPLIT_FOLDERS[part.lower()] for part in reversed(parts) if part.lower() in SPLIT_FOLDERS), None)
        found += [(ImageName(split, class_name, name), parent / name) for name in file_names if is_image(name)]
    return sorted(found, key=lambda image_and_path: image_and_path[1])


def _walk(folder: str | Path, class_folders: Mapping[str, str]) -> Iterator[tuple[Path, str, list[str]]]:
    """Every subfolder that is named after a class, with its class and the names of its files."""
    for parent, subfolders, file_names in os.walk(folder, followlinks=True):
        subfolders[:] = filter(is_users_own, subfolders)
        if Path(parent) != Path(folder) and Path(parent).name in class_folders:
            yield Path(parent), class_folders[Path(parent).name], file_names


def _plan(request: Request, folder: Path) -> tuple[dict[ImageName, Path], Counter]:
    """{ImageName: path of its file in the source}, each with its final split, and why how many files are left out."""
    name, where = request.name, request.where
    class_names = CLASS_NAMES.get(name) or {path.name for path in folder.glob("*/*")}
    class_folders = FOLDERS_OF_15SCENE if name == "15scene" else {class_name: class_name for class_name in class_names}
    found = find_images(folder, class_folders)
    if not found:
        raise ValueError(f"{where} has no images in folders named like the classes of {name}: {', '.join(class_names)}")
    if name == "15scene":
        found = _apply_manifest(found, where)
    elif name == "nature":
        found = _split_nature(found, request)
    plan = {}
    for image, path in found:
        if image in plan:
            raise ValueError(f"{where} holds {image} twice: {plan[image]} and {path}")
        plan[image] = path
    _check_classes(name, plan, where)
    left_out = (reason_to_leave_out(each) for *_, names in _walk(folder, class_folders) for each in names)
    return plan, Counter(reason for reason in left_out if reason)


def _apply_manifest(found: Iterable[tuple[ImageName, Path]], where: str) -> list[tuple[ImageName, Path]]:
    """Give each image of 15-Scene the manifest's split, once the names are those of the manifest."""
    manifest = {image._replace(split=None): image for image in read_manifest()}
    found = [(image._replace(split=None), path) for image, path in found]
    _check_names(manifest.keys(), {image for image, _ in found}, where, f"its images must be those of {MANIFEST}")
    return [(manifest[image], path) for image, path in found]


def _split_nature(found: list[tuple[ImageName, Path]], request: Request) -> list[tuple[ImageName, Path]]:
    """Take a source's test folder as the test split and divide the rest; without one, divide all 70/15/15.

    A source that has train, val and test is not divided; sizes that are asked for are sampled from all images.
    A file name that train and test share gets its split in front.
    """
    uses = Counter(image[1:] for image, _ in found)
    found = [
        (image._replace(file_name=f"{image.split}_{image.file_name}"), path)
        if image.split and uses[image[1:]] > 1
        else (image, path)
        for image, path in found
    ]
    images = [image for image, _ in found]
    source_splits = {image.split for image in images}
    if request.sizes:
        split_of = divide_by_number(images, request.sizes, request.where)
    elif source_splits >= set(SPLITS):
        return found
    elif "test" in source_splits:
        split_of = divide([image for image in images if image.split != "test"], {"train": 5 / 6, "val": 1 / 6})
    else:
        split_of = divide(images, SHARES)
    return [(image._replace(split=split_of.get(image, "test")), path) for image, path in found]


def make_manifest(folder: str | Path) -> None:
    """Write data/manifests/15scene.csv from 15-Scene as {train,validation}/<class>/<image>.

    Train stays; validation is divided into val (30 %) and test (70 %), stratified by class.  Columns: class,
    file_name, split; lines sorted.
    """
    found = [image for image, _ in find_images(folder, FOLDERS_OF_15SCENE)]
    split_of = divide([image for image in found if image.split != "train"], {"val": 0.3, "test": 0.7})
    images = {image._replace(split=split_of.get(image, "train")): () for image in found}
    write_atomically(MANIFEST, lambda path: write_record(path, (), images))


def read_manifest() -> set[ImageName]:
    """The images that 15-Scene consists of, each with its split."""
    return set(read_record(MANIFEST))


# ---------------------------------------------------------------------------------------------------------- checks


def _check_sizes(images: Collection[ImageName], sizes: Mapping[str, int | float], folder: Path) -> None:
    """Raise ValueError if a prepared folder was split into other sizes than are asked for now."""
    counts = Counter(image.split for image in images)
    for split, number in numbers_of_images(sizes, len(images)).items():
        if counts[split] != number:
            raise ValueError(
                f"{folder} has {counts[split]:,} images for {split}, and {number:,} are asked for: "
                "name another folder with --to, or delete this one to prepare it anew"
            )


def _check_names(expected: Set[ImageName], found: Set[ImageName], where: str | Path, advice: str) -> None:
    """Raise ValueError, naming the first difference, unless two sets of images are equal."""
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


def _check_classes(name: str, images: Iterable[ImageName], where: str) -> None:
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


# --------------------------------------------------------------------------------------------------------- reports


def _table(images: Collection[ImageName]) -> str:
    """The number of images of each class in each split."""
    counts = Counter(image[:2] for image in images)
    splits = [split for split in SPLITS if any(image.split == split for image in images)]
    lines = [("class", *splits)]
    lines += [(name, *(counts[split, name] for split in splits)) for name in sorted({name for _, name in counts})]
    return "\n".join(f"{name:14}" + "".join(f"{cell:>9}" for cell in cells) for name, *cells in lines)


def _summary(name: str, images: Collection[ImageName], skipped: Collection[ImageName]) -> str:
    """One line with the number of images; val and test together are the earlier reports' validation."""
    counts = Counter(image.split for image in images)
    if counts["val"]:
        validation = counts["val"] + counts["test"]
        held_out = f"{validation:,} validation ({counts['val']:,} val + {counts['test']:,} test)"
    else:
        held_out = f"{counts['test']:,} test"
    left_out = f", {len(skipped):,} left out as bad" if skipped else ""
    return f"{name}: {counts['train']:,} train, {held_out}{left_out}"


# ----------------------------------------------------------------------------------------------------- command line


def _number_or_share(text: str) -> int | float:
    """Read a size as the command line gives it: 2000 or 0.15."""
    return int(text) if text.isdecimal() else float(text)


def _rule_and_pixels(text: str) -> tuple[str, int]:
    """Read how images are to be decoded, as the command line gives it: imagenet:224."""
    rule, _, pixels = text.partition(":")
    if rule not in RESIZE_RULES or not pixels.isdecimal() or int(pixels) < 1:
        raise ValueError(
            f"--decode is {text!r}; it takes {' or '.join(RESIZE_RULES)} and a size in pixels, such as imagenet:224"
        )
    return rule, int(pixels)


def _prepare_and_decode(decode: Sequence[str], **options) -> None:
    """Prepare a data set and cache its images under the rules of `--decode`, all of which are read first."""
    rules = [_rule_and_pixels(text) for text in decode]
    folder = prepare(Request(**options))
    for rule, pixels in rules:
        load_splits(folder, pixels, rule, skip_bad_images=options["skip_bad_images"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code of `run_command`."""
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
    return run_command(lambda: _prepare_and_decode(**options))


if __name__ == "__main__":
    sys.exit(main())
