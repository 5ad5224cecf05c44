"""The training loop, on a linear layer and separable points."""

import copy
import gc
import math
import weakref

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from helper_functions import (
    CrossEntropy,
    History,
    Objective,
    TrainSettings,
    build_optimizer,
    build_scheduler,
    evaluate,
    predict,
    should_stop,
    train,
)
from loop.batchnorm import fold_batchnorm
from loop.devices import build_accelerator, resolve_precision
from supervised.models import SceneClassifier, estimate_batchnorm


@pytest.fixture
def separable():
    """Loaders of 100 train and 37 val points in two dimensions, two classes apart: (train, val)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (137,), generator=generator)
    points = torch.randn(137, 2, generator=generator) + 4 * labels[:, None] - 2
    shuffled = DataLoader(
        TensorDataset(points[:100], labels[:100]), 16, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    return shuffled, DataLoader(TensorDataset(points[100:], labels[100:]), 16)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(2, 2)


def fit(model, loaders, settings=None, **changes):
    """Train for 5 epochs, with changes of the settings, or of arguments of `train`."""
    names = [name for name in changes if name in TrainSettings.__dataclass_fields__]
    defaults = {"max_epochs": 5, "learning_rate": 0.05, "schedule": "none"}
    settings = TrainSettings(**defaults | {name: changes.pop(name) for name in names})
    return train(model, *loaders, settings, device="cpu", progress=False, **changes)


def with_labels_swapped(loader):
    points, labels = loader.dataset.tensors
    return DataLoader(TensorDataset(points, 1 - labels), 16)


# ------------------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [("adam", "step"), ("adamw", "cosine"), ("sgd", "cosine"), ("adam", "none"), ("sgd", "step")],
)
def test_training_lowers_the_loss_on_a_separable_set(linear, separable, optimizer, schedule):
    history = fit(linear, separable, optimizer=optimizer, schedule=schedule)
    assert history.train_loss[-1] < 0.6 * history.train_loss[0]
    assert history.val_accuracy[-1] > 0.9


class RightOnce(nn.Module):
    """Right in its second epoch, wrong in all others, whatever the optimizer does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("epochs", torch.zeros(()))

    def train(self, mode=True):
        if mode:
            self.epochs += 1  # a new one begins
        return super().train(mode)

    def forward(self, points):
        right = (points.sum(dim=1) > 0).float()
        sign = 1.0 if self.epochs == 2 else -1.0
        return sign * torch.stack([1 - right, right], dim=1) + 0 * self.weight


def test_the_best_weights_come_back_and_not_the_last(separable):
    model = RightOnce()
    history = fit(model, separable, max_epochs=4)
    assert (history.best_epoch, model.epochs) == (2, 2)
    assert evaluate(model, separable[1]).accuracy == history.val_accuracy[1] > history.val_accuracy[3]


def test_the_last_weights_come_back_if_they_are_asked_for(separable):
    model = RightOnce()
    history = fit(model, separable, max_epochs=4, keep="last")
    assert (history.best_epoch, model.epochs) == (2, 4)
    assert evaluate(model, separable[1]).accuracy == history.val_accuracy[3] < history.val_accuracy[1]


def test_of_equal_val_accuracies_the_lowest_val_loss_is_the_best_epoch():
    assert History(val_accuracy=[0.5, 0.9, 0.9, 0.9], val_loss=[1.0, 0.4, 0.3, 0.3]).best_epoch == 3


def test_test_images_choose_nothing(separable):
    def history(**more):
        torch.manual_seed(0)
        separable[0].generator.manual_seed(0)
        return fit(nn.Linear(2, 2), separable, **more)

    plain, watched = history(), history(test_loader=with_labels_swapped(separable[1]))
    assert (watched.val_loss, watched.best_epoch) == (plain.val_loss, plain.best_epoch)
    assert watched.test_accuracy == pytest.approx([1 - accuracy for accuracy in watched.val_accuracy])


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_epoch(linear, separable):
    nn.init.constant_(linear.weight, math.nan)
    with pytest.raises(FloatingPointError, match="epoch 1"):
        fit(linear, separable)


