"""Chat templates that attack: they come from ConfigMaps and from repositories on the Hub, and run in our process."""

import gc
import time

import pytest
from trainer.chat.speakers import CHATML, CHATML_TEMPLATE, EVERYTHING, a_speaker
from trainer.data.building import a_row, says, user
from tunemill_api.failures import Reason
from tunemill_trainer.chat import encoding, rendering, templates
from tunemill_trainer.chat.templates import Origin
from tunemill_trainer.errors import StageError
from tunemill_trainer.process.bounds import MemoryBound, TimeBound

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x=3) %}{% for i in range(99999) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{{ lipsum(n=1000000) }}",
]
GREEDY = [
    "{{ 'a' * 100000000000 }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ 'a'.center(99999999999) }}",
]
DEEP = ["{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% if 1 %}" * 3000 + "{% endif %}" * 3000]

SAID = ("SecurityError", "is undefined", "no loader", "takes more than 0.1 s", "needs more than 64 MiB", "without end")


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs into a bound does so soon; what other tests left is not finalized on its account."""
    gc.collect()
    monkeypatch.setattr(rendering, "TIME", TimeBound(seconds=0.1))
    for module in (rendering, encoding):
        monkeypatch.setattr(module, "MEMORY", MemoryBound(64 << 20))


@pytest.mark.slow
@pytest.mark.parametrize("attack", [*ESCAPES, *ENDLESS, *GREEDY, *DEEP], ids=lambda text: text[:40])
def test_a_template_of_a_config_map_ends_in_a_message(attack):
    """It reaches nothing outside of the sandbox, and takes neither the processor nor the memory for itself."""
    begun = time.process_time()
    with pytest.raises(StageError) as error:
        templates.choose(a_speaker(CHATML), EVERYTHING, CHATML_TEMPLATE + attack)
    assert error.value.reason is Reason.INVALID_CHAT_TEMPLATE
    assert any(words in error.value.message for words in SAID)
    assert time.process_time() - begun < 30


@pytest.mark.parametrize("attack", [ESCAPES[0], ENDLESS[0], GREEDY[0]])
def test_a_template_of_the_base_model_is_passed_over(attack):
    """Ours takes its place, and the report says why."""
    choice = templates.choose(a_speaker(CHATML, template=CHATML_TEMPLATE + attack), EVERYTHING, None)
    assert choice.origin is Origin.TUNEMILL
    assert "the base model's chat template" in choice.passed_over


@pytest.mark.parametrize(("attack", "said"), [(ENDLESS[0], "takes more than"), (GREEDY[0], "needs more than")])
def test_a_template_that_attacks_at_one_row_alone_costs_that_row(attack, said):
    """It may behave while it is looked at, and know the rows by their words."""
    lurking = CHATML_TEMPLATE + "{% if messages[0]['content'] == 'now' %}" + attack + "{% endif %}"
    encoder = templates.choose(a_speaker(CHATML), EVERYTHING, lurking).encoder
    good, bad, other = encoder.encode([a_row(user(text), says("Yes.")) for text in ("before", "now", "after")])
    assert (good.problem, other.problem) == (None, None)
    assert bad.problem is not None
    assert said in bad.problem.message


@pytest.mark.parametrize("text", ["{{ 7 * 7 }}", "{% raw %}", "{{ ''.__class__ }}", "{% endgeneration %}"])
def test_a_row_that_looks_like_a_template_stays_text(text):
    """Rows are values for the template, never part of it."""
    speaker = a_speaker(CHATML)
    for of_user in (CHATML_TEMPLATE, None):
        encoder = templates.choose(speaker, EVERYTHING, of_user).encoder
        row = a_row(user(f"say {text}"), says(f"I say {text} too"))
        written, _ = encoder.template.conversation(row.messages, row.tools)
        assert f"say {text}" in written
        assert f"I say {text} too" in written
