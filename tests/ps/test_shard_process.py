"""A shard process says where it listens, or that it never will."""

import time

from ps.shard_process import ShardProcess


def test_one_that_never_listens_has_no_address_however_often_it_is_asked(tmp_path):
    (tmp_path / "file").write_text("in the way")
    process = ShardProcess(journal=tmp_path / "file")
    try:
        while process.is_running:
            time.sleep(0.02)
        assert [process.known_address for _ in range(3)] == ["", "", ""]
        assert not process.is_up
    finally:
        process.stop()
