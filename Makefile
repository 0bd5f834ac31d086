# Everything here needs a shell, Go and, for what is missing, apt-get.

VERSION   := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS   := -s -w -X main.version=$(VERSION)
FUZZTIME  ?= 60s
CHAOS_TIME ?= 20m
# What the tests run beside Go; without them, tests that need them say so and skip.
NEEDS     := blender bubblewrap xvfb xauth python3 iproute2 nftables curl jq
# The race detector needs a C compiler. The tests with real Blender gain nothing
# from it and are left out by -short.
RACE      := ./authz/... ./lease/... ./blobs/... ./coord/... ./peer/... ./cmd/...

# What `make upgrade` updates a farm from: a tag or commit, the latest tag if none is given.
PREVIOUS  ?= $(shell git describe --tags --abbrev=0 2>/dev/null)

.PHONY: build demo test lint bench chaos cross fuzz upgrade clean

build:
	CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)" -o bin/vizpeer ./cmd/vizpeer

demo:
	@sh .ci/install.sh blender bubblewrap
	@$(MAKE) --no-print-directory build
	bin/vizpeer demo

test:
	@sh .ci/install.sh $(NEEDS) || echo "Going on without: what needs them is skipped, and said at the end."
	go vet ./...
	go test -json -timeout 15m ./... | go run .ci/summary.go
	@if command -v "$$(go env CC)" >/dev/null 2>&1; then \
		echo "go test -race -short"; CGO_ENABLED=1 go test -race -short -json -timeout 15m $(RACE) | go run .ci/summary.go; \
	else echo "No C compiler here: the race detector is left out."; fi
	@if [ -f addon/tests/run.sh ]; then echo "sh addon/tests/run.sh"; sh addon/tests/run.sh; fi

lint:
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	go tool staticcheck ./...

# Prints its table and writes bench.json. BENCH='-only swarm' measures some rows.
bench:
	@sh .ci/install.sh blender bubblewrap rsync
	go run .ci/bench.go $(BENCH)

# Torments a farm of processes in network namespaces, which takes root; kills a farm's
# only machine 200 times, and the leader of three coordinators 20 times.
chaos:
	@sh .ci/install.sh iproute2
	CHAOS_TIME=$(CHAOS_TIME) KILL_ROUNDS=200 LEADER_ROUNDS=20 go test -count=1 -v -timeout 2h \
		-run '^(TestChaos|TestSolePeerIsKilledAgainAndAgain|TestNextGrantAfterTheLeadersDeath)$$' ./cmd/vizpeer

cross:
	GOOS=windows GOARCH=amd64 CGO_ENABLED=0 go vet ./...
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go vet ./...
	GOOS=linux GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null ./cmd/vizpeer
	GOOS=windows GOARCH=amd64 CGO_ENABLED=0 go build -o /dev/null ./cmd/vizpeer
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null ./cmd/vizpeer

fuzz:
	@for package in $$(go list ./...); do \
		for f in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$package || exit 1; \
		done; \
	done

# Builds the version before from the history, and updates a farm of it machine by machine
# while it renders.
upgrade:
	@[ -n "$(PREVIOUS)" ] || { echo "Say which version to update from: make upgrade PREVIOUS=a tag or commit"; exit 1; }
	@sh .ci/install.sh blender bubblewrap
	@tree=$$(mktemp -d) && trap 'git worktree remove --force "$$tree/vizpeer" 2>/dev/null; rm -rf "$$tree"' EXIT && \
		git worktree add --detach "$$tree/vizpeer" "$(PREVIOUS)" >/dev/null && \
		(cd "$$tree/vizpeer" && CGO_ENABLED=0 go build -trimpath -ldflags "-X main.version=$(PREVIOUS)" -o "$$tree/previous" ./cmd/vizpeer) && \
		VIZPEER_PREVIOUS="$$tree/previous" go test -count 1 -timeout 15m -v -run 'TestRollingUpgrade' ./cmd/vizpeer

clean:
	rm -rf bin bench.json vizpeer-demo
