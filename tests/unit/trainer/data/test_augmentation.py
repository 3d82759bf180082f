"""Random changes to training rows: right calls stay right, and held-out rows and other rows stay as they are."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from trainer.data.building import a_row, calls, openai_row, says, some_data, user
from tunemill_api.data import Augmentation, Dataset
from tunemill_trainer.data import dataset as data
from tunemill_trainer.data.augmentation import ANSWERS, Augmenter, Change, training_rows
from tunemill_trainer.data.rows import Call, Message, Role, Tool
from tunemill_trainer.data.tools import call_problems

OFF = Augmenter(seed=1, shuffle=False, distractors=0, masked=0.0, irrelevant=0.0)


def a_described_tool(name, description="Does something", **parameters):
    """A tool whose parameters have descriptions."""
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    return Tool(name, description, {"type": "object", "properties": properties, "required": [*parameters]})


BOOK = a_described_tool("book_table", "Books a table", city="The city", day="The day")
SONG = a_described_tool("play_song", "Plays a song", title="The title")
POOL = tuple(a_described_tool(f"tool_{letter}", f"Tool {letter}") for letter in "abcdefgh")
ROW = a_row(user("A table in Rome, please"), calls("book_table", city="Rome", day="Monday"), tools=(BOOK, SONG))


def changes_of(augmenter, row=ROW, count=200):
    """The changed rows for many row numbers."""
    return [augmenter.change(row, number) for number in range(count)]


def test_without_settings_nothing_changes():
    """Each setting can be turned off."""
    assert all(change.row == ROW and not change.kinds and change.added is None for change in changes_of(OFF))


def test_a_row_without_tools_stays_as_it_is():
    """There is nothing to change."""
    row = replace(ROW, tools=())
    everything = Augmenter(seed=1, shuffle=True, distractors=3, masked=1.0, irrelevant=1.0, pool=POOL)
    assert all(change.row == row and change.added is None for change in changes_of(everything, row))


def test_the_order_of_the_tools_is_random():
    """Each tool comes first about as often."""
    first = Counter(change.row.tools[0].name for change in changes_of(replace(OFF, shuffle=True), count=1000))
    assert set(first) == {"book_table", "play_song"}
    assert min(first.values()) > 400


def test_distractors_come_from_other_rows():
    """There are at most as many as set; sometimes there is none."""
    changed = changes_of(replace(OFF, distractors=3, pool=(*POOL, SONG)), count=400)
    counts = Counter(len(change.row.tools) - 2 for change in changed)
    assert set(counts) == {0, 1, 2, 3}
    for change in changed:
        assert change.row.tools[:2] == ROW.tools
        assert {tool.name for tool in change.row.tools[2:]} <= {tool.name for tool in POOL}


@pytest.mark.parametrize("name", ["reserve_table", "bookTable", "get-book", "TABLE_search2"])
def test_a_similar_tool_is_not_a_distractor(name):
    """A name that shares a distinctive word with a called tool is excluded."""
    augmenter = replace(OFF, distractors=1, irrelevant=1.0, pool=(a_described_tool(name),))
    for change in changes_of(augmenter, replace(ROW, tools=(BOOK,))):
        assert change.row.tools == (BOOK,)
        assert change.added is None


def test_a_common_word_does_not_make_tools_similar():
    """Most names begin with a verb such as get."""
    row = a_row(user("Weather?"), calls("get_weather", city="Rome"))
    augmenter = replace(OFF, distractors=1, pool=(a_described_tool("get_price"),))
    assert any(len(change.row.tools) == 2 for change in changes_of(augmenter, row))


def test_masked_names_are_consistent_and_calls_stay_valid():
    """Tools, calls, and the names of tool messages are renamed alike; values are not."""
    row = replace(ROW, messages=(*ROW.messages, Message(Role.TOOL, "done", name="book_table"), says("It is booked.")))
    for change in changes_of(replace(OFF, masked=1.0), row):
        assert change.kinds == (Change.MASKED,)
        book, song = change.row.tools
        (call,) = change.row.messages[1].calls
        assert call.name == book.name == change.row.messages[2].name != "book_table"
        assert song.name != "play_song"
        assert [*call.arguments.values()] == ["Rome", "Monday"]
        assert [*book.parameters["properties"].values()] == [*BOOK.parameters["properties"].values()]
        assert book.parameters["required"] == [*call.arguments] != ["city", "day"]
        assert not call_problems(call, (book, song))


def test_the_share_of_masked_rows_is_as_configured():
    """Within the statistical variation of 1,000 rows."""
    masked = sum(bool(change.kinds) for change in changes_of(replace(OFF, masked=0.3), count=1000))
    assert 230 < masked < 370


@pytest.mark.parametrize(
    "row",
    [
        replace(ROW, tools=(BOOK, replace(SONG, description=" "))),
        replace(ROW, tools=(BOOK, replace(SONG, description="Use it after book_table"))),
        replace(ROW, messages=(user("Call book_table for Rome"), *ROW.messages[1:])),
        replace(ROW, messages=(ROW.messages[0], replace(ROW.messages[1], reasoning="I need book_table."))),
        replace(ROW, messages=(*ROW.messages, Message(Role.TOOL, '{"name": "book_table", "content": 1}'))),
    ],
    ids=["no description", "description", "user", "reasoning", "tool message"],
)
def test_a_row_that_mentions_its_names_keeps_them(row):
    """Otherwise the model would have to write a name that it cannot know, or the text would be wrong."""
    assert all(change.row == row for change in changes_of(replace(OFF, masked=1.0), row))


def test_a_word_of_the_users_language_is_not_the_name_of_a_tool():
    """`search` in a request is a verb."""
    tool = a_described_tool("search", "Searches the shop", query="The words")
    row = a_row(user("search for shoes"), calls("search", query="shoes"), tools=(tool,))
    assert all(change.kinds == (Change.MASKED,) for change in changes_of(replace(OFF, masked=1.0), row))


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ({"type": "object", "properties": {"city": {"type": "string"}}}, {"city": "Rome"}),
        (
            {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The city"}},
                "anyOf": [{"required": ["city"]}],
            },
            {"city": "Rome"},
        ),
        ({"type": "object", "properties": {"city": {"description": "The city"}}}, {"city": "Rome", "zip": 1}),
        (
            {
                "type": "object",
                "properties": {"zip_code": {"description": "Or a"}, "a": {"description": "No zip_code"}},
            },
            {"a": "Rome"},
        ),
    ],
    ids=["no description", "other keywords", "unknown argument", "mentioned"],
)
def test_parameters_that_cannot_be_renamed_keep_their_names(parameters, arguments):
    """The name of the tool is masked nevertheless."""
    row = a_row(user(), calls("weather_of", **arguments), tools=(Tool("weather_of", "The weather", parameters),))
    for change in changes_of(replace(OFF, masked=1.0), row):
        assert change.row.tools[0].parameters == parameters
        assert change.row.messages[1].calls == (Call(change.row.tools[0].name, arguments),)


def test_a_row_without_suitable_tool_is_added():
    """It has the request, other tools than the called one, and an answer without a call."""
    rows = changes_of(replace(OFF, irrelevant=1.0, distractors=2, pool=POOL))
    for change in rows:
        assert change.added.messages[0] == ROW.messages[0]
        assert change.added.messages[1] == says(change.added.messages[1].content)
        assert "play_song" in {tool.name for tool in change.added.tools}
        assert "book_table" not in {tool.name for tool in change.added.tools}
    assert {change.added.messages[1].content for change in rows} == {*ANSWERS}


@pytest.mark.parametrize(
    "row",
    [
        a_row(user(), says("It rains.")),
        a_row(calls("book_table"), tools=(BOOK, SONG)),
        replace(ROW, messages=(user("Use book_table"), ROW.messages[1])),
        replace(ROW, messages=(ROW.messages[0], replace(ROW.messages[1], reasoning="Let me see."))),
        replace(ROW, tools=(BOOK,)),
    ],
    ids=["no call", "no request", "mentioned", "reasoning", "no other tool"],
)
def test_no_row_is_added_where_the_answer_would_be_wrong(row):
    """Or where nothing is left to decline."""
    assert all(change.added is None for change in changes_of(replace(OFF, irrelevant=1.0), row))


def test_the_changes_of_a_row_depend_on_the_seed_and_its_number():
    """So a second run makes the same changes, whatever the other rows are."""
    settings = Augmenter(seed=1, shuffle=True, distractors=3, masked=0.5, irrelevant=0.5, pool=POOL)
    assert changes_of(settings) == changes_of(settings)
    assert changes_of(settings) != changes_of(replace(settings, seed=2))


def a_dataset(folder, rows):
    """Rows that were read."""
    spec = Dataset.model_validate({"uri": "s3://team-a/calls.jsonl", "evaluation": {"fraction": "0.5"}})
    return data.read(spec, data.ReadOptions(), some_data(folder, rows), {}, folder / "spool", lambda: None)


def an_augmenter(dataset, settings=None):
    """The augmenter that prepare would use."""
    return Augmenter.of(settings or Augmentation(), dataset.features, training_rows(dataset))


def with_own_tool(number):
    """A row that offers a tool of its own, too."""
    row = openai_row(f"What is the weather in town {number}?")
    function = {"name": f"own_{number}", "description": "One", "parameters": {"type": "object", "properties": {}}}
    return row | {"tools": [*row["tools"], {"type": "function", "function": function}]}


def test_the_pool_has_no_tool_of_held_out_rows(tmp_path):
    """A tool that only held-out rows offer stays unknown to the model."""
    dataset = a_dataset(tmp_path, [with_own_tool(number) for number in range(60)])
    held_out = {tool.name for item in dataset if item.split is data.Split.HELD_OUT for tool in item.row.tools}
    trained = {tool.name for item in dataset if item.split is data.Split.TRAIN for tool in item.row.tools}
    pool = {tool.name for tool in an_augmenter(dataset).pool}
    assert pool == trained
    assert held_out - trained


def test_auto_adds_no_rows_without_suitable_tool_to_data_that_has_some(tmp_path):
    """5 % are enough."""
    declined = json.loads(json.dumps(openai_row("Who are you?")))
    declined["messages"][1:] = [{"role": "assistant", "content": "An assistant."}]
    calling = [openai_row(f"What is the weather in town {number}?") for number in range(18)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert an_augmenter(a_dataset(tmp_path / "a", calling)).irrelevant == 0.1
    assert an_augmenter(a_dataset(tmp_path / "b", [*calling, declined])).irrelevant == 0
    set_by_user = Augmentation(irrelevant_rows="0.2")
    assert an_augmenter(a_dataset(tmp_path / "b", [*calling, declined]), set_by_user).irrelevant == 0.2
