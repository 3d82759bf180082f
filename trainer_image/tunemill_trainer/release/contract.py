"""The serving contract: the server, model, chat template, tool-call parser and flags with which to serve a release.

It is published as serving.json, in the model card, and in status.published.
"""

import shlex
from dataclasses import dataclass
from typing import Any

from tunemill_api.local_files import is_local, local_path
from tunemill_api.publish import ServingTarget
from tunemill_api.status import ServingFacts

from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.prepared import BaseModel
from tunemill_trainer.release.artifacts import Artifacts
from tunemill_trainer.release.local_releases import path_of
from tunemill_trainer.release.servability import Verdict

CONTRACT = "serving.json"
TEMPLATE = "chat_template.jinja"

_REGIONS: dict[ReplyFormat, dict[str, Any]] = {
    ReplyFormat.HERMES: {
        "open_pattern": r"\s*<tool_call>",
        "close": "</tool_call>",
        "content": "json",
        "transform": {"type": "function", "function": "{content}"},
    },
    ReplyFormat.FUNCTIONGEMMA: {
        "open_pattern": r"\s*<start_function_call>call:(?P<name>[^{]+)",
        "close": "<end_function_call>",
        "content": "json",
        "content_args": {"unquoted_keys": True, "string_delims": [["<escape>", "<escape>"]]},
        "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
    },
}
"""The response template of Transformers for tool calls, by call format."""


@dataclass(frozen=True)
class Launch:
    """What a server loads, and with which flags.

    Attributes:
        target: the server, not None.
        model: the full model or, with an adapter, the base model: a repository or a folder.
        revision: the commit of a repository; empty for a folder.
        name: the model's name in requests to vLLM.
        parser: vLLM's tool-call parser; empty when it has none for the call format.
        adapter: the folder of the adapter, with tokenizer and chat template; empty for a full model.
        max_rank: the value of `--max-lora-rank`.
        reasoning_parser: vLLM's parser of reasoning; empty when the model does not reason.
    """

    target: ServingTarget
    model: str
    revision: str
    name: str
    parser: str
    adapter: str = ""
    max_rank: int = 0
    reasoning_parser: str = ""

    @property
    def served_name(self) -> str:
        """The model's name in requests."""
        if self.target is ServingTarget.VLLM:
            return self.name
        return f"{self.model}@{self.revision}" if self.revision else self.model

    @property
    def chat_flags(self) -> list[str]:
        """The flags with which vLLM renders messages as in training, and parses calls and reasoning."""
        calls = ["--enable-auto-tool-choice", "--tool-call-parser", self.parser] if self.parser else []
        reasoning = ["--reasoning-parser", self.reasoning_parser] if self.reasoning_parser else []
        # Otherwise vLLM gives lists of parts to templates that read them, and some templates, such as that of Gemma 4,
        # render a list with other spaces than a text.
        return ["--chat-template-content-format", "string", *calls, *reasoning]

    def flags(self) -> list[list[str]]:
        """Return the arguments of `vllm serve` or `transformers serve`, the model first, in groups of one line each."""
        if self.target is ServingTarget.TRANSFORMERS:
            return [[self.served_name]]
        pinned = ["--revision", self.revision] if self.revision else []
        if not self.adapter:
            groups = [
                [self.model],
                pinned,
                ["--tokenizer-revision", self.revision] if self.revision else [],
                ["--served-model-name", self.name],
                self.chat_flags,
            ]
        else:
            # From a folder: vLLM loads an adapter by repository name at its newest commit, without its tokenizer and
            # chat template.
            lora = ["--enable-lora", "--max-lora-rank", str(self.max_rank)]
            folder = self.adapter
            groups = [
                [self.model, *pinned],
                [*lora, "--lora-modules", f"{self.name}={folder}"],
                ["--tokenizer", folder, "--chat-template", f"{folder}/{TEMPLATE}", "--generation-config", folder],
                self.chat_flags,
            ]
        return [group for group in groups if group]

    def command(self) -> str:
        """Return the command for a shell."""
        program = "transformers" if self.target is ServingTarget.TRANSFORMERS else "vllm"
        return f"{program} serve " + " \\\n    ".join(map(shlex.join, self.flags()))


