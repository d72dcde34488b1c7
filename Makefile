# Needs Go, GNU make, Python 3 with pip (the real Envoy comes as a Python wheel), apt-get and dpkg (for Prometheus, if none is there);
# a C compiler for the race detector.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.9.0
VERSION       := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BIN           := bin/sds-server
FUZZTIME      ?= 30s
VULNDB        ?=
KEEP          ?=
YEARS         ?= 2
# What "make test-envoys" runs on: one release of each minor version that the Python package index has; the last is that of "make test".
ENVOYS        ?= 1.36.3 1.37.0 1.38.3 1.39.3 1.40.0
# Tests of test/integration in which no Envoy has a part, or any would do.
NOT_ENVOY     := ^(TestBadAnswerOfTheCAIsRefused|TestRefusedCertificateIsOrderedAgain|TestDeadCAStopsNothing|TestKilledServerLosesNothing|TestServerRenewsItsOwnCertificate|TestNothingOfTheNackTablePassesValidation|TestNackTableIsThatOfPkgSecret|TestClientOfGoControlPlaneThatNamesNothingGetsNothing|TestClientsOnTheGeneratedStubsReadEverySecretThatTheyName|TestRandomNamesLeaveNothingBehind)$$
# Tests of test/integration in which real Envoys take part, and what comes out is decided by this server: which versions of Envoy they are makes no difference. They are
# run on the last one of ENVOYS.
ANY_ENVOY     := ^(TestRotationLeavesItsEntriesInOrder|TestShortLivedCertificateIsKeptValid|TestServedIsKnownSoonAfterARestart|TestVerifyTellsFailuresApart|TestOldLeafBehindAnACKGoesBackFromCanary|TestChainThatClientsRejectGoesBackFromCanary|TestNodeThatDoesNotAnswerEndsTheRollout|TestEnvoyThatHangsEndsTheRollout|TestPausedRolloutKeepsNothingWaiting|TestAnotherProfileGoesAsAChainChange|TestWatchEndsBeforeShortLivedCertificate|TestKilledServerGoesOnWithItsRollout|TestKilledServerProvesWhatItHadNotProven|TestKilledServerGoesOnTakingBack|TestLateHandshakeTakesBack|TestStuckEnvoyIsLetPassByMinAcked|TestHookDecidesUntilTheDeadline|TestWindowsAndFreezesHoldARolloutUntilTheDeadline)$$

.PHONY: help
help: ## show this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: tools
tools: ## install Envoy, Pebble and Prometheus into .tools/ (does nothing when they are there)
	@go run ./internal/testenv/tools

.PHONY: build
build: ## build bin/sds-server, static and stripped
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $(BIN) ./cmd/sds-server

.PHONY: test
test: tools ## run all tests, with the race detector, real Envoys and a real Pebble; prints last what was skipped
	@go build -o .tools/bin/summary ./internal/testenv/summary
	@.tools/bin/summary -race -shuffle=on -count=1 -timeout 15m ./...

.PHONY: test-envoys
test-envoys: tools ## run the integration tests and boot the examples on each version of Envoy in ENVOYS; prints a table last
	@go build -o .tools/bin/summary ./internal/testenv/summary
	@SDS_TEST_NO_RACE=1 .tools/bin/summary -envoys "$(ENVOYS)" -last '$(ANY_ENVOY)' -count=1 -timeout 9m -skip '$(NOT_ENVOY)' ./test/integration ./examples/envoy

.PHONY: soak
soak: export SDS_TEST_GENERATIONS = 10
soak: tools ## keep a certificate of one minute valid for 10 generations on real Envoys, while 30 % of the CA's answers are failures (6 minutes)
	go test -race -run '^TestShortLivedCertificateIsKeptValid$$' -v -count=1 -timeout 15m ./test/integration

.PHONY: test-compose
test-compose: tools ## run docker-compose.yaml and the README's tour on a Docker engine of its own (as root; needs Debian's docker.io)
	@go build -o .tools/bin/compose ./test/compose
	@.tools/bin/compose

.PHONY: lint
lint: ## check style, and the architecture: which package imports what
	go run $(GOLANGCI_LINT) run

