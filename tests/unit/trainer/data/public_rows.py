"""Makes rows in the exact shape of public data sets, with their documented oddities in about their real proportions.

The data sets themselves cannot be kept here. Texts are invented; fields, spellings and mistakes are those of the data.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tunemill_api.data import DatasetFormat

CITIES = ("Oslo", "Rome", "L'Aquila", "São Paulo", "東京", "Aix-en-Provence")
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": WEATHER}
BARE = {"city": {"description": "Where", "type": "str"}, "days": {"description": "How many", "type": "int, optional"}}

Row = dict[str, Any]


def _arguments(draw: random.Random) -> Row:
    days = {"days": draw.randint(1, 9)} if draw.random() < 0.5 else {}
    return {"city": draw.choice(CITIES), **days}


def _call(draw: random.Random) -> Row:
    return {"name": "get_weather", "arguments": _arguments(draw)}


def _question(draw: random.Random, number: int) -> str:
    return f"Question {number}: is it raining in {draw.choice(CITIES)}?"


def hermes(draw: random.Random, number: int) -> tuple[Row, int]:
    """NousResearch/hermes-function-calling-v1: a third of the calls as Python literals, tools in the system prompt."""
    count = draw.choice((1, 1, 1, 2))
    calls = [_call(draw) for _ in range(count)]
    write = repr if draw.random() < 0.3 else json.dumps
    said = "\n".join(f"<tool_call>\n{write(call)}\n</tool_call>" for call in calls)
    prompt = (
        "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML "
        f"tags. Here are the available tools:<tools> {write([TOOL])} </tools>Use the following pydantic model json "
        "schema for each tool call you will make: {'title': 'FunctionCall', 'type': 'object'} For each function call "
        "return a json object with function name and arguments within <tool_call></tool_call> XML tags as follows:\n"
        "<tool_call>\n{tool_call}\n</tool_call>"
    )
    turns = [("system", prompt), ("human", _question(draw, number)), ("gpt", said)]
    if draw.random() < 0.5:
        turns += [("tool", "<tool_response>\n{'rain': true}\n</tool_response>" * count), ("gpt", "It rains.")]
    return {"id": str(number), "conversations": [{"from": who, "value": text} for who, text in turns]}, count


def sharegpt(draw: random.Random, number: int) -> tuple[Row, int]:
    """Rows of LLaMA-Factory and APIGen-MT: separate fields for system and tools, each call as a separate turn."""
    calls = [_call(draw) for _ in range(draw.choice((1, 1, 2)))]
    turns = [("human", _question(draw, number))]
    turns += [("function_call", json.dumps(call)) for call in calls]
    turns += [("observation", '{"rain": true}') for _ in calls]
    row: Row = {"conversations": [{"from": who, "value": text} for who, text in [*turns, ("gpt", "It rains.")]]}
    if draw.random() < 0.5:
        row["system"] = "# Airline policy: be polite."
    return row | {"tools": json.dumps([WEATHER])}, len(calls)


def xlam(draw: random.Random, number: int) -> tuple[Row, int]:
    """Salesforce/xlam-function-calling-60k, and MadeAgents/xlam-irrelevance-7.5k, whose answers are empty."""
    calls = [_call(draw) for _ in range(draw.choice((0, 1, 1, 2)))]
    tools = [{**WEATHER, "parameters": BARE}]
    written = {"answers": json.dumps(calls), "tools": json.dumps(tools)}
    return {"id": number, "query": _question(draw, number), **written}, len(calls)


def toolace(draw: random.Random, number: int) -> tuple[Row, int]:
    """Team-ACE/ToolACE: tools in the prose of the system prompt, types of Python, names with spaces."""
    name = draw.choice(("get_weather", "Get Weather", "Weather.get"))
    tool = {**WEATHER, "name": name, "parameters": {**PARAMETERS, "type": "dict"}, "required": None}
    written = ", ".join(f"{key}={value!r}" for key, value in _arguments(draw).items())
    turns = [("user", _question(draw, number)), ("assistant", f"[{name}({written})]")]
    system = (
        "You are an expert in composing functions. Here is a list of functions in JSON format that you can invoke:\n"
        f"{json.dumps([tool])}. \nShould you decide to return the function call(s). \nPut it in the format of "
        "[func1(params_name=params_value, params_name2=params_value2...), func2(params)]\n\n"
        "NO other text MUST be included. \n"
    )
    return {"system": system, "conversations": [{"from": who, "value": text} for who, text in turns]}, 1


def glaive(draw: random.Random, number: int) -> tuple[Row, int]:
    """glaiveai/glaive-function-calling-v2: arguments in single quotes, and half of the rows without any tool."""
    if draw.random() < 0.5:
        chat = f"USER: {_question(draw, number)}\n\n\nASSISTANT: No. <|endoftext|>\n\n\n"
        return {"system": "SYSTEM: You are a helpful assistant, with no access to external functions.", "chat": chat}, 0
    arguments = json.dumps({"city": draw.choice(("Oslo", "Rome"))})
    chat = (
        f"USER: {_question(draw, number)}\n\n\nASSISTANT: <functioncall> "
        f'{{"name": "get_weather", "arguments": \'{arguments}\'}} <|endoftext|>\n\n\n'
        'FUNCTION RESPONSE: {"rain": true}\n\n\nASSISTANT: It rains. <|endoftext|>\n\n\n'
    )
    system = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
    return {"system": system + json.dumps(WEATHER, indent=4), "chat": chat}, 1


def prompt_completion(draw: random.Random, number: int) -> tuple[Row, int]:
    """TRL's conversational prompt and completion, with a call in the prompt that is excluded from training."""
    call = {"type": "function", "function": _call(draw)}
    return {
        "prompt": [
            {"role": "user", "content": _question(draw, number)},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "name": "get_weather", "content": "rain"},
        ],
        "completion": [{"role": "assistant", "content": "It rains."}],
        "tools": [TOOL],
    }, 1


