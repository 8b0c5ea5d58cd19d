"""Diagnose: a record in, findings out."""
