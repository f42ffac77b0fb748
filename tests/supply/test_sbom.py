"""The bill of materials: what is made of the two that the tool writes."""

from typing import Any

from tests.supply.lock import Locked
from tests.supply.sbom import bill

MIT = [{"license": {"id": "MIT"}}]


def _component(name: str, version: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}", **more}


def _bill() -> dict[str, Any]:
    listed = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [
            _component(
                "web", "2", **{"bom-ref": "requirements-L1", "description": "line 1", "externalReferences": ["hash"]}
            ),
            _component("parser", "1", **{"bom-ref": "requirements-L2", "description": "line 2"}),
            _component("zones", "7", **{"bom-ref": "requirements-L3", "description": "line 3"}),
        ],
        "dependencies": [],
    }
    installed = {
        "components": [
            _component("web", "2", licenses=MIT, description="A web."),
            _component("parser", "0", licenses=MIT, description="An older one."),
            _component("pytest", "9", licenses=MIT),
        ]
    }
    lock = [
        Locked("web", "2", None, needed_by=["-r requirements.in"]),
        Locked("parser", "1", None, needed_by=["web"]),
        Locked("zones", "7", "sys_platform == 'win32'", needed_by=["parser", "web"]),
    ]
    return bill(listed, installed, lock)


def test_it_has_what_is_locked_with_hashes_and_what_the_installed_package_of_that_version_says() -> None:
    web, parser, zones = _bill()["components"]
    assert web == _component(
        "web",
        "2",
        **{"bom-ref": "pkg:pypi/web@2", "description": "A web.", "externalReferences": ["hash"], "licenses": MIT},
    )
    assert parser == _component("parser", "1", **{"bom-ref": "pkg:pypi/parser@1"})
    assert zones == _component("zones", "7", **{"bom-ref": "pkg:pypi/zones@7"})


def test_who_needs_whom_is_what_the_lock_says() -> None:
    assert {entry["ref"]: entry["dependsOn"] for entry in _bill()["dependencies"]} == {
        "root": ["pkg:pypi/web@2"],
        "pkg:pypi/web@2": ["pkg:pypi/parser@1", "pkg:pypi/zones@7"],
        "pkg:pypi/parser@1": ["pkg:pypi/zones@7"],
        "pkg:pypi/zones@7": [],
    }
