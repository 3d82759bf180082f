"""No two namespaces share a folder for outputs, whatever their users write."""

import pytest
from api.builders import a_spec
from tunemill_api.finetune import workspace_of


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("", "s3://team-a-data/tunemill/team-a/"),
        ("s3://acme", "s3://acme/team-a/"),
        ("s3://acme/tunemill/", "s3://acme/tunemill/team-a/"),
        ("s3://acme/tunemill/team-b", "s3://acme/tunemill/team-b/team-a/"),
        ("s3://acme/{namespace}/tunemill/", "s3://acme/team-a/tunemill/"),
        ("s3://acme/tunemill/{namespace}", "s3://acme/tunemill/team-a/"),
        ("s3://acme/team-{namespace}/", "s3://acme/team-{namespace}/team-a/"),
        ("s3://acme/{namespace}/../team-b/", "s3://acme/team-a/../team-b/team-a/"),
    ],
)
def test_every_workspace_has_a_folder_per_namespace(uri: str, place: str) -> None:
    """At the placeholder, else as the last folder."""
    spec = a_spec(dataset={"uri": "s3://team-a-data/calls.jsonl"}, workspace={"uri": uri})
    assert workspace_of(spec, "team-a").uri == place
    assert workspace_of(spec, "team-b").uri != place


def test_a_default_workspace_uses_the_endpoint_of_the_dataset() -> None:
    """Endpoint, region and credentials are those of the dataset."""
    data = {"uri": "s3://team-a-data/calls.jsonl", "endpoint": "https://s3.acme.com", "region": "eu"}
    place = workspace_of(a_spec(dataset=data | {"credentialsSecretRef": {"name": "s3"}}), "team-a")
    assert place.credentials_secret_ref is not None
    assert (place.endpoint, place.region, place.credentials_secret_ref.name) == ("https://s3.acme.com", "eu", "s3")
