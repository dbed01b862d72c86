"""What a run has trained, as files that others load, and whether they are the same model."""
