"""Trained models for those who do not train: `python -m evaluation.publish` places them under models/full/.

    published/<run>.safetensors    weights, and what is needed to use them (safetensors, Hugging Face 2022)
    published/<run>.md             its model card: data, metrics, limits
    published/sha256.json          the digest of each file

Convolutions and linear layers are kept in half precision, which makes a file half as large as a checkpoint;
BatchNorm's weights and statistics stay float32, since half precision does not reach as far as variances do.
Without names, all are placed.  With `--source` they come from another folder or address (`<source>/<run>.safetensors`)
and must have the same digests.  `--make RUN` makes the file and the card of a run that was trained here.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data.files import write_atomically
from evaluation.metrics import accuracy_interval

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "published"
DIGESTS = "sha256.json"
KEPT_FLOAT32 = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)


def halve(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with every floating-point tensor but BatchNorm's in half precision."""
    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, KEPT_FLOAT32))
    return {
        name: tensor.half() if tensor.is_floating_point() and not name.startswith(norms) else tensor
        for name, tensor in model.state_dict().items()
    }


def write_published(path: Path, state_dict: Mapping[str, torch.Tensor], about: Mapping):
    """Write a state dict and, as JSON in the file's metadata, `about`: plain types, what is needed to use it."""
    tensors = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"about": json.dumps(about)}))


def read_published(path: Path) -> dict:
    """What `write_published` wrote: the keys of `about`, and "model", the state dict in float32.

    Raises ValueError for a file that is not whole, or is not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            about = json.loads((opened.metadata() or {})["about"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a published model, or not whole ({type(error).__name__})") from error
    model = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}
    return {**about, "model": model}


def card(result: Mapping, about: Mapping, size: int, digest: str) -> str:
    """The model card (Mitchell et al. 2019) of a published file of `size` bytes, from its run's result, in Markdown."""
    settings = about["identity"]["settings"]
    labels = result["labels"]["test"]
    low, high = accuracy_interval(round(result["test_accuracy"] * len(labels)), len(labels))
    initial, images = about["identity"]["initial_weights"], about["identity"]["data"]["images"]
    worst = sorted(result["test_accuracy_by_class"].items(), key=lambda item: item[1])[:3]
    began = f", which began with {initial['began_with']['weights']}" if "began_with" in initial else ""
    frozen = settings["frozen_stages"]
    learned = f"all but the first {frozen} stages were trained" if frozen else "all layers were trained"
    if settings["freeze_features"]:
        learned = "the head alone was trained, on frozen features"
    teachers = [each["weights"] for each in about["identity"].get("teachers", {}).get("runs", [])]
    if teachers:
        learned += f", by what {len(teachers)} others say of the images: {'; '.join(teachers)}"
    lines = [
        f"# {result['name']}",
        "",
        "Written by `python -m evaluation.publish --make`; no number is typed.",
        "",
        "| | |",
        "|---|---|",
        f"| network | {settings['network']}, head `{settings['head']}` on stages {settings['stages']} |",
        f"| input | {settings['image_size']}x{settings['image_size']} pixels, resize rule `{settings['resize']}`"
        f"{', mean of image and mirror image' if settings['flip_tta'] else ''} |",
        f"| output | logits of {len(about['class_names'])} scenes: {', '.join(about['class_names'])} |",
        f"| data | {about['identity']['data']['name']}: {images['train']:,} images to train on, "
        f"{images['val']:,} to choose the epoch by, {images['test']:,} to report on |",
        f"| initial weights | {initial['weights']}{began} |",
        f"| training | {learned}; epoch {result['epoch']} of {len(result['history']['val_loss'])}, seed "
        f"{settings['seed']}, {result['precision']} on {result['device']}, torch {result['versions']['torch']} |",
        f"| test accuracy | {result['test_accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}) |",
        f"| from this file | {about['measured']['test_accuracy']:.4f}: half precision changes the class of "
        f"{about['measured']['changed']} of {len(labels):,} test images |",
        f"| worst classes | {', '.join(f'{name} {accuracy:.3f}' for name, accuracy in worst)} |",
        f"| file | {size / 1e6:.1f} MB, SHA-256 `{digest}` |",
        "",
        "## Limits",
        "",
        f"It knows {len(about['class_names'])} scenes of one data set, in grey photographs of about 256 pixels, and "
        "gives every other image one of these names too.  Neighbouring scenes (open country and coast, bedroom and "
        "living room) are mistaken for each other.  How sure it says to be is examined in "
        "`evaluation/evaluation.ipynb`.  15-Scene is for research use; the photographs are not in this repository.  "
        "The weights are under the MIT licence, as the code is.",
        "",
    ]
    return "\n".join(lines)


