"""Instruments: what Swarm measures about itself."""
