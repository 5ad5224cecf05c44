"""What an image costs in an image cache of a thousand, ten thousand and a hundred thousand images.

    python -m benchmarks.image_cache_size

Reading: an epoch in a shuffled order, through the loader that training uses, of gray images of 64 pixels.  Caching:
files are decoded and resized into a new cache.  Where the cost of an image stays flat, the total cost is proportional
to the number of images.  The table is written to benchmarks/image_cache_size.csv.
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

from benchmarks import implementations
from data.image_cache import Scenes, load_scenes
from supervised.dataloader import SceneDataset, SeededShuffle

PIXELS, BATCH_SIZE, CLASSES = 64, 32, 10
READ, CACHED = (1_000, 10_000, 100_000), (1_000, 10_000)


def reading_seconds(count: int, folder: Path) -> float:
    """Seconds per image of an epoch over random bytes that are memory-mapped; they were just written, so in memory."""
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
    seconds = implementations.seconds_of(lambda: sum(len(labels) for _, labels in loader), 2)
    path.unlink()
    return seconds / count


def caching_seconds(count: int, folder: Path) -> float:
    """Seconds per image of caching JPEG files; the files are one picture under many names."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "one.jpg")
    for number in range(count):
        class_folder = folder / "scenes" / str(number % CLASSES)
        class_folder.mkdir(parents=True, exist_ok=True)
        os.link(folder / "one.jpg", class_folder / f"{number}.jpg")
    started = time.perf_counter()
    load_scenes(folder / "scenes", PIXELS, cache=folder / "cache", progress=False)
    return (time.perf_counter() - started) / count


def main() -> int:
    """Measure every size and write the table."""
    work = [("reading", reading_seconds, count) for count in READ]
    work += [("caching", caching_seconds, count) for count in CACHED]
    measured = []
    for what, measure, count in tqdm(work, desc="image_cache_size"):
        with tempfile.TemporaryDirectory() as folder:
            microseconds = 1e6 * measure(count, Path(folder))
        measured.append({"what": what, "images": count, "microseconds an image": microseconds})
    table = pd.DataFrame(measured).round(1).assign(machine=implementations.machine())
    table.to_csv(implementations.FOLDER / "image_cache_size.csv", index=False)
    print(table.drop(columns="machine").to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
