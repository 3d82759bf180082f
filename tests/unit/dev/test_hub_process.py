"""The Hub as a separate process, as used by the pod and the training libraries."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import HfHubHTTPError
from tunemill_dev.cluster.ports import free_ports

ACCOUNTS: dict[str, object] = {
    "users": {"alice": {"acme": "write"}},
    "tokens": [{"value": "token-of-alice", "user": "alice", "role": "write"}],
}

ROUND_TRIP = """
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = {word: index for index, word in enumerate(["<unk>", "<eos>", "call", "the", "tool"])}
fast = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
fast.pre_tokenizer = pre_tokenizers.Whitespace()
shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
LlamaForCausalLM(LlamaConfig(**shape)).push_to_hub("acme/base", private=True)
PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>", eos_token="<eos>").push_to_hub("acme/base")

tokenizer = AutoTokenizer.from_pretrained("acme/base")
base = AutoModelForCausalLM.from_pretrained("acme/base")
tokens = tokenizer("call the tool", return_tensors="pt")
assert tokens["input_ids"].tolist() == [[2, 3, 4]]

adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
adapted.push_to_hub("acme/adapter", private=True)
with torch.no_grad():
    here = adapted.eval()(**tokens).logits
    there = AutoPeftModelForCausalLM.from_pretrained("acme/adapter").eval()(**tokens).logits
    plain = AutoModelForCausalLM.from_pretrained("acme/base").eval()(**tokens).logits
torch.testing.assert_close(here, there)
assert not torch.allclose(here, plain)
"""


def eventually(check: Callable[[], object], seconds: float = 30) -> None:
    """Waits until `check` neither raises nor gives something false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
            failure: Exception | None = None
        except Exception as error:  # noqa: BLE001 - reported below when time is up
            failure = error
        assert time.monotonic() < deadline, f"did not come true in {seconds} s: {failure!r}"
        time.sleep(0.05)


@contextmanager
def running_hub(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The server as the pod starts it; yields its URL and its process."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tunemill_dev.hub", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--data", str(folder / "data"), "--accounts", str(folder / "accounts.json")]
    process = subprocess.Popen(command, env=os.environ | {"HUB_ADMIN_TOKEN": "token-of-the-test"})
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: get_session().get(f"{url}/healthz").status_code == 200)
        yield url, process
    finally:
        process.kill()
        process.wait()


def write_accounts(folder: Path, accounts: dict[str, object]) -> None:
    """Replaces the file in one step, as the kubelet does with a mounted Secret."""
    (folder / "new.json").write_text(json.dumps(accounts))
    (folder / "new.json").replace(folder / "accounts.json")


def test_accounts_are_reloaded_when_their_file_changes(tmp_path: Path) -> None:
    """Tokens can be added and revoked without a restart; an invalid file changes nothing."""
    write_accounts(tmp_path, ACCOUNTS)
    with running_hub(tmp_path) as (url, _):
        old, new = (HfApi(endpoint=url, token=token) for token in ("token-of-alice", "another-token"))
        assert old.whoami()["name"] == "alice"
        write_accounts(tmp_path, {"users": "broken"})
        assert old.whoami()["name"] == "alice"
        tokens = [{"value": "another-token", "user": "alice", "role": "read"}]
        write_accounts(tmp_path, ACCOUNTS | {"tokens": tokens})
        assert new.whoami()["auth"]["accessToken"]["role"] == "read"
        with pytest.raises(HfHubHTTPError):
            old.whoami()


def test_the_hub_stops_on_sigterm_and_restarts_with_its_content(tmp_path: Path) -> None:
    """It exits with 0, and a new process serves the stored content."""
    write_accounts(tmp_path, ACCOUNTS)
    with running_hub(tmp_path) as (url, process):
        HfApi(endpoint=url, token="token-of-alice").create_repo("acme/tools", private=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    with running_hub(tmp_path) as (url, _):
        assert HfApi(endpoint=url, token="token-of-alice").model_info("acme/tools").private is True


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "No such file"), ("{", "Invalid JSON"), ('{"users": {}, "token": []}', "token: Extra inputs")],
)
def test_invalid_accounts_fail_the_startup(tmp_path: Path, content: str | None, complaint: str) -> None:
    """One line has the file and the error; no traceback."""
    if content is not None:
        (tmp_path / "accounts.json").write_text(content)
    options = ["--data", str(tmp_path / "data"), "--accounts", str(tmp_path / "accounts.json")]
    done = subprocess.run(
        [sys.executable, "-m", "tunemill_dev.hub", *options], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "accounts.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_transformers_and_peft_work_with_the_hub(tmp_path: Path) -> None:
    """A model, its tokenizer and a LoRA adapter are pushed, and loaded by name through HF_ENDPOINT."""
    write_accounts(tmp_path, ACCOUNTS)
    with running_hub(tmp_path) as (url, _):
        hugging_face = {"HF_ENDPOINT": url, "HF_TOKEN": "token-of-alice", "HF_HOME": str(tmp_path / "hf")}
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", ROUND_TRIP],
            env=os.environ | hugging_face | quiet,
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        info = HfApi(endpoint=url, token="token-of-alice").model_info("acme/base")
        assert info.safetensors is not None
        assert info.safetensors.total > 0
