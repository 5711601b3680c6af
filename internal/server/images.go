package server

import (
	"io"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-net/bulkhead/api"
)

func (s *Server) imageRoutes() {
	image := reflect.TypeFor[api.Image]()
	pull, step := reflect.TypeFor[api.PullRequest](), reflect.TypeFor[api.ImageProgress]()
	for _, rt := range []route{
		{
			method: http.MethodGet, path: "/v1/images", id: "listImages", summary: "List images",
			answer: reflect.TypeFor[[]api.Image](), handle: s.listImages,
		},
		{
			method: http.MethodPost, path: "/v1/images", id: "pullImage", summary: "Pull an image from a registry",
			description: "The last line has the image in done.", body: pull, answer: step, answerType: typeNDJSON, handle: s.pullImage,
		},
		{
			method: http.MethodPost, path: "/v1/images/push", id: "pushImage", summary: "Push an image to a registry",
			description: `The last line has the phase "done" and no layer.`, body: pull, answer: step, answerType: typeNDJSON, handle: s.pushImage,
		},
		{
			method: http.MethodPost, path: "/v1/images/import", id: "importImage", summary: "Make an image of a root file system",
			query: []*huma.Param{
				mustParam("reference", "The name of the new image"),
				param("config", huma.TypeString, "How to run it: an ImageConfig as JSON"),
			},
			body: reflect.TypeFor[[]byte](), bodyType: typeTar, answer: image, handle: s.importImage,
		},
		{
			method: http.MethodPost, path: "/v1/images/tag", id: "tagImage", summary: "Give an image another name",
			query: []*huma.Param{mustParam("ref", "The image"), mustParam("name", "Its further name")}, handle: s.tagImage,
		},
		{
			method: http.MethodPost, path: "/v1/images/prune", id: "pruneImages", summary: "Remove the images that nothing uses or names",
			answer: reflect.TypeFor[[]string](), handle: s.pruneImages,
		},
		{
			method: http.MethodGet, path: "/v1/images/{ref...}", id: "showImage", summary: "Show an image",
			description: "A reference may have slashes; they stand in the path as they are.", answer: image, handle: s.showImage,
		},
		{
			method: http.MethodDelete, path: "/v1/images/{ref...}", id: "removeImage", summary: "Remove an image or one of its names",
			query: []*huma.Param{param("force", huma.TypeBoolean, "Also with several names")}, handle: s.removeImage,
		},
		{
			method: http.MethodPost, path: "/v1/registries", id: "login", summary: "Check credentials with a registry and keep them",
			body: reflect.TypeFor[api.LoginRequest](), handle: s.login,
		},
		{
			method: http.MethodDelete, path: "/v1/registries/{registry}", id: "logout", summary: "Forget a registry's credentials",
			handle: s.logout,
		},
	} {
		rt.tag = "images"
		s.handle(rt)
	}
}

func (s *Server) listImages(w http.ResponseWriter, _ *http.Request) error {
	l, err := s.backend.Images()
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, list(l))
	return nil
}

func (s *Server) pullImage(w http.ResponseWriter, r *http.Request) error {
	what, err := decodeBody[api.PullRequest](w, r)
	if err != nil {
		return err
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	p := newProgress(w)
	defer p.close()
	image, err := s.backend.PullImage(ctx, what, p.report)
	return p.end(api.ImageProgress{Phase: "done", Done: &image}, s.interrupted(err))
}

func (s *Server) pushImage(w http.ResponseWriter, r *http.Request) error {
	what, err := decodeBody[api.PullRequest](w, r)
	if err != nil {
		return err
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	p := newProgress(w)
	defer p.close()
	err = s.backend.PushImage(ctx, what, p.report)
	return p.end(api.ImageProgress{Phase: "done"}, s.interrupted(err))
}

func (s *Server) login(w http.ResponseWriter, r *http.Request) error {
	what, err := decodeBody[api.LoginRequest](w, r)
	if err == nil {
		err = s.backend.Login(r.Context(), what)
	}
	return done(w, err)
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) error {
	return done(w, s.backend.Logout(r.Context(), r.PathValue("registry")))
}

// patientBody is a body of any length whose sender must not fall silent.
type patientBody struct {
	io.Reader
	rc *http.ResponseController
}

func (b patientBody) Read(p []byte) (int, error) {
	_ = b.rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // there is none without a connection, as in tests
	return b.Reader.Read(p)
}

func (s *Server) importImage(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	reference := q.required("reference")
	if q.err != nil {
		return q.err
	}
	var config api.ImageConfig
	if c := q.text("config"); c != "" {
		if err := decodeStrict([]byte(c), &config); err != nil {
			e := apiError(err)
			return api.Errorf(e.Kind, "query parameter config: %w", err).Hint("%s", e.Next)
		}
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	rc := http.NewResponseController(w)
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	image, err := s.backend.ImportImage(ctx, patientBody{r.Body, rc}, reference, config)
	if err != nil {
		return s.interrupted(err)
	}
	s.write(w, http.StatusOK, image)
	return nil
}

func (s *Server) tagImage(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	ref, name := q.required("ref"), q.required("name")
	if q.err != nil {
		return q.err
	}
	return done(w, s.backend.TagImage(r.Context(), ref, name))
}

func (s *Server) pruneImages(w http.ResponseWriter, r *http.Request) error {
	gone, err := s.backend.PruneImages(r.Context())
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, list(gone))
	return nil
}

func (s *Server) showImage(w http.ResponseWriter, r *http.Request) error {
	image, err := s.backend.Image(r.PathValue("ref"))
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, image)
	return nil
}

func (s *Server) removeImage(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	force := q.flag("force", false)
	if q.err != nil {
		return q.err
	}
	return done(w, s.backend.RemoveImage(r.Context(), r.PathValue("ref"), force))
}
