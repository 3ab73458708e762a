# The few verbs that people type. `make demo` and `make test` need a Debian machine with Rust and root, and nothing else:
# deploy/setup.sh brings the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Steps run in order, also under `make -j`: they share one target directory.
.NOTPARALLEL:
.PHONY: help demo test bench fuzz mutants fmt lint self-image

# rustup's directory is often missing from the PATH of a non-login shell, such as CI's.
export PATH := $(PATH):$(HOME)/.cargo/bin

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-11s %s\n", $$1, $$2 }'

demo: ## build an image inside a room, run it as a service, update it under load
	@deploy/demo.sh

# `cargo build` before the tests: the end-to-end tests start the binaries, and `cargo test` does not build those of
# other packages.
test: ## set up, check format and lints, run all tests
	deploy/setup.sh --tests
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo build --locked --workspace
	cargo test --locked --workspace

bench: ## measure against a release build; CHAPTER=context measures one chapter
	deploy/setup.sh
	cargo build --locked --release --workspace
	cargo run --locked --release -p integration-tests --bin bench -- $(CHAPTER)

MINUTES ?= 10
fuzz: ## run the fuzz targets for MINUTES in all (10)
	integration-tests/fuzz/run.sh $(MINUTES)

mutants: ## change MODULE=build/admission.rs in all sorts of ways; which changes does no test notice?
	integration-tests/mutants.sh $(MODULE)

fmt: ## format the code
	cargo fmt --all

lint: ## lints, and shellcheck and cargo-deny where they are installed
	cargo clippy --locked --workspace --all-targets -- -D warnings
	if command -v shellcheck >/dev/null; then shellcheck -x deploy/*.sh .ci/run; else echo 'no shellcheck here, skipped'; fi
	if command -v cargo-deny >/dev/null; then cargo deny --config .deny.toml check; else echo 'no cargo-deny here, skipped'; fi

self-image: ## build the daemon's own image with the daemon
	deploy/self-image.sh
