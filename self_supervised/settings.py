"""The self-supervised experiments: pretexts, and scene classifiers on the frozen features of a pretext.

An experiment states only how it differs from its base, its question, and the experiment it is compared with.
Zioło (undated) is the first report, Deceuninck 2023 the second.  Controls without a pretext, `imagenet_classifier*` and
`random_classifier`, are in supervised/settings.py.  The side study on CIFAR-10 (Hernández Ramos, undated) has tables of
its own at the end, with its controls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from helper_functions import TrainSettings
from loop.checks import check_choices, check_fields
from supervised import settings as supervised
from supervised.settings import REPRODUCTION_FAMILY, Experiment, hypothesis

QUICK_PRETEXT_EPOCHS = 1
BATCHNORM_STATISTICS = ("pretext", "initial", "estimated")
FROZEN_WORDS = {  # of frozen features, by `frozen_mode`
    "batchnorm": "BatchNorm",
    "stochastic_depth": "stochastic depth",
    "train": "BatchNorm and stochastic depth",
}


@dataclass(frozen=True)
class PretextExperiment(Experiment):
    """A network trained on the labels of a pretext; `batch_size` counts rotated (perturbed, ...) images."""

    pretext: str = "rotation"  # a name of self_supervised.dataloader.PRETEXTS
    copies: str = "apart"  # of an image: each in another batch, or "together" in one with one augmentation (Gidaris)

    def __post_init__(self):
        """Refuse what cannot be run."""
        super().__post_init__()
        _refuse_class_weights(self, "a pretext predicts labels of its own")
        if self.crop_size is not None:
            raise ValueError(f"{self.name}: crop_size is {self.crop_size}; a pretext's images have one size")
        check_choices(self, f"{self.name}: ", copies=("apart", "together"))


@dataclass(frozen=True)
class JointEmbeddingExperiment(Experiment):
    """A network trained on random views of images, without labels; `batch_size` counts images.

    The weights of the last epoch are saved: nothing is chosen.  `stages` are those whose pooled maps the heads see, and
    `image_size` is that of the images from which views are cropped.  With `subset` below 1, so much of each class.
    """

    method: str = "byol"  # a name of self_supervised.joint_embedding.METHODS
    views: str = "scene"  # a name of data.augment.AUGMENTATIONS
    views_per_image: int = 2
    view_size: int = 160  # pixels, square
    neighbors: int = 0  # the second view is of one of so many nearest images, by the initial features; 0: of the same
    unlabelled: str = ""  # a data set whose training images are added, gray if the others are; <folder>/**: all images
    unlabelled_alone: bool = False  # the training images, whose classes are known, are left out
    batchnorm: str = "initial"  # "initial": BatchNorm keeps its statistics; "pretext": it learns new ones
    momentum: float = 0.99  # of BYOL's target at first
    temperature: float = 0.2  # of SimCLR
    resize: str = "imagenet"
    train: TrainSettings = field(default_factory=partial(TrainSettings, keep="last"))

    def __post_init__(self):
        """Refuse what cannot be run."""
        super().__post_init__()
        _refuse_class_weights(self, "views have no labels")
        if self.freeze_features:
            raise ValueError(f"{self.name}: freeze_features is on; a pretext trains the features")
        of = f"{self.name}: "
        check_choices(self, of, batchnorm=("pretext", "initial"))
        check_fields(self, ("momentum",), lambda value: 0 <= value < 1, "at least 0 and below 1", of)
        check_fields(self, ("temperature",), lambda value: value > 0, "above 0", of)
        for name, least in (("views_per_image", 2), ("view_size", 32), ("neighbors", 0)):
            check_fields(self, (name,), lambda value, least=least: value >= least, f"at least {least}", of)
        if self.neighbors and self.unlabelled:
            raise ValueError(f"{self.name}: neighbors and unlabelled cannot be combined")
        if self.unlabelled_alone and not self.unlabelled:
            raise ValueError(f"{self.name}: unlabelled_alone needs unlabelled")
        if self.train.keep != "last":
            raise ValueError(f"{self.name}: train.keep is {self.train.keep!r}; views have no accuracy to choose by")


@dataclass(frozen=True)
class ClassifierExperiment(Experiment):
    """A scene classifier on the features of a pretext run, frozen at one of its epochs."""

    freeze_features: bool = True
    pretext_run: str = ""  # the name of a pretext; its run of the same seed is used
    pretext_epoch: int | str = "best"  # one of its `save_epochs`, or "best": the one that it keeps
    batchnorm: str = "pretext"  # its statistics: of the pretext, the "initial" weights, or "estimated" on train images
    fine_tunes: ClassVar[bool] = False

    def __post_init__(self):
        """Refuse what cannot be run."""
        super().__post_init__()
        check_choices(self, f"{self.name}: ", batchnorm=BATCHNORM_STATISTICS)
        if not self.freeze_features and not self.fine_tunes:
            raise ValueError(f"{self.name}: freeze_features is off; use FineTunedExperiment to train the features")
        if self.freeze_features and self.fine_tunes:
            raise ValueError(f"{self.name}: freeze_features is on; use ClassifierExperiment for frozen features")


@dataclass(frozen=True)
class FineTunedExperiment(ClassifierExperiment):
    """A classifier whose features start from the pretext and are trained on the labels.

    It is a type of its own, so that no changed field can turn an experiment on frozen features into it.
    """

    freeze_features: bool = False
    fine_tunes: ClassVar[bool] = True


@dataclass(frozen=True)
class ProbeExperiment(ClassifierExperiment):
    """The primary readout: logistic regression on frozen features, its strength chosen on val.

    Pooled features of stages 5 to 8, image and horizontal flip averaged, standardized.  It draws nothing at random, so
    the seed is that of the pretext.  Without a `pretext_run` it reads the initial weights.
    """

    family: str = "joint embeddings"
    stages: tuple[int, ...] = (5, 6, 7, 8)
    head: str = "batchnorm_linear"
    resize: str = "imagenet"
    flip_tta: bool = True
    batch_size: int = 64
    train: TrainSettings = field(default_factory=partial(TrainSettings, max_epochs=1))  # it is fitted, not trained

    def __post_init__(self):
        """Refuse what cannot be run."""
        super().__post_init__()
        _refuse_class_weights(self, "a probe weighs all images alike")
        if self.head != "batchnorm_linear":
            raise ValueError(f"{self.name}: head is {self.head!r}; that of a probe is batchnorm_linear")
        if self.save_epochs:
            raise ValueError(f"{self.name}: save_epochs is {self.save_epochs}; a probe is fitted and has no epochs")


def _refuse_class_weights(experiment: Experiment, reason: str):
    if experiment.class_weights:
        raise ValueError(f"{experiment.name}: class_weights is {experiment.class_weights}, but {reason}")


LATER_QUESTIONS = "later questions"  # a family of those that were asked after other results had been seen
_ROTATION = PretextExperiment(
    "rotation_1",
    "How well is rotation predicted?",
    pretext="rotation",
    augmentation="crop",
    save_epochs=(3, 6, 10, "last"),
    earlier_accuracy=0.9678,
)
_PERTURBATION = replace(
    _ROTATION,
    name="perturbation_1",
    question="How well is the color of a small square predicted?",
    pretext="perturbation",
    augmentation="advanced_without_crop",
    earlier_accuracy=1.0,
)
_PERTURBATION_SHORT = replace(
    _PERTURBATION,
    name="perturbation_1_short",
    question="How well is the color predicted after 1 and 2 epochs (the report's accuracy is perfect after one)?",
    save_epochs=(1, 2),
    earlier_accuracy=None,
    train=TrainSettings(max_epochs=2),
)
_ROTATION_TUNED = replace(
    _ROTATION,
    name="rotation_tuned",
    question="How well is rotation predicted with the second report's searched learning rate and epochs?",
    augmentation="basic",
    resize="imagenet",
    batch_size=14,
    earlier_accuracy=0.9256,
    train=TrainSettings(max_epochs=15, learning_rate=1.055e-4, schedule="none"),
)
_PERTURBATION_TUNED = replace(
    _ROTATION_TUNED,
    name="perturbation_tuned",
    question="How well is the color predicted with a learning rate low enough to watch the pretext being learned?",
    pretext="perturbation",
    batch_size=15,
    earlier_accuracy=1.0,
    train=TrainSettings(max_epochs=10, learning_rate=1.0e-5, schedule="none"),
)
# A pretext degrades ImageNet features the more, the higher its learning rate and the more its epochs: few of both.
_ROTATION_GENTLE = replace(
    _ROTATION_TUNED,
    name="rotation_gentle",
    question="How well is rotation predicted by features that stay close to those of ImageNet?",
    save_epochs=(1, 2),
    earlier_accuracy=None,
    train=TrainSettings(max_epochs=2, learning_rate=1.0e-5, schedule="none"),
)
_PERTURBATION_GENTLE = replace(
    _PERTURBATION_TUNED,
    name="perturbation_gentle",
    question="How well is the color predicted by features that stay close to those of ImageNet?",
    save_epochs=(1, 2, 3),
    earlier_accuracy=None,
    train=TrainSettings(max_epochs=3, learning_rate=2.0e-6, schedule="none"),
)
_PERTURBATION_SEARCHED = replace(
    _PERTURBATION_TUNED,
    name="perturbation_searched",
    question="How well is the color predicted with the learning rate of the lowest pretext loss in a search?",
    save_epochs=(2, 5, 7),  # at which the second report reads it
    earlier_accuracy=1.0,
    train=TrainSettings(max_epochs=10, learning_rate=1.830e-3, schedule="none"),
)
_JIGSAW = replace(
    _ROTATION_TUNED,
    name="jigsaw_1",
    question="How well is the order of four quadrants predicted (a third pretext)?",
    pretext="jigsaw_2x2",
    save_epochs=("last",),
    batch_size=32,
    earlier_accuracy=None,
    train=TrainSettings(max_epochs=3, learning_rate=1.055e-4, schedule="none"),
)
_PRETEXTS = (
    _ROTATION,
    _ROTATION_TUNED,
    replace(
        _ROTATION_TUNED,
        name="rotation_scratch",
        question="Control: how well is rotation predicted from random weights?",
        initial_weights="random",
        earlier_accuracy=None,
    ),
    _PERTURBATION,
    _PERTURBATION_SHORT,
    _PERTURBATION_TUNED,
    _PERTURBATION_SEARCHED,
    replace(
        _PERTURBATION_TUNED,
        name="perturbation_scratch",
        question="Control: how well is the color predicted from random weights?",
        initial_weights="random",
        earlier_accuracy=None,
        train=TrainSettings(max_epochs=10, learning_rate=1.055e-4, schedule="none"),
    ),
    _ROTATION_GENTLE,
    _PERTURBATION_GENTLE,
    _JIGSAW,
)


def _classifier(name: str, question: str, pretext: Experiment, **changes) -> ClassifierExperiment:
    """A classifier with the pretext's resize rule, so that frozen features see what they were trained on."""
    base = ClassifierExperiment(
        name,
        question,
        pretext_run=pretext.name,
        resize=pretext.resize,
        initial_weights=pretext.initial_weights,
        train=TrainSettings(max_epochs=50, stopping="patience", patience_epochs=10),
    )
    return replace(base, **changes)


