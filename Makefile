# make demo   a fresh clone to music: installs, trains a small model on folk tunes, writes demo.mid
# make test   a fresh clone to a checked one: installs, lints, type-checks, runs every test

PYTHON ?= python3
BIN := .venv/bin
# torch from PyPI brings gigabytes of CUDA on Linux; where it has to stay small, the CPU build can be had
# beforehand with the index that pytorch.org names
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint fuzz bench faults memory clean

.venv/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[corpus]'
	$(INSTALL) --no-deps tinysoundfont  # without its pyaudio, which needs a compiler and PortAudio
	touch $@

.venv/test: .venv/demo
	$(INSTALL) --editable '.[corpus,test]'
	touch $@

demo: .venv/demo
	$(BIN)/musicgpt train folk --out runs/demo --preset music-tiny --n-positions 512 --transpositions 1 \
		--steps 220 --batch-size 8 --checkpoint-every 110 --force
	$(BIN)/musicgpt generate runs/demo --prompt jig --bars 12 --temperature 0.9 --force -o demo.mid

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

# long: what is read from outside, spoiled, for so many seconds a reader; then 100,000 ids of every kind of tokenizer and
# every length on real prompts. Results are kept in docs/fuzz-readers.txt and docs/fuzz.txt
FUZZ_SECONDS ?= 300
fuzz: .venv/test
	$(INSTALL) --editable '.[fuzz]'
	$(BIN)/python tests/fuzz.py --seconds $(FUZZ_SECONDS) $(FUZZ_READERS) | tee docs/fuzz-readers.txt
	$(BIN)/python -m pytest tests/test_grammar.py -k "sampled or exact" --ids 100000 --durations=0 | tee docs/fuzz.txt

# on a quiet machine: what the grammar gives and costs, for a run of POP909
bench: .venv/test
	$(BIN)/python benchmarks/grammar.py runs/pop909 | tee docs/grammar.txt

# long: a training harmed at 100 random moments, each time resumed and compared with the undisturbed one
faults: .venv/test
	$(BIN)/python benchmarks/faults.py | tee docs/faults.txt

# on a machine with 16 GiB: what a training needs, worked out and measured
memory: .venv/test
	$(BIN)/python benchmarks/memory.py --measure | tee docs/memory.txt

clean:
	rm -rf .venv build dist *.egg-info
