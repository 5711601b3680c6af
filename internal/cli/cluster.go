package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func newClusterCmd(a *app) *cobra.Command {
	return group("cluster", "Hosts that share networks",
		`Hosts in a cluster have networks in common: an overlay network that is made on one of
them is on all. What they know of each other is in etcd: one that Bulkhead runs on
some of the hosts, or one of your own. There is no other controller.

The first host begins with init, which prints a token; the others join with it; and
any of them makes networks.`,
		`  bulkhead cluster init
  bulkhead join TOKEN
  bulkhead network create --type overlay blue
  bulkhead cluster ls`,
		newClusterInitCmd(a), newClusterLsCmd(a), newClusterStatusCmd(a), newClusterCheckCmd(a), newClusterTokenCmd(a), a.planned(newClusterLeaveCmd(a)), newClusterForgetCmd(a), newClusterRotateKeysCmd(a))
}

// hostFlags describe this host to a cluster.
func hostFlags(cmd *cobra.Command, s *api.ClusterHostSpec) {
	f := cmd.Flags()
	f.StringVar(&s.Name, "name", "", "name of this host in the cluster (default the host's own)")
	f.StringArrayVar(&s.Addresses, "address", nil, "address of this host that the others reach it by; again for IPv6 (default those of the NIC of the default route)")
	f.Uint16Var(&s.Port, "port", 0, "first of the three ports of a member of etcd, up to 65533 (default 2389)")
}

func newClusterInitCmd(a *app) *cobra.Command {
	var r api.ClusterInit
	cmd := &cobra.Command{
		Use:   "init [flags]",
		Short: "Begin a cluster",
		Long: `Begins a cluster: starts the first member of its etcd on this host, and prints a token
by which other hosts join for a day. It needs Debian's package etcd-server, and the
ports 2389 (etcd), 2390 (its members) and 2391 (hosts that join) open between the hosts.

With an etcd of your own there is nothing to begin: use bulkhead join --etcd.`,
		Example: "  bulkhead cluster init\n  bulkhead cluster init --address 192.0.2.1 --name web1",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			j, err := c.InitCluster(cmd.Context(), r)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.Stderr, "cluster %s has begun with this host; others join with:\n  bulkhead join TOKEN\nThree hosts with --member keep its etcd alive when one of them fails.\n", j.Cluster)
			_, err = fmt.Fprintln(a.Stdout, clean(j.Token))
			return err
		},
	}
	hostFlags(cmd, &r.ClusterHostSpec)
	cmd.Flags().StringVar(&r.Prefix, "prefix", "", "prefix of the keys in etcd (default /bulkhead)")
	return cmd
}

