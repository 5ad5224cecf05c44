"""Class probabilities, and the command that prints, lists and draws them."""

import os
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from evaluation import embed, predict, publish
from evaluation.checkpoints import TrainedRun, load_trained
from evaluation.novelty import digest_of_features, fit_novelty
from evaluation.predict import Model, class_probabilities, load
from evaluation.recipro_cam import recipro_cam
from evaluation.scorecam import ScoreCam, contrast_cam, score_cam


@pytest.mark.parametrize("batch_size", [4, 10])
def test_probabilities_of_a_loader_are_those_of_its_images_in_order(small_network, batch_size):
    images, labels = torch.rand(10, 3, 16, 16), torch.arange(10) % 3
    small_network(images)  # moves BatchNorm's statistics, so that train and eval mode differ
    loader = DataLoader(TensorDataset(images, labels), batch_size)
    probabilities = class_probabilities(small_network, loader)
    assert small_network.training
    small_network.eval()
    with torch.inference_mode():
        expected = small_network(images).softmax(dim=1)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(class_probabilities(small_network, images), probabilities, atol=1e-6)


@pytest.fixture
def photos(tmp_path):
    """Five images of noise, some of them deep in a folder."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / "photos" / name for name in ("b/deep/3.jpg", "a photo.jpg", "b/2.png", "c.PNG", "b/1.png")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos/notes.txt").write_text("hello")
    return sorted(paths)


def probabilities_of(run, path):
    with torch.inference_mode():
        return run.model(run.read([Path(path)])[1]).softmax(dim=1)[0]


def test_the_command_prints_the_probabilities_of_the_model_and_draws_only_on_request(
    tiny_model, tmp_path, photos, capsys
):
    files = [str(path) for path in photos[:2]]
    out = tmp_path / "out"
    assert predict.main([*files, "--model", "tiny"]) == 0
    printed, run = capsys.readouterr().out.splitlines(), load_trained("tiny")
    for file, line in zip(files, printed, strict=True):
        probabilities = probabilities_of(run, file)
        first, second = probabilities.argsort(descending=True)[:2]
        expected = f"{run.class_names[first]} {probabilities[first]:.3f}, {run.class_names[second]}"
        assert line.startswith(f"{file}: {expected} {probabilities[second]:.3f}")
    assert not out.exists() and not (tmp_path / "predictions").exists()
    assert predict.main([*files, "--model", "tiny", "--map", "--output", str(out)]) == 0
    assert len(list(out.iterdir())) == 2
    for path in out.iterdir():
        assert np.asarray(Image.open(path)).std() > 10


def test_a_folder_is_searched_at_any_depth_and_the_table_has_a_line_for_each_image(
    tiny_model, tmp_path, photos, monkeypatch
):
    monkeypatch.setattr(embed, "BATCH", 2)
    target = tmp_path / "new" / "table.csv"
    assert predict.main([str(tmp_path / "photos"), "--model", "tiny", "--csv", str(target)]) == 0
    table, run = pd.read_csv(target), load_trained("tiny")
    assert sorted(table["file"]) == sorted(map(str, photos))
    for line in table.itertuples(index=False):
        probabilities = probabilities_of(run, line.file)
        assert line[1] == run.class_names[probabilities.argmax()]
        assert line.probability == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert line.runner_up != line[1] and line.runner_up_probability <= line.probability
    assert table["unlike_training"].isna().all()  # nothing is known of the training images


def test_bad_images_end_the_command_or_are_left_out(tiny_model, tmp_path, photos, capsys):
    photos[0].write_text("no image")
    arguments = [str(tmp_path / "photos"), "--model", "tiny", "--csv", str(tmp_path / "table.csv")]
    assert predict.main(arguments) == 2
    assert photos[0].name in capsys.readouterr().err and not (tmp_path / "table.csv").exists()
    assert predict.main([*arguments, "--skip-bad-images"]) == 0
    assert sorted(pd.read_csv(tmp_path / "table.csv")["file"]) == sorted(map(str, photos[1:]))


@pytest.mark.parametrize(("end", "code"), [("bad", 2), ("interrupt", 130)])
def test_the_table_has_what_was_finished_before_the_end(end, code, tiny_model, tmp_path, photos, monkeypatch, capsys):
    monkeypatch.setattr(embed, "BATCH", 2)
    table_of, calls = Model._lines, iter(range(9))

    def interrupted(*given):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return table_of(*given)

    if end == "bad":
        photos[4].write_text("no image")
    else:
        monkeypatch.setattr(Model, "_lines", interrupted)
    target, unfinished = tmp_path / "table.csv", tmp_path / "table.unfinished.csv"
    assert predict.main([*map(str, photos), "--model", "tiny", "--csv", str(target)]) == code
    assert pd.read_csv(unfinished)["file"].tolist() == list(map(str, photos[:4])) and not target.exists()
    captured = capsys.readouterr()
    assert f"{unfinished}: 4 of 5 images" in captured.out and "same command continues" not in captured.err


def test_a_call_that_ends_early_leaves_the_table_of_an_earlier_one(tiny_model, tmp_path, photos, monkeypatch, capsys):
    monkeypatch.setattr(embed, "BATCH", 2)
    target = tmp_path / "table.csv"
    arguments = [str(tmp_path / "photos"), "--model", "tiny", "--csv", str(target)]
    assert predict.main(arguments) == 0
    complete, draw = target.read_bytes(), iter(range(9))
    with monkeypatch.context() as patch:
        patch.setattr(
            predict, "_sentence", lambda *_: "" if next(draw) < 3 else (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert predict.main(arguments) == 130
    assert target.read_bytes() == complete
    assert len(pd.read_csv(tmp_path / "table.unfinished.csv")) == 4
    assert predict.main([*arguments, "--skip-bad-images"]) == 0
    assert target.read_bytes() == complete


def test_figures_of_an_earlier_call_stay(tiny_model, tmp_path, photos):
    folder = tmp_path / "out"
    arguments = [str(photos[0]), "--model", "tiny", "--layer", "2", "--output", str(folder)]
    assert predict.main([*arguments, "--map"]) == 0
    (first,) = folder.iterdir()
    before = first.read_bytes()
    assert predict.main([*arguments, "--why-not", "dark"]) == 0
    assert first.read_bytes() == before and len(list(folder.iterdir())) == 2


def test_the_pixels_of_a_heat_map_are_the_square_that_the_network_sees(tiny_model, tmp_path):
    pixels = np.zeros((100, 400, 3), dtype=np.uint8)
    pixels[:, 150:250, 0] = 200  # the center alone is red
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    model = load("tiny")
    seen = model.pixels(tmp_path / "wide.png")
    assert seen.shape == (32, 32, 3) and seen.dtype == np.uint8
    assert (seen[..., 0] > 190).all() and (seen[..., 1:] == 0).all()
    assert seen.shape[:2] == model.explain(tmp_path / "wide.png", layer=2).shape
    assert (model.pixels(str(tmp_path / "gray.png")) > 190).all()


def test_a_file_its_image_and_its_array_are_the_same_to_a_model(tiny_model, photos):
    model, path = load("tiny"), photos[2]
    given = [path, Image.open(path), Image.open(path).convert("RGB"), np.asarray(Image.open(path))]
    assert path.suffix == ".png"
    table, vectors = model.predict(given), model.embed(given)
    assert table["file"].tolist() == [str(path), str(path), "image 3", "image 4"]
    for column in ("class", "runner_up"):
        assert table[column].nunique() == 1
    for column in ("probability", "runner_up_probability"):
        np.testing.assert_allclose(table[column], table[column][0], atol=1e-6)
    np.testing.assert_allclose(vectors, np.broadcast_to(vectors[0], vectors.shape), atol=1e-4)
    for image in given[1:]:
        np.testing.assert_array_equal(model.embed(image)[0], model.embed(path)[0])
        np.testing.assert_array_equal(model.explain(image, layer=2), model.explain(path, layer=2))
        np.testing.assert_array_equal(model.pixels(image), model.pixels(path))
    assert model.predict(given[3])["file"].tolist() == ["image 1"]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_image_of_pillow_is_prepared_as_its_file(tiny_model, tmp_path, mode, orientation):
    generator, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112] = orientation
    noise = generator.integers(0, 255, (40, 60, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode) if mode != "I;16" else Image.fromarray(noise[..., 0] * np.uint16(257))
    image.save(tmp_path / "image.png", exif=exif)
    model = load("tiny")
    with Image.open(tmp_path / "image.png") as opened:
        before = np.asarray(opened)
        for _ in range(2):  # unread, then in memory
            np.testing.assert_array_equal(model.pixels(opened), model.pixels(tmp_path / "image.png"))
        np.testing.assert_array_equal(np.asarray(opened), before)


def test_one_unread_image_given_many_times_is_the_same_each_time(tiny_model, photos):
    vectors = load("tiny").embed([Image.open(photos[0])] * 20)
    np.testing.assert_allclose(vectors, np.broadcast_to(vectors[0], vectors.shape), atol=1e-4)


def test_arrays_that_are_no_images_are_refused_with_what_would_be_right(tiny_model):
    model = load("tiny")
    wrong = {
        "image 1 is an array of float64 .*must be of uint8": np.zeros((40, 40, 3)),
        "int64": np.zeros((40, 40), dtype=int),
        r"\(3, 40, 40\).*\(H, W\) or \(H, W, 3\)": np.zeros((3, 40, 40), dtype=np.uint8),
        r"\(40, 40, 4\)": np.zeros((40, 40, 4), dtype=np.uint8),
        "as a list": np.zeros((2, 40, 40, 3), dtype=np.uint8),
        r"\(0, 40\)": np.zeros((0, 40), dtype=np.uint8),
        r"shape \(\)": np.array(3, dtype=np.uint8),
        "image 1 is given as int; give a path, an image of Pillow": 3,
        "given as Tensor": torch.zeros(3, 40, 40),
    }
    for words, image in wrong.items():
        for use in (model.explain, model.pixels) if isinstance(image, torch.Tensor) else (model.predict, model.pixels):
            with pytest.raises(ValueError, match=words):
                use(image)
    with pytest.raises(ValueError, match="image 2 is an array of float64"):
        model.predict([np.zeros((40, 40), dtype=np.uint8), np.zeros((40, 40))])
    closed = Image.new("L", (40, 40))
    closed.close()
    with pytest.raises(ValueError, match="image 1 cannot be decoded"):
        model.embed(closed)


def test_paths_that_are_none_are_refused_in_one_sentence(tiny_model, photos):
    model = load("tiny")
    assert model.predict(np.array(list(map(str, photos[:2]))))["file"].tolist() == list(map(str, photos[:2]))
    for use in (model.predict, model.embed):
        with pytest.raises(ValueError, match="no images are named"):
            use([])
    with pytest.raises(ValueError, match="is a folder"):
        model.explain(photos[0].parent)
    np.testing.assert_array_equal(model.explain(photos[0], layer=2), model.explain(photos[0], layer="2"))
    with pytest.raises(ValueError, match="has no class 7"):
        model.explain(photos[0], 7)


def test_from_python_a_model_predicts_embeds_and_explains_in_one_import(tiny_model, photos):
    model, run = load("tiny"), load_trained("tiny")
    table = model.predict(photos)
    assert table["file"].tolist() == list(map(str, photos))
    with torch.inference_mode():
        expected = run.model.pooled_features(run.read(photos)[1])
    np.testing.assert_allclose(model.embed(photos), expected.numpy(), atol=1e-4)
    explained, (_, image) = run.ready_to_explain(["2"]), run.read(photos[:1])
    found = model.explain(photos[0], "light", layer="2", method="score_cam")
    np.testing.assert_allclose(
        found, score_cam(explained.model, image, explained.layer("2"), [1]).maps[0].numpy(), atol=1e-5
    )
    contrast = model.explain(photos[0], "light", why_not="dark", layer="2", method="score_cam")
    expected = contrast_cam(explained.model, image, explained.layer("2"), [1], [0]).maps[0].numpy()
    np.testing.assert_allclose(contrast, expected, atol=1e-5)
    fast = recipro_cam(explained.model, image, explained.layer("2"), [1]).maps[0].numpy()
    np.testing.assert_allclose(model.explain(photos[0], "light", layer="2"), fast, atol=1e-5)
    with pytest.raises(ValueError, match="no class beach; it has dark, light, striped"):
        model.explain(photos[0], "beach")
    with pytest.raises(ValueError, match="'grad_cam'; it must be one of recipro_cam, score_cam"):
        model.explain(photos[0], method="grad_cam")


def test_a_released_model_is_put_in_its_place_by_its_name(tiny_model, root, tmp_path, monkeypatch):
    released = tmp_path / "published"
    released.mkdir()
    run = load_trained("tiny")
    settings = {"head": "shallow", "freeze_features": False, "stages": [8], "image_size": 32, "resize": "imagenet"}
    about = {"identity": {"settings": settings}, "class_names": list(run.class_names)}
    publish.write_released(released / "given.safetensors", publish.halve(run.model), about)
    digest = publish.digest_of_file(released / "given.safetensors")
    (released / publish.DIGESTS).write_text(f'{{"given": "{digest}", "gone": "{digest}"}}')
    monkeypatch.setattr(publish, "FOLDER", released)
    assert load("given").class_names == run.class_names
    assert (root / "models/full/given.safetensors").is_file()
    with pytest.raises(FileNotFoundError, match="there is no trained run gone"):
        load("gone")


def test_an_image_unlike_the_training_images_is_flagged(tiny_model, photos, tmp_path, capsys):
    model = load("tiny")
    features = model.embed(photos)
    noise = np.random.default_rng(0).standard_normal((100, features.shape[1]))
    near = np.tile(features[:2], (50, 1)) + 0.01 * features.std(axis=0) * noise
    splits = dict.fromkeys(("train", "val", "test"), (near.astype(np.float32), np.zeros(100)))
    fit_novelty(splits, digest_of_features(model.run)).write(tiny_model.with_name("tiny.novelty.npz"))
    assert load("tiny").predict(photos)["unlike_training"].tolist() == [False, False, True, True, True]
    assert predict.main([*map(str, photos), "--model", "tiny"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("unlike the training images") == 3
    assert "3 of 5 image(s)" in captured.err


def test_why_not_draws_another_map_than_the_class_alone_and_takes_the_runner_up_for_the_class_itself(
    tiny_model, photos, tmp_path
):
    (line,) = load("tiny").predict(photos[:1]).itertuples(index=False)
    options = {"map": ["--map"], "runner-up": ["--why-not", line.runner_up], "itself": ["--why-not", line[1]]}
    drawn = {}
    for name, more in options.items():
        folder = tmp_path / name
        assert predict.main([str(photos[0]), "--model", "tiny", "--layer", "2", *more, "--output", str(folder)]) == 0
        drawn[name] = next(folder.iterdir()).read_bytes()
    assert drawn["map"] != drawn["runner-up"] == drawn["itself"]


@pytest.mark.parametrize("method", predict.METHODS)
def test_from_python_a_class_is_explained_against_another_one(tiny_model, photos, method):
    model = load("tiny")
    (line,) = model.predict(photos[:1]).itertuples(index=False)
    first, runner_up = line[1], line.runner_up
    expected = model.explain(photos[0], first, runner_up, layer="2", method=method)
    assert expected.max() > 0
    np.testing.assert_array_equal(model.explain(photos[0], why_not=first, layer="2", method=method), expected)
    with pytest.raises(ValueError, match=f"both {first}"):
        model.explain(photos[0], first, first, layer="2", method=method)


def test_images_are_explained_one_at_a_time(tiny_model, tmp_path, monkeypatch):
    photos = [tmp_path / f"{number}.png" for number in range(5)]
    for photo in photos:
        Image.new("L", (40, 40)).save(photo)
    alive, most = weakref.WeakSet(), []
    read = TrainedRun.read

    def counted(run, paths):
        pixels, images = read(run, paths)
        alive.add(images)
        most.append(len(alive))
        return pixels, images

    monkeypatch.setattr(TrainedRun, "read", counted)
    monkeypatch.setattr(predict, "score_cam", lambda model, images, *rest: ScoreCam(torch.zeros(1, 32, 32), None, None))
    assert predict.main([*map(str, photos), "--model", "tiny", "--map", "--output", str(tmp_path / "out")]) == 0
    assert len(most) == 5 and max(most) <= 2  # the last one, and the one that takes its place
    assert len(list((tmp_path / "out").iterdir())) == 5


@pytest.mark.parametrize(
    "name", ["cost_$5_to_$9.png", "[1].png", f"{'n' * 251}.png", f"{'é' * 125}.png", b"\xff\xfe.png"]
)
def test_images_of_any_name_are_predicted(name, tiny_model, tmp_path, capsys):
    photo = tmp_path / os.fsdecode(name)
    Image.new("L", (40, 40)).save(photo)
    assert (
        predict.main([str(photo), "--model", "tiny", "--map", "--layer", "2", "--output", str(tmp_path / "out")]) == 0
    )
    (written,) = (tmp_path / "out").iterdir()
    assert len(os.fsencode(written.name)) <= 255 and str(written) in capsys.readouterr().out


def test_a_mistake_is_one_sentence_and_exit_code_2(tiny_model, tmp_path, capsys):
    broken, photo = tmp_path / "broken.jpg", tmp_path / "photo.png"
    broken.write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    Image.new("L", (40, 40)).save(photo)
    mistakes = {
        "there is no image": ["missing.jpg", "--model", "tiny"],
        "cannot be decoded": [str(broken), "--model", "tiny"],
        "there is no trained run": [str(photo), "--model", "nothing"],
        "has no layer 17": [str(photo), "--model", "tiny", "--map", "--layer", "17"],
        "has no class beach": [str(photo), "--model", "tiny", "--why-not", "beach"],
        "--output is of a figure": [str(photo), "--model", "tiny", "--output", "out"],
        "holds no images": [str(tmp_path / "empty"), "--model", "tiny"],
        "--csv is table.txt": [str(photo), "--model", "tiny", "--csv", "table.txt"],
        "last.jpg": [str(photo), str(tmp_path / "last.jpg"), "--model", "tiny"],
    }
    for words, arguments in mistakes.items():
        assert predict.main(arguments) == 2
        sentence = capsys.readouterr().err.strip().splitlines()[-1]  # after a progress bar
        assert sentence.startswith("error: ") and words in sentence
    assert not (tmp_path / "out").exists() and not (tmp_path / "predictions").exists()
