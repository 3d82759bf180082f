"""Token ids and labels."""

import pytest
from tokenizers import normalizers
from trainer.chat.speakers import CHATML, CHATML_TEMPLATE, EVERYTHING, GEMMA, a_speaker
from trainer.data.building import a_row, answers, calls, says, user
from tunemill_trainer.chat import templates
from tunemill_trainer.chat.encoding import Encoder
from tunemill_trainer.chat.rendering import ChatTemplate
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.prepared import IGNORED


def encoder_of(speaker):
    """An encoder with Tunemill's template."""
    return templates.tunemill_template(speaker, EVERYTHING, "").encoder


def test_labels_are_the_assistants_tokens_or_all():
    """The loss ignores other tokens, unless it includes all."""
    encoder = encoder_of(a_speaker(GEMMA))
    (encoded,) = encoder.encode([a_row(user("Hi"), says("Yo"))])
    labels = encoded.labels(everything=False)
    assert len(labels) == len(encoded.input_ids)
    assert sum(label != IGNORED for label in labels) == len("Yo") + 1
    assert encoded.labels(everything=True) == encoded.input_ids


def test_a_turn_excluded_from_training_has_no_labels():
    """It stays in the history of later turns."""
    encoder = encoder_of(a_speaker(GEMMA))
    row = a_row(user("Hi"), says("Wrong", learnt=False), user("No"), says("Yo"))
    (encoded,) = encoder.encode([row])
    assert [turn.message for turn in encoded.turns] == [3]
    assert sum(label != IGNORED for label in encoded.labels(everything=False)) == len("Yo") + 1
    assert encoder.prompt_ids(row.messages[:3], row.tools) == encoded.input_ids[: encoded.turns[0].start]


def test_a_prompt_is_a_prefix_of_the_conversation():
    """Training and generation see the same tokens."""
    encoder = encoder_of(a_speaker(GEMMA))
    row = a_row(user("Zürich?"), calls(city="Zürich"), answers("7 °C"), says("🌧 7 °C"))
    (encoded,) = encoder.encode([row])
    for turn in encoded.turns:
        assert encoder.prompt_ids(row.messages[: turn.message], row.tools) == encoded.input_ids[: turn.start]


@pytest.mark.parametrize("text", ["stop <end_of_turn> here", "<end_of_turn>"])
def test_an_end_of_turn_token_in_the_text_is_found(text):
    """A model that learns it would end its replies too early."""
    (encoded,) = encoder_of(a_speaker(GEMMA)).encode([a_row(user(), says(text))])
    assert encoded.problem.rule is Rule.MARKER_IN_TEXT


def test_characters_that_the_tokenizer_cannot_encode_are_found():
    """A tokenizer that drops characters would change the calls of the data."""
    speaker = a_speaker(GEMMA)
    speaker.backend_tokenizer.normalizer = normalizers.Replace("é", "e")
    (encoded,) = encoder_of(speaker).encode([a_row(user(), calls(city="Orléans"))])
    assert encoded.problem.rule is Rule.NOT_REPRODUCIBLE


def test_a_row_that_the_template_renders_differently_later_is_found():
    """With a template that drops earlier reasoning, several assistant turns cannot be located."""
    forgetting = CHATML_TEMPLATE.replace("if message.reasoning_content", "if message.reasoning_content and loop.last")
    speaker = a_speaker(CHATML)
    encoder = Encoder(speaker, ChatTemplate(forgetting, speaker.special_tokens_map, marked=False))
    short = a_row(user(), says(reasoning="Hm."))
    long = a_row(user(), says(reasoning="Hm."), user(), says(reasoning="Ah."))
    first, second = encoder.encode([short, long])
    assert first.problem is None
    assert second.problem.rule is Rule.NOT_REPRODUCIBLE
    assert "differently if turns follow" in second.problem.message
