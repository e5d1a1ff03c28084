"""Files that never leak: written in private scratch, published in one rename, moved and deleted with care."""
