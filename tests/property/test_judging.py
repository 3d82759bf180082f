"""Any data: a model that repeats it is right by every metric, in every call format."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tunemill_dev.agreement.writing import written
from tunemill_trainer.data.rows import Call, Message, Role, Tool
from tunemill_trainer.judge.comparison import compare
from tunemill_trainer.judge.metrics import Reply, score
from tunemill_trainer.judge.parse import ReplyFormat, detect
from tunemill_trainer.judge.report import Report, Settings
from tunemill_trainer.prepared import Case

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>[]{}"), max_size=12)
ARGUMENTS = {
    "text": (TEXT, {"type": "string", "default": "x"}),
    "count": (st.integers(-(2**60), 2**60), {"type": "integer"}),
    "ratio": (st.integers(0, 9) | st.floats(0, 1), {"type": "number"}),
    "flag": (st.booleans(), {"type": "boolean"}),
    "parts": (st.lists(TEXT, max_size=3), {"type": "array", "items": {"type": "string"}}),
    "place": (
        st.fixed_dictionaries({"name": TEXT}, optional={"floor": st.none() | st.integers(0, 9)}),
        {"type": "object", "properties": {"name": {"type": "string"}, "floor": {"type": ["integer", "null"]}}},
    ),
}
SCHEMA = {"type": "object", "properties": {name: schema for name, (_, schema) in ARGUMENTS.items()}}
TOOLS = tuple(Tool(name, "", SCHEMA) for name in ("look_up", "send"))
CALLS = st.lists(
    st.builds(
        Call,
        st.sampled_from([tool.name for tool in TOOLS]),
        st.fixed_dictionaries({}, optional={name: values for name, (values, _) in ARGUMENTS.items()}),
    ),
    min_size=1,
    max_size=3,
)
EVERYTHING = [
    ReplyFormat.HERMES,
    ReplyFormat.GRANITE,
    ReplyFormat.DEEPSEEK_V3,
    ReplyFormat.DEEPSEEK_V31,
    ReplyFormat.KIMI_K2,
    ReplyFormat.OPENAI,
    ReplyFormat.COHERE_COMMAND3,
    ReplyFormat.JAMBA,
    ReplyFormat.LFM2,
    ReplyFormat.OLMO3,
    ReplyFormat.NEMOTRON_JSON,
    ReplyFormat.MISTRAL,
    ReplyFormat.LLAMA3_JSON,
    ReplyFormat.PYTHONIC,
    ReplyFormat.LLAMA4_PYTHONIC,
    ReplyFormat.JSON,
]
"""The formats that are known by their marks and carry any value: the others lose types, or share another's marks."""


def a_case(number: int, calls: list[Call]) -> Case:
    """A case that expects these calls, or text."""
    gold = Message(Role.ASSISTANT, "" if calls else "Hello!", calls=tuple(calls))
    return Case(f"rows.jsonl:{number}#1", number, (Message(Role.USER, "?"),), TOOLS, (1,), gold, (9,))


@settings(max_examples=60, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=4), st.sampled_from(EVERYTHING), st.randoms(use_true_random=False))
def test_repeating_the_expected_answer_is_right_by_every_metric(wanted, reply_format, random):
    """Every share that should be one is one, and every share that should be zero is zero, in any order of the calls."""
    cases = [a_case(number, calls) for number, calls in enumerate([*wanted, []])]
    texts = [written(random.sample(calls, len(calls)), reply_format) for calls in wanted]
    assert detect(texts) is reply_format
    result = score(cases, [Reply(text, finished=True) for text in [*texts, "Hello!"]], reply_format)
    for name, rate in result.rates.items():
        bad = name in {"missed_call_rate", "over_call_rate", "hallucinated_tool_rate", "lenient_only_rate"}
        assert rate.value in {None, 0.0 if bad else 1.0}, name
    assert result.tool_f1 == 1.0
    assert result.faults == {}
    assert all(wanted == called for wanted, row in result.confusion.items() for called in row)


@settings(max_examples=60, deadline=None)
@given(st.lists(CALLS | st.just([]), min_size=1, max_size=4), st.lists(TEXT | st.text(max_size=30), min_size=4))
def test_every_reply_is_right_or_has_a_fault(wanted, texts):
    """A fault has a message, and the report with all of them can be written."""
    cases = [a_case(number, calls) for number, calls in enumerate(wanted)]
    replies = [Reply(text, finished=True) for text in texts[: len(cases)]]
    base = [Reply(written(calls, ReplyFormat.HERMES) + "<tool_call>" * bool(text), finished=False)
            for calls, text in zip(wanted, texts, strict=False)]  # fmt: skip
    comparison = compare(cases, base, replies)
    for verdict in (*comparison.base.verdicts, *comparison.tuned.verdicts):
        assert (verdict.right and verdict.ast) == (verdict.fault.value == "")
        assert bool(verdict.fault.value) == bool(verdict.error)
        assert verdict.valid or not verdict.schema_valid
    report = comparison.report(Settings(max_rows=1, max_new_tokens=1, precision="float32", device="cpu"), frozenset())
    assert Report.model_validate_json(report.model_dump_json(by_alias=True)) == report
    assert sum(report.tuned_faults.values()) == len(cases) - report.right.tuned
