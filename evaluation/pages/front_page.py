"""The front page of the reports: `python -m evaluation.pages.front_page` writes results/<profile>/index.html.

It shows what is there: tables and sentences from the result files, pictures where the reports have written them.
PROFILE and DATA come from the environment, as in the notebooks (`evaluation.pages.notebook`).

On GitHub Pages, with the repository's root as their source, it is the page results/full/.
"""

import html
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from data.files import read_table, root_folder, run_command, write_text
from data.prepare import DATA_SETS
from evaluation import few_labels
from evaluation.model_inversion import picture_file
from evaluation.pages.notebook import REPORTS, data_of, profile_of
from evaluation.pages.tables import answer, comparing_text, headlines, shown_comparisons, shown_experiments
from evaluation.results import comparisons, experiments_table, machines, read_profile
from evaluation.web_page import page_of, table_html
from experiments import PROFILES
from run_files import STUDY_DATA, folder_of_data, origin_of
from self_supervised.settings import PROBES

PAGES = {
    "docs/results.md": "All results of the study",
    "docs/claims.md": "Are the earlier claims true?",
    "docs/reproduction.md": "The earlier reports' numbers beside ours",
}
PICTURES = {
    "pretext_epochs.png": "Val loss of the pretext, and accuracy on scenes of its frozen features, by epoch of the "
    "pretext.  Dotted lines are the same classifiers on ImageNet features without a pretext.",
    "scorecam.jpg": "Where the models look: Score-CAM after the last stage, on the same images, for the true class.",
}
OVERVIEW = "What the pretexts show, test accuracies with 95 % intervals, accuracies with few labels, and heat maps."
INVERSIONS = "Model inversion: images that raise the logit of a class, started from noise."
# On GitHub Pages the browser would show notebooks and Markdown as plain text: GitHub itself shows them as pages.
ON_GITHUB_PAGES = """<script>
if (location.hostname.endsWith(".github.io")) {
  const owner = location.hostname.split(".")[0], repository = location.pathname.split("/")[1];
  const root = new URL(`/${repository}/`, location.href).href;
  for (const link of document.querySelectorAll("a[href$='.md'], a[href$='.ipynb']")) {
    link.href = link.href.replace(root, `https://github.com/${owner}/${repository}/blob/HEAD/`);
  }
}
</script>"""
ACCURACIES = (
    "<b>Test</b>: the epoch is selected on val, and the accuracy is that on the test images.  <b>Earlier protocol</b>: "
    "the epoch is selected, and the accuracy reported, on val and test together, as the first report did.  "
    "The accuracy of a rotation, perturbation or jigsaw pretext is on its own labels, not on classes.  That of a "
    "joint-embedding pretext, such as byol or simclr, is on classes, by a vote of the 20 nearest training images."
)
WORDS = (
    "In a <b>pretext</b> a network learns from photographs without labels: by how much one was rotated, which color a "
    "small square on it has (perturbation), in which order its quarters are (jigsaw), or what another view of the same "
    "photograph looks like to a network (<b>BYOL</b>, SimCLR, VICReg).  Then a classifier learns from its "
    "<b>frozen</b> features.  Pretexts start from supervised ImageNet weights unless a line says random.  "
    "<b>Gentle</b> pretexts have few epochs at a low learning rate.  "
    "The <b>earlier protocol</b> is that of the earlier reports, see Results."
)


def html_name(notebook: Path) -> str:
    """The name of a report's page in the profile's folder."""
    return f"{notebook.parent.name}_{notebook.stem}.html"


def about(results: Mapping[str, dict], profile: str) -> str:
    """Profile, data, initial weights and machines of all results."""
    runs = results.values()
    weights = {origin_of(each["initial_weights"])["weights"] for each in runs}
    data = {each["data"]["name"] for each in runs}
    return (
        f"Profile {profile} ({PROFILES[profile]}).  Data: {', '.join(sorted(data))}.  Initial weights: "
        f"{'; '.join(sorted(weights))}.  Trained on: {machines(runs)}."
    )


def place_of(folder: Path, data: str) -> Path:
    """Where the pages about a data set lie, below the folder of a profile: those of a user's own lie apart."""
    return folder if data in DATA_SETS else folder_of_data(folder, data)


def links(left_out: Mapping[str, str], made: Collection[str], root: str = "../..") -> list[str]:
    """Lines of HTML: each report with its page if it was made, or why it was left out, and the pages of docs.

    `root` is the way to the project's folder.
    """
    lines = []
    for report in REPORTS.values():
        page = html_name(Path(report.path))
        title = f'<a href="{page}">{report.title}</a>' if report.path in made else report.title
        reason = f", left out: {html.escape(left_out[report.path])}" if report.path in left_out else ""
        lines.append(f'{title} (<a href="{root}/{report.path}">{report.path}</a>){reason}')
    return [*lines, *(f'{title} (<a href="{root}/{path}">{path}</a>)' for path, title in PAGES.items())]


