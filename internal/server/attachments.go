package server

import (
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// attachmentRoutes are the door for containers that other runtimes run.
func (s *Server) attachmentRoutes() {
	const all, one = "/v1/attachments", "/v1/attachments/{id}"
	doc := reflect.TypeFor[api.Attachment]()
	for _, rt := range []route{
		{
			method: http.MethodPost, path: all, id: "attach", summary: "Attach a container of another runtime to a network",
			description: "Asked for twice, by the same owner for the same container and interface, it is one attachment. It ends with the host's run.",
			body:        reflect.TypeFor[api.AttachmentSpec](), answer: doc, handle: s.attachForeign,
		},
		{
			method: http.MethodGet, path: all, id: "listAttachments", summary: "List the containers of other runtimes and where they are attached",
			query: []*huma.Param{param("owner", huma.TypeString, "Only those of this owner")}, answer: reflect.TypeFor[[]api.Attachment](), handle: s.listAttachments,
		},
		{
			method: http.MethodGet, path: one, id: "attachment", summary: "Show an attachment", answer: doc, handle: s.attachment,
		},
		{
			method: http.MethodPost, path: one + "/check", id: "checkAttachment", summary: "Check that an attachment is as it was made",
			answer: doc, handle: s.checkAttachment,
		},
		{
			method: http.MethodDelete, path: one, id: "detach", summary: "Detach a container of another runtime", handle: s.detach,
		},
		{
			method: http.MethodPost, path: all + "/gc", id: "collectAttachments", summary: "Detach what an owner does not keep",
			description: "Answers with the IDs of those that are gone.",
			body:        reflect.TypeFor[api.AttachmentGC](), answer: reflect.TypeFor[[]hcn.GUID](), handle: s.collectAttachments,
		},
	} {
		rt.tag = "attachments"
		s.handle(rt)
	}
}

func (s *Server) attachForeign(w http.ResponseWriter, r *http.Request) error {
	spec, err := decodeBody[api.AttachmentSpec](w, r)
	if err != nil {
		return err
	}
	made, err := s.backend.Attach(r.Context(), spec)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, made)
	return nil
}

func (s *Server) listAttachments(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	if q.err != nil {
		return q.err
	}
	s.write(w, http.StatusOK, list(s.backend.Attachments(q.text("owner"))))
	return nil
}

func (s *Server) attachment(w http.ResponseWriter, r *http.Request) error {
	return s.showAttachment(w, r, s.backend.Attachment)
}

func (s *Server) checkAttachment(w http.ResponseWriter, r *http.Request) error {
	return s.showAttachment(w, r, s.backend.CheckAttachment)
}

func (s *Server) showAttachment(w http.ResponseWriter, r *http.Request, get func(hcn.GUID) (api.Attachment, error)) error {
	id, err := pathGUID(r)
	if err != nil {
		return err
	}
	a, err := get(id)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, a)
	return nil
}

func (s *Server) detach(w http.ResponseWriter, r *http.Request) error {
	id, err := pathGUID(r)
	if err != nil {
		return err
	}
	return done(w, s.backend.Detach(r.Context(), id))
}

func (s *Server) collectAttachments(w http.ResponseWriter, r *http.Request) error {
	gc, err := decodeBody[api.AttachmentGC](w, r)
	if err != nil {
		return err
	}
	gone, err := s.backend.CollectAttachments(r.Context(), gc)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, list(gone))
	return nil
}
