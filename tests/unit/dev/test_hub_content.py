"""Pushing to the local Hub and reading back, with the real client."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, RepoFile, get_session
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from tunemill_dev.hub.accounts import Accounts
from tunemill_dev.hub.local import LocalHub, local_hub

TOKEN = "token-of-alice"
PART = 1 << 20
CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
ACCOUNTS = Accounts.model_validate(
    {
        "users": {"alice": {"acme": "write"}},
        "tokens": [{"value": TOKEN, "user": "alice", "role": "write"}],
    }
)


@pytest.fixture(autouse=True)
def _no_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users set HF_HUB_DISABLE_XET=1 before the first import; here another test may have imported it already."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A server with one empty repository, acme/tools, and small upload parts."""
    with local_hub(ACCOUNTS, multipart_bytes=PART) as running:
        client(running).create_repo("acme/tools")
        yield running


def client(hub: LocalHub) -> HfApi:
    """The real client, as alice."""
    return HfApi(endpoint=hub.url, token=TOKEN)


def folder(where: Path, **contents: bytes) -> Path:
    """A folder of files; `__` in a name stands for a slash and `_` for a dot."""
    for name, content in contents.items():
        path = where / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return where


def put(hub: LocalHub, path: str, content: bytes, revision: str = "main") -> str:
    """Uploads one file; gives the commit."""
    done = client(hub).upload_file(repo_id="acme/tools", path_in_repo=path, path_or_fileobj=content, revision=revision)
    return str(done.oid)


