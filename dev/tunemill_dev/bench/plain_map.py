"""The baseline for prepare: rows rendered and tokenised with `datasets.map`, and nothing checked.

`python -m tunemill_dev.bench.plain_map ROWS TOKENIZER PROCESSES`, with rows in OpenAI's form and the tokenizer that
prepare wrote, with its chat template.
"""

import json
import sys
import tempfile
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast


def main(rows: str, folder: str, processes: int) -> None:
    """Make token ids and the mask of what the assistant says, as trainers do, and leave them in Arrow's files."""
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
