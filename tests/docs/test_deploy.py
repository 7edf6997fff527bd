"""deploy/ parses, agrees with the settings, with the documents and with itself, and holds no secret.

No container engine and no cluster is needed: what is run here are the commands that the files name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.main import get_command

from bloodbank.cli.main import app
from bloodbank.config import Settings, load_settings, redact_url, unknown_variables, variable_names
from tests.docs import deploy
from tests.docs.conftest import OURS, Place, serving
from tests.docs.markdown import ROOT
from tests.servers.process import free_port

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENTS = [(ROOT / "docs" / name).read_text() for name in ("deployment.md", "operations.md")]
ONLY_FOR_PYTHON = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
SECRET_SETTINGS = {
    str(field.validation_alias)
    for name, field in Settings.model_fields.items()
    if "SecretStr" in str(field.annotation) or name == "api_keys"
}
FILLED_IN = {
    "RABBITMQ_PASSWORD": "a1",
    "REDIS_PASSWORD": "b2",
    "BLOODBANK_API_KEYS": "0123456789abcdef:read",
    "BLOODBANK_FIREFLIES_SECRETS": "",
}
LITERAL_IN_URL = re.compile(r"://[^/\s@]*:(?!\$)[^/\s@]+@")
LITERAL_PASSWORD = re.compile(
    r"(?:pass(?:word)?|secrets?|token|cookie|_keys?)[\"']?\s*[=:]\s*[\"']?(?![\s$\"']|true|false|$)\S+", re.IGNORECASE
)
EXPANSION = re.compile(r"\$\{[^}]*\}")
FIELDS_OF: Mapping[str, set[str]] = {
    "": {"apiVersion", "kind", "metadata", "spec", "automountServiceAccountToken"},
    "metadata": {"name", "labels"},
    "labels": {"app.kubernetes.io/name"},
    "matchLabels": {"app.kubernetes.io/name"},
    "Service.spec": {"selector", "ports", "clusterIP", "publishNotReadyAddresses"},
    "Service.selector": {"app.kubernetes.io/name"},
    "PodDisruptionBudget.spec": {"minAvailable", "selector"},
    "selector": {"matchLabels"},
    "StatefulSet.spec": {
        "replicas",
        "serviceName",
        "podManagementPolicy",
        "persistentVolumeClaimRetentionPolicy",
        "selector",
        "template",
        "volumeClaimTemplates",
    },
    "persistentVolumeClaimRetentionPolicy": {"whenDeleted", "whenScaled"},
    "template": {"metadata", "spec"},
    "template.spec": {
        "serviceAccountName",
        "automountServiceAccountToken",
        "enableServiceLinks",
        "terminationGracePeriodSeconds",
        "securityContext",
        "topologySpreadConstraints",
        "containers",
        "volumes",
    },
    "spec.securityContext": {
        "runAsNonRoot",
        "runAsUser",
        "runAsGroup",
        "fsGroup",
        "fsGroupChangePolicy",
        "seccompProfile",
    },
    "seccompProfile": {"type"},
    "topologySpreadConstraints": {"maxSkew", "topologyKey", "whenUnsatisfiable", "labelSelector"},
    "labelSelector": {"matchLabels"},
    "containers": {
        "name",
        "image",
        "ports",
        "envFrom",
        "startupProbe",
        "livenessProbe",
        "readinessProbe",
        "resources",
        "securityContext",
        "volumeMounts",
    },
    "ports": {"name", "port", "targetPort", "containerPort"},
    "envFrom": {"configMapRef", "secretRef"},
    "configMapRef": {"name"},
    "secretRef": {"name"},
    "startupProbe": {"httpGet", "periodSeconds", "failureThreshold"},
    "livenessProbe": {"httpGet", "periodSeconds", "failureThreshold", "timeoutSeconds"},
    "readinessProbe": {"exec", "periodSeconds", "failureThreshold", "timeoutSeconds"},
    "httpGet": {"path", "port"},
    "exec": {"command"},
    "resources": {"requests", "limits"},
    "requests": {"cpu", "memory", "storage"},
    "limits": {"memory"},
    "containers.securityContext": {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"},
    "capabilities": {"drop"},
    "volumeMounts": {"name", "mountPath"},
    "volumes": {"name", "emptyDir"},
    "volumeClaimTemplates": {"metadata", "spec"},
    "volumeClaimTemplates.spec": {"accessModes", "resources"},
}
"""Names that Kubernetes knows, by where they stand: "" for the whole object, else the nearest names that tell."""


def _image_settings(variables: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in deploy.image_environment().items() if k not in ONLY_FOR_PYTHON} | dict(variables)


def _environments() -> dict[str, dict[str, str]]:
    """Return what each file hands to the server, the secrets filled in."""
    found = {
        f"compose.yaml {name}": _image_settings(
            {key: deploy.expanded(value, FILLED_IN) for key, value in service["environment"].items()}
        )
        for name, service in deploy.ours(deploy.compose("compose.yaml")).items()
    }
    found["kustomization.yaml"] = _image_settings(_literals())
    in_unit = dict(value.split("=", 1) for value in deploy.unit()["Environment"])
    found["bloodbank.service"] = {
        **{name: value.replace("%S", "/var/lib") for name, value in in_unit.items() if name not in ONLY_FOR_PYTHON},
        **deploy.pairs(deploy.DEPLOY / "bloodbank.env.example"),
    }
    return found


def _literals() -> dict[str, str]:
    [generator] = deploy.kustomization()["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generator["literals"])


def _names_handed_over() -> set[str]:
    names = {name for variables in _environments().values() for name in variables}
    for file in deploy.COMPOSE:
        names |= {name for service in deploy.ours(deploy.compose(file)).values() for name in service["environment"]}
    return names


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _images(file: str) -> dict[str, str]:
    return {name: service["image"] for name, service in deploy.compose(file)["services"].items()}


def test_every_variable_is_a_setting() -> None:
    assert _names_handed_over() - set(variable_names()) == set()


def test_no_text_names_a_setting_that_does_not_exist() -> None:
    named = {
        (path.name, name)
        for path in deploy.files()
        for name in re.findall(r"\bBLOODBANK_[A-Z_]+[A-Z]\b", path.read_text())
    }
    assert {(file, name) for file, name in named if name not in variable_names()} == set()


@pytest.mark.parametrize("where", _environments())
def test_every_value_is_valid(where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    for name, value in _environments()[where].items():
        monkeypatch.setenv(name, value)
    load_settings()
    assert unknown_variables() == []


@pytest.mark.parametrize("file", deploy.COMPOSE)
def test_address_of_the_broker_is_valid(file: str) -> None:
    for service in deploy.ours(deploy.compose(file)).values():
        settings = Settings(rabbit_url=SecretStr(deploy.expanded(service["environment"]["RABBIT_URL"], FILLED_IN)))
        assert settings.rabbit_url is not None
        assert "(not a URL)" not in redact_url(settings.rabbit_url.get_secret_value())


def test_examples_hold_what_the_compose_files_take_and_nothing_else() -> None:
    taken = set[tuple[str, str]]().union(*(deploy.expansions(file) for file in deploy.COMPOSE))
    listed = deploy.pairs(deploy.DEPLOY / ".env.example")
    assert {name for name, kind in taken if kind != "-"} <= set(listed) <= {name for name, _ in taken}
    assert {name for name, kind in taken if not kind} == set(), "a value that is missing would be taken for empty"


def _literal_secret(line: str) -> str | None:
    """Return what in a line looks like a secret; what is taken from the environment does not."""
    code = EXPANSION.sub("$", line)
    found = LITERAL_IN_URL.search(code) or LITERAL_PASSWORD.search(code)
    return found[0] if found else None


def test_no_file_holds_a_secret() -> None:
    for path in deploy.files():
        lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert [(path.name, line) for line in lines if _literal_secret(line)] == []
    for example in (".env.example", "bloodbank.env.example"):
        values = deploy.pairs(deploy.DEPLOY / example)
        filled = {name for name, value in values.items() if value}
        assert filled & (SECRET_SETTINGS | {"RABBITMQ_PASSWORD", "REDIS_PASSWORD", "RABBITMQ_ERLANG_COOKIE"}) == set()
    assert "Secret" not in {part["kind"] for part in deploy.manifests()}
    assert not SECRET_SETTINGS & set(_literals())


def test_a_secret_would_be_seen() -> None:
    assert _literal_secret("RABBIT_URL: amqp://user:pw@host/")
    assert _literal_secret('REDIS_PASSWORD: "pw"')
    assert _literal_secret("BLOODBANK_API_KEYS=abc:read")
    assert not _literal_secret("RABBITMQ_DEFAULT_PASS: ${RABBITMQ_PASSWORD:?set it}")
    assert not _literal_secret("RABBIT_URL: amqp://user:${RABBITMQ_PASSWORD:?set it}@host/")
    assert {"RABBIT_URL", "BLOODBANK_API_KEYS", "BLOODBANK_FIREFLIES_SECRETS"} <= SECRET_SETTINGS


def test_versions_agree() -> None:
    images = {file: _images(file) for file in deploy.COMPOSE}
    every = {image for services in images.values() for image in services.values()}
    assert all(re.fullmatch(r"[a-z]+:\d+(\.\d+)*", image) for image in every), "a short name with a version"
    by_name = {image.partition(":")[0]: image for image in every}
    assert sorted(by_name.values()) == sorted(every), "the same version everywhere"
    assert by_name["bloodbank"] == f"bloodbank:{PROJECT['version']}"
    [image] = deploy.kustomization()["images"]
    name = deploy.container()["image"]
    assert image == {"name": name, "newName": name, "newTag": PROJECT["version"]}
    assert f"/{name}:{PROJECT['version']} ." in (deploy.KUBERNETES / "kustomization.yaml").read_text()
    assert f"bloodbank:{PROJECT['version']} ." in (deploy.DEPLOY / "Dockerfile").read_text()
    for name, title in (("rabbitmq", "RabbitMQ"), ("redis", "Redis")):
        oldest = re.search(rf"{title} (\d+\.\d+) or newer", DOCUMENTS[0])
        assert oldest
        assert _version(by_name[name].partition(":")[2]) >= _version(oldest[1])
        assert f"`{by_name[name]}`" in DOCUMENTS[1]


def test_image_runs_on_a_python_that_is_supported() -> None:
    bases = {arguments.split()[0] for arguments in deploy.instructions("FROM")}
    [base] = bases
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", base)
    assert version
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]


def test_image_is_built_from_files_that_reach_the_build_and_from_the_lock() -> None:
    kept = [
        line[1:]
        for line in (deploy.DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [
        source
        for arguments in deploy.instructions("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]
    assert {source.removeprefix("./") for source in copied} == set(kept)
    assert all((ROOT / source).exists() for source in kept)
    assert not any(fnmatch(".env", pattern) for pattern in kept)
    assert any("--constraint requirements.lock ." in run for run in deploy.instructions("RUN"))


def test_image_does_not_run_as_root_and_keeps_its_data_where_the_volumes_are() -> None:
    [user] = deploy.instructions("USER")
    pod = deploy.manifest("StatefulSet")["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{pod['runAsUser']}:{pod['runAsGroup']}"
    assert pod["runAsUser"] > 0
    folder = deploy.image_environment()["BLOODBANK_DATA_DIR"]
    assert deploy.instructions("VOLUME") == [folder]
    assert folder in [mount["mountPath"] for mount in deploy.container()["volumeMounts"]]
    for file in deploy.COMPOSE:
        services = deploy.ours(deploy.compose(file))
        volumes = [volume for service in services.values() for volume in service["volumes"]]
        assert [volume.partition(":")[2] for volume in volumes] == [folder] * len(services)
        assert len(set(volumes)) == len(services), "each its own outbox"


def test_commands_are_real() -> None:
    commands = getattr(get_command(app), "commands", {})
    [start] = deploy.unit()["ExecStart"]
    program, command = start.split()
    assert Path(program).name in PROJECT["scripts"]
    assert command in commands
    assert deploy.instructions("ENTRYPOINT") == ['["bb"]']
    assert deploy.instructions("CMD") == ['["serve"]']
    assert "args" not in deploy.container()


@pytest.mark.parametrize("file", deploy.COMPOSE)
def test_compose_file_refers_to_what_is_in_it(file: str) -> None:
    content = deploy.compose(file)
    services = content["services"]
    for name, service in services.items():
        has_check = "healthcheck" in service or service["image"].startswith("bloodbank:")
        assert has_check, name
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[other]
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in content["volumes"]
        assert {config["source"] for config in service.get("configs", [])} <= set(content["configs"])
        for url in ("RABBIT_URL", "REDIS_URL"):
            value = deploy.expanded(service.get("environment", {}).get(url, ""), FILLED_IN)
            hosts = [part.partition(":")[0] for part in value.rpartition("@")[2].partition("/")[0].split(",")]
            assert set(hosts) - {""} <= set(services)
    used = {volume.partition(":")[0] for service in services.values() for volume in service["volumes"]}
    assert used == set(content["volumes"])


@pytest.mark.parametrize("file", deploy.COMPOSE)
def test_ports_are_open_on_loopback_alone(file: str) -> None:
    published = [port for service in deploy.compose(file)["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert len({port.split(":")[1] for port in published}) == len(published)
    port = deploy.image_environment()["HTTP_PORT"]
    assert all(service["ports"][0].endswith(f":{port}") for service in deploy.ours(deploy.compose(file)).values())


def test_the_cluster_has_three_of_those_that_vote() -> None:
    content = deploy.compose("compose.cluster.yaml")
    nodes = [name for name in content["services"] if name.startswith("rabbitmq")]
    listed = re.findall(r"nodes\.\d+ = rabbit@(\w+)", content["configs"]["rabbitmq"]["content"])
    assert len(nodes) == 3
    assert listed == nodes
    assert all(content["services"][name]["hostname"] == name for name in nodes)
    assert "cluster_partition_handling = pause_minority" in content["configs"]["rabbitmq"]["content"]
    assert len([name for name in content["services"] if name.startswith("sentinel")]) == 3


def test_servers_get_the_time_that_a_stop_takes() -> None:
    """The delay, what is under way, what is being forwarded, and the rest of closing."""

    def needed(variables: Mapping[str, str]) -> float:
        delay = float(
            variables.get("BLOODBANK_STOP_DELAY_SECONDS", Settings.model_fields["stop_delay_seconds"].default)
        )
        timeout = float(
            variables.get("BLOODBANK_STOP_TIMEOUT_SECONDS", Settings.model_fields["stop_timeout_seconds"].default)
        )
        return delay + 2 * timeout + 10

    for file in deploy.COMPOSE:
        for service in deploy.ours(deploy.compose(file)).values():
            assert deploy.seconds(service["stop_grace_period"]) >= needed(service["environment"])
    pod = deploy.manifest("StatefulSet")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= needed(_literals())
    [stop] = deploy.unit()["TimeoutStopSec"]
    assert float(stop) >= needed(deploy.pairs(deploy.DEPLOY / "bloodbank.env.example"))


def test_unit_keeps_its_data_in_its_state_directory() -> None:
    unit = deploy.unit()
    assert f"BLOODBANK_DATA_DIR=%S/{unit['StateDirectory'][0]}" in unit["Environment"]
    assert unit["NoNewPrivileges"] == ["yes"]
    assert unit["User"] != ["root"]


def test_kubernetes_files_have_no_field_that_kubernetes_does_not_know() -> None:
    for part in deploy.manifests():
        assert _unknown(part, part["kind"], ()) == []


def test_a_field_that_kubernetes_does_not_know_would_be_seen() -> None:
    part = deploy.manifest("StatefulSet")
    part["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    assert _unknown(part, "StatefulSet", ()) == ["spec.template.spec.containers.livenesProbe"]


def _unknown(value: Any, kind: str, path: tuple[str, ...]) -> list[str]:
    """Return the fields that the table does not have where they stand."""
    if isinstance(value, list):
        return [name for part in value for name in _unknown(part, kind, path)]
    if not isinstance(value, dict) or not value:
        return []
    last = path[-1] if path else ""
    places = (".".join(path[-2:]), f"{kind}.{last}", last)
    known = next(FIELDS_OF[place] for place in places if place in FIELDS_OF)
    found = [".".join((*path, name)) for name in value if name not in known]
    return found + [n for name, part in value.items() if name in known for n in _unknown(part, kind, (*path, name))]


def test_kubernetes_objects_find_each_other() -> None:
    stateful_set, label = deploy.manifest("StatefulSet")["spec"], {"app.kubernetes.io/name": "bloodbank"}
    services = {part["metadata"]["name"]: part for part in deploy.manifests() if part["kind"] == "Service"}
    assert services[stateful_set["serviceName"]]["spec"]["clusterIP"] == "None"
    assert all(service["spec"]["selector"] == label for service in services.values())
    assert stateful_set["selector"]["matchLabels"] == stateful_set["template"]["metadata"]["labels"] == label
    assert deploy.manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == label
    assert deploy.manifest("PodDisruptionBudget")["spec"]["minAvailable"] < stateful_set["replicas"]
    [claim] = stateful_set["volumeClaimTemplates"]
    volumes = {claim["metadata"]["name"], *(volume["name"] for volume in stateful_set["template"]["spec"]["volumes"])}
    assert {mount["name"] for mount in deploy.container()["volumeMounts"]} == volumes
    names = {file.name for file in deploy.KUBERNETES.iterdir()} - {"kustomization.yaml"}
    assert set(deploy.kustomization()["resources"]) == names
    [port] = deploy.container()["ports"]
    assert str(port["containerPort"]) == deploy.image_environment()["HTTP_PORT"]
    for probe in ("startupProbe", "livenessProbe"):
        assert deploy.container()[probe]["httpGet"] == {"path": "/livez", "port": port["name"]}


def _run(command: list[str], env: Mapping[str, str]) -> int:
    command = [sys.executable if word == "python" else word for word in command]
    return subprocess.run(command, env=dict(env), capture_output=True, timeout=60, check=False).returncode


def test_health_check_of_the_image_tells_whether_the_server_lives(place: Place) -> None:
    assert _run(deploy.health_command(), place.env) == 0
    assert _run(deploy.health_command(), place.env | {"HTTP_PORT": str(free_port())}) != 0


def test_readiness_probe_tells_whether_the_server_is_ready(tmp_path: Path) -> None:
    command = deploy.container()["readinessProbe"]["exec"]["command"]
    keys = {"BLOODBANK_API_KEYS": "0123456789abcdef:read", "BLOODBANK_KEY": "0123456789abcdef"}
    nobody = {"RABBIT_URL": f"amqp://127.0.0.1:{free_port()}/", "BLOODBANK_OUTBOX": "off"}
    with serving(tmp_path, **keys) as well:
        assert _run(command, well.env) == 0
        assert _run(command, well.env | {"BLOODBANK_KEY": "another-key-of-16"}) != 0
    with serving(tmp_path, **keys, **nobody) as away:
        assert _run(command, away.env) != 0