func newJoinCmd(a *app) *cobra.Command {
	var r api.ClusterJoin
	var e api.ClusterEtcd
	cmd := &cobra.Command{
		Use:   "join [flags] [TOKEN]",
		Short: "Get this host into a cluster",
		Long: `Gets this host into a cluster: with a token of bulkhead cluster init or bulkhead cluster
token, or with --etcd by an etcd of your own, where a cluster is begun if there is none
below the prefix. With --member the host also runs a member of the cluster's etcd:
three or five hosts should.

The files named are read by the daemon, and again for each connection, so certificates
can be renewed in place. After an error the host is in no cluster.

A host that is in the cluster of the token, and has lost its etcd because that has moved
to other addresses, looks for it where the token says, and keeps what it has.`,
		Example: `  bulkhead join bulkhead1.eyJhIjpbIjE5Mi4wLjIuMTo…
  bulkhead join --member bulkhead1.eyJhIjpbIjE5Mi4wLjIuMTo…
  bulkhead join --etcd https://192.0.2.1:2379 --etcd https://192.0.2.2:2379 \
    --cacert ca.pem --cert host.pem --key host-key.pem --prefix /bulkhead`,
		Args: needArgs(0, 1, "token"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (len(e.Endpoints) > 0) {
				return api.Errorf(api.KindInvalid, "join: name a token, or an etcd by --etcd, and not both").Hint("bulkhead cluster token, on a host of the cluster, makes a token")
			}
			if len(args) == 1 {
				if r.Port != 0 && !r.Member {
					return api.Errorf(api.KindInvalid, "--port is for a member of etcd, and this host is to run none").Hint("add --member, or drop --port")
				}
				if e.CACert+e.Cert+e.Key+e.Prefix != "" {
					return api.Errorf(api.KindInvalid, "--cacert, --cert, --key and --prefix are for an etcd of your own: a token has all of that").Hint("drop them, or the token")
				}
				r.Token = args[0]
			} else {
				if r.Member {
					return api.Errorf(api.KindInvalid, "--member is for the etcd that Bulkhead runs, and --etcd names one of your own").Hint("drop one of them")
				}
				if r.Port != 0 {
					return api.Errorf(api.KindInvalid, "--port is for the etcd that Bulkhead runs, and --etcd names one of your own").Hint("drop one of them")
				}
				if err := absolute(&e); err != nil {
					return err
				}
				r.Etcd = &e
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			j, err := c.JoinCluster(cmd.Context(), r)
			if err != nil {
				return err
			}
			if j.Founded {
				fmt.Fprintf(a.Stderr, "there was no cluster below that prefix: this host has begun one\n")
			}
			_, err = fmt.Fprintln(a.Stdout, j.Cluster)
			return err
		},
	}
	hostFlags(cmd, &r.ClusterHostSpec)
	f := cmd.Flags()
	f.BoolVar(&r.Member, "member", false, "run a member of the cluster's etcd on this host")
	f.StringArrayVar(&e.Endpoints, "etcd", nil, "address of an etcd of your own, like https://192.0.2.1:2379; again for its other members")
	f.StringVar(&e.CACert, "cacert", "", "certificate of the CA that etcd's certificates are of")
	f.StringVar(&e.Cert, "cert", "", "client certificate of this host")
	f.StringVar(&e.Key, "key", "", "its key")
	f.StringVar(&e.Prefix, "prefix", "", "prefix of the cluster's keys in etcd (default /bulkhead)")
	return cmd
}

// absolute names the files as the daemon would, whose directory is another.
func absolute(e *api.ClusterEtcd) error {
	for flag, path := range map[string]*string{"cacert": &e.CACert, "cert": &e.Cert, "key": &e.Key} {
		if *path == "" {
			return api.Errorf(api.KindInvalid, "--etcd needs --cacert, --cert and --key: etcd is used by TLS with client certificates only").Hint("add --%s FILE", flag)
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("--%s: %w", flag, err)
		}
		*path = abs
	}
	return nil
}

// joined gives the cluster, or says that there is none.
func joined(ctx context.Context, c *client.Client) (api.Cluster, error) {
	cl, err := c.Cluster(ctx)
	if err == nil && !cl.Joined {
		err = api.Errorf(api.KindConflict, "this host is in no cluster").Hint("bulkhead cluster init begins one, bulkhead join TOKEN joins one")
	}
	return cl, err
}

func newClusterLsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the hosts of the cluster",
		Long: `Lists the hosts of the cluster. One that is gone and still has blocks of addresses keeps
them until it comes back, or is forgotten.`,
		Example: "  bulkhead cluster ls\n  bulkhead cluster ls -o json",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		cl, err := joined(cmd.Context(), c)
		if err != nil {
			return err
		}
		if !cl.Connected {
			fmt.Fprintln(a.Stderr, "warning: the cluster is not reached, this is what was known last:", cleanLines(cl.Problem))
		}
		return show(a, form, listing[api.ClusterHost]{
			items: cl.Hosts,
			name:  func(h api.ClusterHost) string { return nameOr(h.Name, h.ID) },
			head:  []string{"HOST ID", "NAME", "STATE", "ADDRESSES", "ENDPOINTS", "BLOCKS", "VERSION"},
			row: func(h api.ClusterHost) []any {
				state := cell{"alive", green}
				if !h.Alive {
					state = cell{"gone", red}
				}
				var notes []string
				if h.Member {
					notes = append(notes, "etcd")
				}
				if h.Self {
					notes = append(notes, "this host")
				}
				if len(notes) > 0 {
					state.text += " (" + strings.Join(notes, ", ") + ")"
				}
				return []any{shortGUID(h.ID), orDash(h.Name), state, orDash(strings.Join(h.Addresses, ", ")), h.Endpoints, h.Blocks, orDash(h.Version)}
			},
		})
	})
	return cmd
}

func newClusterStatusCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how it is with the cluster",
		Long: `Shows this host's part in the cluster, the members of its etcd, the networks, and what is
in etcd that does not count, with the reasons. The exit code is 1 if the cluster is not
reached.`,
		Example: "  bulkhead cluster status\n  bulkhead cluster status -o json",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		cl, err := joined(cmd.Context(), c)
		if err != nil {
			return err
		}
		if form == outputTable {
			err = a.showCluster(cl)
		} else {
			err = writeJSON(a.Stdout, cl)
		}
		if err == nil && !cl.Connected {
			err = &exitError{code: 1}
		}
		return err
	})
	return cmd
}

func (a *app) showCluster(cl api.Cluster) error {
	t := newTable("CLUSTER", string(cl.ID))
	state := cell{"connected", green}
	if !cl.Connected {
		state = cell{"not connected: " + cl.Problem, red}
	}
	alive := 0
	for _, h := range cl.Hosts {
		if h.Alive {
			alive++
		}
	}
	kind := "your own"
	if cl.OwnEtcd {
		kind = "run by Bulkhead"
	}
	t.row("this host", fmt.Sprintf("%s (%s), %s", cl.Name, cl.Host, strings.Join(cl.Addresses, ", ")))
	t.row("state", state)
	t.row("hosts", fmt.Sprintf("%d alive, %d gone", alive, len(cl.Hosts)-alive))
	t.row("keys", keysText(cl.Hosts))
	if cl.Encryption != "" {
		t.row("encryption", map[string]string{"kernel": "WireGuard of the kernel", "user-space": "WireGuard outside the kernel"}[cl.Encryption])
	}
	t.row("etcd", fmt.Sprintf("%s, prefix %s, revision %d", kind, cl.Prefix, cl.Revision))
	if !cl.Expires.IsZero() {
		t.row("client certificate", "until "+cl.Expires.UTC().Format(time.DateOnly))
	}
	if err := t.write(a.Stdout, a.colour()); err != nil {
		return err
	}
	if len(cl.Etcd) > 0 {
		fmt.Fprintln(a.Stdout)
		m := newTable("MEMBER", "ADDRESS", "VERSION", "SIZE", "STATE")
		for _, e := range cl.Etcd {
			state := cell{"ok", green}
			switch {
			case e.Problem != "":
				state = cell{e.Problem, red}
			case e.Leader:
				state.text = "leader"
			}
			m.row(e.Name, orDash(e.Address), orDash(e.Version), fmt.Sprintf("%d KiB", e.Bytes/1024), state)
		}
		if err := m.write(a.Stdout, a.colour()); err != nil {
			return err
		}
	}
	if t := clusterEncrypted(cl, a.Now()); t != nil {
		fmt.Fprintln(a.Stdout)
		if err := t.write(a.Stdout, a.colour()); err != nil {
			return err
		}
	}
	if len(cl.Networks) > 0 {
		fmt.Fprintln(a.Stdout)
		n := newTable("NETWORK ID", "NAME", "VNI", "SUBNETS", "ENDPOINTS", "BLOCKS", "PROBLEM")
		for _, w := range cl.Networks {
			n.row(shortGUID(w.ID), w.Name, w.VNI, strings.Join(w.Subnets, ", "), w.Endpoints, w.Blocks, orDash(w.Problem))
		}
		if err := n.write(a.Stdout, a.colour()); err != nil {
			return err
		}
	}
	if len(cl.LoadBalancers) > 0 {
		fmt.Fprintln(a.Stdout)
		if err := clusterBalancers(cl).write(a.Stdout, a.colour()); err != nil {
			return err
		}
	}
	for i, p := range cl.Problems {
		if i == 0 {
			fmt.Fprintln(a.Stdout)
		}
		if _, err := fmt.Fprintf(a.Stdout, "%s: %s\n", clean(p.Object), clean(p.Reason)); err != nil {
			return err
		}
	}
	return nil
}

