"""From canonical rows to token ids: the tokenizer and its tags, the chat template, and the labels for the loss."""
