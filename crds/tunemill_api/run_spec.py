"""What the operator tells a stage: the RunSpec. On one machine `tunemill-trainer run` makes it."""

from typing import Annotated, Final

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.status import PreparedFacts, Rival

UID: Final = r"[-A-Za-z0-9]*"
"""What the uid of an object may be, as a regular expression; the API server makes them."""
CLUSTER_NAME: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
"""What a cluster may be called, as a regular expression."""


class RunSpec(ApiModel):
    """One run as a stage sees it: the user's wish, and what earlier stages found.

    Secrets are not in it: a stage reads them from the folders that `constants.SECRETS_DIRECTORY` describes.
    """

    namespace: str
    """The object's namespace; for messages and the model card."""
    name: Annotated[str, Field(min_length=1)]
    """The object's name; for messages and the model card."""
    uid: Annotated[str, Field(pattern=rf"^{UID}$")] = ""
    """The object's uid; empty on one machine. With `cluster`, it tells whose references in the workspace are whose."""
    cluster: Annotated[str, Field(pattern=rf"^({CLUSTER_NAME})?$")] = ""
    """The name that the platform team gave the cluster; empty when it has none, and on one machine."""
    run_id: str
    """Identifies the run in logs, the model card and the workspace's progress."""
    spec: FineTuneSpec
    """The wish, with all defaults."""
    prepared: PreparedFacts | None = None
    """What prepare found; None while prepare itself is running."""
    keys: dict[str, str] = {}
    """The keys of the outputs of train, evaluate and publish, by stage, once prepare is done. A stage uses them as they
    are: they may be those of an older version. Empty on one machine, where they follow from the spec."""
    memory_kills: Annotated[int, Field(ge=0)] = 0
    """Pods of train and evaluate that needed more memory than their limit; each halves what is computed at once."""
    local: bool = False
    """Whether this is a run of `tunemill-trainer run`, whose spec may name files and folders of its machine. In a pod
    they would be the pod's own, with its credentials among them: a stage refuses them."""
    rival: Rival | None = None
    """The published model to compare with, with spec.retrain.promote IfBetter."""
