"""Nothing can be asked without a tenant: it is the first argument of what storage, the log and the registry answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from agents.registry import Registry
from events.conversation_log import ConversationLog
from events.hub import Hub
from events.streamed_messages import StreamedMessages
from handlers import resources
from storage.agents import AgentRows
from storage.conversations import Conversations
from storage.credentials import Credentials
from storage.idempotency import Keys
from storage.log import Log
from storage.messages import Messages
from storage.tables import metadata
from storage.versions import VersionReader
from storage.windows import Windows

_ASKED = (
    *(AgentRows, Conversations, ConversationLog, Credentials, Keys, Log, Messages, Registry, StreamedMessages),
    *(VersionReader, Windows),
)
# Of these no request's answer is made. Each with the reason why it knows no tenant.
_OF_ALL = {
    "Credentials.find": "a credential says which tenant it is of",
    "Credentials.ended": "ids of credentials whose streams are open, asked by the process itself",
    "Credentials.forget": "housekeeping",
    "Credentials.create_session": "the giver has a tenant",
    "Credentials.create_ticket": "the giver has a tenant",
    "Conversations.touched": "the feeds' tenants are asked for together; each row says whose it is",
    "Log.moved": "pairs of tenant and conversation",
    "Log.find": "an append has a tenant",
}


def _methods() -> list[tuple[str, Callable[..., Any]]]:
    return [
        (f"{kind.__name__}.{name}", method)
        for kind in _ASKED
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    ]


@pytest.mark.parametrize(("name", "method"), _methods(), ids=lambda value: value if isinstance(value, str) else "")
def test_whatever_is_asked_is_asked_of_a_tenant(name: str, method: Callable[..., Any]) -> None:
    _, *parameters = inspect.signature(method).parameters
    assert (parameters[:1] == ["tenant"]) != (name in _OF_ALL), (
        "the first argument is the tenant, or it is said why not"
    )


def test_the_hub_watches_for_a_tenant() -> None:
    for method in (Hub.watch, Hub.join_feed):
        assert list(inspect.signature(method).parameters)[1] == "tenant"


def test_what_handlers_ask_is_among_them() -> None:
    """A new resource of handlers is looked at here, or is none that holds data."""
    without_data = {
        *("REQUESTS", "PROXIES", "METRICS_TOKEN", "DATABASE", "INSTRUMENTS", "EXPOSITION", "RATE_LIMITS", "LIVES"),
        "HUB",
    }
    keys = {name for name, value in vars(resources).items() if name.isupper() and type(value).__name__ == "AppKey"}
    held = {"CONVERSATIONS", "MESSAGES", "WINDOWS", "LOG", "STREAMED", "KEYS", "REGISTRY", "CREDENTIALS"}
    assert keys == without_data | held


def test_every_row_has_a_tenant() -> None:
    of_all = {"timeline", "compatibility"}
    assert {table.name for table in metadata.sorted_tables if "tenant" not in table.columns} == of_all
    assert all(not table.columns["tenant"].nullable for table in metadata.sorted_tables if table.name not in of_all)