def with_tensors(loader, points=lambda points: points, labels=lambda labels: labels):
    """A loader of changed points or labels."""
    tensors = loader.dataset.tensors
    return DataLoader(TensorDataset(points(tensors[0]), labels(tensors[1])), 16)


LOADERS = {  # what is wrong with a loader: how it is made of a right one, what the answer names
    "labels from 1": (lambda loader: with_tensors(loader, labels=lambda each: each + 1), "labels are 1 to 2"),
    "a label below 0": (lambda loader: with_tensors(loader, labels=lambda each: each - 1), "labels are -1 to 0"),
    "labels of a fraction": (
        lambda loader: with_tensors(loader, labels=torch.Tensor.float),
        "labels are torch.float32",
    ),
    "labels of two dimensions": (lambda loader: with_tensors(loader, labels=lambda each: each[:, None]), "labels are"),
}


@pytest.mark.parametrize("case", LOADERS.values(), ids=LOADERS)
def test_labels_that_are_no_classes_of_the_model_are_named(linear, separable, case):
    change, named = case
    with pytest.raises(ValueError, match=named):
        fit(linear, (change(separable[0]), separable[1]))
    with pytest.raises(ValueError, match=named):
        evaluate(linear, change(separable[1]))


def test_what_cannot_be_learned_from_is_named(linear, separable):
    with_nan = with_tensors(separable[0], points=lambda points: points.index_fill(0, torch.tensor(3), math.nan))
    with pytest.raises(ValueError, match="not finite"):
        fit(linear, (with_nan, separable[1]))
    for loaders in ((list(separable[0]), separable[1]), (separable[0], list(separable[1]))):
        with pytest.raises(ValueError, match="is a list"):
            fit(linear, loaders)
    with pytest.raises(ValueError, match="no batch"):
        evaluate(linear, [])
    with pytest.raises(ValueError, match="frozen"):
        fit(linear.requires_grad_(False), separable)


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2), torch.tensor(0)


def test_loaders_of_other_things_than_images_and_labels_are_named(linear, separable):
    points, labels = separable[0].dataset.tensors
    triples = DataLoader(TensorDataset(points, labels, labels), 16)
    dicts = DataLoader([{"image": point, "label": label} for point, label in zip(points, labels, strict=True)], 16)
    for loader, named in ((triples, "Tensor, Tensor, Tensor"), (dicts, "a dict")):
        with pytest.raises(ValueError, match=named):
            fit(linear, (loader, separable[1]))
        with pytest.raises(ValueError, match=named):
            evaluate(linear, loader)
    with pytest.raises(ValueError, match="train loader has an IterableDataset"):
        fit(linear, (DataLoader(Stream(), 2), separable[1]))


def test_the_state_of_another_training_is_refused(linear, separable):
    def state_of(model=linear, loaders=separable, **settings):
        states = []
        fit(copy.deepcopy(model), loaders, max_epochs=1, save_state=states.append, **settings)
        return states[0]

    unshuffled = (DataLoader(separable[0].dataset, 16), separable[1])
    others = {
        "optimizer": state_of(optimizer="sgd"),
        "network": state_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))),
        "average": state_of(ema_decay=0.9),
        "loader": state_of(loaders=unshuffled),
        "weights alone": linear.state_dict(),
    }
    for state in others.values():
        with pytest.raises(ValueError, match="the state is not one of this"):
            fit(copy.deepcopy(linear), separable, max_epochs=2, state=state)
    with pytest.raises(ValueError, match="the state is not one of this"):
        fit(copy.deepcopy(linear), unshuffled, max_epochs=2, state=state_of())


def test_accumulating_two_batches_equals_one_batch_of_both(linear, separable):
    points, labels = separable[0].dataset.tensors

    def trained(batch_size, steps):
        model, generator = copy.deepcopy(linear), torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(points[:96], labels[:96]), batch_size, shuffle=True, generator=generator)
        fit(model, (loader, separable[1]), max_epochs=1, optimizer="sgd", gradient_accumulation_steps=steps)
        return model.weight

    assert torch.allclose(trained(8, 2), trained(16, 1), atol=1e-6)


