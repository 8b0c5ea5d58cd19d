"""Plain NumPy implementations of what networks are made of: the oracle of the tests, and the formulas of the deck."""
