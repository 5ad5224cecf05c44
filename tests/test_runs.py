import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import runs
from helper_functions import History, TrainSettings
from runs import (
    Files,
    collect_results,
    files_of,
    load_checkpoint,
    load_features,
    read_result,
    run_command,
    run_experiment,
)

KILLED_RUN = Path(__file__).parent / "killed_run.py"


@dataclass(frozen=True)
class Row:
    """The least that runs.py asks of an experiment."""

    name: str
    question: str = ""
    earlier_accuracy: float | None = None
    data: str = "15scene"
    initial_weights: str = "random"
    seed: int = 0
    width: int = 4
    freeze_features: bool = False
    save_epochs: tuple = ()
    batch_size: int = 8
    has_teachers: ClassVar[bool] = False
    train: TrainSettings = field(default_factory=lambda: TrainSettings(max_epochs=3, learning_rate=0.01))


@dataclass(frozen=True)
class PointLoaders:
    """Points in two dimensions, two classes apart; val and test differ in size."""

    train: DataLoader
    val: DataLoader
    test: DataLoader
    class_names: tuple = ("left", "right")
    class_weights: torch.Tensor | None = None
    data: dict = field(default_factory=lambda: {"name": "points", "fingerprint": "1"})


def build_loaders(row):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(100) % 2
    points = torch.randn(100, 2, generator=generator) + 1.5 * labels[:, None]
    order = torch.Generator().manual_seed(row.seed)
    return PointLoaders(
        train=DataLoader(TensorDataset(points[:60], labels[:60]), 8, shuffle=True, generator=order),
        val=DataLoader(TensorDataset(points[60:70], labels[60:70]), 8),
        test=DataLoader(TensorDataset(points[70:], labels[70:]), 8),
    )


