"""The artifact store as its users see it. Methods block: an async caller runs them in a thread.

root/blobs/ab/ab12…            contents by sha256
root/attempts/TASK/N/stdout    logs of an attempt: stdout, stderr, trace, console
root/attempts/TASK/N/outputs.json
root/attempts/TASK/N/findings.json, receipt.json
root/tmp                       what is being written
root/lock                      held while a blob is made young or taken away
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.artifacts.blobs import Blobs
from orchestrator.artifacts.disk import full_told, make_folder, write_whole
from orchestrator.artifacts.documents import DocumentName, keep_document, read_document
from orchestrator.artifacts.export import check_target, export
from orchestrator.artifacts.intake import read_tree
from orchestrator.artifacts.logs import DEFAULT_LIMIT_BYTES, Log, LogWriter
from orchestrator.artifacts.outputs import MAX_DEPTH, MAX_FILES, OutputsWriter, collecting
from orchestrator.artifacts.patience import Patience, WhenFull
from orchestrator.artifacts.trees import Entry, EntryKind, Tree
from orchestrator.artifacts.upkeep import DAY_SECONDS, Swept, remove_folder, sweep
from orchestrator.domain.errors import NotFound, PlatformError
from orchestrator.domain.task import InputSpec

_TASK_ID = re.compile(r"[0-9a-z]{1,64}")


class LogName(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"
    TRACE = "trace"
    CONSOLE = "console"


@dataclass(frozen=True, slots=True)
class StagedEntry:
    """One name of an input, where it goes: `path` is relative to /task/in. `open` gives a file's content."""

    path: str
    kind: EntryKind
    mode: int
    size: int
    sha256: str
    target: str
    blobs: Blobs

    def open(self) -> BinaryIO:
        return self.blobs.open(self.sha256)


class AttemptLogs:
    """Where one attempt writes. Its runner alone has one; everybody else reads through `Artifacts`. Whoever takes over
    has another, which goes on where the logs end; what the former runner still writes then changes nothing."""

    def __init__(self, folder: Path, blobs: Blobs, limit_bytes: int, when_full: WhenFull | None = None) -> None:
        self._folder = folder
        self._blobs = blobs
        self._limit = limit_bytes
        self._patience = Patience(when_full)
        self.stdout = self._writer(LogName.STDOUT)
        self.stderr = self._writer(LogName.STDERR)
        self.trace = self._writer(LogName.TRACE)
        self.console = self._writer(LogName.CONSOLE)

    def _writer(self, name: LogName) -> LogWriter:
        scratch = self._blobs.scratch
        return LogWriter(self._folder / name, scratch=scratch, limit_bytes=self._limit, patience=self._patience)

    def keep_evidence(self, text: str) -> None:
        """Put the machine's console log there; a later one replaces it. Raises HostDiskFull."""
        data = text.encode("utf-8", "backslashreplace")[: self._limit]
        write_whole(self.console.path, data, scratch=self._blobs.scratch)

    def outputs(
        self, *, max_files: int = MAX_FILES, max_depth: int = MAX_DEPTH, max_bytes: int | None = None
    ) -> AbstractAsyncContextManager[OutputsWriter]:
        """Take outputs, at most so many, so many folders deep and of so many bytes in all; the manifest is written at
        the end of the block: see `outputs.collecting`."""
        return collecting(
            self._folder / "outputs.json",
            self._blobs,
            max_files=max_files,
            max_depth=max_depth,
            max_bytes=max_bytes,
            patience=self._patience,
        )


