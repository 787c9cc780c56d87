# make demo       train, predict and draw on synthetic volumes; everything lands in demo/
# make test       the tests, on all cores
# make test-long  the rest of them: what takes long and finds little that `make test` does not
# make test-matrix   all tests on every instruction set, thread count, Python and age of packages that there is
# make lint       ruff, mypy, clang-format
# make torture    kills, full disks, long soaks
# make bench      the rollout against eager PyTorch and torch.compile
# make fuzz       thousands of random calls, each in a process that may crash, and of damaged files
# make sanitize   the kernel's tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make aarch64    prediction without torch on an emulated aarch64 CPU; tests/seg/aarch64/check.sh says what it needs
# make clean      remove what was built, but not the environment
#
# Nothing but Python >= 3.11, g++ and make is needed: each verb first makes .venv when it is missing or out of date.

PYTHON      ?= python3
# Where torch comes from: the CPU build. Name another index of pytorch.org for a CUDA build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN       := .venv/bin
INSTALL   := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INSTALLED := .venv/installed
SOURCES   := $(wildcard csrc/*.cpp csrc/*.h csrc/*.inc csrc/*.inl csrc/*/*.inl)

# Every worker has one thread; a test that is about threads asks for its own.
PYTEST    := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest --numprocesses auto --dist worksteal -p no:benchmark

.PHONY: demo test test-long test-matrix torture lint bench fuzz sanitize aarch64 clean

demo: $(INSTALLED)
	$(BIN)/ncaseg demo -o demo

test: $(INSTALLED)
	$(PYTEST) -m "not long"

test-long: $(INSTALLED)
	$(PYTEST) -m long

test-matrix: $(INSTALLED)
	$(BIN)/python tests/matrix.py

torture: $(INSTALLED)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python tests/torture/run.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h %.inl,$(SOURCES))

bench: $(INSTALLED)
	$(BIN)/pytest benchmarks/rollout/bench_rollout.py --show-capture=no --benchmark-disable-gc --benchmark-columns=min,median,iqr,rounds

fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz/engine.py --inputs 3000
	$(BIN)/python tests/fuzz/files.py 2000

# The instrumented copy comes before the installed one on the path. Leaks are not looked for: Python and torch keep theirs.
sanitize: $(INSTALLED)
	NCAKERN_REQUIRE_EXT=1 NCAKERN_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib
	PYTHONPATH=build/sanitize/lib ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	$(BIN)/pytest tests/kern -m "not slow"

aarch64: $(INSTALLED)
	PYTHON=$(BIN)/python tests/seg/aarch64/check.sh build/aarch64

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks ncakern/_cpu*.so $(INSTALLED)

# torch goes alone, so that its index serves nothing else and no CUDA build comes in as a dependency.
$(INSTALLED): constraints.txt pyproject.toml setup.py $(SOURCES)
	@$(PYTHON) tests/prerequisites.py "$(CXX)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) setuptools wheel pybind11
	$(INSTALL) --no-deps --extra-index-url $(TORCH_INDEX) torch
	$(INSTALL) --no-build-isolation --editable '.[test,lint]'
	touch $@
