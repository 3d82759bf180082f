"""The chat templates of real base models, as TRL ships them: rows are rendered as they are served, and calls are read.

The tokenizers are small ones with the special tokens of the templates.
"""

import re
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import pytest
from trainer.chat.speakers import a_speaker
from trainer.data.building import a_row, answers, calls, says, user
from tunemill_trainer.bases import catalogue
from tunemill_trainer.chat import templates
from tunemill_trainer.chat.templates import Choice, Origin
from tunemill_trainer.data.dataset import Features
from tunemill_trainer.data.rows import Message, Role, Row
from tunemill_trainer.data.shown import openai_form
from tunemill_trainer.judge.parse import parse_reply
from tunemill_trainer.prepared import IGNORED

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Real:
    """A chat template and what it can render.

    Attributes:
        model_type: of its models.
        parallel: whether it renders several calls in one turn.
        reasoning: whether it renders reasoning so that a turn follows the prompt of a server.
    """

    model_type: str
    parallel: bool = True
    reasoning: bool = False


REAL = {
    "qwen2_5": Real("qwen2"),
    "qwen3": Real("qwen3", reasoning=True),
    "qwen3_instruct_2507": Real("qwen3_moe"),
    "qwen3_vl": Real("qwen3_vl"),
    "qwen3_5_think": Real("qwen3_5", reasoning=True),
    # Its generation prompt closes the reasoning of a model that is served without it.
    "qwen3_5_nothink": Real("qwen3_5"),
    "qwen3_6": Real("qwen3_5", reasoning=True),
    "qwen3_8": Real("qwen3_5", reasoning=True),
    "llama3_1": Real("llama", parallel=False),
    "llama3_2": Real("llama", parallel=False),
    "gemma4": Real("gemma4"),
}


def a_choice(name: str, features: Features) -> tuple[Choice, catalogue.Family, Any]:
    """The template that is chosen for rows with these features, the family, and the tokenizer."""
    source = resources.files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")
    family = catalogue.family_of({"model_type": REAL[name].model_type}, source)
    assert family is not None
    tags = sorted({*re.findall(r"<\|?/?[a-z_]+\|?>", source), *family.stops})
    speaker = a_speaker([], template=source, tags=tags, eos_token=family.stops[0], bos_token="<|begin_of_text|>")
    return templates.choose(speaker, features, None, family.calls), family, speaker


def a_conversation(real: Real) -> Row:
    """Two questions with calls, answers and replies, with what the template can render."""
    thought = "Look it up." if real.reasoning else ""
    both = (*calls(city="Rome").calls, *(calls(city="Oslo").calls if real.parallel else ()))
    return a_row(
        Message(Role.SYSTEM, "Be brief."),
        user("Weather in Rome & Oslo?"),
        says("", reasoning=thought, calls=both),
        *(answers(degrees) for degrees, _ in zip(("7", "-3"), both, strict=False)),
        says("7 and -3.", reasoning=thought),
        user("And in Bergen?"),
        says("", reasoning=thought, calls=calls(city="Bergen").calls),
        answers("4"),
        says("4 degrees.", reasoning=thought),
    )


@pytest.mark.parametrize("name", REAL)
def test_the_loss_covers_exactly_the_generated_tokens(name: str) -> None:
    """Each turn follows the prompt of a server, ends with a stop token, and is parsed into its calls."""
    real = REAL[name]
    features = Features(
        system=True,
        tools=True,
        calls=True,
        responses=True,
        reasoning=real.reasoning,
        rows=1,
        parallel=int(real.parallel),
    )
    choice, family, speaker = a_choice(name, features)
    assert choice.origin is Origin.BASE, choice.rejected_because
    assert choice.encoder.call_format is family.calls
    stops = speaker.convert_ids_to_tokens(list(choice.ends_of_turns))
    assert set(stops) <= set(family.stops)

    row = a_conversation(real)
    (encoded,) = choice.encoder.encode([row])
    assert encoded.problem is None
    trained = []
    for example in encoded.examples:
        text = speaker.decode(example.input_ids)
        assert speaker(text, add_special_tokens=False)["input_ids"] == example.input_ids
        labels = example.labels(everything=False)
        for turn in example.turns:
            trained.append(turn.message)
            served = prompt_of_a_server(speaker, row, turn.message)
            assert speaker.decode(example.input_ids[: turn.start]) == served
            ids = example.input_ids[turn.start : turn.end]
            assert ids[-1] in choice.ends_of_turns
            assert not set(ids[:-1]) & set(choice.ends_of_turns)
            assert labels[turn.start : turn.end] == ids
            read = parse_reply(speaker.decode(ids[:-1]), family.calls, row.tools)
            assert read.calls == row.messages[turn.message].calls
        learnt = sum(turn.end - turn.start for turn in example.turns)
        assert sum(label != IGNORED for label in labels) == learnt
    assert trained == [at for at, message in enumerate(row.messages) if message.role is Role.ASSISTANT]


def prompt_of_a_server(speaker: Any, row: Row, before: int) -> str:
    """Return the prompt for a reply as Transformers and vLLM render it from the messages of a client."""
    request = openai_form(replace(row, messages=row.messages[:before]))
    messages = [
        message | {"thinking": message["reasoning_content"]} if "reasoning_content" in message else message
        for message in request["messages"]
    ]
    text: str = speaker.apply_chat_template(
        messages, tools=request["tools"], add_generation_prompt=True, tokenize=False
    )
    return text
