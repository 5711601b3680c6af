package server

import (
	"context"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-net/bulkhead/api"
)

// statsInterval is the time between two lines of a stream of stats.
const statsInterval = time.Second

func (s *Server) containerRoutes() {
	const one = "/v1/containers/{ref}"
	container := reflect.TypeFor[api.Container]()
	for _, rt := range []route{
		{
			method: http.MethodGet, path: "/v1/containers", id: "listContainers", summary: "List containers",
			answer: reflect.TypeFor[[]api.Container](), handle: s.listContainers,
		},
		{
			method: http.MethodPost, path: "/v1/containers", id: "createContainer", summary: "Create a container",
			body: reflect.TypeFor[api.ContainerSpec](), answer: reflect.TypeFor[api.ContainerCreated](), handle: s.createContainer,
			query: []*huma.Param{
				param("start", huma.TypeBoolean, "Start it too; one that does not start is there all the same, unless it has autoRemove"),
			},
		},
		{
			method: http.MethodGet, path: one, id: "showContainer", summary: "Show a container",
			description: "A container goes by its ID, a unique beginning of it, or its name.", answer: container, handle: s.showContainer,
		},
		{
			method: http.MethodDelete, path: one, id: "removeContainer", summary: "Remove a container", handle: s.removeContainer,
			query: []*huma.Param{
				param("force", huma.TypeBoolean, "Kill it first if it runs"),
			},
		},
		{method: http.MethodPost, path: one + "/start", id: "startContainer", summary: "Start a container", handle: s.byName(s.backend.StartContainer)},
		{
			method: http.MethodPost, path: one + "/stop", id: "stopContainer", summary: "Stop a container",
			body: reflect.TypeFor[api.StopRequest](), optionalBody: true, handle: s.stopper(s.backend.StopContainer),
		},
		{
			method: http.MethodPost, path: one + "/restart", id: "restartContainer", summary: "Stop a container and start it again",
			body: reflect.TypeFor[api.StopRequest](), optionalBody: true, handle: s.stopper(s.backend.RestartContainer),
		},
		{
			method: http.MethodPost, path: one + "/isolation", id: "isolateContainer", summary: "Change a container's isolation",
			description: "Everything else of it stays: files, names, endpoints with their addresses, MACs, rules and published ports. One that runs is stopped and started again.",
			body:        reflect.TypeFor[api.IsolationRequest](), answer: reflect.TypeFor[api.IsolationChange](), handle: s.isolateContainer,
		},
		{
			method: http.MethodPost, path: one + "/kill", id: "killContainer", summary: "Send a signal to a container",
			query: []*huma.Param{param("signal", huma.TypeString, "Name or number; SIGKILL when absent")}, handle: s.killContainer,
		},
		{
			method: http.MethodPost, path: one + "/pause", id: "pauseContainer", summary: "Freeze a container's processes",
			handle: s.byName(s.backend.PauseContainer),
		},
		{
			method: http.MethodPost, path: one + "/unpause", id: "unpauseContainer", summary: "Let a paused container go on",
			handle: s.byName(s.backend.UnpauseContainer),
		},
		{
			method: http.MethodPost, path: one + "/wait", id: "waitContainer", summary: "Wait until a container has ended",
			query:  []*huma.Param{param("condition", huma.TypeString, `"not-running" (when absent) or "removed"`)},
			answer: reflect.TypeFor[api.WaitResult](), handle: s.waitContainer,
		},
		{
			method: http.MethodGet, path: one + "/logs", id: "containerLogs", summary: "Read what a container wrote",
			query: logParams(), answer: reflect.TypeFor[api.LogLine](), answerType: typeNDJSON, handle: s.containerLogs,
		},
		{
			method: http.MethodGet, path: one + "/stats", id: "containerStats", summary: "Show what a container uses",
			query:  []*huma.Param{param("stream", huma.TypeBoolean, "Go on, a line of JSON each second")},
			answer: reflect.TypeFor[api.Stats](), handle: s.containerStats,
		},
	} {
		rt.tag = "containers"
		s.handle(rt)
	}
	s.streamRoutes()
}

