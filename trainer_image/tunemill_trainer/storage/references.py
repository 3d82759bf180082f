"""References from runs to outputs in the workspace, and the removal of outputs without references.

    PREFIX/runs/@<cluster>/<namespace>/<name>/<uid>/<run>/<stage>/<key>      a reference: an empty object
    PREFIX/runs/<namespace>/<name>/<run>/<stage>/<key>                       a reference of an older version

Outputs are shared: two objects with the same spec have the same keys. So a stage writes references to all outputs of
its run before it checks which of them exist, and an output is removed only with its last reference. In a race between
both, a later stage does not find its input, and the run restarts with prepare: this costs time only.

Clusters and local runs may share a workspace and have objects with the same names. A run removes references of its own
object only: those with its uid or, in a cluster with a name, those of all objects that ever had its name there. The
references of older versions have neither uid nor cluster. Their owner is unknown, so they are kept.
"""

import logging
from collections.abc import Sequence
from datetime import datetime

from tunemill_api import keys
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import SuiteDataFacts

from tunemill_trainer.errors import StageError
from tunemill_trainer.storage import output_keys
from tunemill_trainer.storage.workspace import Workspace

BASE_REPLIES = "base-replies"
"""The stage name of stored base model replies. Their key does not depend on the adapter, so all adapters share them."""
SUITES = "suites"
"""The stage name of the rows of suites. They are not in the output of prepare, so that other suites train nothing."""
_RUNS = "runs/"
_NO_UID = "local"
"""Replaces the uid in a local run, where each object has a single run."""
_STAGES = {*Stage, BASE_REPLIES, SUITES}

_log = logging.getLogger(__name__)


def refer(workspace: Workspace, run: RunSpec, prepared: str, suites: Sequence[SuiteDataFacts] = ()) -> None:
    """Write references to all outputs that the run creates or uses, whether they exist or not.

    Args:
        workspace: the workspace.
        run: the run.
        prepared: the key of prepare's output.
        suites: the suites, with the keys of their rows.
    """
    evaluate = output_keys.evaluate(run, prepared, suites)
    used = [
        (Stage.PREPARE, prepared),
        (Stage.TRAIN, output_keys.train(run, prepared)),
        (BASE_REPLIES, keys.base_evaluation_key(prepared, run.spec)),
        (Stage.EVALUATE, evaluate),
        (Stage.PUBLISH, output_keys.publish(run, prepared, suites, draft=False)),
        # Before the evaluation, it is not known whether there will be a release or a draft.
        (Stage.PUBLISH, keys.publish_key(evaluate, run.spec, draft=True)),
    ]
    for suite in suites:
        used += [(SUITES, suite.key), (BASE_REPLIES, keys.base_evaluation_key(suite.key, run.spec))]
    if run.rival and run.rival.train:
        used += [(Stage.PREPARE, run.rival.prepare), (Stage.TRAIN, run.rival.train)]
    for stage, key in used:
        workspace.mark(f"{_of_run(run)}{stage}/{key}")


def prune(workspace: Workspace, run: RunSpec) -> None:
    """Remove the outputs of all but the object's last spec.workspace.keepRuns runs, unless other runs refer to them.

    An error is logged and otherwise ignored: the next run tries again.
    """
    try:
        _prune(workspace, run)
    except StageError as error:
        _log.warning("cannot remove the outputs of earlier runs from the workspace: %s", error)


def _prune(workspace: Workspace, run: RunSpec) -> None:
    own = _of_object(run)
    marks = {path: time for path, time in workspace.marks(_RUNS).items() if path.split("/")[-2] in _STAGES}
    last_used: dict[str, datetime] = {}
    for path, time in marks.items():
        if path.startswith(own):
            of_run = path.rsplit("/", 2)[0] + "/"
            last_used[of_run] = max(time, last_used.get(of_run, time))
    current_first = sorted(last_used, key=lambda folder: (folder == _of_run(run), last_used[folder]), reverse=True)
    dropped = tuple(current_first[run.spec.workspace.keep_runs :])
    kept = {_output(path) for path in marks if not path.startswith(dropped)}
    for output in sorted({_output(path) for path in marks if path.startswith(dropped)} - kept):
        _log.info("removing %s from the workspace: no run refers to it", output)
        workspace.remove(output)
    # Remove the references last, so that an interrupted removal is completed next time.
    for folder in dropped:
        workspace.remove(folder)


def _of_object(run: RunSpec) -> str:
    """Return the prefix of the references that a run may remove."""
    return _of_name(run) if run.cluster else _of_uid(run)


def _of_run(run: RunSpec) -> str:
    return f"{_of_uid(run)}{run.run_id}/"


def _of_uid(run: RunSpec) -> str:
    return f"{_of_name(run)}{run.uid or _NO_UID}/"


def _of_name(run: RunSpec) -> str:
    # No namespace begins with "@", so older versions treat these as references of other objects, and keep them.
    return f"{_RUNS}@{run.cluster}/{run.namespace}/{run.name}/"


def _output(reference: str) -> str:
    """Return the folder of the output to which a reference points."""
    stage, key = reference.split("/")[-2:]
    return f"{stage}/{key}/"
