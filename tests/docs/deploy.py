"""Reads what lies in deploy/: YAML files, the Dockerfile, the unit, examples of environments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.docs.markdown import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = ("compose.yaml", "compose.cluster.yaml")
DEFAULT_GRACE_SECONDS = {"compose": 10.0, "kubernetes": 30.0}
IMAGE = "bloodbank"

_EXPANSION = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")
_DURATION = re.compile(r"(?:(\d+)m)?(?:(\d+)s)?")


def files() -> list[Path]:
    """Return every file of the folder."""
    return sorted(path for path in DEPLOY.rglob("*") if path.is_file())


def compose(name: str) -> dict[str, Any]:
    """Return a compose file, with its anchors and merges resolved."""
    return yaml.safe_load((DEPLOY / name).read_text())


def ours(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the services of a compose file that run Bloodbank."""
    return {name: service for name, service in content["services"].items() if service["image"].startswith(f"{IMAGE}:")}


def manifests() -> list[dict[str, Any]]:
    """Return every object of the Kubernetes files, the kustomization left out."""
    paths = (path for path in sorted(KUBERNETES.glob("*.yaml")) if path.name != "kustomization.yaml")
    return [part for path in paths for part in yaml.safe_load_all(path.read_text())]


def kustomization() -> dict[str, Any]:
    """Return what kustomize reads first."""
    return yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())


def manifest(kind: str) -> dict[str, Any]:
    """Return the one object of a kind."""
    [found] = [part for part in manifests() if part["kind"] == kind]
    return found


def container() -> dict[str, Any]:
    """Return the container of the StatefulSet."""
    [found] = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    return found


def expansions(name: str) -> set[tuple[str, str]]:
    """Return what a compose file takes from the environment, as (variable, "-" with a default, "?" required, "")."""
    lines = [line for line in (DEPLOY / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    return {(found[1], found[2] or "") for line in lines for found in _EXPANSION.finditer(line)}


def expanded(value: str, variables: Mapping[str, str]) -> str:
    """Return a value of a compose file as compose hands it over."""
    text = _EXPANSION.sub(lambda found: variables.get(found[1]) or (found[3] if found[2] == "-" else ""), value)
    return text.replace("$$", "$")


def pairs(path: Path) -> dict[str, str]:
    """Return the variables of an environment file; those that are commented out have an empty value."""
    found = re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", path.read_text(), re.MULTILINE)
    return dict(found)


def unit() -> dict[str, list[str]]:
    """Return what the systemd unit sets: {name: values, in order}."""
    settings: dict[str, list[str]] = {}
    for line in (DEPLOY / "bloodbank.service").read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, as (name, arguments)."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [(name, arguments) for name, _, arguments in (line.partition(" ") for line in lines if line.strip())]


def instructions(name: str) -> list[str]:
    """Return the arguments of every instruction of a name."""
    return [arguments for one, arguments in dockerfile() if one == name]


def image_environment() -> dict[str, str]:
    """Return the variables that the image sets."""
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(instructions("ENV"))))


def health_command() -> list[str]:
    """Return the command of the image's health check."""
    [check] = instructions("HEALTHCHECK")
    return json.loads(check.partition("CMD ")[2])


def seconds(duration: str) -> float:
    """Return the seconds of a duration such as 1m30s, as compose writes it."""
    found = _DURATION.fullmatch(duration)
    if not found or not duration:
        raise ValueError(f"{duration} is no duration in minutes and seconds")
    return 60.0 * int(found[1] or 0) + int(found[2] or 0)


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value that is no list and no mapping, with the names that lead to it."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, (*path, str(name)))
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, path)
    else:
        yield path, value
