"""The hub's JSON API about repositories: who am I, create, list, look at, refs."""

from __future__ import annotations

import re
from collections.abc import Callable

from . import views
from .state import Access, Repo, State
from .views import Json
from .wire import HubError, Reply, Request, Router, page

router = Router()

ALWAYS = ("_id", "id", "modelId")
BRIEF = (
    *ALWAYS,
    *("likes", "private", "downloads", "tags", "pipeline_tag", "library_name", "createdAt"),
)
FULL = (*BRIEF, "author", "sha", "lastModified", "gated", "disabled", "siblings")
SORT_KEYS = ("lastModified", "createdAt", "trendingScore", "downloads", "likes")
NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_.-]{1,96}")


@router.on("GET", "/api/whoami-v2")
def whoami(hub: State, request: Request) -> Reply:
    access = request.access
    if access is None:
        raise HubError(401, "Invalid username or password.")
    orgs = [{"type": "org", "id": org, "name": org, "fullname": org} for org in access.orgs]
    token = {"displayName": f"{access.user}-{access.role}", "role": access.role}
    return Reply.json(
        {
            "type": "user",
            "id": access.user,
            "name": access.user,
            "fullname": access.user.title(),
            "email": f"{access.user}@localhost",
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


@router.on("POST", "/api/validate-yaml")
def validate_yaml(hub: State, request: Request) -> Reply:
    errors, warnings = views.card_problems(str(request.json().get("content", "")))
    body = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return Reply.json(body, 400 if errors else 200)


def _named(hub: State, request: Request) -> tuple[str, Access]:
    """The repo id in the body of a create or delete call, in a namespace of the user's own."""
    writer = hub.writer(request.access)
    body = request.json()
    if body.get("type") not in {None, "model"}:
        raise HubError(400, "This hub holds models only")
    namespace, name = body.get("organization") or writer.user, body.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise HubError(400, f"Invalid repo name: {name}")
    if namespace not in {writer.user, *writer.orgs}:
        message = f'You don\'t have the rights to create or delete a model in "{namespace}"'
        raise HubError(403, message)
    return f"{namespace}/{name}", writer


@router.on("POST", "/api/repos/create")
def create(hub: State, request: Request) -> Reply:
    repo_id, _ = _named(hub, request)
    url = f"{hub.endpoint}/{repo_id}"
    if repo_id in hub.repos:
        raise HubError(409, "You already created this model repo", url=url)
    private = _private(hub, request) or False
    repo = hub.add_repo(repo_id, private=private)
    return Reply.json(
        {"url": url, "name": repo_id, "id": views.model(repo, repo.at("main"))["_id"]}
    )


@router.on("DELETE", "/api/repos/delete")
def delete(hub: State, request: Request) -> Reply:
    repo_id, _ = _named(hub, request)
    hub.readable(repo_id, request.access)
    del hub.repos[repo_id]
    return Reply.json({})


@router.on("POST", "/api/repos/move")
def move(hub: State, request: Request) -> Reply:
    """Rename; the old name redirects for as long as nothing else takes it."""
    body = request.json()
    old, new = str(body.get("fromRepo")), str(body.get("toRepo"))
    repo = hub.writable(old, request.access)
    namespace, _, name = new.partition("/")
    writer = hub.writer(request.access)
    if namespace not in {writer.user, *writer.orgs} or not NAME.fullmatch(name):
        raise HubError(403, f'You can\'t move a repo to "{new}"')
    if new in hub.repos:
        raise HubError(409, f"{new} already exists")
    del hub.repos[old]
    repo.id = new
    hub.repos[new] = repo
    hub.moved.pop(new, None)
    hub.moved[old] = new
    return Reply.json({})


@router.on("PUT", "/api/models/{repo_id}/settings")
def settings(hub: State, request: Request, repo_id: str) -> Reply:
    repo = hub.writable(repo_id, request.access)
    gated = request.json().get("gated", repo.gated)
    if gated not in {False, "auto", "manual"}:
        raise HubError(400, f'"gated" must be "auto", "manual" or false, not {gated!r}')
    private = _private(hub, request)
    repo.gated = gated
    repo.private = repo.private if private is None else private
    return Reply.json({"private": repo.private, "gated": repo.gated})


def _private(hub: State, request: Request) -> bool | None:
    """What a body says about privacy; None if nothing (older clients say `private`)."""
    body = request.json()
    said = body.get("visibility")
    if said is None and "private" in body:
        said = "private" if body["private"] else "public"
    if said not in {None, "private", "public"}:
        raise HubError(400, f'"visibility" must be "private" or "public", not {said!r}')
    return None if said is None else said == "private" and not hub.lie_about_privacy


def _paged(hub: State, request: Request, items: list[Json], size: int | None = None) -> Reply:
    entries, link = page(request, items, size or hub.page_size, hub.endpoint)
    reply = Reply.json(entries)
    return Reply(200, reply.body, {**reply.headers, **({"Link": link} if link else {})})


@router.on("GET", "/api/models")
def list_models(hub: State, request: Request) -> Reply:
    found = [
        views.model(repo, repo.at("main"))
        for repo in hub.repos.values()
        if hub.visible(repo, request.access)
    ]
    found = [item for item in found if all(keep(item) for keep in _filters(request))]
    sort = request.value("sort") or "trendingScore"
    if sort not in SORT_KEYS:
        raise HubError(400, f'"sort" must be one of {", ".join(SORT_KEYS)}')
    found.sort(key=lambda item: item["id"])
    found.sort(key=lambda item: item[sort], reverse=True)
    fields = FULL if request.flag("full") else BRIEF
    fields = (*fields, "cardData") if request.flag("cardData") else fields
    limit = int(request.value("limit") or hub.page_size)
    chosen = [_fields(item, request.query.get("expand"), fields) for item in found]
    return _paged(hub, request, chosen, min(limit, hub.page_size))


def _filters(request: Request) -> list[Callable[[Json], bool]]:
    wanted = set(request.query.get("filter", []))
    author, search = request.value("author"), (request.value("search") or "").lower()
    tag, gated = request.value("pipeline_tag"), request.value("gated")
    return [
        lambda item: wanted <= {*item["tags"], item["library_name"], item["pipeline_tag"]},
        lambda item: author in {None, item["author"]},
        lambda item: search in item["id"].lower(),
        lambda item: tag in {None, item["pipeline_tag"]},
        lambda item: gated is None or request.flag("gated") == bool(item["gated"]),
    ]


def _fields(item: Json, expand: list[str] | None, default: tuple[str, ...]) -> Json:
    names = default if expand is None else (*ALWAYS, *expand)
    return {name: item[name] for name in names if name in item}


@router.on("GET", "/api/models/{repo_id}/revision/{rev}")
def info_at(hub: State, request: Request, repo_id: str, rev: str) -> Reply:
    repo = hub.readable(repo_id, request.access)
    item = views.model(repo, repo.at(rev), blobs=request.flag("blobs"))
    return Reply.json(_fields(item, request.query.get("expand"), tuple(item)))


@router.on("GET", "/api/models/{repo_id}")
def info(hub: State, request: Request, repo_id: str) -> Reply:
    return info_at(hub, request, repo_id=repo_id, rev="main")


@router.on("GET", "/api/models/{repo_id}/tree/{rev}")
def tree(hub: State, request: Request, repo_id: str, rev: str, path: str = "") -> Reply:
    repo = hub.readable(repo_id, request.access)
    commit = repo.at(rev)
    entries = views.tree(repo, commit, expand=request.flag("expand"))
    if path:
        entries = [entry for entry in entries if entry["path"].startswith(f"{path}/")]
        if not entries:
            message = f"{path} does not exist on {rev}"
            raise HubError(404, message, "EntryNotFound", headers={"X-Repo-Commit": commit.oid})
    if not request.flag("recursive"):
        start = len(path) + 1 if path else 0
        entries = [entry for entry in entries if "/" not in entry["path"][start:]]
    return _paged(hub, request, entries)


@router.on("GET", "/api/models/{repo_id}/tree/{rev}/{path*}")
def tree_below(hub: State, request: Request, repo_id: str, rev: str, path: str) -> Reply:
    return tree(hub, request, repo_id=repo_id, rev=rev, path=path.strip("/"))


@router.on("POST", "/api/models/{repo_id}/paths-info/{rev}")
def paths_info(hub: State, request: Request, repo_id: str, rev: str) -> Reply:
    repo = hub.readable(repo_id, request.access)
    form = request.form()
    wanted = {path.strip("/") for path in form.get("paths", [])}
    expand = form.get("expand", ["false"])[0].lower() == "true"
    entries = views.tree(repo, repo.at(rev), expand=expand)
    return Reply.json([entry for entry in entries if entry["path"] in wanted])


@router.on("GET", "/api/models/{repo_id}/commits/{rev}")
def commits(hub: State, request: Request, repo_id: str, rev: str) -> Reply:
    repo = hub.readable(repo_id, request.access)
    return _paged(hub, request, [views.commit_entry(c) for c in repo.history(repo.at(rev))])


@router.on("GET", "/api/models/{repo_id}/refs")
def refs(hub: State, request: Request, repo_id: str) -> Reply:
    repo = hub.readable(repo_id, request.access)

    def under(prefix: str) -> list[Json]:
        return [views.ref_entry(r, oid) for r, oid in repo.refs.items() if r.startswith(prefix)]

    body = {"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": []}
    if request.flag("include_prs"):
        body["pullRequests"] = under("refs/pr/")
    return Reply.json(body)


@router.on("POST", "/api/models/{repo_id}/branch/{name}")
def create_branch(hub: State, request: Request, repo_id: str, name: str) -> Reply:
    start = str(request.json().get("startingPoint", "main"))
    return _add_ref(hub.writable(repo_id, request.access), "heads", name, start)


@router.on("POST", "/api/models/{repo_id}/tag/{rev}")
def create_tag(hub: State, request: Request, repo_id: str, rev: str) -> Reply:
    name = str(request.json().get("tag"))
    return _add_ref(hub.writable(repo_id, request.access), "tags", name, rev)


@router.on("DELETE", "/api/models/{repo_id}/branch/{name}")
def delete_branch(hub: State, request: Request, repo_id: str, name: str) -> Reply:
    if name == "main":
        raise HubError(403, "The main branch can't be deleted")
    return _drop_ref(hub.writable(repo_id, request.access), "heads", name)


@router.on("DELETE", "/api/models/{repo_id}/tag/{name}")
def delete_tag(hub: State, request: Request, repo_id: str, name: str) -> Reply:
    return _drop_ref(hub.writable(repo_id, request.access), "tags", name)


def _add_ref(repo: Repo, kind: str, name: str, start: str) -> Reply:
    ref = f"refs/{kind}/{name}"
    if name.startswith("refs/") or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name):
        raise HubError(400, f"Invalid reference name: {name}")
    if ref in repo.refs:
        raise HubError(409, f"{ref} already exists")
    repo.refs[ref] = repo.at(start).oid
    return Reply.json({})


def _drop_ref(repo: Repo, kind: str, name: str) -> Reply:
    if repo.refs.pop(f"refs/{kind}/{name}", None) is None:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return Reply.json({})


@router.on("GET", "/api/models/{repo_id}/auth-check")
def auth_check(hub: State, request: Request, repo_id: str) -> Reply:
    hub.downloadable(repo_id, request.access)
    return Reply.json({})


@router.on("GET", "/api/models/{repo_id}/auth-check/write")
def auth_check_write(hub: State, request: Request, repo_id: str) -> Reply:
    hub.writable(repo_id, request.access)
    return Reply.json({})
