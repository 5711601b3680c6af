package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newPsCmd(a *app) *cobra.Command {
	var all, quiet bool
	var filters []string
	cmd := &cobra.Command{
		Use:     "ps",
		Aliases: []string{"ls", "list"},
		Short:   "List containers",
		Long: `Lists the containers that run, or all of them with -a; also those that other runtimes have
put on our networks, with the runtime as their status. Filters of the same key are
alternatives, filters of different keys must all hold.`,
		Example: `  bulkhead ps -a
  bulkhead ps --filter network=lan --filter status=running
  bulkhead ps -q --filter label=app=web`,
		Args: noArgs,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&all, "all", "a", false, "also those that do not run")
	flags.BoolVarP(&quiet, "quiet", "q", false, "print the short IDs only, of our own containers")
	flags.StringArrayVarP(&filters, "filter", "f", nil, "name=TEXT, status=STATUS (paused too), network=NAME, label=KEY[=VALUE]")
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		keep, byStatus, err := parseFilters(filters)
		if err != nil {
			return err
		}
		list, err := c.Containers(cmd.Context())
		if err != nil {
			return err
		}
		attached, err := c.Attachments(cmd.Context(), "")
		if err != nil {
			return err
		}
		list = append(list, foreignContainers(attached)...)
		list = slices.DeleteFunc(list, func(c api.Container) bool {
			return !keep(c) || !all && !byStatus && !isUp(c.State.Status)
		})
		slices.SortStableFunc(list, func(x, y api.Container) int { return y.Created.Compare(x.Created) })
		if quiet {
			for _, c := range list {
				if c.Runtime == "" { // no command of ours takes the others
					fmt.Fprintln(a.Stdout, shortID(c.ID))
				}
			}
			return nil
		}
		return show(a, form, a.containerListing(list))
	})
	return cmd
}

// foreignContainers are the containers of other runtimes, each with the endpoints that its runtime asked for.
func foreignContainers(list []api.Attachment) (out []api.Container) {
	at := map[[2]string]int{}
	for _, a := range list {
		key := [2]string{a.Runtime, a.Container}
		i, ok := at[key]
		if !ok {
			i = len(out)
			at[key] = i
			out = append(out, api.Container{
				ID: a.Container, Name: cmp.Or(a.Name, a.Container), Runtime: cmp.Or(a.Runtime, a.Owner), Namespace: a.Namespace,
				Spec: api.ContainerSpec{Name: a.Name, Labels: a.Labels}, State: api.ContainerState{Status: api.StatusExited},
			})
		}
		if a.Namespace != "" {
			out[i].State.Status = api.StatusRunning
		}
		out[i].Endpoints = append(out[i].Endpoints, a.Endpoint)
	}
	return out
}

func (a *app) containerListing(list []api.Container) listing[api.Container] {
	return listing[api.Container]{
		items: list,
		name:  func(c api.Container) string { return c.Name },
		head:  []string{"CONTAINER ID", "IMAGE", "STATUS", "ADDRESSES", "PORTS", "NAME"},
		row: func(c api.Container) []any {
			return []any{
				shortID(c.ID), orDash(cut(c.Spec.Image, 40)),
				cell{statusText(c, a.Now()), statusStyle(c.State.Status)},
				orDash(strings.Join(addressesOf(c), ", ")), orDash(strings.Join(portsOf(c), ", ")), c.Name,
			}
		},
	}
}

// isUp tells whether a container counts as running for a plain ps.
func isUp(status string) bool {
	return status != api.StatusCreated && status != api.StatusExited && status != api.StatusFailed
}

// statusText says how a container is doing and since when.
func statusText(c api.Container, now time.Time) string {
	s := c.State
	if c.Runtime != "" {
		if isUp(s.Status) {
			return "in " + c.Runtime
		}
		return "gone from " + c.Runtime
	}
	switch s.Status {
	case api.StatusRunning:
		text := "up"
		if s.Started != nil {
			text += " " + ago(now.Sub(*s.Started))
		}
		if s.Paused {
			text += " (paused)"
		}
		return text
	case api.StatusExited:
		text := fmt.Sprintf("exited (%d)", s.ExitCode)
		if s.OOMKilled {
			text = fmt.Sprintf("exited (%d, out of memory)", s.ExitCode)
		}
		if s.Finished != nil {
			text += " " + ago(now.Sub(*s.Finished)) + " ago"
		}
		return text
	}
	return s.Status
}

// addressesOf lists a container's addresses without prefix lengths.
func addressesOf(c api.Container) []string {
	var out []string
	for _, e := range c.Endpoints {
		for _, addr := range e.Addresses {
			host, _, _ := strings.Cut(addr, "/")
			out = append(out, host)
		}
	}
	return out
}

func portsOf(c api.Container) []string {
	var out []string
	for _, e := range c.Endpoints {
		out = append(out, e.Ports...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func orDash(s string) string { return cmp.Or(s, "-") }

// parseFilters reads --filter KEY=VALUE. byStatus tells that a status is asked
// for, which shows containers that do not run.
func parseFilters(filters []string) (keep func(api.Container) bool, byStatus bool, err error) {
	wanted := map[string][]string{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok || value == "" || !slices.Contains([]string{"name", "status", "network", "label"}, key) {
			return nil, false, api.Errorf(api.KindInvalid, "filter %q is not known", f).
				Hint("use name=TEXT, status=STATUS, network=NAME or label=KEY[=VALUE]")
		}
		wanted[key] = append(wanted[key], value)
	}
	return func(c api.Container) bool {
		for key, values := range wanted {
			if !slices.ContainsFunc(values, func(v string) bool { return matches(c, key, v) }) {
				return false
			}
		}
		return true
	}, len(wanted["status"]) > 0, nil
}

func matches(c api.Container, key, value string) bool {
	switch key {
	case "name":
		return strings.Contains(c.Name, value)
	case "status":
		if c.State.Paused {
			return value == "paused"
		}
		return c.State.Status == value
	case "network":
		return slices.ContainsFunc(c.Endpoints, func(e api.ContainerEndpoint) bool { return e.Network == value })
	default:
		key, want, hasValue := strings.Cut(value, "=")
		got, ok := c.Spec.Labels[key]
		return ok && (!hasValue || got == want)
	}
}
