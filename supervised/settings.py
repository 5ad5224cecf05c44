"""The supervised experiments, one frozen dataclass each: the two reports', the controls, our own and their ablations.

An experiment states only how it differs from its base, its question, and the experiment it is compared with.
Zioło (undated) is the first report, Deceuninck 2023 the second.  The nature scenes have a table of their own, after two
reports on ResNet-18: Berezin 2023 and "DF" (undated).
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from data.image_cache import RESIZE_RULES
from helper_functions import TrainSettings
from loop.checks import check_choices, check_fields, make_plain

NETWORKS = {  # how many stages the features of each have, counted from 0
    "efficientnet_b0": 9,
    "resnet18": 5,  # the stem, then torchvision's layer1 to layer4
    "resnet34": 5,
}
HEADS = ("shallow", "deep", "batchnorm_linear")
AUGMENTATION_NAMES = ("basic", "crop", "advanced", "advanced_without_crop", "padded_crop", "trivial", "mild")
FROZEN_MODES = ("eval", "batchnorm", "stochastic_depth", "train")  # "train": BatchNorm and stochastic depth
REPRODUCTION_FAMILY = "reproduction"  # of comparisons that test what a report may have done
CROPS = ("crop", "advanced", "trivial", "mild")  # the augmentations with a random resized crop


@dataclass(frozen=True)
class Experiment:
    """Everything that defines one training.

    Raises ValueError naming the experiment, the field and the value where a value makes no sense.
    """

    name: str  # key, file stem of checkpoint and result, label in figures
    question: str  # what this experiment is there to answer
    compared_with: str = ""  # the experiment that differs in what is asked, a setting or a recipe; "": none
    family: str = "this study"  # of comparisons that share a level; one that is added later must not change the others
    data: str = "15scene"  # a name that data.prepare knows, or a folder
    network: str = "efficientnet_b0"  # one of NETWORKS
    initial_weights: str = "imagenet"  # or "random", or the file of a state dict
    freeze_features: bool = False  # train the head alone
    frozen_mode: str = "eval"  # one of FROZEN_MODES: what of frozen features is in train mode, while a head learns
    frozen_stages: int = 0  # number of first stages that stay frozen while the others are trained
    head: str = "shallow"  # one of HEADS
    stages: tuple[int, ...] = (8,)  # of `features`: the head sees the pooled maps of each
    augmentation: str = "basic"  # one of AUGMENTATION_NAMES
    resize: str = "squash"  # one of RESIZE_RULES
    image_size: int = 224  # pixels, square
    crop_size: int | None = None  # pixels of a random crop after its resize, in training; None: image_size
    flip_tta: bool = False  # horizontal-flip test-time augmentation: features of image and flipped image averaged
    select_with_flip: bool = True  # False: epochs are compared without the flipped copy, in half the time
    images_per_class: int | None = None  # at most, of each split; None: all
    subset: float = 1.0  # fraction of each class of train and val, sampled by `seed`
    class_weights: tuple[tuple[str, float], ...] = ()  # (class, weight in the loss); other classes weigh 1
    batch_size: int = 32  # global, over all processes
    seed: int = 0
    save_epochs: tuple[int | str, ...] = ()  # epochs whose weights are saved besides the best; "last" is allowed
    earlier_accuracy: float | None = None  # of the earlier report (15-Scene: on all 2,985 validation images)
    train: TrainSettings = field(default_factory=TrainSettings)
    has_teachers: ClassVar[bool] = False

    def __post_init__(self):
        """Refuse what cannot be run; numbers of NumPy and paths become plain types."""
        make_plain(self, self.name)
        of = f"{self.name}: "
        check_choices(
            self,
            of,
            network=NETWORKS,
            head=HEADS,
            frozen_mode=FROZEN_MODES,
            augmentation=AUGMENTATION_NAMES,
            resize=RESIZE_RULES,
        )
        check_fields(self, ("subset",), lambda value: 0 < value <= 1, "above 0 and at most 1", of)
        check_fields(self, ("seed",), lambda value: 0 <= value < 2**64, "at least 0 and below 2**64", of)
        self._check_numbers()

    def _check_numbers(self):
        last = NETWORKS[self.network] - 1
        if not self.stages or sorted(set(self.stages) & set(range(last + 1))) != list(self.stages):
            raise ValueError(
                f"{self.name}: stages is {self.stages}; stages of {self.network} are 0 to {last}, each once, in order"
            )
        if not 0 <= self.frozen_stages <= last or (self.frozen_stages and self.freeze_features):
            raise ValueError(
                f"{self.name}: frozen_stages is {self.frozen_stages}; it must be 0 to {last}, "
                "and 0 where freeze_features is on, which freezes every stage"
            )
        if self.image_size < 32:
            raise ValueError(f"{self.name}: image_size is {self.image_size}; {self.network} needs at least 32 pixels")
        if self.crop_size is not None and not (self.crop_size >= 32 and self.augmentation in CROPS):
            raise ValueError(
                f"{self.name}: crop_size is {self.crop_size} and augmentation {self.augmentation!r}; "
                f"it needs at least 32 pixels and one of {', '.join(CROPS)}"
            )
        if self.images_per_class is not None and self.images_per_class < 1:
            raise ValueError(
                f"{self.name}: images_per_class is {self.images_per_class}; it must be at least 1, or None for all"
            )
        if self.batch_size < 2:
            raise ValueError(f"{self.name}: batch_size is {self.batch_size}; BatchNorm needs at least 2")
        if not isinstance(self.save_epochs, tuple) or not all(map(_is_epoch, self.save_epochs)):
            raise ValueError(
                f"{self.name}: save_epochs is {self.save_epochs!r}; it must be a tuple of epochs, from 1, or 'last'"
            )

    @property
    def features_once(self) -> bool:
        """Whether every epoch sees the same features, so that computing them once is enough."""
        return self.freeze_features and self.augmentation == "basic" and self.frozen_mode == "eval"

    @property
    def held_out_features_once(self) -> bool:
        """Whether val and test images have the same features in every epoch."""
        return self.freeze_features and self.frozen_mode in ("eval", "stochastic_depth")


def _is_epoch(value) -> bool:
    return value == "last" or (type(value) is int and value >= 1)


@dataclass(frozen=True)
class DistilledExperiment(Experiment):
    """A network distilled from an ensemble: it learns the teachers' mean probabilities, not the labels.

    After Hinton et al. 2015.  Teachers see the same augmented pixels as the student (Beyer et al. 2022).
    """

    teacher_run: str = ""  # the name of an experiment
    teacher_seeds: tuple[int, ...] = ()  # of its runs, each at its best epoch; their probabilities are averaged
    mixup: bool = False  # each image is mixed with another one of its batch, which contributes up to a half
    has_teachers: ClassVar[bool] = True

    def __post_init__(self):
        """Refuse what cannot be run."""
        super().__post_init__()
        if self.freeze_features:
            raise ValueError(f"{self.name}: freeze_features cannot be combined with distillation")
        if self.class_weights:
            raise ValueError(f"{self.name}: class_weights cannot be combined with distillation")


BASE = Experiment("supervised_1", "How far does plain fine-tuning of ImageNet weights get?", earlier_accuracy=0.9289)
_AUGMENTED = replace(
    BASE,
    name="supervised_2",
    question="Does augmentation raise the accuracy?",
    compared_with="supervised_1",
    augmentation="advanced",
    earlier_accuracy=0.9185,
)
_FROZEN = replace(
    BASE,
    name="imagenet_classifier",
    question="Control: how good are frozen ImageNet features?",
    compared_with="random_classifier",
    freeze_features=True,
    earlier_accuracy=None,
    train=TrainSettings(max_epochs=50),
)
_FOR_ROTATION = replace(  # with the head that the second report searched for features after rotation
    _FROZEN,
    name="imagenet_classifier_tuned",
    question="Control: how good are they with the second report's resize rule and its searched head?",
    compared_with="imagenet_classifier",
    resize="imagenet",
    batch_size=16,
    train=TrainSettings(max_epochs=40, learning_rate=1.320e-3, schedule="none"),
)
_FOR_PERTURBATION = replace(
    _FOR_ROTATION,
    name="imagenet_classifier_tuned_rate_2e-4",
    question="Control: how good are they with the head that the report searched for features after perturbation?",
    compared_with="",
    batch_size=13,
    train=replace(_FOR_ROTATION.train, learning_rate=2.018e-4),
)
_TUNED = (_FOR_ROTATION, _FOR_PERTURBATION)
_AUGMENTED_STRONGLY = replace(
    BASE,
    name="supervised_augmented",
    question="Do strong augmentation and EMA reach in 12 epochs what a low learning rate does in 40?",
    compared_with="supervised_tuned",
    augmentation="trivial",
    resize="imagenet",
    earlier_accuracy=None,
    train=TrainSettings(
        max_epochs=12,
        optimizer="adamw",
        learning_rate=6e-4,
        weight_decay=0.01,
        label_smoothing=0.1,
        schedule="cosine",
        warmup_epochs=2,
        ema_decay=0.98,  # over about 50 steps, an epoch
    ),
)
_FOUR_STAGES = replace(
    BASE,
    name="supervised_four_stages",
    question="Is a head on four stages, with mild augmentation, better?",
    compared_with="supervised_augmented",
    augmentation="mild",
    resize="imagenet",
    image_size=288,
    crop_size=224,  # a random crop enlarges objects; at test time 288 pixels do so (Touvron et al. 2019)
    flip_tta=True,
    stages=(5, 6, 7, 8),
    head="batchnorm_linear",
    earlier_accuracy=None,
    train=replace(_AUGMENTED_STRONGLY.train, learning_rate=1e-3, backbone_lr_factor=0.25, warmup_epochs=1),
)
_SHORT = replace(
    _FOUR_STAGES,
    name="supervised_short",
    question="Is it better with larger images and the first four stages frozen?",
    compared_with="supervised_four_stages",
    image_size=352,
    crop_size=288,
    frozen_stages=4,  # trains twice as fast
    train=replace(_FOUR_STAGES.train, max_epochs=8),  # of 10 the fifth was the best on val: 0.945
)
_LONG = replace(
    _SHORT,
    name="supervised_long",
    question="Are 20 epochs better than 8?",
    compared_with="supervised_short",
    train=replace(_SHORT.train, max_epochs=20),
)
_DISTILLED = DistilledExperiment(
    **{
        **vars(_LONG),
        "name": "distilled",
        "question": "Is a network distilled from an ensemble of three better than one trained on labels for as long?",
        "compared_with": "supervised_long",
        "train": replace(_LONG.train, label_smoothing=0.0),  # the teachers' probabilities are smooth
    },
    teacher_run=_SHORT.name,
    teacher_seeds=(2, 3, 4),
    mixup=True,
)
_SGD = replace(
    _AUGMENTED,
    name="supervised_5",
    question="Does SGD do as well as Adam at the same learning rate?",
    compared_with="supervised_2",
    train=replace(_AUGMENTED.train, optimizer="sgd"),
    earlier_accuracy=0.7051,
)
_TABLE = (
    BASE,
    _AUGMENTED,
    replace(
        _AUGMENTED,
        name="supervised_3",
        question="Does a deeper classifier help?",
        compared_with="supervised_2",
        head="deep",
        earlier_accuracy=0.9135,
    ),
    replace(
        _AUGMENTED,
        name="supervised_4",
        question="Do weights in the loss help the classes that are mistaken most?",
        compared_with="supervised_2",
        class_weights=(("coast", 1.5), ("mountain", 1.5), ("opencountry", 1.5)),
        earlier_accuracy=0.9219,
    ),
    _SGD,
    replace(
        _AUGMENTED,
        name="supervised_6",
        question="Does a ten times higher learning rate learn faster?",
        compared_with="supervised_2",
        train=replace(_AUGMENTED.train, learning_rate=0.01),
        earlier_accuracy=0.7269,
    ),
    replace(
        _AUGMENTED,
        name="supervised_final",
        question="Is the first report's choice better: class weights, and augmentation without the crop?",
        compared_with="supervised_1",
        augmentation="advanced_without_crop",
        class_weights=(("coast", 1.5), ("mountain", 1.5), ("opencountry", 1.5)),
        earlier_accuracy=0.9300,
    ),
    replace(
        BASE,
        name="supervised_tuned",
        question="Is the second report's choice better: a searched, far lower learning rate?",
        compared_with="supervised_final",
        resize="imagenet",
        batch_size=16,
        train=TrainSettings(max_epochs=40, learning_rate=2.405e-5, schedule="none"),
        earlier_accuracy=0.9374,
    ),
    _AUGMENTED_STRONGLY,
    _FOUR_STAGES,
    _SHORT,
    _LONG,
    _DISTILLED,
    _FROZEN,
    *_TUNED,
    *(
        replace(
            each,
            name=each.name.replace("imagenet", "random"),
            question=f"Control: how good are the features of a random network, with the head of {each.name}?",
            compared_with="",
            initial_weights="random",
        )
        for each in _TUNED
    ),
    replace(
        _FROZEN,
        name="imagenet_classifier_four_stages",
        question="Control: how close do frozen ImageNet features of four stages come to fine-tuning?",
        compared_with="supervised_long",
        resize="imagenet",
        stages=(5, 6, 7, 8),  # on val: 0.925, the last one alone 0.911 (logistic regression)
        head="batchnorm_linear",
        batch_size=64,
        train=TrainSettings(max_epochs=30, learning_rate=1e-3, weight_decay=0.01, schedule="cosine"),
    ),
    replace(
        _FROZEN,
        name="random_classifier",
        question="Control: how good are the features of a random network?",
        compared_with="",
        initial_weights="random",
    ),
)
EXPERIMENTS = {row.name: row for row in _TABLE}


def hypothesis(experiment: Experiment, suffix: str, question: str, **changes) -> Experiment:
    """An experiment with what may explain the report's number; it has none of its own unless one is given."""
    about = {"name": f"{experiment.name}_{suffix}", "question": question, "compared_with": experiment.name}
    return replace(experiment, **(about | {"family": REPRODUCTION_FAMILY, "earlier_accuracy": None} | changes))


