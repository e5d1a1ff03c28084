"""Still and animated pictures, each read and written in its own format, depth and compression.

To add a format:
1. Add a member with its suffixes and signature to `files.filetypes.FileType`, and a branch to `sniff_type` if no
   prefix identifies it.
2. Write its codec, a subclass of `codec.PillowCodec` or another class with the same public attributes and methods.
3. Add a row for the two to `formats.CODECS`.
"""
