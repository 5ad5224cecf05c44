"""Every command of README.md, CONTRIBUTING.md and docs/ runs as it is written, in a copy of the project.

A block of commands is one test.  Its lines run one after the other in one shell environment.  Data sets, photographs
and ImageNet weights are provided: small, and of noise.  Python snippets run too.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.models import EfficientNet_B0_Weights

from data.files import CODE
from data.prepare import CLASS_NAMES, Request, prepare, read_manifest
from evaluation.checkpoints import read_released
from run_files import FORMAT
from tests.make_own_images import make
from tests.project_copy import copy_project

pytestmark = pytest.mark.slow
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(path.relative_to(CODE).as_posix() for path in CODE.glob("docs/*.md")))
SECONDS = 600  # at most, for a line

NOT_RUN = {  # a command, without its comment: why it does not run here
    "make install": "`make report` begins with it",
    "make report": ".ci/run runs it",
    "make report DATA=flowers PROFILE=full": "trains; .ci/run makes the same report in the quick profile",
    "make test": ".ci/run runs it",
    "make report PROFILE=full": "its results are of the photographs, and refused for those of noise",
    "make report DATA=FOLDER": "names the command above",
    "make slow": "this test is a part of it",
    "FAULTS=200 make slow": "this test is a part of it",
    "python train.py --study": "trains for days; tests/test_train.py runs a small one",
    "python train.py --study byol simclr --seeds 0 1 2": "trains for hours",
    "nvidia-cuda-mps-control -d": "needs a GPU",
    "echo quit | nvidia-cuda-mps-control": "needs a GPU",
    "python -m evaluation.demo": "serves until it is interrupted; tests/evaluation/pages/test_in_browser.py opens it",
    "python -m evaluation.novelty RUN --data DATA": "needs 100 images; tests/evaluation/test_novelty.py runs it",
    "python train.py": "names the script and is no command",
    "python train.py NAME": "stands for any experiment",
}
PLACEHOLDERS = {  # what stands for a user's own choice: what is chosen here
    "--source FOLDER_OR_ARCHIVE": "--source $SOURCES/15scene",
    "15scene --source FOLDER": "15scene --source $SOURCES/15scene",
    "15scene [--source FOLDER|ARCHIVE|URL]": "15scene --source $SOURCES/15scene",
    "nature --source FOLDER|ARCHIVE [--val 2000 --test 3000]": "nature --source $SOURCES/nature --val 6 --test 6",
    "nature --source FOLDER|ARCHIVE": "nature --source $SOURCES/nature",
    "cifar10 [--source FOLDER|ARCHIVE|URL]": "cifar10 --source $SOURCES/cifar10",
    "cifar10 --to": "cifar10 --source $SOURCES/cifar10 --to",  # not the public address: there is no network
    "NAME --data FOLDER": "supervised_1 --data flowers",
}
SHORTER = {  # what takes hours: options that make it short
    r"^python train\.py [a-z].*": "--profile quick --epochs 1",
    r"^(torchrun|accelerate) .*": "--data flowers --epochs 1",
    r"hyperparameter_search .*": "--profile quick --trials 3",
    r"evaluation\.model_inversion .*": "--steps 20",
}


class Block(NamedTuple):
    """Commands, or a snippet of Python, from a page."""

    page: str
    language: str  # "sh", "python", or "inline" for a command within a sentence
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:50]}"


def find_blocks() -> list[Block]:
    blocks, known = [], set(NOT_RUN)
    for page in PAGES:
        text = (CODE / page).read_text()
        for language, lines in re.findall(r"^```(sh|python)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            blocks.append(Block(page, language, lines))
            known |= {line.split("#")[0].strip() for line in lines.splitlines()}
        sentences = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for command in re.findall(r"`((?:python |make |pytest |[A-Z]+=)[^`]+)`", sentences):
            command = " ".join(command.split())
            if command not in known:
                blocks.append(Block(page, "inline", command))
                known.add(command)
    return blocks


BLOCKS = find_blocks()


def command_of(line: str) -> str:
    """A line as it runs here; "" if it does not."""
    command = re.sub(r"\s+#.*", "", line).strip()
    if command in NOT_RUN:
        return ""
    for placeholder, choice in PLACEHOLDERS.items():
        if placeholder in command:
            command = command.replace(placeholder, choice)
            break
    options = [more for pattern, more in SHORTER.items() if re.search(pattern, command)]
    return " ".join([command, *options])


# ----------------------------------------------------------------------------------------------------- what is provided


def write_sources(folder: Path):
    """The three data sets as they come from elsewhere, as tiny images of noise; those of a class are the same file."""
    places = {f"15scene/{image.class_name}/{image.file_name}" for image in read_manifest()}
    places |= {f"nature/{name}/{number}.jpg" for name in CLASS_NAMES["nature"] for number in range(40)}
    places |= {
        f"cifar10/{split}/{name}/{number}.png"
        for split in ("train", "test")
        for name in CLASS_NAMES["cifar10"]
        for number in range(12)
    }
    generator = np.random.default_rng(0)
    first = {}
    for place in sorted(places):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in first:
            shape = (32, 32) if place.startswith("15scene") else (32, 32, 3)
            Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(path)
            first[path.parent] = path
        else:
            os.link(first[path.parent], path)


def write_imagenet_weights(hub: Path):
    """Random weights where torch keeps those that it has downloaded."""
    torch.manual_seed(0)
    path = hub / "checkpoints" / Path(EfficientNet_B0_Weights.IMAGENET1K_V1.url).name
    path.parent.mkdir(parents=True)
    torch.save(models.efficientnet_b0().state_dict(), path)


def write_small_model(path: Path):
    """The released distilled_long on images of 64 pixels: a heat map takes seconds."""
    saved = read_released(CODE / "published/distilled_long.safetensors")
    saved["identity"]["settings"]["image_size"] = 64
    torch.save({"format": FORMAT, **saved}, path)


@pytest.fixture(scope="module")
def provided(tmp_path_factory) -> Path:
    """Sources, weights, a trained model and a prepared 15-Scene, made once."""
    folder = tmp_path_factory.mktemp("provided")
    write_sources(folder / "sources")
    write_imagenet_weights(folder / "torch/hub")
    write_small_model(folder / "distilled_long.pt")
    prepare(Request("15scene", folder / "sources/15scene", folder / "data/15scene", progress=False))
    return folder


@pytest.fixture
def shell(provided, tmp_path):
    """Run a line in the copy of the project; what it exports holds for the next."""
    folder = tmp_path / "project"
    environment = copy_project(folder, results=True)
    environment |= {"SOURCES": str(provided / "sources"), "TORCH_HOME": str(provided / "torch")}
    environment |= {"HOME": str(tmp_path / "home"), "OMP_WAIT_POLICY": "PASSIVE"}
    make(folder / "flowers")
    for path in list(folder.glob("flowers/train/*/*.jpg")):  # a batch of the study is 64 images
        shutil.copy(path, path.with_stem(f"copy_{path.stem}"))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 260), dtype=np.uint8)).save(folder / "photo.jpg")
    (folder / "photos").mkdir()
    for name in ("one", "two"):
        shutil.copy(folder / "photo.jpg", folder / f"photos/{name}.jpg")
    (folder / "models/full").mkdir(parents=True)
    shutil.copy(provided / "distilled_long.pt", folder / "models/full")

    def run(command: str) -> subprocess.CompletedProcess:
        for empty in folder.glob("flowers/*/*"):  # a class that a command has made: images belong there
            for number in range(0 if any(empty.iterdir()) else 12):
                shutil.copy(folder / "photo.jpg", empty / f"{number}.jpg")
        after = tmp_path / "environment"
        script = f"{command}\nstatus=$?; env -0 > '{after}'; exit $status"
        options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": SECONDS}
        done = subprocess.run(["bash", "-c", script], **options)
        environment.update(pair.split("=", 1) for pair in after.read_text().split("\0") if "=" in pair)
        return done

    return folder, run


def add_the_experiment_of_the_page(folder: Path):
    """CONTRIBUTING.md shows an entry of a table in a snippet, and commands that use it."""
    [entry] = [block.text for block in BLOCKS if block.page == "CONTRIBUTING.md" and block.text.startswith("replace(")]
    settings = folder / "supervised/settings.py"
    whole = settings.read_text()
    assert whole.count("\n_TABLE = (\n") == 1
    settings.write_text(whole.replace("\n_TABLE = (\n", f"\n_TABLE = (\n{entry.rstrip()},\n"))


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language != "python"], ids=lambda each: each.name)
def test_commands_run_as_they_are_written(block, shell, provided):
    folder, run = shell
    if "evaluation.publish" in block.text:
        shutil.rmtree(folder / "models")
    if "data.prepare 15scene" not in block.text:
        shutil.copytree(provided / "data/15scene", folder / "data/15scene", copy_function=os.link)
    if block.page == "CONTRIBUTING.md":
        add_the_experiment_of_the_page(folder)
    if "re_estimated.pth" in block.text:
        shutil.copy(next((provided / "torch/hub/checkpoints").iterdir()), folder / "re_estimated.pth")
    lines = [line for line in block.text.splitlines() if line.strip() and not line.startswith("#")]
    ran = 0
    for line in lines:
        command = command_of(line)
        if command:
            done = run(command)
            assert done.returncode == 0, f"{line}\n(run as: {command})\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            ran += 1
    print(f"{ran} of {len(lines)} lines")


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "python"], ids=lambda each: each.name)
def test_snippets_run_as_they_are_written(block, shell):
    if block.text.startswith("replace("):
        pytest.skip("is an entry of a table; the commands that use it run with it")
    folder, run = shell
    before = "import torch; batches = [(torch.randn(4, 3, 64, 64), None)]\n"  # a user's own, which a snippet names
    (folder / "snippet.py").write_text(before + block.text)
    done = run("python snippet.py")
    assert done.returncode == 0, done.stderr[-4000:]


def test_what_is_excepted_stands_in_a_page():
    text = " ".join((CODE / page).read_text() for page in PAGES)
    commands = [*NOT_RUN, *PLACEHOLDERS]
    assert [command for command in commands if command not in " ".join(text.split())] == []