def swift(draw: random.Random, number: int) -> tuple[Row, int]:
    """ms-swift's agent rows: consecutive calls, reasoning as a separate turn, `loss` in some turns."""
    calls = [_call(draw) for _ in range(draw.choice((1, 1, 2)))]
    turns: list[Row] = [{"role": "user", "content": _question(draw, number)}]
    if draw.random() < 0.3:
        turns.append({"role": "assistant", "content": "<think>\nI have to look.\n</think>\n"})
    turns += [{"role": "tool_call", "content": json.dumps(call)} for call in calls]
    turns += [{"role": "tool_response", "content": '{"rain": true}'} for _ in calls]
    turns.append({"role": "assistant", "content": "It rains.", **({"loss": True} if draw.random() < 0.3 else {})})
    return {"tools": json.dumps([TOOL]), "messages": turns}, len(calls)


def anthropic(draw: random.Random, number: int) -> tuple[Row, int]:
    """Anthropic's blocks: a text before the call, thinking at some, several results in one turn of the user."""
    calls = [_call(draw) for _ in range(draw.choice((1, 1, 2)))]
    blocks: list[Row] = [{"type": "text", "text": "I look."}] if draw.random() < 0.7 else []
    if draw.random() < 0.3:
        blocks.insert(0, {"type": "thinking", "thinking": "Rain?", "signature": "ErUB"})
    for place, call in enumerate(calls):
        blocks.append({"type": "tool_use", "id": f"toolu_{place}", "name": call["name"], "input": call["arguments"]})
    results = [
        {"type": "tool_result", "tool_use_id": f"toolu_{place}", "content": [{"type": "text", "text": "rain"}]}
        for place in reversed(range(len(calls)))
    ]
    turns = [
        {"role": "user", "content": _question(draw, number)},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": results},
        {"role": "assistant", "content": [{"type": "text", "text": "It rains."}]},
    ]
    tool = {"name": "get_weather", "description": "Weather of a city", "input_schema": PARAMETERS}
    return {"system": "Be brief.", "messages": turns, "tools": [tool]}, len(calls)


