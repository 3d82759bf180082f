"""Publish: gates, the release, the push, the proof. Nothing unproven ever comes to the user's branch.

The release goes to a branch of its own first. What a user would download from there has to answer as the trained
adapter does; only then the same files are committed to the user's branch, where a comparison of digests shows that they
are the same, and tagged. The Hub keeps contents by digest, so that the second commit uploads nothing.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunemill_api import gates
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import EvaluationFacts, GateFacts, PublishedFacts, TrainedFacts

from tunemill_trainer.context import StageContext
from tunemill_trainer.errors import StageError
from tunemill_trainer.hub import Hub
from tunemill_trainer.judge.report import REPORT_FILE, Report
from tunemill_trainer.prepared import TRAIN_FILE, Prepared
from tunemill_trainer.release import proof
from tunemill_trainer.release.card import ReleaseFacts
from tunemill_trainer.release.folder import assemble
from tunemill_trainer.release.push import Repository

PUBLISHED_FILE = "published.json"

_log = logging.getLogger(__name__)


def run(context: StageContext) -> tuple[PublishedFacts, bool]:
    """Publish the adapter of `context.train_key`, unless the Hub still has it.

    Returns:
        Where it lies, and whether anything had to be done.

    Raises:
        StageError: GateNotPassed before anything else; HubWriteDenied and its like; ProofFailed.
    """
    spec = context.spec
    judged = context.workspace.fetch(Stage.EVALUATE, context.evaluate_key, context.folder("evaluation"))
    evaluation = EvaluationFacts.model_validate(judged.facts)
    decisions = _pass_gates(context, evaluation)
    hub = Hub(spec.hub.endpoint, context.credentials.hub_token("hub-write"))
    repository = Repository(hub.api, spec.publish.repository, lambda seconds: _pause(context, seconds))
    if (earlier := _still_there(context, repository)) is not None:
        return earlier, False
    hub.check_writable(spec.publish.repository)

    prepared = Prepared(context.folder("prepared"))
    context.workspace.fetch(Stage.PREPARE, context.prepared.key, context.folder("prepared"), without={TRAIN_FILE})
    trained = context.workspace.fetch(Stage.TRAIN, context.train_key, context.folder("trained"))
    facts = ReleaseFacts(
        run=context.run,
        base=prepared.base_model(),
        tokens=prepared.tokens(),
        prepared=context.prepared,
        trained=TrainedFacts.model_validate(trained.facts),
        evaluation=evaluation,
        report=Report.model_validate_json((context.folder("evaluation") / REPORT_FILE).read_text(encoding="utf-8")),
        gates=tuple(decisions),
    )
    release = _emptied(context.folder("release"))
    assemble(context.folder("trained"), facts, release)
    context.progress.report(10)
    commit = _push_proven(context, prepared, repository, release)
    if spec.publish.tag:
        repository.tag(spec.publish.tag, commit)

    published = PublishedFacts(
        repository=spec.publish.repository,
        revision=commit,
        branch=spec.publish.branch,
        tag=spec.publish.tag,
        url=f"{spec.hub.endpoint.rstrip('/') or 'https://huggingface.co'}/{spec.publish.repository}/tree/{commit}",
    )
    output = _emptied(context.folder("published"))
    shutil.copy(release / "README.md", output / "README.md")
    (output / PUBLISHED_FILE).write_text(published.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")
    manifest = context.workspace.commit(Stage.PUBLISH, context.publish_key, output, published)
    context.progress.report(100)
    return PublishedFacts.model_validate(manifest.facts), True


def _pass_gates(context: StageContext, evaluation: EvaluationFacts) -> list[GateFacts]:
    decisions = gates.decide(context.spec.evaluation.gates, evaluation)
    if not gates.passed(decisions):
        missed = "; ".join(f"{gate.gate} ({gate.message})" for gate in decisions if not gate.passed)
        raise StageError(Reason.GATE_NOT_PASSED, f"not published, as these gates are not passed: {missed}")
    return decisions


def _still_there(context: StageContext, repository: Repository) -> PublishedFacts | None:
    """Return what an earlier run published; None when there is nothing, or the Hub has it no more."""
    manifest = context.workspace.manifest(Stage.PUBLISH, context.publish_key)
    if manifest is None:
        return None
    published = PublishedFacts.model_validate(manifest.facts)
    if repository.has(published.revision):
        return published
    _log.info("%s has no commit %s any more: it is pushed again", repository.name, published.revision)
    context.workspace.withdraw(Stage.PUBLISH, context.publish_key)
    return None


def _push_proven(context: StageContext, prepared: Prepared, repository: Repository, release: Path) -> str:
    """Bring the release to the user's branch, proven, and return the commit."""
    spec = context.spec
    reader = Hub(
        spec.hub.endpoint, context.credentials.hub_token("hub-read") or context.credentials.hub_token("hub-write")
    )
    tokens, cases = prepared.tokens(), proof.probes(prepared.cases())
    # Imported with torch behind it, which a gate that is not passed must not wait for.
    from tunemill_trainer.learn import models

    base = models.fetch_base(reader, prepared.base_model())
    adapter = context.folder("trained") / "adapter"
    trained = proof.trained_behaviour(base, adapter, tokens, cases, context.stop.check)
    context.progress.report(40)

    def prove(commit: str) -> None:
        there = repository.download(commit, _emptied(context.folder("downloaded")))
        proof.check_same(trained, proof.published_behaviour(there, tokens, cases, context.stop.check), cases)
        context.progress.report(90)

    repository.create(private=spec.publish.private)
    head, message = repository.head(spec.publish.branch), f"Publish {context.run.name}"
    if repository.holds(release, head):
        prove(head)
        return head
    with _candidate(repository, f"tunemill-{context.publish_key}", head) as candidate:
        commit = repository.put(release, candidate, message)
        context.progress.report(60)
        prove(commit)
        commit = repository.put(release, spec.publish.branch, message)
    if not repository.holds(release, commit):
        raise StageError(Reason.PROOF_FAILED, f"{repository.name} at {commit} does not hold the files that were pushed")
    return commit


@contextmanager
def _candidate(repository: Repository, branch: str, head: str) -> Iterator[str]:
    """Give the release a branch of its own, which is gone afterwards; a leftover of an earlier attempt goes first."""
    repository.remove(branch)
    repository.begin(branch, head)
    try:
        yield branch
    finally:
        try:
            repository.remove(branch)
        except StageError as error:
            # Not worth a failure, nor to hide the one on its way; the next attempt removes it.
            _log.warning("branch %s of %s could not be removed: %s", branch, repository.name, error)


def _pause(context: StageContext, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        context.stop.check()
        time.sleep(min(left, 0.2))


def _emptied(folder: Path) -> Path:
    """Return the folder without what an earlier attempt on this machine left in it."""
    shutil.rmtree(folder)
    folder.mkdir()
    return folder
