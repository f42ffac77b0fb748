"""Instruments: what Swarm measures about itself, and how it shows that."""
