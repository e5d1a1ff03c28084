"""Face detection: networks, image pyramids and the released models.

To add a detector, write a class with the members of `detector.Detector` in a new module of this package.
Return it from `detector.load_detector`, the only place that chooses one.
Describe its weights in ``models/manifest.toml``; `model_zoo.ModelSpec` lists the keys.
"""
