# `make` alone prints what there is. The first target that needs Python builds .venv from constraints.txt.
#
#   SRC=, OUT=   what to read and what to write       ARGS=   more flags, passed on as they are
#   FACES=       a directory of images for demo, bench and compare (default: faces drawn on the spot)
#   JOBS=        processes that tests run in (default: one more than there are cores)
#   ADDRESS=     a cluster's job server, http://HOST:8265
#   PYTHON=      the interpreter that .venv is made from (3.11 or newer)

PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz figures lint format bench train archive restore stats verify compare submit dist clean

help:  ## print this list
	@grep -hE '^[a-z]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*  ## (.*)/  make \1 | \2/' | column -t -s '|' 2>/dev/null \
	  || grep -hE '^[a-z]+:.*  ## ' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "zippy-batch needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

# what a target needs beyond what the program runs with: .installed-test for the extra `test` of pyproject.toml
$(STAMP)-%: $(STAMP)
	$(PIP) -e '.[$*]'
	@touch $@

setup: $(STAMP)-test $(STAMP)-dev  ## build .venv with pinned versions, for everything here

demo: $(STAMP)  ## archive, check and restore a directory of faces, and show them [FACES=dir]
	@$(BIN)/python benchmarks/demo.py $(if $(strip $(FACES)),"$(FACES)") -- $(ARGS)

test: $(STAMP)-test  ## run the tests [ARGS="-k resume"]
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: $(STAMP)-test  ## many more trials of what tests/fuzz does to archives, calls and stores TRIALS=2000 [SEED=7]
	TRIALS=$(or $(TRIALS),2000) SEED=$(or $(SEED),0) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/fuzz $(ARGS)

lint: $(STAMP)-test $(STAMP)-dev  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)-dev  ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## size, speed and start-up beside AVIF and WebP [FACES=dir]
	$(BIN)/python benchmarks/compression.py $(if $(FACES),"$(FACES)") --limit 200 --skip avif-speed0
	$(BIN)/python benchmarks/throughput.py $(if $(FACES),"$(FACES)") $(ARGS)
	$(BIN)/python benchmarks/startup.py $(if $(FACES),"$(FACES)")

figures: $(STAMP)-bench $(STAMP)-test  ## measure the tables of README and docs again THUMBNAILS=dir LARGER="dir dir" OUT=figures [ARGS="--only exact"]
	@test -n "$(THUMBNAILS)" || { echo 'usage: make figures THUMBNAILS=dir [LARGER="dir dir"] [OUT=figures] [ARGS="--only exact,compression"]' >&2; exit 2; }
	$(BIN)/python benchmarks/figures.py "$(or $(OUT),figures)" "$(THUMBNAILS)" $(LARGER) $(ARGS)

train: $(STAMP)  ## fit a model to images; goes on where it stopped SRC=faces OUT=mine.safetensors [ARGS="--from faces"]
	@test -n "$(SRC)" -a -n "$(OUT)" || { echo 'usage: make train SRC=faces OUT=mine.safetensors [ARGS="--from faces"]' >&2; exit 2; }
	@if test -e "$(SRC)"; then set -- "$(SRC)"; else set -- $(SRC); fi; \
	  $(BIN)/zippy-batch train "$$@" -o "$(OUT)" $(ARGS)
	@echo "use it: zippy-batch archive ./faces out.parquet --model $(OUT)"

archive: $(STAMP)  ## SRC=faces OUT=out.parquet [ARGS="--quality 80"]
	@test -n "$(SRC)" -a -n "$(OUT)" || { echo 'usage: make archive SRC=faces OUT=out.parquet [ARGS="--quality 80"]' >&2; exit 2; }
	$(BIN)/zippy-batch archive "$(SRC)" "$(OUT)" $(ARGS)

restore: $(STAMP)  ## SRC=out.parquet OUT=restored [ARGS="--format png"]
	@test -n "$(SRC)" -a -n "$(OUT)" || { echo 'usage: make restore SRC=out.parquet OUT=restored [ARGS="--format png"]' >&2; exit 2; }
	$(BIN)/zippy-batch restore "$(SRC)" "$(OUT)" $(ARGS)

stats: $(STAMP)  ## OUT=out.parquet [ARGS=--json]
	@test -n "$(OUT)$(SRC)" || { echo 'usage: make stats OUT=out.parquet [ARGS=--json]' >&2; exit 2; }
	$(BIN)/zippy-batch stats "$(or $(OUT),$(SRC))" $(ARGS)

verify: $(STAMP)  ## OUT=out.parquet [SRC=faces]
	@test -n "$(OUT)" || { echo 'usage: make verify OUT=out.parquet [SRC=faces]' >&2; exit 2; }
	$(BIN)/zippy-batch verify "$(OUT)" $(if $(SRC),--against "$(SRC)") $(ARGS)

compare: $(STAMP)-compare  ## beside JPEG, WebP, AVIF and others on your images FACES=dir [ARGS="--plot curves.png"]
	@test -n "$(FACES)" || { echo 'usage: make compare FACES=dir [ARGS="--plot curves.png --sheet faces.png"]' >&2; exit 2; }
	$(BIN)/zippy-batch compare "$(FACES)" $(ARGS)

submit: $(STAMP)-submit  ## archive on a Ray cluster SRC=/mnt/faces OUT=/mnt/out ADDRESS=http://head:8265 [ARGS="--quality 80"]
	@test -n "$(SRC)" -a -n "$(OUT)" || { echo 'usage: make submit SRC=/mnt/faces OUT=/mnt/out ADDRESS=http://head:8265 [ARGS="--quality 80"]' >&2; exit 2; }
	$(BIN)/zippy-batch submit $(if $(ADDRESS),--address "$(ADDRESS)") -- archive "$(SRC)" "$(OUT)" $(ARGS)

dist: $(STAMP)-dev  ## build sdist and wheel, and run the wheel outside the clone [FULL=1 installs dependencies anew]
	@PYTHON="$(CURDIR)/$(BIN)/python" FULL=$(FULL) bash .ci/dist

clean:  ## remove what make demo made, and caches (not .venv)
	@$(PYTHON) benchmarks/demo.py --remove
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
