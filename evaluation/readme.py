"""Write the results table of README.md from results/full/supervised.csv: `python -m evaluation.readme`.

The table stands between two comments; everything else is left as it is.  The CSV is written by the report notebook in
the full profile, from the result files.
"""

import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results: written by python -m evaluation.readme -->", "<!-- end of results -->"


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


def with_results(readme: str, table: pd.DataFrame) -> str:
    """The README with the table between its two comments; raises ValueError if they are not there."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md lacks the comments {START} and {END}")
    return f"{before}{START}\n{results_markdown(table)}\n{END}{after}"


def main() -> int:
    """Rewrite README.md."""
    path, csv = ROOT / "README.md", ROOT / "results" / "full" / "supervised.csv"
    if not csv.exists():
        print(f"error: there is no {csv}; run `make report PROFILE=full` first", file=sys.stderr)
        return 2
    path.write_text(with_results(path.read_text(), pd.read_csv(csv, index_col=0)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
