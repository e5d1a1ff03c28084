"""Face detection: networks, image pyramids and the released models.

To add a detector, write a class with the members of `detector.Detector` in a new module of this package.
Return it from `registry.load_detector`, the only place that chooses one.
Other weights for BlazeFace are an entry in ``models/manifest.toml``. For another network, `model_zoo.ModelSpec` needs a
key that selects its class.
"""
