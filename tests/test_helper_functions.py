import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset

from helper_functions import (
    History,
    TrainSettings,
    build_accelerator,
    build_optimizer,
    build_scheduler,
    evaluate,
    fold_batchnorm,
    predict,
    resolve_precision,
    should_stop,
    train,
)
from supervised.models import SceneClassifier, calibrate_batchnorm


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


def fit(model, loaders, **settings):
    defaults = {"max_epochs": 5, "learning_rate": 0.05, "schedule": "none"}
    return train(model, *loaders, TrainSettings(**defaults | settings), device="cpu", progress=False)


def test_folding_batchnorm_changes_no_output_and_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model, images = SceneClassifier(3), torch.randn(16, 3, 32, 32)
    calibrate_batchnorm(model, [(images, None)])  # outputs that depend on the image
    folded = fold_batchnorm(model.train())
    model.eval()
    with torch.no_grad():
        assert torch.allclose(folded(images), model(images), atol=1e-4)
        assert torch.allclose(folded.features[:3](images), model.features[:3](images), atol=1e-4)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [name for name, _ in folded.named_modules()] == [name for name, _ in model.named_modules()]
    assert isinstance(model.features[0][1], nn.BatchNorm2d)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["step", "plateau", "cosine", "none"])
def test_training_lowers_the_loss_on_a_separable_set(linear, separable, optimizer, schedule):
    history = fit(linear, separable, optimizer=optimizer, schedule=schedule)
    assert history.train_loss[-1] < 0.6 * history.train_loss[0]
    assert history.val_accuracy[-1] > 0.9


def test_the_best_weights_come_back_not_the_last(separable):
    class Scripted(nn.Module):
        """Right answers after two epochs, wrong ones after that, whatever the optimizer does."""

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

    model = Scripted()
    history = fit(model, separable, max_epochs=4)
    assert history.best_epoch == 2
    assert model.epochs == 2
    assert evaluate(model, separable[1]).accuracy == history.val_accuracy[1] > history.val_accuracy[3]


def test_of_equal_accuracies_the_lower_loss_is_the_best_epoch():
    assert History(val_accuracy=[0.5, 0.9, 0.9, 0.9], val_loss=[1.0, 0.4, 0.3, 0.3]).best_epoch == 3


def test_evaluate_over_a_ragged_last_batch_equals_one_cross_entropy_over_all(linear):
    generator = torch.Generator().manual_seed(1)
    points, labels = 5 * torch.randn(33, 2, generator=generator), torch.randint(0, 2, (33,), generator=generator)
    labels[-1] = linear(points[-1:]).argmin()  # a mistake in the short batch, which a mean of means would overrate
    evaluation = evaluate(linear, DataLoader(TensorDataset(points, labels), 16))
    assert evaluation.loss == pytest.approx(nn.functional.cross_entropy(linear(points), labels).item(), rel=1e-6)
    assert evaluation.accuracy == (linear(points).argmax(dim=1) == labels).double().mean()


def test_the_train_loss_too_is_one_cross_entropy_over_all_images(linear, separable):
    points, labels = separable[0].dataset.tensors  # 100, so that the last batch of 16 is short
    labels[:50] = 1 - labels[:50]  # a loss that differs between batches
    expected = nn.functional.cross_entropy(linear(points), labels).item()
    history = fit(linear, separable, max_epochs=1, learning_rate=1e-12)  # the network stays as it is
    assert history.train_loss[0] == pytest.approx(expected, rel=1e-6)


def test_predict_keeps_the_order_of_the_loader(linear, separable):
    logits, labels = predict(linear, separable[1])
    points, expected = separable[1].dataset.tensors
    assert torch.equal(labels, expected)
    assert torch.allclose(logits, linear(points))


def test_reported_losses_are_plain_cross_entropy_whatever_is_minimised(linear, separable):
    def one_epoch(**arguments):
        model = nn.Linear(2, 2)
        model.load_state_dict(linear.state_dict())
        settings = TrainSettings(max_epochs=1, learning_rate=1e-12, label_smoothing=arguments.pop("smoothing", 0.0))
        separable[0].generator.manual_seed(0)
        return train(model, *separable, settings, device="cpu", progress=False, **arguments)

    plain = one_epoch()
    assert one_epoch(class_weights=torch.tensor([1.0, 9.0])).train_loss == pytest.approx(plain.train_loss)
    assert one_epoch(smoothing=0.5).train_loss == pytest.approx(plain.train_loss)


