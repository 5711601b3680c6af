package overlay

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/durable"
)

// What is known of the cluster is kept in a file of the run directory, so that a daemon that starts while etcd is away knows what the last
// one did. It ends with the host's run, and etcd has the last word: the first whole read from there replaces all of it. What is read from
// the file is held against the same bounds as what is read from etcd.

// fileMemory is in Options.RunDir.
const fileMemory = "cluster-known"

// kept are the kinds of keys that the file has.
var kept = map[kind]bool{kindSchema: true, kindHost: true, kindNetwork: true, kindBlock: true, kindEndpoint: true, kindBalancer: true}

// memoryHead is the file's first line. A line for each key follows: the key, the revisions of its making and of its value, and the value,
// with tabs between, of which those have none. The last line has no key: how many there are, and the sum of all lines before it.
type memoryHead struct {
	Version int      `json:"version"`
	Prefix  string   `json:"prefix"`
	Host    hcn.GUID `json:"host"`
	Boot    string   `json:"boot"`
	Rev     int64    `json:"revision"`
}

const (
	memoryVersion = 1
	// maxMemoryLine is a key with the largest of values, and what JSON puts around them.
	maxMemoryLine = 512 << 10
	maxMemoryKeys = 4 * maxObjects
	// saveEvery is how often the file is written at most, and saveShare which part of its time a processor may have for it: with many
	// endpoints it is written the more rarely.
	saveEvery   = time.Second
	saveShare   = 50
	saveLongest = 30 * time.Second
)

var memorySums = crc32.MakeTable(crc32.Castagnoli)

// saveSoon has the file written, if it lacks something. Locked: a.mu.
func (a *Agent) saveSoon() {
	if !a.cache.unsaved || a.cfg.Memory == "" {
		return
	}
	select {
	case a.unsaved <- struct{}{}:
	default:
	}
}

// remember writes the file when something has changed, until ctx ends, and then once more if it has to be.
func (a *Agent) remember(ctx context.Context) {
	said := ""
	save := func() time.Duration {
		begin := time.Now()
		err := a.save()
		if err != nil && err.Error() != said {
			said = err.Error()
			a.log.Warn("keep what is known of the cluster, for a daemon that starts while etcd is away", "error", err)
		} else if err == nil {
			said = ""
		}
		return min(max(saveEvery, saveShare*time.Since(begin)), saveLongest)
	}
	for wait := time.Duration(0); ; {
		if !sleep(ctx, wait) {
			break
		}
		select {
		case <-a.unsaved:
			wait = save()
			continue
		case <-ctx.Done():
		}
		break
	}
	select {
	case <-a.unsaved:
		save()
	default:
	}
}

// save writes the file. What is in the cache is never changed in place, so it is put into words without the lock.
func (a *Agent) save() error {
	a.mu.Lock()
	c := a.cache
	head := memoryHead{Version: memoryVersion, Prefix: a.cfg.Prefix, Host: a.self.ID, Boot: a.self.Boot, Rev: c.rev}
	items := c.items()
	c.unsaved = false
	a.mu.Unlock()
	err := durable.Write(a.cfg.Memory, func(w io.Writer) error { return writeMemory(w, head, items) })
	if err != nil {
		a.mu.Lock()
		c.unsaved = true // the next change has it tried again
		a.mu.Unlock()
	}
	return err
}

// remembered is an item on its way into the file.
type remembered struct {
	key          func() string
	v            any
	created, rev int64
}

func rememberedOf[T any](it *item[T], key func() string) remembered {
	return remembered{key, &it.v, it.created, it.rev}
}

// items are all that the file keeps, in an order in which it can be taken in.
func (c *cache) items() []remembered {
	out := make([]remembered, 0, 1+len(c.hosts)+len(c.networks)+c.count[kindBlock]+c.count[kindEndpoint]+len(c.balancers.all))
	if c.schema != nil {
		out = append(out, rememberedOf(c.schema, c.keys.schema))
	}
	for id, it := range c.hosts {
		out = append(out, rememberedOf(it, func() string { return c.keys.host(id) }))
	}
	for id, it := range c.networks {
		out = append(out, rememberedOf(it, func() string { return c.keys.network(id) }))
	}
	for net, of := range c.blocks {
		for p, it := range of {
			out = append(out, rememberedOf(it, func() string { return c.keys.block(net, p) }))
		}
	}
	for net, of := range c.endpoints {
		for id, list := range of {
			for _, it := range list {
				out = append(out, rememberedOf(it, func() string { return c.keys.endpoint(net, it.v.Host, id) }))
			}
		}
	}
	for k, it := range c.balancers.all {
		out = append(out, rememberedOf(it, func() string { return c.keys.balancer(k.Network, k.Host, k.ID) }))
	}
	return out
}

