"""The training command as a user calls it, on EfficientNet-B0 and ResNet-18 with tiny images."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models import resnet18

import experiments
import runs
import train as script
from data.files import CODE
from data.layouts import fingerprints
from experiments import EXPERIMENTS, configure
from run_files import files_of, load_checkpoint, read, settings_of
from supervised.settings import BASE
from tests.conftest import draw

QUICK = ("--profile", "quick", "--device", "cpu")


@pytest.fixture
def call(capsys, root):
    """The exit code, output and errors of a command."""

    def call(*arguments):
        code = script.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def asked(monkeypatch):
    """What a command would run, as (experiment, profile, options): nothing is trained."""
    found = []

    def run(experiment, profile, **options):
        found.append((experiment, profile, options))
        numbers = dict.fromkeys(("test_accuracy", "epoch", "earlier_protocol_accuracy", "earlier_protocol_epoch"), 1)
        return None, {"name": files_of(experiment, profile).name, "initial_weights": {"weights": "?"}, **numbers}

    monkeypatch.setattr(script, "run", run)
    return found


def result_of(root, name):
    return json.loads((root / f"results/quick/scenes/{name}.json").read_text())


def test_seeds_are_trained_on_a_folder_of_the_users_own_and_each_is_reported(call, scene_folder, root):
    arguments = ("imagenet_classifier", "--data", scene_folder, "--epochs", 2, "--seeds", 0, 1, *QUICK)
    code, output, error = call(*arguments)
    assert code == 0, error
    for name, line in zip(("imagenet_classifier", "imagenet_classifier.seed1"), output.splitlines(), strict=True):
        result = result_of(root, name)
        assert line.startswith(f"{name}: ") and f"{result['test_accuracy']:.4f}" in line
        assert result["class_names"] == ["dark", "light", "striped"]
        assert len(result["history"]["val_loss"]) == 2
        assert len(result["predictions"]["test"]) == 18
    assert call(*arguments)[:2] == (0, output)  # read back


def test_a_missing_pretext_is_trained_first_and_its_epoch_is_frozen_bit_identical(call, scene_folder, root):
    code, output, error = call("perturbation_classifier_tuned_3", "--data", scene_folder, *QUICK)
    assert code == 0, error
    assert "perturbation_tuned, epoch 1" in output
    pretext, classifier = (
        load_checkpoint(root / f"models/quick/scenes/{name}.pt")["model"]
        for name in ("perturbation_tuned.epoch1", "perturbation_classifier_tuned_3")
    )
    features = [name for name in pretext if name.startswith("features.")]  # parameters and BatchNorm's statistics
    assert all(torch.equal(pretext[name], classifier[name]) for name in features)
    before = (root / "models/quick/scenes/perturbation_tuned.pt").stat().st_mtime_ns
    code, output, _ = call(
        "perturbation_classifier_tuned_10", "--data", scene_folder, *QUICK, "--precision", "bfloat16", "--epochs", 1
    )
    assert code == 0 and len(output.splitlines()) == 1
    assert result_of(root, "perturbation_classifier_tuned_10")["precision"] == "bfloat16"
    assert (root / "models/quick/scenes/perturbation_tuned.pt").stat().st_mtime_ns == before


def test_missing_teachers_are_trained_first_and_named(call, scene_folder, root):
    code, _, error = call("distilled", "--data", scene_folder, *QUICK)
    assert code == 0, error
    assert result_of(root, "distilled")["teachers"]["of_seeds"] == [0]
    assert result_of(root, "supervised_short")["settings"]["frozen_stages"] == 4


def test_a_resnet_is_fine_tuned_from_a_local_file_of_torchvisions_weights(call, scene_folder, root):
    torch.manual_seed(0)
    for class_folder in list(scene_folder.glob("*/*")):  # six classes, enough for a batch
        shutil.copytree(class_folder, class_folder.with_name(f"{class_folder.name}_again"))
    weights = resnet18(weights=None).state_dict()  # torchvision's names and shapes, with 1,000 classes
    torch.save(weights, root / "resnet18.pth")
    name = "nature_resnet18_imagenet_sgd_1e-3"
    code, _, error = call(name, "--data", scene_folder, "--weights", root / "resnet18.pth", *QUICK)
    assert code == 0, error
    assert result_of(root, name)["initial_weights"]["file"] == "resnet18.pth"
    trained = load_checkpoint(root / f"models/quick/scenes/{name}.pt")["model"]["features.stem.conv1.weight"]
    change = (trained - weights["conv1.weight"]).abs().max()
    assert 0 < change < 0.02  # a few steps of SGD away from the file; new weights would differ by 0.1


def test_options_reach_the_experiments_in_the_order_of_names_and_seeds(call, asked):
    names = ("supervised_1", "rotation_classifier_1")
    options = ("--data", "flowers", "--weights", "a.pth", "--epochs", 3, "--seeds", 2, 5)
    assert call(*names, *options, "--precision", "bfloat16", "--skip-bad-images", "--overwrite")[0] == 0
    assert [(each.name, each.seed) for each, _, _ in asked] == [(name, seed) for name in names for seed in (2, 5)]
    for experiment, profile, given in asked:
        assert (experiment.data, experiment.initial_weights, profile) == ("flowers", "a.pth", "full")
        assert experiment.train.max_epochs == 3
        assert given == {
            "device": "auto",
            "precision": "bfloat16",
            "overwrite": True,
            "skip_bad_images": True,
            "log": False,
        }


def test_the_best_trial_of_a_study_is_trained(call, asked):
    table = CODE / "results/full/searches/supervised_tuned_tpe_subset0.1_seed0.csv"
    assert call("--from-study", table)[0] == 0
    [(experiment, _, _)] = asked
    assert experiment.name == "supervised_tuned_tpe_subset0.1"
    assert experiment.train.learning_rate != EXPERIMENTS["supervised_tuned"].train.learning_rate
    assert experiment.subset == 1.0  # of all data


def test_list_shows_every_experiment_with_its_question_and_the_accuracy_of_a_finished_run(call, root):
    result = {"format": 2, "settings": settings_of(BASE), "test_accuracy": 0.87654}
    files_of(BASE, "full").result.parent.mkdir(parents=True)
    files_of(BASE, "full").result.write_text(json.dumps(result))
    stale = replace(EXPERIMENTS["supervised_2"], head="deep")
    files_of(stale, "full").result.write_text(json.dumps({**result, "settings": settings_of(stale)}))
    code, output, _ = call("--list")
    lines = {line.split()[0]: line for line in output.splitlines()}
    assert code == 0 and list(lines) == list(EXPERIMENTS)
    assert all(each.question in lines[name] for name, each in EXPERIMENTS.items())
    accuracies = {name: line.split()[1] for name, line in lines.items()}
    assert (accuracies.pop("supervised_1"), accuracies.pop("supervised_2")) == ("0.8765", "stale")
    assert set(accuracies.values()) == {"-"}


def test_list_shows_finished_runs_on_ones_own_images_and_no_other_file(call, root):
    folder = root / "results/full/photos"
    folder.mkdir(parents=True)
    result = {"data": {"name": "photos"}, "test_accuracy": 0.75, "class_names": ["a", "b"]}
    (folder / "byol.seed1.json").write_text(json.dumps(result))
    (folder / "broken.json").write_text("{")
    (folder / "other.json").write_text("[1]")
    prepared = root / "results/full/nature"
    prepared.mkdir()
    (prepared / "byol.json").write_text(json.dumps(result | {"data": {"name": "nature"}}))
    code, output, _ = call("--list")
    own = output.splitlines()[len(EXPERIMENTS) + 2 :]
    assert code == 0 and [line.split() for line in own] == [["photos/byol.seed1", "0.7500", "2", "classes"]]


def test_epochs_are_logged_for_tensorboard_with_the_numbers_of_the_result(call, scene_folder, root):
    arguments = ("imagenet_classifier", "--data", scene_folder, "--log", "tensorboard", *QUICK)
    assert call(*arguments, "--epochs", 2)[0] == 0
    history = result_of(root, "imagenet_classifier")["history"]
    events = EventAccumulator(str(root / "models/quick/scenes/tensorboard/imagenet_classifier"))
    events.Reload()
    for tag, column in (("loss/train", "train_loss"), ("accuracy/val", "val_accuracy")):
        logged = [(each.step, each.value) for each in events.Scalars(tag)]
        assert logged == [(epoch, pytest.approx(value)) for epoch, value in enumerate(history[column], start=1)]
    assert "learning_rate" in events.Tags()["scalars"]


def test_logging_without_tensorboard_is_refused_before_anything_is_trained(call, asked, monkeypatch):
    monkeypatch.setattr(runs, "is_tensorboard_available", lambda: False)
    code, _, error = call("imagenet_classifier", "--log", "tensorboard")
    assert code == 2 and "pip install tensorboard" in error and not asked


@pytest.mark.parametrize(
    ("name", "marked"),
    [
        ("supervised_3", {"name", "head"}),
        ("rotation_gentle_classifier_own_batchnorm", {"name", "batchnorm"}),
        ("supervised_1", set()),
    ],
)
def test_show_marks_the_settings_that_differ_and_names_a_command_that_reproduces_them(call, asked, name, marked):
    code, output, _ = call("--show", name)
    settings = settings_of(configure(EXPERIMENTS[name], "full"))
    lines = [line for line in output.splitlines() if " = " in line]
    assert code == 0 and len(lines) == len(settings) - 1 + len(settings["train"])
    assert {line.split()[1] for line in lines if line.startswith("*")} == marked
    command = output.splitlines()[-1].partition("python train.py ")[2]
    assert call(*command.split())[0] == 0
    [(experiment, profile, _)] = asked
    assert (settings_of(experiment), profile) == (settings, "full")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--list"),
        (["supervised_9"], "supervised_9"),
        (["--show", "rotation_9"], "rotation_1"),
        (["supervised_1", "--data", "nowhere"], "nowhere"),
        (["supervised_1", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["rotation_1", "--epochs", "0"], "max_epochs"),
        (["supervised_4"], "coast"),
        (["random_classifier", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["supervised_1", "rotation_scratch", "--weights", "imagenet"], "rotation_scratch"),
        (["rotation_scratch_classifier", "--weights", "~/nowhere.pth"], "random weights"),
        (["supervised_1", "--weights", "~/nowhere.pth"], "/nowhere.pth"),
        (["supervised_1", "--data", "~/nowhere"], "nowhere"),
        (["supervised_1", "--from-study", "~nobody/nowhere.csv"], "nowhere.csv"),
        (["supervised_1", "--from-study", "nowhere.csv"], "nowhere.csv"),
        (["supervised_1", "--data", ""], "data is empty"),
        (["supervised_1", "--weights", ""], "weights is empty"),
        (["supervised_1", "--seeds", "99999999999999999999"], "seed is 99999999999999999999"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2_and_leaves_no_file(call, scene_folder, root, arguments, named):
    data = [] if "--data" in arguments else ["--data", scene_folder]
    code, output, error = call(*arguments, *data, *QUICK)
    assert (code, output) == (2, "")
    assert error.splitlines()[-1].startswith("error: ") and named in error.splitlines()[-1]
    assert not [path for path in root.rglob("*") if path.suffix in (".pt", ".json") and "cache" not in path.parts]


def test_a_run_of_other_settings_is_replaced_only_with_overwrite(call, scene_folder, root):
    arguments = ("random_classifier", "--data", scene_folder, *QUICK, "--epochs")
    assert call(*arguments, 1)[0] == 0
    code, _, error = call(*arguments, 2)
    assert code == 2 and "max_epochs" in error
    assert call(*arguments, 2, "--overwrite")[0] == 0
    experiment = configure(EXPERIMENTS["random_classifier"], "quick", data=str(scene_folder), max_epochs=2)
    assert len(read(experiment, "quick")["history"]["val_loss"]) == 2


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "RANK", "WORLD_SIZE"])
def test_what_a_launcher_left_in_the_environment_is_named(call, scene_folder, monkeypatch, variable):
    monkeypatch.setenv(variable, "0")
    code, _, error = call("random_classifier", "--data", scene_folder, *QUICK, "--epochs", 1)
    assert code == 2 and variable in error.splitlines()[-1]


@pytest.fixture
def photos(root):
    """Images of a user's own without labels, at two depths."""
    paths = [root / "my photos" / name for name in ("a.png", "deep/b.png", "deep/c.png")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        draw("striped", np.random.default_rng(number)).save(path)
    return root / "my photos"


def test_photos_without_labels_are_added_to_those_of_a_pretext_and_the_runs_have_names_of_their_own(
    call, scene_folder, photos, root, monkeypatch
):
    monkeypatch.setattr(experiments, "EXPERIMENTS", dict(EXPERIMENTS))
    code, output, error = call("byol_classifier", "--data", scene_folder, "--unlabeled", photos, *QUICK)
    assert code == 0, error
    assert "3 images of" in error and output.startswith("byol_classifier_with_my_photos: ")
    pretext = result_of(root, "byol_with_my_photos")
    assert pretext["settings"]["unlabelled"] == pretext["data"]["unlabelled"]["name"] == "my photos/**"
    assert pretext["data"]["unlabelled"]["fingerprint"] == fingerprints(photos / "**")["train"]
    assert pretext["data"]["images"]["train"] == 18 and not (root / "results/quick/scenes/byol.json").exists()
    draw("dark", np.random.default_rng(9)).save(photos / "new.png")
    code, _, error = call("byol_with_my_photos", "--data", scene_folder, *QUICK)
    assert code == 2 and "byol_with_my_photos" in error  # the pretext has seen other images


def test_photos_without_labels_can_take_the_place_of_the_training_images(call, scene_folder, photos, root, monkeypatch):
    monkeypatch.setattr(experiments, "EXPERIMENTS", dict(EXPERIMENTS))
    shutil.rmtree(photos / "deep")
    for number in range(20):
        draw("dark", np.random.default_rng(number)).save(photos / f"{number}.png")
    arguments = ("byol_classifier", "--data", scene_folder, "--unlabeled-alone", *QUICK)
    code, output, error = call(*arguments, "--unlabelled", photos)
    assert code == 0, error
    assert "21 images of" in error and output.startswith("byol_classifier_on_my_photos: ")
    history = result_of(root, "byol_on_my_photos")["history"]
    assert set(history["val_accuracy"]) == {0}  # no image with a class was seen
    code, _, error = call(*arguments)
    assert code == 2 and "--unlabeled FOLDER" in error


def test_a_folder_of_classes_without_splits_is_trained_on_under_its_name(call, scene_folder, root):
    code, output, error = call("imagenet_classifier", "--data", scene_folder / "train", "--epochs", 1, *QUICK)
    assert code == 0, error
    result = json.loads((root / "results/quick/train/imagenet_classifier.json").read_text())
    assert sum(result["data"]["images"].values()) <= 36 and (scene_folder / "train/split.csv").is_file()


def test_photos_without_labels_are_refused_by_what_learns_from_labels(call, photos):
    for name in ("supervised_1", "rotation_tuned"):
        code, _, error = call(name, "--unlabeled", photos, *QUICK)
        assert code == 2 and name in error and "--unlabeled" in error and "learns from labels" not in error


def test_photos_without_labels_need_labeled_images_beside_them(call, photos, monkeypatch):
    monkeypatch.setattr(experiments, "EXPERIMENTS", dict(EXPERIMENTS))
    code, _, error = call("byol", "--unlabeled", photos, "--unlabeled-alone", *QUICK)
    assert code == 2 and "--data" in error.splitlines()[-1] and "labeled" in error.splitlines()[-1]
    for path in list(photos.glob("deep/*")):
        path.rename(photos / path.name)
    code, _, error = call("byol", "--data", photos, *QUICK)
    assert code == 2 and "--unlabeled" in error.splitlines()[-1]


@pytest.mark.parametrize("place", ["/proc/nope", "a file"])
def test_a_root_folder_that_cannot_be_written_to_is_named(call, scene_folder, tmp_path, monkeypatch, place):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("SCENES_ROOT", str(tmp_path / place))  # an absolute path stays as it is
    code, _, error = call("supervised_1", "--data", scene_folder, *QUICK)
    assert code == 2 and f"SCENES_ROOT is {tmp_path / place}" in error.splitlines()[-1]


def test_a_study_trains_what_is_missing_and_then_nothing(call, scene_folder, root):
    arguments = ("--study", "imagenet_classifier", "--data", scene_folder, "--at-a-time", 1, *QUICK)
    code, output, error = call(*arguments)
    assert code == 0, error
    assert output.startswith("1 run(s) without a result, 1 at a time")
    assert result_of(root, "imagenet_classifier")["data"]["name"] == "scenes"
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix in (".json", ".pt", ".log")}
    assert {path.suffix for path in written} == {".json", ".pt", ".log"} and call(*arguments)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.slow
def test_a_study_names_the_run_that_failed_and_its_log(call, scene_folder, root):
    (scene_folder / "train" / "dark" / "broken.jpg").write_bytes(b"no image")
    code, _, error = call("--study", "imagenet_classifier", "--data", scene_folder, *QUICK)
    log = root / "logs" / "study" / "quick" / "scenes" / "imagenet_classifier.log"
    assert code == 1 and str(log) in error and "broken.jpg" in log.read_text()
    code, _, error = call("--study", "supervised_1", "--data", scene_folder, "--at-a-time", 0, *QUICK)
    assert code == 2 and "--at-a-time is 0" in error
    for flag in (("--unlabeled", scene_folder), ("--from-study", "found.csv")):
        assert call("--study", "byol", *flag, *QUICK)[0] == 2
