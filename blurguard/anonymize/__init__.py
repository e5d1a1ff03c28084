"""Joins detection, tracking, redaction and media into one path from file to anonymized file."""
