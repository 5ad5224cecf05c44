"""What a run leaves in files, when it is read back, and how it continues."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import experiments
import run_files
import runs
from data.files import CODE, digest_of_tensors, locked
from experiments import configure, find, prerequisites
from helper_functions import History, TrainSettings, evaluate
from loop.batchnorm import fold_batchnorm
from run_files import Files, files_of, further_seeds, load_checkpoint, load_weights, read
from runs import collect, train_job
from self_supervised.dataloader import build_loaders
from self_supervised.joint_embedding import OfViews
from self_supervised.probes import vote_of_neighbors
from self_supervised.settings import (
    ClassifierExperiment,
    FineTunedExperiment,
    JointEmbeddingExperiment,
    PretextExperiment,
    ProbeExperiment,
)
from supervised.models import SceneClassifier, build_features
from supervised.settings import DistilledExperiment, Experiment
from tests.points import BATCHES, TINY, PointNetwork, point_job


def run(experiment=TINY, **changes):
    return train_job(point_job(experiment, **changes))


def changed(experiment, **fields):
    """Fields of the experiment, or of its TrainSettings, replaced."""
    training = {name: fields.pop(name) for name in list(fields) if hasattr(experiment.train, name)}
    return replace(experiment, **fields, train=replace(experiment.train, **training))


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_equal(weights, others):
    assert weights.keys() == others.keys()
    assert not [name for name, tensor in weights.items() if not torch.equal(tensor, others[name])]


# ------------------------------------------------------------------------------------------------- results, read again


def test_a_run_leaves_a_checkpoint_and_a_result_with_all_that_could_change_it(root):
    _, result = run()
    assert files_below(root) == ["models/full/tiny.pt", "results/full/tiny.json"]
    assert json.loads((root / "results/full/tiny.json").read_text()) == result
    needed = {"settings", "seconds", "device", "precision", "versions", "cpu_threads", "data", "initial_weights"}
    assert needed <= result.keys()


def test_a_finished_run_is_read_back_and_not_trained_again(root, monkeypatch):
    model, result = run()
    files_of(TINY, "full").state.write_bytes(b"left by a process that was killed after its last file")
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained again"))
    again, result_again = run()
    assert result_again == result == read(TINY)
    assert_equal(again.state_dict(), model.state_dict())
    assert files_below(root) == ["models/full/tiny.pt", "results/full/tiny.json"]
    files_of(TINY, "full").result.unlink()
    run()  # a lost result is written again from the checkpoint
    assert read(TINY) == result


def test_a_seed_repeats_its_numbers_and_another_has_files_and_numbers_of_its_own(root, monkeypatch):
    losses = [run(replace(TINY, seed=seed))[1]["history"]["train_loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]
    assert (root / "results/full/tiny.seed1.json").exists()
    monkeypatch.setenv("SCENES_ROOT", str(root / "again"))
    assert run()[1]["history"]["train_loss"] == losses[0]


def test_the_seeds_of_an_experiment_are_those_of_its_own_results(root):
    folder = files_of(TINY, "full").results
    folder.mkdir(parents=True)
    assert further_seeds(TINY, "full") == []
    for name in ("tiny", "tiny.seed10", "tiny.seed2", "tiny_other.seed4", "tiny.seed3.old", "tiny.seedling"):
        (folder / f"{name}.json").touch()
    assert further_seeds(replace(TINY, seed=2), "full") == [2, 10]


def test_results_on_other_data_have_a_folder_of_their_own(root):
    def place(experiment, profile="full"):
        return files_of(experiment, profile).result.relative_to(root).as_posix()

    assert place(find("supervised_1"), "quick") == "results/quick/supervised_1.json"
    assert place(find("cifar10_rotation")) == "results/full/cifar10/cifar10_rotation.json"
    assert place(replace(TINY, data="/home/me/flowers", seed=2)) == "results/full/flowers/tiny.seed2.json"


@pytest.mark.parametrize("name", ["../tiny", "a/b", "", ".hidden", "a b", "tiny\n"])
def test_a_name_that_is_no_plain_file_stem_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="cannot name a file"):
        Files(tmp_path, tmp_path, name)


# ------------------------------------------------------------------------------------------------------- both protocols


def test_the_epoch_is_chosen_on_val_and_under_the_earlier_protocol_on_all_images():
    """Worked by hand: 2 val and 4 test images; val is best in epoch 1, all six together in epochs 2 and 3.

    The lower loss of both together is that of epoch 3.
    """

    def loader(labels):
        return [(None, torch.tensor(labels))]

    loaders = SimpleNamespace(val=loader([0, 1]), test=loader([0, 0, 1, 1]), class_names=("a", "b"))
    history = History(
        train_accuracy=[0.6, 0.7, 0.8],
        val_accuracy=[1.0, 0.5, 0.5],
        val_loss=[0.1, 0.2, 0.3],
        test_accuracy=[0.25, 1.0, 1.0],
        test_loss=[0.9, 0.3, 0.1],
        val_predictions=[[0, 1], [1, 1], [0, 0]],
        test_predictions=[[1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
    )
    result = runs.summarize(history, loaders)
    assert (result["epoch"], result["val_accuracy"], result["test_accuracy"]) == (1, 1.0, 0.25)
    assert (result["earlier_protocol_epoch"], result["earlier_protocol_accuracy"]) == (3, 5 / 6)
    assert result["predictions"] == {"val": [0, 1], "test": [1, 1, 1, 0]}
    assert result["earlier_protocol_predictions"] == {"val": [0, 0], "test": [0, 0, 1, 1]}
    assert result["test_accuracy_by_class"] == {"a": 0.0, "b": 0.5}


# ------------------------------------------------------------------------------------------------------- other settings


@pytest.mark.parametrize("change", [{"head": "deep"}, {"learning_rate": 0.02}, {"initial_weights": "imagenet"}])
def test_a_run_of_other_settings_is_refused_by_the_field_and_replaced_with_overwrite(root, change):
    run()
    before = (root / "models/full/tiny.pt").read_bytes()
    other, (field,) = changed(TINY, **change), change
    for refused in (lambda: run(other), lambda: load_weights(other)):
        with pytest.raises(ValueError, match=field):
            refused()
    assert (root / "models/full/tiny.pt").read_bytes() == before
    _, result = run(other, overwrite=True)
    assert read(other) == result


def test_the_question_and_the_earlier_accuracy_may_change(root):
    _, result = run()
    reworded = replace(TINY, question="Why not?", compared_with="supervised_1", earlier_accuracy=0.5)
    assert run(reworded)[1] == read(reworded) == result


def test_a_setting_that_is_newer_than_the_files_has_its_default_in_them(root):
    _, result = run()
    files = files_of(TINY, "full")
    saved = load_checkpoint(files.checkpoint)
    del saved["identity"]["settings"]["flip_tta"], saved["identity"]["settings"]["train"]["ema_decay"]
    torch.save(saved, files.checkpoint)
    files.result.write_text(json.dumps({**result, "settings": saved["identity"]["settings"]}))
    assert read(TINY) == run()[1] == result
    for changes in ({"flip_tta": True}, {"ema_decay": 0.5}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            read(changed(TINY, **changes))


def test_an_experiment_that_leaves_the_precision_open_reads_a_result_of_any(root):
    _, result = run(changed(TINY, precision="bfloat16"))
    assert read(TINY) == result == run(TINY)[1]
    for call in (read, run):
        with pytest.raises(ValueError, match="precision"):
            call(changed(TINY, precision="float32"))


# -------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"hello"])
def test_a_damaged_file_is_refused_by_name(root, damage):
    run()
    for path in (root / "results/full/tiny.json", root / "models/full/tiny.pt"):
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=path.name):
            read(TINY) if path.suffix == ".json" else run()


@pytest.mark.parametrize("suffix", [".pt", ".state.pt"])
def test_a_damaged_checkpoint_or_state_is_replaced_with_overwrite(root, suffix):
    _, result = run()
    path = root / f"models/full/tiny{suffix}"
    path.unlink(missing_ok=True)
    (root / "models/full/tiny.pt").unlink(missing_ok=True)
    path.write_bytes(b"cut")
    with pytest.raises(ValueError, match=f"{path.name} .*--overwrite"):
        run()
    _, again = run(overwrite=True)
    assert again["history"]["val_loss"] == result["history"]["val_loss"] == run()[1]["history"]["val_loss"]


def test_other_images_are_told_in_words_and_not_as_digests(root):
    run()
    for before, now in (("1", "2"), ({"train": "a" * 64, "test": "b" * 64}, {"train": "a" * 64, "test": "c" * 64})):
        loaders = replace(point_job().loaders, data={"name": "points", "fingerprint": before})
        run(loaders=loaders, overwrite=True)
        with pytest.raises(ValueError, match="other (test )?images than those of points") as refusal:
            run(loaders=replace(loaders, data={"name": "points", "fingerprint": now}))
        assert "ccc" not in str(refusal.value) and "SCENES_ROOT" in str(refusal.value)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    torch.save({"format": run_files.FORMAT, "identity": {}, "model": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="trap.pt"):
        load_checkpoint(tmp_path / "trap.pt")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    "contents", [{"format": run_files.FORMAT + 1, "identity": {}}, {"format": run_files.FORMAT}, [1, 2]]
)
def test_a_file_that_is_no_checkpoint_of_this_format_is_refused(tmp_path, contents):
    torch.save(contents, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_full_disk_leaves_no_file_that_is_not_complete(root, monkeypatch):
    def full_disk(contents, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError):
        run()
    assert not files_below(root)


@pytest.mark.parametrize("part", ["models", "results"])
def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_trained(root, part, monkeypatch):
    def read_only(dir):
        if dir == root / part / "full":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return io.BytesIO()

    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained for nothing"))
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(OSError, match=f"{part}/full"):
        run()


# -------------------------------------------------------------------------------------------- interrupted and continued


class Interrupted(PointNetwork):
    """Raises KeyboardInterrupt in a training pass, counted from 1."""

    def __init__(self, at: int):
        super().__init__()
        self.passes_left = at

    def forward(self, points):
        self.passes_left -= self.training
        if self.training and self.passes_left == 0:
            raise KeyboardInterrupt
        return super().forward(points)


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings(max_epochs=6, learning_rate=0.01, step_epochs=2, ema_decay=0.8, label_smoothing=0.1),
        TrainSettings(max_epochs=6, optimizer="sgd", momentum=0.9, step_epochs=1, step_factor=0.5),
        TrainSettings(max_epochs=6, optimizer="adamw", schedule="cosine", gradient_accumulation_steps=3),
    ],
    ids=["adam with EMA", "SGD", "AdamW with accumulation"],
)
def test_an_interrupted_run_ends_with_the_history_and_weights_of_an_uninterrupted_one(root, monkeypatch, settings):
    experiment = replace(TINY, train=settings)
    for passes in (2 * BATCHES + 3, BATCHES + 2):  # in epoch 3; then, continued there, in epoch 4
        torch.manual_seed(0)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, model=Interrupted(passes))
        assert files_below(root) == ["models/full/tiny.state.pt"]
    torch.manual_seed(7)  # a new process draws other numbers
    model, result = run(experiment, model=PointNetwork())
    assert files_below(root) == ["models/full/tiny.pt", "results/full/tiny.json"]
    monkeypatch.setenv("SCENES_ROOT", str(root / "uninterrupted"))
    torch.manual_seed(0)
    expected_model, expected = run(experiment, model=PointNetwork())
    for each in (result, expected):
        assert len(each["history"].pop("seconds")) == 6
    assert result["history"] == expected["history"]
    assert_equal(model.state_dict(), expected_model.state_dict())


def test_an_interrupted_run_of_other_settings_is_not_continued(root):
    with pytest.raises(KeyboardInterrupt):
        run(model=Interrupted(BATCHES + 1))
    with pytest.raises(ValueError, match="weight_decay"):
        run(changed(TINY, weight_decay=0.1))
    _, result = run(changed(TINY, weight_decay=0.1), overwrite=True)
    assert len(result["history"]["val_loss"]) == 3


def test_a_run_that_continues_on_another_machine_names_both(root, monkeypatch):
    describe, here = runs.describe_machine, torch.device("cpu")
    elsewhere = {"device": "H200", "precision": "bfloat16"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "describe_machine", lambda *given: describe(*given) | elsewhere)
        run(model=Interrupted(BATCHES + 1))
    for passes in (BATCHES + 1, None):  # interrupted here once more
        if passes:
            with pytest.raises(KeyboardInterrupt):
                run(model=Interrupted(passes))
    _, result = run()
    name = describe(here, TINY.train, "eager")["device"]
    assert result["device"] == f"H200 in bfloat16 to epoch 1, then {name}"
    assert result["precision"] == "float32"


def test_a_run_that_continues_with_another_torch_names_both_and_by_other_rules_of_augmentation_is_refused(
    root, monkeypatch
):
    describe, name = runs.describe_machine, runs.describe_machine(torch.device("cpu"), TINY.train, "eager")["device"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        older = {"versions": {"torch": "1.0"}, "augmentation": 1}
        patch.setattr(runs, "describe_machine", lambda *given: describe(*given) | older)
        run(model=Interrupted(BATCHES + 1))
    with pytest.raises(ValueError, match="has augmentation rules 1, but 2 are those of this code; --overwrite"):
        run()
    monkeypatch.setattr(runs, "AUGMENTATION_RULES", 1)
    _, result = run()
    assert result["device"] == f"{name} with torch 1.0 in float32 to epoch 1, then {name}"


def test_the_result_states_how_steps_were_launched_and_reads_back_whatever_is_asked_for(root):
    _, result = run()
    assert result["step"] == "eager" and result["augmentation"] == 2 and "step" not in result["settings"]["train"]
    assert read(changed(TINY, step="compiled")) == result
    with pytest.raises(ValueError, match="step is 'graph', which needs an NVIDIA GPU"):
        run(replace(changed(TINY, step="graph"), seed=5), device="cpu")


def test_epochs_can_be_compared_without_the_flipped_copy_that_the_result_is_made_with(root, scene_folder, monkeypatch):
    passes, pool = [], SceneClassifier._pool

    def counted(model, images):
        passes.append(model.training)
        return pool(model, images)

    monkeypatch.setattr(SceneClassifier, "_pool", counted)
    experiment = Experiment(
        "flipped", "?", data=str(scene_folder), initial_weights="random", image_size=32, flip_tta=True
    )
    experiment = replace(experiment, batch_size=8, train=TrainSettings(max_epochs=3, learning_rate=0.01))
    model, with_flip = runs.run(experiment, "quick", device="cpu", progress=False)
    of_evaluation = passes.count(False)
    passes.clear()
    without = replace(experiment, name="unflipped", select_with_flip=False)
    same_model, result = runs.run(without, "quick", device="cpu", progress=False)
    assert model.flip_tta and same_model.flip_tta
    assert result["history"]["train_loss"] == with_flip["history"]["train_loss"]
    # val and test are one batch each: once in each of 3 epochs, and twice at the chosen one, instead of twice in each
    assert (passes.count(False), of_evaluation) == (2 * (3 + 2), 2 * 2 * 3)
    loaders = build_loaders(without, progress=False)
    for split in ("val", "test"):
        found = evaluate(same_model, getattr(loaders, split))
        assert found.predictions.tolist() == result["predictions"][split]
        assert result[f"{split}_accuracy"] == pytest.approx(found.accuracy)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_history_and_weights_of_one_never_killed(tmp_path, scene_folder):
    def train(folder, kill_at=0):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SCENES_ROOT": str(folder), "KILL_AT": str(kill_at)}
        command = [sys.executable, "-m", "tests.killed_run", str(scene_folder)]
        return subprocess.run(command, cwd=CODE, env=environment, capture_output=True, text=True, timeout=120)

    batches = 5  # 36 images in batches of 8
    for kill_at in (2 * batches + 3, batches + 2):
        killed = train(tmp_path / "killed", kill_at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = []
    for folder in (tmp_path / "killed", tmp_path / "undisturbed"):
        finished = train(folder)
        assert finished.returncode == 0, finished.stderr
        assert files_below(folder / "models") == ["full/scenes/killed.pt"]
        saved.append(load_checkpoint(folder / "models/full/scenes/killed.pt"))
    histories = [{**each["history"], "seconds": None} for each in saved]
    assert histories[0] == histories[1] and len(histories[0]["val_loss"]) == 6
    assert_equal(*(each["model"] for each in saved))


def test_a_run_that_another_process_trains_is_refused_with_the_process(root):
    lock = files_of(TINY, "full").lock
    with locked(lock):
        lock.write_text("4711")
        with pytest.raises(ValueError, match="4711"):
            run()
    run()
    assert not lock.exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    ],
)
def test_a_batch_too_large_for_the_memory_is_a_memory_error_that_names_its_size(error):
    with pytest.raises(MemoryError, match="8"), runs.advice_on_memory(TINY):
        raise error


def test_another_error_is_no_memory_error():
    with pytest.raises(RuntimeError, match="mat1"), runs.advice_on_memory(TINY):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


# --------------------------------------------------------------------------------------------------- weights for others


def test_saved_epochs_have_the_weights_of_that_epoch_and_provenance(root, monkeypatch):
    experiment = replace(TINY, save_epochs=(1, 2, "last"))
    model, result = run(experiment)
    saved = {epoch: load_weights(experiment, epoch=epoch) for epoch in (1, 2, "last", "best")}
    assert_equal(saved["best"][0], model.state_dict())
    features, provenance = load_weights(experiment, epoch="best", prefix="features.")
    assert_equal(features, model.features.state_dict())
    assert provenance["sha256"] == digest_of_tensors(features)
    assert provenance["began_with"] == {"weights": "random"} and provenance["data"] == result["data"]
    for epoch in (1, 2):  # a training of so many epochs ends where the longer one was
        monkeypatch.setenv("SCENES_ROOT", str(root / str(epoch)))
        shorter = changed(experiment, max_epochs=epoch, save_epochs=("last",))
        run(shorter)
        assert_equal(saved[epoch][0], load_weights(shorter, epoch="last")[0])


def test_weights_that_are_not_there_are_refused_and_the_saved_epochs_named(root):
    experiment = replace(TINY, save_epochs=(2,))
    with pytest.raises(FileNotFoundError, match="tiny.epoch2.pt"):
        load_weights(experiment, epoch=2)
    run(experiment)
    with pytest.raises(FileNotFoundError, match="best, 2"):
        load_weights(experiment, epoch=3)
    in_bfloat16 = changed(experiment, precision="bfloat16")  # of the run that starts from them
    assert load_weights(in_bfloat16, epoch=2)[1] == load_weights(experiment, epoch=2)[1]


def test_prerequisites_are_the_pretext_of_the_same_seed_or_the_teachers():
    def needed(name, **changes):
        experiment = replace(find(name), data="flowers", **changes)
        found = prerequisites(experiment, "full")
        assert all(each.data == "flowers" for each, _ in found)
        return [(each.name, each.seed, epoch) for each, epoch in found]

    assert needed("supervised_1") == []
    assert needed("perturbation_classifier_tuned_6", seed=4) == [("perturbation_tuned", 4, 6)]
    assert needed("distilled") == [("supervised_short", seed, "best") for seed in (2, 3, 4)]


# -------------------------------------------------------------------------------------- experiments on images, complete


@pytest.fixture
def small(scene_folder, root):
    """The fields of a ResNet that trains on the scene folder in a tenth of a second."""
    return {
        "data": str(scene_folder),
        "network": "efficientnet_b0",
        "initial_weights": "random",
        "stages": (8,),
        "image_size": 32,
        "images_per_class": 4,
        "batch_size": 4,
        "train": TrainSettings(max_epochs=1),
    }


@pytest.fixture
def pretext(small, monkeypatch) -> PretextExperiment:
    """A pretext experiment of a user's own."""
    experiment = PretextExperiment("own_1", "?", **small, save_epochs=(1,), pretext="perturbation")
    monkeypatch.setitem(experiments.EXPERIMENTS, "own_1", experiment)
    return experiment


