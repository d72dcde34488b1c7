package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// fetch gets a path of the plain HTTP endpoint under a Host.
func (b *box) fetch(path, host string) (int, string) {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+b.HTTP+path, http.NoBody)
	b.must(err)
	if host != "" {
		req.Host = host
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	b.must(err)
	defer resp.Body.Close() // only read
	body, err := io.ReadAll(resp.Body)
	b.must(err)
	return resp.StatusCode, string(body)
}

func TestOnlyKnownHostsAreAnswered(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	text, err := readText(b.Config())
	b.must(err)
	b.must(writeText(b.Config(), strings.Replace(text, `http: {address: "`+b.HTTP+`"}`, `http: {address: "`+b.HTTP+`", hosts: [metrics.example]}`, 1)))
	b.start()
	hosts := []struct {
		host string
		code int
	}{
		{"", 200},
		{"localhost", 200},
		{"LOCALHOST:18001", 200},
		{"127.0.0.1", 200},
		{"127.8.8.8:1", 200},
		{"[::1]:18001", 200},
		{"[::1]", 200},
		{"metrics.example", 200},
		{"Metrics.Example:9090", 200},
		{"evil.example", 421},
		{"evil.example:18001", 421},
		{"localhost.evil.example", 421},
		{"10.0.0.1", 421},
		{"127.0.0.1.evil.example", 421},
		{"0.0.0.0", 421},
	}
	for _, h := range hosts {
		for _, path := range []string{"/metrics", "/healthz", "/readyz", "/nothing"} {
			want := h.code
			if path == "/nothing" && want == 200 {
				want = 404
			}
			if code, body := b.fetch(path, h.host); code != want {
				t.Errorf("%s with Host %q: %d %s, want %d", path, h.host, code, body, want)
			}
		}
	}
	for _, path := range []string{"/debug/pprof/", "/debug/vars", "/v1/status"} {
		if code, _ := b.fetch(path, ""); code != 404 {
			t.Errorf("%s: %d, want 404", path, code)
		}
	}
}
