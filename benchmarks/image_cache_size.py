"""What an image costs, in a store of a thousand, ten thousand and a hundred thousand.

    python -m benchmarks.store_size

Reading: an epoch in a shuffled order, through the loader that training uses, of grey images of 64 pixels.  Building:
files decoded and resized into a new store.  A cost that stays flat is one that grows with the number of images and no
faster.  The table is written to benchmarks/store_size.csv.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks import ways
from data.image_cache import Scenes, load_scenes
from supervised.dataloader import SceneDataset, SeededShuffle

PIXELS, BATCH_SIZE, CLASSES = 64, 32, 10
READ, BUILT = (1_000, 10_000, 100_000), (1_000, 10_000)


def reading_seconds(count: int, folder: Path) -> float:
    """Seconds an image of an epoch, over a store of random bytes that is mapped; read once before, to be in memory."""
    generator = np.random.default_rng(0)
    path = folder / "images.npy"
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 1, PIXELS, PIXELS))
    for start in range(0, count, 1_000):
        images[start : start + 1_000] = generator.integers(0, 256, (1_000, 1, PIXELS, PIXELS), dtype=np.uint8)
    images.flush()
    names = tuple(f"{number}.jpg" for number in range(count))
    class_names = tuple(map(str, range(CLASSES)))
    scenes = Scenes(np.load(path, mmap_mode="r"), np.arange(count) % CLASSES, names, class_names, fingerprint="0")
    loader = DataLoader(
        SceneDataset(scenes, "imagenet"), BATCH_SIZE, sampler=SeededShuffle(count, 0), collate_fn=lambda batch: batch
    )
    seconds = ways.seconds_of(lambda: sum(len(labels) for _, labels in loader), 2)
    path.unlink()
    return seconds / count


def building_seconds(count: int, folder: Path) -> float:
    """Seconds an image of building a store from JPEG files; the files are one picture under many names."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "one.jpg")
    for number in range(count):
        class_folder = folder / "scenes" / str(number % CLASSES)
        class_folder.mkdir(parents=True, exist_ok=True)
        os.link(folder / "one.jpg", class_folder / f"{number}.jpg")
    started = time.perf_counter()
    load_scenes(folder / "scenes", PIXELS, stores=folder / "stores", progress=False)
    return (time.perf_counter() - started) / count


def main() -> int:
    """Measure every size and write the table."""
    rows = []
    work = [("reading", reading_seconds, count) for count in READ]
    work += [("building", building_seconds, count) for count in BUILT]
    for what, measure, count in tqdm(work, desc="store_size"):
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"what": what, "images": count, "microseconds an image": 1e6 * measure(count, Path(folder))})
    table = pd.DataFrame(rows).round(1).assign(machine=ways.machine())
    table.to_csv(ways.FOLDER / "store_size.csv", index=False)
    print(table.drop(columns="machine").to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
