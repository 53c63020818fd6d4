"""Every benchmark of this folder, one after the other in its own process, into one table.

    python benchmarks/_all.py [--quick] [--no-rivals] [--repeats 7]

The table is printed and kept as ``.bench/table.md``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from _rivals import CACHE, versions
from _table import Row, machine, markdown, parser

HERE = Path(__file__).parent


def main() -> int:
    parsed = parser(__doc__).parse_args()
    switches = ["--json", "--repeats", str(parsed.repeats)]
    switches += [name for name, on in (("--quick", parsed.quick), ("--no-rivals", parsed.no_rivals)) if on]
    where = machine()
    rows: list[Row] = []
    failed: list[str] = []
    for file in sorted(HERE.glob("[!_]*.py")):
        print(f"… {file.stem}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, str(file), *switches], stdout=subprocess.PIPE, text=True, check=False)
        rows += [Row(**json.loads(line)) for line in done.stdout.splitlines()]
        if done.returncode:
            failed.append(file.stem)
            rows.append(Row(file.stem, f"ended early: exit code {done.returncode}"))
    text = f"{where}{versions()}\n\n{markdown(rows)}"
    sys.stdout.write(text)
    if not parsed.quick:
        CACHE.mkdir(exist_ok=True)
        (CACHE / "table.md").write_text(text, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
