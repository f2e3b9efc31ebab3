"""Tests against a real Home Assistant, in an environment of its own: `make home`."""
