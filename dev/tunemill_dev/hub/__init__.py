"""A small Hugging Face Hub of our own: the demo and the tests push to it with the real client.

It speaks enough of the Hub's HTTP protocol for `huggingface_hub`, `transformers` and `peft` to work unchanged through
`HF_ENDPOINT` (with `HF_HUB_DISABLE_XET=1`: without Xet's own servers the client would wait for minutes).

    python -m tunemill_dev.hub --port 8080 --data DIR --accounts FILE     a server, as in the demo's pod
    tunemill_dev.hub.local.local_hub(accounts)                            the same inside a test
"""