# The first report's accuracy with SGD is far above ours, and it names no momentum: hypotheses of what it did.
_REPRODUCTION = tuple(
    hypothesis(_SGD, name, question, train=replace(_SGD.train, **changes))
    for name, question, changes in (
        ("momentum", "Is SGD better with a momentum of 0.9?", {"momentum": 0.9}),
        ("one_rate", "Is SGD better with a constant learning rate?", {"schedule": "none"}),
    )
)
REPRODUCTION = {row.name: row for row in _REPRODUCTION}

# Ablations of `supervised_short`: one change each.
_ABLATIONS = (
    replace(
        _SHORT,
        name="supervised_short_one_stage",
        question="Is it better with a head on the last stage alone?",
        compared_with="supervised_short",
        stages=(8,),
    ),
    replace(
        _SHORT,
        name="supervised_short_smaller_images",
        question="Is it better with smaller images?",
        compared_with="supervised_short",
        image_size=288,
        crop_size=224,
    ),
    replace(
        _SHORT,
        name="supervised_short_all_stages_trained",
        question="Is it better to train the first stages too?",
        compared_with="supervised_short",
        frozen_stages=0,
    ),
    replace(
        _SHORT,
        name="supervised_short_strong_augmentation",
        question="Is stronger augmentation better?",
        compared_with="supervised_short",
        augmentation="trivial",
    ),
    replace(
        _SHORT,
        name="supervised_short_without_ema",
        question="Is it better without EMA?",
        compared_with="supervised_short",
        train=replace(_SHORT.train, ema_decay=0.0),
    ),
    replace(
        _SHORT,
        name="supervised_short_without_smoothing",
        question="Is it better without label smoothing?",
        compared_with="supervised_short",
        train=replace(_SHORT.train, label_smoothing=0.0),
    ),
    replace(
        _SHORT,
        name="supervised_short_one_learning_rate",
        question="Is it better with one learning rate for backbone and head?",
        compared_with="supervised_short",
        train=replace(_SHORT.train, backbone_lr_factor=1.0),
    ),
)
ABLATIONS = {row.name: row for row in _ABLATIONS}

