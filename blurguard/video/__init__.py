"""Video files: demuxing, decoding, encoding and stream copy through PyAV."""
