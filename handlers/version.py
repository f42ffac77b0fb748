"""The version of Swarm, as it tells it. `tests/handlers` holds it against `pyproject.toml`."""

VERSION = "0.1.0"
