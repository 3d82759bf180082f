"""Checks for contradicting fields of a spec. In a cluster, the API server makes them already at `kubectl apply`."""

from tunemill_api.evaluation import Evaluation, Judge
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec, Quantization
from tunemill_api.publish import Artifact
from tunemill_api.training import AdapterMethod, LossOn

from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.patterns import SuitePattern
from tunemill_trainer.prepared import Tokens


def refuse_impossible(spec: FineTuneSpec) -> None:
    """Raise InvalidSpec if fields of the spec contradict each other.

    Raises:
        StageError: InvalidSpec.
    """
    _refuse_impossible_suites(spec.evaluation)
    if spec.dataset.replay is not None and not 0 < float(spec.dataset.replay.share) < 1:
        raise StageError(
            Reason.INVALID_SPEC,
            f"expected spec.dataset.replay.share between 0 and 1, found {spec.dataset.replay.share}",
        )
    _refuse_impossible_preference(spec)
    adapter = spec.adapter
    if Artifact.OCI in spec.publish.artifacts and spec.publish.oci is None:
        raise StageError(
            Reason.INVALID_SPEC,
            "spec.publish.artifacts has OCI, which needs spec.publish.oci: the registry and the repository",
        )
    if spec.base_model.adapter and adapter.method in {AdapterMethod.FULL, AdapterMethod.ADALORA}:
        raise StageError(
            Reason.INVALID_SPEC,
            f"expected spec.adapter.method LoRA or IA3 with spec.baseModel.adapter, found {adapter.method.value}",
        )
    compared = [
        gate.subject
        for gate in spec.evaluation.gates
        if gate.min_gain_over_adapter is not None or gate.max_loss_vs_adapter is not None
    ]
    if compared and spec.base_model.adapter is None:
        raise StageError(
            Reason.INVALID_SPEC,
            f"the gate on {compared[0]} in spec.evaluation.gates needs spec.baseModel.adapter, which is not set",
            "Set spec.baseModel.adapter, or remove minGainOverAdapter and maxLossVsAdapter from the gate.",
        )
    if adapter.method is AdapterMethod.FULL and spec.base_model.quantization is not Quantization.NONE:
        raise StageError(
            Reason.INVALID_SPEC,
            f"expected spec.baseModel.quantization None with spec.adapter.method Full, found "
            f"{spec.base_model.quantization.value}: quantized weights cannot be trained",
        )
    if adapter.method is AdapterMethod.ADALORA and adapter.adalora.target_rank >= adapter.adalora.initial_rank:
        raise StageError(
            Reason.INVALID_SPEC,
            f"expected spec.adapter.adalora.targetRank below initialRank, found {adapter.adalora.target_rank} and "
            f"{adapter.adalora.initial_rank}",
        )
    if adapter.method is AdapterMethod.ADALORA and spec.training.early_stopping.patience:
        raise StageError(
            Reason.INVALID_SPEC,
            "expected spec.training.earlyStopping.patience 0 with spec.adapter.method AdaLoRA, found "
            f"{spec.training.early_stopping.patience}: AdaLoRA prunes ranks until the end of the planned steps",
        )


def _refuse_impossible_preference(spec: FineTuneSpec) -> None:
    if spec.training.preference is None:
        return
    method, compute, remedy = spec.adapter.method, spec.compute, "Change it, or remove spec.training.preference."
    if spec.dataset.validation is None:
        raise StageError(
            Reason.INVALID_SPEC,
            "spec.training.preference needs spec.dataset.validation, whose rows decide whether the result is kept",
            "Set spec.dataset.validation, or remove spec.training.preference.",
        )
    if method not in {AdapterMethod.LORA, AdapterMethod.IA3}:
        raise StageError(
            Reason.INVALID_SPEC,
            f"expected spec.adapter.method LoRA or IA3 with spec.training.preference, found {method.value}",
            remedy,
        )
    if compute.gpus > 1 or compute.nodes > 1:
        raise StageError(
            Reason.INVALID_SPEC,
            "expected spec.compute.gpus 0 or 1 and spec.compute.nodes 1 with spec.training.preference, found "
            f"{compute.gpus} and {compute.nodes}",
            remedy,
        )
    if spec.training.loss_on is not LossOn.ASSISTANT:
        raise StageError(
            Reason.INVALID_SPEC,
            f"expected spec.training.lossOn Assistant with spec.training.preference, found "
            f"{spec.training.loss_on.value}: the supervised tokens are the expected answers",
            remedy,
        )


def _refuse_impossible_suites(evaluation: Evaluation) -> None:
    judges = {suite.name: suite.judge for suite in evaluation.suites}
    if len(judges) < len(evaluation.suites):
        names = [suite.name for suite in evaluation.suites]
        twice = next(name for name in names if names.count(name) > 1)
        raise StageError(Reason.INVALID_SPEC, f"spec.evaluation.suites has two suites with the name {twice}")
    for suite in evaluation.suites:
        if (suite.judge is Judge.PATTERN) != bool(suite.pattern):
            raise StageError(
                Reason.INVALID_SPEC,
                f"expected a pattern in spec.evaluation.suites[{suite.name}] with the judge Pattern, and only then",
            )
        if suite.judge is Judge.PATTERN:
            SuitePattern(suite)
    for gate in evaluation.gates:
        if (gate.metric is None) == (gate.suite is None):
            raise StageError(
                Reason.INVALID_SPEC, "expected either a metric or a suite in each of spec.evaluation.gates"
            )
        if gate.suite is not None and gate.suite not in judges:
            raise StageError(
                Reason.INVALID_SPEC,
                f"spec.evaluation.gates names the suite {gate.suite}, which is not in spec.evaluation.suites",
            )
        if gate.suite is not None and (gate.min_gain_over_adapter is not None or gate.max_loss_vs_adapter is not None):
            raise StageError(
                Reason.INVALID_SPEC,
                f"expected maxLossVsBase, minGainOverBase or min in the gate on the suite {gate.suite}: suites compare "
                "with the base model only",
            )
        if gate.suite is not None and gate.min is not None and judges[gate.suite] is Judge.LIKELIHOOD:
            raise StageError(
                Reason.INVALID_SPEC,
                f"expected maxLossVsBase or minGainOverBase in the gate on the suite {gate.suite}, found min: with the "
                "judge Likelihood, lower is better",
            )


def refuse_untrainable_tokens(spec: FineTuneSpec, tokens: Tokens) -> None:
    """Raise InvalidSpec if tokens were added whose rows the method cannot train: the model would never write them.

    IA3 rescales activations, and PEFT does not support trainable token rows for it.

    Raises:
        StageError: InvalidSpec.
    """
    if spec.adapter.method is AdapterMethod.IA3 and tokens.added:
        names = ", ".join(token.token for token in tokens.added)
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.adapter.method IA3 cannot train the rows of added tokens, and the base model lacks {names}: set "
            "spec.tokenizer.mode to Text, leave spec.tokenizer.addTokens empty, or use another spec.adapter.method",
        )
