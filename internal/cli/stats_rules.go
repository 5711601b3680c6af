package cli

import (
	"context"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// ruleStats are the counters of a rule at an endpoint's port, and what it decided about since the reading before.
type ruleStats struct {
	Name     string   `json:"name"`
	Endpoint hcn.GUID `json:"endpoint"`
	Network  string   `json:"network"`
	api.Rule
	// PacketsPerSecond and BitsPerSecond are nil for a first reading.
	PacketsPerSecond *float64 `json:"packetsPerSecond,omitempty"`
	BitsPerSecond    *float64 `json:"bitsPerSecond,omitempty"`
}

// ruleKey tells rules of different ports apart.
type ruleKey struct {
	endpoint hcn.GUID
	number   uint32
}

func (a *app) watchRules(ctx context.Context, c *client.Client, names []string, form string, once bool) error {
	before := map[ruleKey]api.Rule{}
	var last time.Time
	return a.eachSecond(ctx, form, once, func(begin func()) (bool, error) {
		now, err := readRules(ctx, c, names)
		if err != nil {
			return false, err
		}
		passed := a.Now().Sub(last).Seconds()
		last = a.Now()
		for i := range now {
			r := &now[i]
			key := ruleKey{r.Endpoint, r.Number}
			if old, ok := before[key]; ok && passed > 0 {
				r.PacketsPerSecond = new(rate(old.Packets, r.Packets, passed))
				r.BitsPerSecond = new(rate(old.Bytes, r.Bytes, passed) * 8)
			}
			before[key] = r.Rule
		}
		begin()
		return true, show(a, form, ruleStatsListing(now))
	})
}

// readRules lists the rules of all ports of containers, in the order in which they are asked.
func readRules(ctx context.Context, c *client.Client, names []string) (out []ruleStats, err error) {
	named := len(names) > 0
	if names, err = namedOrRunning(ctx, c, names); err != nil {
		return nil, err
	}
	for _, name := range names {
		ports, err := c.Rules(ctx, name)
		if err != nil && !named && (api.IsKind(err, api.KindNotFound) || api.IsKind(err, api.KindConflict)) {
			continue // it ended in between, or is on no network
		}
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			for _, r := range p.Rules {
				out = append(out, ruleStats{Name: p.Name, Endpoint: p.Endpoint, Network: p.Network, Rule: r})
			}
		}
	}
	return out, nil
}

func ruleStatsListing(now []ruleStats) listing[ruleStats] {
	return listing[ruleStats]{
		items: now,
		name:  func(r ruleStats) string { return r.Name + "/" + ruleName(&r.DropRule) },
		head:  []string{"NAME", "NETWORK", "WAY", "ACTION", "MATCHES", "PACKETS", "BYTES", "RATE", "RULE"},
		row: func(r ruleStats) []any {
			speed := "-"
			if r.BitsPerSecond != nil {
				speed = bits(*r.BitsPerSecond)
			}
			return []any{r.Name, r.Network, r.Direction, actionCell(r.Action), r.Matches, r.Packets, size(int64(r.Bytes)), speed, ruleLabel(&r.Rule)}
		},
	}
}

// ruleLabel is what a rule says, with its Id where it has one.
func ruleLabel(r *api.Rule) string {
	if r.ID == "" {
		return r.Text
	}
	return r.ID + ": " + r.Text
}