// clusterEncrypted is what passes inside WireGuard; nil: nothing can.
func clusterEncrypted(cl api.Cluster, now time.Time) *table {
	var t *table
	for _, h := range cl.Hosts {
		if h.Encrypted == nil {
			continue
		}
		if t == nil {
			t = newTable("ENCRYPTED WITH", "LAST HANDSHAKE", "RECEIVED", "SENT")
		}
		last := cell{text: ago(max(0, now.Sub(h.Encrypted.Handshake))) + " ago"}
		if h.Encrypted.Handshake.IsZero() {
			last = cell{"none", red}
		}
		t.row(nameOr(h.Name, h.ID), last, binarySize(h.Encrypted.Received), binarySize(h.Encrypted.Sent))
	}
	return t
}

func clusterBalancers(cl api.Cluster) *table {
	names := map[hcn.GUID]string{}
	for _, h := range cl.Hosts {
		names[h.ID] = h.Name
	}
	for _, n := range cl.Networks {
		names[n.ID] = n.Name
	}
	t := newTable("LOAD BALANCER ID", "NAME", "NETWORK", "HOST", "SERVICES", "BACK ENDS")
	for _, b := range cl.LoadBalancers {
		t.row(shortGUID(b.ID), orDash(b.Name), nameOr(names[b.Network], b.Network), nameOr(names[b.Host], b.Host), strings.Join(b.Services, ", "), b.Endpoints)
	}
	return t
}

func newClusterCheckCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [flags] [HOST…]",
		Short: "Check the network between the hosts",
		Long: `Has this host and others, all if none is named, send each other packets like those of
tunnels: to the tunnels' UDP port, of all sizes that their NICs take, without a
checksum, with one, and with one that the NIC computes. Says for each way what arrives,
what is broken, and what to do. It takes some seconds, and 64 hosts at most.

Where a way carries less than the NIC, that host lowers the MTU of the cluster's
networks to what fits; a later check raises it again. The exit code is 1 if something
is broken.`,
		Example:           "  bulkhead cluster check\n  bulkhead cluster check web2 web3\n  bulkhead cluster check -o json",
		ValidArgsFunction: a.completeHosts,
	}
	a.shows(cmd, func(c *client.Client, form string, args []string) error {
		res, err := c.CheckCluster(cmd.Context(), args...)
		if err != nil {
			return err
		}
		if form == outputTable {
			err = a.showCheck(res)
		} else {
			err = writeJSON(a.Stdout, res)
		}
		if err == nil && !res.OK {
			err = &exitError{code: 1}
		}
		return err
	})
	return cmd
}

func (a *app) showCheck(c api.ClusterCheck) error {
	t := newTable("FROM", "TO", "UDP", "PACKETS UP TO", "OF", "STATE")
	for _, p := range c.Paths {
		state := cell{"ok", green}
		switch {
		case len(p.Problems) > 0 && !p.Arrives:
			state = cell{"broken", red}
		case len(p.Problems) > 0:
			state = cell{"impaired", red}
		case p.Bytes == 0:
			state = cell{"arrives", yellow}
		case p.Bytes < p.MTU:
			state = cell{"smaller", yellow}
		}
		t.row(p.From, p.To, p.Port, bytesOr(p.Bytes), bytesOr(p.MTU), state)
	}
	if err := t.write(a.Stdout, a.colour()); err != nil {
		return err
	}
	fmt.Fprintln(a.Stdout)
	h := newTable("HOST", "NIC", "MTU", "MTU OF NETWORKS")
	for _, o := range c.Hosts {
		h.row(nameOr(o.Name, o.ID), orDash(o.NIC), bytesOr(o.NICMTU), bytesOr(o.NetworkMTU))
	}
	if err := h.write(a.Stdout, a.colour()); err != nil {
		return err
	}
	return a.showProblems(c)
}

