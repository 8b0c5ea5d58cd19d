"""The dashboard: a local server that shows the runs of a folder while they train, from their records."""
