"""Publish: decides the gates, and pushes, verifies and tags the release. Only verified files reach the user's branch.

A release is pushed to a temporary branch first. It is downloaded from there, as a user would, and must give the replies
of the trained model. Only then the same files are committed to the user's branch, their digests are compared, and the
commit is tagged. The Hub stores files by digest, so the second commit uploads nothing.

A merged model has a separate repository. It is pushed before the adapter, whose serving contract names its commit. So
has a GGUF file, which is written from the merged model and compared with it after the download. A container image is
pushed by its digest, verified, and then tagged.

A model that fails a gate may be pushed as a draft: to a separate branch, without a tag, in the same steps.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunemill_api import gates
from tunemill_api.constants import PUBLIC_HUB
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.local_files import is_local, local_path
from tunemill_api.stage_report import Stage
from tunemill_api.status import EvaluationFacts, GateFacts, PublishedFacts, TrainedFacts

from tunemill_trainer.bases import architectures, catalogue
from tunemill_trainer.chat.tokenizer import read_json
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.judge.report import CASES_FILE, REPORT_FILE, Report
from tunemill_trainer.prepared import TRAIN_FILE, Case, Prepared
from tunemill_trainer.release import artifacts, gguf_file, image, merged, proof, provenance, servability
from tunemill_trainer.release.artifacts import Artifacts
from tunemill_trainer.release.card import ReleaseFacts, hub_dataset
from tunemill_trainer.release.contract import TEMPLATE, Contract
from tunemill_trainer.release.folder import assemble, assemble_gguf
from tunemill_trainer.release.gguf_architecture import NotConvertibleError
from tunemill_trainer.release.keyless import (
    IdentityTokenError,
    KeylessError,
    KeylessSigner,
    SigstoreUnreachableError,
)
from tunemill_trainer.release.local_releases import LocalReleases, path_of
from tunemill_trainer.release.proof import Behaviour, Probe
from tunemill_trainer.release.provenance import Signer, Sources
from tunemill_trainer.release.push import Repository
from tunemill_trainer.release.servability import Verdict
from tunemill_trainer.release.signing import KeyFormatError, SigningKey
from tunemill_trainer.serving import served_proof
from tunemill_trainer.stages import registries
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.stages.stage_inputs import fetch_prepared
from tunemill_trainer.storage.hub import Hub
from tunemill_trainer.storage.registry import digest_of

PUBLISHED_FILE = "published.json"

_log = logging.getLogger(__name__)


def run(context: StageContext) -> tuple[PublishedFacts, bool]:
    """Publish the model of `context.train_key`, unless the branch has its release already.

    Returns:
        The facts of the published model, and whether anything was pushed.

    Raises:
        StageError: GateNotPassed, before anything else; ProofFailed; what Hub and workspace raise.
    """
    spec = context.spec
    judged = context.workspace.fetch(Stage.EVALUATE, context.evaluate_key, context.folder("evaluation"))
    evaluation = EvaluationFacts.model_validate(judged.facts)
    decisions = gates.decide(spec.evaluation.gates, evaluation)
    draft = gates.is_draft(spec.evaluation, evaluation)
    if draft:
        context = _for_draft(context)
    elif not gates.passed(decisions):
        message = f"not published, because these gates failed: {gates.missed(decisions)}"
        raise StageError(Reason.GATE_NOT_PASSED, message)
    signer = _signer(context)
    hub = Hub(spec.hub.endpoint, context.credentials.hub_token("hub-write"))
    key = context.publish_key(draft=draft)
    recorded = context.workspace.manifest(Stage.PUBLISH, key)
    earlier = PublishedFacts.model_validate(recorded.facts) if recorded else None
    if earlier is not None and _still_published(context, earlier, hub, signer):
        return earlier, False
    if earlier is not None:
        context.workspace.remove_manifest(Stage.PUBLISH, key)
    hub.check_writable(spec.publish.repository)

    release = _collect(
        context,
        hub,
        evaluation=evaluation,
        decisions=decisions,
        key=key,
        signer=signer,
        earlier=_commits(earlier),
    )
    context.progress.report(10)
    published = release.publish()
    output = _emptied(context.folder("published"))
    for name in ("README.md", *provenance.files_of(context.spec)):
        shutil.copy(release.folder(release.repository) / name, output / name)
    (output / PUBLISHED_FILE).write_text(published.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")
    manifest = context.workspace.commit(Stage.PUBLISH, key, output, published)
    context.progress.report(100)
    return PublishedFacts.model_validate(manifest.facts), True


def _for_draft(context: StageContext) -> StageContext:
    """Return the context with a spec.publish that pushes to the draft branch, without a tag."""
    # Private: a repository that is created for a draft only must not be public.
    target = {"branch": _draft_branch(context), "tag": "", "private": True}
    publish = context.spec.publish.model_copy(update=target)
    spec = context.spec.model_copy(update={"publish": publish})
    return replace(context, run=context.run.model_copy(update={"spec": spec}))


def _draft_branch(context: StageContext) -> str:
    """Return the draft branch of this model. It does not depend on which gates failed."""
    return f"tunemill-draft-{context.evaluate_key}"


def _signer(context: StageContext) -> Signer | None:
    """Return what signs, before anything is loaded or pushed; None without spec.publish.signing.

    Raises:
        StageError: CredentialsMissing, when the key or the token is missing or cannot be used; SigstoreRefused and
            SigstoreUnreachable.
    """
    signing, credentials = context.spec.publish.signing, context.credentials
    if signing is None:
        return None
    if signing.keyless:
        with _keyless_failures():
            return KeylessSigner(credentials.identity_token, credentials.trust_config())
    try:
        return SigningKey.read(credentials.signing_key().encode())
    except KeyFormatError as error:
        raise StageError(
            Reason.CREDENTIALS_MISSING,
            f"the key in the Secret of spec.publish.signing.keySecretRef cannot be used: {error}",
            "Put a key of an accepted kind into the Secret; docs/how-to/provenance.md shows how to create one.",
        ) from error


@contextmanager
def _keyless_failures() -> Iterator[None]:
    """Turn the errors of keyless signing into those of a stage."""
    try:
        yield
    except IdentityTokenError as error:
        raise StageError(
            Reason.CREDENTIALS_MISSING,
            f"spec.publish.signing.keyless is true, but {error}",
            "Remove what replaces the operator's volume with the token, for example an admission webhook.",
        ) from error
    except SigstoreUnreachableError as error:
        raise StageError(Reason.SIGSTORE_UNREACHABLE, str(error)) from error
    except KeylessError as error:
        raise StageError(Reason.SIGSTORE_REFUSED, str(error)) from error


def _still_published(context: StageContext, published: PublishedFacts, hub: Hub, signer: Signer | None) -> bool:
    """Return whether the branch still has an earlier run's release, signed by the signer if there is one."""
    branch = context.spec.publish.branch
    if published.oci and not _has_image(context, published.oci):
        _log.info("the registry no longer has %s under its tag: pushing it again", published.oci)
        return False
    for name, revision in _commits(published).items():
        repository = _repository(context, hub, name)
        if not repository.has_release(revision, branch):
            _log.info("branch %s no longer has the release %s@%s: pushing it again", branch, name, revision)
            return False
        if signer and not provenance.is_signed(_provenance_at(repository, revision, context.spec), signer):
            _log.info("%s@%s is not signed by %s: pushing it again", name, revision, signer.name)
            return False
    return True


