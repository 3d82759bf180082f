"""Small versions of the inputs of the recipes: rows in the formats of their data sets, and a model like FunctionGemma.

The rows use the help desk's wordings and values, which the small base models can read. Replies start with the value,
as in the JSON from which the base models have learned to copy.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from tunemill_dev.tiny.cached import cached_base
from tunemill_dev.tiny.data import CITIES, OPENINGS, TASKS, TOPICS, Task, rows

Row = dict[str, Any]

FUNCTION_GEMMA_TAGS = (
    "<start_function_declaration>",
    "<end_function_declaration>",
    "<start_function_call>",
    "<end_function_call>",
    "<start_function_response>",
    "<end_function_response>",
    "<escape>",
)

FUNCTION_GEMMA_TEMPLATE = """{{- bos_token -}}
{%- macro text(value) -%}{{- '<escape>' + value + '<escape>' -}}{%- endmacro -%}
{%- macro value(item) -%}
{%- if item is string -%}{{- text(item) -}}{%- else -%}{{- item | tojson -}}{%- endif -%}
{%- endmacro -%}
{%- macro declared(tool) -%}
{{- '<start_function_declaration>declaration:' + tool.name + '{description:' + text(tool.description) -}}
{{- ',parameters:{properties:{' -}}
{%- for name, schema in tool.parameters.properties | dictsort -%}
{{- (',' if not loop.first else '') + name + ':{' -}}
{%- if schema.description -%}{{- 'description:' + text(schema.description) + ',' -}}{%- endif -%}
{{- 'type:' + text(schema.type | upper) + '}' -}}
{%- endfor -%}
{{- '}' -}}
{%- if tool.parameters.required -%}
{{- ',required:[' -}}
{%- for name in tool.parameters.required -%}{{- (',' if not loop.first else '') + text(name) -}}{%- endfor -%}
{{- ']' -}}
{%- endif -%}
{{- ',type:' + text('OBJECT') + '}}<end_function_declaration>' -}}
{%- endmacro -%}
{%- set turns = messages -%}
{%- set preamble = '' -%}
{%- if messages[0]['role'] in ('system', 'developer') -%}
{%- set preamble = messages[0]['content'] | trim -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{%- if preamble or tools -%}
{{- '<start_of_turn>developer\\n' + preamble -}}
{%- for tool in tools or [] -%}{{- declared(tool['function']) -}}{%- endfor -%}
{{- '<end_of_turn>\\n' -}}
{%- endif -%}
{%- for message in turns -%}
{%- set answers = not loop.first and loop.previtem['role'] == 'tool' -%}
{%- if message['role'] == 'tool' -%}
{{- '<start_function_response>' if answers else '' -}}
{{- 'response:' + message['name'] + '{value:' + value(message['content']) + '}<end_function_response>' -}}
{%- else -%}
{%- if not answers -%}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' -}}
{%- endif -%}
{{- (message['content'] or '') | trim -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '<start_function_call>call:' + call['function']['name'] + '{' -}}
{%- for name, item in call['function']['arguments'] | dictsort -%}
{{- (',' if not loop.first else '') + name + ':' + value(item) -}}
{%- endfor -%}
{{- '}<end_function_call>' -}}
{%- endfor -%}
{{- '<start_function_response>' if message['tool_calls'] else '<end_of_turn>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1]['role'] != 'tool' -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
"""Renders the text that the FunctionGemma guide prints: special tags, and a call that ends where the result starts."""

HERMES_PROMPT = (
    "You call functions, and think before you do. You are provided with function signatures within <tools></tools> XML "
    "tags. Here are the available tools:<tools> {tools} </tools>For each function call return a json object with its "
    "name and arguments within <tool_call></tool_call> XML tags."
)
"""A system prompt like those of the agents course: the tools are Python literals after an empty pair of tags."""

THOUGHT_OF = ("get_weather", "search_documents", "book_room", "reset_password")
"""The tools that are called. More tools would need more rows than a test has time for."""

ADVICE = {
    "get_weather": "{city} has weather of its own.",
    "send_email": "{to} reads no mail today.",
    "set_timer": "Count to {minutes} by yourself.",
    "order_item": "{item} and all is sold out.",
    "search_documents": "{query} is what the office knows best.",
    "book_room": "{room} is always free.",
    "reset_password": "{user} should try again.",
    "open_ticket": "{item} and all goes to the workshop.",
}
"""Tool name → reply in plain text, for rows without tools."""


def function_gemma(folder: Path) -> Path:
    """Create the small Gemma 3 model with FunctionGemma's tags and template, which it has not been trained to use."""
    from transformers import AutoTokenizer

    shutil.copytree(cached_base("gemma3", FUNCTION_GEMMA_TAGS), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = FUNCTION_GEMMA_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def search_rows(count: int, seed: int = 0) -> list[Row]:
    """Return rows like those of the FunctionGemma guide: a search in internal documents, or a public search."""
    documents = next(task for task in TASKS if task.name == "search_documents")
    weather = next(task for task in TASKS if task.name == "get_weather")
    ours = [
        _searched(opening + wording.format(query=topic), "search_knowledge_base", f"{topic} policy")
        for opening in OPENINGS
        for wording in documents.wordings
        for topic in TOPICS
    ]
    public = [
        _searched(opening + wording.format(city=city), "search_google", f"{city} weather")
        for opening in OPENINGS
        for wording in weather.wordings
        for city in CITIES
    ]
    rng = random.Random(seed)
    drawn = rng.sample(ours, count // 2) + rng.sample(public, count - count // 2)
    rng.shuffle(drawn)
    return drawn


def thinking_rows(count: int, seed: int = 0) -> list[Row]:
    """Return rows like those of the agents course: think, act, observe, and an answer that depends on the result.

    They contain the irregularities of its data: calls as Python literals, tools in a system prompt, a misspelled tag.
    """
    rng = random.Random(seed)
    drawn = [row for row in rows(4 * count, seed, offered=2, talk=0) if _call(row)["name"] in THOUGHT_OF]
    return [_thought(row, succeeds=rng.random() < 0.5) for row in drawn[:count]]


def instruction_rows(count: int, seed: int = 0) -> list[Row]:
    """Return rows like those of smoltalk: a topic, and `messages` with a request and a one-sentence answer."""
    rng = random.Random(seed)
    cases = {task.name: list(task.cases()) for task in TASKS}
    drawn = []
    for _ in range(count):
        task: Task = rng.choice(TASKS)
        request, arguments = rng.choice(cases[task.name])
        said = ADVICE[task.name].format(**arguments)
        turns = [{"role": "user", "content": request}, {"role": "assistant", "content": said}]
        drawn.append({"full_topic": task.description, "messages": turns})
    return drawn


def _searched(request: str, tool: str, query: str) -> Row:
    return {"user_content": request, "tool_name": tool, "tool_arguments": json.dumps({"query": query})}


def _call(row: Row) -> Row:
    call: Row = row["messages"][-1]["tool_calls"][0]["function"]
    return call


def _thought(row: Row, *, succeeds: bool) -> Row:
    user = row["messages"][1]
    call = _call(row)
    called = {"name": call["name"], "arguments": json.loads(call["arguments"])}
    seen, said = ("ok", "It is done.") if succeeds else ("failed", "Sorry, that failed.")
    turns = [
        ("system", HERMES_PROMPT.format(tools=row["tools"])),
        ("human", user["content"]),
        ("model", f"<think>The tool for it is {call['name']}.</think><tool_call>\n{called}\n</tool_call>"),
        ("tool", f"<tool_reponse>\n{ {'status': seen} }\n</tool_reponse>"),
        ("model", f"<think>The status is {seen}.</think>{said}"),
    ]
    return {"conversations": [{"role": role, "content": content} for role, content in turns]}
