"""The second edition's results are the first edition's under other names: no number differs, bit for bit."""

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data.files import CODE, digest_of_file, digest_of_tensors
from migrations.second_edition import EXPERIMENTS, FILES, HEADERS, KEYS, VALUES, migrate_folder, rename_text

FIRST_EDITION = "8f198b9"  # the last commit with the old names


def differences(old, new, key: str = "", place: str = "") -> list[str]:
    """The places in which two JSON values differ, the old one under the map of names."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = {KEYS.get(name, name): name for name in old}
        if list(names) != list(new):
            return [place]
        return [found for name in new for found in differences(old[names[name]], new[name], name, f"{place}.{name}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [found for number, pair in pairs for found in differences(*pair, key, f"{place}[{number}]")]
    expected = VALUES.get((key, old), rename_text(old) if isinstance(old, str) else old)
    return [] if (type(expected), expected) == (type(new), new) else [place]


# What was trained or computed again since: parts of a path, or stems of files.  "explanations" are of other networks.
AGAIN = {
    "explanations",
    "rotation_classifier_tuned_10",
    "perturbation_classifier_tuned_3",
    "probes_rotation_classifier_tuned_10",
    "probes_perturbation_classifier_tuned_3",
    "fractions_rotation_classifier_tuned_10",
    "imagenet_classifier_best",
    "perturbation_gentle",
    "perturbation_gentle_classifier",
    "perturbation_gentle_classifier_own_batchnorm",
    "probes_perturbation_gentle_classifier",
    "probes_perturbation_gentle_classifier_own_batchnorm",
    "pretext_tried",
    "pretext_epochs",
}


@pytest.fixture(scope="session")
def first_edition(tmp_path_factory) -> Path:
    """The folders results/full and published as they were, from the clone's history."""
    folder = tmp_path_factory.mktemp("first_edition")
    command = ["git", "archive", FIRST_EDITION, "results/full", "published"]
    archived = subprocess.run(command, cwd=CODE, capture_output=True)
    if archived.returncode != 0:
        pytest.skip(f"this clone does not have the commit {FIRST_EDITION}")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def renamed(folder: Path, pattern: str):
    """(old file, file of today) for each of a pattern; files that are AGAIN or no longer there are left out."""
    pairs = []
    for path in sorted(folder.rglob(pattern)):
        *folders, name = map(rename_text, path.relative_to(folder).parts)
        today = CODE.joinpath(*folders, FILES.get(name, name))
        if today.exists() and not AGAIN & {*folders, today.stem.split(".")[0]}:
            pairs.append((path, today))
    return pairs


def about(model: Path) -> dict:
    """The description in a released model."""
    with safe_open(model, framework="pt") as opened:
        return json.loads(opened.metadata()["about"])


def test_every_value_of_every_result_is_what_it_was(first_edition):
    pairs = renamed(first_edition, "results/**/*.json")
    assert len(pairs) == 107
    for old, today in pairs:
        before, after = (json.loads(path.read_text()) for path in (old, today))
        assert differences(before, after) == [], today
    assert not {today.stem.split(".")[0] for _, today in pairs} & EXPERIMENTS.keys()


def test_every_table_is_what_it_was(first_edition):
    pairs = renamed(first_edition, "results/**/*.csv")
    assert len(pairs) > 70
    for old, today in pairs:
        header, *lines = rename_text(old.read_text()).splitlines()
        assert [HEADERS.get(header, header), *lines] == today.read_text().splitlines(), today


def test_every_map_and_image_is_what_it_was(first_edition):
    for pattern in ("*.npz", "*.png"):
        pairs = renamed(first_edition, f"results/**/{pattern}")
        assert pairs
        assert not [today for old, today in pairs if old.read_bytes() != today.read_bytes()]


def test_every_released_model_has_the_same_tensors_bit_for_bit(first_edition):
    pairs = renamed(first_edition, "published/*.safetensors")
    assert [today.stem for _, today in pairs] == ["distilled_long"]  # the others are of the second edition
    digests = json.loads((CODE / "published/sha256.json").read_text())
    for old, today in pairs:
        before, after = load_file(old), load_file(today)
        kinds = [{name: (tensor.dtype, tensor.shape) for name, tensor in each.items()} for each in (before, after)]
        assert kinds[0] == kinds[1]
        assert digest_of_tensors(before) == digest_of_tensors(after)
        assert differences(about(old), about(today)) == []
        assert digests[today.stem] == digest_of_file(today)


OLD_RESULT = {
    "format": 1,
    "name": "supervised_best.seed1",
    "course_accuracy": 0.1 + 0.2,
    "settings": {"head": "standardised", "keep_epochs": [1, "last"], "train": {"averaging_decay": 0.98, "epochs": 1}},
    "teachers": {"runs": [{"weights": "best_longer, epoch best"}], "sha256": "1e5"},
    "test_accuracy_by_class": {"coast": 1, "forest": 1.0},
}
NEW_RESULT = {
    "format": 2,
    "name": "supervised_short.seed1",
    "earlier_protocol_accuracy": 0.30000000000000004,
    "settings": {"head": "batchnorm_linear", "save_epochs": [1, "last"], "train": {"ema_decay": 0.98, "epochs": 1}},
    "teachers": {"runs": [{"weights": "supervised_long, epoch best"}], "sha256": "1e5"},
    "test_accuracy_by_class": {"coast": 1, "forest": 1.0},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_renamed_inside_and_out_and_a_second_time_nothing_changes(tmp_path):
    folder = tmp_path / "full"
    (folder / "explanations/rotation_best_classifier").mkdir(parents=True)
    (folder / "explanations/rotation_best_classifier/map.png").write_bytes(b"best_longer")
    (folder / "supervised_best.seed1.json").write_text(json.dumps(OLD_RESULT))
    (folder / "probes_rotation_best_classifier.csv").write_text("name,accuracy\nbest_longer,0.1\nthe best,1\n")
    weights = torch.tensor([0.0, -0.0, float("nan"), 1e-40])
    save_file({"weight": weights}, folder / "best_longer.safetensors", {"about": json.dumps(OLD_RESULT)})
    (folder / "judged.csv").write_text("model,judge,class,probability\nsupervised_best,best_longer,judge,1\n")
    migrate_folder(folder)
    assert json.loads((folder / "supervised_short.seed1.json").read_text()) == NEW_RESULT
    assert differences(OLD_RESULT, NEW_RESULT) == []
    assert (folder / "explanations/rotation_gentle_classifier/map.png").read_bytes() == b"best_longer"
    table = (folder / "probes_rotation_gentle_classifier.csv").read_text()
    assert table == "name,accuracy\nsupervised_long,0.1\nthe best,1\n"
    table = (folder / "recognition.csv").read_text()
    assert table == "model,evaluator,class,probability\nsupervised_short,supervised_long,judge,1\n"
    model = folder / "supervised_long.safetensors"
    assert torch.equal(load_file(model)["weight"].view(torch.uint8), weights.view(torch.uint8))
    assert json.loads((folder / "sha256.json").read_text()) == {"supervised_long": digest_of_file(model)}
    again = shutil.copytree(folder, tmp_path / "again")
    migrate_folder(again)
    assert contents(again) == contents(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"earlier_protocol_accuracy": 0.3},
        {"format": 1},
        {"test_accuracy_by_class": {"coast": 1.0, "forest": 1.0}},
        {"settings": {}},
    ],
)
def test_a_value_that_was_touched_is_noticed(change):
    assert len(differences(OLD_RESULT, NEW_RESULT | change)) == 1
