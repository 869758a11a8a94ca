"""`longeval view`: the page as a file, and the server of a run under way."""

import http.client
import json
import signal
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from records import make_nll, make_records, make_run

from longeval.cli.app import run_app
from longeval.cli.live import LivePage
from longeval.store.folder import Store

NLL = make_nll([[2.0] * 31] * 12)
RUN = "runs/demo"


@pytest.fixture
def run(here, quick_pictures):
    return make_run(RUN, [(make_records("none", 32, NLL), NLL)])


@pytest.fixture
def opened(monkeypatch):
    """The addresses that a browser was asked to open."""
    places = []
    monkeypatch.setattr(webbrowser, "open", lambda place: places.append(place) or True)
    return places


def test_it_writes_the_page_and_opens_it(run, opened, capsys):
    assert run_app(["view", RUN, "--out", "demo.html"]) == 0
    place = str(Path("demo.html").absolute())
    assert capsys.readouterr().out == f"{place}\n" and opened == [f"file://{place}"]
    assert "toy on texts" in Path("demo.html").read_text()
    assert run_app(["view", RUN, "--no-open"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.name == "report.html" and path.is_file() and len(opened) == 1
    path.unlink()
    path.parent.rmdir()


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--out", "demo.md"], "--out"), (["--port", "8000"], "--live"), (["--live", "--out", "demo.html"], "--live")],
)
def test_what_cannot_be_is_refused(refused, run, flags, named):
    assert named in refused(["view", RUN, *flags])


def test_without_cells_nothing_is_written(refused):
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/file").touch()
    assert "empty" in refused(["view", "empty", "--no-open"])
    assert "missing" in refused(["view", "missing", "--no-open"])
    assert "other" in refused(["view", "other", "--live", "--no-open"])


@pytest.fixture
def view_live(here):
    """Starts `view --live` in another process, which ends with the test."""
    command = [sys.executable, "-m", "longeval", "view", RUN, "--live", "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_is_not_there_yet_is_waited_for(view_live):
    assert RUN in view_live.stderr.readline()
    assert not Path("runs").exists() and view_live.poll() is None
    make_run(RUN, [(make_records("none", 32, NLL), NLL)])
    address = view_live.stdout.readline().strip().removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/")
    assert "toy on texts" in connection.getresponse().read().decode()


def test_waiting_ends_by_ctrl_c(view_live):
    view_live.stderr.readline()
    view_live.send_signal(signal.SIGINT)
    _, err = view_live.communicate(timeout=20)
    assert (view_live.returncode, err) == (130, "longeval: interrupted\n") and not Path("runs").exists()


@pytest.fixture
def server(run, view_live):
    """A server in another process, and a function that asks it."""
    process = view_live
    address = process.stdout.readline().strip().removeprefix("http://").rstrip("/")

    def ask(path, **headers):
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())

    return process, address, ask


def test_a_server_shows_what_is_stored_to_this_machine_alone(server):
    process, address, ask = server
    assert address.startswith("127.0.0.1:")
    status, page, headers = ask("/")
    progress = json.loads(ask("/progress")[1])
    assert status == 200 and f'data-version="{progress.pop("version")}"' in page and "toy on texts" in page
    assert "connect-src 'self'" in headers["Content-Security-Policy"]
    assert progress == {"is_running": False, "text": "1 of 1 cell done. Nothing runs in it now"}
    assert ask("/", Host=f"LOCALHOST:{address.split(':')[1]}")[0] == 200
    assert ask("/", Host="evil.example")[0] == 403
    assert ask("/progress", Host=f"evil.example:{address.split(':')[1]}")[0] == 403
    assert ask("/../etc/passwd")[0] == 404
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "longeval: interrupted\n")


@pytest.mark.browser
def test_a_live_page_is_renewed_when_cells_are_stored(server, browser):
    page = browser.new_page()
    page.goto(f"http://{server[1]}/")
    page.get_by_text("1 of 1 cell done").wait_for(timeout=20_000)
    Store(RUN).save(make_records("yarn", 32, NLL), NLL)
    page.locator("tbody th", has_text="yarn").first.wait_for(timeout=30_000)
    page.close()


@pytest.mark.browser
def test_what_a_reader_has_opened_stays_until_they_ask_for_new_cells(server, browser):
    page = browser.new_page()
    page.goto(f"http://{server[1]}/")
    page.get_by_text("Values").first.click()
    Store(RUN).save(make_records("yarn", 32, NLL), NLL)
    page.get_by_role("button", name="Show new cells").wait_for(timeout=30_000)
    assert page.locator("tbody th", has_text="yarn").count() == 0
    page.get_by_role("button", name="Show new cells").click()
    page.locator("tbody th", has_text="yarn").first.wait_for(timeout=30_000)
    page.close()


def test_a_cell_that_replaces_a_failed_one_makes_another_page(run):
    folder = make_run("other", [(make_records("pi", 32, status="failed", error="out of memory"), None)])
    live = LivePage([folder])
    before, page = live.progress()["version"], live.html()
    assert "out of memory" in page
    Store(folder).save(make_records("pi", 32, NLL), NLL)
    live._look_again_at = 0.0
    assert live.progress()["version"] != before
    assert "out of memory" not in live.html()
