"""The second pass: rows become examples and cases, with any number of processes."""

from dataclasses import replace

import pyarrow.parquet as pq
from trainer.chat.speakers import GEMMA, a_speaker
from trainer.data.building import openai_row, some_data
from tunemill_api.data import Dataset, TokenizerMode
from tunemill_trainer.chat import examples, templates
from tunemill_trainer.chat.encoding import CHARACTERS_A_TOKEN
from tunemill_trainer.chat.prefix_cache import PrefixCache
from tunemill_trainer.data import dataset as data
from tunemill_trainer.data.augmentation import Augmenter, Change
from tunemill_trainer.data.dataset import Split
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.data.rows import Tool
from tunemill_trainer.prepared import PreparedWriter

ROWS = [openai_row(f"What is the weather in town {number}? {'Please! ' * (number % 7)}") for number in range(300)]


def written(folder, *, workers=1, max_length=4096, rows=ROWS, augmenter=None, replay=(), **spec):
    """Write rows, and return the statistics and the folder."""
    folder.mkdir()
    configured = Dataset.model_validate({"uri": "s3://team-a/calls.jsonl", **spec})
    found = data.read(configured, data.ReadOptions(), some_data(folder, rows), {}, folder / "spool", lambda: None)
    if replay:
        with data.Requests(found, set(Split), lambda: None) as known:
            general = some_data(folder, replay, "general.jsonl")
            found.add_replay(data.read_others(data.ReadOptions(), general, folder / "general", known), len(replay), 42)
    choice, _ = templates.choose_and_extend(a_speaker(GEMMA), TokenizerMode.AUTO, found.rendered_features(), [], None)
    unfit = []
    with PreparedWriter(folder / "output") as writer:
        counted = examples.write(
            found,
            examples.RowEncoder(choice, max_length, augmenter=augmenter),
            writer,
            workers=workers,
            unfit=unfit.append,
            tick=lambda done: None,
        )
    return counted, unfit, writer.layout


def test_the_number_of_processes_does_not_change_the_output(tmp_path):
    """The same examples and cases in the same order, with the same statistics."""
    one, _, alone = written(tmp_path / "one")
    many, _, together = written(tmp_path / "many", workers=2)
    assert pq.read_table(alone.train_path).equals(pq.read_table(together.train_path))
    assert alone.cases_path.read_text() == together.cases_path.read_text()
    assert (one.train, one.held_out, one.supervised) == (many.train, many.held_out, many.supervised)


def test_validation_rows_are_separate_cases(tmp_path):
    """They are neither trained on nor evaluated, and augmentation does not change them."""
    without, _, before = written(tmp_path / "without")
    counted, _, layout = written(tmp_path / "with", workers=2, validation={"fraction": "0.2"})
    assert layout.cases_path.read_text() == before.cases_path.read_text()
    assert counted.train.rows + counted.validation.rows == without.train.rows
    assert len(read_rows(layout)) == counted.train.rows
    validated = {case.messages[-1].content for case in layout.validation_cases()}
    assert len(validated) == counted.validation.rows > 0
    assert validated.isdisjoint(case.messages[-1].content for case in layout.cases())
    assert [*before.validation_cases()] == []
    _, _, changed = written(tmp_path / "changed", validation={"fraction": "0.2"}, augmenter=EVERYTHING)
    assert changed.validation_path.read_text() == layout.validation_path.read_text()


def test_general_rows_are_trained_on_unchanged(tmp_path):
    """Augmentation changes training rows only, and as it does without general rows."""
    general = [openai_row(f"Is it going to rain in town {number}?") for number in range(50)]
    _, _, before = written(tmp_path / "without", augmenter=EVERYTHING)
    _, _, unchanged = written(tmp_path / "general", rows=general, evaluation={"fraction": "0.000001"})
    counted, _, layout = written(tmp_path / "with", augmenter=EVERYTHING, replay=general)
    assert counted.splits[Split.REPLAY].rows == 50
    rows, alone = read_rows(layout), read_rows(before)
    assert rows[: len(alone)] == alone
    assert len(rows) == len(alone) + 50
    assert [row for row in read_rows(unchanged) if row not in rows[len(alone) :]] == []
    assert layout.cases_path.read_text() == before.cases_path.read_text()


def test_lengths_are_reported_as_percentiles(tmp_path):
    """They are the percentiles of the sorted lengths."""
    counted, _, layout = written(tmp_path / "rows")
    lengths = sorted(len(ids) for ids in pq.read_table(layout.train_path)["input_ids"].to_pylist())
    percentiles = counted.train.to_json()["tokens"]
    assert percentiles == {
        "p50": lengths[int(0.5 * (len(lengths) - 1))],
        "p90": lengths[int(0.9 * (len(lengths) - 1))],
        "p99": lengths[int(0.99 * (len(lengths) - 1))],
        "max": lengths[-1],
    }
    assert sum(lengths) == counted.tokens


