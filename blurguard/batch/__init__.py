"""Processes many files: discovery, workers, the journal and the output tree."""
