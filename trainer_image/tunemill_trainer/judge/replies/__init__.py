"""The formats in which models write calls, one module each, parsed like vLLM's tool parser of the same name.

Each module has `read(text, tools) -> ParsedReply`. The rules follow `extract_tool_calls` in vLLM 0.33. Where a server
would return a call that no client can execute, the reply is reported as broken.
"""
