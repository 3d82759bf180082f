"""Any spec of a user and any profile: the effective spec is within the limits, or the spec is refused."""

from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from hypothesis import given as inputs
from hypothesis import strategies as st
from property.builders import a_profile, a_spec, parsed
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.profile import Limits
from tunemill_api.scalars import duration_seconds
from tunemill_operator.engine.profile_limits import check
from tunemill_operator.engine.profiles import RefusedError, applied, given

GPUS = st.integers(0, 16)
NODES = st.integers(1, 64)
HOURS = st.sampled_from(["", "0.5", "8", "24", "100"])
NAMES = st.sampled_from(["", "a", "ab", "b/a", "a*", "default"])
GLOBS = st.none() | st.lists(st.sampled_from(["*", "a", "a*", "?", "b/*", "google/*", "acme", "x"]), max_size=3)
DEVICES = st.dictionaries(st.sampled_from(["nvidia.com/gpu", "amd.com/gpu", "memory", "cpu"]), GPUS, max_size=2)
HUBS = st.sampled_from(["", "https://hub.acme.example", "https://elsewhere.example"])


def parts(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return parts of a spec in which any of these fields may be absent."""
    return st.fixed_dictionaries({}, optional=fields)


COMPUTE = parts(
    gpus=GPUS,
    nodes=NODES,
    gpuResource=st.sampled_from(["nvidia.com/gpu", "amd.com/gpu"]),
    modelCache=parts(claimName=st.sampled_from(["", "a", "ab"])),
    trainerImage=NAMES,
)
TEMPLATE = parts(
    serviceAccountName=st.sampled_from(["", "a", "ab", "a.b", "default"]),
    priorityClassName=st.sampled_from(["", "a", "ab", "x"]),
    runtimeClassName=st.sampled_from(["", "a", "x"]),
    resources=parts(limits=DEVICES, requests=DEVICES),
    env=st.lists(st.sampled_from([{"name": "A", "value": "1"}, {"name": "LD_PRELOAD", "value": "1"}]), max_size=1),
    tolerations=st.lists(st.just({"operator": "Exists"}), max_size=1),
    nodeSelector=st.sampled_from([{}, {"pool": "x"}]),
)
TEMPLATES = parts(prepare=TEMPLATE, train=TEMPLATE, publish=TEMPLATE)
QUEUE = st.fixed_dictionaries({"name": st.just("q")}, optional={"priorityClass": st.sampled_from(["", "a", "ab", "x"])})
GATES = st.fixed_dictionaries({"metric": st.sampled_from(["exact_match", "ast_match"]), "min": st.just("0.5")})
RUNTIMES = st.sampled_from(["30m", "1.5h", "8h", "1d"])
SPECS = parts(
    compute=COMPUTE,
    podTemplates=TEMPLATES,
    maxGpuHours=HOURS,
    maxRuntime=RUNTIMES,
    retry=parts(limit=st.integers(0, 20)),
    hub=parts(endpoint=HUBS),
    dataset=parts(endpoint=HUBS),
    evaluation=parts(gates=st.lists(GATES, max_size=16)),
    publish=parts(private=st.booleans()),
    queue=QUEUE,
)
LIMITS = parts(
    maxGpus=GPUS,
    maxNodes=NODES,
    maxGpuHours=HOURS,
    baseModels=GLOBS,
    hubOrganizations=GLOBS,
    trainerImages=GLOBS,
    serviceAccounts=GLOBS,
    priorityClasses=GLOBS,
    runtimeClasses=GLOBS,
    podTemplateFields=st.lists(st.sampled_from(["env", "resources", "serviceAccountName"]), max_size=3, unique=True),
    maxResources=st.dictionaries(st.sampled_from(["memory", "cpu"]), st.integers(0, 16), max_size=2),
    maxRuntime=RUNTIMES,
    maxRetries=st.integers(0, 20),
    gpuResources=GLOBS,
    claims=GLOBS,
    endpoints=st.lists(st.sampled_from(["*.acme.example", "hub.acme.example"]), max_size=2),
    gates=st.lists(GATES, max_size=2),
    privateOnly=st.booleans(),
)


@inputs(run_fields=SPECS, defaults=SPECS, limits=LIMITS)
def test_the_effective_spec_never_exceeds_a_limit(
    run_fields: dict[str, Any], defaults: dict[str, Any], limits: dict[str, Any]
) -> None:
    """Neither by set fields nor by omitted ones, of the user or the profile."""
    profile, spec = a_profile(defaults=defaults, limits=limits), parsed(a_spec(**run_fields))
    fields = given(spec, profile)
    whole = applied(spec, fields)
    try:
        check(whole, fields, profile)
    except RefusedError:
        return
    assert_within(whole, profile.spec.limits, defaults)
    allowed = limits.get("podTemplateFields")
    for template in run_fields.get("podTemplates", {}).values():
        for name, value in template.items():
            assert allowed is None or name in allowed or value == {}
            escapes = name in ("tolerations", "nodeSelector") and value
            assert not escapes or not profile.limited or name in (allowed or ())
    assert given(spec, profile) == fields, "the same spec always gets the same fields"


def assert_within(spec: FineTuneSpec, limits: Limits, defaults: dict[str, Any]) -> None:
    """Assert that a spec is within the limits as documented on the reference page."""
    compute, templates = spec.compute, [spec.pod_templates.of(stage) for stage in ("prepare", "train", "publish")]
    if limits.max_gpus is not None:
        assert compute.gpus <= limits.max_gpus
    if limits != Limits():
        assert compute.nodes <= (limits.max_nodes or defaults.get("compute", {}).get("nodes", 1))
    if limits.max_gpu_hours:
        assert Decimal(spec.max_gpu_hours) <= Decimal(limits.max_gpu_hours)
    if limits.max_gpus is not None or limits.max_gpu_hours:
        presets = str(defaults.get("podTemplates", {}))
        for template in templates:
            used = [*template.resources.requests, *template.resources.limits]
            assert all(name in presets for name in used if "/" in name)
    if limits.max_runtime:
        assert duration_seconds(spec.max_runtime) <= duration_seconds(limits.max_runtime)
    assert limits.max_retries is None or spec.retry.limit <= limits.max_retries
    assert all(gate in spec.evaluation.gates for gate in limits.gates or ())
    assert spec.publish.private or not limits.private_only
    if limits.endpoints is not None:
        preset = defaults.get("dataset", {}).get("endpoint", "")
        assert spec.dataset.endpoint in (preset, "https://hub.acme.example")
    for resource, most in (limits.max_resources or {}).items():
        for template in templates:
            assert int(template.resources.limits[resource]) <= int(most), "and there always is a limit"
            assert int(template.resources.requests.get(resource, "0")) <= int(most)
    for allowed, name in (
        (limits.base_models, spec.base_model.id),
        (limits.hub_organizations, spec.publish.repository.split("/")[0]),
        (limits.trainer_images, compute.trainer_image),
        (limits.gpu_resources, compute.gpu_resource if compute.gpus else ""),
        (limits.claims, compute.model_cache.claim_name),
        *((limits.service_accounts, template.service_account_name) for template in templates),
        *((limits.priority_classes, template.priority_class_name) for template in templates),
        *((limits.runtime_classes, template.runtime_class_name) for template in templates),
        (limits.priority_classes, spec.queue.priority_class if spec.queue else ""),
    ):
        assert allowed is None or not name or any(fnmatchcase(name, glob) for glob in allowed)
    if limits.base_models is not None or limits.hub_organizations is not None:
        assert spec.hub.endpoint == defaults.get("hub", {}).get("endpoint", "")
