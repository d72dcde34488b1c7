package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// bystanderSite is renewed while a version of the site does not pass.
const bystanderSite = "other.test.example"

// startFailing is a stage for a version that canary does not pass, and a CA that clients do not trust.
func startFailing(t *testing.T, policy string, verify bool) (*stage, *testenv.Authority) {
	t.Helper()
	s := startStage(testenv.NewT(t), stageOptions{
		groups: canaryAndProduction(), secrets: []string{site, bystanderSite}, policy: "ack_timeout: 4s, empty_group: skip, " + policy, verify: verify,
	})
	stranger, err := testenv.NewAuthority(s.Dir, "stranger")
	must(t, err)
	return s, stranger
}

// expectTakenBack expects that a version goes back by itself and is held, that production never has it, and that the secret beside it, which is renewed
// meanwhile, goes all the way.
func (s *stage) expectTakenBack(bad admin.Accepted, kind rollout.HoldKind, reason string) admin.Rollout {
	s.Helper()
	beside := s.brings(s.ca, bystanderSite)
	r := s.reaches(bad, rollout.RolledBack)
	if !strings.Contains(r.Reason, reason) {
		s.Errorf("it went back because of %q, want %q", r.Reason, reason)
	}
	s.held(bad, kind, reason)
	s.reaches(beside, rollout.Done)
	s.allServe(bystanderSite, beside.Serial)
	s.allServe(site, s.serials[site])
	s.unseen("production", bad)
	s.good(s.nodesOf("production")...)
	return r
}

// A chain that clients do not accept is taken back at the first handshake.
func TestChainThatClientsRejectGoesBackFromCanary(t *testing.T) {
	t.Parallel()
	s, stranger := startFailing(t, "watch: 1s", true)
	s.load()
	bad := s.brings(stranger, site)
	r := s.expectTakenBack(bad, rollout.Hard, "handshake: ")
	if got := slices.DeleteFunc(states(r), func(one string) bool { return one == "waiting" }); !slices.Equal(got, []string{"moving", "verifying", "rolled_back"}) {
		t.Errorf("it was %v: %s", got, logged(r))
	}
	s.trail(bad, "push canary canary-1", "rollout_moving canary", "rollout_verifying canary", "version_held ", "rollout_rolled_back canary")
	good := s.brings(s.ca, site) // the next version is judged by itself
	s.reaches(good, rollout.Done)
	s.allServe(site, good.Serial)
}

// An Envoy that ACKs proves nothing: what counts is what its clients see.
func TestOldLeafBehindAnACKGoesBackFromCanary(t *testing.T) {
	t.Parallel()
	e := testenv.NewT(t)
	pinned := e.Address()
	s := startStage(e, stageOptions{
		groups: []stageGroup{{name: "canary", nodes: 1, more: []string{pinned}}, {name: "production", nodes: 2}}, secrets: []string{site, bystanderSite},
		policy: "watch: 1s, ack_timeout: 4s, empty_group: skip", verify: true,
	})
	// The same Envoy has another listener, which does not get its certificate from us.
	s.startPinned("canary", 1, pinned, s.pairs[0])
	s.serves("canary-1", site, s.serials[site])
	s.load()
	s.expectTakenBack(s.brings(s.ca, site), rollout.Hard, "handshake: ")
}

// startPinned starts an Envoy again with one more listener, whose certificate stands in a file.
func (s *stage) startPinned(group string, number int, address string, p sample) {
	s.Helper()
	node := group + "-" + strconv.Itoa(number)
	must(s, s.envoys[node].Stop())
	chain, key := filepath.Join(s.Dir, node+".crt"), filepath.Join(s.Dir, node+".key")
	must(s, os.WriteFile(chain, []byte(p.Chain), 0o600))
	must(s, os.WriteFile(key, []byte(p.Key), 0o600))
	host, port, _ := strings.Cut(address, ":")
	s.startNode(group, number, "static_resources:\n  listeners:\n", fmt.Sprintf(`static_resources:
  listeners:
  - name: pinned
    address: {socket_address: {address: %s, port_value: %s}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates: [{certificate_chain: {filename: %q}, private_key: {filename: %q}}]
      filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: pinned, cluster: sds_server}
`, host, port, chain, key))
	must(s, s.envoys[node].WaitReady(s.Ready()))
}

// Without handshakes of our own, metrics tell: clients reject the chain, and Envoy counts it.
func TestRiseOfAMetricGoesBackFromCanary(t *testing.T) {
	t.Parallel()
	s, stranger := startFailing(t, "watch: 20s, retry_after: 1h", false)
	admin, err := s.envoys["canary-1"].AdminAddress()
	must(t, err)
	p := s.Prometheus(testenv.PrometheusOptions{Targets: []string{"http://" + admin + "/stats/prometheus"}})
	s.policy += fmt.Sprintf(`, gates: [{name: tls-errors, prometheus: "%s", query: "sum(envoy_listener_ssl_connection_error)", max_increase: 3, timeout: 10s}]`, p.URL)
	s.reload()
	s.load()
	bad := s.brings(stranger, site)
	s.expectMetric(bad, "tls-errors")
}

// expectMetric expects that a gate takes a version back, and that the one beside it is then watched as long as it has to be.
func (s *stage) expectMetric(bad admin.Accepted, gate string) {
	s.Helper()
	r := s.reaches(bad, rollout.RolledBack)
	if want := fmt.Sprintf("gate %q is at ", gate); !strings.Contains(r.Reason, want) {
		s.Errorf("it went back because of %q, want %q", r.Reason, want)
	}
	s.held(bad, rollout.Soft, gate)
	s.allServe(site, s.serials[site])
	s.unseen("production", bad)
	s.policy = "watch: 0s, ack_timeout: 4s, empty_group: skip"
	s.reload()
	beside := s.brings(s.ca, bystanderSite)
	s.reaches(beside, rollout.Done)
	s.allServe(bystanderSite, beside.Serial)
	s.good(s.nodesOf("production")...)
	if l := s.loads["canary-1"]; l.Failed() == 0 {
		s.Error("no client of canary has failed: what did the metric count?")
	}
}

// A node that does not answer holds its wave until the time-out.
func TestNodeThatDoesNotAnswerEndsTheRollout(t *testing.T) {
	t.Parallel()
	s, _ := startFailing(t, "watch: 0s, retry_after: 1h", true)
	s.load()
	s.silent("canary", "silent-1", site)
	bad := s.brings(s.ca, site)
	s.expectTakenBack(bad, rollout.Soft, `did not answer within 4s`)
}

// Likewise with an Envoy that hangs. What it missed meanwhile it gets when it goes on.
func TestEnvoyThatHangsEndsTheRollout(t *testing.T) {
	t.Parallel()
	s, _ := startFailing(t, "watch: 0s, retry_after: 1h", false)
	pid := s.envoys["canary-1"].PID()
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	bad := s.brings(s.ca, site)
	r := s.reaches(bad, rollout.RolledBack)
	if !strings.Contains(r.Reason, "canary-1 did not answer within 4s") {
		t.Errorf("it went back because of %q", r.Reason)
	}
	must(t, syscall.Kill(pid, syscall.SIGCONT))
	s.held(bad, rollout.Soft, "did not answer")
	s.allServe(site, s.serials[site])
	s.unseen("production", bad)
	beside := s.brings(s.ca, bystanderSite)
	s.reaches(beside, rollout.Done)
	s.allServe(bystanderSite, beside.Serial)
}
