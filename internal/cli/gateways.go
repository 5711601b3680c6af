package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// warnGateways says that which of a container's networks has the default route follows from their order alone: who means it
// to be a certain one had better say so. It is a help, so what cannot be asked is left unsaid.
func (a *app) warnGateways(ctx context.Context, c *client.Client, container string) {
	one, err := c.Container(ctx, container)
	if err != nil {
		return
	}
	byPriority, highest := map[int][]string{}, 0
	for _, e := range one.Endpoints {
		if len(e.Gateways) == 0 {
			continue
		}
		doc, err := c.Endpoint(ctx, e.ID)
		if err != nil {
			return
		}
		priority := 0
		if s, err := hcn.SettingsOf[hcn.GatewayPrioritySetting](doc.Policies); err == nil && len(s) > 0 {
			priority = s[0].Priority
		}
		if len(byPriority) == 0 || priority > highest {
			highest = priority
		}
		byPriority[priority] = append(byPriority[priority], e.Network)
	}
	nets := byPriority[highest]
	if len(nets) < 2 {
		return
	}
	slices.Sort(nets)
	fmt.Fprintf(a.Stderr, "%s could each have the default route, with the same gw-priority (%d): it stays with the one that was joined first\n",
		clean(strings.Join(nets, " and ")), highest)
}
