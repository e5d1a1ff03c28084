"""Face detection: networks, image pyramids and the models that ship."""
