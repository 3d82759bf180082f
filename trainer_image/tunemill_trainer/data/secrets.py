"""Finds secrets in rows: what a model has learnt it may tell to anybody.

Only forms that their makers chose to be recognisable are looked for, so that a finding is nearly always right: prefixes
and lengths are those that the makers document for scanners. Passwords and keys without such a form are not found.
"""

import json
import re

from tunemill_trainer.data.rows import Row

_KINDS: dict[str, str] = {
    # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
    "an AWS access key id": r"(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])",
    # https://github.blog/engineering/behind-githubs-new-authentication-token-formats/
    "a GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})",
    "a GitLab token": r"glpat-[A-Za-z0-9_-]{20}",
    "a Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
    "an OpenAI or Anthropic API key": r"sk-(?:proj-|svcacct-|admin-|ant-[a-z0-9]+-)?[A-Za-z0-9_]{20,}",
    "a Google API key": r"AIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a Stripe live key": r"[sr]k_live_[A-Za-z0-9]{16,}",
    "a package registry token": r"(?:npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,})",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    # RFC 7519: both parts are base64 of JSON objects, which begin with {".
    "a JSON Web Token": r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    "a password in a URL": r"[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>{}$]{1,64}:[^\s/:@\"'<>{}$]{3,128}@[A-Za-z0-9]",
}
_ANY = re.compile("|".join(f"(?P<k{number}>{pattern})" for number, pattern in enumerate(_KINDS.values())))
_BEGINS = re.compile(
    r"AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|hf_|sk-|AIza|xox[abeoprs]-|[sr]k_live_|npm_|pypi-|-----BEGIN|eyJ|://"
)
_NAMES = tuple(_KINDS)
_MADE_UP = re.compile(r"EXAMPLE|x{8}|X{8}|0{12}|\*{4}|(.)\1{11}")
"""What documentation writes in a secret's place: AWS's own example key, rows of x."""


def secrets_in(row: Row) -> list[str]:
    """Return the kinds of secrets that a row holds, each once, in words for a message."""
    texts = [text for message in row.messages for text in (message.content, message.reasoning) if text]
    texts += [json.dumps(call.arguments, ensure_ascii=False) for message in row.messages for call in message.calls]
    found: dict[str, None] = {}
    # Most rows hold nothing that a secret could begin with, and this looks through them much faster.
    for text in texts if _BEGINS.search("\n".join(texts)) else ():
        for match in _ANY.finditer(text):
            before = text[match.start() - 1 : match.start()]
            if not (before.isalnum() or _MADE_UP.search(match.group())):
                found[_NAMES[int(str(match.lastgroup)[1:])]] = None
    return list(found)
