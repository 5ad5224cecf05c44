"""Inputs that gave a wrong value without a word, or an obscure error: each right value."""

import csv
import json
import os
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset

from data.folders import images_in
from data.image_cache import decode, load_splits
from data.layouts import list_splits, record_split
from data.prepare import Request, prepare
from data.splits import ImageName, read_record, write_record
from evaluation import audit, faithfulness, map_measures, probes, results, scorecam_defaults
from evaluation.checkpoints import load_trained
from evaluation.mask_clusters import cluster_score_cam
from evaluation.metrics import most_confused
from evaluation.model_inversion import InversionSettings, class_log_probability, picture_file
from evaluation.novelty import read_novelty
from evaluation.plots import draw_views
from evaluation.predict import Model
from evaluation.recipro_cam import position_masks, probabilities_by_position, recipro_cam
from evaluation.scorecam import score_cam
from evaluation.statistics import mean_difference
from experiments import find
from helper_functions import TrainSettings, predict, train
from hyperparameter_search import Search, open_study, with_parameters, work
from runs import run
from self_supervised import dataloader as pretexts
from self_supervised.settings import JOINT_EMBEDDINGS
from study import Task, _Queue, missing_tasks
from supervised.dataloader import SceneDataset, build_loaders
from supervised.settings import Experiment
from tests.conftest import CLASSES, SmallNetwork, draw
from tests.evaluation.synthetic_results import seeds
from tests.small_runs import small_run

# ------------------------------------------------------------------------------------------------------ data and files


def test_val_and_test_images_among_the_unlabelled_ones_are_left_out(root, scene_folder, capsys):
    photos = root / "photos"
    for split in ("train", "val", "test"):
        shutil.copytree(scene_folder / split, photos, dirs_exist_ok=True, copy_function=_copy_numbered(split))
    byol = replace(JOINT_EMBEDDINGS["byol"], data=str(scene_folder), image_size=32, view_size=32, batch_size=4)
    byol = replace(byol, unlabelled=str(photos / "**"), views="without_blur")
    loaders = pretexts.build_loaders(byol, progress=False)
    assert len(loaders.train.dataset) == 36 + 36  # the training images, twice; none of the 42 others
    assert "42 of 78 images without labels are left out" in capsys.readouterr().err
    shutil.rmtree(photos)
    shutil.copytree(scene_folder / "test", photos)
    with pytest.raises(ValueError, match="all images of"):
        pretexts.build_loaders(byol, progress=False)


def _copy_numbered(split: str):
    return lambda source, target: shutil.copy(source, Path(target).with_stem(f"{split}_{Path(source).stem}"))


@pytest.mark.parametrize("blank", [3, 12])
def test_images_of_one_color_are_no_near_copies(root, tmp_path, blank):
    folder, generator = tmp_path / "data", np.random.default_rng(0)
    for class_name in CLASSES[:2]:
        (folder / class_name).mkdir(parents=True)
        for number in range(6):
            noise = generator.integers(0, 255, (16, 16), dtype=np.uint8)
            image = Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC)
            if number + 6 * (class_name == CLASSES[1]) < blank:
                image = Image.new("L", (48, 48), 90 + number)
            image.save(folder / class_name / f"{number}.png")
    data = audit.read_data(folder, load_splits(folder, 32))
    assert audit.near_copies(data.thumbnails, audit.copy_threshold(data)) == []


def test_one_path_is_as_good_as_a_list_of_one(scene_folder, tiny_run):
    model = Model(load_trained(tiny_run))
    image = scene_folder / "test/dark/image_0000.jpg"
    for path in (image, str(image)):
        assert model.predict(path)["file"].tolist() == [str(image)]
        assert model.embed(path).shape == (1, 1280)
    assert len(model.predict(scene_folder / "test")) == 24


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Train", "Val", "Test"), ("seg_train", "seg_val", "seg_test")]
)
def test_the_splits_of_a_source_are_kept_whatever_they_are_called(root, tmp_path, names):
    generator = np.random.default_rng(0)
    for split, name in zip(("train", "val", "test"), names, strict=True):
        for class_name in ("buildings", "forest", "glacier", "mountain", "sea", "street"):
            folder = tmp_path / "source" / name / class_name
            folder.mkdir(parents=True)
            draw("dark", generator).save(folder / f"of_{split}.png")
    folder = prepare(Request("nature", source=tmp_path / "source"))
    found = {path.relative_to(folder).parts[0]: path.stem for path in folder.glob("*/sea/*.png")}
    assert found == {"train": "of_train", "val": "of_val", "test": "of_test"}


