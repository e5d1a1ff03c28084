"""The drop folder daemon."""
