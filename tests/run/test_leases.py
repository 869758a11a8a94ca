"""Several processes in one run folder: each cell is computed once, the dead are taken over from, nothing is left."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from counted import Counted, carry_out, cell, plan_of, record, without_artefacts

from longeval.backends.base import BackendError
from longeval.errors import LongEvalError, WriteError
from longeval.run import leases as module
from longeval.run.engine import run
from longeval.run.host import Silent
from longeval.run.leases import LEASES, RUNNERS, Lease, Leases, Runner, leases, runners
from longeval.store.folder import Store

PROGRAM = Path(__file__).parent / "counted.py"


@pytest.fixture(autouse=True)
def from_nothing(monkeypatch):
    monkeypatch.setattr("longeval.store.folder.artefact_of", without_artefacts)


@pytest.fixture
def quick(monkeypatch):
    """A runner of another machine is dead after a second."""
    monkeypatch.setattr(module, "STALE_S", 1.0)
    monkeypatch.setattr(module, "POLL_S", 0.05)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture(params=["local", "memory", "s3"])
def place(request, tmp_path):
    """The address of a run folder that doesn't exist yet."""
    if request.param == "local":
        return str(tmp_path / "run")
    if request.param == "memory":
        return f"memory://run-{uuid.uuid4().hex}"
    return f"{request.getfixturevalue('s3_bucket')}/run"


