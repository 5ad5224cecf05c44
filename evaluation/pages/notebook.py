"""What a report notebook starts with: `study = notebook.open("supervised")` says what is run, on what, from where.

Everything comes from the environment, with defaults:

    PROFILE           quick (default; small and short) or full (the study)
    DATA              a prepared data set's name or a folder; default: the report's own, or synthetic scenes in quick
    WEIGHTS           initial weights of EfficientNet-B0: imagenet, random, or the file of a state dict
    RESNET18_WEIGHTS  the same of ResNet-18, for the nature scenes
    SKIP_BAD_IMAGES   1: leave out images of DATA that cannot be decoded, in the report on your own images
    COMPUTE           1: train, probe and explain what is missing; 0: show what is there.  Default: 1 in quick only
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib_inline.backend_inline import set_matplotlib_formats
from pandas.io.formats.style import Styler

from data.files import expanded, root_folder
from data.layouts import list_splits
from data.prepare import DATA_SETS, locate
from evaluation.results import comparisons, read_profile
from experiments import PROFILES, configure
from loop.devices import keep_freed_memory
from run_files import STUDY_DATA, files_of, further_seeds
from runs import collect
from supervised.settings import Experiment

SYNTHETIC = "synthetic"
OWN_TABLE = {  # what is trained on a user's own images, few enough for a laptop: what each line is
    "imagenet_classifier_probe": "without a pretext, frozen",
    "rotation_gentle_classifier": "after rotation, frozen",
    "byol_classifier": "after BYOL, frozen",
    "supervised_short": "fine-tuned with the labels",
}


@dataclass(frozen=True)
class Report:
    """A report notebook: its path below the project, a title for links, and the data set it is about.

    A report about no data set of the study is about a user's own images.
    """

    path: str
    title: str
    data: str | None = STUDY_DATA
    photographs: bool = False  # figures are JPEGs, a fifth of the size of PNGs


REPORTS = {
    "supervised": Report("supervised/report.ipynb", "Fully supervised"),
    "self_supervised": Report("self_supervised/report.ipynb", "Self-supervised features", photographs=True),
    "evaluation": Report("evaluation/evaluation.ipynb", "What the models see and have encoded", photographs=True),
    "search": Report("supervised/hyperparameter_search.ipynb", "Hyper-parameter search"),
    "nature": Report("supervised/nature_report.ipynb", "Six classes of nature scenes", "nature", photographs=True),
    "own": Report("evaluation/own_images.ipynb", "Your own images", data=None, photographs=True),
    "cifar10": Report("self_supervised/cifar10_report.ipynb", "The rotation pretext on CIFAR-10", "cifar10"),
}


def profile_of(environment: Mapping[str, str]) -> str:
    """The profile of an environment.  Raises ValueError for an unknown one."""
    profile = environment.get("PROFILE") or "quick"
    if profile not in PROFILES:
        raise ValueError(f"PROFILE is {profile!r}; it must be {' or '.join(PROFILES)}")
    return profile


def check_environment(environment: Mapping[str, str]):
    """Raise ValueError or FileNotFoundError that names the first variable no report can be made with."""
    profile_of(environment)
    if environment.get("DATA") and environment["DATA"] not in DATA_SETS:
        list_splits(locate(environment["DATA"]))
    for name in ("WEIGHTS", "RESNET18_WEIGHTS"):
        value = environment.get(name)
        if value and value not in ("imagenet", "random") and not expanded(value).is_file():
            raise FileNotFoundError(f"{name} is {value!r}; it must be imagenet, random or the file of a state dict")
    for name in ("COMPUTE", "SKIP_BAD_IMAGES"):
        if environment.get(name) not in (None, "", "0", "1"):
            raise ValueError(f"{name} is {environment[name]!r}; it must be 0 or 1")


def computes(environment: Mapping[str, str]) -> bool:
    """Whether what is missing is computed: by default in the quick profile alone."""
    return (environment.get("COMPUTE") or {"quick": "1", "full": "0"}[profile_of(environment)]) == "1"


def is_own(environment: Mapping[str, str]) -> bool:
    """Whether DATA names images of a user's own."""
    return bool(environment.get("DATA")) and environment["DATA"] not in DATA_SETS


def data_of(report: Report, environment: Mapping[str, str]) -> str:
    """The data set that a report uses: DATA, or its own; in quick, synthetic scenes where that is missing."""
    if report.data is None:
        return environment.get("DATA") or SYNTHETIC
    missing = not (root_folder() / "data" / report.data).is_dir()
    own = SYNTHETIC if missing and profile_of(environment) == "quick" else report.data
    return environment.get("DATA") or own


def reason_to_leave_out(report: Report, environment: Mapping[str, str]) -> str:
    """Why a report is not made, in a few words, or "".

    Of a user's own images the full profile has one report: training all that the others show would take days.
    """
    data = data_of(report, environment)
    if report.data is None:
        return "" if is_own(environment) else "it is about images of your own: DATA=FOLDER"
    if is_own(environment) and environment.get("SKIP_BAD_IMAGES") == "1":
        return f"it needs images that can all be decoded; SKIP_BAD_IMAGES=1 is for {REPORTS['own'].path}"
    trains = profile_of(environment) == "quick" or computes(environment)
    if is_own(environment) and not trains:
        return "it is about the experiments of the study: COMPUTE=1 trains all of them on your images"
    if report.data == STUDY_DATA != data and not trains:
        return f"it is about {STUDY_DATA}, and DATA is {data}: COMPUTE=1 trains its experiments on that"
    if report.data != STUDY_DATA and data not in (report.data, SYNTHETIC):
        return f"it is about the data set {report.data}, and DATA is {Path(data).name}"
    if data in DATA_SETS and data != SYNTHETIC and not (root_folder() / "data" / data).is_dir():
        return f"the data set {data} is not prepared (python -m data.prepare {data})"
    return ""


