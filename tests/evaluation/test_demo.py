"""The demo: what it answers, what it refuses, and that only a page of its own on this machine may ask."""

import base64
import io
import json
import tempfile
import urllib.error
import urllib.request
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tornado.netutil import bind_sockets

from evaluation import demo
from evaluation.demo import ADDRESS, MOST_BYTES, Demo, overlay, read_upload
from evaluation.predict import Model, load
from evaluation.scorecam import contrast_cam, score_cam


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    """An image file of these bytes (H, W) or (H, W, 3)."""
    saved = io.BytesIO()
    Image.fromarray(pixels).save(saved, kind)
    return saved.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    """A gray picture of noise."""
    return np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8)


def picture(url: str) -> np.ndarray:
    """The bytes of a picture in a data URL."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


@pytest.fixture
def photograph() -> bytes:
    return encoded(noise(50, 70))


def ask(address: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, dict, bytes]:
    """Status, headers and body of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers or {}), timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_the_answer_is_what_predict_says_of_the_same_file(tiny_demo, photograph, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(photograph)
    answer = tiny_demo.answer(photograph)
    (line,) = load("tiny").predict([path]).itertuples(index=False)
    assert answer["classes"][0][0] == line[1] and answer["classes"][0][1] == pytest.approx(line.probability, abs=1e-4)
    assert sum(probability for _, probability in answer["classes"]) == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(picture(answer["picture"]), load("tiny").run.read([path])[0][0][0])
    assert answer["warning"] == "" and answer["nearest"] == [] and answer["map_title"] == line[1]


def test_the_exact_map_is_score_cam_and_why_not_is_the_contrast_of_two_classes(tiny_demo, photograph, tmp_path):
    run = tiny_demo.explained
    pixels = read_upload(photograph, run)
    first, second = (name for name, _ in tiny_demo.answer(photograph)["classes"][:2])
    labels = [run.class_names.index(name) for name in (first, second)]
    images, layer = run.normalized([pixels]), run.layer("8")
    plain = score_cam(run.model, images, layer, labels[:1]).maps[0]
    contrast = contrast_cam(run.model, images, layer, labels[:1], labels[1:]).maps[0]
    for why_not, expected in ((None, plain), (labels[1], contrast)):
        answer = tiny_demo.answer(photograph, why_not, "score_cam")
        np.testing.assert_array_equal(picture(answer["map"]), np.asarray(overlay(pixels, expected.numpy())))
    of_itself = tiny_demo.answer(photograph, labels[0])  # the predicted class: against the runner-up
    assert of_itself["map_title"] == tiny_demo.answer(photograph, labels[1])["map_title"] == f"{first} over {second}"


def test_the_most_similar_training_image_is_the_image_itself(scene_folder, tiny_model):
    model = load("tiny")
    found = demo.read_training(model.run, str(scene_folder))
    name = found.scenes.names[3]
    answer = Demo(model, found).answer((scene_folder / "train" / name).read_bytes())
    assert answer["nearest"][0]["name"] == name and answer["nearest"][0]["like"] == pytest.approx(1, abs=1e-3)
    assert len(answer["nearest"]) == demo.NEAREST
    likes = [each["like"] for each in answer["nearest"]]
    assert likes == sorted(likes, reverse=True)


@pytest.mark.parametrize(("distance", "warned"), [(0.99, False), (1.2, True)])
def test_an_image_unlike_all_training_images_gets_a_warning(tiny_model, photograph, distance, warned):
    novelty = SimpleNamespace(distances=lambda features: np.full(len(features), distance))
    answer = Demo(Model(load("tiny").run, novelty), None).answer(photograph)
    assert ("1.20" in answer["warning"]) == bool(answer["warning"]) == warned


def test_images_of_every_allowed_format_are_read_whatever_their_name(tiny_demo):
    pixels = np.full((40, 40, 3), 90, np.uint8)
    for kind in demo.FORMATS:
        assert tiny_demo.answer(encoded(pixels, kind.lower()))["classes"]


def of_many_pixels() -> bytes:
    """A small file whose header says that the image is 50,000,001 pixels wide."""
    file = encoded(np.zeros((1, 9), np.uint8))
    header = file[12:16] + (50_000_001).to_bytes(4, "big") + file[20:29]
    return file[:12] + header + zlib.crc32(header).to_bytes(4, "big") + file[33:]


@pytest.mark.parametrize(
    ("make", "named"),
    {
        "nothing": (bytes, "cannot be read"),
        "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read"),
        "another format": (lambda: encoded(np.zeros((40, 40), np.uint8), "ppm"), "cannot be read"),
        "truncated": (lambda: encoded(noise(40, 40))[:900], "cannot be read"),
        "many bytes": (lambda: bytes(MOST_BYTES + 1), "20 MB"),
        "many pixels": (of_many_pixels, "too many pixels"),
    }.values(),
)
def test_what_is_no_photograph_gets_a_sentence_without_a_path(tiny_demo, make, named):
    with pytest.raises(ValueError) as error:
        tiny_demo.answer(make())
    assert named in str(error.value) and tempfile.gettempdir() not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_page_elsewhere_cannot_ask_and_other_names_of_this_machine_are_refused(server, photograph):
    status, headers, page = ask(server)
    assert status == 200 and b"tiny" in page and "default-src 'none'" in headers["Content-Security-Policy"]
    assert ask(f"{server}/answer", photograph)[0] == 403
    assert ask(f"{server}/answer", photograph, {"X-Demo": "1", "Host": "evil.example"})[0] == 403
    assert ask(server, headers={"Host": "evil.example"})[0] == 403
    assert ask(server.replace(ADDRESS, "localhost"))[0] == 200


def test_the_server_answers_with_json_and_a_mistake_with_a_sentence(server, photograph):
    own = {"X-Demo": "1"}
    status, _, body = ask(f"{server}/answer", photograph, own)
    assert status == 200 and json.loads(body)["classes"]
    for query, upload in (
        ("", b"no image"),
        ("?why_not=sea", photograph),
        ("?why_not=3", photograph),
        ("?method=magic", photograph),
    ):
        status, _, body = ask(f"{server}/answer{query}", upload, own)
        assert status == 400 and set(json.loads(body)) == {"error"}


def test_a_taken_port_and_training_images_of_other_classes_are_refused(scene_folder, tiny_model, capsys):
    with bind_sockets(0, ADDRESS)[0] as taken:
        assert demo.main(["--model", "tiny", "--port", str(taken.getsockname()[1])]) == 2
    assert demo.main(["--model", "tiny", "--port", "70000"]) == 2
    (scene_folder / "train" / "dark").rename(scene_folder / "train" / "dim")
    (scene_folder / "val" / "dark").rename(scene_folder / "val" / "dim")
    (scene_folder / "test" / "dark").rename(scene_folder / "test" / "dim")
    assert demo.main(["--model", "tiny", "--nearest", str(scene_folder)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("error")]) == 3