def test_a_prepared_folder_may_be_a_link_to_another_disk(root, tmp_path):
    (root / "data").mkdir()
    (root / "data/synthetic").symlink_to(tmp_path / "big disk")
    prepare(Request("synthetic"))
    assert (root / "data/synthetic").is_symlink() and (tmp_path / "big disk/split.csv").exists()


def test_the_name_of_a_download_fits_a_file_system_and_keeps_its_suffix(root):
    address = "https://storage.example/bucket/archive.zip?X-Goog-Signature=" + "a" * 512
    path = Request("nature", source=address).download_path
    assert path.name.endswith("-archive.zip") and len(path.name) < 100
    assert path != Request("nature", source=address + "b").download_path


@pytest.mark.parametrize("damage", [b"", b"PK\3\4", None], ids=["empty", "cut", "flipped"])
def test_a_damaged_cache_of_features_is_computed_again(tmp_path, damage):
    cache, model = tmp_path / "features.npz", small_run("tiny").model
    loader = DataLoader([(torch.rand(3, 32, 32), 0), (torch.rand(3, 32, 32), 1)], 2)
    features, labels = probes.features_of(model, loader, "digest", cache)
    contents = bytearray(cache.read_bytes())
    contents[len(contents) // 2] ^= 255
    cache.write_bytes(bytes(contents) if damage is None else damage)
    again, labels_again = probes.features_of(model, loader, "digest", cache)
    assert all(map(np.array_equal, features, again)) and np.array_equal(labels, labels_again)


@pytest.mark.parametrize("contents", ["flipped", "array"])
def test_a_damaged_description_of_training_images_is_named(tmp_path, contents):
    path = tmp_path / "run.novelty.npz"
    np.savez_compressed(path, weights="digest", mean=np.zeros(1000))
    if contents == "array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        damaged = bytearray(path.read_bytes())
        damaged[60:80] = bytes(20)
        path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match="run.novelty.npz does not describe"):
        read_novelty(path)


def test_linked_folders_are_followed_once_and_a_closed_one_is_named(tmp_path, capsys, monkeypatch):
    generator = np.random.default_rng(0)
    (tmp_path / "photos/trip").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for folder in ("photos/trip", "elsewhere"):
        draw("dark", generator).save(tmp_path / folder / "a.png")
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/back").symlink_to(tmp_path / "photos")
    assert len(images_in([tmp_path / "photos"])) == 2
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("trip"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert len(images_in([tmp_path / "photos"])) == 1
    assert "1 folder(s) cannot be read, such as" in capsys.readouterr().err


def test_a_record_is_read_as_it_was_written_also_after_a_spreadsheet(tmp_path):
    path, images = tmp_path / "split.csv", {ImageName("train", "cat\r", "a\rb.jpg"): (), ImageName("val", "b", "c"): ()}
    write_record(path, (), images)
    assert set(read_record(path)) == set(images)
    for mark, delimiter in (("\ufeff", ","), ("", ";"), ("\ufeff", ";")):
        lines = [["class", "file_name", "split"], ["dark", "1.jpg", "train"]]
        path.write_text(mark + "\n".join(delimiter.join(line) for line in lines) + "\n", encoding="utf-8")
        assert set(read_record(path)) == {ImageName("train", "dark", "1.jpg")}


def test_a_table_with_names_in_another_form_and_a_line_break_in_a_label_is_read(tmp_path):
    generator = np.random.default_rng(0)
    rows = [("file", "label")]
    for number in range(8):
        draw("dark", generator).save(tmp_path / f"cafe\u0301 {number}.png")
        rows.append((f"caf\u00e9 {number}.png", "living\nroom" if number % 2 else "kitchen"))
    path = tmp_path / "table.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    splits = list_splits(path)
    assert splits["train"].class_names == ("kitchen", "living\nroom")
    assert sum(len(images.names) for images in splits.values()) == 8
    path.write_text("file,label,Label\na.png,x,y\n")
    with pytest.raises(ValueError, match="the column 'label' twice"):
        list_splits(path)


def test_a_recorded_split_needs_no_lock_and_system_folders_are_no_classes(root, tmp_path, monkeypatch):
    folder, generator = tmp_path / "disk", np.random.default_rng(0)
    for class_name in ("dark", "light"):
        (folder / class_name).mkdir(parents=True)
        for number in range(4):
            draw(class_name, generator).save(folder / class_name / f"{number}.png")
    (folder / "lost+found").mkdir()
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listdir(path) if "lost" not in str(path) else 1 / 0)
    record_split(folder)
    monkeypatch.setattr("data.layouts.locked", lambda *_: 1 / 0)
    record_split(folder)  # it is up to date
    assert {image.class_name for image in read_record(folder / "split.csv")} == {"dark", "light"}


