"""As much of Kubernetes's API as kubectl needs to create, list, change, log and delete objects.

Objects are kept as they come, with a uid; nothing acts on them.
"""

import http.server
import json
import re
import threading
import urllib.parse

# Group and version -> kind -> the name of its resource.
RESOURCES = {
    "v1": {"Service": "services", "Pod": "pods"},
    "batch/v1": {"Job": "jobs"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "jobset.x-k8s.io/v1alpha2": {"JobSet": "jobsets"},
}
_OBJECT = re.compile(
    r"/(?:api|apis/[^/]+)/[^/]+/namespaces/(?P<space>[^/]+)/(?P<kind>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?P<log>/log)?"
)


class ApiServer:
    """Serves until it is closed.

    Attributes:
      objects: (resource, name) -> object.
      logs: name of a pod -> what it has written.
    """

    def __init__(self):
        self.objects: dict[tuple[str, str], dict] = {}
        self.logs: dict[str, str] = {}
        handler = type("Handler", (_Handler,), {"cluster": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def config(self) -> str:
        """A kubeconfig, with the namespace `team`."""
        server = f"http://127.0.0.1:{self._server.server_address[1]}"
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [
                    {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}
                ],
                "current-context": "x",
            }
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _group(version: str) -> tuple[str, str]:
    group, _, name = version.rpartition("/")
    return group, name


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: ApiServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        match = _OBJECT.fullmatch(url.path)
        if match:
            self._look_up(match, urllib.parse.parse_qs(url.query))
        else:
            self._discover(url.path)

    def _look_up(self, match, query):
        if match["log"]:
            return self._answer(self.cluster.logs[match["name"]], "text/plain")
        if match["name"]:
            found = self.cluster.objects.get((match["kind"], match["name"]))
            return self._answer(found) if found else self._missing(match["name"])
        wanted = dict(p.split("=") for p in query.get("labelSelector", [""])[0].split(",") if p)
        items = [
            o
            for (kind, _), o in self.cluster.objects.items()
            if kind == match["kind"] and wanted.items() <= o["metadata"]["labels"].items()
        ]
        return self._answer({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})

    def do_POST(self):
        kind, item = _OBJECT.fullmatch(self.path.partition("?")[0])["kind"], self._body()
        name = item["metadata"]["name"]
        if (kind, name) in self.cluster.objects:
            message = f'{kind} "{name}" already exists'
            return self._status(409, "AlreadyExists", message)
        item["metadata"] |= {"uid": f"uid-{kind}-{name}", "namespace": "team"}
        self.cluster.objects[kind, name] = item
        return self._answer(item, status=201)

    def do_PATCH(self):
        match = _OBJECT.fullmatch(self.path.partition("?")[0])
        item = self.cluster.objects[match["kind"], match["name"]]
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        item["spec"] |= self._body()["spec"]
        self._answer(item)

    def do_DELETE(self):
        self._body()
        match = _OBJECT.fullmatch(self.path.partition("?")[0])
        self.cluster.objects.pop((match["kind"], match["name"]), None)
        self._answer({"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _discover(self, path):
        groups = [_group(version) for version in RESOURCES]
        if path == "/version":
            self._answer({"major": "1", "minor": "32", "gitVersion": "v1.32.0"})
        elif path == "/api":
            self._answer({"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            listed = [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/{v}", "version": v}],
                    "preferredVersion": {"groupVersion": f"{group}/{v}", "version": v},
                }
                for group, v in groups
                if group
            ]
            self._answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": listed})
        elif path == "/openapi/v3":
            paths = {p: {"serverRelativeURL": f"/openapi/v3/{p}"} for p in map(_place, RESOURCES)}
            self._answer({"paths": paths})
        else:
            self._describe(path)

    def _describe(self, path):
        for version, kinds in RESOURCES.items():
            if path == f"/{_place(version)}":
                return self._answer({"kind": "APIResourceList", **_listed(version, kinds)})
            if path == f"/openapi/v3/{_place(version)}":
                return self._answer(_openapi(version, kinds))
        return self._missing(path)

    def _body(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return json.loads(data) if data else None

    def _missing(self, what):
        self._status(404, "NotFound", f"{what} not found")

    def _status(self, code, reason, message):
        found = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self._answer(found | {"reason": reason, "message": message}, status=code)

    def _answer(self, content, kind="application/json", status=200):
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _place(version: str) -> str:
    return f"apis/{version}" if "/" in version else f"api/{version}"


def _listed(version, kinds):
    verbs = ["create", "delete", "get", "list", "patch", "watch"]
    resources = [
        {
            "name": name,
            "singularName": kind.lower(),
            "namespaced": True,
            "kind": kind,
            "verbs": verbs,
        }
        for kind, name in kinds.items()
    ]
    return {"groupVersion": version, "apiVersion": "v1", "resources": resources}


def _openapi(version, kinds):
    """That the server itself looks for unknown fields; kubectl then does not."""
    group, name = _group(version)
    paths = {
        f"/{resource}": {
            "patch": {
                "x-kubernetes-group-version-kind": {
                    "group": group,
                    "version": name,
                    "kind": kind,
                },
                "parameters": [{"name": "fieldValidation", "in": "query"}],
            }
        }
        for kind, resource in kinds.items()
    }
    return {"openapi": "3.0.0", "info": {"title": "x", "version": "1"}, "paths": paths}