def test_class_weights_change_what_is_learned(separable):
    def shares(weights):
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        separable[0].generator.manual_seed(0)
        train(model, *separable, TrainSettings(max_epochs=1), class_weights=weights, device="cpu", progress=False)
        return predict(model, separable[1])[0].softmax(dim=1)[:, 1].mean()

    assert shares(torch.tensor([1.0, 9.0])) > shares(None)


class MixedTwice(nn.Module):
    """A teacher that moves the points at random, and says by their first coordinate what they are."""

    def forward(self, points):
        points = points + torch.rand(len(points), 1)
        return points, (4 * points[:, :1] * torch.tensor([-1.0, 1.0])).softmax(dim=1)


def test_a_teachers_words_are_learned_in_place_of_the_labels_and_its_images_in_place_of_the_images(linear, separable):
    wrong = DataLoader(TensorDataset(separable[0].dataset.tensors[0], 1 - separable[0].dataset.tensors[1]), 16)
    settings = TrainSettings(max_epochs=10, learning_rate=0.05, schedule="none")
    seen = []
    linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if module.training else None)
    history = train(
        linear, wrong, separable[1], settings, teacher=MixedTwice(), device="cpu", progress=False
    )  # fmt: skip
    assert history.val_accuracy[-1] > 0.9  # the labels say the opposite
    assert history.train_accuracy[-1] < 0.1 and history.train_loss[-1] > 1  # both measured by the labels
    moved = torch.cat(seen[:7]) - separable[0].dataset.tensors[0]
    assert (moved > 0).all() and torch.allclose(moved[:, 0], moved[:, 1], atol=1e-5)


def test_a_training_with_a_teacher_that_draws_goes_on_as_if_it_had_not_been_interrupted(separable):
    def run(epochs, state=None):
        torch.manual_seed(0)
        model, states = nn.Linear(2, 2), []
        separable[0].generator.manual_seed(0)
        settings = TrainSettings(max_epochs=epochs, schedule="none")
        common = {"teacher": MixedTwice(), "device": "cpu", "progress": False, "save_state": states.append}
        return train(model, *separable, settings, state=state, **common), model, copy.deepcopy(states[-1])

    whole, model, _ = run(4)
    resumed, again, _ = run(4, state=run(2)[2])
    assert resumed == whole and torch.equal(model.weight, again.weight)


def test_class_weights_and_a_teacher_together_are_refused(linear, separable):
    with pytest.raises(ValueError, match="class weights are of labels, and a teacher's"):
        train(linear, *separable, TrainSettings(), class_weights=torch.ones(2), teacher=MixedTwice(), device="cpu")


def test_a_loss_that_is_not_finite_raises_and_names_the_epoch(linear, separable):
    with torch.no_grad():
        linear.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite in epoch 1"):
        fit(linear, separable)


def test_test_images_are_watched_and_choose_nothing(linear, separable):
    start = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    without = fit(linear, separable)
    linear.load_state_dict(start)
    separable[0].generator.manual_seed(0)
    inverted = DataLoader(TensorDataset(separable[1].dataset.tensors[0], 1 - separable[1].dataset.tensors[1]), 16)
    settings = TrainSettings(max_epochs=5, learning_rate=0.05, schedule="none")
    watched = train(linear, *separable, settings, test_loader=inverted, device="cpu", progress=False)
    assert watched.val_loss == without.val_loss
    assert watched.best_epoch == without.best_epoch
    assert watched.test_accuracy == pytest.approx([1 - accuracy for accuracy in watched.val_accuracy])


@pytest.mark.parametrize(
    ("val_losses", "stop"),
    [([3, 2, 1], False), ([1, 2, 3], False), ([1, 2, 3, 2], True), ([3, 1, 2, 2, 0.9], False), ([1, 1, 1, 1], True)],
)
def test_patience_counts_epochs_since_the_lowest_loss(val_losses, stop):
    assert should_stop(val_losses, TrainSettings(stopping="patience", patience_epochs=3)) is stop


@pytest.mark.parametrize(
    ("val_losses", "stop"),
    [
        ([1, 2], False),
        ([1, 2, 3], True),
        ([1, 3, 2], True),
        ([1, 2, 0.5], False),
        ([5, 1, 2, 2], True),
        ([1, 1, 2], False),
    ],
)
def test_the_second_reports_rule_stops_when_two_epochs_are_worse_than_the_one_before(val_losses, stop):
    assert should_stop(val_losses, TrainSettings(stopping="two_worse")) is stop