@pytest.mark.parametrize("highest, refused", [(4095, True), (65535, False)])
def test_color_of_12_bits_in_16_is_refused_as_gray_is(tmp_path, highest, refused):
    samples = np.linspace(0, highest, 3 * 8 * 8).astype(">u2").reshape(8, 24)
    lines = b"".join(b"\0" + line.tobytes() for line in samples)

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (8).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    path = tmp_path / "color.png"
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    if refused:
        with pytest.raises(ValueError, match="12 bits or fewer"):
            decode(path, 8, "squash")
    else:
        assert decode(path, 8, "squash").max() > 250


def test_an_augmented_data_set_takes_any_whole_number_and_is_a_subset_of_numpy_numbers(root, scene_folder):
    experiment = Experiment("x", "?", data=str(scene_folder), image_size=32, augmentation="advanced")
    dataset = build_loaders(experiment, progress=False).train.dataset
    assert isinstance(dataset, SceneDataset) and dataset[0][0].shape == (3, 32, 32)
    assert torch.equal(Subset(dataset, np.array([3, 0]))[1][0], dataset[0][0])


# ------------------------------------------------------------------------------------------------------- explanations


class Flattened(nn.Module):
    """A network that reshapes by the number of images, and so takes no empty batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 3)

    def forward(self, images):
        return self.head(self.conv(images).view(len(images), -1))


class Twice(nn.Module):
    """A network whose ReLU runs twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, images):
        once = self.relu(self.conv(images))
        return self.head(self.relu(once - 0.2).mean(dim=(2, 3)))


def test_a_network_that_takes_no_empty_batch_gets_none():
    torch.manual_seed(0)
    network, images = Flattened().eval(), torch.randn(2, 3, 8, 8)
    exact = score_cam(network, images, network.conv, [0, 1]).maps
    assert torch.allclose(cluster_score_cam(network, images, network.conv, [0, 1], clusters=64).maps, exact)
    with torch.no_grad():
        network.conv.weight.zero_()
    assert not score_cam(network, images, network.conv, [0, 1]).maps.any()  # every channel is constant


def test_recipro_cam_masks_the_last_of_several_runs_and_takes_what_score_cam_takes():
    torch.manual_seed(0)
    network, image = Twice().eval(), torch.rand(1, 3, 6, 6)
    found = probabilities_by_position(network, image, network.relu)
    with torch.no_grad():
        last = network.relu(network.relu(network.conv(image)) - 0.2)
        mask = position_masks(6, 6)[0]
        expected = network.head((last * mask).mean(dim=(2, 3))).softmax(dim=1)[0]
    assert torch.allclose(found[:, 0, 0], expected, atol=1e-5)
    run = small_run("tiny")
    as_array = recipro_cam(run.model.double(), image.numpy(), run.model.features, [0])
    assert torch.isfinite(as_array.maps).all()


@pytest.mark.parametrize("size", [(240, 320), (64, 96)])
def test_convolutions_without_padding_on_oblong_images_have_maps(size):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    found = score_cam(network, torch.randn(1, 3, *size), network[0], [0])
    assert found.maps.shape == (1, *size) and found.maps.max() == 1


def test_randomization_refuses_weights_that_it_does_not_reach():
    network = SmallNetwork().eval()
    nn.utils.parametrizations.weight_norm(network.features[0])
    images = torch.randn(2, 3, 16, 16)
    for part in (network.features, network.features[0]):
        with pytest.raises(ValueError, match="computed from others"):
            faithfulness.cascading_randomization(network, images, network.features, [0, 1], [part])


def test_the_probability_of_an_only_logit_can_be_maximized():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    images = torch.randn(4, 3, 2, 2, requires_grad=True)
    found = class_log_probability(network, images, torch.zeros(4, dtype=torch.long))
    assert torch.allclose(found.exp(), network(images).sigmoid()[:, 0])
    assert torch.autograd.grad(found.sum(), images)[0].abs().max() > 0


@pytest.mark.parametrize("finite", [0, 1])
def test_maps_of_which_hardly_one_is_finite_are_inconclusive_and_counted(finite):
    lines = [
        {
            "baseline": "black",
            "map": name,
            "image": image,
            "drop": value,
            "increase": 0,
            "deletion": 0.2,
            "insertion": 0.5,
        }
        for name in ("Score-CAM", "random")
        for image in range(3)
        for value in [0.1 if name == "random" or image < finite else np.nan]
    ]
    table = faithfulness.compare_maps(pd.DataFrame(lines), ["Score-CAM"], ["random"]).set_index("measure")
    assert table.loc["drop", ["verdict", "images_left_out"]].tolist() == ["inconclusive", 3 - finite]


