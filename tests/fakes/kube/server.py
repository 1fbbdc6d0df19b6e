"""The fake's API server: paths, users, verbs. Watches and streams are in `watches` and `streams`."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from lambdactl.backends.kubernetes.resources import ALL, BY_NAME, Resource

from . import admission
from .rbac import EVERYTHING, User, forbidden
from .store import Object, Refused, Store, json_patch, matches_fields, matches_labels, merge, now


@dataclass(frozen=True)
class Seen:
    """One request, as tests look at it."""

    verb: str
    resource: str
    namespace: str | None
    name: str | None
    user: str
    watch: bool = False


@dataclass
class Ask:
    """A request taken apart."""

    request: web.Request
    user: User
    resource: Resource
    namespace: str | None
    name: str | None
    sub: str | None
    body: Any = None
    verb: str = ""

    @property
    def space(self) -> str:
        return self.namespace or ""


Special = Callable[[Ask], Awaitable[web.StreamResponse]]


@dataclass
class Fault:
    """What the next matching requests get in the place of an answer; 0 is a cut connection."""

    verb: str
    resource: str
    status: int
    times: int
    message: str


@dataclass
class ApiServer:
    """The HTTP application on a store. ``deleting`` is asked whether a pod may go at once."""

    store: Store
    users: dict[str, User] = field(default_factory=dict)
    requests: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    extra: dict[str, Resource] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    streams: dict[str, Special] = field(default_factory=dict)
    watch: Special | None = None
    open: set[asyncio.Transport] = field(default_factory=set)
    version: str = "v1.36.0"
    warm_at: float = 0.0
    service_subnet: str = "10.96.0"
    last_address: int = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is not None:
            self.open.add(transport)
            self.open = {one for one in self.open if not one.is_closing()}
        try:
            return await self._answer(request)
        except Refused as refused:
            return web.json_response(refused.status(), status=refused.code)
        except ConnectionError:
            return web.Response()  # nobody is there any more

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.users.get(token) or self._by_certificate(request)
        if user is None:
            raise Refused(401, "Unauthorized", "Unauthorized")
        if request.path in ("/version", "/version/"):
            return web.json_response({"major": "1", "minor": "36", "gitVersion": self.version})
        if request.path == "/apis":
            groups = sorted({r.group for r in ALL if r.group} | {"authorization.k8s.io"} | self.groups)
            return web.json_response({"kind": "APIGroupList", "groups": [{"name": name} for name in groups]})
        ask = self._parse(request, user)
        await self._admit(ask)
        if ask.sub in self.streams and ask.resource.plural == "pods":
            return await self.streams[ask.sub](ask)
        if ask.verb == "watch" and self.watch is not None:
            return await self.watch(ask)
        if request.can_read_body:
            text = await request.text()
            ask.body = json.loads(text) if text else None
        answer = self.perform(ask)
        return web.json_response(answer, status=201 if ask.verb == "create" else 200)

    def token_of(self, pod: Object) -> str | None:
        """The token of a pod's service account, where a user of the fake stands for it."""
        account = pod["spec"].get("serviceAccountName", "default")
        name = f"system:serviceaccount:{pod['metadata']['namespace']}:{account}"
        return next((token for token, user in self.users.items() if user.name == name), None)

    def _check_account(self, namespace: str, pod: Object) -> None:
        account = pod["spec"].get("serviceAccountName", "default")
        where = {**pod, "metadata": {**pod["metadata"], "namespace": namespace}}
        if account != "default" and self.token_of(where) is None:
            raise Refused(
                403, "Forbidden",
                f'pods "{pod["metadata"].get("name", "")}" is forbidden: error looking up service account '
                f'{namespace}/{account}: serviceaccount "{account}" not found',
            )  # fmt: skip

    def _by_certificate(self, request: web.Request) -> User | None:
        peer = request.get_extra_info("peercert") if request.secure else None
        for part in (peer or {}).get("subject", ()):
            for name, value in part:
                if name == "commonName":
                    return next((user for user in self.users.values() if user.name == value), None)
        return None

    def _parse(self, request: web.Request, user: User) -> Ask:
        parts = [part for part in request.path.split("/") if part]
        parts = parts[2:] if parts[:1] == ["api"] else parts[3:] if parts[:1] == ["apis"] else []
        namespace = None
        if len(parts) > 2 and parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        resource = (BY_NAME | self.extra).get(parts[0]) if parts else None
        if resource is None or not request.path.startswith(resource.path()[: -len(resource.plural)]):
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        name, sub = (*parts[1:], None, None)[:2]
        ask = Ask(request, user, resource, namespace, name, sub)
        ask.verb = self._verb(ask)
        return ask

    def _verb(self, ask: Ask) -> str:
        method, query = ask.request.method, ask.request.query
        if method == "GET":
            if ask.sub in ("exec", "portforward", "attach"):
                return "create"  # since 1.35 for websockets too
            if ask.name is None:
                return "watch" if query.get("watch") in ("1", "true") else "list"
            return "get"
        if method == "DELETE":
            return "delete" if ask.name else "deletecollection"
        return {"POST": "create", "PUT": "update", "PATCH": "patch"}[method]

    async def _admit(self, ask: Ask) -> None:
        """Faults, then rights."""
        resource = f"{ask.resource.plural}/{ask.sub}" if ask.sub else ask.resource.plural
        self.requests.append(
            Seen(ask.verb, resource, ask.namespace, ask.name, ask.user.name, watch=ask.verb == "watch")
        )
        for fault in self.faults:
            if fault.times > 0 and fault.verb in ("*", ask.verb) and fault.resource in ("*", resource):
                fault.times -= 1
                if fault.status == 0 and ask.request.transport is not None:
                    ask.request.transport.abort()
                raise Refused(fault.status or 500, "InternalError", fault.message)
        if ask.resource.plural == "selfsubjectaccessreviews":
            return  # every user may ask
        if EVERYTHING not in ask.user.rules and time.monotonic() < self.warm_at:
            said = forbidden(ask.user.name, ask.verb, ask.resource.group, resource, ask.namespace, ask.name)
            raise Refused(403, "Forbidden", f'{said}: RBAC: role.rbac.authorization.k8s.io "lambdactl" not found')
        verbs = ["get", "create"] if ask.sub in ("exec", "portforward", "attach") else [ask.verb]
        for verb in verbs:
            if not ask.user.may(verb, ask.resource.group, resource, ask.namespace, ask.name):
                said = forbidden(ask.user.name, verb, ask.resource.group, resource, ask.namespace, ask.name)
                raise Refused(403, "Forbidden", said, kind=ask.resource.plural, name=ask.name or "")

    def perform(self, ask: Ask) -> Object:
        """Everything that has one JSON answer."""
        if ask.verb in ("create", "update", "patch") and ask.resource.namespaced and ask.name is None:
            self._namespace(ask.space)
        match ask.verb:
            case "get":
                return self.store.get(ask.resource, ask.space, ask.name or "")
            case "list":
                return self._list(ask)
            case "create":
                return self._create(ask)
            case "update":
                return self._update(ask, ask.body)
            case "patch":
                return self._update(ask, self._patched(ask))
            case "deletecollection":
                for item in self.chosen(ask):
                    self.delete(ask.resource, item, ask.body or {})
                return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
            case _:
                return self.delete(
                    ask.resource, self.store.get(ask.resource, ask.space, ask.name or ""), ask.body or {}
                )

    def _namespace(self, name: str) -> None:
        held = self.store.find("namespaces", "", name)
        if held is None:
            raise Refused(404, "NotFound", f'namespaces "{name}" not found', name=name, kind="namespaces")
        if held.get("status", {}).get("phase") == "Terminating":
            raise Refused(
                403, "Forbidden", f"unable to create new content in namespace {name} because it is being terminated"
            )

    def chosen(self, ask: Ask) -> list[Object]:
        """The objects that a list's selectors choose."""
        labels, fields = ask.request.query.get("labelSelector", ""), ask.request.query.get("fieldSelector", "")
        items = self.store.all(ask.resource.plural, ask.namespace)
        return [item for item in items if selected(item, labels, fields)]

    def _list(self, ask: Ask) -> Object:
        items = self.chosen(ask)
        start = int(ask.request.query.get("continue", "0"))
        limit = int(ask.request.query.get("limit", "0") or 0) or len(items)
        metadata: Object = {"resourceVersion": str(self.store.version)}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
        return {
            "kind": f"{ask.resource.kind}List", "apiVersion": ask.resource.api_version, "metadata": metadata,
            "items": [
                {k: v for k, v in item.items() if k not in ("kind", "apiVersion")}
                for item in items[start : start + limit]
            ],
        }  # fmt: skip

    def _create(self, ask: Ask) -> Object:
        if ask.resource.plural == "selfsubjectaccessreviews":
            return self._review(ask)
        if ask.sub == "eviction":
            return self.evict(ask.space, ask.name or "")
        return self.create(ask.resource, ask.space, ask.body, dry_run="dryRun" in ask.request.query)

    def create(self, resource: Resource, namespace: str, item: Object, *, dry_run: bool = False) -> Object:
        """What a POST does; controllers use it too."""
        admission.validate(item)
        admission.check_name(item)
        item = copy.deepcopy(item)
        admission.default(resource.plural, item)
        if resource.plural == "pods":
            admission.pod_security(self.store, namespace, item)
            self._check_account(namespace, item)
        admission.quota(self.store, resource.plural, namespace, item)
        if resource.plural == "services":
            self._service(item)
        if dry_run:
            name = item["metadata"].get("name")
            if name and self.store.find(resource.plural, namespace, name):
                raise Refused(409, "AlreadyExists", f'{resource.full_name} "{name}" already exists', name=name)
            return item
        return self.store.create(resource, namespace, item)

    def _service(self, item: Object) -> None:
        """Node ports: given ones must be free and in range, the others are chosen."""
        spec = item["spec"]
        if spec.get("clusterIP") != "None":
            self.last_address = self.last_address % 253 + 1
            spec.setdefault("clusterIP", f"{self.service_subnet}.{self.last_address}")
        if spec.get("type") != "NodePort":
            return
        taken = {p.get("nodePort") for s in self.store.all("services") for p in s["spec"].get("ports") or []}
        for port in spec.get("ports") or []:
            number = port.setdefault("nodePort", next(n for n in range(30000, 32768) if n not in taken))
            wrong = "provided port is already allocated" if number in taken else None
            wrong = (
                wrong
                if 30000 <= number <= 32767
                else "provided port is not in the valid range. The range of valid ports is 30000-32767"
            )
            if wrong:
                name = item["metadata"].get("name")
                raise Refused(
                    422,
                    "Invalid",
                    f'Service "{name}" is invalid: spec.ports[0].nodePort: Invalid value: {number}: {wrong}',
                )

    def _review(self, ask: Ask) -> Object:
        wanted = ask.body["spec"]["resourceAttributes"]
        resource = wanted["resource"] + (f"/{wanted['subresource']}" if wanted.get("subresource") else "")
        allowed = ask.user.may(wanted["verb"], wanted.get("group", ""), resource, wanted.get("namespace") or None)
        return {**ask.body, "status": {"allowed": allowed, "reason": "" if allowed else "no rule allows it"}}

    def _patched(self, ask: Ask) -> Object:
        kind = ask.request.content_type
        if "apply" in kind and self.store.find(ask.resource.plural, ask.space, ask.name or "") is None:
            return self.create(ask.resource, ask.space, ask.body)
        current = self.store.get(ask.resource, ask.space, ask.name or "")
        return json_patch(current, ask.body) if "json-patch" in kind else merge(current, ask.body)

    def _update(self, ask: Ask, item: Object) -> Object:
        current = self.store.get(ask.resource, ask.space, ask.name or "")
        given = (item.get("metadata") or {}).get("resourceVersion")
        if given and given != current["metadata"]["resourceVersion"]:
            message = (
                f'Operation cannot be fulfilled on {ask.resource.full_name} "{ask.name}": the object has been modified'
            )
            raise Refused(409, "Conflict", f"{message}; please apply your changes to the latest version and try again")
        item = copy.deepcopy(item)
        fixed = ("uid", "creationTimestamp", "namespace", "name", "resourceVersion")
        item["metadata"] = {**item.get("metadata", {}), **{k: v for k, v in current["metadata"].items() if k in fixed}}
        item.setdefault("apiVersion", ask.resource.api_version)
        item.setdefault("kind", ask.resource.kind)
        if ask.sub != "status" and "status" in current:
            item["status"] = current["status"]
        if item.get("spec") != current.get("spec"):
            item["metadata"]["generation"] = current["metadata"].get("generation", 1) + 1
        admission.validate(item)
        admission.default(ask.resource.plural, item)
        stored = self.store.update(ask.resource.plural, item)
        return self._finalized(ask.resource, stored)

    def _finalized(self, resource: Resource, item: Object) -> Object:
        metadata = item["metadata"]
        if "deletionTimestamp" in metadata and not metadata.get("finalizers") and resource.plural != "pods":
            self.store.remove(resource.plural, metadata.get("namespace", ""), metadata["name"])
        return item

    def delete(self, resource: Resource, item: Object, options: Object) -> Object:
        """What a DELETE does: at once, or gracefully for a pod on a node."""
        metadata = item["metadata"]
        uid = (options.get("preconditions") or {}).get("uid")
        if uid and uid != metadata["uid"]:
            raise Refused(409, "Conflict", f"the UID in the precondition ({uid}) does not match the UID in record")
        version = (options.get("preconditions") or {}).get("resourceVersion")
        if version and version != metadata["resourceVersion"]:
            raise Refused(
                409, "Conflict", f"the ResourceVersion in the precondition ({version}) does not match the one in record"
            )
        policy = options.get("propagationPolicy")
        namespace = metadata.get("namespace", "")
        if policy == "Orphan":
            self._orphan(metadata["uid"])
        item = copy.deepcopy(item)
        grace = options.get("gracePeriodSeconds")
        if resource.plural == "pods" and item["spec"].get("nodeName") and grace != 0:
            if "deletionTimestamp" not in metadata or grace is not None:
                item["metadata"]["deletionTimestamp"] = now()
                item["metadata"]["deletionGracePeriodSeconds"] = (
                    item["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
                )
            return self.store.update("pods", item)
        if policy == "Foreground" and self._dependents(metadata["uid"]):
            item["metadata"]["deletionTimestamp"] = now()
            finalizers = item["metadata"].setdefault("finalizers", [])
            finalizers += ["foregroundDeletion"] * ("foregroundDeletion" not in finalizers)
            return self.store.update(resource.plural, item)
        if metadata.get("finalizers"):
            item["metadata"]["deletionTimestamp"] = now()
            return self.store.update(resource.plural, item)
        return self.store.remove(resource.plural, namespace, metadata["name"]) or item

    def evict(self, namespace: str, name: str) -> Object:
        """The eviction API: what a drain uses."""
        item = copy.deepcopy(self.store.get(BY_NAME["pods"], namespace, name))
        conditions = item["status"].setdefault("conditions", [])
        conditions.append(
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
             "message": "Eviction API: evicting", "lastTransitionTime": now()}
        )  # fmt: skip
        return self.delete(BY_NAME["pods"], self.store.update("pods", item), {})

    def _dependents(self, uid: str) -> list[Object]:
        return [o for o in self.store.objects.values() if any(r["uid"] == uid for r in owners(o))]

    def _orphan(self, uid: str) -> None:
        for (plural, _, _), item in list(self.store.objects.items()):
            if any(r["uid"] == uid for r in owners(item)):
                item = copy.deepcopy(item)
                item["metadata"]["ownerReferences"] = [r for r in owners(item) if r["uid"] != uid]
                self.store.update(plural, item)


def owners(item: Object) -> list[Object]:
    return item["metadata"].get("ownerReferences") or []


def selected(item: Object, labels: str, fields: str) -> bool:
    """Whether selectors choose an object."""
    return matches_labels(labels, item["metadata"].get("labels") or {}) and matches_fields(fields, item)
