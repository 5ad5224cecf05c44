"""A trained run where the commands look for it, a running demo, and the committed results."""

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from data.files import CODE
from evaluation.demo import ADDRESS, MOST_BYTES, Demo, application
from evaluation.predict import load
from evaluation.results import comparisons, read_profile


@pytest.fixture(scope="session")
def study() -> dict[str, dict]:
    """The committed results, which take seconds to read; leave them as they are."""
    return read_profile(CODE / "results" / "full")


@pytest.fixture(scope="session")
def compared(study) -> pd.DataFrame:
    """The comparisons of the committed results; leave them as they are."""
    return comparisons(study)


@pytest.fixture
def tiny_model(root, tiny_run) -> Path:
    """The checkpoint of a run named tiny, in the quick profile's folder of the test's own root."""
    path = root / "models" / "quick" / "tiny.pt"
    path.parent.mkdir(parents=True)
    shutil.copy(tiny_run, path)
    return path


@pytest.fixture
def tiny_demo(tiny_model) -> Demo:
    return Demo(load("tiny"), None)


@pytest.fixture
def server(tiny_demo):
    """The address of a running demo."""
    started, stop, loops, sockets = threading.Event(), asyncio.Event(), [], bind_sockets(0, ADDRESS)

    async def run():
        with ThreadPoolExecutor(1) as worker:
            http = HTTPServer(application(tiny_demo, worker), max_body_size=MOST_BYTES)
            http.add_sockets(sockets)
            loops.append(asyncio.get_running_loop())
            started.set()
            await stop.wait()
            http.stop()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert started.wait(10)
    yield f"http://{ADDRESS}:{sockets[0].getsockname()[1]}"
    loops[0].call_soon_threadsafe(stop.set)
    thread.join(10)