def _classifiers_of_the_first_report(pretext: PretextExperiment, earlier: tuple[float, float, float]):
    name = f"{pretext.pretext}_classifier"
    return (
        _classifier(
            f"{name}_1",
            f"How good are frozen features after {pretext.pretext}, with augmentation?",
            pretext,
            augmentation="advanced",
            earlier_accuracy=earlier[0],
        ),
        _classifier(
            f"{name}_2",
            f"Does a deeper classifier read more from frozen features after {pretext.pretext}?",
            pretext,
            compared_with=f"{name}_1",
            augmentation="advanced",
            head="deep",
            earlier_accuracy=earlier[1],
        ),
        _classifier(
            f"{name}_3",
            f"Are features after {pretext.pretext}, without augmentation, better than ImageNet features?",
            pretext,
            compared_with="imagenet_classifier",
            earlier_accuracy=earlier[2],
        ),
    )


def _batchnorm_head(classifier: ClassifierExperiment) -> ClassifierExperiment:
    """The same features with BatchNorm before the head: a pretext can shrink them until a plain head hardly learns."""
    return replace(
        classifier,
        name=f"{classifier.name}_batchnorm_head",
        question=f"Control: does a head with BatchNorm read more from the features of {classifier.name}?",
        compared_with=classifier.name,
        head="batchnorm_linear",
        earlier_accuracy=None,
    )


