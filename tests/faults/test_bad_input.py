"""Every mistake of a user's is one sentence that names it, exit code 2 and nothing changed; odd but right input works.

A case is a line: what is wrong, how to make it in a folder, what is called, and words of the answer.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hyperparameter_search
import runs
import self_supervised.train
import supervised.train
from data import prepare, scenes
from data.prepare import CLASS_NAMES
from evaluation import inversion_search, model_inversion, predict, scorecam, trained
from supervised.models import SceneClassifier

COMMANDS = {
    "train": supervised.train.main,
    "pretext": self_supervised.train.main,
    "search": hyperparameter_search.main,
    "prepare": prepare.main,
    "predict": predict.main,
    "scorecam": scorecam.main,
    "invert": model_inversion.main,
    "search inversion": inversion_search.main,
}
DATA = ["imagenet_classifier", "--data", "scenes"]  # relative to the place of a case, as a user would type it


@dataclass(frozen=True)
class Place:
    """A folder with small scenes of three classes and a tiny run, before a case spoils something in it."""

    folder: Path

    @property
    def image(self) -> Path:
        """The first training image."""
        return self.folder / "scenes/train/dark/image_0000.jpg"

    @property
    def checkpoint(self) -> Path:
        """Of the tiny run."""
        return self.folder / "models/quick/tiny.pt"

    def change_checkpoint(self, change):
        """Load the tiny run's checkpoint, change it, write it again."""
        saved = torch.load(self.checkpoint, weights_only=True)
        change(saved)
        torch.save(saved, self.checkpoint)

    def weights(self, change=None) -> None:
        """weights.pth, the state dict of EfficientNet-B0's features, changed."""
        state = {f"features.{name}": tensor for name, tensor in SceneClassifier(3).features.state_dict().items()}
        if change:
            change(state)
        torch.save(state, self.folder / "weights.pth")

    def source(self) -> Path:
        """A source of nature scenes."""
        for class_name in CLASS_NAMES["nature"]:
            for number in range(8):
                path = self.folder / "source" / class_name / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        return self.folder / "source"

    def archive(self, name: str, kind: str = "file", size: int = 5) -> None:
        """archive.tar with one member."""
        member = tarfile.TarInfo(name)
        member.type = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE}[kind]
        member.linkname = "/etc/passwd" if kind == "link" else ""
        member.size = size if kind == "file" else 0
        with tarfile.open(self.folder / "archive.tar", "w") as opened:
            opened.addfile(member, io.BytesIO(b"x" * size))


class Trap:
    """What a pickle would run."""

    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def bomb(path: Path):
    """A zip of a megabyte of zeros in a thousandth of that, with torch's member names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**20)


def zip_of_30_gigabytes(path: Path):
    """A zip that claims to be more than it is."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sea/1.jpg", b"x")
        archive.filelist[0].file_size = 30 * 10**9
        archive.filelist[0].compress_size = 30 * 10**9


def png_bomb(path: Path):
    """400 million pixels in a few kilobytes."""
    Image.new("1", (20_000, 20_000)).save(path, format="png")


def cut(path: Path, share: float = 0.5):
    """The first part of a file alone."""
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])


def loop(path: Path):
    """A link to itself."""
    path.unlink()
    path.symlink_to(path)


def remove_images(folder: Path):
    """An empty class."""
    for path in folder.iterdir():
        path.unlink()


