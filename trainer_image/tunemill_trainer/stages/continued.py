"""The settings of a run that continues from an adapter: those of the adapter, instead of those of spec.adapter.

The keys are those of the spec that the user wrote, as the operator computes them. The adapter is part of prepare's key.
"""

from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import StartAdapterFacts
from tunemill_api.training import Adapter, AdapterMethod

from tunemill_trainer.storage import output_keys


def continued_run(run: RunSpec) -> RunSpec:
    """Return the run with the adapter's settings in its spec; unchanged if training starts from the base model."""
    if run.prepared is None or run.prepared.adapter is None:
        return run
    train = output_keys.train(run, run.prepared.key)
    spec = continued_spec(run.spec, run.prepared.adapter)
    return run.model_copy(update={"spec": spec, "keys": {**run.keys, Stage.TRAIN.value: train}})


def continued_spec(spec: FineTuneSpec, start: StartAdapterFacts) -> FineTuneSpec:
    """Return the spec with the method and the settings of an adapter. Dropout is that of the spec."""
    method, given = AdapterMethod(start.method), spec.adapter
    if method is AdapterMethod.IA3:
        modules = {"target_modules": start.target_modules, "feedforward_modules": start.feedforward_modules}
        settings = Adapter(method=method, ia3=given.ia3.model_copy(update=modules))
    else:
        shape = {"rank": start.rank, "alpha": start.alpha, "rs_lora": start.rs_lora}
        lora = given.lora.model_copy(update={**shape, "target_modules": start.target_modules})
        settings = Adapter(method=method, lora=lora)
    return spec.model_copy(update={"adapter": settings})
