"""Makes and measures the models that blurguard ships; never part of the wheel."""

__all__ = ["CalibrationError"]


class CalibrationError(Exception):
    """A step cannot go on: its source, its result or the manifest is not what it must be."""
