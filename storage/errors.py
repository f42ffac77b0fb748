"""What storage says when it cannot do what was asked. It knows no HTTP: `handlers.problem` has the statuses."""

from __future__ import annotations


class StorageError(Exception):
    """Any refusal of storage."""


class StorageUnavailable(StorageError):
    """The database cannot be reached, or is too busy: the same request may pass later."""


class StorageFull(StorageError):
    """The database has no room left."""


class QueueFull(StorageUnavailable):
    """More appends are waiting than the process accepts, or one has waited too long.

    It was withdrawn: it is never committed.
    """


class NotFound(StorageError):
    """There is no such thing in this tenant. `what` names the kind of thing."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no such {what}")
        self.what = what


class UnknownAgent(StorageError):
    """A message names an agent that the tenant does not have."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(f"no such agent: {agent_id}")
        self.agent_id = agent_id


class UnknownReply(StorageError):
    """A message answers one that is not in its conversation."""

    def __init__(self, message_id: str) -> None:
        super().__init__(f"no such message in this conversation: {message_id}")
        self.message_id = message_id


class KeyReused(StorageError):
    """An idempotency key came again with another request."""


class MessageDeleted(StorageError):
    """A deleted message cannot be edited."""


class Contended(StorageUnavailable):
    """Others kept changing the same thing first."""


class InvalidCursor(StorageError):
    """What was given as a cursor was never issued as one of that list."""


class CredentialEnded(StorageError):
    """The credential that another one was to be given for has been revoked meanwhile."""


class StatementFailed(Exception):
    """The database refused a statement that it should have carried out: a defect of ours, or of the database's.

    It stands for the driver's error, whose text may quote the values of a row: they belong into no log. It is none of
    the refusals above, so that nobody takes it for one that passes.
    """
