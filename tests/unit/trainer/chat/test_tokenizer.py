"""Tags of a tokenizer, added tokens, and the description for later stages."""

import json
import subprocess
import sys

import pytest
from trainer.chat.speakers import CHATML, EVERYTHING, GEMMA, PLAIN, a_speaker
from tunemill_api.data import TokenizerMode
from tunemill_api.failures import Reason
from tunemill_trainer.chat import templates, tokenizer
from tunemill_trainer.data.dataset import Features
from tunemill_trainer.errors import StageError

CALLS = Features(tools=True, calls=True)
CALL_TAGS = ("<tool_call>", "</tool_call>")


def test_missing_tags_are_appended_to_the_vocabulary():
    """Each becomes one token that decoding without special tokens keeps."""
    speaker = a_speaker(GEMMA)
    before = len(speaker)
    done = tokenizer.prepare_vocabulary(speaker, TokenizerMode.AUTO, EVERYTHING, [])
    assert done.mode is TokenizerMode.EXTEND
    assert [token.id for token in done.added] == list(range(before, before + 8))
    bare = a_speaker(GEMMA)
    for token in done.added:
        assert list(token.pieces) == bare([token.token], add_special_tokens=False)["input_ids"][0]
        assert bare.decode(list(token.pieces)) == token.token
    (ids,) = speaker(["a<tool_call>{}</tool_call>"], add_special_tokens=False)["input_ids"]
    assert speaker.decode(ids, skip_special_tokens=True) == "a<tool_call>{}</tool_call>"
    assert len(ids) == 5


@pytest.mark.parametrize("mode", [TokenizerMode.AUTO, TokenizerMode.REUSE])
def test_existing_tags_are_reused(mode):
    """Only tags that the assistant generates count: a base model may have <tools> as text."""
    done = tokenizer.prepare_vocabulary(a_speaker(CHATML, tags=CALL_TAGS), mode, CALLS, [])
    assert (done.mode, done.added) == (TokenizerMode.REUSE, ())


def test_extend_also_adds_tags_of_the_prompt():
    """With Extend, every tag that occurs becomes a token."""
    done = tokenizer.prepare_vocabulary(a_speaker(CHATML, tags=CALL_TAGS), TokenizerMode.EXTEND, CALLS, [])
    assert [token.token for token in done.added] == ["<tools>", "</tools>"]


def test_reuse_reports_missing_tags():
    """The user requires a base model that has them."""
    with pytest.raises(StageError) as raised:
        tokenizer.prepare_vocabulary(a_speaker(GEMMA), TokenizerMode.REUSE, CALLS, [])
    assert raised.value.reason is Reason.TOKENIZER_LACKS_TAGS
    assert "<tool_call>, </tool_call>" in raised.value.message


def test_text_does_not_change_the_vocabulary():
    """Missing tags are several tokens, existing ones are reused, and tokens cannot be added."""
    speaker = a_speaker(GEMMA)
    before = len(speaker)
    done = tokenizer.prepare_vocabulary(speaker, TokenizerMode.TEXT, CALLS, [])
    assert (done.mode, done.added, len(speaker)) == (TokenizerMode.TEXT, (), before)
    known = tokenizer.prepare_vocabulary(a_speaker(CHATML, tags=CALL_TAGS), TokenizerMode.TEXT, CALLS, [])
    assert known.mode is TokenizerMode.REUSE
    with pytest.raises(StageError) as raised:
        tokenizer.prepare_vocabulary(speaker, TokenizerMode.TEXT, CALLS, ["<plan>"])
    assert raised.value.reason is Reason.INVALID_SPEC
    assert "<plan>" in raised.value.message


def test_tokens_of_the_user_are_added_once():
    """spec.tokenizer.addTokens extends a vocabulary that could be reused; existing tokens are not added again."""
    speaker = a_speaker(CHATML, tags=CALL_TAGS)
    done = tokenizer.prepare_vocabulary(speaker, TokenizerMode.AUTO, Features(calls=True), ["<plan>", "<tool_call>"])
    assert [token.token for token in done.added] == ["<plan>"]


