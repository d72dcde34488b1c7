package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sds-server/sds-server/internal/testenv/fleet"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// result is .demo/result.json.
type result struct {
	SerialBefore             string      `json:"serial_before"`
	SerialAfter              string      `json:"serial_after"`
	Handshakes               int         `json:"handshakes"`
	HandshakesFailed         int         `json:"handshakes_failed"`
	Rotations                int         `json:"rotations"`
	StoredToServed           percentiles `json:"stored_to_served_ms"`
	StoredToServedProduction percentiles `json:"stored_to_served_production_ms"`
	Issued                   percentiles `json:"issued_ms"`
	RestartVersionsEqual     bool        `json:"restart_versions_equal"`
	BadRollout               badRollout  `json:"bad_rollout"`
}

// badRollout is what became of the version that clients reject.
type badRollout struct {
	State            rollout.State `json:"state"`
	Reason           string        `json:"reason"`
	Held             bool          `json:"held"`
	ProductionFailed int           `json:"production_failed"` // handshakes, meanwhile
	ProductionShown  bool          `json:"production_shown"`  // whether a client there saw the version
}

// percentiles are in milliseconds.
type percentiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func (r result) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("result: %w", err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}

// writeEnv writes shell variables for those who look around.
func (d *demo) writeEnv() error {
	f := d.fleet
	lines := []string{
		"CANARY_HTTPS=" + f.HTTPS[fleet.Canary],
		"PRODUCTION_HTTPS=" + f.HTTPS[fleet.Production],
		"METRICS=http://" + f.Metrics + "/metrics",
		"PEBBLE_DIRECTORY=" + f.Pebble.Directory,
		"SDS_TLS=" + f.SDS,
		"ADMIN_SOCKET=" + f.AdminSocket(),
		"SDS_SOCKET=" + f.SDSSocket(),
	}
	return os.WriteFile(filepath.Join(f.Dir, "env"), []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

// next says what can be tried while everything stays up.
func (d *demo) next() {
	host, port, _ := strings.Cut(d.fleet.HTTPS[fleet.Canary], ":")
	fmt.Fprintf(d.out, `
Everything stays up. Try, with the addresses of .demo/env:
   bin/sds-server -c .demo/sds-server.yaml status
   bin/sds-server -c .demo/sds-server.yaml nodes
   bin/sds-server -c .demo/sds-server.yaml renew %[1]s --force --wait
   bin/sds-server -c .demo/sds-server.yaml secrets history %[1]s
   bin/sds-server -c .demo/sds-server.yaml rollout history
   curl --cacert .demo/pebble/issuer-root.pem --resolve %[1]s:%[3]s:%[2]s https://%[1]s:%[3]s/
   curl -s http://%[4]s/metrics | grep ^sds_
and end it with: make demo-stop
`, secretName, host, port, d.fleet.Metrics)
}

// logs shows the end of each log after a failure.
func (d *demo) logs() {
	if d.fleet.Server != nil {
		fmt.Fprintf(d.out, "--- sds-server\n%s\n", d.fleet.Server.LogTail(30))
	}
	for name, e := range d.fleet.Envoys {
		fmt.Fprintf(d.out, "--- %s\n%s\n", name, e.LogTail(15))
	}
	if d.fleet.Pebble != nil {
		fmt.Fprintf(d.out, "--- pebble\n%s\n", d.fleet.Pebble.LogTail(15))
	}
}

// stop ends every part and removes the sockets; the files in .demo stay.
func (d *demo) stop() error {
	for _, load := range d.load {
		load.Stop()
	}
	return errors.Join(d.fleet.Stop(), os.RemoveAll(d.sockets))
}
