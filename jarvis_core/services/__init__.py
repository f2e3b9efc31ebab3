"""Adapters to the neighbours: aiohttp sessions behind the domain's own words."""

from jarvis_core.services import ca_certificates as ca_certificates
