"""Measurements for developers: speed, memory, peers, long fault runs. Not part of the wheel."""
