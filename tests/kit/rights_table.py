"""The tables of rights as `docs/operations.md` shows them: `python -m tests.kit.rights_table` writes them into it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from broker_pipeline.security.key_table import KEYS, KeyRow
from broker_pipeline.security.roles import ROLES, Role, Scope
from broker_pipeline.security.subject_table import SUBJECTS, SubjectRow

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
_SCOPE = Scope("{ns}", "HOST")


def tables() -> dict[str, str]:
    """Return both tables by what stands before them in the document."""
    subjects = [(row.what, row.names(_SCOPE), [_of_subject(row, role) for role in ROLES]) for row in SUBJECTS]
    keys = [(row.what, row.names(_SCOPE), [_of_key(row, role) for role in ROLES]) for row in KEYS]
    return {"<!-- rights: subjects -->": _table("subject", subjects), "<!-- rights: keys -->": _table("key", keys)}


def in_document(text: str, mark: str) -> str:
    """Return the table that stands behind a mark."""
    found = re.search(re.escape(mark) + r"\n((?:\|.*\n)+)", text)
    assert found, f"no table behind {mark}"
    return found[1]


def _of_subject(row: SubjectRow, role: Role) -> str:
    return ", ".join(word for word, roles in (("sends", row.publish), ("hears", row.subscribe)) if role in roles)


def _of_key(row: KeyRow, role: Role) -> str:
    words = (("writes", row.write), ("reads", row.read), ("adds", row.add))
    return next((word for word, roles in words if role in roles), "")


def _table(kind: str, rows: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> str:
    lines = [f"| what | {kind} | {' | '.join(ROLES)} |", "|---" * (2 + len(ROLES)) + "|"]
    for what, names, cells in rows:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"| {what} | `{names[0]}`{more} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    document = OPERATIONS.read_text()
    for mark, table in tables().items():
        document = document.replace(f"{mark}\n{in_document(document, mark)}", f"{mark}\n{table}")
    OPERATIONS.write_text(document)