@dataclass(frozen=True)
class Contract:
    """The inputs of the serving contract.

    Attributes:
        target: the server.
        base: the base model of the adapter.
        artifacts: the repositories of the release.
        verdict: whether the server can load the adapter.
        call_format: the format in which the model writes calls.
        reasoning: vLLM's parser of reasoning; empty when the model does not reason.
    """

    target: ServingTarget
    base: BaseModel
    artifacts: Artifacts
    verdict: Verdict
    call_format: ReplyFormat
    reasoning: str = ""

    @property
    def serves_adapter(self) -> bool:
        """Whether the server loads the adapter, and not the merged model."""
        return bool(self.artifacts.adapter) and self.verdict.servable

    @property
    def served(self) -> str:
        """The repository that the server loads; empty when the server can load nothing of the release."""
        if self.target is ServingTarget.NONE:
            return ""
        return self.artifacts.adapter if self.serves_adapter else self.artifacts.whole

    @property
    def parser(self) -> str:
        """The server's name for its tool-call parser; empty when it has none for this format."""
        if self.target is ServingTarget.TRANSFORMERS:
            return "response_template" if self.call_format in _REGIONS else ""
        return self.call_format.vllm_parser

    @property
    def reasoning_parser(self) -> str:
        """The server's name for its parser of reasoning; empty when none is needed."""
        return self.reasoning if self.target is ServingTarget.VLLM else ""

    def serving(self, revisions: dict[str, str], proof: str = "") -> ServingFacts | None:
        """Return the serving contract; None with the target None.

        Args:
            revisions: commit, tag or branch per repository.
            proof: what was verified, for status.
        """
        if self.target is ServingTarget.NONE:
            return None
        served = self.served
        why_not = "; ".join(self.verdict.problems) if self.artifacts.adapter else ""
        if not served:
            why_not += "; add Merged to spec.publish.artifacts to publish the merged model, too"
        return ServingFacts(
            target=self.target.value,
            model=f"{served}@{revisions[served]}" if served else "",
            merged=bool(served) and not self.serves_adapter,
            adapter_servable=self.serves_adapter,
            reason=why_not,
            tool_call_parser=self.parser,
            reasoning_parser=self.reasoning_parser,
            command=self._command(served, revisions[served]) if served else "",
            proof=proof if served else "",
        )

    def launch(self, revision: str) -> Launch:
        """Return how the served repository is started at a revision. `served` must not be empty."""
        served, local = self.served, is_local(self.served)
        name = served.rsplit("/", 1)[-1]
        place = str(path_of(local_path(served), revision)) if local else served
        if not self.serves_adapter:
            pinned = "" if local else revision
            return Launch(self.target, place, pinned, name, self.parser, reasoning_parser=self.reasoning_parser)
        return Launch(
            self.target,
            model=self.base.place,
            revision="" if is_local(self.base.id) else self.base.revision,
            name=name,
            parser=self.parser,
            adapter=place if local else f"./{name}",
            max_rank=self.verdict.max_rank,
            reasoning_parser=self.reasoning_parser,
        )

    def _command(self, served: str, revision: str) -> str:
        launch = self.launch(revision)
        command = launch.command()
        if not launch.adapter or is_local(served):
            return command
        download = ["hf", "download", served, "--revision", revision, "--local-dir", launch.adapter]
        return f"{shlex.join(download)}\n{command}"


def response_template(call_format: ReplyFormat, head: str, stops: list[str]) -> dict[str, Any] | None:
    """Return `response_template` of tokenizer_config.json, with which Transformers parses tool calls.

    Args:
        call_format: the format in which the model writes calls.
        head: the generation prompt: the text of the chat template before a reply.
        stops: the stop tokens as text.

    Returns:
        None for a call format that Transformers cannot parse, or without a generation prompt.
    """
    if call_format not in _REGIONS or not head:
        return None
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": head,
        "fields": {
            "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
            "tool_calls": {**_REGIONS[call_format], "repeats": True},
            "content": {"close": stops, "content": "text"},
        },
    }
