"""How repositories look in JSON: model objects, tree entries, and tags read off the card."""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import yaml

from .state import Blob, Commit, Discussion, Repo

Json = dict[str, Any]

TEXT_FIELDS = ("library_name", "pipeline_tag", "license", "base_model_relation")
LIST_FIELDS = ("tags", "base_model", "datasets", "language")


def date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def front_matter(text: str) -> str | None:
    """The YAML block at the head of a model card, or None."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n?---(\r?\n|$)", text, re.DOTALL)
    return None if match is None else match.group(1)


def card_problems(text: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings that the metadata of a model card deserves."""
    block = front_matter(text)
    if not block or not block.strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block)
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {' '.join(str(error).split())}"], []
    if not isinstance(data, dict):
        return ["The metadata must be a mapping"], []
    errors = [
        f'"{key}" must be a string'
        for key in TEXT_FIELDS
        if data.get(key) is not None and not isinstance(data[key], str)
    ]
    for key in LIST_FIELDS:
        value = data.get(key) or []
        if not isinstance(value, str | list) or not all(isinstance(v, str) for v in value):
            errors.append(f'"{key}" must be a string or a list of strings')
    return errors, []


def card_data(commit: Commit) -> Json:
    """The metadata of the README of a commit; empty when there is none that is valid."""
    readme = commit.files.get("README.md")
    text = "" if readme is None else readme.data.decode("utf-8", "replace")
    block = front_matter(text)
    if not block or not block.strip() or card_problems(text)[0]:
        return {}
    data: Json = yaml.safe_load(block)
    return data


def _listed(value: object) -> list[str]:
    if not value:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def tags(commit: Commit) -> list[str]:
    """The tags that the hub shows and filters by, read off the card and the file names."""
    card = card_data(commit)
    bases = _listed(card.get("base_model"))
    relation = card.get("base_model_relation")
    if relation is None and bases:
        adapter = "adapter_config.json" in commit.files or card.get("library_name") == "peft"
        relation = "adapter" if adapter else "merge" if len(bases) > 1 else "finetune"
    found = [
        *_listed(card.get("library_name")),
        *(["safetensors"] if any(p.endswith(".safetensors") for p in commit.files) else []),
        *_listed(card.get("pipeline_tag")),
        *_listed(card.get("tags")),
        *(f"dataset:{name}" for name in _listed(card.get("datasets"))),
        *_listed(card.get("language")),
        *(f"base_model:{base}" for base in bases),
        *(f"base_model:{relation}:{base}" for base in bases),
        *(f"license:{name}" for name in _listed(card.get("license"))),
    ]
    return list(dict.fromkeys(found))


def safetensors_parameters(commit: Commit) -> Json | None:
    """Parameter counts by dtype over the safetensors files whose header can be read."""
    counts: dict[str, int] = {}
    for path, blob in commit.files.items():
        if path.endswith(".safetensors"):
            for entry in _safetensors_entries(blob.data):
                dtype = str(entry.get("dtype"))
                shape = [side for side in entry.get("shape", []) if isinstance(side, int)]
                counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    return {"parameters": counts, "total": sum(counts.values())} if counts else None


def _safetensors_entries(data: bytes) -> list[Json]:
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except ValueError:
        return []
    if not isinstance(header, dict):
        return []
    return [v for k, v in header.items() if k != "__metadata__" and isinstance(v, dict)]


def sibling(path: str, blob: Blob, *, blobs: bool) -> Json:
    if not blobs:
        return {"rfilename": path}
    entry: Json = {"rfilename": path, "size": blob.size, "blobId": blob.oid}
    if blob.lfs:
        pointer = len(blob.pointer)
        entry["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": pointer}
    return entry


def model(repo: Repo, commit: Commit, *, blobs: bool = False) -> Json:
    """The whole model object of a repository at a commit."""
    card = card_data(commit)
    parameters = safetensors_parameters(commit)
    return {
        "_id": hashlib.sha1(repo.id.encode(), usedforsecurity=False).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.author,
        "sha": commit.oid,
        "lastModified": date(commit.date),
        "createdAt": date(repo.created),
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "trendingScore": repo.likes,
        "tags": tags(commit),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "siblings": [sibling(p, b, blobs=blobs) for p, b in sorted(commit.files.items())],
        **({} if parameters is None else {"safetensors": parameters}),
        "usedStorage": sum(len(data) for data in repo.lfs_objects.values()),
        "spaces": [],
    }


def tree(repo: Repo, commit: Commit, *, expand: bool = False) -> list[Json]:
    """An entry for every file and folder of a commit, at any depth, by path."""
    folders = {
        str(parent)
        for path in commit.files
        for parent in PurePosixPath(path).parents
        if str(parent) not in {".", "/"}
    }
    entries = [_file(repo, commit, path, expand=expand) for path in commit.files]
    entries += [_folder(repo, commit, path, expand=expand) for path in folders]
    return sorted(entries, key=lambda entry: str(entry["path"]))


def _file(repo: Repo, commit: Commit, path: str, *, expand: bool) -> Json:
    blob = commit.files[path]
    entry: Json = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.lfs:
        pointer = len(blob.pointer)
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": pointer}
    if expand:
        entry["lastCommit"] = _last_commit(repo.last_change(commit, path))
    return entry


def _folder(repo: Repo, commit: Commit, path: str, *, expand: bool) -> Json:
    inside = [p for p in commit.files if p.startswith(f"{path}/")]
    listing = repr(sorted((p, commit.files[p].oid) for p in inside)).encode()
    oid = hashlib.sha1(listing, usedforsecurity=False).hexdigest()
    entry: Json = {"type": "directory", "path": path, "oid": oid}
    if expand:
        changes = [repo.last_change(commit, p) for p in inside]
        entry["lastCommit"] = _last_commit(max(changes, key=lambda change: change.date))
    return entry


def _last_commit(commit: Commit) -> Json:
    return {"id": commit.oid, "title": commit.title, "date": date(commit.date)}


def commit_entry(commit: Commit) -> Json:
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "date": date(commit.date),
        "authors": [{"user": commit.author}],
        "formatted": {"title": commit.title, "message": commit.message},
    }


def ref_entry(ref: str, oid: str) -> Json:
    return {"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": oid}


def discussion(repo: Repo, item: Discussion) -> Json:
    changes: Json = {"base": item.base}
    if item.merge_commit:
        changes["mergeCommitId"] = item.merge_commit
    return {
        "title": item.title,
        "num": item.num,
        "author": {"name": item.author},
        "createdAt": date(item.created),
        "status": item.status,
        "repo": {"name": repo.id, "type": "model"},
        "isPullRequest": item.is_pull_request,
        "changes": changes,
        "filesWithConflicts": [],
        "events": [],
        "diff": "",
    }
