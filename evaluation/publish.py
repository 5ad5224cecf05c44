"""Released models: make them, write their cards, put them where the commands find them.

    python -m evaluation.publish                 put every released model under models/full/
    python -m evaluation.publish --make RUN      release a run that was trained here
    python -m evaluation.publish --cards         write the model cards again

    published/<run>.safetensors    weights, and what is needed to use them (safetensors, Hugging Face 2022)
    published/<run>.md             its model card: data, metrics, limits
    published/sha256.json          the SHA-256 of each file

Convolutions and linear layers are saved in half precision, which halves the file.  BatchNorm stays in float32, because
variances can exceed the range of half precision.
With `--source` the files come from another folder or address (`<source>/<run>.safetensors`); their SHA-256 must match.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn

from data.download import check_checksum, download
from data.files import (
    digest_of_file,
    digest_of_tensors,
    read_table,
    root_folder,
    say_once,
    write_atomically,
    write_text,
)
from evaluation.checkpoints import PUBLISHED, RELEASED, TrainedRun, load_trained, read_released
from evaluation.metrics import confusion_matrix, most_confused, quality_of_probabilities
from evaluation.split_images import loaders_of_run
from evaluation.statistics import accuracy_interval
from experiments import EXPERIMENTS, configure, find, initial_weights_text
from helper_functions import predict
from run_files import STUDY_DATA, files_of, folder_of_data, load_checkpoint, origin_of
from runs import run_command
from self_supervised.settings import JointEmbeddingExperiment
from supervised.dataloader import MEAN, STD
from supervised.models import IN_TRAIN_MODE, KNOWN_WEIGHTS, STAGE_WIDTHS

FOLDER = PUBLISHED
DIGESTS = "sha256.json"
NOVELTY = ".novelty.npz"  # beside a released file, written by evaluation/novelty.py
FLOAT32_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d)
FRONT_MATTER = """\
---
license: mit
library_name: pytorch
pipeline_tag: image-classification
tags:
{tag}- self-supervised-learning
- {network}
datasets:
- {data}
metrics:
- accuracy
model-index:
- name: {name}
  results:
  - task:
      type: image-classification
    dataset:
      name: {data}
      type: {data}
      split: test
    metrics:
    - type: accuracy
      name: test accuracy of this file
      value: {value:.4f}
---
"""  # what the Hugging Face Hub reads of a card: github.com/huggingface/hub-docs, modelcard.md
CARD = """\
# {name}

Written by `python -m evaluation.publish --cards` from the result file, the released file and what was measured of it
later.  No measurement is typed.

| | |
|---|---|
| network | {network}, head `{head}` on stages {stages} |
| input | {image_size}x{image_size} pixels, resize rule `{resize}`: {resize_rule}{flip_tta} |
| output | logits of {classes} classes: {class_names} |
| data | {data}: {train:,} training images, {val:,} validation images, {test:,} test images |
| initial weights | {initial_weights} |
| BatchNorm statistics of the features | {batchnorm} |
| training | {trained}; seed {seed}, {precision} on {device}, torch {torch} |
| test accuracy | {accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}) |
| from this file | {measured:.4f} in {precision}: half precision changes {changed} of {test:,} predictions{float32} |
| worst classes | {worst_classes} |
| most frequent confusions on the test images | {confusions} |
| calibration | {calibration} |
| flagged as unlike the training images | {flagged} |
| file | {megabytes:.1f} MB, half precision but for BatchNorm, SHA-256 `{digest}` |
{use}
## Limits

{limits}
The weights are under the MIT license, as the code is.
"""
LIMITS = """\
The model knows {classes} classes of one data set, and gives any other image one of these labels too.  The images are
not in this repository."""
LIMITS_OF_15_SCENE = """\
The model knows {classes} scenes of one data set, in gray photographs of about 256 pixels a side, and gives any other
image one of these labels too.  The table says whether, and how many, images of other kinds are flagged.
`evaluation/evaluation.ipynb` examines the calibration.  15-Scene is for research use; the
photographs are not in this repository."""
IN_PROSE = {  # of what result files call these weights
    KNOWN_WEIGHTS["4ce8c47e"]: "ImageNet weights whose BatchNorm statistics were re-estimated on ImageNet photographs",
}
RESIZE_RULES = {
    "imagenet": "shorter side to 256/224 of that, bicubic, and the center of it",
    "squash": "to the square, whatever the shape of the image",
}
USE = """
## Use without this repository

