"""The registry's schema and how it is opened."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from enroll.registry import Registry, RegistryUnavailable
from enroll.registry.schema import metadata
from fleet.errors import FleetError


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    """A column is in the code and not in the database, or the other way round."""
    import enroll.registry.boots
    import enroll.registry.catalogues
    import enroll.registry.endings
    import enroll.registry.jobs
    import enroll.registry.lineage
    import enroll.registry.messaging
    import enroll.registry.revocations
    import enroll.registry.state
    import enroll.registry.uploads  # noqa: F401 - its tables are in the same metadata

    with Registry.open(tmp_path / "registry.db") as registry, registry.read() as transaction:
        context = MigrationContext.configure(transaction, opts={"compare_type": True})
        assert [] == compare_metadata(context, metadata)


def test_every_commit_is_on_disk_and_references_hold(tmp_path: Path) -> None:
    """A power cut takes back a promise to a device, or a certificate belongs to nobody."""
    with Registry.open(tmp_path / "registry.db") as registry, registry.write() as transaction:
        settings = {
            name: transaction.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1} == settings


def test_the_files_are_their_owners_alone(tmp_path: Path) -> None:
    """Another user of the host reads the fleet's registry, or its journal."""
    with Registry.open(tmp_path / "registry.db"):
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert {"registry.db": 0o600, "registry.db-shm": 0o600, "registry.db-wal": 0o600} == modes


def test_a_registry_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    """A downgrade writes into tables that it does not know."""
    path = tmp_path / "registry.db"
    Registry.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(FleetError, match="a newer release wrote this registry"):
        Registry.open(path)


def test_a_current_registry_is_opened_without_alembic(tmp_path: Path) -> None:
    """Every command line waits for a library that it does not need."""
    path = tmp_path / "registry.db"
    Registry.open(path).close()
    program = (
        "import sys; from pathlib import Path; from enroll.registry import Registry; "
        "Registry.open(Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert "False\n" == ran.stdout


def test_a_file_that_is_no_registry_is_said_so(tmp_path: Path) -> None:
    """The admin sees a traceback."""
    path = tmp_path / "registry.db"
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(FleetError):
        Registry.open(path)


def test_a_registry_that_cannot_be_opened_is_said_so(tmp_path: Path) -> None:
    """A disk that has become read-only ends every command in a traceback."""
    (tmp_path / "registry.db").mkdir()  # root may write anywhere, but not into a folder
    with pytest.raises(RegistryUnavailable, match="cannot be opened"):
        Registry.open(tmp_path / "registry.db")
