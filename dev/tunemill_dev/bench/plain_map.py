"""The baseline for prepare: renders and tokenizes rows with `datasets.map`, without checks.

`python -m tunemill_dev.bench.plain_map ROWS TOKENIZER PROCESSES`, with rows in OpenAI's format, and the tokenizer and
chat template that prepare wrote.
"""

import json
import sys
import tempfile
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast


def main(rows: str, folder: str, processes: int) -> None:
    """Write token ids and the mask of the assistant's text to Arrow files, as trainers do."""
    from datasets import load_dataset

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as cache:
        dataset = load_dataset("json", data_files=rows, split="train", cache_dir=cache)
        found = dataset.map(
            partial(_tokenised, tokenizer),
            remove_columns=dataset.column_names,
            num_proc=processes if processes > 1 else None,
        )
        print(f"{len(found)} rows", flush=True)


def _tokenised(tokenizer: Any, row: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - transformers ships no types
    for message in row["messages"]:
        for call in message.get("tool_calls") or []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    encoded = tokenizer.apply_chat_template(
        row["messages"], tools=row["tools"], return_dict=True, return_assistant_tokens_mask=True
    )
    return {"input_ids": encoded["input_ids"], "assistant_masks": encoded["assistant_masks"]}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
