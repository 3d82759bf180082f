"""Scalar types of the spec (fractions, names, addresses, references) and their CEL rules."""

import math
import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, Field, JsonValue

from tunemill_api import local_files
from tunemill_api.base import ApiModel


def rule(expression: str, message: str) -> dict[str, str]:
    """Return a CEL rule for `x-kubernetes-validations`. The API server shows `message` at `kubectl apply`."""
    return {"rule": expression, "message": message}


def rules(*items: dict[str, str]) -> dict[str, JsonValue]:
    """Return the schema extension with these CEL rules."""
    return {"x-kubernetes-validations": [dict(item) for item in items]}


Fraction = Annotated[str, Field(pattern=r"^(0(\.[0-9]{1,6})?|1(\.0{1,6})?)$", max_length=8)]
"""A number from 0 to 1 as a string, because Kubernetes APIs avoid floats."""

AUTO = "Auto"

NumberOrAuto = Annotated[str, Field(pattern=rf"^({AUTO}|[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{{1,2}})?)$", max_length=16)]
"""A non-negative number as a string, for example "2e-4", or Auto."""

FractionOrAuto = Annotated[str, Field(pattern=rf"^({AUTO}|0(\.[0-9]{{1,6}})?|1(\.0{{1,6}})?)$", max_length=8)]
"""A number from 0 to 1 as a string, or Auto."""

Difference = Annotated[str, Field(pattern=r"^-?(0(\.[0-9]{1,6})?|1(\.0{1,6})?)$", max_length=9)]
"""A difference of two fractions, from -1 to 1, as a string."""

DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""The name of a Kubernetes object."""

DataKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
"""A key in a Secret's or ConfigMap's data."""

_NOT_LOCAL = rules(rule(local_files.RULE, local_files.RULE_MESSAGE))

BaseModelId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1024,
        pattern=rf"^([A-Za-z0-9][-._A-Za-z0-9]{{0,95}}(/[A-Za-z0-9][-._A-Za-z0-9]{{0,95}})?|{local_files.PATTERN})$",
        json_schema_extra=_NOT_LOCAL,
    ),
]
"""A repository on the Hub, `name` or `owner/name`; a folder for `tunemill run`."""

OwnRepository = Annotated[
    str,
    Field(
        max_length=1024,
        pattern=rf"^([A-Za-z0-9][-._A-Za-z0-9]{{0,95}}/[A-Za-z0-9][-._A-Za-z0-9]{{0,88}}|{local_files.PATTERN})$",
        json_schema_extra=_NOT_LOCAL,
    ),
]
"""A repository on the Hub to write to, `owner/name`; a folder for `tunemill run`."""

_S3 = r"s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](/.*)?"
_HUB = (
    r"hf://(datasets/)?[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*(@[A-Za-z0-9][-._A-Za-z0-9]*)?"
    r"(/[^\s]+)?"
)

DataUri = Annotated[
    str,
    Field(max_length=1024, pattern=rf"^({_S3}|{_HUB}|{local_files.PATTERN})$", json_schema_extra=_NOT_LOCAL),
]
"""An S3 object, prefix or glob, or a data set on the Hub; a file, folder or glob for `tunemill run`."""

OptionalDataUri = Annotated[
    str,
    Field(max_length=1024, pattern=rf"^({_S3}|{_HUB}|{local_files.PATTERN})?$", json_schema_extra=_NOT_LOCAL),
]
"""A DataUri; empty means none."""

Endpoint = Annotated[str, Field(max_length=512, pattern=r"^(https?://[^\s/?#@]+(/[^\s?#]*)?)?$")]
"""URL of a service, without a user, password or query, because everyone who can read the object can read it. Empty
means the public service."""

Duration = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^(0|([0-9]+(\.[0-9]{1,6})?[dhms])+)$")]
"""A duration as Go and Kubernetes write it, with d for days of 24 hours: 8h, 90m, 1h30m, 1.5h or 1d12h."""

Quantity = Annotated[
    str,
    Field(
        max_length=64,
        pattern=r"^\+?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]+))?$",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
    # `cpu: 4` is a number in YAML, and the API server keeps it as one.
    BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
]
"""A Kubernetes quantity such as 500m or 16Gi."""


class SecretKeyRef(ApiModel):
    """A key of a Secret in the object's namespace."""

    name: DnsName
    """Name of the Secret."""
    key: DataKey = "token"
    """Key in the Secret's data."""


class SecretRef(ApiModel):
    """A Secret in the object's namespace."""

    name: DnsName
    """Name of the Secret. Its keys are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, optionally, AWS_SESSION_TOKEN."""


class ManifestKeyRef(SecretRef):
    """A Secret with the key that signs manifests."""

    name: DnsName
    """Name of the Secret. Its keys are `key` (at least 32 random characters) and, optionally, `previous-key` (still
    accepted, for a rotation) and `trusted-before` (a time such as 2026-11-30T12:00:00Z; outputs that were written
    before it need no signature)."""


class ConfigMapKeyRef(ApiModel):
    """A key of a ConfigMap in the object's namespace."""

    name: DnsName
    """Name of the ConfigMap."""
    key: DataKey
    """Key in the ConfigMap's data."""


_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_MULTIPLES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}


def duration_seconds(duration: str) -> int:
    """Return the seconds of a Duration such as 1h30m, rounded up."""
    parts = re.findall(r"([0-9.]+)([dhms])", duration)
    return math.ceil(sum(Decimal(number) * _SECONDS[unit] for number, unit in parts))


def quantity_value(quantity: str) -> Decimal:
    """Return the numeric value of a Quantity: 0.5 for 500m, 17179869184 for 16Gi."""
    number, unit = re.fullmatch(r"(.*?)([numkMGTPE]|[KMGTPE]i)?", quantity).groups(default="")  # type: ignore[union-attr]
    return Decimal(number) * _MULTIPLES[unit]
