"""How the client programs of this folder are called, and what they print: one JSON object a line.

    PROGRAM version
    PROGRAM list  BOOTSTRAP
    PROGRAM read  BOOTSTRAP TOPIC beginning|end|MILLISECONDS            until it is killed
    PROGRAM group BOOTSTRAP TOPIC GROUP sync|async [SETTING=VALUE ...]  until its standard input ends; then leaves

tests/clients starts them and judges what they print.
"""

import json
import sys
import threading


def run(version, list_topics, read, group):
    """Calls the function that the command line names with the rest of it."""
    command, *arguments = sys.argv[1:]
    roles = {"version": lambda: print(version), "list": list_topics, "read": read, "group": group}
    return roles[command](*arguments)


def input_end():
    """An event that is set when the standard input ends."""
    ended = threading.Event()

    def watch():
        sys.stdin.read()
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    return ended


def topic(name, partitions):
    _line({"topic": name, "partitions": partitions})


def assigned(offsets):
    """The partitions that the client reads from now on, with their positions."""
    _line({"assigned": offsets})


def committed(offsets):
    """The broker has answered a commit of these offsets."""
    _line({"committed": offsets})


def record(partition, offset, timestamp, key, payload):
    def text(data):
        return None if data is None else data.decode()

    fields = {"partition": partition, "offset": offset, "ts": timestamp}
    _line(fields | {"key": text(key), "payload": text(payload)})


def _line(said):
    # In one write, because several threads speak.
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