def run_on_images(experiment, profile="full"):
    return runs.run(experiment, profile, device="cpu", progress=False)


def test_classifiers_have_frozen_features_bit_identical_to_those_of_one_pretext_run(small, pretext, root, monkeypatch):
    """Without augmentation the features are computed once, with it in every batch."""
    titles, train = [], runs.train
    monkeypatch.setattr(runs, "train", lambda *given, title, **more: (titles.append(title), train(*given, **more))[1])
    for augmentation, epoch in (("basic", 1), ("crop", "best")):
        name = f"classifier_{augmentation}"
        fields = {"pretext_run": "own_1", "pretext_epoch": epoch, "augmentation": augmentation}
        model, result = run_on_images(ClassifierExperiment(name, "?", **small, **fields))
        features, provenance = load_weights(pretext, epoch=epoch, prefix="features.")
        assert_equal(model.features.state_dict(), features)
        assert result["initial_weights"] == provenance
        assert result["class_names"] == ["dark", "light", "striped"]
        assert len(result["predictions"]["test"]) == 12
    assert titles == ["own_1", "classifier_basic", "classifier_crop"]  # the pretext is trained once
    assert read(pretext)["class_names"] == ["black", "white"]


def test_a_pretext_that_began_with_another_file_of_the_same_name_is_refused(small, pretext, root, monkeypatch):
    """Names of files say little: people overwrite them."""
    features = build_features("efficientnet_b0")
    file = root / "weights.pth"
    torch.save(features.state_dict(), file)
    small |= {"initial_weights": str(file)}
    pretext = replace(pretext, initial_weights=str(file))
    monkeypatch.setitem(experiments.EXPERIMENTS, "own_1", pretext)
    run_on_images(ClassifierExperiment("own_classifier", "?", **small, pretext_run="own_1"))
    features[0][0].weight.data += 1
    torch.save(features.state_dict(), file)
    with pytest.raises(ValueError, match="began with another weights.pth"):
        run_on_images(ClassifierExperiment("later_classifier", "?", **small, pretext_run="own_1"))
    file.unlink()  # a pretext can be used on a machine without the file
    _, provenance = load_weights(pretext, prefix="features.")
    assert provenance["began_with"]["file"] == "weights.pth"


