"""Makes one call: whatever goes wrong is an output that tells the model, in one sentence, never an error of the turn."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from jarvis_core import cancellation, log
from jarvis_core.errors import DeadlineExceeded, RequestError
from jarvis_core.models import Caller, Tool, ToolOutput
from jarvis_core.tools.schema import misfit
from jarvis_core.tools.toolbox import Toolbox

logger = log.get(__name__)

CALL_TIMEOUT_S = 10.0
OUTPUT_LIMIT_BYTES = 16 << 10
CUT = "\n[The rest is left out: the output is {bytes} bytes long.]"


class Result(Struct, frozen=True):
    """What became of a call."""

    text: str
    state: Literal["finished", "failed", "unknown"]


class ToolRunner:
    """Has servers do what a model calls; counts what became of it."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        """By server, tool and outcome."""

    def refuse(self, name: str, arguments: str, tool: Tool | None) -> str | None:
        """Return why a call of *tool* cannot be made; None where it can."""
        if tool is None:
            return f"There is no tool {name[:64]!r}."
        try:
            value = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return "Not called: the arguments are not JSON."
        if not isinstance(value, dict):
            return "Not called: the arguments are no JSON object."
        wrong = misfit(value, msgspec.json.decode(tool.parameters))
        return None if wrong is None else f"Not called: the arguments do not fit: {wrong}."

    async def run(self, tool: Tool, arguments: str, caller: Caller, timeout_s: float) -> Result:
        """Have *tool* called, once; its outcome is unknown where no answer came in time."""
        timeout_s = min(timeout_s, CALL_TIMEOUT_S)
        server = self._toolbox.find(tool.server)
        if server is None:
            result = Result(f"The server {tool.server!r} of this tool is not there any more.", "failed")
        else:
            try:
                async with cancellation.timeout(timeout_s):
                    output = await server.call(tool, Raw(arguments.encode()), caller)
                result = Result(bounded(output), "failed" if output.failed else "finished")
            except (TimeoutError, DeadlineExceeded):
                result = Result(f"No answer came within {timeout_s:g} s: it may have been done, or not.", "unknown")
            except RequestError as exc:
                result = Result(f"The tool failed: {exc.message}", "failed")
            except Exception:
                logger.exception("a tool failed through a defect", server=tool.server, tool=tool.name)
                result = Result("The tool failed.", "failed")
        self.outcomes[tool.server, tool.name, result.state] += 1
        return result


def bounded(output: ToolOutput) -> str:
    """Return what a tool told as it can be stored and told: in UTF-8 without NUL, cut at ``OUTPUT_LIMIT_BYTES``."""
    data = output.text.replace("\0", "").encode(errors="replace")
    if len(data) <= OUTPUT_LIMIT_BYTES:
        return data.decode()
    told = CUT.format(bytes=len(data))
    return data[: OUTPUT_LIMIT_BYTES - len(told)].decode(errors="ignore") + told
