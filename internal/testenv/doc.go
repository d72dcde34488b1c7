// Package testenv runs the real parts that sds-server is tested against: Envoy, Pebble (an ACME server),
// Prometheus and our own binary, as child processes on free loopback ports. It also has the probes that tests and the demo share: a TLS
// handshake that never resumes, a load of handshakes, and a TLS proxy in front of Pebble that counts and holds requests.
//
// The API returns errors and takes a context and a directory, so that the demo can use it. [NewT] wraps it for tests:
// it installs the tools, ends every process, and shows the tails of the logs when the test has failed.
//
// A context bounds the start of a part, not its life: the part runs until Stop or Kill. Every child is killed by the
// kernel when its parent ends, however it ends. The package works on Linux only.
package testenv
