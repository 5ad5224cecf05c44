"""Trained runs read from files: by name and by path, with the images they need."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluation import checkpoints
from evaluation.checkpoints import load_trained, read_released
from evaluation.hooks import maps_and_logits
from evaluation.publish import halve, write_released


@pytest.fixture
def photos(tmp_path):
    """One gray and one color image, neither square nor of the network's size."""
    generator = np.random.default_rng(0)
    gray, color = tmp_path / "a photo.jpg", tmp_path / "b.png"
    Image.fromarray(generator.integers(0, 255, (50, 70), dtype=np.uint8)).save(gray)
    Image.fromarray(generator.integers(0, 255, (60, 40, 3), dtype=np.uint8)).save(color)
    return [gray, color]


def test_a_run_reads_images_as_its_training_did(tiny_model, photos):
    run = load_trained("tiny")
    assert (run.name, run.class_names, run.image_size) == ("tiny", ("dark", "light", "striped"), 32)
    assert not run.model.training
    pixels, images = run.read(photos)
    assert [each.shape for each in pixels] == [(1, 32, 32), (3, 32, 32)]
    mean, std = torch.tensor(run.mean).view(3, 1, 1), torch.tensor(run.std).view(3, 1, 1)
    assert torch.allclose(images[1] * std + mean, torch.from_numpy(pixels[1].copy()) / 255, atol=1e-6)