def _classifiers_by_pretext_epoch(
    pretext: PretextExperiment, earlier: dict[int, float | None], control: str
) -> tuple[ClassifierExperiment, ...]:
    """The second report's table 3: the same classifier on one pretext run, stopped after so many epochs.

    `control` is that classifier on ImageNet features, whose head was searched for this pretext.
    """
    head = supervised.EXPERIMENTS[control]
    return tuple(
        _classifier(
            f"{pretext.pretext}_classifier_tuned_{epoch}",
            f"Are features after {epoch} epochs of {pretext.pretext} better than ImageNet features?",
            pretext,
            compared_with=control,
            pretext_epoch=epoch,
            batch_size=head.batch_size,
            earlier_accuracy=accuracy,
            train=head.train,
        )
        for epoch, accuracy in earlier.items()
    )


def _in_train_mode(classifier: ClassifierExperiment, modes: Sequence[str]) -> tuple[ClassifierExperiment, ...]:
    """Is this how the reports got other numbers: features that take no gradients, but are left in train mode?

    A mistake on purpose: BatchNorm's statistics are those of a batch in training and moved ones afterwards, and
    stochastic depth drops blocks.
    """
    question = f"Mistake on purpose: what if the frozen features of {classifier.name} are in train mode"
    return tuple(
        hypothesis(classifier, f"{mode}_mode", f"{question} ({FROZEN_WORDS[mode]})?", frozen_mode=mode)
        for mode in modes
    )


def _at_other_epochs(classifier: ClassifierExperiment, earlier: dict[int, float | None], **changes):
    """The same classifier on its pretext after fewer epochs."""
    return tuple(
        hypothesis(
            classifier,
            f"epoch_{epoch}",
            f"Are the features of {classifier.name} better in epoch {epoch} of their pretext?",
            pretext_epoch=epoch,
            earlier_accuracy=accuracy,
            **changes,
        )
        for epoch, accuracy in earlier.items()
    )


def _at_other_rates(classifier: ClassifierExperiment, rates: dict[str, float]) -> tuple[ClassifierExperiment, ...]:
    """The same classifier at other learning rates: the report does not state the one that it searched for this head."""
    return tuple(
        hypothesis(
            classifier,
            f"rate_{name}",
            f"Does the head of {classifier.name} read more at a learning rate of {name}?",
            train=replace(classifier.train, learning_rate=rate),
        )
        for name, rate in rates.items()
    )


_ROTATION_BY_EPOCH = _classifiers_by_pretext_epoch(
    _ROTATION_TUNED, {3: None, 6: None, 10: None}, "imagenet_classifier_tuned"
)
_PERTURBATION_BY_EPOCH = _classifiers_by_pretext_epoch(
    _PERTURBATION_TUNED, {3: 0.8446, 6: 0.8265, 10: 0.8157}, "imagenet_classifier_tuned_rate_2e-4"
)
_CONTROL = supervised.EXPERIMENTS["imagenet_classifier_four_stages"]
_AS_CONTROL = {  # the same head on the same stages
    "compared_with": _CONTROL.name,
    **{each: getattr(_CONTROL, each) for each in ("stages", "head", "batch_size", "train")},
}


