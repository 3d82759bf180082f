"""`tunemill-trainer show`: prints rows as the trainer understands them, and what of them is learnt.

tunemill-trainer show calls.jsonl
tunemill-trainer show calls.jsonl --row 17 --tokenizer google/gemma-2-2b-it
tunemill-trainer show calls.jsonl --json | jq .learnt
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunemill_api.data import DatasetFormat
from tunemill_api.failures import ExitCode, Reason

from tunemill_trainer.commands import lint as lint_command
from tunemill_trainer.errors import StageError
from tunemill_trainer.process import console

if TYPE_CHECKING:
    from tunemill_trainer.chat.loss_mask import Rendered
    from tunemill_trainer.data.rows import Row
    from tunemill_trainer.data.shown import ShownFile

_LEARNT, _HEAD, _WRONG = "32", "1", "31"
"""Green, bold and red."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    lint_command.add_reading_options(command)
    command.add_argument(
        "--tokenizer",
        metavar="FOLDER_OR_ID",
        default="",
        help="a base model's folder or its id on the Hub (HF_TOKEN is used): show the rendered text",
    )
    command.add_argument("--row", metavar="N", type=int, help="only this line, element or row of each file, from 1")
    command.add_argument("--json", action="store_true", help="print one JSON object a usable row instead of text")


def main(options: argparse.Namespace) -> int:
    """Print the rows and return the exit code: 0, 65 when one of them is not usable, 64 or 66 for wrong options."""
    from tunemill_trainer.data.findings import full_text
    from tunemill_trainer.data.shown import ShownFile

    with tempfile.TemporaryDirectory() as scratch:
        try:
            form, contract = DatasetFormat(options.format), lint_command.contract_of(options)
            files = [ShownFile(path, Path(scratch), form, contract) for path in options.files]
            shower = _Shower(as_json=options.json, render=_renderer(options.tokenizer, files))
            return shower.show(files, options.row)
        except StageError as error:
            _complain(f"{full_text(error)}. {error.failure.remedy}")
            return error.exit_code
        except OSError as error:
            _complain(f"{error.filename} could not be read: {error.strerror}")
            return ExitCode.INPUT_MISSING


def _renderer(base: str, files: "Sequence[ShownFile]") -> "Callable[[Row], Rendered] | None":
    if not base:
        return None
    # Only here: it imports Transformers, which takes longer than everything else that this command does.
    from tunemill_trainer.chat.loss_mask import Renderer
    from tunemill_trainer.data.dataset import Features

    # The choice of the template depends on what occurs in all rows.
    features = Features()
    for file in files:
        for read in file.rows():
            if read.row is not None:
                features.see(read.row)
    return Renderer.load(base, features)


class _Shower:
    """Prints rows.

    Args:
        as_json: one object a row instead of text.
        render: renders a row with the base model's tokenizer; None shows the conversation.
    """

    def __init__(self, *, as_json: bool, render: "Callable[[Row], Rendered] | None") -> None:
        self._as_json = as_json
        self._render = render
        self._colours = console.has_colours()

    def show(self, files: "Iterable[ShownFile]", wanted: int | None) -> int:
        """Print all rows, or the one with a number, and return the exit code."""
        from tunemill_trainer.data.findings import invalidating

        wrong, found = False, False
        for file in files:
            for read in file.rows(wanted):
                found = True
                rendered = self._render(read.row) if self._render and read.row is not None else None
                problems = (*read.problems, *(rendered.problems if rendered else ()))
                wrong = wrong or invalidating(problems)
                messages = [f"{problem.rule.severity}: {problem.rule}: {problem.message}" for problem in problems]
                row = read.row
                if self._as_json:
                    for message in messages:
                        _complain(f"{read.source}: {message}")
                    goes_on = row is None or invalidating(problems) or console.show(_json_of(row, rendered))
                else:
                    goes_on = console.show_styled(self._parts(f"{read.source}  ({file.form})", row, rendered, messages))
                if not goes_on:
                    return ExitCode.DONE
            for problem in file.broken:
                wrong = True
                _complain(f"{file.name}: {problem.message}")
        if wanted is not None and not (found or wrong):
            raise StageError(Reason.OBJECT_NOT_FOUND, f"no file has a row {wanted}", "Correct --row.")
        return ExitCode.DATA_WRONG if wrong else ExitCode.DONE

    def _parts(
        self, title: str, row: "Row | None", rendered: "Rendered | None", messages: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """Yield a row for people: texts with their styles."""
        from tunemill_trainer.data.shown import conversation

        yield self._styled(title, _HEAD)
        if rendered is not None:
            yield f": {rendered.tokens} tokens, {rendered.learnt_tokens} of them learnt", ""
        yield "\n", ""
        for message in messages:
            yield self._styled(f"  {message}\n", _WRONG)
        if rendered is not None:
            for number, parts in enumerate(rendered.examples, 1):
                if len(rendered.examples) > 1:
                    yield self._styled(f"  example {number} of {len(rendered.examples)}\n", _HEAD)
                for part in parts:
                    yield self._learnt(part.text) if part.learnt else (part.text, "")
                yield "\n", ""
        elif row is not None:
            for head, text, learnt in conversation(row):
                yield self._styled(f"  {head}" + (", learnt" * learnt) + "\n", _HEAD)
                indented = "".join(f"    {line}\n" for line in text.split("\n"))
                yield self._styled(indented, _LEARNT) if learnt else (indented, "")
        yield "\n", ""

    def _learnt(self, text: str) -> tuple[str, str]:
        return (text, _LEARNT) if self._colours else (f"⟦{text}⟧", "")

    def _styled(self, text: str, style: str) -> tuple[str, str]:
        return text, style if self._colours else ""


def _json_of(row: "Row", rendered: "Rendered | None") -> str:
    from tunemill_trainer.data.shown import openai_form

    value = openai_form(row)
    if rendered is not None:
        value["rendered"] = [
            [{"text": part.text, "learnt": part.learnt} for part in parts] for parts in rendered.examples
        ]
    return json.dumps(value, ensure_ascii=False)


def _complain(message: str) -> None:
    print(f"tunemill-trainer show: {message}", file=sys.stderr)