.PHONY: fmt
fmt: ## format all Go files (gofumpt, goimports)
	go run $(GOLANGCI_LINT) fmt

# Up to Go 1.26, fuzzing for a time may end with a bare "context deadline exceeded" though nothing was found (golang/go#75804): that alone is no
# failure. A finding always names the input that it has written.
.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME (30s)
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	grep -rlE --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u | while read -r dir; do \
	  for name in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$$dir"/*_test.go | cut -c6-); do \
	    echo "$$dir $$name"; \
	    go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$dir" </dev/null 2>&1 | tee "$$log" || \
	      { if ! grep -qx '    context deadline exceeded' "$$log" || grep -qE 'Failing input|panic|_test.go:' "$$log"; then exit 1; fi; \
	        echo "nothing found: the end of the time was reported as a failure (golang/go#75804)"; }; \
	  done; \
	done

.PHONY: bench
bench: ## run the benchmarks of the packages
	go test -run '^$$' -bench . -benchmem ./pkg/... ./internal/...

.PHONY: bench-issuer
bench-issuer: tools ## measure the issuance loop: 100,000 certificates (start, memory, next due), orders a second from a real Pebble
	go test -run '^$$' -bench 'Start|Next' -benchtime 3x ./pkg/issuer
	go test -run '^$$' -bench Orders -benchtime 400x ./pkg/issuer

.PHONY: bench-store
bench-store: ## measure the embedded store: commit, get, list of 10,000
	go test -run '^$$' -bench . -benchmem ./pkg/store/bbolt

.PHONY: simulate
simulate: ## let YEARS (2) pass with 1,000 certificates at a CA with the limits of Let's Encrypt; prints the busiest hours and days
	SDS_SIMULATED_YEARS=$(YEARS) go test -run 'TestYearsAtLetsEncrypt|TestThousands' -v -timeout 60m ./pkg/issuer

.PHONY: bench-rotation
bench-rotation: tools ## measure stored-to-served on a real Envoy, 200 rotations
	SDS_TEST_NO_RACE=1 go test -run '^$$' -bench Rotation -benchtime 200x -timeout 9m ./test/integration

.PHONY: bench-rollout
bench-rollout: tools ## measure 50 rollbacks of a group, and rollouts over three waves, on real Envoys
	SDS_TEST_NO_RACE=1 go test -run '^$$' -bench 'RollbackOfAGroup' -benchtime 50x -timeout 9m ./test/integration
	SDS_TEST_NO_RACE=1 go test -run '^$$' -bench 'RolloutOverThreeWaves' -benchtime 10x -timeout 9m ./test/integration

.PHONY: bench-scale
bench-scale: tools ## measure 1,000 and 3,000 secrets into one real Envoy, beside two other servers (5 minutes)
	SDS_TEST_NO_RACE=1 go test -run '^$$' -bench Scale -benchtime 3x -timeout 20m ./test/integration

.PHONY: demo
demo: tools ## rotate certificates on two real Envoys, well and badly; KEEP=1 leaves all running
	@go build -o .tools/bin/demo ./internal/demo
	@KEEP=$(KEEP) .tools/bin/demo

.PHONY: demo-stop
demo-stop: ## end what "make demo KEEP=1" has left running
	@go build -o .tools/bin/demo ./internal/demo
	@.tools/bin/demo stop

.PHONY: vuln
vuln: ## look for known vulnerabilities (VULNDB: another database); fails when the database cannot be read
	@GOBIN="$(CURDIR)/.tools/bin" go install $(GOVULNCHECK)
	@code=0; .tools/bin/govulncheck $(if $(VULNDB),-db "$(VULNDB)") ./... || code=$$?; \
	case $$code in \
	  0) ;; \
	  3) echo "vuln: vulnerabilities found" >&2; exit 3 ;; \
	  *) echo "vuln: NOT CHECKED: govulncheck failed (exit code $$code). Nothing is known about vulnerabilities." >&2; \
	     echo "hint: is the vulnerability database reachable? Another one: make vuln VULNDB=file:///path" >&2; exit 4 ;; \
	esac

.PHONY: clean
clean: ## remove what was built, and the demo's files; .tools/ stays
	rm -rf bin .demo coverage.*
