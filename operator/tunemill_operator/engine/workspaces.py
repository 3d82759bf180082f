"""Where the outputs of an object go: into the folder of its namespace, unless an older version began elsewhere."""

from tunemill_api.finetune import FineTuneSpec, Workspace, effective_workspace, workspace_of

from tunemill_operator.engine.objects import FineTune


def place_of(finetune: FineTune, spec: FineTuneSpec) -> Workspace:
    """Return the workspace of the object's runs.

    Older versions put no namespace into it. What they began stays where its outputs are, until spec.workspace names
    another place. A recorded place is one of an older version, or holds the namespace: nobody else's can be recorded.
    """
    older, own = effective_workspace(spec), workspace_of(spec, finetune.meta.namespace)
    begun_by_older_version = finetune.status.run is not None and not finetune.status.workspace
    return older if begun_by_older_version or finetune.status.workspace == older.uri else own