# Ablations of `distilled`, and twice its epochs.
_DISTILLATION_ABLATIONS = (
    replace(
        _DISTILLED,
        name="distilled_without_mixup",
        question="Is it better without mixup?",
        compared_with="distilled",
        mixup=False,
    ),
    replace(
        _DISTILLED,
        name="distilled_strong_augmentation",
        question="Is stronger augmentation better in distillation?",
        compared_with="distilled",
        augmentation="trivial",
    ),
    replace(
        _DISTILLED,
        name="distilled_long",
        question="Are twice as many epochs better in distillation?",
        compared_with="distilled",
        train=replace(_DISTILLED.train, max_epochs=40),
    ),
)
DISTILLATION_ABLATIONS = {row.name: row for row in _DISTILLATION_ABLATIONS}

# The two reports on the nature scenes: ResNet-18, Adam and SGD, learning rates 0.01 and 0.001, from random and from
# ImageNet weights, at 80 pixels (DF) and 224 (Berezin).  Neither names a momentum, a schedule or an augmentation.
# DF trained for 5 epochs, later for 10, Berezin for up to 35.  Few epochs are enough to compare settings.
_RESNET = Experiment(
    "nature_resnet18_sgd_1e-2",
    "How far does ResNet-18 get from random weights in 5 epochs at 80 pixels?",
    data="nature",
    network="resnet18",
    initial_weights="random",
    stages=(4,),
    resize="imagenet",
    image_size=80,
    train=TrainSettings(max_epochs=5, optimizer="sgd", learning_rate=0.01, momentum=0.9, schedule="none"),
)
_RESNET_FINE_TUNED = replace(
    _RESNET,
    name="nature_resnet18_imagenet_sgd_1e-2",
    question="How far does ResNet-18 get from ImageNet weights at 224 pixels?",
    compared_with="nature_resnet18_sgd_1e-2_224",
    initial_weights="imagenet",
    image_size=224,
    earlier_accuracy=0.97,
)
_EFFICIENTNET = replace(  # 3 epochs: enough to compare sizes and optimizers
    _RESNET,
    name="nature_efficientnet_sgd_1e-2",
    question="How far does EfficientNet-B0 get from ImageNet weights in 3 epochs at 80 pixels?",
    compared_with="",
    network="efficientnet_b0",
    initial_weights="imagenet",
    stages=(8,),
    train=replace(_RESNET.train, max_epochs=3),
)
_NAMES = {"resnet18": "ResNet-18", "efficientnet_b0": "EfficientNet-B0"}


