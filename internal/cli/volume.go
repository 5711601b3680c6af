package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newVolumeCmd(a *app) *cobra.Command {
	return group("volume", "Named volumes",
		"A volume is made when a container that mounts it starts (run -v NAME:TARGET), and stays until it is removed.",
		"  bulkhead volume ls\n  bulkhead volume rm data",
		newVolumeLsCmd(a), newVolumeRmCmd(a), newVolumePruneCmd(a))
}

func newVolumeLsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List volumes",
		Long:    "Lists the named volumes and the containers that mount them, running or not.",
		Example: "  bulkhead volume ls\n  bulkhead volume ls -o json",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		volumes, err := c.Volumes(cmd.Context())
		if err != nil {
			return err
		}
		return show(a, form, listing[api.Volume]{
			items: volumes,
			name:  func(v api.Volume) string { return v.Name },
			head:  []string{"NAME", "CREATED", "CONTAINERS", "PATH"},
			row: func(v api.Volume) []any {
				return []any{v.Name, ago(a.Now().Sub(v.Created)) + " ago", strings.Join(v.Containers, ", "), v.Path}
			},
		})
	})
	return cmd
}

func newVolumeRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rm VOLUME…",
		Short:             "Remove volumes",
		Long:              "Removes volumes and all that is in them. One that a container mounts, running or not, stays.",
		Example:           "  bulkhead volume rm data",
		Args:              needNames("volume"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return c.RemoveVolume(ctx, name)
			})
		},
	}
}

func newVolumePruneCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "prune [flags]",
		Short:   "Remove volumes that no container mounts",
		Long:    "Removes the volumes that no container mounts, with all that is in them, after asking.",
		Example: "  bulkhead volume prune -f",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			volumes, err := c.Volumes(cmd.Context())
			if err != nil {
				return err
			}
			var unused []string
			for _, v := range volumes {
				if len(v.Containers) == 0 {
					unused = append(unused, v.Name)
				}
			}
			if len(unused) == 0 {
				return nil
			}
			if !force && !a.confirm("remove "+clean(strings.Join(unused, ", "))+" with all that is in them?") {
				return api.Errorf(api.KindConflict, "nothing is removed without a yes").Hint("bulkhead volume prune -f")
			}
			var errs []error
			for _, name := range unused {
				if err := c.RemoveVolume(cmd.Context(), name); err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(a.Stdout, clean(name))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}
