package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestObserve holds what is counted to a bound: routes have patterns, and paths of clients do not come through.
func TestObserve(t *testing.T) {
	var got []string
	s := New(Options{
		Backend: newFake(), Log: slog.New(slog.DiscardHandler),
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "metrics") }),
		Observe: func(r *http.Request, pattern string, status int) {
			got = append(got, fmt.Sprintf("%s %q %d", r.Method, pattern, status))
		},
	})
	ctx := context.WithValue(t.Context(), peerKey{}, admission{allowed: true})
	ask := func(method, path string) string {
		rec := httptest.NewRecorder()
		s.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(ctx, method, path, nil))
		return rec.Body.String()
	}
	if body := ask(http.MethodGet, "/v1/metrics"); body != "metrics\n" {
		t.Errorf("metrics are %q", body)
	}
	ask(http.MethodGet, "/v1/containers/some-name-4711")
	ask(http.MethodGet, "/anything/4711")
	ask(http.MethodDelete, "/v1/info")
	ask(http.MethodGet, "/hns/v1/networks/4711")
	want := []string{
		`GET "GET /v1/metrics" 200`, `GET "GET /v1/containers/{ref}" 404`, `GET "" 404`, `DELETE "" 405`, `GET "/hns/v1" 200`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
