package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/dns"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// namesLately is how old a question without a good answer may be for the doctor to tell of it.
const namesLately = 10 * time.Minute

// nameChecks are the doctor's lines about the resolvers, one for each network that has one.
func nameChecks(e *engine.Engine, names *dns.Resolver) []api.Check {
	var out []api.Check
	for _, p := range e.Ports() {
		if p.Kind != plan.PortResolver {
			continue
		}
		if s, ok := names.Stats(p.Network); ok {
			out = append(out, nameCheck(networkName(e, p), &s, time.Now()))
		}
	}
	slices.SortFunc(out, func(a, b api.Check) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func nameCheck(network string, s *dns.Stats, now time.Time) api.Check {
	c := api.Check{Name: "names on " + network, Status: "ok"}
	servers := make([]string, len(s.Upstreams))
	for i, u := range s.Upstreams {
		servers[i] = withoutPort53(u.Addr)
		if u.Failed > 0 {
			servers[i] += fmt.Sprintf(" (%d of %d questions failed, at last: %s)", u.Failed, u.Asked, u.LastError)
		}
	}
	c.Detail = "our own names only: there is nobody to ask for others"
	if len(servers) > 0 {
		c.Detail = "other names are asked of " + strings.Join(servers, ", ")
	}
	var bad []dns.Failure
	for _, f := range s.Failures {
		if !f.Refused && now.Sub(f.Time) < namesLately {
			bad = append(bad, f)
		}
	}
	if len(bad) > 0 {
		f := bad[len(bad)-1]
		c.Status = "warn"
		c.Detail += fmt.Sprintf("; without a good answer in the last %d minutes: %d, at last %s asked for %s %s: %s",
			int(namesLately.Minutes()), len(bad), f.Client, f.Name, f.Type, f.Reason)
		c.Next = "see whether these servers answer the host; /etc/resolv.conf names the host's, and network create --dns gives a network others"
	}
	if len(s.Broken) > 0 {
		c.Status = "fail"
		c.Detail += "; not listening on " + strings.Join(s.Broken, ", ") + ", which is tried again"
		c.Next = "look into the daemon's log"
	}
	return c
}

// withoutPort53 is a server as users name it.
func withoutPort53(a netip.AddrPort) string {
	if a.Port() == 53 {
		return a.Addr().String()
	}
	return a.String()
}
