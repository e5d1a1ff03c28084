"""Face detection: networks, image pyramids and the released models.

To add a detector, write a class with the members of `detector.Detector` in a new module of this package.
Return it from `registry.load_detector`, the only place that chooses one.
Networks and the passes of each model are entries in ``models/manifest.toml``. Another fully convolutional network
needs no code if its maps are those of `model_zoo.NetworkSpec`.
"""
