"""Kill a job with SIGKILL at random moments, start it again, and compare its end with that of one never disturbed.

    python tests/faults/kill_at_random.py JOB MOMENTS SEED

Prints one line of JSON: how often it was killed in the middle of its work, and what differs at the end.
Jobs are children of this process (fork), so that each begins with everything imported: a kill falls into the work.
"""

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from optuna.trial import TrialState
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import killed_run

from data import scenes
from data.prepare import CLASS_NAMES, prepare
from evaluation.explain import describe_test_images, features_of, open_folder
from hyperparameter_search import SPACES, open_study, work, write_table
from runs import load_checkpoint
from supervised.models import SceneClassifier

KILLS_A_JOB = 3  # before it is left to end


def draw_images(folder: Path, classes, count: int):
    """Small images of noise, the same every time."""
    generator = np.random.default_rng(0)
    for class_name in classes:
        (folder / class_name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
                folder / class_name / f"{number:03d}.jpg"
            )


def digest_of_files(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 of each file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


class Training:
    """Six epochs with everything that makes resuming hard: shuffling, dropout, BatchNorm, a schedule, averages."""

    def set_up(self, folder: Path):
        """Scenes of three classes in three splits."""
        for split, count in (("train", 12), ("val", 6), ("test", 8)):
            draw_images(folder / "scenes" / split, ("dark", "light", "striped"), count)

    def work(self, folder: Path):
        """Train, or go on."""
        killed_run.main(folder)

    def end(self, folder: Path) -> dict:
        """History and weights, bit for bit, and which files there are."""
        saved = load_checkpoint(folder / "models/full/row.pt")
        weights = {name: tensor.numpy().tobytes().hex() for name, tensor in saved["model"].items()}
        files = sorted(digest_of_files(folder / "models")) + sorted(digest_of_files(folder / "results"))
        return {"history": {**saved["history"], "seconds": None}, "weights": weights, "files": files}


class Preparing:
    """A data set prepared from a folder, and the store of its decoded images built."""

    def set_up(self, folder: Path):
        """A source without splits."""
        draw_images(folder / "source", CLASS_NAMES["nature"], 40)

    def work(self, folder: Path):
        """Prepare and decode."""
        prepare("nature", folder / "source", folder / "data" / "nature", progress=False)
        scenes.load_splits(folder / "data" / "nature", 32, stores=folder / "stores", progress=False)

    def end(self, folder: Path) -> dict:
        """Every file of the data set, the decoded images, and how many files the stores are."""
        splits = scenes.load_splits(folder / "data" / "nature", 32, stores=folder / "stores", progress=False)
        return {
            "files": digest_of_files(folder / "data"),
            "images": {
                name: hashlib.sha256(np.asarray(split.images).tobytes()).hexdigest() for name, split in splits.items()
            },
            "names": {name: split.names for name, split in splits.items()},
            "stores": sorted(path.suffix for path in (folder / "stores").iterdir()),
        }


class Searching:
    """A search of twenty trials on a toy objective, in a journal file."""

    def set_up(self, folder: Path):
        """Nothing is needed."""

    def work(self, folder: Path):
        """Run what trials are left."""

        def objective(trial):
            time.sleep(0.01)
            return abs(trial.params["learning_rate"] - 1e-3) + trial.params["batch_size"] / 100

        storage, space = str(folder / "toy.journal"), SPACES["report"]
        study = open_study(storage, {"settings": {"name": "toy"}}, space, 20, "grid")
        work(study, storage, objective, space, progress=False)
        write_table(study, storage)

    def end(self, folder: Path) -> dict:
        """What was tried and found, in whatever order, and which files there are."""
        study = open_study(str(folder / "toy.journal"), {"settings": {"name": "toy"}}, SPACES["report"], 20, "grid")
        finished = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
        numbers = [trial.number for trial in finished]
        return {
            "trials": sorted([*trial.params.values(), trial.value] for trial in finished),
            "doubled": len(numbers) - len(set(numbers)),
            "files": sorted(path.name for path in folder.iterdir() if path.is_file()),
        }


class CachingFeatures:
    """The features of every stage of a frozen network, kept in a file, and what is written from them."""

    def set_up(self, folder: Path):
        """Nothing is needed."""

    def work(self, folder: Path):
        """Compute and write what is lacking."""
        torch.manual_seed(0)
        model = SceneClassifier(3, freeze_features=True).eval()
        images, labels = torch.randn(96, 3, 32, 32), torch.arange(96) % 3
        loader = [(images[start : start + 16], labels[start : start + 16]) for start in range(0, 96, 16)]
        own = open_folder(folder / "explanations", "abc")
        features, labels = features_of(model, loader, "abc", folder / "run.features.npz")
        describe_test_images(model, features, labels, own)

    def end(self, folder: Path) -> dict:
        """All arrays and tables, and which files there are."""
        arrays = {}
        for path in folder.rglob("*.npz"):
            with np.load(path) as saved:
                arrays |= {f"{path.name}/{name}": hashlib.sha256(saved[name].tobytes()).hexdigest() for name in saved}
        return {"arrays": arrays, "tables": digest_of_files(folder, "*.csv"), "files": sorted(digest_of_files(folder))}


JOBS = {"training": Training, "preparing": Preparing, "searching": Searching, "caching": CachingFeatures}


def start(job, folder: Path) -> int:
    """The job in a child process; its number."""
    child = os.fork()
    if child:
        return child
    try:
        job.work(folder)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def run_to_its_end(job, folder: Path) -> float:
    """Seconds that it took; raises RuntimeError if it fails."""
    started = time.perf_counter()
    _, status = os.waitpid(start(job, folder), 0)
    if status != 0:
        raise RuntimeError(f"a job that was started again failed in {folder}")
    return time.perf_counter() - started


def main(name: str, moments: int, seed: int):
    """Kill the job at so many moments, in new folders."""
    torch.set_num_threads(1)  # a forked child must not find another thread holding a lock
    generator, job = random.Random(seed), JOBS[name]()
    killed, differing = 0, []
    with tempfile.TemporaryDirectory() as temporary:
        undisturbed = Path(temporary) / "undisturbed" / "place"
        undisturbed.mkdir(parents=True)
        job.set_up(undisturbed)
        seconds = run_to_its_end(job, undisturbed)
        expected = json.loads(json.dumps(job.end(undisturbed)))
        while killed < moments:
            folder = Path(tempfile.mkdtemp(dir=temporary)) / "place"
            folder.mkdir()
            job.set_up(folder)
            for _ in range(min(KILLS_A_JOB, moments - killed)):
                child = start(job, folder)
                time.sleep(generator.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                killed += os.WIFSIGNALED(status)  # else it was faster
            run_to_its_end(job, folder)
            found = json.loads(json.dumps(job.end(folder)))
            differing += [key for key in expected if found[key] != expected[key]]
    print(json.dumps({"job": name, "killed": killed, "differing": differing}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
