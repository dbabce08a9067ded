from __future__ import annotations

from pathlib import Path

from dylora_moe.build.inspection import inspect_pool
from dylora_moe.records import pair
from dylora_moe.storage import pool_folder


def test_rows_that_wait_are_counted_and_damage_among_them_is_told(tmp_path: Path) -> None:
    with_rows = pool_folder.create(tmp_path / "pool", {"base": "tiny"})
    with_rows.examples.wait("monday", [pair("a", "b"), pair("c", "d")])
    with_rows.close()
    found = inspect_pool(tmp_path / "pool")
    assert (found.waiting, found.waiting_fault) == (2, None)
    (file,) = (tmp_path / "pool" / "waiting").iterdir()
    file.write_bytes(file.read_bytes().replace(b"d", b"e"))
    found = inspect_pool(tmp_path / "pool")
    assert found.waiting_fault is not None
    assert f"{file} is damaged" in found.waiting_fault
