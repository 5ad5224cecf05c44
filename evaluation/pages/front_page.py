"""The front page of the reports: `python -m evaluation.pages.front_page` writes results/<profile>/index.html.

The table, the answers in words and the pictures come from the files in that folder, which the report notebooks have
written; the profile comes from the environment, as the notebooks read it.  A picture that is not there is left out.
"""

import html
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template

import pandas as pd

from data.prepare import DATA_SETS
from evaluation.pages.answers import in_short
from data.files import write_atomically
from evaluation.metrics import of_rows, read_results, seeds_of_both_protocols
from evaluation.pages.readme import PRETEXTS_WORDS, read_pretexts, read_tables

ROOT = Path(__file__).resolve().parents[1]
DATA_OF = {  # the data set that a report is about, where it is not 15-Scene
    "supervised/nature_report.ipynb": "nature",
    "self_supervised/cifar10_report.ipynb": "cifar10",
}
REPORTS = {
    "supervised/report.ipynb": "Fully supervised",
    "self_supervised/report.ipynb": "Self-supervised features",
    "evaluation/evaluation.ipynb": "What the models see and have encoded",
    "supervised/hyperparameter_search.ipynb": "Hyper-parameter search",
    "supervised/nature_report.ipynb": "Six classes of nature scenes",
    "self_supervised/cifar10_report.ipynb": "The rotation pretext on CIFAR-10",
}
PICTURES = {
    "supervised_accuracies.png": "Trained with labels: test accuracy with its 95 % interval, beside what the earlier "
    "reports gave for the same settings.",
    "pretext_epochs.png": "How well the pretext is learned, and what the frozen features are worth for scenes after so "
    "many epochs of it; the grey line is the same classifier on ImageNet features that no pretext has touched.",
    "scorecam.jpg": "Where three models look: Score-CAM after the last stage, the same images for all, for their true "
    "class.",
}
INVERSIONS = "What they have encoded: images that raise the logit of a class, begun from noise."
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
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
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
<p>How good are features that a network learns without labels, for recognising scenes?</p>
<p class="about">$about</p>
<h2>In short</h2>
<ul>
$answers
</ul>
<h2>Reports</h2>
<ul>
$links
</ul>
<h2>All rows on 15-Scene</h2>
<p><b>Test</b>: the epoch is chosen on the val images, and the accuracy reported on the test images, read once.
<b>Course</b>: chosen and reported on both, as the earlier reports did.</p>
<div class="wide">
$table
</div>
$pretexts
$seeds
$pictures
</body>
</html>
""")


def about(results: dict[str, dict], profile: str) -> str:
    """Profile, initial weights and hardware of all results."""
    words = {"full": "the study", "quick": "small and short: it proves that everything runs, no number means anything"}
    weights = sorted(
        {each["initial_weights"].get("began_with", each["initial_weights"])["weights"] for each in results.values()}
    )
    machines = sorted({f"{each['device']} in {each['precision']}" for each in results.values()})
    data = sorted({each["data"]["name"] for each in results.values()})
    return (
        f"Profile {profile} ({words[profile]}); data {', '.join(data)}; initial weights: {'; '.join(weights)}; "
        f"trained on {'; '.join(machines)}."
    )


def data_of(notebook: str, environment: Mapping[str, str]) -> str:
    """The data set that a report is to use: DATA, or else its own, which the quick profile replaces by drawn scenes."""
    own = DATA_OF.get(notebook, "15scene")
    quick = (environment.get("PROFILE") or "quick") == "quick"
    return environment.get("DATA") or ("synthetic" if quick and not (ROOT / "data" / own).is_dir() else own)


def reason_to_leave_out(notebook: str, environment: Mapping[str, str]) -> str:
    """Why a report cannot be made, in a few words, or ""."""
    data = data_of(notebook, environment)
    if notebook in DATA_OF and data not in (DATA_OF[notebook], "synthetic"):
        return f"it is about the data set {DATA_OF[notebook]}, and DATA is {Path(data).name}"
    if data in DATA_SETS and data != "synthetic" and not (ROOT / "data" / data).is_dir():
        return f"the data set {data} is not prepared (python -m data.prepare {data})"
    return ""


def html_name(notebook: Path) -> str:
    """What a report's page is called in the profile's folder."""
    return f"{notebook.parent.name}_{notebook.stem}.html"


def links(folder: Path, environment: Mapping[str, str]) -> list[str]:
    """A line a report: the page in `folder` where it has been made, the notebook, and why it is left out if it is."""
    lines = []
    for path, words in REPORTS.items():
        page = html_name(Path(path))
        there = f'<a href="{page}">{words}</a>' if (folder / page).exists() else words
        reason = reason_to_leave_out(path, environment)
        left_out = f", left out: {html.escape(reason)}" if reason and there == words else ""
        lines.append(f'{there} (<a href="../../{path}">{path}</a>){left_out}')
    return [*lines, 'What of the earlier claims is true (<a href="../README.md">results/README.md</a>)']


def inversions(folder: Path) -> str:
    """A figure of one line a model: its images by inversion of the classes, as evaluation.explain keeps them."""
    lines = []
    for settings in sorted((folder / "explanations").glob("*/classes/settings.json")):
        names = pd.read_csv(settings.with_name("inversion.csv"))["name"]
        pictures = "".join(
            f'<img src="{settings.parent.relative_to(folder).as_posix()}/{name}.png" alt="{name}">' for name in names
        )
        words = f"{settings.parents[1].name}: {', '.join(names)}"
        lines.append(f'<div class="strip">{pictures}</div><figcaption>{words}</figcaption>')
    return f"<figure>{''.join(lines)}<figcaption>{INVERSIONS}</figcaption></figure>" if lines else ""


def table_html(table: pd.DataFrame) -> str:
    """The columns of `evaluation.metrics.results_table` that a first reader wants, as HTML."""
    shown = pd.DataFrame(
        {
            "earlier report": table["earlier"].map("{:.4f}".format, na_action="ignore"),
            "course": table["course"].map("{:.4f}".format),
            "test": table["test"].map("<b>{:.4f}</b>".format),
            "95 % interval": [f"{low:.3f} to {high:.3f}" for low, high in table[["from", "to"]].values],
            "epoch": table["epoch"],
            "initial weights": table["initial weights"].map(html.escape),
        }
    )
    return shown.to_html(escape=False, na_rep="", border=0)


def page(folder: Path, profile: str, environment: Mapping[str, str] = os.environ) -> str:
    """The whole page from the files in `folder`; raises FileNotFoundError if there is no table of results yet.

    The results of another data set than 15-Scene lie in a folder of its name.
    """
    of_data = folder / Path(data_of("supervised/report.ipynb", {**environment, "PROFILE": profile})).resolve().name
    results = read_results(of_data if of_data.is_dir() else folder)
    table = read_tables(folder)
    pretexts = read_pretexts(folder)
    seeds = seeds_of_both_protocols(of_rows(results, {*table.index, *pretexts.index}))
    pictures = [
        f'<figure><img src="{name}" alt="{words}"><figcaption>{words}</figcaption></figure>'
        for name, words in PICTURES.items()
        if (folder / name).exists()
    ]
    return PAGE.substitute(
        profile=profile,
        about=html.escape(about(results, profile)),
        answers="\n".join(f"<li>{html.escape(each)}</li>" for each in in_short(table, results)),
        links="\n".join(f"<li>{each}</li>" for each in links(folder, environment)),
        table=table_html(table),
        pretexts=f'<p>{PRETEXTS_WORDS}</p>\n<div class="wide">\n{table_html(pretexts)}\n</div>'
        if len(pretexts)
        else "",
        seeds=f'<h2>Seeds</h2>\n<div class="wide">\n{seeds.to_html(float_format="%.4f", border=0)}\n</div>'
        if len(seeds)
        else "",
        pictures="\n".join([*pictures, inversions(folder)]),
    )


def main() -> int:
    """Write the page of the environment's profile."""
    profile = os.environ.get("PROFILE") or "quick"
    folder = ROOT / "results" / profile
    try:
        written = page(folder, profile)
    except (FileNotFoundError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomically(folder / "index.html", lambda temporary: temporary.write_text(written))
    print(f"{(folder / 'index.html').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
