"""Permissions of the operator."""

from typing import Any

import pytest
from chart.rendering import NAMESPACE, Rendered, render

EVERYWHERE: dict[str, Any] = {}
TWO_NAMESPACES: dict[str, Any] = {"watchNamespaces": ["team-a", "team-b"]}
both_modes = pytest.mark.parametrize("values", [EVERYWHERE, TWO_NAMESPACES], ids=["everywhere", "two namespaces"])


def rules(rendered: Rendered) -> list[dict[str, Any]]:
    """Return every rule of every role, of any subject."""
    return [rule for role in rendered.all("ClusterRole") + rendered.all("Role") for rule in role["rules"]]


def granted(rendered: Rendered, resource: str, namespace: str = "") -> set[str]:
    """Return the operator's verbs on a resource in a namespace; "" means all namespaces."""
    found = rendered.rules_of_operator()
    return {
        verb
        for _, where, rule in found
        if where == namespace and resource in rule["resources"]
        for verb in rule["verbs"]
    }


@both_modes
def test_no_role_can_access_secrets_or_config_maps_except_its_own(values: dict[str, Any]) -> None:
    """A compromised operator cannot read tokens: the only Secret is that of its own certificate."""
    rendered = render(**values)
    reaching = [rule for rule in rules(rendered) if {"secrets", "configmaps"} & set(rule["resources"])]
    assert [rule.get("resourceNames") for rule in reaching] == [[rendered.one("Secret")["metadata"]["name"]]]
    assert granted(rendered, "secrets") == set()
    assert granted(rendered, "secrets", NAMESPACE) == {"get", "update"}


@both_modes
def test_no_role_of_the_chart_has_a_wildcard(values: dict[str, Any]) -> None:
    """A wildcard would grant permissions on kinds added later."""
    for rule in rules(render(**values)):
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], rule


@both_modes
def test_the_operator_cannot_create_pods_change_specs_or_grant_permissions(values: dict[str, Any]) -> None:
    """Jobs create the pods; specs belong to users; roles and service accounts belong to the platform team."""
    rendered = render(**values)
    place = "team-a" if values else ""
    assert granted(rendered, "pods", place) == {"list", "watch"}
    assert granted(rendered, "functioncallfinetunes", place) == {"list", "watch"}
    assert granted(rendered, "services", place) == granted(rendered, "networkpolicies", place) == {"create", "delete"}
    bound = {resource for _, _, rule in rendered.rules_of_operator() for resource in rule["resources"]}
    assert bound == {
        "events",
        "finetuneprofiles",
        "finetuneprofiles/status",
        "functioncallfinetunes",
        "functioncallfinetunes/finalizers",
        "functioncallfinetunes/status",
        "jobs",
        "leases",
        "networkpolicies",
        "pods",
        "secrets",
        "services",
        "tokenreviews",
        "workloads",
    }


def test_a_namespaced_operator_has_cluster_permissions_for_cluster_scoped_kinds_only() -> None:
    """It is limited to the watched namespaces and its own; it writes the status of profiles."""
    rendered = render(**TWO_NAMESPACES)
    cluster_wide = [rule for kind, _, rule in rendered.rules_of_operator() if kind == "ClusterRole"]
    assert [rule["resources"] for rule in cluster_wide] == [
        ["finetuneprofiles"],
        ["finetuneprofiles/status"],
        ["tokenreviews"],
    ]
    assert granted(rendered, "finetuneprofiles") == {"list", "watch"}
    assert granted(rendered, "finetuneprofiles/status") == {"patch"}
    assert {where for kind, where, _ in rendered.rules_of_operator() if kind == "Role"} == {
        "team-a",
        "team-b",
        NAMESPACE,
    }
    assert granted(rendered, "jobs", "team-a") == granted(rendered, "jobs", "team-b") != set()


def test_without_progress_and_profiles_a_namespaced_operator_has_no_cluster_role() -> None:
    """Users without permission to create ClusterRoles can install it; the platform team installs only the CRDs."""
    off = {"enabled": False}
    rendered = render(
        **TWO_NAMESPACES, progress=off, profiles=off, admission=off, rbac={"aggregateClusterRoles": False}
    )
    assert "--no-profiles" in rendered.flags
    assert rendered.all("ValidatingAdmissionPolicy") == rendered.all("ValidatingAdmissionPolicyBinding") == []
    assert rendered.all("ClusterRole") == rendered.all("ClusterRoleBinding") == []


