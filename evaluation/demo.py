"""A page to try a trained network on photographs: `python -m evaluation.demo [--model RUN] [--nearest DATA]`.

Drop or pick a photograph, and see its most probable classes, where the network finds them, what speaks against another
class, and the training images that are most alike.  The page is served to this machine alone, and what is dropped is
not saved.

The server is Tornado, which Jupyter brings along.  Gradio would need Pillow below 13, which decodes some images to
other bytes than the version that our results were made with.
"""

import argparse
import asyncio
import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from socket import socket

import matplotlib
import numpy as np
import torch
from PIL import Image
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from data.image_cache import Scenes, decode_image, load_splits, open_image
from data.prepare import locate
from evaluation.checkpoints import TrainedRun, refuse_other_training_images
from evaluation.demo_page import SCRIPT, demo_page
from evaluation.embed import add_model_option
from evaluation.novelty import mean_and_std, unit
from evaluation.plots import readable
from evaluation.predict import METHOD, TOP, Model, class_probabilities, heat_map_of, load, rival_of
from evaluation.probes import features_of_scenes
from evaluation.web_page import data_url, picture_of
from runs import run_command

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # that an upload may have, whatever its name
MOST_BYTES = 20_000_000  # of an upload
MOST_PIXELS = 50_000_000  # likewise
NEAREST = 6  # training images shown
ADDRESS = "127.0.0.1"  # nobody else can connect
HOSTS = ("127.0.0.1", "localhost")  # that a browser may call it