def pictures(folder: Path, data: str, profile: str) -> list[str]:
    """The figures that are there, as HTML: the overview (full), those of PICTURES, and one of model inversion.

    The first two open at their own size: on a telephone they are small.
    """
    found, place = folder_of_data(folder, data), place_of(folder, data)
    study = profile == "full" and data in DATA_SETS
    captions = {folder.parents[1] / "docs" / "overview.jpg": OVERVIEW} if study else {}
    captions |= {found / name: caption for name, caption in PICTURES.items()}
    figures = []
    for path, caption in captions.items():
        if path.exists():
            link = _link(path, place)
            image = f'<a href="{link}"><img src="{link}" alt="{caption}"></a>'
            figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    inverted = [path.parent for path in sorted((found / "explanations").glob("*/classes/settings.json"))]
    strips = "".join(_strip(each, place) for each in inverted)
    return [*figures, f"<figure>{strips}<figcaption>{INVERSIONS}</figcaption></figure>"] if strips else figures


def _strip(inverted: Path, folder: Path) -> str:
    """One line of images by model inversion, one for each class, from the folder of a model."""
    names = read_table(inverted / "inversion.csv", converters={"name": str})["name"]
    images = "".join(
        f'<img src="{_link(inverted / picture_file(name), folder)}" alt="{html.escape(name)}">' for name in names
    )
    title = html.escape(f"{inverted.parent.name}: {', '.join(names)}")
    return f'<div class="strip">{images}</div><figcaption>{title}</figcaption>'


def _link(path: Path, folder: Path) -> str:
    """A link from the page in `folder` to a file."""
    return quote(os.path.relpath(path, folder))


def page(
    folder: Path, profile: str, data: str, left_out: Mapping[str, str] | None = None, made: Collection[str] = ()
) -> str:
    """The HTML of the page of the results on `data` in the folder of a profile.

    `left_out`: reports that were not made, with the reason; `made`: reports whose HTML is in the folder.
    Raises FileNotFoundError if there are no results.
    """
    results = read_profile(folder, data)
    compared = comparisons(results)
    short = headlines(results, compared)
    experiments = shown_experiments(experiments_table(results)).reset_index(names="experiment")
    parts = [
        "<p>How good are features learned without labels for recognizing scenes?</p>",
        *_answer(compared, profile, data),
        f"<p>{WORDS}</p>",
        "<h2>In short</h2>",
        table_html(short) if len(short) else "<p>None of the experiments in the headlines has been run yet.</p>",
        "<h2>Reports</h2>",
        _list(links(left_out or {}, made, os.path.relpath(folder.parents[1], place_of(folder, data)))),
        "<h2>Pictures</h2>",
        *(pictures(folder, data, profile) or ["<p>None yet.</p>"]),
        "<h2>Results</h2>",
        f"<p>{ACCURACIES}</p>",
        table_html(experiments),
        "<h2>Comparisons</h2>",
        _paragraphs(comparing_text(compared)),
        table_html(shown_comparisons(compared)),
        f'<p class="soft">{html.escape(about(results, profile))}</p>',
        ON_GITHUB_PAGES,
    ]
    return page_of("Self-supervised scenes", parts)


def _answer(compared: pd.DataFrame, profile: str, data: str) -> list[str]:
    """The answer of README.md, as HTML; [] where it is of other data or a part of it was not run."""
    if profile != "full" or data != STUDY_DATA:
        return []
    said = answer(compared, few_labels.collect(PROBES, profile)).strip("*")
    return [f"<p><b>{html.escape(said)}</b></p>"] if said else []


def _paragraphs(text: str) -> str:
    """Paragraphs of Markdown with *words* and `names`, as HTML."""
    marked = re.sub(r"\*(\w[\w ]*)\*", r"<i>\1</i>", html.escape(text))
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", marked)
    return "\n".join(f"<p>{each}</p>" for each in marked.split("\n\n"))


def _list(lines: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{line}</li>" for line in lines) + "\n</ul>"


def write(
    folder: Path, profile: str, data: str, left_out: Mapping[str, str] | None = None, made: Collection[str] = ()
) -> Path:
    """Write `page` as index.html of `place_of` and return its path."""
    path = place_of(folder, data) / "index.html"
    write_text(path, page(folder, profile, data, left_out, made))
    return path


def main():
    """Write the page of the profile and the data of the environment."""
    profile = profile_of(os.environ)
    folder = root_folder() / "results" / profile
    print(write(folder, profile, data_of(REPORTS["supervised"], os.environ)))


if __name__ == "__main__":
    sys.exit(run_command(main))
