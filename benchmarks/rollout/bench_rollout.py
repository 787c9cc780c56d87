"""The rollout under pytest-benchmark: `make bench`. One process; the last lines are the tables of `run.py`."""

import time

import pytest

from benchmarks.harness import measure, record
from benchmarks.harness.cases import load_cases
from benchmarks.rollout.providers import PROVIDERS, make

CASES = load_cases()
RUNS = [(name, provider) for name, case in CASES.items() for provider in PROVIDERS if PROVIDERS[provider].suits(case)]
SECONDS = 2.0


@pytest.fixture(scope="module")
def prepare():
    """Build a provider of a case and its state once for all modes."""
    made = {}

    def get(name, provider):
        if (name, provider) not in made:
            made.clear()
            made[name, provider] = make(provider, CASES[name]), PROVIDERS[provider].state(CASES[name])
        return made[name, provider]

    return get


@pytest.mark.parametrize("mode", measure.MODES)
@pytest.mark.parametrize(("name", "provider"), RUNS)
def test_rollout(benchmark, prepare, bench_rows, name, provider, mode):
    case = CASES[name]
    module, state = prepare(name, provider)
    call = measure.make_call(module, state, mode)
    call()  # compiles, so that the number of rounds is not guessed from it
    start = time.perf_counter()
    call()
    rounds = int(SECONDS / (time.perf_counter() - start))
    benchmark.group = f"{case}, {mode}"
    benchmark.pedantic(call, rounds=max(3, min(100, rounds)))
    timing = measure.summarize([1e3 * seconds for seconds in benchmark.stats.stats.data])
    bench_rows.extend(record.timing_rows(case, mode, {provider: timing}))
    if mode == "training" and PROVIDERS[provider].saves_in_torch:
        bench_rows.append(record.saved_row(case, provider, measure.saved_bytes(module, state)))
