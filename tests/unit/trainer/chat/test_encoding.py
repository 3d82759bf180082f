"""Token ids and labels."""

from dataclasses import replace

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


def the_example(encoder, row):
    """The only training example of a row."""
    (encoded,) = encoder.encode([row])
    (example,) = encoded.examples
    return example


def test_labels_are_the_assistants_tokens_or_all():
    """The loss ignores other tokens, unless it includes all."""
    encoder = encoder_of(a_speaker(GEMMA))
    example = the_example(encoder, a_row(user("Hi"), says("Yo")))
    labels = example.labels(everything=False)
    assert len(labels) == len(example.input_ids)
    assert sum(label != IGNORED for label in labels) == len("Yo") + 1
    assert example.labels(everything=True) == example.input_ids


def test_a_turn_excluded_from_training_has_no_labels():
    """It stays in the history of later turns."""
    encoder = encoder_of(a_speaker(GEMMA))
    row = a_row(user("Hi"), says("Wrong", learnt=False), user("No"), says("Yo"))
    example = the_example(encoder, row)
    assert [turn.message for turn in example.turns] == [3]
    assert sum(label != IGNORED for label in example.labels(everything=False)) == len("Yo") + 1
    assert encoder.prompt_ids(row.messages[:3], row.tools) == example.input_ids[: example.turns[0].start]


def test_a_prompt_is_a_prefix_of_the_conversation():
    """Training and generation see the same tokens."""
    encoder = encoder_of(a_speaker(GEMMA))
    row = a_row(user("Zürich?"), calls(city="Zürich"), answers("7 °C"), says("🌧 7 °C"))
    example = the_example(encoder, row)
    for turn in example.turns:
        assert encoder.prompt_ids(row.messages[: turn.message], row.tools) == example.input_ids[: turn.start]


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


FORGETTING = CHATML_TEMPLATE.replace(
    "{%- for message in messages %}\n{%- if message.role == 'user' %}",
    "{%- set ns = namespace(last=0) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}\n{%- if message.role == 'user' %}",
).replace("if message.reasoning_content", "if message.reasoning_content and loop.index0 > ns.last")
"""Like Qwen 3: drops the reasoning of turns before the last user message."""
_HEAD = "{{- '<|im_start|>assistant\n' }}\n{%- if message"
MARKED = FORGETTING.replace(_HEAD, _HEAD.replace("\n{%-", "{%- generation %}\n{%-")).replace(
    "{%- endfor %}{{- '<|im_end|>\n' }}", "{%- endfor %}{{- '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}"
)


@pytest.mark.parametrize("template", [FORGETTING, MARKED], ids=["compared", "marked"])
def test_every_trained_turn_follows_the_prompt_that_a_server_renders(template):
    """Each user message has an example, because earlier reasoning is dropped; turns in between share it."""
    assert template.count("ns.last") == 2
    speaker = a_speaker(CHATML)
    encoder = Encoder(speaker, ChatTemplate(template, speaker.special_tokens_map, marked=template is MARKED))
    first = (
        user("Rome?"),
        replace(calls(city="Rome"), reasoning="Look."),
        answers("7"),
        says("7.", reasoning="Seven."),
    )
    second = (
        user("Oslo?"),
        replace(calls(city="Oslo"), reasoning="Again."),
        answers("1"),
        says("1.", reasoning="One."),
    )
    row = a_row(*first, *second)
    (encoded,) = encoder.encode([row])
    assert encoded.problem is None
    assert [[turn.message for turn in example.turns] for example in encoded.examples] == [[1, 3], [5, 7]]
    for example in encoded.examples:
        for turn in example.turns:
            assert example.input_ids[: turn.start] == encoder.prompt_ids(row.messages[: turn.message], row.tools)
    early, late = (speaker.decode(example.input_ids) for example in encoded.examples)
    assert ("Look." in early, "Seven." in early, "Oslo" in early) == (True, True, False)
    assert ("Look." in late, "Seven." in late, "Again." in late, "One." in late) == (False, False, True, True)


def test_a_turn_that_does_not_continue_its_prompt_is_found():
    """The prompt ends with an opening tag of reasoning, but the template writes a turn without reasoning."""
    opening = CHATML_TEMPLATE.replace(
        "if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}",
        "if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}",
    )
    speaker = a_speaker(CHATML)
    encoder = Encoder(speaker, ChatTemplate(opening, speaker.special_tokens_map, marked=False))
    good, bad = encoder.encode([a_row(user(), says(reasoning="Hm.")), a_row(user(), says("Yes."))])
    assert good.problem is None
    assert bad.problem.rule is Rule.NOT_REPRODUCIBLE
    assert "starts an assistant turn differently with add_generation_prompt" in bad.problem.message


@pytest.mark.parametrize("response", ["rain", 'so "wet"\nand cold', "assistant"])
def test_a_template_may_write_the_last_message_differently(response):
    """Like Hermes 3, whose tool responses end with a line feed only if a turn follows. Turns follow served prompts."""
    template = CHATML_TEMPLATE.replace(
        "'\n</tool_response><|im_end|>\n'",
        "('\n</tool_response>' if loop.last else '\n</tool_response>\n') + '<|im_end|>'",
    )
    speaker = a_speaker(CHATML)
    encoder = Encoder(speaker, ChatTemplate(template, speaker.special_tokens_map, marked=False))
    row = a_row(user(), calls(city="Rome"), answers(response), says("It rains."), user("Thanks"), says("Bye."))
    (encoded,) = encoder.encode([row])
    assert encoded.problem is None
    assert [speaker.decode(ids) for _, ids in encoded.turns][1:] == ["It rains.<|im_end|>", "Bye.<|im_end|>"]
    for example in encoded.examples:
        for turn in example.turns:
            assert example.input_ids[: turn.start] == encoder.prompt_ids(row.messages[: turn.message], row.tools)
