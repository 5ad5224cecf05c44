"""Rename experiments, settings and result keys in the result files of the first edition.

    python -m migrations.second_edition [FOLDER ...]      default: results/full and published

Run once, for the second edition.  No number is touched: a test compares every value before and after.  Running it
again changes nothing, so results of older code, such as those of an unfinished campaign, can be brought in later.
"""

import json
import re
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from data.files import digest_of_file, write_atomically, write_text

ROOT = Path(__file__).resolve().parents[1]

# "best" is said of no experiment that another one beats; a variant is named after the experiment that it varies.
EXPERIMENTS = {
    "supervised_best": "supervised_short",
    "best_longer": "supervised_long",
    "best_one_stage": "supervised_short_one_stage",
    "best_smaller": "supervised_short_smaller_images",
    "best_all_trained": "supervised_short_all_stages_trained",
    "best_strong_augmentation": "supervised_short_strong_augmentation",
    "best_without_averaging": "supervised_short_without_ema",
    "best_without_smoothing": "supervised_short_without_smoothing",
    "best_one_rate": "supervised_short_one_learning_rate",
    "supervised_distilled": "distilled",
    "distilled_longer": "distilled_long",
    "distilled_without_mixing": "distilled_without_mixup",
    **{
        f"{pretext}_{old}": f"{pretext}_{new}"
        for pretext in ("rotation", "perturbation")
        for old, new in (
            ("best", "gentle"),
            ("best_classifier", "gentle_classifier"),
            ("best_classifier_own_batchnorm", "gentle_classifier_own_batchnorm"),
            ("classifier_3_standardised", "classifier_3_batchnorm_head"),
        )
    },
}
KEYS = {
    "averaging_decay": "ema_decay",
    "features_factor": "backbone_lr_factor",
    "flip_averaging": "flip_tta",
    "mixing": "mixup",
    "keep_epochs": "save_epochs",
    "course_epoch": "earlier_protocol_epoch",
    "course_accuracy": "earlier_protocol_accuracy",
    "course_predictions": "earlier_protocol_predictions",
}
FILES = {"judged.csv": "recognition.csv"}
HEADERS = {  # of tables
    "model,judge,class,probability": "model,evaluator,class,probability",
    "row,checkpoint,largest difference": "experiment,checkpoint,largest difference",
    "row,checkpoint,trained at,evaluated at,val accuracy": "experiment,checkpoint,trained at,evaluated at,val accuracy",
}
VALUES = {("head", "standardised"): "batchnorm_linear", ("format", 1): 2}  # (key, value)

_PREFIXES = ("probes", "fractions")  # of file names, before the name of an experiment
_BEGINNING = "|".join((r"\b", *(rf"(?<=\b{prefix}_)" for prefix in _PREFIXES)))
_NAMES = re.compile(f"(?:{_BEGINNING})(" + "|".join(sorted(EXPERIMENTS, key=len, reverse=True)) + r")\b")


def rename_text(text: str) -> str:
    """The text with every old experiment name in it replaced."""
    return _NAMES.sub(lambda match: EXPERIMENTS[match.group()], text)


def rename(value, key: str | None = None):
    """A JSON value with its keys, experiment names and head names renamed; measured numbers stay as they are."""
    if isinstance(value, dict):
        return {KEYS.get(name, name): rename(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [rename(each) for each in value]
    if (key, value) in VALUES:
        return VALUES[key, value]
    return rename_text(value) if isinstance(value, str) else value


def migrate_json(path: Path):
    """Rewrite one result file, one key a line, as runs.py writes it."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(value)}"
        for key, value in rename(json.loads(path.read_text(encoding="utf-8"))).items()
    ]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def migrate_model(path: Path):
    """Rewrite the description in a released model; its tensors stay bit for bit."""
    with safe_open(path, framework="pt") as opened:
        about = json.loads(opened.metadata()["about"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    metadata = {"about": json.dumps(rename(about))}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def migrate_folder(folder: Path):
    """Rename files and folders below `folder`, deepest first, and rewrite what is in them."""
    for path in sorted(folder.rglob("*"), key=lambda path: len(path.parts), reverse=True):
        renamed = path.with_name(FILES.get(path.name) or rename_text(path.name))
        if renamed != path:
            path.rename(renamed)
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json" and '"format"' in path.read_text(encoding="utf-8"):
            migrate_json(path)
        elif path.suffix in (".csv", ".json") and path.name != "sha256.json":
            header, newline, lines = rename_text(path.read_bytes().decode()).partition("\n")
            text = HEADERS.get(header, header) + newline + lines
            write_atomically(path, lambda temporary, text=text: temporary.write_bytes(text.encode()))
        if path.suffix == ".safetensors":
            migrate_model(path)
    digests = {path.stem: digest_of_file(path) for path in sorted(folder.glob("*.safetensors"))}
    if digests:
        (folder / "sha256.json").write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]):
    """Migrate the folders that are named."""
    for folder in arguments or [ROOT / "results" / "full", ROOT / "published"]:
        migrate_folder(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
