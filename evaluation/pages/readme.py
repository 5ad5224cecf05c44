"""Write the results of README.md from results/full: `python -m evaluation.pages.readme`.

They stand between two comments: the study in short, the table of all rows, those of several seeds, and the pretexts.
Everything else is left as it is.  The tables are those of the CSVs, which the report notebooks write from the result
files.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from evaluation.pages.answers import in_short
from evaluation.metrics import accuracies_of, mean_and_interval, of_rows, read_results, seeds_of_both_protocols

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("supervised.csv", "self_supervised.csv")  # of `metrics.results_table`; a row of both is shown once
PRETEXTS = "pretexts.csv"  # of the same, by other labels than scenes
PRETEXTS_WORDS = "The pretexts, by how well each tells its own labels (turns, colours, orders), not scenes:"
START, END = "<!-- results: written by python -m evaluation.pages.readme -->", "<!-- end of results -->"


def results_markdown(table: pd.DataFrame) -> str:
    """The columns of `evaluation.metrics.results_table` that a first reader wants, as Markdown."""
    lines = [
        "| experiment | earlier report | course accuracy | **test accuracy** (95 % interval) | initial weights |",
        "|---|---|---|---|---|",
    ]
    for name, row in table.iterrows():
        earlier = "" if pd.isna(row["earlier"]) else f"{row['earlier']:.4f}"
        lines.append(
            f"| {name} | {earlier} | {row['course']:.4f} (epoch {row['course epoch']}) "
            f"| **{row['test']:.4f}** ({row['from']:.3f} to {row['to']:.3f}), epoch {row['epoch']} "
            f"| {row['initial weights']} |"
        )
    return "\n".join(lines)


def seeds_markdown(results: Mapping[str, dict]) -> str:
    """Mean and range over the seeds of rows that were run with several, as Markdown; "" if there is none.

    The 95 % interval of the mean is Student's t.
    """
    lines = []
    for name, row in seeds_of_both_protocols(results).iterrows():
        test, course = row["test"], row["course"]
        mean, _, high = mean_and_interval(accuracies_of(results, name))
        lines.append(
            f"| {name} | {test['seeds']:.0f} | {course['mean']:.4f} ({course['min']:.4f} to {course['max']:.4f}) "
            f"| **{mean:.4f}** ± {high - mean:.4f} ({test['min']:.4f} to {test['max']:.4f}) |"
        )
    if not lines:
        return ""
    header = [
        "| over seeds | runs | course accuracy, mean (range) | **test accuracy**, mean ± 95 % interval of it (range) |",
        "|---|---|---|---|",
    ]
    return "\n".join([*header, *lines])


def read_tables(folder: Path) -> pd.DataFrame:
    """The tables that are there, one below the other; raises FileNotFoundError if there is none."""
    tables = [pd.read_csv(folder / name, index_col=0) for name in TABLES if (folder / name).exists()]
    if not tables:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(TABLES)}; run `make report PROFILE=full` first")
    table = pd.concat(tables)
    return table[~table.index.duplicated()]


def read_pretexts(folder: Path) -> pd.DataFrame:
    """The table of the pretexts; empty if it has not been made."""
    path = folder / PRETEXTS
    return pd.read_csv(path, index_col=0) if path.exists() else pd.DataFrame()


def with_results(readme: str, table: pd.DataFrame, pretexts: pd.DataFrame, results: Mapping[str, dict]) -> str:
    """The README with both tables, and the results of all seeds, between its two comments.

    Raises ValueError if they are not there.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md lacks the comments {START} and {END}")
    shown = {*table.index, *pretexts.index}  # what each means gives has tables of its own, in supervised/report.ipynb
    parts = [
        "\n".join(f"- {each}" for each in in_short(table, results)),
        results_markdown(table),
        seeds_markdown(of_rows(results, shown)),
        f"{PRETEXTS_WORDS}\n\n{results_markdown(pretexts)}" if len(pretexts) else "",
    ]
    return f"{before}{START}\n" + "\n\n".join(each for each in parts if each) + f"\n{END}{after}"


def main() -> int:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    try:
        folder = ROOT / "results" / "full"
        path.write_text(
            with_results(path.read_text(), read_tables(folder), read_pretexts(folder), read_results(folder))
        )
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
