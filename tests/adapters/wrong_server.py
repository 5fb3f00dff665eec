"""The reference behind a server with one bug, which the first argument names."""

import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script finds the checkout only if told

from flashref.conformance import reference
from flashref.conformance.transport.stdio import serve

bug = sys.argv[1]


def rounded(value):
    """Every number as a parser reads it that knows float64, or ten decimal digits, only."""
    if isinstance(value, dict) and bug == "integers as float64" and "integer" in value:
        return {"integer": str(int(float(value["integer"])))}
    if isinstance(value, dict) and bug == "floats by six digits" and "float" in value:
        return {"float": float(f"{float.fromhex(value['float']):.6g}").hex()}
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def answer_to(line):
    """The right answers to one message, after a start, and the exit status."""
    start = b'{"cmd": "start", "protocol": 1, "spec": "1.1"}\n'
    answers = io.BytesIO()
    first = json.loads(line).get("cmd") == "start" if line.lstrip().startswith(b"{") else False
    status = serve(reference, [line] if first else [start, line], answers)
    return answers.getvalue().splitlines()[-1], status


for line in sys.stdin.buffer:
    if b'"stop"' in line:
        break
    if bug.endswith(("float64", "digits")) and b'"run"' in line:
        line = json.dumps(rounded(json.loads(line))).encode()
    try:
        answer, status = answer_to(line)
    except ValueError:
        answer, status = b'{"error": {"code": "protocol", "message": "no JSON"}}', 1
    if bug == "a log line on stdout" and b'"result"' in answer:
        answer = b"INFO computing\n" + answer
    if bug == "an answer on two lines" and b'"result"' in answer:
        answer = json.dumps(json.loads(answer), indent=1).encode()
    if bug == "no seq" and b'"result"' in answer:
        answer = json.dumps({"result": json.loads(answer)["result"]}).encode()
    if bug == "always the first seq" and b'"seq"' in answer:
        answer = json.dumps(json.loads(answer) | {"seq": 1}).encode()
    if bug == "shrugs at nonsense" and status:
        answer = b'{"seq": 1, "skip": {"reason": "whatever"}}'
    print(answer.decode(), flush=True)
    if status and bug != "goes on after nonsense":
        sys.exit(0 if bug == "status 0 after nonsense" else status)
