"""Face tracking through videos and animations, and the detection of scene cuts."""
