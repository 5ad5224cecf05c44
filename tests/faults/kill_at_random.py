"""Kill a job with SIGKILL at random moments, start it again, and compare its end with that of one never disturbed.

    python -m tests.faults.kill_at_random JOB MOMENTS SEED

Prints one line of JSON: how often it was killed in the middle of its work, and what differs at the end.  Jobs are
children of this process (fork), so each begins with everything imported, and a kill falls into the work.
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
from PIL import Image

from data.image_cache import load_splits
from data.prepare import CLASS_NAMES, Request, prepare
from evaluation.explain import describe_test_images, features_of, open_folder
from hyperparameter_search import Search, open_study, read_trials, work
from run_files import load_checkpoint
from supervised.models import SceneClassifier
from tests import killed_run

KILLS_PER_JOB = 3  # before it is left to end


def write_images(folder: Path, classes, count: int):
    """Small images of noise, the same every time."""
    generator = np.random.default_rng(0)
    for class_name in classes:
        (folder / class_name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / class_name / f"{number:03d}.jpg")


def digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 of each file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


class Training:
    """Six epochs with everything that makes resuming hard: shuffling, dropout, BatchNorm, a schedule, EMA."""

    def set_up(self, folder: Path):
        """Scenes of three classes in three splits."""
        for split, count in (("train", 12), ("val", 6), ("test", 8)):
            write_images(folder / "scenes" / split, ("dark", "light", "striped"), count)

    def work(self, folder: Path):
        """Train, or continue."""
        killed_run.main(str(folder / "scenes"))

    def end(self, folder: Path) -> dict:
        """History and weights, bit for bit, and which files there are."""
        saved = load_checkpoint(folder / "models/full/scenes/killed.pt")
        weights = {name: tensor.numpy().tobytes().hex() for name, tensor in saved["model"].items()}
        files = {part: len(digests(folder / part)) for part in ("models", "results", "data")}
        return {"history": {**saved["history"], "seconds": None}, "weights": weights, "files": files}


class Preparing:
    """A data set is prepared from a folder, and its images are cached."""

    def set_up(self, folder: Path):
        """A source without splits."""
        write_images(folder / "source", CLASS_NAMES["nature"], 40)

    def work(self, folder: Path):
        """Prepare and decode."""
        prepared = prepare(Request("nature", folder / "source", progress=False))
        load_splits(prepared, 32, progress=False)

    def end(self, folder: Path) -> dict:
        """Every file of the data set, the cached images, and all that lies beside them."""
        splits = load_splits(folder / "data/nature", 32, progress=False)
        images = {name: hashlib.sha256(np.asarray(each.images).tobytes()).hexdigest() for name, each in splits.items()}
        beside = sorted(path.name for path in (folder / "data").iterdir())
        cached = sorted(path.suffix for path in (folder / "data/cache").iterdir())
        return {"files": digests(folder / "data/nature"), "images": images, "beside": beside, "cached": cached}


class Searching:
    """A search of twenty trials on a toy objective."""

    def set_up(self, folder: Path):
        """Nothing is needed."""

    def work(self, folder: Path):
        """Run what trials are left."""

        def objective(trial):
            time.sleep(0.02)
            return abs(trial.params["learning_rate"] - 1e-3) + trial.params["batch_size"] / 100

        search = Search(folder / "toy.db", {"settings": {"name": "toy"}}, sampler="grid")
        work(search, open_study(search, 20), objective, progress=False)

    def end(self, folder: Path) -> dict:
        """What was tried and found, in whatever order, and which files there are."""
        table = read_trials(folder / "toy.csv")
        trials = sorted(table[["learning_rate", "batch_size", "value"]].to_numpy().tolist())
        return {"trials": trials, "files": sorted(digests(folder))}


class Caching:
    """The features of every stage of a frozen network are cached, and tables are written from them."""

    def set_up(self, folder: Path):
        """Nothing is needed."""

    def work(self, folder: Path):
        """Compute and write what is missing."""
        torch.manual_seed(0)
        model = SceneClassifier(3, freeze_features=True).eval()
        images, labels = torch.randn(96, 3, 32, 32), torch.arange(96) % 3
        loader = [(images[start : start + 16], labels[start : start + 16]) for start in range(0, 96, 16)]
        own = open_folder(folder / "explanations", "abc", "images")
        features, labels = features_of(model, loader, "abc", folder / "run.features.npz")
        describe_test_images(model, features, labels, own)

    def end(self, folder: Path) -> dict:
        """All arrays and tables, and which files there are."""
        arrays = {}
        for path in folder.rglob("*.npz"):
            with np.load(path) as saved:
                arrays |= {f"{path.name}/{name}": hashlib.sha256(saved[name].tobytes()).hexdigest() for name in saved}
        return {"arrays": arrays, "tables": digests(folder, "*.csv"), "files": sorted(digests(folder))}


JOBS = {"training": Training, "preparing": Preparing, "searching": Searching, "caching": Caching}


def start(job, folder: Path) -> int:
    """The job in a child process; its number."""
    child = os.fork()
    if child:
        return child
    os.environ["SCENES_ROOT"] = str(folder)
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


def end_of(job, folder: Path) -> dict:
    """What the job left, as JSON has it."""
    os.environ["SCENES_ROOT"] = str(folder)
    return json.loads(json.dumps(job.end(folder)))


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
        expected = end_of(job, undisturbed)
        while killed < moments:
            folder = Path(tempfile.mkdtemp(dir=temporary)) / "place"
            folder.mkdir()
            job.set_up(folder)
            for _ in range(min(KILLS_PER_JOB, moments - killed)):
                child = start(job, folder)
                time.sleep(generator.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                killed += os.WIFSIGNALED(status)  # else it was faster
            run_to_its_end(job, folder)
            found = end_of(job, folder)
            differing += [key for key in expected if found[key] != expected[key]]
    print(json.dumps({"job": name, "killed": killed, "differing": differing}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
