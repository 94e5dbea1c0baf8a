import dataclasses
import datetime
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from scale_ray.config import Part
from scale_ray.errors import RunFailed, UserError
from scale_ray.store import lease


def claims(store: Path) -> list[Path]:
    return sorted((store / "leases").glob("*.json"))


def leave_claim(store: Path, *, token: str = "0", silent_s: float = 0.0, **changes) -> lease.Claim:
    """Leave the claim of another writer: a running process of another host, unless changed."""
    claim = dataclasses.replace(lease.Claim.mine(), token=token, **{"host": "elsewhere"} | changes)
    lease._write(f"{store}/leases", claim)
    then = time.time() - silent_s
    os.utime(store / "leases" / f"{token}.json", (then, then))
    return claim


@pytest.mark.slow
def test_a_second_writer_is_told_who_holds_the_store(tmp_path):
    with lease.write_lease(str(tmp_path)) as first:
        with pytest.raises(UserError, match=f"found process {os.getpid()} on "), lease.write_lease(str(tmp_path)):
            pytest.fail("two writers at once")
        first.check()
        assert len(claims(tmp_path)) == 1
    assert claims(tmp_path) == []


@pytest.mark.parametrize("token", ["0", "z"])
def test_a_living_writer_of_another_host_is_respected_whatever_its_token(tmp_path, monkeypatch, token):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.3)
    leave_claim(tmp_path, token=token)
    with pytest.raises(UserError, match="on elsewhere, since"), lease.write_lease(str(tmp_path)):
        pytest.fail("two writers at once")
    assert [path.stem for path in claims(tmp_path)] == [token]


def test_a_minutes_silence_frees_the_store(tmp_path):
    leave_claim(tmp_path, silent_s=61)
    with lease.write_lease(str(tmp_path)):
        assert [path.stem for path in claims(tmp_path)] != ["0"]
        assert len(claims(tmp_path)) == 1


def test_a_dead_process_of_this_host_frees_the_store_at_once(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    leave_claim(tmp_path, host=lease.Claim.mine().host, process=child.pid)
    with lease.write_lease(str(tmp_path)):
        assert len(claims(tmp_path)) == 1


def test_another_process_of_the_same_number_does_not_count_as_alive(tmp_path):
    leave_claim(tmp_path, host=lease.Claim.mine().host, process_began_s=1.0)
    with lease.write_lease(str(tmp_path)):
        assert len(claims(tmp_path)) == 1


def test_a_living_writer_of_this_host_is_respected_whatever_the_clocks_say(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.3)
    leave_claim(tmp_path, host=lease.Claim.mine().host, silent_s=3600)
    with pytest.raises(UserError, match=f"found process {os.getpid()} on "), lease.write_lease(str(tmp_path)):
        pytest.fail("two writers at once")
    assert [path.stem for path in claims(tmp_path)] == ["0"]


def test_a_set_clock_does_not_change_who_a_process_is(monkeypatch):
    claim = lease.Claim.mine()
    later_s = psutil.boot_time() + 3600
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: later_s)
    assert claim.is_alive()


def test_the_same_process_number_on_another_machine_of_this_name_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.3)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    here = lease.Claim.mine().host
    leave_claim(tmp_path, host=here, process=child.pid, machine="another")
    with pytest.raises(UserError, match=f"on {here}"), lease.write_lease(str(tmp_path)):
        pytest.fail("two writers at once")


def test_a_claim_of_an_earlier_version_counts_by_its_age(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.3)
    leave_claim(tmp_path)
    path = claims(tmp_path)[0]
    values = json.loads(path.read_text())
    del values["machine"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="on elsewhere"), lease.write_lease(str(tmp_path)):
        pytest.fail("two writers at once")
    long_ago = time.time() - 61
    os.utime(path, (long_ago, long_ago))
    with lease.write_lease(str(tmp_path)):
        assert len(claims(tmp_path)) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"17", b'{"token": 5}', b"\xff\xfe\x00", b"{}"])
def test_a_claim_that_cannot_be_read_blocks_for_a_minute_and_no_longer(tmp_path, monkeypatch, capsys, content):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.2)
    path = tmp_path / "leases" / "broken.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read, broken.json"), lease.write_lease(str(tmp_path)):
        pytest.fail("it may be a writer's")
    long_ago = time.time() - 61
    os.utime(path, (long_ago, long_ago))
    with lease.write_lease(str(tmp_path)):
        assert not path.exists()
    assert "removed a claim that cannot be read, broken.json" in capsys.readouterr().err


def test_a_writer_that_was_taken_for_dead_stops_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    with lease.write_lease(str(tmp_path)) as mine:
        claims(tmp_path)[0].unlink()
        time.sleep(0.2)
        with pytest.raises(RunFailed, match="removed by another writer"):
            mine.check()
        assert claims(tmp_path) == []


def test_the_heart_keeps_a_claim_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    with lease.write_lease(str(tmp_path)):
        path = claims(tmp_path)[0]
        long_ago = datetime.datetime(2020, 1, 1).timestamp()
        os.utime(path, (long_ago, long_ago))
        time.sleep(0.3)
        assert path.stat().st_mtime > long_ago + 1
        assert json.loads(path.read_text())["process"] == os.getpid()


