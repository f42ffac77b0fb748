"""Storage: one contract, run on SQLite and on PostgreSQL, and the faults of each."""
