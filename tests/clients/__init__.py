"""
Others' clients against the running server: each in an environment of its own, driven through what it is for.

``make clients`` makes the environments (``.cache/clients``) and runs these tests; without an environment its tests are skipped.
A client has one program here (``openai_python.py``, ``openai_node.mjs``), whose functions ``check_…`` are run one after another
in one process of that environment, and one test module, which shows each of them as a test.
"""