def _gentle_classifiers(pretext: PretextExperiment, epoch: int) -> tuple[ClassifierExperiment, ClassifierExperiment]:
    """On a pretext epoch chosen on val among the saved ones, and the control for BatchNorm."""
    gentle = _classifier(
        f"{pretext.name}_classifier",
        f"Is gentle {pretext.pretext}, with BatchNorm statistics of ImageNet, better than none?",
        pretext,
        pretext_epoch=epoch,
        batchnorm="initial",
        **_AS_CONTROL,
    )
    own = replace(
        gentle,
        name=f"{gentle.name}_own_batchnorm",
        question=f"Control: do BatchNorm statistics of gentle {pretext.pretext} harm the features?",
        compared_with=gentle.name,
        batchnorm="pretext",
    )
    return gentle, own


_OF_ROTATION = _classifiers_of_the_first_report(_ROTATION, (0.5182, 0.5179, 0.6298))
_OF_PERTURBATION = _classifiers_of_the_first_report(_PERTURBATION, (0.6197, 0.5996, 0.6539))
_OF_SEARCHED = replace(
    _PERTURBATION_BY_EPOCH[0],
    name="perturbation_searched_classifier",
    question="Does the pretext with the lowest loss give better features?",
    compared_with="perturbation_classifier_tuned_10",
    pretext_run=_PERTURBATION_SEARCHED.name,
    pretext_epoch=7,
    earlier_accuracy=0.4355,
)
_CLASSIFIERS = (
    *_OF_ROTATION,
    _batchnorm_head(_OF_ROTATION[-1]),
    *_ROTATION_BY_EPOCH,
    replace(
        _ROTATION_BY_EPOCH[0],
        name="rotation_classifier_tuned",
        question="Are features after the second report's chosen epochs better than ImageNet features?",
        pretext_epoch="last",
        earlier_accuracy=0.8419,
    ),
    replace(
        _ROTATION_BY_EPOCH[0],
        name="rotation_scratch_classifier",
        question="Control: what does rotation alone teach a random network?",
        compared_with="random_classifier_tuned",
        pretext_run="rotation_scratch",
        pretext_epoch="last",
        initial_weights="random",
    ),
    *_gentle_classifiers(_ROTATION_GENTLE, epoch=2),
    *_OF_PERTURBATION,
    _batchnorm_head(_OF_PERTURBATION[-1]),
    *_PERTURBATION_BY_EPOCH,
    _OF_SEARCHED,
    replace(
        _PERTURBATION_BY_EPOCH[0],
        name="perturbation_scratch_classifier",
        question="Control: what does perturbation alone teach a random network?",
        compared_with="random_classifier_tuned_rate_2e-4",
        pretext_run="perturbation_scratch",
        pretext_epoch="last",
        initial_weights="random",
        earlier_accuracy=None,
    ),
    *_gentle_classifiers(_PERTURBATION_GENTLE, epoch=3),
    _classifier(
        "jigsaw_classifier",
        "Are features after jigsaw better than ImageNet features, each read by a trained head?",
        _JIGSAW,
        family=LATER_QUESTIONS,
        pretext_epoch="last",
        **_AS_CONTROL,
    ),
)
# Some numbers of the reports are far from ours.  Hypotheses of what they did, most of them with frozen features:
# - these were in train mode, BatchNorm and stochastic depth together, and for one classifier each alone;
# - the pretext had fewer epochs, which the second report tries too;
# - the head had another learning rate, which the second report does not state;
# - the pretext had the transforms of the first report's appendix, not those of its text (in epochs enough to compare);
# - its square was larger, whose size the second report does not state.
_OF_SEARCHED_EARLIER = _at_other_epochs(_OF_SEARCHED, {2: 0.4114, 5: 0.4379})
_TUNED_20, _SEARCHED_20 = (
    hypothesis(
        pretext,
        "square_20",
        f"Is the color of a square of 20 pixels easier to predict than of 10, by {pretext.name}?",
        pretext="perturbation_20",
    )
    for pretext in (_PERTURBATION_TUNED, _PERTURBATION_SEARCHED)
)
_REPRODUCTION = (
    *(
        hypothesis(
            pretext,
            "basic",
            f"Is {pretext.pretext} easier to predict without augmentation, in {epochs} epochs?",
            augmentation="basic",
            save_epochs=(),
            train=TrainSettings(max_epochs=epochs),
        )
        for pretext, epochs in ((_ROTATION, 12), (_PERTURBATION, 2))
    ),
    _TUNED_20,
    _SEARCHED_20,
    hypothesis(
        _OF_SEARCHED,
        "square_20",
        "Are features better after the color of a larger square, which is easier to predict?",
        pretext_run=_SEARCHED_20.name,
    ),
    *(row for each in (_OF_ROTATION[-1], _OF_SEARCHED) for row in _in_train_mode(each, ["train"])),
    *_in_train_mode(_OF_PERTURBATION[-1], ["train", "batchnorm", "stochastic_depth"]),
    *(
        row
        for each in _OF_PERTURBATION
        for row in _at_other_epochs(each, {1: None, 2: None}, pretext_run=_PERTURBATION_SHORT.name)
    ),
    *(
        row
        for each in (_OF_ROTATION[-1], _OF_PERTURBATION[-1])
        for row in _at_other_epochs(each, {3: None, 6: None, 10: None})
    ),
    *_OF_SEARCHED_EARLIER,
    *(
        row
        for each in (_OF_SEARCHED, *_OF_SEARCHED_EARLIER)
        for row in _at_other_rates(each, {"1e-3": 1e-3, "1e-2": 1e-2})
    ),
    replace(_batchnorm_head(_OF_SEARCHED), family=REPRODUCTION_FAMILY),
)
REPRODUCTION = {row.name: row for row in _REPRODUCTION}
PRETEXT_EXPERIMENTS = {row.name: row for row in _PRETEXTS}
CLASSIFIER_EXPERIMENTS = {row.name: row for row in _CLASSIFIERS}