```python
import json
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from torch import nn
from torchvision.models import efficientnet_b0
from torchvision.transforms import v2

file = safe_open("{name}.safetensors", "pt")
features, head = efficientnet_b0().features, {head}
model = nn.ModuleDict({{"features": features, "classifier": head}}).eval()
model.load_state_dict({{name: file.get_tensor(name) for name in file.keys()}})  # half precision becomes float32
prepare = v2.Compose(
    [{resize}, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
)
image = prepare(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))
maps, pooled = v2.functional.normalize(image, {mean}, {std})[None], []{flip}
for stage in features:
    maps = stage(maps)
    pooled.append(maps.mean(dim=(2, 3)))
logits = head(torch.cat([pooled[number] for number in {stages}], dim=1).mean(dim=0, keepdim=True))
print(json.loads(file.metadata()["about"])["class_names"][logits.argmax()])
```
"""
USED_HEADS = {  # as torch writes them: num_features, num_classes
    "shallow": "nn.Sequential(nn.Dropout(0.2), nn.Linear({}, {}))",
    "batchnorm_linear": "nn.Sequential(nn.BatchNorm1d({0}, affine=False), nn.Linear({0}, {1}))",
    "deep": (
        "nn.Sequential(\n    nn.Dropout(0.2), nn.Linear({}, 640), nn.ReLU(), nn.Dropout(0.2), nn.Linear(640, 320), "
        "nn.ReLU(),\n    nn.Dropout(0.2), nn.Linear(320, {}),\n)"
    ),
}


def halve(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict with every floating-point tensor in half precision, except those of BatchNorm."""
    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, FLOAT32_MODULES))
    return {
        name: tensor.half() if tensor.is_floating_point() and not name.startswith(norms) else tensor
        for name, tensor in model.state_dict().items()
    }


def write_released(path: Path, state_dict: Mapping[str, torch.Tensor], about: Mapping):
    """Write a state dict and its description `about` (plain types), which becomes JSON in the file's metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"about": json.dumps(about)}))


def make(name: str, folder: Path = FOLDER) -> Path:
    """Release the full-profile run of an experiment: write its file, digest and card in `folder`; return the file.

    Measures on the test images what half precision changes.
    Raises ValueError for an unknown experiment, and for one of other images; FileNotFoundError without a checkpoint.
    """
    experiment = configure(find(name), "full")
    checkpoint = files_of(experiment, "full").checkpoint
    run, saved = load_trained(checkpoint), load_checkpoint(checkpoint)
    loaders = loaders_of_run(run.data, experiment)
    if saved["identity"]["data"].get("fingerprint") != loaders.data.get("fingerprint"):
        raise ValueError(f"{checkpoint} was trained on other images than those of {loaders.data['name']} now")
    loader = loaders.test
    precision = saved["result"]["precision"]  # that of the result
    before, labels = predict(run.folded().model, loader, precision=precision)
    tensors = halve(run.model)
    run.model.load_state_dict(tensors)  # in float32 again, rounded to half precision
    after = predict(run.folded().model, loader, precision=precision)[0].argmax(dim=1)
    measured = {
        "test_accuracy": (after == labels).sum().item() / len(labels),
        "changed": int((after != before.argmax(dim=1)).sum()),
    }
    target = folder / f"{name}{RELEASED}"
    about = {"identity": saved["identity"], "class_names": saved["class_names"], "measured": measured}
    write_released(target, tensors, about)
    digests = _read_digests(folder) | {name: digest_of_file(target)}
    listed = json.dumps(dict(sorted(digests.items())), indent=1) + "\n"
    write_text(folder / DIGESTS, listed)
    write_card(target, saved["result"])
    return target


def write_cards(folder: Path = FOLDER) -> list[Path]:
    """Write the card of every released model in `folder` again, from the released file and its result file.

    Returns the cards.  Raises FileNotFoundError for a model without a result file.
    """
    cards = []
    for path in sorted(folder.glob(f"*{RELEASED}")):
        result = json.loads((_results_of(read_released(path)) / f"{path.stem}.json").read_text(encoding="utf-8"))
        cards.append(write_card(path, result))
    return cards


def float32_accuracy(name: str, about: Mapping) -> float | None:
    """The test accuracy of a released file in float32, if `evaluation.explain` has measured that of its weights.

    `about` is what `read_released` returns.
    """
    quality = measured_quality(name, about)
    return quality and quality["top 1"]


def measured_quality(name: str, about: Mapping) -> dict[str, float] | None:
    """As `quality_of_probabilities`, of a released file's test images in float32; None if that was not measured.

    `about` is what `read_released` returns.  The probabilities are those that `evaluation.explain` has saved; of other
    weights they do not count.
    """
    folder = _results_of(about) / "explanations" / name
    if not (folder / "test.npz").exists():
        return None
    stamp = json.loads((folder / "weights.json").read_text(encoding="utf-8"))
    if stamp["weights"] != digest_of_tensors(about["model"]):
        return None
    with np.load(folder / "test.npz") as saved:
        return quality_of_probabilities(saved["labels"], saved["probabilities"])


def measured_flags(path: Path, about: Mapping) -> pd.DataFrame | None:
    """How many images `evaluation.novelty` flags with a released file: its lines of novelty.csv, perhaps none.

    `about` is what `read_released` returns.  None if there is no description of the training images beside the file, or
    one of other weights: then nothing is flagged.
    """
    description = path.with_name(f"{path.stem}{NOVELTY}")
    if not description.exists():
        return None
    with np.load(description) as saved:
        if saved["weights"].item() != digest_of_released_features(about["model"]):
            return None
    table = _results_of(about) / "novelty.csv"
    lines = read_table(table) if table.exists() else pd.DataFrame(columns=["model"])
    return lines[lines["model"] == path.stem]


def digest_of_released_features(released: Mapping[str, torch.Tensor]) -> str:
    """A digest of the features' weights among tensors as they are released, see `halve`."""
    features = {name: tensor for name, tensor in sorted(released.items()) if name.startswith("features.")}
    return digest_of_tensors({name: tensor.float().contiguous() for name, tensor in features.items()})


