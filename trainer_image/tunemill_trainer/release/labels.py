"""Display names of metrics, faults and slices, for the model card and the report page."""

from tunemill_api import evaluation
from tunemill_api.data import Augmentation
from tunemill_api.evaluation import Judge
from tunemill_api.finetune import Quantization
from tunemill_api.scalars import AUTO
from tunemill_api.status import DatasetFacts, PreferenceFacts, TrainedFacts
from tunemill_api.training import Preference, Training

METRICS = {
    "tool_name_accuracy": "Correct tool",
    "exact_match": "Exact match",
    "ast_match": "AST match (BFCL)",
    "valid_call_rate": "Valid call syntax",
    "schema_valid_rate": "Arguments valid by schema",
    "parallel_accuracy": "Parallel calls, all correct",
    "abstention_accuracy": "Correct abstention",
    "overall_accuracy": "Overall accuracy",
    "tool_f1": "Mean F1 per tool",
    "missed_call_rate": "Missed calls",
    "over_call_rate": "Extra calls",
    "hallucinated_tool_rate": "Hallucinated tool",
    "lenient_only_rate": "Found by a lenient parser only",
    "finished_rate": "Finished replies",
}
LOWER_IS_BETTER = {*map(str, evaluation.LOWER_IS_BETTER), "lenient_only_rate"}

FAULTS = {
    "cut_off": "Cut off at the token limit",
    "broken_call": "Invalid call syntax",
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
    "unseen_tools": "Tools not in the training rows",
}


JUDGES = {
    Judge.CALLS: "Correct replies",
    Judge.LIKELIHOOD: "Loss of the expected answers, nats per token (lower is better)",
    Judge.PATTERN: "Replies with the pattern",
}


def metric(name: str) -> str:
    """Return the display name of a metric, marked where lower is better."""
    return METRICS.get(name, name) + (" (lower is better)" if name in LOWER_IS_BETTER else "")


def as_trained(quantization: Quantization) -> str:
    """Return the quantization of the base model during training and evaluation; empty when it had none."""
    return (
        "" if quantization is Quantization.NONE else f", quantized to {quantization.value} in training and evaluation"
    )


def epochs(count: int) -> str:
    """Return a number of epochs in words."""
    return "1 epoch" if count == 1 else f"{count} epochs"


def learning_rate(training: Training, trained: TrainedFacts) -> str:
    """Return the peak learning rate, whether it was chosen automatically, and its schedule."""
    automatic = training.learning_rate == AUTO and trained.learning_rate
    rate = f"{trained.learning_rate} ({AUTO})" if automatic else training.learning_rate
    return f"{rate}, {training.scheduler.value}, warmup ratio {training.warmup_ratio}"


def preference(settings: Preference, facts: PreferenceFacts) -> str:
    """Return what was trained on the model's own mistakes, its effect on the validation rows, and what was kept."""
    found = f"{settings.method.value}, {facts.pairs} wrong answers to {facts.prompts} training prompts"
    if not facts.steps:
        return f"{found}; {facts.note}"
    return (
        f"{found}, beta {settings.beta}, learning rate {facts.learning_rate}, {facts.steps} steps; exactly right on "
        f"validation rows {facts.exact_before} before and {facts.exact_after} after, loss {facts.loss_before} and "
        f"{facts.loss_after}; {'kept' if facts.kept else 'discarded'}"
    )


def augmentation(settings: Augmentation) -> str:
    """Return the random changes to the training rows."""
    kinds = [
        ("tools in random order", settings.shuffle_tools),
        (f"up to {settings.distractor_tools} tools of other rows", settings.distractor_tools),
        (f"masked names in {100 * float(settings.masked_names):.0f} % of the rows", float(settings.masked_names)),
    ]
    return ", ".join([*(name for name, is_set in kinds if is_set), f"seed {settings.seed}"])


def left_out(data: DatasetFacts) -> str:
    """Return how many rows were left out, by cause."""
    return (
        f"{data.invalid_rows} invalid, {data.overlong_rows} too long, {data.duplicate_rows} duplicate, "
        f"{data.leaked_rows} also in the held-out split"
    )


def trained_rows(data: DatasetFacts) -> str:
    """Return how many rows were trained on, without those that augmentation adds."""
    return f"{data.train_rows}" + (f" and {data.replay_rows} general ones" if data.replay_rows else "")


def judged_rows(data: DatasetFacts) -> str:
    """Return how many rows were not trained on, by split."""
    validation = f"{data.validation_rows} for validation, " if data.validation_rows else ""
    return f"{validation}{data.evaluation_rows} held out"


def measured_on(data: DatasetFacts) -> str:
    """Return the rows on which train measured the loss after each epoch."""
    return "validation rows" if data.validation_rows else "held-out rows"
