"""The samples for Argo CD, Flux and kustomize, checked with the engines' types and a real API server."""

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
    """Decoded strictly by the engines' types."""
    names = ["argocd/operator.yaml", "argocd/finetunes.yaml", "flux/operator.yaml", "flux/finetunes.yaml"]
    assert kinds_of(KIT / name for name in names) == [
        "argoproj.io/v1alpha1 Application",
        "argoproj.io/v1alpha1 Application",
        "source.toolkit.fluxcd.io/v1 GitRepository",
        "helm.toolkit.fluxcd.io/v2 HelmRelease",
        "source.toolkit.fluxcd.io/v1 GitRepository",
        "kustomize.toolkit.fluxcd.io/v1 Kustomization",
    ]


def test_the_settings_of_argo_cd_have_the_health_check() -> None:
    """The script and the ConfigMap have the same check."""
    (settings,) = sample("argocd/argocd-cm.yaml")
    check = {f"resource.customizations.health.{GROUP}_{KIND}": (KIT / "argocd" / "health.lua").read_text()}
    assert settings["data"] == check
    assert ARGOCD_CM.name == "argocd-cm.yaml"


def test_the_chart_rendering_under_argo_cd_is_reproducible() -> None:
    """It renders without cluster lookups, random values and secrets."""
    (application,) = sample("argocd/operator.yaml")
    source = application["spec"]["source"]["helm"]
    rendered = [render(source["releaseName"], **source["valuesObject"]) for _ in range(2)]
    assert rendered[0] == rendered[1]
    assert application["spec"]["destination"]["namespace"] == NAMESPACE
    assert not [secret for secret in rendered[0].all("Secret") if secret.get("data")]


def test_the_chart_accepts_the_values_of_the_flux_sample() -> None:
    """Its schema rejects unknown ones."""
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


def test_kustomize_has_every_reference_to_config_maps_and_secrets() -> None:
    """Otherwise a reference would keep the name without the generated suffix."""
    (configuration,) = sample("kustomize/base/names.yaml")
    paths = {item["kind"]: {field["path"] for field in item["fieldSpecs"]} for item in configuration["nameReference"]}
    assert paths["ConfigMap"] | paths["Secret"] == references(object_schema()["properties"]["spec"])
    assert all("configMap" in path for path in paths["ConfigMap"])
    assert paths["ServiceAccount"] == {f"spec/podTemplates/{stage}/serviceAccountName" for stage in STAGES}


def test_an_overlay_is_rendered_with_generated_names(namespace: Namespace) -> None:
    """References to the tools have the generated name, and the API server accepts all objects."""
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