def _results_of(about: Mapping) -> Path:
    return folder_of_data(root_folder() / "results" / "full", about["identity"]["data"]["name"])


def write_card(path: Path, result: Mapping) -> Path:
    """Write the model card (Mitchell et al. 2019) beside the released file `path`, from its run's result."""
    write_text(path.with_suffix(".md"), card(result, path))
    return path.with_suffix(".md")


def card(result: Mapping, path: Path) -> str:
    """Return the text of the model card of the released file `path`, in Markdown; `result` is its run's."""
    about = read_released(path)
    return card_text(
        result,
        about,
        path.stat().st_size,
        digest_of_file(path),
        measured_quality(path.stem, about),
        measured_flags(path, about),
    )


def card_text(
    result: Mapping,
    about: Mapping,
    size: int,
    digest: str,
    quality: Mapping[str, float] | None = None,
    flags: pd.DataFrame | None = None,
) -> str:
    """Return the text of a model card, in Markdown.

    `result` is the run's result; `about` the description in the released file, which has `size` bytes and this SHA-256.
    `quality` and `flags` are what `measured_quality` and `measured_flags` return.
    """
    identity, labels = about["identity"], result["labels"]["test"]
    settings, data = identity["settings"], identity["data"]
    low, high = accuracy_interval(round(result["test_accuracy"] * len(labels)), len(labels))
    limits = LIMITS_OF_15_SCENE if data["name"] == STUDY_DATA else LIMITS
    in_float32 = quality["top 1"] if quality and result["precision"] != "float32" else None
    worst = sorted(result["test_accuracy_by_class"].items(), key=lambda item: item[1])[:3]
    return (FRONT_MATTER + CARD).format(
        **{key: settings[key] for key in ("network", "head", "stages", "image_size", "resize", "seed")},
        **{key: result[key] for key in ("name", "precision", "device")},
        **{split: data["images"][split] for split in ("train", "val", "test")},
        flip_tta="; horizontal-flip test-time augmentation" if settings["flip_tta"] else "",
        resize_rule=RESIZE_RULES[settings["resize"]],
        use=how_to_use(result["name"], settings, len(about["class_names"])),
        tag="- scene-recognition\n" if data["name"] == STUDY_DATA else "",
        limits=limits.format(classes=len(about["class_names"])),
        classes=len(about["class_names"]),
        class_names=", ".join(about["class_names"]),
        data=data["name"],
        initial_weights=_describe_initial_weights(identity["initial_weights"]),
        batchnorm=_describe_batchnorm(settings, identity["initial_weights"]),
        trained=_describe_training(settings, result, identity.get("teachers", {})),
        torch=result["versions"]["torch"],
        accuracy=result["test_accuracy"],
        low=low,
        high=high,
        measured=about["measured"]["test_accuracy"],
        value=about["measured"]["test_accuracy"] if in_float32 is None else in_float32,
        changed=about["measured"]["changed"],
        float32="" if in_float32 is None else f"; in float32, as the commands compute, {in_float32:.4f}",
        worst_classes=", ".join(f"{name} {accuracy:.3f}" for name, accuracy in worst),
        confusions=_describe_confusions(result),
        calibration=_describe_calibration(quality),
        flagged=_describe_flags(flags, data["name"]),
        megabytes=size / 1e6,
        digest=digest,
    )