def test_ema_is_what_is_evaluated_and_returned_and_follows_its_definition(linear, separable):
    decay, steps = 0.9, []
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: steps.append(optimizer.param_groups[0]["params"][0].detach().clone())
    )
    try:
        history = fit(linear, separable, max_epochs=1, ema_decay=decay)
    finally:
        hook.remove()
    expected = steps[0]
    for weight in steps[1:]:
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(linear.weight, expected, atol=1e-6)
    assert not torch.allclose(linear.weight, steps[-1], atol=1e-3)
    assert evaluate(linear, separable[1]).loss == history.val_loss[0]


# ---------------------------------------------------------------------------------------------------- losses, averages


def test_evaluation_over_a_ragged_last_batch_equals_one_cross_entropy_over_all(linear):
    generator = torch.Generator().manual_seed(1)
    points, labels = 5 * torch.randn(33, 2, generator=generator), torch.randint(0, 2, (33,), generator=generator)
    labels[-1] = linear(points[-1:]).argmin()  # a mistake in the short batch, which a mean of means would overrate
    loader = DataLoader(TensorDataset(points, labels), 16)
    logits, in_order = predict(linear, loader)
    assert torch.equal(in_order, labels) and torch.allclose(logits, linear(points))
    evaluation = evaluate(linear, loader)
    assert evaluation.loss == pytest.approx(nn.functional.cross_entropy(linear(points), labels).item(), rel=1e-6)
    assert evaluation.accuracy == (linear(points).argmax(dim=1) == labels).double().mean()


@pytest.mark.parametrize("objective", [None, CrossEntropy(torch.tensor([1.0, 9.0])), CrossEntropy(None, 0.5)])
def test_the_train_loss_is_plain_cross_entropy_over_all_images_whatever_is_minimized(linear, separable, objective):
    points, labels = separable[0].dataset.tensors  # 100, so the last batch of 16 is short
    labels[:50] = 1 - labels[:50]  # a loss that differs between batches
    expected = nn.functional.cross_entropy(linear(points), labels).item()
    history = fit(linear, separable, max_epochs=1, learning_rate=1e-12, objective=objective)  # leaves the network
    assert history.train_loss[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, torch.tensor([1.0, 9.0])])
def test_the_objective_is_torchs_cross_entropy(linear, separable, class_weights, smoothing):
    points, labels = separable[0].dataset.tensors
    losses, weights, logits = CrossEntropy(class_weights, smoothing)(linear, points, labels)
    expected = nn.functional.cross_entropy(logits, labels, class_weights, label_smoothing=smoothing)
    assert (losses.sum() / weights.sum()).item() == pytest.approx(expected.item(), rel=1e-6)


class TeachesTheOpposite(Objective):
    """An objective that moves the points at random and says the opposite of the labels."""

    def forward(self, model, points, labels):
        logits = model(points + torch.rand(len(points), 1))
        losses = nn.functional.cross_entropy(logits, 1 - labels, reduction="none")
        return losses, torch.ones_like(losses), logits


def test_an_objective_decides_what_is_learned_and_labels_what_is_reported(linear, separable):
    history = fit(linear, separable, objective=TeachesTheOpposite())
    assert history.val_accuracy[-1] < 0.1 and history.train_accuracy[-1] < 0.1
    assert history.train_loss[-1] > 1


