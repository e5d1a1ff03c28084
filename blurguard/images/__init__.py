"""Still images: every format is read and written in its own kind, depth and compression."""
