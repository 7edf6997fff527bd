"""The server process itself: where it listens, what it logs, how it ends."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.servers.api import ApiServer
from tests.servers.process import wait_until
from tests.servers.rabbit import RabbitServer

SERVE = ("-c", "from bloodbank.config import load_settings as l; from bloodbank.http.server import serve; serve(l())")
KEY, SECRET = "a-key-that-nobody-may-see", "a-secret-nobody-may-see"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer(SERVE, HTTP_HOST="0.0.0.0")
    server.start()
    yield server
    server.close()


def test_without_keys_it_listens_on_loopback_only_and_says_so(server: ApiServer) -> None:
    log = server.log.read_text()
    assert "listening on loopback only" in log
    assert f"listens on 127.0.0.1 port {server.port}" in log
    assert f"http://127.0.0.1:{server.port}/\n" in log, "the explorer's address"
    # Another address of this machine, which is answered where all addresses are listened on.
    with socket.socket() as other:
        other.settimeout(2)
        assert other.connect_ex(("127.0.0.2", server.port)) != 0


def test_where_all_addresses_are_listened_on_the_explorer_is_at_localhost() -> None:
    server = ApiServer(SERVE, HTTP_HOST="0.0.0.0", BLOODBANK_API_KEYS="reader-key-of-this-test:read")
    try:
        server.start()
        assert f"http://localhost:{server.port}/\n" in server.log.read_text()
    finally:
        server.close()


def test_a_request_under_way_is_finished_before_it_ends(server: ApiServer) -> None:
    body = b'{"text": "half now, half later"}'
    head = (
        f"POST /events/a.b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.encode() + b"\r\nExpect: 100-continue\r\n\r\n")
        # The server asks for the body when the request is in its hands.
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(body[:10])
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        wait_until(lambda: "Shutting down" in server.log.read_text(), seconds=10, what="the server hears the signal")
        connection.sendall(body[10:])
        answer = connection.recv(4000)
        stopping.join()
    assert answer.startswith(b"HTTP/1.1 201"), answer


def test_a_request_that_never_ends_does_not_keep_it_from_ending() -> None:
    server = ApiServer(SERVE, BLOODBANK_STOP_TIMEOUT_SECONDS="1")
    try:
        server.start()
        head = (
            b"POST /events/a.b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")
            server.stop()
            # By itself, and not by the force that `stop` uses in the end.
            assert "Finished server process" in server.log.read_text()
    finally:
        server.close()


def test_readiness_fails_first_and_events_are_taken_until_the_delay_is_over() -> None:
    server = ApiServer(SERVE, BLOODBANK_STOP_DELAY_SECONDS="3")
    try:
        server.start()
        with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
            assert client.get("/readyz").json()["stopping"] is False
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            wait_until(lambda: client.get("/readyz").status_code == 503, seconds=10, what="readiness fails")
            ready = client.get("/readyz").json()
            assert (ready["ready"], ready["stopping"], ready["transport"]["ok"]) == (False, True, True)
            assert client.get("/livez").status_code == 200
            assert client.post("/events/a.b", json={}).status_code == 201
        stopping.join()
        log = server.log.read_text()
        assert log.count("SIGTERM came. Requests are accepted for another 3 s") == 1
        assert "Finished server process" in log
    finally:
        server.close()


@pytest.mark.rabbit
def test_a_publish_under_way_when_it_is_told_to_end_is_answered_and_kept(rabbit_server: RabbitServer) -> None:
    settings = {"RABBIT_URL": rabbit_server.url, "EXCHANGE_NAME": f"test{uuid4().hex[:12]}.events.v1"}
    server = ApiServer(SERVE, **settings, BLOODBANK_PUBLISH_TIMEOUT_SECONDS="3")
    try:
        server.start()
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client, ThreadPoolExecutor(8) as threads:
            assert client.post("/events/a.b", json={}).status_code == 201
            rabbit_server.freeze()
            publishing = [threads.submit(client.post, "/events/a.b", json={"n": number}) for number in range(8)]
            wait_until(lambda: _sent(server) >= 8, seconds=10, what="the requests are in the server's hands")
            server.stop()
            answers = [one.result() for one in publishing]
            assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(202, "queued")}
            assert "Finished server process" in server.log.read_text()
        rabbit_server.thaw()
        server.start()
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            empty = {"waiting": 0}.items()
            wait_until(lambda: empty <= client.get("/readyz").json()["outbox"].items(), seconds=60, what="it is empty")
            for answer in answers:
                assert client.get(answer.headers["location"]).status_code == 200
    finally:
        server.close()


def _sent(server: ApiServer) -> int:
    """Return how many connections the server has accepted, as the kernel lists them (Linux)."""
    local = f"0100007F:{server.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == local and row[3] == "01" for row in rows)


CHUNKED = b"POST /events/a.b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"


@pytest.mark.parametrize(
    "begin",
    [b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: ", b"GET /livez?q=", b"GET", CHUNKED + b"X-Behind: "],
)
def test_a_head_that_never_ends_is_cut_off(server: ApiServer, begin: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(begin)
            for _ in range(100):
                connection.sendall(b"a" * 65_536)
            answer = connection.recv(4000)
        assert answer[:12] in (b"", b"HTTP/1.1 400")
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/livez").status_code == 200


def test_fields_behind_a_body_that_never_end_are_cut_off(server: ApiServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(CHUNKED)
        with pytest.raises(ConnectionError):
            connection.sendall((b"X-Behind: " + b"a" * 1000 + b"\r\n") * 100_000)


def test_a_body_in_many_small_chunks_is_read_whole(server: ApiServer) -> None:
    text = b"x" * 100_000
    chunks = (piece for piece in (b'{"text": "', *(text[at : at + 7] for at in range(0, len(text), 7)), b'"}'))
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        response = client.post("/events/a.b", content=chunks, headers={"Content-Type": "application/json"})
        assert response.status_code == 201
        read = client.get(response.headers["Location"]).json()
    assert read["payload"] == {"text": text.decode()}


def test_many_requests_on_one_connection_are_answered_whatever_they_add_up_to(server: ApiServer) -> None:
    body = b'{"text": "' + b"x" * 100_000 + b'"}'
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for _ in range(3):
            response = client.post("/events/a.b", content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 201
    get = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Some: " + b"a" * 2000 + b"\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(get * 100)
        answers = b""
        while answers.count(b'{"ok":true}') < 100:
            received = connection.recv(65_536)
            assert received, answers[-1000:]
            answers += received


def test_the_log_holds_no_secrets() -> None:
    settings = {"BLOODBANK_API_KEYS": f"{KEY}:admin", "BLOODBANK_FIREFLIES_SECRETS": SECRET}
    server = ApiServer(SERVE, HTTP_HOST="127.0.0.1", BLOODBANK_LOG_LEVEL="DEBUG", **settings)
    try:
        server.start()
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            assert client.get("/events", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
            assert client.get("/events", headers={"X-API-Key": f"{KEY}x"}).status_code == 401
            assert client.post("/webhooks/fireflies", json={}).status_code == 401
        server.stop()
        log = server.log.read_text()
    finally:
        server.close()
    assert "GET /events" in log
    assert KEY not in log
    assert SECRET not in log


def test_a_wrong_setting_stops_the_documented_command_with_one_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "BLOODBANK_DATA_DIR": str(tmp_path), "BLOODBANK_PAGE_LIMIT": "many"}
    done = subprocess.run(
        [sys.executable, "-m", "uvicorn", "event_producers.http:app", "--port", "0"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "Wrong setting. BLOODBANK_PAGE_LIMIT: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_application_is_imported_with_nothing_configured(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BLOODBANK_")}
    command = [sys.executable, "-W", "error", "-c", "from event_producers.http import app; print(app.title)"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("Bloodbank\n", "")
    assert list(tmp_path.iterdir()) == []
