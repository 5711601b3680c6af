package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/dns"
)

// TestNameCheck: the doctor tells whom a network's resolver asks, and what went wrong lately, with the reason.
func TestNameCheck(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	up := dns.UpstreamStats{Addr: netip.MustParseAddrPort("192.0.2.53:53"), Asked: 9, Failed: 2, LastError: "i/o timeout"}
	failure := func(age time.Duration, refused bool) dns.Failure {
		return dns.Failure{
			Time: now.Add(-age), Client: netip.MustParseAddr("10.1.0.5"), Name: "web.example", Type: "A",
			Reason: "ask 192.0.2.53:53: SERVFAIL", Refused: refused,
		}
	}
	for name, tc := range map[string]struct {
		stats        dns.Stats
		status, says string
	}{
		"nobody to ask":    {dns.Stats{}, "ok", "our own names only"},
		"whom it asks":     {dns.Stats{Upstreams: []dns.UpstreamStats{up}}, "ok", "asked of 192.0.2.53 (2 of 9 questions failed, at last: i/o timeout)"},
		"failed lately":    {dns.Stats{Failures: []dns.Failure{failure(time.Hour, false), failure(time.Minute, false)}}, "warn", "without a good answer in the last 10 minutes: 1, at last 10.1.0.5 asked for web.example A: ask 192.0.2.53:53: SERVFAIL"},
		"failed long ago":  {dns.Stats{Failures: []dns.Failure{failure(time.Hour, false)}}, "ok", ""},
		"refused, as told": {dns.Stats{Failures: []dns.Failure{failure(time.Minute, true)}}, "ok", ""},
		"not listening":    {dns.Stats{Broken: []string{"10.1.0.1:53/udp"}}, "fail", "not listening on 10.1.0.1:53/udp"},
	} {
		got := nameCheck("nat", &tc.stats, now)
		if got.Name != "names on nat" || got.Status != tc.status || !strings.Contains(got.Detail, tc.says) || (got.Status == "ok") != (got.Next == "") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
