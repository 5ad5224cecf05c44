"""The supervised experiments, one row each: the first report's seven, the second's one, and the controls.

A row states only how it differs from its base.  Zioło (undated) is the first report, Deceuninck 2023 the second.
The nature scenes have a table of their own, after two reports on ResNet-18: Berezin 2023, and "DF" (undated).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from helper_functions import TrainSettings

NETWORKS = {  # how many stages the features of each have, counted from 0
    "efficientnet_b0": 9,
    "resnet18": 5,  # the stem, then torchvision's layer1 to layer4
    "resnet34": 5,
    "resnet18_cifar": 5,  # for images of 32 pixels: a stem that keeps their resolution
    "resnet34_cifar": 5,
}
HEADS = ("shallow", "deep", "batchnorm_linear")
AUGMENTATIONS = ("basic", "crop", "advanced", "advanced_without_crop", "padded_crop", "trivial", "mild")
CROPS = ("crop", "advanced", "trivial", "mild")  # those that crop at random and resize
RESIZE_RULES = ("squash", "imagenet")


@dataclass(frozen=True)
class Experiment:
    """One row.  A value that makes no sense raises ValueError naming the row, the field and the value."""

    name: str  # key, file stem of checkpoint and result, label in figures
    question: str  # what this row is there to answer
    data: str = "15scene"  # a name that data.prepare knows, or a folder
    network: str = "efficientnet_b0"  # one of NETWORKS
    initial_weights: str = "imagenet"  # or "random", or the file of a state dict
    freeze_features: bool = False  # train the head alone, on features that stay as they are
    frozen_stages: int = 0  # so many of the first stages stay as they are, and the others are trained
    head: str = "shallow"
    stages: tuple[int, ...] = (8,)  # of `features`: the head sees the mean of each of their maps
    augmentation: str = "basic"
    resize: str = "squash"
    image_size: int = 224  # pixels, square
    crop_size: int | None = None  # pixels of what a random crop is resized to in training; None: image_size
    flip_tta: bool = False  # in eval mode the features are the mean of the image's and its mirror image's
    images_per_class: int | None = None  # at most so many of each split; None: all
    subset: float = 1.0  # this share of each class of train and val, drawn by `seed`
    class_weights: tuple[tuple[str, float], ...] = ()  # (class, weight in the loss); a class not named weighs 1
    batch_size: int = 32
    seed: int = 0
    save_epochs: tuple[int | str, ...] = ()  # epochs whose weights are kept besides the best, "last" may be among them
    earlier_accuracy: float | None = None  # what the earlier report gave (15-Scene: on all 2,985 validation images)
    train: TrainSettings = field(default_factory=TrainSettings)
    has_teachers: ClassVar[bool] = False

    def __post_init__(self):
        """Refuse what cannot be run."""
        for name, known in (
            ("network", NETWORKS),
            ("head", HEADS),
            ("augmentation", AUGMENTATIONS),
            ("resize", RESIZE_RULES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{self.name}: {name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        last = NETWORKS[self.network] - 1
        if not self.stages or sorted(set(self.stages) & set(range(last + 1))) != list(self.stages):
            raise ValueError(
                f"{self.name}: stages is {self.stages}; name stages of {self.network}, 0 to {last}, each once, in order"
            )
        if not 0 <= self.frozen_stages <= last or (self.frozen_stages and self.freeze_features):
            raise ValueError(
                f"{self.name}: frozen_stages is {self.frozen_stages}; it must be 0 to {last}, "
                "and 0 where freeze_features is on, which freezes all"
            )
        if self.image_size < 32:
            raise ValueError(f"{self.name}: image_size is {self.image_size}; {self.network} needs at least 32 pixels")
        if self.crop_size is not None and not (self.crop_size >= 32 and self.augmentation in CROPS):
            raise ValueError(
                f"{self.name}: crop_size is {self.crop_size} and augmentation {self.augmentation!r}; "
                f"it needs at least 32 pixels and one of {', '.join(CROPS)}"
            )
        if not 0 < self.subset <= 1:
            raise ValueError(f"{self.name}: subset is {self.subset}; it must be above 0 and at most 1")
        if self.seed < 0:
            raise ValueError(f"{self.name}: seed is {self.seed}; it must be at least 0")
        if self.batch_size < 2:
            raise ValueError(f"{self.name}: batch_size is {self.batch_size}; BatchNorm needs at least 2")

    @property
    def features_once(self) -> bool:
        """Whether every epoch would see the same features, so that computing them once is enough."""
        return self.freeze_features and self.augmentation == "basic"


@dataclass(frozen=True)
class DistilledExperiment(Experiment):
    """A network that learns what others, its teachers, say of its training images, and not their labels.

    After Hinton et al. 2015.  Teachers see the very pixels that it sees, crop, flip and mixture (Beyer et al. 2022).
    """

    teacher_run: str = ""  # the name of a row
    teacher_seeds: tuple[int, ...] = ()  # of its runs, each at its best epoch; the mean of their probabilities counts
    mixup: bool = False  # each image is mixed with another of its batch, of which it takes up to a half
    has_teachers: ClassVar[bool] = True

    def __post_init__(self):
        """Refuse what cannot be run."""
        super().__post_init__()
        if self.freeze_features:
            raise ValueError(f"{self.name}: freeze_features is on; a network that has teachers learns features")
        if self.class_weights:
            raise ValueError(f"{self.name}: class_weights weigh labels, in whose place the teachers' words stand")


BASE = Experiment("supervised_1", "How far does plain fine-tuning of ImageNet weights get?", earlier_accuracy=0.9289)
_AUGMENTED = replace(
    BASE,
    name="supervised_2",
    question="Does augmentation stop the overfitting, and does it raise the accuracy?",
    augmentation="advanced",
    earlier_accuracy=0.9185,
)
_FROZEN = replace(
    BASE,
    name="imagenet_classifier",
    question="Control: how good are ImageNet features as they are?",
    freeze_features=True,
    earlier_accuracy=None,
    train=TrainSettings(max_epochs=50),
)
_AUGMENTED_STRONGLY = replace(
    BASE,
    name="supervised_augmented",
    question="Do strong augmentation and averaged weights reach in 12 epochs what a low learning rate does in 40?",
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
    question="Does a head on four stages, with mild augmentation, do better?",
    augmentation="mild",
    resize="imagenet",
    image_size=288,
    crop_size=224,  # crops are enlarged, whole images are not: they look as large at 288 (Touvron et al. 2019)
    flip_tta=True,
    stages=(5, 6, 7, 8),
    head="batchnorm_linear",
    earlier_accuracy=None,
    train=replace(_AUGMENTED_STRONGLY.train, learning_rate=1e-3, backbone_lr_factor=0.25, warmup_epochs=1),
)
_BEST = replace(
    _FOUR_STAGES,
    name="supervised_short",
    question="What do larger pictures add to that, with first stages that stay as they are?",
    image_size=352,
    crop_size=288,
    frozen_stages=4,  # trains twice as fast
    train=replace(_FOUR_STAGES.train, max_epochs=8),  # of 10 the fifth was the best on val: 0.945
)
_LONGER = replace(
    _BEST,
    name="supervised_long",
    question="What do more than twice as many epochs give?",  # as many as distilled has
    train=replace(_BEST.train, max_epochs=20),
)
_DISTILLED = DistilledExperiment(
    **{
        **vars(_LONGER),
        "name": "distilled",
        "question": "Can one network learn what three of them know together, from the same images?",
        "train": replace(_LONGER.train, label_smoothing=0.0),  # what the teachers say is smooth
    },
    teacher_run=_BEST.name,
    teacher_seeds=(2, 3, 4),
    mixup=True,
)
_TABLE = (
    BASE,
    _AUGMENTED,
    replace(
        _AUGMENTED,
        name="supervised_3",
        question="Does a deeper classifier help?",
        head="deep",
        earlier_accuracy=0.9135,
    ),
    replace(
        _AUGMENTED,
        name="supervised_4",
        question="Do weights in the loss help the classes that are mistaken most?",
        class_weights=(("coast", 1.5), ("mountain", 1.5), ("opencountry", 1.5)),
        earlier_accuracy=0.9219,
    ),
    replace(
        _AUGMENTED,
        name="supervised_5",
        question="Does SGD do as well as Adam at the same learning rate?",
        train=replace(_AUGMENTED.train, optimizer="sgd"),
        earlier_accuracy=0.7051,
    ),
    replace(
        _AUGMENTED,
        name="supervised_6",
        question="Does a ten times higher learning rate learn faster (in 12 epochs, of the report's 30)?",
        train=replace(_AUGMENTED.train, learning_rate=0.01, max_epochs=12, step_epochs=4),
        earlier_accuracy=0.7269,
    ),
    replace(
        _AUGMENTED,
        name="supervised_final",
        question="How good is the first report's choice: class weights, and augmentation without the crop?",
        augmentation="advanced_without_crop",
        class_weights=(("coast", 1.5), ("mountain", 1.5), ("opencountry", 1.5)),
        earlier_accuracy=0.9300,
    ),
    replace(
        BASE,
        name="supervised_tuned",
        question="How good is the second report's choice: a searched, far lower learning rate?",
        resize="imagenet",
        batch_size=16,
        train=TrainSettings(max_epochs=40, learning_rate=2.405e-5, schedule="none"),
        earlier_accuracy=0.9374,
    ),
    _AUGMENTED_STRONGLY,
    _FOUR_STAGES,
    _BEST,
    _LONGER,
    _DISTILLED,
    _FROZEN,
    replace(
        _FROZEN,
        name="imagenet_classifier_tuned",
        question="Control: how good are they with the second report's way of resizing and its searched head?",
        resize="imagenet",
        batch_size=16,
        train=TrainSettings(max_epochs=40, learning_rate=1.320e-3, schedule="none"),
    ),
    replace(
        _FROZEN,
        name="imagenet_classifier_best",
        question="Control: how good are ImageNet features read out as well as they can be, from four stages?",
        resize="imagenet",
        stages=(5, 6, 7, 8),  # on val: 0.925, the last one alone 0.911 (logistic regression)
        head="batchnorm_linear",
        batch_size=64,
        train=TrainSettings(max_epochs=30, learning_rate=1e-3, weight_decay=0.01, schedule="cosine"),
    ),
    replace(
        _FROZEN,
        name="random_classifier",
        question="Control: how good are the features of a network that has learned nothing?",
        initial_weights="random",
    ),
)
EXPERIMENTS = {row.name: row for row in _TABLE}

# What each means of `supervised_short` gives: the same row without it, or with another in its place.
_MEANS = (
    replace(
        _BEST,
        name="supervised_short_one_stage",
        question="What does a head on four stages give?",
        stages=(8,),
    ),
    replace(
        _BEST,
        name="supervised_short_smaller_images",
        question="What do the larger pictures give?",
        image_size=288,
        crop_size=224,
    ),
    replace(
        _BEST,
        name="supervised_short_all_stages_trained",
        question="Would it be better to train the first stages too?",
        frozen_stages=0,
    ),
    replace(
        _BEST,
        name="supervised_short_strong_augmentation",
        question="Would stronger augmentation be better?",
        augmentation="trivial",
    ),
    replace(
        _BEST,
        name="supervised_short_without_ema",
        question="What does the averaging of weights give?",
        train=replace(_BEST.train, ema_decay=0.0),
    ),
    replace(
        _BEST,
        name="supervised_short_without_smoothing",
        question="What do smoothed labels give?",
        train=replace(_BEST.train, label_smoothing=0.0),
    ),
    replace(
        _BEST,
        name="supervised_short_one_learning_rate",
        question="What does a lower learning rate of the features than of the head give?",
        train=replace(_BEST.train, backbone_lr_factor=1.0),
    ),
    _LONGER,
)
MEANS_EXPERIMENTS = {row.name: row for row in _MEANS}

# The same of `distilled`.
_TEACHING = (
    replace(
        _DISTILLED,
        name="distilled_without_mixup",
        question="What does it give that teachers and network see mixed images?",
        mixup=False,
    ),
    replace(
        _DISTILLED,
        name="distilled_strong_augmentation",
        question="Would stronger augmentation be better with teachers?",
        augmentation="trivial",
    ),
    replace(
        _DISTILLED,
        name="distilled_long",
        question="Would twice as many epochs be better with teachers?",
        train=replace(_DISTILLED.train, max_epochs=40),
    ),
)
TEACHING_EXPERIMENTS = {row.name: row for row in _TEACHING}

# The two reports on the nature scenes: ResNet-18, Adam and SGD, learning rates 0.01 and 0.001, from random and from
# ImageNet weights, at 80 pixels (DF) and 224 (Berezin).  Neither names a momentum, a schedule or an augmentation.
# DF trained for 5 epochs, later for 10, Berezin for up to 35: here few, since rows are to be told apart.
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
    initial_weights="imagenet",
    image_size=224,
    earlier_accuracy=0.97,
)
_EFFICIENTNET = replace(  # 3 epochs: to tell sizes and optimizers apart, not to be the best
    _RESNET,
    name="nature_efficientnet_sgd_1e-2",
    question="How far does EfficientNet-B0 get from ImageNet weights in 3 epochs at 80 pixels?",
    network="efficientnet_b0",
    initial_weights="imagenet",
    stages=(8,),
    train=replace(_RESNET.train, max_epochs=3),
)


def _optimizers(base: Experiment) -> tuple[Experiment, ...]:
    """The base, which is SGD at 0.01, and what the two reports tried beside it."""
    adam = replace(base.train, optimizer="adam", momentum=0.0)
    return (
        base,
        replace(
            base,
            name=base.name.replace("sgd_1e-2", "sgd_1e-3"),
            question="Is SGD better with a ten times lower learning rate?",
            earlier_accuracy=None,
            train=replace(base.train, learning_rate=0.001),
        ),
        replace(
            base,
            name=base.name.replace("sgd_1e-2", "adam_1e-2"),
            question="Is Adam better than SGD at the same, high learning rate?",
            earlier_accuracy=None,
            train=adam,
        ),
        replace(
            base,
            name=base.name.replace("sgd_1e-2", "adam_1e-3"),
            question="Is Adam at its usual learning rate better than SGD?",
            earlier_accuracy=None,
            train=replace(adam, learning_rate=0.001),
        ),
    )


def _larger(base: Experiment) -> tuple[Experiment, ...]:
    """The base, which is at 80 pixels, at the 150 of the images themselves and at the 224 of ImageNet."""
    return (
        replace(base, name=f"{base.name}_150", question="Are images of 150 pixels better than of 80?", image_size=150),
        replace(base, name=f"{base.name}_224", question="Are images of 224 pixels better than of 150?", image_size=224),
    )


_NATURE_TABLE = (
    *_optimizers(_RESNET),
    *_larger(_RESNET),
    *_optimizers(_RESNET_FINE_TUNED),
    *_optimizers(_EFFICIENTNET),
    *_larger(_EFFICIENTNET),
    replace(
        EXPERIMENTS["imagenet_classifier_best"],
        name="nature_efficientnet_frozen",
        question="Control: how good are ImageNet features as they are, read out from four stages?",
        data="nature",
    ),
    replace(
        EXPERIMENTS["imagenet_classifier_best"],
        name="nature_efficientnet_regularised",
        question="Do six stages and a strong weight decay rank images better than the control?",
        data="nature",
        stages=(3, 4, 5, 6, 7, 8),  # chosen on val by logistic regression, as the decay was
        train=TrainSettings(max_epochs=30, learning_rate=1e-3, weight_decay=0.1, schedule="cosine"),  # Adam's: L2
    ),
    replace(
        _EFFICIENTNET,
        name="nature_efficientnet_best",
        question="How good can EfficientNet-B0 be in 5 epochs, read out from four stages as the control is?",
        stages=EXPERIMENTS["imagenet_classifier_best"].stages,
        head="batchnorm_linear",  # learns in the first epoch, before the features have moved far
        augmentation="advanced_without_crop",  # few epochs bear less of it
        image_size=224,
        train=replace(
            _AUGMENTED_STRONGLY.train, max_epochs=5, warmup_epochs=1, learning_rate=3e-4
        ),  # with the shallow head, on val: 0.923 at 1e-4 after 4 epochs, 0.927 at 6e-4 and 150 pixels after 3
    ),
)
NATURE_EXPERIMENTS = {row.name: row for row in _NATURE_TABLE}
ALL_EXPERIMENTS = EXPERIMENTS | MEANS_EXPERIMENTS | TEACHING_EXPERIMENTS | NATURE_EXPERIMENTS

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
    """The same code path in a minute on a CPU: small images, few of them, few epochs.  Never a number to report.

    The first row trains until it can be seen to have learned from nothing; of the others it is enough that they run.
    The rows of the nature scenes are many, and keep to different sizes.
    """
    if experiment.name in NATURE_EXPERIMENTS:
        return replace(
            experiment,
            image_size=max(32, experiment.image_size // 4),
            images_per_class=6,
            batch_size=32,  # of six classes there are no more
            train=replace(experiment.train, max_epochs=1),
        )
    max_epochs = 20 if experiment.name == BASE.name else 8 if experiment.features_once else 1
    if experiment.has_teachers:
        experiment = replace(experiment, teacher_seeds=(0,))  # which the report has trained anyway
    return replace(
        experiment,
        image_size=64,
        crop_size=None,
        images_per_class=24,
        train=replace(experiment.train, max_epochs=max_epochs),
    )


def configure(
    experiment: Experiment,
    profile: str,
    data: str | None = None,
    weights: str | None = None,
    quick: Callable[[Experiment], Experiment] = quick,
) -> Experiment:
    """The row as a profile runs it, on other data or from other weights where they are given.

    Without `weights`, full begins with ImageNet's and quick with random ones: quick shall need no download.  A row
    that asks for random weights is a control and keeps them.  Raises ValueError for an unknown profile.
    """
    if profile not in ("quick", "full"):
        raise ValueError(f"profile is {profile!r}; it must be quick or full")
    if profile == "quick":
        experiment = quick(experiment)
    if experiment.initial_weights != "random":
        experiment = replace(experiment, initial_weights=weights or {"quick": "random", "full": "imagenet"}[profile])
    return replace(experiment, data=data or experiment.data)


def find(name: str, experiments: Mapping[str, Experiment] = ALL_EXPERIMENTS) -> Experiment:
    """The row of this name; raises ValueError that lists the known names."""
    if name not in experiments:
        raise ValueError(f"there is no experiment {name!r}; there are: {', '.join(experiments)}")
    return experiments[name]
