"""What metrics, faults and slices are called where people read them."""

from tunemill_api import evaluation
from tunemill_api.finetune import Quantization
from tunemill_api.status import DatasetFacts

METRICS = {
    "tool_name_accuracy": "Correct tool",
    "exact_match": "Exact match",
    "ast_match": "AST match (BFCL)",
    "valid_call_rate": "Parsable calls",
    "schema_valid_rate": "Schema-valid calls",
    "parallel_accuracy": "Parallel calls (AST match)",
    "abstention_accuracy": "Irrelevance detection (BFCL)",
    "overall_accuracy": "Overall accuracy",
    "tool_f1": "Tool selection F1 (macro average)",
    "missed_call_rate": "Missed call",
    "over_call_rate": "Too many calls",
    "hallucinated_tool_rate": "Hallucinated tool",
    "lenient_only_rate": "Readable only by a lenient parser",
    "finished_rate": "Reply ends within the token limit",
}
LOWER_IS_BETTER = {*map(str, evaluation.LOWER_IS_BETTER), "lenient_only_rate"}

FAULTS = {
    "cut_off": "Cut off at the token limit",
    "broken_call": "Unparsable call",
    "unwanted_call": "Unexpected call",
    "missed_call": "Missed call",
    "hallucinated_tool": "Hallucinated tool",
    "too_many_calls": "Too many calls",
    "too_few_calls": "Too few calls",
    "wrong_tool": "Wrong tool",
    "missing_argument": "Missing argument",
    "extra_argument": "Extra argument",
    "wrong_type": "Wrong type",
    "wrong_value": "Wrong value",
    "spelling": "Different spelling only",
}

SLICES = {
    "no_call": "No call expected",
    "single_call": "One call expected",
    "multi_call": "Several calls expected",
    "multi_turn": "Later turns of a conversation",
    "unseen_tools": "Tools not called in the training data",
}


def metric(name: str) -> str:
    """Return what a metric is called, with the direction where less is more."""
    return METRICS.get(name, name) + (" (lower is better)" if name in LOWER_IS_BETTER else "")


def as_trained(quantization: Quantization) -> str:
    """Return how the base model's weights were kept in training and judging; empty for whole ones."""
    return "" if quantization is Quantization.NONE else f", in {quantization.value} while it was trained and judged"


def left_out(data: DatasetFacts) -> str:
    """Return which rows were left out, in words."""
    return (
        f"{data.invalid_rows} invalid, {data.overlong_rows} too long, {data.duplicate_rows} duplicate, "
        f"{data.leaked_rows} also held out"
    )
