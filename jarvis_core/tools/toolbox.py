"""The servers of tools, and which of all tools a turn has: the client's, and of the servers' those that fit the question best."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from jarvis_core.models import Tool, ToolServer
from jarvis_core.settings import Tools
from jarvis_core.words.normalization import terms_of

NAME_WEIGHT = 2.0
"""A word in a tool's name says more than one in its description."""


class Toolbox:
    """The tools that there are."""

    def __init__(self, servers: Sequence[ToolServer], settings: Tools) -> None:
        self._servers = {server.name: server for server in servers}
        self.settings = settings

    @property
    def servers(self) -> Sequence[ToolServer]:
        """The servers, whether they are there or not."""
        return list(self._servers.values())

    def find(self, name: str) -> ToolServer | None:
        """Return the server called *name*."""
        return self._servers.get(name)

    def choose(self, question: str, own: Sequence[Tool]) -> Sequence[Tool]:
        """
        Return the tools of a turn: the client's *own*, and the servers'; of two with one name the client's.

        Of more than ``Tools.limit`` those are taken whose words fit *question* best, in the order in which they stand.
        """
        if not self._servers:
            found = list(own)
        else:
            names = {tool.name for tool in own}
            found = [*own, *(tool for one in self._servers.values() for tool in one.tools if tool.name not in names)]
        limit = self.settings.limit
        if len(found) <= limit:
            return found
        if len(own) >= limit:
            found = list(own)
            return _fittest(question, found, limit)
        return [*own, *_fittest(question, found[len(own) :], limit - len(own))]


def _fittest(question: str, tools: list[Tool], limit: int) -> list[Tool]:
    asked = set(terms_of(question))
    words = [(set(terms_of(tool.name.replace("_", " "))), set(terms_of(tool.description))) for tool in tools]
    frequency = Counter(word for name, description in words for word in name | description)

    def score(place: int) -> float:
        name, description = words[place]
        return sum(
            math.log(1 + len(tools) / frequency[word]) * (NAME_WEIGHT if word in name else 1.0)
            for word in asked & (name | description)
        )

    best = sorted(range(len(tools)), key=lambda place: (-score(place), place))[:limit]
    return [tools[place] for place in sorted(best)]
