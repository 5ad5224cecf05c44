"""The train loop that both tasks share: settings, history, stopping rules, train, evaluate.

It does not know what a scene, a rotation or an EfficientNet is; it writes no file and draws nothing.  `accelerate`
(Hugging Face, 2022) places the network and the batches: one process on a CPU, a GPU, or many processes by `torchrun`.
"""

import copy
import ctypes
import math
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("step", "plateau", "cosine", "none")
STOPPING_RULES = ("none", "patience", "two_worse")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.  Lengths are in epochs; a value that makes no sense raises ValueError naming it."""

    max_epochs: int = 30
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    backbone_lr_factor: float = 1.0  # the learning rate of `model.features`, as a share of the head's
    momentum: float = 0.0  # of "sgd"; above 0 it is Nesterov's
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    schedule: str = "step"  # "plateau" follows val_loss, "cosine" falls to 0 in the last epoch
    step_epochs: int = 10  # "step": every so many epochs ...
    step_factor: float = 0.1  # ... the learning rate is multiplied by this; "plateau" uses both likewise
    warmup_epochs: int = 0  # "cosine": epochs of linear rise before it
    stopping: str = "none"  # see `should_stop`
    patience_epochs: int = 10  # for "patience"
    gradient_accumulation_steps: int = 1  # batches a step of the optimizer
    ema_decay: float = 0.0  # above 0: weights are averaged over steps, this share kept at each, see `train`
    precision: str = "auto"  # see `resolve_precision`

    def __post_init__(self):
        """Refuse what cannot be trained."""
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("stopping", STOPPING_RULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        for name in ("max_epochs", "step_epochs", "patience_epochs", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 and finite")
        if not 0 < self.backbone_lr_factor <= 1:
            raise ValueError(f"backbone_lr_factor is {self.backbone_lr_factor}; it must be above 0 and at most 1")
        for name in ("momentum", "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.momentum > 0 and self.optimizer != "sgd":
            raise ValueError(f"momentum is {self.momentum}, but {self.optimizer} takes none; it is of sgd")
        if self.weight_decay < 0 or self.warmup_epochs < 0:
            raise ValueError("weight_decay and warmup_epochs must not be negative")


@dataclass
class History:
    """One entry an epoch: losses are plain cross-entropy in nats an image, accuracies 0 to 1, predictions labels.

    The train columns are measured while the epoch runs (the network changes, dropout and augmentation are on); the
    others after it.  The test columns stay empty if no test images were given.
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
        """The numbers that can be drawn against the epoch: every column but the predictions."""
        return {each.name: getattr(self, each.name) for each in fields(self) if "predictions" not in each.name}


@dataclass(frozen=True)
class Evaluation:
    """What a network says of a set of images: plain cross-entropy (nats an image), accuracy, predicted labels (N,)."""

    loss: float
    accuracy: float
    predictions: torch.Tensor


def should_stop(val_losses: list[float], settings: TrainSettings) -> bool:
    """Whether to stop after these epochs.  A function of the losses alone, so a resumed run has nothing to restore.

    "patience": no new lowest val_loss for `patience_epochs`.  "two_worse" (Deceuninck 2023): each of the last two
    epochs is worse than the one before them.  "none": never.
    """
    if settings.stopping == "patience" and val_losses:
        lowest = min(range(len(val_losses)), key=val_losses.__getitem__)
        return len(val_losses) - 1 - lowest >= settings.patience_epochs
    if settings.stopping == "two_worse":
        return len(val_losses) >= 3 and min(val_losses[-2:]) > val_losses[-3]
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision "auto" stands for: bfloat16 on GPUs that have it, float32 elsewhere.

    A CPU without bfloat16 instructions emulates them, and evaluates twenty times slower than in float32; so bfloat16
    on a CPU must be asked for.
    """
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def keep_freed_memory():
    """Let glibc keep the memory that a training step frees, since the next step asks for the same again.

    By default glibc maps every large block anew and gives it back, and the kernel clears each page of it once more.
    Keeping them, EfficientNet-B0 trains up to half as fast again on two cores, and with channels-last images twice as
    fast (benchmarks/training_step.csv), with the same numbers to the last bit, for memory that stays reserved.  The
    same as MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in the environment.
    Without glibc (macOS, Windows) nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)


