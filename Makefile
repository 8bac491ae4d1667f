# make demo   a fresh clone to music: installs, continues a phrase with the model in the package, writes demo.mid, demo.wav
#             and demo.png
# make test   a fresh clone to a checked one: installs, lints, type-checks, runs every test

PYTHON ?= python3
BIN := .venv/bin
# torch from PyPI brings gigabytes of CUDA on Linux; where it has to stay small, the CPU build can be had
# beforehand with the index that pytorch.org names
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint fuzz bench faults memory model clean

.venv/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	$(INSTALL) --no-deps tinysoundfont  # without its pyaudio, which needs a compiler and PortAudio
	touch $@

.venv/test: .venv/demo
	$(INSTALL) --editable '.[corpus,test]'
	touch $@

demo: .venv/demo
	$(BIN)/musicgpt generate --prompt reel --bars 16 --force -o demo.mid
	$(BIN)/musicgpt render demo.mid --force -o demo.wav
	$(BIN)/musicgpt render demo.mid --force -o demo.png

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

# on a quiet machine, about an hour: every table of speed, ours and the others in turn. What is not there (a clone of
# nanoGPT, the corpora) costs its rows only. llama-cpp-python is compiled on installation
NANOGPT ?= ../nanoGPT
CORPORA ?= ../shared/data/corpora
BENCH := docs/bench
bench: .venv/test runs/bench/best
	$(INSTALL) --editable '.[bench]'
	mkdir -p $(BENCH)
	for model in music gpt2; do $(BIN)/python benchmarks/generating.py --model $$model \
		--json $(BENCH)/generating-$$model.json | tee $(BENCH)/generating-$$model.md; done
	for weights in float32 int8; do $(BIN)/python benchmarks/engine.py --weights $$weights --rounds 7 \
		--checkpoint runs/bench --songs $(CORPORA)/openscore_lieder \
		--json $(BENCH)/engine-$$weights.json | tee $(BENCH)/engine-$$weights.md; done
	for table in throughput memory loading small large; do $(BIN)/python benchmarks/training.py $$table \
		--nanogpt $(NANOGPT) --json $(BENCH)/training-$$table.json | tee $(BENCH)/training-$$table.md; done
	$(BIN)/python benchmarks/cold_start.py runs/bench --json $(BENCH)/cold_start.json | tee $(BENCH)/cold_start.md
	$(BIN)/python benchmarks/prepare.py $(CORPORA) --beside-bare 3 | tee $(BENCH)/prepare.md
	$(BIN)/python benchmarks/grammar.py runs/bench | tee docs/grammar.txt

# a model of songs without merges, for drafting and the grammar; an hour on one core
runs/bench/best: .venv/test
	$(BIN)/musicgpt train $(CORPORA)/openscore_lieder --out runs/bench --preset music-small --steps 2200 \
		--batch-size 4 --transpositions 3 --force

# long: a training harmed at 100 random moments, each time resumed and compared with the undisturbed one
faults: .venv/test
	$(BIN)/python benchmarks/faults.py | tee docs/faults.txt

# on a machine with 16 GiB: what a training needs, worked out and measured
memory: .venv/test
	$(BIN)/python benchmarks/memory.py --measure | tee docs/memory.txt

# long: the model in the package, anew: its corpus, hours of training, its index of what it learned from
BOX_STEPS ?= 20000
model: .venv/test
	$(BIN)/python data/boxed.py collect runs/boxed-corpus --lied $(CORPORA)/openscore_lieder \
		--quartet $(CORPORA)/openscore_quartets --game $(CORPORA)/freedoom --drums $(CORPORA)/groove/train
	$(BIN)/musicgpt train runs/boxed-corpus --out runs/boxed --styles --controls --infill 1 --preset music-tiny \
		--steps $(BOX_STEPS)
	$(BIN)/python data/boxed.py box runs/boxed
	$(BIN)/musicgpt originality --against runs/boxed/shards --force -o musicgpt/assets/model/originality.safetensors.xz
	$(BIN)/python data/boxed.py gallery

clean:
	rm -rf .venv build dist *.egg-info