def responses(draw: random.Random, number: int) -> tuple[Row, int]:
    """The Responses API: flat tools, arguments as text, reasoning as a separate item."""
    items: list[Row] = [{"type": "reasoning", "id": "rs_1", "summary": []}] if draw.random() < 0.5 else []
    calls = [_call(draw) for _ in range(draw.choice((1, 1, 2)))]
    for place, call in enumerate(calls):
        written = {"name": call["name"], "arguments": json.dumps(call["arguments"]), "status": "completed"}
        items.append({"type": "function_call", "id": f"fc_{place}", "call_id": f"call_{place}", **written})
    items += [
        {"type": "function_call_output", "call_id": f"call_{place}", "output": "rain"} for place in range(len(calls))
    ]
    text = {"type": "output_text", "text": "It rains.", "annotations": []}
    items.append({"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [text]})
    asked: Any = _question(draw, number)
    asked = asked if draw.random() < 0.5 else [{"role": "user", "content": [{"type": "input_text", "text": asked}]}]
    return {"input": asked, "output": items, "tools": [{"type": "function", "strict": True, **WEATHER}]}, len(calls)


def client_log(draw: random.Random, number: int) -> tuple[Row, int]:
    """A logged request and response; half of the calls as Python prints the client's objects."""
    call = _call(draw)
    arguments = json.dumps(call["arguments"])
    calls: Any = [{"id": "c1", "type": "function", "function": {**call, "arguments": arguments}}]
    if draw.random() < 0.5:
        function = f"Function(arguments={arguments!r}, name='get_weather')"
        calls = f"[ChatCompletionMessageFunctionToolCall(id='c1', function={function}, type='function')]"
    message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
    request = {"model": "gpt-4o", "messages": [{"role": "user", "content": _question(draw, number)}], "tools": [TOOL]}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
    return {"request": request, "response": {"id": "x", "choices": [choice]}}, 1


def toolbench(draw: random.Random, number: int) -> tuple[Row, int]:
    """ToolLLaMA's rows: a tool list with `optional`, a Finish at the end that answers or gives up."""
    schema = {**PARAMETERS, "optional": ["days"]}
    finish = {
        "name": "Finish",
        "description": "If you believe that you have obtained a result that can answer the task, call this function.",
        "parameters": {
            "type": "object",
            "properties": {"return_type": {"type": "string"}, "final_answer": {"type": "string"}},
            "required": ["return_type"],
        },
    }
    system = (
        "You are AutoGPT, you can use many tools(functions) to do the following task.\nYour output should follow this "
        "format:\nThought:\nAction\nAction Input:\n\nSpecifically, you have access to the following APIs: "
        + str([{**WEATHER, "parameters": schema}, finish])
    )
    end = {"return_type": "give_up_and_restart"}
    if draw.random() < 0.8:
        end = {"return_type": "give_answer", "final_answer": "It rains."}
    turns = [
        ("system", system),
        ("user", f"\n{_question(draw, number)}\nBegin!\n"),
        (
            "assistant",
            f"\nThought: I look.\nAction: get_weather\nAction Input: {json.dumps(_arguments(draw), indent=1)}",
        ),
        ("function", '{"error": "", "response": "rain"}'),
        ("assistant", f"\nThought: \nAction: Finish\nAction Input: {json.dumps(end)}"),
    ]
    return {"id": f"Step 4: {number}", "conversations": [{"from": who, "value": text} for who, text in turns]}, 1


def api_bank(draw: random.Random, number: int) -> tuple[Row, int]:
    """API-Bank's rows of level 1: a dialogue with requests and what they return, then a request or a reply."""
    api = {
        "name": "get_weather",
        "description": "Weather of a city",
        "input_parameters": {"city": {"type": "str", "description": "Where"}},
        "output_parameters": {"weather": {"type": "str"}},
    }
    instruction = (
        "\nGenerate an API request in the format of [ApiName(key1='value1', key2='value2', ...)] based on the previous "
        "dialogue context.\nExpected output:\nAPI-Request: [ApiName(key1='value1', key2='value2', ...)]\n\n"
        "API descriptions:\n" + json.dumps(api)
    )
    dialogue = f"User: {_question(draw, number)}\n"
    if draw.random() < 0.5:
        said = {"input": f"{dialogue}Generate API Request:\n", "output": "API-Request: [get_weather(city='Oslo')]"}
        return {"instruction": instruction, **said}, 1
    returned = "API-Request: [get_weather(city='Oslo')]->{'weather': 'rain'}\n"
    said = {"input": f"{dialogue}{returned}Generate AI Response: ", "expected_output": "AI: It rains."}
    return {"instruction": instruction, **said}, 1


def nestful(draw: random.Random, number: int) -> tuple[Row, int]:
    """ibm-research/nestful: a second call that takes the result of the first, bare parameters, odd names of types."""
    calls = [
        {"name": "add", "label": "$var_1", "arguments": {"arg_0": draw.randint(1, 9), "arg_1": 2}},
        {"name": "add", "label": "$var_2", "arguments": {"arg_0": "$var_1.result$", "arg_1": 3}},
    ]
    number_or_result = {"description": "A summand", "type": "int or float"}
    tool = {
        "name": "add",
        "description": "Adds",
        "parameters": {"arg_0": number_or_result, "arg_1": number_or_result},
        "output_parameter": {"result": {"type": "int or float"}},
    }
    written = {"output": json.dumps(calls), "tools": json.dumps([tool])}
    return {"sample_id": str(number), "input": f"Add {number}", **written, "gold_answer": 6.0}, 2


def tau_bench(draw: random.Random, number: int) -> tuple[Row, int]:
    """Trajectories of tau-bench, and of tau2-bench with a greeting, flat calls and the mark at the end."""
    arguments = _arguments(draw)
    asked, policy = {"role": "user", "content": _question(draw, number)}, {"role": "system", "content": "# Policy"}
    if draw.random() < 0.5:
        call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps(arguments)}}
        answer = {"role": "tool", "tool_call_id": "c1", "name": "get_weather", "content": "rain"}
        turns = [policy, asked, {"role": "assistant", "content": None, "tool_calls": [call]}, answer]
        return {"task_id": number, "reward": 1.0, "info": {}, "traj": turns, "trial": 0}, 1
    flat = {"id": "c1", "name": "get_weather", "arguments": arguments, "requestor": "assistant"}
    turns = [
        {"role": "assistant", "content": "Hi! How can I help you today?", "tool_calls": None, "turn_idx": 0},
        asked,
        {"role": "assistant", "content": None, "tool_calls": [flat]},
        {"id": "c1", "role": "tool", "content": "rain", "requestor": "assistant", "error": False},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "###STOP###"},
    ]
    return {"id": "x", "task_id": str(number), "messages": turns, "reward_info": {"reward": 1.0}}, 1


