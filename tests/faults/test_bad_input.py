"""Every mistake of a user gets one sentence that names the file, field or value, and exit code 2, and changes nothing.

Each table holds: what is wrong, how it is made, what the answer must name.  Unusual input that is right works.
"""

import hashlib
import io
import os
import shlex
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import efficientnet_b1

import hyperparameter_search
import run_files
import train
from data import prepare
from data.image_cache import load_splits
from data.prepare import CLASS_NAMES
from evaluation import (
    audit,
    demo,
    embed,
    explain,
    export,
    inversion_search,
    model_inversion,
    nature,
    novelty,
    predict,
    probes,
    publish,
    scorecam,
)
from evaluation.pages import report
from experiments import configure, find
from supervised.models import SceneClassifier
from tests.conftest import CLASSES, draw

COMMANDS = {
    "train": train.main,
    "search": hyperparameter_search.main,
    "prepare": prepare.main,
    "predict": predict.main,
    "embed": embed.main,
    "novelty": novelty.main,
    "audit": audit.main,
    "export": export.main,
    "demo": demo.main,
    "scorecam": scorecam.main,
    "invert": model_inversion.main,
    "search_inversion": inversion_search.main,
    "publish": publish.main,
    "explain": explain.main,
    "probes": probes.main,
    "nature": nature.main,
    "report": report.main,
}
TRAIN = "train imagenet_classifier --profile quick --data scenes"
SEARCH = "search imagenet_classifier --profile quick --data scenes --storage new.db"
PREDICT = "predict photo.jpg --model"
INVERT = "invert --model tiny"
PREPARE = "prepare nature --to prepared --source"
FINISHED = "imagenet_classifier.pt"


