"""Runs vLLM's OpenAI server: `python fork_server.py FOLDER`, with the FOLDER of `make build/vllm/.ready`.

It imports vLLM once, which takes half a minute, and then starts each server by fork. It reads one JSON object per line:
`arguments` (of `vllm serve`) and `log` (a file), and answers with the process id. A server is its own process group.

It has another environment than the tests because TRL and Transformers would use vLLM if they found it.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main(folder: str) -> None:
    """Answer the requests on standard input until it ends."""
    sys.path.append(folder)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import multiprocessing

    from vllm.utils import system_utils

    # vLLM's CPU platform starts its engine and its worker by `spawn`, and each of them imports everything again.
    fork = multiprocessing.get_context("fork")
    system_utils.get_mp_context = lambda: fork

    from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method as experts

    # With adapters, vLLM chooses Triton's kernels for experts, which a CPU does not have. Tunemill's adapters have no
    # weights for experts: the kernels for a CPU compute the same.
    choose = experts.select_unquantized_moe_backend

    def choose_without_lora(moe_config: Any) -> Any:  # noqa: ANN401 - a class of vLLM
        moe_config.is_lora_enabled = False
        return choose(moe_config)

    experts.select_unquantized_moe_backend = choose_without_lora

    import vllm.v1.engine.async_llm
    import vllm.v1.worker.cpu_worker  # noqa: F401 - imported before the fork
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.model_executor.models import registry

    # vLLM looks at a model's class in another Python, which imports everything again, so as not to initialise CUDA.
    registry._run_in_subprocess = lambda inspect: inspect()  # noqa: SLF001

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if pid := os.fork():
            print(pid, file=out, flush=True)
            continue
        out.close()
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        sys.argv = ["vllm", *request["arguments"]]
        code = 1
        try:
            entry.main()
            code = 0
        except BaseException:  # noqa: BLE001 - SystemExit, too: the forked process must not read the next request
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
