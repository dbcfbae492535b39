"""The files in deploy/ are valid, name existing files and flags, and start the server with least privileges."""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from van.errors import UsageError

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
INSTRUCTIONS = {
    "FROM", "RUN", "CMD", "EXPOSE", "ENV", "COPY", "ENTRYPOINT", "USER", "WORKDIR", "HEALTHCHECK", "STOPSIGNAL",
}  # fmt: skip
ROUTES = ("/v2/health/live", "/v2/health/ready")


class Instruction(NamedTuple):
    """An instruction of a Dockerfile; ``stage`` counts the FROM instructions from 0."""

    word: str
    rest: str
    stage: int

    @property
    def arguments(self) -> list[str]:
        return json.loads(self.rest[self.rest.index("[") :])


def read_dockerfile(text: str) -> list[Instruction]:
    """Parse the instructions: comments are removed first, then continued lines joined, as the reference specifies."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    instructions, stage = [], -1
    for line in joined.splitlines():
        word, _, rest = line.partition(" ")
        assert word in INSTRUCTIONS, line
        assert rest.strip(), line
        stage += word == "FROM"
        instructions.append(Instruction(word, rest.strip(), stage))
    assert instructions[0].word == "FROM"
    return instructions


@pytest.fixture(scope="module")
def dockerfile() -> list[Instruction]:
    return read_dockerfile((DEPLOY / "Dockerfile").read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def kubernetes() -> dict[str, dict[str, Any]]:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert all(document["apiVersion"] and document["metadata"]["name"] for document in documents)
    return {document["kind"]: document for document in documents}


def pod_of(kubernetes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return kubernetes["Deployment"]["spec"]["template"]["spec"]


def last(dockerfile: list[Instruction], word: str) -> Instruction:
    """Return the last such instruction of the final stage."""
    return next(one for one in reversed(dockerfile) if one.word == word and one.stage == dockerfile[-1].stage)


def variables(dockerfile: list[Instruction]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(last(dockerfile, "ENV").rest))


def parse_flags(arguments: list[str]) -> Any:
    """Parse the flags of ``van serve``; invalid ones raise UsageError."""
    from van.cli.arguments import parse
    from van.cli.serve import COMMAND

    return parse(COMMAND, arguments)


def test_the_image_is_built_from_fixed_versions_and_locked_packages(dockerfile):
    for one in dockerfile:
        if one.word == "FROM":
            name, version = re.fullmatch(r"(\w+):(\d[\w.-]+)(?: AS \w+)?", one.rest).groups()
            assert (name, version[:2]) == ("python", "3.")
            assert version.split("-")[0] in ("3.11", "3.12", "3.13")  # the versions of pyproject.toml
    installs = [one.rest for one in dockerfile if "pip install" in one.rest]
    assert ["--require-hashes" in rest or "--no-deps" in rest for rest in installs] == [True, True]
    assert not re.search(r"https?://(?!127\.0\.0\.1)|--index-url|--extra-index|--trusted-host", str(dockerfile))


def pins(path: Path) -> dict[str, str]:
    """Return the versions of a lock file by package and marker; every package has hashes."""
    text = path.read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert all(re.match(r"[\w.-]+==\S", line[0]) for line in lines), "only pins: no options, no hosts"
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line[-1]) for line in lines)
    versions = {}
    for line in lines:
        name, _, version = line[0].partition("==")
        marker = " ".join(word for word in line[1:] if not word.startswith("--hash="))
        versions[f"{name}{marker}" if name in versions else name] = version
    return versions


def requirements_of(*extras: str) -> set[str]:
    """Return the names of the project's own requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [
        *project["dependencies"],
        *(one for extra in extras for one in project["optional-dependencies"][extra]),
    ]
    return {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}


def test_the_image_has_the_packages_of_the_server_in_the_tested_versions_and_no_others(dockerfile):
    image, tested = pins(DEPLOY / "requirements.lock"), pins(ROOT / "requirements.lock")
    assert {name: tested.get(name) for name in image} == image
    assert requirements_of("serve", "explain", "export") <= image.keys()
    assert "hatchling" in image  # it builds the package without a download
    only_for_developers = requirements_of("dev", "demo", "transformers") - requirements_of("serve", "explain", "export")
    assert only_for_developers & image.keys() <= {
        "hatchling",
        "scipy",
        "scikit-learn",
    }  # requirements of other packages
    assert {"pytest", "playwright", "schemathesis", "ruff", "transformers"} <= tested.keys() - image.keys()
    installed = next(one.rest for one in dockerfile if "--require-hashes" in one.rest)
    before = [one.rest.split()[0] for one in dockerfile if one.word == "COPY"]
    assert installed.endswith("-r requirements.lock")
    assert before[0] == "deploy/requirements.lock"  # the file that is installed


def test_every_copied_file_exists_and_is_not_ignored(dockerfile):
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    included = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = set()
    for one in dockerfile:
        if one.word == "COPY" and "--from" not in one.rest:
            copied |= set(shlex.split(one.rest)[:-1])
    assert copied == included
    assert all((ROOT / name).exists() for name in copied)
    for secret in (".git", "runs", ".venv", "deploy"):
        assert not any(fnmatch(secret, name) for name in included)
    assert "readme" in (ROOT / "pyproject.toml").read_text()  # the build reads it
    assert {"README.md", "LICENSE", "pyproject.toml", "src", "deploy/requirements.lock"} <= copied