@pytest.mark.slow
def test_of_many_that_begin_at_once_never_two_hold_the_store(tmp_path):
    """Six processes try repeatedly; each prints when it held the lease."""
    code = f"""
import time
from scale_ray.store import lease
from scale_ray.errors import UserError
lease._PATIENCE_S = 0.5
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        with lease.write_lease({str(tmp_path)!r}):
            began = time.monotonic(); time.sleep(0.02); print(began, time.monotonic())
    except UserError:
        time.sleep(0.01)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    outputs = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 6
    spans = sorted(tuple(map(float, line.split())) for text in outputs for line in text.splitlines())
    assert len(spans) > 3
    assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))


def test_writers_of_different_parts_write_at_the_same_time(tmp_path):
    with lease.write_lease(str(tmp_path), part=Part(1, 3)) as first:
        with lease.write_lease(str(tmp_path), part=Part(2, 3)) as second:
            first.check()
            second.check()
            assert len(claims(tmp_path)) == 2
        first.check()
    assert claims(tmp_path) == []


@pytest.mark.parametrize(
    ("held", "wanted", "whose"),
    [
        (Part(1, 3), Part(1, 3), "part of the store, found .*, of part 1/3"),
        (Part(1, 3), Part(1, 2), "part of the store, found .*, of part 1/3"),
        (Part(2, 3), None, "store, found .*, of part 2/3"),
        (None, Part(2, 3), "part of the store, found process"),
        (Part(1, 1), None, "store, found .*, of part 1/1"),
    ],
)
def test_writers_whose_videos_may_be_the_same_do_not_write_at_once(tmp_path, monkeypatch, held, wanted, whose):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.2)
    with lease.write_lease(str(tmp_path), part=held) as first:
        with (
            pytest.raises(UserError, match=f"expected no other writer of this {whose}"),
            lease.write_lease(str(tmp_path), part=wanted),
        ):
            pytest.fail("two writers at once")
        first.check()
        assert len(claims(tmp_path)) == 1


@pytest.mark.parametrize("part", ["", "x", "0/3", "4/3"])
def test_a_claim_of_no_part_that_is_known_is_of_the_whole_store(tmp_path, monkeypatch, part):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.2)
    leave_claim(tmp_path, part=part)
    with pytest.raises(UserError, match="on elsewhere"), lease.write_lease(str(tmp_path), part=Part(1, 3)):
        pytest.fail("two writers at once")


def test_a_dead_writer_of_another_part_is_removed_and_a_living_one_is_not(tmp_path):
    leave_claim(tmp_path, token="dead", silent_s=61, part="2/3")
    leave_claim(tmp_path, token="living", part="3/3")
    with lease.write_lease(str(tmp_path), part=Part(1, 3)):
        assert {path.stem for path in claims(tmp_path)} > {"living"}
        assert "dead" not in {path.stem for path in claims(tmp_path)}


def test_parts_take_turns_at_what_concerns_all(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.2)
    spans: list[tuple[float, float]] = []

    def work(number: int) -> None:
        with lease.write_lease(str(tmp_path), part=Part(number, 5)) as mine:
            for _ in range(2):
                with mine.exclusively():
                    began_s = time.monotonic()
                    time.sleep(0.05)
                    mine.check()
                    spans.append((began_s, time.monotonic()))

    works = [threading.Thread(target=work, args=(number,)) for number in range(1, 6)]
    for thread in works:
        thread.start()
    for thread in works:
        thread.join(timeout=60)
    assert len(spans) == 10
    assert all(before[1] < after[0] for before, after in itertools.pairwise(sorted(spans)))
    assert not list((tmp_path / "leases").rglob("*.json"))


def test_a_part_waits_for_a_living_turn_and_not_for_a_dead_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.05)
    leave_claim(tmp_path / "leases", token="0")
    (tmp_path / "leases" / "leases").rename(tmp_path / "leases" / "exclusive")
    other = tmp_path / "leases" / "exclusive" / "0.json"
    with lease.write_lease(str(tmp_path), part=Part(1, 2)) as mine:
        threading.Timer(0.5, lambda: os.utime(other, (1e9, 1e9))).start()
        began_s = time.monotonic()
        with mine.exclusively():
            assert time.monotonic() - began_s > 0.4
            assert not other.exists()
    assert "waiting for another part that reads or updates the whole store: process" in capsys.readouterr().err


def test_a_writer_that_lost_its_turn_stops_before_it_writes(tmp_path):
    def write_without_turn(mine: lease.Lease) -> None:
        with mine.exclusively():
            next((tmp_path / "leases" / "exclusive").glob("*.json")).unlink()
            mine.check()
            pytest.fail("it may be somebody else's turn")

    with lease.write_lease(str(tmp_path), part=Part(1, 2)) as mine:
        with pytest.raises(RunFailed, match="removed by another writer"):
            write_without_turn(mine)
        mine.check()


def test_the_writer_of_a_whole_store_has_nobody_to_wait_for(tmp_path):
    with lease.write_lease(str(tmp_path)) as mine, mine.exclusively():
        assert not (tmp_path / "leases" / "exclusive").exists()
