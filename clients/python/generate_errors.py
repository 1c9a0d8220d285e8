"""Writes python/kritaclient/errors.py from the table of errors that the native module was built with.

The package must be installed (`maturin develop`, or a wheel). The tests run it and compare.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import textwrap
from pathlib import Path

TARGET = Path(__file__).parent / "python" / "kritaclient" / "errors.py"

#: Category of the Rust client: class, base, what it says. The others hold one error each, which is its own class.
CATEGORIES = {
    "InvalidRequest": (
        "RequestError",
        "NotApplied, ValueError",
        "The request is malformed or breaks a limit: correct it.",
    ),
    "Configuration": (
        "ConfigurationError",
        "NotApplied",
        "Wrong cluster, wrong address, TLS that does not fit: correct the configuration.",
    ),
    "Denied": ("AccessError", "NotApplied", "The token is missing, unknown, or does not allow this."),
    "Unavailable": (
        "UnavailableError",
        "NotApplied",
        "No leader, overload, no room, or too late: try again later. The client has tried until the deadline.",
    ),
    "Failed": ("FailedError", "NotApplied", "Damaged data or a bug: look at the node's log."),
}

#: Rows whose class is not simply the row's name in another case.
NAMES = {"UNKNOWN_OUTCOME": "OutcomeUnknown"}

HEAD = '''"""Every way a call can fail. Written by generate_errors.py from the table of errors: edit that, not this.

A call ends in one of three ways: it returns (a write was applied, and is durable on a majority), it raises
:class:`NotApplied` (nothing was changed), or it raises :class:`OutcomeUnknown` (the deadline passed, and the client
could not learn whether the write was applied). Retries are inside: what is raised here is final for the call.

    KritaError
     +-- NotApplied
@TREE@
     +-- OutcomeUnknown
     +-- ManyFailed
"""

from __future__ import annotations

from typing import Any, ClassVar, Sequence


class KritaError(Exception):
    """Base of all errors of this package."""

    #: The stable number, as in docs/protocol.md; 0 where several errors stand behind one.
    code: ClassVar[int] = 0
    #: The stable name.
    name: ClassVar[str] = ""
    #: What to do about it, in one line.
    advice: ClassVar[str] = ""
    #: Whether trying again later may help.
    retryable: ClassVar[bool] = False
    #: The exit code of the commands.
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        #: What happened.
        self.message = message
        #: Come back after this many seconds, if the server said so.
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.name else self.message


class NotApplied(KritaError):
    """Nothing was changed, and nothing will be."""
'''

CONDITION = '''
    def __init__(
        self,
        message: str = "",
        *,
        retry_after: float | None = None,
        current_version: int = 0,
        operation: int = 0,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        #: The key's version now; 0 = it is absent.
        self.current_version = current_version
        #: Which operation of a batch it was, from 0.
        self.operation = operation
'''

TAIL = '''

class ManyFailed(KritaError):
    """Some parts of a call with many parts failed; each part has its own result.

    Parts that did not fail were done. Whether the others were applied, their exceptions say.
    """

    name = "MANY_FAILED"
    advice = "look at each result"

    def __init__(self, message: str, results: Sequence[Any]) -> None:
        super().__init__(message)
        #: In the order of the call: what the part returned, or its :class:`KritaError`.
        self.results = list(results)

    @property
    def errors(self) -> list[KritaError]:
        """The parts that failed."""
        return [result for result in self.results if isinstance(result, KritaError)]


BY_CODE: dict[int, type[KritaError]] = {
@BY_CODE@
}


def _from_code(
    code: int, message: str, retry_after: float | None, current_version: int, operation: int
) -> KritaError:
    """The exception for an error of the native client."""
    error_class = BY_CODE.get(code, @LAST@)
    if issubclass(error_class, ConditionFailed):
        return error_class(
            message, retry_after=retry_after, current_version=current_version, operation=operation
        )
    return error_class(message, retry_after=retry_after)
'''


def class_name(row: str) -> str:
    """How a row's exception is called."""
    return NAMES.get(row) or "".join(word.capitalize() for word in row.split("_"))


def row_class(row: tuple[int, str, int, bool, str, str], base: str) -> str:
    """One row as a class."""
    number, name, exit_code, retryable, _, advice = row
    sentence = advice[0].upper() + advice[1:] + "."
    text = f'\n\nclass {class_name(name)}({base}):\n    """{sentence}"""\n\n'
    text += f'    code = {number}\n    name = "{name}"\n    advice = "{advice}"\n'
    return text + f"    retryable = {retryable}\n    exit_code = {exit_code}\n"


def error_table() -> list[tuple[int, str, int, bool, str, str]]:
    """The table, from the native module itself: the package needs what is generated here."""
    package = importlib.util.find_spec("kritaclient")
    assert package is not None and package.submodule_search_locations, "kritaclient is not installed"
    folder = Path(package.submodule_search_locations[0])
    endings = importlib.machinery.EXTENSION_SUFFIXES
    file = next(file for file in folder.iterdir() if file.name in {f"_native{ending}" for ending in endings})
    spec = importlib.util.spec_from_file_location("_native", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows: list[tuple[int, str, int, bool, str, str]] = module.error_table()
    return rows


def generate() -> str:
    """The whole module."""
    rows = error_table()
    tree, classes = [], []
    for category, (base, parents, meaning) in CATEGORIES.items():
        members = [row for row in rows if row[4] == category]
        tree.append(f"     |    +-- {base}")
        tree += [f"     |    |    +-- {class_name(row[1])}" for row in members]
        classes.append(f'\n\nclass {base}({parents}):\n    """{meaning}"""\n')
        classes += [row_class(row, base) for row in members]
    for row in rows:
        if row[4] == "Condition":
            classes += [row_class(row, "NotApplied"), CONDITION]
            tree.append(f"     |    +-- {class_name(row[1])}")
        elif row[4] == "Unknown":
            classes.append(row_class(row, "KritaError"))
        else:
            assert row[4] in CATEGORIES, f"{row[1]}: a category without a class"
    by_code = [f"    {row[0]}: {class_name(row[1])}," for row in rows]
    tail = TAIL.replace("@BY_CODE@", "\n".join(by_code)).replace("@LAST@", class_name("INTERNAL"))
    return HEAD.replace("@TREE@", "\n".join(tree)) + "".join(classes) + tail


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(generate(), end="")
    elif sys.argv[1:]:
        sys.exit(textwrap.dedent(__doc__ or "").strip() + "\n\nusage: generate_errors.py [--print]")
    else:
        TARGET.write_text(generate(), encoding="utf-8")
