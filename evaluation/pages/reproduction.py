"""The numbers of the earlier reports beside ours: `python -m evaluation.pages.reproduction`.

Writes docs/reproduction.md from earlier_numbers.csv and from result files; no number of ours is typed.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter

import pandas as pd

from data.files import CODE, root_folder, run_command, write_text
from evaluation.pages.earlier_numbers import EarlierNumber, Measured, read_earlier_numbers
from evaluation.pages.hypotheses import found_markdown, hypotheses_markdown
from evaluation.pages.verdicts import (
    CANNOT,
    NOT_RUN,
    SAME,
    SETTING_WORDS,
    WORDS,
    compare_results,
    compare_settings,
    in_digits,
    ours_markdown,
)
from evaluation.results import read_profile
from experiments import EXPERIMENTS
from self_supervised.dataloader import PRETEXTS

_SEARCHED = "perturbation_searched_classifier"
UNSTATED = (  # what a document leaves open: the experiment and the setting that hold our choice
    ("000", "factor of a step of the learning rate", "supervised_1", "train.step_factor"),
    ("000", "epochs between two such steps", "supervised_1", "train.step_epochs"),
    ("000", "momentum of SGD", "supervised_5", "train.momentum"),
    ("001", "width of the pretext's square, in pixels", "perturbation_tuned", "square"),
    ("001", "learning rate of the head after the searched perturbation", _SEARCHED, "train.learning_rate"),
    ("001", "batch size of that head", _SEARCHED, "batch_size"),
    ("002", "data", "cifar10_rotation", "data"),
    ("002", "network", "cifar10_rotation", "network"),
    ("002", "optimizer", "cifar10_rotation", "train.optimizer"),
    ("002", "learning rate", "cifar10_rotation", "train.learning_rate"),
    ("002", "batch size", "cifar10_rotation", "batch_size"),
    ("002", "epochs of a classifier on frozen features", "cifar10_rotation_classifier", "train.max_epochs"),
    ("002", "epochs of a classifier that trains them", "cifar10_rotation_finetuned", "train.max_epochs"),
    ("004", "momentum of SGD", "nature_resnet18_sgd_1e-2", "train.momentum"),
    ("004", "batch size", "nature_resnet18_sgd_1e-2", "batch_size"),
    ("004", "augmentation", "nature_resnet18_sgd_1e-2", "augmentation"),
)
DOCUMENTS = {
    "000": "K. Zioło, *Self-Supervised Scene Classification* (undated), the first report: EfficientNet-B0 on 15-Scene, "
    "fine-tuned with labels, and as a frozen network after a rotation and a perturbation pretext, with Score-CAM and "
    "model inversion.",
    "001": "A. Deceuninck, *Artificial Neural Network Project* (2023), the second report: the same three models with "
    "searched learning rates and batch sizes, the perturbation pretext at several epochs, Score-CAM, and images for "
    "single filters.",
    "002": "A. Hernández Ramos, *On the effect of rotation-based self-supervised learning* (undated): a rotation "
    "pretext, and the classifier with and without it.  It names neither its data nor its network, but for the "
    "ResNet-34 of a second trial; we take CIFAR-10 and ResNet-18.",
    "003": "I. Berezin, *Mandatory assignment 1, IN4310* (2023): ResNet-18 from ImageNet weights on six classes of "
    "nature scenes, with a classification report, rankings, feature maps and covariance spectra.",
    "004": "“DF”, *Mandatory assignment 1, IN4310* (undated): the same assignment with ResNet-18 from random and from "
    "ImageNet weights on smaller images, with average precision and the share of non-positive values.",
}


# ------------------------------------------------------------------------------------------------------------ the page


def _stated(number: EarlierNumber) -> str:
    """As printed; where that is a formula or has words around it, the value."""
    plain = all(letter in "0123456789.,-%xe " for letter in number.stated)
    return number.stated if plain or number.value is None else f"{number.value:g}"


def results_markdown(compared: pd.DataFrame) -> str:
    """The results of one document.  Numbers without a key share a line with others of their place and remark."""
    lines = ["| place | quantity | theirs | ours | runs | word | remark |", "|---|---|---|---|---|---|---|"]
    together: dict[tuple, list[EarlierNumber]] = {}
    for line in compared.to_dict("records"):
        number = line["number"]
        if not number.key:
            together.setdefault((number.place, line["word"], line["remark"]), []).append(number)
            continue
        runs = f"{len(line['ours'])}{', mixed' if line['machines'] > 1 and len(line['ours']) > 1 else ''}"
        cells = (
            number.place,
            number.quantity,
            _stated(number),
            ours_markdown(line["ours"], number.key, not number.better),
            runs,
        )
        lines.append(f"| {' | '.join(cells)} | {line['word']} | {line['remark'] or '-'} |")
    for (place, word, remark), numbers in together.items():
        quantities = numbers[0].quantity if len(numbers) == 1 else f"{numbers[0].quantity} to {numbers[-1].quantity}"
        quantities = "; ".join(each.quantity for each in numbers) if len(numbers) < 6 else quantities
        lines.append(
            f"| {place} | {quantities} | {'; '.join(map(_stated, numbers))} | none | 0 | {word} | {remark or '-'} |"
        )
    return "\n".join(lines)


def settings_markdown(settings: pd.DataFrame) -> str:
    """One line per document, place, quantity, and value of theirs and of ours; experiments that share them together."""
    lines = [
        "| document | place | setting | theirs | ours | word | experiments | remark |",
        "|---|---|---|---|---|---|---|---|",
    ]
    together: dict[tuple, list[str]] = {}
    for line in settings.to_dict("records"):
        number, ours = line["number"], line["ours"]
        without_ours = {NOT_RUN: "none", CANNOT: "none", SAME: _stated(number)}
        text = without_ours.get(line["word"]) or in_digits(ours, integer=True)
        key = (number.document, number.place, number.quantity, _stated(number), text, line["word"], number.note or "-")
        together.setdefault(key, []).append(line["experiment"])
    for (*cells, remark), experiments in together.items():
        lines.append(f"| {' | '.join(cells)} | {', '.join(f'`{name}`' for name in experiments)} | {remark} |")
    return "\n".join(lines)


def unstated_markdown() -> str:
    """What the documents leave open, and what we chose."""
    lines = ["| document | not stated | ours | experiment |", "|---|---|---|---|"]
    for document, quantity, name, setting in UNSTATED:
        experiment = EXPERIMENTS[name]
        value = PRETEXTS[experiment.pretext].square if setting == "square" else attrgetter(setting)(experiment)
        lines.append(f"| {document} | {quantity} | {value} | `{name}` |")
    return "\n".join(lines)


def counts_markdown(compared: pd.DataFrame) -> str:
    """How many results of each document got which word."""
    documents = [number.document for number in compared["number"]]
    counts = Counter(zip(documents, compared["word"], strict=True))
    lines = [f"| document | results | {' | '.join(WORDS)} |", f"|---|---|{'---|' * len(WORDS)}"]
    for document in DOCUMENTS:
        of_words = [counts[document, word] for word in WORDS]
        lines.append(f"| {document} | {sum(of_words)} | {' | '.join(map(str, of_words))} |")
    of_words = [sum(counts[document, word] for document in DOCUMENTS) for word in WORDS]
    lines.append(f"| all | {sum(of_words)} | {' | '.join(map(str, of_words))} |")
    return "\n".join(lines)


def contradictions_markdown(numbers: Iterable[EarlierNumber]) -> str:
    """Where documents disagree with themselves, one item each."""
    found = [number for number in numbers if number.contradiction]
    return "\n".join(f"- {number.document}, {number.place}: {number.contradiction}" for number in found)


def page(study: Measured, numbers: Sequence[EarlierNumber]) -> str:
    """docs/reproduction.md."""
    compared, settings = compare_results(study, numbers), compare_settings(study, numbers)
    kinds = Counter(number.kind for number in numbers)
    setting_words = Counter(settings["word"])
    tables = []
    for document, report in DOCUMENTS.items():
        of_document = compared[[number.document == document for number in compared["number"]]]
        tables.append(f"### Document {document}\n\n{report}\n\n{results_markdown(of_document)}")
    return TEMPLATE.format(
        reports="\n".join(f"- **{document}**: {report}" for document, report in DOCUMENTS.items()),
        results=kinds["result"],
        setting_numbers=kinds["setting"],
        descriptions=kinds["description"],
        counts=counts_markdown(compared),
        tables="\n\n".join(tables),
        setting_counts=", ".join(
            f"{setting_words[word]} are *{word}*" for word in SETTING_WORDS if setting_words[word]
        ),
        settings=settings_markdown(settings),
        pairs=len(settings),
        unstated=unstated_markdown(),
        found=found_markdown(study, numbers),
        hypotheses=hypotheses_markdown(study, numbers),
        contradictions=contradictions_markdown(numbers),
    )


TEMPLATE = """# The earlier reports' numbers beside ours

