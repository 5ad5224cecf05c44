"""The tables and lines of images of supervised/nature_report.ipynb, from results and from what nature.py has cached.

`results` are those of NATURE_EXPERIMENTS by name, `scores` the probabilities of all test images (N, classes) by name.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from data.image_cache import Scenes
from data.prepare import CLASS_NAMES
from evaluation import metrics
from evaluation.nature import AFTER, BEFORE
from evaluation.results import results_table
from supervised.settings import EARLIER_AVERAGE_PRECISION, EARLIER_NON_POSITIVE

# What DF printed; the means of their rounded precisions can differ in the last digit.
EARLIER_MEAN_AVERAGE_PRECISION = {
    "nature_resnet18_sgd_1e-2": 0.8222,
    "nature_resnet18_sgd_1e-3": 0.6805,
    "nature_resnet18_adam_1e-3": 0.7388,
    "nature_resnet18_imagenet_sgd_1e-2": 0.9167,
}
RANKED = ("sea", "buildings")  # the classes whose ranking is shown, where the data has them
PLACES = {  # of a stage of ResNet-18: what is added to its name
    "first convolution, before BatchNorm (DF)": ".0.conv1",
    "the same after BatchNorm (zero after ReLU)": ".0.bn1",
    "end of the stage, after ReLU (Berezin)": "",
}
LARGEST = (5, 10)  # eigenvalues


def accuracies(results: Mapping[str, dict], scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """`results.results_table` without the earlier protocol, with mAP and what sets the experiments apart.

    "mAP" is over the complete test split, "earlier mAP" DF's of one batch, "pixels" the size of the images.
    """
    table = results_table(results).drop(columns=["earlier protocol", "earlier protocol epoch"])
    table.insert(4, "mAP", average_precisions(results, scores)["mAP"])
    table.insert(5, "earlier mAP", earlier_average_precisions()["mAP"])
    settings = [result["settings"] for result in results.values()]
    table.insert(9, "of epochs", [each["train"]["max_epochs"] for each in settings])
    table.insert(10, "pixels", [each["image_size"] for each in settings])
    return table


def average_precisions(results: Mapping[str, dict], scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The average precision of each class over the complete test split, and their mean, mAP: one line an experiment."""
    lines = {}
    for name, probabilities in scores.items():
        values = metrics.average_precision(results[name]["labels"]["test"], probabilities)
        lines[name] = {**dict(zip(results[name]["class_names"], values, strict=True)), "mAP": np.nanmean(values)}
    return pd.DataFrame.from_dict(lines, orient="index") if lines else pd.DataFrame(columns=["mAP"], dtype=float)


def earlier_average_precisions() -> pd.DataFrame:
    """The same as DF reported it, by the experiment that comes nearest."""
    names = list(CLASS_NAMES["nature"])
    table = pd.DataFrame.from_dict(EARLIER_AVERAGE_PRECISION, orient="index", columns=names, dtype=float)
    return table.assign(mAP=pd.Series(EARLIER_MEAN_AVERAGE_PRECISION))


def map_of_single_batches(
    results: Mapping[str, dict], scores: Mapping[str, np.ndarray], names: Sequence[str], batches: int = 200
) -> pd.DataFrame:
    """What the mAP would seem to be from one random batch of 8, or of 64, test images.

    Columns: experiment, images (of a batch), complete split (its mAP), batches (their number), and the lowest, mean and
    highest mAP of a batch.  Experiments without scores are left out, and so are batches larger than the split.
    """
    lines = []
    for name in (name for name in dict.fromkeys(names) if name in scores):
        labels = results[name]["labels"]["test"]
        whole = np.nanmean(metrics.average_precision(labels, scores[name]))
        for size in (size for size in (8, 64) if size <= len(labels)):
            found = metrics.mean_average_precision_of_batches(labels, scores[name], size, batches)
            lines.append((name, size, whole, batches, found.min(), found.mean(), found.max()))
    columns = ["experiment", "images", "complete split", "batches", "lowest", "mean", "highest"]
    return pd.DataFrame(lines, columns=columns)


def by_class(result: dict, probabilities: np.ndarray | None) -> pd.DataFrame:
    """`metrics.classification_report` of the test images, with the average precision where there are scores."""
    labels, names = result["labels"]["test"], result["class_names"]
    table = metrics.classification_report(labels, result["predictions"]["test"], names)
    if probabilities is not None:
        values = metrics.average_precision(labels, probabilities)
        table.insert(3, "average precision", pd.Series(dict(zip(names, values, strict=True))))
        table.loc["macro avg", "average precision"] = np.nanmean(values)
    return table.astype({"images": int})


