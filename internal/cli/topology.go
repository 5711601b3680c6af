package cli

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func newTopologyCmd(a *app) *cobra.Command {
	var ascii bool
	var columns int
	var form string
	cmd := &cobra.Command{
		Use:   "topology",
		Short: "Draw the networks, their switches and what is on them",
		Long: `Draws what is there: the host with its uplink, each network's switch with the host's
addresses on it, and on its ports each compartment with its container, vNICs, MACs,
addresses and published ports. It is as wide as the terminal.

With -o json, the documents that the picture is drawn from.`,
		Example: "  bulkhead topology\n  bulkhead topology --ascii --width 80\n  bulkhead topology -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if form != outputTable && form != outputJSON {
				return api.Errorf(api.KindInvalid, "--output %q is not known", form).Hint("use table for the picture, or json")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			t, err := readTopology(cmd.Context(), c)
			if err != nil {
				return err
			}
			if form == outputJSON {
				return writeJSON(a.Stdout, t.documents())
			}
			l := unicodeLines()
			if ascii || !a.utf8() {
				l = asciiLines()
			}
			return t.draw(cmp.Or(columns, a.columns()), l).write(a.Stdout, a.colour())
		},
	}
	cmd.Flags().BoolVar(&ascii, "ascii", false, "draw with ASCII; so it does where the locale is not UTF-8")
	cmd.Flags().StringVarP(&form, "output", "o", outputTable, "form of the output: table (the picture) or json")
	complete(cmd, "output", outputTable, outputJSON)
	cmd.Flags().IntVar(&columns, "width", 0, "columns to use, 48 to 132; 0 for the terminal's")
	return cmd
}

// utf8 tells whether the locale's characters are UTF-8. The first of the variables
// that is set decides (POSIX).
func (a *app) utf8() bool {
	locale := strings.ToLower(cmp.Or(a.env("LC_ALL"), a.env("LC_CTYPE"), a.env("LANG")))
	return strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
}

// columns is the width of the terminal.
func (a *app) columns() int {
	if a.Width > 0 {
		return a.Width
	}
	if f, ok := terminal(a.Stdout); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return w
		}
	}
	if n, err := strconv.Atoi(a.env("COLUMNS")); err == nil && n > 0 {
		return n
	}
	return 100
}

func readTopology(ctx context.Context, c *client.Client) (topology, error) {
	var t topology
	for _, read := range []func() error{
		func() (err error) { t.info, err = c.Info(ctx); return err },
		func() (err error) { t.networks, err = c.Networks(ctx); return err },
		func() (err error) { t.endpoints, err = c.Endpoints(ctx); return err },
		func() (err error) { t.namespaces, err = c.Namespaces(ctx); return err },
		func() (err error) { t.containers, err = c.Containers(ctx); return err },
		func() (err error) { t.published, err = c.Published(ctx); return err },
	} {
		if err := read(); err != nil {
			return t, err
		}
	}
	slices.SortStableFunc(t.networks, func(x, y hcn.HostComputeNetwork) int { return cmp.Compare(x.Name, y.Name) })
	slices.SortStableFunc(t.containers, func(x, y api.Container) int { return cmp.Compare(x.Name, y.Name) })
	return t, nil
}

// documents is what the picture is drawn from, as -o json shows it.
func (t topology) documents() any {
	return struct {
		Host       api.Info                   `json:"host"`
		Networks   []hcn.HostComputeNetwork   `json:"networks"`
		Endpoints  []hcn.HostComputeEndpoint  `json:"endpoints"`
		Namespaces []hcn.HostComputeNamespace `json:"namespaces"`
		Containers []api.Container            `json:"containers"`
		Published  []api.Published            `json:"published"`
	}{t.info, t.networks, t.endpoints, t.namespaces, t.containers, t.published}
}
