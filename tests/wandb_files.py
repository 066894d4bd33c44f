"""The files that wandb writes offline, read back: LevelDB's log of protobuf records."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = 32768
HEAD = struct.Struct("<IHB")  # checksum, length, kind
WHOLE, LAST = 1, 4


class Session(NamedTuple):
    """One `wandb.init` to `finish`."""

    run_id: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    artifacts: list[set[str]]
    exit_code: int | None


def read_sessions(folder: Path) -> list[Session]:
    """All sessions below a folder, in the order of time."""
    files = sorted(folder.rglob("run-*.wandb"), key=lambda f: f.stat().st_mtime)
    return [_session(file) for file in files]


def _session(file: Path) -> Session:
    found = Session("", {}, [], {}, [], None)
    for record in _records(file.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                found = found._replace(run_id=record.run.run_id)
                found.config.update(_items(record.run.config.update))
            case "history":
                found.history.append(_items(record.history.item))
            case "summary":
                found.summary.update(_items(record.summary.update))
            case "artifact":
                found.artifacts.append({e.path for e in record.artifact.manifest.contents})
            case "exit":
                found = found._replace(exit_code=record.exit.exit_code)
    return found


def _items(items: Any) -> dict[str, Any]:
    return {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def _records(data: bytes) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    at, parts = 7, []  # behind the magic number
    while at + HEAD.size <= len(data):
        if (left := BLOCK - at % BLOCK) < HEAD.size:
            at += left
            continue
        _, length, kind = HEAD.unpack_from(data, at)
        at += HEAD.size + length
        parts.append(data[at - length : at])
        if kind in (WHOLE, LAST):
            yield Record.FromString(b"".join(parts))
            parts = []
