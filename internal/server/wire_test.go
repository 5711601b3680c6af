package server

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestWire sends what stands in testdata/requests.txt, in order to one server, and compares the answers.
func TestWire(t *testing.T) {
	r := newRig(t)
	in, err := os.ReadFile("testdata/requests.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(string(in)), "\n\n") {
		out.WriteString(block + "\n→ ")
		for strings.HasPrefix(block, "#") {
			_, block, _ = strings.Cut(block, "\n")
		}
		line, body, _ := strings.Cut(block, "\n")
		method, path, _ := strings.Cut(line, " ")
		base, query, asked := strings.Cut(path, "?")
		if asked && !strings.Contains(query, "%") {
			query = escapeValues(query)
		}
		if asked {
			base += "?" + query
		}
		out.WriteString(r.raw(t, method, base, body) + "\n")
	}
	golden(t, "testdata/answers.txt", out.String())
	if !strings.Contains(r.log.String(), "a request made the daemon panic") {
		t.Error("the panic is not in the log")
	}
}

// escapeValues keeps the file readable: there, queries are written as they are meant.
func escapeValues(query string) string {
	parts := strings.Split(query, "&")
	for i, p := range parts {
		name, value, ok := strings.Cut(p, "=")
		if ok {
			parts[i] = name + "=" + url.QueryEscape(value)
		}
	}
	return strings.Join(parts, "&")
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with go test -update)", err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s differs (renew it with go test -update):\n%s", path, d)
	}
}

// TestOpenAPI keeps docs/openapi.json true.
func TestOpenAPI(t *testing.T) {
	doc, err := New(Options{Backend: newFake(), Version: "1"}).Document()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "../../docs/openapi.json", string(doc))
}
