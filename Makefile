# Two targets are all that a newcomer needs: "make run" and "make test". Whatever
# else is needed is installed or built by the target that needs it.

MESH ?= testdata/meshes/meadow
GO ?= go
LINT_VERSION = v2.15.0
UPSTREAM = github.com/cilium/cilium
SOURCES = $(shell find . -name '*.go' -not -path './testdata/*' -o -name go.mod -o -name go.sum)

.PHONY: run build test unit lint generate docs sizes bench microbench clean help

## run: run a mesh of three clusters on this machine (MESH=DIR for another one)
run: bin/waggle
	./bin/waggle run $(MESH)

## build: build bin/waggle
build: bin/waggle

# What upstream's programs say that they are, with our cells in them: upstream's version
# by go.mod, our commit and its date. Upstream reads three words of it, no more or less.
VERSION = $(shell $(GO) list -m -f '{{slice .Version 1}}' $(UPSTREAM)) $(or $(shell git show -s --format='waggle-%h %aI' 2>/dev/null),waggle unknown)
LDFLAGS = -X "$(UPSTREAM)/pkg/version.ciliumVersion=$(VERSION)"

# Upstream's clustermesh-apiserver with our cells in it: see docs/clustermesh-apiserver.md.
bin/clustermesh-apiserver: $(SOURCES)
	$(GO) build -ldflags '$(LDFLAGS)' -o $@ ./cmd/clustermesh-apiserver

# Upstream's agent with our cells in it: see docs/cilium-agent.md.
bin/cilium-agent: $(SOURCES)
	$(GO) build -ldflags '$(LDFLAGS)' -o $@ ./cmd/cilium-agent

bin/waggle: $(SOURCES)
	$(GO) build -o $@ ./cmd/waggle

# Upstream's KVStoreMesh, of the version in go.mod, to compare with: see
# "waggle bench kvstoremesh --peer".
bin/upstream-clustermesh-apiserver: go.mod go.sum
	$(GO) build -o $@ github.com/cilium/cilium/clustermesh-apiserver

# Upstream's way into an agent, for "waggle bench ingest --peer".
bin/upstream-ingest: go.mod go.sum bench/peer-ingest/main.go
	$(GO) build -tags peers -o $@ ./bench/peer-ingest

# Our way into upstream's agent, for "waggle bench ingest --peer bridge".
bin/bridge-ingest: $(SOURCES)
	$(GO) build -tags peers -o $@ ./bench/peer-bridge

# Upstream's etcd, of the version in go.mod, for "waggle bench fanout --proxy".
bin/etcd: go.mod go.sum
	$(GO) build -o $@ go.etcd.io/etcd/server/v3

# Etcd's mirror maker, for "waggle bench kvstoremesh --peer mirror".
bin/upstream-mirror: go.mod go.sum bench/peer-mirror/main.go
	$(GO) build -o $@ ./bench/peer-mirror

# The side of upstream's KVStoreMesh that reads, for "waggle bench rollout --peer".
bin/upstream-rollout: go.mod go.sum bench/peer-rollout/main.go bench/rollout/tracker.go
	$(GO) build -tags peers -o $@ ./bench/peer-rollout

# The tests that run upstream's agent, which has races of its own (see testing/hostagent),
# are those that the race detector leaves out. They, and nothing else, run without it.
HOSTED = $(shell grep -rl --include='*_test.go' '^//go:build !race' bridge cells cmd testing)
HOSTED_TESTS = $(shell grep -oh '^func Test[A-Za-z0-9_]*' $(HOSTED) | cut -d ' ' -f 2 | grep -vx TestMain | paste -sd '|')

# What can be left out of a build: of any program, and of waggle alone (docs/embedding.md).
HOST_TAGS = waggle_memory waggle_no_ondemand waggle_no_embedded_etcd
TAGS = $(HOST_TAGS) waggle_no_kubernetes

## test: everything that must be true: vet, all tests with the race detector, the real kube-apiserver
test: bin/kube-apiserver bin/chart
	$(GO) vet ./...
	for tag in $(HOST_TAGS); do $(GO) vet -tags $$tag ./cells/... ./cmd/... || exit 1; done
	$(GO) vet -tags waggle_no_kubernetes ./cells ./cmd/waggle
	$(GO) vet -tags peers ./bench/...
	$(GO) vet -C testing/chart ./...
	$(GO) test -race -timeout 20m ./...
	$(GO) test -timeout 20m -run '^($(HOSTED_TESTS))$$' $(addprefix ./,$(sort $(dir $(HOSTED))))

## unit: the tests without the race detector, for a quick answer
unit: bin/kube-apiserver bin/chart
	$(GO) test -timeout 15m ./...

# The real kube-apiserver, in a module of its own; built once.
bin/kube-apiserver: testdata/kube-apiserver/go.mod testdata/kube-apiserver/main.go
	$(GO) build -C testdata/kube-apiserver -o ../../bin/kube-apiserver .

# What renders upstream's chart, in a module of its own.
bin/chart: testing/chart/go.mod testing/chart/main.go
	$(GO) build -C testing/chart -o ../../bin/chart .

## lint: the linter, with the rules in .golangci.yml
lint: bin/golangci-lint
	./bin/golangci-lint run ./...

bin/golangci-lint:
	GOBIN=$(CURDIR)/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

## docs: write the pages that are made of the code: docs/metrics.md
docs:
	$(GO) run ./cells/metrics/catalog/generate docs/metrics.md

## generate: compile the BPF programs anew; what comes out is committed
generate:
	@command -v clang-14 >/dev/null && command -v llvm-strip-14 >/dev/null || { \
		echo "The BPF programs are compiled by clang 14, for the same bytes everywhere: apt-get install clang-14 llvm-14" >&2; exit 1; }
	$(GO) generate ./bench/... ./ipcache/... ./testing/...

# What "make sizes" builds: PROGRAM=TAGS.
empty :=
comma := ,
SIZES = waggle= $(TAGS:%=waggle=%) waggle=$(subst $(empty) $(empty),$(comma),$(TAGS)) \
	cilium-agent= cilium-agent=waggle_no_ondemand,waggle_no_embedded_etcd \
	clustermesh-apiserver= clustermesh-apiserver=waggle_no_embedded_etcd

## sizes: build the programs with each build tag, and print how large they are
sizes:
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; set -e; \
	printf '| program | build tags | MB | stripped |\n|---|---|---|---|\n'; \
	for size in $(SIZES); do program=$${size%%=*} tags=$${size#*=}; \
		$(GO) build -tags "$$tags" -o "$$dir/whole" ./cmd/$$program; \
		$(GO) build -tags "$$tags" -ldflags '-s -w' -o "$$dir/stripped" ./cmd/$$program; \
		printf '| `%s` | %s | %d | %d |\n' $$program "$${tags:-none}" \
			$$(($$(stat -c %s "$$dir/whole") / 1000000)) $$(($$(stat -c %s "$$dir/stripped") / 1000000)); \
	done

## bench: a short version of every benchmark next to upstream's, some 6 minutes; writes bench.html
bench: bin/waggle bin/kube-apiserver bin/upstream-clustermesh-apiserver bin/upstream-ingest bin/upstream-rollout
	./bin/waggle bench all --peer upstream -o html > bench.html

## microbench: time and allocations of each hot path, some 6 minutes; see docs/performance.md
microbench:
	$(GO) test -run '^$$' -bench . -benchtime 1s ./cells/... ./clustermesh/... ./ipcache/... ./kvstoremesh/...

## clean: remove what was built
clean:
	rm -rf bin bench.html

## help: list the targets
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)