def read(hub: LocalHub, path: str, revision: str = "main") -> bytes:
    """The content of one file, downloaded without the client's cache."""
    url = f"{hub.url}/acme/tools/resolve/{revision.replace('/', '%2F')}/{path}"
    answer = get_session().get(url, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200, answer.text
    return bytes(answer.content)


def paths(hub: LocalHub, revision: str = "main") -> list[str]:
    """All files of a revision except the one that every new repository has."""
    found = client(hub).list_repo_files("acme/tools", revision=revision)
    return [path for path in found if path != ".gitattributes"]


def commit(hub: LocalHub, *operations: CommitOperation, parent_commit: str | None = None) -> str:
    """One commit of several operations; gives its id."""
    done = client(hub).create_commit("acme/tools", operations, commit_message="change", parent_commit=parent_commit)
    return str(done.oid)


def raw_commit(hub: LocalHub, key: str, **value: object) -> tuple[int, str]:
    """Send a commit with one operation of this kind, as another client would; return status and body."""
    lines = [{"key": "header", "value": {"summary": "raw"}}, {"key": key, "value": value}]
    answer = get_session().post(
        f"{hub.url}/api/models/acme/tools/commit/main",
        content="\n".join(map(json.dumps, lines)),
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    return answer.status_code, answer.text


def test_a_pushed_folder_can_be_downloaded_unchanged(hub: LocalHub, tmp_path: Path) -> None:
    """Text, LFS in one piece, LFS in parts, binary, an empty file and a sub-folder survive the round trip."""
    sent = folder(
        tmp_path / "sent",
        README_md=b"---\nlicense: mit\nlibrary_name: peft\ntags: [tools]\n---\n# Tools\n",
        small_safetensors=os.urandom(1000),
        large_safetensors=os.urandom(2 * PART + 17),
        chart_png=b"\x89PNG\0" + os.urandom(100),
        empty_txt=b"",
        nested__deeper__a_txt=b"a",
    )
    client(hub).upload_folder(repo_id="acme/tools", folder_path=sent)
    got = Path(client(hub).snapshot_download("acme/tools", cache_dir=tmp_path / "cache"))
    for path in (path for path in sent.rglob("*") if path.is_file()):
        assert (got / path.relative_to(sent)).read_bytes() == path.read_bytes(), path
    parts = [seen for seen in hub.requests if seen.method == "PUT" and seen.path.rsplit("/", 1)[1].isdigit()]
    assert len(parts) == 3


def test_pushing_the_same_folder_again_makes_no_commit(hub: LocalHub, tmp_path: Path) -> None:
    """Existing content is neither sent nor committed again."""
    sent = folder(tmp_path, model_safetensors=os.urandom(1000), config_json=b"{}")
    first = client(hub).upload_folder(repo_id="acme/tools", folder_path=sent).oid
    seen = len(hub.requests)
    assert client(hub).upload_folder(repo_id="acme/tools", folder_path=sent).oid == first
    assert not [r for r in hub.requests[seen:] if r.method == "PUT" or "/commit/" in r.path]


def test_model_info_describes_files_card_and_tensors(hub: LocalHub, tmp_path: Path) -> None:
    """Sizes, digests, metadata of the card and counts of parameters are what the client parses."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}, "__metadata__": {}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(64)
    card = b"---\nbase_model: google/gemma-2-2b-it\nlibrary_name: peft\npipeline_tag: text-generation\n---\n"
    client(hub).upload_folder(
        repo_id="acme/tools", folder_path=folder(tmp_path, model_safetensors=weights, README_md=card)
    )
    info = client(hub).model_info("acme/tools", files_metadata=True)
    assert info.card_data is not None
    assert info.card_data.base_model == "google/gemma-2-2b-it"
    assert (info.library_name, info.pipeline_tag, info.gated, info.private) == ("peft", "text-generation", False, False)
    assert info.safetensors is not None
    assert (info.safetensors.total, info.safetensors.parameters) == (32, {"BF16": 32})
    [sibling] = [s for s in info.siblings or [] if s.rfilename == "model.safetensors"]
    assert sibling.size == len(weights)
    assert sibling.lfs is not None
    assert sibling.lfs.sha256 == hashlib.sha256(weights).hexdigest()
    expanded = client(hub).model_info("acme/tools", expand=["gated"])
    assert (expanded.gated, expanded.siblings) == (False, None)


def test_trees_list_folders_and_files(hub: LocalHub) -> None:
    """Flat and recursive listings, a sub-folder, single paths; a missing folder is EntryNotFound."""
    commit(hub, *(CommitOperationAdd(path, b"x") for path in ("a.txt", "deep/b.txt", "deep/er/c.txt")))
    api = client(hub)

    def listed(*where: str, recursive: bool = False) -> list[str]:
        return [entry.path for entry in api.list_repo_tree("acme/tools", *where, recursive=recursive)]

    assert listed() == [".gitattributes", "a.txt", "deep"]
    assert listed("deep") == ["deep/b.txt", "deep/er"]
    assert listed("deep", recursive=True) == ["deep/b.txt", "deep/er", "deep/er/c.txt"]
    found = api.get_paths_info("acme/tools", ["a.txt", "deep", "missing"])
    assert [(entry.path, isinstance(entry, RepoFile)) for entry in found] == [("a.txt", True), ("deep", False)]
    with pytest.raises(RemoteEntryNotFoundError):
        listed("missing")


def test_every_revision_keeps_its_own_files(hub: LocalHub) -> None:
    """Branch, tag and commit id each give their own files and commit, not those of the newest commit."""
    first = put(hub, "a.txt", b"one")
    api = client(hub)
    api.create_tag("acme/tools", tag="v1")
    api.create_branch("acme/tools", branch="drafts/next")
    second = put(hub, "a.txt", b"two")
    draft = put(hub, "b.txt", b"draft", revision="drafts/next")
    assert {r: read(hub, "a.txt", r) for r in (first, "v1", "drafts/next", "main", second)} == {
        first: b"one", "v1": b"one", "drafts/next": b"one", "main": b"two", second: b"two",
    }  # fmt: skip
    assert (paths(hub), paths(hub, "drafts/next"), paths(hub, "v1")) == (["a.txt"], ["a.txt", "b.txt"], ["a.txt"])
    shas = {r: api.model_info("acme/tools", revision=r).sha for r in ("main", "v1", "drafts/next", first)}
    assert shas == {"main": second, "v1": first, "drafts/next": draft, first: first}
    refs = api.list_repo_refs("acme/tools")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "drafts/next": draft}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    assert [c.commit_id for c in api.list_repo_commits("acme/tools")][:2] == [second, first]


def test_refs_can_be_created_once_and_deleted(hub: LocalHub) -> None:
    """A second creation is a conflict unless allowed; a removed ref is RevisionNotFound; main cannot be removed."""
    api = client(hub)
    api.create_tag("acme/tools", tag="v1")
    api.create_branch("acme/tools", branch="drafts")
    for make in (
        lambda: api.create_tag("acme/tools", tag="v1"),
        lambda: api.create_branch("acme/tools", branch="drafts"),
    ):
        with pytest.raises(HfHubHTTPError, match="exists already"):
            make()
    api.create_tag("acme/tools", tag="v1", exist_ok=True)
    api.create_branch("acme/tools", branch="drafts", exist_ok=True)
    api.delete_tag("acme/tools", tag="v1")
    api.delete_branch("acme/tools", branch="drafts")
    for revision in ("v1", "drafts", "f" * 40):
        with pytest.raises(RevisionNotFoundError):
            api.model_info("acme/tools", revision=revision)
    with pytest.raises(HfHubHTTPError, match="default branch"):
        api.delete_branch("acme/tools", branch="main")


def test_one_commit_adds_copies_and_deletes(hub: LocalHub) -> None:
    """Operations apply in order; deleting what is not there is EntryNotFound and changes nothing."""
    weights = os.urandom(100)
    commit(hub, *(CommitOperationAdd(path, weights) for path in ("w.safetensors", "old/x.bin", "old/y.bin", "z.txt")))
    commit(
        hub,
        CommitOperationCopy("w.safetensors", "copy.safetensors"),
        CommitOperationDelete("old/", is_folder=True),
        CommitOperationDelete("z.txt"),
    )
    assert paths(hub) == ["copy.safetensors", "w.safetensors"]
    assert read(hub, "copy.safetensors") == weights
    with pytest.raises(RemoteEntryNotFoundError):
        commit(hub, CommitOperationDelete("z.txt"), CommitOperationAdd("new.txt", b"n"))
    assert "new.txt" not in paths(hub)


def test_a_file_can_be_copied_by_the_server(hub: LocalHub) -> None:
    """`copyFile` lines, which other clients send, copy within the repository from any revision."""
    first = put(hub, "a.txt", b"one")
    put(hub, "a.txt", b"two")
    status, body = raw_commit(hub, "copyFile", path="b.txt", srcPath="a.txt", srcRevision=first)
    assert status == 200, body
    assert read(hub, "b.txt") == b"one"


def test_a_commit_on_a_stale_parent_is_rejected(hub: LocalHub) -> None:
    """With 412, if the client names a parent."""
    first = put(hub, "a.txt", b"one")
    put(hub, "a.txt", b"two")
    with pytest.raises(HfHubHTTPError) as error:
        commit(hub, CommitOperationAdd("a.txt", b"three"), parent_commit=first)
    assert error.value.response.status_code == 412
    assert read(hub, "a.txt") == b"two"


def test_concurrent_pushes_both_succeed(hub: LocalHub) -> None:
    """Two pushes that name no parent become two commits, and neither loses the other's file."""
    together = threading.Barrier(2)

    def push(path: str) -> str:
        together.wait(timeout=30)
        return put(hub, path, os.urandom(PART // 2))

    with ThreadPoolExecutor(2) as pool:
        commits = set(pool.map(push, ["one.safetensors", "two.safetensors"]))
    assert paths(hub) == ["one.safetensors", "two.safetensors"]
    assert {c.commit_id for c in client(hub).list_repo_commits("acme/tools")[:2]} == commits


@pytest.mark.parametrize(
    ("front_matter", "complaint"),
    [("tags: tools", "tags"), ("base_model: [a, 3]", "base_model"), ("- a\n- b", "mapping"), ("a: [", "not YAML")],
)
def test_a_card_with_invalid_metadata_is_rejected(hub: LocalHub, front_matter: str, complaint: str) -> None:
    """The client validates before it uploads, and the commit is rejected too."""
    card = f"---\n{front_matter}\n---\n# Tools\n"
    with pytest.raises(ValueError, match=complaint):
        put(hub, "README.md", card.encode())
    status, body = raw_commit(hub, "file", path="README.md", content=card, encoding="utf-8")
    assert (status, complaint in body) == (400, True)
    assert "README.md" not in paths(hub)


@pytest.mark.parametrize("path", ["../escape", "/absolute", "a/../../b", ".git/config", ""])
def test_paths_cannot_leave_the_repository(hub: LocalHub, path: str) -> None:
    """A commit with such a path is rejected."""
    status, body = raw_commit(hub, "file", path=path, content="x", encoding="utf-8")
    assert (status, "plain path" in body) == (400, True)


def test_content_that_was_not_uploaded_cannot_be_committed(hub: LocalHub) -> None:
    """A known digest is not enough."""
    oid = hashlib.sha256(b"secret of another repository").hexdigest()
    status, body = raw_commit(hub, "lfsFile", path="w.bin", algo="sha256", oid=oid, size=28)
    assert (status, "was not uploaded" in body) == (400, True)


def test_uploads_are_verified_and_need_an_issued_url(hub: LocalHub) -> None:
    """Other bytes than announced are rejected, and so is a URL that was not issued."""
    oid = hashlib.sha256(b"promised").hexdigest()
    batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": 8}]}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = get_session().post(f"{hub.url}/acme/tools.git/info/lfs/objects/batch", json=batch, headers=headers)
    href = answer.json()["objects"][0]["actions"]["upload"]["href"]
    assert get_session().put(href, content=b"other").status_code == 400
    assert get_session().put(href.split("?")[0], content=b"promised").status_code == 403
    assert get_session().put(href, content=b"promised").status_code == 200
    answer = get_session().post(f"{hub.url}/acme/tools.git/info/lfs/objects/batch", json=batch, headers=headers)
    assert "actions" not in answer.json()["objects"][0]


def test_ranges_and_etags_are_served(hub: LocalHub) -> None:
    """A range is 206 with its position; a range outside is 416; HEAD has commit, ETag and size."""
    content = bytes(range(256)) * 10
    oid = put(hub, "w.bin", content)
    url = f"{hub.url}/acme/tools/resolve/main/w.bin"
    answer = get_session().get(url, headers={"Range": "bytes=1000-1009"})
    assert (answer.status_code, answer.content) == (206, content[1000:1010])
    assert answer.headers["Content-Range"] == "bytes 1000-1009/2560"
    assert get_session().get(url, headers={"Range": "bytes=2500-"}).content == content[2500:]
    assert get_session().get(url, headers={"Range": "bytes=2560-"}).status_code == 416
    head = get_session().head(url)
    assert head.headers["X-Repo-Commit"] == oid
    assert head.headers["X-Linked-Etag"] == head.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert head.headers["X-Linked-Size"] == head.headers["Content-Length"] == "2560"


def test_a_missing_file_error_names_the_commit(hub: LocalHub, tmp_path: Path) -> None:
    """Clients cache the absence of optional files per commit."""
    oid = put(hub, "a.txt", b"a")
    with pytest.raises(RemoteEntryNotFoundError) as error:
        client(hub).hf_hub_download("acme/tools", "b.txt", cache_dir=tmp_path)
    assert error.value.response.headers["X-Repo-Commit"] == oid


def test_datasets_and_models_can_have_the_same_name(hub: LocalHub, tmp_path: Path) -> None:
    """A dataset of the same name is another repository."""
    api = client(hub)
    api.create_repo("acme/tools", repo_type="dataset")
    sent = folder(tmp_path / "sent", rows_jsonl=b"{}\n", rows_parquet=os.urandom(100))
    api.upload_folder(repo_id="acme/tools", repo_type="dataset", folder_path=sent)
    got = Path(api.snapshot_download("acme/tools", repo_type="dataset", cache_dir=tmp_path / "cache"))
    assert (got / "rows.parquet").read_bytes() == (sent / "rows.parquet").read_bytes()
    assert paths(hub) == []


def test_content_survives_a_restart(tmp_path: Path) -> None:
    """Content, history, refs and settings are on disk; an incomplete upload is discarded."""
    with local_hub(ACCOUNTS, data=tmp_path) as hub:
        client(hub).create_repo("acme/tools", private=True)
        first = put(hub, "w.safetensors", b"weights")
        client(hub).create_tag("acme/tools", tag="v1")
        second = put(hub, "a.txt", b"a")
        (tmp_path / "models/acme/tools/uploads/half").write_bytes(b"wei")
    with local_hub(ACCOUNTS, data=tmp_path) as hub:
        info = client(hub).model_info("acme/tools")
        assert (info.sha, info.private) == (second, True)
        assert client(hub).model_info("acme/tools", revision="v1").sha == first
        assert read(hub, "w.safetensors", "v1") == b"weights"
        assert not (tmp_path / "models/acme/tools/uploads").exists()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "begins with its header"),
        (b"[]", "should be an object"),
        (b'{"key": "header", "value": {"summary": ""}}', "summary"),
        (b'{"key": "header", "value": {"summary": "x"}}\n{"key": "rename", "value": {}}', "unknown operation rename"),
        (
            b'{"key": "header", "value": {"summary": "x"}}\n'
            + json.dumps({"key": "file", "value": {"path": "a", "content": "a", "encoding": "base64"}}).encode(),
            "base64",
        ),
    ],
)
def test_a_malformed_commit_is_a_bad_request(hub: LocalHub, body: bytes, complaint: str) -> None:
    """400 with the expected form, and nothing is committed."""
    url = f"{hub.url}/api/models/acme/tools/commit/main"
    answer = get_session().post(url, content=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, complaint in answer.text) == (400, True), answer.text
    assert paths(hub) == []


def test_pull_requests_and_commits_on_tags_are_rejected(hub: LocalHub) -> None:
    """Unsupported operations do not write to main."""
    client(hub).create_tag("acme/tools", tag="v1")
    for options in ({"create_pr": True}, {"revision": "v1"}):
        with pytest.raises(BadRequestError, match="branches only"):
            client(hub).upload_file(
                repo_id="acme/tools",
                path_in_repo="a.txt",
                path_or_fileobj=b"a",
                **options,  # type: ignore[call-overload]
            )
    assert paths(hub) == []
