"""Record: what was measured, in one SQLite file per run."""
