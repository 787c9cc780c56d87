"""The record: rows survive the file, tables say what the rows say, unlike machines are not compared."""

import os
import re

import pytest

from benchmarks.harness.cases import load_cases
from benchmarks.harness.compare import check_comparable, compare
from benchmarks.harness.measure import Timing
from benchmarks.harness.record import LIMITS, ROOT, describe_run, plain_row, read, saved_row, timing_rows, write
from benchmarks.harness.report import PAGE, README, page, replace_between_markers, report, side_by_side
from benchmarks.harness.tables import scaling_table
from benchmarks.rollout.verify import limited_to

CASE = load_cases()["A"]
RUN = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789",
    "dirty": False,
    "machine": {"cpu": "Some CPU @ 2 GHz", "cpus": 8, "torch_threads": 2, "torch_isa": "AVX2", "kernel_isa": "avx2"},
    "versions": {"ncakern": "0.1.0", "torch": "2.13.0", "numpy": "2.4", "python": "3.11.7", "os": "Linux"},
}


@pytest.fixture
def rows():
    """The kernel takes 10 ms, eager PyTorch 250: 52.43 and 2.10 million cell-steps per second of 524,288."""
    timings = {"eager": Timing(249.0, 250.0, 251.0, 7), "kernel": Timing(9.0, 10.0, 11.0, 50)}
    found = [row for mode in ("forward", "training") for row in timing_rows(CASE, mode, timings)]
    return found + [saved_row(CASE, "eager", 1000 * CASE.cell_steps), saved_row(CASE, "kernel", 64 * CASE.cell_steps)]


def test_rows_hold_throughput_quantiles_and_bytes(rows):
    by_provider = {row["provider"]: row for row in rows if row["mode"] == "forward"}
    assert by_provider["kernel"]["value"] == pytest.approx(52.4288)
    assert by_provider["kernel"]["value_p20"] == pytest.approx(58.254, abs=1e-3)
    assert by_provider["eager"]["rounds"] == 7
    assert [row["value"] for row in rows if row["metric"] == "saved"] == [1000, 64]


def test_record_survives_the_file_and_carries_its_conditions(rows, tmp_path):
    path = write(rows, RUN, tmp_path)
    assert path.relative_to(tmp_path).as_posix() == "some-cpu-2-ghz-2threads/20260102T030405-0123456789.jsonl"
    assert read(path) == [RUN | row for row in rows]
    assert write(rows, RUN | {"dirty": True}, tmp_path).name.endswith("-dirty.jsonl")


def test_report_shows_figures_ratios_and_conditions(rows):
    text = report([RUN | row for row in rows])
    assert "| A | forward | 2.10 | 52.43 |" in text
    assert "| A | forward | 25.0x | 45x eager, 9x compile |" in text
    assert "| A | forward + backward | 1000 | 64 |" in text
    assert "2 threads of 8 logical CPUs" in text
    assert "MiB" not in text and "bfloat16" not in text and "FMA" not in text  # no rows, no table


def test_report_shows_what_only_some_cases_and_modes_have():
    dense = load_cases()["C"]  # 131072 cell-steps
    timings = {"kernel": Timing(9.0, 10.0, 11.0, 50), "kernel-bf16": Timing(4.0, 5.0, 6.0, 50)}
    rows = [*timing_rows(CASE, "forward", {"kernel": timings["kernel"]}), *timing_rows(dense, "forward", timings)]
    rows += [plain_row(CASE, "kernel", "training", "peak", "MiB", 7.4)]
    rows += [plain_row(dense, "kernel-bf16", "forward", "peak", "MiB", 3.6)]
    for threads, value in ((1, 30.0), (2, 54.0)):
        rows.append(plain_row(CASE, "kernel", "forward", f"throughput-{threads}threads", "", value))
    rows.append(plain_row(CASE, "kernel", "forward", "fma-share", "", 0.415))
    text = report([RUN | row for row in rows])
    assert "| C | forward | - | 26.21 | - | 2.0x |" in text
    assert "| A | forward + backward | 7 |" in text
    assert "| C | forward | - | 4 |" in text
    assert (
        "The kernel by number of threads, million cell-steps/s; what the kernel executes of the CPU's FMA peak:" in text
    )
    assert "| case | pass | 1 thread | 2 threads | 2 / 1 | share of FMA peak |" in text
    assert "| A | forward | 30.00 | 54.00 | 1.8x | 42% |" in text
    assert max(line.count("|") for line in text.splitlines()) <= 8


