# The few verbs that people type. `make demo` and `make test` need a Debian machine with Rust and root, and nothing else:
# deploy/setup.sh brings the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Steps run in order, also under `make -j`: they share one target directory.
.NOTPARALLEL:
.PHONY: help demo test check dependencies e2e bench soak fuzz mutants fmt lint self-image

# rustup's directory is often missing from the PATH of a non-login shell, such as CI's.
export PATH := $(PATH):$(HOME)/.cargo/bin

# clippy-driver is rustc with lints, so one compilation both lints and builds, and the dependencies are compiled once.
test check e2e lint: export RUSTC_WORKSPACE_WRAPPER := clippy-driver
# The form in which cargo-clippy passes arguments to clippy-driver.
test check e2e lint: export CLIPPY_ARGS := -Dwarnings__CLIPPY_HACKERY__

# Many unit tests wait for clocks, sockets and processes, so more of them than there are processors run at a time.
UNIT_TESTS := RUST_TEST_THREADS=8 cargo test --locked --workspace --lib --bins

# deploy/setup.sh --tests installs the dependency checkers here.
TOOLS := /var/cache/hearth-tests/venv/bin
ADVISORIES := $(HOME)/.cargo/advisory-dbs

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-11s %s\n", $$1, $$2 }'

demo: ## build an image inside a room, run it as a service, update it under load
	@deploy/demo.sh

# The end-to-end tests start the binaries, and `cargo test` does not build those of other packages, so those are built
# first.
test: ## set up, check format, dependencies and lints, run all tests
	deploy/setup.sh --tests
	cargo fmt --all -- --check
	$(MAKE) --no-print-directory dependencies
	cargo build --locked --workspace
	$(UNIT_TESTS)
	cargo test --locked --workspace --test '*'
	cargo test --locked --workspace --doc

check: ## format, lints and unit tests: what to run after each change
	cargo fmt --all -- --check
	$(UNIT_TESTS)

# Advisories need a database from the network, which not every machine reaches.
dependencies: ## check the licenses and sources of dependencies, and that each one is used
	$(TOOLS)/cargo-shear
	$(TOOLS)/cargo-deny --config .deny.toml check --hide-inclusion-graph bans licenses sources
	@if [ -d $(ADVISORIES) ]; then $(TOOLS)/cargo-deny --config .deny.toml check --disable-fetch advisories; \
	else echo 'advisories: NOT CHECKED, $(ADVISORIES) is missing; `cargo deny fetch db` downloads it'; fi

e2e: ## run the end-to-end cases whose name contains CASE (all without it)
	cargo build --locked --workspace
	cargo test --locked -p integration-tests --test e2e -- $(CASE)

bench: ## measure against a release build; CHAPTER=context measures one chapter
	deploy/setup.sh
	cargo build --locked --release --workspace
	cargo run --locked --release -p integration-tests --bin bench -- $(CHAPTER)

MINUTES ?= 10
soak: ## build at random for MINUTES (10) while the daemon and its builders are killed, then check everything
	cargo build --locked --workspace
	cargo run --locked -p integration-tests --bin soak -- $(MINUTES) $(SEED)

fuzz: ## run the fuzz targets for MINUTES in all (10)
	integration-tests/fuzz/run.sh $(MINUTES)

mutants: ## change MODULE=build/admission.rs in all sorts of ways; which changes does no test notice?
	integration-tests/mutants.sh $(MODULE)

fmt: ## format the code
	cargo fmt --all

lint: ## lints, and shellcheck where it is installed
	cargo build --locked --workspace --all-targets
	if command -v shellcheck >/dev/null; then shellcheck -x deploy/*.sh .ci/run; else echo 'no shellcheck here, skipped'; fi

self-image: ## build the daemon's own image with the daemon
	deploy/self-image.sh