def ranking_lines(
    scenes: Scenes, probabilities: np.ndarray, count: int = 10
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """The test images with the highest and the lowest probability of RANKED, as `plots.draw_image_lines` takes them.

    Above each image are its class and the probability of the ranked class.  Data without RANKED show two other classes.
    """
    names, lines = list(scenes.class_names), {}
    for target in [name for name in RANKED if name in names] or names[:2]:
        label = names.index(target)
        for end, shown in zip(("highest", "lowest"), metrics.ends_of_ranking(probabilities, label, count), strict=True):
            of_class = int((scenes.labels[shown] == label).sum())
            titles = [f"{names[scenes.labels[number]]}\n{probabilities[number, label]:.1e}" for number in shown]
            lines[f"{target}: {end}\n({of_class} of {len(shown)} are)"] = scenes.images[shown], titles
    return lines


def accuracies_by_size(other_sizes: pd.DataFrame) -> pd.DataFrame:
    """Val accuracy of each network at every image size, beside the one it was trained at."""
    if other_sizes.empty:
        return pd.DataFrame()
    index = ["experiment", "trained at"]
    return other_sizes.pivot_table(index=index, columns="evaluated at", values="val accuracy", sort=False)


def non_positive_shares(non_positive: pd.DataFrame, network: str) -> pd.DataFrame:
    """The fraction of values that are not positive by hook point, with a column for each of a network's features.

    ResNet-18 has the numbers of the earlier reports beside them.
    """
    if non_positive.empty:
        return pd.DataFrame()
    measured = non_positive[non_positive["network"] == network]
    labels = measured["features"] + " (" + measured["pixels"].astype(str) + " pixels)"
    table = measured.assign(features=labels).pivot_table(
        index=["hook_point", "module"], columns="features", values="share", sort=False
    )
    earlier = table.index.get_level_values("hook_point").map(EARLIER_NON_POSITIVE)
    if earlier.notna().any():
        table.insert(0, "earlier report", earlier)
    return table


def non_positive_by_place(non_positive: pd.DataFrame) -> pd.DataFrame:
    """The fraction of values that are not positive at PLACES of the four stages of the ResNet from scratch."""
    if non_positive.empty:
        return pd.DataFrame()
    shares = non_positive[non_positive["features"] == "ResNet-18 from scratch"].set_index("hook_point")["share"]
    stages = [f"layer{number}" for number in (1, 2, 3, 4)]
    return pd.DataFrame(
        {place: [shares.get(f"features.{stage}{suffix}") for stage in stages] for place, suffix in PLACES.items()},
        index=stages,
    )


def spectra_table(spectra: pd.DataFrame) -> pd.DataFrame:
    """One line per spectrum: how many eigenvalues are above zero, their sum, and the fraction of the LARGEST."""
    if spectra.empty:
        return pd.DataFrame()
    lines = []
    for (source, features, images), group in spectra.groupby(["images_of", "features", "images"], sort=False):
        values = group["eigenvalue"].to_numpy()
        line = {"images of": source, "features": features, "images": images, "above zero": len(values)}
        line["sum"] = values.sum()
        line |= {f"largest {number}": values[:number].sum() / values.sum() for number in LARGEST}
        lines.append(line)
    return pd.DataFrame(lines)


def before_and_after(spectra: pd.DataFrame) -> pd.DataFrame:
    """The fraction of the largest eigenvalues before and after fine-tuning, by source, from all of its images."""
    table = spectra_table(spectra)
    if table.empty:
        return table
    of_all = table[table["images"] == table["images"].max()]
    wide = of_all.pivot_table(index="images of", columns="features", values=f"largest {LARGEST[0]}", sort=False)
    return wide[[BEFORE, AFTER]].assign(change=wide[AFTER] - wide[BEFORE])


def largest_eigenvalues(spectra: pd.DataFrame) -> pd.DataFrame:
    """The largest eigenvalues of each spectrum of all of a source's images, by their place."""
    if spectra.empty:
        return pd.DataFrame()
    of_all = spectra[(spectra["images"] == spectra["images"].max()) & (spectra["place"] <= LARGEST[-1])]
    return of_all.pivot_table(index=["images_of", "features"], columns="place", values="eigenvalue", sort=False)
