"""Detects and hides faces in photos, animations and videos: joins all packages below into one path per file."""
