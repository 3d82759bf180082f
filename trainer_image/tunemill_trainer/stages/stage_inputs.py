"""Fetches the output of prepare for the later stages, and checks it against the spec and the facts of the run.

The digests of a manifest protect against damage only: a user who can write to the bucket can write a manifest, too. So
each stage checks that base model and data are those of the run.
"""

import json
from collections.abc import Callable, Collection
from typing import TypeVar

from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import StatusModel

from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import Prepared
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.storage.workspace import Manifest

Facts = TypeVar("Facts", bound=StatusModel)

_REMEDY = "Find out who else writes to spec.workspace.uri. The output was removed, and prepare runs again."


def fetch_prepared(context: StageContext, *, without: Collection[str] = ()) -> Prepared:
    """Download the output of prepare into the folder `prepared`, and check that it belongs to this run.

    Args:
        context: the context of the stage.
        without: paths of the output that are not needed.

    Raises:
        StageError: StageOutputMissing, when it is missing, damaged, or has another base model or other data.
    """
    key, folder = context.prepared.key, context.folder("prepared")
    manifest = context.workspace.fetch(Stage.PREPARE, key, folder, without=without)
    prepared = Prepared(folder)
    different = _differences(context, manifest, prepared)
    if different:
        context.workspace.remove_manifest(Stage.PREPARE, key)
        raise StageError(
            Reason.STAGE_OUTPUT_MISSING,
            f"the output of prepare in the workspace does not belong to this run: {'; '.join(different)}",
            _REMEDY,
        )
    return prepared


def committed_by_first(
    context: StageContext, stage: Stage, key: str, facts: type[Facts], commit: Callable[[], Facts]
) -> Facts:
    """Return the facts of a stage. Only rank 0 commits its output; the others wait until it has.

    Args:
        context: of the stage.
        stage: the stage.
        key: of its output.
        facts: the type of its facts.
        commit: commits the output and returns its facts.

    Raises:
        StageError: StageOutputMissing, when somebody has removed the output; PeerLost; what `commit` raises.
    """
    if context.ranks.first:
        committed = commit()
        context.ranks.finish()
        return committed
    context.ranks.finish()
    manifest = context.workspace.manifest(stage, key)
    if manifest is None:
        raise StageError(Reason.STAGE_OUTPUT_MISSING, f"the output of {stage} was removed after its commit")
    return facts.model_validate(manifest.facts)


def _differences(context: StageContext, manifest: Manifest, prepared: Prepared) -> list[str]:
    try:
        base, adapter = prepared.base_model(), prepared.adapter()
        digest = base.digest
    except (OSError, ValueError, TypeError) as error:
        return [f"its base-model.json or adapter.json cannot be parsed ({error})"]
    known = context.prepared
    compared = [
        ("base model", context.spec.base_model.id, base.id),
        ("commit", known.base_model_revision, base.revision),
        ("commit in the manifest", known.base_model_revision, manifest.facts.get("baseModelRevision")),
        ("data in the manifest", known.dataset_digest, manifest.facts.get("datasetDigest")),
    ]
    if known.adapter or adapter:
        digests = (known.adapter.digest if known.adapter else "(none)", adapter.digest if adapter else "(none)")
        compared.append(("files of spec.baseModel.adapter to have the digest", *digests))
    if known.base_model_digest:
        compared.append(("base model's files to have the digest", known.base_model_digest, digest))
    return [
        f"expected the {what} {expected}, found {json.dumps(found)}"
        for what, expected, found in compared
        if found != expected
    ]