def _has_image(context: StageContext, reference: str) -> bool:
    """Return whether the tag still points at an image, NAME@DIGEST."""
    registry = registries.open_registry(context)
    if registry is None:
        return True
    found = registry.manifest(_image_tag(context))
    return found is not None and f"{registry.name}@{digest_of(found)}" == reference


def _image_tag(context: StageContext) -> str:
    """Return the tag of the container image."""
    publish = context.spec.publish
    return publish.tag or publish.branch.replace("/", "-")


def _commits(published: PublishedFacts | None) -> dict[str, str]:
    """Return the published commit by repository."""
    if published is None:
        return {}
    others = [name.partition("@") for name in (published.merged, published.gguf) if name]
    return {published.repository: published.revision} | {name: revision for name, _, revision in others}


@dataclass
class _Release:
    """What one run publishes: the adapter, the full model, or both. Built by `_collect`.

    Attributes:
        context: of the stage.
        hub: the Hub with the token for writing.
        key: the key of the stage's output.
        signer: signs provenance.json; None leaves it unsigned.
        earlier: the commit per repository of an earlier publication of the same key.
        prepared: the output of prepare.
        model: the folder of the trained model or adapter.
        base: the folder of the base model.
        chosen: which artifacts are published, and where.
        contract: the serving contract.
        probes: the cases for the verification.
        asked: the cases for the verification by the server.
        facts: the content of the model card.
        sources: the inputs for provenance.json.
        revisions: what users load, by repository: the tag or branch before its push, the commit after it.
        verified: the summary of the verification; empty before the served repository was pushed.
        image: the container image, NAME@DIGEST; empty before it was pushed.
    """

    context: StageContext
    hub: Hub
    key: str
    signer: Signer | None
    earlier: dict[str, str]
    prepared: Prepared
    model: Path
    base: Path
    chosen: Artifacts
    contract: Contract
    probes: list[Probe]
    asked: list[Case]
    facts: ReleaseFacts
    sources: Sources
    revisions: dict[str, str]
    verified: str = ""
    image: str = ""

    @property
    def repository(self) -> str:
        """The repository of spec.publish.repository."""
        return self.chosen.adapter or self.chosen.whole

    def folder(self, repository: str) -> Path:
        """Return the local folder with the files for a repository."""
        names = {self.chosen.adapter: "release", self.chosen.gguf: "gguf"}
        return self.context.folder(names.get(repository, "whole"))

    def publish(self) -> PublishedFacts:
        """Verify and push the full model and the adapter, and return the facts for status."""
        chosen, spec = self.chosen, self.context.spec
        for name in {chosen.whole, chosen.gguf} - {"", self.repository}:
            self.hub.check_writable(name)
        trained, whole = self._local_behaviour()
        self.context.progress.report(40)
        if whole is not None and chosen.image:
            self._push_image(whole)
        if chosen.gguf:
            self._push_gguf()
        if whole is not None and chosen.whole:
            # The card of the merged model shows how to serve that model, even if the contract serves the adapter.
            self._push(chosen.whole, whole, replace(self.contract, artifacts=replace(chosen, adapter="")))
            self.context.progress.report(70)
        if chosen.adapter:
            folder = _emptied(self.folder(chosen.adapter))
            for source in (self.model, self.prepared.tokenizer_path):
                shutil.copytree(source, folder, dirs_exist_ok=True)
            self._push(chosen.adapter, trained, self.contract)
        revision = self.revisions[self.repository]
        url = f"{spec.hub.endpoint.rstrip('/') or PUBLIC_HUB}/{self.repository}/tree/{revision}"
        if is_local(self.repository):
            url = str(path_of(local_path(self.repository), spec.publish.branch))
        return PublishedFacts(
            repository=self.repository,
            revision=revision,
            branch=spec.publish.branch,
            tag=spec.publish.tag,
            url=url,
            merged=f"{chosen.whole}@{self.revisions[chosen.whole]}" if chosen.adapter and chosen.whole else "",
            gguf=f"{chosen.gguf}@{self.revisions[chosen.gguf]}" if chosen.gguf else "",
            oci=self.image,
            serving=self.contract.serving(self.revisions, self.verified),
            draft=self.facts.draft,
        )

    def _local_behaviour(self) -> tuple[Behaviour, Behaviour | None]:
        """Run the probes with the trained model, and with the full model if something needs it; save the latter.

        Returns:
            The behaviour of the trained model, and of the full model or None.

        Raises:
            StageError: ProofFailed, when merging changed the model.
        """
        from tunemill_trainer.learn import models
        from tunemill_trainer.learn.devices import Device
        from tunemill_trainer.learn.models import ModelLoader

        dtype = models.stored_dtype(self.base)
        model = ModelLoader(self.base, Device("cpu", "cpu"), dtype).tuned(self.model, self.facts.tokens)
        trained = self._run_probes(model)
        if not self.chosen.needs_whole:
            return trained, None
        whole = trained
        if models.is_adapter(self.model):
            model = merged.merge(model)
            whole = self._run_probes(model)
            proof.check_merged(trained, whole, self.probes, str(dtype).removeprefix("torch."))
        folder = _emptied(self.folder(self.chosen.whole))
        merged.save_whole(model, self.base, self.prepared.tokenizer_path, folder)
        return trained, whole

    def _run_probes(self, model: object) -> Behaviour:
        prompts = [list(probe.case.prompt_ids) for probe in self.probes]
        return proof.behaviour(model, prompts, self.probes, self.facts.tokens, self.context.stop.check)

    def _push(self, name: str, made: Behaviour, contract: Contract) -> None:
        """Assemble the files for a repository, push and verify them, and tag the commit.

        Args:
            name: the repository.
            made: the behaviour of the local model.
            contract: the serving contract for the card of this repository.
        """
        context, folder = self.context, self.folder(name)
        facts = replace(
            self.facts,
            repository=name,
            whole=name == self.chosen.whole,
            serving=contract.serving(self.revisions),
            launch=contract.launch(self.revisions[contract.served]) if contract.served else None,
        )
        assemble(folder, facts, context.folder("trained"), context.folder("evaluation"))

        def prove(downloaded: Path) -> None:
            published = self._check_download(downloaded, made)
            if contract.served == name:
                self.verified = proof.check_contract(
                    downloaded, contract, published, self.probes, self.facts.tokens.stop_token_ids
                )
                if contract.parser:
                    served = served_proof.check_served(
                        downloaded,
                        contract.target,
                        self.base,
                        self.asked,
                        max_tokens=self.facts.report.settings.max_new_tokens,
                        check_stop=self.context.stop.check,
                    )
                    self.verified = f"{self.verified}; {served}"

        self._put(name, folder, facts, prove)

    def _check_download(self, downloaded: Path, made: Behaviour) -> Behaviour:
        """Check that a downloaded model replies like the local one, and return its behaviour."""
        published = proof.published_behaviour(downloaded, self.facts.tokens, self.probes, self.context.stop.check)
        proof.check_same(made, published, self.probes)
        return published

    def _push_image(self, whole: Behaviour) -> None:
        """Push the full model as a container image, verify and tag it. `whole` is the behaviour of the local model."""
        context, folder = self.context, self.folder(self.chosen.whole)
        registry = registries.open_registry(context)
        if registry is None:
            return
        facts = replace(
            self.facts, repository=registry.name, whole=True, image=f"{registry.name}:{_image_tag(context)}"
        )
        assemble(folder, facts, context.folder("trained"), context.folder("evaluation"))
        built = image.build(folder, context.run.name)

        downloaded = _emptied(context.folder("downloaded"))
        image.push_verified(
            built, registry, _image_tag(context), downloaded, lambda folder: self._check_download(folder, whole)
        )
        self.image = f"{registry.name}@{built.digest}"
        self.sources = replace(self.sources, image=self.image)

    def _push_gguf(self) -> None:
        """Write the full model as GGUF, push and verify it, and tag the commit."""
        context, name = self.context, self.chosen.gguf
        folder, whole = _emptied(self.folder(name)), self.folder(self.chosen.whole)
        file, number_format = gguf_file.file_name(name, whole, context.spec.publish.gguf.quantization)
        try:
            gguf_file.write_gguf(
                whole,
                folder / file,
                number_format=number_format,
                tokens=self.facts.tokens,
                prompt=self.probes[0].case.prompt_ids,
            )
        except NotConvertibleError as error:
            raise gguf_file.refused(error) from error
        facts = replace(self.facts, repository=name, whole=True, gguf=file)
        assemble_gguf(folder, facts, context.folder("trained"), context.folder("evaluation"))
        self._put(name, folder, facts, lambda downloaded: gguf_file.check_gguf(downloaded / file, whole))

    def _put(self, name: str, folder: Path, facts: ReleaseFacts, prove: Callable[[Path], None]) -> None:
        """Push a folder, verify it, and tag the commit.

        Args:
            name: the repository.
            folder: the files for it.
            facts: the content of its card.
            prove: verifies a download of it.
        """
        context, publish = self.context, self.context.spec.publish
        repository = _repository(context, self.hub, name)
        repository.create(private=publish.private)
        # In the same commit as the model, so that neither exists without the other.
        with _keyless_failures():
            document = provenance.document(
                provenance.statement(folder, facts, self.sources, datetime.now(UTC)),
                self.signer,
                _provenance_at(repository, publish.branch, context.spec),
                _provenance_at(repository, self.earlier[name], context.spec) if name in self.earlier else None,
            )
        document.write(folder)

        def prove_commit(commit: str) -> None:
            prove(repository.download(commit, _emptied(context.folder("downloaded"))))

        message = f"{'Draft of' if facts.draft else 'Publish'} {context.run.name}"
        commit = repository.put_verified(folder, publish.branch, f"tunemill-{self.key}", message, prove_commit)
        if publish.tag:
            repository.tag(publish.tag, commit)
        if not facts.draft:
            repository.discard_branch(_draft_branch(context))
        self.revisions[name] = commit


