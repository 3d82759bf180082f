"""The ways in which models write calls, one module each, read as vLLM's tool parser of that name reads them.

A way is a module with `read(text) -> ParsedReply`. The rules are those of vLLM 0.33's `extract_tool_calls`, restated;
where a server would hand on something that no client can call a function with, we say that it is broken.
"""
