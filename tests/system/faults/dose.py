"""How much of it: little in every run of the tests, a lot by ``make faults``, and once more with a seed that was printed."""

from __future__ import annotations

import os
import secrets

LOAD_S = float(os.environ.get("FAULTS_LOAD_S", "3"))
"""How long the mixed load goes on."""
KILLS = int(os.environ.get("FAULTS_KILLS", "3"))
"""How often the server and its database are killed."""
WAYS = os.environ.get("FAULTS_WAYS", "silent").split()
"""How the database is away: ``refused`` is known at once, ``silent`` only by waiting."""
SEED = int(os.environ.get("FAULTS_SEED", "0")) or secrets.randbelow(1 << 31)
"""Of all dice; what is left to chance is time."""
