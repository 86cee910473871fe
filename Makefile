# Short names only: each target is one command line, which works as well without make.
ENV ?= prod
.PHONY: help setup up down vault test test-fast test-long lint scan bench

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: ## make .venv and ./collections
	scripts/setup

up: ## pour the sample app onto a throwaway server: https://localhost:8443
	scripts/setup && scripts/lab up && .venv/bin/ansible-playbook site.yml -i inventory/lab && scripts/visit "$$(scripts/lab url)" .lab/ca.crt

down: ## remove the throwaway server
	scripts/lab down

vault: ## write fresh encrypted secrets for an environment: make vault ENV=prod
	scripts/setup && .venv/bin/ansible-playbook playbooks/vault.yml -i inventory/$(ENV)

test: ## run every check: lint, fast tests, every role in containers
	scripts/test

test-fast: ## run what needs no container
	scripts/test lint fast

lint: ## run every linter
	scripts/test lint

test-long: ## kill processes and whole servers, again and again, under load
	scripts/test long faults

scan: ## let scanners look at two servers, and print what they find
	scripts/test scan

bench: ## measure, and draw the plots
	scripts/bench
