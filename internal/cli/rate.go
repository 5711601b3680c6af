package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func newRateCmd(a *app) *cobra.Command {
	return group("rate", "How much a container may send and receive",
		`A rate is enforced at an endpoint's port of the switch, for containers with VM isolation
too. What exceeds it is dropped, and counted as rate-out or rate-in (bulkhead drops).`,
		"  bulkhead rate set web --out 10mbit --in 100mbit\n  bulkhead rate ls",
		newRateLsCmd(a), a.planned(newRateSetCmd(a)))
}

func newRateSetCmd(a *app) *cobra.Command {
	var out, in rateValue
	var network string
	cmd := &cobra.Command{
		Use:   "set [flags] NAME",
		Short: "Change what a container or an endpoint may send and receive",
		Long: `Changes the rates of a container's or an endpoint's port at once, for connections that
exist too. A direction that is not named keeps its rate; 0 lifts it.`,
		Example: "  bulkhead rate set web --out 10mbit --in 100mbit\n  bulkhead rate set web --network back --out 0",
		Args:    needArgs(1, 1, "container or endpoint"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var policies []hcn.EndpointPolicy
			if cmd.Flags().Changed("out") {
				policies = append(policies, hcn.NewEndpointPolicy(hcn.QOS, hcn.QosPolicySetting{MaximumOutgoingBandwidthInBytes: uint64(out)}))
			}
			if cmd.Flags().Changed("in") {
				policies = append(policies, hcn.NewEndpointPolicy(hcn.IncomingQOS, hcn.IncomingQosSetting{MaximumIncomingBandwidthInBytes: uint64(in)}))
			}
			if len(policies) == 0 {
				return api.Errorf(api.KindInvalid, "neither --out nor --in says what to change").Hint("bulkhead rate set %s --out 10mbit", args[0])
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			e, err := policyEndpoint(cmd.Context(), c, args[0], network)
			if err != nil {
				return err
			}
			return changePolicies(cmd.Context(), c, e.ID, hcn.RequestTypeUpdate, policies...)
		},
	}
	cmd.ValidArgsFunction = a.completeFirst(a.completeEndpoints)
	cmd.Flags().Var(&out, "out", "what it may send, like 10mbit; 0 for any")
	cmd.Flags().Var(&in, "in", "what it may receive, likewise")
	cmd.Flags().StringVar(&network, "network", "", "which of the container's endpoints, by its network")
	completeFlag(cmd, "network", a.completeNetworks)
	return cmd
}

// endpointRate is a line of rate ls, in bytes per second.
type endpointRate struct {
	Endpoint hcn.GUID `json:"endpoint"`
	Name     string   `json:"name"`
	Network  string   `json:"network"`
	Out      uint64   `json:"out"`
	In       uint64   `json:"in"`
}

func newRateLsCmd(a *app) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List endpoints that have a rate",
		Long:    "Lists the endpoints whose rate is bounded, those of containers too. With -o json rates are in bytes per second.",
		Example: "  bulkhead rate ls\n  bulkhead rate ls --network back",
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&network, "network", "", "only those of one network")
	completeFlag(cmd, "network", a.completeNetworks)
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		list, names, err := endpointsAndNetworks(cmd.Context(), c, network)
		if err != nil {
			return err
		}
		var rows []endpointRate
		for i := range list {
			e := &list[i]
			row := endpointRate{Endpoint: e.ID, Name: e.Name, Network: names[e.HostComputeNetwork]}
			if s, err := hcn.SettingsOf[hcn.QosPolicySetting](e.Policies); err == nil && len(s) > 0 {
				row.Out = s[0].MaximumOutgoingBandwidthInBytes
			}
			if s, err := hcn.SettingsOf[hcn.IncomingQosSetting](e.Policies); err == nil && len(s) > 0 {
				row.In = s[0].MaximumIncomingBandwidthInBytes
			}
			if row.Out > 0 || row.In > 0 {
				rows = append(rows, row)
			}
		}
		return show(a, form, listing[endpointRate]{
			items: rows,
			name:  func(r endpointRate) string { return nameOr(r.Name, r.Endpoint) },
			head:  []string{"NAME", "NETWORK", "OUT", "IN"},
			row: func(r endpointRate) []any {
				return []any{nameOr(r.Name, r.Endpoint), orDash(r.Network), rateText(r.Out), rateText(r.In)}
			},
		})
	})
	return cmd
}

func rateText(bytes uint64) string {
	if bytes == 0 {
		return "-"
	}
	return bits(float64(bytes) * 8)
}

// rateValue is a flag of a rate, in bytes per second.
type rateValue uint64

func (v *rateValue) String() string {
	if v == nil || *v == 0 {
		return ""
	}
	return rateText(uint64(*v))
}

func (v *rateValue) Set(s string) error {
	n, err := parseRate(s)
	*v = rateValue(n)
	return err
}

func (*rateValue) Type() string { return "rate" }

// parseRate reads a rate such as 10mbit or 1.5gbit/s, in powers of 1000, and gives bytes per second. A number without a unit
// could mean bits or bytes, and is refused; so is one of less than a byte, which would read as no bound.
func parseRate(s string) (uint64, error) {
	if s == "0" {
		return 0, nil
	}
	bad := fmt.Errorf("%q is not a rate: write it in bits per second, like 800kbit, 10mbit or 1.5gbit; 0 for no bound", s)
	t, ok := strings.CutSuffix(strings.TrimSuffix(strings.ToLower(s), "/s"), "bit")
	if !ok {
		return 0, bad
	}
	factor := 1.0
	if i := strings.IndexByte("kmgt", last(t)); i >= 0 {
		t = t[:len(t)-1]
		for range i + 1 {
			factor *= 1000
		}
	}
	if strings.Trim(t, "0123456789.") != "" {
		return 0, bad
	}
	v, err := strconv.ParseFloat(t, 64)
	if err != nil {
		return 0, bad
	}
	switch v = v * factor / 8; {
	case v == 0:
		return 0, nil
	case v < 1:
		return 0, fmt.Errorf("%q is less than a byte a second: give at least 8bit, or 0 for no bound", s)
	case v > 1e15:
		return 0, fmt.Errorf("%q is more than any machine sends: leave it out for no bound", s)
	}
	return uint64(v), nil
}
