"""Publish: gates, the release, the push, the proof. Nothing unproven ever comes to the user's branch.

A release goes to a branch of its own first. What a user would download from there has to answer as the trained
model does; only then the same files are committed to the user's branch, where a comparison of digests shows that they
are the same, and tagged. The Hub keeps contents by digest, so that the second commit uploads nothing.

A merged model beside an adapter has a repository of its own and comes first: the adapter's contract names its commit.

What misses a gate may go to a branch for drafts in place of the user's, without a tag, and otherwise by the same way.
"""

import logging
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tunemill_api import gates
from tunemill_api.constants import PUBLIC_HUB
from tunemill_api.failures import Reason
from tunemill_api.local_files import is_local, local_path
from tunemill_api.stage_report import Stage
from tunemill_api.status import EvaluationFacts, GateFacts, PublishedFacts, TrainedFacts

from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.judge.report import CASES_FILE, REPORT_FILE, Report
from tunemill_trainer.prepared import TRAIN_FILE
from tunemill_trainer.release import artifacts, merged, proof, provenance, servability
from tunemill_trainer.release.card import ReleaseFacts, hub_dataset
from tunemill_trainer.release.contract import Contract
from tunemill_trainer.release.folder import assemble
from tunemill_trainer.release.local_releases import LocalReleases, path_of
from tunemill_trainer.release.proof import Behaviour
from tunemill_trainer.release.provenance import PROVENANCE
from tunemill_trainer.release.push import Repository
from tunemill_trainer.release.servability import Verdict
from tunemill_trainer.release.signing import KeyFormatError, SigningKey
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.stages.stage_inputs import fetch_prepared
from tunemill_trainer.storage.hub import Hub

PUBLISHED_FILE = "published.json"

_log = logging.getLogger(__name__)


