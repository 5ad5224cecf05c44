"""Draw benchmarks/ratios.png and write the tables of benchmarks/README.md, from the benchmarks' tables.

    python -m benchmarks.chart

Nothing is measured.  Each table of the README stands between two comments; everything else is left as it is.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.scorecam_clusters import summarize
from data.files import write_text
from evaluation.pages.tables import with_part

FOLDER = Path(__file__).resolve().parent
NAMES = ("training_step", "evaluation", "augmentation", "data", "frozen_classifier", "scorecam", "inversion")
COLUMNS = (  # of every table, see `implementations.make_table`; what others hold stands in the README under "besides"
    *("what", "implementation", "seconds", "spread", "images", "ratio", "ratio_to", "peak_mib"),
    *("largest_difference", "correlation", "rounds", "machine"),
)
COUNTS = {"a thousand": 1e3, "a million": 1e6, "a hundred million": 1e8}
MACHINES = 100
WORK = {  # what is done: in which table, of which comparison (None: its only one), by which implementation
    "a training epoch": ("training_step", None, "ours"),
    "a pass for logits or features": ("evaluation", None, "ours"),
    "decoding into the image cache": ("data", "decoding and resizing once", "ours"),
    "reading an augmented epoch": ("data", "reading an augmented epoch", "ours"),
    "Score-CAM, 16 masks": ("scorecam", "Score-CAM, features[1], 16 masks", "ours"),
    "Score-CAM, 1,280 masks": ("scorecam", "Score-CAM, features[8], 1,280 masks", "ours"),
    "model inversion, 20 steps": ("inversion", None, "ours, one batch"),
}
UNITS = (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60))


def read_tables() -> dict[str, pd.DataFrame]:
    """The benchmarks' tables that are there, by name; raises FileNotFoundError if there is none."""
    tables = {name: pd.read_csv(FOLDER / f"{name}.csv") for name in NAMES if (FOLDER / f"{name}.csv").exists()}
    if not tables:
        raise FileNotFoundError(f"{FOLDER} holds no table of a benchmark; run `make bench` first")
    return tables


