"""From canonical rows to token ids: the tokenizer and its tags, the chat template, and which tokens the loss is on."""
