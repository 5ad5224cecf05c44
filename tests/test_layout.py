"""The house: who may import whom (design: data and the loop at the bottom, scripts and notebooks at the top)."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("data", "supervised", "self_supervised", "evaluation", "helper_functions", "runs", "hyperparameter_search")
MAY_IMPORT = {
    "data": {"data"},
    "helper_functions": set(),
    "runs": {"helper_functions"},
    "hyperparameter_search": {"runs", "helper_functions"},
    "supervised": {"supervised", "data", "helper_functions"},
    "self_supervised": {"self_supervised", "supervised", "data", "helper_functions"},
    "evaluation": {"evaluation", "data"},
}
OURS = [path for path in sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("*/*.py")) if path.parent.name != "tests"]
SCRIPTS = {"train"}  # may use every room, imported by none
TRAINED = ROOT / "evaluation" / "trained.py"  # how evaluation's scripts come to a model; may use every room


class WithoutMain(ast.NodeTransformer):
    """Leaves out what only runs when a module is a script: its `main`, and what stands below it."""

    def visit_Module(self, module):
        names = [getattr(node, "name", None) for node in module.body]
        module.body = module.body[: names.index("main")] if "main" in names else module.body
        return module


def imports_of(path: Path, script: bool = True) -> set[str]:
    """Full names of the modules of ours that a file imports, as a script or (`script` off) as a module."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree if script else WithoutMain().visit(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(path: Path) -> str:
    return path.stem if path.parent == ROOT else path.parent.name


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    """What only the `main` of a script imports is its own business: notebooks and scripts may use every room."""
    imported = {name for name in imports_of(path, script=False) if name.split(".")[0] in ROOMS}
    assert not {name for name in imported if name.split(".")[-1] in SCRIPTS and name != "helper_functions.train"}
    if path.stem not in SCRIPTS and room_of(path) != "benchmarks" and path != TRAINED:
        assert {name.split(".")[0] for name in imported} <= MAY_IMPORT[room_of(path)]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_imported_by_a_short_name_that_two_rooms_share(path):
    assert not imports_of(path) & {"models", "settings", "dataloader", "train"}


@pytest.mark.parametrize(
    ("name", "others"), [("settings", {"dataloader", "models"}), ("dataloader", {"models"}), ("models", {"dataloader"})]
)
@pytest.mark.parametrize("room", ["supervised", "self_supervised"])
def test_settings_know_neither_data_nor_model_and_these_not_each_other(room, name, others):
    path = ROOT / room / f"{name}.py"
    if path.exists():
        assert not imports_of(path) & {f"{room}.{other}" for other in others}


def test_there_is_no_drawer():
    assert not [path for path in OURS if path.stem in ("utils", "misc", "common", "helpers")]


def test_the_code_can_be_imported_from_a_notebook_in_any_folder(tmp_path):
    code = (
        "from helper_functions import train; from supervised.models import SceneClassifier;"
        "from data.image_cache import load_splits; import evaluation.plots, runs, self_supervised; print('fine')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


NOTEBOOKS = sorted(ROOT.glob("*/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_notebooks_are_thin_and_committed_as_executed(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    for number, cell in enumerate(cells, start=1):
        source = ast.parse("".join(cell["source"]))
        kinds = (ast.FunctionDef, ast.ClassDef, ast.While)
        assert not [node for node in ast.walk(source) if isinstance(node, kinds)], f"cell {number} defines or loops"
        assert cell["execution_count"] == number, f"cell {number} was not executed in order"
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"]
        assert "SystemExit" not in "".join(cell["source"])