# Joint-embedding pretexts, from ImageNet weights.  Epochs, learning rates and views are those of exploratory runs,
# in which accuracies on val and test had been seen; nothing was chosen since.
_BYOL = JointEmbeddingExperiment(
    "byol",
    "Pretext: how well does a vote of the nearest images classify by its features?",
    method="byol",
    batch_size=64,
    save_epochs=(2, 4, 6, 8, 10),
    train=TrainSettings(
        max_epochs=12,
        optimizer="adamw",
        learning_rate=2e-3,  # of the heads
        backbone_lr_factor=0.075,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_epochs=1,
        keep="last",
    ),
)


def _of_epochs(epochs: int) -> TrainSettings:
    return replace(_BYOL.train, max_epochs=epochs)


_BYOL_SCRATCH = replace(
    _BYOL,
    name="byol_scratch",
    question="Pretext from random weights and BatchNorm statistics, 20 epochs: how well does a vote classify?",
    initial_weights="random",
    batchnorm="pretext",
    train=replace(_of_epochs(20), backbone_lr_factor=0.5),
)
_NEIGHBOURS = replace(
    _BYOL,
    name="neighbours",
    question="Pretext on views of nearest images, stages 7 and 8 trained alone: how well does a vote classify?",
    neighbors=5,
    frozen_stages=7,
    train=replace(_of_epochs(8), backbone_lr_factor=0.3),
)
# Pretexts that differ from `byol` in one thing, and what the comparison of their features asks.
_BYOL_ABLATIONS = {
    replace(_BYOL, name=name, **changes): question
    for name, question, changes in (
        ("byol_batchnorm_trained", "Is it better to train BatchNorm's statistics?", {"batchnorm": "pretext"}),
        ("byol_without_jitter", "Are changes of brightness and contrast needed?", {"views": "without_jitter"}),
        ("byol_without_blur", "Is a blur needed?", {"views": "without_blur"}),
        ("byol_gentle_crops", "Are crops of at least half the image better?", {"views": "gentle_crops"}),
        ("byol_strong_crops", "Are crops down to a twelfth of the image better?", {"views": "strong_crops"}),
        ("byol_10_epochs", "Are 10 epochs as good as 12?", {"train": _of_epochs(10)}),
        ("byol_20_epochs", "Are 20 epochs better than 12?", {"train": _of_epochs(20)}),
        ("byol_40_epochs", "Are 40 epochs better than 12?", {"train": _of_epochs(40)}),
        ("byol_100_epochs", "Are 100 epochs better than 12?", {"train": _of_epochs(100)}),
        ("byol_four_stages", "Is a loss on four stages better than on the last?", {"stages": (5, 6, 7, 8)}),
        ("byol_128_pixels", "Are views of 128 pixels as good as of 160?", {"view_size": 128}),
        ("byol_176_pixels", "Are views of 176 pixels better than of 160?", {"view_size": 176}),
        ("byol_224_pixels", "Are views of 224 pixels better than of 160?", {"view_size": 224}),
        ("byol_half", "Is half of the images enough?", {"subset": 0.5}),
        ("byol_quarter", "Is a quarter of the images enough?", {"subset": 0.25}),
        ("byol_with_nature", "Do gray nature scenes beside the images help?", {"unlabelled": "nature"}),
        ("byol_neighbours", "Are views of an image's nearest images better than its own?", {"neighbors": 5}),
        ("simclr", "Is SimCLR as good as BYOL?", {"method": "simclr"}),
        ("vicreg", "Is VICReg as good as BYOL?", {"method": "vicreg"}),
    )
}
_JOINT_EMBEDDINGS = (_BYOL, *_BYOL_ABLATIONS, _NEIGHBOURS, _BYOL_SCRATCH)


def _probe(name: str, question: str, pretext: JointEmbeddingExperiment | None, **changes) -> ProbeExperiment:
    """The primary readout of a pretext's features, or of the initial weights."""
    of_pretext = {}
    if pretext is not None:
        same = {each: getattr(pretext, each) for each in ("initial_weights", "data", "network")}
        of_pretext = {"pretext_run": pretext.name, **same}
    return ProbeExperiment(name, question, **{**of_pretext, **changes})


