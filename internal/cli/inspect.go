package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// The kinds of object that inspect finds, in the order in which it looks.
const (
	kindContainer = "container"
	kindNetwork   = "network"
	kindEndpoint  = "endpoint"
	kindNamespace = "namespace"
	kindBalancer  = "loadbalancer"
	kindImage     = "image"
)

// newInspectCmd shows any object by its name.
func newInspectCmd(a *app) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "inspect [flags] NAME…",
		Short: "Show everything about an object of any kind",
		Long: `Shows the documents of containers, networks, endpoints, namespaces, load balancers and
images, found by name or ID in this order. HCN documents are shown as HCN clients see them.`,
		Example: `  bulkhead inspect web
  bulkhead inspect --type network nat`,
		Args:              needNames("name"),
		ValidArgsFunction: a.completeAny,
	}
	form := outputFlag(cmd, outputJSON)
	cmd.Flags().StringVar(&kind, "type", "", "look for one kind only: container, network, endpoint, namespace, loadbalancer or image")
	complete(cmd, "type", kindContainer, kindNetwork, kindEndpoint, kindNamespace, kindBalancer, kindImage)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		kinds := []string{kindContainer, kindNetwork, kindEndpoint, kindNamespace, kindBalancer, kindImage}
		if kind != "" {
			kinds = []string{kind}
		}
		return a.inspect(cmd.Context(), *form, args, kinds)
	}
	return cmd
}

// newInspectKindCmd is inspect for one kind, below the kind's own command.
func newInspectKindCmd(a *app, what, kind string) *cobra.Command {
	names := map[string]completer{
		kindContainer: a.completeContainers(nil), kindNetwork: a.completeNetworks, kindEndpoint: a.completeEndpoints,
		kindNamespace: a.completeNamespaces, kindBalancer: a.completeBalancers, kindImage: a.completeImages,
	}
	cmd := &cobra.Command{
		Use:               "inspect [flags] NAME…",
		Short:             fmt.Sprintf("Show everything about %ss", what),
		Long:              fmt.Sprintf("Shows the documents of %ss, found by name or ID.", what),
		Example:           fmt.Sprintf("  bulkhead %s inspect %s", strings.ReplaceAll(what, " ", ""), map[string]string{kindNetwork: "nat", kindImage: "registry.example/web"}[kind]),
		Args:              needNames(what),
		ValidArgsFunction: names[kind],
	}
	if cmd.Example[len(cmd.Example)-1] == ' ' {
		cmd.Example += "web"
	}
	form := outputFlag(cmd, outputJSON)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.inspect(cmd.Context(), *form, args, []string{kind})
	}
	return cmd
}

// found is an object of some kind.
type found struct {
	kind, name, id string
	doc            any
}

// inspected is a container with the rules of its ports and what they have counted.
type inspected struct {
	api.Container
	Rules []api.EndpointRules `json:"rules,omitempty"`
}

func (a *app) inspect(ctx context.Context, form string, names, kinds []string) error {
	if err := checkOutput(form); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	var all []found
	for _, name := range names {
		one, err := lookUp(ctx, c, name, kinds)
		if err != nil {
			return err
		}
		all = append(all, one)
	}
	if form == outputJSON {
		docs := make([]any, len(all))
		for i, f := range all {
			docs[i] = f.doc
		}
		return writeJSON(a.Stdout, docs)
	}
	return show(a, form, listing[found]{
		items: all,
		name:  func(f found) string { return f.name },
		head:  []string{"KIND", "NAME", "ID"},
		row:   func(f found) []any { return []any{f.kind, orDash(f.name), f.id} },
	})
}

// lookUp finds an object by trying kind after kind.
func lookUp(ctx context.Context, c *client.Client, name string, kinds []string) (found, error) {
	for _, kind := range kinds {
		f, err := lookUpKind(ctx, c, name, kind)
		if err == nil {
			return f, nil
		}
		// A word that cannot be a reference to an image is not there either.
		if len(kinds) == 1 || !isNotFound(err) && !api.IsKind(err, api.KindInvalid) {
			return found{}, err
		}
	}
	return found{}, api.Errorf(api.KindNotFound, "nothing is called %q or has such an ID", name).
		Hint("bulkhead ps -a, bulkhead network ls, bulkhead endpoint ls, bulkhead namespace ls, bulkhead loadbalancer ls or bulkhead images")
}

func lookUpKind(ctx context.Context, c *client.Client, name, kind string) (found, error) {
	switch kind {
	case kindContainer:
		o, err := c.Container(ctx, name)
		if err != nil {
			return found{}, err
		}
		// A container that does not run has no port whose rules would count anything.
		rules, err := c.Rules(ctx, name)
		if err != nil && !isNotFound(err) && !api.IsKind(err, api.KindConflict) {
			return found{}, err
		}
		return found{kind, o.Name, o.ID, inspected{o, rules}}, nil
	case kindNetwork:
		o, err := networks(c).find(ctx, name)
		if err != nil {
			return found{}, err
		}
		return found{kind, o.Name, string(o.ID), o}, nil
	case kindEndpoint:
		o, err := endpoints(c).find(ctx, name)
		if err != nil {
			return found{}, err
		}
		return found{kind, o.Name, string(o.ID), o}, nil
	case kindNamespace:
		o, err := namespaces(c).find(ctx, name)
		if err != nil {
			return found{}, err
		}
		return found{kind, o.Name, string(o.ID), o}, nil
	case kindBalancer:
		o, err := balancers(c).find(ctx, name)
		if err != nil {
			return found{}, err
		}
		return found{kind, o.Name, string(o.ID), o}, nil
	case kindImage:
		o, err := c.Image(ctx, name)
		return found{kind, imageName(o), o.ID, o}, err
	}
	return found{}, api.Errorf(api.KindInvalid, "--type %q is not known", kind).
		Hint("use container, network, endpoint, namespace, loadbalancer or image")
}