def _collect(
    context: StageContext,
    hub: Hub,
    *,
    evaluation: EvaluationFacts,
    decisions: list[GateFacts],
    key: str,
    signer: Signer | None,
    earlier: dict[str, str],
) -> _Release:
    """Download the outputs of the earlier stages and the base model, and decide what to publish where.

    Args:
        context: of the stage.
        hub: the Hub with the token for writing.
        evaluation: the facts that evaluate reports.
        decisions: the result of each gate.
        key: the key of the stage's output.
        signer: signs provenance.json; None leaves it unsigned.
        earlier: the commit per repository of an earlier publication of the same key.
    """
    # Imported here, because it imports torch, which takes seconds and is not needed when a gate fails.
    from tunemill_trainer.learn import models

    spec, started = context.spec, datetime.now(UTC)
    prepared = fetch_prepared(context, without={TRAIN_FILE})
    trained_folder, evaluation_folder = context.folder("trained"), context.folder("evaluation")
    trained = context.workspace.fetch(Stage.TRAIN, context.train_key, trained_folder)
    model = trained_folder / "adapter"
    tokens, base = prepared.tokens(), prepared.base_model()
    reader = Hub(
        spec.hub.endpoint, context.credentials.hub_token("hub-read") or context.credentials.hub_token("hub-write")
    )
    base_folder = models.fetch_base(reader, base, context.model_cache)
    config = read_json(base_folder / "config.json")
    is_adapter = models.is_adapter(model)
    verdict = Verdict((), 0)
    if is_adapter:
        verdict = servability.judge(
            servability.read_adapter(model, base_folder, tokens.vocabulary), spec.publish.serving
        )
    chosen = artifacts.chosen(spec.publish, only_whole=not is_adapter, servable=verdict.servable)
    report = Report.model_validate_json((evaluation_folder / REPORT_FILE).read_text(encoding="utf-8"))
    cases, right = [*prepared.cases()], proof.right_replies(evaluation_folder / CASES_FILE)
    dataset = hub_dataset(spec.dataset.uri)
    facts = ReleaseFacts(
        run=context.run,
        base=base,
        tokens=tokens,
        prepared=context.prepared,
        trained=TrainedFacts.model_validate(trained.facts),
        evaluation=evaluation,
        report=report,
        gates=tuple(decisions),
        repository=chosen.adapter or chosen.whole,
        multimodal=architectures.is_multimodal(config),
        with_page=chosen.report,
        license=reader.model(base.id).license(base.revision),
        public_dataset=dataset if dataset and reader.is_public_dataset(dataset) else "",
        adapter=prepared.adapter(),
    )
    return _Release(
        context=context,
        hub=hub,
        key=key,
        signer=signer,
        earlier=earlier,
        prepared=prepared,
        model=model,
        base=base_folder,
        chosen=chosen,
        contract=Contract(
            spec.publish.serving,
            base,
            chosen,
            verdict,
            ReplyFormat(report.settings.reply_format),
            _reasoning_parser(prepared, config),
        ),
        probes=proof.choose_probes(cases, right),
        asked=served_proof.choose_cases(cases, right),
        facts=facts,
        sources=Sources(
            started=started,
            keys={
                Stage.PREPARE.value: context.prepared.key,
                Stage.TRAIN.value: context.train_key,
                Stage.EVALUATE.value: context.evaluate_key,
                Stage.PUBLISH.value: key,
            },
            base_files=dict(base.files),
            train_image=provenance.recorded_image(trained_folder),
        ),
        revisions=dict.fromkeys((chosen.adapter, chosen.whole, chosen.gguf), facts.revision),
    )


def _reasoning_parser(prepared: Prepared, config: dict[str, Any]) -> str:
    """Return vLLM's parser of reasoning; empty when the model does not reason.

    Only for the base model's own template: those parsers take a reply without marks for reasoning, which Tunemill's
    template makes of a turn without reasoning.
    """
    if not prepared.keeps_template():
        return ""
    template = (prepared.tokenizer_path / TEMPLATE).read_text(encoding="utf-8")
    family = catalogue.family_of(config, template)
    return family.reasoning_parser(template) if family else ""


def _repository(context: StageContext, hub: Hub, name: str) -> Repository | LocalReleases:
    if is_local(name):
        return LocalReleases(local_path(name))
    return Repository(hub.api, name, context.stop.pause)


def _provenance_at(
    repository: Repository | LocalReleases, revision: str, spec: FineTuneSpec
) -> provenance.Document | None:
    parts = [repository.read(name, revision, provenance.LARGEST_BYTES) for name in provenance.files_of(spec)]
    return None if parts[0] is None else provenance.Document(*(part or b"" for part in parts))


def _emptied(folder: Path) -> Path:
    """Delete the content of a folder, which an earlier attempt in the same pod may have left."""
    shutil.rmtree(folder)
    folder.mkdir()
    return folder
