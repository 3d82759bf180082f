"""A small Hugging Face Hub server, to which the demo and the tests push with the real client.

It implements enough of the Hub's HTTP API for `huggingface_hub`, `transformers` and `peft` to work unchanged with
`HF_ENDPOINT`. Set `HF_HUB_DISABLE_XET=1`: without Xet's servers the client would wait for minutes.

    python -m tunemill_dev.hub --port 8080 --data DIR --accounts FILE     a server, as in the demo's pod
    tunemill_dev.hub.local.local_hub(accounts)                            a server inside a test
"""
