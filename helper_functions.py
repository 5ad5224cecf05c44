"""The training loop that both tasks share: settings, history, stopping rules, train, evaluate, predict.

It knows no scene, no rotation and no EfficientNet.  It touches no file and plots nothing.  `loop/` has what it
stands on: devices, the step of one batch, checks of settings.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from loop.batchnorm import fold_batchnorm
from loop.checks import check_choices, check_fields, make_plain
from loop.devices import PRECISIONS, as_input_of, autocast, build_accelerator, get_generators, set_generators
from loop.steps import STEPS, Step, build_step

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("step", "cosine", "none")
STOPPING_RULES = ("none", "patience", "two_worse")
KEPT_EPOCHS = ("best", "last")
SHOWN_EVERY = 0.5  # seconds between two looks at the running loss, which make a GPU wait


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.  Lengths are in epochs; a value that makes no sense raises ValueError naming it."""

    max_epochs: int = 30
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    backbone_lr_factor: float = 1.0  # learning rate of `model.features` divided by that of the head
    momentum: float = 0.0  # of "sgd"; Nesterov's if above 0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    schedule: str = "step"  # "cosine" would reach 0 after the last epoch
    step_epochs: int = 10  # "step": epochs between two steps
    step_factor: float = 0.1  # each step multiplies the learning rate by this
    warmup_epochs: int = 0  # "cosine": epochs of linear warm-up
    stopping: str = "none"  # see `should_stop`
    keep: str = "best"  # the weights of which epoch: "best" (`History.best_epoch`) or "last"
    patience_epochs: int = 10  # for "patience"
    gradient_accumulation_steps: int = 1  # batches per optimizer step, see `train_one_epoch`
    ema_decay: float = 0.0  # decay per step of the exponential moving average of the weights; 0: none
    precision: str = "auto"  # see `resolve_precision`
    step: str = "auto"  # how a step is launched, see `resolve_step`

    def __post_init__(self):
        """Refuse what cannot be trained; numbers of NumPy become plain types."""
        make_plain(self, "TrainSettings")
        check_choices(
            self,
            optimizer=OPTIMIZERS,
            schedule=SCHEDULES,
            stopping=STOPPING_RULES,
            keep=KEPT_EPOCHS,
            precision=PRECISIONS,
            step=STEPS,
        )
        lengths = ("max_epochs", "step_epochs", "patience_epochs", "gradient_accumulation_steps")
        check_fields(self, lengths, lambda value: value >= 1, "at least 1")
        check_fields(self, ("learning_rate",), lambda value: 0 < value < math.inf, "above 0 and finite")
        check_fields(self, ("backbone_lr_factor",), lambda value: 0 < value <= 1, "above 0 and at most 1")
        fractions = ("momentum", "label_smoothing", "ema_decay")
        check_fields(self, fractions, lambda value: 0 <= value < 1, "at least 0 and below 1")
        if self.momentum > 0 and self.optimizer != "sgd":
            raise ValueError(f"momentum is {self.momentum}; it applies to sgd only, not {self.optimizer}")
        if not 0 <= self.weight_decay < math.inf or self.warmup_epochs < 0:
            raise ValueError("weight_decay and warmup_epochs must not be negative, and finite")
        check_fields(self, ("step_factor",), lambda value: 0 < value <= 1, "above 0 and at most 1")


