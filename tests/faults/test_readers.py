"""Whatever the bytes of a file are, its reader gives what is in it, or one ValueError that names the file.

The fuzzed files are sound ones with random damage.  What a fuzzer has found is a case here.
"""

import base64
import io
import os
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data.download import unpack
from data.image_cache import decode
from data.prepare import verify
from evaluation.checkpoints import read_released
from hyperparameter_search import read_trials
from run_files import FORMAT, load_checkpoint

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1500"))  # per kind of file

# A zip whose directory names another member than its file has, and a place before the beginning of the file.
ZIP_WITH_A_NEGATIVE_OFFSET = (
    "UEsDBBQAAAAAAHd3eV2v2uCaCAAAAAgAAAAPAAAAY2xhc3MvaW1hZ2UuanBnMTIzNDU2NzhQSwECFAMUAAAAAAB3d3ldr9rgmggAAAAIAAAADwAA"
    "AAAAAAAAAAAAgAEAAAAAY2wvZ2Fpc21hc2UuanBnUEsFBgAAAAABAAEAPQAAADYAAAAAAA=="
)


def test_a_damaged_archive_is_named(tmp_path):
    archive = tmp_path / "archive"
    archive.write_bytes(base64.b64decode(ZIP_WITH_A_NEGATIVE_OFFSET))
    with pytest.raises(ValueError, match=str(archive)):
        unpack(archive, tmp_path / "inside")


RECORD = b"class,file_name,split,bytes\nsea,1.jpg,train,10\n"


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\n",
        b"class,file_name,split,bytes\nsea,\xff\xff1.jpg,train,10\n",
        b"class,file_name,split,bytes\nsea,1.jpg,train\n",
        b"class,file_name,split,bytes\nsea,1.jpg,train,ten\n",
        b'class,file_name,split,bytes\nsea,"1.jpg,train,10\n',
        b"class,file_name,split\nsea,1.jpg,train\n",
        b"a,b,c,d\nsea,1.jpg,train,10\n",
        RECORD,  # of another data set, and without the image
    ],
)
def test_a_record_that_does_not_fit_its_folder_is_refused_by_the_folder(tmp_path, contents):
    (tmp_path / "split.csv").write_bytes(contents)
    with pytest.raises(ValueError, match=str(tmp_path)):
        verify("nature", tmp_path)


# ------------------------------------------------------------------------------------------------------------- fuzzing


def damaged(contents: bytes, generator: random.Random) -> bytes:
    """One to four random changes: bytes replaced, a part removed, repeated or copied, an extreme value, an end."""
    data = bytearray(contents)
    for _ in range(generator.randint(1, 4)):
        start = generator.randrange(len(data) + 1)
        end = min(len(data), start + generator.choice((1, 1, 2, 4, 16, 200)))
        part = bytes(data[start:end])
        change = generator.randrange(6)
        if change == 0:
            data[start:end] = generator.randbytes(end - start)
        elif change == 1:
            del data[start:end]
        elif change == 2:
            data[start:start] = part * generator.choice((1, 2, 50))
        elif change == 3:
            elsewhere = generator.randrange(len(data) + 1)
            data[elsewhere:elsewhere] = part
        elif change == 4:
            extreme = generator.choice((b"\xff", b"\x00", b"9", b"-", b"\x7f"))
            data[start:end] = extreme * (end - start)
        elif generator.random() < 0.2:
            del data[start:]
    return bytes(data)


def archives() -> list[bytes]:
    found = []
    for mode in ("w", "w:gz", "w:xz", "w:bz2"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as opened:
            member = tarfile.TarInfo("class/image.jpg")
            member.size = 8
            opened.addfile(member, io.BytesIO(b"12345678"))
        found.append(buffer.getvalue())
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as opened:
            opened.writestr("class/image.jpg", b"12345678")
        found.append(buffer.getvalue())
    return found


def images() -> list[bytes]:
    found = []
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    for kind in ("jpeg", "png", "gif", "bmp", "ppm", "tiff", "webp"):
        for mode in ("RGB", "L"):
            buffer = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(buffer, kind)
            found.append(buffer.getvalue())
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "jpeg", exif=exif)
    return [*found, buffer.getvalue()]


def checkpoints() -> list[bytes]:
    weights = {"features.weight": torch.randn(3, 4), "bias": torch.arange(3)}
    contents = {"format": FORMAT, "identity": {"settings": {}}, "model": weights, "names": ["a", "b"], "value": 0.5}
    torch.save(contents, buffer := io.BytesIO())
    return [buffer.getvalue()]


def released() -> list[bytes]:
    path = Path("fuzz.safetensors")
    save_file({"features.weight": torch.randn(3, 4).half()}, path, metadata={"about": '{"class_names": ["a", "b"]}'})
    return [path.read_bytes()]


def tables() -> list[bytes]:
    return [b"experiment,subset,sampler,trial,state,learning_rate,value\na,0.1,tpe,0,COMPLETE,0.001,0.5\n"]


def read_archive(path: Path):
    folder = Path("place/inside")
    shutil.rmtree("place", ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        unpack(path, folder)
    finally:
        assert os.listdir("place") == ["inside"]


def read_record(path: Path):
    """The record lies in a folder, which the error names."""
    path.rename("fuzz.folder/split.csv")
    try:
        verify("nature", Path("fuzz.folder"))
    except ValueError as error:
        raise ValueError(str(error).replace("fuzz.folder", path.name)) from error


READERS = {
    "archive": (archives, read_archive),
    "record": (lambda: [RECORD], read_record),
    "image": (images, lambda path: decode(path, 16, "imagenet")),
    "checkpoint": (checkpoints, load_checkpoint),
    "released": (released, read_released),
    "table": (tables, read_trials),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is damaged
@pytest.mark.parametrize("kind", READERS)
def test_a_reader_of_damaged_files_gives_what_is_in_them_or_names_them(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fuzz.folder").mkdir()
    make, read = READERS[kind]
    generator, sound, path = random.Random(0), make(), Path("fuzz.file")
    refused = 0
    for number in range(ROUNDS):
        contents = damaged(generator.choice(sound), generator)
        path.write_bytes(contents)
        try:
            read(path)
        except ValueError as error:
            assert path.name in str(error), (number, error)
            refused += 1
        except Exception as error:
            pytest.fail(f"round {number}: {error!r} for {base64.b64encode(contents).decode()}")
    assert refused > ROUNDS / 10
