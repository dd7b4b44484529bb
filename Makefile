# The everyday commands. Everything that CI does is here: .ci/run is make test.

SHELL       := /bin/bash
.SHELLFLAGS := -eo pipefail -c

GO        ?= go
BENCHTIME ?= 300ms
COUNT     ?= 6
FUZZTIME  ?= 20s
SEED      ?= 1
SEEDS     ?= 100
SECONDS   ?= 30
RUNS      ?= 2
FAILOVERS ?= 200
TOOLS     := .ci/tools/go.mod
DEBIAN    := gcc iproute2 libc6-dev python3 python3-pymacaroons swtpm swtpm-tools systemd tpm2-tools

.DEFAULT_GOAL := help
.PHONY: help demo build test lint bench bench-attest bench-cluster bench-log bench-fanout fuzz cover setup chaos

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 15

demo: setup build ## the main job for real, on one node: issue, narrow, forward, spend, revoke, attest, audit
	bin/writ demo

build: ## build bin/writ, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/writ ./cmd/writ

test: setup ## vet, and run every test under the race detector
	@test -z "$$(gofmt -l cmd capability caveats authority raftstore)" || { gofmt -l .; echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet ./...
	$(GO) test -race -timeout 9m ./...

lint: ## run the linters of .golangci.yml, pinned in .ci/tools, and check the manifests against Kubernetes' types, the dashboard against Grafana's
	$(GO) tool -modfile=$(TOOLS) golangci-lint run ./...
	cd .ci/manifests && $(GO) run . $(CURDIR)/deploy/kubernetes/writ.yaml $(CURDIR)/deploy/grafana/writ.json

BENCH = $(GO) test -run '^$$' -benchmem -benchtime $(BENCHTIME) -count $(COUNT)

bench: ## run the benchmarks side by side and print the README's tables
	@: > bench.out
	$(BENCH) -cpu 1 -bench 'Verify|Cached|Discharge|Caveats|Refusal' ./capability | tee -a bench.out
	$(BENCH) -cpu 1,2 -bench Parallel ./capability | tee -a bench.out
	$(BENCH) -cpu 1 -bench 'LookupMiss|Handler|RequestHash' ./capability/revocation ./capability/guard ./caveats | tee -a bench.out
	$(BENCH) -cpu 2 -bench Spend ./authority/replica | tee -a bench.out
	$(GO) tool -modfile=$(TOOLS) benchstat bench.out
	@$(GO) run ./cmd/internal/benchtable bench.out

bench-attest: setup ## measure proofs and attestation against software TPMs and print the table of docs/attestation.md
	@: > bench.out
	$(BENCH) -cpu 1 -benchtime 6400x -bench Proofs ./capability/guard | tee -a bench.out
	$(BENCH) -cpu 1 -bench Evidence ./caveats/attest/verifier | tee -a bench.out
	$(GO) test -run '^$$' -benchtime 400x -cpu 2 -bench Attest ./authority/wallet | tee -a bench.out
	@$(GO) run ./cmd/internal/benchtable -attest bench.out

bench-cluster: build ## measure a cluster of three nodes on this machine and print the README's table (root)
	$(GO) run ./cmd/internal/clusterbench -failovers $(FAILOVERS)

bench-log: ## measure the log store beside raft-boltdb (tuned) and a bare fsync
	@: > bench.out
	$(BENCH) -cpu 2 -bench 'Append|Propose|ReadIndex' ./raftstore | tee -a bench.out
	$(GO) tool -modfile=$(TOOLS) benchstat bench.out

bench-fanout: ## simulate revocations on their way to thousands of verifiers, a replica's death among them, and reckon for 100,000
	$(GO) run ./cmd/internal/fanout

fuzz: ## run every fuzz target for FUZZTIME each (20s)
	@set -e; for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p; \
	  done; \
	done

chaos: setup ## run the fault campaign: SEEDS seeds (100) from SEED (1) simulated, planted bugs, then RUNS seeds (2) of SECONDS (30) on real processes, as root
	$(GO) test -count 1 -tags chaos -timeout 0 -v -run 'TestCampaign|TestPlanted' ./authority/chaos -chaos.seed $(SEED) -chaos.seeds $(SEEDS)
	$(GO) test -count 1 -tags chaos -timeout 0 -v -run 'TestCampaign|TestExpired|TestRestored' ./authority/chaos/process \
	  -process.seed $(SEED) -process.seeds $(RUNS) -process.time $(SECONDS)s

cover: setup ## measure what the tests cover, over package borders
	$(GO) test -timeout 9m -coverpkg=./... -coverprofile=cover.out ./...
	$(GO) tool cover -func=cover.out | tail -1

setup: bin/promtool ## install the Debian packages that tests need, where they are missing
	@dpkg -s $(DEBIAN) >/dev/null 2>&1 || { \
	  sudo=; test "$$(id -u)" = 0 || sudo=sudo; \
	  $$sudo apt-get update -q && $$sudo apt-get install -qy --no-install-recommends $(DEBIAN); }

# Out of Debian's package prometheus, which would come with a service that starts.
bin/promtool:
	@mkdir -p bin; dir=$$(mktemp -d); trap 'rm -rf $$dir' EXIT; cd $$dir; \
	get() { apt-get -o APT::Sandbox::User= download -q prometheus; }; \
	get 2>/dev/null || { sudo=; test "$$(id -u)" = 0 || sudo=sudo; $$sudo apt-get update -q; get; }; \
	dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool > promtool; \
	chmod +x promtool; mv promtool $(CURDIR)/bin/