def test_flip_tta_averages_the_logits_of_both_views_and_can_be_left_out(tiny_model):
    run = load_trained("tiny")
    run.model.flip_tta = True
    plain, images = run.without_flip_tta(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        one, flipped = (plain.model(each) for each in (images, images.flip(-1)))
        assert torch.allclose(run.model(images), (one + flipped) / 2, atol=1e-6)
    assert not torch.allclose(one, flipped, atol=1e-4)
    assert plain.layer("8") is run.layer("8")


def test_a_folded_run_has_the_same_outputs(tiny_model):
    run, images = load_trained("tiny"), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(run.folded().model(images), run.model(images), rtol=1e-3, atol=1e-3)


def test_a_run_is_found_by_its_path_too_and_a_missing_one_is_named(tiny_model):
    assert load_trained(tiny_model).name == "tiny"
    checkpoint = torch.load(tiny_model, weights_only=True)
    epoch = tiny_model.with_name("tiny.epoch3.pt")
    torch.save({key: checkpoint[key] for key in ("format", "identity", "model")}, epoch)
    with pytest.raises(FileNotFoundError, match="there is no trained run nothing; there are tiny;"):
        load_trained("nothing")
    with pytest.raises(ValueError, match="not the checkpoint of a finished run"):
        load_trained(epoch)
    with pytest.raises(ValueError, match="no layer 9; name a stage, 0 to 8"):
        load_trained("tiny").layer("9")


def test_a_layer_is_a_number_or_a_name_and_nothing_else(tiny_model):
    run = load_trained("tiny")
    assert run.layer(8) is run.layer("8") is run.layer("features.8")
    for wrong in (9, -1, 1.0, True, None, [8]):
        with pytest.raises(ValueError, match="has no layer"):
            run.layer(wrong)


def test_a_class_is_found_without_regard_to_case_spaces_and_underscores_where_one_is_meant(tiny_model):
    run = dataclasses.replace(load_trained("tiny"), class_names=("tallbuilding", "Open_Country", "a b", "A_B", "1"))
    assert [run.label(name) for name in ("tall building", "Tall_Building", "open country", "A_B", 1)] == [0, 0, 1, 3, 4]
    for name in ("ab", "tall", None):
        with pytest.raises(ValueError, match="has no class"):
            run.label(name)


def test_similar_names_of_runs_and_released_models_are_suggested(root, monkeypatch):
    monkeypatch.setattr(checkpoints, "PUBLISHED", root / "published")
    for name in ("published/byol_classifier.safetensors", *(f"models/full/birds/run_{each}.pt" for each in range(10))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    with pytest.raises(FileNotFoundError, match="similar names: byol_classifier;"):
        load_trained("byol_clasifier")
    with pytest.raises(FileNotFoundError, match="similar names: .*birds/run_3"):
        load_trained("brids/run_3")


def test_a_pretext_without_classes_has_features_alone(tiny_model):
    def pretext(saved):
        saved["identity"]["settings"]["method"] = "byol"
        saved["model"] = {name: value for name, value in saved["model"].items() if name.startswith("features.")}
        saved["model"] |= {"step": torch.tensor(3), "projector.0.weight": torch.zeros(2, 2)}

    path, images = changed(tiny_model, pretext), torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="changed.pt is a pretext without classes"):
        load_trained(path)
    found, expected = load_trained(path, needs_classes=False), load_trained("tiny")
    with torch.inference_mode():
        features = expected.model.pooled_features(images)
        assert torch.equal(found.model.pooled_features(images), features)
        assert torch.allclose(found.folded().model.pooled_features(images), features, rtol=1e-3, atol=1e-3)


@pytest.fixture
def places(tiny_model, root):
    """A function that puts a run of other weights each time where its name says, and returns its weights' digest."""
    checkpoint = torch.load(tiny_model, weights_only=True)
    run = load_trained("tiny")

    def put(place):
        checkpoint["model"]["classifier.1.bias"] += 1
        path = root / "models" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
        if path.suffix == ".safetensors":
            run.model.classifier[1].bias.data += 1
            write_released(path, halve(run.model), {key: checkpoint[key] for key in ("identity", "class_names")})
        return load_trained(path).weights

    return put


def test_the_full_profile_comes_before_the_quick_one_and_own_runs_before_released_ones(places):
    assert places("quick/run.pt") == load_trained("run").weights
    assert places("full/run.safetensors") == load_trained("run").weights  # the quick profile's numbers mean nothing
    assert places("full/run.pt") == load_trained("run").weights


def test_a_name_alone_is_never_a_run_on_other_data_than_the_experiments_own(places):
    on_flowers = places("full/flowers/cifar10_rotation.seed1.pt")
    assert load_trained("flowers/cifar10_rotation.seed1").weights == on_flowers
    with pytest.raises(FileNotFoundError, match="run cifar10_rotation.seed1; there are flowers/cifar10_rotation.seed1"):
        load_trained("cifar10_rotation.seed1")
    of_the_study = places("quick/cifar10/cifar10_rotation.seed1.pt")
    assert of_the_study == load_trained("cifar10_rotation.seed1").weights
    assert of_the_study == load_trained("cifar10/cifar10_rotation.seed1").weights
    places("quick/cifar10_rotation.seed1.pt")
    with pytest.raises(ValueError, match="several runs cifar10_rotation.seed1; give the path of one"):
        load_trained("cifar10_rotation.seed1")


def test_the_runs_that_are_listed_begin_with_a_users_own_and_are_few(places):
    places("full/released.safetensors")
    places("quick/flowers/own.pt")
    with pytest.raises(FileNotFoundError, match="there are flowers/own, tiny, released;"):
        load_trained("nothing")
    for number in range(20):
        places(f"full/birds/run_{number:02d}.pt")
    with pytest.raises(FileNotFoundError, match="there are birds/run_00, .*, 15 more;") as error:
        load_trained("nothing")
    assert len(str(error.value)) < 320


@pytest.mark.parametrize("name", ["moved.pth", "moved.CKPT", "moved.v2.pt", "~/moved.pt"])
def test_a_checkpoint_has_any_suffix(name, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name.removeprefix("~/")).write_bytes(tiny_model.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert load_trained(name).weights == load_trained("tiny").weights


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_that_a_wrapper_changed_are_accepted(prefix, tiny_model, tmp_path):
    expected = load_trained("tiny")
    path = changed(tiny_model, lambda saved: wrap_names(saved, prefix))
    assert load_trained(path).weights == expected.weights


def wrap_names(saved, prefix):
    saved["model"] = {f"{prefix}{name}": tensor for name, tensor in saved["model"].items()}


def changed(tiny_model, change):
    """The path of a copy of the checkpoint after `change`."""
    saved = torch.load(tiny_model, weights_only=True)
    change(saved)
    path = tiny_model.with_name("changed.pt")
    torch.save(saved, path)
    return path


def settings(**values):
    return lambda saved: saved["identity"]["settings"].update(values)


def tensor(name, change):
    return lambda saved: saved["model"].update({name: change(saved["model"][name])})


WEIGHT = "features.0.0.weight"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of quantized tensors
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (settings(resize="pad"), "resize is 'pad'"),
        (settings(network="vit_b_16"), "'vit_b_16'"),
        (settings(network="resnet18"), "resnet18"),
        (settings(head=3), "head is 3"),
        (settings(image_size="64"), "int"),
        (settings(image_size=None), "None"),
        (settings(stages=[9]), "stages is"),
        (lambda saved: saved["identity"]["settings"].pop("resize"), "'resize'"),
        (lambda saved: saved["identity"].pop("settings"), "'settings'"),
        (lambda saved: saved.update(identity=None), "NoneType"),
        (lambda saved: saved.update(class_names=["a"]), "2 tensors differ, such as classifier.1.bias"),
        (lambda saved: saved.update(model=None), "no weights"),
        (lambda saved: saved["model"].pop(WEIGHT), f"1 tensors differ, such as {WEIGHT}"),
        (lambda saved: saved["model"].update(extra=torch.zeros(1)), "1 tensors differ, such as extra"),
        (lambda saved: wrap_names(saved, "net."), "tensors differ"),
        (tensor(WEIGHT, lambda value: value[:, :1]), f"such as {WEIGHT}"),
        (tensor(WEIGHT, lambda value: None), f"{WEIGHT} in .*changed.pt is None"),
        (tensor(WEIGHT, lambda value: value.to("meta")), f"{WEIGHT} in .*meta"),
        (tensor(WEIGHT, lambda value: value.to_sparse()), f"{WEIGHT} in .*sparse"),
        (tensor(WEIGHT, lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)), f"{WEIGHT} in .*quant"),
        (tensor(WEIGHT, lambda value: value / 0), f"{WEIGHT} in .*not finite"),
        (tensor(WEIGHT, lambda value: value.int()), f"{WEIGHT} in .*int32"),
    ],
)
def test_a_changed_checkpoint_is_refused_in_a_sentence_that_names_the_file(change, words, tiny_model):
    path = changed(tiny_model, change)
    with pytest.raises(ValueError, match=words) as error:
        load_trained(path)
    assert str(path) in str(error.value) and len(str(error.value).replace(str(path), "")) < 300
    assert "remove" not in str(error.value) and "delete" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read_in_float32(dtype, tiny_model):
    def convert(saved):
        saved["model"] = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in saved["model"].items()
        }

    model = load_trained(changed(tiny_model, convert)).model
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("about", ["[1, 2]", "3", "null", '"text"', "{", "{}"])
def test_a_released_file_of_another_description_is_refused(about, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "run.safetensors", metadata={"about": about})
    with pytest.raises(ValueError, match="run.safetensors is not"):
        load_trained(tmp_path / "run.safetensors")


def test_a_convolution_is_explained_by_its_own_output(tiny_model):
    run, images = load_trained("tiny"), torch.randn(2, 3, 32, 32)
    for name in ("features.0.0", "features.0.2", "2"):
        explained = run.ready_to_explain([name])
        with torch.inference_mode():
            found, _ = maps_and_logits(explained.model, images, explained.layer(name))
            expected, _ = maps_and_logits(run.model, images, run.layer(name))
        assert torch.allclose(found, expected, atol=1e-4)
    assert run.ready_to_explain(["2"]).model is not run.model


def test_weights_that_are_not_finite_are_refused(tiny_model):
    checkpoint = torch.load(tiny_model, weights_only=True)
    checkpoint["model"]["classifier.1.bias"][0] = torch.nan
    torch.save(checkpoint, tiny_model)
    with pytest.raises(ValueError, match="classifier.1.bias in .*tiny.pt holds values that are not finite"):
        load_trained("tiny")


@pytest.mark.parametrize("contents", [b"", b"not safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_file_that_is_no_released_model_is_named(contents, tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="run.safetensors is not a released model"):
        load_trained(path)


def test_tensors_without_a_description_are_no_released_model(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match="is not a released model"):
        read_released(tmp_path / "run.safetensors")
