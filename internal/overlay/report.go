package overlay

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Membership is a report for people.
type Membership struct {
	Joined  bool
	Cluster hcn.GUID
	Host    hcn.GUID
	Name    string
	Addrs   []netip.Addr
	Own     bool
	// Untold is why the other members of etcd do not know where this host's is, if they do not.
	Untold    string
	Etcd      Etcd
	Since     time.Time
	Expires   time.Time // of the client certificate
	Renewal   string    // why that could not be renewed
	Members   []MemberStatus
	MemberErr string
	Status    Status
}

// MemberStatus is a member of etcd.
type MemberStatus struct {
	Name, Address, Version string
	Leader, Learner        bool
	Size                   int64
	Problem                string
}

// Status of the membership; it asks the members of etcd.
func (c *Cluster) Status(ctx context.Context) Membership {
	c.mu.Lock()
	cfg, r, a, trouble := c.cfg, c.run, c.agent, c.trouble
	var renewal, untold error
	if r != nil {
		renewal, untold = r.renewal, r.untold
	}
	c.mu.Unlock()
	if cfg == nil {
		return Membership{}
	}
	m := Membership{Joined: true, Cluster: cfg.Cluster, Host: cfg.Host, Name: cfg.Name, Addrs: cfg.Addrs, Own: cfg.Own, Etcd: cfg.Etcd, Since: cfg.Since}
	if untold != nil {
		m.Untold = untold.Error()
	}
	if p, err := readPair(cfg.Etcd.Cert, cfg.Etcd.Key, time.Now()); err == nil {
		m.Expires = p.Leaf.NotAfter
	}
	if renewal != nil {
		m.Renewal = renewal.Error()
	}
	if a == nil || r == nil {
		m.Status.Problem = "the daemon is starting"
		if trouble != nil {
			m.Status.Problem = trouble.Error()
		}
		return m
	}
	m.Status = a.Status()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	res, err := r.cli.MemberList(ctx)
	if err != nil {
		m.MemberErr = Explain(err).Error()
		return m
	}
	m.Members = make([]MemberStatus, len(res.Members))
	var wg sync.WaitGroup
	for i, mm := range res.Members { // at once: those that do not answer take all of the time
		wg.Go(func() { m.Members[i] = askMember(ctx, r.cli, mm) })
	}
	wg.Wait()
	return m
}

func askMember(ctx context.Context, cli *clientv3.Client, m *etcdserverpb.Member) MemberStatus {
	st := MemberStatus{Name: m.Name, Learner: m.IsLearner}
	if len(m.ClientURLs) == 0 {
		st.Problem = "it has not started yet"
		return st
	}
	st.Address = m.ClientURLs[0]
	s, err := cli.Status(ctx, st.Address)
	if err != nil {
		st.Problem = Explain(err).Error()
		return st
	}
	st.Version, st.Size, st.Leader = s.Version, s.DbSize, s.Leader == m.ID
	return st
}
