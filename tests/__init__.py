"""Swarm's tests; they mirror the source tree, beside the real servers and doubles they run against."""
