"""Fuzzes the readers: `python -m tunemill_dev.fuzz --inputs 5000000`.

The number of an input determines it, whatever the number of processes. Each defect is printed once with its shortest
input, and written to `build/fuzz/found.jsonl`; the exit code is then 1. Repeat a single input with --only.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from random import Random
from traceback import extract_tb

from tunemill_dev.fuzz.targets import TARGETS, FoundError

OUTPUT = Path("build/fuzz/found.jsonl")
_CHUNK = 5000
_SLOWEST = 12.0
"""CPU seconds for one input. The limit for a row is 10."""

Found = dict[str, tuple[str, int, str]]
"""What happened → the target, the number of the input, and the traceback."""


def try_inputs(start: int, count: int, seed: int) -> Found:
    """Try inputs by number, and return each defect once."""
    found: Found = {}
    names, shares = list(TARGETS), [share for share, _ in TARGETS.values()]
    for number in range(start, start + count):
        random = Random(f"{seed}:{number}")
        name = random.choices(names, shares)[0]
        before = time.process_time()
        problem = trouble(name, random)
        if not problem and time.process_time() - before > _SLOWEST:
            problem = f"takes more than {_SLOWEST:g} s", ""
        if problem:
            found.setdefault(f"{name}: {problem[0]}", (name, number, problem[1]))
    return found


def trouble(name: str, random: Random) -> tuple[str, str] | None:
    """Return the error for an input and its location; None if there is none."""
    try:
        TARGETS[name][1](random)
    except FoundError as error:
        return str(error), ""
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        frames = extract_tb(error.__traceback__)
        last = next((frame for frame in reversed(frames) if "tunemill" in frame.filename), frames[-1])
        return f"{type(error).__name__}: {str(error)[:60]} in {Path(last.filename).name} line {last.lineno}", "\n".join(
            f"{Path(frame.filename).name}:{frame.lineno} {frame.line}" for frame in frames[-12:]
        )
    return None


def main() -> int:
    """Try the inputs in several processes, and print the defects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="the number of the first one (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other inputs (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="(default: %(default)s)")
    parser.add_argument("--only", type=int, help="print one input and its result")
    options = parser.parse_args()
    if options.only is not None:
        return _try_one(options.only, options.seed)
    found: Found = {}
    began, done = time.monotonic(), 0
    with ProcessPoolExecutor(options.processes) as pool:
        starts = range(options.start, options.start + options.inputs, _CHUNK)
        end = options.start + options.inputs
        waiting = [pool.submit(try_inputs, start, min(_CHUNK, end - start), options.seed) for start in starts]
        for chunk in as_completed(waiting):
            done += 1
            for what, where in chunk.result().items():
                if what not in found:
                    print(f"found {what}, e.g. input {where[1]} of seed {options.seed}", flush=True)
                found[what] = min(found.get(what, where), where, key=lambda each: each[1])
            if done % 40 == 0:
                print(f"{done * _CHUNK} inputs in {time.monotonic() - began:.0f} s, {len(found)} found", flush=True)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    with OUTPUT.open("w") as file:
        for what, (name, number, trace) in sorted(found.items()):
            file.write(json.dumps({"what": what, "target": name, "input": number, "traceback": trace}) + "\n")
    print(
        f"{options.inputs} inputs of seed {options.seed}: {len(found)} defects found"
        + (f", in {OUTPUT}" if found else "")
    )
    return int(bool(found))


def _try_one(number: int, seed: int) -> int:
    random = Random(f"{seed}:{number}")
    name = random.choices(list(TARGETS), [share for share, _ in TARGETS.values()])[0]
    state = random.getstate()
    problem = trouble(name, random)
    random.setstate(state)
    print(f"target {name}: {problem[0] if problem else 'no error'}\n{problem[1] if problem else ''}")
    from tunemill_dev.fuzz import mutate
    from tunemill_dev.fuzz.seeds import REPLIES

    made = (
        mutate.text(random, random.choice(REPLIES)).encode(errors="backslashreplace")
        if name == "reply"
        else mutate.row(random)
    )
    if name != "file":
        print(made.decode(errors="backslashreplace"))
    return int(bool(problem))


if __name__ == "__main__":
    sys.exit(main())
