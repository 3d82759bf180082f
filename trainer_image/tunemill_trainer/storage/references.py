"""Which outputs of the workspace the runs of an object refer to, and the removal of those that no run refers to.

    PREFIX/runs/@<cluster>/<namespace>/<name>/<uid>/<run>/<stage>/<key>      a reference: an empty object
    PREFIX/runs/<namespace>/<name>/<run>/<stage>/<key>                       one of an older version

Outputs are shared: two objects with the same wish have the same keys. So a stage refers to all outputs of its run
before it looks which of them are there, and an output goes only when the last reference to it goes. Where both happen
at the same moment, a later stage finds its input gone, and the run begins again with prepare: time is lost, nothing
else.

Clusters and laptops may share a workspace, with objects of the same names. A run drops references of its own object
only: those with its uid or, in a cluster with a name, those of all objects that ever had its name there. References of
older versions name neither. Nobody knows whose they are, so they stay.
"""

import logging
from datetime import datetime

from tunemill_api import keys
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage

from tunemill_trainer.errors import StageError
from tunemill_trainer.storage import output_keys
from tunemill_trainer.storage.workspace import Workspace

BASE_REPLIES = "base-replies"
"""Where the workspace keeps the base model's replies; the key is without the adapter, so that each is asked once."""
_RUNS = "runs/"
_NO_UID = "local"
"""Stands for the uid on one machine, where each object has one run only."""
_STAGES = {*Stage, BASE_REPLIES}

_log = logging.getLogger(__name__)


def refer(workspace: Workspace, run: RunSpec, prepared: str) -> None:
    """Refer to everything that the run makes or uses, whether it is there or not.

    Args:
        workspace: holds the outputs.
        run: the run.
        prepared: the key of prepare's output.
    """
    evaluate = output_keys.evaluate(run, prepared)
    used = [
        (Stage.PREPARE, prepared),
        (Stage.TRAIN, output_keys.train(run, prepared)),
        (BASE_REPLIES, keys.base_evaluation_key(prepared, run.spec)),
        (Stage.EVALUATE, evaluate),
        (Stage.PUBLISH, output_keys.publish(run, prepared, draft=False)),
        # Before the evaluation it is not known which of the two there will be.
        (Stage.PUBLISH, keys.publish_key(evaluate, run.spec, draft=True)),
    ]
    if run.rival and run.rival.train:
        used += [(Stage.PREPARE, run.rival.prepare), (Stage.TRAIN, run.rival.train)]
    for stage, key in used:
        workspace.mark(f"{_of_run(run)}{stage}/{key}")


def prune(workspace: Workspace, run: RunSpec) -> None:
    """Remove the outputs that only runs of this object before its last spec.workspace.keepRuns ones refer to.

    A server that does not let it is no reason to fail: the next run tries again.
    """
    try:
        _prune(workspace, run)
    except StageError as error:
        _log.warning("the outputs of earlier runs stay in the workspace: %s", error)


def _prune(workspace: Workspace, run: RunSpec) -> None:
    own = _of_object(run)
    marks = {path: time for path, time in workspace.marks(_RUNS).items() if path.split("/")[-2] in _STAGES}
    last_used: dict[str, datetime] = {}
    for path, time in marks.items():
        if path.startswith(own):
            of_run = path.rsplit("/", 2)[0] + "/"
            last_used[of_run] = max(time, last_used.get(of_run, time))
    present_first = sorted(last_used, key=lambda folder: (folder == _of_run(run), last_used[folder]), reverse=True)
    dropped = tuple(present_first[run.spec.workspace.keep_runs :])
    kept = {_output(path) for path in marks if not path.startswith(dropped)}
    for output in sorted({_output(path) for path in marks if path.startswith(dropped)} - kept):
        _log.info("no run refers to %s any more: it is removed from the workspace", output)
        workspace.remove(output)
    # The references go last: whoever is interrupted here finds again next time what was to be removed.
    for folder in dropped:
        workspace.remove(folder)


def _of_object(run: RunSpec) -> str:
    """Return where the references lie that a run may drop."""
    return _of_name(run) if run.cluster else _of_uid(run)


def _of_run(run: RunSpec) -> str:
    return f"{_of_uid(run)}{run.run_id}/"


def _of_uid(run: RunSpec) -> str:
    return f"{_of_name(run)}{run.uid or _NO_UID}/"


def _of_name(run: RunSpec) -> str:
    # No namespace begins with "@": an older version takes these for references of another object, and keeps them.
    return f"{_RUNS}@{run.cluster}/{run.namespace}/{run.name}/"


def _output(reference: str) -> str:
    """Return the folder of the output that a reference is to."""
    stage, key = reference.split("/")[-2:]
    return f"{stage}/{key}/"
