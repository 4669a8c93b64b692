# Each target is one command. CI runs the same ones (.ci/run); `make help` lists them.

PYTHON ?= python3
# Of `make install`
PREFIX ?= /usr/local
SYSTEM_PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
CONSOLE := gwmodule/msp/console
XTERM := $(CONSOLE)/node_modules/.package-lock.json
ISOLATED := $(BIN)/python -m gwmodule.sim.isolate -- $(BIN)/python

# An ordinary user's PATH on Debian has no sbin, where ip, nft and dnsmasq live.
export PATH := $(PATH):/usr/sbin:/sbin
# program=package: of the lab, and of its tests
LAB_PROGRAMS := ip=iproute2 nft=nftables dnsmasq=dnsmasq-base udhcpc=udhcpc amtterm=amtterm \
	setpriv=util-linux
TEST_PROGRAMS := amttool=libsoap-lite-perl strace=strace busybox=busybox curl=curl \
	chromium=chromium npm=npm shellcheck=shellcheck systemd-analyze=systemd mandoc=mandoc zsh=zsh

# Not fatal: the demo does without dnsmasq and udhcpc, and the tests say what they miss.
define install-programs
@missing=; for pair in $(1); do \
  command -v $${pair%=*} >/dev/null || missing="$$missing $${pair#*=}"; done; \
[ -n "$$missing" ] || exit 0; \
if [ "$$(id -u)" = 0 ]; then sudo=env; else sudo="sudo -n"; fi; \
echo "installing:$$missing"; \
$$sudo apt-get update -qq </dev/null && \
$$sudo env DEBIAN_FRONTEND=noninteractive \
  apt-get install -qq -y --no-install-recommends $$missing </dev/null || \
echo "could not install them; run: sudo apt-get install --no-install-recommends$$missing"
endef

.DEFAULT_GOAL := help
.PHONY: help setup programs lab-programs demo lab test test-lab check format bench bench-quick proof ipk man \
	install deb systemd-root test-systemd footprint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(STAMP) programs $(XTERM) ## make .venv, install the package and the programs of the lab

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# The terminal of the console; without it the console says so.
$(XTERM): $(CONSOLE)/package-lock.json | programs
	npm ci --prefix $(CONSOLE) --no-progress && touch $@ || \
	echo "the console has no terminal: npm could not fetch @xterm/xterm"

programs:
	$(call install-programs,$(LAB_PROGRAMS) $(TEST_PROGRAMS))

lab-programs:
	$(call install-programs,$(LAB_PROGRAMS))

demo: $(STAMP) lab-programs ## the main job, told with times, ending with one JSON line
	$(BIN)/gwmodule-sim demo

lab: $(STAMP) lab-programs ## the same lab, left running until Ctrl-C
	$(BIN)/gwmodule-sim lab

test: setup ## all tests
	$(BIN)/python -m pytest -n 2 -m "not lab and not root and not systemd"
	$(ISOLATED) -m pytest -m "lab or root"

test-lab: $(STAMP) lab-programs ## the whole system in network namespaces
	$(ISOLATED) -m pytest tests/lab tests/console

check: $(STAMP) ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(STAMP) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-quick: setup ## the parts of bench that have a bar, in two minutes, noisier (needs root)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m tests.bench --quick

bench: setup ## measure latency and throughput against ssh -R (needs root)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m tests.bench

ipk: $(STAMP) ## the packages for OpenWrt 24.10 and their index, into dist/ipk
	rm -rf build/ipk
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --require-hashes \
	  --target build/ipk -r openwrt/requirements.txt
	$(BIN)/python openwrt/mkipk.py --vendor build/ipk --output dist/ipk

man: $(STAMP) ## manual pages and shell completion, into build/man and build/completion
	rm -rf build/man build/completion
	$(BIN)/python docs/generate.py build

install: ## modules, commands, units, manual pages below $(DESTDIR)$(PREFIX)
	DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" PYTHON="$(SYSTEM_PYTHON)" systemd/install.sh

deb: ## the packages for Debian, into dist/deb (python3-shtab, or make setup)
	rm -rf dist/deb
	PYTHON="$(or $(wildcard $(BIN)/python),$(PYTHON))" systemd/debian/build.sh dist/deb

# The guest of test-systemd: Debian with what our packages depend on, 300 MB and 80 s.
SYSTEMD_ROOT := build/systemd-root
comma := ,
empty :=
SYSTEMD_PACKAGES := $(subst $(empty) $(empty),$(comma),$(strip systemd systemd-sysv dbus iproute2 \
	procps openssl python3 python3-construct python3-h11 python3-netifaces python3-pyroute2 \
	python3-scapy))
$(SYSTEMD_ROOT):
	rm -rf $@.new
	mkdir -p $@.new
	debootstrap --variant=minbase --include=$(SYSTEMD_PACKAGES) bookworm $@.new
	rm -rf $@.new/var/cache/apt/archives/*.deb $@.new/var/lib/apt/lists/*
	mv $@.new $@

systemd-root: $(SYSTEMD_ROOT)

test-systemd: setup systemd-root deb ## the Debian packages on a real systemd (root; debootstrap)
	$(ISOLATED) -m pytest -m systemd -rA tests/systemd

footprint: setup ipk deb ## size, memory, wakeups and start of the gateway's software
	$(ISOLATED) -m tests.bench.footprint

proof: setup ## what takes hours: ten thousand cuts of the line; its output goes to docs/
	GWMODULE_CUTS=10000 $(ISOLATED) -m pytest -s tests/lab/test_link_faults.py \
	  -k hundred_cuts

clean: ## remove everything that was built
	rm -rf $(VENV) .tox build dist artifacts *.egg-info $(CONSOLE)/node_modules
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
