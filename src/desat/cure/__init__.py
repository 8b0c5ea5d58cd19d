"""Cure: remedies, applied in place to a live model and optimizer."""
