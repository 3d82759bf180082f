"""`tunemill show`: prints rows as the trainer understands them, and marks what the model learns of them.

tunemill show calls.jsonl
tunemill show calls.jsonl --row 17 --tokenizer google/gemma-2-2b-it
tunemill show calls.jsonl --json | jq .learnt
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from tunemill_api.data import Augmentation, DatasetFormat
from tunemill_api.failures import ExitCode, Reason

from tunemill_trainer.commands import inputs, output
from tunemill_trainer.commands import lint as lint_command
from tunemill_trainer.commands.command import Command, JsonField, JsonOutput, Task
from tunemill_trainer.commands.option_types import positive_integer
from tunemill_trainer.errors import StageError
from tunemill_trainer.process import console
from tunemill_trainer.process.bars import ProgressBar

if TYPE_CHECKING:
    from tunemill_trainer.chat.loss_mask import Rendered
    from tunemill_trainer.data.augmentation import Augmenter
    from tunemill_trainer.data.dataset import Features
    from tunemill_trainer.data.findings import Problem
    from tunemill_trainer.data.rows import Row
    from tunemill_trainer.data.shown import ShownFile, ShownRow

_GREEN, _BOLD, _RED = "32", "1", "31"


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    lint_command.add_reading_options(command)
    lint_command.add_tokenizer_option(command, "show the rendered text")
    command.add_argument(
        "--row", metavar="N", type=positive_integer, help="show only this line, list element or table row, from 1"
    )
    command.add_argument(
        "--augmentation",
        metavar="JSON",
        nargs="?",
        const="{}",
        help="show the rows as spec.dataset.augmentation changes them, and those that it adds. Without JSON: the "
        "defaults of its fields",
    )
    output.add_json_option(command, "print one JSON object for each usable row instead of text")


def main(options: argparse.Namespace) -> int:
    """Print the rows and return the exit code: 0, 65 when one of them is not usable, 64 or 66 for wrong options."""
    # Imported here: other commands and the stages share this parser and do not need it.
    from tunemill_trainer.data.shown import ShownFile

    with tempfile.TemporaryDirectory() as scratch:
        try:
            inputs.refuse_repeated_standard_input({"FILE": options.files, "--tools": [options.tools]})
            form, tools = DatasetFormat(options.format), lint_command.tools_of(options)
            files = [ShownFile(path, Path(scratch), form, tools) for path in options.files]
            features = _features(options, files)
            printer = _Printer(
                as_json=options.json,
                render=_renderer(options, features),
                augment=_augmenter(options, features, files),
            )
            return printer.show(files, options.row)
        except StageError as error:
            return output.fail_for("show", error)
        except OSError as error:
            return output.fail_unreadable("show", error)


def _features(options: argparse.Namespace, files: "Sequence[ShownFile]") -> "Features":
    """Return what occurs in all rows, if the output depends on it."""
    from tunemill_trainer.data.dataset import Features

    features = Features()
    if not options.tokenizer and options.augmentation is None:
        return features
    with ProgressBar("reading", inputs.row_count(options.files), "rows") as bar:
        for number, read in enumerate((row for file in files for row in file.rows()), start=1):
            bar.advance_to(number)
            if read.row is not None:
                features.see(read.row)
    return features


def _renderer(options: argparse.Namespace, features: "Features") -> "Callable[[Row], Rendered] | None":
    if not options.tokenizer:
        return None
    # Imported only with --tokenizer: Transformers takes longer to import than everything else that this command does.
    from tunemill_trainer.chat.loss_mask import Renderer

    return Renderer.load(options.tokenizer, features)


def _augmenter(options: argparse.Namespace, features: "Features", files: "Sequence[ShownFile]") -> "Augmenter | None":
    if options.augmentation is None:
        return None
    from tunemill_trainer.data.augmentation import Augmenter

    try:
        settings = Augmentation.model_validate_json(options.augmentation)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}".lstrip(": ") for each in error.errors())
        remedy = 'Give the fields of spec.dataset.augmentation as JSON, such as \'{"maskedNames": "0.5"}\'.'
        raise StageError(Reason.INVALID_SPEC, f"--augmentation: {wrong}", remedy) from error
    rows = (read.row for file in files for read in file.rows() if read.row is not None)
    return Augmenter.of(settings, features, rows)


class _Printer:
    """Prints rows.

    Args:
        as_json: whether to print one JSON object for each row instead of text.
        render: renders a row with the base model's tokenizer; None shows the conversation.
        augment: changes rows; None shows them as they are.
    """

    def __init__(
        self, *, as_json: bool, render: "Callable[[Row], Rendered] | None", augment: "Augmenter | None"
    ) -> None:
        self._as_json = as_json
        self._render = render
        self._augment = augment
        self._colours = console.has_colours()

    def show(self, files: "Iterable[ShownFile]", wanted: int | None) -> int:
        """Print all rows, or the one with the number `wanted`, and return the exit code.

        Raises:
            StageError: ObjectNotFound: there is no row with this number.
        """
        from tunemill_trainer.data.findings import invalidating

        wrong, found = False, False
        for file in files:
            for read in file.rows(wanted):
                for change, row, given in self._variants(read):
                    found = True
                    rendered = self._render(row) if self._render and row is not None else None
                    problems = (*given, *(rendered.problems if rendered else ()))
                    wrong = wrong or invalidating(problems)
                    messages = [f"{problem.rule.severity}: {problem.rule}: {problem.message}" for problem in problems]
                    if self._as_json:
                        for message in messages:
                            _complain(f"{read.source}: {message}")
                        is_read = row is None or invalidating(problems) or console.show(_json_of(row, rendered))
                    else:
                        title = f"{read.source}  ({file.form}){change}"
                        is_read = console.show_styled(self._parts(title, row, rendered, messages))
                    if not is_read:
                        return ExitCode.DONE
            for problem in file.broken:
                wrong = True
                _complain(f"{file.name}: {problem.message}")
        if wanted is not None and not (found or wrong):
            raise StageError(Reason.OBJECT_NOT_FOUND, f"--row is {wanted}, and no file has this row", "Correct --row.")
        return ExitCode.DATA_WRONG if wrong else ExitCode.DONE

    def _variants(self, read: "ShownRow") -> "Iterator[tuple[str, Row | None, Sequence[Problem]]]":
        """Yield the row, changed if changes are shown, and the row that is added; each with a note and its problems."""
        if read.row is None or self._augment is None:
            yield "", read.row, read.problems
            return
        changed = self._augment.change(read.row, read.source.line)
        yield "".join(f"  {kind}" for kind in changed.kinds), changed.row, read.problems
        if changed.added is not None:
            yield "  added", changed.added, ()

    def _parts(
        self, title: str, row: "Row | None", rendered: "Rendered | None", messages: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """Yield a row for people: texts with their styles."""
        from tunemill_trainer.data.shown import conversation

        yield self._styled(title, _BOLD)
        if rendered is not None:
            yield f": {rendered.tokens} tokens, {rendered.learnt_tokens} of them learnt", ""
        yield "\n", ""
        for message in messages:
            yield self._styled(f"  {message}\n", _RED)
        if rendered is not None:
            for number, parts in enumerate(rendered.examples, 1):
                if len(rendered.examples) > 1:
                    yield self._styled(f"  example {number} of {len(rendered.examples)}\n", _BOLD)
                for part in parts:
                    yield self._learnt(part.text) if part.learnt else (part.text, "")
                yield "\n", ""
        elif row is not None:
            for head, text, learnt in conversation(row):
                yield self._styled(f"  {head}, learnt\n" if learnt else f"  {head}\n", _BOLD)
                indented = "".join(f"    {line}\n" for line in text.split("\n"))
                yield self._styled(indented, _GREEN) if learnt else (indented, "")
        yield "\n", ""

    def _learnt(self, text: str) -> tuple[str, str]:
        return (text, _GREEN) if self._colours else (f"⟦{text}⟧", "")

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
    output.fail("show", message, ExitCode.DATA_WRONG)


COMMAND = Command(
    name="show",
    task=Task.DATA,
    summary="print rows as the trainer understands them, and mark what the model learns",
    add_options=add_options,
    main=main,
    examples=(
        "show calls.jsonl",
        "show calls.jsonl --row 17 --tokenizer google/gemma-2-2b-it",
        "show calls.jsonl --augmentation",
        "show - --json < calls.jsonl",
    ),
    exit_codes={
        ExitCode.SPEC_WRONG: "--tools cannot be used, or options contradict each other",
        ExitCode.DATA_WRONG: "a row is not usable",
        ExitCode.INPUT_MISSING: "a file or the tokenizer cannot be read, or there is no such row",
    },
    json=JsonOutput(
        "one object for each usable row, one per line",
        (
            JsonField("file", "string", "The file as given; `stdin` for standard input."),
            JsonField("line", "integer", "Line, list element or table row, from 1."),
            JsonField("messages[].role", "string", "`system`, `user`, `assistant` or `tool`."),
            JsonField("messages[].content", "string", "The text of the message."),
            JsonField(
                "messages[].reasoning_content", "string", "The reasoning of an assistant message, where it has one."
            ),
            JsonField("messages[].name", "string", "The tool of a `tool` message, where it is known."),
            JsonField("messages[].tool_call_id", "string", "The call that a `tool` message answers."),
            JsonField("messages[].tool_calls[].id", "string", "The id of the call; numbered within the row."),
            JsonField("messages[].tool_calls[].type", "string", "`function`."),
            JsonField("messages[].tool_calls[].function.name", "string", "The called tool."),
            JsonField("messages[].tool_calls[].function.arguments", "object", "The arguments."),
            JsonField("tools[].type", "string", "`function`."),
            JsonField("tools[].function", "object", "`name`, `description` and `parameters` (JSON Schema) of a tool."),
            JsonField("learnt[]", "boolean", "For each assistant message, whether the model learns it."),
            JsonField("rendered[][].text", "string", "With --tokenizer: a part of the text of a training example."),
            JsonField("rendered[][].learnt", "boolean", "With --tokenizer: whether the model learns this part."),
        ),
    ),
)
