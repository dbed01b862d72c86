"""How good a model is on held-out rows: in a run, and outside."""
