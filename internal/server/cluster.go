package server

import (
	"context"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// Cluster is this host's membership in a cluster. A host is named by its name or ID.
type Cluster interface {
	Cluster(ctx context.Context) api.Cluster
	InitCluster(ctx context.Context, r api.ClusterInit) (api.ClusterJoined, error)
	JoinCluster(ctx context.Context, r api.ClusterJoin) (api.ClusterJoined, error)
	LeaveCluster(ctx context.Context, force bool) error
	ClusterToken(ctx context.Context, valid time.Duration) (string, error)
	ForgetClusterHost(ctx context.Context, ref string, force bool) error
	CheckCluster(ctx context.Context, r api.ClusterCheckRequest) (api.ClusterCheck, error)
	CreateClusterNetwork(ctx context.Context, doc hcn.HostComputeNetwork) (hcn.HostComputeNetwork, error)
	DeleteClusterNetwork(ctx context.Context, id hcn.GUID, force bool) error
	RotateClusterKeys(ctx context.Context) (uint32, error)
}

func (s *Server) clusterRoutes() {
	force := []*huma.Param{param("force", "boolean", "Do it although others suffer: see the error without it")}
	for _, rt := range []route{
		{
			method: http.MethodGet, path: "/v1/cluster", id: "showCluster", summary: "This host's part in a cluster, and the cluster as it is seen from here",
			answer: reflect.TypeFor[api.Cluster](), handle: s.showCluster,
		},
		{
			method: http.MethodPost, path: "/v1/cluster/init", id: "initCluster", summary: "Begin a cluster with an etcd of its own",
			description: "Starts the first member of etcd on this host. The answer holds a token for other hosts.",
			body:        reflect.TypeFor[api.ClusterInit](), answer: reflect.TypeFor[api.ClusterJoined](), handle: s.initCluster,
		},
		{
			method: http.MethodPost, path: "/v1/cluster/join", id: "joinCluster", summary: "Get this host into a cluster, with a token or by the user's own etcd",
			description: "All of it or nothing: after an error the host is in no cluster, and nothing of the attempt is left.",
			body:        reflect.TypeFor[api.ClusterJoin](), answer: reflect.TypeFor[api.ClusterJoined](), handle: s.joinCluster,
		},
		{
			method: http.MethodPost, path: "/v1/cluster/leave", id: "leaveCluster", summary: "Take this host out of its cluster, and the cluster's networks off this host",
			body: reflect.TypeFor[api.ClusterLeave](), handle: s.leaveCluster,
		},
		{
			method: http.MethodPost, path: "/v1/cluster/tokens", id: "createClusterToken", summary: "Make a token that lets hosts join",
			body: reflect.TypeFor[api.ClusterTokenRequest](), answer: reflect.TypeFor[api.ClusterToken](), handle: s.clusterToken,
		},
		{
			method: http.MethodPost, path: "/v1/cluster/keys", id: "rotateClusterKeys", summary: "Change the keys by which hosts encrypt",
			description: "Every host makes itself a new one. The old ones are used until the new ones are known, so nothing is lost. Answers when it has begun.",
			answer:      reflect.TypeFor[api.ClusterKeys](), handle: s.rotateKeys,
		},
		{
			method: http.MethodDelete, path: "/v1/cluster/hosts/{host}", id: "forgetClusterHost", summary: "Free the addresses of a host that will not come back",
			description: "By its name or ID. Should it come back, it is kept out until it joins anew.", query: force, handle: s.forgetHost,
		},
		{
			method: http.MethodPost, path: "/v1/cluster/check", id: "checkCluster", summary: "Have hosts send each other packets like those of tunnels, and say what becomes of them",
			description: "Takes some seconds. Each host then holds the MTU of the cluster's networks to what its ways to the others carry.",
			body:        reflect.TypeFor[api.ClusterCheckRequest](), answer: reflect.TypeFor[api.ClusterCheck](), handle: s.checkCluster,
		},
		{
			method: http.MethodPost, path: "/v1/cluster/networks", id: "createClusterNetwork", summary: "Create a network of type Overlay on all hosts of the cluster",
			description: "Prefixes and the VSID are picked where the document has none. A network of type Overlay that is created by POST /hcn/v2/networks is this host's alone.",
			body:        reflect.TypeFor[hcn.HostComputeNetwork](), answer: reflect.TypeFor[hcn.HostComputeNetwork](), handle: s.createClusterNetwork,
		},
		{
			method: http.MethodDelete, path: "/v1/cluster/networks/{network}", id: "deleteClusterNetwork", summary: "Delete a network on all hosts of the cluster",
			query: force, handle: s.deleteClusterNetwork,
		},
	} {
		rt.tag = "cluster"
		s.handle(rt)
	}
}

// theCluster: a daemon may be made without one, as in tests.
func (s *Server) theCluster() (Cluster, error) {
	if s.cluster == nil {
		return nil, api.Errorf(api.KindUnsupported, "this daemon takes part in no cluster")
	}
	return s.cluster, nil
}

func (s *Server) showCluster(w http.ResponseWriter, r *http.Request) error {
	c, err := s.theCluster()
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, c.Cluster(r.Context()))
	return nil
}

