"""Runs the services of docker-compose.yml as plain processes, with the commands and environments that stand there."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.compose import ROOT, load_compose, make_secrets
from tests.servers import PostgresServer, free_port, postgres_binaries, spawn, wait_until

TOKEN = "canary-token-of-the-stack"
SHOPS = 40
HEALTHY_WITHIN = 60.0  # seconds


class Stack:
    """What containers would share is mapped onto this machine: host names and ports, /run/secrets, volumes.

    Each process gets the environment that its container would get, and nothing of the test's own. The database server
    is given, since its image's start-up script is not at hand; it runs docker/postgres.sql as that script would.
    """

    def __init__(self, folder: Path, postgres: PostgresServer) -> None:
        self.folder, self.postgres = folder, postgres
        self.secrets = folder / "secrets"
        self.port = {name: free_port() for name in ("redis", "simulator", "flower", "producer", "worker-1", "worker-2")}
        self.port["postgres"] = postgres.port
        demo = dict(line.split("=", 1) for line in (ROOT / "docker/demo.env").read_text().splitlines() if "=" in line)
        self.compose = load_compose(demo)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for name in ("data", "home", "redis"):
            (self.folder / name).mkdir(parents=True)
        assert make_secrets(self.secrets, TOKEN).returncode == 0
        (self.folder / "redis.conf").write_text(self.mapped("redis", (ROOT / "docker/redis.conf").read_text()))
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        if error[0] is not None:
            for log in sorted(self.folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-2500:]}", file=sys.stderr)

    def create_database(self) -> None:
        """What the image does with docker/postgres.sql; from then on only the superuser comes in without a password."""
        script = self.folder / "postgres.sql"
        script.write_text(self.mapped("postgres", (ROOT / "docker/postgres.sql").read_text()))
        psql = [str(postgres_binaries() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"]
        psql += ["-p", str(self.postgres.port), "-U", "postgres", "-f", str(script)]
        subprocess.run(psql, check=True)
        rules = Path(self.postgres.execute("SHOW hba_file"))
        rules.write_text("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        self.postgres.execute("SELECT pg_reload_conf()")

    def secret(self, name: str) -> str:
        """The text of a secret file."""
        return (self.secrets / name).read_text()

    def mapped(self, name: str, text: str) -> str:
        """A text of the compose file with the names and ports that hold on this machine for a service's process."""
        for other in ("redis:6379", "postgres:5432", "simulator:8080"):
            text = text.replace(other, f"127.0.0.1:{self.port[other.split(':')[0]]}")
        places = {
            "/run/secrets": str(self.secrets),
            "/etc/redis.conf": str(self.folder / "redis.conf"),
            "dir /data": f"dir {self.folder / 'redis'}\nport {self.port['redis']}\nbind 127.0.0.1",
            "redis-cli ": f"redis-cli -p {self.port['redis']} ",
            "0.0.0.0": "127.0.0.1",
            "8080": str(self.port["simulator"]),
            "5555": str(self.port["flower"]),
            "9464": str(self.port.get(name, 0)),
            "--print-shops": f"--print-shops --shops {SHOPS}",  # fewer than the demo's thousand
        }
        for there, here in places.items():
            text = text.replace(there, here)
        return text

    def service(self, name: str) -> dict[str, Any]:
        """The service that a process belongs to: `worker-2` is the second of service `worker`."""
        return dict(self.compose["services"][name.split("-", maxsplit=1)[0]])

    def environment(self, name: str) -> dict[str, str]:
        """What the container's environment would be, with the secrets as variables instead of files in /run/secrets."""
        service = self.service(name)
        image = {"SHOPCRAWL_DATA_DIR": str(self.folder / "data"), "SHOPCRAWL_ALLOW_ROOT": str(os.geteuid() == 0)}
        folders = [str(Path(sys.executable).parent), str(postgres_binaries()), "/usr/bin", "/bin"]
        system = {"PATH": ":".join(folders), "HOME": str(self.folder / "home"), "HOSTNAME": name}
        system["PGPORT"] = str(self.port["postgres"])
        secrets = [secret for secret in service.get("secrets", []) if secret.startswith("shopcrawl_")]
        given = service["environment"] | {secret.upper(): self.secret(secret) for secret in secrets}
        return system | image | {key: self.mapped(name, value) for key, value in given.items()}

    def start(self, name: str, *options: str) -> None:
        """Start a service's command and wait until its own health check succeeds. Raises TimeoutError."""
        if name.startswith("worker"):
            options = (*options, f"--hostname=worker@{name}")  # a container has a host name of its own
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = spawn(
                self._with_environment(name, [*self.service(name)["command"], *options]),
                cwd=self.folder / "home", log=log.fileno(), death_signal=signal.SIGKILL,
            )  # fmt: skip
        wait_until(lambda: self.is_healthy(name), within=HEALTHY_WITHIN, what=f"a healthy {name}")

    def is_healthy(self, name: str) -> bool:
        """Carry a service's health check out once. Raises RuntimeError if its process has ended."""
        process = self._processes.get(name)
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}")
        kind, *test = self.service(name)["healthcheck"]["test"]
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        return self._run(name, command).returncode == 0

    def run(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a service's own command, or another one in its place, to its end."""
        return self._run(name, list(command) or self.service(name)["command"])

    def stop(self, name: str) -> int:
        """Stop a process as `docker compose stop` does and return its exit code."""
        process = self._processes[name]
        process.terminate()
        return process.wait(40)

    @property
    def pids(self) -> dict[str, int]:
        """Every process that was started, by name."""
        return {name: process.pid for name, process in self._processes.items()}

    def _with_environment(self, name: str, command: list[str]) -> list[str]:
        variables = [f"{key}={value}" for key, value in self.environment(name).items()]
        return ["env", "-i", *variables, *(self.mapped(name, word) for word in command)]

    def _run(self, name: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._with_environment(name, command),
            cwd=self.folder / "home", capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
