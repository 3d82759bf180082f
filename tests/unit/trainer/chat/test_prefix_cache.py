"""Shared prefixes are tokenised once, with the same tokens as in the whole text."""

import pytest
from tokenizers import AddedToken, pre_tokenizers
from trainer.chat.speakers import CHATML, GEMMA, a_speaker
from tunemill_trainer.chat.prefix_cache import PrefixCache

SHARED = "<start_of_turn>system\nTools: get_weather, é\n<end_of_turn>\n"


def texts(count, shared=SHARED):
    """Conversations with shared prefixes."""
    asked = "<start_of_turn>user\nTown {} 🌧<end_of_turn>\n<start_of_turn>model\nYes"
    return [shared + asked.format(number) for number in range(count)]


def tokenised(speaker, rows, own):
    """The result of three batches, so that prefixes are cached in the last."""
    beginnings = PrefixCache(speaker.backend_tokenizer, speaker.added_tokens_decoder.values())
    third = len(rows) // 3
    parts = [slice(0, third), slice(third, 2 * third), slice(2 * third, None)]
    return [tokens for part in parts for tokens in beginnings.tokenise(rows[part], own[part])]


def with_prefix_space(speaker, scheme):
    """The same tokenizer, with a prefix mark as in SentencePiece."""
    speaker.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return speaker


@pytest.mark.parametrize(
    "speaker",
    [
        a_speaker(GEMMA),
        with_prefix_space(a_speaker(GEMMA), "first"),
        with_prefix_space(a_speaker(GEMMA), "always"),
        a_speaker(CHATML),
    ],
    ids=["byte-level", "metaspace-first", "metaspace-always", "no-marks-in-the-text"],
)
def test_the_tokens_are_those_of_the_whole_text(speaker):
    """With shared and different prefixes and with none; the offsets find the same characters."""
    rows = [*texts(9), *[row.removeprefix(SHARED) for row in texts(9)], *texts(3, "own ")]
    own = [f"Town {number}" for number in [*range(9), *range(9), *range(3)]]
    whole = speaker.backend_tokenizer.encode_batch(rows, add_special_tokens=False)
    found = tokenised(speaker, rows, own)
    assert [tokens.ids for tokens in found] == [each.ids for each in whole]
    for tokens, each, row, name in zip(found, whole, rows, own, strict=True):
        start = row.index(name)
        first, end = tokens.between(start, start + len(name))
        assert (each.offsets[first][0], each.offsets[end - 1][1]) == (start, start + len(name))


def test_a_shared_prefix_is_cached():
    """From the third occurrence on, it is not tokenised again."""
    speaker = a_speaker(GEMMA)
    found = tokenised(speaker, texts(9), [f"Town {number}" for number in range(9)])
    assert found[0].cut == 0
    assert found[-1].cut == len(SHARED)


def test_a_tokenizer_that_merges_across_added_tokens_disables_the_cache():
    """A token that includes the space before it depends on the preceding text."""
    speaker = a_speaker(GEMMA)
    backend = speaker.backend_tokenizer
    stripping = [AddedToken(token.content, lstrip=True) for token in speaker.added_tokens_decoder.values()]
    beginnings = PrefixCache(backend, stripping)
    for _ in range(3):
        assert {tokens.cut for tokens in beginnings.tokenise(texts(3), ["Town"] * 3)} == {0}