@dataclass(frozen=True)
class TrainingImages:
    """The training images of a network, and the directions of their standardized features, of length 1."""

    scenes: Scenes
    mean: np.ndarray  # (D,), of the features
    std: np.ndarray  # (D,)
    directions: np.ndarray  # (N, D)

    def nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the images most like one of these features (1, D), and their cosine similarity, -1..1."""
        similarity = self.directions @ unit((features - self.mean) / self.std)[0]
        found = similarity.argsort()[::-1][:NEAREST]
        return found, similarity[found]


def read_training(run: TrainedRun, data: str) -> TrainingImages:
    """The training images of a data set.  Raises ValueError if the run was trained on others."""
    train = load_splits(locate(data), run.image_size, run.resize, skip_bad_images=True)["train"]
    refuse_other_training_images(run, train, data, "--nearest")
    features, _ = features_of_scenes(run, {"train": train})["train"]
    mean, std = mean_and_std(features)
    return TrainingImages(train, mean, std, unit((features - mean) / std))


class Demo:
    """What the page asks for."""

    def __init__(self, model: Model, training: TrainingImages | None):
        """Use a network, and show its training images if they are known."""
        self.model, self.training = model, training
        self.folded = model.run.folded()
        self.explained = model.run.ready_to_explain([model.run.last_stage])

    def answer(self, upload: bytes, why_not: int | None = None, method: str = METHOD) -> dict:
        """What is known of an uploaded photograph, ready for JSON; pictures are data URLs.

        `why_not` is the number of a class, or None; `method` is one of `predict.METHODS`.  Raises ValueError,
        with a sentence for the user, for an upload that is too large or no image, and for a class that is not there.
        """
        began = time.perf_counter()
        if why_not is not None and not 0 <= why_not < len(self.model.class_names):
            raise ValueError(f"there is no class number {why_not}")
        pixels = read_upload(upload, self.model.run)
        image = self.model.run.normalized([pixels])
        with torch.inference_mode():
            features = self.folded.model.pooled_features(image)
        probabilities = class_probabilities(self.folded.model, features)[0]
        order = probabilities.argsort()[::-1]
        target, rival = int(order[0]), rival_of(probabilities, why_not)
        names = [readable(name) for name in self.model.class_names]
        return {
            "picture": data_url(picture_of(pixels)),
            "map": self._heat_map(pixels, image, target, rival, method),
            "map_title": names[target] if rival is None else f"{names[target]} over {names[rival]}",
            "classes": [[names[label], float(probabilities[label])] for label in order[:TOP]],
            "warning": self._warning(features.numpy()),
            "nearest": self._nearest(features.numpy()),
            "seconds": time.perf_counter() - began,
        }

    def _heat_map(self, pixels: np.ndarray, image: torch.Tensor, target: int, rival: int | None, method: str) -> str:
        heat_map = heat_map_of(self.explained, image, target, rival, method=method)
        return data_url(overlay(pixels, heat_map.numpy()))

    def _warning(self, features: np.ndarray) -> str:
        if self.model.novelty is None:
            return ""
        distance = float(self.model.novelty.distances(features)[0])
        return f"This looks like no scene of the training set ({distance:.2f} times the threshold)." * (distance > 1)

    def _nearest(self, features: np.ndarray) -> list[dict]:
        if self.training is None:
            return []
        scenes = self.training.scenes
        return [
            {
                "picture": data_url(picture_of(scenes.images[number])),
                "name": readable(scenes.names[number]),
                "like": float(like),
            }
            for number, like in zip(*self.training.nearest(features), strict=True)
        ]


def read_upload(upload: bytes, run: TrainedRun) -> np.ndarray:
    """An uploaded image as a run sees it, uint8 (1 or 3, S, S).

    Raises ValueError, without a path, for more bytes or pixels than are allowed, and for what is not an image.
    """
    if len(upload) > MOST_BYTES:
        raise ValueError(f"the file has {len(upload) / 1e6:.0f} MB; at most {MOST_BYTES / 1e6:.0f} MB are read")
    try:
        with open_image(io.BytesIO(upload), FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:  # of a file of one's own more are read
                raise Image.DecompressionBombError(f"{image.size}")
            return decode_image(image, run.image_size, run.resize)
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image has too many pixels; at most {MOST_PIXELS / 1e6:.0f} million are read") from error
    except Exception as error:  # of many kinds, as in `decode`
        raise ValueError(f"this cannot be read as an image; {', '.join(FORMATS)} are read") from error


def overlay(pixels: np.ndarray, heat_map: np.ndarray) -> Image.Image:
    """A heat map (S, S) in 0..1 over the gray image, uint8 (1 or 3, S, S); an empty map leaves the image as it is."""
    gray = np.repeat(pixels.mean(axis=0)[:, :, None], 3, axis=2)
    if heat_map.max() > 0:
        gray = (gray + 255 * matplotlib.colormaps["jet"](heat_map)[:, :, :3]) / 2
    return Image.fromarray(gray.round().astype(np.uint8))


# ------------------------------------------------------------------------------------------------------------ server


class _Handler(RequestHandler):
    def prepare(self):
        """Refuse other names of this machine: a page elsewhere could have its name point here."""
        if self.request.host.rpartition(":")[0] not in HOSTS and self.request.host not in HOSTS:
            raise HTTPError(403)

    def set_default_headers(self):
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.set_header(
            "Content-Security-Policy",
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
            "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        )


class _Page(_Handler):
    def initialize(self, text: str, kind: str):
        self.text, self.kind = text, kind

    def get(self):
        self.set_header("Content-Type", f"{self.kind}; charset=utf-8")
        self.write(self.text)


class _Answer(_Handler):
    def initialize(self, demo: Demo, worker: ThreadPoolExecutor):
        self.demo, self.worker, self.waiting = demo, worker, None

    async def post(self):
        # A page elsewhere cannot send this header: the browser would ask for leave first, and gets none.
        if self.request.headers.get("X-Demo") != "1":
            raise HTTPError(403)
        why_not, method = (self.get_query_argument(name, "", strip=False) for name in ("why_not", "method"))
        try:
            number = int(why_not) if why_not else None  # not a name, which can be bytes that a browser does not send
            self.waiting = self.worker.submit(self.demo.answer, self.request.body, number, method or METHOD)
            self.write(await asyncio.wrap_future(self.waiting))
        except asyncio.CancelledError:  # nobody waits for it
            return
        except (ValueError, FloatingPointError, MemoryError) as error:
            self.set_status(400)
            self.write({"error": str(error)})

    def on_connection_close(self):
        """Another photograph has been dropped, or the page is closed: do not begin with this one."""
        if self.waiting is not None:
            self.waiting.cancel()


def application(demo: Demo, worker: ThreadPoolExecutor) -> Application:
    """The pages of the demo; `worker` computes, one photograph at a time."""
    page = demo_page(demo.model.run.name, demo.model.class_names, MOST_BYTES)
    return Application(
        [
            ("/", _Page, {"text": page, "kind": "text/html"}),
            ("/demo.js", _Page, {"text": SCRIPT, "kind": "text/javascript"}),
            ("/answer", _Answer, {"demo": demo, "worker": worker}),
        ]
    )


def listen(port: int) -> list[socket]:
    """Sockets of this machine that nobody else can connect to.  Port 0 is any free one.

    Raises ValueError for a port that is taken or not allowed.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port is {port}; it must be 0 to {2**16 - 1}")
    try:
        return bind_sockets(port, ADDRESS)
    except OSError as error:
        raise ValueError(f"--port {port} cannot be used ({error}); --port 0 takes a free one") from error


def serve(demo: Demo, sockets: list[socket]):
    """Serve the demo until it is interrupted."""
    worker = ThreadPoolExecutor(max_workers=1)
    server = HTTPServer(application(demo, worker), max_body_size=MOST_BYTES)
    server.add_sockets(sockets)
    print(f"http://{ADDRESS}:{sockets[0].getsockname()[1]}/ shows the demo; Ctrl-C ends it", flush=True)
    try:
        IOLoop.current().start()
    except KeyboardInterrupt:
        worker.shutdown(cancel_futures=True)


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.demo", description="A page to try a trained network on photographs"
    )
    add_model_option(parser)
    parser.add_argument("--nearest", metavar="DATA", help="show the most similar images of what it was trained on")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one (default: 8765)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _demo(options))


def _demo(options: argparse.Namespace):
    sockets = listen(options.port)  # before anything is computed
    model = load(options.model)
    training = None if options.nearest is None else read_training(model.run, options.nearest)
    serve(Demo(model, training), sockets)


if __name__ == "__main__":
    sys.exit(main())
