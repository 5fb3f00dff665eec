"""Adapters in other processes: one JSON object a line to stdin, one back. Chapter: specs/96-stdio.md.

`serve` is the implementation's side for Python adapters, `Command` the kit's for any language.
Satisfies: IOP-1 to IOP-11.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Self

from flashref import SPEC_VERSION
from flashref.conformance.adapter import OPERATIONS, AdapterError, Facts, Unsupported, checked_facts
from flashref.conformance.transport.codec import CodecError, from_json, to_json
from flashref.conformance.transport.process import EngineProcess, shortened, split_command
from flashref.conformance.transport.results import WrongType, checked_result
from flashref.conformance.transport.subject import Breach, Died, InProcess, Refusal

PROTOCOL = 1
TIMEOUT = 60.0  # seconds for an answer
TAIL = 2000  # characters of stderr in a message
JSON_WORDS: Mapping[type, str] = {str: "a text", list: "a list", dict: "an object"}
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_FIELDS = {"start": ("cmd", "protocol", "spec"), "run": ("cmd", "seq", "operation", "args"), "stop": ("cmd",)}
_CONTENT = {  # a skip, or the code of an error → the fields of its content
    "skip": {"reason"},
    "refused": {"code", "message"},
    "misbehaves": {"code", "kind", "message"},
    "protocol": {"code", "message"},
}


class _Misunderstood(Exception):
    """A message that the protocol does not have."""


def serve(adapter: object, requests: Iterable[bytes], answers: BinaryIO) -> int:
    """Run a Python adapter behind the protocol, and watch its calls as `InProcess` does.

    Args:
        adapter: a module or an object.
        requests: the messages, a line each; it is read until the message stop, or to the end.
        answers: a binary file for the answers.

    Returns:
        The exit status: 0, or 1 after a message that cannot be understood.

    Raises:
        AdapterError: the adapter's facts contradict each other.

    Requirements: IOP-1 to IOP-11.
    """
    subject, started = InProcess(adapter), False
    for line in requests:
        message: Any = None
        try:
            message = _json_object(line)
            command = _checked_message(message, started)
            if command == "stop":
                return 0
            answer = _start_answer(subject.facts) if command == "start" else _run_answer(subject, message)
            started = True
        except _Misunderstood as error:
            seq = {"seq": message["seq"]} if isinstance(message, dict) and "seq" in message else {}
            _send(answers, {**seq, "error": {"code": "protocol", "message": str(error)}})
            return 1
        _send(answers, answer)
    return 0


def _send(answers: BinaryIO, answer: Mapping[str, Any]) -> None:
    answers.write(_line(answer))
    answers.flush()


def _line(message: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(message).encode() + b"\n"


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line.decode())  # UTF-8: json's own guess would take UTF-16 too
    except (ValueError, RecursionError) as error:
        raise _Misunderstood(
            f"a line must be one JSON object in UTF-8, and {shortened(line)} is none: {error}"
        ) from error
    if not isinstance(message, dict):
        raise _Misunderstood(f"a line must be one JSON object, not {shortened(line)}")
    return message


def _checked_message(message: Mapping[str, Any], started: bool) -> str:
    command = message.get("cmd")
    if not isinstance(command, str) or command not in _FIELDS:
        raise _Misunderstood(f"the cmd {command!r} is unknown; it is start, run or stop")
    _check_names(f"the message {command}", message, _FIELDS[command])
    if command == "start" and message["protocol"] != PROTOCOL:
        raise _Misunderstood(f"protocol {message['protocol']!r} is unknown; this is protocol {PROTOCOL}")
    if command != "stop" and started is (command == "start"):
        raise _Misunderstood("the first message is start, and no other")
    return command


def _check_names(what: str, given: Mapping[str, Any], due: Sequence[str]) -> None:
    lacks = [name for name in due if name not in given]
    unknown = [name for name in given if name not in due]
    wrong = [f"lacks {', '.join(lacks)}"] if lacks else []
    wrong += [f"has the unknown {', '.join(unknown)}"] if unknown else []
    if wrong:
        raise _Misunderstood(f"{what} {' and '.join(wrong)}; its fields are {', '.join(due)}")


def _start_answer(facts: Facts) -> dict[str, Any]:
    lists = {"operations": sorted(facts.operations), "dtypes": sorted(facts.dtypes)}
    return {"protocol": PROTOCOL, "language": "python", **facts._asdict(), **lists}


def _run_answer(subject: InProcess, message: Mapping[str, Any]) -> dict[str, Any]:
    seq, operation, arguments = message["seq"], message["operation"], message["args"]
    if type(seq) is not int:
        raise _Misunderstood(f"seq must be an integer, not {seq!r}")
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise _Misunderstood(f"there is no operation {operation!r}; they are {', '.join(OPERATIONS)}")
    if not isinstance(arguments, dict):
        raise _Misunderstood("args must be an object, parameter → value")
    _check_names(f"args of {operation}", arguments, OPERATIONS[operation])
    try:
        values = [from_json(arguments[name]) for name in OPERATIONS[operation]]
    except CodecError as error:
        raise _Misunderstood(f"an argument of {operation} cannot be read: {error}") from error
    return {"seq": seq, **_outcome(subject, operation, values)}


def _outcome(subject: InProcess, operation: str, values: Sequence[Any]) -> dict[str, Any]:
    try:
        return {"result": to_json(subject.call(operation, *values))}
    except Unsupported as error:
        return {"skip": {"reason": str(error)}}
    except Refusal as error:
        return {"error": {"code": "refused", "message": str(error)}}
    except Breach as error:
        return {"error": {"code": "misbehaves", "kind": error.kind, "message": str(error)}}


class Command:
    """An implementation that a command starts: a Subject whose process runs until it is closed.

    Args:
        command: a command line, which no shell sees, or its words.
        timeout: seconds for each answer.
        start_timeout: seconds for the first answer.

    Raises:
        AdapterError: the command cannot be started, or its first answer is wrong.

    Requirements: IOP-1 to IOP-9.
    """

    facts: Facts

    def __init__(
        self, command: str | Sequence[str], timeout: float = TIMEOUT, start_timeout: float = TIMEOUT
    ) -> None:
        self._words = split_command(command) if isinstance(command, str) else list(command)
        self.timeout, self._start_timeout = timeout, start_timeout
        self._seq = 0
        self._process: EngineProcess | None = None
        self.facts = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, operation: str, *arguments: Any) -> Any:
        """Call an operation, as `Subject.call`; after a Died the next call starts another process."""
        if operation not in self.facts.operations:
            raise Unsupported(self.facts.unsupported[operation])
        named = dict(zip(OPERATIONS[operation], arguments, strict=True))
        self._seq += 1
        request = _line({"cmd": "run", "seq": self._seq, "operation": operation, "args": to_json(named)})
        if self._process is None:
            self._start()
        assert self._process is not None
        try:
            line = self._process.ask(request, self.timeout)
            kind, content = _outcome_of(line, self._seq)
        except Died as died:
            raise Died(died.kind, self._end(f"{operation}: {died}")) from None
        except _Misunderstood as error:
            raise Died("garbage", self._end(f"{operation}: {error}")) from None
        except BaseException:  # Ctrl-C: half an exchange cannot be continued
            self._end()
            raise
        if kind == "skip":
            raise Unsupported(content["reason"])
        if kind == "result":
            try:
                return checked_result(operation, arguments, from_json(content))
            except (WrongType, CodecError) as error:
                raise Breach("wrong type", str(error)) from None
        if content["code"] == "refused":
            raise Refusal(content["message"])
        if content["code"] == "misbehaves":
            raise Breach(content["kind"], content["message"])
        raise Died("crashes", self._end(f"{operation}: it did not understand: {content['message']}"))

    def last_words(self, lines: Sequence[bytes]) -> tuple[bytes, int | None]:
        """Send lines to a process of their own.

        Args:
            lines: without line breaks.

        Returns:
            The answer to the last line, and the exit status; None if the process does not end by itself.

        Raises:
            Died: a line is not answered.

        Requirement: IOP-11.
        """
        process, answer = EngineProcess(self._words), b""
        try:
            for line in lines:
                answer = process.ask(line + b"\n", self.timeout)
            return answer, process.status()
        finally:
            process.end()

    def restart(self) -> None:
        """Start another process in the place of this one, with nothing of its state."""
        self.close()
        self._start()

    def close(self) -> None:
        """Ask the process to stop, and kill whatever does not."""
        if self._process is not None:
            self._process.stop(_line({"cmd": "stop"}))
        self._end()

    def _start(self) -> Facts:
        self._process = EngineProcess(self._words)
        try:
            start = {"cmd": "start", "protocol": PROTOCOL, "spec": SPEC_VERSION}
            facts = _facts_of(self._process.ask(_line(start), self._start_timeout))
        except (Died, _Misunderstood, AdapterError) as error:
            text = f"the command {shlex.join(self._words)!r} is no adapter: {error}"
            raise AdapterError(self._end(text)) from None
        except BaseException:
            self._end()
            raise
        return facts

    def _end(self, text: str = "") -> str:
        """End the process, and return the text with the end of its stderr."""
        process, self._process = self._process, None
        tail = process.end().strip()[-TAIL:] if process is not None else ""
        return f"{text}; its stderr ends: {tail}" if tail else text


def _outcome_of(line: bytes, seq: int) -> tuple[str, Any]:
    """Read the answer to message seq: its kind (result, skip or error) and content."""
    answer = _json_object(line)
    [kind, *more] = sorted(set(answer) - {"seq"}) or [""]
    content, echoed = answer.get(kind), answer.get("seq")
    code = content.get("code") if kind == "error" and isinstance(content, dict) else kind
    if more or kind not in ("result", "error", "skip"):
        fault = "must have seq and one of result, error, skip"
    elif (type(echoed), echoed) != (int, seq) and code != "protocol":  # which may know no seq
        fault = "is to another one"
    elif kind != "result" and not _has_texts(content, _CONTENT.get(str(code))):
        fault = f"has no such {kind}"
    else:
        return kind, content
    raise _Misunderstood(f"the answer {shortened(line)} to message {seq} {fault}")


def _has_texts(content: Any, names: set[str] | None) -> bool:
    return (
        isinstance(content, dict)
        and set(content) == names
        and all(isinstance(text, str) for text in content.values())
    )


def _facts_of(line: bytes) -> Facts:
    """Read the facts of a start answer. Raises _Misunderstood or AdapterError."""
    answer = _json_object(line)
    if isinstance(answer.get("error"), dict):
        raise _Misunderstood(f"it answered the error {answer['error'].get('message')!r}")
    if answer.get("cmd") == "start":
        raise _Misunderstood("it repeats what it is sent instead of answering")
    fields = ["protocol", "language", *Facts._fields]
    _check_names("the first answer", dict.fromkeys(("language", "max_elements")) | answer, fields)
    kinds: dict[str, type] = {"name": str, "version": str, "accumulate": str}
    kinds |= {"operations": list, "dtypes": list, "unsupported": dict}
    if answer["protocol"] != PROTOCOL:
        raise _Misunderstood(f"it speaks protocol {answer['protocol']!r}, not {PROTOCOL}")
    for name, kind in kinds.items():
        if not isinstance(answer[name], kind):
            raise _Misunderstood(f"{name} in the first answer must be {JSON_WORDS[kind]}")
    if not all(isinstance(text, str) for name in ("operations", "dtypes") for text in answer[name]):
        raise _Misunderstood("operations and dtypes in the first answer must be lists of names")
    if not all(isinstance(text, str) for text in answer["unsupported"].values()):
        raise _Misunderstood("unsupported in the first answer must give a reason for each operation")
    facts = Facts(**{name: answer[name] for name in Facts._fields if name in answer})
    return checked_facts(
        facts._replace(operations=frozenset(facts.operations), dtypes=frozenset(facts.dtypes))
    )
