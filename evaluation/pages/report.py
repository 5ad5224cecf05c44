"""Execute the report notebooks top to bottom and write each as HTML: `python -m evaluation.pages.report [NOTEBOOK...]`.

Without names: every report whose data are there, then the front page, which says what was left out.  On images of a
user's own the full profile first trains the experiments of `notebook.OWN_TABLE`, and says how long that takes.

Profile, data and weights come from the environment, see `evaluation.pages.notebook`.  HTML goes to results/<profile>/,
of images of a user's own to a folder below it.  A cell that fails ends the run with its error and leaves no HTML of
that notebook.  `--in-place` also writes the executed notebook over its source, to be committed.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from tqdm import tqdm

from data.files import CODE, expanded, root_folder, run_command, write_text
from evaluation.pages import front_page
from evaluation.pages.notebook import (
    OWN_TABLE,
    REPORTS,
    Report,
    check_environment,
    data_of,
    profile_of,
    reason_to_leave_out,
)
from study import say_failed, train_missing

PATHS = ("WEIGHTS", "RESNET18_WEIGHTS", "DATA", "SCENES_ROOT")  # variables that may name a file


def execute(path: Path, html_folder: Path, in_place: bool = False) -> Path:
    """Run one notebook in its own folder with a progress bar over its cells; returns the HTML file.

    Raises nbclient's CellExecutionError, with the traceback of the cell, if one fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tqdm(total=len(notebook.cells), desc=f"{path.parent.name}/{path.name}", unit="cell") as bar:
        NotebookClient(
            notebook,
            timeout=None,  # a cell may train for hours
            extra_arguments=["--log-level=ERROR"],
            kernel_name="python3",
            record_timing=False,  # it would change every cell of a committed notebook
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_complete=lambda cell, cell_index: bar.update(cell_index + 1 - bar.n),
        ).execute()
    html, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    target = html_folder / front_page.html_name(path)
    write_text(target, html)
    if in_place:  # without stderr, which names folders of this machine
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        write_text(path, nbformat.writes(notebook) + "\n")
    return target


def absolute_paths(environment: Mapping[str, str]) -> dict[str, str]:
    """PATHS as absolute paths where they name what is there, since a notebook runs in its own folder."""
    given = {name: expanded(environment[name]) for name in PATHS if environment.get(name)}
    return {name: str(path.resolve()) for name, path in given.items() if path.exists()}


def train_own() -> bool:
    """Train what is missing of `notebook.OWN_TABLE` on a user's own images; returns whether all succeeded."""
    skip = ["--skip-bad-images"] * (os.environ.get("SKIP_BAD_IMAGES") == "1")
    weights = os.environ.get("WEIGHTS") or None
    failed = train_missing(OWN_TABLE, "full", options=skip, data=os.environ["DATA"], weights=weights)
    say_failed(failed)
    return not failed


def make_reports(reports: Sequence[Report], html_folder: Path, in_place: bool) -> bool:
    """Execute several notebooks; prints a line for each and returns whether all succeeded.

    In the quick profile one runs on each CPU core: tiny networks gain nothing from threads.  In the full profile the
    report on a user's own images has its experiments trained first.
    """
    if REPORTS["own"] in reports and profile_of(os.environ) == "full" and not train_own():
        return False
    at_once = 1
    if profile_of(os.environ) == "quick":
        at_once = os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", "1")

    def make(report: Report) -> bool:
        started = time.perf_counter()
        try:
            target = execute(CODE / report.path, html_folder, in_place)
        except CellExecutionError as error:
            print(f"error: {report.path} failed:\n{error}", file=sys.stderr)
            return False
        print(f"{target}: {time.perf_counter() - started:.0f} s")
        return True

    with ThreadPoolExecutor(at_once) as pool:
        return all(list(pool.map(make, reports)))


def make_all(folder: Path, html_folder: Path, in_place: bool) -> int:
    """Every report whose data are there, then the front page of a profile's folder; returns the exit code."""
    reasons = {report.path: reason_to_leave_out(report, os.environ) for report in REPORTS.values()}
    left_out = {path: reason for path, reason in reasons.items() if reason}
    for path, reason in left_out.items():
        print(f"{path}: left out, {reason}")
    reports = [report for report in REPORTS.values() if report.path not in left_out]
    if not make_reports(reports, html_folder, in_place):
        return 1
    data = data_of(REPORTS["supervised"], os.environ)
    made = [report.path for report in reports]
    print(front_page.write(folder, profile_of(os.environ), data, left_out, made))
    return 0


def main(arguments=None) -> int:
    """Execute what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.pages.report", description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: every report whose data are there")
    parser.add_argument("--in-place", action="store_true", help="write the executed notebook over its source")
    options = parser.parse_args(arguments)
    os.environ.update(absolute_paths(os.environ))

    def command() -> int:
        check_environment(os.environ)
        folder = root_folder() / "results" / profile_of(os.environ)
        html_folder = front_page.place_of(folder, data_of(REPORTS["supervised"], os.environ))
        if not options.notebooks:
            return make_all(folder, html_folder, options.in_place)
        by_path = {(CODE / report.path).resolve(): report for report in REPORTS.values()}
        unknown = [str(path) for path in options.notebooks if path.resolve() not in by_path]
        if unknown:
            known = ", ".join(report.path for report in REPORTS.values())
            raise ValueError(f"{unknown[0]} is no report of this project; the reports are {known}")
        named = [by_path[path.resolve()] for path in options.notebooks]
        reasons = {report.path: reason_to_leave_out(report, os.environ) for report in named}
        for path, reason in reasons.items():
            if reason:
                raise ValueError(f"{path} cannot be made: {reason}")
        return 0 if make_reports(named, html_folder, options.in_place) else 1

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
