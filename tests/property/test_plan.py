"""Any order of actions by users, pods and the platform: the operator's decisions keep the invariants."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from property.builders import a_profile
from property.simulator import World
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase
from tunemill_operator.engine.profiles import Profile
from tunemill_operator.engine.sidecars import AT_ONCE

EDITS: list[dict[str, Any]] = [
    {"training": {"learningRate": "2e-4"}},
    {"training": {"learningRate": "Auto"}},
    {"dataset": {"uri": "s3://team-a-data/support/other.jsonl"}},
    {"dataset": {"uri": "s3://team-a-data/support/calls.jsonl"}},
    {"evaluation": {"maxRows": 20}},
    {"evaluation": {"gates": [{"metric": "exact_match", "min": "0.95"}]}},
    {"evaluation": {"gates": [{"metric": "exact_match", "min": "0.5"}]}},
    {"evaluation": {"onGateFailure": "Draft"}},
    {"evaluation": {"onGateFailure": "Hold"}},
    {"publish": {"repository": "acme/other"}},
    {"podTemplates": {"train": {"resources": {"limits": {"memory": "8Gi"}}}}},
    {"workspace": {"uri": "s3://elsewhere/"}},
    {"maxRuntime": "10m"},
    {"maxRuntime": "8h"},
    {"stallTimeout": "5m"},
    {"stallTimeout": "0s"},
    {"maxGpuHours": "0.3"},
    {"maxGpuHours": ""},
    {"historyLimit": 1},
    {"retrain": {"schedule": "*/15 * * * *"}},
    {"retrain": {"schedule": "0 * * * *", "promote": "Always"}},
    {"retrain": None},
    {"historyLimit": 5},
    {"queue": {"name": "team-a"}},
    {"queue": {"name": "team-b", "priorityClass": "high"}},
    {"queue": None},
    {"compute": {"gpus": 2}},
    {"compute": {"gpus": 1}},
    {"compute": {"nodes": 2}},
    {"compute": {"nodes": 3, "startTimeout": "5m"}},
    {"compute": {"nodes": 1}},
    {"suspend": True},
    {"suspend": False},
]
PROFILES: list[tuple[Profile, ...]] = [
    (),
    (a_profile("gold", default=True, defaults={"compute": {"gpus": 4}, "retry": {"limit": 1}}),),
    (a_profile("gold", default=True, defaults={"workspace": {"uri": "s3://platform/"}}, limits={"maxGpus": 2}),),
    (a_profile("gold", default=True, limits={"maxGpus": 1, "maxGpuHours": "0.5"}),),
    (a_profile("gold", default=True), a_profile("silver", default=True)),
]
REASONS = [
    Reason.DATASET_MALFORMED,
    Reason.S3_UNREACHABLE,
    Reason.INTERNAL_ERROR,
    Reason.STAGE_OUTPUT_MISSING,
    Reason.INTERRUPTED,
    Reason.CUDA_OUT_OF_MEMORY,
    Reason.CUDA_UNAVAILABLE,
]


NUMBERS = st.integers(0, 2)


class Operation(RuleBasedStateMachine):
    """An object with random actions of users, pods and nodes, while the operator dies at any step."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.data = "0123456789abcdef"
        self.ended: tuple[str, Any] | None = None

    def pod(self, number: int) -> dict[str, Any]:
        """Return one of the live pods."""
        pods = self.world.live_pods()
        return pods[number % len(pods)]

    @rule(steps=st.sampled_from([None, None, None, 0, 1, 2]))
    def the_operator_reconciles(self, steps: int | None) -> None:
        """It may die after any of its writes."""
        self.world.reconcile(steps=steps)

    @rule()
    def the_job_controller_works(self) -> None:
        """It creates a pod, or completes a Job."""
        self.world.job_controller()

    @rule(key=st.sampled_from(["0123456789abcdef", "fedcba9876543210"]))
    def the_data_changes(self, key: str) -> None:
        """Prepare will find other rows at the next request."""
        self.data = key

    @rule(seconds=st.sampled_from([1, 5, 60, 900]))
    def time_passes(self, seconds: int) -> None:
        """Minutes, or enough for a short deadline."""
        self.world.seconds += seconds

    @rule(change=st.sampled_from(EDITS))
    def a_user_edits(self, change: dict[str, Any]) -> None:
        """Any part of the spec."""
        self.world.edit(**change)

    @rule(profiles=st.sampled_from(PROFILES))
    def the_platform_team_changes_its_profiles(self, profiles: tuple[Profile, ...]) -> None:
        """Started runs are not affected."""
        before = self.world.plan().actions
        self.world.profiles = profiles
        assert not self.world.finetune.run_started or self.world.plan().actions == before

    @rule(value=st.sampled_from(["one", "two"]))
    def a_user_requests_a_run(self, value: str) -> None:
        """By the annotation."""
        self.world.request(value)

    @precondition(lambda self: self.world.live_pods())
    @rule(tuned=st.sampled_from(["0.9000", "0.0500"]), number=NUMBERS)
    def a_container_starts_or_succeeds(self, tuned: str, number: int) -> None:
        """With a good or a bad evaluation."""
        pod = self.pod(number)
        self.world.succeed(pod, tuned=tuned, key=self.data)
        self.world.start(pod)

    @precondition(lambda self: self.world.live_pods())
    @rule(reason=st.sampled_from(REASONS), number=NUMBERS)
    def a_container_fails(self, reason: Reason, number: int) -> None:
        """Permanently or not."""
        self.world.fail(self.pod(number), reason)

    @precondition(lambda self: len(self.world.live_pods()) > 1)
    @rule()
    def all_pods_of_a_group_start(self) -> None:
        """And connect to each other."""
        for pod in self.world.live_pods():
            self.world.start(pod)
            self.world.seconds += 1

    @precondition(lambda self: len(self.world.live_pods()) > 1)
    @rule()
    def the_pods_of_a_group_notice_that_one_is_lost(self) -> None:
        """If one is lost, they terminate."""
        for pod in self.world.live_pods():
            self.world.notice(pod)

    @precondition(lambda self: self.world.live_pods())
    @rule(code=st.sampled_from([0, 1, 76, 137, 143]), number=NUMBERS)
    def a_container_exits_without_a_report(self, code: int, number: int) -> None:
        """Killed, or a custom image."""
        self.world.end(self.pod(number), code)

    @precondition(lambda self: self.world.live_pods())
    @rule()
    def a_stage_reports_progress(self) -> None:
        """It may stop reporting afterwards."""
        self.world.report_progress(self.world.live_pods()[0])

    @rule(old_pods=st.booleans(), hears_ends=st.booleans())
    def another_version_takes_over(self, *, old_pods: bool, hears_ends: bool) -> None:
        """One with train as an init container, or without progress reports at the end of train."""
        self.world.old_pods, self.world.hears_ends = old_pods, hears_ends

    @rule(native=st.sampled_from([[], ["mesh"]]), classic=st.sampled_from([[], ["log-agent"]]))
    def a_policy_adds_sidecars_to_new_pods(self, native: list[str], classic: list[str]) -> None:
        """Or no longer does."""
        self.world.native_sidecars, self.world.classic_sidecars = native, classic

    @rule()
    def a_cleaner_deletes_ended_jobs(self) -> None:
        """With their pods and reports."""
        self.world.clean_up()

    @precondition(lambda self: self.world.jobs)
    @rule()
    def a_job_is_deleted(self) -> None:
        """By hand, in any state."""
        self.world.delete_job(next(iter(self.world.jobs.values())))

    @rule()
    def another_operator_takes_over(self) -> None:
        """Without reports in memory."""
        self.world.restart_operator()

    @precondition(lambda self: self.world.live_pods())
    @rule(number=NUMBERS)
    def a_container_is_oom_killed(self, number: int) -> None:
        """By the kernel."""
        self.world.kill_for_memory(self.pod(number))

    @precondition(lambda self: self.world.live_pods())
    @rule(number=NUMBERS)
    def a_node_is_drained(self, number: int) -> None:
        """The pod saves a checkpoint and terminates."""
        self.world.drain(self.pod(number))

    @precondition(lambda self: self.world.live_pods())
    @rule(number=NUMBERS)
    def a_pod_is_evicted(self, number: int) -> None:
        """By the kubelet, for node pressure."""
        self.world.evict(self.pod(number), "The node was low on resource: memory.")

    @precondition(lambda self: self.world.live_pods())
    @rule(number=NUMBERS)
    def a_node_becomes_unreachable(self, number: int) -> None:
        """Its pod is deleted, but stays Terminating."""
        self.world.cut_off(self.pod(number))

    @rule()
    def kueue_admits_queued_jobs(self) -> None:
        """There is quota."""
        self.world.admit()

    @rule()
    def kueue_preempts_running_jobs(self) -> None:
        """For a higher priority."""
        self.world.preempt()

    @rule()
    def the_workspace_is_emptied(self) -> None:
        """Later stages miss their inputs."""
        self.world.empty_the_workspace()

    @precondition(lambda self: self.world.pods)
    @rule(number=NUMBERS)
    def a_pod_disappears(self, number: int) -> None:
        """With its report."""
        pods = [*self.world.pods.values()]
        self.world.lose(pods[number % len(pods)])

    @invariant()
    def at_most_one_job_is_live(self) -> None:
        """Two pods never write the same checkpoint. A pod with only a sidecar running writes none."""
        observed = self.world.observed()
        assert len(observed.running_jobs()) <= 1
        live = [pod for pod in observed.pods if not pod.stages_ended]
        assert len({pod.meta.owner for pod in live}) <= 1, "of pods that train together, all belong to one Job"
        assert len({pod.index for pod in live}) == len(live)

    @invariant()
    def a_finished_run_keeps_its_result(self) -> None:
        """The same reason, message and remedy until an edit or a request, whatever is cleaned up."""
        status, request_token = self.world.status, self.world.finetune.request_token
        if self.ended and self.ended[0] == request_token:
            assert status.failure == self.ended[1]
        final = status.failure is not None and status.failure.final and self.world.finetune.run_started
        self.ended = (request_token, status.failure) if final else None

    @invariant()
    def retries_are_bounded(self) -> None:
        """No counter exceeds the retry limit by more than the pod that ended the run."""
        limit = 3
        for stage in self.world.status.stages:
            counters = (stage.recreations, stage.retries, stage.evictions, stage.stalls, stage.peer_losses)
            assert max(counters) <= limit + 1

    @invariant()
    def planning_is_idempotent(self) -> None:
        """Planning again after the status was written changes it no more, and acts no differently.

        Unless it is what comes next at once: a retry is counted in the status before its Job is deleted.
        """
        world = self.world
        first = world.plan()
        assert first == world.plan()
        if first.actions or first.status is None or first.requeue_after == AT_ONCE:
            return
        world.reconcile()
        writes = world.status_writes
        again = world.reconcile()
        assert world.status_writes == writes
        assert not again.actions
        assert not again.events

    @invariant()
    def failures_have_a_remedy(self) -> None:
        """Stalled and Reconciling exclude each other."""
        status = self.world.status
        truth = {condition.type: condition.status for condition in status.conditions}
        if not truth:
            return
        assert not (truth["Stalled"] == "True" and truth["Reconciling"] == "True")
        assert (truth["Ready"] == "True") == (status.phase is Phase.SUCCEEDED)
        assert (status.failure is not None) == (truth["Stalled"] == "True")
        assert status.failure is None or status.failure.remedy
        assert all(condition.last_transition_time <= self.world.now for condition in status.conditions)

    @invariant()
    def a_draft_is_never_shown_as_published(self) -> None:
        """status.published and Ready are for models that pass their gates."""
        status = self.world.status
        truth = {condition.type: condition.status for condition in status.conditions}
        assert status.draft is None or (status.published is None and status.serving is None)
        assert status.draft is None or (truth["Ready"], truth["Published"]) == ("False", "False")

    @invariant()
    def the_history_is_bounded_and_unique(self) -> None:
        """Newest first, and only finished runs."""
        history = self.world.status.history
        assert len(history) <= 5
        assert len({entry.id for entry in history}) == len(history)
        assert [entry.finished for entry in history] == sorted((entry.finished for entry in history), reverse=True)

    @invariant()
    def children_are_bounded(self) -> None:
        """One Job per stage, and those being deleted."""
        assert len([job for job in self.world.jobs.values() if "deletionTimestamp" not in job["metadata"]]) <= 4

    def teardown(self) -> None:
        """Without further disturbances the run is published in the end, and then causes no writes."""
        world = self.world
        world.native_sidecars, world.classic_sidecars = [], []
        world.profiles = ()
        for pod in world.live_pods():
            if "deletionTimestamp" in pod["metadata"]:  # its node is given up
                world.lose(pod)
        world.edit(suspend=False, maxRuntime="1000h", stallTimeout="0s", maxGpuHours="", retrain=None)
        world.edit(evaluation={"gates": [{"metric": "exact_match", "min": "0.5"}]})
        world.request("at last")
        world.edit(evaluation={"maxRows": 77})
        for _ in range(40):
            world.seconds += 10
            world.reconcile()
            world.admit()
            world.job_controller()
            world.run_pod()
        assert world.status.phase is Phase.SUCCEEDED, world.status
        assert world.outputs == set(Stage)
        writes, created = world.status_writes, list(world.created)
        world.settle()
        assert (world.status_writes, world.created) == (writes, created)
        assert (world.status.history[0].id, world.status.history[0].result) == (world.status.run.id, "Succeeded")


class GroupOperation(Operation):
    """The same with an object whose pods on several nodes were just created."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(compute={"nodes": 3, "startTimeout": "5m"})
        for _ in range(2):
            self.world.settle()
            self.world.seconds += 10
            if self.world.live_pods()[0]["stages"].keys() == {"prepare"}:
                self.world.run_pod(key=self.data)


TestOperation = pytest.mark.slow(Operation.TestCase)
TestOperation.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestGroupOperation = pytest.mark.slow(GroupOperation.TestCase)
TestGroupOperation.settings = settings(TestOperation.settings, max_examples=40)
