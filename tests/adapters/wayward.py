"""An engine that starts well, plans reads well, and does with predict_active what its first argument says."""

import json
import os
import signal
import subprocess
import sys
import time

from_now_on = sys.argv[1]
PLAN = {"dtype": "I64", "shape": [1, 2], "data": "AAAAAAAAAAAQAAAAAAAAAA=="}


def say(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def sleep():
    while True:
        time.sleep(60)


for line in sys.stdin:
    message = json.loads(line)
    if message["cmd"] == "start":
        facts = {
            "protocol": 1,
            "name": "wayward",
            "version": "1",
            "operations": ["read_plan", "predict_active"],
        }
        missing = ["dense_ffn", "sparse_ffn", "bundle_layout", "pack_bundles", "unpack_bundles"]
        missing += ["gather_rows", "run_window", "run_slots", "run_decode", "logits"]
        facts |= {"unsupported": dict.fromkeys(missing, "not here"), "dtypes": ["F32"], "accumulate": "F32"}
        say(json.dumps(facts | {"flushes_subnormals": False}) + "\n")
        if from_now_on == "deaf":
            sleep()
    elif message["cmd"] == "stop":
        if from_now_on == "stubborn":
            sleep()
        break
    elif message["operation"] == "read_plan":
        say(json.dumps({"seq": message["seq"], "result": PLAN}) + "\n")
    elif from_now_on == "sleep":
        sleep()
    elif from_now_on == "half":
        say('{"seq": ')
        sleep()
    elif from_now_on == "exit":
        os._exit(3)
    elif from_now_on == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif from_now_on == "close":
        os.close(1)
        sleep()
    elif from_now_on == "noise":
        sys.stderr.write("noise " * 1_000_000 + "and the last word")
        sys.stderr.flush()
        os._exit(1)
    elif from_now_on == "child":
        with open(sys.argv[2], "w") as fifo:
            subprocess.Popen(["sleep", "1000"], stdout=fifo)
        sleep()
    else:
        say(from_now_on.replace("SEQ", str(message["seq"])) + "\n")