def noisy_jpeg(path: Path):
    """Large enough to be cut in the middle of its pixels."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def cut_jpeg(path: Path):
    """A JPEG whose pixels end in the middle."""
    noisy_jpeg(path)
    cut(path)


def trained_row(place: Place, change=None):
    """The files of a finished run of imagenet_classifier, damaged."""
    assert supervised.train.main([*DATA, "--epochs", "1"]) == 0
    if change:
        change(place.folder / "models/quick/scenes/imagenet_classifier.pt")


def state_of(place: Place, contents: bytes):
    """The state of an unfinished run, which is none."""
    path = place.folder / "models/quick/scenes/imagenet_classifier.state.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(contents)


PREPARE = ["nature", "--to", "data/nature", "--source"]
CASES = [
    # --- images
    ("an image of zero bytes", lambda p: p.image.write_bytes(b""), "train", DATA, "image_0000.jpg cannot be decoded"),
    ("a JPEG cut in the middle", lambda p: cut_jpeg(p.image), "train", DATA, "image_0000.jpg cannot be decoded"),
    ("a text named .jpg", lambda p: p.image.write_text("hello"), "train", DATA, "image_0000.jpg cannot be decoded"),
    ("a JPEG's header alone", lambda p: p.image.write_bytes(b"\xff\xd8\xff\xe0"), "train", DATA, "cannot be decoded"),
    ("20,000 x 20,000 pixels", lambda p: png_bomb(p.image), "train", DATA, "image_0000.jpg cannot be decoded"),
    ("32 bits a pixel", lambda p: Image.new("F", (8, 8)).save(p.image, "tiff"), "train", DATA, "32 bits a pixel"),
    ("a link to itself", lambda p: loop(p.image), "train", DATA, "image_0000.jpg"),
    ("a folder named .jpg", lambda p: (p.image.unlink(), p.image.mkdir()), "train", DATA, "image_0000.jpg"),
    ("a link to nothing", lambda p: (p.image.unlink(), p.image.symlink_to("gone")), "train", DATA, "image_0000.jpg"),
    # --- folders
    ("no such data", None, "train", ["supervised_1", "--data", "nowhere"], "there is no data folder nowhere"),
    (
        "data that is a file",
        None,
        "train",
        ["supervised_1", "--data", "scenes/train/dark/image_0000.jpg"],
        "no data folder",
    ),
    (
        "no train folder",
        lambda p: shutil.rmtree(p.folder / "scenes/train"),
        "train",
        DATA,
        "must hold the folders train",
    ),
    (
        "train alone",
        lambda p: [shutil.rmtree(p.folder / "scenes" / s) for s in ("val", "test")],
        "train",
        DATA,
        "must hold the folders train and val",
    ),
    (
        "val twice",
        lambda p: shutil.copytree(p.folder / "scenes/val", p.folder / "scenes/validation"),
        "train",
        DATA,
        "holds both val and validation",
    ),
    (
        "an empty class in train",
        lambda p: remove_images(p.folder / "scenes/train/dark"),
        "train",
        DATA,
        "class 'dark' has no image",
    ),
    (
        "an empty class in val",
        lambda p: remove_images(p.folder / "scenes/val/light"),
        "train",
        DATA,
        "class 'light' has no image",
    ),
    ("a class in one split", lambda p: (p.folder / "scenes/train/sunny").mkdir(), "train", DATA, "class 'sunny' is in"),
    (
        "a class of another case",
        lambda p: (p.folder / "scenes/val/dark").rename(p.folder / "scenes/val/Dark"),
        "train",
        DATA,
        "class 'Dark' is in",
    ),
    (
        "one class",
        lambda p: [
            shutil.rmtree(p.folder / "scenes" / s / c) for s in ("train", "val", "test") for c in ("light", "striped")
        ],
        "train",
        DATA,
        "at least 2 are needed",
    ),
    (
        "no images at all",
        lambda p: [remove_images(c) for c in (p.folder / "scenes").glob("*/*")],
        "train",
        DATA,
        "holds no images",
    ),
    (
        "fewer images than a batch",
        lambda p: [q.unlink() for q in (p.folder / "scenes/train").glob("*/image_000[1-9].jpg")],
        "train",
        DATA,
        "fewer than one batch",
    ),
    (
        "one image to choose and report by",
        lambda p: (
            shutil.rmtree(p.folder / "scenes/test"),
            [q.unlink() for q in (p.folder / "scenes/val/dark").glob("*000[1-9].jpg")],
        ),
        "train",
        DATA,
        "class 'dark' has one image besides train",
    ),
    # --- weights
    ("no such weights", None, "train", [*DATA, "--weights", "gone.pth"], "there is no weights file gone.pth"),
    (
        "weights that are a text",
        lambda p: (p.folder / "weights.pth").write_text("hello"),
        "train",
        [*DATA, "--weights", "weights.pth"],
        "not a state dict",
    ),
    (
        "weights that hold code",
        lambda p: torch.save({"a": Trap()}, p.folder / "weights.pth"),
        "train",
        [*DATA, "--weights", "weights.pth"],
        "cannot be opened safely|not a state dict that can be opened safely",
    ),
    (
        "weights that are a zip bomb",
        lambda p: bomb(p.folder / "weights.pth"),
        "train",
        [*DATA, "--weights", "weights.pth"],
        "not a state dict",
    ),
    (
        "weights that are a list",
        lambda p: torch.save([1, 2], p.folder / "weights.pth"),
        "train",
        [*DATA, "--weights", "weights.pth"],
        "not a state dict",
    ),
    (
        "weights of another network",
        lambda p: torch.save({"conv1.weight": torch.zeros(1)}, p.folder / "weights.pth"),
        "train",
        [*DATA, "--weights", "weights.pth"],
        "has no features.0.0.weight",
    ),
    (
        "weights of another shape",
        lambda p: p.weights(lambda s: s.update({"features.0.0.weight": torch.zeros(1)})),
        "train",
        [*DATA, "--weights", "weights.pth"],
        "has shape (1,)",
    ),
    (
        "weights that are not finite",
        lambda p: p.weights(lambda s: s["features.0.0.weight"].fill_(float("nan"))),
        "train",
        [*DATA, "--weights", "weights.pth"],
        "not finite",
    ),
    # --- command lines of training
    ("no experiment", None, "train", [], "name at least one experiment"),
    ("an unknown experiment", None, "train", ["supervised_9"], "there is no experiment 'supervised_9'"),
    ("no epochs", None, "train", [*DATA, "--epochs", "0"], "max_epochs is 0"),
    ("fewer epochs than none", None, "train", [*DATA, "--epochs", "-3"], "max_epochs is -3"),
    ("a seed below 0", None, "train", [*DATA, "--seeds", "-1"], "seed is -1"),
    ("a seed that is no number", None, "train", [*DATA, "--seeds", "one"], "invalid int value: 'one'"),
    ("an unknown profile", None, "train", [*DATA, "--profile", "huge"], "invalid choice: 'huge'"),
    ("an unknown option", None, "train", [*DATA, "--fast"], "unrecognized arguments: --fast"),
    ("a study that is not there", None, "train", ["--from-study", "gone.csv"], "gone.csv"),
    (
        "a study that is none",
        lambda p: (p.folder / "study.csv").write_text("a,b\n1,2\n"),
        "train",
        ["--from-study", "study.csv"],
        "study.csv",
    ),
    (
        "a class that is weighed and not there",
        None,
        "train",
        ["supervised_4", "--data", "scenes"],
        "supervised_4 weighs class 'coast'",
    ),
    ("an unknown pretext run", None, "pretext", ["rotation_9"], "there is no experiment 'rotation_9'"),
    ("a pretext without data", None, "pretext", ["rotation_1", "--data", "nowhere"], "there is no data folder nowhere"),
    # --- checkpoints and results
    (
        "a checkpoint cut in the middle",
        lambda p: trained_row(p, cut),
        "train",
        [*DATA, "--epochs", "1"],
        "imagenet_classifier.pt cannot be opened",
    ),
    (
        "an empty checkpoint",
        lambda p: trained_row(p, lambda c: c.write_bytes(b"")),
        "train",
        [*DATA, "--epochs", "1"],
        "imagenet_classifier.pt cannot be opened",
    ),
    (
        "a checkpoint that holds code",
        lambda p: trained_row(p, lambda c: torch.save({"format": 1, "model": Trap()}, c)),
        "train",
        [*DATA, "--epochs", "1"],
        "cannot be opened",
    ),
    (
        "a checkpoint that is a zip bomb",
        lambda p: trained_row(p, bomb),
        "train",
        [*DATA, "--epochs", "1"],
        "cannot be opened",
    ),
    (
        "a checkpoint of a later format",
        lambda p: trained_row(p, lambda c: torch.save({"format": 99}, c)),
        "train",
        [*DATA, "--epochs", "1"],
        "not a checkpoint of format 1",
    ),
    (
        "a checkpoint of other settings",
        trained_row,
        "train",
        [*DATA, "--epochs", "2"],
        "was trained with settings.train.max_epochs = 1, but 2",
    ),
    (
        "an unfinished run that is none",
        lambda p: state_of(p, b"hello"),
        "train",
        DATA,
        "imagenet_classifier.state.pt cannot be opened",
    ),
    (
        "a folder in a checkpoint's place",
        lambda p: (p.folder / "models/quick/scenes/imagenet_classifier.pt").mkdir(parents=True),
        "train",
        DATA,
        "imagenet_classifier.pt",
    ),
    # --- what a trained model sees
    ("no such image", None, "predict", ["gone.jpg", "--model", "tiny"], "there is no image gone.jpg"),
    (
        "an image that is none",
        lambda p: (p.folder / "text.jpg").write_text("hello"),
        "predict",
        ["text.jpg", "--model", "tiny"],
        "text.jpg cannot be decoded",
    ),
    ("no such run", None, "predict", ["photo.jpg", "--model", "gone"], "there is no trained run gone; there are tiny"),
    ("no such layer", None, "predict", ["photo.jpg", "--model", "tiny", "--layer", "17"], "tiny has no layer 17"),
    (
        "a layer without maps",
        None,
        "predict",
        ["photo.jpg", "--model", "tiny", "--layer", "classifier.1"],
        "must put out (N, channels, height, width)",
    ),
    (
        "a run that is a text",
        lambda p: (p.folder / "text.pt").write_text("hello"),
        "predict",
        ["photo.jpg", "--model", "text.pt"],
        "text.pt cannot be opened as a checkpoint",
    ),
    (
        "a run of one epoch",
        lambda p: p.change_checkpoint(lambda s: s.pop("class_names")),
        "predict",
        ["photo.jpg", "--model", "tiny"],
        "is not of a finished run",
    ),
    (
        "a run of other shapes",
        lambda p: p.change_checkpoint(lambda s: s.update(class_names=["a", "b"])),
        "predict",
        ["photo.jpg", "--model", "tiny"],
        "does not hold a network of ours",
    ),
    (
        "a run without settings",
        lambda p: p.change_checkpoint(lambda s: s.update(identity={})),
        "predict",
        ["photo.jpg", "--model", "tiny"],
        "does not hold a network of ours",
    ),
    (
        "a run that is not finite",
        lambda p: p.change_checkpoint(lambda s: s["model"]["classifier.1.weight"].fill_(float("nan"))),
        "predict",
        ["photo.jpg", "--model", "tiny"],
        "not finite",
    ),
    (
        "a class it does not know",
        None,
        "scorecam",
        ["photo.jpg", "--model", "tiny", "--target", "beach"],
        "tiny has no class beach",
    ),
    (
        "a class to invert that it does not know",
        None,
        "invert",
        ["--model", "tiny", "--classes", "beach"],
        "tiny has no class beach",
    ),
    (
        "a filter that is not there",
        None,
        "invert",
        ["--model", "tiny", "--filters", "9999", "--steps", "20", "--jitter", "2"],
        "filters are [9999]",
    ),
    ("a filter that is a word", None, "invert", ["--model", "tiny", "--filters", "best"], "--filters takes numbers"),
    (
        "a judge of filters",
        None,
        "invert",
        ["--model", "tiny", "--filters", "1", "--judge", "tiny"],
        "--judge gives the probability of a class",
    ),
    ("too few steps", None, "invert", ["--model", "tiny", "--classes", "dark", "--steps", "1"], "steps is 1"),
    (
        "a learning rate below 0",
        None,
        "invert",
        ["--model", "tiny", "--classes", "dark", "--learning-rate", "-1"],
        "learning_rate is -1.0",
    ),
    (
        "no starts",
        None,
        "invert",
        ["--model", "tiny", "--classes", "dark", "--starts", "0", "--jitter", "2"],
        "there are 1 targets and 0 starts",
    ),
    ("no trials of inversion", None, "search inversion", ["--model", "tiny", "--trials", "0"], "trials is 0"),
    # --- searches
    ("no trials", None, "search", [*DATA, "--trials", "0"], "trials is 0"),
    ("no share of the images", None, "search", [*DATA, "--subset", "0"], "subset is 0.0"),
    (
        "a share too small for a class",
        None,
        "search",
        [*DATA, "--subset", "0.01", "--storage", "new/toy.journal"],
        "leaves none of the 12 images of class dark",
    ),
    ("images too small to search on", None, "search", [*DATA, "--image-size", "16"], "image_size is 16"),
    ("an unknown sampler", None, "search", [*DATA, "--sampler", "annealing"], "invalid choice: 'annealing'"),
    ("no workers", None, "search", [*DATA, "--workers", "0"], "workers is 0"),
    (
        "a storage that is no journal",
        lambda p: (p.folder / "toy.journal").write_text("hello\n"),
        "search",
        [*DATA, "--storage", "toy.journal"],
        "toy.journal is not a study's journal",
    ),
    # --- data sets to prepare
    ("an unknown data set", None, "prepare", ["imagenet"], "there is no data set 'imagenet'"),
    ("no such source", None, "prepare", [*PREPARE, "gone"], "there is no gone"),
    (
        "a source that is a text",
        lambda p: (p.folder / "text").write_text("hello"),
        "prepare",
        [*PREPARE, "text"],
        "neither a zip nor a tar archive",
    ),
    (
        "a source without its classes",
        None,
        "prepare",
        [*PREPARE, "scenes"],
        "no images in folders named like the classes",
    ),
    (
        "a source with a bad image",
        lambda p: (p.source() / "sea/1.jpg").write_text("hello"),
        "prepare",
        [*PREPARE, "source"],
        "sea/1.jpg cannot be decoded",
    ),
    (
        "a class without images",
        lambda p: remove_images(p.source() / "sea"),
        "prepare",
        [*PREPARE, "source"],
        "class sea has no images",
    ),
    (
        "an archive that climbs out",
        lambda p: p.archive("../sea/1.jpg"),
        "prepare",
        [*PREPARE, "archive.tar"],
        "would land outside the folder",
    ),
    (
        "an archive with a link",
        lambda p: p.archive("sea/1.jpg", "link"),
        "prepare",
        [*PREPARE, "archive.tar"],
        "is a link that leads outside",
    ),
    (
        "an archive with a device",
        lambda p: p.archive("sea/1.jpg", "device"),
        "prepare",
        [*PREPARE, "archive.tar"],
        "or a device",
    ),
    (
        "an archive of 30 GB",
        lambda p: zip_of_30_gigabytes(p.folder / "archive.zip"),
        "prepare",
        [*PREPARE, "archive.zip"],
        "would unpack to 30.0 GB",
    ),
    (
        "an archive cut in the middle",
        lambda p: (p.archive("sea/1.jpg", size=5000), cut(p.folder / "archive.tar")),
        "prepare",
        [*PREPARE, "archive.tar"],
        "archive.tar",
    ),
    (
        "a checksum that is none",
        lambda p: p.source(),
        "prepare",
        [*PREPARE, "text", "--checksum", "md5:1"],
        "there is no text|checksum",
    ),
    (
        "another checksum",
        lambda p: p.archive("sea/1.jpg"),
        "prepare",
        [*PREPARE, "archive.tar", "--checksum", "md5:" + "0" * 32],
        "has the wrong checksum",
    ),
    (
        "a size to decode to that is none",
        None,
        "prepare",
        ["synthetic", "--decode", "squash:large"],
        "--decode is 'squash:large'",
    ),
    ("one size of two", lambda p: p.source(), "prepare", [*PREPARE, "source", "--val", "3"], "--test is missing"),
    (
        "more images than there are",
        lambda p: p.source(),
        "prepare",
        [*PREPARE, "source", "--val", "40", "--test", "40"],
        "none would be left for train",
    ),
    (
        "a folder that is something else",
        lambda p: p.source(),
        "prepare",
        ["nature", "--source", "source", "--to", "scenes"],
        "was not prepared here",
    ),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny_run):
    """The place as it is before a case, made once."""
    folder = tmp_path_factory.mktemp("original")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 8)):
        for brightness, class_name in ((0, "dark"), (150, "light"), (80, "striped")):
            (folder / "scenes" / split / class_name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(brightness, brightness + 60, (40, 48), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "scenes" / split / class_name / f"image_{number:04d}.jpg")
    noisy_jpeg(folder / "photo.jpg")
    (folder / "models/quick").mkdir(parents=True)
    shutil.copy(tiny_run, folder / "models/quick/tiny.pt")
    return folder


@pytest.fixture
def place(original, tmp_path, monkeypatch):
    """A copy of the place, in which commands run and write."""
    folder = tmp_path / "place"
    shutil.copytree(original, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(scenes, "STORES", tmp_path / "stores")
    monkeypatch.setattr(trained.load_trained, "__defaults__", (folder / "models",))
    for module in (supervised.train, self_supervised.train, hyperparameter_search):
        monkeypatch.setattr(module, "files_of", lambda row, profile: runs.files_of(row, profile, root=folder))
    return Place(folder)


def contents_of(folder: Path) -> dict:
    """Every file below a folder with a digest of what is in it, and every link."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    ("spoil", "command", "arguments", "words"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_mistake_is_one_sentence_exit_code_2_and_nothing_changed(place, capsys, spoil, command, arguments, words):
    if spoil is not None:
        spoil(place)
    before = contents_of(place.folder)
    capsys.readouterr()
    try:
        code = COMMANDS[command]([str(argument) for argument in arguments])
    except SystemExit as refusal:  # argparse's own way
        code = refusal.code
    *_, answer = capsys.readouterr().err.strip().splitlines()
    assert code == 2, answer
    assert any(each in answer for each in words.split("|")), answer
    assert contents_of(place.folder) == before


