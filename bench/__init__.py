"""Measurements: each prints a table, and is run by hand. `bench/README.md` says what the figures mean."""
