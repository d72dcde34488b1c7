package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
)

const (
	scaleNode = "scale-1"
	// scaleGroup is whose listener is the Unix socket.
	scaleGroup = "canary"
)

// scaleCase is one way of an Envoy to its secrets.
type scaleCase struct {
	name    string
	secrets int
	goal    string // from the first subscription to the last secret in use
	options func(names []string) bootstrap.Options
	// inUse is the statistic that counts the secrets that Envoy serves with, not those that it has acknowledged.
	inUse string
}

const (
	statFixed    = "listener.%s.server_ssl_socket_factory.ssl_context_update_by_sds"
	statOnDemand = "listener.%s.on_demand_secret.cert_active"
)

func scaleCases() []scaleCase {
	return []scaleCase{
		{"delta SDS", 1000, "3 s", fixed(bootstrap.Delta), statFixed},
		{"delta ADS", 1000, "1 s", fixed(bootstrap.ADSDelta), statFixed},
		{"on-demand prefetch, delta ADS", 1000, "1 s", prefetch, statOnDemand},
		{"delta SDS", 3000, "-", fixed(bootstrap.Delta), statFixed},
	}
}

// BenchmarkScale measures how long one Envoy takes to serve with all of its secrets: from the start of its process, and from its first
// subscription as the server sees it. "In use" is Envoy's count of TLS contexts that were built, and then a handshake with each name,
// which shows the right certificate; an ACK is not taken for it. Next to our server, in the same run: a server that sends fixed bytes and
// does nothing else (floor), and go-control-plane's snapshot cache and server (stock). Server and Envoy share one machine and a Unix socket.
func BenchmarkScale(b *testing.B) {
	e := testenv.NewT(b)
	s := startStandalone(e)
	table := &scaleTable{}
	for _, c := range scaleCases() {
		for i := len(s.pairs); i < c.secrets; i++ {
			s.add(scaleName(i))
		}
		for _, server := range []string{ours, floor, stock} {
			b.Run(fmt.Sprintf("%s/%d/%s", strings.ReplaceAll(c.name, " ", "-"), c.secrets, server), func(b *testing.B) {
				var runs []scaleRun
				for b.Loop() {
					runs = append(runs, s.measure(testenv.NewT(b), c, server))
				}
				median := table.add(c, server, runs)
				b.ReportMetric(median.sinceStart.Seconds()*1e3, "start-ms")
				b.ReportMetric(median.sinceFirst.Seconds()*1e3, "subscribed-ms")
				b.ReportMetric(0, "ns/op") // the loop also starts and ends processes
			})
		}
	}
	table.print()
}

func scaleName(i int) string { return fmt.Sprintf("www-%04d.example", i) }

// scaleRun is what one start of an Envoy cost.
type scaleRun struct {
	sinceStart, sinceFirst time.Duration
	streams                int64
	serverCPU, envoyCPU    time.Duration
	serverRSS, envoyRSS    int64 // KiB
}

// measure starts the server, unless it runs, and an Envoy, and waits until it serves with every secret.
func (s *standalone) measure(t *testenv.T, c scaleCase, server string) scaleRun {
	t.Helper()
	names := make([]string, c.secrets)
	for i := range names {
		names[i] = s.pairs[i].Name
	}
	process, socket := s.process, s.socket
	if server != ours {
		process, socket = startYardstick(t, server, s.pairs[:c.secrets])
	}
	https := t.Address()
	config := scaleConfig(t, c.options(names), https, socket)
	before := cpuOf(t, process.PID())
	began := time.Now()
	envoy := t.Envoy(testenv.EnvoyOptions{Config: config})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, awaitInUse(ctx, envoy, https, names, fmt.Sprintf(c.inUse, strings.ReplaceAll(https, ":", "_"))))
	ended := time.Now()
	run := scaleRun{
		sinceStart: ended.Sub(began), serverCPU: cpuOf(t, process.PID()) - before, envoyCPU: cpuOf(t, envoy.PID()),
		serverRSS: rssOf(t, process.PID()), envoyRSS: rssOf(t, envoy.PID()),
	}
	first := s.firstSubscription(t, process, server)
	run.sinceFirst = ended.Sub(first)
	if first.Before(began) {
		t.Fatalf("the first subscription is of %s before the start of Envoy", began.Sub(first))
	}
	var err error
	run.streams, err = envoy.Stat(ctx, "cluster.sds_server.upstream_rq_active")
	must(t, err)
	for _, name := range names { // the proof
		leaf, _, err := testenv.Handshake(ctx, https, name, s.ca.Pool)
		must(t, err)
		if got, want := testenv.Serial(leaf), s.serials[name]; got != want {
			t.Fatalf("%s: certificate %s is served, want %s", name, got, want)
		}
	}
	must(t, envoy.Kill())
	if server == ours {
		s.awaitLeft(ctx)
		return run
	}
	must(t, process.Stop())
	return run
}

