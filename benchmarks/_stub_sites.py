"""Sites that train nothing: they speak the whole protocol, and answer with the model that they were sent.

    python benchmarks/_stub_sites.py FEDERATION_FOLDER SITE [SITE …]

Without torch, so that twenty of them fit a small machine. Each question is a line of JSON on the output. Where the
folder holds `upload-SITE.parcel`, its tensors are what that site uploads (a coded upload).
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from morphfed.core.errors import LinkError
from morphfed.federation.transports.flower.fleet import Credentials, FleetLine

KEY = "morphfed"
SOON, POLL = 0.08, 1.0  # as `site join`
LIMIT = 1 << 30
VALIDATION = {"balanced_accuracy": 0.5}

downloads: dict[str, tuple[dict[str, Any], list[str], bytes]] = {}
"""By digest: shapes and offsets, order, bytes; shared by the sites of this process, which differ in nothing else."""


def parse(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Shapes and offsets, what the head says, bytes of the tensors."""
    length = int.from_bytes(content[:8], "little")
    frame = json.loads(content[8 : 8 + length])
    said = json.loads(frame.pop("__metadata__")[KEY])
    return frame, said, content[8 + length :]


def frame(shapes: dict[str, Any], said: dict[str, Any], data: bytes) -> bytes:
    """The inverse."""
    text = json.dumps({"__metadata__": {KEY: json.dumps(said, sort_keys=True)}, **shapes}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def own(data: bytes, site: str, number: int) -> bytes:
    """The same, but for a few last digits: Flower keeps equal objects once, and sites do not upload the same."""
    found = bytearray(data)
    for at in range(0, len(found) - 8, 1 << 16):
        found[at], found[at + 4] = sum(site.encode()) % 251, number % 251
    return bytes(found)


class Stub:
    """One site."""

    def __init__(self, name: str, upload: bytes) -> None:
        self.name, self.over, self.has = name, False, ""
        self._upload = parse(upload) if upload else None

    def answer(self, content: bytes) -> bytes:
        if not content:  # what is left of a question that was given up while it was sent
            return frame({}, {"format": 1, "kind": "refusal", "head": {"why": "empty"}, "order": []}, b"")
        shapes, said, data = parse(content)
        head, kind = said["head"], said["kind"]
        named = head.get("download", "")
        if named and head.get("whole"):
            downloads[named], self.has = (shapes, said["order"], data), named
        self.tell(kind, head, len(content))
        if named and self.has != named:
            return frame({}, {"format": 1, "kind": "need", "head": {}, "order": []}, b"")
        told = {key: head.get(key) for key in ("study", "unit", "site", "round", "nonce")}
        answer: dict[str, Any] = {"format": 1, "kind": "answer", "head": told, "order": []}
        self.over = kind == "finish" and bool(head.get("over"))
        if kind == "train":
            told |= {"weight": 10.0, "metrics": {"loss": 1.0, "steps": 1.0, "images": 10.0}}
            shapes, order, data = downloads[named]
            if self._upload:
                return frame(self._upload[0], {**answer, "order": self._upload[1]["order"]}, self._upload[2])
            return frame(shapes, {**answer, "order": order}, own(data, self.name, int(head["round"])))
        if kind == "evaluate":
            told["validation"] = {self.name: VALIDATION}
            for old in [digest for digest in downloads if digest != named]:
                downloads.pop(old, None)
        return frame({}, answer, b"")

    def tell(self, kind: str, head: dict[str, Any], length: int) -> None:
        found = {"time": time.time(), "site": self.name, "kind": kind, "round": head.get("round"), "bytes": length}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def serve(site: str, bundle: Path, folder: Path) -> None:
    """Until the study is over."""
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    settings = tomllib.loads((folder / "site.toml").read_text())
    here = (folder / "ca.crt", folder / "site.crt", folder / "site.key")
    upload = bundle.parents[1] / f"upload-{site}.parcel"
    stub = Stub(site, upload.read_bytes() if upload.exists() else b"")
    while not stub.over:
        try:
            with FleetLine(Credentials(settings["host"], settings["port"], *here)) as line:
                pause = SOON
                while not stub.over:
                    question = line.ask(LIMIT)
                    if question is None:
                        time.sleep(pause := min(1.1 * pause, POLL))
                    else:
                        line.answer(question, stub.answer(question.content))
                        pause = SOON
                time.sleep(10)  # Flower's server drops the answers of who has left
        except LinkError as cause:
            sys.stderr.write(f"{site}: {cause}\n")
            time.sleep(2)


def main() -> None:
    federation, *sites = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        threads = []
        for site in sites:
            work = (site, Path(federation) / "bundles" / f"{site}.zip", Path(folder) / site)
            threads.append(threading.Thread(target=serve, args=work))
            threads[-1].start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