Written by `python -m evaluation.pages.reproduction` (or `make pages`) from the result files and from
`evaluation/pages/earlier_numbers.csv`. No number of ours is typed.

## The five reports

{reports}

The CSV holds the numbers of the five reports: {results} results, {setting_numbers} settings, and {descriptions}
descriptions of data and code, with which nothing is compared. A result that a report repeats, or that can be read in
two ways, has a line for each.

## The words

| word | meaning |
|---|---|
| reproduced | Theirs lies in the 95 % prediction interval of one further run of ours. |
| better | Theirs lies outside of it, and ours is the better one. |
| differs | Theirs lies outside of it, and ours is the worse one, or neither is better. |
| one run, fewer than three runs | We have too few runs for an interval. Nothing is concluded. |
| other settings | Ours has another stated setting, other data or another model. Nothing is concluded. |
| not run | No run of ours measured it. |
| cannot be run here | The remark gives the reason. |

The prediction interval of n runs with mean m and standard deviation s is m ± t s √(1 + 1/n). Here t has n - 1 degrees
of freedom, and n is at least 3. With three runs it reaches five standard deviations to each side, so *reproduced* then
says little. Where all runs are equal it is a single number, which is too narrow. We take each number of theirs as that
of one training, known to half of the last digit that is printed: 100 % is 99.5 % or more.

