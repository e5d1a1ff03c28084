"""The privacy core: which region is hidden, and with which pixels."""
