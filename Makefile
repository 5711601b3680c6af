# Everything a contributor runs. `make help` lists the targets.
# Targets for parts that a checkout does not have say so and succeed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

GO       ?= go
PREFIX   ?= /usr/local
DESTDIR  ?=
FUZZTIME ?= 15s
# What to lint and format.
PKGS     ?= ./...
# Extra flags for go test, such as TESTFLAGS='-run TestCable -v'.
TESTFLAGS ?=
# Packages tested at once: one more than there are CPUs, because the tests of the kernel wait half of their time.
TESTPROCS ?= $(shell echo $$(($$(nproc) + 1)))
# Those that take longest come first: else the whole waits for them at its end.
LONGEST := ./test/e2e ./internal/dataplane/vswitch ./internal/dataplane/nat

# Programs are static, and tests are compiled as programs are: lint, build and tests share what was compiled, which takes minutes.
export CGO_ENABLED := 0
export GOFLAGS := $(GOFLAGS) -trimpath

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
BINARY  := bin/bulkhead
PLUGIN  := bin/bulkhead-cni
AGENT   := bin/bulkhead-agent
PROXY   := bin/bulkhead-kube-proxy

GOLANGCI_VERSION := v2.15.0
GOLANGCI := .cache/tools/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint

HAVE_CMD := $(wildcard cmd/bulkhead/*.go)
HAVE_E2E := $(wildcard test/e2e/*_test.go)
IS_ROOT  := $(filter 0,$(shell id -u))

# As root, and in CI, a test that cannot get its privileges fails instead of skipping.
ifneq ($(IS_ROOT)$(CI),)
export REQUIRE_ROOT := 1
endif

# Test programs without debugging information: with it, linking them takes twice as long. Traces of panics do not need it.
STRIP := -ldflags='-s -w'

GOTESTSUM := $(GO) tool gotestsum --format pkgname-and-test-fails --hide-summary=skipped --

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9. -]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | expand -t 18

.PHONY: deps
deps: ## install the Debian packages for building, running and testing (root)
	./scripts/deps.sh build runtime test

.PHONY: go-ready
go-ready:
	@command -v $(GO) >/dev/null || { echo "make: no Go found; install Go 1.21 or newer from https://go.dev/dl, it fetches the version in go.mod by itself" >&2; exit 1; }

.PHONY: build
build: go-ready ## build bin/bulkhead, its CNI plugin, the agent of its VMs and the controller for Kubernetes, static (the default)
ifneq ($(HAVE_CMD),)
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BINARY) ./cmd/bulkhead
	$(GO) build -ldflags '$(LDFLAGS)' -o $(PLUGIN) ./cmd/bulkhead-cni
	GOOS=linux GOARCH=amd64 $(GO) build -ldflags '-s -w' -o $(AGENT) ./cmd/bulkhead-agent
	$(GO) build -ldflags '$(LDFLAGS)' -o $(PROXY) ./cmd/bulkhead-kube-proxy
else
	@echo "build: there is no cmd/bulkhead yet; building the packages only"
	$(GO) build ./...
endif

.PHONY: generate
generate: go-ready ## regenerate BPF objects, their Go bindings and the reference documents
	./scripts/deps.sh build
	$(GO) generate ./...

.PHONY: generate-check
generate-check: go-ready ## regenerate, and fail if anything changed
	./scripts/deps.sh build
	./scripts/generate-check.sh

.PHONY: test
test: go-ready ## run all tests: unit, privileged and end to end (best as root)
ifneq ($(IS_ROOT),)
	./scripts/deps.sh build runtime test
else
	@echo "test: not root, so the tests that need it are skipped; sudo make test runs them all"
endif
	$(GOTESTSUM) -timeout 25m -p $(TESTPROCS) $(STRIP) $(TESTFLAGS) $(LONGEST) ./...

.PHONY: test-demos
test-demos: demo demo-overlay ## run both demos, which check what they show and that nothing is left (root)

.PHONY: test-floor
test-floor: go-ready ## run the tests of the switch and of encryption on kernel 6.1, in a virtual machine (root)
	./scripts/kernel-floor.sh

.PHONY: test-machine
test-machine: go-ready ## boot, reboot and cut the power of a machine with systemd and cgroup v2 (root)
	@[ -n "$(IS_ROOT)" ] || { echo "test-machine: needs root: sudo make test-machine" >&2; exit 1; }
	./scripts/test-machine.sh

.PHONY: test-firewalld-iptables
test-firewalld-iptables: go-ready ## run beside firewalld with its older backend, iptables (root)
	@[ -n "$(IS_ROOT)" ] || { echo "test-firewalld-iptables: needs root: sudo make test-firewalld-iptables" >&2; exit 1; }
	./scripts/deps.sh build runtime test
	$(GO) test -tags long -timeout 10m -count 1 -v -run 'TestLong/firewalldiptables$$' ./test/e2e

# The stories of process isolation that hold in VMs. Of the others, some are about what only the host's kernel has or sees, as side-cars.
VM_STORIES ?= capture|dhcp|drops|explain|flows|halt|images|l2bridge|l2ports|l2tunnel|lifecycle|loadbalancer|macvlan|metrics|names|networks|next|nic|offload|policy|ports|proxy|repair|restart|run|storage|storm|survive|transparent

.PHONY: test-vm-stories
test-vm-stories: go-ready ## run the stories of process isolation with VMs, one after the other (root; VM_STORIES='policy|ports')
	@[ -n "$(IS_ROOT)" ] || { echo "test-vm-stories: needs root: sudo make test-vm-stories" >&2; exit 1; }
	./scripts/deps.sh build runtime test
	BULKHEAD_E2E_ISOLATION=vm $(GO) test -timeout 3h -count 1 -v -parallel 1 -run 'TestStories/($(VM_STORIES))$$' ./test/e2e

.PHONY: test-vm-networks
test-vm-networks: go-ready ## run a VM on a network of every type (root)
	@[ -n "$(IS_ROOT)" ] || { echo "test-vm-networks: needs root: sudo make test-vm-networks" >&2; exit 1; }
	./scripts/deps.sh build runtime test
	$(GO) test -tags long -timeout 20m -count 1 -v -run 'TestLong/vmnets$$' ./test/e2e

.PHONY: test-vm-hosts
test-vm-hosts: go-ready ## run hosts of containers in VMs, and the commands of docs/container-hosts.md (root)
	@[ -n "$(IS_ROOT)" ] || { echo "test-vm-hosts: needs root: sudo make test-vm-hosts" >&2; exit 1; }
	./scripts/deps.sh build runtime test
	$(GO) test -tags long -timeout 40m -count 1 -v -run 'TestLong/vmhost|TestVMTour$$' ./test/e2e

.PHONY: test-vm-disks
test-vm-disks: go-ready ## run VMs whose files are on disks, as without virtiofsd (root)
	@[ -n "$(IS_ROOT)" ] || { echo "test-vm-disks: needs root: sudo make test-vm-disks" >&2; exit 1; }
	./scripts/deps.sh build runtime test
	$(GO) test -tags long -timeout 20m -count 1 -v -run 'TestLong/vmdisk$$' ./test/e2e

.PHONY: test-vm-leaks
test-vm-leaks: go-ready ## run 50 VMs, killing their parts at random, and count what is left (root; VM_LEAKS=ROUNDS[:SEED], VM_FILES=disk)
	@[ -n "$(IS_ROOT)" ] || { echo "test-vm-leaks: needs root: sudo make test-vm-leaks" >&2; exit 1; }
	./scripts/deps.sh build runtime test
	BULKHEAD_VM_LEAKS=$(or $(VM_LEAKS),50) BULKHEAD_VM_FILES=$(VM_FILES) $(GO) test -tags long -timeout 90m -count 1 -v -run 'TestLong/vmleak$$' ./test/e2e

.PHONY: test-kubernetes-image
test-kubernetes-image: build ## build the image for Kubernetes, and run the manifest's pods of it (root)
	@[ -n "$(IS_ROOT)" ] || { echo "test-kubernetes-image: needs root: sudo make test-kubernetes-image" >&2; exit 1; }
	./scripts/deps.sh build runtime test
	./scripts/kubernetes-image.sh .cache/kubernetes-image.tar
	BULKHEAD_KUBE_IMAGE=$(CURDIR)/.cache/kubernetes-image.tar $(GO) test -timeout 10m -count 1 -v -run 'TestStories/kubernetes$$' ./test/e2e

.PHONY: test-unit
test-unit: go-ready ## run the tests that need no privileges
	$(GOTESTSUM) -short -timeout 5m $(TESTFLAGS) ./...

.PHONY: test-root
test-root: go-ready ## run unit and privileged tests, without end to end (root)
	@[ -n "$(IS_ROOT)" ] || { echo "test-root: needs root: sudo make test-root" >&2; exit 1; }
	./scripts/deps.sh runtime test
	$(GOTESTSUM) -count=1 -timeout 15m $(TESTFLAGS) $$($(GO) list ./... | grep -v /test/e2e)

.PHONY: e2e
e2e: go-ready ## run the end-to-end scripts against the real binary (root)
ifneq ($(HAVE_E2E),)
	@[ -n "$(IS_ROOT)" ] || { echo "e2e: needs root: sudo make e2e" >&2; exit 1; }
	./scripts/deps.sh build runtime test
	$(MAKE) --no-print-directory build
	$(GOTESTSUM) -count=1 -timeout 15m $(TESTFLAGS) ./test/e2e/...
else
	@echo "e2e: there is no test/e2e yet"
endif

$(GOLANGCI):
	GOBIN=$(abspath $(dir $@)) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

.PHONY: lint
lint: go-ready $(GOLANGCI) ## check style of Go and shell; PKGS=./internal/x/... for a part
	$(GOLANGCI) run $(PKGS)
	./scripts/lint-shell.sh

.PHONY: fmt
fmt: $(GOLANGCI) ## format the Go files
	$(GOLANGCI) fmt $(PKGS)

.PHONY: demo demo-keep
demo: ## show it all on this machine, in namespaces of its own, and clean up (root)
	@$(call script,demo.sh)
demo-keep: ## the same, but leave it running to play with
	@$(call script,demo.sh --keep)

.PHONY: demo-overlay demo-overlay-keep
demo-overlay: ## show a network over three hosts, one cut off and one killed, in namespaces of its own (root)
	@$(call script,demo-overlay.sh)
demo-overlay-keep: ## the same, but leave it running to play with
	@$(call script,demo-overlay.sh --keep)

.PHONY: bench
bench: ## measure attach, detach, run and the data path beside other tools (root)
	@$(call script,bench.sh)

# A script installs the packages that it needs beyond runtime and test by itself.
script = [ -x scripts/$(firstword $(1)) ] || { echo "$@: there is no scripts/$(firstword $(1)) yet"; exit 0; }; \
	[ -n "$(IS_ROOT)" ] || { echo "$@: needs root: sudo make $@" >&2; exit 1; }; \
	./scripts/deps.sh build runtime test; $(MAKE) --no-print-directory build; exec ./scripts/$(1)

.PHONY: fuzz
fuzz: go-ready ## run every fuzz target for FUZZTIME (15s)
	FUZZTIME=$(FUZZTIME) ./scripts/fuzz.sh

BINDIR  := $(DESTDIR)$(PREFIX)/bin
LIBDIR  := $(DESTDIR)$(PREFIX)/lib/bulkhead
# Where container runtimes look for CNI plugins: containerd of its own packages there, that of Debian and Podman in /usr/lib/cni too.
CNIDIR  ?= /opt/cni/bin
UNITDIR := $(DESTDIR)$(PREFIX)/lib/systemd/system
UNITS   := bulkhead.service bulkhead-containers.service
MANDIR  := $(DESTDIR)$(PREFIX)/share/man/man1
BASHDIR := $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSHDIR  := $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISHDIR := $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d

.PHONY: install
install: build ## install binary, service, completion and man pages below PREFIX, the CNI plugin in CNIDIR
	@[ -x $(BINARY) ] || { echo "install: there is no $(BINARY)" >&2; exit 1; }
	install -D -m 755 $(BINARY) $(BINDIR)/bulkhead
	install -D -m 755 $(PLUGIN) $(DESTDIR)$(CNIDIR)/bulkhead-cni
	install -D -m 755 $(AGENT) $(LIBDIR)/bulkhead-agent
	mkdir -p $(UNITDIR) $(MANDIR) $(BASHDIR) $(ZSHDIR) $(FISHDIR)
	for unit in $(UNITS); do sed 's|@BINDIR@|$(PREFIX)/bin|' packaging/$$unit >$(UNITDIR)/$$unit; done
	$(BINARY) completion bash >$(BASHDIR)/bulkhead
	$(BINARY) completion zsh >$(ZSHDIR)/_bulkhead
	$(BINARY) completion fish >$(FISHDIR)/bulkhead.fish
	$(foreach page,$(wildcard docs/man/*.1),install -m 644 $(page) $(MANDIR)/ &&) true
ifeq ($(DESTDIR),)
	getent group bulkhead >/dev/null || groupadd --system bulkhead
	@echo "installed; members of the group bulkhead may use the daemon; start it: systemctl daemon-reload && systemctl enable --now bulkhead"
endif

.PHONY: uninstall
uninstall: ## remove what install put there (state and containers stay: bulkhead reset removes those)
	rm -f $(BINDIR)/bulkhead $(DESTDIR)$(CNIDIR)/bulkhead-cni $(LIBDIR)/bulkhead-agent $(addprefix $(UNITDIR)/,$(UNITS)) $(BASHDIR)/bulkhead $(ZSHDIR)/_bulkhead \
		$(FISHDIR)/bulkhead.fish $(MANDIR)/bulkhead.1 $(MANDIR)/bulkhead-*.1

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