_IMAGENET_PROBE = _probe("imagenet_classifier_probe", "Control: how good are untouched ImageNet features?", None)
_BYOL_PROBE = _probe(
    "byol_classifier",
    "Primary: are ImageNet features better after BYOL on the training images without labels?",
    _BYOL,
    compared_with=_IMAGENET_PROBE.name,
)
_RANDOM_PROBE = replace(
    _IMAGENET_PROBE,
    name="random_classifier_probe",
    question="Control: how good are the features of a random network?",
    initial_weights="random",
)
_PROBES = (
    _IMAGENET_PROBE,
    _BYOL_PROBE,
    *(
        _probe(f"{pretext.name}_classifier", question, pretext, compared_with=_BYOL_PROBE.name)
        for pretext, question in _BYOL_ABLATIONS.items()
    ),
    replace(
        _IMAGENET_PROBE,
        name="imagenet_classifier_probe_estimated",
        question="Control: is it enough to estimate BatchNorm's statistics on the training images?",
        compared_with=_IMAGENET_PROBE.name,
        batchnorm="estimated",
    ),
    replace(
        _BYOL_PROBE,
        name="byol_classifier_estimated",
        question="Do BYOL's features gain from statistics that are estimated on the training images?",
        compared_with=_BYOL_PROBE.name,
        batchnorm="estimated",
    ),
    replace(
        _IMAGENET_PROBE,
        name="imagenet_classifier_probe_last_stage",
        question="Control: how good is the last stage of ImageNet features alone?",
        compared_with=_IMAGENET_PROBE.name,
        stages=(8,),
    ),
    replace(
        _BYOL_PROBE,
        name="byol_classifier_last_stage",
        question="Secondary: is the last stage alone better after BYOL?",
        compared_with="imagenet_classifier_probe_last_stage",
        stages=(8,),
    ),
    _probe(
        "neighbours_classifier",
        "Are ImageNet features better after predicting views of nearest images?",
        _NEIGHBOURS,
        compared_with=_IMAGENET_PROBE.name,
    ),
    _RANDOM_PROBE,
    _probe(
        "byol_scratch_classifier",
        "What does BYOL alone teach a random network?",
        _BYOL_SCRATCH,
        compared_with=_RANDOM_PROBE.name,
    ),
)
_BYOL_LABELLED = (
    _classifier(
        "byol_classifier_trained_head",
        "Secondary: is a trained head better on BYOL's features?",
        _BYOL,
        family=ProbeExperiment.family,
        **_AS_CONTROL,
    ),
    FineTunedExperiment(
        **{
            **vars(supervised.EXPERIMENTS["supervised_long"]),
            "name": "byol_finetuned",
            "question": "Is fine-tuning better from BYOL's features than from ImageNet's?",
            "compared_with": "supervised_long",
            "family": ProbeExperiment.family,
        },
        pretext_run=_BYOL.name,
    ),
)
_NATURE_BYOL = replace(_BYOL, name="nature_byol", data="nature", train=_of_epochs(4))  # as many steps as `byol`
_NATURE_PROBE = replace(_IMAGENET_PROBE, name="nature_imagenet_probe", data="nature")
_NATURE_PROBES = (
    _NATURE_PROBE,
    _probe(
        "nature_byol_classifier",
        "Are ImageNet features better after BYOL on these photographs too?",
        _NATURE_BYOL,
        compared_with=_NATURE_PROBE.name,
    ),
)
NATURE_PRETEXTS = {_NATURE_BYOL.name: _NATURE_BYOL}
NATURE_PROBES = {row.name: row for row in _NATURE_PROBES}
JOINT_EMBEDDINGS = {row.name: row for row in _JOINT_EMBEDDINGS}
PROBES = {row.name: row for row in (*_PROBES, *_BYOL_LABELLED)}

