"""Watch: taps on a live training run. Nothing here is imported before torch is needed."""
