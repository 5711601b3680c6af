package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestAsk: hosts answer each other, with an error in their own words; who does not, or is not there, is told from one who does, and nothing is
// left in etcd.
func TestAsk(t *testing.T) {
	t.Parallel()
	s := startEtcd(t, 1)
	s.found()
	a := s.host(1)
	b := &testHost{t: t, name: "h2", link: s.connect(), id: guid(0xa, 2), prepare: func(c *Config) {
		c.Answer = func(_ context.Context, by string, body json.RawMessage) (any, error) {
			switch string(body) {
			case `"who"`:
				return "you are " + by, nil
			case `"long"`:
				return strings.Repeat("x", 1<<20), nil
			}
			return nil, errors.New("I do not know")
		}
	}}
	b.start(s, "boot 2")
	a.connected()
	b.connected()
	ask := func(h *testHost, to hcn.GUID, body string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		got, err := h.Ask(ctx, to, body)
		return string(got), err
	}
	if err := a.waitFor(t.Context(), b.Status().Revision); err != nil { // it knows the other
		t.Fatal(err)
	}
	if got, err := ask(a, b.id, "who"); err != nil || got != `"you are h1"` {
		t.Errorf("%s, %v", got, err)
	}
	for body, want := range map[string]string{"what": "I do not know", "long": "the answer has more than"} {
		if _, err := ask(a, b.id, body); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
	if _, err := ask(b, a.id, "who"); !errors.Is(err, ErrNoAnswer) || !strings.Contains(err.Error(), `"h1"`) {
		t.Errorf("one that answers nothing: %v", err)
	}
	if _, err := ask(a, guid(0xa, 9), "who"); !errors.Is(err, ErrNotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	cli := s.dial()
	for _, prefix := range []string{"questions/", "answers/"} {
		if res, err := cli.Get(t.Context(), a.keys.base()+prefix, clientv3.WithPrefix()); err != nil || len(res.Kvs) != 0 {
			t.Errorf("%s: %v, %v", prefix, res, err)
		}
	}
	if p := a.Status().Problems; len(p) != 0 {
		t.Errorf("problems: %v", p)
	}
}
