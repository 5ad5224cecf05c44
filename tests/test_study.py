"""The command that trains everything that is missing: order, side by side, failures, interruption."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

import study
import train
from experiments import EXPERIMENTS, configure, find
from run_files import FORMAT, files_of, settings_of
from study import IMAGES, Task, expected_seconds, finished_runs, forward_passes, missing_tasks, say_failed, train_tasks
from tests.points import TINY

WRITES = "import sys, time; time.sleep(0.3); open(sys.argv[1], 'w').write(f'{time.time()}')"


def task(name, *needs):
    return Task(replace(TINY, name=name), "quick", needs)


@pytest.fixture
def trains(tmp_path):
    """A command that writes <name> into a folder after a while, and fails for names that begin with "bad"."""

    def command(task):
        code = "raise SystemExit(3)" if task.name.startswith("bad") else WRITES
        return [sys.executable, "-c", code, str(tmp_path / task.name)]

    return command


def test_what_a_run_starts_from_is_trained_before_it_and_once(root):
    names = ["byol_classifier", "byol_finetuned", "supervised_1", "byol"]
    tasks = missing_tasks(names, "full", [0, 1], weights="random")
    found = [each.name for each in tasks]
    assert sorted(found) == sorted([*names, *(f"{name}.seed1" for name in names)])
    for seed in ("", ".seed1"):
        assert found.index(f"byol{seed}") < min(
            found.index(f"byol_{each}{seed}") for each in ("classifier", "finetuned")
        )
    by_name = {each.name: each for each in tasks}
    assert by_name["byol_classifier"].needs == (files_of(by_name["byol"].experiment, "full").checkpoint,)
    assert by_name["supervised_1"].needs == ()


def test_a_run_with_a_result_is_left_out_but_trained_again_where_its_weights_are_needed(root):
    configured = configure(EXPERIMENTS["byol"], "full", weights="random")
    byol = files_of(configured, "full")
    byol.results.mkdir(parents=True)
    byol.models.mkdir(parents=True)
    byol.result.write_text(json.dumps({"format": FORMAT, "settings": settings_of(configured)}))
    byol.checkpoint.write_bytes(b"")
    assert [each.name for each in missing_tasks(["byol"], "full", [0], weights="random")] == []
    assert [each.name for each in missing_tasks(["byol_classifier"], "full", [0], weights="random")] == [
        "byol_classifier"
    ]
    byol.checkpoint.unlink()
    found = missing_tasks(["byol_classifier"], "full", [0], weights="random")
    assert [each.name for each in found] == ["byol", "byol_classifier"]
    assert missing_tasks(["byol"], "full", [0], weights="random") == []
    byol.result.write_text(json.dumps({"format": FORMAT, "settings": {**settings_of(configured), "batch_size": 3}}))
    with pytest.raises(ValueError, match="batch_size"):
        missing_tasks(["byol"], "full", [0], weights="random")
    (again,) = missing_tasks(["byol"], "full", [0], overwrite=True, weights="random")
    assert again.name == "byol"


def test_a_result_of_another_precision_is_refused_but_not_that_of_a_pretext(root, capsys):
    """As without --study: what a run starts from may be of any precision."""
    byol = EXPERIMENTS["byol"]
    files = files_of(byol, "full")
    files.results.mkdir(parents=True)
    files.models.mkdir(parents=True)
    settings = settings_of(replace(byol, train=replace(byol.train, precision="bfloat16")))
    files.result.write_text(json.dumps({"format": FORMAT, "settings": settings}))
    files.checkpoint.write_bytes(b"")
    for precision, code in (("float32", 2), ("bfloat16", 0), ("auto", 0)):
        assert train.main(["--study", "byol", "--precision", precision]) == code
    assert "train.precision = 'bfloat16', but 'float32'" in capsys.readouterr().err
    (task,) = missing_tasks(["byol_classifier"], "full", [0], precision="float32")
    assert task.experiment.train.precision == "float32"


def test_a_study_asks_each_run_for_the_precision(root, monkeypatch):
    commands = []
    monkeypatch.setattr(study, "train_tasks", lambda tasks, command, *_: commands.extend(map(command, tasks)) or [])
    assert train.main(["--study", "supervised_1", "--precision", "bfloat16"]) == 0
    assert commands[0][commands[0].index("--precision") + 1] == "bfloat16"


def test_tasks_run_side_by_side_and_wait_for_the_files_they_need(root, tmp_path, trains):
    tasks = [task("after", tmp_path / "first"), task("first"), task("beside")]
    assert train_tasks(tasks, trains, at_a_time=2, seconds={"first": 60.0}) == []
    written = {name: float((tmp_path / name).read_text()) for name in ("after", "first", "beside")}
    assert written["first"] < written["after"]
    assert abs(written["first"] - written["beside"]) < written["after"] - written["first"]


def test_a_run_that_fails_stops_only_what_needs_it(root, tmp_path, trains):
    tasks = [task("bad"), task("after", tmp_path / "bad"), task("other")]
    assert train_tasks(tasks, trains, at_a_time=1, seconds={}) == tasks[:2]
    assert (tmp_path / "other").exists()


def test_runs_of_one_name_on_other_data_or_of_another_profile_have_logs_of_their_own(root, capsys):
    flowers = replace(TINY, data="photos/flowers")
    tasks = [Task(TINY, "full"), Task(TINY, "quick"), Task(flowers, "full"), Task(flowers, "quick")]
    study.say_failed(tasks)
    said = capsys.readouterr().err.splitlines()
    logs = {str(each.log.relative_to(root / "logs/study")) for each in tasks}
    assert len(logs) == 4 and "full/flowers/tiny.log" in logs
    assert all(str(each.log) in line for each, line in zip(tasks, said, strict=True))


def test_an_interruption_ends_every_process(root, monkeypatch):
    started = []
    popen = study.subprocess.Popen

    def remembered(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    def interrupt(_):
        if len(started) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(study.subprocess, "Popen", remembered)
    monkeypatch.setattr(study.time, "sleep", interrupt)
    sleeping = [sys.executable, "-c", "import time; time.sleep(100)"]
    with pytest.raises(KeyboardInterrupt):
        train_tasks([task("one"), task("two"), task("three")], lambda _: sleeping, at_a_time=2, seconds={})
    assert len(started) == 2 and all(each.returncode is not None and each.returncode < 0 for each in started)


def test_expected_seconds_grow_with_epochs_images_and_pixels_and_come_from_finished_runs():
    base = EXPERIMENTS["supervised_long"]
    longer = replace(base, train=replace(base.train, max_epochs=2 * base.train.max_epochs))
    assert forward_passes(longer) == 2 * forward_passes(base)
    assert forward_passes(replace(base, image_size=2 * base.image_size, crop_size=2 * base.crop_size)) == pytest.approx(
        4 * forward_passes(base)
    )
    assert forward_passes(EXPERIMENTS["rotation_1"]) > 3 * forward_passes(
        replace(EXPERIMENTS["supervised_1"], train=EXPERIMENTS["rotation_1"].train)
    )
    assert forward_passes(EXPERIMENTS["byol_classifier"]) < forward_passes(EXPERIMENTS["byol"]) / 3
    images = {"data": {"images": IMAGES}}
    results = [(base, {"seconds": 100.0, **images}), (longer, {"seconds": 200.0, **images})]
    assert expected_seconds([Task(longer, "full")], results) == {"supervised_long": pytest.approx(200)}
    few = {"train": 15, "val": 9, "test": 21}
    (seconds,) = expected_seconds([Task(longer, "full")], results, few).values()
    assert seconds == pytest.approx(2, rel=0.02)
    assert expected_seconds([Task(longer, "full")], []) == {}


@pytest.mark.parametrize(
    ("cores", "gib", "gib_of_gpu", "expected"),
    [(4, 100, None, 4), (8, 22, None, 3), (8, 1, None, 1), (8, 1, 100, 4), (8, 100, 15, 2)],
)
def test_as_many_runs_go_side_by_side_as_cores_and_memory_allow(cores, gib, gib_of_gpu, expected, monkeypatch):
    monkeypatch.setattr(study.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(study.psutil, "virtual_memory", lambda: SimpleNamespace(available=gib * 2**30))
    monkeypatch.setattr(study.torch.cuda, "is_available", lambda: gib_of_gpu is not None)
    monkeypatch.setattr(study.torch.cuda, "mem_get_info", lambda: (gib_of_gpu * 2**30, 141 * 2**30))
    assert study.runs_at_a_time() == expected


def test_a_time_is_told_from_finished_runs_of_this_machine_and_these_settings_by_their_epochs(root, monkeypatch):
    for name, device, changes in (
        ("supervised_1", "cpu (x86_64)", {}),
        ("supervised_2", "NVIDIA H200", {}),
        ("supervised_3", "cpu (x86_64)", {"batch_size": 3}),
    ):
        experiment = configure(EXPERIMENTS[name], "full")
        result = {"device": device, "history": {"val_loss": [2.0, 1.0]}}
        file = files_of(experiment, "full").result
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"format": FORMAT, "settings": settings_of(experiment) | changes, **result}))
    names = [f"supervised_{number}" for number in (1, 2, 3, 4)]
    monkeypatch.setattr(study.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    for gpu, expected in ((False, "supervised_1"), (True, "supervised_2")):
        monkeypatch.setattr(study.torch.cuda, "is_available", lambda gpu=gpu: gpu)
        ((found, result),) = finished_runs(names, "full")
        assert (found.name, found.train.max_epochs) == (expected, 2) and result["history"]["val_loss"] == [2.0, 1.0]


def test_a_failed_run_is_said_with_its_reason_and_what_needs_it_with_its_name(root, capsys):
    first = Task(find("supervised_1"), "quick")
    first.log.parent.mkdir(parents=True)
    first.log.write_text("decoding 50%\rdecoding 100%\nerror: flat holds 1 class\n\n")
    needs_it = Task(find("supervised_2"), "quick", after=("supervised_1",))
    needs_it.log.write_text("error: of an earlier attempt\n")
    say_failed([first, needs_it])
    failed, unstarted = capsys.readouterr().err.splitlines()
    assert "error: flat holds 1 class" in failed and str(first.log) in failed
    assert "supervised_1" in unstarted and "earlier attempt" not in unstarted
