"""From two models' replies to the status, the report and the lines for each case."""

from dataclasses import replace

from tunemill_api.evaluation import Metric
from tunemill_trainer.data.rows import Call, Message, Role, Tool
from tunemill_trainer.judge.comparison import HEADLINES, TOOL_F1, compare, sample
from tunemill_trainer.judge.metrics import Reply
from tunemill_trainer.judge.report import Report, Settings
from tunemill_trainer.prepared import Case

TIMER = Tool("timer", "", {"type": "object"})
RIGHT = Reply('<tool_call>{"name": "timer", "arguments": {}}</tool_call>', finished=True)
SILENT = Reply("No.", finished=False)
SETTINGS = Settings(max_rows=500, max_new_tokens=64, precision="float32", device="cpu")


def case(row: int, turn: int = 1, *, wants_call: bool = True) -> Case:
    """A case that expects a call to the timer, or plain text."""
    gold = Message(Role.ASSISTANT, "", calls=(Call("timer", {}),) if wants_call else ())
    return Case(f"rows.jsonl:{row}#{turn}", row, (), (TIMER,), (1, 2), gold, (5,))


def test_facts_have_four_decimals_and_the_cases_of_each_metric():
    """The values that status and gates use."""
    facts = compare([case(1), case(2), case(3)], [SILENT] * 3, [RIGHT, RIGHT, SILENT]).facts("s3://b/report.json")
    exact = next(metric for metric in facts.metrics if metric.name == "exact_match")
    assert (exact.base, exact.tuned, exact.cases) == ("0.0000", "0.6667", 3)
    assert (facts.rows, facts.report) == (3, "s3://b/report.json")


def test_a_metric_without_cases_is_absent():
    """Without expected calls, metrics of calls are unknown, and gates must see that."""
    facts = compare([case(1, wants_call=False)], [SILENT], [SILENT]).facts("")
    metrics = {metric.name: metric for metric in facts.metrics}
    assert (metrics["exact_match"].base, metrics["exact_match"].tuned, metrics["exact_match"].cases) == ("", "", 0)
    assert metrics["abstention_accuracy"].tuned == "1.0000"


def test_rows_and_turns_are_counted_separately():
    """Two turns of one row are two cases."""
    comparison = compare([case(1, 1), case(1, 2), case(2)], [SILENT] * 3, [RIGHT] * 3)
    report = comparison.report(SETTINGS)
    assert (report.rows, report.cases) == (2, 3)


def test_the_report_round_trips_through_its_file():
    """Stage publish reads what evaluate writes, including intervals and confusion."""
    report = compare([case(1), case(2, wants_call=False)], [SILENT] * 2, [RIGHT] * 2).report(SETTINGS)
    assert Report.model_validate_json(report.model_dump_json(by_alias=True)) == report
    assert report.tuned_confusion == {"<none>": {"timer": 1}, "timer": {"timer": 1}}
    assert report.tools["timer"].tuned.made == 2
    assert (report.right.base, report.right.tuned, report.right.p_value) == (1, 1, 1.0)
    tuned = report.metrics["exact_match"].tuned
    assert tuned is not None
    assert 0 < tuned.low < tuned.share == tuned.high == 1


def test_every_case_has_a_line_with_both_replies():
    """So users can see the reason for each result."""
    (line,) = compare([case(7)], [SILENT], [RIGHT]).lines()
    assert line["id"] == "rows.jsonl:7#1"
    assert line["base"]["text"] == "No."
    assert (line["base"]["right"], line["tuned"]["right"]) == (False, True)
    assert line["gold"]["calls"] == [{"name": "timer", "arguments": {}}]


def test_a_sample_keeps_whole_rows_in_their_order():
    """It has all turns of a row or none, and the same rows every time."""
    cases = [case(row, turn) for row in range(50) for turn in (1, 2)]
    drawn = sample(cases, 10)
    assert drawn == sample(list(cases), 10)
    assert len({found.row for found in drawn}) == 10
    assert drawn == [found for found in cases if found.row in {kept.row for kept in drawn}]


