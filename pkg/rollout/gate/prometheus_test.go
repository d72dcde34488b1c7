package gate

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sds-server/sds-server/internal/testenv"
)

// scraped starts a Prometheus that scrapes a page with the gauge tested{listener} for a and b, and the counter tested_errors, as Envoy names them.
func scraped(env *testenv.T) *testenv.Prometheus {
	env.Helper()
	registry := prometheus.NewRegistry()
	values := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tested"}, []string{"listener"})
	errors := prometheus.NewCounter(prometheus.CounterOpts{Name: "tested_errors"})
	registry.MustRegister(values, errors)
	values.WithLabelValues("a").Set(1.5)
	values.WithLabelValues("b").Set(2)
	page := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	env.Cleanup(page.Close)
	return env.Prometheus(testenv.PrometheusOptions{Targets: []string{page.URL + "/metrics"}})
}

func TestRealPrometheus(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	p := scraped(env)
	first := newReader(t, nil, Gate{Name: "scraped", Prometheus: p.URL, Query: "count_over_time(tested_errors[1m]) > 3"})
	readUntil(t, first, time.Now(), func(r Reading) bool { return r.Err == "" })
	for _, tt := range []struct {
		name, query string
		value       float64
		err         string // part of it
	}{
		{"one series", `tested{listener="a"}`, 1.5, ""},
		{"sum", `sum(tested)`, 3.5, ""},
		{"rate of a counter whose name Prometheus finds odd", `sum(rate(tested_errors[1m]))`, 0, ""},
		{"scalar", `scalar(sum(tested)) * 2`, 7, ""},
		{"number", `42`, 42, ""},
		{"zero", `vector(0)`, 0, ""},
		{"no data", `no_such_metric`, 0, "no data: the query returns no series"},
		{"comparison that nothing passes", `tested > 100`, 0, "no data"},
		{"series that ended", `tested offset 1h`, 0, "no data"},
		{"NaN", `vector(0) / vector(0)`, 0, "the value is NaN, as 0/0 is"},
		{"NaN as a scalar", `0 / 0`, 0, "the value is NaN"},
		{"infinite", `vector(1) / vector(0)`, 0, "the value is +Inf: is something divided by 0?"},
		{"several series", `tested`, 0, "the query returns 2 series: wrap it in sum()"},
		{"range", `tested[1m]`, 0, "the query returns a range of samples: take one number from it"},
		{"text", `"yes"`, 0, `no answer of a Prometheus with a number: unexpected value type "string"`},
		{"bad query", `sum(tested`, 0, "the query is refused by Prometheus: invalid parameter \"query\""},
		{"bad types", `sum(rate(tested))`, 0, "expected type range vector"},
		{"cannot be evaluated", `tested + on() tested`, 0, "the query cannot be evaluated by Prometheus: found duplicate series"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := time.Now()
			r := newReader(t, nil, Gate{Name: "g", Prometheus: p.URL + "/", Query: tt.query})
			got := readUntil(t, r, before, whatever)
			if got.Value != tt.value || (got.Err == "") != (tt.err == "") || !strings.Contains(got.Err, tt.err) || got.Name != "g" {
				t.Errorf("got %+v, want %v, error %q", got, tt.value, tt.err)
			}
			if got.At.Before(before) || got.At.After(time.Now()) {
				t.Errorf("began at %v, asked for at %v", got.At, before)
			}
			if strings.ContainsAny(got.Err, "\n\r") || len(got.Err) > maxText+3 {
				t.Errorf("the error is no short line: %q", got.Err)
			}
		})
	}
}

func TestPrometheusThatStopsAndComesBack(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	port := env.Port()
	p := env.Prometheus(testenv.PrometheusOptions{Port: port})
	woken, out := newWoken(), new(logs)
	r := NewReader(Options{Gates: []Gate{{Name: "g", Prometheus: p.URL, Query: "7"}}, Wake: woken.wake, Log: out.logger()})
	defer r.Close()
	if got := readUntil(t, r, time.Now(), whatever); got.Value != 7 || got.Err != "" {
		t.Fatalf("got %+v, want 7", got)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	if got := readUntil(t, r, stopped, whatever); !strings.Contains(got.Err, "connection refused") || !strings.HasPrefix(got.Err, p.URL+" cannot be reached: ") {
		t.Errorf("got %+v, want no connection", got)
	}
	env.Prometheus(testenv.PrometheusOptions{Port: port})
	if got := readUntil(t, r, stopped, func(r Reading) bool { return r.Err == "" }); got.Value != 7 {
		t.Errorf("got %+v, want 7 again", got)
	}
	for _, want := range []string{`level=INFO msg="gate has no value" gate=g`, `level=INFO msg="gate has a value again" gate=g value=7`} {
		if n := strings.Count(out.String(), want); n != 1 {
			t.Errorf("%q is logged %d times, want once:\n%s", want, n, out)
		}
	}
}

// TestPrometheusThatHangs: the time-out is an error, also behind a proxy that answers the head alone, and the gate is read again when it answers.
func TestPrometheusThatHangs(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	p := env.Prometheus(testenv.PrometheusOptions{})
	target, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	for _, head := range []bool{false, true} {
		t.Run(fmt.Sprintf("head %v", head), func(t *testing.T) {
			hang := make(chan struct{})
			proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				select {
				case <-hang:
					forward.ServeHTTP(w, req)
				default:
					if head {
						w.WriteHeader(http.StatusOK)
						_ = http.NewResponseController(w).Flush() // the client looks at it
					}
					select {
					case <-hang:
					case <-req.Context().Done():
					}
				}
			}))
			defer proxy.Close()
			r := newReader(t, nil, Gate{Name: "g", Prometheus: proxy.URL, Query: "7", Timeout: 300 * time.Millisecond})
			since := time.Now()
			if got := readUntil(t, r, since, whatever); got.Err != proxy.URL+": no answer within 300ms" {
				t.Errorf("got %+v, want the time-out", got)
			}
			close(hang)
			if got := readUntil(t, r, since, func(r Reading) bool { return r.Err == "" }); got.Value != 7 {
				t.Errorf("got %+v, want 7", got)
			}
		})
	}
}

