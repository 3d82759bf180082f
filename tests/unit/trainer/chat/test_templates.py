"""The choice of the chat template, and its rendering of conversations."""

import pytest
from trainer.chat.speakers import (
    CHATML,
    CHATML_TEMPLATE,
    EVERYTHING,
    FUNCTION_GEMMA,
    FUNCTION_GEMMA_TEMPLATE,
    GEMMA,
    GEMMA_TEMPLATE,
    LLAMA3,
    LLAMA_TEMPLATE,
    PLAIN,
    a_speaker,
)
from trainer.data.building import a_row, answers, calls, says, user
from tunemill_api.data import TokenizerMode
from tunemill_api.failures import Reason
from tunemill_trainer.chat import templates
from tunemill_trainer.chat.templates import Origin
from tunemill_trainer.data.dataset import Features
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.data.rows import Message, Role
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.parse import ReplyFormat

NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
FAMILIES = [GEMMA, CHATML, LLAMA3, PLAIN]
CONVERSATION = a_row(
    Message(Role.SYSTEM, "Be brief."),
    user("Weather in Rome & Oslo?"),
    says("I look.", reasoning="Two towns.", calls=(*calls(city="Rome").calls, *calls(city="Oslo").calls)),
    answers("7"),
    answers("-3"),
    says("7 and -3."),
    user("Thanks"),
    says("Bye"),
)


def spoken(speaker, encoder, row):
    """The parts that the loss includes, as text."""
    (encoded,) = encoder.encode([row])
    assert encoded.problem is None
    return speaker.batch_decode([ids for _, ids in encoded.turns])


@pytest.mark.parametrize("special", FAMILIES, ids=["gemma", "chatml", "llama3", "plain"])
def test_the_tunemill_template_supports_all_features_in_every_family(special):
    """The loss includes exactly the assistant turns with their end-of-turn tokens."""
    speaker = a_speaker(special)
    choice = templates.choose(speaker, EVERYTHING, None)
    assert choice.origin is Origin.TUNEMILL
    end = {id(GEMMA): "<end_of_turn>", id(CHATML): "<|im_end|>", id(LLAMA3): "<|eot_id|>", id(PLAIN): "</s>"}[
        id(special)
    ]
    assert spoken(speaker, choice.encoder, CONVERSATION) == [
        "<think>Two towns.</think>\nI look.\n"
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>\n'
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>' + end,
        "7 and -3." + end,
        "Bye" + end,
    ]
    assert speaker.convert_ids_to_tokens(list(choice.ends_of_turns)) == [end]


def test_a_family_may_have_one_token_for_a_header():
    """Phi's `<|user|>`."""
    special = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]
    choice = templates.choose(a_speaker(special, eos_token="<|endoftext|>"), EVERYTHING, None)
    text = choice.encoder.template.prompt(CONVERSATION.messages[:2], ())
    assert text.endswith("<|user|>Weather in Rome & Oslo?<|end|><|assistant|>")


def test_gemma_gets_the_system_message_and_the_tools_in_its_first_user_turn():
    """Gemma has two roles; consecutive tool responses share one turn."""
    choice = templates.choose(a_speaker(GEMMA, template=GEMMA_TEMPLATE), EVERYTHING, None)
    text = choice.encoder.template.conversation(CONVERSATION.messages[:5], CONVERSATION.tools)
    assert text.startswith('<bos><start_of_turn>user\nBe brief.\n\n<tools>\n{"name": "get_weather"')
    assert text.count("<start_of_turn>") == 3
    assert "<tool_response>7</tool_response>\n<tool_response>-3</tool_response><end_of_turn>" in text
    assert "Weather in Rome & Oslo?<end_of_turn>" in text


def test_a_base_model_template_that_supports_the_rows_is_used():
    """It is used unchanged, even without generation blocks."""
    choice = templates.choose(a_speaker(CHATML, template=CHATML_TEMPLATE), EVERYTHING, None)
    assert (choice.origin, choice.rejected_because) == (Origin.BASE, "")
    assert choice.encoder.template.source == CHATML_TEMPLATE


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (GEMMA_TEMPLATE, "System role not supported"),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", "count_moorings"),
        ("{% for message in %}", "is not valid Jinja at line 1"),
        (CHATML_TEMPLATE.replace("{{- tool | tojson }}", "{{- tool.function.name }}"), "Counts free berths"),
        (
            CHATML_TEMPLATE.replace("call.function | tojson", "call.function.name"),
            "calls of an assistant turn change",
        ),
        (CHATML_TEMPLATE.replace("message.reasoning_content", "false"), "text of an assistant turn changes"),
        (
            CHATML_TEMPLATE.replace("{%- if add_generation_prompt", "{%- if false"),
            "does not write the header of an assistant turn with add_generation_prompt",
        ),
    ],
)
def test_a_template_that_drops_something_is_rejected_with_the_reason(template, reason):
    """Missing support is found by rendering, not by searching the template."""
    choice = templates.choose(a_speaker(CHATML, template=template), EVERYTHING, None)
    assert choice.origin is Origin.TUNEMILL
    assert reason in choice.rejected_because


def test_a_turn_may_start_with_a_special_token_after_a_header():
    """Like Gemma 4 and gpt-oss, whose turns start with the channel of the reasoning or of the answer."""
    template = CHATML_TEMPLATE.replace("{{- message.content }}", "{{- '<|channel>' + message.content }}")
    choice = templates.choose(a_speaker([*CHATML, "<|channel>"], template=template, **NAMES), EVERYTHING, None)
    assert (choice.origin, choice.rejected_because) == (Origin.BASE, "")