def test_there_are_as_many_cases_as_are_told_of():
    assert len({case[0] for case in CASES}) == len(CASES) >= 60


def result_of(place: Place) -> tuple[Path, dict]:
    """The result file of a run of imagenet_classifier and what is in it."""
    trained_row(place)
    path = place.folder / "results/quick/scenes/imagenet_classifier.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "is not whole"),
        (lambda text: "", "is not whole"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2; this code reads format 1"),
        (lambda text: text.replace('"batch_size": 32', '"batch_size": 16'), "settings.batch_size|batch_size = 16"),
    ],
    ids=["cut in the middle", "empty", "of a later format", "of other settings"],
)
def test_a_result_file_that_is_not_right_is_answered_by_its_name(place, change, words):
    path, result = result_of(place)
    path.write_text(change(path.read_text()))
    row = supervised.train.configure(supervised.train.find("imagenet_classifier"), "quick", "scenes")
    row = runs.replace(row, train=runs.replace(row.train, max_epochs=1))
    with pytest.raises(ValueError) as refusal:
        runs.read_result(row, runs.files_of(row, "quick", root=place.folder))
    assert "imagenet_classifier.json" in str(refusal.value)
    assert any(each in str(refusal.value) for each in words.split("|"))


def sixteen_bits(path):
    Image.fromarray(np.full((40, 48), 40_000, dtype=np.uint16)).save(path, "png")