@dataclass
class History:
    """One entry per epoch: cross-entropy in nats per image, accuracies 0 to 1, predicted labels.

    The train columns are measured during the epoch, with dropout and augmentation on; the others after it.  The test
    columns stay empty if no test images were given, and train_accuracy if the objective has no logits.
    """

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    val_predictions: list[list[int]] = field(default_factory=list)
    test_predictions: list[list[int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, compare=False)  # two equal trainings may differ in time

    def append(self, **values):
        """Add one epoch's values, given by column name."""
        for name, value in values.items():
            getattr(self, name).append(value)

    @property
    def epochs(self) -> int:
        """Epochs trained so far."""
        return len(self.val_loss)

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, of the highest val_accuracy; of equal ones that of the lowest val_loss."""
        return 1 + max(range(self.epochs), key=lambda epoch: (self.val_accuracy[epoch], -self.val_loss[epoch]))

    @property
    def columns(self) -> dict:
        """The numbers that can be plotted against the epoch: every column but the predictions."""
        return {each.name: getattr(self, each.name) for each in fields(self) if "predictions" not in each.name}


@dataclass(frozen=True)
class Evaluation:
    """A network's cross-entropy (nats per image), accuracy (0 to 1) and predicted labels (N,) on a set of images."""

    loss: float
    accuracy: float
    predictions: torch.Tensor


def should_stop(val_losses: list[float], settings: TrainSettings) -> bool:
    """Whether to stop after these epochs.  It depends on the losses alone, so a resumed run has nothing to restore.

    "patience": no new lowest val_loss for `patience_epochs`.  "two_worse" (Deceuninck 2023): both of the last two
    losses are higher than the one before them.  "none": never.
    """
    if settings.stopping == "patience" and val_losses:
        lowest = min(range(len(val_losses)), key=val_losses.__getitem__)
        return len(val_losses) - 1 - lowest >= settings.patience_epochs
    if settings.stopping == "two_worse":
        return len(val_losses) >= 3 and min(val_losses[-2:]) > val_losses[-3]
    return False


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The model's logits (N, classes) for images, float32; raises what `logits_in` raises."""
    return logits_in(model(as_input_of(model, images)), len(images))


def logits_in(outputs, images: int) -> torch.Tensor:
    """The logits (images, classes) in a model's outputs, float32.  In a dict they are "logits".

    Raises ValueError for other outputs.  A tuple is one of them: what stands first in it differs from model to model.
    """
    if isinstance(outputs, Mapping) and "logits" in outputs:
        outputs = outputs["logits"]
    if not isinstance(outputs, torch.Tensor) or outputs.dim() != 2 or len(outputs) != images:
        found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else f"a {type(outputs).__name__}"
        raise ValueError(f"the model must give logits ({images}, classes) of {images} images, not {found}")
    return outputs.float()


def images_and_labels(batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The two tensors of a batch.  Raises ValueError for a batch of anything else."""
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if pair and all(isinstance(each, torch.Tensor) for each in batch):
        return tuple(batch)
    words = f" of {', '.join(type(each).__name__ for each in batch)}" if isinstance(batch, (tuple, list)) else ""
    raise ValueError(f"the loader gives a {type(batch).__name__}{words}; it must give two tensors, images and labels")


def check_labels(labels: torch.Tensor, classes: int):
    """Raise ValueError unless labels are (N,), int64 and 0 to classes - 1.  It makes a GPU wait."""
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype} of {tuple(labels.shape)}; they must be torch.int64 of (N,)")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        raise ValueError(f"labels are {low} to {high}; with {classes} logits they must be 0 to {classes - 1}")


class Objective(nn.Module):
    """What a training minimizes, and how the network is evaluated after each epoch.

    An objective is called with the network, images (N, 3, S, S) that are `as_input_of` it, and labels (N,).  It returns
    the losses (N,) that are minimized, their weights (N,), whose sum divides the sum of the losses, and logits
    (N, classes), or None if it has none.
    """

    recordable = False  # whether it does the same with every batch, and may be recorded in a CUDA graph

    def after_step(self, model: nn.Module):
        """Called after each step of the optimizer."""

    def evaluate(self, network: nn.Module, loader, accelerator: Accelerator, precision: str) -> Evaluation:
        """Loss, accuracy and predictions on the images of a loader."""
        return evaluate(network, loader, accelerator, precision)


class CrossEntropy(Objective):
    """The default objective: cross-entropy of logits and labels.

    `class_weights` (classes,) and `label_smoothing` (0 to 1) mean what they mean in nn.CrossEntropyLoss.
    """

    recordable = True

    def __init__(self, class_weights: torch.Tensor | None = None, label_smoothing: float = 0.0):
        """Keep both; class_weights move with the module."""
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.label_smoothing = label_smoothing
        self.checked = False

    def forward(self, model, images, labels):
        """Losses (N,), weights (N,) and logits (N, classes), float32.

        Raises ValueError for a model of one logit, and for what `check_labels` refuses: on a GPU in the first batch.
        """
        logits = logits_in(model(images), len(images))
        if logits.shape[1] == 1:
            raise ValueError(
                "the model gives one logit; cross-entropy needs one for each class, so two for two classes"
            )
        if not self.checked or labels.device.type == "cpu":
            check_labels(labels, logits.shape[1])
            self.checked = True
        losses = nn.functional.cross_entropy(
            logits, labels, self.class_weights, reduction="none", label_smoothing=self.label_smoothing
        )
        weights = torch.ones_like(losses) if self.class_weights is None else self.class_weights[labels]
        return losses, weights, logits


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019) or SGD over the parameters that are not frozen.

    With `backbone_lr_factor` below 1, the parameters of `model.features` are a group with a lower learning rate (after
    Howard and Ruder 2018, who lower it layer by layer).  Raises ValueError if all are frozen.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter to train: all are frozen (requires_grad is False)")
    if settings.backbone_lr_factor < 1 and hasattr(model, "features"):  # on frozen features the head is all there is
        slower = [parameter for parameter in model.features.parameters() if parameter.requires_grad]
        others = [parameter for parameter in parameters if not any(parameter is each for each in slower)]
        lower_rate = settings.learning_rate * settings.backbone_lr_factor
        parameters = [{"params": others}, {"params": slower, "lr": lower_rate}]
    common = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=settings.momentum, nesterov=settings.momentum > 0, **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(parameters, **common)


def build_scheduler(optimizer: torch.optim.Optimizer, settings: TrainSettings):
    """The learning-rate schedule, stepped once per epoch."""

    def factor(epoch):  # epochs done, from 0
        if settings.schedule == "step":
            return settings.step_factor ** (epoch // settings.step_epochs)
        if settings.schedule == "cosine":
            if epoch < settings.warmup_epochs:
                return (epoch + 1) / (settings.warmup_epochs + 1)
            done = (epoch - settings.warmup_epochs) / max(1, settings.max_epochs - settings.warmup_epochs)
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@dataclass
class _Training:
    """The parts of a training that change with every step, and what evaluates and saves them."""

    model: nn.Module  # as the caller knows it
    network: nn.Module  # the same, as accelerate shares it among processes
    objective: Objective
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: torch.optim.swa_utils.AveragedModel | None
    accelerator: Accelerator
    sampler_generator: torch.Generator | None
    step: Step

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and returned: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def evaluation_network(self) -> nn.Module:
        """`evaluated`, ready to predict; BatchNorm is folded if its class says that nothing looks inside its blocks."""
        if self.accelerator.num_processes > 1:
            return self.network if self.ema is None else self.ema  # processes share BatchNorm statistics
        return fold_batchnorm(self.evaluated) if getattr(self.evaluated, "foldable", False) else self.evaluated

    def state(self, history: History, best_weights: dict) -> dict:
        """Everything that `restore` needs, in plain types and tensors."""
        return {
            "model": self.evaluated.state_dict(),
            "trained_model": None if self.ema is None else self.model.state_dict(),
            "ema_steps": 0 if self.ema is None else self.ema.n_averaged.item(),
            "best_weights": best_weights,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generators": get_generators(self.sampler_generator),
            "history": asdict(history),
        }

    def restore(self, state: dict) -> tuple[History, dict]:
        """Continue from a `state`; returns the history and the best weights so far.

        Raises ValueError for a state of another network, of other settings or of another loader.
        """
        try:
            if (state["trained_model"] is None) != (self.ema is None):
                raise ValueError("one of both has an exponential moving average")
            if (state["generators"]["sampler"] is None) != (self.sampler_generator is None):
                raise ValueError("the sampler of one of both has a generator")
            if state["optimizer"]["param_groups"][0].keys() != self.optimizer.param_groups[0].keys():
                raise ValueError("it has another optimizer")
            self.evaluated.load_state_dict(state["model"])
            if self.ema is not None:
                self.model.load_state_dict(state["trained_model"])
                self.ema.n_averaged.fill_(state["ema_steps"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            set_generators(self.sampler_generator, state["generators"])
            return History(**state["history"]), state["best_weights"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the state is not one of this network, settings and loader: {error}") from error


def train_one_epoch(training: _Training, loader, bar: tqdm) -> tuple[float, float | None]:
    """Train on every batch once.  Returns cross-entropy (nats per image) and accuracy (0 to 1) over all images.

    Without logits they are the mean of what is minimized, and None.
    The batches of an optimizer step have the gradient of one large batch, whatever their sizes and weights.  Only what
    depends on a batch by its nature differs: BatchNorm's statistics, and losses that compare the images of a batch.
    """
    accelerator, network = training.accelerator, training.network
    network.train()
    seen, weight_of_step = _Seen(), 0
    for batch in loader:
        images, labels = images_and_labels(batch)
        if not seen.images and not torch.isfinite(images).all():
            raise ValueError("the train loader gives images with values that are not finite; remove or repair them")
        with accelerator.accumulate(network):
            losses, logits, weight_of_step = training.step(images, labels, weight_of_step)
            training.optimizer.step()
            training.optimizer.zero_grad()
        if accelerator.sync_gradients:
            weight_of_step = 0
            training.objective.after_step(training.model)
            if training.ema is not None:
                training.ema.update_parameters(training.model)
        # Gathered from all processes, without the images that accelerate repeats to fill the last batch.
        if logits is None:
            losses, labels = accelerator.gather_for_metrics((losses.detach(), labels))
            seen.add(len(labels), losses.sum())
        else:
            logits, labels = accelerator.gather_for_metrics((logits.detach(), labels))
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            seen.add(len(labels), loss, (logits.argmax(dim=1) == labels).sum())
        bar.update(len(labels))
        if seen.age > SHOWN_EVERY:
            bar.set_postfix_str(_numbers(*seen.means()), refresh=False)
    return seen.means()


class _Seen:
    """Sums over the images of an epoch.  What is added stays on the device until the means are asked for."""

    def __init__(self):
        self.images, self.loss, self.hits = 0, 0.0, None
        self.pending, self.read = [], time.perf_counter()

    @property
    def age(self) -> float:
        """Seconds since the means were last asked for."""
        return time.perf_counter() - self.read

    def add(self, images: int, loss: torch.Tensor, hits: torch.Tensor | None = None):
        """Add a batch: its images, the sum of their losses, and how many were classified correctly."""
        self.images += images
        self.pending.append((loss, hits))

    def means(self) -> tuple[float, float | None]:
        """Loss and accuracy so far; the order of summation is that of the batches, however often this is called."""
        if self.pending:
            losses, hits = zip(*self.pending, strict=True)
            self.loss = sum(torch.stack(losses).tolist(), self.loss)
            if hits[0] is not None:
                self.hits = sum(torch.stack(hits).tolist(), self.hits or 0)
        self.pending, self.read = [], time.perf_counter()
        return self.loss / self.images, None if self.hits is None else self.hits / self.images


def _numbers(loss: float, accuracy: float | None) -> str:
    return f"loss {loss:.3f}" + ("" if accuracy is None else f", accuracy {accuracy:.3f}")


@torch.no_grad()  # not inference mode: a caller may learn from the logits, such as a temperature
def predict(model, loader, accelerator=None, precision="auto") -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, classes) and labels (N,) of all images in the loader's order, on the CPU; leaves eval mode on.

    During training the accelerator is given, and it has already prepared model and loader.  Raises ValueError for a
    loader without images, and for an unknown precision.
    """
    if accelerator is None:
        accelerator = build_accelerator()
        model, loader = accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare(loader)
    model.eval()
    all_logits, all_labels = [], []
    for batch in loader:
        images, labels = images_and_labels(batch)
        with autocast(precision, accelerator.device):
            logits = logits_of(model, images)
        logits, labels = accelerator.gather_for_metrics((logits, labels))
        all_logits.append(logits.cpu())
        all_labels.append(labels.cpu())
    if not all_labels:
        raise ValueError("the loader has no batch; there are no images to predict")
    return torch.cat(all_logits), torch.cat(all_labels)


def evaluate(model, loader, accelerator=None, precision="auto") -> Evaluation:
    """Loss, accuracy and predictions over all images at once: a mean of batch means would favor a short last batch.

    Raises what `predict` and `check_labels` raise.
    """
    logits, labels = predict(model, loader, accelerator, precision)
    check_labels(labels, logits.shape[1])
    predictions = logits.argmax(dim=1)
    return Evaluation(
        loss=nn.functional.cross_entropy(logits, labels).item(),
        accuracy=(predictions == labels).sum().item() / len(labels),
        predictions=predictions,
    )


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    settings: TrainSettings,
    *,
    test_loader: DataLoader | None = None,
    objective: Objective | None = None,
    device: str = "auto",
    state: dict | None = None,
    save_state: Callable[[dict], None] | None = None,
    progress: bool = True,
    title: str = "",
) -> History:
    """Train, and leave the model at the epoch of `settings.keep`: by default the best one on the validation images.

    Loaders yield (images, labels).  `test_loader` is only watched: nothing is chosen by it.  `objective` is what is
    minimized, by default `CrossEntropy` with the settings' label smoothing; where there are logits, the reported losses
    are plain cross-entropy.  With `settings.ema_decay` the exponential moving average of weights and BatchNorm
    statistics is what is evaluated and returned (Polyak and Juditsky 1992).
    `save_state` is called after each epoch with all that is needed to continue.  A training that continues from such a
    `state` ends in the same history and weights as one that was never interrupted (bit for bit on a CPU), if the train
    loader's sampler has a generator.
    Within `torch.no_grad` and `torch.inference_mode` it works as outside.
    Raises FloatingPointError if the loss is not finite, and ValueError if a loader has no images or is none, if its
    batches are no pairs of images and labels, if labels are no classes of the model, if there is nothing to train, and
    for the state of another training.
    """
    for name, loader in (("train", train_loader), ("val", val_loader)):
        if not isinstance(loader, DataLoader):
            raise ValueError(f"the {name} loader is a {type(loader).__name__}; it must be a DataLoader of torch")
        if isinstance(loader.dataset, IterableDataset):
            raise ValueError(f"the {name} loader has an IterableDataset; it must have one of a known length")
        if len(loader) == 0:
            raise ValueError(f"the {name} loader has no batch; there are too few images")
    images_per_epoch = len(train_loader.dataset)
    training = _build_training(model, train_loader, settings, objective, device)
    accelerator = training.accelerator
    train_loader, val_loader = accelerator.prepare(train_loader, val_loader)
    held_out = [val_loader] if test_loader is None else [val_loader, accelerator.prepare(test_loader)]
    history, best_weights = (History(), None) if state is None else training.restore(state)
    with tqdm(
        total=settings.max_epochs * images_per_epoch,
        initial=history.epochs * images_per_epoch,
        unit="image",
        disable=not (progress and accelerator.is_main_process),
    ) as bar:
        for epoch in range(history.epochs + 1, settings.max_epochs + 1):
            if should_stop(history.val_loss, settings):
                break
            bar.set_description(f"{title} epoch {epoch}/{settings.max_epochs}".strip())
            _run_epoch(training, train_loader, held_out, settings, history, bar)
            if settings.keep == "last" or history.best_epoch == epoch:
                weights = training.evaluated.state_dict()
                best_weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
            if save_state is not None and accelerator.is_main_process:
                save_state(training.state(history, best_weights))
    model.load_state_dict(best_weights)
    return history


def _build_training(model, train_loader, settings, objective, device) -> _Training:
    accelerator = build_accelerator(device, settings.gradient_accumulation_steps)
    optimizer = build_optimizer(model, settings)
    scheduler = build_scheduler(optimizer, settings)
    ema = None
    if settings.ema_decay > 0:
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema_decay)
        ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        ema.to(accelerator.device)
    if objective is None:
        objective = CrossEntropy(label_smoothing=settings.label_smoothing)
    objective = objective.to(accelerator.device)
    network, optimizer = accelerator.prepare(model, optimizer)
    return _Training(
        model=model,
        network=network,
        objective=objective,
        optimizer=optimizer,
        scheduler=scheduler,
        ema=ema,
        accelerator=accelerator,
        sampler_generator=getattr(train_loader.sampler, "generator", None),
        step=build_step(network, objective, accelerator, settings),
    )


