"""Whatever objects, Jobs, pods, profiles and reports hold, the operator decides about each, and serves the others.

A thousand are tried in each run. More: `TUNEMILL_FUZZ=100000 pytest tests/property/test_hostile_objects.py`.
"""

import json
import os
from copy import deepcopy
from random import Random
from typing import Any

import pytest
from property.builders import a_finetune_body, at
from property.hostile_worlds import PROFILE, REPORT, worlds
from property.mutations import DEPTHS, deep, json_of, mutated, text_of
from property.simulator import World
from property.worlds import a_finished_world
from pydantic_core import to_json
from tunemill_api.plain_text import parsed
from tunemill_operator.engine.observe import Observed, Progress
from tunemill_operator.engine.plan import plan, plan_after_error
from tunemill_operator.kube.decoding import decodable_line, decoded
from tunemill_operator.progress.board import ProgressReport
from tunemill_operator.runtime.cache import Cache
from tunemill_operator.runtime.profile_status import status_of

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("TUNEMILL_FUZZ", "600"))
KEY, VALID = ("team-a", "support"), ("team-b", "valid")


def a_page(random: Random, bodies: list[Any]) -> list[Any]:
    """Return the objects of a list as the operator decodes them, of hostile ones and a valid one."""
    valid = a_finetune_body("valid", "team-b")
    whole, texts = [json_of(body) for body in bodies], [text_of(random, body) for body in bodies]
    text = ",".join([*texts, json.dumps(valid)])
    page = f'{{"metadata":{{"resourceVersion":"9"}},"items":[{text}]}}'.encode(errors="surrogatepass")
    try:
        items: list[Any] = decoded(page)["items"]
    except (ValueError, KeyError, TypeError):
        items = []
    if texts != whole and valid not in items:
        return [valid]  # an API server never sends unbalanced quotes and brackets
    return items


def check_storable(value: Any) -> None:
    """Check that the API server accepts a status: its numbers fit into 64 bits."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            check_storable(item)
    elif isinstance(value, int):
        assert abs(value) < 2**63


def decide(cache: Cache, world: World, progress: Progress | None) -> None:
    """Decide about the malicious object like the reconciler, and about the valid one."""
    finetune = cache.finetune(KEY)
    if finetune is not None:
        observed = Observed(
            jobs=cache.jobs.of(KEY),
            pods=cache.pods.of(KEY),
            profiles=tuple(cache.profiles),
            progress=progress,
            pods_listed=True,
        )
        decided = plan(finetune, observed, world.platform, world.clock)
        for status in (decided.status, plan_after_error(finetune, "x", world.clock).status):
            if status is not None:
                body = status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
                to_json(body)
                check_storable(body)
    valid = cache.finetune(VALID)
    assert valid is not None
    assert plan(valid, Observed(), world.platform, at(0)).status is not None


@pytest.mark.parametrize("part", range(3))
def test_mutated_objects_jobs_and_pods_cause_no_exception(part: int) -> None:
    """Each is read or ignored, and the resulting status can be written."""
    for number in range(ROUNDS // 3):
        random = Random(1_000_000 * part + number)
        world = random.choice(worlds())
        finetune, jobs, pods = world.finetune_body, list(world.jobs.values()), list(world.pods.values())
        match random.randrange(4):
            case 0:
                finetune = mutated(random, finetune, random.choice([1, 1, 2, 5]))
            case 1:
                jobs = [mutated(random, job, random.choice([1, 2, 5])) for job in jobs]
            case 2:
                pods = [mutated(random, pod, random.choice([1, 2, 5])) for pod in pods]
            case _:
                finetune, jobs, pods = (mutated(random, part, 2) for part in (finetune, jobs, pods))
        cache = Cache()
        for store, bodies in ((cache.finetunes, [finetune]), (cache.jobs, jobs), (cache.pods, pods)):
            for body in a_page(random, bodies):
                store.put(body)
        try:
            decide(cache, world, None)
        except Exception as error:
            error.add_note(f"seed {1_000_000 * part + number}")
            raise


def test_mutated_profiles_are_validated() -> None:
    """An unreadable profile has an error, and so have the objects that use it."""
    for seed in range(ROUNDS // 3):
        random = Random(seed)
        world = random.choice(worlds())
        cache = Cache()
        body = decoded(json_of(mutated(random, PROFILE, random.choice([1, 2, 5]))).encode())
        cache.profiles.put(body)
        cache.finetunes.put(world.finetune_body)
        cache.finetunes.put(a_finetune_body("valid", "team-b"))
        try:
            for profile in cache.profiles:
                to_json(status_of(profile, at(0)).model_dump(mode="json"))
            decide(cache, world, None)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


def test_mutated_progress_reports_cause_no_exception() -> None:
    """Accepted ones contain nothing that breaks a decision or is rejected by the API server."""
    taken = 0
    for seed in range(ROUNDS // 3):
        random = Random(seed)
        world = worlds()[2]
        try:
            report = parsed(ProgressReport, text_of(random, mutated(random, REPORT, random.choice([1, 1, 2, 5]))))
        except ValueError:
            continue
        taken += 1
        cache = Cache()
        for store, bodies in (
            (cache.finetunes, [world.finetune_body, a_finetune_body("valid", "team-b")]),
            (cache.jobs, world.jobs.values()),
            (cache.pods, world.pods.values()),
        ):
            for body in bodies:
                store.put(body)
        try:
            for pod in cache.pods:
                decide(cache, world, report.after(None, pod.meta.uid, world.clock))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert taken > 0


def test_a_status_written_by_another_program_does_not_hide_the_object() -> None:
    """`status.profile.fields` keeps unknown fields, so it may have any content and depth."""
    world = a_finished_world()
    for fields in (*map(deep, DEPTHS), {"compute.gpus": deep(150)}, {"": {}}, {"maxRuntime": 5}, [1]):
        body = deepcopy(world.finetune_body)
        body["status"]["profile"] = {"name": "p", "fields": fields}
        cache = Cache()
        cache.finetunes.put(decoded(json_of(body).encode()))
        cache.finetunes.put(a_finetune_body("valid", "team-b"))
        decide(cache, world, None)


def test_every_line_of_a_watch_can_be_decoded_by_kopf() -> None:
    """Or is omitted: an exception in its JSON parser ends the watch."""
    for seed in range(ROUNDS // 3):
        random = Random(seed)
        world = random.choice(worlds())
        event = {"type": "ADDED", "object": mutated(random, world.finetune_body, 3)}
        line = text_of(random, event).encode(errors="replace")
        if good := decodable_line(line):
            try:
                json.loads(good)
            except ValueError:
                assert len(line) == len(good)
