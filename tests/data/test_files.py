import hashlib
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from filelock import Timeout

from data.files import CODE, digest_of_file, expanded, locked, root_folder, run_command, write_atomically


def test_the_root_folder_is_that_of_the_environment_or_of_the_code(root, monkeypatch):
    assert root_folder() == root
    monkeypatch.delenv("SCENES_ROOT")
    assert root_folder() == CODE


def test_a_file_appears_complete_and_what_was_written_is_returned(tmp_path):
    path = tmp_path / "folder" / "file.txt"

    def write(temporary):
        assert temporary.suffix == ".txt" and not path.exists()
        temporary.write_text("new")
        return 7

    assert write_atomically(path, write) == 7
    assert path.read_text() == "new"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(28, "full"), OSError), (RuntimeError("file write failed"), OSError), (KeyboardInterrupt(), None)],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error, raised):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(raised or type(error)) as caught:
        write_atomically(path, write)
    assert raised is None or str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file.txt"]


def test_a_lock_is_held_by_one_and_its_file_is_removed_also_after_an_error(tmp_path):
    path = tmp_path / "folder" / "a.lock"
    with pytest.raises(KeyError), locked(path):
        with pytest.raises(Timeout), locked(path, timeout=0):
            pass
        raise KeyError
    assert not path.exists()
    with locked(path, timeout=0):
        assert path.exists()


def count_up(folder: Path) -> None:
    for _ in range(20):
        with locked(folder / "a.lock"):
            count = int((folder / "count").read_text())
            (folder / "count").write_text(str(count + 1))


def test_many_processes_that_share_a_lock_lose_no_step(tmp_path):
    (tmp_path / "count").write_text("0")
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(count_up, [tmp_path] * 4))
    assert (tmp_path / "count").read_text() == "80"
    assert os.listdir(tmp_path) == ["count"]


def test_digests_are_those_of_hashlib(tmp_path):
    (tmp_path / "file").write_bytes(b"bytes")
    assert digest_of_file(tmp_path / "file") == hashlib.sha256(b"bytes").hexdigest()
    assert digest_of_file(tmp_path / "file", "md5") == hashlib.md5(b"bytes").hexdigest()


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (ValueError("a file\nin two lines"), 2), (OSError("disk"), 2), (MemoryError(), 2)],
)
def test_a_mistake_is_one_sentence_and_a_code(capsys, error, code):
    def command():
        raise error

    assert run_command(command) == code
    (sentence,) = capsys.readouterr().err.splitlines()
    assert str(error).split("\n")[0] in sentence
    assert not sentence.endswith(": ")


def test_a_sentence_of_thousands_of_letters_is_cut_in_its_middle(capsys):
    def command():
        raise ValueError(f"weights.pth {'name, ' * 5000}is wrong")

    assert run_command(command) == 2
    sentence = capsys.readouterr().err
    assert len(sentence) < 650 and sentence.startswith("error: weights.pth") and sentence.endswith("is wrong\n")


def test_a_terminal_without_the_letters_of_a_name_ends_no_command():
    names = ["ünïcode", "日本語", "caf\udce9"]
    code = f"from data.files import run_command; print(run_command(lambda: print(*{names!r})))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=CODE, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0", done.stderr


def test_a_home_folder_is_found_and_an_unknown_one_left_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/flowers") == tmp_path / "flowers"
    assert [str(expanded(path)) for path in ("~nobody-here/a", "a/~/b", "./~")] == ["~nobody-here/a", "a/~/b", "~"]
    monkeypatch.setenv("SCENES_ROOT", "~/root")
    assert root_folder() == tmp_path / "root"


def test_a_defect_is_not_taken_for_a_mistake():
    def command():
        raise TypeError

    assert (run_command(lambda: None), run_command(lambda: 3)) == (0, 3)
    with pytest.raises(TypeError):
        run_command(command)