def when2call(draw: random.Random, number: int) -> tuple[Row, int]:
    """nvidia/When2Call: rows to learn from and test rows, tools as JSON text; half of them without a call."""
    call, tools = f"<TOOLCALL>[{json.dumps(_call(draw))}]</TOOLCALL>", [json.dumps(WEATHER)]
    called = draw.random() < 0.5
    if draw.random() < 0.5:
        answers = {"direct": "Rain.", "tool_call": call, "request_for_info": "Where?", "cannot_answer": "I cannot."}
        right = "tool_call" if called else "cannot_answer"
        row = {"uuid": "x", "question": _question(draw, number), "answers": answers, "correct_answer": right}
        return {**row, "target_tool": tools[0], "tools": tools}, int(called)
    turns = [{"role": "user", "content": _question(draw, number)}, {"role": "assistant", "content": call}]
    return {"tools": tools, "messages": turns}, 1


def bfcl(draw: random.Random, number: int) -> tuple[Row, int]:
    """BFCL's questions joined with their possible answers: several values for an argument, and empty ones."""
    calls = [{"get_weather": {"city": [draw.choice(CITIES)], "days": draw.choice((["", 1], [3]))}}]
    calls *= draw.choice((1, 1, 2))
    function = {**WEATHER, "parameters": {**PARAMETERS, "type": "dict"}}
    question = [[{"role": "user", "content": _question(draw, number)}]]
    return {"id": f"simple_{number}", "question": question, "function": [function], "ground_truth": calls}, len(calls)


MADE: dict[Callable[[random.Random, int], tuple[Row, int]], DatasetFormat] = {
    hermes: DatasetFormat.HERMES,
    sharegpt: DatasetFormat.SHAREGPT,
    xlam: DatasetFormat.XLAM,
    toolace: DatasetFormat.TOOLACE,
    glaive: DatasetFormat.GLAIVE,
    prompt_completion: DatasetFormat.PROMPT_COMPLETION,
    swift: DatasetFormat.SWIFT,
    anthropic: DatasetFormat.ANTHROPIC,
    responses: DatasetFormat.RESPONSES,
    client_log: DatasetFormat.CLIENT_LOG,
    toolbench: DatasetFormat.TOOLBENCH,
    api_bank: DatasetFormat.API_BANK,
    nestful: DatasetFormat.NESTFUL,
    tau_bench: DatasetFormat.TAU_BENCH,
    when2call: DatasetFormat.WHEN2CALL,
    bfcl: DatasetFormat.BFCL,
}
"""Makers of a row, each with the format that it is read as. A maker returns the row and how many calls are in it."""


def rows(make: Callable[[random.Random, int], tuple[Row, int]], count: int, seed: int = 0) -> Iterator[tuple[Row, int]]:
    """Yield rows of one data set, each with the number of its calls."""
    draw = random.Random(seed)
    for number in range(count):
        yield make(draw, number)
