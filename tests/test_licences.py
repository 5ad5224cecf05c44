"""What is installed with the project may be used by anyone: no dependency, however far, is under the GPL or AGPL."""

import importlib.util
import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from data.files import CODE


def licence_of(name: str) -> str:
    """A licence as the package names it: the short expression, or the classifiers, or the first line."""
    about = metadata.metadata(name)
    classified = [each.split(" :: ")[-1] for each in about.get_all("Classifier", []) if each.startswith("License ::")]
    return about["License-Expression"] or "; ".join(classified) or (about["License"] or "").split("\n")[0]


def needed_by(name: str, found: dict[str, str]) -> dict[str, str]:
    """The licences of all packages that are installed because a package is, by name."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        needed = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if needed in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[needed] = licence_of(requirement.name)
        needed_by(requirement.name, found)
    return found


def of_extras() -> dict[str, str]:
    """The licences of the packages of all optional extras that are installed, and of what they need."""
    found = {}
    extras = tomllib.loads((CODE / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for requirement in (Requirement(text) for texts in extras.values() for text in texts):
        if importlib.util.find_spec(requirement.name) is not None:
            found[requirement.name] = licence_of(requirement.name)
            needed_by(requirement.name, found)
    return found


LICENCES = {
    name: licence
    for name, licence in (needed_by("self-supervised-scenes", {}) | of_extras()).items()
    if not name.startswith(("cuda-", "nvidia-"))  # come with torch's builds for GPUs, under NVIDIA's own licence
}


@pytest.mark.parametrize("name", sorted(LICENCES))
def test_a_dependency_names_its_licence_which_is_not_the_gpl(name):
    licence = LICENCES[name]
    assert licence, f"{name} names no licence"
    choices = licence.split(" OR ")  # of several, one may choose
    assert not all(re.search(r"\bA?GPL|(?<!Lesser )General Public License", choice) for choice in choices), licence
