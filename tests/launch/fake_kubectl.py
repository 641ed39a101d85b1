"""Stands in for kubectl: keeps objects in a folder, in which a test says how pods fare.

The folder is $FAKE_CLUSTER. `objects.json` has what was created, `pods.json` the pods, `logs/` what
they wrote, `calls` a line for each call.
"""

import json
import os
import pathlib
import sys
import time

import yaml

FOLDER = pathlib.Path(os.environ.get("FAKE_CLUSTER", "."))
OBJECTS, PODS = FOLDER / "objects.json", FOLDER / "pods.json"


def read(path: pathlib.Path) -> list:
    return json.loads(path.read_text()) if path.exists() else []


def create() -> None:
    objects, new = read(OBJECTS), list(yaml.safe_load_all(sys.stdin.read()))
    for item in new:
        if any(
            (o["kind"], o["metadata"]["name"]) == (item["kind"], item["metadata"]["name"])
            for o in objects
        ):
            sys.exit(
                f'Error from server (AlreadyExists): "{item["metadata"]["name"]}" already exists'
            )
        item["metadata"]["uid"] = f"uid-{item['kind']}-{item['metadata']['name']}"
        objects.append(item)
    OBJECTS.write_text(json.dumps(objects))
    print("\n".join(json.dumps(item) for item in new))


def get(kinds: str) -> None:
    if (FOLDER / "unreachable").exists():
        said = (FOLDER / "unreachable").read_text()
        sys.exit(said or "Unable to connect to the server")
    items = read(PODS) if kinds == "pods" else []
    items += [o for o in read(OBJECTS) if kinds.startswith(o["kind"].lower())]
    print(json.dumps({"kind": "List", "items": items}))


def logs(pod: str) -> None:
    written = FOLDER / "logs" / pod
    shown = 0
    while True:
        ended = [
            p for p in read(PODS) if p["metadata"]["name"] == pod and "terminated" in json.dumps(p)
        ]
        text = written.read_text()
        print(text[shown:], end="", flush=True)
        shown = len(text)
        if ended:
            return
        time.sleep(0.05)


def delete(names: list[str]) -> None:
    """Deletes Jobs by their names, or everything."""
    if (FOLDER / "refuses").exists():
        sys.exit("Error from server (Forbidden): jobs.batch is forbidden")
    objects, kept = read(OBJECTS), []
    if names:
        kept = [o for o in objects if o["kind"] != "Job" or o["metadata"]["name"] not in names]
    for item in objects:
        if item not in kept:
            print(f"{item['kind'].lower()}/{item['metadata']['name']}")
    OBJECTS.write_text(json.dumps(kept))
    if not names:
        PODS.write_text("[]")


def main() -> None:
    arguments = [a for a in sys.argv[1:] if not a.startswith("-")]
    with (FOLDER / "calls").open("a") as f:
        f.write(json.dumps(sys.argv[1:]) + "\n")
    verb = arguments[0]
    if verb == "create":
        create()
    elif verb == "get":
        get(arguments[1])
    elif verb == "logs":
        logs(arguments[1])
    elif verb == "delete":
        delete(arguments[2:])
    elif verb != "patch":
        sys.exit(f"unknown command {verb}")


if __name__ == "__main__":
    main()
