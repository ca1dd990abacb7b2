"""The service on Ray Serve as users start it, with the fake engine: streams, limits, failures, web page, fuzzing."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from hfray.config.compose import load_settings
from hfray.config.serve import ServeSettings
from hfray.errors import SettingsError
from hfray.serve.server import check
from tests.conftest import run_job
from tests.processes import WAIT_SECONDS, named, open_ports
from tests.serving import Server, free_port, serving

pytestmark = pytest.mark.server
STEP = 0.1  # seconds of a step of the slow engine; a step makes one token


@pytest.fixture(scope="module")
def slow():
    """One replica that runs two completions at once, makes one token per step, and lets four completions wait."""
    options = (f"backend.step_seconds={STEP}", "backend.tokens_per_step=1", "backend.batch_size=2", "serve.max_queue=4")
    with serving("conf=fake", *options) as server:
        yield server


@pytest.fixture(scope="module")
def pair():
    """Two fast replicas; a prompt with DIE kills its replica."""
    with serving("conf=fake", "backend.die_on=DIE", "serve.replicas=2", "serve.max_request_bytes=100000") as server:
        yield server


def long_request(server: Server, tokens: int = 200, stream: bool = True) -> tuple:
    body = {"prompt": "x", "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    return "POST", f"{server.url}/v1/completions", body


def test_tokens_arrive_as_they_are_generated(slow):
    method, url, body = long_request(slow)
    steps = slow.metric("hfray_engine_steps_total")
    with httpx.stream(method, url, json=body, timeout=30) as response:
        events = (line for line in response.iter_lines() if line.startswith("data: {"))
        first = [json.loads(line.removeprefix("data: "))["choices"][0] for line in itertools.islice(events, 8)]
        assert slow.metric("hfray_completions_running") == 1
        assert slow.metric("hfray_engine_steps_total") - steps < 100  # of 200
    assert all(choice["text"] and choice["finish_reason"] is None for choice in first)
    slow.wait_for("hfray_completions_running", 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_slot(slow, stream, record_property):
    method, url, body = long_request(slow, stream=stream)
    with ThreadPoolExecutor(1) as pool, httpx.Client(timeout=30 if stream else 5) as client:
        if stream:
            with client.stream(method, url, json=body) as response:
                lines = response.iter_lines()  # kept: httpx closes the connection when the iterator is collected
                next(lines)
                slow.wait_for("hfray_completions_running", 1)
        else:
            asked = pool.submit(client.request, method, url, json=body)
            slow.wait_for("hfray_completions_running", 1)
            with pytest.raises(httpx.ReadTimeout):
                asked.result()
        steps = slow.metric("hfray_engine_steps_total")
    slow.wait_for("hfray_completions_running", 0)
    took = slow.metric("hfray_engine_steps_total") - steps
    record_property("steps_until_free", took)
    print(f"the slot is free {took:.0f} steps after the client disconnected")
    assert took <= 30  # of 200 steps: the proxy and a busy machine delay the news of the disconnect


def test_requests_beyond_the_queue_are_refused_immediately_and_the_others_are_answered(slow):
    method, url, body = long_request(slow, 25, stream=False)

    def ask(_: int) -> tuple[int, float, str | None]:
        response = httpx.request(method, url, json=body, timeout=60)
        assert response.headers["content-type"] == "application/json"
        return response.status_code, response.elapsed.total_seconds(), response.headers.get("retry-after")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    answered = [status for status, _, _ in answers].count(200)
    assert (
        6 <= answered < 20
    )  # two run and four wait; on a slow machine some requests arrive after the first have ended
    assert {status for status, _, _ in answers} == {200, 503}
    soonest = min(seconds for status, seconds, _ in answers if status == 200)
    assert all(retry and seconds < soonest for status, seconds, retry in answers if status == 503)
    slow.wait_for("hfray_completions_admitted", 0)


def test_the_page_in_a_browser(slow, tmp_path):
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
        f"--disable-sync --no-first-run --user-data-dir={tempfile.mkdtemp(dir=tmp_path)}"
    ).split():
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=Service(driver)) as page:
        page.get(slow.url)
        wait = WebDriverWait(page, WAIT_SECONDS, poll_frequency=0.05)
        wait.until(lambda _: page.find_element(By.ID, "model").text == "fake")
        page.find_element(By.ID, "send").click()
        lengths = set()

        def done(_: object) -> bool:
            lengths.add(len(page.find_element(By.ID, "text").text))
            return "finish reason" in page.find_element(By.ID, "state").text

        wait.until(done)
        assert len(lengths) > 4  # the text grew token by token
        assert re.search(r"\d+ tokens · \d+\.\d tokens/s · first token", page.find_element(By.ID, "state").text)
        page.find_element(By.CSS_SELECTOR, "input[value=record]").click()
        page.find_element(By.ID, "send").click()
        wait.until(lambda _: page.find_element(By.ID, "row").is_displayed())
        row = json.loads(page.find_element(By.ID, "row").text)
        assert row["question"] == "Why is the sky blue?"
        assert row["generated_text"] == page.find_element(By.ID, "text").get_property("textContent")
        page.find_element(By.CSS_SELECTOR, "input[value=prompt]").click()
        page.find_element(By.ID, "send").click()
        wait.until(lambda _: page.find_element(By.ID, "text").text)
        page.find_element(By.ID, "stop").click()
        wait.until(lambda _: page.find_element(By.ID, "state").text == "Stopped.")
        assert page.get_log("browser") == []
    slow.wait_for("hfray_completions_running", 0)


def test_clients_of_a_killed_replica_get_an_error_in_the_form_of_openai(slow):
    method, url, body = long_request(slow)
    with ThreadPoolExecutor(1) as pool, httpx.stream(method, url, json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        whole = pool.submit(httpx.request, method, url, json=body | {"stream": False}, timeout=60)
        slow.wait_for("hfray_completions_running", 2)
        for replica in replicas(slow):
            psutil.Process(replica).kill()
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"
        answer = whole.result()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "replica_lost"
    deadline = time.monotonic() + WAIT_SECONDS
    while httpx.get(f"{slow.url}/health", timeout=30).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_errors_of_the_proxy_have_the_form_of_openai(slow):
    method, url, body = long_request(slow, stream=False)
    for headers, status, code in [
        ({"serve_multiplexed_model_id": b"\xff"}, 400, "invalid_header"),
        ({"x-request-id": b"\xff"}, 400, "invalid_header"),
        ({"x-request-timeout-seconds": "0.5"}, 408, "timeout"),
    ]:
        answer = httpx.request(method, url, json=body, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), headers
    slow.wait_for("hfray_completions_running", 0)


def test_running_requests_are_finished_when_the_service_stops(slow):
    """The last test of the slow server: it stops the server as Ctrl-C at a terminal does, with a signal to all processes."""
    method, url, body = long_request(slow, 60)
    with httpx.stream(method, url, json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        os.killpg(slow.process.pid, signal.SIGINT)
        deadline = time.monotonic() + WAIT_SECONDS
        while httpx.get(f"{slow.url}/health", timeout=30).status_code == 200:
            assert time.monotonic() < deadline
        late = httpx.request(method, url, json=body, timeout=30)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "stopping"
    assert int(late.headers["retry-after"]) >= 1
    assert slow.process.wait(60) == 130
    assert "Traceback" not in slow.log.read_text()


def test_fuzzing_finds_no_server_error(pair, tmp_path):
    """Valid and invalid requests, generated from the OpenAPI document of the service, get the responses it documents."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    done = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            *("run", f"{pair.url}/openapi.json", "--max-examples=20", "--generation-deterministic"),
            *(f"--checks={checks},negative_data_rejection", "--phases=coverage,fuzzing"),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
    )
    print(done.stdout[-300:])
    assert done.returncode == 0, done.stdout


