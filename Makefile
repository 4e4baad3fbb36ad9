# What a person types. Every target works on a fresh Debian 12 machine with Go and apt, as root for those
# that build or boot guests; each installs what it needs from the machine's own package sources.

GO      ?= go
# Packages of the lab and the linters, by the names Debian has for them.
DEPS    := shellcheck
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)

.PHONY: build demo test test-fast test-browser test-container test-vm test-slurm test-packer lint bench deps clean

build: ## bin/gpuguest, static, and the lab's bin/guestlab
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/gpuguest ./cmd/gpuguest
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/guestlab ./cmd/guestlab

deps: build ## what the lab, the linters and the benchmarks need on this machine
	bin/guestlab deps --install
	@command -v $(DEPS) >/dev/null || { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(DEPS); }

demo: deps ## the main job, whole: build a guest with a pretend GPU, install the driver in it over SSH, show the proof
	bin/guestlab run -- sh testdata/lab/demo.sh

test: lint test-fast test-browser test-container test-slurm test-packer ## every tier but the virtual machines' and the GPU's

test-fast: ## pure and in-process tiers: no root, no network, under a minute
	$(GO) test -race -shuffle=on ./...

test-browser: ## the report's page looked at in a real Chromium: sorted, filtered, opened, drawn within a second
	@command -v chromium >/dev/null || { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium; }
	GPUGUEST_BROWSER=1 $(GO) test -count=1 -timeout 15m -run '^TestBrowser' ./internal/report

test-container: deps ## real sshd, systemd, apt and DKMS in system containers
	GPUGUEST_CONTAINER=1 $(GO) test -count=1 -parallel 3 -timeout 40m -run '^TestContainer' ./cmd/... ./internal/...

test-slurm: ## the job array of docs/ in a real Slurm of one node
	@command -v slurmctld >/dev/null || { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurmctld slurmd slurm-client munge; }
	GPUGUEST_SLURM=1 $(GO) test -count=1 -run '^TestSlurm$$' ./cmd/gpuguest

test-packer: ## the template of docs/ in a real Packer
	@command -v packer >/dev/null || { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends packer; }
	GPUGUEST_PACKER=1 $(GO) test -count=1 -run '^TestPacker$$' ./cmd/gpuguest

# Not yet part of "make test": it takes half an hour more, and the tests of diagnosis have not been seen to
# their end.
test-vm: deps ## a real kernel, GRUB, initramfs and reboots in QEMU
	GPUGUEST_LAB=1 $(GO) test -count=1 -parallel 2 -timeout 80m -run '^TestVM' ./cmd/gpuguest

lint: deps
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "gofmt these"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@# The vulnerability data is on the network; where that is out of reach, the check says so and goes on.
	$(GO) tool govulncheck ./... || { code=$$?; [ $$code -ne 3 ] && echo "govulncheck could not reach its data (exit $$code)"; [ $$code -ne 3 ]; }
	GPUGUEST_LINT=1 $(GO) test -count=1 -run Shellcheck ./internal/plan
	shellcheck -s sh assets/*.sh testdata/lab/*.sh internal/lab/container/*.sh testdata/bench/*.sh docs/*.sh
	shellcheck -s bash .ci/run

bench: deps ## each figure beside its peer in the same run
	sh testdata/bench/run.sh

clean:
	rm -rf bin
