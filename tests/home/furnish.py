"""
Furnish a Home Assistant before its first start: a user with a long-lived token, areas, and names in two languages.

Runs on Home Assistant's own Python and API: ``python furnish.py DIRECTORY`` writes the registries of the lamps that the
configuration in *DIRECTORY* has, and prints the token.
"""

import asyncio
import sys
from datetime import timedelta
from typing import Any

LAMPS = {
    "salon": ("Lumière du salon", "salon", ("living room light",)),
    "cuisine": ("Lumière de la cuisine", "cuisine", ("kitchen light",)),
    "chambre": ("Lampe de chevet", "chambre", ("bedside lamp",)),
}
"""By their unique ids: the name, the area, and what they are called in English."""
AREAS = {
    "salon": ("Salon", ("living room",)),
    "cuisine": ("Cuisine", ("kitchen",)),
    "chambre": ("Chambre", ("bedroom",)),
}


async def furnish(directory: str) -> str:
    """Write users and registries below *directory*; return a token."""
    from homeassistant import auth, core  # type: ignore[import-not-found, unused-ignore]
    from homeassistant.auth.const import GROUP_ID_ADMIN  # type: ignore[import-not-found, unused-ignore]
    from homeassistant.helpers import (  # type: ignore[import-not-found, unused-ignore]
        area_registry,
        device_registry,
        entity_registry,
    )

    house: Any = core.HomeAssistant(directory)
    await asyncio.gather(*(one.async_load(house) for one in (area_registry, device_registry, entity_registry)))
    house.auth = await auth.auth_manager_from_config(house, [{"type": "homeassistant"}], [])
    user = await house.auth.async_create_user("Jarvis", group_ids=[GROUP_ID_ADMIN])
    refresh = await house.auth.async_create_refresh_token(
        user, client_name="jarvis", token_type="long_lived_access_token", access_token_expiration=timedelta(days=365)
    )
    token = house.auth.async_create_access_token(refresh)
    areas = {
        key: area_registry.async_get(house).async_create(name, aliases=set(names))
        for key, (name, names) in AREAS.items()
    }
    registry = entity_registry.async_get(house)
    for unique_id, (_name, area, names) in LAMPS.items():
        entry = registry.async_get_or_create("light", "template", unique_id, suggested_object_id=unique_id)
        registry.async_update_entity(entry.entity_id, aliases=set(names), area_id=areas[area].id)
    # What is written with a delay is written when the house is shut.
    await house.async_stop(force=True)
    return str(token)


if __name__ == "__main__":
    sys.stdout.write(asyncio.run(furnish(sys.argv[1])))