def noisy_jpeg(path: Path):
    """Large enough to be cut in the middle of its pixels."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)


def write_nature_source(folder: Path):
    for number, class_name in enumerate(CLASS_NAMES["nature"]):
        (folder / class_name).mkdir(parents=True)
        for image in range(8):
            Image.new("RGB", (8, 8), (number, image, 0)).save(folder / class_name / f"{image}.jpg")


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny_run) -> Path:
    """Scenes of three classes, a source of nature scenes, a photo and two runs, made once."""
    folder = tmp_path_factory.mktemp("original")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 8)):
        for class_name in CLASSES:
            (folder / "scenes" / split / class_name).mkdir(parents=True)
            for number in range(count):
                draw(class_name, generator).save(folder / "scenes" / split / class_name / f"image_{number:04d}.jpg")
    write_nature_source(folder / "source")
    noisy_jpeg(folder / "photo.jpg")
    (folder / "text").write_text("hello")
    (folder / "flat").mkdir()
    noisy_jpeg(folder / "flat/1.jpg")
    (folder / "source/empty").mkdir()
    (folder / "labels.csv").write_text("name,label\nphoto.jpg,sea\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SCENES_ROOT", str(folder / "finished"))
        assert train.main([*shlex.split(TRAIN)[1:], "--epochs", "1"]) == 0
    shutil.rmtree(folder / "finished/data")
    (folder / "models/quick").mkdir(parents=True)
    (folder / "models/quick/tiny.pt").symlink_to(tiny_run)
    return folder


@pytest.fixture
def place(original, tmp_path, monkeypatch) -> Path:
    """A copy of the folder, in which commands run and write."""
    folder = tmp_path / "place"
    shutil.copytree(original, folder, symlinks=True, ignore=shutil.ignore_patterns("finished"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SCENES_ROOT", str(folder))
    return folder


@pytest.fixture
def finished(original, place) -> Path:
    """The checkpoint of a finished run of imagenet_classifier, for one epoch."""
    shutil.copytree(original / "finished", place, dirs_exist_ok=True)
    return place / "models/quick/scenes" / FINISHED


def contents_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest, and every link, except complete files of the image cache."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and not path.match("data/cache/[!.]*.???*")
    }


@pytest.fixture
def refused(place, capsys):
    """Give a command line, and check the answer and that nothing has changed."""

    def give(line: str, *named: str):
        before = contents_of(place)
        capsys.readouterr()
        command, *arguments = shlex.split(line)
        try:
            code = COMMANDS[command](arguments)
        except SystemExit as ended:  # argparse's own way
            code = ended.code
        errors = capsys.readouterr().err.strip()
        sentence = errors.splitlines()[-1]
        assert code == 2, errors
        assert errors.count("error: ") == 1 and "Traceback" not in errors, errors
        assert all(each in sentence for each in named), sentence
        assert contents_of(place) == before

    return give


# ------------------------------------------------------------------------------------------------------- command lines

LINES = {  # a command line: what its answer must name
    "train": ["--list"],
    "train supervised_9": ["'supervised_9'", "supervised_6"],
    "train --show supervised_9": ["'supervised_9'"],
    "train rotation_9": ["'rotation_9'", "rotation_1"],
    "train rotation_1 --data nowhere": ["nowhere"],
    "train supervised_1 --data nowhere": ["nowhere"],
    "train supervised_1 --data photo.jpg": ["photo.jpg"],
    "train supervised_1": ["15scene", "data.prepare"],
    "train supervised_4 --profile quick --data scenes": ["supervised_4", "class_weights", "'coast'"],
    f"{TRAIN} --epochs 0": ["max_epochs is 0"],
    f"{TRAIN} --epochs -3": ["max_epochs is -3"],
    f"{TRAIN} --seeds -1": ["seed is -1"],
    f"{TRAIN} --seeds one": ["'one'"],
    f"{TRAIN} --profile huge": ["'huge'"],
    f"{TRAIN} --fast": ["--fast"],
    f"{TRAIN} --weights gone.pth": ["gone.pth"],
    "train random_classifier --data scenes --weights gone.pth": ["random_classifier", "gone.pth"],
    "search random_classifier --data scenes --weights text --storage new.db": ["random_classifier", "text"],
    "train --from-study gone.csv": ["gone.csv"],
    "train --from-study text": ["text is not the table"],
    f"{SEARCH} --trials 0": ["trials is 0"],
    f"{SEARCH} --trials 21 --sampler grid": ["trials is 21", "20"],
    f"{SEARCH} --subset 0": ["subset is 0"],
    f"{SEARCH} --subset 0.01": ["0.01", "class dark"],
    f"{SEARCH} --image-size 16": ["image_size is 16"],
    f"{SEARCH} --sampler annealing": ["'annealing'"],
    f"{SEARCH} --workers 0": ["workers is 0"],
    f"{SEARCH} --storage text": ["text"],
    f"{SEARCH} --storage sqlite:///search.db": ["sqlite:/", "search.db"],
    "search supervised_9": ["'supervised_9'"],
    "prepare imagenet": ["'imagenet'", "15scene"],
    "prepare nature": ["nature", "--source"],
    "prepare synthetic --decode squash:large": ["'squash:large'"],
    f"{PREPARE} gone": ["gone"],
    f"{PREPARE} text": ["text"],
    f"{PREPARE} scenes": ["scenes", "nature", "glacier"],
    f"{PREPARE} text --checksum md5:1": ["'md5:1'"],
    f"{PREPARE} text --checksum md5:{'0' * 32}": ["text", "0" * 32],
    f"{PREPARE} source --checksum md5:{'0' * 32}": ["source", "--checksum"],
    f"{PREPARE} source --val 3": ["--test"],
    f"{PREPARE} source --val 40 --test 40": ["source", "48", "40 for val"],
    f"{PREPARE} source --val 0 --test 40": ["--val is 0"],
    "prepare nature --source source --to scenes": ["scenes", "split.csv"],
    "predict gone.jpg --model tiny": ["gone.jpg"],
    "predict text --model tiny": ["text"],
    f"{PREDICT} gone": ["gone", "tiny"],
    f"{PREDICT} tiny --map --layer 17": ["tiny", "17"],
    f"{PREDICT} tiny --map --layer classifier.1": ["(1, 3)"],
    f"{PREDICT} tiny --map --output text": ["text"],
    f"{PREDICT} tiny --output out": ["--output", "--map"],
    f"{PREDICT} tiny --method score_cam": ["--method", "--map"],
    f"{PREDICT} tiny --why-not beach": ["tiny", "beach", "striped"],
    f"{PREDICT} tiny --csv table.txt": ["--csv", "table.txt"],
    f"{PREDICT} tiny --csv text/table.csv": ["--csv", "text/table.csv"],
    f"{PREDICT} tiny --map --output text/maps": ["--output", "text/maps"],
    "predict source/empty --model tiny": ["source/empty"],
    "embed gone --output new.npz --model tiny": ["gone"],
    "embed flat --output new.txt --model tiny": ["--output", "new.txt"],
    "embed flat --output new.npz --model gone": ["gone", "tiny"],
    "embed flat --output text/new.npz --model tiny": ["--output", "text/new.npz"],
    "novelty gone --data scenes": ["gone", "tiny"],
    "novelty tiny --data nowhere": ["nowhere"],
    "novelty tiny --data scenes --photographs flat": ["'flat'", "NAME=FOLDER"],
    "audit nowhere --model tiny": ["nowhere"],
    "audit scenes --model gone": ["gone", "tiny"],
    "audit scenes --model tiny --planted 2": ["--planted is 2"],
    "audit scenes --model tiny --output text": ["text"],
    "audit scenes --model tiny --output text/audit": ["--output", "text/audit"],
    "audit scenes --weights gone.pth": ["gone.pth"],
    "demo --model gone": ["gone", "tiny"],
    "demo --model tiny --nearest nowhere": ["nowhere"],
    "demo --model tiny --port 70000": ["--port is 70000"],
    "export gone --to torchvision": ["gone", "tiny"],
    "export tiny --to java": ["'java'"],
    "export tiny --to torchvision --output new.onnx": ["--output", "new.onnx"],
    "export tiny --to torchvision --output text/new.pth": ["--output", "text/new.pth"],
    "train byol --profile quick --data scenes --unlabeled nowhere": ["nowhere"],
    "train byol --profile quick --data scenes --unlabeled labels.csv": ["--unlabeled", "labels.csv"],
    f"{TRAIN} --unlabeled flat": ["imagenet_classifier", "--unlabeled"],
    "train supervised_1 --profile quick --data flat": ["flat", "<class>/<image>"],
    "train supervised_1 --profile quick --data flat/**": ["flat/**", "--unlabeled"],
    "train supervised_1 --profile quick --data labels.csv": ["labels.csv", "'file'"],
    "scorecam photo.jpg --model tiny --target beach": ["tiny", "beach", "striped"],
    "scorecam photo.jpg --model tiny --output sheet.txt": ["sheet.txt"],
    "scorecam photo.jpg --model tiny --output text/sheet.png": ["--output", "text/sheet.png"],
    f"{INVERT} --classes beach": ["tiny", "beach", "striped"],
    f"{INVERT} --filters 9999 --steps 20 --jitter 2": ["9999", "1279"],
    f"{INVERT} --filters best": ["--filters", "best"],
    f"{INVERT} --filters 1 --evaluator tiny": ["--evaluator"],
    f"{INVERT} --classes dark --steps 1": ["steps is 1"],
    f"{INVERT} --classes dark --learning-rate -1": ["learning_rate is -1"],
    f"{INVERT} --classes dark --starts 0 --jitter 2": ["0 starts"],
    f"{INVERT} --classes dark --output text": ["text"],
    f"{INVERT} --classes dark --output text/images": ["--output", "text/images"],
    "search_inversion --model tiny --trials 0": ["trials is 0"],
    "publish gone": ["gone", "distilled_long"],
    "publish --source nowhere": ["nowhere"],
    "publish --make": ["--make"],
    "explain --profile quick --data scenes": ["distilled_long"],
    "explain --data nowhere": ["nowhere"],
    "probes --data nowhere": ["nowhere"],
    "nature --data nowhere": ["nowhere"],
    "report gone.ipynb": ["gone.ipynb", "supervised/report.ipynb"],
}


@pytest.mark.parametrize(("line", "named"), LINES.items(), ids=LINES)
def test_a_command_line_that_cannot_be_followed(refused, line, named):
    refused(line, *named)


# -------------------------------------------------------------------------------------------------- images and folders


def cut(path: Path):
    """The first half of a file alone."""
    contents = path.read_bytes()
    path.write_bytes(contents[: len(contents) // 2])


def of_400_million_pixels(path: Path):
    """A PNG whose header claims them."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "png")
    contents = bytearray(buffer.getvalue())
    contents[16:24] = struct.pack(">II", 20_000, 20_000)
    contents[29:33] = struct.pack(">I", zlib.crc32(contents[12:29]))
    path.write_bytes(contents)