def test_arrays_and_images_with_gradients_are_measured_as_tensors_are():
    torch.manual_seed(0)
    network, images = SmallNetwork().eval(), torch.randn(2, 3, 16, 16)
    maps, black = torch.rand(2, 16, 16), torch.zeros(2, 3, 16, 16)
    expected = faithfulness.measure_faithfulness(network, images, {"m": maps}, [0, 1], {"black": black}, 64)
    of_arrays = {"maps": {"m": maps.numpy()}, "baselines": {"black": black.numpy()}}
    found = faithfulness.measure_faithfulness(
        network, images.numpy(), target_classes=[0, 1], pixels_per_step=64, **of_arrays
    )
    pd.testing.assert_frame_equal(found, expected)
    wanted = images.clone().requires_grad_()
    assert torch.equal(faithfulness.edge_maps(wanted), faithfulness.edge_maps(images.numpy()))
    assert torch.equal(faithfulness.blurred_baseline(wanted), faithfulness.blurred_baseline(images))


def test_rows_of_other_images_are_measured_again(root, scene_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(map_measures, "load_run", small_run)
    monkeypatch.setattr(scorecam_defaults, "LAYERS", ("2",))
    arguments = ["--models", "tiny", "--data", str(scene_folder), "--output", str(tmp_path / "d.csv"), "--images", "1"]
    assert scorecam_defaults.main(arguments) == 0
    draw("striped", np.random.default_rng(5)).save(scene_folder / "val/dark/image_0000.jpg")
    assert scorecam_defaults.main(arguments) == 0
    assert len(list((tmp_path / "d").glob("tiny_*.csv"))) == 2


def test_settings_of_inversions_are_plain_or_refused_by_field():
    assert json.dumps(InversionSettings(steps=np.int64(480)).steps) == "480"
    for changes in (
        {"steps": 480.5},
        {"levels": 2, "coarsest": 0.3, "blur_sigma": 20},
        {"levels": 2, "blur_sigma": 27.9},
    ):
        with pytest.raises(ValueError, match=list(changes)[-1]):
            InversionSettings(**changes)


def test_files_of_inverted_classes_have_names_that_a_file_system_takes():
    names = ["a/b", "a%2Fb", "sheet", "x" * 251, "x" * 250 + "y", "ü" * 130, "coast"]
    files = [picture_file(name) for name in names]
    assert len(set(files)) == len(names) and all(len(name.encode()) < 256 and "/" not in name for name in files)
    assert files[-1] == "coast.png" and picture_file("sheet") != "sheet.png"


def test_views_of_one_image_are_drawn():
    assert len(draw_views(torch.zeros(1, 2, 3, 8, 8)).axes) == 2


# ------------------------------------------------------------------------------------------------ training and results


def test_a_run_that_keeps_the_last_epoch_reports_it(root, scene_folder):
    settings = TrainSettings(max_epochs=4, learning_rate=0.05, keep="last", schedule="none")
    experiment = Experiment(
        "last", "?", data=str(scene_folder), initial_weights="random", network="resnet18", stages=(4,)
    )
    experiment = replace(experiment, image_size=32, batch_size=6, train=settings)
    model, result = run(experiment, progress=False)
    assert result["epoch"] == 4
    loaders = build_loaders(experiment, progress=False)
    logits, _ = predict(model, loaders.test)
    assert logits.argmax(dim=1).tolist() == result["predictions"]["test"]


def test_a_saved_epoch_of_a_frozen_network_holds_all_of_it(root, scene_folder):
    settings = TrainSettings(max_epochs=2, backbone_lr_factor=0.25)
    experiment = Experiment(
        "frozen", "?", data=str(scene_folder), initial_weights="random", network="resnet18", stages=(4,)
    )
    experiment = replace(
        experiment, image_size=32, batch_size=6, freeze_features=True, save_epochs=(1, "last"), train=settings
    )
    model, _ = run(experiment, progress=False)
    saved = torch.load(next(root.rglob("frozen.epoch1.pt")), weights_only=True)["model"]
    final = model.state_dict()
    assert saved.keys() == final.keys()
    assert all(torch.equal(saved[name], final[name]) for name in final if name.startswith("features."))
    assert not torch.equal(saved["classifier.1.weight"], final["classifier.1.weight"])  # one epoch, not two
    last = torch.load(next(root.rglob("frozen.last.pt")), weights_only=True)["model"]
    assert last.keys() == final.keys()


def test_runs_of_other_settings_or_images_are_not_pooled():
    runs = seeds("supervised_1", [1], [2], [3])
    runs["supervised_1.seed2"]["settings"]["train"]["max_epochs"] = 1
    assert len(results.runs_of(runs, "supervised_1")) == 2
    runs |= seeds("supervised_2", [1, 2], [3])
    experiments = {name: find(name) for name in ("supervised_1", "supervised_2")}
    pair = next(
        each for each in results.pairs_to_compare() if {each.experiment, each.compared_with} == set(experiments)
    )
    assert (
        pair.experiment in experiments and len(results.comparisons(runs).query("experiment == @pair.experiment")) == 1
    )
    for result in runs.values():
        result["data"]["fingerprint"] = {"test": result["settings"]["name"]}
    assert not len(results.comparisons(runs))


def test_a_network_can_be_trained_and_calibrated_where_gradients_are_off(small_network):
    images, labels = torch.randn(12, 3, 16, 16), torch.arange(12) % 3
    loader = DataLoader(list(zip(images, labels.tolist(), strict=True)), 4)
    with torch.inference_mode():
        assert train(small_network, loader, loader, TrainSettings(max_epochs=1), progress=False).epochs == 1
    temperature = torch.ones(1, requires_grad=True)
    logits, targets = predict(small_network, loader)
    nn.functional.cross_entropy(logits / temperature, targets).backward()
    assert temperature.grad.isfinite().all()


@pytest.mark.parametrize(
    "changes", [{"step_factor": -0.1}, {"step_factor": float("nan")}, {"weight_decay": float("nan")}]
)
def test_settings_that_would_train_backwards_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        TrainSettings(**changes)


@pytest.mark.parametrize("weight", [-1.0, 0.0, float("nan"), "1.5"])
def test_class_weights_that_unlearn_a_class_are_refused(root, scene_folder, weight):
    experiment = Experiment("x", "?", data=str(scene_folder), image_size=32, class_weights=(("dark", weight),))
    with pytest.raises(ValueError, match="'dark'"):
        build_loaders(experiment, progress=False)


def test_only_mistakes_are_confusions_and_nan_has_no_verdict():
    assert not len(most_confused(np.diag([5, 5]), ["a", "b"], 5))
    assert most_confused(np.array([[5, 2], [0, 5]]), ["a", "b"], 5)["images"].tolist() == [2]
    with pytest.raises(ValueError, match="not finite"):
        mean_difference([0.1, float("nan"), 0.2])


def test_other_batch_sizes_keep_the_copies_of_an_image_together(root, scene_folder):
    together = replace(find("cifar10_rotation_together"), data=str(scene_folder), image_size=32, batch_size=8)
    loaders = pretexts.build_loaders(together, progress=False).in_batches_of(12)
    assert loaders.train.sampler.copies == 4


@pytest.mark.parametrize("outcome", [float("nan"), FloatingPointError("diverged")])
def test_a_trial_without_a_finite_loss_ends_and_so_does_the_search(tmp_path, outcome):
    def objective(trial):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    search = Search(tmp_path / "s.db", {"settings": {"name": "x"}, "data": {}}, sampler="random")
    study = open_study(search, 2)
    work(search, study, objective, progress=False)
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "PRUNED"]


