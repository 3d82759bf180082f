"""Untrusted templates and tokenizers that exhaust memory: the run fails with a reason, or continues without them."""

import json

import pytest
from bombs.exploding import explode
from tokenizers import Tokenizer, models
from tunemill_api.failures import Reason
from tunemill_trainer.chat import rendering, tokenizer
from tunemill_trainer.chat.rendering import ChatTemplate, TemplateError
from tunemill_trainer.data.rows import Message, Role
from tunemill_trainer.errors import StageError
from tunemill_trainer.process.bounds import TimeBound, try_in_child

MIB = 1 << 20

TEMPLATES = {
    "power": "{{ 9**(9**9) }}",
    "power of a name": "{% set x=9**9 %}{% set y=9**x %}{{ y }}",
    "text": "{{ 'a' * 10**10 }}",
    "list": "{% set x=[0]*10**9 %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loop that writes": "{% for i in range(99999) %}{{ 'a'*10**6 }}{% endfor %}",
    "format": "{{ '%0*d' % (10**10, 1) }}",
    "itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "join": "{{ range(99999)|join('a'*100000) }}",
    "replace": "{{ ('a'*10**6).replace('a','b'*10000) }}",
    "indent": "{{ messages|tojson(indent=10**10) }}",
    "title": "{{ ('a-'*10**9)|title|length }}",
    "center": "{{ 'a'|center(10**10) }}",
    "batch": "{{ [1]|batch(10**9,'x')|list }}",
    "sums": "{% set a='x'*10**8 %}{% set b=a+a+a+a+a+a+a+a+a+a+a+a %}{{ b|length }}",
    "split": "{{ ('a,'*10**8).split(',')|length }}",
    "sort": "{{ ('ab'*10**8)|list|sort|length }}",
    "lower": "{{ ('\u0130'*10**9)|lower|length }}",
    "lorem": "{{ lipsum(n=10000000) }}",
    "namespace": "{% set n=namespace(x='a') %}{% for i in range(99) %}{% set n.x=n.x*2 %}{% endfor %}{{ n.x }}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "long": "{{ 1 }}" * 500_000,
}


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_stays_within_the_limits_of_a_rendering(monkeypatch, source):
    """It is aborted, and the process stays within its limit of 1 GiB."""
    monkeypatch.setattr(rendering, "TIME", TimeBound(seconds=1.0))

    def render():
        try:
            return len(ChatTemplate(source, {}, marked=False).prompt([Message(Role.USER, "hi")], ()))
        except TemplateError as error:
            return str(error)

    outcome = explode(render)
    assert isinstance(outcome.value, str)
    assert outcome.mib < 1100


def a_tokenizer(**changes):
    """Return a small tokenizer.json as an object, with some parts replaced."""
    words = {"a": 0, "<s>": 1, "[UNK]": 2}
    return json.loads(Tokenizer(models.WordLevel(words, "[UNK]")).to_str()) | changes


def growing(content, times):
    """Return normalizers that each replace a character by several, so that the text grows exponentially."""
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def split(pattern):
    """Return a pre-tokenizer with a pattern."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


UNIGRAM = {"type": "Unigram", "unk_id": 0, "byte_fallback": False}
FILES = {
    "no file": None,
    "nothing": "",
    "no JSON": "{",
    "a list": "[]",
    "lists": "[" + "[]," * (4 * MIB) + "[]]",
    "objects": '{"model": [' + "{}," * (4 * MIB) + "{}]}",
    "deep": "[" * 200_000,
    "deep normalizers": '{"normalizer":{"type":"Sequence","normalizers":[' * 20_000,
    "digits": '{"version": ' + "9" * MIB + "}",
    "a long text": '{"version": "' + "a" * (40 * MIB) + '"}',
    "escapes": '{"version": "' + "\\u0041" * (4 * MIB) + '"}',
    "too large": " " * (97 * MIB),
    "a million texts": a_tokenizer(normalizer=growing("a" * 1000, 2)),
    "growing": a_tokenizer(normalizer=growing("aa", 40)),
    "growing by a thousand": a_tokenizer(normalizer=growing("a" * 1000, 5)),
    "prepend": a_tokenizer(normalizer={"type": "Prepend", "prepend": "a" * (8 * MIB)}),
    "a pattern": a_tokenizer(pre_tokenizer=split("(a+)+$")),
    "a pattern that fails": a_tokenizer(pre_tokenizer=split("(")),
    "a counted pattern": a_tokenizer(pre_tokenizer=split("((a{1,1000}){1,1000}){1,1000}")),
    "an endless class": a_tokenizer(pre_tokenizer=split("(\\p{L}|\\p{L}\\p{L})*$")),
    "ids without end": a_tokenizer(model={"type": "WordLevel", "vocab": {"a": 2**32 - 1}, "unk_token": "a"}),
    "no ids": a_tokenizer(model={"type": "WordLevel", "vocab": {}, "unk_token": "a"}),
    "unigram": a_tokenizer(model=UNIGRAM | {"vocab": [["<unk>", 0.0], *[[f"a{i}", 1e308] for i in range(50_000)]]}),
    "merges of nothing": a_tokenizer(model={"type": "BPE", "vocab": {}, "merges": [["a", "b"]] * 100_000}),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_tokenizer_is_checked_in_a_child_process_first(tmp_path, monkeypatch, content):
    """Loading it, or encoding the first text, can abort the process, so a child process with limits tries it first."""
    monkeypatch.setattr(tokenizer, "_MOST_BYTES", 512 * MIB)
    monkeypatch.setattr(tokenizer, "_MOST_SECONDS", 4)
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "tokenizer.json").write_text(text)

    def load():
        try:
            tokenizer.load_base(tmp_path)
        except StageError as error:
            return error.reason
        return None

    outcome = explode(load)
    assert outcome.value in {None, Reason.BASE_MODEL_UNSUPPORTED}
    assert outcome.mib < 512


def test_a_valid_tokenizer_is_loaded(tmp_path):
    """The trial has no side effects."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(a_tokenizer()))
    assert tokenizer.load_base(tmp_path).get_vocab() == {"a": 0, "<s>": 1, "[UNK]": 2}


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", " " * (9 * MIB)], ids=["deep", "a list", "broken", "large"])
def test_an_unreadable_config_is_reported_with_the_reason(tmp_path, text):
    """Extreme nesting and size are reported like other invalid files."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"deeply|expected an object|Expecting|more than 8 MiB"):
        tokenizer.read_json(tmp_path / "config.json")


def test_a_failed_child_process_reports_the_reason():
    """By an exception, a time limit or a memory limit; no problem otherwise."""

    def spin():
        while True:
            pass

    def fail():
        raise ValueError("no such thing")

    assert try_in_child(lambda: None, MIB, 1) == ""
    assert try_in_child(fail, MIB, 1) == "no such thing"
    assert try_in_child(spin, MIB, 1) == "takes more than 1 s of CPU time"
    assert "needs more than 64 MiB of memory" in try_in_child(lambda: bytearray(1 << 30), 64 * MIB, 1)