An interval must not hold what is impossible, so it is computed on a scale that fits the quantity, and shown in the
quantity's own unit:

- Cross-entropy losses are positive, and theirs can be a small fraction of ours: the logarithm.
- Accuracies, average precisions, and shares lie between 0 and 1, and their seed variance shrinks near 1: the arcsine of
  the square root, with ends cut at 0 and 1. A logit would be infinite for a report's 100 %.
- All others are on their own scale: epochs, with a lower end cut at 0, differences, and sums of weights.

*Validation accuracy* is under the earlier protocol: the epoch is selected, and the accuracy reported, on the same
images (all 2,985 of 15-Scene). This is optimistic. Ours is the highest of all epochs, or that of the epoch that the
report states. Document 001 chose the epochs of its scene classifiers from their loss curves, by eye (section 2.1).
Beside its accuracies of scenes, those of training too, ours is of the epoch with the lowest validation loss. Those of
its table 2 have a second line, where ours is of the epoch that the table states. Our own comparisons use separate test
images, see [results.md](results.md).

## The initial weights

Our EfficientNet-B0 starts from a file that holds the convolution, squeeze-excitation and BatchNorm affine tensors of an
ImageNet network. As far as we can tell these are torchvision's `IMAGENET1K_V1`. The file has no running means and
variances of BatchNorm, so these were re-estimated on 1,000 ImageNet photographs. If we are right, a run from
torchvision's download differs from ours in these statistics only, and its accuracies may differ a little. The file is
not in this repository, so our numbers cannot be repeated to the last digit without it.

The evidence is table 7 of document 001 below: the filters of the last convolution with the three highest sums of
weights are the same in its models and in ours. The other tensors could not be compared. Every result file records the
file name and the SHA-256 of its initial weights.

### Comparable numbers from torchvision's download

`python train.py` downloads torchvision's weights unless `--weights` names a file. Give such runs a folder of their own,
so that they do not mix with the committed results:

```sh
export SCENES_ROOT=~/scenes_torchvision
python -m data.prepare 15scene --source FOLDER
python train.py imagenet_classifier_four_stages supervised_long --seeds 0 1 2
```