def start(folder, log, names, *options):
    command = [sys.executable, str(PROGRAM), str(folder), str(log), *names, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answer(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def lines(log, what):
    """The cells that have begun or ended, in order."""
    text = log.read_text() if log.exists() else ""
    return [line.split()[1] for line in text.splitlines() if line.startswith(what)]


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def claimed(one, name):
    """Whether a process gets a cell."""
    return one.claim(Counted((cell(name),), Path(os.devnull))) is not None


def left(store):
    """What is in the folder of the processes and their leases."""
    return store.names(LEASES), store.names(RUNNERS)


def another(store, **changes):
    """Writes the file of a process of another machine that has just given a sign of life."""
    me = Leases(store, print)._me
    fields = {"id": uuid.uuid4().hex, "machine": "another", "beat": time.time()} | changes
    made = dataclasses.replace(me, **fields)
    store.write_text(f"{RUNNERS}/{made.id}.json", json.dumps(dataclasses.asdict(made)))
    return made


def lease_file(store, name, runner):
    text = json.dumps(dataclasses.asdict(Lease(runner=runner, since="2026-01-02T03:04:05+00:00")))
    assert store.create_text(f"{LEASES}/{name}", text + "\n")


class Interrupted(Silent):
    """Ctrl-C comes with the first cell."""

    def finished(self, record):
        raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_two_commands_at_once_compute_each_cell_once_and_both_have_all_records(place, log):
    one, two = [*"abcdefgh"], [*"hgfedcxy"]
    processes = [start(place, log, names, "--seconds=0.1") for names in (one, two)]
    answers = [answer(process) for process in processes]
    assert sorted(lines(log, "ended")) == sorted(lines(log, "began")) == sorted({*one, *two})
    assert [found["cells"] for found in answers] == [one, two]
    assert sum(found["computed"] for found in answers) == 10 and sum(found["reused"] for found in answers) == 6
    store = Store(place, create=False)
    assert {tuple(cell.cell for cell in request.cells) for request in store.plan().requests} == {
        (*one,),
        (*two,),
    }
    assert store.read_text("spec.yaml").count("model:") == 2
    assert left(store) == ([], [])


def test_requests_of_many_commands_that_begin_at_once_all_come_into_the_plan(tmp_path, log):
    names = [f"cell-{number}" for number in range(6)]
    together, folder = threading.Barrier(len(names)), tmp_path / "run"

    def begin(name):
        store = Store(str(folder))
        together.wait()
        carry_out(store, log, [name])

    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(begin, names))
    assert sorted(cell.cell for cell in Store(str(folder)).plan().cells) == names


def test_after_kill_9_another_command_of_the_machine_goes_on_at_once(store, log):
    killed = start(store.path, log, ["a", "b", "c"], "--hang=b")
    wait_until(lambda: "b" in lines(log, "began"))
    killed.kill()  # nobody has waited for it yet, so the system still lists it
    began = time.monotonic()
    result = carry_out(store, log, ["a", "b", "c"])
    assert time.monotonic() - began < 10 < module.STALE_S
    assert (result.computed, result.reused) == (2, 1)
    assert sorted(lines(log, "ended")) == ["a", "b", "c"]
    assert left(store) == ([], []) and not (Path(store.path) / RUNNERS).exists()
    killed.communicate()


def test_what_the_other_has_stored_or_failed_meanwhile(store, log, quick):
    busy = another(store)
    for name in "ab":
        lease_file(store, name, busy.id)

    def end():
        time.sleep(0.3)
        store.save([record(cell("a"))])
        store.save([record(cell("b"), value=None, status="failed", error="no room")])
        for name in "ab":
            store.remove(f"{LEASES}/{name}")

    told = []
    ending = threading.Thread(target=end)
    ending.start()
    progress = Silent()
    progress.note = told.append
    result = carry_out(store, log, [*"abc"], progress)
    ending.join()
    assert (result.computed, result.reused) == (2, 1)
    assert lines(log, "ended") == ["c", "b"]  # what is free comes first
    assert [found.status for found in result.records] == ["ok"] * 3
    (note,) = told
    assert f"process {busy.pid} on {busy.host}" in note and "2 cells" in note


@pytest.mark.parametrize("beats", [True, False])
def test_a_process_of_another_machine_counts_as_dead_when_it_gives_no_sign_of_life(store, log, quick, beats):
    busy = another(store)
    lease_file(store, "a", busy.id)
    began = time.monotonic()

    def live():
        for _ in range(10):
            time.sleep(0.2)
            another(store, id=busy.id, beat=time.time())
        store.save([record(cell("a"))])
        store.remove(f"{LEASES}/a")

    living = threading.Thread(target=live)
    if beats:
        living.start()
    result = carry_out(store, log, ["a"])
    assert result.computed == (0 if beats else 1)
    assert time.monotonic() - began > (2.0 if beats else 0.9)
    if beats:
        living.join()
    assert left(store)[0] == []


def test_a_number_that_another_process_has_now_is_no_sign_of_life(store):
    here = Leases(store, print)._me
    assert here.alive
    assert not dataclasses.replace(here, started=here.started - 3600).alive
    assert not dataclasses.replace(here, pid=2**22 + 1).alive
    assert not dataclasses.replace(here, machine="another", beat=time.time() - module.STALE_S - 1).alive


def test_a_chain_of_dead_processes_is_continued_and_removed(place):
    store = Store(place)
    dead = [another(store, beat=0.0).id for _ in range(3)]
    for name, runner in zip(("a", f"a.{dead[0]}", f"a.{dead[1]}"), dead, strict=True):
        lease_file(store, name, runner)
    one, two = Leases(store, print), Leases(Store(place), print)
    assert claimed(one, "a") and not claimed(two, "a")
    assert leases(store)["a"].runner == one._me.id and leases(store)["a"].cell.task == "a"
    one.release("a")
    assert store.names(LEASES) == []
    assert claimed(two, "a") and not claimed(one, "a")
    two.close()
    one.close()
    assert left(store) == ([], [])


def test_of_many_that_want_a_cell_one_has_it_even_where_some_die(store, monkeypatch):
    """Each of them takes the cell again and again; now and then one dies with it."""
    inside, most, taken, alone = [], [], [], threading.Lock()
    end = time.monotonic() + 2.0

    def want(number):
        mine, turns = Leases(store, print), 0
        while time.monotonic() < end:
            if not claimed(mine, "a"):
                continue
            with alone:
                inside.append(number)
                most.append(len(inside))
            time.sleep(0.0005 * (number % 3))
            with alone:
                inside.remove(number)
                taken.append(number)
            turns += 1
            if turns % 3:
                mine.release("a")
            else:
                store.remove(f"{RUNNERS}/{mine._me.id}.json")
                mine._ended.set()
                mine = Leases(store, print)
        mine.close()

    monkeypatch.setattr(module, "POLL_S", 0.0)  # whether a process lives is looked up each time
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(want, range(6)))
    assert max(most) == 1 and len(taken) > 30 and len(set(taken)) == 6


