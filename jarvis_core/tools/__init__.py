"""
What the assistant may do, and how it is kept in hand: which tools a turn has, what a call may cost, that it is made once.

The port is in ``models.py``: ``Tool``, ``ToolCall``, ``ToolOutput``, ``ToolServer`` and ``HouseControl``. Adapters under
``services/`` implement the last two. The house (``house.py``) is asked by the turn before the language model.
"""