def test_metrics_show_both_replicas(pair):
    for i in range(20):
        httpx.post(f"{pair.url}/v1/completions", json={"prompt": f"p{i}"}, timeout=30)
    deadline = time.monotonic() + WAIT_SECONDS
    while (pair.metric("hfray_engine_capacity")) != 128:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_dead_replica_is_replaced_while_the_other_answers(pair):
    before = set(replicas(pair))
    assert len(before) == 2
    statuses: list[int] = []
    stop = threading.Event()

    def ask_until_stopped() -> None:
        while not stop.is_set():
            statuses.append(httpx.post(f"{pair.url}/v1/completions", json={"prompt": "x"}, timeout=60).status_code)

    asker = threading.Thread(target=ask_until_stopped)
    asker.start()
    try:
        httpx.post(f"{pair.url}/v1/completions", json={"prompt": "DIE"}, timeout=60)
        deadline = time.monotonic() + WAIT_SECONDS
        while len(now := set(replicas(pair))) != 2 or now == before:
            assert time.monotonic() < deadline, (before, now)
            time.sleep(0.2)
    finally:
        stop.set()
        asker.join()
    assert statuses.count(200) > 5
    assert sum(status != 200 for status in statuses) <= 1  # the request that was in the dead replica


def replicas(server: Server) -> list[int]:
    """Process ids of the server's replicas."""
    return [process.pid for process in named(server.process.pid, "ServeReplica:hfray:Engine")]


def test_every_port_is_on_loopback(pair):
    ports = open_ports(pair.process.pid)
    assert ("127.0.0.1", pair.port) in ports
    assert {address for address, _ in ports} == {"127.0.0.1"}, ports


def test_a_port_that_is_taken_starts_nothing(pair):
    done = run_job("conf=fake", f"serve.port={pair.port}", module="jobs.serve", timeout=60)
    assert done.returncode == 2, done.stderr
    assert f"serve.port={pair.port}: cannot listen on" in done.stderr


def test_keys_and_template_are_checked_before_anything_starts():
    for option, message in [("serve.api_keys=env:NO_SUCH_KEYS", "NO_SUCH_KEYS"), ("prompt.template='{'", "template")]:
        with pytest.raises(SettingsError, match=message):
            check(load_settings(["conf=fake", option], ServeSettings))


def test_haproxy_needs_keys(monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setenv("TEST_KEYS", "key")
    with pytest.raises(SettingsError, match="RAY_SERVE_ENABLE_HA_PROXY"):
        check(load_settings(["conf=fake", f"serve.port={free_port()}"], ServeSettings))
    options = ["conf=fake", f"serve.port={free_port()}", "serve.api_keys=env:TEST_KEYS"]
    check(load_settings(options, ServeSettings))