def animated(path):
    frames = [Image.new("P", (48, 40), number) for number in range(3)]
    frames[0].save(path, "gif", save_all=True, append_images=frames[1:])


def turned(path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    Image.fromarray(np.full((10, 48), 40, dtype=np.uint8)).save(path, "jpeg", exif=exif)


ODD_IMAGES = {
    "16 bits": sixteen_bits,
    "a palette": lambda path: Image.new("P", (48, 40), 3).save(path, "png"),
    "a palette with transparency": lambda path: Image.new("P", (48, 40), 3).save(path, "png", transparency=3),
    "CMYK": lambda path: Image.new("CMYK", (48, 40), (10, 20, 30, 40)).save(path, "jpeg"),
    "RGBA": lambda path: Image.new("RGBA", (48, 40), (10, 20, 30, 40)).save(path, "png"),
    "grey with transparency": lambda path: Image.new("LA", (48, 40), (10, 20)).save(path, "png"),
    "animated": animated,
    "one bit": lambda path: Image.new("1", (48, 40), 1).save(path, "png"),
    "one pixel": lambda path: Image.new("L", (1, 1), 9).save(path, "png"),
    "long and thin": lambda path: Image.new("L", (2000, 3), 9).save(path, "png"),
    "to be turned": turned,
}


@pytest.mark.parametrize("draw", ODD_IMAGES.values(), ids=ODD_IMAGES)
def test_an_odd_image_is_read_among_others(place, draw):
    draw(place.image)
    found = scenes.load_splits(place.folder / "scenes", 32, progress=False)["train"]
    assert found.images.shape[2:] == (32, 32)
    assert len(found) == 36


@pytest.mark.parametrize(
    "name", ["two\nlines.jpg", "smile 🙂.jpg", 'it\'s "quoted".jpg', "-rf.jpg", "ünïcödé.JPG", "x" * 200 + ".jpg"]
)
def test_an_odd_file_name_is_read_and_told_whole(place, name, capsys):
    place.image.rename(place.image.with_name(name))
    found = scenes.load_splits(place.folder / "scenes", 32, progress=False)["train"]
    assert f"dark/{name}" in found.names
    place.image.with_name(name).write_text("no image")
    assert supervised.train.main(DATA) == 2
    assert " ".join(name.split()) in capsys.readouterr().err.splitlines()[-1]