def test_training_stops_early_and_not_without_a_rule(linear, separable):
    unlearnable = DataLoader(TensorDataset(separable[1].dataset.tensors[0], 1 - separable[1].dataset.tensors[1]), 16)
    loaders = (separable[0], unlearnable)
    assert fit(linear, loaders, max_epochs=9, stopping="patience", patience_epochs=2).epochs < 9
    assert fit(linear, loaders, max_epochs=9).epochs == 9


def test_a_loader_without_a_generator_of_its_own_can_be_trained_on(linear, separable):
    plain = DataLoader(separable[0].dataset, 16)
    shuffled = DataLoader(separable[0].dataset, 16, shuffle=True)
    states = []
    for loader in (plain, shuffled):
        train(
            linear, loader, separable[1], TrainSettings(max_epochs=1), device="cpu", progress=False,
            save_state=states.append,
        )  # fmt: skip
        train(linear, loader, separable[1], TrainSettings(max_epochs=2), device="cpu", progress=False, state=states[-1])


def learning_rates(**settings):
    settings = TrainSettings(learning_rate=1.0, **settings)
    optimizer = build_optimizer(nn.Linear(1, 1), settings)
    scheduler, rates = build_scheduler(optimizer, settings), []
    for _ in range(settings.max_epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([1.0] if settings.schedule == "plateau" else []))
    return rates


def test_schedules_follow_their_definition():
    assert learning_rates(max_epochs=5, schedule="none") == [1.0] * 5
    assert learning_rates(max_epochs=5, schedule="step", step_epochs=2) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cosine = learning_rates(max_epochs=6, schedule="cosine", warmup_epochs=2)
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert cosine[3] > cosine[4] > cosine[5] > 0
    plateau = learning_rates(max_epochs=6, schedule="plateau", step_epochs=2, step_factor=0.5)
    assert plateau[0] == 1.0
    assert plateau[-1] == 0.5


def test_frozen_parameters_are_not_given_to_the_optimizer(small_network):
    small_network.features.requires_grad_(False)
    given = build_optimizer(small_network, TrainSettings()).param_groups[0]["params"]
    assert sum(parameter.numel() for parameter in given) == sum(
        p.numel() for p in small_network.classifier.parameters()
    )


def test_features_may_learn_more_slowly_than_the_head_in_the_same_schedule(small_network):
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
    with pytest.raises(ValueError, match="backbone_lr_factor is 0; it must be above 0 and at most 1"):
        TrainSettings(backbone_lr_factor=0)


def test_momentum_is_that_of_sgd_and_refused_for_none_else(linear):
    group = build_optimizer(linear, TrainSettings(optimizer="sgd", momentum=0.9)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
    assert not build_optimizer(linear, TrainSettings(optimizer="sgd")).param_groups[0]["nesterov"]
    with pytest.raises(ValueError, match="momentum is 0.9.*adam"):
        TrainSettings(momentum=0.9)


def test_averaged_weights_are_evaluated_and_left_and_follow_their_definition(linear, separable):
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


def test_accumulating_two_batches_equals_one_batch_of_both(linear, separable):
    points, labels = separable[0].dataset.tensors
    start = {name: tensor.clone() for name, tensor in linear.state_dict().items()}

    def trained(batch_size, steps):
        linear.load_state_dict(start)
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(points[:96], labels[:96]), batch_size, shuffle=True, generator=generator)
        fit(linear, (loader, separable[1]), max_epochs=1, optimizer="sgd", gradient_accumulation_steps=steps)
        return linear.weight.detach().clone()

    assert torch.allclose(trained(8, 2), trained(16, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "adagrad"),
        ("schedule", "linear"),
        ("stopping", "soon"),
        ("precision", "float8"),
        ("max_epochs", 0),
        ("patience_epochs", 0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("label_smoothing", 1.0),
        ("weight_decay", -0.1),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        TrainSettings(**{field: value})


def test_auto_precision_is_float32_on_a_cpu():
    assert resolve_precision("auto", torch.device("cpu")) == "float32"
    assert resolve_precision("bfloat16", torch.device("cpu")) == "bfloat16"


def test_bfloat16_is_used_where_it_is_asked_for(linear, separable):
    exact, rounded = predict(linear, separable[1])[0], predict(linear, separable[1], precision="bfloat16")[0]
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, rtol=0.05, atol=0.05)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="tpu"):
        build_accelerator("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            build_accelerator("cuda")