@dataclass(frozen=True)
class Study:
    """What one report is made of."""

    profile: str
    data: str
    weights: Mapping[str, str | None]  # by network
    compute: bool
    skip_bad_images: bool = False

    @property
    def quick(self) -> bool:
        """Whether no number means anything."""
        return self.profile == "quick"

    @cached_property
    def class_names(self) -> set[str]:
        """The classes of the data."""
        return set(list_splits(locate(self.data))["train"].class_names)

    def configured(self, table: Mapping[str, Experiment]) -> dict[str, Experiment]:
        """The experiments of a table as this study runs them, without those that weigh classes not in the data."""
        return {
            name: configure(each, self.profile, data=self.data, weights=self.weights.get(each.network))
            for name, each in table.items()
            if self.class_names.issuperset(name for name, _ in each.class_weights)
        }

    def results(self, table: Mapping[str, Experiment], all_seeds: bool = False, train: bool = True) -> dict[str, dict]:
        """The results of a table's experiments by file stem, of seed 0 or of all seeds that there are.

        Missing runs of seed 0 are trained where `train` and `compute` are on; runs of other seeds are only read.
        """
        experiments = list(self.configured(table).values())
        options = {"train_missing": train and self.compute, "skip_bad_images": self.skip_bad_images}
        found = collect(experiments, self.profile, progress=False, **options)
        if all_seeds:
            further = [replace(each, seed=seed) for each in experiments for seed in further_seeds(each, self.profile)]
            found |= collect(further, self.profile, progress=False)
        return found

    def say_what_is_missing(self, table: Mapping[str, Experiment], results: Mapping[str, dict]):
        """Display the experiments of a table without a result of seed 0, and those that do not fit the data."""
        experiments = self.configured(table)
        seeds = {name: further_seeds(each, self.profile) for name, each in experiments.items() if name not in results}
        missing = ", ".join(f"`{name}`" for name, of in seeds.items() if not of) or "nothing"
        others = ", ".join(f"`{name}` ({', '.join(map(str, of))})" for name, of in seeds.items() if of)
        others = f"  Run with other seeds than 0 alone, see `docs/results.md`: {others}." if others else ""
        unfit = ", ".join(f"`{name}`" for name in table if name not in experiments)
        unfit = f"  They weigh classes that the data does not have: {unfit}." if unfit else ""
        say(f"Not run yet: {missing}.{others}{unfit}")

    def comparisons(self, names: Iterable[str]) -> pd.DataFrame:
        """The lines of `results.comparisons` on these experiments, over the runs of the profile."""
        table = comparisons(read_profile(root_folder() / "results" / self.profile, self.data))
        return table[table["experiment"].isin(list(names))]

    def folder_of(self, table: Mapping[str, Experiment]) -> Path:
        """The folder of a table's results."""
        return files_of(next(iter(self.configured(table).values())), self.profile).results


def open(name: str, environment: Mapping[str, str] = os.environ) -> Study:
    """The study of one report of REPORTS; sets up plots and process, and displays what it is in one line."""
    profile = profile_of(environment)
    study = Study(
        profile=profile,
        data=data_of(REPORTS[name], environment),
        weights={
            "efficientnet_b0": environment.get("WEIGHTS") or None,
            "resnet18": environment.get("RESNET18_WEIGHTS") or None,
        },
        compute=computes(environment),
        skip_bad_images=environment.get("SKIP_BAD_IMAGES") == "1",
    )
    keep_freed_memory()
    if REPORTS[name].photographs:
        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
    plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True})
    quick = " (small and short: it shows that everything runs; its numbers mean nothing)" if study.quick else ""
    synthetic = " (synthetic scenes, not photographs)" if study.data == SYNTHETIC else ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, threads: {torch.get_num_threads()}"
    say(
        f"**Profile `{profile}`**{quick}, data **{Path(study.data).name}**{synthetic}; "
        f"executed on {device}, torch {torch.__version__}."
    )
    return study


def say(text: str):
    """Display Markdown."""
    display(Markdown(text))


def escaped(style: Styler) -> Styler:
    """The style of a table whose labels may be names that a user gave, such as those of classes."""
    return style.format_index(escape="html", axis="index").format_index(escape="html", axis="columns")


def show(table: pd.DataFrame, digits: int = 4, index: bool = True, bold_highest: Iterable[str] = ()):
    """Display a table: floats with `digits` digits, p values with two, differences with their sign."""
    if not len(table):
        say("None yet.")
        return
    formats = {
        name: "{:.2g}" if name == "p" else "{:+.4f}" if name == "difference" else f"{{:.{digits}f}}"
        for name in table.columns
        if pd.api.types.is_float_dtype(table[name])
    }
    style = escaped(table.style.format(formats, na_rep="", escape="html"))
    if not index:
        style = style.hide(axis="index")
    highest = [name for name in bold_highest if name in table]
    display(style.highlight_max(subset=highest, props="font-weight: bold") if highest else style)
