"""The house: every import at the top of its file, no circle, and arrows in one direction (design.md, section 2)."""

import ast
import json
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from data.files import CODE

LEVELS = (  # each may import itself and the levels before it
    ("data", "loop"),
    ("helper_functions",),
    ("supervised",),
    ("self_supervised",),
    ("experiments",),
    ("run_files",),
    ("runs",),
    ("hyperparameter_search", "study"),
    ("train", "evaluation"),
    ("benchmarks",),
)
MAY_IMPORT = {
    room: {room, *(below for earlier in LEVELS[:number] for below in earlier)}
    for number, level in enumerate(LEVELS)
    for room in level
}
FOLDERS = [CODE / room for room in MAY_IMPORT if (CODE / room).is_dir()]
PRODUCT = sorted(CODE.glob("*.py")) + sorted(path for folder in FOLDERS for path in folder.rglob("*.py"))
TESTS = sorted((CODE / "tests").rglob("*.py"))
NOTEBOOKS = sorted(CODE.glob("*/*.ipynb"))


def name_of(path: Path) -> str:
    """The full name of a module, a folder's for its __init__.py."""
    parts = path.relative_to(CODE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PRODUCT + TESTS}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
by_module = pytest.mark.parametrize("module", MODULES)


def imports_of(tree: ast.AST) -> set[str]:
    """Full names of all that is imported anywhere in a file, modules and what is taken from them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module}"} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top_of(tree: ast.Module) -> list[ast.stmt]:
    """The docstring and the imports that a file begins with, those that may fail after the others."""
    kinds = (ast.Import, ast.ImportFrom, ast.Try)
    others = [number for number, node in enumerate(tree.body) if not isinstance(node, kinds) and number > 0]
    top = tree.body[: others[0]] if others else tree.body
    return [*top, *(each for node in top if isinstance(node, ast.Try) for each in node.body)]


@by_module
def test_every_import_stands_at_the_top_of_its_file_by_its_full_name(module):
    tree = TREES[module]
    top = {id(node) for node in top_of(tree)}
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not [ast.unparse(node) for node in imports if id(node) not in top]
    assert not [name for name in imports_of(tree) if name.startswith(".")]
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {"__import__", "import_module", "importlib.import_module"} & set(calls)


@pytest.mark.parametrize("module", [name_of(path) for path in PRODUCT])
def test_arrows_point_one_way(module):
    rooms = {name.split(".")[0] for name in imports_of(TREES[module])} & {*MAY_IMPORT, "tests"}
    room = module.split(".")[0]
    assert rooms <= MAY_IMPORT[room]
    assert room != "helper_functions" or rooms == {"loop"}


@pytest.mark.parametrize("module", [name_of(path) for path in sorted(CODE.glob("evaluation/*.py"))])
def test_pages_stand_above_what_they_show(module):
    assert not [name for name in imports_of(TREES[module]) if name.startswith("evaluation.pages")]


def test_no_modules_import_each_other_in_a_circle():
    def ancestors(name):
        parts = name.split(".")
        return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}

    graph = {
        name: {each for imported in imports_of(tree) for each in ancestors(imported) & MODULES.keys()} - ancestors(name)
        for name, tree in TREES.items()
    }
    assert sum(map(len, graph.values())) > 300
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("room", ["supervised", "self_supervised"])
@pytest.mark.parametrize(
    ("name", "others"), [("settings", {"dataloader", "models"}), ("dataloader", {"models"}), ("models", {"dataloader"})]
)
def test_settings_know_neither_data_nor_model_and_these_not_each_other(room, name, others):
    rooms = {"settings": ("supervised", "self_supervised"), "models": (room,), "dataloader": (room,)}[name]
    assert not imports_of(TREES[f"{room}.{name}"]) & {f"{each}.{other}" for each in rooms for other in others}


def test_there_is_no_drawer():
    assert not [path for path in PRODUCT if path.stem in ("utils", "misc", "common", "helpers", "util")]


def test_the_code_can_be_imported_in_any_folder(tmp_path):
    for name in ("data/splits", "experiments", "runs", "evaluation", "study", "supervised"):  # must not hide ours
        (tmp_path / name).mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "evaluation.predict", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(CODE).as_posix())
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


def test_no_tensor_becomes_float64_where_apple_gpus_have_none():
    """A tensor is moved to the CPU first, and one that is made in float64 is made there."""
    for path in PRODUCT:
        for node in ast.walk(TREES[name_of(path)]):
            call = ast.unparse(node) if isinstance(node, ast.Call) else ""
            if call.endswith(".double()"):
                assert call.endswith(".cpu().double()"), f"{path}: {call}"
            if "torch.double" in call or "torch.float64" in call:
                assert "device" not in call and ".to(" not in call, f"{path}: {call}"


def test_text_files_are_utf8_whatever_the_system_reads_and_writes_by_itself():
    for path in PRODUCT:
        for node in ast.walk(TREES[name_of(path)]):
            called = getattr(node.func, "attr", "") if isinstance(node, ast.Call) else ""
            if called in ("read_text", "write_text"):
                assert "encoding" in {each.arg for each in node.keywords}, f"{path}: {ast.unparse(node)}"