def test_long_rows_are_findings_with_their_length(tmp_path):
    """They are excluded, counted, and reported with their length and the maximum."""
    longest = max(written(tmp_path / "all")[0].train.lengths)
    counted, unfit, _ = written(tmp_path / "some", max_length=longest - 1)
    assert unfit == []
    assert counted.train.overlong == counted.findings.counts[Rule.OVERLONG] - counted.held_out.overlong > 0
    assert f"more than the maximum of {longest - 1}" in counted.findings.listed[0].problem.message
    assert counted.train.shortest_overlong == longest


def test_a_much_too_long_row_is_not_tokenised(tmp_path, monkeypatch):
    """Tokenising megabytes of text can take any time and memory. The row is excluded like other long rows."""
    longest = 0
    tokenise = PrefixCache.tokenise

    def noted(self, texts, own):
        nonlocal longest
        longest = max([longest, *map(len, texts)])
        return tokenise(self, texts, own)

    monkeypatch.setattr(PrefixCache, "tokenise", noted)
    rows = [*ROWS[:5], openai_row("a" * 2**20), *ROWS[5:10]]
    counted, unfit, _ = written(tmp_path / "rows", rows=rows, max_length=512)
    assert unfit == []
    assert longest <= 512 * CHARACTERS_A_TOKEN
    (finding,) = counted.findings.listed
    assert (str(finding.source), finding.problem.rule) == ("calls.jsonl line 6", Rule.OVERLONG)
    assert "characters, which is certainly more than 512 tokens" in finding.problem.message
    assert counted.train.overlong + counted.held_out.overlong == 1
    assert counted.train.rows + counted.held_out.rows == 10


def test_a_row_that_cannot_be_encoded_is_passed_to_the_callback(tmp_path):
    """Its text contains the end-of-turn token."""
    rows = [*ROWS[:5], openai_row("x", city="<end_of_turn>")]
    counted, (unfit,), _ = written(tmp_path / "rows", rows=rows)
    assert unfit.problem.rule is Rule.MARKER_IN_TEXT
    assert str(unfit.item.row.source) == "calls.jsonl line 6"
    assert counted.train.rows + counted.held_out.rows == 5


def test_a_turn_excluded_from_training_is_no_case_but_is_numbered(tmp_path):
    """The turn after it has the number 2."""
    rows = [openai_row(f"question {number}") for number in range(20)]
    for row in rows:
        row["messages"][1]["weight"] = 0
        row["messages"] += [
            {"role": "tool", "tool_call_id": "c1", "content": "7"},
            {"role": "assistant", "content": "7"},
        ]
    counted, _, layout = written(tmp_path / "rows", rows=rows)
    assert [case.id.partition("#")[2] for case in layout.cases()] == ["2"] * counted.held_out.rows
    assert counted.train.calls.keys() == {""}


def read_rows(layout):
    """The token ids of all training examples."""
    return pq.read_table(layout.train_path)["input_ids"].to_pylist()


EVERYTHING = Augmenter(
    seed=1,
    shuffle=True,
    distractors=2,
    masked=1.0,
    irrelevant=1.0,
    pool=tuple(Tool(f"tool_{letter}", f"Tool {letter}", {"type": "object", "properties": {}}) for letter in "abcdef"),
)


def test_augmentation_changes_training_rows_only(tmp_path):
    """The cases stay the same; the number of processes changes nothing."""
    plain, _, before = written(tmp_path / "plain")
    one, _, alone = written(tmp_path / "one", augmenter=EVERYTHING)
    many, _, together = written(tmp_path / "many", workers=2, augmenter=EVERYTHING)
    assert before.cases_path.read_text() == alone.cases_path.read_text()
    assert read_rows(alone) == read_rows(together) != read_rows(before)
    assert one.changes == many.changes
    assert one.train.rows == plain.train.rows == one.changes[Change.MASKED] == one.changes[Change.ADDED]
    assert len(read_rows(alone)) == 2 * plain.train.rows


def test_a_changed_row_that_is_too_long_is_used_unchanged(tmp_path):
    """No row is lost because distractors make it longer."""
    _, _, before = written(tmp_path / "plain")
    longest = max(map(len, read_rows(before)))
    long = replace(
        EVERYTHING, masked=0.0, pool=tuple(replace(tool, description="long " * 500) for tool in EVERYTHING.pool)
    )
    counted, unfit, layout = written(tmp_path / "long", max_length=longest, augmenter=long)
    assert not unfit
    assert not counted.changes[Change.ADDED]
    assert {*map(tuple, read_rows(before))} == {*map(tuple, read_rows(layout))}
