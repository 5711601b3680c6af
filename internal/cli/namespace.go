package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func newNamespaceCmd(a *app) *cobra.Command {
	return group("namespace", "Namespaces: compartments and what is attached to them",
		`A namespace holds one compartment, a network stack of its own, bound at
/run/netns/hns-GUID, in lower case, for other programs.`,
		"  bulkhead namespace create --name pod\n  bulkhead namespace attach pod web0",
		newNamespaceLsCmd(a), a.planned(newNamespaceCreateCmd(a)), newInspectKindCmd(a, "namespace", kindNamespace), a.planned(newNamespaceRmCmd(a)),
		a.planned(a.tentative(newNamespaceAttachCmd(a, hcn.RequestTypeAdd), lastArg)), a.planned(newNamespaceAttachCmd(a, hcn.RequestTypeRemove)), newNamespaceSyncCmd(a))
}

func newNamespaceLsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List namespaces",
		Long:    "Lists namespaces with the number of their compartment and what is in it.",
		Example: "  bulkhead namespace ls",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		list, err := c.Namespaces(cmd.Context())
		if err != nil {
			return err
		}
		return show(a, form, listing[hcn.HostComputeNamespace]{
			items: list,
			name:  func(n hcn.HostComputeNamespace) string { return nameOr(n.Name, n.ID) },
			head:  []string{"NAMESPACE ID", "NAME", "TYPE", "COMPARTMENT", "CONTAINERS", "ENDPOINTS", "OWNER"},
			row: func(n hcn.HostComputeNamespace) []any {
				containers, endpoints := 0, 0
				for _, r := range n.Resources {
					if r.Type == hcn.NamespaceResourceTypeEndpoint {
						endpoints++
					} else {
						containers++
					}
				}
				return []any{shortGUID(n.ID), orDash(n.Name), n.Type, n.NamespaceId, containers, endpoints, orDash(n.Owner)}
			},
		})
	})
	return cmd
}

func newNamespaceCreateCmd(a *app) *cobra.Command {
	var name string
	guest := "host"
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Create a namespace",
		Long: `Creates a compartment with a network stack of its own, and prints the namespace's ID.
One of type guest is the compartment of a VM: bulkhead run --network namespace:NAME
runs a container with VM isolation in it. A VM has one compartment, so one of type
guest-default is that, too.`,
		Example: "  bulkhead namespace create --name pod\n  bulkhead namespace create --name own --type guest",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			doc := hcn.HostComputeNamespace{Name: name, Owner: owner, SchemaVersion: hcn.V2()}
			switch guest {
			case "host":
			case "guest":
				doc.Type = hcn.NamespaceTypeGuest
			case "guest-default":
				doc.Type = hcn.NamespaceTypeGuestDefault
			default:
				return api.Errorf(api.KindInvalid, "--type %.40q is not known", guest).Hint("use --type host, guest or guest-default")
			}
			made, err := c.CreateNamespace(cmd.Context(), &doc)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Stdout, made.ID)
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name")
	cmd.Flags().StringVar(&guest, "type", guest, "where the compartment is: host, or guest or guest-default for that of a VM")
	return cmd
}

func newNamespaceSyncCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "sync NAME…",
		Short: "Wait until a VM has what is attached to its namespace",
		Long: `Has the VMs in namespaces of type guest look at what is attached, and waits until they
have just that. A VM follows changes by itself; this tells when it has, and fails where
it cannot.`,
		Example:           "  bulkhead namespace sync own",
		Args:              needNames("namespace"),
		ValidArgsFunction: a.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				n, err := namespaces(c).find(ctx, name)
				if err != nil {
					return err
				}
				return c.SyncNamespace(ctx, n.ID)
			})
		},
	}
}

func newNamespaceRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME…",
		Short:             "Remove namespaces",
		Long:              "Removes namespaces. Endpoints in them are detached and stay; containers in them must end first.",
		Example:           "  bulkhead namespace rm pod",
		Args:              needNames("namespace"),
		ValidArgsFunction: a.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return namespaces(c).remove(ctx, name, func(n *hcn.HostComputeNamespace) hcn.GUID { return n.ID }, c.DeleteNamespace)
			})
		},
	}
}

// newNamespaceAttachCmd makes attach, or detach for RequestTypeRemove.
func newNamespaceAttachCmd(a *app, what hcn.RequestType) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "attach NAMESPACE ENDPOINT",
		Short:             "Attach an endpoint to a namespace",
		Long:              "Gives the compartment the endpoint's vNIC, also while containers run in it.",
		Example:           "  bulkhead namespace attach pod web0",
		Args:              needArgs(2, 2, "namespace or endpoint"),
		ValidArgsFunction: a.completeEach(a.completeNamespaces, a.completeEndpoints),
	}
	if what == hcn.RequestTypeRemove {
		cmd.Use = "detach NAMESPACE ENDPOINT"
		cmd.Short = "Detach an endpoint from a namespace"
		cmd.Long = "Takes the endpoint's vNIC out of the compartment. The endpoint keeps its addresses."
		cmd.Example = "  bulkhead namespace detach pod web0"
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		n, err := namespaces(c).find(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		e, err := endpoints(c).find(cmd.Context(), args[1])
		if err != nil {
			return err
		}
		if what == hcn.RequestTypeRemove {
			return c.DetachEndpoint(cmd.Context(), n.ID, e.ID)
		}
		return c.AttachEndpoint(cmd.Context(), n.ID, e.ID)
	}
	return cmd
}
