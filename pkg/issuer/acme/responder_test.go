package acme

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestResponderAnswersOnlyWhatIsPendingForTheHost(t *testing.T) {
	t.Parallel()
	r := &Responder{}
	r.Present("a.example", "token-a", "answer-a")
	r.Present("2001:db8::1", "token-6", "answer-6")
	r.Present("127.0.0.1", "token-4", "answer-4")
	tests := []struct {
		name, method, host, path string
		want                     string // empty: 404
		head                     bool
	}{
		{name: "pending", method: http.MethodGet, host: "a.example", path: "token-a", want: "answer-a"},
		{name: "port and case", method: http.MethodGet, host: "A.EXAMPLE:80", path: "token-a", want: "answer-a"},
		{name: "absolute name", method: http.MethodGet, host: "a.example.", path: "token-a", want: "answer-a"},
		{name: "head", method: http.MethodHead, host: "a.example", path: "token-a", want: "answer-a", head: true},
		{name: "IPv6", method: http.MethodGet, host: "[2001:db8:0::1]", path: "token-6", want: "answer-6"},
		{name: "IPv6 with port", method: http.MethodGet, host: "[2001:db8::1]:80", path: "token-6", want: "answer-6"},
		{name: "IPv4", method: http.MethodGet, host: "127.0.0.1:5002", path: "token-4", want: "answer-4"},
		{name: "another host", method: http.MethodGet, host: "b.example", path: "token-a"},
		{name: "no host", method: http.MethodGet, host: "", path: "token-a"},
		{name: "another token", method: http.MethodGet, host: "a.example", path: "token-b"},
		{name: "no token", method: http.MethodGet, host: "a.example", path: ""},
		{name: "below the token", method: http.MethodGet, host: "a.example", path: "token-a/x"},
		{name: "post", method: http.MethodPost, host: "a.example", path: "token-a"},
		{name: "options", method: http.MethodOptions, host: "a.example", path: "token-a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			req := httptest.NewRequestWithContext(t.Context(), tt.method, "http://x"+challengePath+tt.path, http.NoBody)
			req.Host = tt.host
			w := httptest.NewRecorder()
			r.ServeHTTP(w, req)
			if tt.want == "" {
				if w.Code != http.StatusNotFound || w.Body.Len() != 0 {
					t.Errorf("got %d with %d bytes, want an empty 404", w.Code, w.Body.Len())
				}
				return
			}
			body := tt.want
			if tt.head {
				body = ""
			}
			if w.Code != http.StatusOK || w.Body.String() != body || w.Header().Get("Content-Length") != "8" {
				t.Errorf("got %d %q, want %q", w.Code, w.Body, body)
			}
		})
	}
	other := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://a.example/token-a", http.NoBody)
	w := httptest.NewRecorder()
	r.ServeHTTP(w, other)
	if w.Code != http.StatusNotFound {
		t.Errorf("another path: got %d, want 404", w.Code)
	}
}

func TestTokenOfTwoOrdersStaysUntilBothHaveEnded(t *testing.T) {
	t.Parallel()
	r := &Responder{}
	r.Present("a.example", "token", "answer")
	r.Present("a.example", "token", "answer")
	r.CleanUp("token")
	if r.Pending() != 1 {
		t.Error("the token went with the first order")
	}
	r.CleanUp("token")
	r.CleanUp("token")
	if r.Pending() != 0 {
		t.Error("the token is still there after both orders")
	}
}
