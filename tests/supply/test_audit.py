"""What an audit's result is called: nothing that was not looked up counts as good."""

import json
from typing import Any

from tests.supply.audit import CLEAN, NOT_AUDITED, VULNERABLE, verdict

GOOD = {"name": "good", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1", "3"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}


def _verdict(*found: dict[str, Any]) -> tuple[int, list[str]]:
    return verdict(json.dumps({"dependencies": found}), {dependency["name"] for dependency in found})


def test_all_looked_up_and_good_is_clean() -> None:
    assert _verdict(GOOD) == (CLEAN, ["No known vulnerabilities in 1 packages."])


def test_a_vulnerability_is_named_with_what_fixes_it_also_where_others_could_not_be_looked_up() -> None:
    code, said = _verdict(GOOD, BAD, UNKNOWN)
    assert (code, said[0]) == (VULNERABLE, "bad 2: PYSEC-1, fixed in 2.1, 3")
    assert said[1].startswith("NOT AUDITED: 1 of 3 packages")


def test_a_package_that_the_service_does_not_know_is_not_audited() -> None:
    assert _verdict(GOOD, UNKNOWN)[0] == NOT_AUDITED


def test_no_report_is_no_audit() -> None:
    assert verdict("", {"good"})[0] == NOT_AUDITED


def test_a_locked_package_that_the_report_leaves_out_is_not_audited() -> None:
    assert verdict(json.dumps({"dependencies": [GOOD]}), {"good", "left-out"})[0] == NOT_AUDITED
