"""Tracks faces through videos and animations."""
