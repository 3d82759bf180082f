"""Starts the real llama.cpp server, which `make build/llama/.ready` installs, on a GGUF file."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_INSTALLED = Path(__file__).parents[2] / "build" / "llama"
_PROGRAM = """
import sys
import xllamacpp

settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.hostnames = ["127.0.0.1"]
settings.port = 0
settings.n_ctx = 2048
settings.n_parallel = 1
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
settings.use_jinja = True
settings.warmup = False
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def a_llama_server(model: Path) -> Iterator[str]:
    """Start the server with one thread on a free port, and yield its URL."""
    log = model.with_suffix(".log")
    with log.open("w") as errors:
        server = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(model)],
            env={"PYTHONPATH": str(_INSTALLED)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert server.stdout is not None
    try:
        # The first lines may be llama.cpp's own.
        url = next((line.strip() for line in server.stdout if line.startswith("http")), "")
        assert url, log.read_text()
        yield url
    finally:
        # It holds nothing that must be saved, and its own end waits for its threads.
        server.kill()
        server.wait()
