package overlay

import (
	"context"
	"net/netip"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Membership is a report for people.
type Membership struct {
	Joined    bool
	Cluster   hcn.GUID
	Host      hcn.GUID
	Name      string
	Addrs     []netip.Addr
	Own       bool
	Etcd      Etcd
	Since     time.Time
	Expires   time.Time // of the client certificate
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
	c.mu.Unlock()
	if cfg == nil {
		return Membership{}
	}
	m := Membership{Joined: true, Cluster: cfg.Cluster, Host: cfg.Host, Name: cfg.Name, Addrs: cfg.Addrs, Own: cfg.Own, Etcd: cfg.Etcd, Since: cfg.Since}
	if p, err := readPair(cfg.Etcd.Cert, cfg.Etcd.Key, time.Now()); err == nil {
		m.Expires = p.Leaf.NotAfter
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
	for _, mm := range res.Members {
		st := MemberStatus{Name: mm.Name, Learner: mm.IsLearner}
		if len(mm.ClientURLs) > 0 {
			st.Address = mm.ClientURLs[0]
			s, err := r.cli.Status(ctx, st.Address)
			if err != nil {
				st.Problem = Explain(err).Error()
			} else {
				st.Version, st.Size, st.Leader = s.Version, s.DbSize, s.Leader == mm.ID
			}
		} else {
			st.Problem = "it has not started yet"
		}
		m.Members = append(m.Members, st)
	}
	return m
}