class Squares(Objective):
    """An objective without logits: the mean square of what the network says; counts its steps."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, model, points, labels):
        losses = model(points).square().mean(dim=1)
        return losses, torch.ones_like(losses), None

    def after_step(self, model):
        self.steps += 1


def test_an_objective_without_logits_has_no_train_accuracy_and_its_own_loss(linear, separable):
    points, _ = separable[0].dataset.tensors  # 100, so the last batch of 16 is short
    expected = linear(points).square().mean().item()
    history = fit(linear, separable, max_epochs=1, learning_rate=1e-12, objective=Squares())
    assert history.train_accuracy == [] and history.train_loss == [pytest.approx(expected, rel=1e-5)]
    assert history.val_accuracy == [evaluate(linear, separable[1]).accuracy]
    assert len(history.columns["val_loss"]) == history.epochs == 1


@pytest.mark.parametrize(
    ("objective", "keep", "train_accuracies"),
    [(TeachesTheOpposite, "best", 4), (Squares, "last", 0)],
    ids=["a random objective", "without train accuracies"],
)
def test_a_training_with_an_objective_continues_as_if_never_interrupted(separable, objective, keep, train_accuracies):
    def run(epochs, state=None):
        torch.manual_seed(0)
        model, states = nn.Linear(2, 2), []
        separable[0].generator.manual_seed(0)
        save = {"save_state": lambda state: states.append(copy.deepcopy(state)), "state": state}
        return fit(model, separable, max_epochs=epochs, keep=keep, objective=objective(), **save), model, states[-1]

    complete, model, _ = run(4)
    resumed, again, _ = run(4, state=run(2)[2])
    assert resumed == complete and torch.equal(model.weight, again.weight)
    assert len(complete.train_accuracy) == train_accuracies and len(complete.train_loss) == 4


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 14), (3, 6)])  # 7 batches an epoch
def test_an_objective_is_told_of_each_step_of_the_optimizer(linear, separable, accumulation, steps):
    objective = Squares()
    fit(linear, separable, max_epochs=2, gradient_accumulation_steps=accumulation, objective=objective)
    assert objective.steps == steps


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_without_a_generator_can_be_trained_on_and_continued(linear, separable, shuffle):
    loader, states = DataLoader(separable[0].dataset, 16, shuffle=shuffle), []
    fit(linear, (loader, separable[1]), max_epochs=1, save_state=states.append)
    assert fit(linear, (loader, separable[1]), max_epochs=2, state=states[0]).epochs == 2


# ------------------------------------------------------------------------------------------------------------ stopping


@pytest.mark.parametrize(
    ("val_losses", "stop"),
    [([3, 2, 1], False), ([1, 2, 3], False), ([1, 2, 3, 2], True), ([3, 1, 2, 2, 0.9], False), ([1, 1, 1, 1], True)],
)
def test_patience_counts_epochs_since_the_lowest_val_loss(val_losses, stop):
    assert should_stop(val_losses, TrainSettings(stopping="patience", patience_epochs=3)) is stop


@pytest.mark.parametrize(
    ("val_losses", "stop"),
    [([1, 2], False), ([1, 2, 3], True), ([1, 3, 2], True), ([1, 2, 0.5], False), ([5, 1, 2, 2], True)],
)
def test_two_worse_stops_when_two_val_losses_are_higher_than_the_one_before(val_losses, stop):
    assert should_stop(val_losses, TrainSettings(stopping="two_worse")) is stop


def test_training_stops_early_only_with_a_rule(linear, separable):
    unlearnable = (separable[0], with_labels_swapped(separable[1]))
    assert fit(linear, unlearnable, max_epochs=9, stopping="patience", patience_epochs=2).epochs < 9
    assert fit(linear, unlearnable, max_epochs=9).epochs == 9


@pytest.mark.parametrize("settings", [{}, {"schedule": "cosine", "ema_decay": 0.9}])
def test_a_trained_model_is_freed_with_its_last_name(linear, separable, settings):
    gc.collect()
    gc.disable()  # what waits for it in a cycle keeps its memory, a GPU's too
    try:
        model = copy.deepcopy(linear)
        fit(model, separable, max_epochs=2, **settings)
        reference = weakref.ref(model)
        del model
        assert reference() is None
    finally:
        gc.enable()


# ----------------------------------------------------------------------------------------------- optimizer and schedule


def learning_rates(**settings):
    settings = TrainSettings(learning_rate=1.0, **settings)
    optimizer = build_optimizer(nn.Linear(1, 1), settings)
    scheduler, rates = build_scheduler(optimizer, settings), []
    for _ in range(settings.max_epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedules_follow_their_definition():
    assert learning_rates(max_epochs=5, schedule="none") == [1.0] * 5
    assert learning_rates(max_epochs=5, schedule="step", step_epochs=2) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cosine = [0.5 * (1 + math.cos(math.pi * done / 4)) for done in range(4)]
    assert learning_rates(max_epochs=6, schedule="cosine", warmup_epochs=2) == pytest.approx([1 / 3, 2 / 3, *cosine])


def test_frozen_parameters_are_not_given_to_the_optimizer(small_network):
    small_network.features.requires_grad_(False)
    given = build_optimizer(small_network, TrainSettings()).param_groups[0]["params"]
    assert [id(each) for each in given] == [id(each) for each in small_network.classifier.parameters()]


def test_the_backbone_can_have_a_lower_learning_rate_under_the_same_schedule(small_network):
    settings = TrainSettings(learning_rate=1.0, backbone_lr_factor=0.1, schedule="step", step_epochs=1)
    optimizer = build_optimizer(small_network, settings)
    scheduler = build_scheduler(optimizer, settings)
    head, features = optimizer.param_groups
    for group, part in ((head, small_network.classifier), (features, small_network.features)):
        assert [id(each) for each in group["params"]] == [id(each) for each in part.parameters()]
    assert (head["lr"], features["lr"]) == pytest.approx((1, 0.1))
    optimizer.step()
    scheduler.step()
    assert (head["lr"], features["lr"]) == pytest.approx((0.1, 0.01))


def test_momentum_is_nesterovs_and_off_by_default(linear):
    group = build_optimizer(linear, TrainSettings(optimizer="sgd", momentum=0.9)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
    assert not build_optimizer(linear, TrainSettings(optimizer="sgd")).param_groups[0]["nesterov"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "adagrad"),
        ("schedule", "linear"),
        ("stopping", "soon"),
        ("keep", "first"),
        ("precision", "float8"),
        ("max_epochs", 0),
        ("patience_epochs", 0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("backbone_lr_factor", 0),
        ("momentum", 0.9),  # of Adam
        ("label_smoothing", 1.0),
        ("weight_decay", -0.1),
        ("weight_decay", "x"),
        ("max_epochs", "3"),
        ("max_epochs", 1.5),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        TrainSettings(**{field: value})


# ------------------------------------------------------------------------------------------------- devices and networks


def test_folded_batchnorm_has_the_same_outputs_and_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model, images = SceneClassifier(3), torch.randn(16, 3, 32, 32)
    estimate_batchnorm(model, [images])  # outputs that depend on the image
    folded = fold_batchnorm(model.train())
    model.eval()
    with torch.no_grad():
        assert torch.allclose(folded(images), model(images), atol=1e-4)
        assert torch.allclose(folded.features[:3](images), model.features[:3](images), atol=1e-4)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [name for name, _ in folded.named_modules()] == [name for name, _ in model.named_modules()]
    assert isinstance(model.features[0][1], nn.BatchNorm2d)


def test_bfloat16_is_used_where_it_is_asked_for_and_not_by_default_on_a_cpu(linear, separable):
    assert resolve_precision("auto", torch.device("cpu")) == "float32"
    exact, rounded = predict(linear, separable[1])[0], predict(linear, separable[1], precision="bfloat16")[0]
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, rtol=0.05, atol=0.05)
    with pytest.raises(ValueError, match="precision is 'fp8'"):
        evaluate(linear, separable[1], precision="fp8")


def test_a_device_that_is_not_available_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("tpu", "cuda", "mps"):
        with pytest.raises(ValueError, match=device):
            build_accelerator(device)


def test_a_variable_that_accelerate_refuses_is_named(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "maybe")
    AcceleratorState._reset_state(reset_partial_state=True)  # it reads the environment once
    with pytest.raises(ValueError, match="ACCELERATE_USE_CPU=maybe"):
        build_accelerator("cpu")
    AcceleratorState._reset_state(reset_partial_state=True)