def test_a_sample_is_not_the_first_rows_of_the_data():
    """Data is often sorted. A smaller sample is a subset of a larger one."""
    cases = [case(row) for row in range(100)]
    small, large = ({found.row for found in sample(cases, size)} for size in (10, 30))
    assert small < large
    assert max(small) > 50
    assert sample(cases, 1000) == cases


def test_every_gate_has_a_metric_in_the_status():
    """And the status stays short."""
    facts = compare([case(1)], [SILENT], [RIGHT]).facts("")
    names = [metric.name for metric in facts.metrics]
    assert {metric.value for metric in Metric} <= set(names)
    assert names == [*HEADLINES, TOOL_F1]
    assert len(names) <= 12


def test_slices_compare_subsets_of_the_cases():
    """Each with the metrics that apply; one slice is for tools that no training row calls."""
    cases = [case(1), case(1, 2), case(2, wants_call=False)]
    comparison = compare(cases, [SILENT] * 3, [RIGHT, SILENT, SILENT])
    report = comparison.report(SETTINGS, frozenset({"weather"}))
    assert {name: max(metric.cases for metric in part.values()) for name, part in report.slices.items()} == {
        "no_call": 1,
        "single_call": 2,
        "unseen_tools": 2,
    }
    assert "exact_match" not in report.slices["no_call"]
    exact = report.slices["unseen_tools"]["exact_match"]
    assert exact.base is not None
    assert exact.tuned is not None
    assert (exact.base.share, exact.tuned.share) == (0.0, 0.5)
    assert "unseen_tools" not in comparison.report(SETTINGS).slices
    assert "unseen_tools" not in comparison.report(SETTINGS, frozenset({"timer"})).slices


def test_mistakes_have_the_expected_calls():
    """Request, expected calls, actual calls, and the base model's reply. Right cases are not listed."""
    asked = replace(case(1), messages=(Message(Role.USER, "Three minutes, please"),))
    wrong = Reply('<tool_call>{"name": "timer", "arguments": {"minutes": 3}}</tool_call>', finished=True)
    report = compare([asked, case(2)], [SILENT] * 2, [wrong, RIGHT]).report(SETTINGS)
    (mistake,) = report.mistakes
    assert (mistake.id, mistake.request) == ("rows.jsonl:1#1", "Three minutes, please")
    assert mistake.expected == [{"name": "timer", "arguments": {}}]
    assert mistake.got == [{"name": "timer", "arguments": {"minutes": 3}}]
    assert (mistake.base.fault, mistake.tuned.fault) == ("cut_off", "extra_argument")
    assert mistake.tuned.error == "timer.minutes is not expected, found 3"
    assert (report.base_faults, report.tuned_faults) == ({"cut_off": 2}, {"extra_argument": 1})


def test_a_rare_fault_is_listed_too():
    """A thousand equal mistakes do not hide it or fill the report; nor does a long reply."""
    talk = Reply("x" * 100_000, finished=True)
    broken = Reply("<tool_call>", finished=True)
    report = compare([case(row) for row in range(101)], [SILENT] * 101, [talk] * 100 + [broken]).report(SETTINGS)
    assert [mistake.tuned.fault for mistake in report.mistakes] == ["missed_call"] * 10 + ["broken_call"]
    assert len(report.model_dump_json()) < 100_000


def test_tools_have_precision_recall_and_f1():
    """Three calls made, two expected, one of them made. Their mean is a metric."""
    several = replace(case(1), gold=Message(Role.ASSISTANT, "", calls=(Call("timer", {}), Call("alarm", {}))))
    thrice = Reply(RIGHT.text * 3, finished=True)
    comparison = compare([several], [SILENT], [thrice])
    report = comparison.report(SETTINGS)
    timer, alarm = report.tools["timer"].tuned, report.tools["alarm"].tuned
    assert (timer.precision, timer.recall, timer.f1) == (0.3333, 1.0, 0.5)
    assert (alarm.precision, alarm.recall, alarm.f1) == (None, 0.0, 0.0)
    assert (report.base_tool_f1, report.tuned_tool_f1) == (0.0, 0.25)
    f1 = next(metric for metric in comparison.facts("").metrics if metric.name == TOOL_F1)
    assert (f1.base, f1.tuned, f1.cases) == ("0.0000", "0.2500", 1)
