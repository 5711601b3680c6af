package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// readNetStats reads the counters of the endpoints of containers, and of those that no container has: a name that is no
// container's is an endpoint's.
func readNetStats(ctx context.Context, c *client.Client, names []string) ([]api.Stats, error) {
	if len(names) == 0 {
		out, err := readStats(ctx, c, nil)
		if err != nil {
			return nil, err
		}
		alone, err := readLoneEndpoints(ctx, c, out)
		return append(out, alone...), err
	}
	var out []api.Stats
	for _, name := range names {
		s, err := c.ContainerStats(ctx, name)
		if api.IsKind(err, api.KindNotFound) {
			if e, other := endpoints(c).find(ctx, name); other == nil {
				s, err = endpointStats(ctx, c, e)
			}
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// readLoneEndpoints are the attached ones that are not in the readings of containers.
func readLoneEndpoints(ctx context.Context, c *client.Client, containers []api.Stats) ([]api.Stats, error) {
	known := map[hcn.GUID]bool{}
	for _, s := range containers {
		for _, n := range s.Networks {
			known[n.Endpoint] = true
		}
	}
	ids, err := c.EnumerateEndpoints(ctx, hcn.HostComputeQuery{})
	if err != nil {
		return nil, err
	}
	var out []api.Stats
	for _, id := range ids {
		if known[id] {
			continue
		}
		e, err := c.Endpoint(ctx, id)
		if isNotFound(err) {
			continue // it went in between
		}
		if err != nil {
			return nil, err
		}
		if e.HostComputeNamespace == "" {
			continue
		}
		s, err := endpointStats(ctx, c, e)
		if err != nil && !isNotFound(err) {
			return nil, err
		}
		if len(s.Networks) > 0 {
			out = append(out, s)
		}
	}
	return out, nil
}

func endpointStats(ctx context.Context, c *client.Client, e *hcn.HostComputeEndpoint) (api.Stats, error) {
	n, err := c.EndpointStats(ctx, e.ID)
	if err != nil {
		return api.Stats{}, err
	}
	return api.Stats{ID: string(e.ID), Name: nameOr(e.Name, e.ID), Time: time.Now(), Networks: []api.NetworkStats{n}}, nil
}

// netStats are the counters of an endpoint, and what it did since the reading before.
type netStats struct {
	Container string `json:"container"`
	api.NetworkStats
	// Rates are by second; nil for a first reading.
	Rates *netRates `json:"rates,omitempty"`
}

type netRates struct {
	BitsReceived    float64 `json:"bitsReceived"`
	BitsSent        float64 `json:"bitsSent"`
	PacketsReceived float64 `json:"packetsReceived"`
	PacketsSent     float64 `json:"packetsSent"`
	Dropped         float64 `json:"dropped"`
}

// netRows takes the endpoints out of readings of containers.
func netRows(now []api.Stats, before map[string]api.Stats) []netStats {
	var out []netStats
	for _, s := range now {
		last := map[hcn.GUID]api.NetworkStats{}
		for _, n := range before[s.ID].Networks {
			last[n.Endpoint] = n
		}
		passed := s.Time.Sub(before[s.ID].Time).Seconds()
		for _, n := range s.Networks {
			row := netStats{Container: s.Name, NetworkStats: n}
			if old, ok := last[n.Endpoint]; ok && passed > 0 {
				row.Rates = &netRates{
					BitsReceived: rate(old.BytesReceived, n.BytesReceived, passed) * 8, BitsSent: rate(old.BytesSent, n.BytesSent, passed) * 8,
					PacketsReceived: rate(old.PacketsReceived, n.PacketsReceived, passed), PacketsSent: rate(old.PacketsSent, n.PacketsSent, passed),
					Dropped: rate(old.DroppedIncoming+old.DroppedOutgoing, n.DroppedIncoming+n.DroppedOutgoing, passed),
				}
			}
			out = append(out, row)
		}
	}
	return out
}

// rate of a counter; one that went back began anew.
func rate(before, now uint64, seconds float64) float64 {
	if now < before {
		before = 0
	}
	return float64(now-before) / seconds
}

func netListing(now []api.Stats, before map[string]api.Stats) listing[netStats] {
	return listing[netStats]{
		items: netRows(now, before),
		name:  func(s netStats) string { return s.Container + "/" + s.Interface },
		head:  []string{"NAME", "INTERFACE", "RX PACKETS", "RX", "RX RATE", "TX PACKETS", "TX", "TX RATE", "DROPPED", "REASONS"},
		row: func(s netStats) []any {
			rx, tx := "-", "-"
			if s.Rates != nil {
				rx, tx = bits(s.Rates.BitsReceived), bits(s.Rates.BitsSent)
			}
			return []any{
				s.Container, s.Interface, s.PacketsReceived, size(int64(s.BytesReceived)), rx, s.PacketsSent, size(int64(s.BytesSent)), tx,
				s.DroppedIncoming + s.DroppedOutgoing, reasonsText(s.DropReasons),
			}
		},
	}
}

// bits is a rate in powers of 1000, as links are sold.
func bits(v float64) string {
	units := []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"}
	i := 0
	for v >= 1000 && i < len(units)-1 {
		v /= 1000
		i++
	}
	return fmt.Sprintf("%.3g%s", v, units[i])
}

// reasonsText has the most frequent reason first.
func reasonsText(reasons map[string]uint64) string {
	names := slices.SortedFunc(maps.Keys(reasons), func(a, b string) int {
		return cmp.Or(cmp.Compare(reasons[b], reasons[a]), strings.Compare(a, b))
	})
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %d", n, reasons[n])
	}
	return cmp.Or(strings.Join(names, ", "), "-")
}