def loop(path: Path):
    path.unlink()
    path.symlink_to(path)


IMAGES = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "a JPEG cut in the middle": lambda path: (noisy_jpeg(path), cut(path)),
    "a text": lambda path: path.write_text("hello"),
    "a JPEG's header alone": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"),
    "400 million pixels": of_400_million_pixels,
    "32 bits a pixel": lambda path: Image.new("F", (8, 8)).save(path, "tiff"),
    "a link to itself": loop,
    "12 bits in 16": lambda path: Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(path, "png"),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("gone")),
}


@pytest.mark.parametrize("spoil", IMAGES.values(), ids=IMAGES)
def test_an_image_that_cannot_be_decoded(refused, place, spoil):
    spoil(place / "scenes/train/dark/image_0000.jpg")
    refused(TRAIN, "dark/image_0000.jpg")


def remove(*patterns: str):
    """What removes images and folders of scenes."""

    def spoil(scenes: Path):
        for path in [path for pattern in patterns for path in scenes.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


FOLDERS = {
    "no train folder": (remove("train"), "scenes", "train"),
    "train alone": (remove("val", "test"), "scenes", "val"),
    "val twice": (lambda scenes: shutil.copytree(scenes / "val", scenes / "validation"), "val", "validation"),
    "an empty class in train": (remove("train/dark/*"), "'dark'", "train"),
    "an empty class in val": (remove("val/light/*"), "'light'", "val"),
    "a class in one split": (lambda scenes: (scenes / "train/sunny").mkdir(), "'sunny'", "train"),
    "a class of another case": (lambda scenes: (scenes / "val/dark").rename(scenes / "val/Dark"), "'Dark'", "val"),
    "one class": (remove("*/light", "*/striped"), "train", "1", "2"),
    "no image at all": (remove("*/*/*"), "scenes/train"),
    "one image to choose and report by": (remove("test", "val/dark/*[1-9].jpg"), "'dark'"),
}


@pytest.mark.parametrize("case", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_is_no_data_set(refused, place, case):
    spoil, *named = case
    spoil(place / "scenes")
    refused(TRAIN, *named)


# --------------------------------------------------------------------------------------------- weights and checkpoints


class Trap:
    """What a pickle would run."""

    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def bomb(path: Path):
    """A megabyte of zeros in a thousandth of that, under torch's member name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**20)


def features(**changes):
    """What writes the state dict of EfficientNet-B0's features, with a changed first convolution."""

    def write(path: Path):
        state = {f"features.{name}": tensor for name, tensor in SceneClassifier(3).features.state_dict().items()}
        state["features.0.0.weight"] = torch.full(**{"size": (32, 3, 3, 3), "fill_value": 0.0} | changes)
        torch.save(state, path)

    return write


NETWORK = {f"features.{name}": tensor for name, tensor in SceneClassifier(3).features.state_dict().items()}
WEIGHTS = {
    "a text": (lambda path: path.write_text("hello"), "weights.pth"),
    "code": (lambda path: torch.save({"a": Trap()}, path), "weights.pth"),
    "a zip bomb": (bomb, "weights.pth"),
    "a list": (lambda path: torch.save([1, 2], path), "weights.pth"),
    "another network": (lambda path: torch.save({"conv1.weight": torch.zeros(1)}, path), "features.0.0.weight"),
    "EfficientNet-B1": (
        lambda path: torch.save(efficientnet_b1().state_dict(), path),
        "efficientnet_b1",
        "148 too many",
    ),
    "two networks": (lambda path: torch.save({"model": NETWORK, "ema": NETWORK}, path), "model, ema"),
    "another shape": (features(size=(1,)), "features.0.0.weight", "(1,)", "(32, 3, 3, 3)"),
    "values that are not finite": (features(fill_value=torch.nan), "features.0.0.weight", "weights.pth"),
}


@pytest.mark.parametrize("case", WEIGHTS.values(), ids=WEIGHTS)
def test_a_weights_file_that_is_none(refused, place, case):
    write, *named = case
    write(place / "weights.pth")
    refused(f"{TRAIN} --weights weights.pth", *named)
    assert not (place / "trapped").exists()


CHECKPOINTS = {
    "cut in the middle": cut,
    "empty": lambda path: path.write_bytes(b""),
    "with code": lambda path: torch.save({"format": run_files.FORMAT, "identity": {}, "model": Trap()}, path),
    "a zip bomb": bomb,
    "of a later format": lambda path: torch.save({"format": 99, "identity": {}}, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("spoil", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_is_none(refused, place, finished, spoil):
    spoil(finished)
    refused(f"{TRAIN} --epochs 1", FINISHED)
    refused(f"{PREDICT} models/quick/scenes/{FINISHED}", FINISHED)
    assert not (place / "trapped").exists()


def test_a_run_that_is_there_with_other_settings_or_is_unfinished_and_damaged(refused, finished):
    refused(f"{TRAIN} --epochs 2", FINISHED, "max_epochs = 1", "2")
    finished.unlink()
    finished.with_suffix(".state.pt").write_text("hello")
    refused(f"{TRAIN} --epochs 1", "imagenet_classifier.state.pt")


RUNS = {
    "of one epoch": (lambda saved: saved.pop("class_names"), "class names"),
    "of other shapes": (lambda saved: saved.update(class_names=["a", "b"]), "classifier.1."),
    "without settings": (lambda saved: saved.update(identity={}), "settings"),
    "not finite": (lambda saved: saved["model"]["classifier.1.weight"].fill_(torch.nan), "classifier.1.weight"),
}


@pytest.mark.parametrize("case", RUNS.values(), ids=RUNS)
def test_a_trained_run_that_holds_no_network_of_ours(refused, place, tiny_run, case):
    change, named = case
    saved = torch.load(tiny_run, weights_only=True)
    change(saved)
    torch.save(saved, place / "models/quick/changed.pt")
    refused(f"{PREDICT} changed", "changed.pt", named)


RESULTS = {
    "cut in the middle": (lambda text: text[: len(text) // 2],),
    "empty": (lambda text: "",),
    "of a later format": (lambda text: text.replace(f'"format": {run_files.FORMAT}', '"format": 99'), "99"),
    "of other settings": (lambda text: text.replace('"batch_size": 9', '"batch_size": 16'), "batch_size = 16"),
}


@pytest.mark.parametrize("case", RESULTS.values(), ids=RESULTS)
def test_a_result_file_that_is_not_right(finished, place, case):
    change, *named = case
    path = place / "results/quick/scenes/imagenet_classifier.json"
    experiment = configure(find("imagenet_classifier"), "quick", data="scenes", max_epochs=1)
    assert run_files.read(experiment, "quick")
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError) as refusal:
        run_files.read(experiment, "quick")
    assert all(each in str(refusal.value) for each in (path.name, *named))


# ------------------------------------------------------------------------------------------------ data sets to prepare


def archive(name: str, kind: bytes = tarfile.REGTYPE):
    """What writes an archive with one member."""

    def write(path: Path):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
        member.size = 5000 if kind == tarfile.REGTYPE else 0
        with tarfile.open(path, "w") as opened:
            opened.addfile(member, io.BytesIO(b"x" * member.size))

    return write


def zip_of_30_gigabytes(path: Path):
    """A zip that claims to be more than it is."""
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("sea/1.jpg", b"x")
        opened.filelist[0].file_size = opened.filelist[0].compress_size = 30 * 10**9


ARCHIVES = {
    "a member that climbs out": (archive("../sea/1.jpg"), "'../sea/1.jpg'"),
    "a link": (archive("sea/1.jpg", tarfile.SYMTYPE), "'sea/1.jpg'"),
    "a device": (archive("sea/1.jpg", tarfile.CHRTYPE), "'sea/1.jpg'"),
    "30 GB": (zip_of_30_gigabytes, "30.0 GB"),
    "cut in the middle": (lambda path: (archive("sea/1.jpg")(path), cut(path)),),
    "no image": (archive("sea/1.txt"), "nature"),
}


@pytest.mark.parametrize("case", ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_that_cannot_be_prepared(refused, place, case):
    write, *named = case
    write(place / "archive")
    refused(f"{PREPARE} archive", "archive", *named)


def test_a_source_with_a_bad_image_or_without_a_class(refused, place):
    (place / "source/sea/1.jpg").write_text("hello")
    refused(f"{PREPARE} source", "source", "sea/1.jpg")
    shutil.rmtree(place / "source/sea")
    refused(f"{PREPARE} source", "source", "sea")


def test_there_are_as_many_cases_as_the_page_says():
    tables = (LINES, IMAGES, FOLDERS, WEIGHTS, CHECKPOINTS, RUNS, RESULTS, ARCHIVES)
    assert sum(map(len, tables)) >= 100


# ---------------------------------------------------------------------------------------- unusual input that is right


def animated(path):
    frames = [Image.new("P", (48, 40), number) for number in range(3)]
    frames[0].save(path, "gif", save_all=True, append_images=frames[1:])


def rotated(path):
    exif = Image.Exif()
    exif[274] = 6  # to be rotated by a quarter turn
    Image.fromarray(np.full((10, 48), 40, dtype=np.uint8)).save(path, "jpeg", exif=exif)


UNUSUAL_IMAGES = {
    "16 bits": lambda path: Image.fromarray(np.full((40, 48), 40_000, dtype=np.uint16)).save(path, "png"),
    "a palette": lambda path: Image.new("P", (48, 40), 3).save(path, "png"),
    "a palette with transparency": lambda path: Image.new("P", (48, 40), 3).save(path, "png", transparency=3),
    "CMYK": lambda path: Image.new("CMYK", (48, 40), (10, 20, 30, 40)).save(path, "jpeg"),
    "RGBA": lambda path: Image.new("RGBA", (48, 40), (10, 20, 30, 40)).save(path, "png"),
    "gray with transparency": lambda path: Image.new("LA", (48, 40), (10, 20)).save(path, "png"),
    "one bit": lambda path: Image.new("1", (48, 40), 1).save(path, "png"),
    "one pixel": lambda path: Image.new("L", (1, 1), 9).save(path, "png"),
    "long and thin": lambda path: Image.new("L", (2000, 3), 9).save(path, "png"),
    "animated": animated,
    "to be rotated": rotated,
}


@pytest.mark.parametrize("write", UNUSUAL_IMAGES.values(), ids=UNUSUAL_IMAGES)
def test_an_unusual_image_is_read_among_others(place, write):
    write(place / "scenes/train/dark/image_0000.jpg")
    assert load_splits(place / "scenes", 32, progress=False)["train"].images.shape[::2] == (36, 32)


NAMES = ("two\nlines.jpg", "smile 🙂.jpg", 'it\'s "quoted".jpg', "-rf.jpg", "ünïcödé.JPG", "x" * 200 + ".jpg")


@pytest.mark.parametrize("name", NAMES)
def test_an_unusual_file_name_is_read_and_printed_completely(place, refused, name):
    path = place / "scenes/train/dark/image_0000.jpg"
    path = path.rename(path.with_name(name))
    assert f"dark/{name}" in load_splits(place / "scenes", 32, progress=False)["train"].names
    path.write_text("no image")
    refused(TRAIN, " ".join(name.split()))