def _optimizers(base: Experiment) -> tuple[Experiment, ...]:
    """The base, which is SGD at 0.01, and what the two reports compared it with."""
    adam = replace(base.train, optimizer="adam", momentum=0.0)
    weights = "ImageNet" if base.initial_weights == "imagenet" else "random"
    of = f"{_NAMES[base.network]} from {weights} weights"
    return (
        base,
        replace(
            base,
            name=base.name.replace("sgd_1e-2", "sgd_1e-3"),
            question=f"Is SGD better at a ten times lower learning rate ({of})?",
            compared_with=base.name,
            earlier_accuracy=None,
            train=replace(base.train, learning_rate=0.001),
        ),
        replace(
            base,
            name=base.name.replace("sgd_1e-2", "adam_1e-2"),
            question=f"Is Adam better than SGD at the same, high learning rate ({of})?",
            compared_with=base.name,
            earlier_accuracy=None,
            train=adam,
        ),
        replace(
            base,
            name=base.name.replace("sgd_1e-2", "adam_1e-3"),
            question=f"Is Adam at its usual learning rate better than SGD ({of})?",
            compared_with=base.name,
            earlier_accuracy=None,
            train=replace(adam, learning_rate=0.001),
        ),
    )


def _larger(base: Experiment) -> tuple[Experiment, ...]:
    """The base, which is at 80 pixels, at the 150 of the images themselves and at the 224 of ImageNet."""
    at_150 = replace(
        base,
        name=f"{base.name}_150",
        question=f"Are images of 150 pixels better than of 80 ({_NAMES[base.network]})?",
        compared_with=base.name,
        image_size=150,
    )
    at_224 = replace(
        at_150,
        name=f"{base.name}_224",
        question=f"Are images of 224 pixels better than of 150 ({_NAMES[base.network]})?",
        compared_with=at_150.name,
        image_size=224,
    )
    return at_150, at_224


