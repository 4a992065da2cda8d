"""Prints constraints.txt: the versions that this environment has of all that Luthier's extras pull in.

Run it in an environment with every extra: `.venv/bin/python tools/pin.py > constraints.txt`.
"""

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def main() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    pins = versions([Requirement(line) for line in wanted])
    print("# What `make` and CI install. Written by tools/pin.py.")
    for name in sorted(pins):
        print(f"{name}=={pins[name]}")


def versions(wanted: list[Requirement]) -> dict[str, str]:
    """The version of every distribution that the requirements lead to, Luthier's own left out."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        requirement = wanted.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name == "luthier" or (name, extras) in seen:
            continue
        seen.add((name, extras))
        installed = distribution(name)
        found[name] = installed.version
        for line in installed.requires or []:
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                wanted.append(further)
    return found


if __name__ == "__main__":
    main()
