"""Secrets in the data are found by their documented forms, and messages never contain them."""

import pytest
from trainer.data.building import a_row, calls, says, user
from tunemill_trainer.data import lint
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.data.rows import Tool

ALNUM = "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8bC0dF2hJ4"
HEX = "0123456789abcdef"
FOUND = {
    "an AWS access key id": "AKIA" + "QWERTZUIOPASDFGH",
    "a GitHub token": "ghp_" + ALNUM,
    "a GitLab token": "glpat-" + ALNUM[:20],
    "a Hugging Face token": "hf_" + ALNUM[:34],
    "an API key of a model provider": "sk-proj-" + ALNUM[:8] + "-" + ALNUM,
    "a Google key or token": "AIza" + ALNUM[:35],
    "an AWS secret access key": "aws_secret_access_key = " + ALNUM + "+/+/",
    "a cloud provider's token": "dapi" + HEX * 2,
    "a Slack token": "xoxb-" + "1234567890-" + ALNUM[:12],
    "a Stripe live key": "sk_live_" + ALNUM[:24],
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a JSON Web Token": "eyJ" + ALNUM[:20] + ".eyJ" + ALNUM[:20] + "." + ALNUM,
    "a password in a URL": "postgres://admin:" + "s3cr3t@db.acme.example/x",
}


@pytest.mark.parametrize("kind", FOUND)
def test_a_secret_is_found_anywhere(kind):
    """In user messages and in arguments of calls; the message has the kind but not the secret."""
    secret = FOUND[kind]
    for row in (a_row(user(f"My key is {secret}."), says()), a_row(user(), calls(city=f"x {secret}"))):
        (problem,) = lint.problems(row)
        assert problem.rule is Rule.SECRET
        assert kind in problem.message
        assert secret not in problem.message


@pytest.mark.parametrize(
    "secret",
    [
        "sk-or-v1-" + HEX * 4,
        "gsk_" + ALNUM + ALNUM[:16],
        "xai-" + ALNUM * 2,
        "r8_" + ALNUM + "a",
        "pplx-" + ALNUM + ALNUM[:12],
        "nvapi-" + ALNUM * 2,
        "ya29." + ALNUM,
        "GOCSPX-" + ALNUM[:28],
        "xapp-1-" + ALNUM,
        "https://hooks.slack.com/services/" + "T0AB1/B2CD3/" + ALNUM[:24],
        "dckr_pat_" + ALNUM[:27],
        "dop_v1_" + HEX * 4,
        "shpat_" + HEX * 2,
        "hvs." + ALNUM,
        "glsa_" + ALNUM[:32] + "_" + HEX[:8],
        "SG." + ALNUM[:22] + "." + ALNUM + ALNUM[:7],
        "AccountKey=" + ALNUM * 2 + ALNUM[:14] + "==",
        "AGE-SECRET-" + "KEY-1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7LQPZRY9X8GF2TVDW0S3JN54KHCE",
        "AKIA" + "1234567890ABCDEF",
        '"SecretAccessKey": "' + ALNUM + '+/+/"',
    ],
)
def test_the_quick_search_finds_every_kind(secret):
    """Each kind of secret has a prefix in it."""
    assert [problem.rule for problem in lint.problems(a_row(user(f"Use {secret} here"), says()))] == [Rule.SECRET]


def test_a_secret_in_a_tool_is_found_too():
    """Every prompt contains the tools."""
    tool = Tool("f", "Send " + FOUND["a GitHub token"], {"type": "object", "properties": {}})
    (problem,) = lint.problems(a_row(user(), says(), tools=(tool,)))
    assert problem.rule is Rule.SECRET


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "IOSFODNN7EXAMPLE",
        "hf_" + "x" * 34,
        "task-" + "management-for-larger-organisations",
        "the skill sk-learn-something-completely-different",
        "https://acme.example/a:b@c",
        "postgres://${USER}:${PASSWORD}@db",
        "the token is <TOKEN>",
        "postgres://user:" + "password@host/db",
        "xoxb-" + "your-token-here",
        "disk-abcdefghijklmnopqrstuvwxyz",
    ],
)
def test_placeholders_are_not_secrets(text):
    """Examples in documentation and plain words."""
    assert lint.problems(a_row(user(text), says())) == []