def test_parameters_that_do_not_apply_are_left_out():
    cropped = replace(find("supervised_short"), augmentation="advanced", crop_size=288)
    assert with_parameters(cropped, {"augmentation": "basic"}).crop_size is None
    assert with_parameters(cropped, {"augmentation": "advanced"}).crop_size == 288
    with_momentum = find("nature_resnet18_sgd_1e-2")
    assert with_parameters(with_momentum, {"optimizer": "adam"}).train.momentum == 0
    assert with_parameters(with_momentum, {"optimizer": "sgd"}).train.momentum == with_momentum.train.momentum


def test_epochs_are_those_of_named_runs_and_a_run_waits_for_what_is_made_again(root):
    tasks = {task.name: task for task in missing_tasks(["byol_classifier"], "full", [0])}
    assert tasks["byol_classifier"].named and not tasks["byol"].named
    assert tasks["byol_classifier"].after == ("byol",)
    both = missing_tasks(["byol_classifier", "byol"], "full", [0], overwrite=True, max_epochs=2)
    assert [(task.name, task.experiment.train.max_epochs) for task in both if task.name == "byol"] == [("byol", 2)]
    there = root / "there"
    there.touch()
    first, second = Task(find("byol"), "full"), Task(find("byol_classifier"), "full", (there,), ("byol",))
    queue = _Queue([second, first])
    assert queue.next() is first
    queue.running["process"] = first
    assert queue.next() is None
    queue.running.clear()
    assert queue.next() is second