def build_accelerator(device: str = "auto", gradient_accumulation_steps: int = 1) -> Accelerator:
    """Accelerate's engine on `device`: "auto" (a GPU if there is one), "cpu" or "cuda".

    A batch is split among the processes, so the batch size of an experiment means the same on one and on many.  Also
    sets up what makes a CPU fast (`keep_freed_memory`), since all that runs a network comes through here.
    Raises ValueError for a device that is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {device!r}; it must be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no GPU here; use --device cpu")
    keep_freed_memory()
    return Accelerator(
        cpu=device == "cpu",
        gradient_accumulation_steps=gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The precision as a context.  Accelerate's own would be fixed for the whole process, but experiments differ."""
    enabled = resolve_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def load_plain(path: Path):
    """What `torch.save` wrote to a file, on the CPU: tensors and plain types only, so that no file can run code.

    Raises what torch.load raises for another file, and ValueError for one that would unpack to more than its size:
    torch.save compresses nothing, so that file is made to fill the memory.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked_bytes = sum(member.file_size for member in archive.infolist())
        if unpacked_bytes > path.stat().st_size:
            raise ValueError(f"it would unpack to {unpacked_bytes:,} bytes")
    return torch.load(path, map_location="cpu", weights_only=True)


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019) or SGD over the parameters that are not frozen.

    With `backbone_lr_factor` those of `model.features` are a group of their own, with a lower learning rate (after Howard
    and Ruder 2018, who lower it layer by layer).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.backbone_lr_factor < 1:
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
    """The learning rate's schedule, stepped once an epoch; only "plateau" looks at the val_loss it is given."""
    if settings.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=settings.step_factor, patience=settings.step_epochs
        )

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


def train_one_epoch(
    model, loader, criterion, optimizer, averaged, teacher, accelerator, precision, bar
) -> tuple[float, float]:
    """Train on every batch once; `averaged` (an AveragedModel, or None) takes the weights in after each step.

    `teacher` is that of `train`, or None.  Returns plain cross-entropy (nats an image) and accuracy over all images.
    """
    model.train()
    loss_sum, hits, images_seen = 0.0, 0, 0
    for images, labels in loader:
        with accelerator.accumulate(model):
            with autocast(precision, accelerator.device):
                images, targets = (images, labels) if teacher is None else teacher(images)
                logits = model(images).float()
                loss = share_of_loss(criterion, logits, targets, accelerator)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if averaged is not None and accelerator.sync_gradients:
            averaged.update_parameters(accelerator.unwrap_model(model))
        # Gathered from all processes, without the images that the last batch repeats to be equally long for each.
        logits, labels = accelerator.gather_for_metrics((logits.detach(), labels))
        loss_sum += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        hits += (logits.argmax(dim=1) == labels).sum().item()
        images_seen += len(labels)
        bar.update(len(labels))
        bar.set_postfix_str(f"loss {loss_sum / images_seen:.3f}, accuracy {hits / images_seen:.3f}", refresh=False)
    return loss_sum / images_seen, hits / images_seen