def how_to_use(name: str, settings: Mapping, num_classes: int) -> str:
    """The section of a card that loads the file with torchvision alone, or "" for a network it has no stages of."""
    if settings["network"] != "efficientnet_b0":
        return ""
    size, stages = settings["image_size"], sorted(settings["stages"])
    resize = {
        "imagenet": f"v2.Resize({round(size * 256 / 224)}, v2.InterpolationMode.BICUBIC), v2.CenterCrop({size})",
        "squash": f"v2.Resize(({size}, {size}))",
    }
    num_features = sum(STAGE_WIDTHS["efficientnet_b0"][stage] for stage in stages)
    return USE.format(
        name=name,
        head=USED_HEADS[settings["head"]].format(num_features, num_classes),
        resize=resize[settings["resize"]],
        mean=list(MEAN[settings["resize"]]),
        std=list(STD[settings["resize"]]),
        flip="\nmaps = torch.cat([maps, maps.flip(-1)])  # both views: their features are averaged"
        if settings["flip_tta"]
        else "",
        stages=stages,
    )


def place(names: Sequence[str], source: str | Path, models: Path, folder: Path = FOLDER) -> list[Path]:
    """Copy released files from `source`, a folder or an address, to `models`; return the copies.

    Each must have the digest listed in `folder`, otherwise the file that was there stays.  No names: all.
    Raises ValueError for an unknown name or another digest, FileNotFoundError or ConnectionError for a missing file.
    """
    digests = _read_digests(folder)
    unknown = [name for name in names if name not in digests]
    if unknown:
        raise ValueError(f"there is no released model {unknown[0]}; there are {', '.join(digests)}")
    placed = []
    for name in names or digests:
        target, checksum = models / f"{name}{RELEASED}", f"sha256:{digests[name]}"
        if str(source).startswith(("http://", "https://")):
            target.parent.mkdir(parents=True, exist_ok=True)
            fetched = target.with_name(f".{target.name}")  # the old file stays until the new one is complete
            download(f"{source}/{target.name}", fetched, checksum)
            fetched.replace(target)
        else:
            origin = Path(source) / target.name
            if not origin.is_file():
                raise FileNotFoundError(f"there is no {origin}")
            check_checksum(origin, checksum, origin)
            write_atomically(target, partial(shutil.copyfile, origin))
        placed.append(target)
    return placed


def load_run(name: str | Path, needs_classes: bool = True) -> TrainedRun:
    """As `load_trained`; a released model that is named and is not under models/ yet is placed there first.

    A run of the quick profile does not stand in for it.
    """
    quick = root_folder() / "models" / "quick"
    released = str(name) in _read_digests(FOLDER) and (FOLDER / f"{name}{RELEASED}").is_file()
    try:
        found = load_trained(name, needs_classes)
        if not (released and found.file.is_relative_to(quick)):
            return found
    except FileNotFoundError:
        if not released:
            raise
    (placed,) = place([str(name)], FOLDER, root_folder() / "models" / "full", FOLDER)
    say_once(f"{name} is a released model; it was copied to {placed}")
    return load_trained(name)


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.publish",
        description="Make released models, write their cards, and put them where the commands find them",
    )
    parser.add_argument("names", nargs="*", metavar="RUN", help="default: all released models")
    parser.add_argument("--source", default=FOLDER, metavar="FOLDER|URL", help="default: published/")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--make", action="store_true", help="release runs that were trained here")
    what.add_argument("--cards", action="store_true", help="write all model cards again")
    options = parser.parse_args(arguments)
    return run_command(lambda: _publish(options))


