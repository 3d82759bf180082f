"""Runs vLLM's parsers in a separate process: `python served.py FOLDER`, with the FOLDER of `make build/vllm/.ready`.

It reads one JSON object per line and answers with one line. A request has `parser`, `reasoning` (the names of vLLM's
tool and reasoning parser; reasoning may be empty), `words` (additional tokens of the tokenizer),
`tools` in OpenAI's form and `texts`. The answer has the calls of each text, each as [name, arguments as text].

The process is separate because TRL and Transformers would use vLLM if they found it in their environment.
"""

import json
import os
import sys
from typing import Any

WORDS = (
    *("<tool_call>", "</tool_call>", "<tool_calls>", "</tool_calls>", "<think>", "</think>", "</", "Ġ</", "think", ">"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call|>", "<|tool_call_start|>", "<|tool_call_end|>", "<|python_tag|>"),
    *("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>", "<|channel>", "<channel|>"),
    *("<|tool_call>", "<tool_call|>", '<|"|>', "<minimax:tool_call>", "</minimax:tool_call>", "[TOOL_CALLS]"),
)
"""Tokens that parsers look up in the vocabulary."""


class Words:
    """A tokenizer with the tokens that parsers look up. Only Harmony's parser tokenizes text."""

    all_special_tokens: tuple[str, ...] = ()
    all_special_ids: tuple[int, ...] = ()

    def __init__(self, more: list[str]) -> None:
        self._ids = {word: index for index, word in enumerate(dict.fromkeys((*WORDS, *more)))}
        self.supports_grammar = "<think>" in more

    def get_vocab(self) -> dict[str, int]:
        """Return the tokens and their ids."""
        return self._ids

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the id of a token, 0 if it does not exist."""
        return self._ids.get(token, 0)

    def decode(self, _ids: object) -> str:
        """Return an empty text: only Harmony's error recovery uses it, for text that is not a call."""
        return ""


def main(folder: str) -> None:
    """Answer the requests on standard input until it ends."""
    os.environ.update(
        VLLM_LOGGING_LEVEL="CRITICAL", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error"
    )
    sys.path.append(folder)
    out, sys.stdout = sys.stdout, sys.stderr  # vLLM's own output must not mix with the answers
    import logging

    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.parser_manager import ParserManager

    logging.disable(logging.CRITICAL)

    def read(parser: Any, asked: Any, words: Words, harmony: Any, text: str) -> list[list[str]]:  # noqa: ANN401
        ids = harmony.encode(text, allowed_special="all") if harmony else ()
        try:
            calls = parser(words, asked.tools).parse(text, asked, enable_auto_tools=True, model_output_token_ids=ids)[2]
        except Exception:  # noqa: BLE001 - a server answers an error then, and a client gets no call
            return []
        return [[call.name, call.arguments] for call in calls or ()]

    for line in sys.stdin:
        request = json.loads(line)
        is_harmony, harmony = request["parser"] == "openai", None
        if is_harmony:
            from vllm.entrypoints.openai.parser.harmony_utils import get_encoding

            harmony = get_encoding()
        parser = ParserManager.get_parser(
            request["parser"], request["reasoning"] or None, enable_auto_tools=True, is_harmony=is_harmony
        )
        tools = [{"type": "function", "function": tool} for tool in request["tools"]]
        answers = []
        for text in request["texts"]:
            asked = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], tools=tools, tool_choice="auto")
            answers.append(read(parser, asked, Words(request["words"]), harmony, text))
        print(json.dumps(answers), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