def test_a_fine_tuned_network_starts_from_its_pretext_and_trains_the_features(small, pretext):
    experiment = FineTunedExperiment("fine_tuned", "?", **small, pretext_run="own_1")
    model, _ = run_on_images(experiment)
    features, _ = load_weights(pretext, prefix="features.")
    initial, _ = runs.build_model(experiment, build_loaders(experiment, progress=False))
    assert_equal(initial.features.state_dict(), features)
    assert not torch.equal(model.features[0][0].weight, features["0.0.weight"])


@pytest.fixture
def of_views(small, monkeypatch) -> JointEmbeddingExperiment:
    """A joint-embedding experiment of a user's own, with all that resuming must restore."""
    fields = {**small, "train": TrainSettings(max_epochs=2, optimizer="adamw", schedule="cosine", keep="last")}
    fields |= {
        "batch_size": 6,
        "batchnorm": "pretext",
    }  # the features of a random network vanish under its initial statistics
    experiment = JointEmbeddingExperiment("views_1", "?", **fields, view_size=32, neighbors=2, save_epochs=(1, "last"))
    monkeypatch.setitem(experiments.EXPERIMENTS, "views_1", experiment)
    return experiment


def test_an_interrupted_joint_embedding_ends_as_an_uninterrupted_one_its_target_too(of_views, root, monkeypatch):
    evaluate, epochs = OfViews.evaluate, iter((1, 2))

    def interrupted(*given):
        if next(epochs) == 2:
            raise KeyboardInterrupt
        return evaluate(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OfViews, "evaluate", interrupted)
        run_on_images(of_views)
    assert "models/full/scenes/views_1.state.pt" in files_below(root)
    model, result = run_on_images(of_views)
    images = str(root / "scenes")
    monkeypatch.setenv("SCENES_ROOT", str(root / "uninterrupted"))
    expected_model, expected = run_on_images(replace(of_views, data=images))
    assert_equal(model.state_dict(), expected_model.state_dict())
    for each in (result, expected):
        assert len(each["history"].pop("seconds")) == 2
    assert result["history"] == expected["history"] and result["predictions"] == expected["predictions"]
    assert model.step == model.steps == 4
    assert not torch.equal(model.target_features[0][0].weight, model.features[0][0].weight)


