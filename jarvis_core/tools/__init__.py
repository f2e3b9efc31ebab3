"""
What the assistant may do, and how it is kept in hand: which tools a turn has, what a call may cost, that it is made once.

The port is in ``models.py``: ``Tool``, ``ToolCall``, ``ToolOutput``, ``ToolServer`` and ``House``. Adapters under ``services/``
implement the last two. A house stands in front of the language model as one more ``LanguageModel``: it is asked where the
prompt has a ``conversation_id`` and nothing has ``followed``, and its answer ends with
``Finish("stop", 0, "home-assistant")``. So a turn knows nothing of it.
"""
