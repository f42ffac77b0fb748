"""Programs that others would run in Swarm's place, measured beside it: `python -m bench.peers.NAME --port PORT`."""
