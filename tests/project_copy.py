"""A copy of the project, in which a test may break a line or run what writes files."""

import os
import shutil
import subprocess
from pathlib import Path

from data.files import CODE

VENV = CODE / ".venv"


def copy_project(folder: Path, results: bool = False) -> dict[str, str]:
    """Copy every file that git knows or would add; returns the environment for processes that use the copy.

    The virtual environment is shared by links.  Its `installed` file is new, so `make` has nothing to install.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (CODE / name).is_file() and (results or not name.startswith("results/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CODE / name, folder / name)
    (folder / ".venv").mkdir()
    for entry in VENV.iterdir():
        if entry.name != "installed":
            (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv/installed").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SCENES_"))}
    path = os.pathsep.join([str(folder / ".venv/bin"), environment["PATH"]])
    return {**environment, "PYTHONPATH": str(folder), "PATH": path, "OMP_NUM_THREADS": "1"}