def test_the_image_runs_without_root_and_has_a_health_check(dockerfile):
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last(dockerfile, "USER").rest)
    order = [one.word for one in dockerfile]
    assert order.index("USER") > max(place for place, word in enumerate(order) if word == "RUN")
    health = last(dockerfile, "HEALTHCHECK")
    interpreter, flag, code = health.arguments
    assert (interpreter, flag) == ("python", "-c")
    compile(code, "healthcheck", "exec")
    port = last(dockerfile, "EXPOSE").rest
    assert f"http://127.0.0.1:{port}/v2/health/ready" in code
    assert last(dockerfile, "STOPSIGNAL").rest == "SIGTERM"


def test_the_commands_of_the_files_are_valid(dockerfile, compose, kubernetes):
    assert last(dockerfile, "ENTRYPOINT").arguments == ["van", "serve"]
    commands = [
        last(dockerfile, "CMD").arguments,
        compose["services"]["serve"]["command"],
        pod_of(kubernetes)["containers"][0]["args"],
    ]
    for command in commands:
        flags = parse_flags(command)
        assert (flags.host, flags.port) == ("0.0.0.0", 8000)
        assert flags.models == ("/models/best.safetensors",)
        assert flags.api_key_file.name == "api_key"  # required with this host


def test_the_key_file_is_mounted_where_the_flag_points(compose, kubernetes):
    service = compose["services"]["serve"]
    assert service["secrets"] == list(compose["secrets"]) == ["api_key"]  # mounted under /run/secrets
    assert parse_flags(service["command"]).api_key_file == Path("/run/secrets/api_key")
    pod = pod_of(kubernetes)
    (container,) = pod["containers"]
    folder = next(mount for mount in container["volumeMounts"] if mount["name"] == "key")
    assert folder["readOnly"] is True
    assert parse_flags(container["args"]).api_key_file == Path(folder["mountPath"]) / "api_key"
    secret = next(volume["secret"]["secretName"] for volume in pod["volumes"] if volume["name"] == "key")
    assert f"secret generic {secret} --from-file=api_key=" in (DEPLOY / "kubernetes.yaml").read_text()


@pytest.mark.parametrize("wrong", [["--prot", "8000"], ["--port", "many"], ["--api-key-file"]])
def test_an_invalid_flag_is_detected(wrong):
    with pytest.raises(UsageError):
        parse_flags(["model.safetensors", *wrong])


def test_the_compose_service_can_write_to_its_temporary_folders_only(compose, dockerfile):
    service = compose["services"]["serve"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["user"] == last(dockerfile, "USER").rest
    assert all(volume["read_only"] for volume in service["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    folders = {entry.split(":")[0]: entry.split(":")[1].split(",") for entry in service["tmpfs"]}
    cache = variables(dockerfile)["VAN_CACHE"]
    assert "exec" in folders[cache]  # the default of Docker is noexec, which prevents loading compiled operators
    assert "exec" not in folders["/tmp"]
    assert variables(dockerfile)["MPLCONFIGDIR"].startswith("/tmp/")
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_the_stop_timeout_of_the_container_exceeds_that_of_the_server(compose, kubernetes):
    shutdown_timeout_s = parse_flags(["model.safetensors"]).shutdown_timeout_s
    assert int(compose["services"]["serve"]["stop_grace_period"].removesuffix("s")) > shutdown_timeout_s
    pod = pod_of(kubernetes)
    pause_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > shutdown_timeout_s + pause_s


def test_names_labels_ports_and_volumes_of_the_manifest_match(kubernetes):
    deployment, pod = kubernetes["Deployment"], pod_of(kubernetes)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes["Service"]["spec"]["selector"] == labels
    assert kubernetes["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert kubernetes["Service"]["spec"]["ports"][0]["targetPort"] in ports
    assert ports["http"] == parse_flags(container["args"]).port
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert (
        volumes["models"]["persistentVolumeClaim"]["claimName"]
        == kubernetes["PersistentVolumeClaim"]["metadata"]["name"]
    )
    assert pod["serviceAccountName"] == kubernetes["ServiceAccount"]["metadata"]["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in ROUTES
        assert container[probe]["httpGet"]["port"] in ports
    assert container["livenessProbe"]["httpGet"]["path"].endswith("live")  # a busy server must not be restarted


def test_the_pod_has_least_privileges(kubernetes, dockerfile):
    pod = pod_of(kubernetes)
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (
        f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == last(dockerfile, "USER").rest
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["automountServiceAccountToken"] is False
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys() & container["resources"]["requests"].keys()
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {"/models", "/run/secrets/van", "/tmp", variables(dockerfile)["VAN_CACHE"]} == set(mounts)
    assert mounts["/models"]["readOnly"] is True


@pytest.mark.parametrize(
    "wrong", ["RUN true\n", "FROM python:3.13\nRUNN true\n", "FROM python:3.13\nCOPY\n", "FROM python:3.13\nEXPOSE \n"]
)
def test_an_invalid_dockerfile_is_rejected(wrong):
    with pytest.raises(AssertionError):
        read_dockerfile(wrong)