// showProblems says each thing once, however many ways have it.
func (a *app) showProblems(c api.ClusterCheck) error {
	var lines []string
	add := func(format string, args ...any) {
		if line := fmt.Sprintf(format, args...); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	problem := func(p api.ClusterCheckProblem) {
		add("%s", clean(p.Reason))
		if p.Next != "" {
			add("  next: %s", clean(p.Next))
		}
	}
	for _, o := range c.Hosts {
		for _, p := range o.Problems {
			problem(p)
		}
	}
	for _, path := range c.Paths {
		for _, p := range path.Problems {
			problem(p)
		}
		if path.Note != "" {
			add("from %s to %s: %s", clean(path.From), clean(path.To), clean(path.Note))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(a.Stdout, "\n%s\n", strings.Join(lines, "\n"))
	return err
}

func bytesOr(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

// keysText says with which keys the hosts encrypt.
func keysText(hosts []api.ClusterHost) string {
	var newest uint32
	var without, behind []string
	for _, h := range hosts {
		for _, g := range h.Keys {
			newest = max(newest, g)
		}
	}
	for _, h := range hosts {
		switch {
		case !h.Alive:
		case len(h.Keys) == 0:
			without = append(without, nameOr(h.Name, h.ID))
		case len(h.Keys) > 1 || h.Keys[0] != newest:
			behind = append(behind, nameOr(h.Name, h.ID))
		}
	}
	if newest == 0 {
		return "none yet"
	}
	text := fmt.Sprintf("generation %d", newest)
	if len(behind) > 0 {
		text = fmt.Sprintf("changing to generation %d; not through yet: %s", newest, strings.Join(behind, ", "))
	}
	if len(without) > 0 {
		text += "; without any: " + strings.Join(without, ", ")
	}
	return text
}

func newClusterRotateKeysCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rotate-keys",
		Short: "Change the keys by which hosts encrypt",
		Long: `Has every host of the cluster make itself a new key, for networks that are encrypted. A
host goes on with the old keys until it has shaken hands by the new ones, so no connection
notices. One that does not answer is waited for at most ten minutes; bulkhead cluster
status says how far it is. Prints the number of the new generation.`,
		Example: "  bulkhead cluster rotate-keys",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			k, err := c.RotateClusterKeys(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Stdout, k.Generation)
			return err
		},
	}
}

func newClusterTokenCmd(a *app) *cobra.Command {
	var valid time.Duration
	cmd := &cobra.Command{
		Use:   "token [flags]",
		Short: "Make a token by which hosts join",
		Long: `Makes a token by which hosts join the cluster until its time is over. Who has it can join:
treat it like a password.`,
		Example: "  bulkhead cluster token\n  bulkhead cluster token --valid-for 10m",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			t, err := c.ClusterToken(cmd.Context(), valid)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Stdout, clean(t))
			return err
		},
	}
	cmd.Flags().DurationVar(&valid, "valid-for", 0, "how long it is good for, like 10m (default 24h)")
	return cmd
}

func newClusterLeaveCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "leave [flags]",
		Short: "Take this host out of its cluster",
		Long: `Takes this host out of its cluster, and the cluster's networks off this host. It is refused
while containers of this host are on them, while the cluster cannot be told, and while
the others need the member of etcd that runs here; --force does it all the same.`,
		Example: "  bulkhead cluster leave",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return c.LeaveCluster(cmd.Context(), force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "leave although something or somebody suffers from it")
	return cmd
}

func newClusterForgetCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "forget [flags] HOST…",
		Short: "Free the addresses of hosts that will not come back",
		Long: `Removes hosts that will not come back from the cluster, by their names or IDs, so that
others can have their addresses. One that does come back is kept out, until it leaves
and joins anew.`,
		Example:           "  bulkhead cluster forget web3",
		Args:              needNames("host"),
		ValidArgsFunction: a.completeHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return c.ForgetClusterHost(ctx, name, force)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "forget a host that is alive, too")
	return cmd
}

// completeHosts gives the names of the cluster's hosts.
func (a *app) completeHosts(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return a.live(func(ctx context.Context, c *client.Client) ([]string, error) {
		cl, err := c.Cluster(ctx)
		var names []string
		for _, h := range cl.Hosts {
			if h.Name == "" {
				h.Name = string(h.ID)
			}
			if !h.Self {
				names = append(names, h.Name)
			}
		}
		return names, err
	})(cmd, args, begun)
}