_NATURE_TABLE = (
    *_optimizers(_RESNET),
    *_larger(_RESNET),
    *_optimizers(_RESNET_FINE_TUNED),
    *_optimizers(_EFFICIENTNET),
    *_larger(_EFFICIENTNET),
    replace(
        EXPERIMENTS["imagenet_classifier_four_stages"],
        name="nature_efficientnet_frozen",
        question="Control: how good are frozen ImageNet features of four stages?",
        compared_with="",
        data="nature",
    ),
    replace(
        EXPERIMENTS["imagenet_classifier_four_stages"],
        name="nature_efficientnet_regularised",
        question="Are six stages and a strong weight decay better than the control?",
        compared_with="nature_efficientnet_frozen",
        data="nature",
        stages=(3, 4, 5, 6, 7, 8),  # chosen on val by logistic regression, as the decay was
        train=TrainSettings(max_epochs=30, learning_rate=1e-3, weight_decay=0.1, schedule="cosine"),  # Adam's: L2
    ),
    replace(
        _EFFICIENTNET,
        name="nature_efficientnet_finetuned",
        question="Is fine-tuning EfficientNet-B0 for 5 epochs better than its frozen features?",
        compared_with="nature_efficientnet_frozen",
        stages=EXPERIMENTS["imagenet_classifier_four_stages"].stages,
        head="batchnorm_linear",  # learns in the first epoch, before the features have moved far
        augmentation="advanced_without_crop",  # few epochs bear less of it
        image_size=224,
        train=replace(
            _AUGMENTED_STRONGLY.train, max_epochs=5, warmup_epochs=1, learning_rate=3e-4
        ),  # with the shallow head, on val: 0.923 at 1e-4 after 4 epochs, 0.927 at 6e-4 and 150 pixels after 3
    ),
)
NATURE_EXPERIMENTS = {row.name: row for row in _NATURE_TABLE}
ALL_EXPERIMENTS = EXPERIMENTS | REPRODUCTION | ABLATIONS | DISTILLATION_ABLATIONS | NATURE_EXPERIMENTS

