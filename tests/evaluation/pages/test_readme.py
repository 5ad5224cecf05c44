import json
from pathlib import Path

import pandas as pd
import pytest

from evaluation.pages.answers import BEST
from evaluation.metrics import read_results, results_table
from evaluation.pages.readme import (
    END,
    PRETEXTS_WORDS,
    START,
    read_pretexts,
    read_tables,
    results_markdown,
    seeds_markdown,
    with_results,
)
from self_supervised import settings as self_supervised
from supervised import settings as supervised

ROOT = Path(__file__).resolve().parents[2]
FULL = ROOT / "results" / "full"
CONTROLS = {name: row for name, row in supervised.EXPERIMENTS.items() if row.freeze_features}
NONE = pd.DataFrame()


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
    written = with_results(readme, table, NONE, {})
    assert written == f"before\n{START}\n{results_markdown(table)}\n{END}\nafter\n"
    assert with_results(written, table, NONE, {}) == written
    assert "| one | 0.9300 | 0.9312 (epoch 7) | **0.9295** (0.918 to 0.940), epoch 6 | ImageNet |" in written
    assert "| two |  | 0.5000" in written


def test_the_pretexts_have_a_table_of_their_own_where_it_has_been_made(tmp_path, table):
    assert read_pretexts(tmp_path).empty
    table.to_csv(tmp_path / "pretexts.csv")
    written = with_results(f"{START}{END}", table.head(1), read_pretexts(tmp_path), {})
    assert f"{PRETEXTS_WORDS}\n\n{results_markdown(table)}\n{END}" in written


def test_a_readme_without_the_comments_is_refused(table):
    with pytest.raises(ValueError, match="lacks the comments"):
        with_results("nothing", table, NONE, {})


def test_tables_stand_one_below_the_other_and_a_row_of_both_once(tmp_path, table):
    with pytest.raises(FileNotFoundError, match=r"holds none of supervised.csv, self_supervised.csv"):
        read_tables(tmp_path)
    table.to_csv(tmp_path / "supervised.csv")
    table.rename(index={"two": "three"}).to_csv(tmp_path / "self_supervised.csv")
    assert read_tables(tmp_path).index.tolist() == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("supervised", supervised.EXPERIMENTS),
        ("self_supervised", {**CONTROLS, **self_supervised.CLASSIFIER_EXPERIMENTS}),
        ("pretexts", self_supervised.PRETEXT_EXPERIMENTS),
    ],
)
def test_a_committed_table_is_that_of_the_committed_result_files(name, rows):
    path = FULL / f"{name}.csv"
    results = {row: json.loads((FULL / f"{row}.json").read_text()) for row in rows if (FULL / f"{row}.json").exists()}
    if not path.exists():
        assert name != "supervised", "the main table is gone"
        pytest.skip(f"{path.name} has not been made")
    rebuilt = results_table(results, {row.name: row.earlier_accuracy for row in rows.values()})
    pd.testing.assert_frame_equal(pd.read_csv(path, index_col=0), rebuilt, check_dtype=False)


def test_the_committed_readme_holds_the_committed_tables():
    readme = (ROOT / "README.md").read_text()
    assert with_results(readme, read_tables(FULL), read_pretexts(FULL), read_results(FULL)) == readme


def test_the_study_in_short_stands_above_the_table(table):
    results = {"run": {"settings": {"name": BEST[0]}, "test_accuracy": 0.9, "earlier_protocol_accuracy": 0.91}}
    written = with_results(f"{START}{END}", table, NONE, results)
    assert written.startswith(
        f"{START}\n- By the earlier reports' protocol (course accuracy): {BEST[0]} 0.9100 (1 run)."
    )
    assert f"(one).\n\n{results_markdown(table)}\n{END}" in written


def test_seeds_stand_below_the_table_as_mean_range_and_interval(table):
    def run(accuracy):
        return {"settings": {"name": "one"}, "test_accuracy": accuracy, "earlier_protocol_accuracy": accuracy + 0.01}

    results = {"one": run(0.90), "one.seed1": run(0.92), "one.seed2": run(0.94)}
    seeds = seeds_markdown(results)
    half = 4.3027 * 0.02 / 3**0.5  # Student's t with two degrees of freedom
    assert f"| one | 3 | 0.9300 (0.9100 to 0.9500) | **0.9200** ± {half:.4f} (0.9000 to 0.9400) |" in seeds
    readme = f"before\n{START}\nold\n{END}\nafter\n"
    assert with_results(readme, table, NONE, results).endswith(f"{results_markdown(table)}\n\n{seeds}\n{END}\nafter\n")
    unlisted = {f"unlisted{seed}": {**run(0.5), "settings": {"name": "unlisted"}} for seed in range(2)}
    assert with_results(readme, table, NONE, {**results, **unlisted}) == with_results(readme, table, NONE, results)
    assert seeds_markdown({"one": run(0.9), "other": {**run(0.8), "settings": {"name": "other"}}}) == ""
