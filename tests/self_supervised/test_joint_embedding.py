"""Joint-embedding pretexts: losses, the target network, what stays as it is, what labels and processes change."""

import copy
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from torch import nn

import experiments
import run_files
import runs
from data.files import CODE
from helper_functions import TrainSettings, build_optimizer
from loop.devices import build_accelerator
from self_supervised import joint_embedding
from self_supervised.joint_embedding import METHODS, OfViews, negative_cosine, nt_xent, vicreg
from self_supervised.probes import vote_of_neighbors
from self_supervised.settings import JointEmbeddingExperiment
from supervised.models import pool_stages
from tests.tiny_views import STEPS, TINY_VIEWS, fit, fit_every_method, tiny_loaders, tiny_method


def embeddings(count=12, width=20, scale=1.0):
    """Two views' embeddings (N, D), which are alike."""
    torch.manual_seed(0)
    one = torch.randn(count, width)
    return scale * one, scale * (one + 0.5 * torch.randn(count, width))


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before, module):
    """Names of the tensors that are no longer bit-identical."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


# -------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (negative_cosine, NegativeCosineSimilarity()),
        (lambda one, other: nt_xent(one, other, 0.2), NTXentLoss(0.2)),
        (lambda one, other: nt_xent(one, other, 1.5), NTXentLoss(1.5)),
        (vicreg, VICRegLoss()),
    ],
    ids=["cosine", "NT-Xent", "NT-Xent, warm", "VICReg"],
)
def test_losses_and_their_gradients_are_lightlys(ours, theirs, scale):
    pairs = [[each.clone().requires_grad_() for each in embeddings(scale=scale)] for _ in range(2)]
    losses, expected = ours(*pairs[0]), theirs(*pairs[1])
    assert losses.shape == (12,)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    losses.mean().backward()
    expected.backward()
    for one, other in zip(*pairs, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_of_an_image_is_its_own():
    one, other = embeddings()
    other[3] = -one[3]  # the worst pair of all
    for loss in (negative_cosine, vicreg, lambda one, other: nt_xent(one, other, 0.2)):
        assert loss(one, other).argmax() == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_loss_is_that_of_its_heads_outputs_over_all_pairs_of_views(method):
    experiment = replace(TINY_VIEWS, method=method, views_per_image=3, temperature=0.3)
    model = tiny_method(experiment).eval()
    views, _ = next(iter(tiny_loaders(experiment)[0]))
    with torch.no_grad():
        losses, features = model(views)
        pooled = [pool_stages(model.features, (1,), view) for view in views.unbind(dim=1)]
        heads = [model.projector(each) for each in pooled]
        theirs = {"byol": NegativeCosineSimilarity(), "simclr": NTXentLoss(0.3), "vicreg": VICRegLoss()}[method]
        pairs = [(one, other) for one in range(3) for other in range(3) if one != other]
        targets = heads  # of BYOL, whose target is a copy at first
        outputs = [model.predictor(each) for each in heads] if method == "byol" else heads
        expected = np.mean([theirs(outputs[one], targets[other]).item() for one, other in pairs])
    assert losses.shape == (8,) and losses.mean().item() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(features, pooled[0], atol=1e-6) and not features.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss_and_trains_every_part_that_learns(method):
    experiment = replace(TINY_VIEWS, method=method, train=replace(TINY_VIEWS.train, max_epochs=5))
    model = tiny_method(experiment)
    before = state_of(model)
    history = fit(model, experiment)
    assert history.train_loss[-1] < history.train_loss[0] and history.train_accuracy == []
    moved = changed(before, model)
    assert {name for name, each in model.named_parameters() if each.requires_grad} <= moved


def test_a_training_that_diverges_is_an_error_of_the_loss():
    model = tiny_method()
    nn.init.constant_(model.projector[3].bias, np.nan)
    nn.init.constant_(model.features[1][1].bias, np.inf)
    with pytest.raises(FloatingPointError, match="epoch 1"):
        fit(model)


@pytest.mark.parametrize("wrong", [lambda losses: losses.mean(), lambda losses: torch.cat([losses, losses])])
def test_losses_that_are_not_one_for_each_image_are_refused(wrong, monkeypatch):
    model = tiny_method()
    views, _ = next(iter(tiny_loaders()[0]))
    right = model.losses
    monkeypatch.setattr(model, "losses", lambda *given: wrong(right(*given)))
    with pytest.raises(ValueError, match=r"losses of BYOL must return one loss for each image, shape \(8,\)"):
        model(views)


# ------------------------------------------------------------------------------------------------------- BYOL's target


def test_the_target_follows_a_moving_average_whose_momentum_rises_to_one_by_half_a_cosine():
    model = tiny_method(replace(TINY_VIEWS, train=replace(TINY_VIEWS.train, max_epochs=1)))
    model.steps = 4
    pairs = [(model.features, model.target_features), (model.projector, model.target_projector)]
    for momentum in (0.9, 1 - 0.1 * 0.8535533906, 0.95, 1 - 0.1 * 0.1464466094, 1.0):  # from the experiment's
        for online, _ in pairs:
            for each in online.parameters():
                each.data += torch.randn_like(each)
        wanted = [
            momentum * old + (1 - momentum) * new
            for online, target in pairs
            for old, new in zip(target.parameters(), online.parameters(), strict=True)
        ]
        buffers = [each.clone() for _, target in pairs for each in target.buffers()]
        model.after_step()
        found = [each for _, target in pairs for each in target.parameters()]
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, wanted, strict=True))
        after = [each for _, target in pairs for each in target.buffers()]  # statistics are not averaged
        assert all(torch.equal(one, other) for one, other in zip(buffers, after, strict=True))
    assert model.step == 5


def test_the_target_takes_one_step_with_each_of_the_optimizer():
    for accumulation, steps in ((1, 2 * STEPS), (2, 4)):  # of 3 batches, the last one steps alone
        settings = replace(TINY_VIEWS.train, gradient_accumulation_steps=accumulation)
        model = tiny_method()
        fit(model, replace(TINY_VIEWS, train=settings))
        assert model.step == steps


def test_the_target_is_the_network_at_first_and_learns_by_no_gradient():
    model = tiny_method()
    views, _ = next(iter(tiny_loaders()[0]))
    with torch.no_grad():
        pooled, of_target = (model.pool(each, views) for each in (model.features, model.target_features))
        assert all(torch.equal(one, other) for one, other in zip(pooled, of_target, strict=True))
        assert torch.equal(model.projector(pooled[0]), model.target_projector(of_target[0]))
    ours = {id(each) for each in model.features.parameters()}
    target = [*model.target_features.parameters(), *model.target_projector.parameters()]
    assert not {id(each) for each in target} & ours
    model(views)[0].mean().backward()
    assert all(each.grad is None for each in target)
    assert all(each.grad.abs().sum() > 0 for each in model.features.parameters())
    for factor in (0.5, 1.0):
        groups = build_optimizer(model, replace(TINY_VIEWS.train, backbone_lr_factor=factor)).param_groups
        given = [id(each) for group in groups for each in group["params"]]
        heads = [*model.projector.parameters(), *model.predictor.parameters()]
        assert sorted(given) == sorted(ours | {id(each) for each in heads})


def modes(module):
    return {each.training for each in module.modules()}


def test_the_target_is_in_the_modes_of_kept_statistics_and_frozen_stages():
    kept = tiny_method().train()
    assert modes(kept.target_features) == {False}
    assert modes(kept.target_projector) == modes(kept.projector) == {True}
    learned = tiny_method(replace(TINY_VIEWS, batchnorm="pretext", frozen_stages=1)).train()
    assert learned.target_features[1][1].training
    assert modes(learned.target_features[0]) == modes(learned.features[0]) == {False}
    for model in (kept, learned):
        assert modes(model.eval()) == {False}


# --------------------------------------------------------------------------------------------- BatchNorm, frozen stages


def statistics(names):
    return {name for name in names if re.search("running_|num_batches", name)}


@pytest.mark.parametrize("method", METHODS)
def test_initial_statistics_are_kept_and_scales_and_shifts_trained(method):
    experiment = replace(TINY_VIEWS, method=method)
    model = tiny_method(experiment)
    before = state_of(model)
    fit(model, experiment)
    moved = changed(before, model)
    of_features = {name for name in before if re.match("(target_)?features", name)}
    assert len(statistics(of_features)) >= 6
    assert of_features - moved == statistics(of_features)  # scales and shifts, "1.weight" and "1.bias", are trained
    assert statistics(name for name in before if "features" not in name) <= moved  # the heads' BatchNorm learns


def test_the_pretexts_own_statistics_are_learned_if_asked_for():
    experiment = replace(TINY_VIEWS, batchnorm="pretext")
    model = tiny_method(experiment)
    before = state_of(model)
    fit(model, experiment)
    assert changed(before, model) == set(before)


@pytest.mark.parametrize("batchnorm", ["initial", "pretext"])
def test_frozen_stages_stay_bit_identical_in_both_networks(batchnorm):
    experiment = replace(TINY_VIEWS, batchnorm=batchnorm, frozen_stages=1)
    model = tiny_method(experiment)
    before = state_of(model)
    fit(model, experiment)
    moved = changed(before, model)
    assert not [name for name in moved if re.match(r"(target_)?features\.0", name)]
    assert {"features.1.0.weight", "features.1.1.weight", "features.1.1.bias", "target_features.1.0.weight"} <= moved


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("method", "batchnorm"), [("byol", "initial"), ("byol", "pretext"), ("simclr", "initial"), ("vicreg", "pretext")]
)
def test_a_training_that_continues_ends_bit_identical_its_target_too(method, batchnorm):
    settings = replace(TINY_VIEWS.train, max_epochs=3, schedule="cosine")
    experiment = replace(TINY_VIEWS, method=method, batchnorm=batchnorm, train=settings)
    states, whole = [], tiny_method(experiment)
    history = fit(whole, experiment, save_state=lambda state: states.append(copy.deepcopy(state)))
    resumed = tiny_method(experiment, seed=1)
    torch.manual_seed(7)
    assert fit(resumed, experiment, state=states[0]) == history
    assert not changed(state_of(whole), resumed)
    assert changed(states[0]["model"], whole)


# -------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("method", METHODS)
def test_labels_change_what_is_shown_and_no_weight(method):
    experiment = replace(TINY_VIEWS, method=method)
    ends = []
    for permuted in (False, True):
        loaders, model = tiny_loaders(experiment), tiny_method(experiment)
        if permuted:
            for seed, loader in enumerate(loaders):
                loader.dataset.labels = np.random.default_rng(seed).permutation(loader.dataset.labels)
        ends.append((fit(model, experiment, loaders), state_of(model)))
    (history, weights), (of_permuted, same) = ends
    assert history.val_accuracy != of_permuted.val_accuracy and max(history.val_accuracy) > 0.6
    assert (history.train_loss, history.val_loss) == (of_permuted.train_loss, of_permuted.val_loss)
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())


def test_the_accuracy_that_is_shown_is_the_vote_of_the_epochs_labelled_training_images():
    (train, val), model, objective = tiny_loaders(), tiny_method(), OfViews()
    train.dataset.labels[::4] = -1  # images without a class
    accelerator = build_accelerator("cpu")
    features, labels = [], []
    for views, of_batch in train:
        losses, weights, logits = objective(model, views, of_batch)
        assert losses.shape == weights.shape == (8,) and logits is None
        features.append(model(views)[1].numpy())
        labels.append(of_batch.numpy())
    found = objective.evaluate(model, val, accelerator, "float32")
    with torch.no_grad():
        losses, queries, expected = zip(*((*model(views), of_batch) for views, of_batch in val), strict=True)
    features, labels = np.concatenate(features), np.concatenate(labels)
    assert found.loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    count = min(20, int((labels >= 0).sum()))
    votes = vote_of_neighbors(features[labels >= 0], labels[labels >= 0], torch.cat(queries).numpy(), count)
    assert found.predictions.tolist() == votes.tolist()
    assert found.accuracy == np.mean(votes == torch.cat(expected).numpy())
    assert objective.seen == []  # the next epoch begins anew


# ------------------------------------------------------------------------------------------------------ many processes


@pytest.mark.slow
def test_two_processes_have_the_losses_and_weights_of_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CODE)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "tests.tiny_views", str(tmp_path)]
    done = subprocess.run(command, cwd=CODE, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = fit_every_method()
    together = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert together[0].keys() == together[1].keys() == alone.keys() == METHODS.keys()
    for method, one in alone.items():
        for two in (each[method] for each in together):
            for column in one["history"].keys() - {"seconds"}:
                assert np.allclose(one["history"][column], two["history"][column], rtol=1e-5, atol=1e-5), column
            for name, tensor in one["model"].items():
                assert torch.allclose(tensor, two["model"][name], rtol=1e-4, atol=1e-5), f"{method}: {name}"
        initial = tiny_method(replace(TINY_VIEWS, method=method)).state_dict()
        assert (one["model"]["features.0.0.weight"] - initial["features.0.0.weight"]).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------------- a method of one's own


def test_the_method_of_a_users_own_that_the_module_shows_runs_as_it_is_written(scene_folder, root, monkeypatch):
    monkeypatch.setitem(METHODS, "attraction", None)  # is taken away again afterwards
    [snippet] = re.findall(r"\n\n((?: {4}.*\n|\n)+)", joint_embedding.__doc__)
    assert len(snippet.strip().splitlines()) < 40
    names = {**vars(joint_embedding)}
    exec(textwrap.dedent(snippet), names)
    assert METHODS["attraction"] is names["Attraction"]
    experiment = JointEmbeddingExperiment("attraction_1", "Does it collapse?", method="attraction")
    experiment = experiments.configure(experiment, "quick", data=str(scene_folder), max_epochs=2)
    model, result = runs.run(experiment, "quick", device="cpu", progress=False)
    assert type(model) is METHODS["attraction"]
    assert len(result["history"]["train_loss"]) == 2 == result["epoch"]
    assert result["settings"]["method"] == "attraction"
    features, _ = run_files.load_weights(experiment, "quick", prefix="features.")
    assert not changed(features, model.features)


def test_a_method_or_views_that_are_not_known_are_refused_with_those_that_are(scene_folder, root):
    experiment = replace(TINY_VIEWS, data=str(scene_folder), initial_weights="random", image_size=32)
    for field, known in (("method", "simclr"), ("views", "without_blur")):
        with pytest.raises(ValueError, match=f"tiny_views: .*'nothing'.*{known}"):
            runs.run(replace(experiment, **{field: "nothing"}), device="cpu", progress=False)


def test_heads_have_batchnorm_between_two_layers():
    mlp = joint_embedding.build_mlp(5, 7, 3)
    assert [type(each) for each in mlp] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert mlp(torch.randn(4, 5)).shape == (4, 3) and mlp[0].bias is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batchnorm", "estimated"),
        ("views_per_image", 1),
        ("momentum", 1.0),
        ("temperature", 0.0),
        ("view_size", 31),
        ("neighbors", -1),
        ("train.keep", "best"),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused_by_the_field(field, value):
    changes = {"train": TrainSettings(keep=value)} if field == "train.keep" else {field: value}
    with pytest.raises(ValueError, match=f"tiny_views: {field} is"):
        replace(TINY_VIEWS, **changes)