def test_a_joint_embedding_keeps_its_last_epoch_and_is_read_by_a_probe(of_views, small):
    model, result = run_on_images(of_views)
    assert result["epoch"] == 2 and result["train_accuracy"] is None
    assert_equal(load_weights(of_views, epoch="last")[0], model.state_dict())
    assert not torch.equal(load_weights(of_views, epoch=1)[0]["projector.0.weight"], model.projector[0].weight)
    loaders, folded, features = build_loaders(of_views, progress=False), fold_batchnorm(model), {}
    with torch.inference_mode():
        for split in ("train_in_order", "val", "test"):
            pairs = [(folded.pooled_features(images), labels) for images, labels in getattr(loaders, split)]
            features[split] = [torch.cat(part).numpy() for part in zip(*pairs, strict=True)]
    for split in ("val", "test"):
        queries, labels = features[split]
        votes = vote_of_neighbors(*features["train_in_order"], queries, 12)
        assert result["labels"][split] == labels.tolist()
        assert result[f"{split}_accuracy"] == (result["predictions"][split] == labels).mean()
        assert result["predictions"][split] == votes.tolist()
    probe = ProbeExperiment("probe_1", "?", **{**small, "stages": (5, 6, 7, 8)}, pretext_run="views_1")
    probed, of_probe = run_on_images(probe)
    assert_equal(probed.features.state_dict(), load_weights(of_views, prefix="features.")[0])
    assert of_probe["initial_weights"]["weights"] == "views_1, epoch best"
    assert of_probe["C"] > 0 and len(of_probe["history"]["val_loss"]) == 1


