"""The training data: data set, tools, tokenizer and chat template."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import (
    ConfigMapKeyRef,
    DataUri,
    Endpoint,
    Fraction,
    FractionOrAuto,
    OptionalDataUri,
    SecretRef,
    rule,
    rules,
)


class DatasetFormat(StrEnum):
    """Format of the rows."""

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


def _share(field: str, example: str) -> Any:  # noqa: ANN401 - pydantic declares Field so
    """Return the schema of a fraction of the rows that is neither 0 nor 1."""
    message = f'{field} must be between 0 and 1, for example "{example}"'
    return Field(json_schema_extra=rules(rule("double(self) > 0.0 && double(self) < 1.0", message)))


class SplitBy(StrEnum):
    """What rows of the same split have in common."""

    PROMPT = "Prompt"
    TOOLS = "Tools"


class EvaluationSplit(ApiModel):
    """The held-out split: which rows are used for evaluation and not for training."""

    fraction: Annotated[Fraction, _share("evaluation.fraction", "0.1")] = "0.1"
    """Fraction of the rows that is held out, as a string. splitBy decides which rows are held out together."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Seed that selects the held-out rows."""
    split_by: SplitBy = SplitBy.PROMPT
    """Which rows are always in the same split. Prompt: rows with the same prompt. Tools: rows that call the same tool.
    The held-out rows then measure tools that no training row calls, and fractions are fractions of the tools. Rows
    without calls are split by their prompt. Not used for rows of separate files."""
    uri: OptionalDataUri = ""
    """Location of a separate evaluation data set, used instead of a fraction of the training rows. It has the form of
    dataset.uri and is read with the same credentials."""


class ValidationSplit(ApiModel):
    """The validation split: rows that are used neither for training nor for evaluation."""

    fraction: Annotated[Fraction, _share("validation.fraction", "0.05")] = "0.05"
    """Fraction of the rows of dataset.uri, as a string. evaluation.seed and evaluation.splitBy select them, too."""
    uri: OptionalDataUri = ""
    """Location of a separate validation data set, used instead of a fraction of the training rows. It has the form of
    dataset.uri and is read with the same credentials."""


class Replay(ApiModel):
    """General rows, for example chat, to train on in addition, so that the model forgets less of what it could do."""

    uri: DataUri
    """Location of the rows. It has the form of dataset.uri and is read with the same credentials. Rows with the prompt
    of any row of dataset, dataset.evaluation or dataset.validation are left out."""
    format: DatasetFormat = DatasetFormat.AUTO
    """Format of the rows, as dataset.format."""
    share: Annotated[Fraction, _share("replay.share", "0.1")] = "0.1"
    """Fraction of these rows among all rows that are trained on, as a string. evaluation.seed selects them. If there
    are fewer rows, all are used."""


class Augmentation(ApiModel):
    """Random changes to the training rows, so that the model reads the offered tools instead of remembering them.

    Held-out rows are never changed. report.json of prepare counts the changes.
    """

    shuffle_tools: bool = True
    """Put the tools of each row in random order."""
    distractor_tools: Annotated[int, Field(ge=0, le=64)] = 3
    """Maximum number of tools from other rows that are added to a row. Tools whose names resemble that of a called tool
    are not used."""
    masked_names: Fraction = "0.3"
    """Fraction of the rows in which random words replace the names of tools and parameters, as a string. The model then
    has to use the descriptions. Rows without descriptions, and rows whose text contains the name of a tool, keep their
    names."""
    irrelevant_rows: FractionOrAuto = "Auto"
    """Number of rows to add in which no tool fits the request, as a fraction of the rows, as a string. They have the
    request of another row, without the tools that this row calls. Auto: 0.1, or 0 if the assistant calls no tool in
    5 % of the rows with tools."""
    irrelevance_answer: Annotated[str, Field(max_length=1000)] = ""
    """Answer of the assistant in these rows, for data in other languages. Empty: one of several English sentences."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Seed of the random changes."""