@both_modes
def test_the_lease_is_granted_by_name_in_the_release_namespace_only(values: dict[str, Any]) -> None:
    """The operator cannot modify other Leases, and the flag has the same name."""
    rendered = render(**values)
    leases = [(where, rule) for _, where, rule in rendered.rules_of_operator() if rule["resources"] == ["leases"]]
    assert {where for where, _ in leases} == {NAMESPACE}
    by_name = {tuple(rule["verbs"]): rule.get("resourceNames") for _, rule in leases}
    assert by_name == {("create",): None, ("get", "update"): [rendered.flags["--lease-name"]]}
    assert rendered.flags["--lease-namespace"] == NAMESPACE


def test_pods_are_patched_in_the_release_namespace_only() -> None:
    """The operator patches only the leader label."""
    rendered = render()
    assert granted(rendered, "pods", NAMESPACE) == {"patch"}


def test_users_get_permissions_through_aggregated_cluster_roles() -> None:
    """Editors of a namespace can create fine-tunes; only the operator writes a status."""
    view, edit = (
        role for role in render().all("ClusterRole") if "aggregate-to-edit" in str(role["metadata"]["labels"])
    )
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert [label for label in view["metadata"]["labels"] if label.startswith(prefix)] == [
        f"{prefix}view",
        f"{prefix}edit",
        f"{prefix}admin",
    ]
    assert f"{prefix}view" not in edit["metadata"]["labels"]
    assert {verb for rule in view["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert [rule["resources"] for rule in edit["rules"]] == [["functioncallfinetunes"]]


def test_rbac_objects_can_be_disabled() -> None:
    """With rbac.create false no role and no binding of the operator is rendered."""
    rendered = render(
        rbac={"create": False, "aggregateClusterRoles": False}, serviceAccount={"create": False, "name": "given"}
    )
    made = {found["kind"] for found in rendered.objects}
    assert made.isdisjoint({"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"})
    assert rendered.pod["spec"]["serviceAccountName"] == "given"


@both_modes
def test_admission_policies_match_the_operators_service_account_and_deny(values: dict[str, Any]) -> None:
    """Each has a binding that denies, and failurePolicy is Fail; other accounts are not affected."""
    rendered = render(**values)
    user = f"'system:serviceaccount:{NAMESPACE}:{rendered.one('ServiceAccount')['metadata']['name']}'"
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in rendered.all("ValidatingAdmissionPolicy")}
    bindings = [binding["spec"] for binding in rendered.all("ValidatingAdmissionPolicyBinding")]
    assert {binding["policyName"] for binding in bindings} == {*policies}
    assert all(binding == {**binding, "validationActions": ["Deny"]} for binding in bindings)
    (limits,) = [policies.pop(name) for name in list(policies) if name.endswith("-profile-limits")]
    assert limits["failurePolicy"] == "Ignore", "the operator checks what an expression cannot"
    for policy in policies.values():
        (condition,) = policy["matchConditions"]
        assert condition["expression"] == f"request.userInfo.username == {user}"
        assert policy["failurePolicy"] == "Fail"


@pytest.mark.parametrize("values", [{"admission": {"profileLimits": False}}, {"profiles": {"enabled": False}}])
def test_the_admission_policy_for_profile_limits_can_be_disabled(values: dict[str, Any]) -> None:
    """Without profiles it has no parameters."""
    names = [policy["metadata"]["name"] for policy in render(**values).all("ValidatingAdmissionPolicy")]
    assert [name.rsplit("-")[-1] for name in names] == ["jobs", "groups", "pods"]


def test_jobs_in_the_operators_namespace_are_denied_unless_it_is_watched() -> None:
    """Its Secrets are those of the platform team."""
    for values, denied in ((EVERYWHERE, True), ({"watchNamespaces": ["team-a", NAMESPACE]}, False)):
        policies = render(**values).all("ValidatingAdmissionPolicy")
        (jobs,) = [policy["spec"] for policy in policies if policy["metadata"]["name"].endswith("-jobs")]
        expression = jobs["validations"][0]["expression"]
        assert "'kube-system', 'kube-public', 'kube-node-lease'" in expression
        assert (f"'{NAMESPACE}'" in expression) is denied