// TestAnswersThatNoPrometheusOfTestsGives are served as other programs, proxies and versions would.
func TestAnswersThatNoPrometheusOfTestsGives(t *testing.T) {
	t.Parallel()
	vector := func(at time.Time, further string) string {
		return fmt.Sprintf(`{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[%d,"5"]}]}%s}`, at.Unix(), further)
	}
	now := time.Now()
	for _, tt := range []struct {
		name   string
		status int
		body   string
		value  float64
		err    string // part of it
	}{
		{"value", 200, vector(now, ""), 5, ""},
		{"a little old", 200, vector(now.Add(-4*time.Minute), ""), 5, ""},
		{"stale", 200, vector(now.Add(-6*time.Minute), ""), 0, "from now: are the clocks of both machines right?"},
		{"from the future", 200, vector(now.Add(10*time.Minute), ""), 0, "from now: are the clocks of both machines right?"},
		{"warning", 200, vector(now, `,"warnings":["remote read failed"]`), 0, "Prometheus warns: remote read failed"},
		{"warning without a value", 200, `{"status":"success","data":{"resultType":"vector","result":[]},"warnings":["remote read failed"]}`, 0, "Prometheus warns: remote read failed"},
		{"remark of old versions", 200, vector(now, `,"warnings":["PromQL info: metric might not be a counter, name does not end in _total"]`), 5, ""},
		{"remark of new versions", 200, vector(now, `,"infos":["PromQL info: metric might not be a counter"]`), 5, ""},
		{
			"histogram", 200, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"histogram":[1700000000,{"count":"1","sum":"1","buckets":[]}]}]}}`,
			0, "the query returns a histogram",
		},
		{"no result", 200, `{"status":"success","data":null}`, 0, "the answer holds no result: is this the address of a Prometheus?"},
		{"page", 200, "<html>hello</html>", 0, "no answer of a Prometheus with a number"},
		{"cut off", 200, vector(now, "")[:40], 0, "no answer of a Prometheus with a number"},
		{"too long", 200, `{"status":"success","data":{"resultType":"vector","result":[]},"x":"` + strings.Repeat("x", 2<<20) + `"}`, 0, "the answer is over 1 MiB"},
		{"not found", 404, "404 page not found", 0, "client error: 404: 404 page not found; is it the base address of a Prometheus"},
		{"credentials", 401, "Unauthorized", 0, "that asks for no credentials?"},
		{"out of order", 503, `{"status":"error","errorType":"timeout","error":"query timed out in expression evaluation"}`, 0, "server error: 503: "},
		{"gateway", 502, "<html>\n\x1b[31mBad\tGateway\x00</html>", 0, "server error: 502: <html> [31mBad Gateway </html>"},
		{"long words", 500, strings.Repeat("lost ", 1000), 0, "server error: 500: lost lost"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if query := req.FormValue("query"); query != "q" || req.URL.Path != "/base/api/v1/query" {
					t.Errorf("asked for %q at %s", query, req.URL.Path)
				}
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(tt.body)) // a client that has read enough closes
			}))
			defer server.Close()
			got := readUntil(t, newReader(t, nil, Gate{Name: "g", Prometheus: server.URL + "/base", Query: "q"}), now, whatever)
			if got.Value != tt.value || (got.Err == "") != (tt.err == "") || !strings.Contains(got.Err, tt.err) {
				t.Errorf("got %v, error %q; want %v, error %q", got.Value, got.Err, tt.value, tt.err)
			}
			if strings.ContainsAny(got.Err, "\n\r\t\x1b\x00") || len(got.Err) > maxText+3 {
				t.Errorf("the error is no short line: %q", got.Err)
			}
		})
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		followed := false
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if strings.HasPrefix(req.URL.Path, "/other/") {
				followed = true
			}
			http.Redirect(w, req, "/other/api/v1/query?query=q", status)
		}))
		got := readUntil(t, newReader(t, nil, Gate{Name: "g", Prometheus: server.URL, Query: "q"}), time.Now(), whatever)
		server.Close()
		if want := "the answer is a redirect to " + server.URL + "/other/api/v1/query: name the address that it leads to"; got.Err != want {
			t.Errorf("%d: got %q, want %q", status, got.Err, want)
		}
		if followed {
			t.Errorf("%d: the redirect was followed", status)
		}
	}
}

func TestAddressThatIsNone(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"http://127.0.0.1:1":  "http://127.0.0.1:1 cannot be reached: ",
		"http://[::1":         "the address of Prometheus: ",
		"https://127.0.0.1:1": "https://127.0.0.1:1 cannot be reached: ",
	} {
		got := readUntil(t, newReader(t, nil, Gate{Name: "g", Prometheus: address, Query: "q"}), time.Now(), whatever)
		if !strings.HasPrefix(got.Err, want) || math.Abs(got.Value) > 0 {
			t.Errorf("%s: got %+v, want an error %q", address, got, want)
		}
	}
}