# What DF gave as average precision of each class, in their order by name, for the rows that come nearest.
EARLIER_AVERAGE_PRECISION = {
    "nature_resnet18_sgd_1e-2": (1, 0.6, 0.5, 1, 0.8333, 1),
    "nature_resnet18_sgd_1e-3": (1, 0.5, 0.75, 0.3333, 1, 0.5),
    "nature_resnet18_adam_1e-3": (1, 0.6, 0.5, 1, 1, 0.3333),
    "nature_resnet18_imagenet_sgd_1e-2": (1, 1, 0.8333, 1, 0.6667, 1),
}
# What both gave as the share of values that are not positive, by the module whose output they took: Berezin the ends
# of stages (after ReLU), DF single convolutions (before BatchNorm).  `classifier.0` is handed the pooled features.
EARLIER_NON_POSITIVE = {
    "features.stem.maxpool": 0.2330,
    "features.layer1": 0.2358,
    "features.layer2": 0.4918,
    "features.layer3": 0.5548,
    "features.layer4": 0.4303,
    "classifier.0": 0.0134,
    "features.layer1.0.conv1": 0.7363,
    "features.layer2.0.conv1": 0.6676,
    "features.layer3.0.conv1": 0.7642,
    "features.layer4.0.conv1": 0.7990,
    "features.layer4.1.conv2": 0.4954,
}


def quick(experiment: Experiment) -> Experiment:
    """The same code path in seconds on a CPU: small images, few of them, few epochs.  Never a number to report.

    `supervised_1` trains until it has visibly learned from random weights.  For the others it is enough that they run.
    """
    size, images, batch_size, max_epochs = 32, 6, 9, 8 if experiment.features_once else 1
    if experiment.name in NATURE_EXPERIMENTS:  # three sizes; few batches, of which one fits the study's six classes
        size, images, batch_size = 24 + experiment.image_size // 10, 2, 12
    if experiment.name == BASE.name:
        size, images, max_epochs = 64, 24, 5
    if experiment.has_teachers:
        experiment = replace(experiment, teacher_seeds=(0,))  # which the report has trained anyway
    return replace(
        experiment,
        image_size=size,
        crop_size=None,
        images_per_class=images,
        batch_size=batch_size,  # 9 fits a folder of two classes, and leaves no last batch of one or two images
        train=replace(experiment.train, max_epochs=max_epochs, precision="auto"),
    )
