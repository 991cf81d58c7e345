"""What training moves: a weight as thin factors or as itself, one step of it, theta*, and what passes through its layer."""