def test_quick_experiments_of_a_users_own_keep_pretext_and_classifier_together(small, pretext):
    classifier = ClassifierExperiment("own", "?", **small, pretext_run="own_1", pretext_epoch=7)
    quick = configure(replace(classifier, train=TrainSettings(max_epochs=50)), "quick")
    [(needed, epoch)] = prerequisites(quick, "quick")
    assert epoch in needed.save_epochs and epoch <= needed.train.max_epochs < 50


def test_a_distilled_network_learns_from_its_teachers_and_names_them(small, monkeypatch):
    teacher = Experiment("teacher", "?", **small)
    monkeypatch.setitem(experiments.EXPERIMENTS, "teacher", teacher)
    student = DistilledExperiment("student", "?", **small, teacher_run="teacher", teacher_seeds=(0, 1))
    _, result = run_on_images(student)
    teachers = [replace(teacher, seed=seed) for seed in (0, 1)]
    assert result["teachers"]["of_seeds"] == [0, 1]
    digests = [digest_of_tensors(load_weights(each)[0]) for each in teachers]
    assert [each["sha256"] for each in result["teachers"]["runs"]] == digests and digests[0] != digests[1]
    path = files_of(teachers[1], "full").checkpoint
    saved = load_checkpoint(path)
    nn.init.zeros_(saved["model"]["classifier.1.bias"])
    torch.save(saved, path)
    with pytest.raises(ValueError, match="teachers"):  # these are other teachers
        run_on_images(student)


