"""Which writes a browser sends for its own page, and which for another's."""

from __future__ import annotations

import ipaddress

import pytest
from aiohttp.test_utils import make_mocked_request

from handlers.cross_origin import refuse_cross_origin
from handlers.kinds import CROSS_ORIGIN
from handlers.problem import Problem
from handlers.proxies import Proxies

HOST = "api.example.com"


def allowed(method: str, *, required: bool = False, peer: str = "10.0.0.1", **fields: str) -> bool:
    proxies = Proxies([ipaddress.ip_network("10.0.0.0/8")])
    headers = {"Host": HOST, "X-Forwarded-Proto": "https"}
    headers |= {name.replace("_", "-"): value for name, value in fields.items()}
    request = make_mocked_request(method, "/", headers=headers).clone(remote=peer)
    try:
        refuse_cross_origin(request, proxies, required=required)
    except Problem as problem:
        return problem.kind is not CROSS_ORIGIN
    return True


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(
    ("site", "allows"),
    [("same-origin", True), ("none", True), ("same-site", False), ("cross-site", False), ("", False), ("x", False)],
)
def test_the_browser_s_word_on_the_site_decides(required: bool, site: str, allows: bool) -> None:
    for origin in (f"https://{HOST}", "https://evil.example"):
        assert allowed("POST", required=required, Sec_Fetch_Site=site, Origin=origin) is allows
    assert allowed("DELETE", required=required, Sec_Fetch_Site=site) is allows


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(
    ("origin", "host", "allows"),
    [
        (f"https://{HOST}", HOST, True),
        (f"https://{HOST}", "API.example.com", True),
        (f"https://{HOST}", f"{HOST}:443", True),
        (f"https://{HOST}:8443", f"{HOST}:8443", True),
        (f"https://{HOST}", f"{HOST}:8443", False),
        (f"https://{HOST}:8443", HOST, False),
        (f"http://{HOST}", HOST, False),
        (f"http://{HOST}:443", f"{HOST}:443", False),
        (f"https://{HOST}.evil.example", HOST, False),
        ("https://evil.example", HOST, False),
        ("null", HOST, False),
        ("", HOST, False),
        ("https://", "", False),
    ],
)
def test_else_the_origin_must_be_the_server_s_own(required: bool, origin: str, host: str, allows: bool) -> None:
    if host:
        assert allowed("PATCH", required=required, Origin=origin, Host=host) is allows


def test_the_scheme_of_the_origin_is_that_of_the_connection_where_no_proxy_of_ours_says_another() -> None:
    assert allowed("POST", peer="203.0.113.9", Origin=f"http://{HOST}", Host=f"{HOST}:80")
    assert not allowed("POST", peer="203.0.113.9", Origin=f"https://{HOST}")


def test_what_says_nothing_is_a_program_s_and_refused_only_where_a_browser_must_have_sent_it() -> None:
    assert allowed("POST", required=False)
    assert not allowed("POST", required=True)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_what_changes_nothing_may_come_from_anywhere(method: str) -> None:
    assert allowed(method, required=True, Sec_Fetch_Site="cross-site", Origin="https://evil.example")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
def test_all_else_counts_as_a_change(method: str) -> None:
    assert not allowed(method, Sec_Fetch_Site="cross-site")
