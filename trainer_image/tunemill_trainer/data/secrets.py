"""Finds secrets in rows. A model can reveal its training data to anyone.

Only secrets with a recognisable form are detected, using the prefixes and lengths that their issuers document for
scanners. So nearly every finding is a true positive, but passwords and keys without such a form are not found.
"""

import json
import re
from collections.abc import Iterator

from tunemill_trainer.data.caches import IdentityCache
from tunemill_trainer.data.rows import Row, Tool

_KINDS: dict[str, str] = {
    # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
    "an AWS access key id": r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    # It has no prefix, but its usual name comes before it.
    "an AWS secret access key": r"(?i:(?:aws_?)?secret_?access_?key)[\"' :=]{1,6}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    # https://github.blog/engineering/behind-githubs-new-authentication-token-formats/
    "a GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})",
    "a GitLab token": r"gl(?:pat|dt|rt)-[A-Za-z0-9_-]{20}",
    "a Hugging Face token": r"(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "an API key of a model provider": (
        r"sk-(?:(?:proj|svcacct|admin|ant-[a-z0-9]+|or-v1)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9_]{20,})"
        r"|gsk_[A-Za-z0-9]{40,}|xai-[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{37}|pplx-[A-Za-z0-9]{40,}|nvapi-[A-Za-z0-9_-]{60,}"
    ),
    "a Google key or token": r"AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{30,}|GOCSPX-[A-Za-z0-9_-]{28}",
    "a Slack token": r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}",
    "a Slack webhook": r"https://hooks\.slack\.com/services/T[A-Za-z0-9]+/B[A-Za-z0-9]+/[A-Za-z0-9]{20,}",
    "a Stripe live key": r"[sr]k_live_[A-Za-z0-9]{16,}",
    "a package registry token": r"npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|dckr_pat_[A-Za-z0-9_-]{27}",
    "a cloud provider's token": (
        r"do[opr]_v1_[a-f0-9]{64}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|hv[sb]\.[A-Za-z0-9_-]{24,}|dapi[a-f0-9]{32}"
        r"|glsa_[A-Za-z0-9]{32}_[a-fA-F0-9]{8}|SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}|AccountKey=[A-Za-z0-9+/]{86}=="
    ),
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|AGE-SECRET-KEY-1[A-Z0-9]{58}",
    # RFC 7519: both parts are base64 of JSON objects, which begin with {".
    "a JSON Web Token": r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    "a password in a URL": r"[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>{}$]{0,64}:[^\s/:@\"'<>{}$]{3,128}@[A-Za-z0-9]",
}
_ANY = re.compile("|".join(f"(?P<k{number}>{pattern})" for number, pattern in enumerate(_KINDS.values())))
_BEGINS = re.compile(
    r"AKIA|ASIA|(?i:access_?key)|AccountKey|AGE-SECRET|gh[pousr]_|github_pat_|gl(?:pat|dt|rt|sa)[-_]|hf_|api_org_|sk-|gsk_|xai-|r8_|pplx-|nvapi-|AIza"
    r"|ya29|GOCSPX|xox[abeoprs]-|xapp-|[sr]k_live_|npm_|pypi-|dckr_|do[opr]_v1|shp(?:at|ca|pa|ss)_|hv[sb]\.|dapi|SG\."
    r"|-----BEGIN|eyJ|://"
)
_NAMES = tuple(_KINDS)
_MADE_UP = re.compile(
    r"EXAMPLE|x{8}|X{8}|0{12}|\*{4}|(.)\1{11}|[-_]here\b|\byour[-_]|://[^:@]*:(?:pass(?:word|wd)?|pwd|secret|token|key|guest)@"
)
"""Matches placeholders in documentation: AWS's example key, repeated characters, the word `password`."""


def secrets_in(row: Row) -> list[str]:
    """Return the kinds of secrets in a row, each once, as text for a message."""
    texts = [text for message in row.messages for text in (message.content, message.reasoning) if text]
    texts += [json.dumps(call.arguments, ensure_ascii=False) for message in row.messages for call in message.calls]
    found = dict.fromkeys(_in_tools(row.tools))
    # Most rows contain no prefix of a secret, and searching for the prefixes is much faster.
    if _BEGINS.search("\n".join(texts)):
        found |= dict.fromkeys(kind for text in texts for kind in _kinds_in(text))
    return list(found)


def _kinds_in(text: str) -> Iterator[str]:
    for match in _ANY.finditer(text):
        before = text[match.start() - 1 : match.start()]
        if not (before.isalnum() or _MADE_UP.search(match.group())):
            yield _NAMES[int(str(match.lastgroup)[1:])]


def _find_in_tools(tools: tuple[Tool, ...]) -> tuple[str, ...]:
    return tuple(kind for tool in tools for kind in _kinds_in(json.dumps(tool.to_json(), ensure_ascii=False)))


_in_tools = IdentityCache(_find_in_tools, size_of=lambda tools: sum(tool.size for tool in tools))