def test_collect_reads_what_is_there_and_trains_what_is_missing_if_asked(small, monkeypatch):
    experiments = [Experiment(name, "?", **small) for name in ("first", "second")]
    run_on_images(experiments[0])
    assert list(collect(experiments, "full")) == ["first"]
    found = collect(experiments, "full", train_missing=True, progress=False)
    assert list(found) == ["first", "second"]
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained again"))
    assert collect(experiments, "full", train_missing=True, progress=False) == found


def test_collect_replaces_quick_results_of_other_settings_and_refuses_full_ones(small):
    experiment = Experiment("first", "?", **small)
    for profile in ("quick", "full"):
        run_on_images(experiment, profile)
    other = [replace(experiment, head="deep")]
    found = collect(other, "quick", train_missing=True, progress=False)
    assert found["first"]["settings"]["head"] == "deep"
    with pytest.raises(ValueError, match="head"):
        collect(other, "full")


def exchange_two_images(small):
    """Of one class, so that only their names and contents change."""
    one, other = sorted(Path(small["data"]).glob("train/dark/*"))[:2]
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)


def test_a_result_of_other_images_than_the_folder_holds_now_is_not_shown(small, root):
    experiment = Experiment("first", "?", **small)
    for profile in ("quick", "full"):
        run_on_images(experiment, profile)
    elsewhere = Path(small["data"]).rename(root / "elsewhere")
    assert read(experiment)  # the data are not here to be compared
    elsewhere.rename(small["data"])
    exchange_two_images(small)
    with pytest.raises(ValueError, match=r"first\.json .*other images"):
        read(experiment)
    assert collect([experiment], "quick") == {}
    again = collect([experiment], "quick", train_missing=True, progress=False)["first"]
    assert again["data"] == build_loaders(experiment, progress=False).data == read(experiment, "quick")["data"]
    shutil.rmtree(Path(small["data"]) / "test/dark")
    with pytest.raises(ValueError, match="'dark'"):
        read(experiment, "quick")


