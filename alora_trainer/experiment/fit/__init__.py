"""One's own data learned with a promise: looked at, a recipe written for it, run, promised, and reported (docs/fit.md)."""
