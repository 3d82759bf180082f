"""What a stage gets: the run, the workspace, a place to work in, credentials, progress, the request to stop."""

from dataclasses import dataclass
from pathlib import Path

from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.status import PreparedFacts

from tunemill_trainer.errors import StageError
from tunemill_trainer.process.progress import Progress
from tunemill_trainer.process.stop import StopSignal
from tunemill_trainer.storage import output_keys
from tunemill_trainer.storage.credentials import Credentials
from tunemill_trainer.storage.model_cache import ModelCache
from tunemill_trainer.storage.workspace import Workspace


@dataclass(frozen=True)
class StageContext:
    """The surroundings of one stage.

    Attributes:
        run: the wish, and what prepare found.
        workspace: the outputs of all stages.
        work: a folder that the stage may fill; lost when the pod ends.
        credentials: of this pod.
        progress: takes reports of how far the stage is.
        stop: set when the pod is asked to stop.
    """

    run: RunSpec
    workspace: Workspace
    work: Path
    credentials: Credentials
    progress: Progress
    stop: StopSignal

    @property
    def spec(self) -> FineTuneSpec:
        """The wish."""
        return self.run.spec

    @property
    def prepared(self) -> PreparedFacts:
        """What prepare found.

        Raises:
            StageError: StageOutputMissing, when the RunSpec does not say.
        """
        if self.run.prepared is None:
            raise StageError(Reason.STAGE_OUTPUT_MISSING, "expected `prepared` in the RunSpec, found none")
        return self.run.prepared

    @property
    def model_cache(self) -> ModelCache | None:
        """The cache of base models that this pod shares with others."""
        return ModelCache.mounted(self.spec.compute.model_cache)

    @property
    def train_key(self) -> str:
        """The key of the adapter."""
        return output_keys.train(self.run, self.prepared.key)

    @property
    def evaluate_key(self) -> str:
        """The key of the adapter's evaluation."""
        return output_keys.evaluate(self.run, self.prepared.key)

    def publish_key(self, *, draft: bool) -> str:
        """Return the key of the published model, or of its draft."""
        return output_keys.publish(self.run, self.prepared.key, draft=draft)

    def folder(self, name: str) -> Path:
        """Return a folder below the work folder, made when it is not there."""
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path