def share_of_loss(criterion, logits, targets, accelerator) -> torch.Tensor:
    """This process's part of a batch's mean loss: the mean over processes is what one process has of the whole batch.

    `targets` are labels (N,), or probabilities (N, classes) where the criterion has no class weights.

    A mean over processes is what they make of their gradients.  Each would count alike if it took the mean of its own
    images, but of the last batch they may have differing numbers: accelerate fills it up with images that repeat, which
    are left out here.  `criterion` sums, and its class weights divide the sum as in a mean of nn.CrossEntropyLoss.
    """
    batch, images = accelerator.gradient_state, len(targets)
    if accelerator.num_processes > 1 and batch.end_of_dataloader and batch.remainder > 0:
        images = min(max(batch.remainder - accelerator.process_index * images, 0), images)
    logits, targets = logits[:images], targets[:images]
    weights = torch.ones(images, device=logits.device) if criterion.weight is None else criterion.weight[targets]
    weight_of_batch = accelerator.reduce(weights.sum(), reduction="sum")
    return criterion(logits, targets) * accelerator.num_processes / weight_of_batch


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy in eval mode that gives the same outputs but for rounding, a third faster on a CPU.

    Each BatchNorm that follows a convolution in an nn.Sequential is multiplied into its weights; nn.Identity stands in
    its place, so the other modules keep their names.
    """
    model = copy.deepcopy(model).eval()
    for sequence in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for place in range(len(sequence) - 1):
            if isinstance(sequence[place], nn.Conv2d) and isinstance(sequence[place + 1], nn.BatchNorm2d):
                sequence[place] = fuse_conv_bn_eval(sequence[place], sequence[place + 1])
                sequence[place + 1] = nn.Identity()
    return model


@torch.inference_mode()
def predict(model, loader, accelerator=None, precision="auto") -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, classes) and labels (N,) of all images in the loader's order, on the CPU.  Model left in eval mode.

    Within a training the accelerator is given, and model and loader are already its own.
    """
    if accelerator is None:
        accelerator = build_accelerator()
        model, loader = accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare(loader)
    model.eval()
    all_logits, all_labels = [], []
    for images, labels in loader:
        with autocast(precision, accelerator.device):
            logits = model(images).float()
        logits, labels = accelerator.gather_for_metrics((logits, labels))
        all_logits.append(logits.cpu())
        all_labels.append(labels.cpu())
    return torch.cat(all_logits), torch.cat(all_labels)


def evaluate(model, loader, accelerator=None, precision="auto") -> Evaluation:
    """Loss, accuracy and predictions over all images at once: a mean of batch means would favour a short last batch."""
    logits, labels = predict(model, loader, accelerator, precision)
    predictions = logits.argmax(dim=1)
    return Evaluation(
        loss=nn.functional.cross_entropy(logits, labels).item(),
        accuracy=(predictions == labels).double().mean().item(),
        predictions=predictions,
    )


