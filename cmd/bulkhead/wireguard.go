package main

import (
	"fmt"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/wireguard"
)

// wireguardVerb is how the daemon starts the process of a WireGuard device.
const wireguardVerb = "wireguard"

// newWireGuardCmd is hidden: the daemon starts it, and it outlives the daemon.
func newWireGuardCmd() *cobra.Command {
	var o wireguard.ServeOptions
	cmd := &cobra.Command{
		Use:    wireguardVerb,
		Short:  "Be a WireGuard device outside the kernel",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			return wireguard.Serve(ctx, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Device, "device", "", "its name")
	f.StringVar(&o.Namespace, "namespace", "", "the compartment that it is in")
	f.StringVar(&o.Socket, "socket", "", "where it is configured")
	f.IntVar(&o.MTU, "mtu", 0, "its MTU")
	return cmd
}

// wireguardCheck says what encrypts.
func wireguardCheck(wg *wireguard.Applier) api.Check {
	c := api.Check{Name: "encryption", Status: "ok"}
	var err error
	c.Detail, err = wg.Implementation()
	st := wg.Status()
	switch {
	case err != nil:
		c.Status, c.Detail, c.Next = "fail", "encrypted networks have no way to other hosts: "+err.Error(), "modprobe wireguard, or start the daemon with --wireguard=auto; what they send is dropped as no-key meanwhile"
	case st.Problem != "":
		c.Status, c.Detail, c.Next = "fail", c.Detail+"; encrypted networks have no way to other hosts: "+st.Problem, "it is tried again by itself; what they send is dropped as no-key meanwhile"
	case len(st.Silent) > 0:
		c.Status, c.Detail = "warn", fmt.Sprintf("%s; no handshake with %d hosts: %.200s", c.Detail, len(st.Silent), strings.Join(st.Silent, ", "))
		c.Next = "bulkhead cluster check; UDP 2392 and 2393 have to be open between the hosts, in their own firewalls too"
	case len(st.Devices) == 0:
		c.Detail += "; there is no encrypted network"
	}
	return c
}
