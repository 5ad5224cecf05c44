"""Coverage-guided fuzzing of the readers of archives and of records.

    python tests/faults/fuzz_readers.py -max_total_time=600

Needs atheris (pip install atheris; Apache licence).  Whatever the bytes are, a reader gives files inside its
folder, or one sentence: a ValueError that names the file.  What is found becomes a case of test_readers.py.
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports():  # the library's modules too: they are what reads the bytes
    import tarfile
    import zipfile

    from data.download import unpack
    from data.prepare import verify

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def read_archive(contents: bytes):
    """Unpack, or refuse; nothing lies outside the folder."""
    archive, inside = FOLDER / "archive", FOLDER / "place" / "inside"
    archive.write_bytes(contents)
    shutil.rmtree(FOLDER / "place", ignore_errors=True)
    inside.mkdir(parents=True)
    try:
        unpack(archive, inside)
    except ValueError as error:
        assert str(archive) in str(error)
    assert [path.name for path in (FOLDER / "place").iterdir()] == ["inside"]


def read_record(contents: bytes):
    """Verify a folder by its split.csv, or refuse it."""
    folder = FOLDER / "prepared"
    folder.mkdir(exist_ok=True)
    (folder / "split.csv").write_bytes(contents)
    try:
        verify("nature", folder)
    except ValueError as error:
        assert str(folder) in str(error)


def test_one_input(contents: bytes):
    """The first byte chooses the reader."""
    (read_record if contents[:1] == b"c" else read_archive)(contents[1:])


def write_seeds(folder: Path):
    """Small whole archives and a record, to begin with."""
    for mode in ("w", "w:gz", "w:xz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as opened:
            opened.addfile(tarfile.TarInfo("class/image.jpg"), io.BytesIO(b""))
        (folder / f"tar{mode[2:]}").write_bytes(b"a" + buffer.getvalue())
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as opened:
            opened.writestr("class/image.jpg", b"12345678")
        (folder / f"zip{compression}").write_bytes(b"a" + buffer.getvalue())
    (folder / "record").write_bytes(b"cclass,file_name,split,bytes\nsea,1.jpg,train,10\n")


if __name__ == "__main__":
    seeds = FOLDER / "seeds"
    seeds.mkdir()
    write_seeds(seeds)
    atheris.Setup([*sys.argv, str(seeds)], test_one_input)
    atheris.Fuzz()