func (s *Server) initCluster(w http.ResponseWriter, r *http.Request) error {
	c, err := s.theCluster()
	if err != nil {
		return err
	}
	req, err := decodeBody[api.ClusterInit](w, r)
	if err != nil {
		return err
	}
	j, err := c.InitCluster(r.Context(), req)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, j)
	return nil
}

func (s *Server) joinCluster(w http.ResponseWriter, r *http.Request) error {
	c, err := s.theCluster()
	if err != nil {
		return err
	}
	req, err := decodeBody[api.ClusterJoin](w, r)
	if err != nil {
		return err
	}
	if (req.Token == "") == (req.Etcd == nil) {
		return api.Errorf(api.KindInvalid, "a host joins either with a token or by an etcd, and this names both or none of them").
			Hint("send token, as `bulkhead cluster token` prints it, or etcd")
	}
	switch {
	case req.Member && req.Etcd != nil:
		return api.Errorf(api.KindInvalid, "member: it is for the etcd that Bulkhead runs, and etcd names one of the user's own").Hint("send one of them")
	case req.Port != 0 && !req.Member:
		return api.Errorf(api.KindInvalid, "port: it is for a member of etcd, and this host is to run none").Hint("send member, or leave port out")
	}
	j, err := c.JoinCluster(r.Context(), req)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, j)
	return nil
}

func (s *Server) leaveCluster(w http.ResponseWriter, r *http.Request) error {
	c, err := s.theCluster()
	if err != nil {
		return err
	}
	req, err := decodeBody[api.ClusterLeave](w, r)
	if err != nil {
		return err
	}
	return done(w, c.LeaveCluster(r.Context(), req.Force))
}

func (s *Server) clusterToken(w http.ResponseWriter, r *http.Request) error {
	c, err := s.theCluster()
	if err != nil {
		return err
	}
	req, err := decodeBody[api.ClusterTokenRequest](w, r)
	if err != nil {
		return err
	}
	var valid time.Duration
	if req.ValidFor != "" {
		if valid, err = time.ParseDuration(req.ValidFor); err != nil {
			return api.Errorf(api.KindInvalid, "validFor: %q is not a duration", cutText(req.ValidFor)).Hint("write it like 2h")
		}
	}
	t, err := c.ClusterToken(r.Context(), valid)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, api.ClusterToken{Token: t})
	return nil
}

func (s *Server) rotateKeys(w http.ResponseWriter, r *http.Request) error {
	c, err := s.theCluster()
	if err != nil {
		return err
	}
	g, err := c.RotateClusterKeys(r.Context())
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, api.ClusterKeys{Generation: g})
	return nil
}

func (s *Server) forgetHost(w http.ResponseWriter, r *http.Request) error {
	c, err := s.theCluster()
	if err != nil {
		return err
	}
	return done(w, c.ForgetClusterHost(r.Context(), r.PathValue("host"), r.URL.Query().Get("force") == "true"))
}

func (s *Server) checkCluster(w http.ResponseWriter, r *http.Request) error {
	c, err := s.theCluster()
	if err != nil {
		return err
	}
	req, err := decodeBody[api.ClusterCheckRequest](w, r)
	if err != nil {
		return err
	}
	res, err := c.CheckCluster(r.Context(), req)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, res)
	return nil
}

func (s *Server) createClusterNetwork(w http.ResponseWriter, r *http.Request) error {
	c, err := s.theCluster()
	if err != nil {
		return err
	}
	doc, err := decodeBody[hcn.HostComputeNetwork](w, r)
	if err != nil {
		return err
	}
	orVersion2(&doc.SchemaVersion)
	made, err := c.CreateClusterNetwork(r.Context(), doc)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, made)
	return nil
}

func (s *Server) deleteClusterNetwork(w http.ResponseWriter, r *http.Request) error {
	c, err := s.theCluster()
	if err != nil {
		return err
	}
	id, err := hcn.ParseGUID(r.PathValue("network"))
	if err != nil {
		return err
	}
	return done(w, c.DeleteClusterNetwork(r.Context(), id, r.URL.Query().Get("force") == "true"))
}