class Between(Store):
    """A store in which something happens just before a file is made."""

    def __init__(self, path, name, happens):
        super().__init__(path)
        self._name, self._happens = name, happens

    def create_text(self, name, text):
        if name == f"{LEASES}/{self._name}":
            self._name = None
            self._happens()
        return super().create_text(name, text)


def test_a_cell_that_another_process_has_taken_done_and_removed_meanwhile(store):
    """Between the look at the dead process and the own file, a second takes over and ends, and a third begins."""
    dead = another(store, beat=0.0).id
    lease_file(store, "a", dead)
    second, third = Leases(store, print), Leases(store, print)

    def happens():
        assert claimed(second, "a")
        second.release("a")
        assert claimed(third, "a")

    first = Leases(Between(store.path, f"a.{dead}", happens), print)
    assert not claimed(first, "a")
    assert store.names(LEASES) == ["a"] and leases(store)["a"].runner == third._me.id
    assert not claimed(second, "a")


def test_a_lease_that_another_process_tidies_away_meanwhile(store):
    dead = another(store, beat=0.0).id
    lease_file(store, "a", dead)
    second = Leases(store, print)

    def happens():
        assert claimed(second, "b")
        second.close()  # which removes what the dead one left

    first = Leases(Between(store.path, f"a.{dead}", happens), print)
    assert not claimed(first, "a") and store.names(LEASES) == []
    assert claimed(first, "a")


def test_what_is_being_tidied_away_cannot_be_taken(store):
    lease_file(store, "a", another(store, beat=0.0).id)
    first, taken = Leases(store, print), []

    class Removing(Store):
        def remove(self, name):
            if name == f"{LEASES}/a" and not taken:
                taken.append(claimed(first, "a"))
            super().remove(name)

    tidies = Leases(Removing(store.path), print)
    assert claimed(tidies, "b")
    tidies.close()
    assert taken == [False] and store.names(LEASES) == []
    assert claimed(first, "a")


def test_a_process_that_was_killed_while_it_removed_its_chain(store):
    """It has removed the first file, and not its own: nobody may continue that chain."""
    dead, killed = (another(store, beat=0.0).id for _ in range(2))
    lease_file(store, "a", dead)
    lease_file(store, f"a.{dead}", killed)
    first = Leases(Between(store.path, f"a.{killed}", lambda: store.remove(f"{LEASES}/a")), print)
    other = Leases(store, print)
    assert not claimed(first, "a") and claimed(other, "a")
    other.close()
    assert store.names(LEASES) == []


def test_a_file_without_its_content_is_that_of_a_dead_process_after_a_moment(store, quick):
    store.write_text(f"{LEASES}/a", "")
    writing = threading.Timer(0.02, lambda: store.write_text(f"{LEASES}/a", living_lease))
    living = another(store)
    living_lease = json.dumps(dataclasses.asdict(Lease(runner=living.id, since="now")))
    one = Leases(store, print)
    writing.start()
    assert not claimed(one, "a")
    store.write_text(f"{LEASES}/b", "")
    assert claimed(one, "b")


def test_a_lease_that_was_taken_just_before_an_interrupt_is_not_lost(store):
    one = Leases(store, print)
    assert claimed(one, "a")
    del one._held["a"]
    assert claimed(one, "a") and leases(store)["a"].runner == one._me.id
    del one._held["a"]
    one.close()
    assert left(store) == ([], [])


def test_a_fresh_command_waits_for_the_other_and_computes_the_cell_again(store, log):
    carry_out(store, log, ["a", "b"])
    running = start(store.path, log, ["b", "c"], "--seconds=0.5", "--fresh")
    wait_until(lambda: lines(log, "began").count("b") == 2)
    result = carry_out(store, log, ["a", "b"], fresh=True)
    assert (result.computed, result.reused) == (2, 0)
    assert lines(log, "began").count("b") == 3
    assert answer(running)["computed"] == 2
    order = [line.split()[0] for line in log.read_text().splitlines() if line.split()[1] == "b"]
    assert order == ["began", "ended"] * 3  # never at the same time


