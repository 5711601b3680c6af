package nat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The tables of iptables-legacy are beside nftables: each hook asks both, and a drop of either is a drop. They cannot be traced
// but by a rule in them, and they are not ours. What they can be is read, with their counters, by the socket options that
// iptables-legacy itself uses. Only tables that are there are asked for: asking makes the kernel set up one that is not.

// legacyFamily is how one family's tables lie in memory (include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h).
type legacyFamily struct {
	word     string // of the files in /proc, "ip" or "ip6"
	domain   int
	level    int // of the socket options
	head     int // size of an entry before its matches and target
	offsets  int // where target_offset and next_offset are
	counters int
	v6       bool
	tool     string
}

func legacyFamilies() []legacyFamily {
	return []legacyFamily{
		{word: "ip", domain: unix.AF_INET, level: unix.SOL_IP, head: 112, offsets: 88, counters: 96, tool: "iptables-legacy"},
		{word: "ip6", domain: unix.AF_INET6, level: unix.SOL_IPV6, head: 168, offsets: 140, counters: 152, v6: true, tool: "ip6tables-legacy"},
	}
}

// The socket options, the same in both families, and the sizes of what goes with them.
const (
	legacyGetInfo    = 64
	legacyGetEntries = 65
	legacyName       = 32
	legacyEntries    = 40 // in front of the entries: name, size, and padding to eight
	legacyMost       = 64 << 20
	legacyTarget     = 32 // of a target's head
)

// The verdicts of a target that has no name.
const (
	legacyDrop   = -1
	legacyReturn = -5
)

// legacyInfo is struct ipt_getinfo, and ip6t_getinfo.
type legacyInfo struct {
	Name          [legacyName]byte
	ValidHooks    uint32
	HookEntry     [5]uint32
	Underflow     [5]uint32
	Entries, Size uint32
}

// legacyRule is a rule of a chain, or its policy.
type legacyRule struct {
	chain   string
	number  int    // from 1 within its chain; 0: the policy
	target  string // "DROP", "ACCEPT", "RETURN", a chain, or an extension's name
	packets uint64
}

func (r *legacyRule) drops() bool { return r.target == "DROP" || r.target == "REJECT" }

// legacyTable is one table.
type legacyTable struct {
	name  string
	hooks []string // of its base chains
	rules []legacyRule
}

// legacyTables reads those of a family that are there, in the thread's network namespace.
func legacyTables(f *legacyFamily) ([]legacyTable, error) {
	b, err := os.ReadFile("/proc/thread-self/net/" + f.word + "_tables_names")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // the kernel has none of it
	}
	if err != nil {
		return nil, err
	}
	names := strings.Fields(string(b))
	if len(names) == 0 {
		return nil, nil
	}
	fd, err := unix.Socket(f.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("read the tables of %s: %w", f.tool, os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	slices.Sort(names)
	var out []legacyTable
	var errs []error
	for _, name := range names {
		t, err := readLegacy(fd, f, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("read table %s of %s: %w", name, f.tool, err))
			continue
		}
		out = append(out, t)
	}
	return out, errors.Join(errs...)
}

// readLegacy tries again when somebody changes the table in between.
func readLegacy(fd int, f *legacyFamily, name string) (legacyTable, error) {
	if len(name) >= legacyName {
		return legacyTable{}, unix.ENAMETOOLONG
	}
	for try := 0; ; try++ {
		var info legacyInfo
		copy(info.Name[:], name)
		if err := getsockopt(fd, f.level, legacyGetInfo, unsafe.Slice((*byte)(unsafe.Pointer(&info)), unsafe.Sizeof(info))); err != nil {
			return legacyTable{}, err
		}
		if info.Size > legacyMost {
			return legacyTable{}, unix.EFBIG
		}
		buf := make([]byte, legacyEntries+int(info.Size))
		copy(buf, name)
		binary.NativeEndian.PutUint32(buf[legacyName:], info.Size)
		err := getsockopt(fd, f.level, legacyGetEntries, buf)
		if errors.Is(err, unix.EAGAIN) && try < 5 {
			continue
		}
		if err != nil {
			return legacyTable{}, err
		}
		return parseLegacy(f, name, &info, buf[legacyEntries:])
	}
}

func getsockopt(fd, level, name int, buf []byte) error {
	n := uint32(len(buf))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return os.NewSyscallError("getsockopt", e)
	}
	return nil
}

var errLegacyTable = errors.New("its entries contradict their sizes")

// parseLegacy reads the entries of a table. They lie one after the other: a base chain from its hook's entry to its policy, a
// user's chain from an entry that bears its name to one that returns.
func parseLegacy(f *legacyFamily, name string, info *legacyInfo, b []byte) (legacyTable, error) {
	t := legacyTable{name: name}
	begins, policies := map[int]string{}, map[int]bool{}
	for h := range info.HookEntry {
		if info.ValidHooks&(1<<h) != 0 {
			begins[int(info.HookEntry[h])], policies[int(info.Underflow[h])] = legacyHook(h), true
			t.hooks = append(t.hooks, legacyHook(h))
		}
	}
	chain, number := "", 0
	for at := 0; at < len(b); {
		e := b[at:]
		if len(e) < f.head {
			return t, errLegacyTable
		}
		target, next := int(binary.NativeEndian.Uint16(e[f.offsets:])), int(binary.NativeEndian.Uint16(e[f.offsets+2:]))
		if target < f.head || next < target+legacyTarget || next > len(e) {
			return t, errLegacyTable
		}
		if h, ok := begins[at]; ok {
			chain, number = h, 0
		}
		word, data := legacyTargetOf(e[target:next])
		if word == "ERROR" { // the head of a user's chain, or the table's end
			chain, number = cString(data), 0
			at += next
			continue
		}
		r := legacyRule{chain: chain, target: word, packets: binary.NativeEndian.Uint64(e[f.counters:])}
		if !policies[at] {
			number++
			r.number = number
		}
		t.rules = append(t.rules, r)
		at += next
	}
	return t, nil
}

