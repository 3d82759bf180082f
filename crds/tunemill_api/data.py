"""What is learnt from: the data set, its tools, and how conversations become tokens."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import ConfigMapKeyRef, DataUri, Endpoint, Fraction, OptionalDataUri, SecretRef, rule, rules


class DatasetFormat(StrEnum):
    """How the rows say who said what, and which tools were called."""

    AUTO = "Auto"
    OPENAI = "OpenAI"
    HERMES = "Hermes"
    SHAREGPT = "ShareGPT"
    XLAM = "XLAM"
    TOOLACE = "ToolACE"
    GLAIVE = "Glaive"
    SIMPLE = "Simple"
    PROMPT_COMPLETION = "PromptCompletion"
    SWIFT = "Swift"
    ANTHROPIC = "Anthropic"
    RESPONSES = "Responses"
    CLIENT_LOG = "ClientLog"
    TOOLBENCH = "ToolBench"
    API_BANK = "APIBank"
    NESTFUL = "NESTFUL"
    TAU_BENCH = "TauBench"
    WHEN2CALL = "When2Call"
    BFCL = "BFCL"


class EvaluationSplit(ApiModel):
    """Which rows are held out from training and judged."""

    fraction: Annotated[
        Fraction,
        Field(
            json_schema_extra=rules(
                rule(
                    "double(self) > 0.0 && double(self) < 1.0",
                    'evaluation.fraction must lie between 0 and 1, for example "0.1"',
                )
            )
        ),
    ] = "0.1"
    """The share of the rows that is held out. Rows that ask the same always fall on the same side."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Chooses which rows are held out."""
    uri: OptionalDataUri = ""
    """Where the held-out rows are, instead of a share of the training rows; written as dataset.uri and read with the
    same credentials."""


class Dataset(ApiModel):
    """Where the rows are and what they look like."""

    uri: DataUri
    """An S3 object (.jsonl, .json or .parquet, also with .gz), a prefix that ends in / for all such objects below it,
    or a glob such as s3://bucket/calls/*.jsonl. Or a data set on the Hub: hf://owner/name, hf://owner/name@revision,
    hf://owner/name/data/*.parquet; it is read with the token of baseModel.tokenSecretRef."""
    format: DatasetFormat = DatasetFormat.AUTO
    """Auto looks at the rows. OpenAI: messages, tools. Hermes: conversations with tags, as the Hermes and agents-course
    data have them. ShareGPT: conversations with from and value. XLAM: query, answers, tools. ToolACE: system,
    conversations. Glaive: system, chat. Simple: user_content, tool_name, tool_arguments. PromptCompletion: prompt,
    completion as turns. Swift: messages with tool_call and tool_response. Anthropic: messages with blocks. Responses:
    input, output as items. ClientLog: request, response. ToolBench, APIBank, NESTFUL, TauBench, When2Call, BFCL: the
    data sets of these names."""
    credentials_secret_ref: SecretRef | None = None
    """Absent: the pod's own identity."""
    endpoint: Endpoint = ""
    """The S3 server's URL; empty means AWS."""
    region: Annotated[str, Field(max_length=64, pattern=r"^[-a-z0-9]*$")] = ""
    """The bucket's region; empty means what the environment says."""
    evaluation: EvaluationSplit = EvaluationSplit()
    """Which rows are held out from training and judged."""
    max_invalid_fraction: Fraction = "0"
    """The share of rows that may be wrong and is left out; above it prepare fails and names the rows."""
    max_rows: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """How many rows to use at most, from the start; 0 means all."""


class Tools(ApiModel):
    """Where the tools come from that are the same for all rows."""

    config_map_key_ref: ConfigMapKeyRef
    """A JSON list of tools, as OpenAI's API takes them."""


class Think(StrEnum):
    """What to do with what an assistant thinks before it speaks or calls."""

    KEEP = "Keep"
    DROP = "Drop"


class TokenizerMode(StrEnum):
    """What to do about the tags of the call format."""

    AUTO = "Auto"
    REUSE = "Reuse"
    TEXT = "Text"
    EXTEND = "Extend"


class ChatTemplateSource(ApiModel):
    """Where a chat template of your own comes from."""

    config_map_key_ref: ConfigMapKeyRef
    """A Jinja chat template. Everything that the loss is computed on stands between {% generation %} and {%
    endgeneration %}."""


class Tokenizer(ApiModel):
    """The vocabulary and the chat template."""

    mode: TokenizerMode = TokenizerMode.AUTO
    """Reuse: every tag that the assistant writes must be one token already. Text: tags that the base lacks stay
    ordinary text of several tokens each; the vocabulary is the base's own, so that servers take the adapter alone.
    Extend: add the missing tags and train their rows. Auto: Reuse where possible; else Text where a server then takes
    the adapter alone, or the method is IA3; else Extend, as in all cases with addTokens that the base lacks."""
    add_tokens: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=64)]],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """More tokens to add, besides the tags of the call format that the base lacks."""
    chat_template: ChatTemplateSource | None = None
    """A template of your own; absent: the base model's where it carries tools, else ours."""
    think: Think = Think.KEEP
    """Keep: learn what the assistant thinks, as think → act → observe data have it. Drop: leave it out, for a model
    that answers at once."""
