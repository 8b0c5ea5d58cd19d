# Everything starts from nothing but Python 3.11 or newer; `make` alone says what there is.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Modules are compiled when they are first imported, and never again: most of what is installed is imported by nobody.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test coverage check format pictures bench-overhead bench-zoo bench-contenders bench-cure bench-ablation build clean

help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[demo,test]'
	touch $@

demo: $(INSTALLED)  ## the main job on real data, from watching to cure, in a minute
	$(BIN)/desat demo

test: check  ## every check and test
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

coverage: $(INSTALLED)  ## which lines the tests run
	$(BIN)/python -m pytest -n 3 --dist loadfile --cov --cov-report=term

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(INSTALLED)  ## lay the code out, mend what can be mended
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

pictures: $(INSTALLED)  ## the README's pictures, from a run (needs Chromium)
	$(BIN)/python docs/pictures.py

bench-overhead: $(INSTALLED)  ## what watching costs, beside other tools: writes benchmarks/overhead.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.overhead

bench-zoo: $(INSTALLED)  ## the proving ground: makes and runs its scripts, those that are not done yet
	$(BIN)/python -m benchmarks.zoo

bench-contenders: $(INSTALLED)  ## what other tools say of the zoo's scripts, of those that are not done yet
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.contender_runs

bench-cure: $(INSTALLED)  ## how often the cure cures, on the zoo's faults: writes benchmarks/cure.md
	$(BIN)/python -m benchmarks.cure

bench-ablation: $(INSTALLED)  ## the seven techniques alone and together: writes benchmarks/ablation.md
	$(BIN)/python -m benchmarks.ablation

build: $(INSTALLED)  ## the wheel, in dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## the virtual environment and everything made
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis .coverage*
