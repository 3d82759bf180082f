"""Workspace of an object: with a folder for its namespace, unless an older version started elsewhere."""

from tunemill_api.finetune import FineTuneSpec, Workspace, effective_workspace, workspace_of

from tunemill_operator.engine.objects import FineTune


def workspace_for(finetune: FineTune, spec: FineTuneSpec) -> Workspace:
    """Return the workspace of the object's runs.

    Older versions used no folder for the namespace. Their outputs stay in place until spec.workspace is changed. The
    recorded workspace is either one of an older version or contains the namespace, so it cannot be that of another
    object.
    """
    older, own = effective_workspace(spec), workspace_of(spec, finetune.meta.namespace)
    begun_by_older_version = finetune.status.run is not None and not finetune.status.workspace
    return older if begun_by_older_version or finetune.status.workspace == older.uri else own
