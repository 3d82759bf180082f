"""Checks for contradicting fields of a spec. In a cluster, the API server makes them already at `kubectl apply`."""

from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec, Quantization
from tunemill_api.publish import Artifact
from tunemill_api.training import AdapterMethod

from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import Tokens


def refuse_impossible(spec: FineTuneSpec) -> None:
    """Raise InvalidSpec if fields of the spec contradict each other.

    Raises:
        StageError: InvalidSpec.
    """
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
        gate.metric.value
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
