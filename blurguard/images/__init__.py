"""Still and animated pictures, each read and written in its own format, depth and compression.

To add a format: 1. add its `FileType`, signature and suffixes to `files.filetypes`; 2. write its codec, a subclass
of `codec.PillowCodec` or any class with the methods of `codec.Codec`; 3. add one row to `still.CODECS`.
The doctor command, file discovery and the file loop then handle it without further changes.
"""
