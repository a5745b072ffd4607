"""What the scripts that write tables on pages share: filling the marks, and the command line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["filled", "run"]


def filled(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The page with each table between ``<!-- its name -->`` and ``<!-- end -->``."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}{tables[match[2]]()}{match[4]}"

    return re.sub(r"(<!-- (\w+) -->\n)(.*?)(<!-- end -->)", fill, page, flags=re.DOTALL)


def run(about: str | None, page: Path, written: Callable[[str], str]) -> int:
    """Write a page, or with ``--check`` fail where it would change.

    Args:
        about: the script's docstring, for ``--help``.
        page: the file.
        written: its text -> the text that it should have.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page would change")
    check = parser.parse_args().check
    text = page.read_text(encoding="utf-8")
    wanted = written(text)
    if check and text != wanted:
        print(f"{page} is not what scripts/{Path(sys.argv[0]).name} writes", file=sys.stderr)
        return 1
    if text != wanted:
        page.write_text(wanted, encoding="utf-8")
    return 0