def main(arguments=None) -> int:
    """Answer the command line; a user's mistake gets one sentence and exit code 2."""
    from runs import run_command

    parser = argparse.ArgumentParser(prog="python -m evaluation.publish", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="RUN", help="default: all that are published")
    parser.add_argument("--source", default=FOLDER, metavar="FOLDER|URL", help="default: published/")
    parser.add_argument("--make", action="store_true", help="make the files of runs that were trained here")
    options = parser.parse_args(arguments)
    return run_command(lambda: (_make if options.make else _place)(options))


def _place(options):
    for path in place(options.names, options.source, ROOT / "models" / "full"):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB")


def place(names: list[str], source: str | Path, models: Path, folder: Path = FOLDER) -> list[Path]:
    """Put published files under `models`, checked against the digests in `folder`; none is replaced by a broken one.

    `source` is a folder or an address.  Without names, all are placed.  Raises ValueError for a name that is not
    published or a file with another digest, FileNotFoundError or ConnectionError where there is none.
    """
    from data.download import check_checksum, download

    digests = json.loads((folder / DIGESTS).read_text())
    unknown = [name for name in names if name not in digests]
    if unknown:
        raise ValueError(f"{unknown[0]} is not published; there are {', '.join(digests)}")
    placed = []
    for name in names or digests:
        target, file, checksum = models / f"{name}.safetensors", f"{name}.safetensors", f"sha256:{digests[name]}"
        if str(source).startswith(("http://", "https://")):
            target.parent.mkdir(parents=True, exist_ok=True)
            fetched = target.with_name(f".{file}")  # beside what may lie there: it is replaced by a whole one only
            download(f"{source}/{file}", fetched, checksum)
            fetched.replace(target)
        else:
            origin = Path(source) / file
            if not origin.is_file():
                raise FileNotFoundError(f"there is no {origin}")
            check_checksum(origin, checksum, origin)
            write_atomically(target, lambda temporary, origin=origin: temporary.write_bytes(origin.read_bytes()))
        placed.append(target)
    return placed


def _make(options):
    if not options.names:
        raise ValueError("--make needs the names of runs that were trained here")
    for name in options.names:
        path = make(name)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB; {path.with_suffix('.md').name}")


def make(name: str, folder: Path = FOLDER) -> Path:
    """Publish a row's run of the full profile: its file, its card and its digest in `folder`; returns the file.

    Measures what half precision changes, on the row's test images.  Raises ValueError for an unknown row,
    FileNotFoundError if there is no checkpoint.
    """
    from evaluation.checkpoints import load_trained
    from helper_functions import predict
    from runs import files_of, load_checkpoint
    from self_supervised.dataloader import build_loaders
    from self_supervised.settings import CLASSIFIER_EXPERIMENTS
    from supervised.settings import ALL_EXPERIMENTS, configure, find

    row = configure(find(name, {**ALL_EXPERIMENTS, **CLASSIFIER_EXPERIMENTS}), "full")
    path = files_of(row, "full").checkpoint
    run, saved = load_trained(str(path)), load_checkpoint(path)
    loader = build_loaders(row, progress=False).test
    precision = saved["result"]["precision"]  # measured as the result was
    before, labels = predict(run.folded().model, loader, precision=precision)
    published = halve(run.model)
    run.model.load_state_dict(published)  # back in float32, with what half precision has left of it
    after = predict(run.folded().model, loader, precision=precision)[0].argmax(dim=1)
    measured = {
        "test_accuracy": (after == labels).double().mean().item(),
        "changed": int((after != before.argmax(dim=1)).sum()),
    }
    about = {"identity": saved["identity"], "class_names": saved["class_names"], "measured": measured}
    target = folder / f"{name}.safetensors"
    write_published(target, published, about)
    digests = json.loads((folder / DIGESTS).read_text()) if (folder / DIGESTS).exists() else {}
    digests[name] = hashlib.sha256(target.read_bytes()).hexdigest()
    words = card(saved["result"], about, target.stat().st_size, digests[name])
    write_atomically(target.with_suffix(".md"), lambda temporary: temporary.write_text(words))
    listed = json.dumps(dict(sorted(digests.items())), indent=1) + "\n"
    write_atomically(folder / DIGESTS, lambda temporary: temporary.write_text(listed))
    return target


if __name__ == "__main__":
    sys.exit(main())
