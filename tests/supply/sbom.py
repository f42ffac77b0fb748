"""`python -m tests.supply.sbom output`: what production installs, as a CycloneDX 1.6 bill of materials in JSON.

It needs the tools of `make sbom`. cyclonedx-py reads names, versions and hashes out of the lock, for all systems, and
licences out of what is installed in .venv; here both become one document. A package that is not installed on this
system (tzdata, say, which only Windows needs) is listed without its licence. Who needs whom is what the lock says.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.supply.lock import Locked, read_lock

_LOCK = Path("requirements.txt")
_PYTHON = Path(".venv/bin/python")


def bill(listed: dict[str, Any], installed: dict[str, Any], lock: list[Locked]) -> dict[str, Any]:
    """The bill `listed`, as made of the lock, with what that of the environment, `installed`, knows besides.

    What is installed in another version than the lock's says nothing of the lock's.
    """
    known = {component["purl"]: component for component in installed["components"]}
    refs: dict[str, str] = {}
    for component in listed["components"]:
        # The tool's own are line numbers and whole lines of the lock, with all hashes once more.
        refs[component["name"]] = component["bom-ref"] = component["purl"]
        del component["description"]
        for key in ("description", "licenses"):
            if key in known.get(component["purl"], {}):
                component[key] = known[component["purl"]][key]
    root = listed["metadata"]["component"]["bom-ref"]
    needs: dict[str, list[str]] = {root: [], **{ref: [] for ref in refs.values()}}
    for package in lock:
        for who in package.needed_by:
            needs[root if who.startswith("-r ") else refs[who]].append(refs[package.name])
    return {**listed, "dependencies": [{"ref": ref, "dependsOn": needed} for ref, needed in needs.items()]}


def _cyclonedx(*arguments: str) -> dict[str, Any]:
    # It warns that the project itself names no dependencies, which pyproject.toml leaves to the lock.
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", *arguments, "--pyproject", "pyproject.toml"]
    made = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120)
    document: dict[str, Any] = json.loads(made.stdout)
    return document


def main(output: Path) -> None:
    """Write the bill to `output`. Raises `SystemExit` if it is none by CycloneDX's own schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    version = ("--spec-version", "1.6")
    listed = _cyclonedx("requirements", *version, str(_LOCK))
    installed = _cyclonedx("environment", *version, str(_PYTHON))
    text = json.dumps(bill(listed, installed, read_lock(_LOCK)), indent=2) + "\n"
    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"Not a valid bill of materials: {wrong}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    components = json.loads(text)["components"]
    licensed = sum("licenses" in component for component in components)
    print(f"{output}: {len(components)} packages, {licensed} of them with their licence")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
