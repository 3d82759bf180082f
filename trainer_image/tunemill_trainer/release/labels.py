"""What metrics, faults and slices are called where people read them."""

from tunemill_api import evaluation
from tunemill_api.finetune import Quantization
from tunemill_api.status import DatasetFacts

METRICS = {
    "tool_name_accuracy": "Right tools",
    "exact_match": "Right tools and arguments",
    "ast_match": "Right by the rule of BFCL",
    "valid_call_rate": "Calls that can be parsed",
    "schema_valid_rate": "Calls that keep to the tool's schema",
    "parallel_accuracy": "Several calls at once, all right",
    "abstention_accuracy": "No call where none is wanted",
    "overall_accuracy": "Right, calls and no calls together",
    "tool_f1": "Mean F1 of all tools",
    "missed_call_rate": "No call where one is wanted",
    "over_call_rate": "More calls than are wanted",
    "hallucinated_tool_rate": "Calls a tool that was not offered",
    "lenient_only_rate": "Calls that only a lenient reader finds",
    "finished_rate": "Ends its turn",
}
LOWER_IS_BETTER = {*map(str, evaluation.LOWER_IS_BETTER), "lenient_only_rate"}

FAULTS = {
    "cut_off": "Cut off",
    "broken_call": "Broken call",
    "unwanted_call": "Call where none is wanted",
    "missed_call": "No call where one is wanted",
    "hallucinated_tool": "Tool that was not offered",
    "too_many_calls": "Too many calls",
    "too_few_calls": "Too few calls",
    "wrong_tool": "Wrong tool",
    "missing_argument": "Missing argument",
    "extra_argument": "Extra argument",
    "wrong_type": "Wrong type",
    "wrong_value": "Wrong value",
    "spelling": "Only spelled differently",
}

SLICES = {
    "no_call": "No call is wanted",
    "single_call": "One call is wanted",
    "multi_call": "Several calls are wanted",
    "multi_turn": "Later turns of a conversation",
    "unseen_tools": "Tools that were not trained on",
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
