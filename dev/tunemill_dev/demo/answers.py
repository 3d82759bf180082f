"""Downloads the published adapter from the Hub, as a user would, and lets it answer new requests."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunemill_trainer.judge.parse import parse_reply

from tunemill_dev.testbed import Hub
from tunemill_dev.tiny import unseen_requests
from tunemill_dev.tiny.data import SYSTEM

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Answer:
    """A request and the call of the model."""

    question: str
    reply: str
    """The call as code, or the text if there is no call."""
    right: bool
    """Whether tool and arguments are the expected ones."""


def answers(hub: Hub, repository: str, revision: str, count: int, offered: int, cache: Path) -> list[Answer]:
    """Download the adapter and its base model, and return its answers to `count` requests that are in no training row.

    Call it in a separate process, because it sets the Hub of the process permanently.
    """
    # The Hub's client reads this when it is imported. PEFT downloads the base model from there.
    os.environ |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.write_token,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer
    from transformers.utils import logging

    # Hides hints for programmers from the demo's output.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = AutoPeftModelForCausalLM.from_pretrained(repository, revision=revision)
    tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision)
    model.eval()
    answered = []
    for question, tools, expected in unseen_requests(count, offered=offered):
        reply = _reply(model, tokenizer, question, tools)
        calls = parse_reply(reply).calls
        said = ", ".join(_as_code(call.name, call.arguments) for call in calls)
        right = [{"name": call.name, "arguments": call.arguments} for call in calls] == [expected]
        answered.append(Answer(question, said or reply.strip(), right))
    return answered


def _reply(model: Any, tokenizer: Any, question: str, tools: list[dict[str, Any]]) -> str:  # noqa: ANN401 - untyped
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    new = out[0][inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def _as_code(name: str, arguments: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
