"""Writes what the tests of clients have found into docs/compatibility.md, between its marks.

    compatibility.py RESULTS PAGE
"""

import datetime
import json
import pathlib
import sys

BEGIN, END = "<!-- clients -->", "<!-- /clients -->"


def table(findings):
    clients = {}
    for found in findings:
        key = (found["language"], found["client"], found["version"])
        clients.setdefault(key, []).append(found)
    yield "| client | version | language | what ran | verdict |"
    yield "|---|---|---|---|---|"
    for (language, client, version), runs in sorted(clients.items()):
        ran = summary(run["feature"] for run in runs)
        failed = [run["feature"] for run in runs if not run["passed"]]
        verdict = f"**fails**: {summary(failed)}" if failed else "works"
        yield f"| {client} | {version} | {language} | {ran} | {verdict} |"


def summary(features):
    """Features are "kind" or "kind: which one"; one line for each kind."""
    kinds = {}
    for feature in sorted(set(features)):
        kind, *which = feature.split(": ")
        kinds.setdefault(kind, []).extend(which)
    return "<br>".join(": ".join([kind, ", ".join(which)] if which else [kind]) for kind, which in kinds.items())


def main(results, page):
    findings = [json.loads(file.read_text()) for file in pathlib.Path(results).glob("*.json")]
    if not findings:
        sys.exit(f"compatibility: {results} holds no results: run `make test-clients-all`")
    page = pathlib.Path(page)
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    lines = [BEGIN, f"From the run of {datetime.date.today()}:", "", *table(findings), END]
    page.write_text(before + "\n".join(lines) + after)


main(*sys.argv[1:])