def test_a_pretext_or_teacher_of_other_images_is_refused(small, pretext, monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "teacher_1", Experiment("teacher_1", "?", **small))
    learners = (
        ClassifierExperiment("own_classifier", "?", **small, pretext_run="own_1"),
        DistilledExperiment("student", "?", **small, teacher_run="teacher_1", teacher_seeds=(0,)),
    )
    for each in learners:
        run_on_images(each)
    exchange_two_images(small)
    for each, needed in zip(learners, ("own_1", "teacher_1"), strict=True):
        with pytest.raises(ValueError, match=rf"{needed}\.pt .*other images"):
            runs.run(each, device="cpu", progress=False)


# --------------------------------------------------------------------------------------------------------- configuring


def test_full_starts_from_imagenet_and_quick_from_random_weights_unless_a_file_is_given():
    def weights(name, profile, given=None):
        return configure(find(name), profile, weights=given).initial_weights

    assert [weights("supervised_1", profile) for profile in ("full", "quick")] == ["imagenet", "random"]
    assert {weights("rotation_1", profile, "a.pth") for profile in ("full", "quick")} == {"a.pth"}
    own = replace(find("supervised_1"), initial_weights="own.pth")
    assert [configure(own, profile).initial_weights for profile in ("full", "quick")] == ["own.pth", "random"]
    for control in ("random_classifier", "rotation_scratch", "rotation_scratch_classifier", "cifar10_scratch"):
        assert weights(control, "full", "a.pth") == "random"


