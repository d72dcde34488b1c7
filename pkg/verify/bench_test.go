package verify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/secret"
)

const (
	benchSecrets = 10
	benchNames   = 4
)

// benchFleet is what the other process of the benchmarks serves, at every loopback address.
type benchFleet struct {
	Port   int
	Root   []byte   // DER
	Leaves [][]byte // DER; the first half ECDSA, the other RSA
}

func benchName(i, name int) string { return fmt.Sprintf("n%d.s%d.example", name, i) }

// BenchmarkServer is the other process of the benchmarks: it serves until its input ends.
func BenchmarkServer(b *testing.B) {
	if os.Getenv("VERIFY_BENCH_SERVER") == "" {
		b.Skip("it is started by the others")
	}
	l, err := (&net.ListenConfig{Control: onLoopback}).Listen(b.Context(), "tcp", "0.0.0.0:0")
	if err != nil {
		b.Fatal(err)
	}
	address, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		b.Fatal(l.Addr())
	}
	ca := newPKI(b)
	fleet, config := benchFleet{Port: address.Port, Root: ca.cert.Raw}, &tls.Config{}
	for i := range benchSecrets {
		var names []string
		for n := range benchNames {
			names = append(names, benchName(i, n))
		}
		pair := ca.pair(b, ecKey(b), names...)
		if i >= benchSecrets/2 {
			pair = ca.pair(b, rsaKey(b, 0), names...)
		}
		config.Certificates = append(config.Certificates, pair)
		fleet.Leaves = append(fleet.Leaves, pair.Leaf.Raw)
	}
	answer(b, l, config)
	if err := json.NewEncoder(os.Stderr).Encode(fleet); err != nil {
		b.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// onLoopback keeps a socket that is bound to all addresses to those of the loopback interface.
func onLoopback(_, _ string, raw syscall.RawConn) error {
	var err error
	if controlled := raw.Control(func(fd uintptr) {
		err = syscall.SetsockoptString(int(fd), syscall.SOL_SOCKET, syscall.SO_BINDTODEVICE, "lo")
	}); controlled != nil {
		return controlled
	}
	return err
}

// startBenchFleet returns what the nodes of one group should serve.
func startBenchFleet(b *testing.B, nodes int) Group {
	b.Helper()
	child := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkServer$", "-test.benchtime=1x")
	child.Env = append(os.Environ(), "VERIFY_BENCH_SERVER=1")
	in, err := child.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := child.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := child.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close() // which ends it
		_ = child.Wait()
	})
	var fleet benchFleet
	if err := json.NewDecoder(out).Decode(&fleet); err != nil {
		b.Fatal(err)
	}
	ca := &pki{pool: x509.NewCertPool()}
	root, err := x509.ParseCertificate(fleet.Root)
	if err != nil {
		b.Fatal(err)
	}
	ca.pool.AddCert(root)
	var leaves []Leaf
	for i, der := range fleet.Leaves {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			b.Fatal(err)
		}
		leaf := ca.leaf(tls.Certificate{Leaf: cert}, fmt.Sprintf("s%d", i), "v1")
		if cert.PublicKeyAlgorithm == x509.RSA {
			leaf.KeyType = "rsa-2048"
		}
		leaves = append(leaves, leaf)
	}
	g := one("g", 10*time.Second)
	for i := range nodes {
		g.Targets = append(g.Targets, target(fmt.Sprintf("127.2.0.%d:%d", 1+i, fleet.Port), leaves...))
	}
	return g
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// What one handshake with the judgement of it costs: the other side runs in another process.
func BenchmarkHandshake(b *testing.B) {
	g := startBenchFleet(b, 1)
	r := runner{source: &wants{}, slots: slots{make(chan struct{}, 1)}}
	for _, client := range []Client{TLS12RSA, TLS12ECDSA, TLS13} {
		b.Run(string(client), func(b *testing.B) {
			checks := Plan(g)
			c := checks[slices.IndexFunc(checks, func(c Check) bool { return c.Client == client })]
			begin := processorTime(b)
			for b.Loop() {
				if result, ok := r.check(context.Background(), c); !ok || result.Failure != nil {
					b.Fatalf("%+v", result)
				}
			}
			b.ReportMetric(float64((processorTime(b)-begin).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// How long a round takes: nodes with 10 wanted certificates of 4 names, half of them RSA. Where there are more nodes, fewer names are asked for.
func BenchmarkRound(b *testing.B) {
	for _, nodes := range []int{1, 25, 100} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			g := startBenchFleet(b, nodes)
			want := map[string]secret.Version{}
			w := &wants{groups: []Group{g}, current: map[string]Leaf{}}
			for _, s := range g.Targets[0].Secrets {
				want[s.Secret], w.current[s.Secret] = "v1", s.Leaf
			}
			woken := make(chan struct{}, 1)
			m, err := New(Options{Source: w, Log: testLog(b), Registerer: prometheus.NewRegistry(), Wake: func() { woken <- struct{}{} }})
			if err != nil {
				b.Fatal(err)
			}
			background(b, m.Run)
			begin, made := processorTime(b), 0
			for b.Loop() {
				since := time.Now()
				m.Look("g", want, since)
				<-woken
				r := m.Look("g", want, since)
				if r.Failed != 0 || r.OK != 2*min(benchNames, 100/nodes)*benchSecrets*nodes {
					b.Fatalf("%+v", r)
				}
				made += r.OK
			}
			b.ReportMetric(float64(made)/float64(b.N), "handshakes/op")
			b.ReportMetric(float64((processorTime(b)-begin).Microseconds())/float64(made), "cpu-µs/handshake")
		})
	}
}