class Artifacts:
    """`root` is made when something is first written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = Blobs(root)

    def read_tree(self, source: Path) -> str:
        """Keep a file or folder as it is now; the id of its tree. Raises InvalidTask naming the path, HostDiskFull."""
        make_folder(self.root)
        return self.blobs.put(read_tree(source, self.blobs, never=self.root).to_json())

    def tree(self, tree_id: str) -> Tree:
        """Raises PlatformError when it is not there, or was changed."""
        with self.blobs.open(tree_id) as file:
            text = file.read()
        if hashlib.sha256(text).hexdigest() != tree_id:
            raise PlatformError(f"{tree_id} in the artifact store is damaged: its sha256 is another")
        return Tree.from_json(text)

    def entries(self, inputs: Iterable[InputSpec]) -> list[StagedEntry]:
        """All names of these inputs, in order, as they go under /task/in. Raises PlatformError when one is gone, or is
        not what it is pinned to."""
        inputs = tuple(inputs)
        for each in inputs:
            if each.pinned not in ("", f"sha256:{each.blob}"):
                raise PlatformError(f"input {each.dest!r} is sha256:{each.blob}, and pinned to {each.pinned}")
        return [
            StagedEntry(_under(each.dest, entry.path), *_facts(entry), self.blobs)
            for each in inputs
            for entry in self.tree(each.blob).entries
        ]

    def contents(self, inputs: Iterable[InputSpec]) -> dict[str, tuple[str, ...]]:
        """The files of each input by its dest, as `decide.entrypoint.check_contents` wants them."""
        return {each.dest: tuple(entry.path for entry in self.tree(each.blob).files) for each in inputs}

    def attempt(
        self,
        task_id: str,
        number: int,
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        when_full: WhenFull | None = None,
    ) -> AttemptLogs:
        """Where this attempt writes; `limit_bytes` for each log. `when_full`: how long its writes wait for a full disk;
        None: they raise HostDiskFull at once. Raises HostDiskFull."""
        with full_told():
            return AttemptLogs(make_folder(self._folder(task_id, number)), self.blobs, limit_bytes, when_full)

    def log(self, task_id: str, number: int, name: LogName | str) -> Log:
        """A log to be read, perhaps while it grows."""
        return Log(self._folder(task_id, number) / LogName(name))

    def outputs(self, task_id: str, number: int) -> Tree | None:
        """The manifest of an attempt's outputs; None: it never came so far."""
        try:
            return Tree.from_json((self._folder(task_id, number) / "outputs.json").read_bytes())
        except FileNotFoundError:
            return None

    def keep_json(self, task_id: str, number: int, name: DocumentName | str, data: Any) -> str:
        """Put a JSON document beside an attempt's logs, in the place of any that was there; the sha256 of its file, in
        hex. It is canonical: equal data has equal bytes. Raises ValueError for another name than DocumentName's, for
        what is no JSON or too long, HostDiskFull."""
        return keep_document(self.document(task_id, number, name), data, scratch=self.blobs.scratch)

    def read_json(self, task_id: str, number: int, name: DocumentName | str) -> Any:
        """What `keep_json` put there; None: nothing. Raises ValueError when it was damaged since."""
        return read_document(self.document(task_id, number, name))

    def document(self, task_id: str, number: int, name: DocumentName | str) -> Path:
        """Where such a document is, or would be."""
        return self._folder(task_id, number) / DocumentName(name)

    def check_target(self, target: Path) -> None:
        """Raise NotPossible unless `export` could write there now."""
        check_target(target)

    def export(self, task_id: str, number: int, target: Path) -> Tree:
        """Copy an attempt's outputs to the folder `target`, new or empty; what was copied.

        Raises NotFound when there are none, NotPossible, HostDiskFull; in each case `target` is as it was.
        """
        tree = self.outputs(task_id, number)
        if tree is None:
            raise NotFound("results", f"attempt {number} of task {task_id} has no outputs", "see `mayfly logs` for why")
        export(tree, target, self.blobs)
        return tree

    def remove(self, task_id: str) -> None:
        """Take away what the attempts of a task left. Idempotent. Blobs that nobody else names go when it is swept."""
        remove_folder(self._task_folder(task_id), self.blobs.scratch)

    def sweep(self, keep: Collection[str], *, older_than_seconds: float = DAY_SECONDS) -> Swept:
        """Take away the blobs that nothing names: `keep` are the inputs' ids (`InputSpec.blob`) of all tasks that there
        are, read from the database before this is called; attempts' outputs are kept without being asked for.

        Safe beside submits and attempts that run: what was written, or asked to be written, within `older_than_seconds`
        is kept. Raises ValueError, and takes nothing away, when a manifest cannot be read.
        """
        return sweep(self.root, self.blobs, keep, older_than_seconds)

    def _task_folder(self, task_id: str) -> Path:
        if not _TASK_ID.fullmatch(task_id):
            raise ValueError(f"not a task's id: {task_id!r}")
        return self.root / "attempts" / task_id

    def _folder(self, task_id: str, number: int) -> Path:
        return self._task_folder(task_id) / str(int(number))


def _under(dest: str, path: str) -> str:
    return f"{dest}/{path}" if path else dest


def _facts(entry: Entry) -> tuple[EntryKind, int, int, str, str]:
    return entry.kind, entry.mode, entry.size, entry.sha256, entry.target
