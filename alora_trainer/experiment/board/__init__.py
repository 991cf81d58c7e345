"""A board: methods tuned as hard as each other, on curves, with noise."""
