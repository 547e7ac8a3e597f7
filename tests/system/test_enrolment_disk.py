"""A full disk under the registry: a small file system of its own, really full."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enroll.registry.reserve import reserve_of
from fleet.identity import DeviceId
from tests.fleets import new_home
from tests.processes import run
from tests.system.test_enrolment import Service, openssl_request, serve, status


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    yield from mounted(tmp_path / "disk", 4)


def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system to fill")
    folder.mkdir()
    options = f"size={megabytes}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB: there is room for what revocations need on a full one."""
    yield from mounted(tmp_path / "disk", 12)


def entry(service: Service, device: str) -> list[dict[str, object]]:
    listed = service.enroll("device", "list", "-o", "json").check()
    devices = json.loads(listed.stdout)
    return [found for found in devices if found["id"] == DeviceId(device)]


def exhaust(service: Service, folder: Path) -> None:
    """Enrol until the disk is full: the journal has some room left that was freed inside it."""
    token = json.loads(
        service.enroll("token", "create", "--match", "full-*", "--uses", 40, "-o", "json").check().stdout
    )
    fill(service.home.path.parent)
    for number in range(40):
        if status(service.enrol(token["token"], openssl_request(folder, f"full-{number}").certificate)) == 503:
            return
    pytest.fail("the disk was never full")


def test_a_full_disk_puts_renewals_off_and_ends_no_certificate(small_disk: Path, tmp_path: Path) -> None:
    """A gateway whose disk fills up would lose its devices one by one, as their renewals come."""
    home = new_home(small_disk / "fleet")
    agent = ("--home", tmp_path / "agent")
    with serve(home) as program:
        service = Service(home, program, program.wait_for_line(r"enroll: ready (\S+)").group(1))
        code = json.loads(service.enroll("token", "create", "--device", "pump-01", "-o", "json").check().stdout)["code"]
        run("device-agent", "join", code, "--id", "pump-01", *agent).check()
        before = json.loads(run("device-agent", "status", "-o", "json", *agent).check().stdout)["serial"]
        exhaust(service, tmp_path)
        refused = run("device-agent", "renew", *agent)
        assert 5 == refused.returncode
        assert "not renewed (service-busy)" in refused.stderr
        assert before == json.loads(run("device-agent", "status", "-o", "json", *agent).check().stdout)["serial"]
        (small_disk / "filler").unlink()
        run("device-agent", "renew", *agent)
        shown = json.loads(service.enroll("device", "show", "pump-01", "-o", "json").check().stdout)
        assert ["confirmed", "pending"] == [each["state"] for each in shown["certificates"]]
        assert "Traceback" not in program.stderr
    assert 0 == program.returncode


def test_a_full_disk_refuses_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """A full disk burns tokens, gives certificates that nobody remembers, or ends the service."""
    home = new_home(small_disk / "fleet")
    with serve(home) as program:
        service = Service(home, program, program.wait_for_line(r"enroll: ready (\S+)").group(1))
        names = [f"pump-{number}" for number in range(40)]
        created = service.enroll("token", "create", "--match", "pump-*", "--uses", len(names), "-o", "json").check()
        token = json.loads(created.stdout)["token"]
        filler = fill(small_disk)
        enrolled = []
        for name in names:  # the journal has some room left that was freed inside it
            request = openssl_request(tmp_path, name).certificate
            answer = service.enrol(token, request, "--include")
            if status(answer) == 503:
                break
            assert 200 == status(answer)
            enrolled.append(name)
        else:
            pytest.fail("the disk was never full")
        together = [openssl_request(tmp_path, f"pump-together-{number}").certificate for number in range(8)]
        with ThreadPoolExecutor(8) as pool:  # they share a commit
            answers = list(pool.map(lambda request: status(service.enrol(token, request)), together))
        assert set(answers) <= {200, 503}
        refused = names[len(enrolled)]
        assert "retry-after: " in answer.stdout.lower()
        assert "hint: free space on its disk" in answer.stdout
        filler.unlink()
        assert [] == entry(service, refused)
        for number, answered in enumerate(answers):
            assert (answered == 200) == bool(entry(service, f"pump-together-{number}"))
        assert 200 == status(service.enrol(token, request))
        assert all(1 == len(entry(service, name)) for name in (*enrolled, refused))
        assert "Traceback" not in program.stderr
    assert 0 == program.returncode


def state_of(service: Service, device: str) -> str:
    [found] = entry(service, device)
    return str(found["state"])


def test_a_full_disk_keeps_no_revoked_device_in(disk: Path, tmp_path: Path) -> None:
    """Whoever fills the gateway's disk could not be thrown out any more."""
    home = new_home(disk / "fleet")
    with serve(home) as program:
        service = Service(home, program, program.wait_for_line(r"enroll: ready (\S+)").group(1))
        token = json.loads(
            service.enroll("token", "create", "--match", "full-*", "--uses", 50, "-o", "json").check().stdout
        )
        first = openssl_request(tmp_path, "full-first").certificate
        assert 200 == status(service.enrol(token["token"], first))
        exhaust(service, tmp_path)
        assert reserve_of(home.registry).is_whole, "an enrolment took it"
        revoked = service.enroll("device", "revoke", "full-first", "--yes").check()
        assert "warning: the registry's disk is full" in revoked.stderr
        program.wait_for_line("reserve.short left_bytes=", stream="stderr")
        shown = service.enroll("status", "-o", "json").stdout
        assert not json.loads(shown)["reserve"]["is_whole"]
    assert 0 == program.returncode
    service.enroll("token", "revoke", token["id"]).check()  # without a service SQLite needs more
    (disk / "filler").unlink()
    assert "revoked" == state_of(service, "full-first")
    with serve(home) as program:
        program.wait_for_line(r"enroll: ready (\S+)")
        assert reserve_of(home.registry).is_whole
