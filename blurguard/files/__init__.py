"""Leak-free files: staged in private scratch, published in one rename."""