def test_rows_without_tools_need_no_template_for_tools():
    """For plain instructions, a template without support for tools is enough."""
    features = Features()
    choice = templates.choose(a_speaker(GEMMA, template=GEMMA_TEMPLATE), features, None)
    assert choice.origin is Origin.BASE


def test_of_several_templates_the_one_for_tools_is_tried():
    """Some repositories have the templates default and tool_use."""
    speaker = a_speaker(CHATML, template={"default": "{{ messages[0].content }}", "tool_use": CHATML_TEMPLATE})
    assert templates.choose(speaker, EVERYTHING, None).encoder.template.source == CHATML_TEMPLATE


def marked(template):
    """The ChatML template with generation blocks around assistant turns."""
    return template.replace("{{- message.content }}\n", "{%- generation %}{{- message.content }}\n").replace(
        "{%- endfor %}{{- '<|im_end|>\n' }}", "{%- endfor %}{{- '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}"
    )


def test_a_user_template_can_mark_the_turns():
    """The {% generation %} blocks decide what the loss includes."""
    features = Features(tools=True, calls=True)
    speaker = a_speaker(CHATML)
    choice = templates.choose(speaker, features, marked(CHATML_TEMPLATE))
    assert (choice.origin, choice.encoder.template.marked) == (Origin.USER, True)
    assert spoken(speaker, choice.encoder, a_row(user(), calls(city="Rome"))) == [
        '\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for message in messages %}\n{{ message.content\n", "is not valid Jinja at line 2"),
        ("{{ nothing.at.all }}", "fails with UndefinedError"),
        ("{{ 1 / 0 }}", "fails with ZeroDivisionError"),
        ("{{ messages[0].__class__.__mro__ }}", "fails with SecurityError"),
        (GEMMA_TEMPLATE.replace("<end_of_turn>", ""), "System role not supported"),
    ],
)
def test_a_broken_user_template_is_an_error(template, message):
    """It is not silently replaced."""
    with pytest.raises(StageError) as raised:
        templates.choose(a_speaker(CHATML), EVERYTHING, template)
    assert raised.value.reason is Reason.INVALID_CHAT_TEMPLATE
    assert message in raised.value.message
    assert "spec.tokenizer.chatTemplate" in raised.value.message


def test_a_user_template_can_use_added_end_of_turn_tokens():
    """A base model without chat turns gets them by spec.tokenizer.addTokens and a template."""
    speaker = a_speaker(PLAIN)
    turns = ["<|im_start|>", "<|im_end|>"]
    features = Features(tools=True, calls=True)
    choice, vocabulary = templates.choose_and_extend(speaker, TokenizerMode.AUTO, features, turns, CHATML_TEMPLATE)
    assert choice.origin is Origin.USER
    assert [token.token for token in vocabulary.added[:2]] == turns
    assert {"<tool_call>", "</tool_call>"} <= {token.token for token in vocabulary.added}
    assert [token.id for token in vocabulary.added] == [speaker.get_vocab()[token.token] for token in vocabulary.added]
    assert speaker.convert_ids_to_tokens(list(choice.ends_of_turns)) == ["<|im_end|>"]


def test_a_base_model_without_an_end_of_turn_token_is_unsupported():
    """A model that cannot end its turn cannot be trained for chat."""
    with pytest.raises(StageError) as raised:
        templates.choose(a_speaker([]), Features(), None)
    assert raised.value.reason is Reason.BASE_MODEL_UNSUPPORTED


@pytest.mark.parametrize(
    ("special", "template", "call_format", "ends"),
    [
        (LLAMA3, LLAMA_TEMPLATE, ReplyFormat.LLAMA3_JSON, ["<|eot_id|>"]),
        (
            FUNCTION_GEMMA,
            FUNCTION_GEMMA_TEMPLATE,
            ReplyFormat.FUNCTIONGEMMA,
            ["<start_function_response>", "<end_of_turn>"],
        ),
    ],
    ids=["llama", "functiongemma"],
)
def test_a_base_model_with_another_call_format_keeps_template_and_vocabulary(special, template, call_format, ends):
    """Calls are verified with its parser, no Hermes tags are added, and all end-of-turn tokens are known."""
    speaker = a_speaker(special, template=template)
    before = len(speaker)
    features = Features(system=True, tools=True, calls=True, responses=True)
    choice, vocabulary = templates.choose_and_extend(speaker, TokenizerMode.AUTO, features, [], None)
    assert (choice.origin, choice.encoder.call_format) == (Origin.BASE, call_format), choice.rejected_because
    assert (vocabulary.mode, len(speaker)) == (TokenizerMode.REUSE, before)
    assert speaker.convert_ids_to_tokens(list(choice.ends_of_turns)) == ends
    row = a_row(user(), calls(city="L'Aquila"), answers("7"), says("Seven."))
    (encoded,) = choice.encoder.encode([row])
    assert encoded.problem is None


def test_arguments_that_the_parser_would_drop_are_found():
    """The server's FunctionGemma parser drops numbers, so such rows do not fit the base model's template."""
    speaker = a_speaker(FUNCTION_GEMMA, template=FUNCTION_GEMMA_TEMPLATE)
    features = Features(tools=True, calls=True)
    choice, _ = templates.choose_and_extend(speaker, TokenizerMode.AUTO, features, [], None)
    (encoded,) = choice.encoder.encode([a_row(user(), calls(city="Rome", days=2))])
    assert encoded.problem.rule is Rule.NOT_REPRODUCIBLE
