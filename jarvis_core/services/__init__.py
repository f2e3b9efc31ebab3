"""Adapters to the neighbours: aiohttp sessions behind the domain's own words."""