def train(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    settings: TrainSettings,
    *,
    test_loader: DataLoader | None = None,
    class_weights: torch.Tensor | None = None,
    teacher: nn.Module | None = None,
    device: str = "auto",
    state: dict | None = None,
    save_state: Callable[[dict], None] | None = None,
    progress: bool = True,
    title: str = "",
) -> History:
    """Train, and leave the model at its best epoch (`History.best_epoch`, chosen on the validation images).

    Loaders yield (images, labels); where the train loader's sampler has a generator, a resumed run goes on with its
    order.  `test_loader` is only watched: nothing is chosen by it.  `class_weights` (classes,) weigh the loss that is
    minimised, never the one reported.  `teacher(images)` gives the images to learn from, which it may have changed, and
    the probabilities (N, classes) to learn in place of the labels.  With `settings.ema_decay` what is evaluated,
    and left, is the exponential moving average of the weights and BatchNorm statistics after each step (after Polyak
    and Juditsky 1992).
    After each epoch `save_state` is given all that is needed to go on; `state` goes on from there, and ends in the same
    history and weights as a training that was never interrupted (bit for bit on a CPU).
    Raises FloatingPointError if the loss is not finite, ValueError if a loader has no images, or if there are both a
    teacher and class weights.
    """
    if teacher is not None and class_weights is not None:
        raise ValueError("class weights are of labels, and a teacher's probabilities replace them; give one of the two")
    for name, loader in (("train", train_loader), ("val", val_loader)):
        if len(loader) == 0:
            raise ValueError(f"the {name} loader has no batch; there are too few images")
    accelerator = build_accelerator(device, settings.gradient_accumulation_steps)
    generator = getattr(train_loader.sampler, "generator", None)
    optimizer = build_optimizer(model, settings)
    scheduler = build_scheduler(optimizer, settings)
    weights = None if class_weights is None else class_weights.to(accelerator.device)
    criterion = nn.CrossEntropyLoss(weight=weights, label_smoothing=settings.label_smoothing, reduction="sum")
    averaged = None
    if settings.ema_decay > 0:
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema_decay)
        averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    history, best_weights = History(), None
    images_an_epoch = len(train_loader.dataset)

    network, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, train_loader, val_loader)
    if test_loader is not None:
        test_loader = accelerator.prepare(test_loader)
    if teacher is not None:
        teacher.to(accelerator.device)
    # What is evaluated, as the processes share it, and the same as what is kept of it.
    evaluated, kept = (network, model) if averaged is None else (averaged, averaged.to(accelerator.device).module)
    if state is not None:
        kept.load_state_dict(state["model"])
        if averaged is not None:
            model.load_state_dict(state["trained_model"])
            averaged.n_averaged.fill_(state["averaged_steps"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        history, best_weights = History(**state["history"]), state["best_weights"]
        _set_generators(generator, state["generators"])

    with tqdm(
        total=settings.max_epochs * images_an_epoch,
        initial=history.epochs * images_an_epoch,
        unit="image",
        disable=not (progress and accelerator.is_main_process),
    ) as bar:
        for epoch in range(history.epochs + 1, settings.max_epochs + 1):
            if should_stop(history.val_loss, settings):
                break
            started = time.perf_counter()
            bar.set_description(f"{title} epoch {epoch}/{settings.max_epochs}".strip())
            learning_rate = optimizer.param_groups[0]["lr"]
            train_loss, train_accuracy = train_one_epoch(
                network, train_loader, criterion, optimizer, averaged, teacher, accelerator, settings.precision, bar
            )
            # Many processes share BatchNorm's statistics as they evaluate, so there they stay where they are.
            ready = fold_batchnorm(evaluated) if accelerator.num_processes == 1 else evaluated
            val = evaluate(ready, val_loader, accelerator, settings.precision)
            if not math.isfinite(train_loss + val.loss):
                raise FloatingPointError(f"the loss is not finite in epoch {epoch}; try a lower learning rate")
            history.append(
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                val_loss=val.loss,
                val_accuracy=val.accuracy,
                val_predictions=val.predictions.tolist(),
                learning_rate=learning_rate,
            )
            if test_loader is not None:
                test = evaluate(ready, test_loader, accelerator, settings.precision)
                history.append(
                    test_loss=test.loss, test_accuracy=test.accuracy, test_predictions=test.predictions.tolist()
                )
            history.append(seconds=time.perf_counter() - started)
            bar.set_postfix_str(
                f"loss {train_loss:.3f}, accuracy {train_accuracy:.3f}, val accuracy {val.accuracy:.3f}"
            )
            scheduler.step(*([val.loss] if settings.schedule == "plateau" else []))
            if history.best_epoch == epoch:
                best_weights = {name: tensor.detach().cpu().clone() for name, tensor in kept.state_dict().items()}
            if save_state is not None and accelerator.is_main_process:
                save_state(
                    {
                        "model": kept.state_dict(),
                        "trained_model": None if averaged is None else model.state_dict(),
                        "averaged_steps": 0 if averaged is None else averaged.n_averaged.item(),
                        "best_weights": best_weights,
                        "optimizer": optimizer.state_dict(),
                        "scheduler": scheduler.state_dict(),
                        "generators": _get_generators(generator),
                        "history": asdict(history),
                    }
                )
    model.load_state_dict(best_weights)
    return history


def _get_generators(sampler_generator: torch.Generator | None) -> dict:
    """The states of everything that draws: the order of the images, dropout on the CPU, dropout on the GPUs."""
    return {
        "sampler": None if sampler_generator is None else sampler_generator.get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_generators(sampler_generator: torch.Generator | None, states: dict):
    if sampler_generator is not None:
        sampler_generator.set_state(states["sampler"])
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
