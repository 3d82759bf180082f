"""The report page, with any content of the rows."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tunemill_api.evaluation import Judge
from tunemill_api.publish import ServingTarget
from tunemill_api.run_spec import RunSpec
from tunemill_api.status import DatasetFacts, PreparedFacts, SuiteFacts, TrainedFacts
from tunemill_trainer.judge.report import (
    Attempt,
    Calls,
    MetricReport,
    Mistake,
    Report,
    Right,
    Settings,
    Share,
    ToolReport,
)
from tunemill_trainer.prepared import BaseModel, Tokens
from tunemill_trainer.release.curves import HEIGHT, WIDTH, loss_curve
from tunemill_trainer.release.page import PageFacts, page

HOSTILE = "<script>alert('row')</script><img src=x onerror=alert(1)>{{ 7 * 7 }}&\"'"


def metric(base: int, tuned: int, cases: int = 40) -> MetricReport:
    """A metric with this number of hits."""
    shares = [
        Share(hits=hits, share=hits / cases, low=max(0, hits / cases - 0.1), high=min(1, hits / cases + 0.08))
        for hits in (base, tuned)
    ]
    return MetricReport(cases=cases, base=shares[0], tuned=shares[1])


def mistake(text: str, fault: str = "wrong_value") -> Mistake:
    """A wrong reply, with this text in all fields with text of a row."""
    call = {"name": text, "arguments": {"city": text, "days": 3}}
    return Mistake(
        id=f"calls.jsonl:17#1{text}",
        request=text,
        expected=[call],
        expected_text=text,
        got=[call] if fault == "wrong_value" else [],
        base=Attempt(text=text, fault="missed_call", error=text),
        tuned=Attempt(text=text, fault=fault, error=text),
    )


def report(text: str = "get_weather") -> Report:
    """A report in which everything occurs, with a tool of this name."""
    tool = ToolReport(
        wanted=12,
        base=Calls(made=0, exact=0),
        tuned=Calls(made=11, named=10, exact=9, precision=0.909, recall=0.833, f1=0.87),
    )
    return Report(
        rows=36,
        cases=40,
        settings=Settings(max_rows=500, max_new_tokens=96, precision="bfloat16", device="NVIDIA H200"),
        metrics={
            "tool_name_accuracy": metric(3, 38),
            "exact_match": metric(1, 33),
            "ast_match": metric(1, 35),
            "missed_call_rate": metric(30, 1),
            "parallel_accuracy": MetricReport(cases=0, base=None, tuned=None),
            "finished_rate": metric(39, 40),
        },
        right=Right(base=2, tuned=35, p_value=1.2e-9),
        tools={text: tool, "set_alarm": tool},
        base_confusion={text: {"<none>": 12}, "set_alarm": {"<none>": 11, "<invalid>": 1}},
        tuned_confusion={text: {text: 10, "set_alarm": 2}, "set_alarm": {"set_alarm": 12}, "play": {"play": 3}},
        base_tool_f1=0.0,
        tuned_tool_f1=0.91,
        slices={"multi_turn": {"exact_match": metric(0, 6, 8)}, "no_call": {"abstention_accuracy": metric(8, 7, 8)}},
        suites=[
            SuiteFacts(name="chat", judge=judge, base="0.5000", tuned="0.4000", difference="-0.1000", rows=7, cases=9)
            for judge in Judge
        ],
        base_faults={"missed_call": 30, "broken_call": 8},
        tuned_faults={"wrong_value": 4, "broken_call": 1},
        mistakes=[mistake(text), mistake(text, "broken_call")],
    )


def facts(text: str = "get_weather", history: list[dict] | None = None) -> PageFacts:
    """The content of a page, for a spec with a bucket that the page must not contain."""
    spec = {
        "baseModel": {"id": "google/gemma-2-2b-it"},
        "dataset": {"uri": "s3://secret-bucket/calls.jsonl", "endpoint": "https://s3.internal.example"},
        "publish": {"repository": "acme/support-tools"},
    }
    data = DatasetFacts(format="OpenAI", rows=400, train_rows=360, evaluation_rows=40, tools=4)
    return PageFacts(
        run=RunSpec(namespace="team-a", name="support-tools", run_id="7f3a9c", spec=spec),
        base=BaseModel("google/gemma-2-2b-it", "ab" * 20),
        tokens=Tokens("Extend", (), (107, 1), 0, 1000),
        prepared=PreparedFacts(
            key="0" * 16, base_model_revision="ab" * 20, dataset_digest="cd" * 32, tokenizer_mode="Extend", dataset=data
        ),
        trained=TrainedFacts(
            steps=120, loss="0.07", first_loss="2.1", train_seconds=65, device="NVIDIA H200", adapter="s3://secret/a"
        ),
        history=[{"step": step, "loss": 2.1 * 0.97**step + 0.05} for step in range(1, 121)]
        if history is None
        else history,
        report=report(text),
    )


class _Elements(HTMLParser):
    """Collects the names of elements and attributes, and checks that elements close in their order."""

    VOID = frozenset({"meta", "line", "path", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_rows_cannot_inject_markup():
    """The text of rows, replies and tool names gives no element and no attribute."""
    found, clean = _Elements(page(facts(HOSTILE))), _Elements(page(facts()))
    assert found.names == clean.names
    assert found.attributes == clean.attributes
    assert "script" not in found.names
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in page(facts(HOSTILE))


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>/&\"'={}%#! abscript\n\x00")))
def test_no_text_becomes_markup(text: str):
    """For all combinations of special characters."""
    found, clean = _Elements(page(facts(text))), _Elements(page(facts()))
    assert found.names <= clean.names
    assert found.attributes <= clean.attributes


def test_invisible_characters_are_escaped():
    """Bidirectional marks and zero-width characters are shown as escape sequences."""
    text = page(facts("pay \u202e001\u200b\x1b now"))
    assert r"pay \u202e001\u200b\u001b now" in text
    assert not re.search("[\u202e\u200b\x1b]", text)


def test_the_page_is_self_contained():
    """It has no URL, and a policy that forbids external resources."""
    text = page(facts())
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import|<link|src=", text)


def test_the_page_has_no_private_locations():
    """The page may be published, so it has no buckets and servers."""
    text = page(facts())
    assert "secret" not in text
    assert "internal.example" not in text


def test_the_metrics_are_shown():
    """Base, tuned, interval and number of cases; the kind of mistake; the reply."""
    text = page(facts())
    assert "82.5" in text
    assert "95 % interval 72.5 to 90.5 %" in text
    assert "Wrong value" in text
    assert "No valid call." in text
    assert "p = 1.2e-09" in text
    assert text.count("-0.1000") == len(Judge)


@pytest.mark.parametrize(("target", "shown"), [("vLLM", True), ("None", False)])
def test_the_page_says_how_to_serve_the_model(target: str, shown: bool):
    """Where a server is meant to load it."""
    given = facts()
    publish = given.run.spec.publish.model_copy(update={"serving": ServingTarget(target)})
    run = given.run.model_copy(update={"spec": given.run.spec.model_copy(update={"publish": publish})})
    assert ("serving.yaml" in page(replace(given, run=run))) == shown


def test_lower_is_better_for_error_rates():
    """A lower rate of missed calls is good, a lower abstention accuracy is bad."""
    text = page(facts())
    missed = text[text.index("<code>missed_call_rate") :]
    assert re.search(r'class="n (good|bad)">([-+.\d]+)<', missed).groups() == ("good", "-72.5")
    abstention = text[text.index("<code>abstention_accuracy") :]
    assert re.search(r'class="n (good|bad)">([-+.\d]+)<', abstention).groups() == ("bad", "-12.5")


def test_tools_without_confusion_are_not_in_the_matrix():
    """With hundreds of tools, it would contain mostly zeros. The number of omitted tools is shown."""
    text = page(facts())
    assert 'title="get_weather expected, set_alarm called: 2"' in text
    assert "play expected" not in text
    assert "Not shown: 2 without confusion." in text


def test_the_matrix_has_a_maximum_size():
    """The tools with the most mistakes come first. The number of omitted tools is shown."""
    confusion = {f"tool_{at}": {"other": at} for at in range(1, 51)}
    text = page(replace(facts(), report=report().model_copy(update={"tuned_confusion": confusion})))
    assert 'title="tool_50 expected, other called: 50"' in text
    assert "tool_20 expected" not in text
    assert "Also not shown: 20 with less confusion." in text


def test_empty_sections_are_omitted():
    """There is no curve of a single point, and no gallery without mistakes."""
    perfect = report().model_copy(
        update={
            "suites": [],
            "mistakes": [],
            "tuned_faults": {},
            "base_faults": {},
            "slices": {},
            "tools": {},
            "tuned_confusion": {},
        }
    )
    text = page(replace(facts(history=[{"step": 1, "loss": 2.0}]), report=perfect))
    assert "Training loss" not in text
    assert "Mistakes of the tuned model" not in text
    assert "Suites" not in text
    assert "every call was to the expected tool" in text
    _Elements(text)


def test_the_same_facts_give_the_same_page():
    """Otherwise a repeated push would be a new commit."""
    assert page(facts()) == page(facts())


@pytest.mark.parametrize("losses", [[0.0, 0.0], [1e-9, 2e-9], [5.0, float("nan"), 4.0], [900.0, 1.0, 0.9, 0.8]])
def test_curves_stay_inside_the_picture(losses: list[float]):
    """For losses of zero, spikes and NaN."""
    curve = loss_curve([{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)])
    assert curve is not None
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML](\S+) (\S+)", f"{curve.raw} {curve.smooth}")]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_the_held_out_loss_has_a_separate_line():
    """If it was measured. Every measurement is a dot, because a single point has no visible line."""
    history = [{"step": step, "loss": 2.0 / step} for step in range(1, 9)]
    assert "on held-out rows" not in page(facts(history=history))
    measured = [*history, {"step": 4, "held_out_loss": 0.9}, {"step": 8, "held_out_loss": 0.4}]
    assert "on held-out rows" in page(facts(history=measured))
    assert page(facts(history=measured)).count("<circle") == 2
    assert page(facts(history=measured[:-1])).count("<circle") == 1


def test_a_slice_with_all_cases_is_omitted():
    """The main table has the same figures."""
    whole = report().model_copy(update={"slices": {"single_call": {"exact_match": metric(1, 33, 40)}}})
    assert "One call expected" not in page(replace(facts(), report=whole))
    assert "Later turns of a conversation" in page(facts())


def test_no_change_has_no_sign():
    """And no color: +0.0 would look like an improvement."""
    same = report().model_copy(update={"metrics": {"exact_match": metric(20, 20)}})
    text = page(replace(facts(), report=same))
    assert '<td class="n ">0.0</td>' in text
    assert "+0.0" not in text
