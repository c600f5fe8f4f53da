# Everything a person types here. `make` alone prints the list.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-thorough test-guest lint format lock bench clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-13s %s\n' "$$name" "$$text"; done

setup: ## tools, CRIU and the Python environment (needs root; quick when all is there)
	@$(PYTHON) scripts/setup

demo: setup ## a running container follows its walking user over three edge nodes while they talk
	@$(BIN)/whimbrel demo

# Four files at a time, on two processors: each waits much of its time. What waits for ever ends its worker, which is
# replaced; who waits for a dead file system hears no signal, so a thread does it. What pytest makes of the tests is
# kept: it would take each worker seconds every time.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --timeout 400 --timeout-method thread

# A few tests that failed beside others run once more alone, and the log tells which: what fails twice is wrong.
test: setup ## the tests (ARGS="-k name" for some)
	@$(PYTEST) -n 4 --dist loadfile --no-loadscope-reorder $(ARGS); status=$$?; \
	if [ $$status -eq 1 ]; then \
		printf '\nonce more, alone: what failed beside others\n'; \
		$(PYTEST) --last-failed --last-failed-no-failures none --maxfail 1 $(ARGS); status=$$?; \
	fi; exit $$status

# Far longer than `make test`: by default the generators of requests make a few of each, here many.
test-thorough: export WHIMBREL_TEST_THOROUGH := 1
test-thorough: setup ## the same with every combination of strategy, victim and moment (half an hour)
	@$(PYTEST) -n 4 --dist loadfile --no-loadscope-reorder -m 'not guest and not inside' $(ARGS)

test-guest: setup ## the tests that need another kernel, in an emulated Debian guest (minutes)
	@$(BIN)/python -m pytest -m guest tests/guest $(ARGS)

lint: setup ## style, types and the rules on which part may import which
	$(BIN)/ruff check . scripts/setup
	$(BIN)/ruff format --check . scripts/setup
	$(BIN)/mypy
	MYPYPATH=scripts $(BIN)/mypy scripts/setup scripts/provision
	$(BIN)/lint-imports

format: setup ## apply the style
	$(BIN)/ruff check --fix . scripts/setup
	$(BIN)/ruff format . scripts/setup

bench: setup ## measure downtime and loss (ARGS are passed on)
	@$(BIN)/whimbrel bench $(ARGS)

lock: ## resolve requirements.lock anew (ARGS=--upgrade for the newest versions)
	@$(PYTHON) scripts/setup --lock $(ARGS)

clean: ## remove what can be made again (the private CRIU stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist out
	find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