def build_model(row, loaders):
    layers = nn.Linear(2, row.width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(row.width, 2)
    return nn.Sequential(*layers), {"weights": row.initial_weights}


def run(row, folder, **arguments):
    files = files_of(row, "full", root=folder)
    return run_experiment(row, build_model, build_loaders, files, device="cpu", progress=False, **arguments)


def test_a_run_leaves_a_checkpoint_and_a_result_and_nothing_else(tmp_path):
    run(Row("row"), tmp_path)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["models/full/row.pt", "results/full/row.json"]


class Opposite(nn.Module):
    """A teacher that takes every point for one of the other class."""

    def forward(self, points):
        return points, nn.functional.one_hot((points.sum(dim=1) < 1.5).long(), 2).float()


@dataclass(frozen=True)
class TaughtRow(Row):
    has_teachers: ClassVar[bool] = True


def test_a_run_learns_from_its_teacher_and_its_files_name_it(tmp_path):
    row = TaughtRow("row", train=TrainSettings(max_epochs=20, learning_rate=0.05))
    _, result = run(row, tmp_path, build_teacher=lambda *_: (Opposite(), {"runs": ["opposite"]}))
    assert result["teachers"] == {"runs": ["opposite"]} and result["history"]["val_accuracy"][-1] < 0.3
    with pytest.raises(
        ValueError, match="row.pt was trained with teachers.runs = .'opposite'., but .'other'. is asked"
    ):
        run(row, tmp_path, build_teacher=lambda *_: (Opposite(), {"runs": ["other"]}))


def test_a_row_with_teachers_is_not_trained_without_them(tmp_path):
    with pytest.raises(ValueError, match="row learns from teachers, and none are given"):
        run(TaughtRow("row"), tmp_path)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_second_call_reads_back_the_same_model_and_result_without_training(tmp_path, monkeypatch):
    model, result = run(Row("row"), tmp_path)
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained again"))
    again, result_again = run(Row("row"), tmp_path)
    assert result_again == result
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_the_result_file_holds_what_was_returned_and_names_what_could_change_it(tmp_path):
    _, result = run(Row("row"), tmp_path)
    written = json.loads((tmp_path / "results/full/row.json").read_text())
    assert written == result
    for key in ("settings", "seconds", "device", "precision", "versions", "cpu_threads", "data", "initial_weights"):
        assert key in written, key


def test_both_protocols_follow_from_the_predictions(tmp_path):
    row = Row("row", train=TrainSettings(max_epochs=6, learning_rate=0.05))
    _, result = run(row, tmp_path)
    history = load_checkpoint(tmp_path / "models/full/row.pt")["history"]
    labels = {split: np.array(result["labels"][split]) for split in ("val", "test")}
    right = {
        split: np.array([np.array(each) == labels[split] for each in history[f"{split}_predictions"]])
        for split in labels
    }
    epoch = result["epoch"] - 1
    assert right["val"].mean(axis=1)[epoch] == right["val"].mean(axis=1).max() == result["val_accuracy"]
    assert right["test"].mean(axis=1)[epoch] == pytest.approx(result["test_accuracy"])
    both = np.concatenate([right["val"], right["test"]], axis=1).mean(axis=1)
    assert both.max() == both[result["earlier_protocol_epoch"] - 1] == pytest.approx(result["earlier_protocol_accuracy"])
    assert result["predictions"]["test"] == history["test_predictions"][epoch]
    assert result["earlier_protocol_predictions"]["val"] == history["val_predictions"][result["earlier_protocol_epoch"] - 1]
    by_class = result["test_accuracy_by_class"]
    assert np.mean([by_class["left"], by_class["right"]]) == pytest.approx(result["test_accuracy"])  # 15 images each


def test_what_is_chosen_on_val_is_not_what_is_chosen_on_all():
    """Worked by hand: 2 val and 4 test images; val is best in epoch 1, all six together in epoch 2."""

    def loader(labels):
        return [(None, torch.tensor(labels))]

    loaders = SimpleNamespace(val=loader([0, 1]), test=loader([0, 0, 1, 1]), class_names=("a", "b"))
    history = History(
        train_accuracy=[0.6, 0.7],
        val_accuracy=[1.0, 0.5],
        val_loss=[0.1, 0.2],
        test_accuracy=[0.25, 1.0],
        test_loss=[0.9, 0.1],
        val_predictions=[[0, 1], [0, 0]],
        test_predictions=[[1, 1, 1, 0], [0, 0, 1, 1]],
    )
    result = runs.summarise(history, loaders)
    assert (result["epoch"], result["val_accuracy"], result["test_accuracy"]) == (1, 1.0, 0.25)
    assert (result["earlier_protocol_epoch"], result["earlier_protocol_accuracy"]) == (2, 5 / 6)
    assert result["predictions"]["test"] == [1, 1, 1, 0]
    assert result["earlier_protocol_predictions"]["test"] == [0, 0, 1, 1]
    assert result["test_accuracy_by_class"] == {"a": 0.0, "b": 0.5}


def test_seeds_have_files_of_their_own_and_differ(tmp_path):
    _, first = run(Row("row"), tmp_path)
    _, second = run(Row("row", seed=1), tmp_path)
    assert (tmp_path / "results/full/row.seed1.json").exists()
    assert first["history"]["train_loss"] != second["history"]["train_loss"]


def test_the_same_seed_gives_the_same_numbers_twice(tmp_path):
    _, first = run(Row("row"), tmp_path / "a")
    _, second = run(Row("row"), tmp_path / "b")
    for result in (first, second):
        result["history"].pop("seconds")
    assert first["history"] == second["history"]


def test_other_data_gets_a_folder_of_its_own():
    assert files_of(Row("row", data="/home/me/flowers"), "full").result.parts[-4:] == (
        "results",
        "full",
        "flowers",
        "row.json",
    )
    assert files_of(Row("row"), "quick").checkpoint.parts[-3:] == ("models", "quick", "row.pt")


@pytest.mark.parametrize(
    ("change", "field_name"),
    [
        ({"width": 5}, r"settings\.width = 4, but 5"),
        ({"train": TrainSettings(max_epochs=3, learning_rate=0.02)}, r"settings\.train\.learning_rate = 0\.01"),
        ({"initial_weights": "imagenet"}, "initial_weights"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_the_name_of_the_field(tmp_path, change, field_name):
    run(Row("row"), tmp_path)
    before = (tmp_path / "models/full/row.pt").read_bytes()
    with pytest.raises(ValueError, match=field_name):
        run(replace(Row("row"), **change), tmp_path)
    assert (tmp_path / "models/full/row.pt").read_bytes() == before


def test_the_prose_of_a_row_may_change(tmp_path):
    run(Row("row", question="why?"), tmp_path)
    run(Row("row", question="why not?", earlier_accuracy=0.5), tmp_path)


def test_overwrite_replaces_a_run_of_other_settings(tmp_path):
    run(Row("row"), tmp_path)
    _, result = run(Row("row", width=5), tmp_path, overwrite=True)
    assert result["settings"]["width"] == 5
    assert json.loads((tmp_path / "results/full/row.json").read_text()) == result


def test_a_setting_that_an_old_file_does_not_know_counts_as_its_default(tmp_path):
    run(Row("row"), tmp_path)
    path = tmp_path / "results/full/row.json"
    whole = path.read_text()
    result = json.loads(whole)
    del result["settings"]["width"]
    path.write_text(json.dumps(result))
    assert read_result(Row("row"), files_of(Row("row"), "full", root=tmp_path)) == json.loads(whole)
    with pytest.raises(ValueError, match="width"):
        read_result(Row("row", width=5), files_of(Row("row"), "full", root=tmp_path))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"hello"])
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(tmp_path, damage):
    run(Row("row"), tmp_path)
    path = tmp_path / "models/full/row.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"row\.pt cannot be opened"):
        run(Row("row"), tmp_path)


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    path = tmp_path / "trap.pt"
    torch.save({"format": runs.FORMAT, "model": Trap()}, path)
    with pytest.raises(ValueError, match=r"trap\.pt cannot be opened"):
        load_checkpoint(path)
    assert not (tmp_path / "trapped").exists()


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    torch.save({"format": runs.FORMAT + 1}, tmp_path / "new.pt")
    with pytest.raises(ValueError, match="format"):
        load_checkpoint(tmp_path / "new.pt")


def test_a_result_file_cut_in_the_middle_is_refused_by_name(tmp_path):
    run(Row("row"), tmp_path)
    path = tmp_path / "results/full/row.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(ValueError, match=r"row\.json is not whole"):
        read_result(Row("row"), files_of(Row("row"), "full", root=tmp_path))


@pytest.mark.parametrize("name", ["../row", "a/b", "", ".hidden", "a b", "row\n"])
def test_a_name_that_is_no_plain_file_stem_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="cannot name a file"):
        Files(tmp_path, tmp_path, name)


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    def full_disk(contents, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(Row("row"), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_result_is_rebuilt_from_the_checkpoint_if_only_the_result_was_lost(tmp_path):
    _, result = run(Row("row"), tmp_path)
    (tmp_path / "results/full/row.json").unlink()
    run(Row("row"), tmp_path)
    assert json.loads((tmp_path / "results/full/row.json").read_text()) == result


def test_collecting_reads_what_is_there_and_trains_what_is_missing(tmp_path, monkeypatch):
    rows = [Row("first"), Row("second")]
    arguments = {"build_model": build_model, "build_loaders": build_loaders, "root": tmp_path, "progress": False}
    run(rows[0], tmp_path)
    assert list(collect_results(rows, profile="full", train_missing=False, **arguments)) == ["first"]
    assert list(collect_results(rows, profile="full", **arguments)) == ["first", "second"]
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained again"))
    assert list(collect_results(rows, profile="full", **arguments)) == ["first", "second"]


def test_quick_results_of_other_settings_are_replaced_and_full_ones_are_not(tmp_path):
    arguments = {"build_model": build_model, "build_loaders": build_loaders, "root": tmp_path, "progress": False}
    for profile in ("quick", "full"):
        collect_results([Row("row")], profile=profile, **arguments)
    changed = [Row("row", width=5)]
    assert collect_results(changed, profile="quick", **arguments)["row"]["settings"]["width"] == 5
    with pytest.raises(ValueError, match="width"):
        collect_results(changed, profile="full", **arguments)


def test_a_row_that_leaves_the_precision_open_takes_a_result_of_any_and_one_that_names_it_does_not(tmp_path):
    row = Row("row")
    in_bfloat16 = replace(row, train=replace(row.train, precision="bfloat16"))
    _, result = run(in_bfloat16, tmp_path)
    assert read_result(row, files_of(row, "full", root=tmp_path)) == result
    in_float32 = replace(row, train=replace(row.train, precision="float32"))
    with pytest.raises(ValueError, match="train.precision = 'bfloat16', but 'float32'"):
        read_result(in_float32, files_of(row, "full", root=tmp_path))


def train_in_a_process(folder, kill_at=None):
    """Run tests/killed_run.py; with `kill_at` it kills itself with SIGKILL in that forward pass of training."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILL_AT": str(kill_at or 0)}
    return subprocess.run(
        [sys.executable, str(KILLED_RUN), str(folder)], env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_run_killed_in_the_middle_of_an_epoch_ends_as_one_never_killed_bit_for_bit(tmp_path, scene_folder):
    folders = {name: tmp_path / name for name in ("killed", "undisturbed")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "scenes").symlink_to(scene_folder)
    batches_an_epoch = 5  # 36 images in batches of 8
    for kill_at in (2 * batches_an_epoch + 3, batches_an_epoch + 2):  # in epoch 3, then, resumed there, in epoch 4
        killed = train_in_a_process(folders["killed"], kill_at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert (folders["killed"] / "models/full/row.state.pt").exists()
        assert not (folders["killed"] / "models/full/row.pt").exists()
    for folder in folders.values():
        finished = train_in_a_process(folder)
        assert finished.returncode == 0, finished.stderr
    saved = {name: load_checkpoint(folder / "models/full/row.pt") for name, folder in folders.items()}
    histories = {name: {**each["history"], "seconds": None} for name, each in saved.items()}
    assert histories["killed"] == histories["undisturbed"]
    assert len(histories["killed"]["train_loss"]) == 6
    weights = {name: each["model"] for name, each in saved.items()}
    assert weights["killed"].keys() == weights["undisturbed"].keys()
    for name, tensor in weights["killed"].items():
        assert torch.equal(tensor, weights["undisturbed"][name]), name
    assert not list(folders["killed"].rglob("*.tmp"))
    assert not list(folders["killed"].rglob("*.state.pt"))


def test_a_run_that_goes_on_elsewhere_names_both_machines(tmp_path, monkeypatch):
    row, stopped = Row("row"), iter([None, KeyboardInterrupt])
    plain = runs.describe_machine

    def elsewhere(device, precision, state=None):
        return {**plain(device, precision, state), "device": "H200", "precision": "bfloat16"}

    def stop_in_the_second_epoch(path, write, whole=runs.write_atomically):
        if path.suffixes[-2:] == [".state", ".pt"] and (error := next(stopped)):
            raise error
        whole(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "describe_machine", elsewhere)
        patch.setattr(runs, "write_atomically", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            run(row, tmp_path)
    here = plain(torch.device("cpu"), "float32")["device"]
    state = load_checkpoint(tmp_path / "models/full/row.state.pt")
    again = {**state, "machine": plain(torch.device("cpu"), "float32", state)}  # interrupted here once more
    _, result = run(row, tmp_path)
    assert result["device"] == f"H200 in bfloat16 to epoch 1, then {here}" and result["precision"] == "float32"
    assert plain(torch.device("cpu"), "float32", again)["device"] == result["device"]


class Parts(nn.Module):
    """A network with `features` and a classifier."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.classifier = nn.Linear(4, 2)

    def forward(self, points):
        return self.classifier(self.features(points))


def run_of_parts(row, folder):
    return run_experiment(
        row,
        lambda row, loaders: (Parts(), {"weights": "random"}),
        build_loaders,
        files_of(row, "full", root=folder),
        device="cpu",
        progress=False,
    )


def test_the_epochs_a_row_asks_for_are_kept_with_the_weights_they_had(tmp_path):
    row = Row("row", save_epochs=(1, 2, "last"))
    run_of_parts(row, tmp_path)
    kept = {epoch: load_features(row, files_of(row, "full", root=tmp_path), epoch) for epoch in (1, 2, "last", "best")}
    for epoch in (1, 2):  # a training of so many epochs ends where the longer one had been
        shorter = replace(row, save_epochs=("last",), train=replace(row.train, max_epochs=epoch))
        run_of_parts(shorter, tmp_path / str(epoch))
        expected, _ = load_features(shorter, files_of(shorter, "full", root=tmp_path / str(epoch)), "last")
        assert kept[epoch][0].keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(kept[epoch][0][name], tensor)
    digests = {epoch: words["sha256"] for epoch, (_, words) in kept.items()}
    assert len({digests[1], digests[2], digests["last"]}) == 3
    assert kept[1][1]["weights"] == "row, epoch 1"


def test_features_come_without_prefix_and_without_the_head(tmp_path):
    row = Row("row")
    model, _ = run_of_parts(row, tmp_path)
    weights, words = load_features(row, files_of(row, "full", root=tmp_path), "best")
    assert weights.keys() == model.features.state_dict().keys()
    assert words["began_with"] == {"weights": "random"}


def test_a_run_that_is_not_there_an_epoch_not_kept_and_other_settings_are_refused_in_a_sentence(tmp_path):
    row = Row("row", save_epochs=(2,))
    files = files_of(row, "full", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"row.epoch2.pt: the run row has not been trained here"):
        load_features(row, files, 2)
    run_of_parts(row, tmp_path)
    with pytest.raises(FileNotFoundError, match="the epochs best, 2 are kept, and 3 is asked for"):
        load_features(row, files, 3)
    with pytest.raises(ValueError, match=r"row.epoch2.pt was trained with width = 4, but 5 is asked for"):
        load_features(replace(row, width=5), files, 2)
    other = replace(row, train=replace(row.train, precision="bfloat16"))  # of the run that asks for them
    assert load_features(other, files, 2)[1] == load_features(row, files, 2)[1]


def test_a_rows_own_precision_stands_unless_the_command_line_names_another():
    row = Row("row", train=TrainSettings(precision="bfloat16"))
    parser = runs.build_parser("train", "")
    chosen = {
        arguments: runs.with_options(row, 0, parser.parse_args(arguments.split())).train.precision
        for arguments in ("", "--precision float32")
    }
    assert chosen == {"": "bfloat16", "--precision float32": "float32"}


def test_a_second_training_of_the_same_run_is_refused_with_the_first_ones_process(tmp_path):
    row, lock = Row("row"), tmp_path / "models/full/.row.lock"
    lock.parent.mkdir(parents=True)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, filelock, pathlib\n"
            f"with filelock.FileLock({str(lock)!r}):\n"
            f"    pathlib.Path({str(lock)!r}).write_text(str(os.getpid()))\n"
            "    print('held', flush=True)\n"
            "    sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"row is being trained by process {holder.pid}; wait for it or stop it"):
            run(row, tmp_path)
        assert not (tmp_path / "models/full/row.pt").exists()
    finally:
        holder.communicate("")
    run(row, tmp_path)
    assert not lock.exists()


@pytest.mark.parametrize("part", ["models", "results"])
def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_trained(tmp_path, part, monkeypatch):
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained for nothing"))
    folder = tmp_path / part / "full"

    def read_only(dir):
        if dir == folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return io.BytesIO()

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(OSError, match=rf"{part}/full cannot be written to \(Read-only file system\)"):
        run(Row("row"), tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    ],
)
def test_a_batch_too_large_for_the_memory_is_answered_with_what_to_do(tmp_path, error, monkeypatch):
    def too_large(*_, **__):
        raise error

    monkeypatch.setattr(runs, "train", too_large)
    with pytest.raises(MemoryError, match="row ran out of memory with batches of 8 images; halve batch_size"):
        run(Row("row"), tmp_path)


def test_an_error_of_the_program_keeps_its_traceback(tmp_path, monkeypatch):
    def wrong(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(runs, "train", wrong)
    with pytest.raises(RuntimeError, match="mat1"):
        run(Row("row"), tmp_path)


def test_a_command_answers_ctrl_c_and_mistakes_by_its_exit_code_and_one_line(capsys):
    def fail_with(error):
        def command():
            raise error

        return command

    assert run_command(lambda: None) == 0
    assert run_command(lambda: 3) == 3
    assert run_command(fail_with(KeyboardInterrupt())) == 130
    assert run_command(fail_with(ValueError("a file named\nin two lines"))) == 2
    assert capsys.readouterr().err.splitlines() == [
        "interrupted; the same command goes on from what was finished",
        "error: a file named in two lines",
    ]
    with pytest.raises(TypeError):  # no mistake of the user's
        run_command(fail_with(TypeError()))


def test_the_state_of_a_run_that_was_killed_after_its_last_file_is_removed(tmp_path):
    run(Row("row"), tmp_path)
    state = tmp_path / "models/full/row.state.pt"
    state.write_bytes(b"left behind")
    run(Row("row"), tmp_path)
    assert not state.exists()