Then compare differences: that of an experiment and its control from your weights with that of the same two experiments
here. A single accuracy is less comparable, because it moves with the initial weights. To come as near to our weights as
possible, re-estimate the statistics of the download and start from that file:

```python
import torch
from supervised.models import build_features, estimate_batchnorm, load_initial_weights

features = build_features("efficientnet_b0")
features.load_state_dict(load_initial_weights("imagenet").state_dict)
estimate_batchnorm(features, batches)  # your batches of normalized ImageNet photographs, (N, 3, 224, 224)
torch.save({{f"features.{{name}}": tensor for name, tensor in features.state_dict().items()}}, "re_estimated.pth")
```

then `python train.py supervised_long --weights re_estimated.pth`.

## How many of each

{counts}

## Results

*ours* is the plain mean over runs. With three runs or more the prediction interval follows. *mixed* marks lines whose
runs come from several machines, torch versions or precisions. Losses are in nats per image, and epochs count from 1
unless the remark says otherwise.

{tables}

## What the reports may have done

Where ours is far from a report's number, we test what may explain it:

- **SGD, document 000.** It states neither a momentum nor when the learning rate is lowered. A momentum is tried, and a
  rate that is never lowered.
- **Both pretexts, document 000.** Its text and its appendix 12 state different transforms. Ours are those of the text;
  those of the appendix are tried in fewer epochs.
- **The perturbation, document 001.** It is learned faster there, up to an accuracy of 100 %. The report does not state
  how large the square is. Ours has the 10 pixels of document 000; 20 are tried.
- **Frozen features after perturbation**, of document 000, and of document 001 with the searched rate, are far better
  there. Four hypotheses:
  - "Frozen" features were left in train mode, a mistake that is made on purpose here. No gradient changes them, but
    BatchNorm normalizes by each training batch and moves its statistics to the scenes, and stochastic depth drops
    blocks.
  - The features were taken from an earlier epoch of the pretext. In document 000 the pretext's accuracy is 100 % after
    the first epoch, so the first may be the one that was kept. Ours of epochs 1 and 2 are from `perturbation_1_short`,
    the others from `perturbation_1`.
  - The features tell the scenes apart, but they are so small after the pretext that a plain head hardly learns from
    them. BatchNorm before the head makes them large again.
  - The head of document 001 had another learning rate, which was searched and is not stated.
- **Rotation, document 002.** Its training accuracy is below its test accuracy; ours is far above. With padded crops,
  flips and SGD (`cifar10_rotation_recipe` in [results.md](results.md)) ours is below too, and its test accuracy is
  nearer to theirs. It has other settings in several ways and fewer than three runs, so it is not in the lists below.

Accuracies are under the earlier protocol, of the same epoch as in the results above. *Unchanged* is ours without the
change, from runs on the same device and torch version. A dash under *changed* marks the experiment itself. With three
runs or more the prediction interval follows, and whether theirs lies in it. Where this interval is wide, *inside* says
only that a hypothesis is possible. [results.md](results.md) compares each experiment with the one that it changes.

**Found.** A change that holds theirs *inside* may be what the report did; one with theirs *outside* is not what it did,
or not alone. The last sentence of each line concludes:

{found}

**In numbers.**

{hypotheses}

## Settings

What the reports state in numbers about their trainings, and what our experiments have. A line holds the experiments
that share a setting.  Of the {pairs} pairs of a setting and an experiment, {setting_counts}.
An experiment with *other settings* in this table has these words at all of its results above, and so has a classifier
on the features of such a pretext.  The results above say why an experiment cannot be run here.

{settings}

### What the reports leave open

{unstated}

Early stopping of document 000 looks at all 2,985 validation images. Ours looks at val alone, the part of them that
[data.md](data.md) gives. Document 000 states other transforms for its two pretexts in its table of settings than in its
text; ours are those of the text.

## Where the documents contradict themselves or the facts

{contradictions}
"""


def main() -> int:
    """Write the page."""
    root = root_folder()
    folder = root / "results" / "full"
    study = Measured(read_profile(folder), folder, CODE / "published")
    text = page(study, read_earlier_numbers())
    write_text(root / "docs" / "reproduction.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
