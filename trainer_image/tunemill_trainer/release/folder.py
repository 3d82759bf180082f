"""Assembles the folders that are published: model, tokenizer, card, pictures, serving contract and tunemill.json."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tunemill_api.status import ServingFacts

from tunemill_trainer.chat.rendering import ChatTemplate
from tunemill_trainer.data.rows import Message, Role
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.learn.curve import read_record
from tunemill_trainer.prepared import BaseModel, Tokens
from tunemill_trainer.release import labels
from tunemill_trainer.release.card import ReleaseFacts, model_card
from tunemill_trainer.release.contract import CONTRACT, TEMPLATE, response_template
from tunemill_trainer.release.manifests import MANIFESTS, serving_manifests
from tunemill_trainer.release.page import PAGE_FILE
from tunemill_trainer.release.pictures import draw_loss, draw_scores
from tunemill_trainer.release.provenance import files_of
from tunemill_trainer.release.push import CONTENTS, contents


def assemble(folder: Path, facts: ReleaseFacts, trained: Path, evaluation: Path) -> None:
    """Add the remaining files of a release to a folder with a model and its tokenizer.

    provenance.json and its signature stay empty. The same inputs give the same bytes, so that a repeated push changes
    nothing.

    Args:
        folder: holds an adapter or a full model.
        facts: the content of the model card.
        trained: the output folder of train.
        evaluation: the output folder of evaluate.
    """
    _add_response_template(folder, facts.tokens, ReplyFormat(facts.report.settings.reply_format))
    if not facts.whole:
        _pin_base_model(folder / "adapter_config.json", facts.base)
    _write(folder / "generation_config.json", generation_config(facts.tokens))
    if facts.serving is not None:
        _write(folder / CONTRACT, _contract(facts.serving, facts.tokens, facts.report.settings.reply_format))
    if facts.serving is not None and facts.launch is not None:
        served, _, revision = facts.serving.model.rpartition("@")
        call_format = ReplyFormat(facts.report.settings.reply_format)
        manifests = serving_manifests(facts.launch, served, revision, call_format)
        (folder / MANIFESTS).write_text(manifests, encoding="utf-8")
    _add_documents(folder, facts, trained, evaluation)


def assemble_gguf(folder: Path, facts: ReleaseFacts, trained: Path, evaluation: Path) -> None:
    """Add the remaining files of a release to a folder with a GGUF file, which has tokenizer and chat template in it.

    The arguments are those of `assemble`.
    """
    _add_documents(folder, facts, trained, evaluation)


def _add_documents(folder: Path, facts: ReleaseFacts, trained: Path, evaluation: Path) -> None:
    title, measured_on = f"{facts.run.name}: training loss", labels.measured_on(facts.prepared.dataset)
    draw_loss(read_record(trained), title, folder / "loss.png", measured_on=measured_on)
    draw_scores(facts.report, folder / "scores.png")
    if facts.with_page:
        shutil.copy(evaluation / PAGE_FILE, folder / PAGE_FILE)
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
    for written_last in (CONTENTS, *files_of(facts.run.spec)):
        (folder / written_last).touch()
    _write(folder / CONTENTS, _record(facts, contents(folder)))


def _add_response_template(folder: Path, tokens: Tokens, call_format: ReplyFormat) -> None:
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stops = [text for stop in tokens.stop_token_ids if (text := tokenizer.id_to_token(stop))]
    special = {name: value for name, value in config.items() if name.endswith("_token") and isinstance(value, str)}
    template = ChatTemplate((folder / TEMPLATE).read_text(encoding="utf-8"), special, marked=False)
    found = response_template(call_format, _generation_prompt(template), stops)
    if found is not None:
        _write(path, config | {"response_template": found})


def _pin_base_model(path: Path, base: BaseModel) -> None:
    """Name the base model and its commit in the adapter's configuration, so that PEFT loads the same weights."""
    config = json.loads(path.read_text(encoding="utf-8"))
    _write(path, config | {"base_model_name_or_path": base.place, "revision": base.revision})


def generation_config(tokens: Tokens) -> dict[str, Any]:
    """Return generation_config.json: greedy decoding and the stop tokens of the chat template.

    The base model's generation_config.json may have other stop tokens, and sampling or penalties with which the tuned
    model was not evaluated.
    """
    return {"do_sample": False, "eos_token_id": list(tokens.stop_token_ids), "pad_token_id": tokens.pad_token_id}


def _generation_prompt(template: ChatTemplate) -> str:
    """Return the text that the template writes before a reply."""
    request = [Message(Role.USER, "Hello")]
    return template.prompt(request, ()).removeprefix(template.conversation(request, ()))


def _contract(serving: ServingFacts, tokens: Tokens, call_format: str) -> dict[str, Any]:
    """Return the content of serving.json."""
    return {
        **serving.model_dump(mode="json", by_alias=True, exclude={"proof"}),
        "callFormat": call_format,
        "chatTemplate": TEMPLATE,
        "stopTokenIds": list(tokens.stop_token_ids),
        "sampling": {"temperature": 0},
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _record(facts: ReleaseFacts, files: list[str]) -> dict[str, Any]:
    """Return the content of tunemill.json. It leaves out where data and workspace are: the repository may be public."""
    spec = facts.run.spec
    trained = facts.trained.model_dump(mode="json", by_alias=True, exclude={"adapter"})
    suites = [suite.model_dump(mode="json", by_alias=True) for suite in facts.evaluation.suites]
    return {
        "name": facts.run.name,
        "run": facts.run.run_id,
        "baseModel": {"id": facts.base.id, "revision": facts.base.revision},
        **({"continuedFrom": {"id": start.id, "revision": start.revision}} if (start := facts.adapter) else {}),
        "dataset": {"digest": facts.prepared.dataset_digest, **facts.prepared.dataset.model_dump(by_alias=True)},
        "tokenizer": {"mode": facts.tokens.mode, "added": [token.token for token in facts.tokens.added]},
        "stopTokenIds": list(facts.tokens.stop_token_ids),
        "adapter": spec.adapter.model_dump(mode="json", by_alias=True),
        "training": spec.training.model_dump(mode="json", by_alias=True),
        "trained": trained,
        "metrics": [metric.model_dump(mode="json", by_alias=True) for metric in facts.evaluation.metrics],
        **({"suites": suites} if suites else {}),
        "gates": [gate.model_dump(mode="json", by_alias=True) for gate in facts.gates],
        "files": list(files),
    }