@pytest.mark.parametrize(
    ("mode", "auto", "more", "expected"),
    [
        (TokenizerMode.AUTO, TokenizerMode.TEXT, [], TokenizerMode.TEXT),
        (TokenizerMode.AUTO, TokenizerMode.EXTEND, [], TokenizerMode.EXTEND),
        (TokenizerMode.AUTO, TokenizerMode.TEXT, ["<plan>"], TokenizerMode.EXTEND),
        (TokenizerMode.EXTEND, TokenizerMode.TEXT, [], TokenizerMode.EXTEND),
        (TokenizerMode.TEXT, TokenizerMode.EXTEND, [], TokenizerMode.TEXT),
    ],
)
def test_auto_can_keep_tags_as_text(mode, auto, more, expected):
    """Unless the user's tokens extend the vocabulary anyway. Other modes are unchanged."""
    speaker = a_speaker(GEMMA)
    _, vocabulary = templates.choose_and_extend(speaker, mode, CALLS, more, None, auto)
    assert vocabulary.mode is expected
    added = [*more, "<tools>", "</tools>", *CALL_TAGS] if expected is TokenizerMode.EXTEND else []
    assert [token.token for token in vocabulary.added] == added


def test_rows_without_tools_need_no_tags():
    """Plain instruction data changes no vocabulary."""
    done = tokenizer.prepare_vocabulary(a_speaker(GEMMA), TokenizerMode.AUTO, Features(system=True), [])
    assert done.mode is TokenizerMode.REUSE


def test_the_stop_tokens_for_later_stages(tmp_path):
    """The template's end-of-turn token first, then those of the tokenizer and the generation config."""
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 9, 260]}))
    speaker = a_speaker(GEMMA)
    kept = tokenizer.Vocabulary(TokenizerMode.REUSE, ())
    described = tokenizer.describe(speaker, kept, (speaker.convert_tokens_to_ids("<end_of_turn>"),), tmp_path)
    assert described.stop_token_ids == (
        speaker.convert_tokens_to_ids("<end_of_turn>"),
        speaker.eos_token_id,
        9,
        *(
            stop
            for stop in (257, 260)
            if stop not in {speaker.convert_tokens_to_ids("<end_of_turn>"), speaker.eos_token_id}
        ),
    )
    assert described.vocabulary == max(speaker.get_vocab().values()) + 1


def test_a_tokenizer_without_a_padding_token_gets_one(tmp_path):
    """Batches need one: the end-of-text token, whose padding the loss excludes."""
    speaker = a_speaker(PLAIN)
    described = tokenizer.describe(speaker, tokenizer.Vocabulary(TokenizerMode.REUSE, ()), (256,), tmp_path)
    assert described.pad_token_id == speaker.eos_token_id


def test_an_invalid_tokenizer_file_is_reported_as_a_problem_of_the_base_model(tmp_path):
    """The message names the file."""
    (tmp_path / "tokenizer.json").write_text('{"version": "9"}')
    with pytest.raises(StageError) as raised:
        tokenizer.load(tmp_path)
    assert raised.value.reason is Reason.BASE_MODEL_UNSUPPORTED


def test_a_saved_tokenizer_loads_as_auto_tokenizer_with_the_same_ids(tmp_path):
    """Users and servers load with AutoTokenizer what prepare saved without it."""
    from transformers import AutoTokenizer

    speaker = a_speaker(GEMMA)
    tokenizer.prepare_vocabulary(speaker, TokenizerMode.AUTO, EVERYTHING, [])
    speaker.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<bos><start_of_turn>user\nZürich 🌧<tool_call>{}</tool_call><end_of_turn>"
    assert loaded(text, add_special_tokens=False)["input_ids"] == speaker(text, add_special_tokens=False)["input_ids"]


def test_prepare_imports_no_torch():
    """Importing torch takes seconds, and hundreds of megabytes that small pods do not have."""
    code = "import sys, tunemill_trainer.stages.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
