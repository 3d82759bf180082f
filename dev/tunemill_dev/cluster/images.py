"""Builds images directly into the cluster's image store."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunemill_dev.cluster.base_image import base_archive
from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.home import SOURCES
from tunemill_dev.cluster.node import BUILDKIT_SOCKET, CONTAINERD_SOCKET, IMAGE_NAMESPACE, PAUSE_IMAGE
from tunemill_dev.cluster.processes import replace_file, run

_CONTEXTS = SOURCES / "images"
_CA_BUNDLES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))
_KEPT_TAGS = 2
_ROOM_BYTES = 25 << 30
"""Disk space in use during a build of the trainer image: its layers as build files, as blobs and as files."""
_CACHE_MEGABYTES = 12_000
"""The build cache of one trainer image."""
_NO_SPACE = "no space left on device"
_BY_ID = "sha256:"


@dataclass(frozen=True)
class ImageStore:
    """The image store of a running cluster, reached through its first process's view of /run."""

    run_folder: Path
    programs: Mapping[str, Path]
    logs: Path
    record: Path
    """The newest tags of each name, newest first."""
    workloads: Callable[[], str]
    """Returns all objects that may still start a pod, as text. Images named in it are kept."""

    def build(
        self,
        name: str,
        context: Path,
        dockerfile: Path,
        *,
        build_args: Mapping[str, str] | None = None,
        secrets: Mapping[str, Path] | None = None,
    ) -> str:
        """Build an image and return its reference, `localhost/NAME:HASH`.

        The hash is of the image's content: the same files give the same reference, so a Deployment rolls exactly when
        something changed. The secret `ca` is the machine's own bundle of certificate authorities.

        Older tags of the name are removed, except the newest two and those that a workload names. When the disk is
        nearly full, older images of all names are removed first, and older parts of the build cache; the whole cache
        only if the build fails for lack of space. Without it, an image is rebuilt, with another hash.
        """
        if shutil.disk_usage(self.logs).free < _ROOM_BYTES:
            self._prune(f"--keep-storage={_CACHE_MEGABYTES}")
        passed = {"ca": _ca_bundle(), **(secrets or {})}
        moving = f"localhost/{name}:build"
        try:
            self._build(moving, context, dockerfile, build_args or {}, passed)
        except ClusterError as error:
            if _NO_SPACE not in str(error):
                raise
            self.prune()
            self._build(moving, context, dockerfile, build_args or {}, passed)
        reference = f"localhost/{name}:{self._content_hash(moving)}"
        self._ctr("images", "tag", "--force", moving, reference)
        self._ctr("images", "rm", moving)
        self._keep_newest(name, reference)
        return reference

    def references(self) -> list[str]:
        """The references of all images."""
        return sorted(name for name in self._targets() if not name.startswith(_BY_ID))

    def pause(self) -> str:
        """The sandbox image that every pod needs."""
        if PAUSE_IMAGE not in self.references():
            with _scratch() as context:
                source = _CONTEXTS / "pause" / "pause.c"
                run(["gcc", "-static", "-Os", "-s", "-o", context / "pause", source], what="Compiling pause failed")
                self._build(PAUSE_IMAGE, context, _CONTEXTS / "pause" / "Dockerfile", {}, {})
        return PAUSE_IMAGE

    def program(self, program: Path) -> str:
        """An image that holds one static program and nothing else; the tag is that of the program's folder."""
        reference = f"localhost/{program.name}:{program.parent.name.rpartition('-')[2]}"
        if reference not in self.references():
            with _scratch() as context:
                shutil.copy2(program, context / "program")
                self._build(reference, context, _CONTEXTS / "program" / "Dockerfile", {}, {})
            self._keep_newest(program.name, reference)
        return reference

    def base(self) -> str:
        """The image that ours are built on: a minimal Debian with Python; the tag is that of the archive's folder."""
        archive = base_archive()
        reference = f"localhost/tunemill-base:{archive.parent.name.rpartition('-')[2]}"
        if reference not in self.references():
            self._build(reference, archive.parent, _CONTEXTS / "base" / "Dockerfile", {}, {})
            self._keep_newest("tunemill-base", reference)
        return reference

    def probe(self) -> list[str | Path]:
        """Return a command that succeeds when images can be built."""
        return [self.programs["buildkit"] / "buildctl", "--addr", self._builder, "debug", "workers"]

    def prune(self) -> None:
        """Keep only the newest image of each name, those in use, and no build cache. The next build will be slow."""
        self._prune()

    def _prune(self, *limits: str) -> None:
        for name, tags in self._tags().items():
            self._keep_newest(name, tags[0], keep=1)
        self._buildctl("prune", "--all", *limits)
        self._remove_untagged()

    def _build(
        self,
        reference: str,
        context: Path,
        dockerfile: Path,
        build_args: Mapping[str, str],
        secrets: Mapping[str, Path],
    ) -> None:
        if not dockerfile.is_file():
            raise ClusterError(f"The Dockerfile {dockerfile} for {reference} does not exist.")
        argv = ["build", "--progress=plain", "--frontend=dockerfile.v0", f"--local=context={context}"]
        argv += [f"--local=dockerfile={dockerfile.parent}", f"--opt=filename={dockerfile.name}"]
        argv += [f"--opt=build-arg:{key}={value}" for key, value in build_args.items()]
        argv += [f"--secret=id={key},src={path}" for key, path in secrets.items()]
        # Blobs are stored in addition to the unpacked files and never read again; the fastest zstd level halves them.
        output = f"type=image,name={reference},unpack=true,compression=zstd,compression-level=1"
        self._buildctl(*argv, "--opt=image-resolve-mode=local", f"--output={output}")

    def _buildctl(self, *argv: str) -> None:
        log = self.logs / "image-build.log"
        with log.open("w") as output:
            command: list[str | Path] = [self.programs["buildkit"] / "buildctl", "--addr", self._builder, *argv]
            done = subprocess.run(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise ClusterError.with_log(f"buildctl {argv[0]} failed (exit code {done.returncode}).", log)

    @property
    def _builder(self) -> str:
        return f"unix://{self.run_folder}/{Path(BUILDKIT_SOCKET).relative_to('/run')}"

    def _ctr(self, *argv: str) -> str:
        address = f"{self.run_folder}/{Path(CONTAINERD_SOCKET).relative_to('/run')}"
        return run([self.programs["containerd"] / "ctr", "-a", address, "-n", IMAGE_NAMESPACE, *argv])

    def _content_hash(self, reference: str) -> str:
        """12 hex digits of what a container sees: the image's settings, and its layers by their content."""
        document = json.loads(self._ctr("content", "get", self._targets()[reference]))
        configuration = json.loads(self._ctr("content", "get", document["config"]["digest"]))
        relevant = {"config": configuration["config"], "layers": configuration["rootfs"]["diff_ids"]}
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:12]

    def _targets(self) -> dict[str, str]:
        """The digest of the manifest that each reference points to."""
        rows = (row.split() for row in self._ctr("images", "ls").splitlines()[1:])
        return {row[0]: row[2] for row in rows}

    def _tags(self) -> dict[str, list[str]]:
        return json.loads(self.record.read_text()) if self.record.exists() else {}

    def _keep_newest(self, name: str, reference: str, *, keep: int = _KEPT_TAGS) -> None:
        """Note that this is the newest tag of the name, and remove all but the newest few."""
        known = self._tags()
        tags = [reference, *(tag for tag in known.get(name, []) if tag != reference)]
        needed = self.workloads()
        stale = [tag for tag in tags[keep:] if tag not in needed]
        present = set(stale) & set(self.references())
        if present:
            self._ctr("images", "rm", *sorted(present))
            self._remove_untagged()
        replace_file(self.record, json.dumps({**known, name: [tag for tag in tags if tag not in stale]}))

    def _remove_untagged(self) -> None:
        """Remove the references by ID, which the CRI makes for every image, of images that have no name any more."""
        targets = self._targets()
        named = {target for name, target in targets.items() if not name.startswith(_BY_ID)}
        orphans = [name for name, target in targets.items() if target not in named]
        if orphans:
            self._ctr("images", "rm", "--sync", *orphans)


def _ca_bundle() -> Path:
    for path in _CA_BUNDLES:
        if path.exists():
            return path
    raise ClusterError(f"No bundle of certificate authorities was found at {' or '.join(map(str, _CA_BUNDLES))}.")


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tunemill-context-") as folder:
        yield Path(folder)