// awaitInUse waits until the last name is served, which hardly disturbs Envoy's main thread, and then until all are, which is one look at
// its statistics every 10 ms.
func awaitInUse(ctx context.Context, envoy *testenv.Envoy, https string, names []string, stat string) error {
	err := testenv.Eventually(ctx, func(ctx context.Context) error {
		_, _, err := testenv.Handshake(ctx, https, names[len(names)-1], nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, envoy.LogTail(20))
	}
	return testenv.Eventually(ctx, func(ctx context.Context) error {
		n, err := envoy.Stat(ctx, stat)
		if err == nil && n < int64(len(names)) {
			err = fmt.Errorf("%d of %d secrets are in use", n, len(names))
		}
		return err
	})
}

// firstSubscription is when the server first heard of the secrets.
func (s *standalone) firstSubscription(t *testenv.T, process *testenv.Process, server string) time.Time {
	t.Helper()
	if server == ours {
		var nodes admin.Nodes
		must(t, s.admin.Get(t.Context(), "/v1/nodes", &nodes))
		if len(nodes.Nodes) != 1 || nodes.Nodes[0].Since == nil {
			t.Fatalf("nodes %+v, want one that is connected", nodes.Nodes)
		}
		return *nodes.Nodes[0].Since
	}
	log, err := process.Log()
	must(t, err)
	for line := range strings.Lines(log) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "first "); ok {
			nanoseconds, err := strconv.ParseInt(text, 10, 64)
			must(t, err)
			return time.Unix(0, nanoseconds)
		}
	}
	t.Fatalf("no request came: %s", log)
	return time.Time{}
}

// awaitLeft waits until the server has seen the end of the Envoy.
func (s *standalone) awaitLeft(ctx context.Context) {
	s.Helper()
	must(s, testenv.Eventually(ctx, func(ctx context.Context) error {
		var nodes admin.Nodes
		if err := s.admin.Get(ctx, "/v1/nodes", &nodes); err != nil {
			return err
		}
		for _, n := range nodes.Nodes {
			if n.Connected {
				return fmt.Errorf("node %s is connected", n.ID)
			}
		}
		return nil
	}))
}

func startYardstick(t *testenv.T, kind string, pairs []sample) (*testenv.Process, string) {
	t.Helper()
	data, err := json.Marshal(pairs)
	must(t, err)
	file, socket := filepath.Join(t.Dir, "pairs.json"), filepath.Join(t.Dir, kind+".sock")
	must(t, os.WriteFile(file, data, 0o600))
	self, err := os.Executable()
	must(t, err)
	p := t.Process(testenv.ProcessOptions{Name: kind, Path: self, Env: []string{
		yardstickKind + "=" + kind, yardstickSocket + "=" + socket, yardstickFile + "=" + file,
	}})
	must(t, p.WaitLog(t.Ready(), "listening"))
	return p, socket
}

// fixed has a filter chain for each secret.
func fixed(api bootstrap.API) func(names []string) bootstrap.Options {
	return func(names []string) bootstrap.Options { return fixedNames(api, names...) }
}

// prefetch is one filter chain for all names, which are asked for before a client comes.
func prefetch(names []string) bootstrap.Options { return onDemand(bootstrap.ADSDelta, names...) }

// scaleConfig is the bootstrap that the product prints.
func scaleConfig(t *testenv.T, o bootstrap.Options, https, socket string) []byte {
	t.Helper()
	o.NodeID, o.Cluster, o.AdminAddress, o.HTTPSAddress, o.SDS = scaleNode, scaleGroup, t.Address(), https, bootstrap.SDS{UnixPath: socket}
	config, err := bootstrap.Render(o)
	must(t, err)
	return config
}

// cpuOf is the processor time of a process so far.
func cpuOf(t testing.TB, pid int) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:])) // proc_pid_stat(5), from the third field on
	var ticks time.Duration
	for _, field := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(field, 10, 64)
		must(t, err)
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}

// rssOf is the resident memory of a process, in KiB.
func rssOf(t testing.TB, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
			must(t, err)
			return n
		}
	}
	t.Fatalf("no resident memory of process %d", pid)
	return 0
}

// scaleTable gathers the figures.
type scaleTable struct{ rows []string }

// add keeps the run with the median time, and returns it.
func (t *scaleTable) add(c scaleCase, server string, runs []scaleRun) scaleRun {
	slices.SortFunc(runs, func(a, b scaleRun) int { return int(a.sinceFirst - b.sinceFirst) })
	m := runs[(len(runs)-1)/2]
	goal := c.goal
	if server != ours {
		goal = "-"
	}
	t.rows = append(t.rows, fmt.Sprintf("| %d %s\t| %s\t| %.2f s\t| %.2f s (%.2f to %.2f)\t| %s\t| %d\t| %.2f s\t| %d MB\t| %.2f s\t| %d MB\t|",
		c.secrets, c.name, server, m.sinceStart.Seconds(), m.sinceFirst.Seconds(), runs[0].sinceFirst.Seconds(), runs[len(runs)-1].sinceFirst.Seconds(),
		goal, m.streams, m.serverCPU.Seconds(), m.serverRSS>>10, m.envoyCPU.Seconds(), m.envoyRSS>>10))
	return m
}

func (t *scaleTable) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "\n| secrets\t| server\t| start to in use\t| first subscription to in use\t| goal\t| streams\t| server CPU\t| server RSS\t| Envoy CPU\t| Envoy RSS\t|")
	fmt.Fprintln(w, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, row := range t.rows {
		fmt.Fprintln(w, row)
	}
	fmt.Fprintln(w)
	_ = w.Flush() // to standard output
}
