"""The small types that the spec is made of: shares, names, addresses, references, and the CEL rules on them."""

from typing import Annotated

from pydantic import Field, JsonValue

from tunemill_api.base import ApiModel


def rule(expression: str, message: str) -> dict[str, str]:
    """Return a CEL rule for `x-kubernetes-validations`; the API server answers `message` at `kubectl apply`."""
    return {"rule": expression, "message": message}


def rules(*items: dict[str, str]) -> dict[str, JsonValue]:
    """Return the schema extension that carries CEL rules."""
    return {"x-kubernetes-validations": [dict(item) for item in items]}


Fraction = Annotated[str, Field(pattern=r"^(0(\.[0-9]{1,6})?|1(\.0{1,6})?)$", max_length=8)]
"""A share from 0 to 1 as a string: Kubernetes APIs avoid floats."""

Number = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$", max_length=16)]
"""A number that is not negative, as a string, for example "2e-4"."""

Difference = Annotated[str, Field(pattern=r"^-?(0(\.[0-9]{1,6})?|1(\.0{1,6})?)$", max_length=9)]
"""A difference of two shares, from -1 to 1, as a string."""

DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""The name of a Kubernetes object."""

DataKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
"""A key in a Secret's or ConfigMap's data."""

HubId = Annotated[
    str, Field(min_length=1, max_length=96, pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]*(/[A-Za-z0-9][-._A-Za-z0-9]*)?$")
]
"""A repository on the Hub: `name` or `owner/name`."""

_S3 = r"s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](/.*)?"
_HUB = (
    r"hf://(datasets/)?[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*(@[A-Za-z0-9][-._A-Za-z0-9]*)?"
    r"(/[^\s]+)?"
)

DataUri = Annotated[str, Field(max_length=1024, pattern=rf"^({_S3}|{_HUB})$")]
"""An S3 object, prefix or glob, or a data set on the Hub."""

OptionalDataUri = Annotated[str, Field(max_length=1024, pattern=rf"^({_S3}|{_HUB})?$")]
"""As DataUri; empty means none."""

Endpoint = Annotated[str, Field(max_length=512, pattern=r"^(https?://[^\s/?#@]+(/[^\s?#]*)?)?$")]
"""The URL of a service, without a user, a password or a query: everybody who may read the object reads it. Empty means
the public one."""

Duration = Annotated[str, Field(max_length=16, pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$", min_length=2)]
"""A time such as 8h, 90m or 1h30m."""


class SecretKeyRef(ApiModel):
    """One key of a Secret in the object's namespace."""

    name: DnsName
    """The Secret's name."""
    key: DataKey = "token"
    """The key in the Secret's data."""


class SecretRef(ApiModel):
    """A Secret in the object's namespace."""

    name: DnsName
    """The Secret's name. Its keys are those of the AWS environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and,
    optionally, AWS_SESSION_TOKEN."""


class ConfigMapKeyRef(ApiModel):
    """One key of a ConfigMap in the object's namespace."""

    name: DnsName
    """The ConfigMap's name."""
    key: DataKey
    """The key in the ConfigMap's data."""


def duration_seconds(duration: str) -> int:
    """Return the seconds of a Duration such as 1h30m."""
    seconds, number = 0, ""
    for character in duration:
        if character.isdigit():
            number += character
        else:
            seconds += int(number) * {"h": 3600, "m": 60, "s": 1}[character]
            number = ""
    return seconds
