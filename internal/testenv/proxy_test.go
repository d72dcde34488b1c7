package testenv_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
)

func TestProxyKeepsItselfInURLsAndCountsByKind(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	pebble := env.Pebble(testenv.PebbleOptions{})
	proxy := env.Proxy(pebble)

	var directory map[string]any
	if err := json.Unmarshal(fetch(t, pebble.Client(), proxy.Directory), &directory); err != nil {
		t.Fatal(err)
	}
	base := strings.TrimSuffix(proxy.Directory, "/dir")
	for key, kind := range map[string]testenv.Kind{
		"newNonce": testenv.KindNonce, "newAccount": testenv.KindNewAccount, "newOrder": testenv.KindNewOrder,
		"revokeCert": testenv.KindRevoke, "keyChange": testenv.KindKeyChange, "renewalInfo": testenv.KindRenewalInfo,
	} {
		url, _ := directory[key].(string)
		if !strings.HasPrefix(url, base+"/") {
			t.Errorf("%s: got %q, want a URL of the proxy %s", key, url, base)
			continue
		}
		if kind == testenv.KindRenewalInfo {
			url += "/unknown" // without an id, Pebble redirects
		}
		status, err := post(t.Context(), pebble.Client(), url)
		if err != nil {
			t.Errorf("%s: %v", key, err)
		}
		got := proxy.Count(kind)
		if got.Received != 1 || got.Forwarded != 1 {
			t.Errorf("%s: got %+v, want one request received and forwarded (status %d)", key, got, status)
		}
	}
	if got := proxy.Count(testenv.KindOther); got.Received != 0 {
		t.Errorf("other: got %+v, want none", got)
	}
	if got := proxy.Count(testenv.KindDirectory); got != (testenv.ProxyCount{Received: 1, Forwarded: 1, Succeeded: 1}) {
		t.Errorf("directory: got %+v, want one of each", got)
	}
}

func TestProxyHoldsARequestAtEitherPoint(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	pebble := env.Pebble(testenv.PebbleOptions{})
	for _, tc := range []struct {
		name      string
		point     testenv.Point
		forwarded int
	}{{"before", testenv.Before, 0}, {"after", testenv.After, 1}} {
		t.Run(tc.name, func(t *testing.T) {
			proxy := env.Proxy(pebble)
			hold := proxy.Hold(testenv.KindDirectory, tc.point)
			done := make(chan error, 1)
			go func() {
				_, err := post(t.Context(), pebble.Client(), proxy.Directory)
				done <- err
			}()
			await(t, hold.Reached())
			if got := proxy.Count(testenv.KindDirectory).Forwarded; got != tc.forwarded {
				t.Errorf("got %d requests forwarded while held, want %d", got, tc.forwarded)
			}
			select {
			case err := <-done:
				t.Fatalf("the request was answered while held: %v", err)
			default:
			}
			hold.Release()
			hold.Release()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if _, err := post(t.Context(), pebble.Client(), proxy.Directory); err != nil {
				t.Errorf("the next request: %v", err)
			}
		})
	}
}

func TestProxyDropsAHeldRequestWhoseClientHasGone(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	pebble := env.Pebble(testenv.PebbleOptions{})
	proxy := env.Proxy(pebble)
	hold := proxy.Hold(testenv.KindNewOrder, testenv.Before)
	ctx, kill := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := post(ctx, pebble.Client(), strings.TrimSuffix(proxy.Directory, "/dir")+"/order-plz")
		done <- err
	}()
	await(t, hold.Reached())
	kill()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the cancelled request", err)
	}
	if err := proxy.Close(); err != nil {
		t.Error(err)
	}
	if got := proxy.Count(testenv.KindNewOrder); got.Received != 1 || got.Forwarded != 0 {
		t.Errorf("got %+v, want one received and none forwarded", got)
	}
}

func TestProxyHooksChangeAndReplaceAnswers(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	pebble := env.Pebble(testenv.PebbleOptions{})
	proxy := env.Proxy(pebble)
	proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
		if kind == testenv.KindDirectory {
			testenv.ReplaceBody(resp, []byte("null"))
		}
		return nil
	})
	if got := string(fetch(t, pebble.Client(), proxy.Directory)); got != "null" {
		t.Errorf("got %q, want the rewritten answer", got)
	}
	proxy.SetRespond(func(kind testenv.Kind, w http.ResponseWriter, _ *http.Request) bool {
		if kind != testenv.KindDirectory {
			return false
		}
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	status, err := post(t.Context(), pebble.Client(), proxy.Directory)
	if err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("got %d, %v, want 503", status, err)
	}
	if got := proxy.Count(testenv.KindDirectory); got.Received != 2 || got.Forwarded != 1 {
		t.Errorf("got %+v, want two received and one forwarded", got)
	}
	proxy.SetRespond(nil)
	if err := pebble.Kill(); err != nil {
		t.Fatal(err)
	}
	if status, err := post(t.Context(), pebble.Client(), proxy.Directory); err != nil || status != http.StatusBadGateway {
		t.Errorf("with the CA down: got %d, %v, want 502", status, err)
	}
}

func post(ctx context.Context, client *http.Client, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("{}"))
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, fmt.Errorf("body: %w", err)
	}
	return resp.StatusCode, nil
}

func await(t *testing.T, c <-chan struct{}) {
	t.Helper()
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case <-c:
	case <-timer.C:
		t.Fatal("nothing was held within 10 s")
	}
}