def test_the_table_of_threads_says_what_it_shows():
    share = plain_row(CASE, "kernel", "forward", "fma-share", "", 0.415)
    threads = [plain_row(CASE, "kernel", "forward", f"throughput-{n}threads", "", 30.0 * n) for n in (1, 2)]
    assert scaling_table([share]).splitlines()[0] == "What the kernel executes of the CPU's FMA peak:"
    assert scaling_table([share]).splitlines()[2] == "| case | pass | share of FMA peak |"
    assert scaling_table(threads).splitlines()[0] == "The kernel by number of threads, million cell-steps/s:"
    assert scaling_table(threads).splitlines()[2:5:2] == [
        "| case | pass | 1 thread | 2 threads | 2 / 1 |",
        "| A | forward | 30.00 | 60.00 | 2.0x |",
    ]
    assert scaling_table([]) == ""


LIMITED = {"limits": {"NCAKERN_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2"}, "kernel_isa": "avx2"}


def test_runs_of_two_instruction_sets_stand_side_by_side(rows):
    wide = RUN | {"machine": RUN["machine"] | {"kernel_isa": "avx512"}}
    narrow = RUN | {"machine": RUN["machine"] | LIMITED}
    slower = [row | {"value": row["value"] / 2} if row["provider"] == "kernel" else row for row in rows]
    first, second = ROOT / "a.jsonl", ROOT / "b.jsonl"
    runs = {first: [wide | row for row in rows], second: [narrow | row for row in slower if row["mode"] == "forward"]}
    text = side_by_side(runs)
    assert "| case | pass | AVX-512: kernel | / eager | AVX2: kernel | / eager |" in text
    assert "| A | forward | 52.43 | 25.0x | 26.21 | 12.5x |" in text
    assert "| A | forward + backward | 52.43 | 25.0x | - | - |" in text
    assert "* AVX2: Some CPU @ 2 GHz, 2 threads of 8 logical CPUs" in text
    assert text.count("limited by NCAKERN_ISA=avx2 ATEN_CPU_CAPABILITY=avx2, ") == 1
    assert "## AVX2\n\n`b.jsonl`: Some CPU" in page(runs)
    with pytest.raises(SystemExit, match="differ by the kernel's instruction set; got AVX2, AVX2"):
        side_by_side({first: runs[second], second: runs[second]})


def test_a_limited_machine_is_another_one(rows, monkeypatch, tmp_path):
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert "limits" not in describe_run()["machine"]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert describe_run()["machine"]["limits"] == {"ATEN_CPU_CAPABILITY": "avx2"}
    narrow = RUN | {"machine": RUN["machine"] | LIMITED}
    assert write(rows, narrow, tmp_path).parent.name == "some-cpu-2-ghz-2threads-avx2"
    for name, value in limited_to("avx2").items():
        monkeypatch.setenv(name, value)
    assert set(describe_run()["machine"]["limits"]) == set(LIMITS)
    assert limited_to(None) == dict(os.environ) and limited_to("avx2")["MKL_ENABLE_INSTRUCTIONS"] == "AVX2"


def test_the_pages_are_those_of_their_records():
    names = re.findall(r"^`(\S+\.jsonl)`: ", PAGE.read_text(), re.MULTILINE)
    runs = {path: read(path) for path in (ROOT / name for name in names)}
    assert runs and PAGE.read_text() == page(runs)
    assert replace_between_markers(README.read_text(), side_by_side(runs)) == README.read_text()


def test_table_replaces_what_lies_between_the_markers():
    page = "a\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nb\n"
    assert replace_between_markers(page, "new").splitlines()[2] == "new"
    assert replace_between_markers(page, "new").splitlines()[-1] == "b"
    with pytest.raises(SystemExit, match="must hold"):
        replace_between_markers("no place for it", "new")


def test_compare_shows_the_ratio_of_equal_rows(rows):
    before = [RUN | row for row in rows]
    after = [row | {"value": 2 * row["value"]} for row in before if row["provider"] == "kernel"]
    lines = compare(before, after).splitlines()[1:]
    assert len(lines) == 3
    assert all(line.endswith("2.00x") for line in lines)


def test_compare_takes_every_metric():
    rows = [RUN | plain_row(CASE, "kernel", "forward", metric, "", 2.0) for metric in ("peak", "throughput-2threads")]
    assert [line.split()[-1] for line in compare(rows, rows).splitlines()[1:]] == ["1.00x", "1.00x"]


@pytest.mark.parametrize(("group", "name"), [("machine", "cpu"), ("machine", "torch_threads"), ("versions", "torch")])
def test_unlike_runs_are_refused(group, name):
    other = RUN | {group: RUN[group] | {name: "another"}}
    with pytest.raises(SystemExit, match=name):
        check_comparable(RUN, other)
    check_comparable(RUN, RUN | {"commit": "another"})
