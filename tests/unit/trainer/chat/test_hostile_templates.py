"""Hostile chat templates, which come from ConfigMaps and repositories on the Hub, and run in the trainer's process."""

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

REASONS = (
    "SecurityError",
    "is undefined",
    "no loader",
    "takes more than 0.3 s",
    "needs more than 64 MiB",
    "too deeply",
)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small limits. Collect the garbage of other tests first, so that it does not count."""
    gc.collect()
    monkeypatch.setattr(rendering, "TIME", TimeBound(seconds=0.3))
    for module in (rendering, encoding):
        monkeypatch.setattr(module, "MEMORY", MemoryBound(64 << 20))


@pytest.mark.slow
@pytest.mark.parametrize("attack", [*ESCAPES, *ENDLESS, *GREEDY, *DEEP], ids=lambda text: text[:40])
def test_a_hostile_template_of_a_config_map_fails_with_a_message(attack):
    """It cannot leave the sandbox, or use unlimited CPU time or memory."""
    begun = time.process_time()
    with pytest.raises(StageError) as error:
        templates.choose(a_speaker(CHATML), EVERYTHING, CHATML_TEMPLATE + attack)
    assert error.value.reason is Reason.INVALID_CHAT_TEMPLATE
    assert any(words in error.value.message for words in REASONS)
    assert time.process_time() - begun < 30


@pytest.mark.parametrize("attack", [ESCAPES[0], ENDLESS[0], GREEDY[0]])
def test_a_hostile_template_of_the_base_model_is_rejected(attack):
    """Tunemill's template is used instead, and the report has the reason."""
    choice = templates.choose(a_speaker(CHATML, template=CHATML_TEMPLATE + attack), EVERYTHING, None)
    assert choice.origin is Origin.TUNEMILL
    assert "the base model's chat template" in choice.rejected_because


@pytest.mark.parametrize(("attack", "said"), [(ENDLESS[0], "takes more than"), (GREEDY[0], "needs more than")])
def test_a_template_that_attacks_on_one_row_affects_only_that_row(attack, said):
    """A template can recognise rows by their text."""
    lurking = CHATML_TEMPLATE + "{% if messages[0]['content'] == 'now' %}" + attack + "{% endif %}"
    encoder = templates.choose(a_speaker(CHATML), EVERYTHING, lurking).encoder
    good, bad, other = encoder.encode([a_row(user(text), says("Yes.")) for text in ("before", "now", "after")])
    assert (good.problem, other.problem) == (None, None)
    assert bad.problem is not None
    assert said in bad.problem.message


@pytest.mark.parametrize("text", ["{{ 7 * 7 }}", "{% raw %}", "{{ ''.__class__ }}", "{% endgeneration %}"])
def test_a_row_that_looks_like_a_template_stays_text(text):
    """Rows are values for the template, never template code."""
    speaker = a_speaker(CHATML)
    for of_user in (CHATML_TEMPLATE, None):
        encoder = templates.choose(speaker, EVERYTHING, of_user).encoder
        row = a_row(user(f"say {text}"), says(f"I say {text} too"))
        written = encoder.template.conversation(row.messages, row.tools)
        assert f"say {text}" in written
        assert f"I say {text} too" in written
