"""The samples for Argo CD, Flux and kustomize, against the engines' own types and a real API server."""

import subprocess

import yaml
from chart.rendering import NAMESPACE, render
from gitops.engines import ARGOCD_CM, KIT, kinds_of
from kube.plane import Json, Namespace
from tunemill_api.constants import GROUP, KIND, PLURAL
from tunemill_api.crd import object_schema

STAGES = ("prepare", "train", "publish")


def sample(name: str) -> list[Json]:
    """Return the documents of a sample."""
    return list(yaml.safe_load_all((KIT / name).read_text()))


def test_the_engines_know_every_field_of_the_samples() -> None:
    """Decoded strictly by the engines' own types: a misspelt field would be an error."""
    names = ["argocd/operator.yaml", "argocd/finetunes.yaml", "flux/operator.yaml", "flux/finetunes.yaml"]
    assert kinds_of(KIT / name for name in names) == [
        "argoproj.io/v1alpha1 Application",
        "argoproj.io/v1alpha1 Application",
        "source.toolkit.fluxcd.io/v1 GitRepository",
        "helm.toolkit.fluxcd.io/v2 HelmRelease",
        "source.toolkit.fluxcd.io/v1 GitRepository",
        "kustomize.toolkit.fluxcd.io/v1 Kustomization",
    ]


def test_the_settings_of_argo_cd_hold_the_health_check() -> None:
    """Whoever copies the script and whoever applies the ConfigMap gets the same check."""
    (settings,) = sample("argocd/argocd-cm.yaml")
    check = {f"resource.customizations.health.{GROUP}_{KIND}": (KIT / "argocd" / "health.lua").read_text()}
    assert settings["data"] == check
    assert ARGOCD_CM.name == "argocd-cm.yaml"


def test_the_chart_renders_the_same_under_argo_cd_each_time() -> None:
    """It renders without asking the cluster: nothing is random, and no secret thing is in it."""
    (application,) = sample("argocd/operator.yaml")
    source = application["spec"]["source"]["helm"]
    rendered = [render(source["releaseName"], **source["valuesObject"]) for _ in range(2)]
    assert rendered[0] == rendered[1]
    assert application["spec"]["destination"]["namespace"] == NAMESPACE
    assert not [secret for secret in rendered[0].all("Secret") if secret.get("data")]


def test_the_chart_takes_the_values_of_the_flux_sample() -> None:
    """Its schema refuses what it does not know."""
    (_, release) = sample("flux/operator.yaml")
    assert release["spec"]["targetNamespace"] == NAMESPACE
    assert render(release["spec"]["releaseName"], **release["spec"]["values"]).all("Deployment")


def references(schema: Json, path: str = "spec") -> set[str]:
    """Return the paths of the names of ConfigMaps and Secrets below a schema."""
    found = set()
    for name, part in schema.get("properties", {}).items():
        here = f"{path}/{name}"
        if name.endswith("Ref") or name == "configMap":
            found.add(f"{here}/name")
        elif name == "secret":
            found.add(f"{here}/secretName")
        else:
            found |= references(part, here) | references(part.get("items", {}), here)
    return found


def test_kustomize_is_told_of_every_field_that_names_a_config_map_or_a_secret() -> None:
    """A field that it does not know would keep the name that the generated object no longer has."""
    (configuration,) = sample("kustomize/base/names.yaml")
    paths = {item["kind"]: {field["path"] for field in item["fieldSpecs"]} for item in configuration["nameReference"]}
    assert paths["ConfigMap"] | paths["Secret"] == references(object_schema()["properties"]["spec"])
    assert all("configMap" in path for path in paths["ConfigMap"])
    assert paths["ServiceAccount"] == {f"spec/podTemplates/{stage}/serviceAccountName" for stage in STAGES}


def test_an_overlay_is_what_a_team_would_have_written(namespace: Namespace) -> None:
    """The generated name of the tools is where they are named, and the API server takes it all."""
    kubectl = [namespace.plane.kubectl, "--kubeconfig", namespace.plane.kubeconfig]
    overlay = [*kubectl, "kustomize", KIT / "kustomize" / "team-a"]
    built = subprocess.run(overlay, capture_output=True, text=True, check=True).stdout
    bodies = {body["kind"]: body for body in yaml.safe_load_all(built)}
    assert set(bodies) == {"ConfigMap", KIND}
    spec = bodies[KIND]["spec"]
    assert spec["tools"]["configMapKeyRef"]["name"] == bodies["ConfigMap"]["metadata"]["name"]
    assert bodies["ConfigMap"]["metadata"]["name"] != "support-tools-schema"
    assert spec["publish"]["repository"] == "team-a/support-tools"
    assert [gate.get("min") for gate in spec["evaluation"]["gates"]] == ["0.8", None]
    assert spec["baseModel"]["id"] == "google/gemma-2-2b-it"
    for kind, plural in ((KIND, PLURAL), ("ConfigMap", "configmaps")):
        body = bodies[kind] | {"metadata": bodies[kind]["metadata"] | {"namespace": namespace.name}}
        namespace.plane.api.post(f"{namespace.path(plural)}?dryRun=All&fieldValidation=Strict", body)
