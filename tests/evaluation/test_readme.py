import json
from pathlib import Path

import pandas as pd
import pytest

from evaluation.metrics import results_table
from evaluation.readme import END, START, results_markdown, with_results
from supervised.settings import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[2]
CSV = ROOT / "results" / "full" / "supervised.csv"


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "earlier": [0.93, None],
            "course": [0.9312, 0.5],
            "course epoch": [7, 1],
            "test": [0.9295, 0.5],
            "from": [0.918, 0.48],
            "to": [0.94, 0.52],
            "epoch": [6, 1],
            "initial weights": ["ImageNet", "random"],
        },
        index=["one", "two"],
    )


def test_the_table_stands_between_the_comments_and_nothing_else_changes(table):
    readme = f"before\n{START}\nold\n{END}\nafter\n"
    written = with_results(readme, table)
    assert written == f"before\n{START}\n{results_markdown(table)}\n{END}\nafter\n"
    assert with_results(written, table) == written
    assert "| one | 0.9300 | 0.9312 (epoch 7) | **0.9295** (0.918 to 0.940), epoch 6 | ImageNet |" in written
    assert "| two |  | 0.5000" in written


def test_a_readme_without_the_comments_is_refused(table):
    with pytest.raises(ValueError, match="lacks the comments"):
        with_results("nothing", table)


def test_the_committed_table_and_readme_are_those_of_the_committed_result_files():
    committed = pd.read_csv(CSV, index_col=0)
    results = {
        name: json.loads((ROOT / "results" / "full" / f"{name}.json").read_text())
        for name in EXPERIMENTS
        if (ROOT / "results" / "full" / f"{name}.json").exists()
    }
    rebuilt = results_table(results, {row.name: row.earlier_accuracy for row in EXPERIMENTS.values()})
    pd.testing.assert_frame_equal(committed, rebuilt, check_dtype=False)
    readme = (ROOT / "README.md").read_text()
    assert with_results(readme, committed) == readme
