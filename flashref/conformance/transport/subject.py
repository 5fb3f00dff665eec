"""An implementation under judgment: calls that are watched for what no adapter may do (chapter 96)."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from flashref.conformance.adapter import OPERATIONS, Facts, Unsupported, declared_facts
from flashref.conformance.transport.results import WrongType, checked_result
from flashref.types import same

REFUSALS = (ValueError, IndexError, TypeError, OverflowError)


class Refusal(Exception):
    """The implementation refused the arguments; the text is its own."""


class Breach(Exception):
    """An implementation did something wrong.

    Attributes:
        kind: the word of the verdict.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Died(BaseException):
    """The implementation's process crashed, hung or sent garbage, so that it cannot be asked any more.

    It is not an Exception, so that Hypothesis does not ask again and again to make the case smaller.

    Attributes:
        kind: the word of the verdict.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Subject(Protocol):
    """Something whose operations can be called: an adapter in this process, or a command's."""

    facts: Facts

    def call(self, operation: str, *arguments: Any) -> Any:
        """Call an operation.

        Args:
            operation: one of `adapter.OPERATIONS`.
            arguments: in chapter 96's order.

        Returns:
            The result, with the shapes and dtypes of chapter 96.

        Raises:
            Refusal: the implementation refused the arguments.
            Unsupported: it does not claim to run the operation, or this case.
            Breach: it did something wrong.
            Died: its process hung, crashed or sent garbage.
        """


class InProcess:
    """A Python adapter in this process.

    It gets copies of the arguments, and its last result is compared again after the next call (IOP-3, IOP-4).
    """

    def __init__(self, adapter: object) -> None:
        self.facts = declared_facts(adapter)
        self._adapter = adapter
        self._last: tuple[str, Any, Any] | None = None  # operation, what it gave, a copy of that

    def call(self, operation: str, *arguments: Any) -> Any:
        """Call an operation, as `Subject.call`; a hang or crash of the adapter is one of this process."""
        if operation not in self.facts.operations:
            raise Unsupported(self.facts.unsupported[operation])
        function: Callable[..., Any] = getattr(self._adapter, operation)
        given = copy.deepcopy(arguments)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # where a project makes them errors, they are no answer
                result = function(*given)
        except Unsupported:
            raise
        except REFUSALS as error:
            self._compare_inputs(operation, arguments, given)
            raise Refusal(f"{type(error).__name__}: {error}") from error
        except Exception as error:
            raise Breach("raises", f"{operation} raised {type(error).__name__}: {error}") from error
        self._compare_inputs(operation, arguments, given)
        self._compare_last()
        self._last = operation, result, copy.deepcopy(result)
        try:
            return checked_result(operation, arguments, copy.deepcopy(result))
        except WrongType as error:
            raise Breach("wrong type", str(error)) from None

    def _compare_inputs(self, operation: str, before: Any, after: Any) -> None:
        for name, old, new in zip(OPERATIONS[operation], before, after, strict=True):
            if not unchanged(old, new):
                raise Breach("changes inputs", f"{operation} changed its argument {name}")

    def _compare_last(self) -> None:
        if self._last is not None and not unchanged(self._last[1], self._last[2]):
            operation, self._last = self._last[0], None
            raise Breach(
                "overwrites results",
                f"a result of {operation} changed when the next call was made; return copies, not views",
            )


def unchanged(a: Any, b: Any) -> bool:
    """Whether two nested values are equal bit for bit, whatever array type an adapter returned."""
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(unchanged(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(unchanged(a[key], b[key]) for key in a)
    if a is None or isinstance(a, bool | int | float | str):
        return same(a, b)
    return same(np.asarray(a), np.asarray(b))
