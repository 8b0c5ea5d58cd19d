"""Export: what a record holds, for the tools of other projects; at once, or while the training runs."""
