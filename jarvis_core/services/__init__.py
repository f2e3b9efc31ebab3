"""Adapters to the neighbours: aiohttp sessions behind the domain's own words."""

from jarvis_core.services import trust as trust  # before any of them imports aiohttp