# CIFAR-10, the subject of the lab report of Hernández Ramos (undated).  It names neither optimizer nor batch size, nor
# whether its classifier trains the features: the first experiments are plain, and both kinds of classifier are here.
_CIFAR10_ROTATION = PretextExperiment(
    "cifar10_rotation",
    "How well is the rotation of a small image predicted after ten epochs?",
    data="cifar10",
    network="resnet18",
    initial_weights="random",
    stages=(4,),
    image_size=32,
    batch_size=256,  # 64 images in four turns
    earlier_accuracy=0.5093,
    train=TrainSettings(max_epochs=10, schedule="none"),
)
_GIDARIS = TrainSettings(  # of Gidaris et al. 2018, without `schedule` and `max_epochs`
    optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=5e-4
)
_CIFAR10_ROTATION_RECIPE = replace(
    _CIFAR10_ROTATION,
    name="cifar10_rotation_recipe",
    question="Do padded crops, flips and SGD with a cosine schedule teach more (Gidaris et al. 2018)?",
    augmentation="padded_crop",
    earlier_accuracy=None,
    train=replace(_GIDARIS, max_epochs=10, schedule="cosine"),
)
_CIFAR10_ROTATION_TOGETHER = replace(
    _CIFAR10_ROTATION_RECIPE,
    name="cifar10_rotation_together",
    question="Does it teach more if all four rotations of an image are in one batch (Gidaris et al. 2018)?",
    copies="together",
)
_CIFAR10_ROTATION_30 = replace(
    _CIFAR10_ROTATION,
    name="cifar10_rotation_30",
    question="Is rotation predicted better after 30 epochs than after ten?",
    earlier_accuracy=None,
    train=replace(_CIFAR10_ROTATION.train, max_epochs=30),
)
_CIFAR10_ROTATION_RESNET34 = replace(
    _CIFAR10_ROTATION_30,
    name="cifar10_rotation_resnet34",
    question="Is a deeper network worse after 30 epochs, as the lab report says?",
    network="resnet34",
)
_CIFAR10_BYOL = JointEmbeddingExperiment(
    "cifar10_byol",
    "Pretext on small images, from random weights: how well does a vote of the nearest images classify?",
    data="cifar10",
    network="resnet18",
    initial_weights="random",
    stages=(4,),
    image_size=32,
    view_size=32,
    views="without_blur",
    resize="squash",
    batchnorm="pretext",
    batch_size=128,
    train=replace(_of_epochs(30), backbone_lr_factor=0.5),
)
_CIFAR10_PRETEXTS = (
    _CIFAR10_BYOL,
    _CIFAR10_ROTATION,
    _CIFAR10_ROTATION_RECIPE,
    _CIFAR10_ROTATION_TOGETHER,
    _CIFAR10_ROTATION_30,
    _CIFAR10_ROTATION_RESNET34,
)
_CIFAR10_SCRATCH = Experiment(
    "cifar10_scratch",
    "Control: how good is the same network in as many epochs without a pretext?",
    data="cifar10",
    network="resnet18",
    initial_weights="random",
    stages=(4,),
    image_size=32,
    batch_size=128,
    earlier_accuracy=0.3772,
    train=TrainSettings(max_epochs=10, schedule="none"),
)
_CIFAR10_SCRATCH_TENTH = replace(
    _CIFAR10_SCRATCH,
    name="cifar10_scratch_tenth",
    question="Control: how good is it with a tenth of the labels, in twice as many epochs?",
    compared_with="cifar10_scratch",
    subset=0.1,
    batch_size=32,
    earlier_accuracy=None,
    train=replace(_CIFAR10_SCRATCH.train, max_epochs=20),
)
_CIFAR10_SCRATCH_RESNET34 = replace(
    _CIFAR10_SCRATCH,
    name="cifar10_scratch_resnet34",
    question="Control: is the deeper network, in 30 epochs, better?",
    compared_with="cifar10_scratch",
    network="resnet34",
    earlier_accuracy=None,
    train=_CIFAR10_ROTATION_RESNET34.train,
)


def _on_cifar10(pretext: Experiment, scratch: Experiment, name: str, question: str) -> FineTunedExperiment:
    """The experiment `scratch`, started from a pretext's weights: nothing else differs."""
    changes = {
        "name": name,
        "question": question,
        "compared_with": scratch.name,
        "freeze_features": False,
    }
    return FineTunedExperiment(**{**vars(scratch), **changes}, pretext_run=pretext.name)


def _frozen_on_cifar10(
    pretext: Experiment, question: str, compared_with: str = "cifar10_rotation_classifier"
) -> ClassifierExperiment:
    return ClassifierExperiment(
        f"{pretext.name}_classifier",
        question,
        compared_with=compared_with,
        data=pretext.data,
        network=pretext.network,
        initial_weights=pretext.initial_weights,
        stages=pretext.stages,
        image_size=pretext.image_size,
        batch_size=128,
        pretext_run=pretext.name,
        train=TrainSettings(max_epochs=50, schedule="none"),
    )


_WITH_PRETEXT = 0.4055  # of the lab report, beside both experiments that it may describe
_CIFAR10_CLASSIFIERS = (
    replace(
        _CIFAR10_SCRATCH,
        name="cifar10_random_classifier",
        question="Control: how good are the features of a random network?",
        compared_with="",
        freeze_features=True,
        earlier_accuracy=None,
        train=TrainSettings(max_epochs=50, schedule="none"),
    ),
    replace(
        _frozen_on_cifar10(
            _CIFAR10_ROTATION, "Are features after rotation better than random ones?", "cifar10_random_classifier"
        ),
        earlier_accuracy=_WITH_PRETEXT,
    ),
    replace(
        _on_cifar10(
            _CIFAR10_ROTATION,
            _CIFAR10_SCRATCH,
            "cifar10_rotation_finetuned",
            "Is training better from rotation's weights than from random ones?",
        ),
        earlier_accuracy=_WITH_PRETEXT,
    ),
    _CIFAR10_SCRATCH,
    _on_cifar10(
        _CIFAR10_ROTATION,
        _CIFAR10_SCRATCH_TENTH,
        "cifar10_rotation_finetuned_tenth",
        "Is training with a tenth of the labels better from rotation's weights than from random ones?",
    ),
    _CIFAR10_SCRATCH_TENTH,
    replace(
        _frozen_on_cifar10(_CIFAR10_BYOL, "Are features after BYOL better than after rotation?"),
        family=ProbeExperiment.family,
    ),
    replace(
        _on_cifar10(
            _CIFAR10_BYOL,
            _CIFAR10_SCRATCH,
            "cifar10_byol_finetuned",
            "Is training better from BYOL's weights than from random ones?",
        ),
        family=ProbeExperiment.family,
        earlier_accuracy=None,
    ),
    _frozen_on_cifar10(
        _CIFAR10_ROTATION_RECIPE, "Are features after rotation better by the recipe of Gidaris et al. 2018?"
    ),
    replace(
        _frozen_on_cifar10(
            _CIFAR10_ROTATION_TOGETHER,
            "Are they better with all rotations of an image in one batch, as there?",
            "cifar10_rotation_recipe_classifier",
        ),
        family=LATER_QUESTIONS,
    ),
    _frozen_on_cifar10(_CIFAR10_ROTATION_30, "Are features better after 30 epochs of rotation than after ten?"),
    _frozen_on_cifar10(
        _CIFAR10_ROTATION_RESNET34,
        "Are features of ResNet-34 after rotation better than those of ResNet-18?",
        "cifar10_rotation_30_classifier",
    ),
    _on_cifar10(
        _CIFAR10_ROTATION_RESNET34,
        _CIFAR10_SCRATCH_RESNET34,
        "cifar10_rotation_resnet34_finetuned",
        "Is training ResNet-34 better from rotation's weights than from random ones?",
    ),
    _CIFAR10_SCRATCH_RESNET34,
)


