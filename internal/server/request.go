package server

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// drainBody is how much of a body that is too large is still read: a client that is cut off while it sends sees a broken pipe
// and not the answer.
const drainBody = 64 << 20

var errTooLarge = errors.New("the document is larger than 4 MiB")

// readBody reads a document, bounded in size and time.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	rc := http.NewResponseController(w)
	// Without a connection below, as in tests of the handler alone, there is no deadline to set.
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	b, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, drainBody)) // the answer is the same whatever comes of it
		return nil, errTooLarge
	}
	return b, err
}

// hcnBody reads the body of a call of HCN.
func hcnBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	b, err := readBody(w, r)
	if err != nil {
		return nil, hcn.Errorf(hcn.ErrInvalidJSON, "read the document: %w", err)
	}
	return b, nil
}

// decodeBody reads a document of ours. Unlike HCN, it may hold nothing that we do not know: a misspelled setting would
// otherwise be one without effect.
func decodeBody[T any](w http.ResponseWriter, r *http.Request) (T, error) {
	var v T
	b, err := readBody(w, r)
	if err != nil {
		return v, api.Errorf(api.KindInvalid, "read the document: %w", err)
	}
	return v, decodeStrict(b, &v)
}

func decodeStrict(b []byte, v any) error {
	t := bytes.TrimLeft(b, " \t\r\n")
	if len(t) == 0 {
		return api.Errorf(api.KindInvalid, "the document is missing").Hint("send it as the body of the request, as JSON")
	}
	if t[0] != '{' && t[0] != '[' {
		return api.Errorf(api.KindInvalid, "the document must be a JSON object or array").Hint("GET /openapi.json has the form of each call")
	}
	if err := hcn.CheckDepth(b); err != nil {
		return api.Errorf(api.KindInvalid, "%s", hcn.AsError(err).Detail)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return documentError(dec, err, reflect.TypeOf(v), b)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return api.Errorf(api.KindInvalid, "something follows the document at byte %d", dec.InputOffset())
	}
	return nil
}

func documentError(dec *json.Decoder, err error, t reflect.Type, b []byte) error {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &kind):
		return api.Errorf(api.KindInvalid, "%s: %s", cmp.Or(hcn.PathOfMisfit(t, b), kind.Field, "the document"), hcn.MisfitJSON(kind)).Hint("GET /openapi.json has the form of each call")
	case errors.As(err, &syntax):
		return api.Errorf(api.KindInvalid, "the document is not JSON: at byte %d: %w", syntax.Offset, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return api.Errorf(api.KindInvalid, "the document is not JSON: it ends too early").Hint("send all of it, with its Content-Length")
	}
	// The decoder has no type for this one; its text is `json: unknown field "name"`.
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return api.Errorf(api.KindInvalid, "unknown field %s before byte %d", cutText(name), dec.InputOffset()).
			Hint("remove it, or see /openapi.json for how it is spelled")
	}
	return api.Errorf(api.KindInvalid, "the document: %w", err)
}

// optionalBody is a document that may be left out.
func optionalBody[T any](w http.ResponseWriter, r *http.Request) (T, error) {
	var v T
	b, err := readBody(w, r)
	if err != nil {
		return v, api.Errorf(api.KindInvalid, "read the document: %w", err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return v, nil
	}
	return v, decodeStrict(b, &v)
}

// unknownParams lists the query parameters of a request that its route does not know.
func unknownParams(r *http.Request, known []string) (unknown []string) {
	for name := range r.URL.Query() {
		if !slices.Contains(known, name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return unknown
}

// checkParams refuses a query parameter of ours that would have no effect.
func checkParams(r *http.Request, known []string) error {
	unknown := unknownParams(r, known)
	if len(unknown) == 0 {
		return nil
	}
	if len(known) == 0 {
		return api.Errorf(api.KindInvalid, "query parameter %q is not known: this call has none", cutText(unknown[0])).Hint("leave it out")
	}
	return api.Errorf(api.KindInvalid, "query parameter %q is not known", cutText(unknown[0])).Hint("use %s", strings.Join(known, ", "))
}

// query reads the parameters of a request. The first that is wrong is kept as err.
type query struct {
	values url.Values
	err    error
}

func readQuery(r *http.Request) *query {
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		err = api.Errorf(api.KindInvalid, "read the query of the address: %w", err)
	}
	return &query{v, err}
}

func (q *query) text(name string) string { return q.values.Get(name) }

// flag is true for `?name`, `?name=true` and `?name=1`.
func (q *query) flag(name string, otherwise bool) bool {
	if !q.values.Has(name) {
		return otherwise
	}
	if q.values.Get(name) == "" {
		return true
	}
	b, err := strconv.ParseBool(q.values.Get(name))
	if err != nil {
		q.wrong(name, "write true or false")
	}
	return b
}

func (q *query) number(name string, otherwise int) int {
	v := q.text(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		q.wrong(name, "write a number")
	}
	return n
}

// moment is a time in RFC 3339, or in seconds since 1970 with an optional fraction.
func (q *query) moment(name string) time.Time {
	v := q.text(name)
	if v == "" {
		return time.Time{}
	}
	if t, err := time.Parse(time.RFC3339Nano, v); err == nil {
		return t
	}
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || f < 0 || f > 1<<40 {
		q.wrong(name, "write a time like 2006-01-02T15:04:05Z, or seconds since 1970")
		return time.Time{}
	}
	sec := int64(f)
	return time.Unix(sec, int64((f-float64(sec))*1e9))
}

// duration is such as 1m30s.
func (q *query) duration(name string) time.Duration {
	v := q.text(name)
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		q.wrong(name, "write a duration like 30s")
	}
	return d
}

func (q *query) required(name string) string {
	v := q.text(name)
	if v == "" {
		q.wrong(name, "it is missing")
	}
	return v
}

func (q *query) wrong(name, what string) {
	if q.err == nil {
		q.err = api.Errorf(api.KindInvalid, "query parameter %s=%q: %s", name, cutText(q.text(name)), what)
	}
}