def _run_epoch(training: _Training, train_loader, held_out: list, settings: TrainSettings, history: History, bar: tqdm):
    """Train, evaluate, append all columns to the history, and step the schedule."""
    started = time.perf_counter()
    learning_rate = training.optimizer.param_groups[0]["lr"]
    train_loss, train_accuracy = train_one_epoch(training, train_loader, bar)
    history.append(train_loss=train_loss, learning_rate=learning_rate)
    if train_accuracy is not None:
        history.append(train_accuracy=train_accuracy)
    val_loss = _evaluate_epoch(training, held_out, settings.precision, history)
    if not math.isfinite(train_loss + val_loss + sum(history.test_loss[-1:])):
        raise FloatingPointError(
            f"the loss is not finite in epoch {history.epochs}; "
            "try a lower learning rate, or look for images that are not finite"
        )
    history.append(seconds=time.perf_counter() - started)
    bar.set_postfix_str(f"{_numbers(train_loss, train_accuracy)}, val accuracy {history.val_accuracy[-1]:.3f}")
    training.scheduler.step()


def _evaluate_epoch(training: _Training, held_out: list, precision: str, history: History) -> float:
    """Append the val columns, and the test columns if there is a test loader; returns the val_loss."""
    network = training.evaluation_network()
    for split, loader in zip(("val", "test"), held_out, strict=False):
        found = training.objective.evaluate(network, loader, training.accelerator, precision)
        history.append(
            **{
                f"{split}_loss": found.loss,
                f"{split}_accuracy": found.accuracy,
                f"{split}_predictions": found.predictions.tolist(),
            }
        )
    return history.val_loss[-1]
