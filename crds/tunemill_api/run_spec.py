"""The RunSpec, which the operator passes to a stage. `tunemill run` builds one for a local run."""

from typing import Annotated, Final

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.status import PreparedFacts, Rival

UID: Final = r"[-A-Za-z0-9]*"
"""Regular expression for an object's uid. The API server generates uids."""
CLUSTER_NAME: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
"""Regular expression for the name of a cluster."""


class RunSpec(ApiModel):
    """The input of a stage: the user's spec, and the results of earlier stages.

    It contains no secrets. A stage reads them from the directories described in `constants.SECRETS_DIRECTORY`.
    """

    namespace: str
    """Namespace of the object, for messages and the model card."""
    name: Annotated[str, Field(min_length=1)]
    """Name of the object, for messages and the model card."""
    uid: Annotated[str, Field(pattern=rf"^{UID}$")] = ""
    """Uid of the object; empty for a local run. Together with `cluster` it identifies the owner of references in the
    workspace."""
    cluster: Annotated[str, Field(pattern=rf"^({CLUSTER_NAME})?$")] = ""
    """Name of the cluster as set by the platform team. Empty if none is set, and for a local run."""
    run_id: str
    """ID of the run in logs, the model card and the workspace's progress."""
    spec: FineTuneSpec
    """The spec, with all defaults filled in."""
    prepared: PreparedFacts | None = None
    """Results of prepare; None while prepare itself runs."""
    keys: dict[str, str] = {}
    """Keys of the outputs of train, evaluate and publish, by stage, once prepare has finished. A stage uses them
    unchanged, because they may have been computed by an older version. Empty for a local run, where they are computed
    from the spec."""
    memory_kills: Annotated[int, Field(ge=0)] = 0
    """Number of train pods that exceeded their memory limit. Each halves the batch that is computed at once."""
    local: bool = False
    """Whether this is a local run by `tunemill run`, whose spec may refer to files of the machine. In a pod
    such paths would be the pod's own files, including its credentials, so stages refuse them."""
    rival: Rival | None = None
    """The published model to compare with, for spec.retrain.promote IfBetter."""