// legacyTargetOf names a target, and gives what follows its head.
func legacyTargetOf(b []byte) (string, []byte) {
	word, data := cString(b[2:31]), b[legacyTarget:]
	if word != "" || len(data) < 4 {
		return word, data
	}
	switch v := int32(binary.NativeEndian.Uint32(data)); {
	case v == legacyDrop:
		return "DROP", nil
	case v == legacyReturn:
		return "RETURN", nil
	case v >= 0:
		return "jump", nil
	default:
		return "ACCEPT", nil
	}
}

func cString(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func legacyHook(h int) string {
	return [...]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}[h]
}

// written counts the rules that somebody wrote: not policies, nor the end of a user's chain, which is no more than a return.
func (t *legacyTable) written(chain string) int {
	n := 0
	for _, r := range t.rules {
		if r.number > 0 && (chain == "" || r.chain == chain) {
			n++
		}
	}
	if chain == "" { // each user's chain ends with a return that the tool adds
		n -= len(t.users())
	}
	return n
}

func (t *legacyTable) users() []string {
	var out []string
	for _, r := range t.rules {
		if !slices.Contains(t.hooks, r.chain) && !slices.Contains(out, r.chain) {
			out = append(out, r.chain)
		}
	}
	return out
}

func (t *legacyTable) drops() bool {
	return slices.ContainsFunc(t.rules, func(r legacyRule) bool { return r.drops() && r.number > 0 })
}

// chains are the base chains that have rules or a policy that drops, as an explanation knows those of nftables.
func (t *legacyTable) chains(f *legacyFamily) []plan.ForeignChain {
	var out []plan.ForeignChain
	for _, r := range t.rules {
		if r.number != 0 {
			continue
		}
		c := plan.ForeignChain{
			Table: t.name, Chain: r.chain, Hook: strings.ToLower(r.chain), V4: !f.v6, V6: f.v6, Tool: f.tool,
			DropPolicy: r.target == "DROP", Rules: t.written(r.chain),
		}
		c.Drops = c.Rules > 0 && t.drops()
		if c.Rules > 0 || c.DropPolicy {
			out = append(out, c)
		}
	}
	return out
}

// legacyText is a line for people about a family's tables; empty when no rule and no policy of them decides anything.
func legacyText(f *legacyFamily, tables []legacyTable) string {
	var parts []string
	for i := range tables {
		t := &tables[i]
		n, closed := t.written(""), 0
		for _, c := range t.chains(f) {
			if c.DropPolicy {
				closed++
			}
		}
		if n == 0 && closed == 0 {
			continue
		}
		s := fmt.Sprintf("%s (%d rules", t.name, n)
		if t.drops() {
			s += ", some drop"
		}
		if closed > 0 {
			s += fmt.Sprintf(", policy DROP in %d chains", closed)
		}
		parts = append(parts, s+")")
	}
	if len(parts) == 0 {
		return ""
	}
	return f.tool + ": " + strings.Join(parts, ", ") + ": they decide beside nftables, and are not traced"
}

// legacyCounted are the rules and policies that drop, and that have counted packets between two readings. Whose packets, they do
// not say.
func legacyCounted(f *legacyFamily, before, after []legacyTable) []plan.HostVerdict {
	var out []plan.HostVerdict
	for _, t := range after {
		i := slices.IndexFunc(before, func(o legacyTable) bool { return o.name == t.name })
		if i < 0 || !slices.EqualFunc(t.rules, before[i].rules, func(x, y legacyRule) bool {
			return x.chain == y.chain && x.number == y.number && x.target == y.target
		}) {
			continue // somebody has changed it meanwhile
		}
		for j, r := range t.rules {
			if n := r.packets - before[i].rules[j].packets; r.drops() && n > 0 && len(out) < traceRules {
				out = append(out, plan.HostVerdict{Tool: f.tool, Table: t.name, Chain: r.chain, Handle: uint64(r.number), Rule: "-j " + r.target, Verdict: "drop", Counted: n})
			}
		}
	}
	return out
}

// readLegacyOf is the state of the tables that a flow meets; none if they cannot be read, which explanations say by themselves.
func (a *Applier) readLegacyOf(flow plan.HostFlow) (f legacyFamily, tables []legacyTable) {
	f = legacyFamilies()[0]
	if flow.Dst.Is6() {
		f = legacyFamilies()[1]
	}
	_ = a.inNetns(func() (err error) {
		tables, err = legacyTables(&f)
		return err
	})
	return f, tables
}

// legacyTexts asks the tool for the texts of rules. Without it the target has to do.
func (a *Applier) legacyTexts(list []plan.HostVerdict) {
	ctx, cancel := context.WithTimeout(context.Background(), traceTexts)
	defer cancel()
	_ = a.inNetns(func() error {
		for i := range list {
			v := &list[i]
			if v.Handle == 0 {
				continue
			}
			text, err := exec.CommandContext(ctx, v.Tool, "-t", v.Table, "-S", v.Chain, strconv.FormatUint(v.Handle, 10)).Output()
			if line := strings.TrimSpace(string(text)); err == nil && line != "" {
				v.Rule = line
			}
		}
		return nil
	})
}