func writeMemory(w io.Writer, head memoryHead, items []remembered) error {
	buf := bufio.NewWriterSize(w, 64<<10)
	sum := crc32.New(memorySums)
	var b []byte
	line := func() error {
		b = append(b, '\n')
		sum.Write(b)
		_, err := buf.Write(b)
		return err
	}
	b, err := json.Marshal(head)
	if err != nil {
		return err
	}
	if err := line(); err != nil {
		return err
	}
	n := int64(0)
	for i := range items {
		it := &items[i]
		value, err := json.Marshal(it.v)
		if err != nil {
			return err
		}
		b = strconv.AppendInt(append(append(b[:0], it.key()...), '\t'), it.created, 10)
		b = append(append(strconv.AppendInt(append(b, '\t'), it.rev, 10), '\t'), value...)
		if len(b) >= maxMemoryLine-1 { // a value became larger as it was read: it is known again with etcd
			continue
		}
		if err := line(); err != nil {
			return err
		}
		n++
	}
	b = strconv.AppendUint(append(strconv.AppendInt(append(b[:0], '\t'), n, 10), '\t'), uint64(sum.Sum32()), 10)
	if err := line(); err != nil {
		return err
	}
	return buf.Flush()
}

// recall reads the file of a host. Nil: there is none, or it is of another membership or another run of the host.
func recall(path, prefix string, host hcn.GUID, boot string) (*cache, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what was known of the cluster: %w", err)
	}
	defer f.Close()
	c, err := readMemory(f, prefix, host, boot)
	if err != nil {
		return nil, fmt.Errorf("read what was known of the cluster: %s: %w", path, err)
	}
	return c, nil
}

func readMemory(r io.Reader, prefix string, host hcn.GUID, boot string) (*cache, error) {
	in, sum := bufio.NewScanner(r), crc32.New(memorySums)
	in.Buffer(make([]byte, 0, 64<<10), maxMemoryLine)
	next := func() ([]byte, error) {
		if !in.Scan() {
			return nil, cmp.Or(in.Err(), io.ErrUnexpectedEOF)
		}
		return in.Bytes(), nil
	}
	b, err := next()
	if err != nil {
		return nil, err
	}
	var head memoryHead
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("its head: %w", err)
	}
	if head.Version != memoryVersion || head.Prefix != prefix || head.Host != host || head.Boot != boot {
		return nil, nil
	}
	c := newCache(keys{prefix}, host)
	for n := range maxMemoryKeys + 1 {
		sum.Write(append(b, '\n')) // the Scanner's own byte
		if b, err = next(); err != nil {
			return nil, err
		}
		if rest, end := bytes.CutPrefix(b, []byte{'\t'}); end {
			if string(rest) != fmt.Sprintf("%d\t%d", n, sum.Sum32()) {
				return nil, errors.New("it is damaged: its end does not fit what is before")
			}
			if err := checkRecalled(c); err != nil {
				return nil, err
			}
			c.rev, c.recalled, c.unsaved = head.Rev, true, false
			clear(c.problems) // what is wrong with a key is found by what etcd has
			clear(c.unnamed)
			return c, nil
		}
		if err := c.recallLine(b); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("there are more than %d keys", maxMemoryKeys)
}

func (c *cache) recallLine(b []byte) error {
	parts := bytes.SplitN(b, []byte{'\t'}, 4)
	if len(parts) != 4 {
		return fmt.Errorf("the line %.100q is none", b)
	}
	e := entry{key: string(parts[0]), value: parts[3]}
	if p, err := c.keys.parse(e.key); err != nil || !kept[p.kind] {
		return fmt.Errorf("the key %.100q: %w", e.key, errForeign)
	}
	var errs [2]error
	e.created, errs[0] = strconv.ParseInt(string(parts[1]), 10, 64)
	e.rev, errs[1] = strconv.ParseInt(string(parts[2]), 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("the revisions of %.100q: %w", e.key, err)
	}
	c.put(e)
	return nil
}

// checkRecalled refuses what another version has written.
func checkRecalled(c *cache) error {
	if c.schema == nil || c.schema.v.Version != Schema {
		return errors.New("it is of another version")
	}
	return nil
}

func (c *Cluster) memory() string { return filepath.Join(c.opt.RunDir, fileMemory) }

// Recall gives what the last daemon knew of the cluster, and false if nothing is known of that. It is called before Run; the agent goes on
// with it, and tells what is otherwise when it has read etcd.
func (c *Cluster) Recall() (Update, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg == nil {
		return Update{}, false
	}
	known, err := recall(c.memory(), c.cfg.Etcd.Prefix, c.cfg.Host, c.opt.Boot)
	if err != nil {
		c.log.Warn("what is on other hosts will be known when etcd is asked", "error", err)
	}
	if known == nil {
		return Update{}, false
	}
	c.known = known
	u := known.changes()
	u.Recalled = true
	return u, true
}

// forgetMemory removes the file, with the membership.
func (c *Cluster) forgetMemory() {
	if err := os.Remove(c.memory()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("remove what is kept of the cluster", "error", err)
	}
}
