package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newEventsCmd(a *app) *cobra.Command {
	var after uint64
	var kinds []string
	cmd := &cobra.Command{
		Use:   "events [flags]",
		Short: "Show what happens, as it happens",
		Long: `Shows what happens to containers, networks, endpoints, namespaces and images, and what
was repaired because somebody else had changed it (drift), until interrupted.`,
		Example: "  bulkhead events\n  bulkhead events -o json --after 1200",
		Args:    noArgs,
	}
	cmd.Flags().Uint64Var(&after, "after", 0, "begin with those after an event's number, as far as they are kept")
	cmd.Flags().StringSliceVar(&kinds, "kind", nil, "only these kinds: container, network, endpoint, namespace, guestnetworkservice, image or drift")
	complete(cmd, "kind", api.EventKinds()...)
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		stream, err := c.WatchEvents(cmd.Context(), client.EventOptions{Resume: cmd.Flags().Changed("after"), After: after, Kinds: kinds})
		if err != nil {
			return err
		}
		defer stream.Close()
		for {
			e, err := stream.Next()
			if errors.Is(err, client.ErrStreamEnded) {
				return api.Errorf(api.KindUnavailable, "the daemon ended the stream: it stops, or this reader is too slow").
					Hint("go on with bulkhead events --after %d", stream.Last())
			}
			if err != nil {
				return err
			}
			if err := a.printEvent(form, e); err != nil {
				return err
			}
		}
	})
	return cmd
}

func (a *app) printEvent(form string, e api.Event) error {
	switch form {
	case outputJSON: // one line each, for programs that follow
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.Stdout, string(b))
		return err
	case outputName:
		_, err := fmt.Fprintln(a.Stdout, clean(cmp.Or(e.Name, e.ID)))
		return err
	}
	_, err := fmt.Fprintln(a.Stdout, eventLine(e, a.colour()))
	return err
}

// eventLine is an event in words.
func eventLine(e api.Event, colour bool) string {
	what := cyan
	switch {
	case e.Kind == "drift":
		what = yellow
	case e.Action == "oom" || e.Attributes["error"] != "":
		what = red
	}
	id := e.ID
	if len(id) == 64 {
		id = shortID(id)
	}
	parts := []string{
		e.Time.UTC().Format(time.RFC3339),
		paint(clean(e.Kind+" "+e.Action), what, colour),
	}
	if e.Name != "" {
		parts = append(parts, clean(e.Name))
	}
	if id != "" {
		parts = append(parts, clean(id))
	}
	for _, key := range slices.Sorted(maps.Keys(e.Attributes)) {
		parts = append(parts, clean(key+"="+e.Attributes[key]))
	}
	return strings.Join(parts, " ")
}
