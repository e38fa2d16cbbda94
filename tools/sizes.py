"""Hold the code to the sizes that CONTRIBUTING.md promises, and print them.

Modules at most 300 lines (350 fails), test lines at least as many as code lines. Generated stubs do not count.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("proto", "index", "exporter", "service")
MODULE_LIMIT = 350


def lines(folder: str) -> dict[Path, int]:
    """Return the number of lines that are neither blank nor comment of every module below `folder`."""
    return {
        path: sum(1 for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#"))
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "_pb2" not in path.name
    }


def main() -> int:
    """Print the sizes; return 1 when a promise is broken."""
    code = {path: count for folder in CODE for path, count in lines(folder).items()}
    tests = lines("tests")
    print(f"code lines {sum(code.values())}, test lines {sum(tests.values())}, longest module {max(code.values())}")
    broken = [
        f"{path.relative_to(ROOT)}: {count} lines, at most {MODULE_LIMIT}"
        for path, count in code.items()
        if count > MODULE_LIMIT
    ]
    if sum(tests.values()) < sum(code.values()):
        broken.append("fewer test lines than code lines")
    print("\n".join(broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