def test_a_pretext_keeps_its_own_weights_unless_its_classifier_asks_for_others(monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "rotation_1", replace(find("rotation_1"), initial_weights="own.pth"))
    for given, expected in ((None, "own.pth"), ("a.pth", "a.pth")):
        classifier = configure(find("rotation_classifier_1"), "full", weights=given)
        [(pretext, _)] = prerequisites(classifier, "full")
        assert pretext.initial_weights == expected
    [(pretext, _)] = prerequisites(configure(find("rotation_classifier_1"), "quick", weights="imagenet"), "quick")
    assert pretext.initial_weights == "imagenet"


def test_a_run_of_a_name_or_of_an_unknown_profile_is_refused():
    for call in (runs.run, configure):
        with pytest.raises(ValueError, match=r"'supervised_1' .*find"):
            call("supervised_1", "quick")
        with pytest.raises(ValueError, match="'quik'"):
            call(find("supervised_1"), "quik")


@pytest.mark.parametrize("name", ["data", "weights"])
def test_an_empty_name_is_not_taken_for_none(name):
    with pytest.raises(ValueError, match=f"{name} is empty"):
        configure(find("supervised_1"), "quick", **{name: ""})


def test_an_unknown_profile_or_name_is_refused_and_similar_names_are_listed():
    with pytest.raises(ValueError, match="fast"):
        configure(TINY, "fast")
    with pytest.raises(ValueError, match="supervised_6"):
        find("supervised_9")


def test_what_a_run_began_with_names_the_last_epoch_where_nothing_was_selected():
    words = {
        "byol, epoch best": "byol, last epoch",
        "byol.seed3, epoch best": "byol.seed3, last epoch",
        "rotation_1, epoch best": "rotation_1, epoch best",
        "byol, epoch 4": "byol, epoch 4",
        "ImageNet features": "ImageNet features",
    }
    assert {each: experiments.initial_weights_text({"weights": each}) for each in words} == words