def test_a_fresh_start_leaves_the_files_of_cells_that_another_command_computes(store, log):
    lease_file(store, "b", another(store).id)
    seen = []

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Cleared(type(plan_of())):
        def clear(self, store, busy):
            seen.append(sorted(busy))

    plan = plan_of(Counted((cell("a"),), log))
    plan = Cleared(request=plan.request, cells=(*plan.cells, cell("b")), work=plan.work, notes=())
    with pytest.raises(KeyError):  # nothing computes the other cell here
        run(plan, store, Silent(), fresh=True)
    assert seen == [["b"]]


def test_a_folder_that_is_only_read_gets_no_leases(tmp_path, log):
    carry_out(Store(str(tmp_path / "run")), log, ["a"])
    store = Store(str(tmp_path / "run"), read_only=True)
    one = Leases(store, print)
    work = Counted((cell("a"),), log)
    assert one.claim(work) is work
    with one.alone("plan"):
        pass
    one.close()
    assert left(store) == ([], [])


@pytest.mark.parametrize("ends", ["well", "interrupted", "with an error", "without room"])
def test_nothing_is_left_however_a_command_ends(tmp_path, log, monkeypatch, ends):
    folder = tmp_path / "runs" / "new" / "run"
    store = Store(str(folder))
    if ends == "well":
        carry_out(store, log, ["a"])
    elif ends == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            carry_out(store, log, ["a", "b"], Interrupted())
    else:
        error = {"with an error": BackendError("no weights"), "without room": WriteError("disk full")}[ends]

        def fail(self, what, one):
            raise error

        def full(self, name, text):
            raise error

        monkeypatch.setattr(Counted, "say", fail)
        if ends == "without room":
            monkeypatch.setattr(Store, "create_text", full)
        with pytest.raises(type(error)):
            carry_out(store, log, ["a", "b"])
        assert [path.name for path in tmp_path.iterdir()] == []
        return
    assert left(store) == ([], [])
    assert {path.name for path in folder.iterdir()} == {"cells", "plan.json", "spec.yaml"}


def test_an_interrupt_before_the_first_cell_leaves_no_folder(tmp_path, log):
    running = start(tmp_path / "runs" / "run", log, ["a"], "--hang=a")
    wait_until(lambda: lines(log, "began"))
    assert runners(Store(str(tmp_path / "runs" / "run")))[0].pid == running.pid
    running.send_signal(2)
    running.communicate(timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_processes_of_a_launcher_cannot_wait_for_another_command(store, log, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    lease_file(store, "a", another(store).id)
    with pytest.raises(LongEvalError, match="1 cell"):
        carry_out(store, log, ["a", "b"])
    assert len(store.names(LEASES)) == len(store.names(RUNNERS)) == 1
    store.remove(f"{LEASES}/a")
    assert carry_out(store, log, ["a", "b"]).computed == 2


def test_a_runner_tells_of_itself_while_it_computes(place, quick, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    store = Store(place)
    one = Leases(store, print, seconds_left=lambda: 12.0)
    one.set_workers(3)
    assert claimed(one, "a") and claimed(one, "b")
    one.release("a")
    first = runners(store)[0]
    wait_until(lambda: runners(store)[0].beat > first.beat and runners(store)[0].finished == 1)
    (told,) = runners(store)
    assert isinstance(told, Runner) and told.alive
    assert (told.pid, told.workers, told.seconds_left) == (os.getpid(), 3, 12.0)
    one.close()
    assert left(store) == ([], [])


def test_the_beating_outlasts_errors_of_the_file_system(store, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    one = Leases(store, print)
    assert claimed(one, "a")
    calls, real = [], store.write_text

    def failing(name, text):
        calls.append(name)
        if len(calls) < 3:
            raise RuntimeError("a package of the file system")
        real(name, text)

    monkeypatch.setattr(store, "write_text", failing)
    wait_until(lambda: len(calls) > 4)
    one.close()
