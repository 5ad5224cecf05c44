"""Files: the root folder of all that is read and written, atomic writes, locks, digests, safe loading, commands."""

import errno
import functools
import hashlib
import io
import itertools
import os
import platform
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pandas as pd
import psutil
import torch
from filelock import FileLock

CODE = Path(__file__).resolve().parents[1]  # the folder of the project's own files
LONGEST_SENTENCE = 600  # letters of an error; ours have half as many, and what a library says may have thousands
UNFINISHED = ".unfinished-"  # beginning of the names of files that are being written
MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # in these names: folders can be shared
LONGEST_WRITE = 24 * 3600  # seconds
Written = TypeVar("Written")
_WRITES = itertools.count()  # of this process


def root_folder() -> Path:
    """The folder that holds data/, models/ and results/: SCENES_ROOT of the environment, or that of the code."""
    return expanded(os.environ.get("SCENES_ROOT") or CODE).resolve()


def expanded(path: str | Path) -> Path:
    """A path that a user gave, with ~ as the home folder: a shell expands it in few places, a notebook never."""
    return Path(os.path.expanduser(path))


def make_folder(folder: Path):
    """Make a folder and those above it.  Raises OSError that names it, and SCENES_ROOT where that leads there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
    except OSError as error:
        given = os.environ.get("SCENES_ROOT")
        ours = given and folder.is_relative_to(root_folder())
        advice = f"SCENES_ROOT is {given}; set it to a folder that can be written to" if ours else "name another one"
        raise OSError(f"no file can be written to {folder} ({error.strerror}); {advice}") from error


def write_atomically(path: Path, write: Callable[[Path], Written]) -> Written:
    """Have `write` fill a hidden file of the same suffix, rename it to `path`, and return what `write` returns.

    Whoever reads finds the old file or the new one, also where several processes write it.  Missing folders are made;
    an error or an interrupt leaves nothing behind, and what a killed process left is removed by the next one.  Raises
    OSError naming the file if it cannot be written, as when the disk is full.
    """
    make_folder(path.parent)
    _remove_leftovers(path.parent)
    process = f"{os.getpid()}-{MACHINE}-{next(_WRITES)}"
    temporary = path.with_name(f"{UNFINISHED}{process}.{shortened(path.stem, 180)}{path.suffix}")
    try:
        written = write(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where a disk is full
        raise OSError(f"{path} cannot be written ({error}); check whether the disk is full or read-only") from error
    finally:
        temporary.unlink(missing_ok=True)
    return written


def write_table(path: Path, table: pd.DataFrame, index: bool = False, **options):
    """Write a table as CSV, as `write_atomically` does.  Options are those of `DataFrame.to_csv`.

    Names of files that are not valid text are written as the bytes they are.
    """
    write = functools.partial(table.to_csv, index=index, errors="surrogateescape", **options)
    write_atomically(path, write)


def read_table(path: Path, **options) -> pd.DataFrame:
    """Read a table whose names may be no valid text, as `write_table` writes it.  Options are those of `read_csv`."""
    return pd.read_csv(path, encoding_errors="surrogateescape", engine="python", **options)  # the C engine refuses them


@functools.cache
def _remove_leftovers(folder: Path):
    """Remove what `write_atomically` left of killed processes, once for each folder.

    A folder can be shared: whether a process of another machine is gone cannot be seen, so its file stays for a day.
    """
    for path in folder.glob(f"{UNFINISHED}*"):
        ours = re.match(r"(\d+)-(?:([0-9a-f]{8})-)?\d+\.", path.name.removeprefix(UNFINISHED))
        if ours is None:  # a user's own
            continue
        process, machine = ours.groups()  # older code named no machine
        with suppress(FileNotFoundError):  # another process removes it too
            gone = machine == MACHINE and not psutil.pid_exists(int(process))
            if gone or time.time() - path.stat().st_mtime > LONGEST_WRITE:
                path.unlink()


def check_output(path: Path, option: str, folder: bool = False):
    """Raise ValueError that names the option where no file, or no folder of files, can be written at `path`.

    A command asks before it works for an hour.
    """
    if not folder and path.is_dir():
        raise ValueError(f"{option} is {path}, which is a folder; it takes a file")
    place = path if folder else path.parent
    above = next(each for each in (place, *place.parents) if each.exists())
    if not above.is_dir():
        raise ValueError(f"{option} is {path}, but {above} is a file and can hold no other")
    if not os.access(above, os.W_OK):
        raise ValueError(f"{option} is {path}, but {above} may not be written to")


def write_text(path: Path, text: str):
    """Write a text in UTF-8, as `write_atomically` does: whoever reads finds the old text or the new one."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def shortened(name: str, most_bytes: int) -> str:
    """The beginning of a name that leaves room for more in the 255 bytes of a file's name."""
    return os.fsencode(name)[:most_bytes].decode(errors="ignore")


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file `path` within the block, and remove it afterwards, also after an error.

    The system releases the lock of a killed process.  Raises filelock.Timeout if another process holds the lock for
    longer than `timeout` (seconds; -1 waits for as long as it takes).
    """
    make_folder(path.parent)
    with FileLock(path, timeout=timeout):
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows keeps an open file
                path.unlink(missing_ok=True)  # while it is held: whoever waits notices and makes a new file


def digest_of_file(path: Path, algorithm: str = "sha256") -> str:
    """Digest of a file's bytes by an algorithm of hashlib, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digest_of_tensors(state_dict: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the names and bytes of tensors on the CPU, in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in state_dict.items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_plain(path: Path):
    """What torch.save wrote, on the CPU; only tensors and plain types can be loaded, so a file cannot run code.

    Raises ValueError for an archive that would unpack to more than its own size, and what torch.load raises.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked_bytes = sum(member.file_size for member in archive.infolist())
        if unpacked_bytes > path.stat().st_size:
            raise ValueError(f"it would unpack to {unpacked_bytes:,} bytes")
    return torch.load(path, map_location="cpu", weights_only=True)


def run_command(command: Callable[[], int | None]) -> int:
    """Run what a script is asked for and return its exit code; a user's mistake gets one sentence, not a traceback.

    0, or what the command returns: done.  2: a mistake, a full disk or too little memory.  130: Ctrl-C.  Any other
    exception is a defect and passes through.
    """
    say_once.cache_clear()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a file's name
    try:
        return command() or 0
    except KeyboardInterrupt:
        print(
            "interrupted; files that were written stay, and trainings, searches and reports continue with the same "
            "command",
            file=sys.stderr,
        )
        return 130
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        sentence = " ".join(str(error).split()) or "there is too little memory"  # a MemoryError often says nothing
        if len(sentence) > LONGEST_SENTENCE:
            sentence = f"{sentence[: LONGEST_SENTENCE - 100]} ... {sentence[-100:]}"
        print(f"error: {sentence}", file=sys.stderr)
        return 2


@functools.cache
def say_once(sentence: str):
    """Tell the user something that is no mistake, on one line; a command says a sentence once."""
    print(" ".join(sentence.split()), file=sys.stderr)
