"""Records a fleet: objects in every phase with their Jobs and pods, as this version of the operator leaves them.

    PYTHONPATH=tests python -m upgrade.record tests/upgrade/COMMIT

Run it once for each release, with the code of that release, and commit the folder. The tests then check that later
versions leave these objects alone. Nothing in a recorded folder is ever edited.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from property.builders import at, text
from property.simulator import World
from tunemill_api import keys
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase, StageState
from tunemill_operator.engine.observe import WarningEvent
from tunemill_operator.engine.profiles import profile_of
from upgrade.stored import stored_finetune, stored_profile

Json = dict[str, Any]

RESOLVED = {"baseModel": "c0ffee" * 6, "dataset": "d1" * 32}
"""What prepare finds behind the names of model and data."""
NEW_ROWS = {**RESOLVED, "dataset": "d2" * 32}
ON_CPU: Json = {"gpus": 0}
QUEUE: Json = {"name": "gpus", "priorityClass": "low"}
EVERY_PLACE: Json = {
    "compute": {
        "modelCache": {"claimName": "models", "maxSize": "100Gi"},
        "trainerImage": "registry.example.com/team-a/trainer:7",
    },
    "podTemplates": {
        "prepare": {"resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "2Gi"}}},
        "train": {
            "resources": {"requests": {"cpu": 4, "memory": "16Gi"}, "limits": {"memory": "32Gi"}},
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "low",
            "runtimeClassName": "nvidia",
            "labels": {"team": "a"},
            "annotations": {"example.com/scrape": "true"},
        },
        "publish": {"serviceAccountName": "publisher"},
    },
}


@dataclass
class Scene:
    """An object during its run, and the profiles of the cluster."""

    world: World
    profiles: list[Json] = field(default_factory=list)
    resolved: dict[str, str] = field(default_factory=lambda: RESOLVED)

    def set_profiles(self, *bodies: Json) -> None:
        """Replace all FineTuneProfiles of the cluster."""
        self.profiles = [stored_profile(body) for body in bodies]
        self.world.profiles = tuple(profile_of(body) for body in self.profiles)

    def until(self, reached: Callable[[World], bool], **report: Any) -> "Scene":
        """Let the stages succeed one after the other, until the condition holds."""
        world = self.world
        for _ in range(20):
            world.settle()
            if reached(world):
                return self
            for pod in world.live_pods():
                world.seconds += 10
                world.start(pod)
                world.reconcile()
                if reached(world):
                    return self
                world.seconds += 50
                world.succeed(pod, key=self.prepared_key, **report)
        raise AssertionError(f"never reached, phase {world.status.phase}")

    def running(self, stage: Stage) -> "Scene":
        """Continue until the container of this stage runs."""

        def runs(world: World) -> bool:
            return any(item.name == stage and item.state is StageState.RUNNING for item in world.status.stages)

        return self.until(runs)

    def phase(self, phase: Phase, **report: Any) -> "Scene":
        """Continue until this phase."""
        return self.until(lambda world: world.status.phase is phase, **report)

    def clean_up(self) -> "Scene":
        """Delete the finished Jobs and pods, as a TTL does."""
        world = self.world
        world.jobs = {name: job for name, job in world.jobs.items() if job in world.live_jobs()}
        world.pods = {name: pod for name, pod in world.pods.items() if pod in world.live_pods()}
        return self

    @property
    def prepared_key(self) -> str:
        """The key that prepare finds."""
        spec = FineTuneSpec.model_validate(self.world.finetune_body["spec"])
        return keys.prepare_key(spec, self.resolved)


def a_scene(*profiles: Json, **spec: Any) -> Scene:
    """Return a new object with this spec, as the API server has stored it."""
    scene = Scene(World(**spec))
    scene.world.finetune_body = stored_finetune(scene.world.finetune_body)
    scene.set_profiles(*profiles)
    return scene


def a_profile(name: str = "gold", **spec: Any) -> Json:
    """Return a FineTuneProfile as the API server sends it."""
    metadata = {"name": name, "uid": f"uid-of-{name}", "resourceVersion": "1", "creationTimestamp": text(at(0))}
    return {"apiVersion": "tunemill.dev/v1alpha1", "kind": "FineTuneProfile", "metadata": metadata, "spec": spec}


GOLD = a_profile(
    default=True,
    defaults={
        "podTemplates": {"train": {"resources": {"limits": {"memory": "64Gi"}}}},
        "workspace": {"uri": "s3://platform/tunemill/", "keepRuns": 5},
        "retry": {"limit": 1},
        "publish": {"private": False, "serving": "Transformers"},
        "evaluation": {"gates": [{"metric": "exact_match", "min": "0.5"}]},
    },
    limits={"maxGpus": 1, "maxGpuHours": "24"},
)
RETRAIN: Json = {"schedule": "0 2 * * *", "timeZone": "Europe/Berlin"}


def fleet() -> Iterator[tuple[str, Scene]]:
    """Yield objects in every phase, by name."""
    yield from _before_training()
    yield from _training()
    yield from _after_training()
    yield from _failed()
    yield from _resting()


def _before_training() -> Iterator[tuple[str, Scene]]:
    pending = a_scene()
    pending.world.reconcile()
    yield "pending", pending
    waiting = a_scene()
    waiting.world.settle()
    yield "preparing-not-started", waiting
    yield "preparing", a_scene().running(Stage.PREPARE)
    retried = a_scene().running(Stage.PREPARE)
    retried.world.fail(retried.world.live_pods()[0], Reason.HUB_UNREACHABLE)
    yield "preparing-retried", retried.running(Stage.PREPARE)
    requested = a_scene()
    requested.world.request("2026-11-21T11:00:00Z")
    yield "preparing-requested", requested.running(Stage.PREPARE)
    yield "queued", a_scene().phase(Phase.QUEUED)
    unschedulable = a_scene(**EVERY_PLACE).phase(Phase.QUEUED)
    for pod in unschedulable.world.live_pods():
        reason = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
        pod["status"]["conditions"] = [reason]
    unschedulable.world.settle()
    yield "queued-unschedulable", unschedulable
    yield "queued-in-kueue", a_scene(queue=QUEUE).phase(Phase.QUEUED)
    preempted = _admitted()
    preempted.world.preempt()
    for _ in range(3):
        preempted.world.settle()
    yield "queued-preempted-by-kueue", preempted


def _admitted() -> Scene:
    scene = a_scene(queue=QUEUE).phase(Phase.QUEUED)
    scene.world.admit()
    return scene.running(Stage.TRAIN)


def _training() -> Iterator[tuple[str, Scene]]:
    yield "training", a_scene().running(Stage.TRAIN)
    reporting = a_scene(compute=ON_CPU).running(Stage.TRAIN)
    reporting.world.report_progress(reporting.world.live_pods()[0], 40)
    reporting.world.reconcile()
    yield "training-with-progress", reporting
    yield "training-in-kueue", _admitted()
    yield "training-everywhere", a_scene(**EVERY_PLACE).running(Stage.TRAIN)
    yield "training-with-profile", a_scene(GOLD).running(Stage.TRAIN)
    changed = a_scene(GOLD).running(Stage.TRAIN)
    changed.set_profiles(a_profile(default=True, defaults={"compute": {"gpus": 0}}))
    changed.world.settle()
    yield "training-with-profile-changed-since", changed
    deleted = a_scene(GOLD).running(Stage.TRAIN)
    deleted.set_profiles()
    deleted.world.settle()
    yield "training-with-profile-deleted-since", deleted
    for method in ("AdaLoRA", "IA3", "Full"):
        plain = {"mode": "Text"} if method == "IA3" else {}
        yield (
            f"training-{method.lower()}",
            a_scene(adapter={"method": method}, tokenizer=plain).running(Stage.TRAIN),
        )
    written = {
        "lora": {"rank": 8, "alpha": 16, "dropout": "0", "targetModules": ["q_proj"], "rsLora": True},
        "ia3": {"targetModules": ["k_proj"]},
    }
    yield "training-lora-with-other-settings", a_scene(adapter=written).running(Stage.TRAIN)
    settings = {
        "epochs": 3,
        "maxSteps": 500,
        "learningRate": "3e-4",
        "scheduler": "Linear",
        "warmupRatio": "0.2",
        "batchSize": 16,
        "maxLength": 4096,
        "lossOn": "All",
        "seed": 7,
        "precision": "BF16",
        "checkpoint": {"everySteps": 10, "keep": 5},
        "earlyStopping": {"patience": 2},
        "divergence": "Ignore",
    }
    base = {"quantization": "NF4", "revision": "v2", "tokenSecretRef": {"name": "hf-read"}}
    yield "training-every-setting", a_scene(training=settings, baseModel=base).running(Stage.TRAIN)
    drained = a_scene().running(Stage.TRAIN)
    for _ in range(2):
        drained.world.drain(drained.world.live_pods()[0])
        drained.world.settle()
        drained.running(Stage.TRAIN)
    yield "training-after-preemptions", drained
    killed = a_scene().running(Stage.TRAIN)
    for _ in range(2):
        killed.world.kill_for_memory(killed.world.live_pods()[0])
        killed.running(Stage.TRAIN)
    yield "training-after-memory-kills", killed
    edited = a_scene().phase(Phase.SUCCEEDED)
    edited.world.seconds += 600
    edited.world.edit(training={"epochs": 2})
    yield "training-after-an-edit", edited.running(Stage.TRAIN)
    renewed = a_scene().phase(Phase.SUCCEEDED)
    renewed.world.seconds += 600
    renewed.resolved = NEW_ROWS
    renewed.world.request("2026-11-21T12:30:00Z")
    yield "training-on-new-rows", renewed.running(Stage.TRAIN)
    compared = _published_on_a_schedule()
    _next_time(compared)
    yield "training-on-a-schedule", compared.running(Stage.TRAIN)


def _published_on_a_schedule() -> Scene:
    return a_scene(retrain=RETRAIN).phase(Phase.SUCCEEDED)


def _next_time(scene: Scene) -> None:
    """Advance to the next time of the schedule, with new rows."""
    scene.world.seconds += 24 * 3600
    scene.resolved = NEW_ROWS
    before = scene.world.status.run.id
    scene.until(lambda world: world.status.run.id != before)


def _after_training() -> Iterator[tuple[str, Scene]]:
    yield "evaluating", a_scene().running(Stage.EVALUATE)
    drained = a_scene().running(Stage.EVALUATE)
    drained.world.drain(drained.world.live_pods()[0])
    drained.world.settle()
    yield "evaluating-after-a-drain", drained.running(Stage.EVALUATE)
    compared = _published_on_a_schedule()
    _next_time(compared)
    yield "evaluating-on-a-schedule", compared.running(Stage.EVALUATE)
    yield "publishing", a_scene().running(Stage.PUBLISH)
    tagged = {"branch": "next", "tag": "v1", "artifacts": ["Adapter", "Report"], "private": False}
    yield "publishing-every-setting", a_scene(publish=tagged, evaluation={"maxRows": 50}).running(Stage.PUBLISH)
    draft = a_scene(evaluation={"onGateFailure": "Draft", "gates": [{"metric": "exact_match", "min": "0.95"}]})
    yield "publishing-a-draft", draft.running(Stage.PUBLISH)


def _failed() -> Iterator[tuple[str, Scene]]:
    for stage, reason in (
        (Stage.PREPARE, Reason.DATASET_MALFORMED),
        (Stage.TRAIN, Reason.TRAINING_DIVERGED),
        (Stage.PUBLISH, Reason.HUB_WRITE_DENIED),
    ):
        failed = a_scene().running(stage)
        failed.world.fail(failed.world.live_pods()[0], reason)
        failed.world.settle()
        yield f"failed-in-{stage}", failed
    retried = a_scene(retry={"limit": 0}).running(Stage.PREPARE)
    retried.world.fail(retried.world.live_pods()[0], Reason.HUB_UNREACHABLE)
    retried.world.settle()
    yield "failed-after-retries", retried
    blocked = a_scene(dataset={"credentialsSecretRef": {"name": "s3"}})
    blocked.world.settle()
    blocked.world.seconds += 30
    message = 'MountVolume.SetUp failed for volume "dataset": secret "s3" not found'
    pod = blocked.world.live_pods()[0]
    blocked.world.warning_events = (WarningEvent(pod["metadata"]["uid"], "FailedMount", message, blocked.world.now),)
    blocked.world.settle()
    yield "failed-for-a-missing-secret", blocked
    late = a_scene(maxRuntime="1h").running(Stage.TRAIN)
    late.world.seconds += 3700
    late.world.settle()
    yield "failed-for-its-deadline", late.clean_up()
    memory = a_scene(retry={"limit": 1}).running(Stage.TRAIN)
    memory.world.kill_for_memory(memory.world.live_pods()[0])
    memory.running(Stage.TRAIN)
    memory.world.kill_for_memory(memory.world.live_pods()[0])
    memory.world.settle()
    yield "failed-for-memory", memory
    refused = a_scene(a_profile(default=True, limits={"maxGpus": 0}), compute={"gpus": 1})
    refused.world.settle()
    yield "failed-for-a-limit", refused
    gate = a_scene(evaluation={"onGateFailure": "Fail", "gates": [{"metric": "exact_match", "min": "0.95"}]})
    yield "failed-at-a-gate", gate.phase(Phase.FAILED)


def _resting() -> Iterator[tuple[str, Scene]]:
    yield "succeeded", a_scene().phase(Phase.SUCCEEDED)
    yield "succeeded-without-jobs", a_scene().phase(Phase.SUCCEEDED).clean_up()
    yield "succeeded-everywhere", a_scene(**EVERY_PLACE).phase(Phase.SUCCEEDED).clean_up()
    yield "succeeded-with-profile", a_scene(GOLD).phase(Phase.SUCCEEDED)
    for method in ("AdaLoRA", "IA3", "Full"):
        plain = {"mode": "Text"} if method == "IA3" else {}
        scene = a_scene(adapter={"method": method}, tokenizer=plain).phase(Phase.SUCCEEDED)
        yield f"succeeded-{method.lower()}", scene.clean_up()
    data = {
        "uri": "hf://acme/calls@v1",
        "format": "XLAM",
        "maxInvalidFraction": "0.1",
        "maxRows": 1000,
        "evaluation": {"uri": "hf://acme/held-out", "seed": 7},
    }
    tokenizer = {
        "mode": "Extend",
        "addTokens": ["<a>"],
        "think": "Drop",
        "chatTemplate": {"configMapKeyRef": {"name": "templates", "key": "gemma"}},
    }
    tools = {"configMapKeyRef": {"name": "tools", "key": "tools.json"}}
    workspace = {"uri": "s3://team-a/space/", "endpoint": "https://s3.example.com", "region": "eu-1"}
    hub = {"endpoint": "https://hub.example.com"}
    scene = a_scene(dataset=data, tokenizer=tokenizer, tools=tools, workspace=workspace, hub=hub)
    yield "succeeded-every-source", scene.phase(Phase.SUCCEEDED)
    requested = a_scene().phase(Phase.SUCCEEDED)
    requested.world.seconds += 600
    requested.world.request("2026-11-21T12:30:00Z")
    yield (
        "succeeded-requested-again",
        requested.until(lambda world: world.status.phase is Phase.SUCCEEDED and not world.live_jobs(), executed=False),
    )
    edited = a_scene().phase(Phase.SUCCEEDED)
    edited.world.seconds += 600
    edited.world.edit(training={"epochs": 2})
    yield "succeeded-after-an-edit", edited.phase(Phase.SUCCEEDED).clean_up()
    corrected = a_scene(evaluation={"gates": [{"metric": "exact_match", "min": "0.95"}]}).phase(Phase.HELD)
    corrected.world.edit(evaluation={"gates": [{"metric": "exact_match", "min": "0.5"}]})
    yield "succeeded-with-another-gate", corrected.phase(Phase.SUCCEEDED)
    yield "succeeded-on-a-schedule", _published_on_a_schedule()
    again = _published_on_a_schedule()
    _next_time(again)
    yield "succeeded-retrained", again.phase(Phase.SUCCEEDED, tuned="0.9500")
    worse = _published_on_a_schedule()
    _next_time(worse)
    yield "not-better", worse.phase(Phase.SUCCEEDED, tuned="0.8000")
    yield "held", a_scene(evaluation={"gates": [{"metric": "exact_match", "min": "0.95"}]}).phase(Phase.HELD)
    draft = a_scene(evaluation={"onGateFailure": "Draft", "gates": [{"metric": "exact_match", "min": "0.95"}]})
    yield "held-with-a-draft", draft.phase(Phase.HELD)
    new = a_scene(suspend=True)
    new.world.settle()
    yield "suspended-from-the-start", new
    stopped = a_scene().running(Stage.TRAIN)
    stopped.world.edit(suspend=True)
    for _ in range(4):
        stopped.world.settle()
    yield "suspended-in-training", stopped
    done = a_scene().phase(Phase.SUCCEEDED)
    done.world.edit(suspend=True)
    done.world.settle()
    yield "succeeded-and-suspended", done


def recorded(scene: Scene) -> Json:
    """Return the object with all that belongs to it, as JSON.

    Raises:
        AssertionError: when the operator that recorded it would still do something.
    """
    world = scene.world
    assert not world.plan().actions, world.plan().actions
    return {
        "time": text(world.now),
        "finetune": stored_finetune(world.finetune_body),
        "jobs": list(world.jobs.values()),
        "pods": list(world.pods.values()),
        "profiles": scene.profiles,
        "complaints": [{**asdict(item), "last_seen": text(item.last_seen)} for item in world.warning_events],
        "workspace": {
            "stages": sorted(world.outputs),
            "tuned": world.tuned,
            "serving": world.serving,
            "prepare": scene.prepared_key,
        },
    }


def main(folder: Path) -> None:
    """Write one file for each object of the fleet."""
    folder.mkdir(parents=True)
    for name, scene in fleet():
        (folder / f"{name}.json").write_text(json.dumps(recorded(scene), indent=1, sort_keys=True) + "\n")
        print(f"{name}: {scene.world.status.phase}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