func logParams() []*huma.Param {
	return []*huma.Param{
		param("follow", huma.TypeBoolean, "Go on with what it writes from now on"),
		param("tail", huma.TypeInteger, "So many lines from the end; negative or absent: all"),
		param("since", huma.TypeString, "RFC 3339, or seconds since 1970"),
		param("until", huma.TypeString, "RFC 3339, or seconds since 1970"),
		param("stdout", huma.TypeBoolean, "True when absent"),
		param("stderr", huma.TypeBoolean, "True when absent"),
	}
}

func (s *Server) listContainers(w http.ResponseWriter, _ *http.Request) error {
	s.write(w, http.StatusOK, list(s.backend.Containers()))
	return nil
}

func (s *Server) createContainer(w http.ResponseWriter, r *http.Request) error {
	spec, err := decodeBody[api.ContainerSpec](w, r)
	if err != nil {
		return err
	}
	q := readQuery(r)
	create := s.backend.CreateContainer
	if q.flag("start", false) {
		create = s.backend.RunContainer
	}
	if q.err != nil {
		return q.err
	}
	made, err := create(r.Context(), spec)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, made)
	return nil
}

func (s *Server) showContainer(w http.ResponseWriter, r *http.Request) error {
	c, err := s.backend.Container(r.PathValue("ref"))
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, c)
	return nil
}

func (s *Server) removeContainer(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	force := q.flag("force", false)
	if q.err != nil {
		return q.err
	}
	return done(w, s.backend.RemoveContainer(r.Context(), r.PathValue("ref"), force))
}

// done answers a call that gives nothing back.
func done(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

// byName handles a call that needs only to know which container is meant.
func (s *Server) byName(do func(context.Context, string) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		return done(w, do(r.Context(), r.PathValue("ref")))
	}
}

func (s *Server) stopper(do func(context.Context, string, api.StopRequest) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		how, err := optionalBody[api.StopRequest](w, r)
		if err != nil {
			return err
		}
		return done(w, do(r.Context(), r.PathValue("ref"), how))
	}
}

func (s *Server) isolateContainer(w http.ResponseWriter, r *http.Request) error {
	how, err := decodeBody[api.IsolationRequest](w, r)
	if err != nil {
		return err
	}
	change, err := s.backend.IsolateContainer(r.Context(), r.PathValue("ref"), how)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, change)
	return nil
}

func (s *Server) killContainer(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	if q.err != nil {
		return q.err
	}
	return done(w, s.backend.KillContainer(r.Context(), r.PathValue("ref"), q.text("signal")))
}

func (s *Server) waitContainer(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	condition := q.text("condition")
	switch condition {
	case "", "not-running", "removed":
	default:
		q.wrong("condition", "write not-running or removed")
	}
	if q.err != nil {
		return q.err
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	res, err := s.backend.WaitContainer(ctx, r.PathValue("ref"), condition)
	if err != nil {
		return s.interrupted(err)
	}
	s.write(w, http.StatusOK, res)
	return nil
}

// interrupted replaces the error of a call that the daemon's stop cut short.
func (s *Server) interrupted(err error) error {
	if err != nil && s.isStopping() {
		return api.Errorf(api.KindUnavailable, "the daemon is stopping").Hint("try again when it is back: containers go on running")
	}
	return err
}

func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	options := api.LogOptions{
		Follow: q.flag("follow", false), Tail: q.number("tail", -1), Since: q.moment("since"), Until: q.moment("until"),
		Stdout: q.flag("stdout", true), Stderr: q.flag("stderr", true),
	}
	if q.err != nil {
		return q.err
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	lines := newLines(w)
	err := s.backend.ContainerLogs(ctx, r.PathValue("ref"), options, func(l api.LogLine) error {
		return lines.send(l, options.Follow)
	})
	return lines.end(s.interrupted(err))
}

func (s *Server) containerStats(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	stream := q.flag("stream", false)
	if q.err != nil {
		return q.err
	}
	first, err := s.backend.ContainerStats(r.Context(), r.PathValue("ref"))
	if err != nil {
		return err
	}
	if !stream {
		s.write(w, http.StatusOK, first)
		return nil
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	lines := newLines(w)
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	for next := first; ; {
		if err := lines.send(next, true); err != nil {
			return lines.end(err)
		}
		select {
		case <-ctx.Done():
			return lines.end(s.interrupted(ctx.Err()))
		case <-tick.C:
		}
		if next, err = s.backend.ContainerStats(ctx, r.PathValue("ref")); err != nil {
			return lines.end(s.interrupted(err))
		}
	}
}