def _publish(options):
    if options.cards and options.names:
        raise ValueError("--cards writes all model cards; leave out the names")
    if options.source != FOLDER and (options.cards or options.make):
        raise ValueError("--source is where released models are taken from; leave it out with --make and --cards")
    if options.cards:
        written = write_cards()
    elif not options.make:
        written = place(options.names, options.source, root_folder() / "models" / "full")
    elif options.names:
        written = [make(name) for name in options.names]
    else:
        raise ValueError("--make needs the names of runs that were trained here")
    for path in written:
        print(path)


def _read_digests(folder: Path) -> dict[str, str]:
    path = folder / DIGESTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _describe_initial_weights(initial_weights: Mapping) -> str:
    began_with = initial_weights.get("began_with")
    trained_from = f", trained from {_in_prose(began_with['weights'])}" if began_with else ""
    return f"{_in_prose(initial_weights_text(initial_weights))}{trained_from}"


def _in_prose(weights: str) -> str:
    return IN_PROSE.get(weights, weights)


def _describe_batchnorm(settings: Mapping, initial_weights: Mapping) -> str:
    """Where the running statistics of the features' BatchNorm layers come from."""
    at_first = _batchnorm_at_first(settings, initial_weights)
    frozen_learn = nn.BatchNorm2d in IN_TRAIN_MODE[settings.get("frozen_mode", "eval")]
    if settings["freeze_features"] and not frozen_learn:
        return at_first
    if settings["frozen_stages"] and not frozen_learn:
        return f"those of this training; in the first {settings['frozen_stages']} stages, which were frozen, {at_first}"
    return "those of this training"


def _batchnorm_at_first(settings: Mapping, initial_weights: Mapping) -> str:
    name, own = settings.get("pretext_run", ""), settings.get("batchnorm", "")
    began_with = origin_of(initial_weights)["weights"]
    initial = f"those of the initial {'ImageNet ' if began_with.startswith('ImageNet') else ''}weights"
    random_and_frozen = not name and began_with == "random" and settings["freeze_features"]
    if own == "estimated" or random_and_frozen:
        return "estimated on the training images"
    if not name or own == "initial":
        return initial
    pretext = EXPERIMENTS.get(name)
    if isinstance(pretext, JointEmbeddingExperiment) and pretext.batchnorm == "initial":
        return f"{initial}, which the pretext kept"
    return f"those of the pretext, {name}"


def _describe_confusions(result: Mapping) -> str:
    names = result["class_names"]
    matrix = confusion_matrix(result["labels"]["test"], result["predictions"]["test"], len(names))
    lines = most_confused(matrix, names, 3).itertuples(index=False)
    return ", ".join(f"{line.true} taken for {line.predicted} ({line.images:,})" for line in lines) or "none"


def _describe_calibration(quality: Mapping[str, float] | None) -> str:
    if quality is None:
        return "not measured"
    return (
        f"expected calibration error {quality['calibration error']:.4f} on the test images in float32: "
        f"mean confidence {quality['mean confidence']:.4f}, accuracy {quality['top 1']:.4f}"
    )


def _describe_flags(flags: pd.DataFrame | None, data: str) -> str:
    """The images that are flagged, but for those of val, which have set the threshold."""
    if flags is None:
        return "none: the training images of this model are not described, so `evaluation.predict` flags nothing"
    names = {f"{data}, test": "test images, by mistake"}
    shares = [
        f"{names.get(line.images, line.images)}: {line.flagged:,} of {line.number:,} ({line.flagged / line.number:.3f})"
        for line in flags.itertuples(index=False)
        if line.images != f"{data}, val"
    ]
    return "; ".join(shares) or "not measured"


def _describe_training(settings: Mapping, result: Mapping, teachers: Mapping) -> str:
    epochs = f"epoch {result['epoch']} of {len(result['history']['val_loss'])}"
    if "C" in result:  # the strength of a fitted probe
        return "logistic regression on frozen features"
    if settings["freeze_features"]:
        return f"only the head was trained, on frozen features; {epochs}"
    frozen = settings["frozen_stages"]
    trained = f"all but the first {frozen} stages were trained" if frozen else "all layers were trained"
    if not teachers:
        return f"{trained}; {epochs}"
    runs = [run["weights"] for run in teachers["runs"]]
    return f"{trained}, distilled from an ensemble of {len(runs)}: {'; '.join(runs)}; {epochs}"


if __name__ == "__main__":
    sys.exit(main())
