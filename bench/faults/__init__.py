"""Faults on purpose, shared by the tests and the long campaigns: kills, dropped files, small samples."""
