package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newPortCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "port NAME",
		Short:             "List a container's published ports",
		Long:              "Lists where on this host a container's ports are published. exposed says who can reach them.",
		Example:           "  bulkhead port web\n  bulkhead port -o json web",
		Args:              needArgs(1, 1, "container"),
		ValidArgsFunction: a.completeFirst(a.completeContainers(nil)),
	}
	a.shows(cmd, func(c *client.Client, form string, args []string) error {
		found, err := c.Container(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if form == outputJSON {
			list, err := c.Published(cmd.Context())
			if err != nil {
				return err
			}
			own := slices.DeleteFunc(list, func(p api.Published) bool {
				return !slices.ContainsFunc(found.Endpoints, func(e api.ContainerEndpoint) bool { return e.ID == p.Endpoint })
			})
			return writeJSON(a.Stdout, own)
		}
		for _, p := range portsOf(found) {
			fmt.Fprintln(a.Stdout, clean(p))
		}
		return nil
	})
	return cmd
}

func newPublishCmd(a *app) *cobra.Command {
	return group("publish", "Publish ports of a container that exists",
		`Publishes ports or takes them back, also while the container runs: nothing is
restarted, and connections through other ports go on.`,
		"  bulkhead publish add web 8443:443 --expose lan\n  bulkhead publish rm web 8443:443",
		a.planned(newPublishAddCmd(a)), a.planned(newPublishRmCmd(a)))
}

func newPublishAddCmd(a *app) *cobra.Command {
	var f publishFlags
	cmd := &cobra.Command{
		Use:   "add [flags] NAME [ADDRESS:]HOST:CONTAINER[/PROTOCOL]…",
		Short: "Publish further ports",
		Long: `Publishes ports of a container at once. They are reachable from this host only,
unless --expose or an address asks for more.`,
		Example: `  bulkhead publish add web 8443:443
  bulkhead publish add dns 53:53/udp --expose lan`,
		Args:              needArgs(2, -1, "container or port"),
		ValidArgsFunction: a.completeFirst(a.completeContainers(nil)),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.publish = args[1:]
			ports, asked, err := f.parse()
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			published, err := c.PublishPorts(cmd.Context(), args[0], ports)
			if err != nil {
				return err
			}
			announce(a.Stderr, ports, func(p api.PublishedPort) string { return asked[p] })
			for _, p := range published {
				fmt.Fprintln(a.Stdout, clean(p))
			}
			return nil
		},
	}
	addExposeFlag(cmd, &f.expose)
	return cmd
}

func newPublishRmCmd(a *app) *cobra.Command {
	var f publishFlags
	cmd := &cobra.Command{
		Use:   "rm [flags] NAME [ADDRESS:]HOST:CONTAINER[/PROTOCOL]…",
		Short: "Take published ports back",
		Long: `Takes published ports back, named as they were published: give the same address or
--expose. Other ports are not touched.`,
		Example:           "  bulkhead publish rm web 8443:443\n  bulkhead publish rm dns 53:53/udp --expose lan",
		Args:              needArgs(2, -1, "container or port"),
		ValidArgsFunction: a.completeFirst(a.completeContainers(nil)),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.publish = args[1:]
			ports, _, err := f.parse()
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			return c.UnpublishPorts(cmd.Context(), args[0], ports)
		},
	}
	addExposeFlag(cmd, &f.expose)
	return cmd
}
