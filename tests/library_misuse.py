"""Mistakes that a type checker reports to users of the library. Nothing runs this."""

import blurguard
from blurguard import Anonymizer, Settings, hide_faces

hide_faces("a.jpg")  # type: ignore[call-overload]
Settings(stile="blur")  # type: ignore[call-arg]
blurguard.blur_everything()  # type: ignore[operator]
Anonymizer(detector=3)  # type: ignore[arg-type]