def ratios_markdown(tables: dict[str, pd.DataFrame]) -> str:
    """All that was measured, one row an implementation, and the machine of each table.

    A ratio of ours is bold where it is one of medians over several rounds.
    """
    columns = (
        "what",
        "implementation",
        "seconds (lowest to highest)",
        "ratio",
        "memory, MiB",
        "largest difference",
        "correlation",
    )
    lines = [f"| {' | '.join(columns)} | besides |", f"|{'---|' * len(columns)}---|"]
    for row in pd.concat(tables.values()).to_dict("records"):
        once = row["rounds"] == 1
        bold = "**" if row["implementation"].startswith("ours") and not once else ""
        against = "" if row["implementation"] == row["ratio_to"] else f", to {row['ratio_to']}"
        cells = [
            row["what"],
            row["implementation"],
            f"{row['seconds']:.4g} ({'one round' if once else row['spread']})",
            f"{bold}{row['ratio']:.3g}{bold}{against}",
            f"{row['peak_mib']:,}",
            _text(row.get("largest_difference")),
            _text(row.get("correlation")),
            "; ".join(f"{name} {_text(row[name])}" for name in row if name not in COLUMNS and not pd.isna(row[name])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machines = pd.Series({name: table["machine"].iloc[0] for name, table in tables.items()})
    lines.append("")
    lines += [f"{', '.join(names)}: {machine}." for machine, names in machines.groupby(machines).groups.items()]
    return "\n".join(lines)


def _text(value: str | float | None) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None or pd.isna(value) else f"{value:.6g}"


def scaling_markdown(tables: dict[str, pd.DataFrame]) -> str:
    """What work takes for many images, by multiplying what it was measured to take; no row where nothing was."""
    lines = [
        f"| work | an image | {' | '.join(COUNTS)} | the last on {MACHINES} such machines |",
        f"|---|---|{'---|' * len(COUNTS)}---|",
    ]
    for work, (name, what, implementation) in WORK.items():
        if name not in tables:
            continue
        table = tables[name]
        row = table[(table["implementation"] == implementation) & ((table["what"] == what) | (what is None))].iloc[0]
        seconds = row["seconds"] / row["images"]
        whole = [seconds * count for count in COUNTS.values()]
        lines.append(
            f"| {work} | {seconds:.3g} s | {' | '.join(map(duration, whole))} | {duration(whole[-1] / MACHINES)} |"
        )
    return "\n".join(lines)


def profile_markdown(profile: pd.DataFrame) -> str:
    """Shares by kind of operation: a column an implementation, the dearest kind of the plain implementation first."""
    lines = []
    for what, rows in profile.groupby("what", sort=False):
        seconds = rows.pivot(index="operations", columns="implementation", values="seconds")[
            rows["implementation"].unique()
        ]
        seconds = seconds.fillna(0).sort_values("plain", ascending=False)
        whole = seconds.sum()
        percent = 100 * seconds / whole
        lines += [f"| {what}: percent of the time | {' | '.join(seconds.columns)} |", f"|---|{'---|' * len(whole)}"]
        lines += [f"| {name} | {' | '.join(f'{each:.1f}' for each in row)} |" for name, row in percent.iterrows()]
        lines += [f"| **all, seconds** | {' | '.join(f'{each:.3f}' for each in whole)} |", ""]
    return "\n".join(lines[:-1])


def clusters_markdown(rows: pd.DataFrame) -> str:
    """How near maps with clusters come to exact ones: one line a network and number of clusters."""
    columns = ["network", "clusters", "images", "passes", "median correlation", "lowest", "exact", "share of time"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in summarize(rows).itertuples():
        network = row.run if row.weighting == "softmax" else f"{row.run}, {row.weighting}"
        lines.append(
            f"| {network} | {row.clusters} | {row.images} | {row.passes:,.0f} | {row.median:.4f} | {row.lowest:.4f} "
            f"| {row.exact:.2f} | {row.share_of_time:.3f} |"
        )
    return "\n".join(lines)


def gpu_markdown(alone: pd.DataFrame, side_by_side: pd.DataFrame) -> str:
    """What was measured on a GPU: one training alone, with its share of a step alone, and several side by side."""
    lines = ["| case | batch | implementation | images per second | of the step alone |", "|---|---|---|---|---|"]
    steps = alone[alone["implementation"] == "step alone"].set_index(["case", "batch_size"])["images_per_second"]
    for row in alone.itertuples():
        share = row.images_per_second / steps.get((row.case, row.batch_size), float("nan"))
        text = "" if pd.isna(share) or row.implementation == "step alone" else f"{share:.2f}"
        lines.append(
            f"| {row.case} | {row.batch_size} | {row.implementation} | {row.images_per_second:,.0f} | {text} |"
        )
    lines += ["", "| trainings side by side | MPS | step | images per second, all together |", "|---|---|---|---|"]
    lines += [
        f"| {row.processes} | {'yes' if row.mps else 'no'} | {row.step} | {row.images_per_second:,.0f} |"
        for row in side_by_side.itertuples()
    ]
    where = pd.concat([alone, side_by_side])[["device", "torch", "precision"]].drop_duplicates().itertuples(index=False)
    machines = "; ".join(f"{row.device}, torch {row.torch}, {row.precision}" for row in where)
    return "\n".join([*lines, "", f"{machines}."])


def duration(seconds: float) -> str:
    """In the largest unit of which there are at least two."""
    for unit, length in UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"


def with_table(readme: str, name: str, table: str) -> str:
    """The README with this table between the two comments of the name; raises ValueError if they are not there."""
    return with_part(
        readme, table, f"<!-- {name}: written by python -m benchmarks.chart -->", f"<!-- end of {name} -->"
    )


def draw_ratios(tables: dict[str, pd.DataFrame]) -> plt.Figure:
    """A bar an implementation of ours: how many times as fast it is as the peer that it names."""
    rows = pd.concat(tables.values())
    rows = rows[rows["implementation"].str.startswith("ours")].iloc[::-1]
    labels = [f"{row.what}: {row.implementation}\nto {row.ratio_to}" for row in rows.itertuples()]
    figure, ax = plt.subplots(figsize=(9, 1 + 0.5 * len(rows)), layout="constrained")
    bars = ax.barh(np.arange(len(rows)), rows["ratio"] - 1, left=1)
    ax.bar_label(bars, [f"{ratio:.3g}" for ratio in rows["ratio"]], padding=3)
    ax.set_yticks(np.arange(len(rows)), labels, fontsize=8)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(min(0.9, 0.5 * rows["ratio"].min()), 1.5 * rows["ratio"].max())  # room for the numbers
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.axvline(1, color="black", linewidth=1)
    ax.set_xlabel("times as fast (logarithmic)")
    return figure


def main() -> int:
    """Draw the figure and rewrite the README."""
    readme = FOLDER / "README.md"
    try:
        tables = read_tables()
        written = with_table(readme.read_text(encoding="utf-8"), "ratios", ratios_markdown(tables))
        written = with_table(written, "scaling", scaling_markdown(tables))
        for name, markdown_of in (("profile", profile_markdown), ("scorecam_clusters", clusters_markdown)):
            written = with_table(written, name, markdown_of(pd.read_csv(FOLDER / f"{name}.csv")))
        on_gpu = (pd.read_csv(FOLDER / f"{name}.csv") for name in ("gpu", "side_by_side"))
        written = with_table(written, "gpu", gpu_markdown(*on_gpu))
        write_text(readme, written)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    matplotlib.use("Agg")
    draw_ratios(tables).savefig(FOLDER / "ratios.png", dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
