"""The folder that is published: adapter, tokenizer and chat template as train left them, card, pictures and facts."""

import json
import shutil
from pathlib import Path

from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.release.card import ReleaseFacts, model_card
from tunemill_trainer.release.pictures import draw_scores
from tunemill_trainer.release.push import CONTENTS, contents


def assemble(trained: Path, facts: ReleaseFacts, folder: Path) -> None:
    """Fill a folder with the release. The same inputs give the same bytes, so that a repeated push changes nothing.

    Args:
        trained: the output of train.
        facts: all that the card tells.
        folder: empty.
    """
    shutil.copytree(trained / "adapter", folder, dirs_exist_ok=True)
    shutil.copy(trained / "loss.png", folder / "loss.png")
    draw_scores(facts.report, folder / "scores.png")
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
    (folder / CONTENTS).touch()
    text = json.dumps(_record(facts, contents(folder)), indent=2, ensure_ascii=False)
    (folder / CONTENTS).write_text(text + "\n", encoding="utf-8")


def _record(facts: ReleaseFacts, files: list[str]) -> JsonObject:
    """Return the facts for machines. Where data and workspace lie is nobody's business."""
    spec = facts.run.spec
    trained = facts.trained.model_dump(mode="json", by_alias=True, exclude={"adapter"})
    return {
        "name": facts.run.name,
        "run": facts.run.run_id,
        "baseModel": {"id": facts.base.id, "revision": facts.base.revision},
        "dataset": {"digest": facts.prepared.dataset_digest, **facts.prepared.dataset.model_dump(by_alias=True)},
        "tokenizer": {"mode": facts.tokens.mode, "added": [token.token for token in facts.tokens.added]},
        "stopTokenIds": list(facts.tokens.stop_token_ids),
        "adapter": spec.adapter.model_dump(mode="json", by_alias=True),
        "training": spec.training.model_dump(mode="json", by_alias=True),
        "trained": trained,
        "metrics": [metric.model_dump(mode="json", by_alias=True) for metric in facts.evaluation.metrics],
        "gates": [gate.model_dump(mode="json", by_alias=True) for gate in facts.gates],
        "files": list(files),
    }
