"""What prepare writes is what the later stages read."""

import subprocess
import sys

import pyarrow.parquet as pq
from trainer.data.building import a_tool, calls, user
from tunemill_trainer.prepared import BaseModel, Case, NewToken, Prepared, PreparedWriter, Tokens


def test_a_folder_is_read_as_it_was_written(tmp_path):
    """Examples over several row groups, cases and all descriptions come back."""
    tokens = Tokens("Extend", (NewToken(9, "<tool_call>", (3, 5, 4)),), (4, 1), 0, 10)
    case = Case("calls.jsonl:7#1", 7, (user("Zürich?"),), (a_tool(),), (1, 2, 3), calls(city="Zürich"), (4, 5))
    with PreparedWriter(tmp_path / "output") as writer:
        for number in range(2500):
            writer.add_example([number, 1, 2][: 1 + number % 3], [-100, 1, 2][: 1 + number % 3])
        writer.add_case(case)
        writer.describe(tokens, BaseModel("acme/base", "c0ffee"), {"rows": 1})
    found = Prepared(tmp_path / "output")
    rows = pq.read_table(found.train_path).to_pylist()
    assert [row["input_ids"] for row in rows] == [[number, 1, 2][: 1 + number % 3] for number in range(2500)]
    assert [row["labels"] for row in rows] == [[-100, 1, 2][: 1 + number % 3] for number in range(2500)]
    assert list(found.cases()) == [case]
    assert (found.tokens(), found.base_model(), found.report()) == (
        tokens,
        BaseModel("acme/base", "c0ffee"),
        {"rows": 1},
    )


def test_writing_imports_no_pandas(tmp_path):
    """Arrow imports pandas for Python lists, which takes longer than writing them."""
    code = (
        "import sys, pathlib, tunemill_trainer.prepared as p\n"
        "with p.PreparedWriter(pathlib.Path(sys.argv[1])) as writer: writer.add_example([1], [1])\n"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
