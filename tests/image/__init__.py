"""Builds the image and holds it to its word: ``make image``. No part of the test suite: it needs a container engine."""
