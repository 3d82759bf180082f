"""What vLLM's parsers made of some replies of each format, so that `make test` holds our readers to it without vLLM.

`make test-long` compares many more with vLLM itself, and writes the file again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunemill_trainer.data.rows import Call
from tunemill_trainer.judge.parse import ReplyFormat

from tunemill_dev.agreement.comparing import ENGINES, Server
from tunemill_dev.agreement.generated import replies
from tunemill_dev.agreement.known import KNOWN

FILE = Path("dev", "tunemill_dev", "agreement", "recorded.json")
REPLIES = 40
"""Of each format, besides the known differences."""
_SEED = 1
_Calls = tuple[Call, ...]


@dataclass(frozen=True)
class Recording:
    """The calls that a version of vLLM makes of replies.

    Attributes:
        version: of vLLM.
        calls: of each reply of a format.
    """

    version: str
    calls: Mapping[ReplyFormat, Mapping[str, _Calls]]

    @classmethod
    def of(cls, server: Server, version: str) -> "Recording":
        """Ask vLLM."""
        calls = {}
        for reply_format in ENGINES:
            texts = list(replies(reply_format, REPLIES, _SEED))
            texts += [known.text for known in KNOWN if known.reply_format is reply_format]
            calls[reply_format] = dict(zip(texts, server.calls(texts, reply_format), strict=True))
        return cls(version, calls)

    @classmethod
    def read(cls, root: Path) -> "Recording":
        """Read the file of a repository."""
        content = json.loads((root / FILE).read_text(encoding="utf-8"))
        calls = {
            ReplyFormat(name): {text: tuple(Call(*call) for call in made) for text, made in entries}
            for name, entries in content["replies"].items()
        }
        return cls(content["vllm"], calls)

    def write(self, root: Path) -> None:
        """Write the file, a reply a line."""
        formats = []
        for reply_format, entries in self.calls.items():
            lines = ",\n".join(
                json.dumps([text, [[call.name, call.arguments] for call in made]]) for text, made in entries.items()
            )
            formats.append(f"{json.dumps(reply_format.value)}: [\n{lines}\n]")
        replies_by_format = ",\n".join(formats)
        content = f'{{"vllm": {json.dumps(self.version)}, "replies": {{\n{replies_by_format}\n}}}}\n'
        (root / FILE).write_text(content, encoding="utf-8")