def run(context: StageContext) -> tuple[PublishedFacts, bool]:
    """Publish what `context.train_key` stands for, unless the branch still holds it.

    Returns:
        Where it lies, and whether anything had to be done.

    Raises:
        StageError: GateNotPassed before anything else; HubWriteDenied and its like; ProofFailed.
    """
    spec = context.spec
    judged = context.workspace.fetch(Stage.EVALUATE, context.evaluate_key, context.folder("evaluation"))
    evaluation = EvaluationFacts.model_validate(judged.facts)
    decisions = gates.decide(spec.evaluation.gates, evaluation)
    draft = gates.is_draft(spec.evaluation, evaluation)
    if draft:
        context = _towards_a_draft(context)
    elif not gates.passed(decisions):
        message = f"not published, as these gates are not passed: {gates.missed(decisions)}"
        raise StageError(Reason.GATE_NOT_PASSED, message)
    signing_key = _signing_key(context)
    hub = Hub(spec.hub.endpoint, context.credentials.hub_token("hub-write"))
    key = context.publish_key(draft=draft)
    recorded = context.workspace.manifest(Stage.PUBLISH, key)
    earlier = PublishedFacts.model_validate(recorded.facts) if recorded else None
    if earlier is not None and _still_there(context, earlier, hub, signing_key):
        return earlier, False
    if earlier is not None:
        context.workspace.withdraw(Stage.PUBLISH, key)
    hub.check_writable(spec.publish.repository)

    release = _Release(context, hub, evaluation, decisions, key, signing_key, _places(earlier))
    context.progress.report(10)
    published = release.publish()
    output = _emptied(context.folder("published"))
    for name in ("README.md", PROVENANCE):
        shutil.copy(release.folder(release.repository) / name, output / name)
    (output / PUBLISHED_FILE).write_text(published.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")
    manifest = context.workspace.commit(Stage.PUBLISH, key, output, published)
    context.progress.report(100)
    return PublishedFacts.model_validate(manifest.facts), True


def _towards_a_draft(context: StageContext) -> StageContext:
    """Return the surroundings of a run that wishes for no more than a draft."""
    # Nobody has asked for a public repository that holds nothing but a draft.
    goal = {"branch": _draft_branch(context), "tag": "", "private": True}
    publish = context.spec.publish.model_copy(update=goal)
    spec = context.spec.model_copy(update={"publish": publish})
    return replace(context, run=context.run.model_copy(update={"spec": spec}))


def _draft_branch(context: StageContext) -> str:
    """Return the branch for drafts of this model: the same one whichever gates it misses."""
    return f"tunemill-draft-{context.evaluate_key}"


def _signing_key(context: StageContext) -> SigningKey | None:
    """Return what signs the release, before anything is loaded or pushed; None when it is to be unsigned."""
    if context.spec.publish.signing is None:
        return None
    try:
        return SigningKey.read(context.credentials.signing_key().encode())
    except KeyFormatError as error:
        raise StageError(
            Reason.CREDENTIALS_MISSING,
            f"the key in the Secret of spec.publish.signing.keySecretRef cannot be used: {error}",
            "Put a key of an accepted kind into the Secret; docs/how-to/provenance.md shows how to make one.",
        ) from error


def _still_there(context: StageContext, published: PublishedFacts, hub: Hub, signing_key: SigningKey | None) -> bool:
    """Return whether the branch still holds what an earlier run published, signed by the key where there is one."""
    branch = context.spec.publish.branch
    for name, revision in _places(published).items():
        there = _repository(context, hub, name)
        if not there.offers(revision, branch):
            _log.info("the branch %s holds %s@%s no more: it is pushed again", branch, name, revision)
            return False
        if signing_key and not provenance.is_signed(_provenance_at(there, revision), signing_key):
            _log.info("%s@%s is not signed by %s: it is pushed again", name, revision, signing_key.public.key_id)
            return False
    return True


def _places(published: PublishedFacts | None) -> dict[str, str]:
    """Return repository → commit of what was published."""
    if published is None:
        return {}
    merged, _, revision = published.merged.partition("@")
    return {published.repository: published.revision, **({merged: revision} if merged else {})}


class _Release:
    """All that one run publishes: the adapter, the whole model, or both."""

    def __init__(
        self,
        context: StageContext,
        hub: Hub,
        evaluation: EvaluationFacts,
        decisions: list[GateFacts],
        key: str,
        signing_key: SigningKey | None,
        earlier: dict[str, str],
    ) -> None:
        """Fetch what the earlier stages left, and decide what is published where."""
        # Imported with torch behind it, which a gate that is not passed must not wait for.
        from tunemill_trainer.learn import models

        spec = context.spec
        self._context, self._hub, self._key, self._signing_key = context, hub, key, signing_key
        self._started = datetime.now(UTC)
        self._prepared = fetch_prepared(context, without={TRAIN_FILE})
        trained = context.workspace.fetch(Stage.TRAIN, context.train_key, context.folder("trained"))
        self._model = context.folder("trained") / "adapter"
        self._tokens, base = self._prepared.tokens(), self._prepared.base_model()
        reader = Hub(
            spec.hub.endpoint, context.credentials.hub_token("hub-read") or context.credentials.hub_token("hub-write")
        )
        self._base = models.fetch_base(reader, base, context.model_cache)
        self._is_adapter = models.is_adapter(self._model)
        verdict = Verdict((), 0)
        if self._is_adapter:
            adapter = servability.read_adapter(self._model, self._base, self._tokens.vocabulary)
            verdict = servability.judge(adapter, spec.publish.serving)
        self._chosen = artifacts.chosen(spec.publish, only_whole=not self._is_adapter, servable=verdict.servable)
        report = Report.model_validate_json((context.folder("evaluation") / REPORT_FILE).read_text(encoding="utf-8"))
        call_format = ReplyFormat(report.settings.reply_format)
        self._contract = Contract(spec.publish.serving, base, self._chosen, verdict, call_format)
        right = proof.right_calls(context.folder("evaluation") / CASES_FILE)
        self._probes = proof.probes(self._prepared.cases(), right)
        self._facts = ReleaseFacts(
            run=context.run,
            base=base,
            tokens=self._tokens,
            prepared=context.prepared,
            trained=TrainedFacts.model_validate(trained.facts),
            evaluation=evaluation,
            report=report,
            gates=tuple(decisions),
            repository=self.repository,
            with_page=self._chosen.report,
            license=reader.license(base.id, base.revision),
            public_dataset=data if (data := hub_dataset(spec.dataset.uri)) and reader.is_public_dataset(data) else "",
        )
        self._revisions = dict.fromkeys((self._chosen.adapter, self._chosen.whole), self._facts.revision)
        self._sources = provenance.Sources(
            started=self._started,
            keys={
                Stage.PREPARE.value: context.prepared.key,
                Stage.TRAIN.value: context.train_key,
                Stage.EVALUATE.value: context.evaluate_key,
                Stage.PUBLISH.value: key,
            },
            base_files=dict(base.files),
            train_image=provenance.recorded_image(context.folder("trained")),
        )
        self._proof = ""
        self._earlier = earlier

    @property
    def repository(self) -> str:
        """The repository that the user named."""
        return self._chosen.adapter or self._chosen.whole

    def folder(self, repository: str) -> Path:
        """Return where the files for a repository are collected."""
        return self._context.folder("whole" if repository == self._chosen.whole else "release")

    def publish(self) -> PublishedFacts:
        """Push and prove everything."""
        chosen, spec = self._chosen, self._context.spec
        if chosen.adapter and chosen.whole:
            self._hub.check_writable(chosen.whole)
        trained, whole = self._ask_trained()
        self._context.progress.report(40)
        if whole is not None:
            # Its own card tells how it is served itself, also where the contract prefers the adapter.
            self._push(chosen.whole, whole, replace(self._contract, artifacts=replace(chosen, adapter="")))
            self._context.progress.report(70)
        if chosen.adapter:
            folder = _emptied(self.folder(chosen.adapter))
            for source in (self._model, self._prepared.tokenizer_path):
                shutil.copytree(source, folder, dirs_exist_ok=True)
            self._push(chosen.adapter, trained, self._contract)
        revision = self._revisions[self.repository]
        url = f"{spec.hub.endpoint.rstrip('/') or PUBLIC_HUB}/{self.repository}/tree/{revision}"
        if is_local(self.repository):
            url = str(path_of(local_path(self.repository), spec.publish.branch))
        return PublishedFacts(
            repository=self.repository,
            revision=revision,
            branch=spec.publish.branch,
            tag=spec.publish.tag,
            url=url,
            merged=f"{chosen.whole}@{self._revisions[chosen.whole]}" if chosen.adapter and chosen.whole else "",
            serving=self._contract.serving(self._revisions, self._proof),
            draft=self._facts.draft,
        )

    def _ask_trained(self) -> tuple[Behaviour, Behaviour | None]:
        """Return what the trained model does, and what it does in one piece where that is published; writes that."""
        import torch
        from transformers import AutoConfig

        from tunemill_trainer.learn.devices import Device
        from tunemill_trainer.learn.models import OneModel

        dtype = AutoConfig.from_pretrained(self._base).dtype or torch.float32
        model = OneModel(self._base, Device("cpu", "cpu"), dtype).tuned(self._model, self._tokens)
        trained = self._ask(model)
        if not self._chosen.whole:
            return trained, None
        whole = trained
        if self._is_adapter:
            model = merged.merge(model)
            whole = self._ask(model)
            proof.check_merged(trained, whole, self._probes, str(dtype).removeprefix("torch."))
        folder = _emptied(self.folder(self._chosen.whole))
        merged.save_whole(model, self._prepared.tokenizer_path, folder)
        return trained, whole

    def _ask(self, model: object) -> Behaviour:
        prompts = [list(probe.case.prompt_ids) for probe in self._probes]
        return proof.behaviour(model, prompts, self._probes, self._tokens, self._context.stop.check)

    def _push(self, name: str, made: Behaviour, contract: Contract) -> None:
        """Complete the folder of a repository and bring it to the user's branch there, proven."""
        context, publish = self._context, self._context.spec.publish
        folder = self.folder(name)
        facts = replace(
            self._facts, repository=name, whole=name == self._chosen.whole, serving=contract.serving(self._revisions)
        )
        assemble(folder, facts, context.folder("trained"), context.folder("evaluation"))
        repository = _repository(context, self._hub, name)
        repository.create(private=publish.private)
        # A part of the same commit: there is no release without it, and no statement of what was not released.
        (folder / PROVENANCE).write_bytes(
            provenance.document(
                provenance.statement(folder, facts, self._sources, datetime.now(UTC)),
                self._signing_key,
                _provenance_at(repository, publish.branch),
                _provenance_at(repository, self._earlier[name]) if name in self._earlier else None,
            )
        )

        def prove(commit: str) -> None:
            there = repository.download(commit, _emptied(context.folder("downloaded")))
            published = proof.published_behaviour(there, self._tokens, self._probes, context.stop.check)
            proof.check_same(made, published, self._probes)
            if contract.served == name:
                self._proof = proof.check_contract(
                    there, contract, published, self._probes, self._tokens.stop_token_ids
                )

        message = f"{'Draft of' if facts.draft else 'Publish'} {context.run.name}"
        commit = repository.put_proven(folder, publish.branch, f"tunemill-{self._key}", message, prove)
        if publish.tag:
            repository.tag(publish.tag, commit)
        if not facts.draft:
            repository.clear(_draft_branch(context))
        self._revisions[name] = commit


def _repository(context: StageContext, hub: Hub, name: str) -> Repository | LocalReleases:
    if is_local(name):
        return LocalReleases(local_path(name))
    return Repository(hub.api, name, lambda seconds: _pause(context, seconds))


def _provenance_at(repository: Repository | LocalReleases, revision: str) -> bytes | None:
    return repository.read(PROVENANCE, revision, provenance.LARGEST_BYTES)


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
