"""The front page of the reports: `python -m evaluation.pages.front_page` writes results/<profile>/index.html.

It shows what is there: tables and sentences from the result files, pictures where the reports have written them.
PROFILE and DATA come from the environment, as in the notebooks (`evaluation.pages.notebook`).
"""

import html
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from string import Template
from urllib.parse import quote

import pandas as pd

from data.files import root_folder, run_command, write_atomically
from evaluation.pages.notebook import REPORTS, data_of, profile_of
from evaluation.pages.tables import comparing_text, headlines, shown_comparisons, shown_experiments
from evaluation.results import comparisons, experiments_table, folder_of_data, machines, read_profile

PAGES = {
    "docs/results.md": "All results of the study",
    "docs/claims.md": "Are the earlier claims true?",
    "docs/reproduction.md": "The earlier reports' numbers beside ours",
}
PICTURES = {
    "pretext_epochs.png": "Val loss of the pretext, and accuracy on scenes of its frozen features, by epoch of the "
    "pretext.  The grey line is the same classifier on ImageNet features without a pretext.",
    "scorecam.jpg": "Where the models look: Score-CAM after the last stage, on the same images, for the true class.",
}
OVERVIEW = "Test accuracies with their 95 % intervals, the pretexts, and a heat map."
INVERSIONS = "Model inversion: images that raise the logit of a class, started from noise."
PROFILES = {"full": "the study", "quick": "small and short, to try the code; its numbers mean nothing"}
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Self-supervised scenes: $profile</title>
<style>
body { max-width: 74rem; margin: 0 auto; padding: 0 1rem 3rem; font: 1rem/1.5 system-ui, sans-serif; color: #1a1a1a; }
h1 { margin-bottom: 0.2rem; }
.about { color: #555; font-size: 0.9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; }
td { white-space: nowrap; }
td:first-child, td:last-child { white-space: normal; min-width: 13rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left; }
a { overflow-wrap: anywhere; }
@media (max-width: 40rem) { table { font-size: 0.7rem; } th, td { padding: 0.2rem 0.3rem; } }
figure { margin: 2rem 0; }
.strip { display: flex; gap: 0.3rem; }
.strip img { flex: 1 1 0; min-width: 0; }
img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: 0.9rem; }
</style>
</head>
<body>
<h1>Self-supervised scenes</h1>
<p>How good are features learned without labels for recognizing scenes?</p>
<p class="about">$about</p>
<h2>In short</h2>
<ul>
$headlines
</ul>
<h2>Reports</h2>
<ul>
$links
</ul>
<h2>Pictures</h2>
$pictures
<h2>Results</h2>
<p><b>Test</b>: the epoch is selected on val, the accuracy is of the test images.
<b>Earlier protocol</b>: epoch selected and reported on val and test together, as the earlier reports did.
The accuracy of a pretext is on its own labels, not on scenes.</p>
<div class="wide">
$experiments
</div>
<h2>Comparisons</h2>
<p>$comparing</p>
<div class="wide">
$comparisons
</div>
</body>
</html>
""")


def html_name(notebook: Path) -> str:
    """The name of a report's page in the profile's folder."""
    return f"{notebook.parent.name}_{notebook.stem}.html"


def about(results: Mapping[str, dict], profile: str) -> str:
    """Profile, data, initial weights and machines of all results."""
    runs = results.values()
    weights = {each["initial_weights"].get("began_with", each["initial_weights"])["weights"] for each in runs}
    data = {each["data"]["name"] for each in runs}
    return (
        f"Profile {profile} ({PROFILES[profile]}).  Data: {', '.join(sorted(data))}.  Initial weights: "
        f"{'; '.join(sorted(weights))}.  Trained on: {machines(runs)}."
    )


def links(left_out: Mapping[str, str], made: Collection[str]) -> list[str]:
    """Lines of HTML: each report with its page if it was made, or why it was left out, and the pages of docs."""
    lines = []
    for report in REPORTS.values():
        page = html_name(Path(report.path))
        title = f'<a href="{page}">{report.title}</a>' if report.path in made else report.title
        reason = f", left out: {html.escape(left_out[report.path])}" if report.path in left_out else ""
        lines.append(f'{title} (<a href="../../{report.path}">{report.path}</a>){reason}')
    return [*lines, *(f'{title} (<a href="../../{path}">{path}</a>)' for path, title in PAGES.items())]


def pictures(folder: Path, data: str, profile: str) -> list[str]:
    """The figures that are there, as HTML: the overview (full), those of PICTURES, and one of model inversion."""
    place = folder_of_data(folder, data)
    captions = {folder.parents[1] / "docs" / "overview.jpg": OVERVIEW} if profile == "full" else {}
    captions |= {place / name: caption for name, caption in PICTURES.items()}
    figures = [
        f'<figure><img src="{_link(path, folder)}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        for path, caption in captions.items()
        if path.exists()
    ]
    inverted = [path.parent for path in sorted((place / "explanations").glob("*/classes/settings.json"))]
    strips = "".join(_strip(each, folder) for each in inverted)
    return [*figures, f"<figure>{strips}<figcaption>{INVERSIONS}</figcaption></figure>"] if strips else figures


def _strip(inverted: Path, folder: Path) -> str:
    """One line of images by model inversion, one for each class, from the folder of a model."""
    names = [str(name) for name in pd.read_csv(inverted / "inversion.csv")["name"]]
    images = "".join(
        f'<img src="{_link(inverted / f"{name}.png", folder)}" alt="{html.escape(name)}">' for name in names
    )
    title = html.escape(f"{inverted.parent.name}: {', '.join(names)}")
    return f'<div class="strip">{images}</div><figcaption>{title}</figcaption>'


def _link(path: Path, folder: Path) -> str:
    """A link from the page in `folder` to a file."""
    return quote(os.path.relpath(path, folder))


def table_html(table: pd.DataFrame, index: bool = True) -> str:
    """A table of texts as HTML, escaped; a sentence if it has no lines."""
    return table.to_html(border=0, index=index) if len(table) else "<p>None yet.</p>"


def page(
    folder: Path, profile: str, data: str, left_out: Mapping[str, str] | None = None, made: Collection[str] = ()
) -> str:
    """The page of the results on `data` in the folder of a profile.

    `left_out`: reports that were not made, with the reason; `made`: reports whose HTML is in the folder.
    Raises FileNotFoundError if there are no results.
    """
    results = read_profile(folder, data)
    compared = comparisons(results)
    sentences = headlines(results, compared) or ["None of the experiments in the headline has been run yet."]
    return PAGE.substitute(
        profile=profile,
        about=html.escape(about(results, profile)),
        headlines="\n".join(f"<li>{html.escape(each)}</li>" for each in sentences),
        links="\n".join(f"<li>{each}</li>" for each in links(left_out or {}, made)),
        experiments=table_html(shown_experiments(experiments_table(results))),
        comparing=html.escape(comparing_text()),
        comparisons=table_html(shown_comparisons(compared), index=False),
        pictures="\n".join(pictures(folder, data, profile) or ["<p>None yet.</p>"]),
    )


def write(
    folder: Path, profile: str, data: str, left_out: Mapping[str, str] | None = None, made: Collection[str] = ()
) -> Path:
    """Write `page` as index.html of the folder and return its path."""
    text, path = page(folder, profile, data, left_out, made), folder / "index.html"
    write_atomically(path, lambda temporary: temporary.write_text(text))
    return path


def main():
    """Write the page of the profile and the data of the environment."""
    profile = profile_of(os.environ)
    folder = root_folder() / "results" / profile
    print(write(folder, profile, data_of(REPORTS["supervised"], os.environ)))


if __name__ == "__main__":
    sys.exit(run_command(main))
