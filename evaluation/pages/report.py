"""Execute the report notebooks top to bottom and write each as HTML: `python -m evaluation.pages.report [NOTEBOOK...]`.

Without names, every notebook of the project, then the front page.  The profile comes from the environment, as the
notebooks read it (PROFILE=quick or full); HTML goes to results/<profile>/.  A cell that fails ends the run with its
error and leaves no HTML of that notebook.  `--in-place` also writes the executed notebook over the source, to be
committed.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from tqdm import tqdm

from evaluation import front_page
from data.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PATHS = ("WEIGHTS", "RESNET18_WEIGHTS", "DATA", "PHOTOGRAPHS")  # of the environment: what notebooks take as files


def execute(path: Path, html_folder: Path, in_place: bool = False) -> Path:
    """Run one notebook in its own folder with a progress bar over its cells; returns the HTML file.

    Raises nbclient's CellExecutionError, with the traceback of the cell, if one fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tqdm(total=len(notebook.cells), desc=str(path.relative_to(ROOT)), unit="cell") as bar:
        NotebookClient(
            notebook,
            timeout=None,  # a cell may train for hours
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_complete=lambda cell, cell_index: bar.update(cell_index + 1 - bar.n),
        ).execute()
    html, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    target = html_folder / front_page.html_name(path)
    write_atomically(target, lambda temporary: temporary.write_text(html))
    if in_place:
        write_atomically(path, lambda temporary: temporary.write_text(nbformat.writes(notebook) + "\n"))
    return target


def absolute_paths(environment: Mapping[str, str]) -> dict[str, str]:
    """PATHS as absolute paths where they name what is there: a notebook runs in its own folder, not here."""
    given = {name: environment[name] for name in PATHS if environment.get(name)}
    return {name: str(Path(value).resolve()) for name, value in given.items() if Path(value).exists()}


def main(arguments=None) -> int:
    """Execute what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.pages.report", description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: every notebook of the project")
    parser.add_argument("--in-place", action="store_true", help="write the executed notebook over its source")
    options = parser.parse_args(arguments)
    os.environ.update(absolute_paths(os.environ))
    html_folder = ROOT / "results" / os.environ.get("PROFILE", "quick")
    for path in [path.resolve() for path in options.notebooks] or sorted(ROOT.glob("*/*.ipynb")):
        reason = front_page.reason_to_leave_out(path.relative_to(ROOT).as_posix(), os.environ)
        if reason and not options.notebooks:
            print(f"{path.relative_to(ROOT)}: left out, {reason}")
            continue
        started = time.perf_counter()
        try:
            target = execute(path, html_folder, options.in_place)
        except CellExecutionError as error:
            print(f"error: {path} failed:\n{error}", file=sys.stderr)
            return 1
        print(f"{target.relative_to(ROOT)}: {time.perf_counter() - started:.0f} s")
    return 0 if options.notebooks else front_page.main()


if __name__ == "__main__":
    sys.exit(main())