@dataclass(frozen=True)
class Reported:
    """An accuracy (0 to 1, test images) that others have reported, and how it differs from the experiments above."""

    what: str
    accuracy: float
    source: str
    differs_by: str


_LAB_REPORT = "Hernández Ramos (undated)"
_GIDARIS_2018 = "Gidaris et al. 2018"
_NOT_STATED = "selected on the test images; number of training images, batch size and optimizer are not stated"
_FULL_SET = "all 50,000 training images, NIN of 4 blocks, 100 epochs"
CIFAR10_REPORTED = (
    Reported("rotation, ResNet-18", _CIFAR10_ROTATION.earlier_accuracy, _LAB_REPORT, _NOT_STATED),
    Reported("class, with the pretext", _WITH_PRETEXT, _LAB_REPORT, f"{_NOT_STATED}; nor which weights were frozen"),
    Reported("class, from scratch", _CIFAR10_SCRATCH.earlier_accuracy, _LAB_REPORT, _NOT_STATED),
    Reported("class, frozen block 2, convolutional head", 0.9116, _GIDARIS_2018, _FULL_SET),
    Reported("class, supervised", 0.9280, _GIDARIS_2018, _FULL_SET),
    *(
        Reported(f"class, frozen block {block}", accuracy, _GIDARIS_2018, _FULL_SET)
        for block, accuracy in enumerate((0.8507, 0.8906, 0.8621, 0.6173), start=1)
    ),
)
CIFAR10_PRETEXTS = {row.name: row for row in _CIFAR10_PRETEXTS}
CIFAR10_CLASSIFIERS = {row.name: row for row in _CIFAR10_CLASSIFIERS}

EXPERIMENTS = {
    **PRETEXT_EXPERIMENTS,
    **CLASSIFIER_EXPERIMENTS,
    **REPRODUCTION,
    **JOINT_EMBEDDINGS,
    **PROBES,
    **NATURE_PRETEXTS,
    **NATURE_PROBES,
    **CIFAR10_PRETEXTS,
    **CIFAR10_CLASSIFIERS,
}


def quick(experiment: Experiment) -> Experiment:
    """The same code path in a second on a CPU: tiny images, few of them, few epochs.  Never a number to report."""
    if experiment.data == "cifar10":
        return _quick_on_cifar10(experiment)
    epochs, images = (8 if experiment.features_once else 1), 6
    if isinstance(experiment, PretextExperiment):  # shows each image under every label
        epochs, images = QUICK_PRETEXT_EPOCHS, 1 if experiment.name.startswith("jigsaw") else 3
        experiment = replace(experiment, save_epochs=(epochs, "last"))
    if isinstance(experiment, JointEmbeddingExperiment):
        epochs = QUICK_PRETEXT_EPOCHS
        own = experiment.unlabelled if Path(experiment.unlabelled).is_absolute() else ""  # quick needs no prepared data
        saved = (epochs, "last") if experiment.save_epochs else ()
        alone = experiment.unlabelled_alone and own != ""
        changes = {"unlabelled": own, "unlabelled_alone": alone, "save_epochs": saved}
        experiment = replace(experiment, view_size=32, **changes)
    if isinstance(experiment, ClassifierExperiment) and not isinstance(experiment.pretext_epoch, str):
        experiment = replace(experiment, pretext_epoch=QUICK_PRETEXT_EPOCHS)
    return replace(
        experiment,
        image_size=32,
        crop_size=None,
        images_per_class=images,
        batch_size=9,  # fits a folder of two classes, and leaves no last batch of one or two images
        train=replace(experiment.train, max_epochs=epochs),
    )


def _quick_on_cifar10(experiment: Experiment) -> Experiment:
    """Shorter still, two steps of a training each, since the report has about thirty of them."""
    images, batch_size = 2, 16
    if isinstance(experiment, PretextExperiment):  # shows each image four times
        images, batch_size = 1, 32
    return replace(
        experiment,
        images_per_class=images,
        subset=1.0,  # a fraction of so few images may be none
        batch_size=batch_size,
        train=replace(experiment.train, max_epochs=1, precision="auto"),  # bfloat16 is slow where a CPU emulates it
    )
