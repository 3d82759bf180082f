"""The context of a stage: run, workspace, work folder, credentials, progress reports and stop signal."""

from dataclasses import dataclass
from pathlib import Path

from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.status import PreparedFacts

from tunemill_trainer.errors import StageError
from tunemill_trainer.process.progress import Progress
from tunemill_trainer.process.ranks import Ranks
from tunemill_trainer.process.stop import StopSignal
from tunemill_trainer.storage import output_keys
from tunemill_trainer.storage.credentials import Credentials
from tunemill_trainer.storage.model_cache import ModelCache
from tunemill_trainer.storage.workspace import Workspace


@dataclass(frozen=True)
class StageContext:
    """The context of a stage.

    Attributes:
        run: the RunSpec: the spec, and the facts of prepare.
        workspace: the outputs of all stages.
        work: the work folder, which is lost when the pod ends.
        credentials: the mounted Secrets.
        progress: sends progress reports.
        ranks: the processes that run this stage together.
    """

    run: RunSpec
    workspace: Workspace
    work: Path
    credentials: Credentials
    progress: Progress
    ranks: Ranks

    @property
    def stop(self) -> StopSignal:
        """Set when this process gets a request to stop."""
        return self.ranks.stop.signal

    @property
    def spec(self) -> FineTuneSpec:
        """The spec of the fine-tune."""
        return self.run.spec

    @property
    def prepared(self) -> PreparedFacts:
        """The facts of prepare.

        Raises:
            StageError: StageOutputMissing, when the RunSpec has none.
        """
        if self.run.prepared is None:
            raise StageError(Reason.STAGE_OUTPUT_MISSING, "expected `prepared` in the RunSpec, found none")
        return self.run.prepared

    @property
    def model_cache(self) -> ModelCache | None:
        """The shared cache of base models; None if this pod has none."""
        return ModelCache.mounted(self.spec.compute.model_cache)

    @property
    def train_key(self) -> str:
        """The key of train's output."""
        return output_keys.train(self.run, self.prepared.key)

    @property
    def evaluate_key(self) -> str:
        """The key of evaluate's output."""
        return output_keys.evaluate(self.run, self.prepared.key, self.prepared.suites)

    def publish_key(self, *, draft: bool) -> str:
        """Return the key of publish's output, for a release or for a draft."""
        return output_keys.publish(self.run, self.prepared.key, self.prepared.suites, draft=draft)

    def folder(self, name: str) -> Path:
        """Return a folder below the work folder, which is created if necessary."""
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path