class Dataset(ApiModel):
    """Location and format of the training rows."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "!has(self.validation) || !has(self.validation.fraction) || !has(self.evaluation) || "
                "!has(self.evaluation.fraction) || (has(self.evaluation.uri) && self.evaluation.uri != '') || "
                "(has(self.validation.uri) && self.validation.uri != '') || "
                "double(self.evaluation.fraction) + double(self.validation.fraction) < 1.0",
                "dataset.evaluation.fraction and dataset.validation.fraction must add up to less than 1: no row would "
                "be left for training",
            )
        )
    }

    uri: DataUri
    """An S3 object (.jsonl, .json or .parquet, optionally with .gz), an S3 prefix that ends in / for all such objects
    below it, or a glob such as s3://bucket/calls/*.jsonl. Or a data set on the Hub: hf://owner/name,
    hf://owner/name@revision or hf://owner/name/data/*.parquet, which is read with the token of
    baseModel.tokenSecretRef."""
    format: DatasetFormat = DatasetFormat.AUTO
    """Format of the rows. Auto detects it. OpenAI: messages, tools. Hermes: conversations with tags, as in the Hermes
    and agents-course data sets. ShareGPT: conversations with from and value. XLAM: query, answers, tools. ToolACE:
    system, conversations. Glaive: system, chat. Simple: user_content, tool_name, tool_arguments. PromptCompletion:
    prompt and completion as messages. Swift: messages with tool_call and tool_response. Anthropic: messages with
    content blocks. Responses: input and output as items. ClientLog: request, response. ToolBench, APIBank, NESTFUL,
    TauBench, When2Call, BFCL: the data sets of these names."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the S3 credentials. Absent: the identity of the pod."""
    endpoint: Endpoint = ""
    """URL of the S3 server. Empty: AWS."""
    region: Annotated[str, Field(max_length=64, pattern=r"^[-a-z0-9]*$")] = ""
    """Region of the bucket. Empty: the default of the pod's environment."""
    evaluation: EvaluationSplit = EvaluationSplit()
    """The held-out split, used for evaluation."""
    validation: ValidationSplit | None = None
    """Rows that choose the epoch with training.earlyStopping. Absent: the held-out rows choose it, so their metrics are
    slightly too good. {}: the default fraction."""
    replay: Replay | None = None
    """General rows to train on in addition. Absent: none."""
    max_invalid_fraction: Fraction = "0"
    """Maximum fraction of invalid rows, as a string. Invalid rows are left out; if there are more, prepare fails and
    lists them."""
    max_rows: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Maximum number of rows, taken from the start. 0: all rows."""
    augmentation: Augmentation | None = None
    """Random changes to the training rows. Absent: none. {}: the defaults of the fields."""


class Tools(ApiModel):
    """Source of the tools that all rows share."""

    config_map_key_ref: ConfigMapKeyRef
    """ConfigMap key with a JSON list of tools, in the format of the OpenAI API."""


class Think(StrEnum):
    """What to do with the reasoning of an assistant message."""

    KEEP = "Keep"
    DROP = "Drop"


class TokenizerMode(StrEnum):
    """How the tags of the call format become tokens."""

    AUTO = "Auto"
    REUSE = "Reuse"
    TEXT = "Text"
    EXTEND = "Extend"


class ChatTemplateSource(ApiModel):
    """Source of a custom chat template."""

    config_map_key_ref: ConfigMapKeyRef
    """ConfigMap key with a Jinja chat template. The loss is computed on the text between {% generation %} and {%
    endgeneration %}."""


class Tokenizer(ApiModel):
    """Vocabulary and chat template."""

    mode: TokenizerMode = TokenizerMode.AUTO
    """How the tags of the call format become tokens. Reuse: every tag that the assistant writes must already be a
    single token. Text: tags that the base model lacks are ordinary text of several tokens; the vocabulary does not
    change, so servers can load the adapter alone. Extend: the missing tags are added to the vocabulary and their
    embeddings are trained. Auto: Reuse if all tags are tokens; else Text if servers can then load the adapter alone or
    the method is IA3; else Extend. Auto is also Extend if the base model lacks any of addTokens."""
    add_tokens: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=64)]],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """Tokens to add in addition to the tags of the call format that the base model lacks."""
    chat_template: ChatTemplateSource | None = None
    """A custom chat template. Absent: that of the base model if it supports tools, else Tunemill's."""
    think: Think = Think.KEEP
    """Keep: train on the reasoning of assistant messages, as in think → act → observe data. Drop: remove it, for a
    model that answers immediately."""
