"""What gunicorn says, in the lines in which everything else is said."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger


class GunicornLog(Logger):
    """Passes gunicorn's own messages on to the root logger, which `server.logs` has set up."""

    def setup(self, cfg: Any) -> None:
        """Also when its configuration is read again."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
