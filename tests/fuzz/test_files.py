"""The fuzzer of files, short: nothing crashes, hangs, is silently wrong, or leaves out the name of the file."""

from fuzz import files


def test_damaged_files_are_read_right_or_refused_by_name():
    tally, findings, _ = files.run(104, seed=20)
    assert findings == []
    done = {what: sum(n for (_, w), n in tally.items() if w == what) for what in ("read", "refused")}
    assert done["read"] > 10 and done["refused"] > 40  # both ways are tried
